"""Looks at one pair of photo and mask and writes down all that is wrong, instead of stopping at the first fault.
It reads files as `prepare` does; nothing that a file holds makes it raise.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from semseg_diffusers.data.duplicates import Fingerprint, fingerprint
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import PHOTO_MODES
from semseg_diffusers.data.readers import Pair
from semseg_diffusers.data.statistics import count_pixels
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import (
    open_image,
    pack_colors,
    palette_agrees,
    unpack_colors,
)


# What Pillow's decoders raise on broken files; they do not keep to OSError.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
LOSSY = ("JPEG", "MPO")  # formats that change the values of a mask; WebP may be lossless
MOST_COLORS = 64  # unknown colours of one mask that are kept


@dataclass
class PairFacts:
    """What was found in one pair. A fault is text; None where there is none."""

    pair: Pair
    photo_fault: str | None = None  # it cannot be read
    mask_fault: str | None = None  # it cannot be read, or is of a kind that is no mask
    photo_size: tuple[int, int] | None = None  # height and width, upright
    mask_size: tuple[int, int] | None = None
    photo_mode: str = ""  # Pillow's mode, where `prepare` refuses it
    one_color: bool = False  # the photo shows a single colour
    lossy_mask: str = ""  # the lossy format of the mask's file
    ids: Counter = field(default_factory=Counter)  # id -> pixels, of a mask with ids that are no class
    colors: Counter = field(default_factory=Counter)  # RGB -> pixels: colours that no class has, the most frequent
    class_pixels: np.ndarray | None = None  # (C + 1,), unknown last; None where the mask cannot be read as ids
    fingerprint: Fingerprint | None = None  # of the photo


def inspect_pair(
    pair: Pair, labels: LabelSet | None, changed_ids: Mapping[int, int] | None = None, tolerance: float = 0.0
) -> PairFacts:
    """Look at photo and mask.

    Args:
        pair (`Pair`)
        labels (`LabelSet`, *optional*): the classes of the mask; without them its values are not looked at.
        changed_ids (`Mapping[int, int]`, *optional*): id in the file -> id in the label set.
        tolerance (`float`, defaults to 0): see `LabelSet.encode`.
    """
    facts = PairFacts(pair)
    try:
        _look_at_photo(open_image(pair.photo, "photo"), facts)
    except DECODER_ERRORS as err:
        facts.photo_fault = _text_of(err)
    try:
        _look_at_mask(open_image(pair.mask), facts, labels, changed_ids or {}, tolerance)
    except DECODER_ERRORS as err:
        facts.mask_fault = _text_of(err)
    return facts


def picture_fault(path: Path) -> str | None:
    """Why a file cannot be read as a picture; None where it can."""
    try:
        open_image(path, "picture")
    except DECODER_ERRORS as err:
        return _text_of(err)
    return None


def _text_of(err: BaseException) -> str:
    return str(err) or type(err).__name__


def _look_at_photo(photo: Image.Image, facts: PairFacts) -> None:
    if photo.mode not in PHOTO_MODES:
        facts.photo_mode = photo.mode
        facts.photo_size = (photo.height, photo.width)
        return
    photo = ImageOps.exif_transpose(photo).convert("RGB")
    facts.photo_size = (photo.height, photo.width)
    facts.one_color = all(low == high for low, high in photo.getextrema())
    facts.fingerprint = fingerprint(photo)


def _look_at_mask(
    mask: Image.Image, facts: PairFacts, labels: LabelSet | None, changed_ids: Mapping[int, int], tolerance: float
) -> None:
    facts.lossy_mask = mask.format if mask.format in LOSSY else ""
    picture = mask = ImageOps.exif_transpose(mask)
    facts.mask_size = (mask.height, mask.width)
    if labels is None:
        return
    if changed_ids and mask.mode in ("L", "P"):
        before = np.asarray(mask)
        picture = before.copy()
        for old, new in changed_ids.items():
            picture[before == old] = new
    try:
        ids = labels.encode(picture, tolerance=tolerance, source=facts.pair.mask)
    except ValueError as err:
        if isinstance(picture, np.ndarray) or _holds_ids(picture, labels):
            facts.ids = _strange_ids(np.asarray(picture), labels)
        elif picture.mode in ("P", "RGB"):
            facts.colors = _strange_colors(picture.convert("RGB"), labels, tolerance)
        if not facts.ids and not facts.colors:  # of a kind that is no mask: transparent, floats, ...
            facts.mask_fault = str(err)
    else:
        facts.class_pixels = count_pixels(ids, labels.num_classes)


def _holds_ids(mask: Image.Image, labels: LabelSet) -> bool:
    if mask.mode == "P":
        return palette_agrees(mask, labels.num_classes, labels.colors, labels.ignore_index)
    return mask.mode in ("1", "L", "I") or mask.mode.startswith("I;16")


def _strange_ids(ids: np.ndarray, labels: LabelSet) -> Counter:
    """All ids of a mask where some are no class: what kind of file it is shows in the others too."""
    values, counts = np.unique(ids.astype(np.int64), return_counts=True)
    found = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    known = {*range(labels.num_classes), labels.ignore_index}
    return found if found.keys() - known else Counter()


def _strange_colors(mask: Image.Image, labels: LabelSet, tolerance: float) -> Counter:
    """The most frequent colours that are no class, within the tolerance."""
    packed, counts = np.unique(pack_colors(np.asarray(mask)), return_counts=True)
    colors = unpack_colors(packed)  # (N, 3)
    strange = color_distances(colors, labels) > tolerance
    order = np.argsort(-counts[strange], kind="stable")[:MOST_COLORS]
    rows = zip(colors[strange][order].tolist(), counts[strange][order].tolist(), strict=True)
    return Counter({tuple(color): count for color, count in rows})


def color_distances(colors: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Euclidean distance in RGB of each colour (N, 3) to the nearest of the label set, (N,)."""
    known = np.array([*labels.colors, labels.ignore_color], dtype=np.float64)
    nearest = np.full(len(colors), np.inf)
    for color in known:
        np.minimum(nearest, np.linalg.norm(colors - color, axis=-1), out=nearest)
    return nearest
