"""Inspect single pairs, and find images that are the same in every pixel or nearly so.

Nearly the same: a difference hash (signs of the differences between neighbours in a small grey copy) selects
candidates, the pixels of another small copy confirm them. Both tolerate compression, resizing, another exposure and
small shifts.
"""

import functools
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.polygons import RegionMask
from semseg_diffusers.data.prepare import read_mask_file
from semseg_diffusers.data.readers import Pair, Source, read_file
from semseg_diffusers.data.readers.pairs import ImageFile
from semseg_diffusers.pipelines.image_inputs import IMAGE_MODES, to_rgb
from semseg_diffusers.pipelines.mask_inputs import ID_MODES, change_ids, open_image, pack_colors, unpack_colors


HASH_SIDE = 16  # a hash has 16 x 16 signs
THUMB_SIDE = 32  # pixels
# Measured on CamVid: different scenes differ in 79 signs or more and by 16 grey levels or more; a copy at JPEG quality
# 40, at a quarter of the size, 20 % brighter or shifted by 1 % in at most 17 signs and by at most 9 grey levels.
MAX_SIGNS = 40  # of 256
MAX_GREY_LEVELS = 10.0  # of 255, on average, without the difference in brightness
COMPARISONS = 4_000_000  # at a time; bounds the memory


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image for comparison."""

    digest: bytes  # of its size and pixels: the same for equal images, whatever the file
    signs: np.ndarray  # (256,) int8: 1 where a pixel of the small copy is brighter than its left neighbour, else -1
    thumb: np.ndarray  # (1024,) uint8: another small grey copy


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB image."""
    digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
    grey = image.convert("L")
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)).astype(np.int16)
    signs = np.where(small[:, 1:] > small[:, :-1], 1, -1).astype(np.int8).reshape(-1)
    thumb = np.asarray(grey.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)).reshape(-1)
    return Fingerprint(digest, signs, thumb)


