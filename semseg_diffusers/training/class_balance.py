"""Draws pairs so that rare classes come up more often: a class first, then a pair whose mask holds it.

Rare class sampling of DAFormer (Hoyer et al. 2022, eq. 9 and 10), as DGInStyle (Jia et al. 2024) uses it to train a
generator. Which pair is drawn is a pure function of (seed, position), like all that is random in training.
"""

import hashlib

import numpy as np
import torch

from semseg_diffusers.training.samples import CLASS, stream


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
