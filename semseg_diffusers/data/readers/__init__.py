"""Readers of the ways in which driving labels are published: one file for each family, and the list of them here.

`read_source` finds the pairs of photo and mask in a folder, in zip archives, or in a dataset of `datasets`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from semseg_diffusers.data.readers.bdd100k import ANNOTATIONS, is_bdd100k, read_bdd100k
from semseg_diffusers.data.readers.camvid import is_camvid, read_camvid
from semseg_diffusers.data.readers.cityscapes import (
    is_acdc,
    is_cityscapes,
    is_kitti,
    read_acdc,
    read_cityscapes,
    read_kitti,
)
from semseg_diffusers.data.readers.pairs import (
    IMAGE_ENDINGS,
    NAMED,
    AnyPath,
    Drawing,
    Encoded,
    Pair,
    ReadOptions,
    Source,
    is_folder,
    is_paper,
    read_file,
    read_folder,
    read_paper,
)
from semseg_diffusers.data.readers.tables import is_table, read_table
from semseg_diffusers.utils.archives import ArchivePath, open_archives


__all__ = [
    "ANNOTATIONS",
    "FORMATS",
    "IMAGE_ENDINGS",
    "NAMED",
    "Drawing",
    "Encoded",
    "Pair",
    "ReadOptions",
    "Source",
    "detect_format",
    "read_file",
    "read_source",
]


@dataclass(frozen=True)
class Format:
    """One way in which labels are published."""

    read: Callable[[AnyPath, ReadOptions], Source]  # the first line of its docstring says the layout
    is_one: Callable[[AnyPath], bool]  # whether a folder looks like it
    looked_for: str  # what tells it
    takes: tuple[str, ...] = ("skip_unmatched",)  # the options that it honours


FORMATS: dict[str, Format] = {
    "folder": Format(read_folder, is_folder, "images/ and masks/", ("labels", "skip_unmatched")),
    "camvid": Format(read_camvid, is_camvid, "images/ and labels/, train/ and trainannot/, 701_StillsRaw_full/"),
    "bdd100k": Format(
        read_bdd100k, is_bdd100k, "images/10k/ and labels/sem_seg/, or seg/", ("skip_unmatched", "annotations")
    ),
    "paper": Format(
        read_paper, is_paper, "images/, masks/ and the paper's colormap.json", ("labels", "skip_unmatched")
    ),
    "cityscapes": Format(read_cityscapes, is_cityscapes, "leftImg8bit/ and gtFine/"),
    "acdc": Format(read_acdc, is_acdc, "rgb_anon/ and gt/"),
    "kitti": Format(read_kitti, is_kitti, "training/image_2/ and training/semantic/"),
    "datasets": Format(
        read_table, is_table, "*.parquet, *.arrow", ("labels", "image_column", "mask_column", "streaming")
    ),
}
OWN_CLASSES = "brings its own classes; leave out"


def read_source(
    source: str | Path | Sequence[str | Path],
    data_format: str | None = None,
    labels: str | None = None,
    skip_unmatched: bool = False,
    **options,
) -> Source:
    """Find the pairs in a source.

    Args:
        source (`str`, `Path` or a list of them): A folder; a zip archive, or several that belong together; a folder of
            zip archives; or, for "datasets", a Hub id.
        data_format (`str`, *optional*): One of `FORMATS`; by default the one that the layout shows.
        labels (`str`, *optional*): Preset, or path of a `colormap.json` or `labels.json`; for "folder", "paper",
            "datasets".
        skip_unmatched (`bool`, defaults to `False`): Leave out what has no partner instead of stopping.
        **options: Further fields of `ReadOptions`.

    Returns:
        `Source`, with one pair at least.

    Raises:
        ValueError: The source does not have the format's layout, or several; files have no partner; the classes are
            not known; an option that the format does not take; an archive that is not safe.
    """
    if data_format is not None and data_format not in FORMATS:
        raise ValueError(f"there is no format '{data_format}'; there are {', '.join(FORMATS)}.")
    root = _open_source(source, data_format)
    if data_format is None:
        data_format = detect_format(root)
    chosen, read_options = FORMATS[data_format], ReadOptions(labels, skip_unmatched, **options)
    for option in fields(ReadOptions):
        value = getattr(read_options, option.name)
        if option.name not in chosen.takes and value != option.default:
            reason = OWN_CLASSES if option.name == "labels" else "does not take"
            shown = "" if value is True else f" '{value}'"
            raise ValueError(f"--format {data_format} {reason} --{option.name}{shown}.")
    return replace(chosen.read(root, read_options), data_format=data_format)


def detect_format(root: AnyPath) -> str:
    """The format whose layout a folder has.

    Raises:
        ValueError: none fits, or several do.
    """
    found = [name for name, entry in FORMATS.items() if entry.is_one(root)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"'{root}' could be {' or '.join(found)}; say which: --format.")
    looked = "; ".join(f"{entry.looked_for} ({name})" for name, entry in FORMATS.items())
    raise ValueError(f"the layout of '{root}' is not known; looked in it for {looked}. Say which it is: --format.")


def _open_source(source: str | Path | Sequence[str | Path], data_format: str | None) -> AnyPath:
    """The folder to read, be it one inside archives."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    paths = [Path(path) for path in sources]
    if len(paths) == 1 and data_format == "datasets":
        return paths[0] if paths[0].is_dir() else sources[0]
    for path in paths:
        if not path.exists():
            hint = " A dataset of the Hub is read with --format datasets." if data_format is None else ""
            raise ValueError(f"--source '{path}' is not there; wanted a folder, or zip archives.{hint}")
        if path.is_file() and path.suffix.lower() != ".zip":
            raise ValueError(f"--source '{path}' is a file; wanted a folder, or zip archives (*.zip).")
        if path.is_dir() and len(paths) > 1:
            raise ValueError(f"--source '{path}' is a folder; wanted one folder alone, or several zip archives.")
    if paths[0].is_file():
        return _only_folder(open_archives(paths))
    archives = sorted(path for path in paths[0].glob("*.zip") if not path.name.startswith("."))
    if archives and not any(path.is_dir() and not path.name.startswith(".") for path in paths[0].iterdir()):
        return _only_folder(open_archives(archives))
    return paths[0]


def _only_folder(top: ArchivePath) -> ArchivePath:
    """The folder that holds all of an archive, where it was packed with it; not one whose name is part of a layout."""
    entries = list(top.iterdir())
    known = {"images", "masks", "labels", "seg", "training", "train", "leftImg8bit", "gtFine", "rgb_anon", "gt"}
    if len(entries) == 1 and entries[0].is_dir() and entries[0].name not in known | {"bdd100k", "CamVid"}:
        return entries[0]
    return top
