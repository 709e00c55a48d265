"""Settings of `prepare`, `check` and `labels`, and options that other commands share. Imports nothing heavy, so that
`--help` answers at once.
"""

import os
from dataclasses import dataclass
from typing import Any

from semseg_diffusers.utils.settings import Settings, option


LABEL_PRESETS = ("bdd100k", "cityscapes", "camvid", "paper")  # label sets that are known by name
# Names of splits in datasets -> ours.
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
FORMAT_NAMES = (
    "bdd100k", "cityscapes", "acdc", "kitti", "camvid", "paper", "folder", "datasets",
    "cvat", "voc", "roboflow", "labelme", "coco", "label_studio",
)  # fmt: skip
ANNOTATIONS = ("masks", "polygons", "rles")
MASK_VALUES = ("ids", "colors", "red")
MASK_ORIENTATIONS = ("stored", "upright")
FITS = ("crop", "whole", "pad")
SMALLEST, LARGEST = 8, 8192  # pixels; the sides of a resolution


@dataclass(frozen=True, kw_only=True)
class ColumnOptions(Settings):
    """Where a dataset that `prepare` did not write has images, masks and classes."""

    _group = "columns of the dataset"
    image_column: str = option("image", help="column of the images")
    mask_column: str = option("mask", help="column of the masks")
    labels: str | None = option(
        None, metavar="PRESET|FILE",
        help=f"label set of a dataset that carries none: {', '.join(LABEL_PRESETS)}, or a JSON file",
    )  # fmt: skip


def parse_resolution(text: str) -> tuple[int, int] | None:
    """Parse "128" (a square), "96x160" (height x width) or "native" (None)."""
    if text == "native":
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"resolution '{text}': expected a number (128), HxW (96x160) or native.")
    height, width = int(sides[0]), int(sides[-1])
    if not all(SMALLEST <= side <= LARGEST for side in (height, width)):
        raise ValueError(f"resolution {height} x {width}: expected sides of {SMALLEST} to {LARGEST}.")
    return height, width


def parse_size(text: str) -> tuple[int, int]:
    """Parse "256" (a square) or "256x512" (height x width)."""
    size = parse_resolution(text)
    if size is None:
        raise ValueError("expected a number (256) or HxW (256x512); got native.")
    return size


@dataclass(frozen=True, kw_only=True)
class ReaderOptions(Settings):
    """How the source is read."""

    _group = "reading the source"
    format: str | None = option(None, choices=FORMAT_NAMES, help="layout of --source (default: recognised)")
    labels: str | None = option(
        None, metavar="PRESET|FILE",
        help=f"label set of a format that carries none: {', '.join(LABEL_PRESETS)}, or a JSON file",
    )  # fmt: skip
    annotations: str | None = option(
        None, choices=ANNOTATIONS, help="kind of annotations, for bdd100k (default: the first that exists)"
    )
    image_column: str | None = option(None, metavar="NAME", help="column of the images, for datasets")
    mask_column: str | None = option(None, metavar="NAME", help="column of the masks, for datasets")
    streaming: bool = option(False, help="read rows as they arrive and download no more, for datasets")
    tolerance: float = option(
        0.0,
        at_least=0,
        help="RGB distance up to which an unknown mask colour is mapped to the nearest class; 0: an error",
    )
    mask_values: str | None = option(
        None, choices=MASK_VALUES,
        help="what the numbers of masks are: class ids, colours of the classes, or class ids in the red channel "
        "(default: decided from all masks)",
    )  # fmt: skip
    ignore_index: int | None = option(
        None, at_least=0, at_most=255,
        help="id of unlabelled pixels in the masks, if it is not that of the label set; 0: classes start at 1",
    )  # fmt: skip
    mask_orientation: str | None = option(
        None, choices=MASK_ORIENTATIONS,
        help="whether masks show the stored pixels of images that EXIF rotates, or are upright (default: by their "
        "sizes)",
    )  # fmt: skip
    mapping: str | None = option(
        None, metavar="FILE",
        help='merge classes, JSON or YAML: {"vehicle": ["car", "truck", 26], ...}, names of the source\'s classes or '
        "numbers in its masks; what it omits becomes unknown",
    )  # fmt: skip
    num_workers: int = option(os.cpu_count() or 1, at_least=1, help="processes or threads (default: one per core)")

    def reader_options(self) -> dict[str, Any]:
        """Return the options of single formats."""
        names = ("annotations", "image_column", "mask_column", "streaming", "ignore_index")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(ReaderOptions):
    """Prepare a public dataset or your own image-mask pairs as a folder that `load_dataset` loads.

    Images are centre-cropped to the aspect ratio and resized with an antialiased filter, masks by nearest neighbour.
    Nothing is left behind after an error; the same command resumes after an interruption.
    """

    source: tuple[str, ...] = option(metavar="DIR|ZIP", help="the published data: a folder, zip archives, or a Hub id")
    output: str = option(metavar="DIR", help="folder to create")
    resolution: tuple[int, int] | None = option(
        (128, 128), metavar="N|HxW|native", parse=parse_resolution,
        help="a number is a square centre crop, HxW has height first, native keeps the frame (default: 128)",
    )  # fmt: skip
    fit: str = option(
        "crop", choices=FITS,
        help="crop: the largest centred part with the aspect ratio of --resolution; whole: the whole frame, if the "
        "aspect ratios agree; pad: the whole frame, padded with black and unknown",
    )  # fmt: skip
    map_to: str | None = option(
        None, metavar="PRESET|FILE",
        help="label set to map the masks to, by class name; classes without a counterpart become unknown (default: "
        "the source's own)",
    )  # fmt: skip
    max_unknown: float = option(
        0.5, at_least=0, at_most=1,
        help="largest share of the labelled pixels that --mapping or --map_to may make unknown",
    )  # fmt: skip
    val_fraction: float = option(
        0.0,
        at_least=0,
        below=1,
        help="share for val, if the source has no splits; of whole drives, where folders or names of files show them",
    )
    seed: int = option(0, help="selects the pairs of --val_fraction")
    skip_unmatched: bool = option(False, help="leave out images and masks without a partner")
    overwrite: bool = option(False, help="replace a prepared dataset at --output")

    def __post_init__(self):
        if isinstance(self.source, str):
            object.__setattr__(self, "source", (self.source,))
        super().__post_init__()
        if self.resolution is None and self.fit != "crop":
            raise ValueError(f"--fit {self.fit} does not apply to --resolution native, which keeps the frame.")


