"""Settings of the commands `prepare`, `check` and `labels`. Imports nothing heavy, so that `--help` is instant."""

import os
from dataclasses import dataclass
from typing import Any

from semseg_diffusers.data.options import ANNOTATIONS, FITS, FORMAT_NAMES, LABEL_PRESETS, parse_resolution
from semseg_diffusers.utils.settings import Settings, option


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
    num_workers: int = option(os.cpu_count() or 1, at_least=1, help="processes or threads (default: one per core)")


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
    val_fraction: float = option(0.0, at_least=0, below=1, help="share for val, if the source has no splits")
    seed: int = option(0, help="selects the pairs of --val_fraction")
    skip_unmatched: bool = option(False, help="leave out images and masks without a partner")
    overwrite: bool = option(False, help="replace a prepared dataset at --output")

    def __post_init__(self):
        if isinstance(self.source, str):
            object.__setattr__(self, "source", (self.source,))
        super().__post_init__()
        if self.resolution is None and self.fit != "crop":
            raise ValueError(f"--fit {self.fit} does not apply to --resolution native, which keeps the frame.")


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
        if self.dataset and (given := self.given(self.reader_options() | {"format": 0, "labels": 0, "tolerance": 0})):
            raise ValueError(f"{', '.join(given)}: only with --source; a prepared dataset carries its classes.")

    def reader_options(self) -> dict[str, Any]:
        """Return the options of single formats."""
        return {name: getattr(self, name) for name in ("annotations", "image_column", "mask_column", "streaming")}


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
