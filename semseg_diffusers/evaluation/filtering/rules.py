"""The rules of the filter: which pixels become unknown, how hard a mask is, which images are kept; and the losses of a
segmentation network that they need. They follow FreeMask (Yang et al. 2023); the minimum share that an image must keep
is ours.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.utils.files import read_json
from semseg_diffusers.utils.progress import progress_bar


FILTER_FILE = "filter.json"
TOO_LITTLE_KEPT = "too little kept"
EASY_MASK = "easier mask"
NOTHING_LABELLED = "nothing labelled"
REASONS = {  # why images are dropped -> description on the page
    TOO_LITTLE_KEPT: "they keep a smaller share of their labelled pixels than --minimum_kept",
    EASY_MASK: "their masks are easier ones, of which --resample keeps the best images only",
    NOTHING_LABELLED: "their masks hold no labelled pixel",
}
MAX_REFERENCES = 200  # real images that the rule is measured on, evenly spaced


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


def filter_ids(
    ids: np.ndarray,
    losses: np.ndarray,
    thresholds: np.ndarray,
    ignore_index: int,
    is_real: np.ndarray | None = None,
) -> np.ndarray:
    """Set pixels to unknown whose loss exceeds the threshold of their class (FreeMask: margin times class mean).

    A threshold of infinity keeps all pixels of a class, NaN none. Those of `is_real` (H, W) are kept in any case.
    """
    limit = np.full(256, np.nan)
    limit[: len(thresholds)] = thresholds
    limit = limit[ids]  # (H, W)
    kept = (losses <= limit) | (limit == np.inf)  # comparisons with NaN are false
    if is_real is not None:
        kept |= is_real
    return np.where(kept, ids, ignore_index).astype(np.uint8)


@dataclass(frozen=True)
class ClassLosses:
    """Mean loss of a network on real images, by class."""

    key: str  # hash of network, preprocessing and images; equal keys need no new computation
    names: tuple[str, ...]
    mean: tuple[float | None, ...]  # nats per pixel; None: no pixel of this class, or unknown to the network
    pixels: tuple[int, ...]  # in the mean
    num_photos: int

    def array(self) -> np.ndarray:
        """Return the means (num_classes,); NaN where there is none."""
        return np.array([np.nan if value is None else value for value in self.mean])

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Return the classes without a mean, whose pixels cannot be checked."""
        return tuple(name for name, value in zip(self.names, self.mean, strict=True) if value is None)

    @property
    def unread(self) -> tuple[str, ...]:
        """Return the classes predicted no better than chance: nearly all of their pixels are within the tolerance."""
        chance = np.log(len(self.names))
        return tuple(name for name, mean in zip(self.names, self.array(), strict=True) if mean >= chance)

    def thresholds(self, margin: float, keep_unchecked: bool) -> np.ndarray:
        """Return the loss above which a pixel becomes unknown (num_classes,), for `filter_ids`."""
        means = self.array()
        return np.where(np.isnan(means), np.inf if keep_unchecked else np.nan, margin * means)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ClassLosses":
        """Read JSON values."""
        names, mean, pixels = (tuple(record[name]) for name in ("names", "mean", "pixels"))
        return cls(record["key"], names, mean, pixels, record["num_photos"])


PairOf = Callable[[int], Mapping[str, torch.Tensor]]  # index -> `image` uint8 (3, H, W) and `mask` ids (H, W)


def real_pixels(row: Mapping[str, Any], pair_of: PairOf, index: int, real: PairDataset) -> np.ndarray | None:
    """Return which pixels (H, W) of a photo that `generate --edit` edited are still those of its real pair.

    Their labels are right, whatever a network finds. None for an image generated as a whole, which is not read.
    """
    stem = Path(row.get("source_photo") or "").stem
    if "edited_share" not in row or stem not in real.stems:
        return None
    edited, pair = pair_of(index), real[real.stems.index(stem)]
    return ((edited["image"] == pair["image"]).all(0) & (edited["mask"] == pair["mask"])).numpy()


