"""The rules of the filter as pure functions: which pixels become unknown, how hard a mask is, which images are kept.
They follow FreeMask (Yang et al. 2023); the minimum share that an image must keep is ours.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semseg_diffusers.utils.files import read_json


FILTER_FILE = "filter.json"
TOO_LITTLE_KEPT = "too little kept"
EASY_MASK = "easier mask"
NOTHING_LABELLED = "nothing labelled"
REASONS = {  # why images are dropped -> description on the page
    TOO_LITTLE_KEPT: "they keep a smaller share of their labelled pixels than --minimum_kept",
    EASY_MASK: "their masks are easier ones, of which --resample keeps the best images only",
    NOTHING_LABELLED: "their masks hold no labelled pixel",
}


def filter_ids(ids: np.ndarray, losses: np.ndarray, thresholds: np.ndarray, ignore_index: int) -> np.ndarray:
    """Set pixels to unknown whose loss exceeds the threshold of their class (FreeMask: margin times class mean).

    A threshold of infinity keeps all pixels of a class, NaN none.
    """
    limit = np.full(256, np.nan)
    limit[: len(thresholds)] = thresholds
    limit = limit[ids]  # (H, W)
    kept = (losses <= limit) | (limit == np.inf)  # comparisons with NaN are false
    return np.where(kept, ids, ignore_index).astype(np.uint8)


def mask_hardness(pixels: np.ndarray, class_losses: np.ndarray) -> float | None:
    """Return the mean class loss over the pixels of a mask (FreeMask); None if no pixel's class has one.

    `pixels` of each class in the mask, and their mean loss on real images, or NaN, are (num_classes,).
    """
    known = np.isfinite(class_losses)
    total = pixels[known].sum()
    return float((pixels[known] * class_losses[known]).sum() / total) if total else None


def ranks_of(hardness: Mapping[str, float | None]) -> dict[str, int]:
    """Return the rank of each mask by hardness, 0 for the easiest; masks without one come first, ties go by name."""
    order = sorted(hardness, key=lambda stem: (hardness[stem] is not None, hardness[stem] or 0.0, stem))
    return {stem: rank for rank, stem in enumerate(order)}


def images_to_keep(rank: int, num_masks: int, num_images: int) -> int:
    """Return how many of a mask's N images are kept: n = min(1 + round(rank / M * N), N) for M masks (FreeMask)."""
    return min(1 + round(rank / num_masks * num_images), num_images)


@dataclass(frozen=True)
class Scored:
    """Scores of one image."""

    name: str  # of its file, without suffix
    stem: str  # of its mask, shared by all images of the mask
    pixels: tuple[int, ...]  # labelled pixels of each class, before
    kept: tuple[int, ...]  # and after filtering
    loss: float | None  # mean over the labelled pixels of classes known to the network

    @property
    def kept_share(self) -> float | None:
        """Return the share of the labelled pixels that kept their labels; None without labelled pixels."""
        return sum(self.kept) / sum(self.pixels) if any(self.pixels) else None


def reasons_to_drop(
    images: Sequence[Scored], minimum_kept: float, ranks: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Choose the images to drop; return name -> one of `REASONS`.

    With `ranks` of the masks by hardness, harder ones keep more images: those that keep the largest share, then have
    the lowest loss, then come first by name.
    """
    reasons: dict[str, str] = {}
    of_mask: dict[str, list[Scored]] = {}
    for image in images:
        of_mask.setdefault(image.stem, []).append(image)
        if image.kept_share is None:
            reasons[image.name] = NOTHING_LABELLED
        elif image.kept_share < minimum_kept:
            reasons[image.name] = TOO_LITTLE_KEPT
    if ranks is not None:
        for stem, siblings in of_mask.items():
            good = sorted(
                (-(image.kept_share or 0), np.inf if image.loss is None else image.loss, image.name)
                for image in siblings
                if image.name not in reasons
            )
            for _, _, name in good[images_to_keep(ranks[stem], len(of_mask), len(siblings)) :]:
                reasons[name] = EASY_MASK
    return reasons


def read_filter(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the record of `semseg-diffusers filter`; None for a folder that was not filtered."""
    path = Path(folder) / FILTER_FILE
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        return {**record, "segmenter_sha256": str(record["segmenter_sha256"])}
    except (ValueError, KeyError) as err:
        raise ValueError(f"'{path}' is not a record of `semseg-diffusers filter` ({err!r}). Filter again.") from err
