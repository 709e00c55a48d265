"""Scales and shifts photo and mask alike, and tells the network of it where it is to draw unchanged photos.

Geometric part of EDM's augmentation (Karras et al. 2022, appendix F.2): with a probability the network is told each
warp by a vector, which is zero in sampling, so that warps do not leak into what it draws.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F


AUGMENT_DIM = 3  # entries of the vector: enlargement, shift to the right, shift down, each from -1 to 1


class Warp(NamedTuple):
    """One warp about the centre of the frame."""

    scale: float  # more than 1 enlarges
    right: int  # pixels
    down: int  # pixels


@dataclass(frozen=True)
class Warps:
    """How pairs are scaled and shifted."""

    scale: float  # enlarged or reduced by up to this factor more than 1: 0.25 is 0.8 to 1.25
    translate: float  # shifted by up to this share of the width and the height
    probability: float | None  # of each kind of warp, told to the network; None warps every pair and tells nothing

    def draw(self, generator: torch.Generator, size: tuple[int, int]) -> tuple[Warp, torch.Tensor]:
        """Draw a warp for a frame of (height, width), and the vector that describes it (`AUGMENT_DIM`,)."""
        (height, width), limit = size, 1.0 if self.probability is None else self.probability
        draws = torch.rand(5, generator=generator).tolist()
        enlargement, right, down = (2 * draw - 1 for draw in draws[2:])
        if draws[0] >= limit:
            enlargement = 0.0
        if draws[1] >= limit:
            right = down = 0.0
        most_right, most_down = self.translate * width, self.translate * height
        warp = Warp((1 + self.scale) ** enlargement, round(right * most_right), round(down * most_down))
        vector = (
            enlargement if self.scale else 0.0,
            warp.right / most_right if most_right else 0.0,
            warp.down / most_down if most_down else 0.0,
        )
        return warp, torch.tensor(vector, dtype=torch.float32)


def _sources(length: int, scale: float, shift: int, steps: int = 1) -> torch.Tensor:
    """Where in a side of `length` pixels each pixel of the result comes from, `steps` places a pixel, in float64."""
    places = (torch.arange(length * steps, dtype=torch.float64) + 0.5) / steps
    return (places - length / 2 - shift) / scale + length / 2  # 0 is the left edge of the first pixel


def warp_image(image: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Warp a photo (C, H, W): bilinear, averaged over the area where it is reduced, reflected from outside."""
    height, width = image.shape[-2:]
    steps = math.ceil(1 / warp.scale) if warp.scale < 1 else 1
    x = _sources(width, warp.scale, warp.right, steps) * 2 / width - 1
    y = _sources(height, warp.scale, warp.down, steps) * 2 / height - 1
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).float()  # (H', W', 2)
    warped = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(warped, steps)[0] if steps > 1 else warped[0]  # (C, H, W)


def warp_mask(mask: torch.Tensor, warp: Warp, unknown: int) -> torch.Tensor:
    """Warp class ids (H, W): the nearest, and `unknown` from outside."""
    height, width = mask.shape
    rows = _sources(height, warp.scale, warp.down).floor().long()  # (H,)
    columns = _sources(width, warp.scale, warp.right).floor().long()  # (W,)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    warped = mask[rows.clamp(0, height - 1)][:, columns.clamp(0, width - 1)]
    return torch.where(inside, warped, torch.full_like(warped, unknown))
