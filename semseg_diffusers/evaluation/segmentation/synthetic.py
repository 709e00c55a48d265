"""How a training uses synthetic pairs beside real ones: their share of each batch.
FreeMask (Yang et al. 2023) has as many synthetic as real pairs in a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SyntheticPairs:
    """Which pairs of a training are synthetic, and how it uses them."""

    is_synthetic: torch.Tensor  # bool (N,), of each pair
    share: float | None = None  # of each batch that is synthetic; None: as they come in the pool


def shuffled_batches(num_pairs: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield full batches of indices without end; each epoch has its own order, and batches may span two epochs."""
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(num_pairs, generator=generator).tolist()
        yield order[:batch_size]
        del order[:batch_size]


def mixed_batches(pairs: SyntheticPairs, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches as `shuffled_batches`; with a share, real and synthetic pairs have epochs of their own."""
    if pairs.share is None:
        yield from shuffled_batches(len(pairs.is_synthetic), batch_size, generator)
        return
    num_synthetic = round(pairs.share * batch_size)
    real, synthetic = (chosen.nonzero()[:, 0].tolist() for chosen in (~pairs.is_synthetic, pairs.is_synthetic))
    of_real = shuffled_batches(len(real), batch_size - num_synthetic, generator)
    of_synthetic = shuffled_batches(len(synthetic), num_synthetic, generator)
    for ours, theirs in zip(of_real, of_synthetic, strict=True):
        yield [*(real[index] for index in ours), *(synthetic[index] for index in theirs)]
