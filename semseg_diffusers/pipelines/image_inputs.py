"""Images that are edited: reading them and the regions to regenerate, and pasting the result back.

Images are float32 (H, W, 3) in [0, 1]: 8-bit pixels go in and come out unchanged. This file is saved beside the
weights with every pipeline that edits images and runs without the package: it imports the standard library, numpy, PIL
and torch only.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .mask_inputs import ALPHA_MODES, center_crop_box, check_single_image, open_image, upright


Box = tuple[int, int, int, int]  # left, top, right, bottom, as PIL takes it


def check_editing(pipeline, scheduler) -> None:
    """Raise a `ValueError` for a pipeline without RGB images, or a scheduler that cannot add a step's noise to one."""
    channels = pipeline.unet.config.in_channels
    if pipeline.vae is None and pipeline.vae_scale_factor > 1:
        raise ValueError(
            "this network edits latents, and the pipeline has no `vae` to encode images: make it with the autoencoder "
            "that the network was trained with."
        )
    if pipeline.vae is None and channels != 3:
        raise ValueError(f"expected a network of images with 3 channels; this one has {channels}.")
    if not (hasattr(scheduler, "add_noise") and hasattr(scheduler, "alphas_cumprod")):
        raise ValueError(
            f"{type(scheduler).__name__} cannot add the noise of a step to an image: it has no `add_noise` over "
            "discrete timesteps. Use another, such as DDIMScheduler or DPMSolverMultistepScheduler."
        )


def split_batch(values, item_ndim: int) -> list:
    """Split a value, a batch of arrays or tensors (one axis more than an item has), or a list into a list."""
    if isinstance(values, (list, tuple)):
        return list(values)
    if isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == item_ndim + 1:
        return list(values)
    return [values]


def one_for_each(name: str, values: list, num_masks: int) -> list:
    """Return one value for each mask; a single one is for all."""
    if len(values) not in (1, num_masks):
        raise ValueError(f"got {len(values)} of `{name}` for {num_masks} masks; pass one for each, or one for all.")
    return values * num_masks if len(values) < num_masks else values


def read_images(images, num_masks: int) -> list[np.ndarray]:
    """Read one image for each mask, or one for all: what `__call__` takes as `image`, see `read_image`."""
    images = split_batch(images, item_ndim=3)
    names = ["the image"] if len(images) == 1 else [f"image number {i}" for i in range(len(images))]
    return one_for_each("image", [read_image(*pair) for pair in zip(images, names, strict=True)], num_masks)


def read_image(image, source: str = "the image") -> np.ndarray:
    """Read one image as (H, W, 3) float32 in [0, 1], rotated upright by its EXIF orientation.

    Arrays are (H, W, 3), tensors (3, H, W), of type uint8, or floats in [0, 1]. Errors name `source`, or the path.
    """
    if isinstance(image, (str, os.PathLike)):
        source, image = f"image '{os.fspath(image)}'", open_image(image, "image")
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image, source)).astype(np.float32) / 255
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        pixels = image.transpose(1, 2, 0) if image.ndim == 3 else image  # (H, W, 3)
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise TypeError(
            f"{source} is of type {type(image).__name__}; expected a path, a PIL image, a numpy array or a tensor."
        )
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not (is_float or pixels.dtype == np.uint8):
        raise ValueError(
            f"{source} has shape {image.shape} and type {image.dtype}; expected an array (H, W, 3) or a tensor "
            "(3, H, W), of type uint8 or floats in [0, 1]."
        )
    pixels = pixels.astype(np.float32) if is_float else pixels.astype(np.float32) / 255
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"{source} has values from {pixels.min():g} to {pixels.max():g}; expected [0, 1]. From [-1, 1]: "
            "x / 2 + 0.5."
        )
    return pixels


IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # at most 8 bits per channel


def to_rgb(image: Image.Image, source="the image") -> Image.Image:
    """Return an image as RGB, upright; a `ValueError` if it has more than 8 bits per channel or transparent pixels."""
    check_single_image(image, "image", source)
    if image.mode not in IMAGE_MODES:
        raise ValueError(f"{source} has the image mode {image.mode}; expected 8 bits per channel. Convert it to RGB.")
    image = upright(image)
    if "A" in image.getbands() or "transparency" in image.info:
        transparent = int((np.asarray(image.convert("RGBA"))[..., 3] < 255).sum())
        if transparent:
            raise ValueError(
                f"{source} has {transparent} transparent pixels, whose colour is not defined. Flatten it: save it as "
                "RGB."
            )
    return image.convert("RGB")


