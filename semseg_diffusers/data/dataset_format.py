"""Datasets and masks on disk: the folder that `prepare` writes, and the masks and label sets that commands are given.

`DIR/labels.json`, `DIR/prepare.json`, and for each split `images/<stem>.png`, `masks/<stem>.png`, `metadata.jsonl`.
"""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import LABEL_PRESETS, SPLITS
from semseg_diffusers.utils.files import composed, new_folder, package_version, write_json


T = TypeVar("T")
LABELS_FILE = "labels.json"
COLORMAP_FILE = "colormap.json"  # of the paper's authors
NAMES_FILE = "id2label.json"  # of transformers: names without colours
LABEL_FILES = (LABELS_FILE, COLORMAP_FILE, NAMES_FILE, "classes.txt")  # classes.txt: a name a line
METADATA_FILE = "metadata.jsonl"  # of each split, and of a folder that `generate` made
SETTINGS_FILE = "prepare.json"
SYNTHETIC_FILE = "synthetic.jsonl"  # how the generated pairs that were merged into a dataset were made
GENERATION_FILE = "generation.json"  # the same of a folder that `generate` made
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")
ABOVE_MASKS = 2  # folders above a folder of masks that are searched for its label file
# Words in names of files and folders that `datasets` takes for a split.
SPLIT_WORD = re.compile(rf"(^|.*[-._ 0-9])({'|'.join(SPLITS)})[-._ 0-9]")
# Source format of a prepared dataset -> the Hub's name of its licence, and a description; the strictest first.
DATA_LICENSES = {
    "bdd100k": ("other", "BDD100K: educational, research and not-for-profit use"),
    "kitti": ("cc-by-nc-sa-3.0", "KITTI, CC BY-NC-SA 3.0: research use, shared under the same licence"),
    "camvid": ("cc-by-nc-4.0", "CamVid (SegNet form), CC BY-NC 4.0: research use"),
    "toy": ("apache-2.0", "Drawn toy scenes: no licence of others"),
}
PSEUDO_LABELS = "pseudo_labels"  # entry of `prepare.json`: the network that labelled the photos
JOINED = "+"  # between the source formats of joined datasets
UNKNOWN_LICENSE = "Its licence is not known to this package: fill it in before you publish."