def same_images(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Return groups of indices, two or more each, of images that are equal in every pixel."""
    groups: dict[bytes, list[int]] = {}
    for index, entry in enumerate(fingerprints):
        groups.setdefault(entry.digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(ones: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> list[tuple[int, int, float]]:
    """Return near-duplicates: index in `ones`, index of the nearest in `others`, mean difference in grey levels."""
    if not ones or not others:
        return []
    signs = np.stack([entry.signs for entry in others]).astype(np.float32)  # (M, 256)
    thumbs = np.stack([entry.thumb for entry in others])  # (M, 1024)
    step = max(1, COMPARISONS // len(others))
    found = []
    for start in range(0, len(ones), step):
        products = np.stack([entry.signs for entry in ones[start : start + step]]).astype(np.float32) @ signs.T
        near = (signs.shape[1] - products) / 2 <= MAX_SIGNS  # (step, M)
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            candidates = np.flatnonzero(near[row])
            differences = thumbs[candidates].astype(np.float32) - ones[start + row].thumb
            differences -= differences.mean(axis=1, keepdims=True)
            distances = np.abs(differences).mean(axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] <= MAX_GREY_LEVELS:
                found.append((start + row, int(candidates[nearest]), float(distances[nearest])))
    return found


# Single pairs ------------------------------------------------------------------------------------------------------

READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # a disk's, an archive's, a decoder's
JPEG_START = b"\xff\xd8\xff"  # JPEG changes the values of a mask
MOST_COLORS = 64  # unknown colours of one mask that are kept


@dataclass
class PairFacts:
    """What was found in one pair. A fault is text; None without one."""

    image: str  # its file
    mask: str
    split: str
    empty: list[str] = field(default_factory=list)  # files of no bytes
    image_fault: str | None = None  # it cannot be read
    mask_fault: str | None = None  # it cannot be read, or is no kind of mask
    image_size: tuple[int, int] | None = None  # height and width, upright
    mask_size: tuple[int, int] | None = None
    image_mode: str = ""  # Pillow's mode, if `prepare` refuses it
    one_color: bool = False  # the image shows a single colour
    jpeg_mask: bool = False  # the mask's file is a JPEG
    ids: Counter[int] = field(default_factory=Counter)  # id -> pixels, of a mask with ids that are no class
    colors: Counter[tuple[int, int, int]] = field(
        default_factory=Counter
    )  # RGB -> pixels: the most frequent wrong ones
    class_pixels: np.ndarray | None = None  # (C + 1,), unknown last; None if the mask cannot be read as ids
    fingerprint: Fingerprint | None = None  # of the image


def inspect_pair(pair: Pair, source: Source | None, tolerance: float = 0.0) -> PairFacts:
    """Look at image and mask; without a source, the values of the mask are not checked."""
    facts = PairFacts(str(pair.image), str(pair.mask), pair.split)
    try:
        image = open_image(_read(pair.image, facts), "image", facts.image)
        facts.image_size = (image.height, image.width)
        if image.mode in IMAGE_MODES:
            image = to_rgb(image, f"image '{facts.image}'")
            facts.one_color = len(image.getcolors(1) or ()) == 1
            facts.fingerprint = fingerprint(image)
        else:
            facts.image_mode = image.mode
    except READ_ERRORS as err:
        facts.image_fault = _text_of(err)
    try:
        if not isinstance(pair.mask, RegionMask):
            _inspect_mask(pair, facts, source, tolerance)
        elif facts.image_size is not None:  # regions have the size of their image
            height, width = facts.mask_size = facts.image_size
            ids = pair.mask.rasterize(height, width, np.arange(height), np.arange(width))
            facts.class_pixels = None if source is None else count_pixels(ids, source.labels.num_classes)
    except READ_ERRORS as err:
        facts.mask_fault = _text_of(err)
    return facts


def image_fault(file: ImageFile) -> str | None:
    """Return why a file cannot be read as an image; None if it can."""
    try:
        open_image(read_file(file), "image", file)
    except READ_ERRORS as err:
        return _text_of(err)
    return None


def _read(file: ImageFile, facts: PairFacts) -> bytes:
    data = read_file(file)
    if not data:
        facts.empty.append(str(file))
    return data


def _text_of(err: BaseException) -> str:
    return str(err) or type(err).__name__


def _inspect_mask(pair: Pair, facts: PairFacts, source: Source | None, tolerance: float) -> None:
    data = _read(pair.mask, facts)  # type: ignore[arg-type]
    facts.jpeg_mask = data.startswith(JPEG_START)
    mask = open_image(data, "mask", facts.mask) if source is None else read_mask_file(pair, source)
    facts.mask_size = (mask.height, mask.width)
    if source is None:
        return
    labels = source.mask_labels
    try:
        ids = source.encode(mask, facts.mask, tolerance)
    except ValueError as err:
        values = source.mask_values or labels.mask_values(mask)[0]
        if mask.mode in ID_MODES and values == "ids":
            facts.ids = _wrong_ids(np.asarray(mask), labels)
        elif mask.mode in ("P", "RGB"):
            facts.colors = _wrong_colors(mask.convert("RGB"), labels, tolerance)
        if not facts.ids and not facts.colors:  # of a kind that is no mask: transparent, floats, ...
            facts.mask_fault = str(err)
    else:
        facts.class_pixels = count_pixels(ids, source.labels.num_classes)


def _wrong_ids(ids: np.ndarray, labels: LabelSet) -> Counter[int]:
    """Count all ids of a mask if some are no class: the others show too what kind of file it is."""
    values, counts = np.unique(ids.astype(np.int64), return_counts=True)
    known = {*range(labels.num_classes), labels.ignore_index}
    if set(change_ids(values, labels.changed_ids).tolist()) <= known:
        return Counter()
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _wrong_colors(mask: Image.Image, labels: LabelSet, tolerance: float) -> Counter[tuple[int, int, int]]:
    """Count the most frequent colours that are no class, within the tolerance."""
    packed, counts = np.unique(pack_colors(np.asarray(mask)), return_counts=True)
    colors = unpack_colors(packed)  # (N, 3)
    wrong = color_distances(colors, labels) > tolerance
    order = np.argsort(-counts[wrong], kind="stable")[:MOST_COLORS]
    return Counter(
        {
            (r, g, b): n
            for (r, g, b), n in zip(colors[wrong][order].tolist(), counts[wrong][order].tolist(), strict=True)
        }
    )


def color_distances(colors: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Return the Euclidean distance in RGB of each colour (N, 3) to the nearest of the label set, (N,)."""
    known = np.array([*labels.colors, labels.ignore_color], dtype=np.float64)
    return functools.reduce(np.minimum, (np.linalg.norm(colors - color, axis=-1) for color in known))
