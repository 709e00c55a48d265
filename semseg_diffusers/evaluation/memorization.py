"""The nearest training photo of every generated image: does the generator repeat what it was trained on?
What counts is the comparison with real photos it has not seen. Data sets of driving are cut from video, where a
held-out photo can be a few frames from a training photo: a small distance alone proves nothing, a smaller one than
held-out photos have does (as in the memorisation checks of Stein et al. 2023, arXiv:2306.04675)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semseg_diffusers.data.thumbnails import THUMBNAIL, nearest_rows, thumbnails, with_mirrors
from semseg_diffusers.evaluation.diversity import unit


PERCENTILE = 1  # of held-out photos' distances: about this share of images of an honest generator is closer, too


@dataclass(frozen=True)
class Match:
    """A generated image and the training photo nearest to it."""

    image: str
    train_stem: str
    distance: float
    mirrored: bool  # the photo is nearest as its mirror image, as training shows it too


@dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training photo, of generated images and of held-out real photos."""

    generated_median: float
    real_median: float
    threshold: float  # the 1st percentile of the real photos' distances
    num_closer: int  # generated images closer than the threshold
    share_closer: float
    closest: tuple[Match, ...]  # by distance, then by name
    generated_distances: tuple[float, ...]  # of all generated images, rising
    real_distances: tuple[float, ...]  # of all held-out photos, rising


def nearest(
    generated: torch.Tensor,
    names: Sequence[str],
    train: torch.Tensor,
    train_stems: Sequence[str],
    held_out: torch.Tensor,
    num_closest: int = 16,
) -> Neighbours:
    """Find nearest training photos by features: cosine distance, as in `diversity`.

    Args:
        generated: (N, D) features of generated images.
        names: N names of theirs.
        train: (M, D) features of the photos that the generator was trained on.
        train_stems: M names of theirs.
        held_out: (R, D) features of real photos it was not trained on, at the same resolution.
        num_closest: how many of the closest pairs to return.

    Returns:
        distances in [0, 2].

    Raises:
        ValueError: for an empty set, another number of names, or features of different width.
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
    """Find nearest training photos by grey thumbnails, as they are and mirrored, since training mirrors them.

    Features may be blind to what makes two photos the same; a copy has a distance near 0 here whatever they are.

    Args:
        generated: (N, 1024) of `thumbnails`.
        names: of the generated images, N.
        train: (M, 1024), of the training photos.
        train_stems: their stems, M.
        held_out: (R, 1024), of photos that were not trained on.
        num_closest: pairs to name.

    Returns:
        distances in grey levels, root mean square, in [0, 255]. Storing a photo of CamVid at 128 x 128 as JPEG of
        quality 75 moves it by 0.6.

    Raises:
        ValueError: as `nearest`.
    """
    scale = 1 / THUMBNAIL
    sets = [features.detach().cpu().double() for features in (generated, train, held_out)]
    both = with_mirrors(sets[1])  # (2M, 1024)
    return _compare(sets[0], both, sets[2], names, train_stems, num_closest, scale=scale, squared=False)


class Thumbnails:
    """`thumbnails` in the form of a feature network: images come in batches."""

    name = "thumbnails"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> (B, 1024)."""
        return thumbnails(images)

    def describe(self) -> dict[str, Any]:
        """What they are, for JSON."""
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
    """Compare distances scale * |a - b|, or scale * |a - b|^2; `train` may hold every photo twice, then mirrored."""
    for what, rows in (
        ("generated images", generated),
        ("training photos", train),
        ("held-out real photos", held_out),
    ):
        if len(rows) == 0:
            raise ValueError(f"nearest training photos: got no {what}; wanted at least one of each set")
    if not generated.shape[1] == train.shape[1] == held_out.shape[1]:
        raise ValueError(
            f"{generated.shape[1]}, {train.shape[1]} and {held_out.shape[1]} features of generated, training and "
            "held-out images: extract all with one network"
        )
    if len(names) != len(generated) or len(train) not in (len(train_stems), 2 * len(train_stems)):
        raise ValueError(
            f"{len(names)} names of {len(generated)} generated images, {len(train_stems)} stems of training photos: "
            "wanted one name an image"
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
