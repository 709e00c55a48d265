"""Memorization: distances of generated images to their nearest training images, compared with held-out real images.
Driving datasets are cut from video, so a held-out image can be a few frames from a training image: only distances
smaller than those of held-out images are evidence (as in the checks of Stein et al. 2023, arXiv:2306.04675)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semseg_diffusers.data.thumbnails import THUMBNAIL, nearest_rows, thumbnails, with_mirrors
from semseg_diffusers.evaluation.diversity import unit


PERCENTILE = 1  # of held-out images' distances; without memorization about this share of images is closer


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
    generated_distances: tuple[float, ...]  # of all generated images, ascending
    real_distances: tuple[float, ...]  # of all held-out images, ascending


def nearest(
    generated: torch.Tensor,
    names: Sequence[str],
    train: torch.Tensor,
    train_stems: Sequence[str],
    held_out: torch.Tensor,
    num_closest: int = 16,
) -> Neighbours:
    """Find nearest training images by features: cosine distance, as in `diversity`.

    Args:
        generated: (N, D) features of generated images.
        names: N names.
        train: (M, D) features of the training images.
        train_stems: M names.
        held_out: (R, D) features of other real images, at the same resolution.
        num_closest: number of closest pairs to return.

    Returns:
        distances in [0, 2].

    Raises:
        ValueError: an empty set, another number of names, or features of different width.
    """
    sets = [unit(features) for features in (generated, train, held_out)]
    return _compare(*sets, names, train_stems, num_closest, scale=0.5, squared=True)


def nearest_by_pixels(
    generated: torch.Tensor,
    names: Sequence[str],
    train: torch.Tensor,
    train_stems: Sequence[str],
    held_out: torch.Tensor,
    num_closest: int = 16,
) -> Neighbours:
    """Find nearest training images by grey thumbnails, plain and mirrored, since training mirrors images.

    Features may ignore what makes two images equal; a copy always has a distance near 0 here.

    Args:
        generated: (N, 1024) `thumbnails`.
        names: N names.
        train: (M, 1024), of the training images.
        train_stems: M names.
        held_out: (R, 1024), of other real images.
        num_closest: number of closest pairs to return.

    Returns:
        distances in grey levels, root mean square, in [0, 255]. Saving a 128 x 128 image of CamVid as JPEG of quality
        75 gives 0.6.

    Raises:
        ValueError: as `nearest`.
    """
    scale = 1 / THUMBNAIL
    sets = [features.detach().cpu().double() for features in (generated, train, held_out)]
    both = with_mirrors(sets[1])  # (2M, 1024)
    return _compare(sets[0], both, sets[2], names, train_stems, num_closest, scale=scale, squared=False)


class Thumbnails:
    """`thumbnails` with the interface of a feature network."""

    name = "thumbnails"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 1024) of uint8 images (B, 3, H, W)."""
        return thumbnails(images)

    def describe(self) -> dict[str, Any]:
        """Return a description, for JSON."""
        return {"name": self.name, "architecture": "grey, mean of each area", "num_features": THUMBNAIL**2}


def _compare(
    generated: torch.Tensor,
    train: torch.Tensor,
    held_out: torch.Tensor,
    names: Sequence[str],
    train_stems: Sequence[str],
    num_closest: int,
    *,
    scale: float,
    squared: bool,
) -> Neighbours:
    """Compare distances scale * |a - b|, or scale * |a - b|^2; `train` may also hold the mirrored images."""
    for what, rows in (
        ("generated images", generated),
        ("training images", train),
        ("held-out real images", held_out),
    ):
        if len(rows) == 0:
            raise ValueError(f"expected at least one image in each set; got no {what}")
    if not generated.shape[1] == train.shape[1] == held_out.shape[1]:
        raise ValueError(
            f"expected features of one network; got {generated.shape[1]}, {train.shape[1]} and {held_out.shape[1]} "
            "features of generated, training and held-out images"
        )
    if len(names) != len(generated) or len(train) not in (len(train_stems), 2 * len(train_stems)):
        raise ValueError(
            f"expected one name per image; got {len(names)} names of {len(generated)} generated images and "
            f"{len(train_stems)} stems of training images"
        )
    found, indices = nearest_rows(generated, train)
    real, _ = nearest_rows(held_out, train)
    found, real = (scale * (rows if squared else rows.sqrt()) for rows in (found, real))
    threshold = real.quantile(PERCENTILE / 100).item()
    num_closer = int((found < threshold).sum())
    order = sorted(range(len(names)), key=lambda index: (found[index].item(), names[index]))
    matches = (
        Match(
            image=names[index],
            train_stem=train_stems[indices[index] % len(train_stems)],
            distance=found[index].item(),
            mirrored=indices[index].item() >= len(train_stems),
        )
        for index in order[:num_closest]
    )
    return Neighbours(
        generated_median=found.quantile(0.5).item(),
        real_median=real.quantile(0.5).item(),
        threshold=threshold,
        num_closer=num_closer,
        share_closer=num_closer / len(names),
        closest=tuple(matches),
        generated_distances=tuple(found.sort().values.tolist()),
        real_distances=tuple(real.sort().values.tolist()),
    )
