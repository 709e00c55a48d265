"""What masks teach about the things in them: whole objects to copy, their size by the row, the ground they are on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from semseg_diffusers.data.editing.objects import MaskObject, objects_of
from semseg_diffusers.data.editing.sizes import SizeLaw, fit_size_laws
from semseg_diffusers.data.editing.street import Street


MIN_HEIGHT = 6  # pixels; smaller things have no shape to copy, and none is placed smaller
MIN_SOLID = 0.95  # share between the sides of a vehicle, above its wheels, that is its own: nothing stands before it
MIN_BASE = 0.6  # share of a vehicle's width that reaches into its lower third
MAX_HEMMED_IN = 0.3  # share of its outline that may touch other upright things, unknown pixels or the frame


@dataclass(frozen=True, eq=False)
class Donor:
    """A whole object of the data set's, and where it is from."""

    entry: MaskObject
    source: str  # name of its mask
    frame: tuple[int, int]  # height and width of that mask
    ground: str  # what it stood on
    against_usual: float = 1.0  # its height against what is usual for its row


@dataclass(frozen=True)
class StreetKnowledge:
    """What a data set teaches of its things."""

    street: Street
    donors: dict[int, list[Donor]]  # class id -> whole objects, in the order of the masks
    laws: dict[int, SizeLaw]  # class id -> size by the row; empty where there was too little to learn from
    ground: dict[int, dict[str, float]]  # class id -> how often it stands on each kind of ground
    seen: Counter = field(default_factory=Counter)  # class id -> objects of it, whole or not


def learn_street(masks: Iterable[tuple[str, np.ndarray]], street: Street) -> StreetKnowledge:
    """Collect the whole objects of masks, and learn sizes and grounds from them.

    Args:
        masks (iterable of `(str, np.ndarray)`): name and class ids, (H, W) uint8, of each.
        street (`Street`): the classes.

    Returns:
        `StreetKnowledge`; without size laws where no class has enough whole objects.
    """
    donors: dict[int, list[Donor]] = {class_id: [] for class_id in street.things}
    seen: Counter = Counter()
    for name, ids in masks:
        for entry in objects_of(ids, street):
            seen[entry.class_id] += 1
            ground = ground_under(entry, ids, street)
            if ground is not None and is_whole(entry, ids, street):
                donors[entry.class_id].append(Donor(entry, name, ids.shape, ground))
    examples = {
        class_id: (
            np.array([(donor.entry.bottom + 1) / donor.frame[0] for donor in found]),
            np.array([donor.entry.height / donor.frame[0] for donor in found]),
        )
        for class_id, found in donors.items()
    }
    laws = fit_size_laws(examples, street)
    usual: dict[int, list[Donor]] = {class_id: [] for class_id in street.things}
    for class_id, law in laws.items():
        for donor, row, height in zip(donors[class_id], *examples[class_id], strict=True):
            against_usual = float(height / law.height(row)) if row > law.horizon else np.inf
            if law.spread[0] <= against_usual <= law.spread[1]:
                usual[class_id].append(replace(donor, against_usual=against_usual))
    ground = {class_id: _ground_shares(found, street.things[class_id].ground) for class_id, found in usual.items()}
    return StreetKnowledge(street, usual, laws, ground, seen)


def is_whole(entry: MaskObject, ids: np.ndarray, street: Street) -> bool:
    """Whether an object looks like a single thing that nothing cuts off: its proportions, its outline, the frame."""
    height, width = ids.shape
    if entry.top == 0 or entry.left == 0 or entry.right == width - 1 or entry.bottom == height - 1:
        return False
    thing = street.things[entry.class_id]
    low, high = thing.aspect
    if entry.height < MIN_HEIGHT or not low <= entry.width / entry.height <= high:
        return False
    if entry.area < thing.fill * entry.shape.size:
        return False
    if thing.vehicle:
        third = max(1, round(entry.height / 3))
        upper, lower = entry.shape[:-third], entry.shape[-third:]
        if upper.sum() < MIN_SOLID * _between(upper).sum() or lower.any(axis=0).mean() < MIN_BASE:
            return False
    box = slice(entry.top - 1, entry.bottom + 2), slice(entry.left - 1, entry.right + 2)
    inside = np.pad(entry.shape, 1)
    outline = _grown(inside) & ~inside
    around = ids[box][outline]
    hemmed = np.isin(around, street.standing) | (around == street.labels.ignore_index)
    return bool(hemmed.mean() <= MAX_HEMMED_IN)


def _between(shape: np.ndarray) -> np.ndarray:
    """The pixels of (h, w) that lie between others of the shape in their row, and those of the shape."""
    from_left, from_right = np.logical_or.accumulate(shape, axis=1), np.logical_or.accumulate(shape[:, ::-1], axis=1)
    return from_left & from_right[:, ::-1]


def _grown(shape: np.ndarray) -> np.ndarray:
    """A bool shape (h, w) with its four neighbours."""
    grown = shape.copy()
    grown[1:] |= shape[:-1]
    grown[:-1] |= shape[1:]
    grown[:, 1:] |= shape[:, :-1]
    grown[:, :-1] |= shape[:, 1:]
    return grown


def ground_under(entry: MaskObject, ids: np.ndarray, street: Street) -> str | None:
    """The kind of ground that most of an object's feet stand on; None where that is no ground that suits its class."""
    rows, columns = entry.feet()
    below = ids[np.minimum(rows + 1, ids.shape[0] - 1), columns]
    kinds = Counter(street.ground[i] for i in below.tolist() if i in street.ground)
    if not kinds:
        return None
    kind, count = kinds.most_common(1)[0]
    return kind if kind in street.things[entry.class_id].ground and count >= 0.6 * len(rows) else None


def _ground_shares(donors: list[Donor], before: dict[str, float]) -> dict[str, float]:
    """How often a class stands on each kind of ground: what was seen, and `before` as if seen that often."""
    counts = Counter(donor.ground for donor in donors)
    total = len(donors) + sum(before.values())
    return {kind: (counts[kind] + weight) / total for kind, weight in before.items()}
