"""How a training uses synthetic pairs: their share of each batch, how often each is seen, and labels that an averaged
network reads again. 1:1 batches and hard masks are FreeMask's (Yang et al. 2023), labels of a Mean Teacher SENSE's.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, autocast, compute_logits


# As shares of a training's steps: what a teacher averages, and when it starts to read labels.
TEACHER_SPAN, RELABEL_START = 0.05, 0.25


@dataclass(frozen=True)
class SyntheticPairs:
    """Which pairs of a training are synthetic, and how it uses them."""

    is_synthetic: torch.Tensor  # bool (N,), of each pair
    share: float | None = None  # of each batch that is synthetic; None: as they come in the pool
    weights: torch.Tensor | None = None  # float64 (N,), how often each is seen; 1: once an epoch; None: all are
    relabel: float | None = None  # confidence from which a teacher's class replaces a label; None: labels stay


def shuffled_batches(
    num_pairs: int, batch_size: int, generator: torch.Generator, weights: torch.Tensor | None = None
) -> Iterator[list[int]]:
    """Yield full batches of indices without end; each epoch has its own order, and batches may span two epochs.

    With weights (N,), whose mean is 1, an epoch has a pair as often as its weight says, rounded up or down at random:
    systematic sampling, which keeps the length of an epoch and each pair of weight 1.
    """
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            epoch = torch.randperm(num_pairs, generator=generator)
            if weights is not None:
                ends = (weights[epoch].cumsum(0) + torch.rand(1, generator=generator)).floor().long()
                ends[-1] = num_pairs  # the sum may be rounded
                epoch = epoch.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
                epoch = epoch[torch.randperm(num_pairs, generator=generator)]
            order += epoch.tolist()
        yield order[:batch_size]
        del order[:batch_size]


def mixed_batches(pairs: SyntheticPairs, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches as `shuffled_batches`; with a share, real and synthetic pairs have epochs of their own."""
    if pairs.share is None:
        yield from shuffled_batches(len(pairs.is_synthetic), batch_size, generator, pairs.weights)
        return
    num_synthetic = round(pairs.share * batch_size)
    real, synthetic = (flags.nonzero()[:, 0] for flags in (~pairs.is_synthetic, pairs.is_synthetic))
    weights = None if pairs.weights is None else pairs.weights[synthetic]
    of_real = shuffled_batches(len(real), batch_size - num_synthetic, generator)
    of_synthetic = shuffled_batches(len(synthetic), num_synthetic, generator, weights)
    for ours, theirs in zip(of_real, of_synthetic, strict=True):
        yield [*real[ours].tolist(), *synthetic[theirs].tolist()]


class Teacher:
    """The average of a network over its last steps, which reads the labels of synthetic pairs again.

    Weights and statistics are averaged (Mean Teacher, Tarvainen and Valpola 2017): a plain mean at first, so that
    initial weights have no more part in it than others, then with a constant rate. The teacher reads images before
    augmentation, and in evaluation mode.

    Args:
        network: that is trained.
        preprocessing: of the network.
        pairs: the confidence, and which pairs are synthetic.
        max_train_steps: of the training.
        mixed_precision: "no" or "bf16".
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Preprocessing,
        pairs: SyntheticPairs,
        max_train_steps: int,
        mixed_precision: str = "no",
    ):
        assert pairs.relabel is not None, "expected a confidence"
        self.network = copy.deepcopy(network).eval()
        self.start = max(1, round(RELABEL_START * max_train_steps))  # steps without it
        self.num_read = self.num_changed = 0  # pixels of synthetic images
        self._preprocessing, self._mixed_precision = preprocessing, mixed_precision
        self._is_synthetic, self._confidence = pairs.is_synthetic, pairs.relabel
        self._span, self._updates = max(1, round(TEACHER_SPAN * max_train_steps)), 0

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        """Add the network after a step to the average."""
        self._updates += 1
        rate = 1 / min(self._updates, self._span)
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            mean.copy_(mean + rate * (value - mean))

    @torch.no_grad()
    def relabel(self, indices: Sequence[int], images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the masks of a batch, with the teacher's class at each synthetic pixel of which it is confident.

        All other pixels keep their label, also if it is unknown: what a mask has of rare classes is what a teacher is
        rarely confident of.

        Args:
            indices: of the pairs.
            images: uint8 (B, 3, H, W), on the CPU.
            masks: int64 (B, H, W).
        """
        chosen = self._is_synthetic[list(indices)]
        if not chosen.any():
            return masks
        before = masks[chosen]  # (S, H, W)
        device = next(self.network.parameters()).device
        with autocast(device, self._mixed_precision):
            pixel_values = self._preprocessing(images[chosen].to(device))
            logits = compute_logits(self.network, pixel_values, (masks.shape[1], masks.shape[2]))
        confidence, classes = logits.softmax(1).max(1)  # (S, H, W)
        after = torch.where((confidence >= self._confidence).cpu(), classes.cpu(), before)
        self.num_read += before.numel()
        self.num_changed += int((after != before).sum())
        masks = masks.clone()
        masks[chosen] = after
        return masks
