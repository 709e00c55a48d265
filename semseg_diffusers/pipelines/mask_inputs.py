"""Reading masks of every form: files, images, arrays and tensors become class ids (H, W).

This file is saved beside the weights and runs without the package: it imports the standard library, numpy, PIL and
torch only.
"""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps


UNKNOWN = 255  # the id that every network reads as "class unknown"


def open_image(file, what: str = "mask", name=None, smallest=None) -> Image.Image:
    """Decode an image file, a path or its bytes, upright by its EXIF orientation; `format` stays that of the file.

    `smallest` is called with the height and width of the image and returns the smallest sufficient ones: a JPEG is
    then decoded at 1, 1/2, 1/4 or 1/8 of its size, which is much faster. A broken file, or one of several pages, is a
    `ValueError` that calls it `what` and `name`; a missing one an `OSError`.
    """
    is_bytes = isinstance(file, bytes)
    name = os.fspath(file) if name is None and not is_bytes else name
    is_empty = not file if is_bytes else os.path.isfile(file) and os.path.getsize(file) == 0
    if is_empty:
        raise ValueError(f"{what} '{name}' is empty (0 bytes). Write or copy the file again.")
    with image_errors(name, what), Image.open(io.BytesIO(file) if is_bytes else file) as image:
        check_single_image(image, what, name)
        is_wide = what == "mask" and image.mode in ("RGB", "RGBA") and ";16" in str(image.tile[:1])
        if smallest is not None:
            is_rotated = orientation(image) > 4
            height, width = smallest(*(image.size if is_rotated else image.size[::-1]))
            image.draft(None, (height, width) if is_rotated else (width, height))
        image.load()
    if is_wide:  # Pillow keeps the upper 8 bits only
        raise ValueError(
            f"mask '{name}' has colours of 16 bits; expected 8 bits per channel, or class ids in one channel. Save it "
            "as such a PNG."
        )
    return upright(image)


def check_single_image(image: Image.Image, what: str, name) -> None:
    """Raise a `ValueError` for a file of several pages or frames, of which one would be taken by chance."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format not in ("JPEG", "MPO"):  # cameras store previews beside a photo
        raise ImageFileError(f"{what} '{name}' has {pages} pages or frames; expected one image. Save one of them.")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image: 1 as it is, 3 by 180 degrees, from 5 on with its sides exchanged."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(2, 9) else 1  # some cameras write 0


def rotate(image: Image.Image, exif_orientation: int) -> Image.Image:
    """Rotate an image as an EXIF orientation says."""
    image.getexif()[ExifTags.Base.Orientation] = exif_orientation
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation, if it has one; `format` stays."""
    if orientation(image) == 1:
        return image
    rotated = ImageOps.exif_transpose(image)
    rotated.format = image.format
    return rotated


# What Pillow's decoders raise on broken files: not only OSError.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class ImageFileError(ValueError):
    """An image file that is broken, or not a single image."""


