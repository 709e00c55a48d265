"""Finds photos that show the same, pixel for pixel or nearly so, by fingerprints that are compared all at once.

Nearly the same: a difference hash (signs of the differences between neighbours in a small grey copy) picks candidates,
the pixels of another small copy confirm them. Both bear compression, resizing, another exposure and small shifts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


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
