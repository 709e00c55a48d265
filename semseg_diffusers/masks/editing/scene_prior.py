"""How large a thing is at which row of the frame: on flat ground its height grows in a line with its contact row.

    height = slope (row - horizon)        (pinhole camera: slope = metres of the thing / metres of the camera)

The line is fitted robustly (Theil 1950, Sen 1968: the median of the slopes between all pairs), so that a child, a
truck among cars or a wrong label does not bend it. Rows and heights are shares of the frame's height."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from semseg_diffusers.masks.editing.objects import MaskObject, objects_of
from semseg_diffusers.masks.editing.street import Street


ENOUGH = 20  # objects that a line of its own needs
SOME = 5  # objects that a slope needs, where the horizon comes from other classes
MOST = 500  # objects that the pairs are made of
STEP = 0.02  # rows of a pair are at least this far apart
SPREAD = (0.75, 1.33)  # height against the line, where there are too few objects to tell; and the widest that is used
HEIGHT_PERCENTILES = (10, 90)  # percentiles of the heights against the line that count as usual


@dataclass(frozen=True, eq=False)
class HeightModel:
    """The usual height of a class by its contact row."""

    slope: float
    horizon: float  # row, where the height would be 0
    spread: tuple[float, float]  # usual heights lie between these multiples of the line
    rows: np.ndarray  # (N,) float64, ascending: contact rows that were seen
    source: str  # what it was learned from, for reports

    def height(self, row):
        """Height of a thing whose lowest pixel ends at this row; 0 above the horizon."""
        return np.maximum(self.slope * (np.asarray(row) - self.horizon), 0.0)


def fit_size_laws(examples: Mapping[int, tuple[np.ndarray, np.ndarray]], street: Street) -> dict[int, HeightModel]:
    """Learn a line for each thing of a label set.

    A class with `ENOUGH` objects has its own line; one with `SOME` has its own slope from the horizon of the others;
    one with fewer takes the slope of the others by how tall such things are in metres.

    Args:
        examples (`Mapping`): class id -> contact rows and heights, (N,) each, of its whole objects.
        street (`Street`): the things, and their metres.

    Returns:
        `dict[int, HeightModel]`: of every thing; empty where no class has enough objects.
    """
    lines = {}
    for class_id, (rows, heights) in examples.items():
        line = _theil_sen(rows, heights) if len(rows) >= ENOUGH else None
        if line is not None:
            lines[class_id] = line
    if not lines:
        return {}
    horizon = float(np.median([horizon for _, horizon in lines.values()]))
    per_metre = float(np.median([slope / street.things[i].metres for i, (slope, _) in lines.items()]))
    pooled = np.sort(np.concatenate([examples[i][0] for i in lines]))
    others = ", ".join(street.labels.names[i] for i in lines)
    laws = {}
    for class_id, thing in street.things.items():
        rows, heights = examples.get(class_id, (np.zeros(0), np.zeros(0)))
        below = rows > horizon + STEP
        if class_id in lines:
            slope, own_horizon = lines[class_id]
            source = f"{len(rows)} objects"
        elif below.sum() >= SOME:
            slope, own_horizon = float(np.median(heights[below] / (rows[below] - horizon))), horizon
            source = f"{len(rows)} objects, with the horizon of {others}"
        else:
            slope, own_horizon = per_metre * thing.metres, horizon
            source = f"the sizes of {others}: {len(rows)} objects of its own are too few"
        line = slope * (rows - own_horizon)
        ratios = heights[line > 0] / line[line > 0]
        spread = np.percentile(ratios, HEIGHT_PERCENTILES) if len(ratios) >= ENOUGH else SPREAD
        low, high = (float(np.clip(edge, *SPREAD)) for edge in spread)
        seen = np.sort(rows) if len(rows) >= SOME else pooled
        laws[class_id] = HeightModel(slope, own_horizon, (low, high), seen, source)
    return laws


def _theil_sen(rows: np.ndarray, heights: np.ndarray) -> tuple[float, float] | None:
    """Slope and horizon of the robust line; None where heights do not grow from a horizon in the frame downwards."""
    if len(rows) > MOST:
        chosen = np.linspace(0, len(rows) - 1, MOST).round().astype(int)
        rows, heights = rows[chosen], heights[chosen]
    first, second = np.triu_indices(len(rows), k=1)
    apart = np.abs(rows[first] - rows[second]) >= STEP
    if not apart.any():
        return None
    first, second = first[apart], second[apart]
    slope = float(np.median((heights[first] - heights[second]) / (rows[first] - rows[second])))
    if slope <= 0:
        return None
    horizon = float(np.median(rows - heights / slope))
    return (slope, horizon) if 0 < horizon < np.percentile(rows, HEIGHT_PERCENTILES[0]) else None


MIN_HEIGHT = 6  # pixels; smaller things have no shape to copy, and none is placed smaller
MIN_SOLID = 0.95  # share between the sides of a vehicle, above its wheels, that is its own: nothing stands before it
MIN_BASE = 0.6  # share of a vehicle's width that reaches into its lower third
MAX_HEMMED_IN = 0.3  # share of its outline that may touch other upright things, unknown pixels or the frame


@dataclass(frozen=True, eq=False)
class SourceObject:
    """A whole object of the data set's, and where it is from."""

    entry: MaskObject
    source: str  # name of its mask
    frame: tuple[int, int]  # height and width of that mask
    ground: str  # what it stood on
    against_usual: float = 1.0  # its height against what is usual for its row


