"""Class counts of the training masks, for warnings, report, class-balanced sampling (DAFormer, Hoyer et al. 2022) and
label diffusion (SCDM, Ko et al. 2024).

Reading masks takes the time (7,000 of 128 x 128: 5 s), so of very large datasets evenly spaced masks are counted.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.masks.statistics.counts import class_pixels_of_each, count_edges
from semseg_diffusers.reports.run_folder import evenly
from semseg_diffusers.training.dataset import CLASS, make_generator


MOST_PIXELS = 250_000_000  # read for the warnings alone; about 10 s
EDGE_MASKS = 500  # masks used to judge the widths of classes


@dataclass(frozen=True)
class ClassCounts:
    """Class counts of n of the N masks of a split with C classes."""

    pixels: np.ndarray  # of each class in each mask, unknown last: (n, C + 1) int64
    edge_shares: np.ndarray  # share of each class's pixels beside another class, (C,); NaN where none
    num_masks: int  # N

    @property
    def is_complete(self) -> bool:
        """Return whether all masks were counted."""
        return len(self.pixels) == self.num_masks

    @property
    def class_pixels(self) -> np.ndarray:
        """Return the pixels of each class in all counted masks, (C,)."""
        return self.pixels[:, :-1].sum(axis=0)

    @property
    def masks_of_class(self) -> np.ndarray:
        """Return how many counted masks contain each class, (C,)."""
        return (self.pixels[:, :-1] > 0).sum(axis=0)


def count_classes(pairs: PairDataset, every_mask: bool, num_workers: int = 1) -> ClassCounts:
    """Count the masks of a split with `num_workers` threads: every one, or about `MOST_PIXELS` pixels."""
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


class ClassBalance:
    """Probabilities of classes, and the pairs that show each.

    `class_pixels` are those of each mask, unknown last, (N, C + 1). A lower `temperature` prefers the rarest classes
    more. `min_share` of the frame must be of a class for a pair to show it; if no pair reaches it, all that contain
    the class do.
    """

    def __init__(self, class_pixels: np.ndarray, temperature: float, min_share: float = 0.0):
        pixels, frames = class_pixels[:, :-1], class_pixels.sum(axis=1)
        totals = pixels.sum(axis=0)  # (C,)
        if not totals.any():
            raise ValueError(
                "--class_balanced_sampling: no training mask has a labelled pixel; all are unknown everywhere. Run "
                "`semseg-diffusers check` on the dataset."
            )
        frequencies = totals / totals.sum()
        # DAFormer, eq. 10: p_c ~ exp((1 - f_c) / T); classes in no pair cannot be sampled
        logits = np.where(totals > 0, (1 - frequencies) / temperature, -np.inf)
        weights = np.exp(logits - logits.max())
        self.class_probabilities = weights / weights.sum()  # (C,)
        self.pairs_of_class = []
        for index in range(pixels.shape[1]):
            holding = np.flatnonzero(pixels[:, index] > 0)
            showing = np.flatnonzero((pixels[:, index] > 0) & (pixels[:, index] >= min_share * frames))
            self.pairs_of_class.append(showing if len(showing) else holding)
        self._thresholds = np.cumsum(self.class_probabilities)
        self._last = int(np.flatnonzero(self.class_probabilities)[-1])  # the sum may differ from 1 by rounding
        self.digest = hashlib.sha256(np.ascontiguousarray(class_pixels, dtype="<i8").tobytes()).hexdigest()

    def sample_pair(self, seed: int, position: int) -> int:
        """Return the index of the pair at a position of the run."""
        generator = make_generator(seed, CLASS, position)
        at, within = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        index = min(int(np.searchsorted(self._thresholds, at, side="right")), self._last)
        pairs = self.pairs_of_class[index]
        return int(pairs[int(within * len(pairs))])


def class_rarity(class_pixels: np.ndarray) -> list[float]:
    """Return psi of each class for label diffusion, to four digits: pixels of the most frequent class over its own.

    A class in no mask counts as the rarest one that occurs.

    Example:
        >>> class_rarity(np.array([[90, 3, 0, 7], [90, 0, 0, 10]]))
        [1.0, 60.0, 60.0]
    """
    pixels = class_pixels[:, :-1].sum(axis=0)
    if not pixels.any():
        raise ValueError("--label_diffusion: no training mask has a labelled pixel; all are unknown everywhere.")
    rarest = pixels[pixels > 0].min()
    return [float(f"{pixels.max() / max(count, rarest):.4g}") for count in pixels]
