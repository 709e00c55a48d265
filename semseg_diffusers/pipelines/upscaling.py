"""Enlarging images: the reduction that an enlarged image has to agree with, noise on what is enlarged, and tiles.

Differences in place of images follow SRDiff (Li et al. 2022, section 3.3). Noise on the input of an upscaler follows
Ho et al. 2022 (cascaded diffusion models, section 4.2), projecting its output back Wang et al. 2023 (DDNM, eq. 5),
tiles that are joined at every step Bar-Tal et al. 2023 (MultiDiffusion, eq. 5). This file is saved beside the weights
and runs without the package: it imports numpy, torch and files that are saved with it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .guidance import Conditions, guidance_weights
from .image_inputs import read_image, split_batch


NOISE_LEVEL = 0  # of checkpoints that recommend none
NUM_NOISE_LEVELS = 1000
LANCZOS_SUPPORT = 3  # reduced pixels on either side, as Pillow has it
PROJECTIONS = 8  # a projection may leave [0, 1], and clipping the reduction: each brings both nearer


def add_low_res_noise(low_res: torch.Tensor, noise: torch.Tensor, noise_level: torch.Tensor | int) -> torch.Tensor:
    """Add noise to images (B, 3, h, w) in [-1, 1]: levels (B,) or one for all, 0 for none to `NUM_NOISE_LEVELS`.

    A level is a number of steps of the linear schedule of Ho et al. 2020, whatever schedule a network has.
    """
    betas = torch.linspace(1e-4, 0.02, NUM_NOISE_LEVELS, dtype=torch.float64)
    kept_signal = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])
    kept = kept_signal[torch.as_tensor(noise_level, device="cpu")].to(low_res).reshape(-1, 1, 1, 1)
    return kept.sqrt() * low_res + (1 - kept).sqrt() * noise


def enlarge(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Enlarge images (B, 3, h, w) to (B, 3, height, width) by bicubic interpolation."""
    return F.interpolate(images, (height, width), mode="bicubic")


def image_to_sample(images: torch.Tensor, low_res: torch.Tensor | None, scale: float | None) -> torch.Tensor:
    """Return what a network with this `residual_scale` generates in place of images: all (B, 3, H, W)."""
    return images if scale is None or low_res is None else (images - low_res) * scale


def sample_to_image(samples: torch.Tensor, low_res: torch.Tensor | None, scale: float | None) -> torch.Tensor:
    """Return the images that samples of a network with this `residual_scale` amount to: all (B, 3, H, W)."""
    return samples if scale is None or low_res is None else low_res + samples / scale


