"""The operations of a script or the command line: their values, and what they do to a mask.

Points are (x, y) in pixels, as image editors show them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semseg_diffusers.masks.editing import shapes
from semseg_diffusers.masks.editing.objects import MaskObject, object_at, objects_of
from semseg_diffusers.masks.editing.operations import (
    Scene,
    draw,
    fill,
    move,
    paste,
    pixels_in_frame,
    region_at,
    standing_in_front,
)
from semseg_diffusers.masks.editing.placement import find_place
from semseg_diffusers.masks.editing.scene_prior import ScenePrior
from semseg_diffusers.masks.editing.street import Street


UNKNOWN = "unknown"  # name of the ignored pixels in operations


@dataclass(frozen=True)
class Context:
    """What operations need besides the mask."""

    street: Street
    generator: np.random.Generator  # for `place`
    prior: ScenePrior | None = None  # for `place`


# Values ------------------------------------------------------------------------------------------------------------


def _point(value: Any) -> tuple[float, float]:
    if not is_numbers(value) or len(value) != 2:
        raise ValueError("two numbers, x and y (80,40)")
    return tuple(value)


def _points(value: Any) -> list[tuple[float, float]]:
    value = [value] if is_numbers(value) else value  # a stroke of one point
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(is_numbers(p) for p in value):
        raise ValueError("points x,y (10,20;30,40)")
    return [_point(point) for point in value]


def is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(is_number(part) for part in value)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(value: Any) -> float:
    if not is_number(value) or not value > 0:
        raise ValueError("a number above 0")
    return float(value)


def _natural_number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number from 1")
    return value


def _number_or_all(value: Any) -> int | str:
    return value if value == "all" else _natural_number(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


# The operations ----------------------------------------------------------------------------------------------------

Values = Mapping[str, Any]
Run = Callable[[np.ndarray, Values, Context], tuple[np.ndarray, dict]]  # mask -> new mask, record


@dataclass(frozen=True)
class OperationType:
    """The values of an operation and the function that runs it."""

    run: Run
    needs: Mapping[str, Callable]  # name of a required value -> its parser
    may: Mapping[str, Callable]
    one_of: tuple[str, ...] = ()  # exactly one of these values must be given


def _class_id(name: str, context: Context) -> int:
    labels = context.street.labels
    return labels.ignore_index if name == UNKNOWN and UNKNOWN not in labels.names else context.street.class_id(name)


def _pixel(point: Sequence[float]) -> tuple[int, int]:
    """Return row and column of a point (x, y)."""
    return round(point[1]), round(point[0])


def _select(ids: np.ndarray, values: Values, context: Context) -> list[MaskObject]:
    """Return the objects that an operation selects: the one at a pixel, or those of a class by size."""
    if "at" in values:
        return [object_at(ids, context.street, *_pixel(values["at"]))]
    name, number = values["class"], values.get("number", 1)
    found = objects_of(ids, context.street, [context.street.class_id(name)])
    if number == "all":
        return found
    if number > len(found):
        raise ValueError(f"the mask holds {len(found)} object(s) of '{name}'; number {number} by size does not exist.")
    return [found[number - 1]]


def _place_foot(entry: MaskObject, point: Sequence[float]) -> MaskObject:
    """Return the object with the middle of its lowest row at a point."""
    row, _ = _pixel(point)
    return entry.at(row, round(point[0] - (entry.width - 1) / 2))


def _about(entry: MaskObject, context: Context) -> dict:
    """Return class and box of an object for the record."""
    return {"class": context.street.labels.names[entry.class_id], "box": list(entry.box)}


def _paste(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    other = context.street.labels.encode(values["from"])
    (entry,) = _select(other, values, context)
    note = {"object": _about(entry, context)}
    entry = entry.flipped() if values.get("flip") else entry
    entry = entry.scaled(values.get("scale", 1.0))
    entry = _place_foot(entry, values["to"]) if "to" in values else entry
    note["put"] = _about(entry, context)
    return paste(ids, entry, standing_in_front(ids, context.street, entry.bottom)), note


def _change(change: Callable[[MaskObject, Values], MaskObject]) -> Run:
    """Return an operation that replaces an object by a changed one."""

    def run(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
        (entry,) = _select(ids, values, context)
        changed = change(entry, values)
        note = {"object": _about(entry, context), "put": _about(changed, context)}
        return move(ids, entry, changed, context.street), note

    return run


def _moved(entry: MaskObject, values: Values) -> MaskObject:
    if "to" in values:
        return _place_foot(entry, values["to"])
    rows, columns = _pixel(values["by"])
    return entry.at(entry.bottom + rows, entry.left + columns)


def _remove(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    entries = _select(ids, values, context)
    gap = np.zeros(ids.shape, dtype=bool)
    for entry in entries:
        gap |= pixels_in_frame(entry, ids.shape)
    return fill(ids, gap, context.street), {"objects": [_about(entry, context) for entry in entries]}


def _relabel(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    region = region_at(ids, *_pixel(values["at"])) if "at" in values else ids == _class_id(values["class"], context)
    return np.where(region, np.uint8(_class_id(values["to"], context)), ids), {}


def _draw_shape(shape: Callable[[tuple[int, int], Values], np.ndarray]) -> Run:
    """Return an operation that fills a shape with a class."""

    def run(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
        return draw(ids, shape(ids.shape, values), _class_id(values["class"], context)), {}

    return run


def _place(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    if context.prior is None:
        raise ValueError("objects and their sizes come from a dataset: give --dataset.")
    class_id, scene, put = context.street.class_id(values["class"]), Scene(ids, context.street), []
    for _ in range(values.get("count", 1)):
        placement, refused = find_place(scene, context.prior, class_id, context.generator)
        if placement is None:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in refused.most_common())
            raise ValueError(f"there is no place for number {len(put) + 1} of '{values['class']}': {reasons}.")
        scene.put(placement.entry, placement.seen)
        put.append(placement.describe(context.street))
    return scene.ids, {"put": put}


OBJECT = {"at": _point, "class": _text, "number": _natural_number}
PASTED = {**OBJECT, "to": _point, "scale": _positive, "flip": _flag}
SHAPE = {"class": _text, "points": _points}
OPERATION_TYPES: dict[str, OperationType] = {
    "paste": OperationType(_paste, {"from": _text}, PASTED, ("at", "class")),
    "place": OperationType(_place, {"class": _text}, {"count": _natural_number}),
    "move": OperationType(_change(_moved), {}, {**OBJECT, "to": _point, "by": _point}, ("at", "class")),
    "scale": OperationType(
        _change(lambda entry, values: entry.scaled(values["factor"])), {"factor": _positive}, OBJECT, ("at", "class")
    ),
    "flip": OperationType(_change(lambda entry, _: entry.flipped()), {}, OBJECT, ("at", "class")),
    "remove": OperationType(_remove, {}, {**OBJECT, "number": _number_or_all}, ("at", "class")),
    "relabel": OperationType(_relabel, {"to": _text}, {"at": _point, "class": _text}, ("at", "class")),
    "polygon": OperationType(_draw_shape(lambda size, v: shapes.polygon(size, v["points"])), SHAPE, {}),
    "stroke": OperationType(
        _draw_shape(lambda size, v: shapes.stroke(size, v["points"], v["radius"])), {**SHAPE, "radius": _positive}, {}
    ),
    "rectangle": OperationType(
        _draw_shape(lambda size, v: shapes.rectangle(size, v["first"], v["last"])),
        {"class": _text, "first": _point, "last": _point},
        {},
    ),
    "ellipse": OperationType(
        _draw_shape(lambda size, v: shapes.ellipse(size, v["center"], v["radii"])),
        {"class": _text, "center": _point, "radii": _point},
        {},
    ),
}
