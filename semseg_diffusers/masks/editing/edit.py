"""Read and run operations on masks; see `EditSettings` for the command."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE, find_masks, labels_of_masks, new_output
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.operation_types import OPERATION_TYPES, Context, is_number, is_numbers
from semseg_diffusers.masks.editing.scene_prior import fit_scene_prior
from semseg_diffusers.masks.editing.street import Street
from semseg_diffusers.masks.settings import EditSettings
from semseg_diffusers.utils.files import write_text
from semseg_diffusers.utils.images import image_grid, save_png


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
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ValueError(f"operations file '{path}' is not valid YAML or JSON: {err}") from err
    if not isinstance(content, list) or not content:
        raise ValueError(f"operations file '{path}' contains no list; expected lines like `- remove: {{class: car}}`.")
    operations = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ValueError(f"operation {number} of '{path}' is {entry!r}; expected `name: {{value: ..., ...}}`.")
        ((name, values),) = entry.items()
        operations.append(_checked(name, values, f"operation {number} of '{path}'", path.parent))
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
        key, _, value = word.partition("=")
        if key in values:
            raise ValueError(f"operation '{text}' gives {key} twice.")
        values[key] = _value(value) if "=" in word else True
    return _checked(words[0], values, f"operation '{text}'", Path())


def _value(text: str) -> Any:
    """Return a value of the command line: `1,2;3,4` is points, `1,2` a point, anything else is read as YAML."""
    parts = [[_scalar(number) for number in point.split(",")] for point in text.split(";")]
    if (";" in text or "," in text) and all(is_numbers(part) for part in parts):
        return parts if ";" in text else parts[0]
    return _scalar(text)


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if is_number(value) or isinstance(value, bool) else text


def _checked(name: Any, values: Any, where: str, folder: Path) -> Operation:
    """Return the operation after checking names and forms of its values."""
    if name not in OPERATION_TYPES:
        raise ValueError(f"{where}: there is no '{name}'; there are {', '.join(OPERATION_TYPES)}.")
    kind, values = OPERATION_TYPES[name], {} if values is None else values
    known = {**kind.needs, **kind.may}
    takes = f"{name} takes {', '.join(known)}"
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {name} has {values!r}; expected values by name. {takes}.")
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {name} knows no '{key}'; {takes}.")
    for key in kind.needs:
        if key not in values:
            raise ValueError(f"{where}: {name} lacks '{key}'; {takes}.")
    if kind.one_of and sum(key in values for key in kind.one_of) != 1:
        raise ValueError(f"{where}: {name} needs exactly one of {' and '.join(kind.one_of)}.")
    if name == "move" and ("to" in values) == ("by" in values):
        raise ValueError(f"{where}: move needs exactly one of to and by.")
    read = {}
    for key, value in values.items():
        try:
            read[key] = known[key](value)
        except ValueError as err:
            raise ValueError(f"{where}: {key} is {value!r}; expected {err}.") from err
    if "from" in read:
        read["from"] = str(folder / read["from"])
    return Operation(name, read)


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


EDITS_FILE = "edits.json"
ROWS = 16  # masks on before_after.png
FADED = 0.25  # share of the colour that remains where nothing changed


def run(settings: EditSettings) -> None:
    operations = read_operations(settings.operations) if settings.operations else []
    operations += [parse_operation(text) for text in settings.operation]
    paths = find_masks(settings.masks)
    labels = labels_of_masks(settings.masks, settings.labels)
    street = Street.of(labels)
    prior = None
    if any(operation.name == "place" for operation in operations) and settings.dataset:
        pairs = load_pairs(settings.dataset, settings.split)
        if pairs.labels.names != labels.names:
            raise ValueError(
                f"'{settings.dataset}' and '{settings.masks}' have different classes; expected one label set."
            )
        prior = fit_scene_prior(((stem, pairs.mask(i)) for i, stem in enumerate(pairs.stems)), street)

    with new_output(settings.output) as folder:
        (folder / "masks").mkdir()
        rows, notes = [], []
        for path in paths:
            generator = np.random.default_rng([settings.seed, *path.stem.encode()])  # independent of other masks
            before = labels.encode(path)
            after, done = run_operations(before, operations, Context(street, generator, prior), f"'{path}'")
            labels.decode(after).save(folder / "masks" / f"{path.stem}.png")
            notes.append({"mask": str(path), "output": f"masks/{path.stem}.png", "operations": done})
            if len(rows) < ROWS:
                rows.append([labels.decode(before), labels.decode(after), show_changes(before, after, labels)])
        names = [path.stem for path in paths[:ROWS]]
        save_png(folder / "before_after.png", image_grid(rows, ["before", "after", "changed"], names, cell_size=192))
        labels.save_json(folder / LABELS_FILE)
        record = {"seed": settings.seed, "dataset": settings.dataset, "masks": notes}
        write_text(folder / EDITS_FILE, json.dumps(record, indent=2) + "\n")
    sys.stdout.write(_summary(settings.output, operations, notes))


def show_changes(before: np.ndarray, after: np.ndarray, labels: LabelSet) -> Image.Image:
    """Return the new mask with unchanged pixels faded to grey, in P mode with hard edges."""
    colors = np.asarray(labels.decode(after).convert("RGB"), dtype=np.float32)  # (H, W, 3)
    faded = 255 - FADED * (255 - colors.mean(axis=2, keepdims=True))
    shown = np.where((before != after)[..., None], colors, faded)
    return Image.fromarray(shown.round().astype(np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)


def _summary(output: str, operations: list[Operation], notes: list[dict]) -> str:
    changed = sum(entry["changed_pixels"] for note in notes for entry in note["operations"])
    return (
        f"{len(notes)} mask(s), {len(operations)} operation(s) each, {changed} pixels changed; look at "
        f"{Path(output) / 'before_after.png'}. Next: semseg-diffusers generate --masks {Path(output) / 'masks'}\n"
    )
