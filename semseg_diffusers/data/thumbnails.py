"""Small grey copies of photos, and which of many photos is nearest to a picture by them: a copy of a photo is found
whatever a network makes of it, as it is or mirrored. Evaluation and generation compare with training photos by these.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


THUMBNAIL = 32  # pixels a side
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R BT.601
CHUNK = 1024  # rows compared at a time with all others: 80 MB for 10,000 of them


@dataclass(frozen=True)
class Nearest:
    """The photo nearest to a picture."""

    index: int  # of the photo
    distance: float  # grey levels, root mean square, in [0, 255]
    mirrored: bool  # it is nearest as its mirror image, as training shows it too


def thumbnails(images: Iterable[torch.Tensor]) -> torch.Tensor:
    """Turn uint8 images (3, H, W) into grey thumbnails (N, 1024) in [0, 255], by the mean of each area.

    Raises:
        ValueError: no images, or of another shape or type.
    """
    weights = torch.tensor(LUMA).view(3, 1, 1)
    rows = []
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"thumbnails are made from uint8 images (3, H, W); got {image.dtype} {tuple(image.shape)}"
            )
        grey = (image.cpu().float() * weights).sum(0, keepdim=True)  # (1, H, W)
        rows.append(F.adaptive_avg_pool2d(grey, THUMBNAIL).flatten())
    if not rows:
        raise ValueError("thumbnails need at least one image; got none")
    return torch.stack(rows)


def with_mirrors(rows: torch.Tensor) -> torch.Tensor:
    """Thumbnails (N, 1024), then their mirror images: (2N, 1024)."""
    return torch.cat([rows, rows.view(-1, THUMBNAIL, THUMBNAIL).flip(2).reshape(len(rows), -1)])


def nearest_rows(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared Euclidean distance (N,) to the nearest reference of each query, and its index (N,)."""
    lengths = references.square().sum(1)  # (M,)
    distances, indices = [], []
    for rows in queries.split(CHUNK):
        index = (lengths - 2 * rows @ references.T).argmin(1)  # |b|^2 - 2ab: |a|^2 is the same for all references
        distances.append((rows - references[index]).square().sum(1))  # anew: the product's rounding hides equality
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def nearest_photos(images: torch.Tensor, photos: torch.Tensor) -> list[Nearest]:
    """Find the nearest photo of each picture, as it is or mirrored.

    Args:
        images: (N, 1024) thumbnails of pictures.
        photos: (M, 1024) thumbnails of photos.

    Returns:
        N entries.
    """
    squared, indices = nearest_rows(images.double(), with_mirrors(photos.double()))
    return [
        Nearest(index % len(photos), distance, index >= len(photos))
        for index, distance in zip(indices.tolist(), (squared.sqrt() / THUMBNAIL).tolist(), strict=True)
    ]
