"""Reading masks of every form: files, images, arrays and tensors become class ids (H, W).

This file is saved beside the weights and runs without the package: it imports the standard library, numpy, PIL and
torch only.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image


UNKNOWN = 255  # the id that every network reads as "class unknown"


def open_image(path, what: str = "mask") -> Image.Image:
    """Decode an image file: a `ValueError` that calls it `what` if it is broken, an `OSError` if it is missing."""
    path = os.fspath(path)
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise ValueError(f"{what} '{path}' is empty (0 bytes). Write or copy the file again.")
    with _name_file_in_errors(path, what), Image.open(path) as image:
        image.load()
    return image


@contextlib.contextmanager
def _name_file_in_errors(path, what: str = "mask") -> Iterator[None]:
    """Add the file to Pillow's errors about broken content."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
        raise ValueError(
            f"{what} '{path}' cannot be read as an image ({err}). Is it truncated or no image? Copy the file again."
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
    """Return the name of a mask for a message: its file, or "the mask" where there is none."""
    return "the mask" if source is None else f"mask '{source}'"


def colors_to_ids(
    image: np.ndarray,
    colors: Sequence[Sequence[int]],
    ignore_index: int = 255,
    ignore_color: Sequence[int] | None = (0, 0, 0),
    tolerance: float = 0.0,
    source=None,
) -> np.ndarray:
    """Convert an RGB image (H, W, 3) uint8 to class ids (H, W) uint8; `colors` are those of the classes in order.

    Pixels in the ignore colour become `ignore_index`. A colour of no class becomes the class with the nearest one if
    its Euclidean distance in RGB (0 to 441) is at most `tolerance`, else it is a `ValueError` that names the file
    `source`.
    """
    known_colors, known_ids = [tuple(color) for color in colors], list(range(len(colors)))
    if ignore_color is not None and tuple(ignore_color) not in known_colors:  # a class wins over the ignore colour
        known_colors.append(tuple(ignore_color))
        known_ids.append(ignore_index)
    table, ids = np.asarray(known_colors, dtype=np.int64), np.asarray(known_ids, dtype=np.uint8)

    packed, known = pack_colors(image), pack_colors(table)  # (H, W), (colours known,)
    order = np.argsort(known, kind="stable")
    entry = order[np.minimum(np.searchsorted(known, packed, sorter=order), len(known) - 1)]  # (H, W)
    result: np.ndarray = ids[entry]
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
        hint = "JPEG and WebP change colours: export the mask as PNG, or pass a tolerance (such as 30)."
    else:
        hint = "Use the label set that the mask was painted with, or pass a tolerance to take the nearest colour."
    colours = "colour" if len(packed) == 1 else "colours"
    return f"{describe_mask(source)} holds {len(packed)} {colours} that no class has{within}: {named}{more}. {hint}"


def ids_to_image(
    ids: np.ndarray, colors: Sequence[Sequence[int]], ignore_index: int = 255, ignore_color=(0, 0, 0)
) -> Image.Image:
    """Convert class ids (H, W) to a P-mode image: the index is the id, the palette holds the colours."""
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
    is_cityscapes = num_classes == 19 and wrong.min() >= -1 and wrong.max() <= 33
    hints = (
        (wrong.max() >= 1000, "Is it an instance file (class * 1000 + number) rather than class ids?"),
        (is_cityscapes, "Is it a Cityscapes labelIds file? Map its ids to trainIds (0-18) first."),
        (set(values.tolist()) <= {0, 255}, "Is it a black-and-white image rather than class ids?"),
        (wrong.tolist() == [num_classes], f"Is {num_classes} the unlabelled class? Write {ignore_index} there."),
        (wrong.max() > 33, "Is it a grey image, or were ids scaled to grey levels? Save the class ids themselves."),
        (True, "Does the mask belong to another label set?"),
    )
    hint = next(text for applies, text in hints if applies)
    raise ValueError(
        f"{describe_mask(source)} holds class{'es' if len(wrong) > 1 else ''} {named}; this model knows "
        f"0-{num_classes - 1} and {ignore_index} (ignore). {hint}"
    )


def palette_agrees(image: Image.Image, num_classes: int, colors, ignore_index: int = 255) -> bool:
    """Return whether indices are ids: by a grey palette, the classes' own colours, or where all of it is ignored."""
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


def _image_to_ids(image: Image.Image, num_classes, colors, ignore_index, ignore_color, tolerance, source):
    """Return the ids of a PIL image: (H, W) integers, not yet checked for range."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if (alpha < 255).any():
            raise ValueError(
                f"{describe_mask(source)} has {int((alpha < 255).sum())} transparent pixels, which have no "
                "class. Flatten it first: paint what is unknown in the ignore colour."
            )
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode == "P" and (colors is None or palette_agrees(image, num_classes, colors, ignore_index)):
        return np.asarray(image)
    if image.mode in ("1", "L") or image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    if image.mode not in ("P", "RGB"):
        raise ValueError(
            f"{describe_mask(source)} has the image mode {image.mode}; expected one channel of class ids (L, P, I;16) "
            "or the label set's colours (RGB). Save it as a PNG in one of these."
        )
    if colors is None:
        raise ValueError(
            f"{describe_mask(source)} is a colour image, but this model has no colours (id2color). Pass class ids "
            "(one channel), or convert the colours first: LabelSet.from_json(colormap).encode(image)."
        )
    return colors_to_ids(np.asarray(image.convert("RGB")), colors, ignore_index, ignore_color, tolerance, source)


def _array_to_ids(array: np.ndarray, num_classes, colors, ignore_index, ignore_color, tolerance, source):
    """Return the ids of an array: (H, W) integers, not yet checked for range."""
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        return array
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
        image = Image.fromarray(np.ascontiguousarray(array))
        return _image_to_ids(image, num_classes, colors, ignore_index, ignore_color, tolerance, source)
    is_one_hot = array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating)
    if array.ndim == 3 and is_one_hot and array.shape[0] == num_classes:
        marked = array == 1
        if not (marked | (array == 0)).all() or (marked.sum(axis=0) > 1).any():
            raise ValueError(
                f"{describe_mask(source)} has {num_classes} channels but is not one-hot: each pixel holds a single 1, "
                "or zeros only where unknown. Pass the ids instead: mask.argmax over the channels."
            )
        return np.where(marked.any(axis=0), marked.argmax(axis=0), ignore_index)
    raise ValueError(
        f"{describe_mask(source)} has shape {array.shape} and type {array.dtype}; expected integer class ids (H, W), "
        f"one-hot floats or booleans ({num_classes}, H, W), or an RGB image (H, W, 3) of type uint8."
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
    """Read one mask of any form as class ids, (H, W) uint8.

    One channel (modes 1, L, I, I;16; integer arrays (H, W)) is ids; a P-mode image is ids if its palette agrees
    (`palette_agrees`), else colours; RGB, and RGBA without transparency, is colours (`colors_to_ids`), which needs
    `colors`; float or bool (num_classes, H, W) is one-hot. Errors name `source`; a path names itself.
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
        with _name_file_in_errors(source):
            mask.load()
    if not isinstance(mask, (Image.Image, np.ndarray)):
        raise TypeError(
            f"{describe_mask(source)} is of type {type(mask).__name__}; expected a path, a PIL image, an array or a "
            "tensor."
        )
    label_set = (num_classes, colors, ignore_index, ignore_color, tolerance, source)
    ids = _image_to_ids(mask, *label_set) if isinstance(mask, Image.Image) else _array_to_ids(mask, *label_set)
    if 0 in ids.shape:
        raise ValueError(f"{describe_mask(source)} has no pixels: its size is {ids.shape[0]} x {ids.shape[1]}.")
    check_ids(ids, num_classes, ignore_index, source)
    return ids.astype(np.uint8)


def read_instances(instances) -> np.ndarray:
    """Read one map of instance ids (one channel of integers), such as Cityscapes' `instanceIds`: (H, W) int64."""
    named = "`instances`"
    if isinstance(instances, (str, os.PathLike)):
        named, instances = f"instances '{os.fspath(instances)}'", open_image(instances, "instances")
    if isinstance(instances, torch.Tensor):
        instances = instances.detach().cpu()
    ids = np.asarray(instances)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
        raise ValueError(f"{named} have shape {ids.shape} and type {ids.dtype}; expected integer ids of shape (H, W).")
    return ids.astype(np.int64)


def center_crop_box(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """Return the largest centred box with the target's aspect ratio: (left, top, right, bottom), as PIL crops.

    Example:
        >>> center_crop_box(720, 1280, 128, 128)
        (280, 0, 1000, 720)
    """
    crop_width = min(width, max(1, round(height * target_width / target_height)))
    crop_height = min(height, max(1, round(width * target_height / target_width)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def resize_ids(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centre-crop ids (H, W) to the aspect ratio, then resize to (height, width) by nearest neighbour."""
    box = center_crop_box(ids.shape[0], ids.shape[1], height, width)
    return crop_resize_ids(ids, box, height, width)


def crop_resize_ids(ids: np.ndarray, box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Resize a box (left, top, right, bottom) of ids (H, W) to (height, width) by nearest neighbour."""
    left, top, right, bottom = box
    if (bottom - top, right - left) == (height, width):
        return ids[top:bottom, left:right]
    rows = top + (2 * np.arange(height) + 1) * (bottom - top) // (2 * height)  # pixel centres
    columns = left + (2 * np.arange(width) + 1) * (right - left) // (2 * width)
    return ids[rows[:, None], columns]


def split_masks(masks) -> list:
    """Split what `mask` may be (a mask, a batch, a list, also of batches of one, None) into a list of single masks."""
    if isinstance(masks, (list, tuple)):
        parts = [split_masks(mask) for mask in masks]
        return [part[0] if len(part) == 1 else mask for mask, part in zip(masks, parts, strict=True)]
    if isinstance(masks, (np.ndarray, torch.Tensor)):
        is_one_hot = "float" in str(masks.dtype) or "bool" in str(masks.dtype)
        is_image = isinstance(masks, np.ndarray) and masks.dtype == np.uint8
        is_image = is_image and masks.ndim >= 3 and masks.shape[-1] in (3, 4)
        if masks.ndim == (4 if is_one_hot or is_image else 3):
            return list(masks)
    return [masks]
