"""What the page offers: objects to place by a click (silhouettes of the toy scenes' cars, people and trees, and
complete objects cut from given masks), and masks to start from.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semseg_diffusers.app.inputs import pack_runs
from semseg_diffusers.data.dataset_format import evenly_spaced, find_masks
from semseg_diffusers.data.label_mapping import all_kinds, map_ids, match_classes
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import MaskReader
from semseg_diffusers.masks.editing.objects import Street, objects_of
from semseg_diffusers.masks.editing.shapes import polygon
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.toy import objects as toy
from semseg_diffusers.toy.objects import draw_two_wheeler as draw_cycle
from semseg_diffusers.toy.painter import SKY, Look, Painter, Rng
from semseg_diffusers.toy.scenes import draw_scene


HOLE = -1  # in a shape: leaves the mask as it is
DRAWN = 1280  # pixels; silhouettes are drawn this large,
KEPT = 96  # and kept with about so many pixels of height, more where masks need them: every n-th pixel
LEAST_AREA = 60  # pixels; smaller objects of a mask have no recognisable shape
CUT_OUT = 3  # objects of each class that are cut from masks
MAX_EXAMPLES = 12  # masks of a folder that are offered, evenly spaced
TOY_SEEDS = (3, 8, 21, 34)  # scenes with cars and people in them
MIN_SCENE_SIZE = 16  # pixels per side
MAX_UNKNOWN = 0.1  # share of a toy scene that a label set may have no class for
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
LOOK = Look("clear", "daytime", (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 100.0, 0.0, 0.0, False, 0.0)

Draw = Callable[[Painter, Rng], Any]
# name -> its class in the toy scenes, how it is drawn, and its usual height as a share of the mask's
SILHOUETTES: dict[str, tuple[int, Draw, float]] = {
    "car": (toy.CAR, lambda p, rng: toy.draw_car(p, rng, 0.0, 6.0, oncoming=True), 0.16),
    "car, to the side": (toy.CAR, lambda p, rng: toy.draw_car(p, rng, 2.2, 8.0, oncoming=False), 0.18),
    "car, across": (toy.CAR, lambda p, rng: toy.draw_car_across(p, rng, 0.0, 6.0), 0.15),
    "truck": (toy.TRUCK, lambda p, rng: toy.draw_box_vehicle(p, rng, 3.0, 9.0, toy.TRUCK, oncoming=False), 0.3),
    "bus": (toy.BUS, lambda p, rng: toy.draw_box_vehicle(p, rng, 3.4, 9.0, toy.BUS, oncoming=True), 0.3),
    "train": (toy.TRAIN, lambda p, rng: toy.draw_box_vehicle(p, rng, 3.4, 9.0, toy.TRAIN, oncoming=True), 0.3),
    "person": (toy.PERSON, lambda p, rng: toy.draw_person(p, rng, 0.0, 4.0), 0.2),
    "rider": (toy.RIDER, lambda p, rng: draw_cycle(p, rng, 0.0, 4.0, toy.BICYCLE, True, 0.9), 0.2),
    "motorcyclist": (toy.RIDER, lambda p, rng: draw_cycle(p, rng, 0.0, 4.0, toy.MOTORCYCLE, True, 0.4), 0.2),
    "bicycle": (toy.BICYCLE, lambda p, rng: draw_cycle(p, rng, 0.0, 3.0, toy.BICYCLE, False, 1.0), 0.12),
    "motorcycle": (toy.MOTORCYCLE, lambda p, rng: draw_cycle(p, rng, 0.0, 3.0, toy.MOTORCYCLE, False, 1.0), 0.13),
    "tree": (toy.VEGETATION, lambda p, rng: toy.draw_tree(p, rng, 0.0, 14.0, 7.0), 0.5),
    "traffic light": (toy.TRAFFIC_LIGHT, lambda p, rng: toy.draw_traffic_light(p, rng, 0.0, 8.0), 0.4),
    "sign": (toy.TRAFFIC_SIGN, lambda p, rng: toy.draw_sign(p, rng, 0.0, 6.0), 0.3),
    "street lamp": (toy.POLE, lambda p, _: toy.draw_street_lamp(p, 0.0, 14.0), 0.5),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shape:
    """An object to place."""

    name: str
    ids: np.ndarray  # (h, w) int16: class ids, or HOLE
    share: float  # its usual height, as a share of the mask's

    def packed(self) -> dict[str, Any]:
        """Return the shape in the format of the canvas."""
        height, width = self.ids.shape
        return {"name": self.name, "height": height, "width": width, "runs": pack_runs(self.ids), "share": self.share}


def drawn_shapes(labels: LabelSet, height: int = 0) -> list[Shape]:
    """Return the silhouettes whose class a label set has, by name or synonym, for masks of a height in pixels."""
    source = LabelSet.from_preset("bdd100k")
    known, back = match_classes(source.names, labels), match_classes(labels.names, source)
    found = []
    for name, (own, draw, share) in SILHOUETTES.items():
        class_id = known[own]
        if class_id is None or back[class_id] != own:
            continue  # the label set lacks it, or has only a superclass: where buses are cars, none is offered
        painter = Painter((DRAWN, DRAWN), LOOK, horizon=0.5, focal=0.55, eye=1.6, bend=0.0, line=9.0)
        draw(painter, Rng(5))
        drawn = np.asarray(painter.mask)
        table = np.full(256, HOLE, dtype=np.int16)
        for part in np.unique(drawn[drawn != SKY]):
            table[part] = class_id if known[part] is None else known[part]  # a rider's bicycle, where there is none
        ids = table[drawn]
        rows, columns = np.nonzero(ids != HOLE)
        ids = ids[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        step = max(1, min(-(-ids.shape[0] // KEPT), ids.shape[0] // max(1, round(share * height))))
        found.append(Shape(name, ids[step // 2 :: step, step // 2 :: step], share))
    return found


def cut_shapes(masks: Sequence[np.ndarray], labels: LabelSet) -> list[Shape]:
    """Return objects of masks (H, W): the largest of each class that the frame does not cut, at their own size."""
    street = Street.of(labels)
    found = []
    for class_id in street.things:
        whole = []
        for mask in masks:
            height, width = mask.shape
            for entry in objects_of(mask, street, [class_id]):
                left, top, right, bottom = entry.box
                if entry.area >= LEAST_AREA and min(left, top, width - 1 - right, height - 1 - bottom) > 0:
                    whole.append((entry, height))
        whole.sort(key=lambda pair: -pair[0].area)
        for number, (entry, height) in enumerate(whole[:CUT_OUT], start=1):
            ids = np.where(entry.shape, entry.ids.astype(np.int16), HOLE)
            found.append(Shape(f"{labels.names[class_id]} {number}", ids, entry.height / height))
    return found


def plain_street(labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Return a street without objects, (H, W) uint8; classes that no name or kind of the label set is are unknown."""
    height, width = size
    kinds = all_kinds(labels)
    matched = match_classes([name for name, _ in STREET], labels)
    known = [
        kinds.index(name) if class_id is None and name in kinds else class_id
        for class_id, (name, _) in zip(matched, STREET, strict=True)
    ]
    ids = np.full(size, labels.ignore_index, dtype=np.uint8)
    for class_id, (_, corners) in zip(known, STREET, strict=True):
        if class_id is not None:
            ids[polygon(size, [(x * width / 100, y * height / 100) for x, y in corners])] = class_id
    return ids


def toy_masks(labels: LabelSet, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return masks of toy scenes by name, if the label set has the classes of almost all their pixels."""
    source = LabelSet.from_preset("bdd100k")
    known = match_classes(source.names, labels)
    found = {}
    for number, seed in enumerate(TOY_SEEDS if min(size) >= MIN_SCENE_SIZE else (), start=1):
        ids = map_ids(draw_scene(seed, size)[1], known, labels.ignore_index)
        if (ids == labels.ignore_index).mean() <= MAX_UNKNOWN:
            found[f"toy scene {number}"] = ids
    return found


def folder_masks(folder: str | os.PathLike, labels: LabelSet, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return masks of a folder by name, resized."""
    chosen = evenly_spaced(find_masks(folder), MAX_EXAMPLES)
    masks = MaskReader(labels, chosen)
    return {path.stem: resize_ids(masks.read(path), *size) for path in chosen}
