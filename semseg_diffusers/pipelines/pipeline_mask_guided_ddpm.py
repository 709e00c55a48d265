"""Photos from class masks: how masks are read, and `MaskGuidedDDPMPipeline`, which samples with diffusers schedulers.
Guidance follows Ho and Salimans 2022 (eq. 6), its interval Kynkaanniemi et al. 2024.

This file is uploaded beside the weights and runs without the package: it imports the standard library, numpy, PIL,
torch and diffusers only, and holds one pipeline class only, as diffusers asks.
"""

import contextlib
import inspect
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import is_compiled_module, randn_tensor
from PIL import Image


logger = logging.get_logger(__name__)

UNKNOWN = 255  # the id that every network reads as "nothing is said about this pixel"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# ---------------------------------------------------------------------------------------------------------------------
# Masks: files, pictures and arrays to class ids
# ---------------------------------------------------------------------------------------------------------------------


def open_image(path, what: str = "mask") -> Image.Image:
    """Open and fully decode an image file.

    Args:
        path (`str` or `os.PathLike`): The file.
        what (`str`, defaults to "mask"): What the error message calls it.

    Returns:
        `PIL.Image.Image`: The decoded image; the file is closed.

    Raises:
        OSError: The file does not exist or may not be read.
        ValueError: The file is empty, truncated or no image.
    """
    path = os.fspath(path)
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ValueError(f"{what} '{path}' is empty (0 bytes). Write or copy the file again.")
    with _naming_the_file(path, what), Image.open(path) as image:
        image.load()
    return image


@contextlib.contextmanager
def _naming_the_file(path, what: str = "mask"):
    """Pillow's errors about broken content do not say which file it was."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
        raise ValueError(
            f"{what} '{path}' cannot be read as an image ({err}). Is it cut off or no image? Copy the file again."
        ) from err


def pack_colors(colors: np.ndarray) -> np.ndarray:
    """Pack RGB colours (..., 3) into one integer each (...), so that colours compare as numbers."""
    colors = np.asarray(colors).astype(np.int32)
    return (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]


def unpack_colors(packed: np.ndarray) -> np.ndarray:
    """Undo `pack_colors`: integers (...) to RGB colours (..., 3)."""
    packed = np.asarray(packed)
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)


def describe_mask(source) -> str:
    """Name a mask for a message: its file, or plain "the mask" where there is none."""
    return "the mask" if source is None else f"mask '{source}'"


def colors_to_ids(
    image: np.ndarray,
    colors: Sequence[Sequence[int]],
    ignore_index: int = 255,
    ignore_color: Sequence[int] | None = (0, 0, 0),
    tolerance: float = 0.0,
    source=None,
) -> np.ndarray:
    """Turn a colour picture into class ids.

    Args:
        image (`np.ndarray`): RGB picture, (H, W, 3) uint8.
        colors (sequence): The RGB colour of each class, in class order.
        ignore_index (`int`, defaults to 255): The id of pixels in the ignore colour.
        ignore_color (sequence, *optional*): The RGB colour that means "unknown".
        tolerance (`float`, defaults to 0): Colours that no class has become the class with the nearest colour, if its
            Euclidean distance in RGB (0 to 441) is at most this.
        source (*optional*): The file, named in error messages.

    Returns:
        `np.ndarray`: Class ids, (H, W) uint8.

    Raises:
        ValueError: The picture holds colours that no class has.
    """
    table = [tuple(color) for color in colors]
    ids = list(range(len(table)))
    if ignore_color is not None and tuple(ignore_color) not in table:  # a class wins over the ignore colour
        table.append(tuple(ignore_color))
        ids.append(ignore_index)
    table, ids = np.asarray(table, dtype=np.int64), np.asarray(ids, dtype=np.uint8)

    packed = pack_colors(image)  # (H, W)
    known = pack_colors(table)
    order = np.argsort(known, kind="stable")
    position = np.searchsorted(known, packed, sorter=order)  # (H, W)
    entry = order[np.minimum(position, len(known) - 1)]
    result = ids[entry]
    unknown = known[entry] != packed
    if not unknown.any():
        return result

    found, inverse, counts = np.unique(packed[unknown], return_inverse=True, return_counts=True)
    distances = np.linalg.norm(unpack_colors(found)[:, None] - table[None], axis=-1)  # (colours found, colours known)
    far = distances.min(axis=1) > tolerance
    if far.any():
        raise ValueError(_unknown_colors_message(found[far], counts[far], tolerance, source))
    result[unknown] = ids[distances.argmin(axis=1)][inverse.reshape(-1)]
    return result


def _unknown_colors_message(packed: np.ndarray, counts: np.ndarray, tolerance: float, source) -> str:
    first = np.argsort(-counts, kind="stable")[:5]
    rgb = unpack_colors(packed)
    named = ", ".join(f"({', '.join(map(str, rgb[i]))}) in {counts[i]} pixels" for i in first)
    more = f" and {len(packed) - 5} more" if len(packed) > 5 else ""
    within = f" within the tolerance of {tolerance:g}" if tolerance else ""
    if (rgb[:, :1] == rgb).all():
        hint = "All are grey: if these are class ids, save the mask with one channel."
    elif str(source).lower().endswith((".jpg", ".jpeg", ".webp")):
        hint = "JPEG and WebP change colours: export the mask as PNG, or give a tolerance (such as 30)."
    else:
        hint = "Use the label set that the mask was painted with, or give a tolerance to take the nearest colour."
    colours = "colour" if len(packed) == 1 else "colours"
    return f"{describe_mask(source)} holds {len(packed)} {colours} that no class has{within}: {named}{more}. {hint}"


def ids_to_image(
    ids: np.ndarray,
    colors: Sequence[Sequence[int]],
    ignore_index: int = 255,
    ignore_color: Sequence[int] = (0, 0, 0),
) -> Image.Image:
    """Turn class ids (H, W) into a P-mode picture: the index is the id, the palette holds the colours."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:] = ignore_color
    palette[: len(colors)] = colors
    palette[ignore_index] = ignore_color
    image = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    image.putpalette(palette.tobytes())
    return image


