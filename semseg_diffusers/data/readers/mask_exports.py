"""Masks as labelling tools export them: CVAT in three layouts, Pascal VOC, and Roboflow.

Checked against what the tools write: Datumaro's exporters (plugins/data_formats/{voc,camvid,cityscapes}), which CVAT
uses, and published exports of CVAT and Roboflow.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from semseg_diffusers.data.labels import Color, LabelSet, ids_in_files
from semseg_diffusers.data.readers.pairs import (
    IMAGE_ENDINGS,
    AnyPath,
    ReadOptions,
    Source,
    by_stem,
    first_folder,
    list_folder,
    list_images,
    match_stems,
    split_folders,
)
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.utils.files import composed, read_text


Files: TypeAlias = tuple[dict[str, Any], dict[str, Any]]  # stem -> image, stem -> mask

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")  # the first is that of LabelMe's converter
LABELMAP = "labelmap.txt"  # NAME:R,G,B:PARTS:ACTIONS
LABELMAP_LINE = re.compile(r"(?P<name>.+?):\s*(?P<color>\d+\s*,\s*\d+\s*,\s*\d+)?\s*(:.*)?")
LABEL_COLORS = "label_colors.txt"  # R G B NAME
LABEL_COLORS_LINE = re.compile(r"(?P<color>\d+\s+\d+\s+\d+\s)?\s*(?P<name>.+)")
IGNORED = "__ignore__"  # the label of LabelMe for what has no class
CLASSES_FILE = "_classes.csv"
CLASSES_HEADER = ["pixel value", "class"]


def voc_color(index: int) -> Color:
    """Return a colour of Pascal VOC's colour map, whose 256 colours are distinct: 0 is black."""
    levels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            levels[channel] |= (index >> channel & 1) << 7 - bit
        index >>= 3
    return (levels[0], levels[1], levels[2])


VOC_BOUNDARY = voc_color(255)  # of the unlabelled outlines in Pascal VOC's own masks


def label_set(names: Sequence[str], where: object) -> LabelSet:
    """Return a label set of names; an error says where they are from."""
    try:
        return LabelSet.from_names(names)
    except ValueError as err:
        raise ValueError(f"the classes of '{where}': {err}") from err


def _with_voc_colors(labels: LabelSet) -> LabelSet:
    colors = tuple(map(voc_color, range(labels.num_classes)))
    return replace(labels, colors=colors, ignore_color=VOC_BOUNDARY, reads_colors=True)


def files_below(folder: AnyPath, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], AnyPath]]:
    """Yield the files in a folder and below it, each with the names of the folders and of the file."""
    for path in list_folder(folder):
        if path.is_dir():
            yield from files_below(path, (*parts, composed(path.name)))
        else:
            yield (*parts, composed(path.name)), path


def is_image(name: str) -> bool:
    """Return whether a file name ends as that of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS


def name_stems(names: Collection[tuple[str, ...]], common: int) -> dict[tuple[str, ...], str]:
    """Return a stem for each path: the folders after the first `common` ones and the name, joined by _."""
    stems = {name: "_".join([*name[common:-1], PurePosixPath(name[-1]).stem]) for name in names}
    for stem, count in Counter(stems.values()).items():
        if count > 1:
            same = " and ".join("/".join(name) for name, own in stems.items() if own == stem)
            raise ValueError(f"{same} would both be called {stem}; expected one of them.")
    return stems


def images_below(folder: AnyPath, ending: str = "") -> dict[str, AnyPath]:
    """Return the images below a folder that end in `ending`, by their path in it, with _ between folders."""
    files = dict(files_below(folder)) if folder.is_dir() else {}
    names = [parts for parts, path in files.items() if is_image(path.name) and path.stem.endswith(ending)]
    return {stem.removesuffix(ending): files[parts] for parts, stem in name_stems(names, common=0).items()}


def read_lines(file: AnyPath) -> list[str]:
    """Return the lines of a text file that are neither blank nor comments."""
    return [line.strip() for line in read_text(file).split("\n") if line.strip() and not line.lstrip().startswith("#")]


def read_class_names(file: AnyPath) -> list[str]:
    """Return the classes that LabelMe lists in a file."""
    return [name for name in read_lines(file) if name != IGNORED]


def _read_labelmap(file: AnyPath, pattern: re.Pattern[str], expected: str) -> LabelSet:
    """Read CVAT's classes and their colours; if none has a colour, they take those of Pascal VOC."""
    colors: dict[str, list[int]] = {}
    for line in read_lines(file):
        found = pattern.fullmatch(line)
        if found is None or found["name"] in colors:
            problem = f"has the line {line!r}" if found is None else f"has the class '{found['name']}' twice"
            raise ValueError(f"label map '{file}' {problem}; expected a line {expected} for each class.")
        colors[found["name"]] = [int(level) for level in re.findall(r"\d+", found["color"] or "")]
    if not any(colors.values()):
        return _with_voc_colors(label_set(list(colors), file))
    try:
        return LabelSet.from_colormap(colors)
    except ValueError as err:
        raise ValueError(f"label map '{file}': {err}") from err


