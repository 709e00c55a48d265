"""Means, paired differences and their intervals over seeds: Student's t, as in any textbook on paired samples.
An interval over n seeds speaks of first weights, order of data and choice of images, and of nothing else."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


CONFIDENCE = 0.95
BETTER, WITHIN, WORSE, UNKNOWN = "better", "within noise", "worse", "unknown"


@dataclass(frozen=True)
class Spread:
    """What one figure came to over seeds."""

    mean: float
    std: float | None  # of the sample (n - 1); None for one seed
    values: list[float]  # in the order of the seeds


@dataclass(frozen=True)
class Difference:
    """How much one figure differs between two variants, seed by seed."""

    mean: float
    low: float | None  # ends of the interval; None for one seed
    high: float | None
    values: list[float]
    reading: str  # BETTER, WITHIN, WORSE or UNKNOWN


def spread(values: Sequence[float]) -> Spread:
    """Summarize a figure over seeds.

    Example:
        >>> spread([0.5, 0.25]).mean
        0.375
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, list(values))


def paired_difference(values: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """Compare two variants that share their seeds.

    Args:
        values: a figure of the first, one for each seed; higher is better.
        others: the same figure of the second, seeds in the same order.
        confidence: of the interval.

    Example:
        >>> found = paired_difference([0.50, 0.52, 0.51], [0.40, 0.41, 0.42])
        >>> f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})", found.reading
        ('0.100 (0.075 to 0.125)', 'better')
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None, differences, UNKNOWN)
    half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * statistics.stdev(differences)
    half = float(half) / math.sqrt(len(differences))
    low, high = mean - half, mean + half
    reading = BETTER if low > 0 else WORSE if high < 0 else WITHIN
    return Difference(mean, low, high, differences, reading)
