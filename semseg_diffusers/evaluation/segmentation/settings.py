"""Settings of `segmenter`, the training options that it shares with `study`, and the table of architectures."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from semseg_diffusers.data.settings import SPLITS, ColumnOptions
from semseg_diffusers.utils.settings import Settings, option


# Settings of transformers' image processors without "size", which depends on the data. Written as JSON because
# constructing a processor without torchvision warns, and loading one does not.
_PROCESSOR = {
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_reduce_labels": False,
}
SEGFORMER_PROCESSOR = _PROCESSOR | {
    "image_processor_type": "SegformerImageProcessor",
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
MOBILEVIT_PROCESSOR = _PROCESSOR | {
    "image_processor_type": "MobileViTImageProcessor",
    "do_center_crop": False,
    "do_flip_channel_order": True,
}


class Architecture(NamedTuple):
    """A network with random weights, and how it is trained."""

    summary: str
    learning_rate: float
    config: dict[str, Any]  # of transformers: `model_type`, and what differs from its defaults
    processor: dict[str, Any]
    enlargement: int = 2  # input side / side of the images
    least_side: int = 256  # pixels of the input's shorter side, at least: the lowest feature maps need some


ARCHITECTURES = {
    "segformer-mini": Architecture(
        "SegFormer of 0.6 M parameters, minutes on a laptop", 3e-3,
        {
            "model_type": "segformer", "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 64,
            "sr_ratios": [4, 2, 1, 1],  # half of the original's: images here are small
            "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0,  # this small and briefly trained it underfits
        },
        SEGFORMER_PROCESSOR, enlargement=1, least_side=16,
    ),
    "segformer-b0": Architecture(  # the defaults of transformers
        "SegFormer-B0 (Xie et al. 2021), 3.7 M", 5e-4, {"model_type": "segformer"}, SEGFORMER_PROCESSOR,
    ),
    "mobilevit-deeplabv3": Architecture(
        "MobileViT-small with DeepLabV3's head, 6.4 M", 1e-3,
        {"model_type": "mobilevit", "output_stride": 8},
        MOBILEVIT_PROCESSOR,
    ),
    "mobilevit-deeplabv3-xxs": Architecture(
        "MobileViT-XXS with DeepLabV3's head, 1.9 M", 1e-3,
        {
            "model_type": "mobilevit", "output_stride": 8, "hidden_sizes": [64, 80, 96],
            "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0, "hidden_dropout_prob": 0.05,
        },
        MOBILEVIT_PROCESSOR,
    ),
    "deeplabv3-resnet50": Architecture(
        "torchvision's DeepLabV3, as the paper evaluates with, 40 M", 5e-4,
        {"model_type": "torchvision_deeplabv3_resnet50"},
        SEGFORMER_PROCESSOR,
    ),
}  # fmt: skip
DEFAULT_ARCHITECTURE = "segformer-b0"
FINE_TUNING_RATE = 1e-4
VALIDATION_SPLIT, NO_SPLIT = "val", "none"
_SUMMARIES = "; ".join(f"{name}: {architecture.summary}" for name, architecture in ARCHITECTURES.items())
_RATES = ", ".join(f"{name} {architecture.learning_rate:g}" for name, architecture in ARCHITECTURES.items())


@dataclass(frozen=True, kw_only=True)
class SegmenterTrainingOptions(Settings):
    """The network and its training."""

    _group = "network and training"
    architecture: str | None = option(
        None, choices=tuple(ARCHITECTURES), metavar="NAME",
        help=f"train from random weights (default {DEFAULT_ARCHITECTURE}). {_SUMMARIES}",
    )  # fmt: skip
    base_model: str | None = option(None, help="fine-tune this network instead: folder or Hub id")
    revision: str | None = option(None, help="branch, tag or commit of --base_model on the Hub")
    max_train_steps: int = option(2000, at_least=1, help="optimizer steps")
    train_batch_size: int = option(8, at_least=2, help="image-mask pairs per step; BatchNorm needs two")
    learning_rate: float | None = option(
        None, above=0, help=f"peak learning rate (default: {_RATES}; {FINE_TUNING_RATE:g} for --base_model)"
    )
    input_size: str | None = option(
        None,
        help="size that images are resized to for the network: a number for the shorter side, HxW, or native for that "
        "of the data (default: twice the data's size and at least 256; once for segformer-mini)",
    )  # fmt: skip
    mixed_precision: str = option("no", choices=("no", "bf16"), help="bf16: bfloat16 autocast")

    def __post_init__(self):
        super().__post_init__()
        if self.architecture and self.base_model:
            raise ValueError("--architecture and --base_model exclude each other: random or pretrained weights.")
        if self.revision and not self.base_model:
            raise ValueError("--revision belongs to --base_model, which is missing.")

    @property
    def architecture_name(self) -> str | None:
        """Return the architecture of random weights; None for a pretrained network."""
        return None if self.base_model else self.architecture or DEFAULT_ARCHITECTURE

    @property
    def schedule(self) -> dict[str, Any]:
        """Return the arguments of `train_segmenter` that are the same for every network."""
        return {name: getattr(self, name) for name in ("max_train_steps", "train_batch_size", "mixed_precision")}


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings(ColumnOptions, SegmenterTrainingOptions):
    """Train a segmentation network on a dataset; it evaluates and filters generated images.

    The output folder loads with `AutoModelForSemanticSegmentation` and `AutoImageProcessor` of transformers, and with
    --segmenter of `evaluate` and `filter`. Ctrl-C or SIGTERM ends the training and saves the best network so far.
    """

    dataset: str = option(help="prepared folder or Hub dataset id")
    output: str = option(help="folder to create")
    overwrite: bool = option(False, help="replace a segmenter in the output folder")
    train_split: str = option("train", help="split to train on")
    validation_split: str = option(
        "",
        help=f"split that selects the best weights (default: {VALIDATION_SPLIT}, if any); {NO_SPLIT}: the last",
    )
    validation_steps: int = option(200, at_least=1, help="steps between validations")
    seed: int = option(0, help="of weights, order and augmentation")
    device: str | None = option(None, help="torch device (default: GPU if available)")

    def __post_init__(self):
        super().__post_init__()
        train, validation = (SPLITS.get(n, n) for n in (self.train_split, self.validation_split or VALIDATION_SPLIT))
        if train == validation:
            raise ValueError(f"--train_split and --validation_split are both '{train}'; expected two splits.")
