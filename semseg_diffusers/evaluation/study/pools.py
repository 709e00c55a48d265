"""The pairs of a study, and the pool that each arm draws from: a larger amount holds all of the smaller one.
Which synthetic images come first is a pure function of the seed and their names."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from semseg_diffusers.data.decoded import DecodedPairs
from semseg_diffusers.data.loading import column_options, load_pairs
from semseg_diffusers.evaluation.image_sets import ImageSet, generated_images, photos
from semseg_diffusers.evaluation.segmenters.batches import LabelledPhotos
from semseg_diffusers.evaluation.study.settings import OF_FILTERED, OF_GENERATED, StudySettings, Training


MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs that a process keeps, of each set


class KeptPairs:
    """The pairs of an image set, decoded once where there is room.

    Args:
        images: the set.
        resolution: height and width of every image.
    """

    def __init__(self, images: ImageSet, resolution: tuple[int, int]):
        self.images, self.labels, self.resolution = images, images.labels, resolution
        self.names = images.names
        self._decoded = DecodedPairs([resolution] * len(images), MEMORY_LIMIT)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair: `image` uint8 (3, H, W), `mask` uint8 ids (H, W)."""
        kept = self._decoded.get(index)
        if kept is None:
            kept = self.images.image(index).numpy(), self.images.mask(index).numpy()
            self._decoded.put(index, *kept)
        return {"image": torch.from_numpy(kept[0]), "mask": torch.from_numpy(kept[1])}


@dataclass(frozen=True)
class StudyData:
    """All that the trainings of a study read."""

    real: KeptPairs
    validation: KeptPairs
    generated: KeptPairs | None
    filtered: KeptPairs | None

    @property
    def sets(self) -> dict[str, KeptPairs]:
        """Those that there are, by name."""
        return {name: pairs for name, pairs in vars(self).items() if pairs is not None}


def load_data(settings: StudySettings) -> StudyData:
    """Find the pairs; they are read when asked for.

    Raises:
        ValueError: a split, a folder or a label set is not what it should be, or sizes differ.
    """
    columns = column_options(settings)
    train, validation = (
        load_pairs(settings.dataset, split, **columns) for split in (settings.train_split, settings.validation_split)
    )
    if train.resolution != validation.resolution:
        raise ValueError(
            f"the photos of '{settings.dataset}' are {train.resolution} in {settings.train_split} and "
            f"{validation.resolution} in {settings.validation_split} (height, width); wanted one size. Prepare them "
            "at one --resolution."
        )
    synthetic = {
        name: None if folder is None else KeptPairs(generated_images(folder, train), train.resolution)
        for name, folder in (("generated", settings.generated), ("filtered", settings.filtered))
    }
    return StudyData(
        real=KeptPairs(photos(train), train.resolution),
        validation=KeptPairs(photos(validation), train.resolution),
        **synthetic,
    )


def order_of(names: tuple[str, ...], seed: int) -> list[int]:
    """The places of names, shuffled by a seed; what else there is does not change which of two comes first.

    So a filtered set, where images are missing, is taken in the order of the whole one.

    Example:
        >>> order_of(("a", "b", "c", "d"), 0), order_of(("a", "b", "d"), 0)
        ([2, 1, 3, 0], [1, 2, 0])
    """
    return sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed}/{names[i]}".encode()).digest())


def num_synthetic(amount: float, num_real: int) -> int:
    """How many pairs a multiple of the real ones is, at least one."""
    return max(1, round(amount * num_real))


def check_amounts(settings: StudySettings, data: StudyData) -> None:
    """Refuse amounts that there are not enough images for.

    Raises:
        ValueError: naming the images that there are, and the largest amount.
    """
    for name, arms in (("generated", OF_GENERATED), ("filtered", OF_FILTERED)):
        wanted = num_synthetic(max(settings.amounts), len(data.real))
        if set(arms) & set(settings.arms) and wanted > len(data.sets[name]):
            there, most = len(data.sets[name]), int(1000 * len(data.sets[name]) / len(data.real)) / 1000
            raise ValueError(
                f"--amounts {max(settings.amounts):g} is {wanted} images beside {len(data.real)} real photos, and "
                f"--{name} holds {there}. Generate more, or take at most {most:g}."
            )


def members(training: Training, data: StudyData) -> list[tuple[str, int]]:
    """The pool of a training: name of the set and place in it, for every pair."""
    real = [("real", index) for index in range(len(data.real))]
    if training.arm == "real":
        return real
    count = num_synthetic(training.amount, len(real))
    if training.arm == "real_duplicated":
        again = order_of(data.real.names, training.seed)
        return real + [("real", again[place % len(again)]) for place in range(count)]
    name = "generated" if training.arm in OF_GENERATED else "filtered"
    synthetic = [(name, index) for index in order_of(data.sets[name].names, training.seed)[:count]]
    return synthetic if training.arm in ("synthetic", "filtered") else real + synthetic


class Pool(LabelledPhotos):
    """The pairs that a training draws from.

    Classes are weighted by their pixels in the real photos, whatever the arm: the loss does not differ between arms.
    A class that no real training mask holds has no weight.

    Args:
        training: the arm.
        data: where its pairs come from.
        real_pixels: of each class, over all real training masks.
    """

    def __init__(self, training: Training, data: StudyData, real_pixels: torch.Tensor):
        super().__init__(_Members(members(training, data), data))
        self.pixels = real_pixels


class _Members:
    """Pairs of several sets as one data set."""

    def __init__(self, places: list[tuple[str, int]], data: StudyData):
        self.labels, self.resolution = data.real.labels, data.real.resolution
        self._places, self._sets = places, data.sets

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, place = self._places[index]
        return self._sets[name][place]