@contextlib.contextmanager
def new_dataset(output: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to fill that becomes `output` at the end; only a prepared dataset is overwritten."""
    with new_folder(output, SETTINGS_FILE, "prepared dataset", overwrite) as folder:
        yield folder


def check_prepared(folder: Path) -> None:
    """Raise a `ValueError` for a folder that is no prepared dataset."""
    if not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"'{folder}' is no prepared dataset; expected a folder that `prepare` or `toy` wrote.")


def make_split(folder: Path, split: str) -> Path:
    """Create the folders of a split, if necessary, and return its folder."""
    for part in ("images", "masks"):
        (folder / split / part).mkdir(parents=True, exist_ok=True)
    return folder / split


def pair_row(stem: str) -> dict[str, Any]:
    """Return a pair's row in the metadata."""
    return {"image_file_name": f"images/{stem}.png", "mask_file_name": f"masks/{stem}.png", "stem": stem}


def save_pair(folder: Path, stem: str, image: Image.Image, ids: np.ndarray, labels: LabelSet) -> dict[str, Any]:
    """Write image and mask of one pair into a split's folder; return its row in the metadata."""
    row = pair_row(stem)
    # Of photos, runs are nearly all that zlib can gain: as small as by default, in a third of the time.
    image.save(folder / row["image_file_name"], compress_level=1, compress_type=zlib.Z_RLE)
    labels.decode(ids).save(folder / row["mask_file_name"])
    return row


def finish_dataset(
    folder: Path, rows: dict[str, list[dict[str, Any]]], labels: LabelSet, settings: dict[str, Any]
) -> None:
    """Write each split's metadata, the label set, and the settings with counts and versions.

    A column of nulls becomes one of "" if another split has text there, of empty lists if it has lists:
    `load_dataset` would refuse the two types.
    """
    kinds = {
        name: type(value)
        for split in rows.values()
        for row in split
        for name, value in row.items()
        if value is not None
    }
    for split, of_split in rows.items():
        gone = [name for name in kinds if all(row.get(name) is None for row in of_split)]
        blank = {name: [] if kinds[name] is list else "" for name in gone}
        text = "".join(json.dumps(row | blank, ensure_ascii=False) + "\n" for row in of_split)
        (folder / split / METADATA_FILE).write_text(text, encoding="utf-8")
    labels.save_json(folder / LABELS_FILE)
    record = {
        **settings,
        "splits": {split: len(of_split) for split, of_split in rows.items()},
        "versions": {"semseg_diffusers": package_version(), "pillow": PIL.__version__, "numpy": np.__version__},
    }
    write_json(folder / SETTINGS_FILE, record)


def pattern_characters(folder: str | os.PathLike) -> str:
    """Return the characters of a folder's path that `load_dataset` takes for patterns; "" if it finds the folder.

    See https://github.com/huggingface/datasets/issues/7468.
    """
    path = os.path.realpath(folder)
    return " ".join(part for part in ("[", "]", "*", "?", "::") if part in path)


def plain_load_note(folder: str | os.PathLike) -> str:
    """Return a line for users if plain `load_dataset` misreads a dataset, "" if not; commands and `load_pairs` do not.

    Without split folders, as `generate` writes it, words in file names decide about the split.
    """
    folder = Path(folder)
    if characters := pattern_characters(folder):
        what, then = f"{characters} in the path '{folder.resolve()}' for a pattern", "rename the folder"
    elif name := next((path.name for path in folder.glob("images/*") if SPLIT_WORD.match(path.name)), None):
        what, then = f"a word in names such as '{name}' for a split", 'add data_files={"train": "**"}'
    elif name := next((path.name for path in folder.glob("**/images/*") if "::" in path.name), None):
        what, then = f"names such as '{name}' for two joined addresses", "rename the sources"
    else:
        return ""
    return f"note: plain load_dataset takes {what}; commands and `load_pairs` read it. For load_dataset, {then}.\n"


def data_license(source_format: str | None, thing: str | None = None) -> tuple[str | None, str]:
    """Return the Hub's name of a data licence and a sentence about it, for the data and for a `thing` made of it.

    Of joined datasets, the strictest licence holds, and is unknown if one of them is; the sentence names each, but toy
    scenes beside others.
    """
    formats = (source_format or "").split(JOINED)
    if not DATA_LICENSES.keys() >= {*formats}:
        return None, UNKNOWN_LICENSE
    named = [each for each in DATA_LICENSES if each in formats and each != "toy"] or ["toy"]
    name, sentence = DATA_LICENSES[named[0]][0], ". ".join(DATA_LICENSES[each][1] for each in named)
    return name, f"{sentence}; the same holds for {thing}." if thing and formats != ["toy"] else f"{sentence}."


def is_hidden(path: Path, root: Path) -> bool:
    """Return whether a path is hidden below a folder, by its own name or that of a folder between them."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def find_masks(masks: str | os.PathLike, what: str = "mask") -> list[Path]:
    """Return the mask files of a folder and its sub-folders in order of their path, or the one file given."""
    masks = Path(masks)
    if masks.is_file():
        return [masks]
    if not masks.is_dir():
        raise FileNotFoundError(f"no {what} file and no folder of {what}s at '{masks}'")
    files = (path for path in masks.rglob("*") if path.suffix.lower() in MASK_SUFFIXES and path.is_file())
    paths = sorted(path for path in files if not is_hidden(path, masks))
    if not paths:
        raise ValueError(f"folder '{masks}' holds no {what}; expected images ({', '.join(MASK_SUFFIXES)})")
    first_with: dict[str, Path] = {}
    for path in paths:
        first = first_with.setdefault(composed(path.stem), path)
        if first != path:
            raise ValueError(
                f"{what}s '{first}' and '{path}' have the same stem, so their results would have the "
                "same name. Rename one, or process each folder separately, with its own output."
            )
    return paths


def label_file_near(folder: str | os.PathLike, masks: str | os.PathLike) -> Path | None:
    """Return the nearest label file in or above `folder`, up to two folders above `masks`, the given path."""
    folder, start = Path(os.path.abspath(folder)), Path(os.path.abspath(masks))
    start = start.parent if start.is_file() else start
    last = [start, *start.parents][: ABOVE_MASKS + 1][-1]
    for place in (folder, *folder.parents):
        found = next((place / name for name in LABEL_FILES if (place / name).is_file()), None)
        if found is not None or place == last:
            return found
    return None


def labels_of_masks(masks: str | os.PathLike, labels: str | None = None) -> LabelSet:
    """Return the given label set, or that in the label file beside the masks or above them."""
    if labels is not None:
        return LabelSet.from_name(labels)
    found = label_file_near(masks if Path(masks).is_dir() else Path(masks).parent, masks)
    if found is None:
        raise ValueError(
            f"the classes of '{masks}' are not known: there is no {', '.join(LABEL_FILES[:-1])} or {LABEL_FILES[-1]} "
            f"in it or in the {ABOVE_MASKS} folders above. Give --labels: one of {', '.join(LABEL_PRESETS)}, or a "
            "JSON file."
        )
    return LabelSet.from_json(found)


@contextlib.contextmanager
def new_output(output: str | os.PathLike) -> Iterator[Path]:
    """Yield a folder to fill that becomes `output` at the end; nothing is overwritten."""
    output = Path(output)
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"--output '{output}' is not empty. Name another folder.")
    with new_dataset(output) as folder:
        yield folder


def evenly_spaced(items: Sequence[T], count: int | None) -> list[T]:
    """Return `count` evenly spaced items; all if there are fewer, or for None."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