@functools.lru_cache(maxsize=16)
def reduction_matrix(length: int, reduced: int) -> torch.Tensor:
    """Return the matrix (reduced, length), float64, by which Pillow's antialiased Lanczos filter reduces a side."""
    scale = length / reduced
    centers = (torch.arange(reduced, dtype=torch.float64)[:, None] + 0.5) * scale
    offsets = (torch.arange(length, dtype=torch.float64) + 0.5 - centers) / scale  # in reduced pixels
    weights = torch.sinc(offsets) * torch.sinc(offsets / LANCZOS_SUPPORT)
    weights = torch.where(offsets.abs() < LANCZOS_SUPPORT, weights, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


@functools.lru_cache(maxsize=16)
def _inverse(length: int, reduced: int) -> torch.Tensor:
    """Return the pseudo-inverse (length, reduced) of `reduction_matrix`."""
    return torch.linalg.pinv(reduction_matrix(length, reduced))


def reduce_images(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Reduce images (B, 3, H, W) to (B, 3, height, width) by the filter that `prepare` reduces photos with."""
    rows, columns = (
        reduction_matrix(*pair).to(images) for pair in zip(images.shape[-2:], (height, width), strict=True)
    )
    return rows @ images @ columns.T


def project_onto(images: torch.Tensor, low_res: torch.Tensor) -> torch.Tensor:
    """Change images (B, 3, H, W) in [-1, 1] as little as possible so that they reduce to `low_res` (B, 3, h, w)."""
    height, width = low_res.shape[-2:]
    rows, columns = (_inverse(*pair).to(images) for pair in zip(images.shape[-2:], (height, width), strict=True))
    for _ in range(PROJECTIONS):
        missing = low_res.to(images) - reduce_images(images, height, width)  # (B, 3, h, w)
        images = (images + rows @ missing @ columns.T).clamp(-1, 1)
    return images


def consistency_psnr(images: Any, low_res: Any) -> list[float]:
    """Return how well enlarged images agree with what they were made from: the PSNR of their reductions, in dB.

    Args:
        images: An enlarged image, a batch of arrays or tensors, or a list: paths, PIL images, arrays (H, W, 3) or
            tensors (3, H, W), uint8 or floats in [0, 1].
        low_res: The images that they were made from, one for each, in the same forms.

    Returns:
        `list[float]`: One for each image; 40 and more is hardly visible, `inf` is equality.

    Raises:
        ValueError: Images that cannot be read, or whose size is no whole multiple of the other's.

    Example:
        >>> import numpy as np
        >>> grey = np.full((32, 32, 3), 128, dtype=np.uint8)
        >>> round(consistency_psnr(grey, grey[:8, :8] + 1)[0], 1)
        48.1
    """
    both = split_batch(images, item_ndim=3), split_batch(low_res, item_ndim=3)
    if len(both[0]) != len(both[1]):
        raise ValueError(f"{len(both[0])} images and {len(both[1])} low_res; expected one for each image.")
    found = []
    for number, (image, source) in enumerate(zip(*both, strict=True)):
        large, small = read_image(image, f"image number {number}"), read_image(source, f"low_res number {number}")
        if large.shape[0] % small.shape[0] or large.shape[0] * small.shape[1] != large.shape[1] * small.shape[0]:
            raise ValueError(
                f"image number {number} is {large.shape[0]} x {large.shape[1]} and its low_res {small.shape[0]} x "
                f"{small.shape[1]} (height x width); expected a whole multiple."
            )
        reduced = reduce_images(torch.from_numpy(large).permute(2, 0, 1)[None].double(), *small.shape[:2])
        error = (reduced[0].permute(1, 2, 0).clamp(0, 1) - torch.from_numpy(small)).square().mean()
        found.append(math.inf if error == 0 else float(-10 * torch.log10(error)))
    return found


def tile_starts(length: int, tile_size: int, overlap: int) -> list[int]:
    """Return where tiles start on a side: a tile overlaps the next by `overlap` pixels, the last two by more.

    Example:
        >>> tile_starts(512, 256, 64)
        [0, 192, 256]
    """
    if tile_size >= length:
        return [0]
    return [*range(0, length - tile_size, tile_size - overlap), length - tile_size]


Window = tuple[slice, slice]  # rows and columns


def tile_windows(height: int, width: int, tile_size: tuple[int, int], overlap: int) -> list[Window]:
    """Return the windows of all tiles of a frame, row by row."""
    rows, columns = (tile_starts(*pair, overlap) for pair in zip((height, width), tile_size, strict=True))
    return [
        (slice(top, min(top + tile_size[0], height)), slice(left, min(left + tile_size[1], width)))
        for top in rows
        for left in columns
    ]


def tile_weights(height: int, width: int, overlap: int) -> torch.Tensor:
    """Return the weight of each pixel of a tile (height, width), which falls towards the borders.

    It falls over the middle half of the overlap: what is nearer to the border saw too much of the zeros beyond it, and
    counts only where no other tile is.
    """

    def ramp(length: int) -> np.ndarray:
        places = np.arange(length) + 0.5
        distances = np.minimum(places, length - places)
        return np.clip((distances - overlap / 4) / max(overlap / 2, 1), 1e-3, 1.0)

    return torch.from_numpy(ramp(height)[:, None] * ramp(width)).float()


class TiledConditions:
    """`Conditions` of a frame in tiles: at each step, tiles are predicted by themselves and joined.

    All tiles see the same noise, and the scheduler steps the whole frame, so that only what a network knows of pixels
    beyond a tile makes a difference. `ids` are (N, H, W), `low_res` (B, 3, H, W), `mask_noise` (B, H, W); other
    conditions are those of the frame.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        overlap: int,
        unet: Any,
        ids: torch.Tensor,
        num_images_per_mask: int,
        *,
        low_res: torch.Tensor,
        mask_noise: torch.Tensor | None = None,
        guide_unet: torch.nn.Module | None = None,
        **shared: Any,
    ):
        self.windows, self.overlap = windows, overlap
        self.tiles = [
            Conditions(
                unet,
                ids[:, rows, columns],
                num_images_per_mask,
                low_res=low_res[:, :, rows, columns],
                mask_noise=None if mask_noise is None else mask_noise[:, rows, columns],
                guide_unet=guide_unet,
                **shared,
            )
            for rows, columns in windows
        ]
        first = self.tiles[0]
        self.has = any(tile.has_mask for tile in self.tiles), first.has_attributes, guide_unet is not None

    def weights(
        self, scale: float, attribute_scale: float | None, prompt_scale: float | None = None
    ) -> dict[str, float]:
        """Return the weight of each prediction in the guided one, see `guidance_weights`."""
        return guidance_weights(scale, attribute_scale, *self.has, prompt_scale)

    def predict(
        self, sample: torch.Tensor, timestep, weights: Mapping[str, float], conditioning_scale: float | None = None
    ) -> torch.Tensor:
        """Return the guided prediction for a sample (B, C, H, W), joined from the tiles'."""
        result = sample.new_zeros(sample.shape[0], 0, *sample.shape[-2:], dtype=torch.float32)
        total = sample.new_zeros(sample.shape[-2:], dtype=torch.float32)
        for (rows, columns), tile in zip(self.windows, self.tiles, strict=True):
            part = tile.predict(sample[:, :, rows, columns], timestep, weights, conditioning_scale)
            weight = tile_weights(part.shape[-2], part.shape[-1], self.overlap).to(part.device)
            if not result.shape[1]:  # twice the channels where the variance is predicted
                result = result.new_zeros(sample.shape[0], part.shape[1], *sample.shape[-2:])
            result[:, :, rows, columns] += part.float() * weight
            total[rows, columns] += weight
        return result / total
