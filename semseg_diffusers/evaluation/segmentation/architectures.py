"""The networks that `semseg-diffusers segmenter` trains from random weights, by name, and how each reads photos.
Every one is reached by `AutoModelForSemanticSegmentation`, so a saved folder can be used with transformers alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
)

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation import torchvision_deeplab
from semseg_diffusers.evaluation.segmentation.networks import Source


# The settings of transformers' processors; "size" comes with the data. Written as JSON: constructing one without
# torchvision warns, loading one does not.
SEGFORMER_PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_reduce_labels": False,
}
MOBILEVIT_PROCESSOR = {
    "image_processor_type": "MobileViTImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_flip_channel_order": True,
    "do_reduce_labels": False,
}


@dataclass(frozen=True)
class Architecture:
    """A network by name and the training that suits it from random weights."""

    config: Callable[..., PreTrainedConfig]  # called with what `classes_of` returns
    processor: dict[str, Any]
    enlargement: int  # input side over the data's side
    least_side: int  # pixels of the input's shorter side: below it the lowest maps hold next to nothing
    learning_rate: float
    summary: str


def _segformer_mini(**classes: Any) -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        sr_ratios=[4, 2, 1, 1],  # half of the original's: images here are small
        decoder_hidden_size=64,
        drop_path_rate=0.0,  # a network this small and trained this briefly underfits
        classifier_dropout_prob=0.0,
        **classes,
    )


def _segformer_b0(**classes: Any) -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[32, 64, 160, 256],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 5, 8],
        sr_ratios=[8, 4, 2, 1],
        decoder_hidden_size=256,
        **classes,
    )


def _mobilevit_small(**classes: Any) -> MobileViTConfig:
    return MobileViTConfig(output_stride=8, **classes)


def _mobilevit_xxs(**classes: Any) -> MobileViTConfig:
    return MobileViTConfig(
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
        hidden_dropout_prob=0.05,
        output_stride=8,
        **classes,
    )


def _deeplabv3_resnet50(**classes: Any) -> torchvision_deeplab.TorchvisionDeepLabV3Config:
    return torchvision_deeplab.TorchvisionDeepLabV3Config(**classes)


ARCHITECTURES = {
    "segformer-mini": Architecture(
        _segformer_mini, SEGFORMER_PROCESSOR, 1, 16, 3e-3, "SegFormer of 0.6 M parameters, minutes on a laptop"
    ),
    "segformer-b0": Architecture(
        _segformer_b0, SEGFORMER_PROCESSOR, 2, 256, 5e-4, "SegFormer-B0 (Xie et al. 2021), 3.7 M"
    ),
    "mobilevit-deeplabv3": Architecture(
        _mobilevit_small, MOBILEVIT_PROCESSOR, 2, 256, 1e-3, "MobileViT-small with DeepLabV3's head, 6.4 M"
    ),
    "mobilevit-deeplabv3-xxs": Architecture(
        _mobilevit_xxs, MOBILEVIT_PROCESSOR, 2, 256, 1e-3, "MobileViT-XXS with DeepLabV3's head, 1.9 M"
    ),
    "deeplabv3-resnet50": Architecture(
        _deeplabv3_resnet50, SEGFORMER_PROCESSOR, 2, 256, 5e-4, "torchvision's, the paper's kind of judge, 40 M"
    ),
}


def classes_of(labels: LabelSet) -> dict[str, Any]:
    """Return the entries of a network's config that say what its classes are."""
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
        labels: saved in the config as `id2label` and `label2id`, and whole as `label_set`.
        seed: of the weights; the global random state is left as it was.

    Raises:
        ValueError: no such name, or its library is not there.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture '{name}'; there are {', '.join(ARCHITECTURES)}.")
    torchvision_deeplab.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(ARCHITECTURES[name].config(**classes_of(labels)))
        # transformers draws the scales of MobileViT's batch norms around 0, which silences every layer
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
    return network


def class_layers(config: PreTrainedConfig) -> set[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    more = copy.deepcopy(config)
    more.num_labels = config.num_labels + 1
    with torch.device("meta"):  # shapes alone
        few, many = (AutoModelForSemanticSegmentation.from_config(each).state_dict() for each in (config, more))
    return {name for name, value in few.items() if many[name].shape != value.shape}


def network_to_fine_tune(source: Source, labels: LabelSet, seed: int = 0) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a network to go on from; where its classes are others, its last layer is made anew.

    Args:
        source: folder or Hub id of any network that `AutoModelForSemanticSegmentation` knows.
        labels: of the data; saved in the config.
        seed: of new weights; the global random state is left as it was.

    Returns:
        the network, and the settings of its image processor.

    Raises:
        ValueError: it is no network of this kind, or a file is missing.
        HubError: the Hub, or the way to it, failed.
    """
    config = source.config()
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise ValueError(
            f"{source.option} '{source.name}' is a {config.model_type}; wanted a network that transformers' "
            "AutoModelForSemanticSegmentation knows, such as a segformer or a mobilevit."
        )
    processor = source.processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = source.network()
        config = copy.deepcopy(base.config)
        same_classes = tuple(config.id2label[index] for index in sorted(config.id2label)) == labels.names
        for key, value in classes_of(labels).items():
            setattr(config, key, value)
        network = AutoModelForSemanticSegmentation.from_config(config)
        anew = set() if same_classes else class_layers(config)
        weights = {name: value for name, value in base.state_dict().items() if name not in anew}
        network.load_state_dict(weights, strict=False)
    return network, processor
