"""Readers of the formats in which driving labels are published: one file for each family, and their table here.

`read_source` finds the pairs of image and mask in a folder, in zip archives, or in a dataset of `datasets`.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from semseg_diffusers.data.dataset_format import COLORMAP_FILE, LABEL_FILES
from semseg_diffusers.data.labels import PAPER_NAMES, PRESET_NAMES, LabelSet
from semseg_diffusers.data.merged_classes import labels_of_ids
from semseg_diffusers.data.readers.bdd100k import find_bdd100k, read_bdd100k
from semseg_diffusers.data.readers.cityscapes import find_acdc, find_cityscapes, find_kitti, read_kitti, read_trees
from semseg_diffusers.data.readers.mask_exports import (
    CLASSES_FILE,
    files_below,
    find_cvat,
    find_roboflow,
    find_voc,
    images_below,
    is_image,
    name_stems,
    read_cvat,
    read_roboflow,
    read_voc,
)
from semseg_diffusers.data.readers.pairs import (
    IMAGE_ENDINGS,
    NAMED,
    AnyPath,
    Encoded,
    Pair,
    ReadOptions,
    Source,
    by_stem,
    find_camvid,
    first_folder,
    folders_by_split,
    list_folder,
    list_images,
    match_folders,
    match_stems,
    read_camvid,
    read_file,
    split_folders,
)
from semseg_diffusers.data.readers.region_exports import (
    find_coco,
    find_label_studio,
    find_labelme,
    read_coco,
    read_label_studio,
    read_labelme,
)
from semseg_diffusers.data.readers.tables import is_table, read_table
from semseg_diffusers.utils.archives import open_archives
from semseg_diffusers.utils.files import parse_json, read_text


__all__ = ["FORMATS", "IMAGE_ENDINGS", "NAMED", "Encoded", "Pair", "Source", "open_source", "read_file", "read_source"]


MASK_SUFFIX = "_mask"  # of a mask beside its image


def find_folder(root: AnyPath) -> AnyPath | None:
    """Return the folder if it, or each split folder in it, holds images/ and masks/."""
    parts = [root] if _photos(root) is not None else list(split_folders(root).values())
    whole = all(_photos(part) is not None and (part / "masks").is_dir() for part in parts)
    return root if (parts and whole) or _suffix_folders(root) else None


def _photos(folder: AnyPath) -> AnyPath | None:
    return first_folder(folder, "images", "photos")


def _suffix_folders(root: AnyPath) -> dict[str, AnyPath]:
    """Return the split folders, or the folder as `train`, if each holds NAME.jpg and NAME_mask.png."""
    folders = split_folders(root) or {"train": root}
    names = [[path.stem.endswith(MASK_SUFFIX) for path in list_images(folder)] for folder in folders.values()]
    csv = any((folder / CLASSES_FILE).is_file() for folder in folders.values())  # of Roboflow
    return folders if all(any(each) and not all(each) for each in names) and not csv else {}


def read_folder(root: AnyPath, options: ReadOptions, label_files: Sequence[str] = LABEL_FILES) -> Source:
    """Read `images/` (or `photos/`) and `masks/`, or NAME.jpg with NAME_mask.png.

    Split folders may be inside each or around both. Other folders inside both are drives: `--val_fraction` takes whole
    ones.
    """
    files = [root / name for name in label_files if (root / name).is_file()]
    if options.labels is None and not files and not options.ids:
        raise ValueError(
            f"the classes of '{root}' are not known: looked for {', '.join(label_files)} in it. Give --labels: one "
            f"of {', '.join(PRESET_NAMES)}, or a JSON file."
        )
    if options.labels is None and not files:
        labels = labels_of_ids(options.ids, options.ignore_index)
    else:
        labels = LabelSet.from_json(files[0]) if options.labels is None else LabelSet.from_name(options.labels)
        labels = labels if options.ignore_index is None else labels.with_ignored_id(options.ignore_index)
    skip, photos, masks = options.skip_unmatched, _photos(root), root / "masks"
    if photos is not None and any(path.is_dir() for path in list_folder(photos)) and not split_folders(photos):
        return Source(labels, *_match_drives(photos, masks, skip), notes=("the folders of images are drives",))
    if photos is not None:
        return Source(labels, *match_folders(folders_by_split(photos, masks), skip))
    if beside := _suffix_folders(root):
        found = {}
        for split, folder in beside.items():
            own = by_stem(list_images(folder), MASK_SUFFIX)
            found[split] = (by_stem(set(list_images(folder)) - set(own.values())), own)
        return Source(labels, *match_stems(found, skip, ", ".join(f"'{folder}'" for folder in beside.values())))
    parts = {split: (_photos(part) or part, part / "masks") for split, part in split_folders(root).items()}
    return Source(labels, *match_folders(parts, skip))


def _match_drives(photos: AnyPath, masks: AnyPath, skip_unmatched: bool) -> tuple[tuple[Pair, ...], tuple[Any, ...]]:
    """Pair the files of the folders below two folders; the attribute `drive` is the first of them."""
    images = images_below(photos)
    pairs, alone = match_stems({"train": (images, images_below(masks))}, skip_unmatched, f"'{photos}' and '{masks}'")
    names = [parts for parts, path in files_below(photos) if is_image(path.name)]
    drives = {stem: parts[0] if len(parts) > 1 else None for parts, stem in name_stems(names, common=0).items()}
    return tuple(replace(pair, attributes={"drive": drives[pair.stem]}) for pair in pairs), alone


def is_paper(root: AnyPath) -> bool:
    """Return whether the colormap is that of the paper's authors."""
    try:
        return tuple(parse_json(read_text(root / COLORMAP_FILE))) == PAPER_NAMES
    except (OSError, ValueError, TypeError):
        return False


