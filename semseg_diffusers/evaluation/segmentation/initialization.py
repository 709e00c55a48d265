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
from semseg_diffusers.data.options import parse_resolution
from semseg_diffusers.evaluation.segmentation.architectures import ARCHITECTURES, register_torchvision
from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, PretrainedSource, scaled_size


DEFAULT_ARCHITECTURE = "segformer-b0"
FINE_TUNING_RATE = 1e-4  # learning rate of a pretrained network
FINE_TUNING_SIDE = 256  # pixels of the input's shorter side, at least


@dataclass(frozen=True)
class InitialSegmenter:
    """A network before its first step, with its input and learning rate."""

    network: PreTrainedModel
    processor: dict[str, Any]  # settings of its image processor, size included
    preprocessing: Preprocessing  # the same, on tensors
    input_size: tuple[int, int]  # height, width
    learning_rate: float


def build_segmenter(
    labels: LabelSet,
    resolution: tuple[int, int],
    *,
    architecture: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    input_size: str | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> InitialSegmenter:
    """Build a network with random weights, or load one to fine-tune.

    Args:
        labels: the classes of the data.
        resolution: height and width of its images.
        architecture: one of `ARCHITECTURES`; `DEFAULT_ARCHITECTURE` if neither this nor `base_model` is given.
        base_model: folder or Hub id of a network to fine-tune.
        revision: branch, tag or commit of `base_model` on the Hub.
        input_size: a number for the shorter side, "HxW" or "native"; by default that of the architecture.
        learning_rate: peak rate; by default that of the architecture.
        seed: of new weights.

    Raises:
        ValueError: both an architecture and a base model, a revision without one, no such network, an invalid size.
        HubError: the Hub or the connection failed.
    """
    if architecture and base_model:
        raise ValueError("--architecture and --base_model exclude each other: random or pretrained weights.")
    if revision and not base_model:
        raise ValueError("--revision belongs to --base_model, which is missing.")
    if base_model:
        source = PretrainedSource.of(base_model, revision, "--base_model")
        network, processor = load_pretrained(source, labels, seed)
        enlargement, least_side, rate = 2, FINE_TUNING_SIDE, FINE_TUNING_RATE
    else:
        name = architecture or DEFAULT_ARCHITECTURE
        network, chosen = new_network(name, labels, seed), ARCHITECTURES[name]
        processor, rate = chosen.processor, chosen.learning_rate
        enlargement, least_side = chosen.enlargement, chosen.least_side
    size = resolution if input_size is None else parse_resolution(input_size)
    if input_size is None:
        size = scaled_size(*resolution, max(enlargement * min(resolution), least_side))
    elif size is None:  # native
        size = resolution
    elif "x" not in input_size.lower():
        size = scaled_size(*resolution, size[0])
    processor = {**processor, "size": {"height": size[0], "width": size[1]}}
    processor |= {"do_resize": True, "do_center_crop": False, "do_reduce_labels": False}
    preprocessing = Preprocessing.from_processor(processor)
    return InitialSegmenter(network, processor, preprocessing, size, rate if learning_rate is None else learning_rate)


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
        name: one of `ARCHITECTURES`.
        labels: saved in the config as `id2label` and `label2id`, and in full as `label_set`.
        seed: of the weights; the global random state stays as it was.

    Raises:
        ValueError: unknown name, or a library it needs is not installed.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"--architecture '{name}': expected one of {', '.join(ARCHITECTURES)}.")
    register_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(ARCHITECTURES[name].config(**class_config(labels)))
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
