"""How much of each class the training masks hold, counted before the first step: for the warnings, the page, and the
sampling by class.

Reading a mask is what takes the time (7,000 of 128 x 128: 5 s), so of very large sets evenly spaced masks are counted.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.masks.statistics.counts import class_pixels_of_each, count_edges
from semseg_diffusers.training.dataset import CLASS, stream


MOST_PIXELS = 250_000_000  # that are read for the warnings alone; about 10 s
EDGE_MASKS = 500  # masks that the widths of classes are judged by


@dataclass(frozen=True)
class ClassCounts:
    """What n of the N masks of a split with C classes hold.

    Args:
        pixels (`np.ndarray`): pixels of each class in each mask, unknown last: (n, C + 1) int64.
        edge_shares (`np.ndarray`): share of each class's pixels that lie beside another class, (C,) in [0, 1], NaN for
            classes that none of the masks looked at for this holds.
        num_masks (`int`): N.
    """

    pixels: np.ndarray
    edge_shares: np.ndarray
    num_masks: int

    @property
    def is_whole(self) -> bool:
        """Whether all masks were counted."""
        return len(self.pixels) == self.num_masks

    @property
    def class_pixels(self) -> np.ndarray:
        """Pixels of each class in all masks that were counted, (C,)."""
        return self.pixels[:, :-1].sum(axis=0)

    @property
    def masks_of_class(self) -> np.ndarray:
        """How many of the masks that were counted hold each class, (C,)."""
        return (self.pixels[:, :-1] > 0).sum(axis=0)


def count_classes(pairs: PairDataset, every_mask: bool, num_workers: int = 1) -> ClassCounts:
    """Count the masks of a split.

    Args:
        pairs: the split, one pair or more.
        every_mask: count all, however long it takes; else as many as hold `MOST_PIXELS` pixels.
        num_workers: threads.

    Raises:
        ValueError: a mask cannot be read, or does not fit the label set.
    """
    num_classes, height_width = pairs.labels.num_classes, pairs.sizes[0]
    most = len(pairs) if every_mask else max(1, MOST_PIXELS // (height_width[0] * height_width[1]))
    chosen = evenly(len(pairs), most)
    pixels = class_pixels_of_each(lambda index: pairs.mask(chosen[index]), len(chosen), num_classes, num_workers)
    edges, total = np.zeros(num_classes), np.zeros(num_classes)
    for index in evenly(len(chosen), EDGE_MASKS):
        edges += count_edges(pairs.mask(chosen[index]), num_classes)
        total += pixels[index, :-1]
    shares = np.divide(edges, total, out=np.full(num_classes, np.nan), where=total > 0)
    return ClassCounts(pixels=pixels, edge_shares=shares, num_masks=len(pairs))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to count - 1, at even distances; the first and the last among them.

    Example:
        >>> evenly(3, 5), evenly(100, 4), evenly(9, 1)
        ([0, 1, 2], [0, 33, 66, 99], [0])
    """
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(most - 1, 1)) for index in range(most)]


class ClassBalance:
    """Probabilities of classes, and the pairs that count as showing each.

    Args:
        class_pixels (`np.ndarray`): pixels of each class in each mask, unknown last: (N, C + 1), as
            `statistics.class_pixels_of_each` counts them.
        temperature (`float`): T, above 0. The lower, the more the rarest classes are preferred; towards infinity all
            classes are alike.
        min_share (`float`): share of the frame, 0 to 1, that a class must fill for the pair to count as showing it.
            Where no pair reaches it, all that hold the class count.

    Raises:
        ValueError: no mask holds any class.

    Example:
        >>> balance = ClassBalance(np.array([[90, 0, 10], [60, 40, 0]]), temperature=0.5)
        >>> [round(float(p), 3) for p in balance.class_probabilities]  # the second class is the rarer one
        [0.239, 0.761]
        >>> [round(float(p), 3) for p in balance.pair_probabilities]  # and only the second pair shows it
        [0.12, 0.88]
    """

    def __init__(self, class_pixels: np.ndarray, temperature: float, min_share: float = 0.0):
        pixels, frames = class_pixels[:, :-1], class_pixels.sum(axis=1)
        totals = pixels.sum(axis=0)  # (C,)
        if not totals.any():
            raise ValueError(
                "--class_balanced_sampling: no training mask holds a class, all of them are unknown everywhere. Look "
                "at the data set with `semseg-diffusers check`."
            )
        frequencies = totals / totals.sum()
        # DAFormer, eq. 10: p_c ~ exp((1 - f_c) / T); classes that no pair shows cannot be drawn
        logits = np.where(totals > 0, (1 - frequencies) / temperature, -np.inf)
        weights = np.exp(logits - logits.max())
        self.class_probabilities = weights / weights.sum()  # (C,)
        self.pairs_of_class = []
        for index in range(pixels.shape[1]):
            holding = np.flatnonzero(pixels[:, index] > 0)
            showing = np.flatnonzero((pixels[:, index] > 0) & (pixels[:, index] >= min_share * frames))
            self.pairs_of_class.append(showing if len(showing) else holding)
        self._thresholds = np.cumsum(self.class_probabilities)
        self._last = int(np.flatnonzero(self.class_probabilities)[-1])  # rounding leaves the sum a little off 1
        self.digest = hashlib.sha256(np.ascontiguousarray(class_pixels, dtype="<i8").tobytes()).hexdigest()

    @property
    def pair_probabilities(self) -> np.ndarray:
        """How likely each pair is drawn at one position, (N,)."""
        result = np.zeros(1 + max(int(pairs[-1]) for pairs in self.pairs_of_class if len(pairs)))
        for probability, pairs in zip(self.class_probabilities, self.pairs_of_class, strict=True):
            result[pairs] += probability / max(len(pairs), 1)
        return result

    def draw(self, seed: int, position: int) -> int:
        """The index of the pair at a position of the run."""
        generator = stream(seed, CLASS, position)
        at, within = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        index = min(int(np.searchsorted(self._thresholds, at, side="right")), self._last)
        pairs = self.pairs_of_class[index]
        return int(pairs[int(within * len(pairs))])