@dataclass(frozen=True)
class Format:
    """One way in which labels are published."""

    find: Callable[[Any], Any]  # folder -> what `read` takes; None, or a ValueError, if the layout is another
    read: Callable[[Any, ReadOptions], Source]
    layout: str  # for messages
    takes: tuple[str, ...] = ("skip_unmatched",)  # options
    also: Callable[[Any], bool] = lambda _: True  # what a folder must be, besides, for the format to be recognised


FORMATS: dict[str, Format] = {
    "folder": Format(
        find_folder,
        read_folder,
        "images/ (or photos/) and masks/, or NAME.jpg and NAME_mask.png",
        ("labels", "skip_unmatched", "ignore_index"),
        lambda root: not is_paper(root),
    ),
    "camvid": Format(
        find_camvid,
        read_camvid,
        "images/ and labels/, train/ and trainannot/ or train_labels/, or 701_StillsRaw_full/ and "
        "LabeledApproved_full/, in it or in its folder CamVid/",
        also=lambda root: find_cvat(root) is None and find_labelme(root) is None,
    ),
    "bdd100k": Format(
        find_bdd100k,
        read_bdd100k,
        "images/10k/{train,val}/ and labels/sem_seg/{masks,polygons,rles}/, or seg/images/ and seg/labels/, in it or "
        "in its folder bdd100k/",
        ("skip_unmatched", "annotations"),
    ),
    "paper": Format(
        find_folder,
        functools.partial(read_folder, label_files=(COLORMAP_FILE,)),
        "images/, masks/ and the paper's colormap.json",
        ("labels", "skip_unmatched", "ignore_index"),
        is_paper,
    ),
    "cityscapes": Format(
        find_cityscapes,
        functools.partial(read_trees, image_ending="_leftImg8bit", mask_ending="_gtFine_"),
        "leftImg8bit/{split}/{city}/ and gtFine/{split}/{city}/*_labelIds.png",
        also=lambda root: find_cvat(root) is None,
    ),
    "acdc": Format(
        find_acdc,
        functools.partial(read_trees, image_ending="_rgb_anon", mask_ending="_gt_"),
        "rgb_anon/{condition}/{split}/{sequence}/ and gt/{condition}/{split}/{sequence}/",
    ),
    "kitti": Format(find_kitti, read_kitti, "training/image_2/ and training/semantic/"),
    "cvat": Format(
        find_cvat,
        read_cvat,
        "labelmap.txt, JPEGImages/ and SegmentationClass/, or label_colors.txt and {subset}/, {subset}annot/",
    ),
    "voc": Format(find_voc, read_voc, "JPEGImages/ and SegmentationClass/", ("labels", "skip_unmatched")),
    "roboflow": Format(
        find_roboflow,
        read_roboflow,
        "_classes.csv, NAME.jpg and NAME_mask.png in split folders",
        ("skip_unmatched", "ignore_index"),
    ),
    "labelme": Format(find_labelme, read_labelme, "images and NAME.json with shapes", ("labels", "skip_unmatched")),
    "coco": Format(
        find_coco,
        read_coco,
        "annotations/instances_*.json, or _annotations.coco.json in split folders",
        ("labels", "skip_unmatched"),
    ),
    "label_studio": Format(
        find_label_studio,
        read_label_studio,
        "a JSON export, images and task-*-annotation-*.png",
        ("labels", "skip_unmatched"),
    ),
    "datasets": Format(
        str,
        read_table,
        "*.parquet, *.arrow",
        ("labels", "image_column", "mask_column", "streaming", "ignore_index"),
        is_table,
    ),
}