@dataclass(frozen=True)
class ScenePrior:
    """What a data set teaches of its things."""

    street: Street
    donors: dict[int, list[SourceObject]]  # class id -> whole objects, in the order of the masks
    laws: dict[int, HeightModel]  # class id -> size by the row; empty where there was too little to learn from
    ground: dict[int, dict[str, float]]  # class id -> how often it stands on each kind of ground
    seen: Counter = field(default_factory=Counter)  # class id -> objects of it, whole or not


def fit_scene_prior(masks: Iterable[tuple[str, np.ndarray]], street: Street) -> ScenePrior:
    """Collect the whole objects of masks, and learn sizes and grounds from them.

    Args:
        masks (iterable of `(str, np.ndarray)`): name and class ids, (H, W) uint8, of each.
        street (`Street`): the classes.

    Returns:
        `ScenePrior`; without size laws where no class has enough whole objects.
    """
    donors: dict[int, list[SourceObject]] = {class_id: [] for class_id in street.things}
    seen: Counter = Counter()
    for name, ids in masks:
        for entry in objects_of(ids, street):
            seen[entry.class_id] += 1
            ground = ground_under(entry, ids, street)
            if ground is not None and is_whole(entry, ids, street):
                donors[entry.class_id].append(SourceObject(entry, name, ids.shape, ground))
    examples = {
        class_id: (
            np.array([(donor.entry.bottom + 1) / donor.frame[0] for donor in found]),
            np.array([donor.entry.height / donor.frame[0] for donor in found]),
        )
        for class_id, found in donors.items()
    }
    laws = fit_size_laws(examples, street)
    usual: dict[int, list[SourceObject]] = {class_id: [] for class_id in street.things}
    for class_id, law in laws.items():
        for donor, row, height in zip(donors[class_id], *examples[class_id], strict=True):
            against_usual = float(height / law.height(row)) if row > law.horizon else np.inf
            if law.spread[0] <= against_usual <= law.spread[1]:
                usual[class_id].append(replace(donor, against_usual=against_usual))
    ground = {class_id: _ground_shares(found, street.things[class_id].ground) for class_id, found in usual.items()}
    return ScenePrior(street, usual, laws, ground, seen)


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


def _ground_shares(donors: list[SourceObject], before: dict[str, float]) -> dict[str, float]:
    """How often a class stands on each kind of ground: what was seen, and `before` as if seen that often."""
    counts = Counter(donor.ground for donor in donors)
    total = len(donors) + sum(before.values())
    return {kind: (counts[kind] + weight) / total for kind, weight in before.items()}
