"""How much samples of one mask differ, beside how much samples of different masks and different real photos do.
Distances are cosine distances of features: within a mask a generator that ignores its noise comes down to 0."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Diversity:
    """Mean cosine distances between features, in [0, 2]; 0 for equal images."""

    within_masks: float  # pairs of samples of one mask, averaged over masks
    between_masks: float | None  # pairs of samples of different masks; None for one mask
    real_between: float | None  # pairs of real photos; None for fewer than two
    ratio: float | None  # within / between; 1: the mask decides nothing, 0: it decides everything
    num_masks: int  # with two samples or more
    samples_per_mask: int  # the fewest among these


def why_no_diversity(masks: Sequence[str]) -> str | None:
    """What stands in the way of `diversity` for images of these masks (one name an image); None where nothing does."""
    if any(count > 1 for count in Counter(masks).values()):
        return None
    return (
        f"diversity compares samples of one mask; {len(masks)} images are of {len(set(masks))} masks, one each. "
        "Generate two or more of each: --num_images_per_mask 2."
    )


def diversity(features: torch.Tensor, masks: Sequence[str], real: torch.Tensor | None = None) -> Diversity:
    """Compare samples of one mask with samples of others.

    Cosine, not Euclidean: DINOv2's features are compared by it in retrieval, and it has the same range for every
    network. The numbers of two networks still differ, so read `within_masks` beside the other two and by the ratio.

    Args:
        features: (N, D) of the generated images.
        masks: name of each image's mask, N of them; masks of one sample count for `between_masks` only.
        real: (R, D) of real photos, each of another scene.

    Raises:
        ValueError: where no mask has two samples, or the numbers or widths do not match.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> found = diversity(features, ["a", "a", "b", "b"])
        >>> found.within_masks, found.between_masks, found.ratio
        (0.0, 1.0, 0.0)
    """
    if len(features) != len(masks):
        raise ValueError(f"{len(features)} images and {len(masks)} names of masks; wanted one name an image")
    reason = why_no_diversity(masks)
    if reason is not None:
        raise ValueError(reason)
    if real is not None and real.shape[1] != features.shape[1]:
        raise ValueError(
            f"{features.shape[1]} features of the generated and {real.shape[1]} of the real images: extract both with "
            "one network"
        )
    rows: dict[str, list[int]] = {}
    for index, mask in enumerate(masks):
        rows.setdefault(mask, []).append(index)
    directions = unit(features)
    groups = [directions[indices] for indices in rows.values()]
    repeated = [group for group in groups if len(group) > 1]
    within = sum(_mean_distance(group) for group in repeated) / len(repeated)

    between = None
    if len(groups) > 1:
        inside = [(_num_pairs(len(group)), _mean_distance(group)) for group in repeated]
        outside = _num_pairs(len(directions)) - sum(count for count, _ in inside)
        total = _num_pairs(len(directions)) * _mean_distance(directions)
        between = max(0.0, (total - sum(count * mean for count, mean in inside)) / outside)
    return Diversity(
        within_masks=within,
        between_masks=between,
        real_between=_mean_distance(unit(real)) if real is not None and len(real) > 1 else None,
        ratio=within / between if between else None,
        num_masks=len(repeated),
        samples_per_mask=min(len(group) for group in repeated),
    )


def unit(features: torch.Tensor) -> torch.Tensor:
    """Rows of features (N, D) at length 1, float64 on CPU; cosine distance is then half the squared distance."""
    return torch.nn.functional.normalize(features.detach().cpu().double(), dim=1)


def _num_pairs(count: int) -> int:
    return count * (count - 1) // 2


def _mean_distance(directions: torch.Tensor) -> float:
    """Mean cosine distance over all pairs of unit rows (n, D): |sum|^2 = n + 2 * sum of the pairs' cosines."""
    count = len(directions)
    cosines = (directions.sum(0).square().sum().item() - directions.square().sum().item()) / 2
    return max(0.0, 1 - cosines / _num_pairs(count))  # rounding can come out below 0
