"""The operations of `edit`: their parameters, how the command line and files give them, and what they do to a mask.

Points are (x, y) in pixels, as image editors show them. See `EditSettings` for the command.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import find_masks, labels_of_masks, new_output
from semseg_diffusers.data.mask_values import MaskReader
from semseg_diffusers.masks.editing import shapes
from semseg_diffusers.masks.editing.objects import MaskObject, Street, object_at, objects_of
from semseg_diffusers.masks.editing.operations import Scene, draw, fill, move, paste, region_at, standing_in_front
from semseg_diffusers.masks.editing.placement import find_place
from semseg_diffusers.masks.editing.scene_prior import ScenePrior, fit_scene_prior
from semseg_diffusers.masks.output import write_changed
from semseg_diffusers.masks.settings import EditSettings
from semseg_diffusers.utils.files import write_json


UNKNOWN = "unknown"  # name of the ignored pixels in operations

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What operations need besides the mask."""

    street: Street
    generator: np.random.Generator  # for `place`
    prior: ScenePrior | None = None  # for `place`


Run = Callable[[np.ndarray, Values, Context], tuple[np.ndarray, dict]]  # mask -> new mask, record


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


def _about(entry: MaskObject, context: Context) -> dict:
    """Return class and box of an object for the record."""
    return {"class": context.street.labels.names[entry.class_id], "box": list(entry.box)}


def _transform(entry: MaskObject, values: Values, flip: bool = False) -> MaskObject:
    """Return an object flipped, scaled, and moved by x, y or with the middle of its lowest row to a point."""
    entry = entry.flipped() if values.get("flip", flip) else entry
    entry = entry.scaled(values.get("scale", values.get("factor", 1.0)))
    if "to" in values:
        row, _ = _pixel(values["to"])
        return entry.at(row, round(values["to"][0] - (entry.width - 1) / 2))
    rows, columns = _pixel(values.get("by", (0, 0)))
    return entry.at(entry.bottom + rows, entry.left + columns)


def _put(ids: np.ndarray, values: Values, context: Context, flip: bool = False) -> tuple[np.ndarray, dict]:
    """Paste an object of another mask, or change one of this mask."""
    labels, street = context.street.labels, context.street
    (entry,) = _select(labels.encode(values["from"]) if "from" in values else ids, values, context)
    changed = _transform(entry, values, flip)
    note = {"object": _about(entry, context), "put": _about(changed, context)}
    if "from" in values:
        return paste(ids, changed, standing_in_front(ids, street, changed.bottom)), note
    return move(ids, entry, changed, street), note


def _place(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    if context.prior is None:
        raise ValueError("objects and their sizes come from a dataset: give --dataset.")
    class_id, scene = context.street.class_id(values["class"]), Scene(ids, context.street)
    put: list[dict] = []
    for _ in range(values.get("count", 1)):
        placement, refused = find_place(scene, context.prior, class_id, context.generator)
        if placement is None:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in refused.most_common())
            raise ValueError(f"there is no place for number {len(put) + 1} of '{values['class']}': {reasons}.")
        scene.put(placement.entry, placement.seen)
        put.append(placement.describe(context.street))
    return scene.ids, {"put": put}


