"""Masks as commands take and leave them: a file or a folder, the label set that they are in, a whole new folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from semseg_diffusers.data.dataset_format import ABOVE_MASKS, LABELS_FILE, label_file_near, new_dataset
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet


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
