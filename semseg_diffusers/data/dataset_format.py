"""What a prepared dataset looks like on disk, and how one comes to be: whole, or not at all.

`DIR/labels.json`, `DIR/prepare.json`, and for each split `images/<stem>.png`, `masks/<stem>.png`, `metadata.jsonl`.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.utils.files import new_folder, package_version


LABELS_FILE = "labels.json"
METADATA_FILE = "metadata.jsonl"  # of each split, and of a folder that `generate` made
LABEL_FILES = (LABELS_FILE, "colormap.json")  # the second is that of the paper's authors
ABOVE_MASKS = 2  # folders above a folder of masks that are looked into for its label file
SETTINGS_FILE = "prepare.json"
SYNTHETIC_FILE = "synthetic.jsonl"  # of a set that drawn pairs were merged into: what is known of each of these
GENERATION_FILE = "generation.json"  # the same of a folder that `generate` made
# Source format of a prepared dataset -> the Hub's name of its licence, and what is said of it.
DATA_LICENSES = {
    "camvid": ("cc-by-nc-4.0", "CamVid (SegNet form), CC BY-NC 4.0: research use"),
    "bdd100k": ("other", "BDD100K: educational, research and not-for-profit use"),
    "toy": ("apache-2.0", "Drawn toy scenes: no licence of others"),
}
UNKNOWN_LICENSE = "Its licence is not known to this package: fill it in before you publish."


@contextlib.contextmanager
def new_dataset(output: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to fill that becomes `output` at the end; nothing is left of it after an error.

    Args:
        output (`str` or `os.PathLike`): target folder; it must not exist, or be empty.
        overwrite (`bool`, defaults to `False`): replace an existing prepared dataset, and nothing else.

    Raises:
        ValueError: `output` is not empty.
    """
    with new_folder(output, SETTINGS_FILE, "prepared dataset", overwrite) as folder:
        yield folder


def label_file_near(folder: str | os.PathLike, masks: str | os.PathLike) -> Path | None:
    """The label file that lies nearest to a folder of masks: in it, or above it.

    Args:
        folder (`str` or `os.PathLike`): where a mask lies.
        masks (`str` or `os.PathLike`): the mask file, or the folder with sub-folders, that was given; the search ends
            two folders above: `DIR/labels.json` is found for `DIR/val/masks`.
    """
    folder, start = Path(os.path.abspath(folder)), Path(os.path.abspath(masks))
    if start.is_file():
        start = start.parent
    last = [start, *start.parents][: ABOVE_MASKS + 1][-1]
    for place in (folder, *folder.parents):
        found = next((place / name for name in LABEL_FILES if (place / name).is_file()), None)
        if found is not None or place == last:
            return found
    return None


def pair_row(stem: str) -> dict[str, str]:
    """A pair's line of the metadata."""
    return {"image_file_name": f"images/{stem}.png", "mask_file_name": f"masks/{stem}.png", "stem": stem}


def save_pair(folder: Path, stem: str, photo: Image.Image, ids: np.ndarray, labels: LabelSet) -> dict[str, str]:
    """Write photo and mask of one pair into a split's folder; returns its line of the metadata."""
    row = pair_row(stem)
    # Of photos, runs are nearly all that zlib can gain: as small as by default, in a third of the time.
    photo.save(folder / row["image_file_name"], compress_level=1, compress_type=zlib.Z_RLE)
    labels.decode(ids).save(folder / row["mask_file_name"])
    return row


def make_split(folder: Path, split: str) -> Path:
    """Make the folders of a split, where they are not there."""
    for part in ("images", "masks"):
        (folder / split / part).mkdir(parents=True, exist_ok=True)
    return folder / split


