"""Builds the networks that are trained for segmentation: random weights of an architecture, or a pretrained network.
The rules for input size and learning rate are the same for `segmenter` and `study`."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import parse_resolution
from semseg_diffusers.evaluation.segmentation.architectures import NETWORKS, register_torchvision
from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, PretrainedSource, scaled_size
from semseg_diffusers.evaluation.segmentation.settings import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    FINE_TUNING,
    SegmenterTrainingOptions,
)


@dataclass(frozen=True)
class InitialSegmenter:
    """A network before its first step, with its input and learning rate."""

    network: PreTrainedModel
    processor: dict[str, Any]  # settings of its image processor, size included
    preprocessing: Preprocessing  # the same, on tensors
    input_size: tuple[int, int]  # height, width
    learning_rate: float


def build_segmenter(
    options: SegmenterTrainingOptions, labels: LabelSet, resolution: tuple[int, int], seed: int
) -> InitialSegmenter:
    """Build a network with random weights, or load one to fine-tune.

    Args:
        options: architecture or base model, input size and learning rate.
        labels: the classes of the data.
        resolution: height and width of its images.
        seed: of new weights.

    Raises:
        ValueError: no such network, or an invalid size.
        HubError: the Hub or the connection failed.
    """
    if options.base_model:
        source = PretrainedSource.of(options.base_model, options.revision, "--base_model")
        network, processor = load_pretrained(source, labels, seed)
        defaults = FINE_TUNING
    else:
        name = options.architecture or DEFAULT_ARCHITECTURE
        network, processor, defaults = new_network(name, labels, seed), NETWORKS[name][1], ARCHITECTURES[name]
    if options.input_size is None:
        size = scaled_size(*resolution, max(defaults.enlargement * min(resolution), defaults.least_side))
    else:
        size = parse_resolution(options.input_size) or resolution  # None: native
        if options.input_size.isdecimal():
            size = scaled_size(*resolution, size[0])
    processor = {**processor, "size": {"height": size[0], "width": size[1]}}
    processor |= {"do_resize": True, "do_center_crop": False, "do_reduce_labels": False}
    preprocessing = Preprocessing.from_processor(processor)
    rate = defaults.learning_rate if options.learning_rate is None else options.learning_rate
    return InitialSegmenter(network, processor, preprocessing, size, rate)


def class_config(labels: LabelSet) -> dict[str, Any]:
    """Return the config entries that define a network's classes."""
    return {
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "label_set": labels.to_config(),
        "semantic_loss_ignore_index": labels.ignore_index,
    }


def new_network(name: str, labels: LabelSet, seed: int = 0) -> PreTrainedModel:
    """Build a network with random weights.

    Args:
        name: one of `NETWORKS`.
        labels: saved in the config as `id2label` and `label2id`, and in full as `label_set`.
        seed: of the weights; the global random state stays as it was.

    Raises:
        ValueError: unknown name, or a library it needs is not installed.
    """
    if name not in NETWORKS:
        raise ValueError(f"--architecture '{name}': expected one of {', '.join(NETWORKS)}.")
    register_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(NETWORKS[name][0](**class_config(labels)))
        # transformers initializes the scales of MobileViT's batch norms around 0, which silences every layer
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
    return network


def class_layers(config: PreTrainedConfig) -> set[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    more = copy.deepcopy(config)
    more.num_labels = config.num_labels + 1
    with torch.device("meta"):  # shapes only
        few, many = (AutoModelForSemanticSegmentation.from_config(each).state_dict() for each in (config, more))
    return {name for name, value in few.items() if many[name].shape != value.shape}


def load_pretrained(
    source: PretrainedSource, labels: LabelSet, seed: int = 0
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a network to fine-tune; its last layer is re-initialized if its classes differ.

    Args:
        source: any network that `AutoModelForSemanticSegmentation` supports.
        labels: of the data; saved in the config.
        seed: of new weights; the global random state stays as it was.

    Returns:
        the network, and the settings of its image processor.

    Raises:
        ValueError: another kind of network, or a missing file.
        HubError: the Hub or the connection failed.
    """
    config = source.config()
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise ValueError(
            f"{source.option} '{source.name}' is a {config.model_type}; expected a network that transformers' "
            "AutoModelForSemanticSegmentation supports, such as a segformer or a mobilevit."
        )
    processor = source.processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = source.network()
        config = copy.deepcopy(base.config)
        same_classes = tuple(config.id2label[index] for index in sorted(config.id2label)) == labels.names
        for key, value in class_config(labels).items():
            setattr(config, key, value)
        network = AutoModelForSemanticSegmentation.from_config(config)
        skipped = set() if same_classes else class_layers(config)
        weights = {name: value for name, value in base.state_dict().items() if name not in skipped}
        network.load_state_dict(weights, strict=False)
    return network, processor