@contextlib.contextmanager
def image_errors(name, what: str = "mask") -> Iterator[None]:
    """Add the file to a decoder's errors about broken content."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImageFileError):
        raise
    except DECODER_ERRORS as err:
        raise ImageFileError(
            f"{what} '{name}' cannot be read as an image ({err}). Is it truncated, or not an image? Copy it again."
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


def check_ids(ids: np.ndarray, num_classes: int, ignore_index: int = 255, source=None, changed_ids=()) -> None:
    """Raise a `ValueError` that names file, value, range and likely cause if ids (any shape) leave the range."""
    values = np.unique(ids)
    changed = change_ids(values, changed_ids)
    wrong = values[((changed < 0) | (changed >= num_classes)) & (changed != ignore_index)]
    if len(wrong) == 0:
        return
    named = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    is_cityscapes = num_classes == 19 and wrong.min() >= -1 and wrong.max() <= 33
    one_more = wrong.tolist() == [num_classes] and not changed_ids
    hints = (
        (wrong.max() >= 1000, "Is it an instance file (class * 1000 + number) rather than class ids?"),
        (is_cityscapes, "Is it a Cityscapes labelIds file? Map its ids to trainIds (0-18) first."),
        (set(values.tolist()) <= {0, 255}, "Is it a black-and-white image rather than class ids?"),
        (
            one_more,
            f"Which id is unlabelled? If it is 0, and the classes are 1-{num_classes}, set ignore_index to 0; if it "
            f"is {num_classes}, set it to {num_classes} (in labels.json, or prepare --ignore_index).",
        ),
        (wrong.max() > 33, "Is it a grey image, or were ids scaled to grey levels? Save the class ids themselves."),
        (True, "Does the mask belong to another label set?"),
    )
    hint = next(text for applies, text in hints if applies)
    expected = f"0-{num_classes - 1}"
    if changed_ids:
        known = {*range(num_classes)} - {old for old, _ in changed_ids} | {
            old for old, new in changed_ids if new != -1
        }
        expected = ", ".join(map(str, sorted(known - {ignore_index})))
    raise ValueError(
        f"{describe_mask(source)} holds class{'es' if len(wrong) > 1 else ''} {named}; this model knows {expected} "
        f"and {ignore_index} (ignore). {hint}"
    )


def change_ids(ids: np.ndarray, changed_ids) -> np.ndarray:
    """Replace ids of the files by those of the classes: pairs (id in the files, id), of which -1 is no class."""
    if not changed_ids:
        return ids
    changed = dict(changed_ids)
    if ids.dtype == np.uint8 and -1 not in changed.values():  # fast
        table = np.arange(256, dtype=np.uint8)
        table[[old for old in changed if 0 <= old < 256]] = [new for old, new in changed.items() if 0 <= old < 256]
        return table[ids]
    result = ids.astype(np.int64)
    for old, new in changed.items():
        result[ids == old] = new
    return result


ID_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")  # of one channel
ALPHA_MODES = {"LA": "L", "PA": "P", "RGBA": "RGB", "RGBa": "RGB"}  # with alpha -> without


def mask_values(
    image: Image.Image, num_classes: int, colors, ignore_index: int = 255, ignore_color=(0, 0, 0), changed_ids=()
) -> tuple[str | None, tuple[str, ...]]:
    """Return how a mask is read if it is the only one, and all ways that suit what it holds.

    The ways are "ids", class ids; "colors", colours of the classes; "red", class ids in the red channel. None where
    two suit, give different classes, and nothing says which; no suitable way where it will be refused. One channel is
    ids, but colours where its values are no ids and all are grey levels of classes, or where a class is white and 255
    occurs. A palette is judged whole: ids where each class has its own colour there, or where it is a grey ramp, else
    its colours. RGB is colours, but ids in the red channel where green and blue are 0 and red holds ids that are no
    colours.
    """
    known = [] if colors is None else [*map(tuple, colors)]
    table = pack_colors(np.array([*known, *([tuple(ignore_color)] if ignore_color is not None else [])], ndmin=2))
    classes, ignored = table[: len(known)], table[len(known) :]

    def are_ids(values: np.ndarray) -> bool:
        ids = change_ids(values.astype(np.int64), changed_ids)
        return bool((((ids >= 0) & (ids < num_classes)) | (ids == ignore_index)).all())

    def of_colors(packed: np.ndarray) -> np.ndarray | None:  # ids, or None where a colour is unknown
        found = (packed[:, None] == classes).argmax(axis=1)
        is_class = np.isin(packed, classes)
        return np.where(is_class, found, ignore_index) if (is_class | np.isin(packed, ignored)).all() else None

    image = image if image.mode not in ALPHA_MODES else image.convert(ALPHA_MODES[image.mode])
    if image.mode not in (*ID_MODES, "RGB"):
        return None, ()
    if image.mode == "RGB":
        array = np.asarray(image)
        if array[..., 1:].any() or not are_ids(values := np.unique(array[..., 0])):
            return "colors", ("colors",)
        are_colors = colors is not None and of_colors(values.astype(np.int64) << 16) is not None
        if are_colors:
            return "colors", ("colors", "red")
        return ("red" if values.any() else "colors"), ("red",)  # black alone says nothing
    array = np.asarray(image)
    values = np.flatnonzero(np.bincount(array.reshape(-1))) if array.dtype == np.uint8 else np.unique(array)
    by_id = are_ids(values)
    ids = change_ids(values.astype(np.int64), changed_ids)
    if image.mode == "P" and colors is not None:
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 0], dtype=np.int64).reshape(-1, 3)
        entries = pack_colors(palette)
        is_ramp = len(palette) > 1 and (palette == np.arange(len(palette))[:, None]).all()
        by_color = of_colors(np.append(entries, -1)[np.minimum(values, len(entries))])
        same = by_color is not None and by_id and np.array_equal(by_color, ids)
        entry_classes = change_ids(np.arange(len(entries)), changed_ids)  # the class of each entry, as an id
        has_class = (entry_classes >= 0) & (entry_classes < num_classes)
        agreeing = entries[has_class] == classes[entry_classes[has_class]]
        if len(agreeing) and agreeing.all():
            return "ids", ("ids", "colors") if same else ("ids",) if by_id else ()
        if not is_ramp:
            if by_color is not None:
                return "colors", ("ids", "colors") if same else ("colors",)
            shown = has_class & np.isin(np.arange(len(entries)), values)
            if by_id and (ids == ignore_index).all():
                return "ids", ("ids",)
            fits = by_id and shown.any() and (entries[shown] == classes[entry_classes[shown]]).all()
            return ("ids", ("ids",)) if fits else ("colors", ())
    grey = (values >= 0) & (values <= 255)
    has_colors = colors is not None and grey.all()
    by_color = of_colors(values.astype(np.int64) * 0x010101) if has_colors else None
    if by_color is None:
        return "ids", ("ids",) if by_id else ()
    if (by_color == ignore_index).all():  # no class is seen, so nothing says that these are colours
        return "ids", ("ids", "colors") if by_id else ()
    if not by_id:
        return "colors", ("colors",)
    if np.array_equal(by_color, ids):
        return "ids", ("ids", "colors")
    if 255 in values and (255, 255, 255) in known:
        return "colors", ("ids", "colors")
    all_grey = all(red == green == blue for red, green, blue in known)
    return None if all_grey else "ids", ("ids", "colors")


def _flatten(image: Image.Image, source) -> Image.Image:
    """Return a mask without its alpha channel, which must be opaque."""
    if image.mode not in ALPHA_MODES:
        return image
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if (alpha < 255).any():
        raise ValueError(
            f"{describe_mask(source)} has {int((alpha < 255).sum())} transparent pixels, which have no "
            "class. Flatten it first: paint what is unknown in the ignore colour."
        )
    return image.convert(ALPHA_MODES[image.mode])


def _image_to_ids(
    image: Image.Image, num_classes, colors, ignore_index, ignore_color, changed_ids, tolerance, source, chosen
) -> np.ndarray:
    """Return the class ids of a PIL image: (H, W), checked for range."""
    is_jpeg = image.format in ("JPEG", "MPO")
    image = _flatten(upright(image), source)
    one_channel = image.mode in ID_MODES
    if not one_channel and image.mode != "RGB":
        raise ValueError(
            f"{describe_mask(source)} has the image mode {image.mode}; expected one channel of class ids (L, P, I;16) "
            "or the label set's colours (RGB). Save it as a PNG in one of these."
        )
    if is_jpeg and (one_channel or not tolerance):
        advice = "" if one_channel else ", or pass a tolerance to take the nearest colour (such as 30)"
        raise ValueError(
            f"{describe_mask(source)} is a JPEG, whose compression changes class ids and colours. Export the mask "
            f"again as PNG{advice}."
        )
    label_set = num_classes, colors, ignore_index, ignore_color, changed_ids
    if chosen is None:
        chosen, _ = mask_values(image, *label_set)
        if chosen is None:
            raise ValueError(
                f"{describe_mask(source)} has one channel, whose values can be class ids as well as the grey colours "
                "of classes, and these differ. Save it with the colours as palette, or in RGB (prepare and check: "
                "--mask_values)."
            )
    if chosen == "red" and image.mode == "RGB":
        ids = np.asarray(image)[..., 0]
    elif chosen == "ids" and one_channel:
        ids = np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    elif chosen == "colors" and colors is not None:
        return colors_to_ids(np.asarray(image.convert("RGB")), colors, ignore_index, ignore_color, tolerance, source)
    elif chosen == "colors":
        raise ValueError(
            f"{describe_mask(source)} is a colour image, but this model has no colours (id2color). Pass class ids "
            "(one channel), or convert the colours first: LabelSet.from_json(colormap).encode(image)."
        )
    else:
        held, expected = ("colours (RGB)", "class ids in one channel") if chosen == "ids" else ("one channel", "RGB")
        raise ValueError(f"{describe_mask(source)} holds {held}; expected {expected}, as in the rest of the dataset.")
    check_ids(ids, num_classes, ignore_index, source, changed_ids)
    return change_ids(ids, changed_ids)


def _array_to_ids(
    array: np.ndarray, num_classes, colors, ignore_index, ignore_color, changed_ids, tolerance, source, chosen
) -> np.ndarray:
    """Return the class ids of an array: (H, W), checked for range."""
    if array.ndim == 3 and array.shape[-1] == 1 and np.issubdtype(array.dtype, np.integer):
        array = array[..., 0]  # (H, W, 1), as from libraries that keep a channel
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        check_ids(array, num_classes, ignore_index, source, changed_ids)
        return change_ids(array, changed_ids)
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
        image = Image.fromarray(np.ascontiguousarray(array))
        label_set = num_classes, colors, ignore_index, ignore_color, changed_ids
        return _image_to_ids(image, *label_set, tolerance, source, chosen)
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
    changed_ids: Sequence[tuple[int, int]] = (),
    values: str | None = None,
) -> np.ndarray:
    """Read one mask of any form as class ids, (H, W) uint8.

    An image is read as `mask_values` decides, or as `values` says, one of its ways; an integer array (H, W) is
    ids, float or bool (num_classes, H, W) one-hot. `changed_ids` are (id in the mask, class id) where these differ.
    Colours need `colors`; those of no class take the nearest within `tolerance` (`colors_to_ids`). Errors name
    `source`; a path names itself.
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
        with image_errors(source):
            check_single_image(mask, "mask", source)
            mask.load()
    if not isinstance(mask, (Image.Image, np.ndarray)):
        raise TypeError(
            f"{describe_mask(source)} is of type {type(mask).__name__}; expected a path, a PIL image, an array or a "
            "tensor."
        )
    size = mask.size[::-1] if isinstance(mask, Image.Image) else mask.shape
    if 0 in size[:2]:
        raise ValueError(f"{describe_mask(source)} has no pixels: its size is {' x '.join(map(str, size[:2]))}.")
    settings = num_classes, colors, ignore_index, ignore_color, changed_ids, tolerance, source, values
    ids = _image_to_ids(mask, *settings) if isinstance(mask, Image.Image) else _array_to_ids(mask, *settings)
    return ids.astype(np.uint8)


