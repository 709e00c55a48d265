"""The output of `clean` and `edit`: a changed copy of each mask, and a sheet of images to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.utils.images import image_grid, save_png


SHEET_ROWS = 16  # masks on the sheet

# Path of a mask -> new class ids (H, W), note for the record, images of its row on the sheet
Change = Callable[[Path], tuple[np.ndarray, dict[str, Any], list[Image.Image]]]


def write_changed(
    paths: Sequence[Path], labels: LabelSet, folder: Path, change: Change, sheet: str, headers: Sequence[str]
) -> list[dict[str, Any]]:
    """Write changed masks, their label set and a sheet of images with headers into a folder; return all notes."""
    (folder / "masks").mkdir()
    rows: list[list[Image.Image]] = []
    notes: list[dict[str, Any]] = []
    for path in paths:
        ids, note, images = change(path)
        labels.decode(ids).save(folder / "masks" / f"{path.stem}.png")
        notes.append({"mask": str(path), "output": f"masks/{path.stem}.png", **note})
        if len(rows) < SHEET_ROWS:
            rows.append(images)
    names = [path.stem for path in paths[:SHEET_ROWS]]
    save_png(folder / sheet, image_grid(rows, headers, names, cell_size=192))
    labels.save_json(folder / LABELS_FILE)
    return notes