def split_of(subset: str) -> str:
    """Return the split of a tool's subset: `train` for one of another name."""
    return SPLITS.get(subset.lower(), "train")


def _by_split(subsets: Mapping[str, Files]) -> tuple[dict[str, Files], tuple[str, ...]]:
    """Return the images and masks of each split, and a note on subsets that are read as `train`."""
    found: dict[str, Files] = {}
    for subset, both in subsets.items():
        for files, own in zip(found.setdefault(split_of(subset), ({}, {})), both, strict=True):
            if repeated := files.keys() & own.keys():
                raise ValueError(f"'{min(repeated)}' is in two subsets of {split_of(subset)}; expected it in one.")
            files.update(own)
    others = [subset for subset in subsets if subset.lower() not in SPLITS and subset != "default"]
    return found, (f"subsets read as train: {', '.join(others)}",) if others else ()


def find_cvat(root: AnyPath) -> AnyPath | None:
    """Return the folder if it has a label map of CVAT and masks in one of its three layouts."""
    if (root / LABELMAP).is_file() and (root / "SegmentationClass").is_dir():
        return root
    if (root / LABEL_COLORS).is_file() and (_camvid_masks(root) or (root / "gtFine").is_dir()):
        return root
    return None


def read_cvat(root: AnyPath, options: ReadOptions) -> Source:
    """Read the exports "Segmentation mask 1.1", "CamVid 1.0" and "Cityscapes 1.0", whose masks hold colours."""
    notes: tuple[str, ...] = ()
    if (root / LABELMAP).is_file():
        labels = _read_labelmap(root / LABELMAP, LABELMAP_LINE, "NAME:R,G,B:PARTS:ACTIONS")
        subsets, notes = _read_lists(root, root / "SegmentationClass")
    else:
        labels = _read_labelmap(root / LABEL_COLORS, LABEL_COLORS_LINE, "R G B NAME")
        masks_of = _camvid_masks(root)
        subsets = {name: (images_below(root / name), images_below(masks)) for name, masks in masks_of.items()}
        photos = first_folder(root, "imgsFine/leftImg8bit") or root / "leftImg8bit"
        for masks in list_folder(root / "gtFine") if (root / "gtFine").is_dir() else ():
            images = images_below(photos / masks.name, "_leftImg8bit")
            subsets[masks.name] = (images, images_below(masks, "_gtFine_color"))
    if not any(images for images, _ in subsets.values()):
        raise ValueError(
            f"'{root}' has masks and no images: CVAT exported it without them. Export it again with \"Save images\", "
            "or put the images where their masks are named."
        )
    found, said = _by_split(subsets)
    pairs, unmatched = match_stems(found, options.skip_unmatched, f"'{root}'")
    if (0, 0, 0) in labels.colors:
        name = labels.names[labels.colors.index((0, 0, 0))]
        background = f"'{name}' (black) is a class, as in the label map; without its line there it is unknown"
    else:
        background = "black is unknown: the label map has no class of this colour"
    return Source(labels, pairs, unmatched, notes=(*said, *notes, background), mask_values="colors")


def _camvid_masks(root: AnyPath) -> dict[str, AnyPath]:
    folders = [path for path in list_folder(root) if path.is_dir() and path.name.endswith("annot")]
    return {path.name.removesuffix("annot"): path for path in folders if path.name != "annot"}


def _read_lists(root: AnyPath, mask_folder: AnyPath) -> tuple[dict[str, Files], tuple[str, ...]]:
    """Return the files of each list in ImageSets/Segmentation, or all, and a note on those that no list names."""
    folder = root / "ImageSets" / "Segmentation"
    both = (images_below(root / "JPEGImages"), images_below(mask_folder))
    lists = [file for file in (list_folder(folder) if folder.is_dir() else ()) if file.suffix == ".txt"]
    listed = {file.stem: {composed(line).strip('"').replace("/", "_") for line in read_lines(file)} for file in lists}
    if listed.keys() >= {"train", "val"}:
        listed.pop("trainval", None)  # both together
    if not any(listed.values()):
        return {"default": both}, ()
    for subset, stems in listed.items():
        if unknown := stems - both[0].keys() - both[1].keys():
            raise ValueError(
                f"'{folder / subset}.txt' names {min(unknown)}, of which there is neither image nor mask in '{root}' "
                f"({len(unknown)} such names)."
            )
    subsets = {
        name: ({s: both[0][s] for s in stems & both[0].keys()}, {s: both[1][s] for s in stems & both[1].keys()})
        for name, stems in listed.items()
    }
    rest = [len(files.keys() - set().union(*listed.values())) for files in both]
    note = f"left out: {rest[0]} images and {rest[1]} masks that no list in ImageSets/Segmentation names"
    return subsets, (note,) if any(rest) else ()


