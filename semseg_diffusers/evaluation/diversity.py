"""Diversity of samples of the same mask, compared with samples of different masks and with real images.

Measured by cosine distances of features; a generator that ignores its noise gets 0 within a mask.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch.nn.functional import normalize

from semseg_diffusers.evaluation.fidelity import check_features


@dataclass(frozen=True)
class Diversity:
    """Mean cosine distances between features, in [0, 2]; 0 for equal images."""

    within_masks: float  # pairs of samples of the same mask, averaged over masks
    between_masks: float | None  # pairs of samples of different masks; None for one mask
    real_between: float | None  # pairs of real images; None for fewer than two
    ratio: float | None  # within / between; 1: the mask determines nothing, 0: everything
    num_masks: int  # with two or more samples
    samples_per_mask: int  # the minimum of these masks


def why_no_diversity(masks: Sequence[str]) -> str | None:
    """Return why `diversity` cannot be measured for images of these masks (one name per image); None if it can."""
    if any(count > 1 for count in Counter(masks).values()):
        return None
    return (
        f"diversity compares samples of the same mask; {len(masks)} images are of {len(set(masks))} masks, one each. "
        "Generate two or more per mask: --num_images_per_mask 2."
    )


def diversity(features: torch.Tensor, masks: Sequence[str], real: torch.Tensor | None = None) -> Diversity:
    """Compare samples of the same mask with samples of other masks.

    The cosine distance has the same range for every network and is the usual one for DINOv2's features. Values still
    differ between networks, so compare `within_masks` with the other two, or use the ratio.

    Args:
        features: (N, D) of the generated images.
        masks: N names of the images' masks; masks with a single sample count for `between_masks` only.
        real: (R, D) of real images, each of another scene.

    Raises:
        ValueError: no mask has two samples, or the numbers or widths do not match.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> found = diversity(features, ["a", "a", "b", "b"])
        >>> found.within_masks, found.between_masks, found.ratio
        (0.0, 1.0, 0.0)
    """
    if len(features) != len(masks):
        raise ValueError(f"expected one mask name per image; got {len(features)} images and {len(masks)} names.")
    if (reason := why_no_diversity(masks)) is not None:
        raise ValueError(reason)
    sets = {"generated": features} if real is None else {"generated": features, "real": real}
    directions, *of_real = (normalize(rows, dim=1) for rows in check_features(sets, minimum=1))
    rows: dict[str, list[int]] = {}
    for index, mask in enumerate(masks):
        rows.setdefault(mask, []).append(index)
    repeated = [directions[indices] for indices in rows.values() if len(indices) > 1]
    within = sum(_mean_distance(group) for group in repeated) / len(repeated)

    between = None
    if len(rows) > 1:
        inside = [(comb(len(group), 2), _mean_distance(group)) for group in repeated]
        num_pairs = comb(len(directions), 2)
        total = num_pairs * _mean_distance(directions) - sum(count * mean for count, mean in inside)
        between = max(0.0, total / (num_pairs - sum(count for count, _ in inside)))
    return Diversity(
        within_masks=within,
        between_masks=between,
        real_between=_mean_distance(of_real[0]) if of_real and len(of_real[0]) > 1 else None,
        ratio=within / between if between else None,
        num_masks=len(repeated),
        samples_per_mask=min(len(group) for group in repeated),
    )


def _mean_distance(directions: torch.Tensor) -> float:
    """Return the mean cosine distance over all pairs of unit rows (n, D): |sum|^2 = n + 2 * sum of cosines."""
    cosines = (directions.sum(0).square().sum().item() - directions.square().sum().item()) / 2
    return max(0.0, 1 - cosines / comb(len(directions), 2))  # rounding can give values below 0
