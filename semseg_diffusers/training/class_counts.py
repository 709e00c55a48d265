"""How much of each class the training masks hold, counted before the first step: for the warnings, the page, and the
sampling by class.

Reading a mask is what takes the time (7,000 of 128 x 128: 5 s), so of very large sets evenly spaced masks are counted.
"""

from dataclasses import dataclass

import numpy as np

from semseg_diffusers.data.loading import PairDataset
from semseg_diffusers.data.statistics.counts import class_pixels_of_each, count_edges


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