def check_ids(ids: np.ndarray, num_classes: int, ignore_index: int = 255, source=None) -> None:
    """Raise a `ValueError` that names file, value, range and likely cause if ids (any shape) leave the range."""
    values = np.unique(ids)
    wrong = values[((values < 0) | (values >= num_classes)) & (values != ignore_index)]
    if len(wrong) == 0:
        return
    named = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    if wrong.max() >= 1000:
        hint = "Is it an instance file (class * 1000 + number) rather than class ids?"
    elif num_classes == 19 and wrong.min() >= -1 and wrong.max() <= 33:
        hint = "Is it a Cityscapes labelIds file? Map its ids to trainIds (0-18) first."
    elif set(values.tolist()) <= {0, 255}:
        hint = "Is it a black-and-white picture rather than class ids?"
    elif len(wrong) == 1 and wrong[0] == num_classes:
        hint = f"Is {num_classes} the unlabelled class? Write {ignore_index} there."
    elif wrong.max() > 33:
        hint = "Is it a grey picture, or were ids scaled to grey levels? Save the class ids themselves."
    else:
        hint = "Does the mask belong to another label set?"
    raise ValueError(
        f"{describe_mask(source)} holds class{'es' if len(wrong) > 1 else ''} {named}; this model knows "
        f"0-{num_classes - 1} and {ignore_index} (ignore). {hint}"
    )