def find_voc(root: AnyPath) -> AnyPath | None:
    """Return the folder with JPEGImages/ and SegmentationClass/, or that in VOCdevkit/, without CVAT's label map."""
    top = first_folder(root, "VOCdevkit/VOC2012", "VOC2012", "VOCdevkit/VOC2007", "VOC2007") or root
    whole = first_folder(top, *VOC_MASKS) is not None and (top / "JPEGImages").is_dir()
    return top if whole and not (top / LABELMAP).is_file() else None


def read_voc(root: AnyPath, options: ReadOptions) -> Source:
    """Read Pascal VOC's classes, or those of `--labels` or of LabelMe's class_names.txt; 255 is unknown."""
    names: Sequence[str] = VOC_NAMES
    if (root / "class_names.txt").is_file():
        names = read_class_names(root / "class_names.txt")
    labels = _with_voc_colors(label_set(names, root)) if options.labels is None else LabelSet.from_name(options.labels)
    masks = first_folder(root, *VOC_MASKS)
    assert masks is not None, "find_voc found it"
    subsets, notes = _read_lists(root, masks)
    found, said = _by_split(subsets)
    pairs, unmatched = match_stems(found, options.skip_unmatched, f"'{root / 'JPEGImages'}' and '{masks}'")
    return Source(labels, pairs, unmatched, notes=said + notes)


def find_roboflow(root: AnyPath) -> dict[str, AnyPath] | None:
    """Return the split folders with `_classes.csv` of pixel values; Roboflow's classifications have another header."""
    folders = split_folders(root) or {"train": root}
    folders = {split: folder for split, folder in folders.items() if (folder / CLASSES_FILE).is_file()}
    tables = [_read_rows(folder / CLASSES_FILE) for folder in folders.values()]
    heads = [[cell.lower() for row in rows[:1] for cell in row] for rows in tables]
    return folders if heads and all(head == CLASSES_HEADER for head in heads) else None


def _read_rows(file: AnyPath) -> list[list[str]]:
    return [[cell.strip(' "') for cell in line.split(",", maxsplit=1)] for line in read_lines(file)]


def _read_classes(file: AnyPath) -> dict[int, str]:
    """Return the class of each pixel value."""
    rows = _read_rows(file)[1:]
    if not rows or any(len(row) != 2 or not row[0].isdecimal() or int(row[0]) > 255 for row in rows):
        raise ValueError(f"'{file}' holds {rows!r:.80}; expected lines of a pixel value from 0 to 255 and a class.")
    classes = {int(value): name for value, name in sorted(rows, key=lambda row: int(row[0]))}
    if len(classes) != len(rows):
        raise ValueError(f"'{file}' has a pixel value twice; expected one class for each.")
    return classes


def read_roboflow(folders: Mapping[str, AnyPath], options: ReadOptions) -> Source:
    """Read "Semantic Segmentation Masks": NAME.jpg and NAME_mask.png in each split, pixel values in _classes.csv."""
    files = [folder / CLASSES_FILE for folder in folders.values()]
    classes = _read_classes(files[0])
    for file in files[1:]:
        if _read_classes(file) != classes:
            raise ValueError(f"'{files[0]}' and '{file}' have other classes; expected the same in all splits.")
    found = {}
    for split, folder in folders.items():
        masks = by_stem((path for path in list_images(folder) if path.suffix.lower() == ".png"), "_mask")
        found[split] = (by_stem(set(list_images(folder)) - set(masks.values())), masks)
    pairs, unmatched = match_stems(found, options.skip_unmatched, ", ".join(map(str, folders.values())))
    labels, values = label_set(list(classes.values()), files[0]), list(classes)
    notes = [f"'{name}' (pixel value {i}) is a class; unknown with --ignore_index {i}" for i, name in classes.items()]
    notes = [note for note in notes if note.startswith("'background'") and options.ignore_index is None]
    if values != list(range(len(values))):
        labels = replace(labels, changed_ids=ids_in_files(values))
        notes.append(f"the pixel values {', '.join(map(str, values))} became the ids 0 to {len(values) - 1}")
    labels = labels if options.ignore_index is None else labels.with_ignored_id(options.ignore_index)
    return Source(labels, pairs, unmatched, notes=tuple(notes), mask_values="ids")
