"""Finds photos that show the same, pixel for pixel or nearly so, by fingerprints that are compared all at once.

Nearly the same: a difference hash (signs of the differences between neighbours in a small grey copy) picks candidates,
the pixels of another small copy confirm them. Both bear compression, resizing, another exposure and small shifts.
"""

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
from semseg_diffusers.data.prepare import ID_MODES, PHOTO_MODES, change_ids
from semseg_diffusers.data.readers import Drawing, Pair, Source, read_file
from semseg_diffusers.pipelines.mask_inputs import pack_colors, palette_agrees, unpack_colors
from semseg_diffusers.utils.images import decode_picture


HASH_SIDE = 16  # a hash has 16 x 16 signs
THUMB_SIDE = 32  # pixels
# Measured on CamVid: different scenes differ in 79 signs or more and by 16 grey levels or more; a copy at JPEG quality
# 40, at a quarter of the size, 20 % brighter or shifted by 1 % in 17 signs at most and by 9 grey levels at most.
SIGNS_APART = 40  # of 256
GREY_LEVELS_APART = 10.0  # of 255, in the mean, after the mean brightness is taken off
COMPARISONS = 4_000_000  # at a time; bounds the memory


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a photo."""

    digest: bytes  # of its size and pixels: equal for equal pictures, whatever the file
    signs: np.ndarray  # (256,) int8: 1 where a pixel of the small copy is brighter than its left neighbour, else -1
    thumb: np.ndarray  # (1024,) uint8: another small grey copy


def fingerprint(photo: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB photo."""
    digest = hashlib.blake2b(repr(photo.size).encode() + photo.tobytes(), digest_size=16).digest()
    grey = photo.convert("L")
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)).astype(np.int16)
    signs = np.where(small[:, 1:] > small[:, :-1], 1, -1).astype(np.int8).reshape(-1)
    thumb = np.asarray(grey.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)).reshape(-1)
    return Fingerprint(digest, signs, thumb)


