"""How large a thing is at which row of the frame: on flat ground its height grows in a line with its contact row.

    height = slope (row - horizon)        (pinhole camera: slope = metres of the thing / metres of the camera)

The line is fitted robustly (Theil 1950, Sen 1968: the median of the slopes between all pairs), so that a child, a
truck among cars or a wrong label does not bend it. Rows and heights are shares of the frame's height."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from semseg_diffusers.data.editing.street import Street


ENOUGH = 20  # objects that a line of its own needs
SOME = 5  # objects that a slope needs, where the horizon comes from other classes
MOST = 500  # objects that the pairs are made of
STEP = 0.02  # rows of a pair are at least this far apart
SPREAD = (0.75, 1.33)  # height against the line, where there are too few objects to tell; and the widest that is used
TENTHS = (10, 90)  # percentiles of the heights against the line that count as usual


@dataclass(frozen=True, eq=False)
class SizeLaw:
    """The usual height of a class by its contact row."""

    slope: float
    horizon: float  # row, where the height would be 0
    spread: tuple[float, float]  # usual heights lie between these multiples of the line
    rows: np.ndarray  # (N,) float64, ascending: contact rows that were seen
    source: str  # what it was learned from, for reports

    def height(self, row):
        """Height of a thing whose lowest pixel ends at this row; 0 above the horizon."""
        return np.maximum(self.slope * (np.asarray(row) - self.horizon), 0.0)


def fit_size_laws(examples: Mapping[int, tuple[np.ndarray, np.ndarray]], street: Street) -> dict[int, SizeLaw]:
    """Learn a line for each thing of a label set.

    A class with `ENOUGH` objects has its own line; one with `SOME` has its own slope from the horizon of the others;
    one with fewer takes the slope of the others by how tall such things are in metres.

    Args:
        examples (`Mapping`): class id -> contact rows and heights, (N,) each, of its whole objects.
        street (`Street`): the things, and their metres.

    Returns:
        `dict[int, SizeLaw]`: of every thing; empty where no class has enough objects.
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
        spread = np.percentile(ratios, TENTHS) if len(ratios) >= ENOUGH else SPREAD
        low, high = (float(np.clip(edge, *SPREAD)) for edge in spread)
        seen = np.sort(rows) if len(rows) >= SOME else pooled
        laws[class_id] = SizeLaw(slope, own_horizon, (low, high), seen, source)
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
    return (slope, horizon) if 0 < horizon < np.percentile(rows, TENTHS[0]) else None
