"""Photos that are edited: how they, and the regions to make anew, are read, and how what is drawn is put back.

Photos are float32 (H, W, 3) in [0, 1]: 8-bit pixels go in and come out without change. This file is laid beside the
weights with every saved pipeline that edits photos and runs without the package: it imports the standard library,
numpy, PIL and torch only.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from .mask_inputs import center_crop_box, open_image


Box = tuple[int, int, int, int]  # left, top, right, bottom, as PIL takes it


def split_batch(values, item_ndim: int) -> list:
    """Take a value, a batch of arrays or tensors (one axis more than an item has), or a list apart into a list."""
    if isinstance(values, (list, tuple)):
        return list(values)
    if isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == item_ndim + 1:
        return list(values)
    return [values]


def one_for_each(name: str, values: list, num_masks: int) -> list:
    """Give each mask its value; a single one is for all."""
    if len(values) not in (1, num_masks):
        raise ValueError(f"got {len(values)} of `{name}` for {num_masks} masks; give one for each, or one for all.")
    return values * num_masks if len(values) < num_masks else values


def read_photos(images, num_masks: int) -> list[np.ndarray]:
    """Read one photo for each mask, or one for all: all that `__call__` takes as `image`, see `read_photo`."""
    images = split_batch(images, item_ndim=3)
    names = ["the photo"] if len(images) == 1 else [f"photo number {i}" for i in range(len(images))]
    return one_for_each("image", [read_photo(*pair) for pair in zip(images, names, strict=True)], num_masks)


def check_can_edit(unet, scheduler) -> None:
    """Refuse a network that draws no photos, and a scheduler that cannot bring one to the noise of a step."""
    if unet.config.in_channels != 3:
        raise ValueError(f"photos have 3 channels, and this network draws {unet.config.in_channels}.")
    if not (hasattr(scheduler, "add_noise") and hasattr(scheduler, "alphas_cumprod")):
        raise ValueError(
            f"{type(scheduler).__name__} cannot add the noise of a step to a photo: it has no `add_noise` over "
            "discrete timesteps. Take another, such as DDIMScheduler or DPMSolverMultistepScheduler."
        )


def read_photo(image, source: str = "the photo") -> np.ndarray:
    """Read one photo.

    Args:
        image (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Arrays are (H, W, 3), tensors (3, H, W), of
            type uint8, or floats in [0, 1].
        source (`str`, defaults to "the photo"): What error messages call it; a path names itself.

    Returns:
        `np.ndarray`: (H, W, 3) float32 in [0, 1], turned upright where a camera noted how it was held.

    Raises:
        ValueError: The file is no image, or the image is transparent, of another shape or out of range.
        TypeError: It is nothing of these.
    """
    if isinstance(image, (str, os.PathLike)):
        source, image = f"photo '{os.fspath(image)}'", open_image(image, "photo")
    if isinstance(image, Image.Image):
        if "A" in image.getbands():
            raise ValueError(f"{source} has an alpha channel (mode {image.mode}); save it as RGB first.")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(np.float32) / 255
    if isinstance(image, torch.Tensor):
        pixels = image.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels  # (H, W, 3)
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise TypeError(
            f"{source} is of type {type(image).__name__}; wanted a path, a PIL image, a numpy array or a tensor."
        )
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not (is_float or pixels.dtype == np.uint8):
        raise ValueError(
            f"{source} has shape {tuple(image.shape)} and type {image.dtype}; wanted an array (H, W, 3) or a tensor "
            "(3, H, W), of type uint8 or floats in [0, 1]."
        )
    pixels = pixels.astype(np.float32) if is_float else pixels.astype(np.float32) / 255
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"{source} runs from {pixels.min():g} to {pixels.max():g}; wanted [0, 1]. From [-1, 1]: x / 2 + 0.5."
        )
    return pixels


def read_region(region, source: str = "`edit_region`") -> np.ndarray:
    """Read one region to make anew: (H, W) bool.

    Args:
        region (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Booleans or integers (H, W), or a picture;
            what is not zero, or not black, is made anew.
        source (`str`): What error messages call it.

    Raises:
        ValueError: It is of another shape or type.
    """
    if isinstance(region, (str, os.PathLike)):
        region = open_image(region, "region")
    if isinstance(region, Image.Image):
        region = np.asarray(region.convert("RGB")).any(axis=-1)
    if isinstance(region, torch.Tensor):
        region = region.detach().cpu().numpy()
    if not isinstance(region, np.ndarray) or region.ndim != 2 or np.issubdtype(region.dtype, np.floating):
        found = f"shape {region.shape} and type {region.dtype}" if isinstance(region, np.ndarray) else type(region)
        raise ValueError(
            f"{source} has {found}; wanted a picture, or booleans or integers (H, W), not 0 where edited."
        )
    return region != 0


def changed_region(old_ids: np.ndarray, new_ids: np.ndarray, margin: int) -> np.ndarray:
    """Where two masks (H, W) differ, and `margin` pixels around it (a square's worth): (H, W) bool."""
    changed = torch.from_numpy(old_ids != new_ids)[None, None].float()
    return F.max_pool2d(changed, 2 * margin + 1, stride=1, padding=margin)[0, 0].numpy() > 0


def crop_window(region: np.ndarray, height: int, width: int, padding: int) -> Box | None:
    """The window around a region (H, W) that is drawn at height x width.

    It has their aspect, holds the region with `padding` pixels around it as far as the frame goes, and is no smaller
    than height x width, so that nothing is drawn smaller than the photo shows it.

    Returns:
        Box or None: None where no window of this aspect inside the frame holds the region.
    """
    frame_height, frame_width = region.shape
    if not region.any():
        return center_crop_box(frame_height, frame_width, height, width)
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    top, bottom = max(rows[0] - padding, 0), min(rows[-1] + 1 + padding, frame_height)
    left, right = max(columns[0] - padding, 0), min(columns[-1] + 1 + padding, frame_width)
    largest = min(frame_height / height, frame_width / width)  # pixels of the photo to one that is drawn
    scale = max((bottom - top) / height, (right - left) / width, 1)
    if scale > largest:  # as much around the region as there is
        scale = largest
    window_height, window_width = round(height * scale), round(width * scale)
    if rows[-1] + 1 - rows[0] > window_height or columns[-1] + 1 - columns[0] > window_width:
        return None
    window_top = int(np.clip((rows[0] + rows[-1] + 1 - window_height) // 2, 0, frame_height - window_height))
    window_left = int(np.clip((columns[0] + columns[-1] + 1 - window_width) // 2, 0, frame_width - window_width))
    return window_left, window_top, window_left + window_width, window_top + window_height


def sample_photo(photo: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Resize a box of a photo (H, W, 3) to (height, width, 3) with an antialiased filter, as training data is."""
    left, top, right, bottom = box
    if (bottom - top, right - left) == (height, width):
        return photo[top:bottom, left:right]
    picture = Image.fromarray((photo * 255).round().astype(np.uint8))
    picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(picture).astype(np.float32) / 255


def sample_region(region: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Resize a box of a region (H, W) to (height, width): a pixel is in it where any pixel that it covers is."""
    left, top, right, bottom = box
    part = torch.from_numpy(region[top:bottom, left:right])[None, None].float()
    return F.adaptive_max_pool2d(part, (height, width))[0, 0].numpy() > 0


def paste(photo: np.ndarray, drawn: np.ndarray, region: np.ndarray, box: Box, feather: int) -> np.ndarray:
    """Put what was drawn of a window into the region of the photo; every other pixel stays as it is.

    Args:
        photo (`np.ndarray`): (H, W, 3).
        drawn (`np.ndarray`): The window, (h, w, 3), of any size.
        region (`np.ndarray`): (H, W) bool.
        box (`tuple`): Where the window lies in the photo.
        feather (`int`): Pixels, inside the region, over which the photo fades into what was drawn.

    Returns:
        `np.ndarray`: (H, W, 3).
    """
    left, top, right, bottom = box
    size = bottom - top, right - left
    if drawn.shape[:2] != size:
        window = torch.from_numpy(drawn).permute(2, 0, 1)[None]  # (1, 3, h, w)
        window = F.interpolate(window, size, mode="bicubic", antialias=True).clamp(0, 1)
        drawn = window[0].permute(1, 2, 0).numpy()
    inside = torch.from_numpy(region)[None, None].float()
    share = inside
    for _ in range(feather):  # the mean of the region and its erosions rises by 1 / (feather + 1) a pixel
        inside = -F.max_pool2d(-inside, 3, stride=1, padding=1)
        share = share + inside
    share = (share / (feather + 1))[0, 0].numpy()[top:bottom, left:right, None]
    result = photo.copy()
    window = result[top:bottom, left:right]
    window[:] = np.where(share > 0, window + share * (drawn - window), window)
    return result


def as_tensor(photos: Sequence[np.ndarray], dtype: torch.dtype, device) -> torch.Tensor:
    """Photos of one size as the networks read them: (N, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) * 2 - 1).to(device=device, dtype=dtype)


def as_images(photos: Sequence[np.ndarray], output_type: str, device):
    """Photos as "pil", "np" (N, H, W, 3) or "pt" (N, 3, H, W), both float32 in [0, 1]."""
    if output_type == "pil":
        return [Image.fromarray((photo * 255).round().astype(np.uint8)) for photo in photos]
    stacked = np.stack(photos)
    return stacked if output_type == "np" else torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)