SOURCE_OPTIONS = ("format", "labels", "tolerance", "mask_values", "mask_orientation", "mapping")  # of all formats


@dataclass(frozen=True, kw_only=True)
class CheckSettings(ReaderOptions):
    """Report everything that is wrong with a source or a prepared dataset, all at once.

    Exits with code 1 if `prepare` or training would stop, or results would be wrong.
    """

    source: tuple[str, ...] = option((), metavar="DIR|ZIP", help="the published data")
    dataset: str | None = option(None, metavar="DIR", help="a prepared dataset, in place of --source")
    output: str | None = option(None, metavar="FILE.json", help="also write the findings to this file")

    def __post_init__(self):
        super().__post_init__()
        if bool(self.source) == bool(self.dataset):
            raise ValueError("expected either --source or --dataset.")
        if self.dataset and (given := self.given(self.reader_options() | dict.fromkeys(SOURCE_OPTIONS))):
            raise ValueError(f"{', '.join(given)}: only with --source; a prepared dataset carries its classes.")


@dataclass(frozen=True, kw_only=True)
class SubsetSettings(Settings):
    """Copy a prepared dataset with a share of its training pairs; other splits stay whole.

      semseg-diffusers subset --dataset data/camvid128 --share 0.25 --output data/camvid128_quarter

    Pairs are chosen by --seed and their names: of one seed, a larger share contains a smaller one. What is trained,
    generated and filtered with the copy has seen no other photo; `study --real_share` takes the same pairs.
    """

    dataset: str = option(metavar="DIR", help="prepared folder")
    share: float = option(above=0, at_most=1, help="of the training pairs, such as 0.25; at least one is kept")
    seed: int = option(0, at_least=0, help="selects the pairs")
    output: str = option(metavar="DIR", help="new folder")


@dataclass(frozen=True, kw_only=True)
class LabelsSettings(Settings):
    """Export a label set as a legend image, a palette for image editors, and a JSON file."""

    preset: str | None = option(None, choices=LABEL_PRESETS, help="a built-in label set")
    labels: str | None = option(
        None, metavar="FILE", help='colormap.json ({"name": [r, g, b], ...}) or labels.json, in place of --preset'
    )
    output: str = option(metavar="DIR", help="folder for the three files")
    columns: int = option(1, at_least=1, help="columns of the legend")

    def __post_init__(self):
        super().__post_init__()
        if (self.preset is None) == (self.labels is None):
            raise ValueError("expected either --preset or --labels.")