def read_region(region) -> np.ndarray:
    """Read one region to regenerate, (H, W) bool: where an image is not black, or an array (H, W) not zero."""
    if isinstance(region, (str, os.PathLike)):
        region = open_image(region, "region")
    if isinstance(region, Image.Image):
        is_grey = region.mode[0] in "1LIF" and region.mode not in ALPHA_MODES
        pixels = np.asarray(upright(region) if is_grey else upright(region).convert("RGB"))
        region = pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0
    if isinstance(region, torch.Tensor):
        region = region.detach().cpu().numpy()
    if not isinstance(region, np.ndarray) or region.ndim != 2 or np.issubdtype(region.dtype, np.floating):
        found = f"shape {region.shape} and type {region.dtype}" if isinstance(region, np.ndarray) else type(region)
        raise ValueError(
            f"`edit_region` has {found}; expected an image, or booleans or integers (H, W), not 0 where edited."
        )
    return region != 0


def changed_region(old_ids: np.ndarray, new_ids: np.ndarray, margin: int) -> np.ndarray:
    """Return where two masks (H, W) differ, dilated by a square of `margin` pixels each way: (H, W) bool."""
    changed = torch.from_numpy(old_ids != new_ids)[None, None].float()
    return F.max_pool2d(changed, 2 * margin + 1, stride=1, padding=margin)[0, 0].numpy() > 0


def crop_window(region: np.ndarray, height: int, width: int, padding: int) -> Box | None:
    """Return the window around a region (H, W) that is generated at height x width; None where none holds the region.

    It has `padding` pixels around the region as far as the frame reaches, and is not smaller than height x width.
    """
    frame_height, frame_width = region.shape
    if not region.any():
        return center_crop_box(frame_height, frame_width, height, width)
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    top, bottom = max(rows[0] - padding, 0), min(rows[-1] + 1 + padding, frame_height)
    left, right = max(columns[0] - padding, 0), min(columns[-1] + 1 + padding, frame_width)
    largest = min(frame_height / height, frame_width / width)  # pixels of the image to a generated one
    scale = min(max((bottom - top) / height, (right - left) / width, 1), largest)
    window_height, window_width = round(height * scale), round(width * scale)
    if rows[-1] + 1 - rows[0] > window_height or columns[-1] + 1 - columns[0] > window_width:
        return None
    window_top = int(np.clip((rows[0] + rows[-1] + 1 - window_height) // 2, 0, frame_height - window_height))
    window_left = int(np.clip((columns[0] + columns[-1] + 1 - window_width) // 2, 0, frame_width - window_width))
    return window_left, window_top, window_left + window_width, window_top + window_height


def crop_resize_image(image: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Resize a box of an image (H, W, 3) to (height, width, 3) with an antialiased filter, as training data is."""
    left, top, right, bottom = box
    if (bottom - top, right - left) == (height, width):
        return image[top:bottom, left:right]
    resized = Image.fromarray((image * 255).round().astype(np.uint8))
    resized = resized.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized).astype(np.float32) / 255


def crop_resize_region(region: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Resize a box of a region (H, W) to (height, width): a pixel is in it where any pixel that it covers is."""
    left, top, right, bottom = box
    part = torch.from_numpy(region[top:bottom, left:right])[None, None].float()
    return F.adaptive_max_pool2d(part, (height, width))[0, 0].numpy() > 0


def paste(image: np.ndarray, generated: np.ndarray, region: np.ndarray, box: Box, feather: int) -> np.ndarray:
    """Paste a generated window (h, w, 3) into a region (H, W) of an image, faded over `feather` pixels inside it."""
    left, top, right, bottom = box
    size = bottom - top, right - left
    if generated.shape[:2] != size:
        window = torch.from_numpy(generated).permute(2, 0, 1)[None]  # (1, 3, h, w)
        window = F.interpolate(window, size, mode="bicubic", antialias=True).clamp(0, 1)
        generated = window[0].permute(1, 2, 0).numpy()
    inside = torch.from_numpy(region)[None, None].float()
    total = inside
    for _ in range(feather):  # the mean of the region and its erosions rises by 1 / (feather + 1) a pixel
        inside = -F.max_pool2d(-inside, 3, stride=1, padding=1)
        total = total + inside
    share = (total / (feather + 1))[0, 0].numpy()[top:bottom, left:right, None]
    result = image.copy()
    old = result[top:bottom, left:right]
    old[:] = np.where(share > 0, old + share * (generated - old), old)
    return result


def to_tensor(images: Sequence[np.ndarray], dtype: torch.dtype, device) -> torch.Tensor:
    """Convert images of one size to what the networks read: (N, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1).to(device=device, dtype=dtype)


def to_output(images: Sequence[np.ndarray], output_type: str, dtype: torch.dtype, device):
    """Convert images to "pil", "np" (N, H, W, 3), "pt" (N, 3, H, W), both float32 in [0, 1], or "latent"."""
    if output_type == "pil":
        return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
    if output_type == "latent":
        return to_tensor(images, dtype, device)
    stacked = np.stack(images)
    return stacked if output_type == "np" else torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)