def read_instances(instances) -> np.ndarray:
    """Read one map of instance ids (one channel of integers), such as Cityscapes' `instanceIds`: (H, W) int64."""
    named = "`instances`"
    if isinstance(instances, (str, os.PathLike)):
        named, instances = f"instances '{os.fspath(instances)}'", open_image(instances, "instances")
    if isinstance(instances, torch.Tensor):
        instances = instances.detach().cpu()
    ids = np.asarray(instances)
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
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


def split_masks(masks, num_classes: int | None = None) -> list:
    """Split what `mask` may be (a mask, a batch, a list, also of batches of one, None) into a list of single masks.

    Raises a `ValueError` for a batch of ids that is rather a one-hot map of `num_classes`, or an image of other
    channels.
    """
    if isinstance(masks, (list, tuple)):
        parts = [split_masks(mask, num_classes) for mask in masks]
        return [part[0] if len(part) == 1 else mask for mask, part in zip(masks, parts, strict=True)]
    if isinstance(masks, (np.ndarray, torch.Tensor)):
        is_one_hot = "float" in str(masks.dtype) or "bool" in str(masks.dtype)
        is_image = isinstance(masks, np.ndarray) and masks.dtype == np.uint8
        is_image = is_image and masks.ndim >= 3 and masks.shape[-1] in (3, 4)
        has_channel = masks.ndim > 2 and masks.shape[-1] == 1  # (H, W, 1) is a mask
        if masks.ndim == (4 if is_one_hot or is_image or has_channel else 3):
            if not (is_one_hot or is_image or has_channel):
                _check_batch(masks, num_classes)
            return list(masks)
    return [masks]


def _check_batch(masks: np.ndarray | torch.Tensor, num_classes: int | None) -> None:
    """Raise a `ValueError` for integers (A, B, C) that are hardly A masks of B x C."""
    count, height, width = masks.shape
    if not all(masks.shape):
        raise ValueError(f"the mask has shape {tuple(masks.shape)}, no pixel; expected class ids (H, W), or more.")
    array = np.asarray(masks.detach().cpu() if isinstance(masks, torch.Tensor) else masks)
    for axis in (0, 2):
        is_binary = num_classes is not None and 2 < num_classes == array.shape[axis] and array.min() >= 0
        if is_binary and array.max() == 1 and (array.sum(axis=axis) == 1).all():
            raise ValueError(
                f"the mask has shape {array.shape} and type {array.dtype}, one-hot along axis {axis}; expected "
                f"class ids (H, W). Pass mask.argmax({axis})."
            )
    if count > width and height > 3 * width:
        raise ValueError(
            f"the mask has shape {array.shape} and type {array.dtype}, which would be {count} masks of {height} x "
            f"{width}; expected class ids (H, W), a batch of them (N, H, W), or one-hot floats (num_classes, H, W). "
            "Pass a list if they are masks."
        )