# Folders that are part of a layout, when one is alone at the top of an archive.
PARTS = {"images", "masks", "labels", "seg", "training", "train", "leftImg8bit", "gtFine", "rgb_anon", "gt"}
PARTS |= {"bdd100k", "CamVid", "valid", "val", "test", "annotations", "VOCdevkit"}


def read_source(
    source: str | Path | Sequence[str | Path],
    data_format: str | None = None,
    labels: str | None = None,
    skip_unmatched: bool = False,
    **options: Any,
) -> Source:
    """Find the pairs in a folder, in zip archives, or, for "datasets", under a Hub id; see `ReadOptions`."""
    root, name = open_source(source, data_format)
    chosen, read_options = FORMATS[name], ReadOptions(labels, skip_unmatched, **options)
    for option in fields(ReadOptions):
        value = getattr(read_options, option.name)
        if option.name not in (*chosen.takes, "ids") and value != option.default:
            reason = "brings its own classes; leave out" if option.name == "labels" else "does not take"
            shown = "" if value is True else f" '{value}'"
            raise ValueError(f"--format {name} {reason} --{option.name}{shown}.")
    layout = chosen.find(root)
    if layout is None:
        raise ValueError(f"'{root}' does not have the layout of --format {name}; expected {chosen.layout}.")
    return replace(chosen.read(layout, read_options), data_format=name)


def open_source(
    source: str | Path | Sequence[str | Path], data_format: str | None = None
) -> tuple[AnyPath | str, str]:
    """Return the folder to read, which may be in archives, or a Hub id; and the format."""
    if data_format is not None and data_format not in FORMATS:
        raise ValueError(f"there is no format '{data_format}'; expected one of {', '.join(FORMATS)}.")
    names = [source] if isinstance(source, (str, Path)) else list(source)
    if data_format == "datasets" and len(names) == 1:
        return str(names[0]), data_format
    root = _open_paths([Path(name) for name in names], data_format)
    if data_format is not None:
        return root, data_format
    found = []
    for name, entry in FORMATS.items():
        with contextlib.suppress(ValueError):
            if entry.also(root) and entry.find(root) is not None:
                found.append(name)
    if len(found) == 1:
        return root, found[0]
    if found:
        raise ValueError(f"'{root}' could be {' or '.join(found)}; name it: --format.")
    expected = "; ".join(f"{entry.layout} ({name})" for name, entry in FORMATS.items())
    raise ValueError(f"the layout of '{root}' is not known; expected {expected}. Name it: --format.")


def _open_paths(paths: Sequence[Path], data_format: str | None) -> AnyPath:
    for path in paths:
        if not path.exists():
            hint = " A dataset of the Hub is read with --format datasets." if data_format is None else ""
            raise ValueError(f"--source '{path}' does not exist; expected a folder, or zip archives.{hint}")
        if path.is_file() and path.suffix.lower() != ".zip":
            raise ValueError(f"--source '{path}' is a file; expected a folder, or zip archives (*.zip).")
        if path.is_dir() and len(paths) > 1:
            raise ValueError(f"--source '{path}' is a folder; expected one folder alone, or several zip archives.")
    if paths[0].is_dir():
        visible = [path for path in paths[0].iterdir() if not path.name.startswith(".")]
        inside = sorted(path for path in visible if path.suffix.lower() == ".zip")
        if not inside or any(path.is_dir() for path in visible):
            return paths[0]
        paths = inside
    top = open_archives(paths)
    entries = list(top.iterdir())
    # an archive is often packed with the folder that holds all of it
    packed = len(entries) == 1 and entries[0].is_dir() and entries[0].name not in PARTS
    return entries[0] if packed else top