def _remove(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    entries = _select(ids, values, context)
    gap = np.zeros(ids.shape, dtype=bool)
    for entry in entries:
        gap |= entry.pixels(ids.shape)
    return fill(ids, gap, context.street), {"objects": [_about(entry, context) for entry in entries]}


def _relabel(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
    region = region_at(ids, *_pixel(values["at"])) if "at" in values else ids == _class_id(values["class"], context)
    return np.where(region, np.uint8(_class_id(values["to"], context)), ids), {}


@dataclass(frozen=True)
class Kind:
    """A kind of parameter."""

    description: str
    accepts: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(part) for part in value)


def _are_points(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and (_is_point(value) or all(_is_point(point) for point in value))


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NATURAL = Kind("a whole number from 1", _is_natural)
NATURAL_OR_ALL = Kind("a whole number from 1, or all", lambda value: value == "all" or _is_natural(value))
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 0, float)
POINT = Kind("two numbers, x and y (80,40)", _is_point, tuple)
POINTS = Kind(  # one point is a stroke of one point
    "points x,y (10,20;30,40)", _are_points, lambda value: [tuple(p) for p in ([value] if _is_point(value) else value)]
)


@dataclass(frozen=True)
class OperationType:
    """The function that runs an operation, and its parameters by name."""

    run: Run
    needs: Mapping[str, Kind]
    may: Mapping[str, Kind] = field(default_factory=dict)


def _draw(shape: Callable[..., np.ndarray], **needs: Kind) -> OperationType:
    """Return an operation that fills a shape with a class."""

    def run(ids: np.ndarray, values: Values, context: Context) -> tuple[np.ndarray, dict]:
        pixels = shape(ids.shape, *(values[name] for name in needs))
        return draw(ids, pixels, _class_id(values["class"], context)), {}

    return OperationType(run, {"class": TEXT, **needs})


OBJECT = {"at": POINT, "class": TEXT, "number": NATURAL}
OPERATION_TYPES: dict[str, OperationType] = {
    "paste": OperationType(_put, {"from": TEXT}, {**OBJECT, "to": POINT, "scale": POSITIVE, "flip": FLAG}),
    "place": OperationType(_place, {"class": TEXT}, {"count": NATURAL}),
    "move": OperationType(_put, {}, {**OBJECT, "to": POINT, "by": POINT}),
    "scale": OperationType(_put, {"factor": POSITIVE}, OBJECT),
    "flip": OperationType(partial(_put, flip=True), {}, OBJECT),
    "remove": OperationType(_remove, {}, {**OBJECT, "number": NATURAL_OR_ALL}),
    "relabel": OperationType(_relabel, {"to": TEXT}, {"at": POINT, "class": TEXT}),
    "polygon": _draw(shapes.polygon, points=POINTS),
    "stroke": _draw(shapes.stroke, points=POINTS, radius=POSITIVE),
    "rectangle": _draw(shapes.rectangle, first=POINT, last=POINT),
    "ellipse": _draw(shapes.ellipse, center=POINT, radii=POINT),
}
EXCLUSIVE = (("at", "class"), ("to", "by"))  # an operation that may take both takes exactly one


@dataclass(frozen=True)
class Operation:
    """An operation: its name, and its values, checked for form but not yet against a mask."""

    name: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.values.items())])


