"""Settings of `segmenter`, the training options that it shares with `study`, and the architectures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semseg_diffusers.data.settings import SPLITS, ColumnOptions
from semseg_diffusers.utils.settings import Settings, option, read_yaml


class Architecture(NamedTuple):
    """A network with random weights, and how it is trained."""

    summary: str
    learning_rate: float
    config: dict[str, Any]  # of transformers: `model_type`, and what differs from its defaults
    processor: dict[str, Any]
    enlargement: int = 2  # input side / side of the images
    least_side: int = 256  # pixels of the input's shorter side, at least: the lowest feature maps need some


ARCHITECTURES = {
    name: Architecture(**values) for name, values in read_yaml(Path(__file__).with_name("architectures.yaml")).items()
}
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