def palette_agrees(image: Image.Image, num_classes: int, colors, ignore_index: int = 255) -> bool:
    """Tell whether the indices of a P-mode image are class ids.

    They are where every index in use that is a class has that class' colour (the ignore index may have any), or where
    the palette is a plain grey ramp. An image that uses no class index at all agrees only if it is ignored everywhere.
    """
    used = np.unique(np.asarray(image))
    palette = np.zeros((256, 3), dtype=np.int64)
    entries = np.asarray(image.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    palette[: len(entries)] = entries
    if (palette[used] == used[:, None]).all():
        return True
    classes = used[used < num_classes]
    if len(classes) == 0:
        return bool((used == ignore_index).all())
    return bool((palette[classes] == np.asarray(colors)[classes]).all())


def _picture_to_ids(image: Image.Image, num_classes, colors, ignore_index, ignore_color, tolerance, source):
    """Ids of a PIL image: (H, W) integers, not yet checked for range."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if (alpha < 255).any():
            raise ValueError(
                f"{describe_mask(source)} has {int((alpha < 255).sum())} transparent pixels, whose class is not "
                "defined. Flatten it first: paint what is unknown in the ignore colour."
            )
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode == "P" and (colors is None or palette_agrees(image, num_classes, colors, ignore_index)):
        return np.asarray(image)
    if image.mode in ("1", "L") or image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    if image.mode not in ("P", "RGB"):
        raise ValueError(
            f"{describe_mask(source)} has the image mode {image.mode}; wanted one channel of class ids (L, P, I;16) "
            "or the label set's colours (RGB). Save it as a PNG in one of these."
        )
    if colors is None:
        raise ValueError(
            f"{describe_mask(source)} is a colour picture, but this model carries no colours (id2color). Give class "
            "ids (one channel), or turn the colours into ids first: LabelSet.from_json(colormap).encode(image)."
        )
    return colors_to_ids(np.asarray(image.convert("RGB")), colors, ignore_index, ignore_color, tolerance, source)


def _array_to_ids(array: np.ndarray, num_classes, colors, ignore_index, ignore_color, tolerance, source):
    """Ids of an array: (H, W) integers, not yet checked for range."""
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        return array
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
        picture = Image.fromarray(np.ascontiguousarray(array))
        return _picture_to_ids(picture, num_classes, colors, ignore_index, ignore_color, tolerance, source)
    is_one_hot = array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating)
    if array.ndim == 3 and is_one_hot and array.shape[0] == num_classes:
        marked = array == 1
        if not (marked | (array == 0)).all() or (marked.sum(axis=0) > 1).any():
            raise ValueError(
                f"{describe_mask(source)} has {num_classes} channels but is not one-hot: each pixel takes a single 1, "
                "or zeros only where unknown. Give the ids instead: mask.argmax over the channels."
            )
        return np.where(marked.any(axis=0), marked.argmax(axis=0), ignore_index)
    raise ValueError(
        f"{describe_mask(source)} has shape {array.shape} and type {array.dtype}; wanted integer class ids (H, W), "
        f"one-hot floats or booleans ({num_classes}, H, W), or an RGB picture (H, W, 3) of type uint8."
        + (" Class ids are integers: cast them." if array.ndim == 2 else "")
    )


def read_mask(
    mask,
    num_classes: int,
    colors: Sequence[Sequence[int]] | None = None,
    ignore_index: int = 255,
    ignore_color: Sequence[int] | None = (0, 0, 0),
    tolerance: float = 0.0,
    source=None,
) -> np.ndarray:
    """Read one mask, whatever form it has, as class ids.

    Args:
        mask (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): One channel (modes 1, L, I, I;16; integer
            arrays (H, W)) is ids; a P-mode image is ids if its palette agrees (`palette_agrees`), else its colours
            count; RGB, and RGBA without transparency, is colours; float or bool (num_classes, H, W) is one-hot.
        num_classes (`int`): Ids run from 0 to `num_classes - 1`.
        colors (sequence, *optional*): RGB colour of each class. Without it, only ids are read.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (sequence, *optional*): The RGB colour of unknown pixels.
        tolerance (`float`, defaults to 0): See `colors_to_ids`.
        source (*optional*): Named in error messages; a path names itself.

    Returns:
        `np.ndarray`: Class ids, (H, W) uint8.

    Raises:
        ValueError: Unreadable file, unknown colours, transparency, floats, or ids out of range.
    """
    if num_classes > 255:
        raise ValueError(f"masks hold 8-bit ids, so at most 255 classes; this model has {num_classes}.")
    if isinstance(mask, (str, os.PathLike)):
        source = os.fspath(mask) if source is None else source
        mask = open_image(mask)
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = mask.float().numpy() if mask.is_floating_point() else mask.numpy()
    if isinstance(mask, Image.Image):
        source = (getattr(mask, "filename", None) or None) if source is None else source
        with _naming_the_file(source):
            mask.load()
    label_set = (num_classes, colors, ignore_index, ignore_color, tolerance, source)
    if isinstance(mask, Image.Image):
        ids = _picture_to_ids(mask, *label_set)
    elif isinstance(mask, np.ndarray):
        ids = _array_to_ids(mask, *label_set)
    else:
        raise TypeError(
            f"{describe_mask(source)} is of type {type(mask).__name__}; wanted a path, a PIL image, a numpy array or "
            "a tensor."
        )
    if 0 in ids.shape:
        raise ValueError(f"{describe_mask(source)} has no pixels: its size is {ids.shape[0]} x {ids.shape[1]}.")
    check_ids(ids, num_classes, ignore_index, source)
    return ids.astype(np.uint8)


def center_crop_box(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """The largest centred box with the target's aspect.

    Returns:
        `tuple[int, int, int, int]`: (left, top, right, bottom), as `PIL.Image.Image.crop` takes it.

    Example:
        >>> center_crop_box(720, 1280, 128, 128)
        (280, 0, 1000, 720)
    """
    crop_width = min(width, max(1, round(height * target_width / target_height)))
    crop_height = min(height, max(1, round(width * target_height / target_width)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def resize_ids(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop ids (H, W) to the aspect around the centre, then resize to (height, width) by nearest neighbour."""
    if ids.shape == (height, width):
        return ids
    left, top, right, bottom = center_crop_box(*ids.shape, height, width)
    rows = top + (2 * np.arange(height) + 1) * (bottom - top) // (2 * height)  # pixel centres
    columns = left + (2 * np.arange(width) + 1) * (right - left) // (2 * width)
    return ids[rows[:, None], columns]


def split_masks(masks) -> list:
    """Take what `mask` may be (one mask, a batch of them, a list, None) apart into a list of single masks.

    A mask inside a list may have a batch axis of its own, of length one: `3 * [ids]` works for ids (1, H, W) too.
    """
    if isinstance(masks, (list, tuple)):
        parts = [split_masks(mask) for mask in masks]
        return [part[0] if len(part) == 1 else mask for mask, part in zip(masks, parts, strict=True)]
    if isinstance(masks, (np.ndarray, torch.Tensor)):
        is_one_hot = "float" in str(masks.dtype) or "bool" in str(masks.dtype)
        is_picture = isinstance(masks, np.ndarray) and masks.dtype == np.uint8 and masks.shape[-1] in (3, 4)
        is_picture = is_picture and masks.ndim >= 3
        if masks.ndim == (4 if is_one_hot or is_picture else 3):
            return list(masks)
    return [masks]


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def evaluation_mode(module: torch.nn.Module):
    """Switch a network to evaluation (no dropout) and put every submodule back into its own mode afterwards."""
    training = [submodule for submodule in module.modules() if submodule.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


def source_file(cls: type) -> str | None:
    """The file that defines a class; None for one from a notebook or a script, which cannot travel by itself."""
    if cls.__module__ == "__main__":
        logger.warning(f"{cls.__name__} is defined in a script or notebook: the saved folder loads only beside it.")
        return None
    return inspect.getsourcefile(cls)


def copy_source(source: str, target: str) -> None:
    with open(source, encoding="utf-8") as file:
        write_text(target, file.read())


def write_text(path, text: str) -> None:
    """Write beside and rename, so that no half-written file stays."""
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


class MaskGuidedDDPMPipeline(DiffusionPipeline):
    r"""Draws photos that follow class masks.

    Args:
        unet (`ModelMixin`): A mask-guided network: `forward(sample, timestep, class_labels, mask, mask_features)` and
            `encode_mask`. Its config holds `num_classes`, `sample_size` and, where known, the label set.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that suits the network's prediction (noise, velocity or
            image, by the scheduler's own `prediction_type`).

    Example:

    ```py
    >>> from semseg_diffusers import MaskGuidedDDPMPipeline
    >>> pipe = MaskGuidedDDPMPipeline.from_pretrained("path/to/run")
    >>> image = pipe("mask.png", num_inference_steps=20).images[0]
    ```
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "MaskGuidedDDPMPipeline":
        """Make a pipeline from the components of another one, as in diffusers.

        diffusers takes over only networks of the very class that `__init__` names, and ours names none.
        """
        unet = getattr(pipeline, "unet", None)
        if hasattr(unet, "encode_mask"):
            kwargs.setdefault("unet", unet)
        return super().from_pipe(pipeline, **kwargs)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    # Inputs

    def check_inputs(
        self,
        num_masks: int,
        num_images_per_mask: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_start: float,
        guidance_stop: float,
        generator,
        latents: torch.Tensor | None,
        height: int,
        width: int,
        class_labels: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Refuse what cannot work, before any work is done."""
        channels, out_channels = self.unet.config.in_channels, self.unet.config.out_channels
        for name, value in (
            ("num_images_per_mask", num_images_per_mask),
            ("num_inference_steps", num_inference_steps),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; wanted a whole number of at least 1.")
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}; wanted a number (1 is without guidance).")
        if not 0 <= guidance_start <= guidance_stop <= 1:
            raise ValueError(
                f"guidance runs from `guidance_start` {guidance_start} to `guidance_stop` {guidance_stop}; wanted "
                "parts of the steps with 0 <= start <= stop <= 1."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; wanted one of {', '.join(OUTPUT_TYPES)}.")
        if out_channels not in (channels, 2 * channels):
            raise ValueError(
                f"the network gives {out_channels} channels for {channels}; wanted {channels}, or {2 * channels} "
                "where it learned the variance too."
            )

        divisor = getattr(self.unet, "size_divisor", 1)
        if height < 1 or width < 1 or height % divisor or width % divisor:
            nearest = " x ".join(str(max(divisor, round(side / divisor) * divisor)) for side in (height, width))
            raise ValueError(
                f"height and width must be multiples of {divisor} for this network; got {height} x {width}. The "
                f"nearest is {nearest}."
            )

        num_images = num_masks * num_images_per_mask
        if isinstance(generator, (list, tuple)) and len(generator) != num_images:
            raise ValueError(
                f"got {len(generator)} generators for {num_images} images ({num_masks} masks, {num_images_per_mask} "
                "each); give one for each image, or a single one."
            )
        if latents is not None and tuple(latents.shape) != (num_images, channels, height, width):
            raise ValueError(
                f"`latents` have the shape {tuple(latents.shape)}; wanted {(num_images, channels, height, width)}: "
                "images, channels, height, width."
            )
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` asks for {unknown}; there is {self._callback_tensor_inputs}."
            )

        takes_labels = getattr(self.unet, "class_embedding", None) is not None
        if takes_labels and class_labels is None:
            raise ValueError("this network is class-conditional: give `class_labels`, one for each mask.")
        if class_labels is not None:
            if not takes_labels:
                raise ValueError("this network is not class-conditional: leave `class_labels` out.")
            if len(class_labels) != num_masks:
                raise ValueError(f"got {len(class_labels)} `class_labels` for {num_masks} masks; give one for each.")
            num_labels = self.unet.config.num_class_embeds
            is_index = self.unet.config.class_embed_type is None and num_labels is not None
            if is_index and not ((class_labels >= 0) & (class_labels < num_labels)).all():
                raise ValueError(f"`class_labels` are {class_labels.tolist()}; this network knows 0-{num_labels - 1}.")

    def prepare_masks(self, masks, height: int | None, width: int | None) -> torch.Tensor:
        """Read masks as class ids of one size.

        Args:
            masks: All that `__call__` takes as `mask`.
            height (`int`, *optional*): Size wanted; the network's `sample_size`, else the masks' own, if None.
            width (`int`, *optional*): The same.

        Returns:
            `torch.Tensor`: Class ids on the CPU, (number of masks, H, W), long; 255 everywhere for None.
        """
        config = self.unet.config
        colors = getattr(config, "id2color", None)
        if colors is not None:
            colors = [color for _, color in sorted((int(key), color) for key, color in colors.items())]
        ignore = getattr(config, "ignore_index", UNKNOWN), getattr(config, "ignore_color", (0, 0, 0))
        label_set = (config.num_classes, colors, *ignore)

        masks = split_masks(masks)
        if not masks:
            raise ValueError("`mask` is an empty list; give at least one mask, or None for an unconditional image.")
        sources = [None] * len(masks) if len(masks) == 1 else [f"number {i}" for i in range(len(masks))]
        for i, mask in enumerate(masks):
            if isinstance(mask, (str, os.PathLike)) or getattr(mask, "filename", None):
                sources[i] = None  # it names itself
        ids = [
            None if mask is None else read_mask(mask, *label_set, source=source)
            for mask, source in zip(masks, sources, strict=True)
        ]

        if height is None or width is None:
            size = config.sample_size
            if size is None:
                sizes = {array.shape for array in ids if array is not None}
                if len(sizes) != 1:
                    raise ValueError(
                        "this network has no `sample_size` of its own and the masks do not share one: give `height` "
                        "and `width`."
                    )
                size = sizes.pop()
            size = (size, size) if isinstance(size, int) else size
            height, width = size[0] if height is None else height, size[1] if width is None else width
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1; got {height} x {width}.")
        unknown = np.full((height, width), UNKNOWN, dtype=np.uint8)
        ids = [unknown if array is None else resize_ids(array, height, width) for array in ids]
        return torch.from_numpy(np.stack(ids)).long()  # (number of masks, H, W)

    def prepare_latents(self, shape, dtype, device, generator, latents: torch.Tensor | None = None) -> torch.Tensor:
        """The noise that sampling starts from, at the scheduler's scale."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device=device, dtype=dtype) * self.scheduler.init_noise_sigma

    def prepare_extra_step_kwargs(self, generator) -> dict:
        """Schedulers do not share one signature of `step`: only the stochastic ones take a generator."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    @property
    def _weights_move(self) -> bool:
        """Offloading hooks bring weights to the device inside `forward` only; so no other method may compute."""
        hooks = ("_hf_hook", "_diffusers_hook")  # accelerate's and diffusers' own
        return any(hasattr(module, hook) for module in self.unet.modules() for hook in hooks)

    def encode_masks(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the network is told about masks (B, H, W) at each step: features, or the ids where weights move."""
        return (ids,) if self._weights_move else self.unet.encode_mask(ids)

    def predict(
        self, sample: torch.Tensor, timestep, class_labels, condition: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """One forward pass on what `encode_masks` gave."""
        masks = {"mask": condition[0]} if self._weights_move else {"mask_features": condition}
        return self.unet(sample, timestep, class_labels=class_labels, **masks, return_dict=False)[0]

    # Sampling

    @torch.no_grad()
    def __call__(
        self,
        mask,
        num_images_per_mask: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        guidance_start: float = 0.0,
        guidance_stop: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["MaskGuidedDDPMPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Draw images from masks.

        Args:
            mask: A mask, a list of them, or None for an unconditional image (also inside a list). A mask is a path, a
                PIL image, integer ids (H, W) as array or tensor, one-hot floats (num_classes, H, W), or the label
                set's colours; a batch of arrays or tensors counts as a list. 255 is unknown. Other sizes are cropped
                around the centre to the aspect and resized by nearest neighbour.
            num_images_per_mask (`int`, defaults to 1): Images for each mask; they follow each other.
            num_inference_steps (`int`, defaults to 50): Denoising steps.
            guidance_scale (`float`, defaults to 3.0): `uncond + scale * (cond - uncond)`; 1 is the plain conditional
                prediction, at half the cost.
            guidance_start (`float`, defaults to 0.0): Part of the steps after which guidance begins.
            guidance_stop (`float`, defaults to 1.0): Part of the steps after which it ends; outside, the prediction is
                plain conditional.
            generator (`torch.Generator` or a list, *optional*): Source of randomness; a list has one for each image.
            latents (`torch.Tensor`, *optional*): Unit noise to start from, (images, channels, height, width).
            height (`int`, *optional*): In pixels; the network's `sample_size` if None.
            width (`int`, *optional*): The same.
            class_labels (`int`, list or `torch.Tensor`, *optional*): For class-conditional networks, one for each mask
                or one for all.
            output_type (`str`, defaults to "pil"): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or
                "latent" (B, C, H, W) in [-1, 1], not clipped.
            return_dict (`bool`, defaults to True): An `ImagePipelineOutput`, else a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after each step as `(pipeline, step, timestep,
                tensors)`; the tensors in the dictionary that it returns are used from then on.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to ["latents"]): Which tensors it is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: The images, those of a mask one after the other.

        Raises:
            ValueError: Before any work: unreadable masks, ids or colours that the network does not know, sizes that
                its depth does not divide, counts that do not fit.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Read the masks and check everything
        device, dtype = self._execution_device, self.unet.dtype
        ids = self.prepare_masks(mask, height, width)  # (number of masks, H, W)
        num_masks, height, width = ids.shape
        if class_labels is not None:
            class_labels = torch.as_tensor(class_labels, device=device)
            class_labels = class_labels.expand(num_masks) if class_labels.ndim == 0 else class_labels
        self.check_inputs(
            num_masks,
            num_images_per_mask,
            num_inference_steps,
            guidance_scale,
            guidance_start,
            guidance_stop,
            generator,
            latents,
            height,
            width,
            class_labels,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        num_images, channels = num_masks * num_images_per_mask, self.unet.config.in_channels

        # 2. Timesteps and the noise to start from
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        first_guided, end_guided = int(guidance_start * len(timesteps)), int(guidance_stop * len(timesteps))
        if isinstance(generator, (list, tuple)):
            generator = list(generator)
        latents = self.prepare_latents((num_images, channels, height, width), dtype, device, generator, latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator)

        with evaluation_mode(self.unet):
            # 3. What depends on the mask alone, once
            has_mask = bool((ids < self.unet.config.num_classes).any())
            condition = self.encode_masks(ids.to(device))
            condition = tuple(part.repeat_interleave(num_images_per_mask, dim=0) for part in condition)  # (B, ...)
            if class_labels is not None:
                class_labels = class_labels.repeat_interleave(num_images_per_mask, dim=0)  # (B,)
            both = both_labels = None  # unconditional and conditional in one batch, made at the first guided step

            # 4. Denoise
            learned_variance = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
            for i, t in enumerate(self.progress_bar(timesteps)):
                model_input = self.scheduler.scale_model_input(latents, t)  # (B, C, H, W)
                guided = self.do_classifier_free_guidance and has_mask and first_guided <= i < end_guided
                if guided and both is None:
                    nothing = self.encode_masks(torch.full_like(ids[:1], UNKNOWN).to(device))
                    nothing = (part.expand(num_images, *part.shape[1:]) for part in nothing)
                    both = tuple(torch.cat(pair) for pair in zip(nothing, condition, strict=True))  # (2B, ...)
                    both_labels = None if class_labels is None else torch.cat([class_labels] * 2)  # (2B,)
                if guided:
                    output = self.predict(torch.cat([model_input] * 2), t, both_labels, both)
                    output_uncond, output = output.chunk(2)  # (B, C or 2C, H, W)
                    # Ho and Salimans 2022, eq. 6; the scale is read anew, since a callback may change it
                    noise = output_uncond[:, :channels]
                    noise = noise + self.guidance_scale * (output[:, :channels] - noise)
                else:
                    output = self.predict(model_input, t, class_labels, condition)  # (B, C or 2C, H, W)
                    noise = output[:, :channels]
                if learned_variance:  # the second half, where there is one, is not guided
                    noise = torch.cat([noise, output[:, channels:]], dim=1)
                latents = self.scheduler.step(noise, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = latents.to(dtype)  # (B, C, H, W); some schedulers compute in another precision

                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    returned = callback_on_step_end(self, i, t, tensors) or {}
                    latents = returned.get("latents", latents)

        # 5. Pictures
        images = self.postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def postprocess(self, latents: torch.Tensor, output_type: str):
        """Turn latents (B, C, H, W) in [-1, 1] into what `output_type` says."""
        if output_type == "latent":
            return latents
        images = (latents / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        images = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
        return self.numpy_to_pil(images) if output_type == "pil" else images

    # Saving

    def to_json_file(self, json_file_path):
        """Write `model_index.json` with the source files beside it, so that the folder loads wherever it goes.

        `save_pretrained` and `push_to_hub` come through here once the components are saved and before anything is
        uploaded. Plain saving would record the network by its import path, which no other machine can resolve; here
        it is recorded by the name of its source file, which is laid beside its weights.
        """
        index = json.loads(self.to_json_string())
        for private in ("_module", "_name_or_path"):  # where this copy came from is of no use to the next reader
            index.pop(private, None)

        folder = os.path.dirname(os.fspath(json_file_path))
        pipeline_source = source_file(type(self))
        if pipeline_source is not None:
            copy_source(pipeline_source, os.path.join(folder, "pipeline.py"))
        for name, component in self.components.items():
            cls = type(component._orig_mod if is_compiled_module(component) else component)
            source = None if component is None or cls.__module__.startswith("diffusers.") else source_file(cls)
            if source is None:
                continue
            module_name = os.path.splitext(os.path.basename(source))[0]
            index[name] = [module_name, cls.__name__]
            if os.path.isdir(os.path.join(folder, name)):
                copy_source(source, os.path.join(folder, name, f"{module_name}.py"))
        write_text(json_file_path, json.dumps(index, indent=2, sort_keys=True) + "\n")
