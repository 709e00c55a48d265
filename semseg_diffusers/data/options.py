"""Options that several commands share. Imports nothing heavy, so that `--help` is instant."""

from dataclasses import dataclass

from semseg_diffusers.utils.settings import Settings, option


LABEL_PRESETS = ("bdd100k", "cityscapes", "camvid", "paper")  # label sets that are known by name
# Names that datasets give their splits -> ours.
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
FORMAT_NAMES = ("bdd100k", "cityscapes", "acdc", "kitti", "camvid", "paper", "folder", "datasets")
ANNOTATIONS = ("masks", "polygons", "rles")
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
    """Parse "128" (a square), "96x160" (height x width) or "native" (None).

    Raises:
        ValueError: another form, or a side out of range.

    Example:
        >>> parse_resolution("128"), parse_resolution("96x160"), parse_resolution("native")
        ((128, 128), (96, 160), None)
    """
    if text == "native":
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"resolution '{text}': expected a number (128), HxW (96x160) or native.")
    height, width = int(sides[0]), int(sides[-1])
    if not all(SMALLEST <= side <= LARGEST for side in (height, width)):
        raise ValueError(f"resolution {height} x {width}: expected sides of {SMALLEST} to {LARGEST}.")
    return height, width
