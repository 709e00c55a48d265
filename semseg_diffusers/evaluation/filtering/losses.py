"""Losses of a segmentation network: their class means on real images, and what the rule keeps of these."""

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
from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, filter_ids
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.utils.files import read_json
from semseg_diffusers.utils.progress import progress_bar


MAX_REFERENCES = 200  # real images that the rule is measured on, evenly spaced


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
        self, pair_of: PairOf, indices: Sequence[int], thresholds: np.ndarray, title: str
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield the filtered mask (H, W) of each pair, and its `pixels` and `kept` pixels by class and mean `loss`."""
        labels = self.segmenter.labels
        for ids, losses in self.read(pair_of, indices, title):
            filtered = filter_ids(ids, losses, thresholds, labels.ignore_index)
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


def find_class_losses(folder: str | os.PathLike, key: str) -> ClassLosses | None:
    """Return the class losses of a filtered folder if they have this key; else None."""
    try:
        found = ClassLosses.from_record(read_json(Path(folder) / FILTER_FILE)["class_losses"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if found.key == key else None


def kept_share_on_real(reader: LossReader, pairs: PairDataset, thresholds: np.ndarray) -> dict[str, Any]:
    """Measure what the rule keeps of real labels, on at most `MAX_REFERENCES` evenly spaced images."""
    count = min(len(pairs), MAX_REFERENCES)
    indices = [index * len(pairs) // count for index in range(count)]
    found = reader.filter(pairs.__getitem__, indices, thresholds, "reference images")
    before, after = np.array([(scores["pixels"], scores["kept"]) for _, scores in found]).swapaxes(0, 1)
    shares = [kept_shares(*counts, pairs.labels)["kept_share"] for counts in zip(before, after, strict=True)]
    least = min((share for share in shares if share is not None), default=None)
    return {"num_photos": count, **kept_shares(before.sum(0), after.sum(0), pairs.labels), "least_kept_share": least}


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