def same_pictures(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of indices, two or more each, of pictures that are equal in every pixel."""
    groups: dict[bytes, list[int]] = {}
    for index, entry in enumerate(fingerprints):
        groups.setdefault(entry.digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(ones: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> list[tuple[int, int, float]]:
    """For each of `ones`, the picture of `others` that shows nearly the same, where there is one.

    The number of differing signs of all pairs comes from one matrix product; only pairs below the limit are compared
    by their pixels.

    Returns:
        list of (index in `ones`, index of the nearest in `others`, mean difference in grey levels).
    """
    if not ones or not others:
        return []
    signs = np.stack([entry.signs for entry in others]).astype(np.float32)  # (M, 256)
    thumbs = np.stack([entry.thumb for entry in others])  # (M, 1024)
    rows = max(1, COMPARISONS // len(others))
    found = []
    for start in range(0, len(ones), rows):
        part = ones[start : start + rows]
        products = np.stack([entry.signs for entry in part]).astype(np.float32) @ signs.T  # (rows, M)
        apart = (len(signs[0]) - products) / 2  # signs that differ
        near = apart <= SIGNS_APART
        for row in np.flatnonzero(near.any(axis=1)):
            candidates = np.flatnonzero(near[row])
            differences = thumbs[candidates].astype(np.float32) - part[row].thumb
            differences -= differences.mean(axis=1, keepdims=True)
            differences = np.abs(differences).mean(axis=1)
            nearest = int(differences.argmin())
            if differences[nearest] <= GREY_LEVELS_APART:
                found.append((start + int(row), int(candidates[nearest]), float(differences[nearest])))
    return found


READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # a disk's, an archive's, a decoder's
JPEG_START = b"\xff\xd8\xff"  # JPEG changes the values of a mask
MOST_COLORS = 64  # unknown colours of one mask that are kept


@dataclass
class PairFacts:
    """What was found in one pair. A fault is text; None where there is none."""

    photo: str  # where it is from
    mask: str
    split: str
    empty: list[str] = field(default_factory=list)  # which of the two have no bytes
    photo_fault: str | None = None  # it cannot be read
    mask_fault: str | None = None  # it cannot be read, or is of a kind that is no mask
    photo_size: tuple[int, int] | None = None  # height and width, upright
    mask_size: tuple[int, int] | None = None
    photo_mode: str = ""  # Pillow's mode, where `prepare` refuses it
    one_color: bool = False  # the photo shows a single colour
    jpeg_mask: bool = False  # the mask's file is a JPEG
    ids: Counter = field(default_factory=Counter)  # id -> pixels, of a mask with ids that are no class
    colors: Counter = field(default_factory=Counter)  # RGB -> pixels: colours that no class has, the most frequent
    class_pixels: np.ndarray | None = None  # (C + 1,), unknown last; None where the mask cannot be read as ids
    fingerprint: Fingerprint | None = None  # of the photo


def inspect_pair(pair: Pair, source: Source | None, tolerance: float = 0.0) -> PairFacts:
    """Look at photo and mask.

    Args:
        pair (`Pair`)
        source (`Source`, *optional*): the classes of the mask, and how ids in the files become those; without it the
            values of the mask are not looked at.
        tolerance (`float`, defaults to 0): see `LabelSet.encode`.
    """
    facts = PairFacts(str(pair.photo), str(pair.mask), pair.split)
    try:
        _look_at_photo(_read(pair.photo, facts), facts)
    except READ_ERRORS as err:
        facts.photo_fault = _text_of(err)
    try:
        if not isinstance(pair.mask, Drawing):
            _look_at_mask(_read(pair.mask, facts), facts, source, tolerance)
        elif facts.photo_size is not None:  # a drawing has the size of its photo
            facts.mask_size = facts.photo_size
            ids = pair.mask.draw(*facts.photo_size, *map(np.arange, facts.photo_size))
            facts.class_pixels = None if source is None else count_pixels(ids, source.labels.num_classes)
    except READ_ERRORS as err:
        facts.mask_fault = _text_of(err)
    return facts


def picture_fault(path) -> str | None:
    """Why a file cannot be read as a picture; None where it can."""
    try:
        decode_picture(read_file(path), "picture", path)
    except READ_ERRORS as err:
        return _text_of(err)
    return None


def _read(place, facts: PairFacts) -> bytes:
    data = read_file(place)
    if not data:
        facts.empty.append(str(place))
    return data


def _text_of(err: BaseException) -> str:
    return str(err) or type(err).__name__


def _look_at_photo(data: bytes, facts: PairFacts) -> None:
    photo = decode_picture(data, "photo", facts.photo)
    facts.photo_size = (photo.height, photo.width)
    if photo.mode not in PHOTO_MODES:
        facts.photo_mode = photo.mode
        return
    photo = photo.convert("RGB")
    facts.one_color = all(low == high for low, high in photo.getextrema())
    facts.fingerprint = fingerprint(photo)


def _look_at_mask(data: bytes, facts: PairFacts, source: Source | None, tolerance: float) -> None:
    facts.jpeg_mask = data.startswith(JPEG_START)
    picture = decode_picture(data, "mask", facts.mask)
    facts.mask_size = (picture.height, picture.width)
    if source is None:
        return
    labels = source.file_labels or source.labels
    if source.file_labels is None and source.changed_ids and picture.mode in ID_MODES:
        picture = change_ids(np.asarray(picture), source.changed_ids)
    try:
        ids = labels.encode(picture, tolerance=tolerance, source=facts.mask)
    except ValueError as err:
        if isinstance(picture, np.ndarray) or _holds_ids(picture, labels):
            facts.ids = _strange_ids(np.asarray(picture), labels)
        elif picture.mode in ("P", "RGB"):
            facts.colors = _strange_colors(picture.convert("RGB"), labels, tolerance)
        if not facts.ids and not facts.colors:  # of a kind that is no mask: transparent, floats, ...
            facts.mask_fault = str(err)
    else:
        if source.file_labels is not None:
            ids = change_ids(ids, source.changed_ids)
        facts.class_pixels = count_pixels(ids, source.labels.num_classes)


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
