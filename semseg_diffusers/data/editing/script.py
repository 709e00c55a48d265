"""Operations on masks as text: one a line on the command line, or a list in a YAML or JSON file; checked, then run.

    - remove: {class: car, number: all}
    - paste: {from: other.png, class: person, to: [60, 100], flip: true}
    - polygon: {class: sidewalk, points: [[0, 90], [50, 70], [50, 127], [0, 127]]}

On the command line the same reads `paste from=other.png class=person to=60,100 flip`. Points are (x, y) in pixels, as
picture editors show them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from semseg_diffusers.data.editing.kinds import KINDS, Context, is_number, is_numbers


@dataclass(frozen=True)
class Operation:
    """One change: its name, and its values checked for form (not yet against a mask)."""

    name: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.values.items())])


def read_operations(path: str | Path) -> list[Operation]:
    """Read a YAML or JSON file: a list of `{name: {value: ..., ...}}`. Files named in it are looked for beside it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such list, or an operation is wrong; the message names it.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ValueError(f"operations file '{path}' is no YAML or JSON: {err}") from err
    if not isinstance(content, list) or not content:
        raise ValueError(f"operations file '{path}' holds no list; wanted lines like `- remove: {{class: car}}`.")
    operations = []
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ValueError(f"operation {number} of '{path}' is {entry!r}; wanted `name: {{value: ..., ...}}`.")
        ((name, values),) = entry.items()
        operations.append(_checked(name, values, f"operation {number} of '{path}'", path.parent))
    return operations


def parse_operation(text: str) -> Operation:
    """Read an operation as the command line has it.

    Example:
        >>> parse_operation("stroke class=pole points=10,20;10,60 radius=0.5").values["points"]
        [(10, 20), (10, 60)]
    """
    words = shlex.split(text)
    if not words:
        raise ValueError(f"an operation is empty; wanted one of {', '.join(KINDS)}.")
    values: dict[str, Any] = {}
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key in values:
            raise ValueError(f"operation '{text}' gives {key} twice.")
        values[key] = _value(value) if "=" in word else True
    return _checked(words[0], values, f"operation '{text}'", Path())


def _value(text: str) -> Any:
    """A value of the command line: `1,2;3,4` is points, `1,2` a point, else what YAML makes of it."""
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
    """An operation whose values have the right names and forms."""
    if name not in KINDS:
        raise ValueError(f"{where}: there is no '{name}'; there are {', '.join(KINDS)}.")
    kind, values = KINDS[name], {} if values is None else values
    known = {**kind.needs, **kind.may}
    takes = f"{name} takes {', '.join(known)}"
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {name} has {values!r}; wanted values by name. {takes}.")
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {name} knows no '{key}'; {takes}.")
    for key in kind.needs:
        if key not in values:
            raise ValueError(f"{where}: {name} lacks '{key}'; {takes}.")
    if kind.one_of and sum(key in values for key in kind.one_of) != 1:
        raise ValueError(f"{where}: {name} wants {' or '.join(kind.one_of)}, one of them.")
    if name == "move" and ("to" in values) == ("by" in values):
        raise ValueError(f"{where}: move wants to or by, one of them.")
    read = {}
    for key, value in values.items():
        try:
            read[key] = known[key](value)
        except ValueError as err:
            raise ValueError(f"{where}: {key} is {value!r}; wanted {err}.") from err
    if "from" in read:
        read["from"] = str(folder / read["from"])
    return Operation(name, read)


def run_operations(
    ids: np.ndarray, operations: Sequence[Operation], context: Context, source: str = "the mask"
) -> tuple[np.ndarray, list[dict]]:
    """Run operations on a mask, one after the other.

    Args:
        ids (`np.ndarray`): class ids, (H, W) uint8; not changed.
        operations (sequence of `Operation`): what to do, in order.
        context (`Context`): what they need beside the mask.
        source (`str`): what messages call the mask.

    Returns:
        `tuple[np.ndarray, list[dict]]`: the new ids, and for each operation what was done, in JSON types.

    Raises:
        ValueError: an operation cannot be done; the message names it.
    """
    notes = []
    for number, operation in enumerate(operations, 1):
        try:
            changed, note = KINDS[operation.name].run(ids, operation.values, context)
        except ValueError as err:
            raise ValueError(f"operation {number} ({operation}) on {source}: {err}") from err
        count = int((changed != ids).sum())
        notes.append({"operation": operation.name, **operation.values, **note, "changed_pixels": count})
        ids = changed
    return ids, notes
