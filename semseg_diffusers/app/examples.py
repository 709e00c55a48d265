"""Masks to start from: a folder of one's own, toy scenes where a model has their classes, and a plain street."""

import os

import numpy as np

from semseg_diffusers.data.editing.drawing import polygon
from semseg_diffusers.data.label_mapping import map_ids, match_classes
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_files import find_masks
from semseg_diffusers.data.toy import draw_scene
from semseg_diffusers.pipelines.mask_inputs import resize_ids


MOST = 12  # masks of a folder that are offered, at even distances
TOY_SEEDS = (3, 8, 21, 34)  # scenes with cars and people in them
SMALLEST_SCENE = 16  # pixels of a side
MOST_UNKNOWN = 0.1  # share of a toy scene that a label set may have no class for
# The plain street from back to front: class, corners in percent of width and height.
STREET = (
    ("sky", ((-1, -1), (101, -1), (101, 60), (-1, 60))),
    ("vegetation", ((30, 42), (40, 34), (60, 34), (70, 42), (70, 52), (30, 52))),
    ("building", ((-1, 2), (22, 14), (40, 36), (40, 52), (-1, 62))),
    ("building", ((101, 2), (78, 14), (60, 36), (60, 52), (101, 62))),
    ("road", ((-1, 101), (-1, 88), (45, 50), (55, 50), (101, 88), (101, 101))),
    ("sidewalk", ((-1, 92), (-1, 60), (42, 50), (46, 50))),
    ("sidewalk", ((101, 92), (101, 60), (58, 50), (54, 50))),
)


def plain_street(labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """A street without things, (H, W) uint8; what a label set has no class for is unknown."""
    height, width = size
    known = match_classes([name for name, _ in STREET], labels)
    ids = np.full(size, labels.ignore_index, dtype=np.uint8)
    for class_id, (_, corners) in zip(known, STREET, strict=True):
        if class_id is not None:
            ids[polygon(size, [(x * width / 100, y * height / 100) for x, y in corners])] = class_id
    return ids


def toy_masks(labels: LabelSet, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks of toy scenes by name, where the label set has the classes of all but a small part of them."""
    source = LabelSet.from_preset("bdd100k")
    known = match_classes(source.names, labels)
    found = {}
    for number, seed in enumerate(TOY_SEEDS if min(size) >= SMALLEST_SCENE else (), start=1):
        ids = map_ids(draw_scene(seed, size)[1], known, labels.ignore_index)
        if (ids == labels.ignore_index).mean() <= MOST_UNKNOWN:
            found[f"drawn {number}"] = ids
    return found


def folder_masks(folder: str | os.PathLike, labels: LabelSet, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks of a folder by name, at a size.

    Raises:
        FileNotFoundError, ValueError: there are none, or one does not fit the label set.
    """
    paths = find_masks(folder)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(MOST, len(paths))).round().astype(int)]
    return {path.stem: resize_ids(labels.encode(path), *size) for path in chosen}