def read_operations(path: str | Path) -> list[Operation]:
    """Read a YAML or JSON file: a list of `{name: {value: ..., ...}}`. Paths in it are relative to the file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such list, or an operation is wrong; the message names it.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_bytes())  # of bytes, YAML finds the encoding
    except yaml.YAMLError as err:
        raise ValueError(f"operations file '{path}' is not valid YAML or JSON: {err}") from err
    if not isinstance(content, list) or not content:
        raise ValueError(f"operations file '{path}' contains no list; expected lines like `- remove: {{class: car}}`.")
    operations = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ValueError(f"operation {number} of '{path}' is {entry!r}; expected `name: {{value: ..., ...}}`.")
        ((name, values),) = entry.items()
        operations.append(_check(name, values, f"operation {number} of '{path}'", path.parent))
    return operations


def parse_operation(text: str) -> Operation:
    """Read an operation of the command line.

    Example:
        >>> parse_operation("stroke class=pole points=10,20;10,60 radius=0.5").values["points"]
        [(10, 20), (10, 60)]
    """
    words = shlex.split(text)
    if not words:
        raise ValueError(f"an operation is empty; expected one of {', '.join(OPERATION_TYPES)}.")
    values: dict[str, Any] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key in values:
            raise ValueError(f"operation '{text}' gives {key} twice.")
        values[key] = _parse_value(value) if equals else True
    return _check(words[0], values, f"operation '{text}'", Path())


def _parse_value(text: str) -> Any:
    """Return a value of the command line: `1,2;3,4` is points, `1,2` a point, else a number, true, false or text."""
    if ";" in text or "," in text:
        points = [[_parse_value(number) for number in point.split(",")] for point in text.split(";")]
        is_points = all(_is_number(number) for point in points for number in point)
        return text if not is_points else points if ";" in text else points[0]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if _is_number(value) or isinstance(value, bool) else text


def _check(name: Any, values: Any, where: str, folder: Path) -> Operation:
    """Return the operation after checking names and forms of its values."""
    if name not in OPERATION_TYPES:
        raise ValueError(f"{where}: there is no '{name}'; there are {', '.join(OPERATION_TYPES)}.")
    values = {} if values is None else values
    needs, known = OPERATION_TYPES[name].needs, {**OPERATION_TYPES[name].needs, **OPERATION_TYPES[name].may}
    takes = f"{name} takes {', '.join(known)}"
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {name} has {values!r}; expected values by name. {takes}.")
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {name} knows no '{key}'; {takes}.")
    for key in needs:
        if key not in values:
            raise ValueError(f"{where}: {name} lacks '{key}'; {takes}.")
    for one, other in EXCLUSIVE:
        if one in known and other in known and (one in values) == (other in values):
            raise ValueError(f"{where}: {name} needs exactly one of {one} and {other}.")
    if "at" in values and "number" in values:
        raise ValueError(f"{where}: number counts the objects of a class, and at names one; leave out one of them.")
    for key, value in values.items():
        if not known[key].accepts(value):
            raise ValueError(f"{where}: {key} is {value!r}; expected {known[key].description}.")
    read = {key: known[key].read(value) for key, value in values.items()}
    if "from" in read:
        read["from"] = str(folder / read["from"])
    return Operation(name, read)


# The command -------------------------------------------------------------------------------------------------------

FADED = 0.25  # share of the colour that remains where nothing changed


def run_operations(
    ids: np.ndarray, operations: Sequence[Operation], context: Context, source: str = "the mask"
) -> tuple[np.ndarray, list[dict]]:
    """Run operations on a mask, one after the other.

    Args:
        ids: class ids, (H, W) uint8; not changed.
        operations: in order.
        context: what they need besides the mask.
        source: name of the mask in messages.

    Returns:
        The new ids, and a record of each operation as JSON values.

    Raises:
        ValueError: If an operation is impossible; the message names it.
    """
    notes = []
    for number, operation in enumerate(operations, 1):
        try:
            changed, note = OPERATION_TYPES[operation.name].run(ids, operation.values, context)
        except ValueError as err:
            raise ValueError(f"operation {number} ({operation}) on {source}: {err}") from err
        count = int((changed != ids).sum())
        notes.append({"operation": operation.name, **operation.values, **note, "changed_pixels": count})
        ids = changed
    return ids, notes


def run(settings: EditSettings) -> None:
    """Run `semseg-diffusers edit`."""
    operations = read_operations(settings.operations) if settings.operations else []
    operations += [parse_operation(text) for text in settings.operation]
    paths, labels = find_masks(settings.masks), labels_of_masks(settings.masks, settings.labels)
    masks, street, prior = MaskReader(labels, paths), Street.of(labels), None
    if any(operation.name == "place" for operation in operations) and settings.dataset:
        pairs = load_pairs(settings.dataset, settings.split)
        if pairs.labels.names != labels.names:
            raise ValueError(
                f"'{settings.dataset}' and '{settings.masks}' have different classes; expected one label set."
            )
        prior = fit_scene_prior(((stem, pairs.mask(i)) for i, stem in enumerate(pairs.stems)), street)

    def change(path: Path) -> tuple[np.ndarray, dict[str, Any], list[Image.Image]]:
        generator = np.random.default_rng([settings.seed, *path.stem.encode()])  # independent of other masks
        before = masks.read(path)
        after, done = run_operations(before, operations, Context(street, generator, prior), f"'{path}'")
        images = [labels.decode(before), labels.decode(after)]
        colors = np.asarray(images[1].convert("RGB"), dtype=np.float32)  # (H, W, 3)
        faded = 255 - FADED * (255 - colors.mean(axis=2, keepdims=True))
        shown = np.where((before != after)[..., None], colors, faded).round().astype(np.uint8)
        changes = Image.fromarray(shown).convert("P", palette=Image.Palette.ADAPTIVE)  # with hard edges on the sheet
        return after, {"operations": done}, [*images, changes]

    with new_output(settings.output) as folder:
        notes = write_changed(paths, labels, folder, change, "before_after.png", ["before", "after", "changed"])
        write_json(folder / "edits.json", {"seed": settings.seed, "dataset": settings.dataset, "masks": notes})
    changed = sum(entry["changed_pixels"] for note in notes for entry in note["operations"])
    sys.stdout.write(
        f"{len(notes)} mask(s), {len(operations)} operation(s) each, {changed} pixels changed; look at "
        f"{Path(settings.output) / 'before_after.png'}. "
        f"Next: semseg-diffusers generate --masks {shlex.quote(str(Path(settings.output) / 'masks'))}\n"
    )
