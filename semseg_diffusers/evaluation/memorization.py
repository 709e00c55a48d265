"""Memorization: distances of generated images to their nearest training images, compared with held-out real images.

Driving datasets are cut from video, so a held-out image can be a few frames from a training image: only distances
smaller than those of held-out images are evidence (as in the checks of Stein et al. 2023, arXiv:2306.04675).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from semseg_diffusers.evaluation.fidelity import check_features
from semseg_diffusers.generation.near_copies import nearest_rows, nearest_thumbnails


PERCENTILE = 1  # of held-out images' distances; without memorization about this share of images is closer
# (N, D) and (M, D) -> of each row the distance to the nearest reference (N,), its index (N,), whether mirrored (N,)
Search = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Match:
    """A generated image and its nearest training image."""

    image: str
    train_stem: str
    distance: float
    mirrored: bool  # nearest as its mirror image, which training uses too


@dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training image, of generated and of held-out real images."""

    generated_median: float
    real_median: float
    threshold: float  # the 1st percentile of the real images' distances
    num_closer: int  # generated images closer than the threshold
    share_closer: float
    closest: tuple[Match, ...]  # by distance, then by name
    distances: dict[str, list[float]]  # of all "generated" and held-out "real" images, ascending


def nearest_features(
    images: torch.Tensor, references: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the nearest reference of each image by cosine distance, in [0, 2], as in `diversity`; see `Search`."""
    squared, indices = nearest_rows(normalize(images, dim=1), normalize(references, dim=1))
    return 0.5 * squared, indices, torch.zeros(len(indices), dtype=torch.bool)


def nearest(
    generated: torch.Tensor,
    names: Sequence[str],
    train: torch.Tensor,
    train_stems: Sequence[str],
    held_out: torch.Tensor,
    num_closest: int = 16,
    search: Search = nearest_features,
) -> Neighbours:
    """Find the nearest training image of each generated and of each held-out image.

    Args:
        generated: (N, D) features of generated images.
        names: N names.
        train: (M, D) features of the training images.
        train_stems: M names.
        held_out: (R, D) features of other real images, at the same resolution.
        num_closest: number of closest pairs to return.
        search: finds the nearest rows; by default by cosine distance, in [0, 2].

    Raises:
        ValueError: an empty set, another number of names, or features of different width.
    """
    sets = {"generated": generated, "training": train, "held-out real": held_out}
    generated, train, held_out = check_features(sets, minimum=1)
    if (len(names), len(train_stems)) != (len(generated), len(train)):
        raise ValueError(
            f"expected one name per image; got {len(names)} names of {len(generated)} generated images and "
            f"{len(train_stems)} stems of {len(train)} training images."
        )
    real, *_ = search(held_out, train)
    distances, indices, mirrored = search(generated, train)
    threshold = real.quantile(PERCENTILE / 100).item()
    num_closer = int((distances < threshold).sum())
    pairs = zip(names, distances.tolist(), indices.tolist(), mirrored.tolist(), strict=True)
    matches = [Match(name, train_stems[index], distance, flip) for name, distance, index, flip in pairs]
    return Neighbours(
        generated_median=distances.quantile(0.5).item(),
        real_median=real.quantile(0.5).item(),
        threshold=threshold,
        num_closer=num_closer,
        share_closer=num_closer / len(names),
        closest=tuple(sorted(matches, key=lambda match: (match.distance, match.image))[:num_closest]),
        distances={"generated": sorted(distances.tolist()), "real": sorted(real.tolist())},
    )


def nearest_by_pixels(
    generated: torch.Tensor,
    names: Sequence[str],
    train: torch.Tensor,
    train_stems: Sequence[str],
    held_out: torch.Tensor,
    num_closest: int = 16,
) -> Neighbours:
    """Find the nearest training image by (N, 1024) `thumbnails`, plain and mirrored; arguments as in `nearest`.

    Features may ignore what makes two images equal; a copy always has a distance near 0 here. Distances are grey
    levels, root mean square, in [0, 255]. Saving a 128 x 128 image of CamVid as JPEG of quality 75 gives 0.6.
    """
    return nearest(generated, names, train, train_stems, held_out, num_closest, nearest_thumbnails)