def finish_dataset(folder: Path, rows: dict[str, list[dict]], labels: LabelSet, settings: dict) -> None:
    """Write each split's metadata, the label set and the settings with counts and versions."""
    for split, lines in _typed(rows).items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / split / METADATA_FILE).write_text(text, encoding="utf-8")
    labels.save_json(folder / LABELS_FILE)
    record = {
        **settings,
        "splits": {split: len(lines) for split, lines in rows.items()},
        "versions": {"semseg_diffusers": package_version(), "pillow": PIL.__version__, "numpy": np.__version__},
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _typed(rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Rows in which a column that is text in one split is text in each: where a split knows no value at all, "".

    `load_dataset` takes a column of nulls for one of another type, and refuses splits that differ.
    """
    columns = {
        column for lines in rows.values() for line in lines for column, value in line.items() if value is not None
    }
    blank = {
        split: {c for c in columns if all(line.get(c) is None for line in lines)} for split, lines in rows.items()
    }
    return {split: [line | dict.fromkeys(blank[split], "") for line in lines] for split, lines in rows.items()}


def data_license(source_format: str | None, thing: str | None = None) -> tuple[str | None, str]:
    """Return the Hub's name of a data licence, and a sentence on it.

    Args:
        source_format: what the data was prepared from (`camvid`, `toy`, ...).
        thing: what else the licence applies to ("these weights").

    Example:
        >>> data_license("camvid", "these weights")
        ('cc-by-nc-4.0', 'CamVid (SegNet form), CC BY-NC 4.0: research use; the same holds for these weights.')
    """
    name, sentence = DATA_LICENSES.get(source_format, (None, None))
    if sentence is None:
        return None, UNKNOWN_LICENSE
    return name, f"{sentence}; the same holds for {thing}." if thing and source_format != "toy" else f"{sentence}."


MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")


def find_masks(masks: str | os.PathLike, what: str = "mask") -> list[Path]:
    """Return the mask files of a folder and its sub-folders in order of their path, or the one file given.

    Args:
        masks (path): mask file or folder.
        what (`str`, defaults to "mask"): what messages call one: photos are found in the same way.

    Raises:
        FileNotFoundError: where nothing is there.
        ValueError: for a folder without pictures, or two masks of one stem, which would give results of one name.
    """
    masks = Path(masks)
    if masks.is_file():
        return [masks]
    if not masks.is_dir():
        raise FileNotFoundError(f"no {what} file and no folder of {what}s at '{masks}'")
    paths = sorted(
        path
        for path in masks.rglob("*")
        if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ValueError(f"folder '{masks}' holds no {what}; wanted pictures ({', '.join(MASK_SUFFIXES)})")
    first_with: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_with:
            raise ValueError(
                f"{what}s '{first_with[path.stem]}' and '{path}' have the same stem, so what is made of them would "
                "have the same name. Rename one, or take each folder by itself, with an output of its own."
            )
        first_with[path.stem] = path
    return paths


def labels_of_masks(masks: str | os.PathLike, labels: str | None = None) -> LabelSet:
    """The label set that was asked for, else that in the `labels.json` beside the masks or above them.

    Args:
        masks (path): a mask file or a folder of them.
        labels (`str`, *optional*): a preset, or a JSON file (`colormap.json` or `labels.json`).

    Raises:
        ValueError: there is no such preset and file, or none lies near the masks.
    """
    if labels is not None:
        return LabelSet.from_name(labels)
    found = label_file_near(masks if Path(masks).is_dir() else Path(masks).parent, masks)
    if found is None:
        raise ValueError(
            f"the classes of '{masks}' are not known: no {LABELS_FILE} lies there or in the {ABOVE_MASKS} folders "
            f"above. Say which they are: --labels with one of {', '.join(PRESET_NAMES)}, or with a JSON file."
        )
    return LabelSet.from_json(found)


@contextlib.contextmanager
def new_output(output: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to fill that becomes `output` at the end; after an error nothing is left of it.

    Raises:
        ValueError: `output` is a file, or holds something.
    """
    output = Path(output)
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"--output '{output}' is not empty. Name another folder.")
    with new_dataset(output) as folder:
        yield folder