@dataclass(frozen=True)
class LossReader:
    """Computes the losses of pairs under the network that filters."""

    segmenter: Judge
    batch_size: int = 8
    show_progress: bool = False

    def read(self, pair_of: PairOf, indices: Sequence[int], title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and losses (H, W) of pairs."""
        with progress_bar(total=len(indices), desc=title, unit="image", disable=not self.show_progress) as bar:
            for start in range(0, len(indices), self.batch_size):
                pairs = [pair_of(index) for index in indices[start : start + self.batch_size]]
                images, ids = (torch.stack([pair[name] for pair in pairs]) for name in ("image", "mask"))
                yield from zip(ids.numpy(), self.segmenter.losses(images, ids).numpy(), strict=True)
                bar.update(len(pairs))

    def filter(
        self,
        pair_of: PairOf,
        indices: Sequence[int],
        thresholds: np.ndarray,
        title: str,
        is_real: Callable[[int], np.ndarray | None] = lambda _: None,
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield the filtered mask (H, W) of each pair, and its `pixels` and `kept` pixels by class and mean `loss`."""
        labels = self.segmenter.labels
        for index, (ids, losses) in zip(indices, self.read(pair_of, indices, title), strict=True):
            filtered = filter_ids(ids, losses, thresholds, labels.ignore_index, is_real(index))
            pixels, kept = (count_pixels(each, labels.num_classes)[:-1].tolist() for each in (ids, filtered))
            known = losses[np.isfinite(losses)]
            loss = round(float(known.mean()), 6) if len(known) else None
            yield filtered, {"pixels": pixels, "kept": kept, "loss": loss}


def losses_key(segmenter: Judge, dtype: torch.dtype, pairs: PairDataset) -> str:
    """Hash everything class losses depend on: weights, preprocessing, classes, image files and masks."""
    identity = segmenter.identity(pairs.resolution)
    of_network = {name: identity[name] for name in ("preprocessing", "mapping", "ignore_index")}
    values = {**of_network, "weights": segmenter.weights_sha256, "dtype": str(dtype), "classes": pairs.labels.names}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for index, stem in enumerate(pairs.stems):
        digest.update(stem.encode())
        digest.update(hashlib.sha256(pairs.photo_file(index)).digest())
        digest.update(hashlib.sha256(pairs.mask(index).tobytes()).digest())
    return f"sha256:{digest.hexdigest()[:32]}"


def compute_class_losses(reader: LossReader, pairs: PairDataset, key: str) -> ClassLosses:
    """Compute the mean class losses on all images of a split; `key` is from `losses_key`."""
    num_classes = pairs.labels.num_classes
    total, count = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    for ids, losses in reader.read(pairs.__getitem__, range(len(pairs)), "real images"):
        known = np.isfinite(losses)
        total += np.bincount(ids[known], weights=losses[known], minlength=num_classes)
        count += np.bincount(ids[known], minlength=num_classes)
    if not count.any():
        raise ValueError(
            f"no pixel of {pairs.name} is of a class that the segmenter knows: expected some, to compare with."
        )
    means = tuple(float(t / n) if n else None for t, n in zip(total, count, strict=True))
    return ClassLosses(key, pairs.labels.names, means, tuple(map(int, count)), len(pairs))


def read_class_losses(folder: str | os.PathLike) -> ClassLosses | None:
    """Return the class losses of a filtered folder; None if it has none."""
    try:
        return ClassLosses.from_record(read_json(Path(folder) / FILTER_FILE)["class_losses"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def find_class_losses(folder: str | os.PathLike, key: str) -> ClassLosses | None:
    """Return the class losses of a filtered folder if they have this key; else None."""
    found = read_class_losses(folder)
    return found if found is not None and found.key == key else None


def kept_share_on_real(reader: LossReader, pairs: PairDataset, thresholds: np.ndarray) -> dict[str, Any]:
    """Measure what the rule keeps of real labels, on at most `MAX_REFERENCES` evenly spaced images."""
    indices = evenly_spaced(range(len(pairs)), MAX_REFERENCES)
    found = reader.filter(pairs.__getitem__, indices, thresholds, "reference images")
    before, after = np.array([(scores["pixels"], scores["kept"]) for _, scores in found]).swapaxes(0, 1)
    shares = [kept_shares(*counts, pairs.labels)["kept_share"] for counts in zip(before, after, strict=True)]
    least = min((share for share in shares if share is not None), default=None)
    return {
        "num_photos": len(indices),
        **kept_shares(before.sum(0), after.sum(0), pairs.labels),
        "least_kept_share": least,
    }


def kept_shares(before: np.ndarray, after: np.ndarray, labels: LabelSet) -> dict[str, Any]:
    """Return the shares kept, from the labelled pixels of each class (num_classes,) before and after filtering."""
    return {
        "kept_share": round(float(after.sum() / before.sum()), 6) if before.sum() else None,
        "kept_share_by_class": {
            name: round(float(after[label] / before[label]), 6)
            for label, name in enumerate(labels.names)
            if before[label]
        },
    }


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
