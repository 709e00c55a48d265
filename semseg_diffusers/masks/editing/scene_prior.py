"""What a dataset shows about its objects: sources to copy, their usual heights and the ground below them.

On flat ground the height of an object grows linearly with the row of its contact point:

    height = slope (row - horizon)        (pinhole camera: slope = metres of the object / metres of the camera)

The line is fitted robustly (Theil 1950, Sen 1968: the median of the slopes between all pairs), so that a child, a
truck among cars or a wrong label does not bend it. Rows and heights are shares of the frame's height.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.masks.editing.objects import MaskObject, Street, objects_of
from semseg_diffusers.utils.progress import progress_bar


MIN_OBJECTS = 20  # for a line of its own
MIN_OBJECTS_FOR_SLOPE = 5  # for a slope of its own, with the horizon of other classes
MAX_OBJECTS = 500  # whose pairs are compared
MIN_ROW_DISTANCE = 0.02  # between the rows of a pair
DEFAULT_SPREAD = (0.75, 1.33)  # usual heights against the line with too few objects; also the widest range used
HEIGHT_PERCENTILES = (10, 90)  # of the heights against the line; those between are usual
MIN_HEIGHT = 6  # pixels; smaller objects have no shape worth copying
MIN_SOLID = 0.95  # share between the sides of a vehicle, above its wheels, that is its own: nothing occludes it
MIN_BASE = 0.6  # share of a vehicle's width that reaches into its lower third
MAX_HEMMED_IN = 0.3  # share of the outline that may touch other upright objects or unknown pixels


@dataclass(frozen=True, eq=False)
class HeightModel:
    """The usual height of a class by its contact row."""

    slope: float
    horizon: float  # row at which the height would be 0
    spread: tuple[float, float]  # usual heights are between these multiples of the line
    rows: np.ndarray  # (N,) float64, ascending: contact rows in the dataset
    source: str  # what it was fitted to, for reports

    def height(self, row):
        """Return the height of an object whose lowest pixel ends at this row; 0 above the horizon."""
        return np.maximum(self.slope * (np.asarray(row) - self.horizon), 0.0)


@dataclass(frozen=True, eq=False)
class SourceObject:
    """A complete object of the dataset that can be copied."""

    entry: MaskObject
    source: str  # name of its mask
    row: float  # lower end of its lowest pixel
    height: float
    ground: str  # kind of ground below it
    relative_height: float = 1.0  # against the usual height at its row


@dataclass(frozen=True)
class ScenePrior:
    """What a dataset shows about its objects."""

    street: Street
    sources: dict[int, list[SourceObject]]  # class id -> complete objects of usual height, in the order of the masks
    height_models: dict[int, HeightModel]  # by class id; empty if no class has enough objects
    ground: dict[int, dict[str, float]]  # class id -> how often it is on each kind of ground
    seen: Counter = field(default_factory=Counter)  # class id -> number of objects, complete or not
    complete: Counter = field(default_factory=Counter)  # class id -> number of complete ones on their ground


def fit_dataset_prior(pairs: PairDataset, most: int, show_progress: bool = False) -> ScenePrior:
    """Fit the prior to at most `most` masks of a dataset, evenly spaced."""
    step = max(1, len(pairs) / most)
    chosen = [int(k * step) for k in range(min(len(pairs), most))]
    bar = progress_bar(chosen, desc="fitting", unit="mask", disable=not show_progress)
    return fit_scene_prior(((pairs.stems[i], pairs.mask(i)) for i in bar), Street.of(pairs.labels))


def fit_scene_prior(masks: Iterable[tuple[str, np.ndarray]], street: Street) -> ScenePrior:
    """Collect the complete objects of masks and fit heights and grounds to them.

    Args:
        masks: name and class ids, (H, W) uint8, of each mask.
        street: the roles of the classes.

    Returns:
        `ScenePrior`; without height models if no class has enough complete objects.
    """
    complete: dict[int, list[SourceObject]] = {class_id: [] for class_id in street.things}
    seen: Counter = Counter()
    for name, ids in masks:
        for entry in objects_of(ids, street):
            seen[entry.class_id] += 1
            kind = ground_under(entry, ids, street)
            if kind is not None and is_whole(entry, ids, street):
                row, height = (entry.bottom + 1) / ids.shape[0], entry.height / ids.shape[0]
                complete[entry.class_id].append(SourceObject(entry, name, row, height, kind))
    examples = {
        class_id: (np.array([one.row for one in found]), np.array([one.height for one in found]))
        for class_id, found in complete.items()
    }
    height_models = fit_height_models(examples, street)
    sources: dict[int, list[SourceObject]] = {class_id: [] for class_id in street.things}
    for class_id, model in height_models.items():
        for source in complete[class_id]:
            relative = float(source.height / model.height(source.row)) if source.row > model.horizon else 0.0
            if model.spread[0] <= relative <= model.spread[1]:
                sources[class_id].append(replace(source, relative_height=relative))
    ground = {}
    for class_id, thing in street.things.items():  # observed counts plus pseudo-counts, of the kinds that there are
        weights = {kind: n for kind, n in thing.ground.items() if kind in street.ground.values()} or thing.ground
        counts = Counter(source.ground for source in sources[class_id])
        total = len(sources[class_id]) + sum(weights.values())
        ground[class_id] = {kind: (counts[kind] + weight) / total for kind, weight in weights.items()}
    whole = Counter({class_id: len(found) for class_id, found in complete.items()})
    return ScenePrior(street, sources, height_models, ground, seen, whole)


def fit_height_models(examples: Mapping[int, tuple[np.ndarray, np.ndarray]], street: Street) -> dict[int, HeightModel]:
    """Fit a line to the heights of each class of things, if any has enough of them.

    `examples` are class id -> contact rows and heights, (N,) each. With fewer than `MIN_OBJECTS` the horizon is that
    of the others; with fewer than `MIN_OBJECTS_FOR_SLOPE` the slope too, scaled by the usual height in metres.
    """
    fits = ((class_id, _theil_sen(rows, heights)) for class_id, (rows, heights) in examples.items())
    lines = {class_id: line for class_id, line in fits if line is not None}
    if not lines:
        return {}
    horizon = float(np.median([horizon for _, horizon in lines.values()]))
    per_metre = float(np.median([slope / street.things[i].metres for i, (slope, _) in lines.items()]))
    pooled = np.sort(np.concatenate([examples[i][0] for i in lines]))
    others = ", ".join(street.labels.names[i] for i in lines)
    models = {}
    for class_id, thing in street.things.items():
        rows, heights = examples.get(class_id, (np.zeros(0), np.zeros(0)))
        below = rows > horizon + MIN_ROW_DISTANCE
        if class_id in lines:
            slope, own_horizon = lines[class_id]
            source = f"{len(rows)} objects"
        elif below.sum() >= MIN_OBJECTS_FOR_SLOPE:
            slope, own_horizon = float(np.median(heights[below] / (rows[below] - horizon))), horizon
            source = f"{len(rows)} objects, with the horizon of {others}"
        else:
            slope, own_horizon = per_metre * thing.metres, horizon
            source = f"the sizes of {others}: {len(rows)} objects of its own are too few"
        usual = slope * (rows - own_horizon)
        ratios = heights[usual > 0] / usual[usual > 0]
        spread = np.percentile(ratios, HEIGHT_PERCENTILES) if len(ratios) >= MIN_OBJECTS else DEFAULT_SPREAD
        low, high = (float(np.clip(edge, *DEFAULT_SPREAD)) for edge in spread)
        seen = np.sort(rows) if len(rows) >= MIN_OBJECTS_FOR_SLOPE else pooled
        models[class_id] = HeightModel(slope, own_horizon, (low, high), seen, source)
    return models


def _theil_sen(rows: np.ndarray, heights: np.ndarray) -> tuple[float, float] | None:
    """Return slope and horizon of the robust line; None for few objects, or heights that grow from no horizon."""
    if len(rows) < MIN_OBJECTS:
        return None
    if len(rows) > MAX_OBJECTS:
        chosen = np.linspace(0, len(rows) - 1, MAX_OBJECTS).round().astype(int)
        rows, heights = rows[chosen], heights[chosen]
    first, second = np.triu_indices(len(rows), k=1)
    apart = np.abs(rows[first] - rows[second]) >= MIN_ROW_DISTANCE  # nearly equal rows say little
    if not apart.any():
        return None
    first, second = first[apart], second[apart]
    slope = float(np.median((heights[first] - heights[second]) / (rows[first] - rows[second])))
    if slope <= 0:
        return None
    horizon = float(np.median(rows - heights / slope))
    return (slope, horizon) if 0 < horizon < np.percentile(rows, HEIGHT_PERCENTILES[0]) else None


def is_whole(entry: MaskObject, ids: np.ndarray, street: Street) -> bool:
    """Return whether an object looks like a single, unoccluded thing: by its proportions, its outline, the frame."""
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
        from_left = np.logical_or.accumulate(upper, axis=1)
        from_right = np.logical_or.accumulate(upper[:, ::-1], axis=1)[:, ::-1]
        if upper.sum() < MIN_SOLID * (from_left & from_right).sum() or lower.any(axis=0).mean() < MIN_BASE:
            return False
    box = slice(entry.top - 1, entry.bottom + 2), slice(entry.left - 1, entry.right + 2)
    inside = np.pad(entry.shape, 1)
    around = ids[box][ndimage.binary_dilation(inside) & ~inside]
    hemmed_in = np.isin(around, street.standing) | (around == street.labels.ignore_index)
    return bool(hemmed_in.mean() <= MAX_HEMMED_IN)


def ground_under(entry: MaskObject, ids: np.ndarray, street: Street) -> str | None:
    """Return the kind of ground under most of an object's feet; None if none of it suits the class."""
    rows, columns = entry.feet()
    below = ids[np.minimum(rows + 1, ids.shape[0] - 1), columns]
    kinds = Counter(street.ground[i] for i in below.tolist() if i in street.ground)
    if not kinds:
        return None
    kind, count = kinds.most_common(1)[0]
    return kind if kind in street.things[entry.class_id].ground and count >= 0.6 * len(rows) else None
