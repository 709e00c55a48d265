"""The pairs of a study, and the training pool of each arm.
A larger amount contains the smaller one: the order of synthetic images is a pure function of seed and names.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from semseg_diffusers.data.dataset import (
    DecodedPairs,
    PairDataset,
    column_options,
    columns_for,
    load_pairs,
    read_record,
)
from semseg_diffusers.data.dataset_format import PSEUDO_LABELS
from semseg_diffusers.data.subset import shuffled_order, subset_indices
from semseg_diffusers.evaluation.inputs import (
    ImageSet,
    check_one_size,
    check_same_classes,
    generated_images,
    real_images,
)
from semseg_diffusers.evaluation.segmentation.training import LabelledImages
from semseg_diffusers.evaluation.settings import SYNTHETIC, TARGET_ARMS, StudySettings, Training


MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per process and set


class CachedPairs(Dataset):
    """The pairs of an image set of one resolution, kept in memory after decoding, up to a limit."""

    def __init__(self, images: ImageSet, resolution: tuple[int, int]):
        self.images, self.labels, self.names, self.resolution = images, images.labels, images.names, resolution
        self._decoded = DecodedPairs([resolution] * len(images), MEMORY_LIMIT)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `image` uint8 (3, H, W) and `mask` uint8 ids (H, W)."""
        pair = self._decoded.get(index)
        if pair is None:
            pair = self.images.image(index).numpy(), self.images.mask(index).numpy()
            self._decoded.put(index, *pair)
        return {"image": torch.from_numpy(pair[0]), "mask": torch.from_numpy(pair[1])}


# "real" and "validation", and "generated", "filtered" and "pseudo_labelled" if given
StudyData = dict[str, CachedPairs]


def load_data(settings: StudySettings) -> StudyData:
    """Find the pairs, which are loaded on access."""
    columns, other = column_options(settings), settings.validation_dataset
    for name in filter(None, (settings.dataset, other)):
        check_labels_of_people(name)
    train = load_pairs(settings.dataset, settings.train_split, **columns)
    if other is None:
        validation = load_pairs(settings.dataset, settings.validation_split, **columns)
    else:
        validation = load_pairs(other, settings.validation_split, **columns_for(settings, other))
        check_same_classes(train, validation)
    check_one_size(train, validation)
    images = {"real": chosen_images(settings, train), "validation": real_images(validation)}
    images |= {name: generated_images(folder, train) for name, folder in settings.synthetic.items()}
    if settings.pseudo_labelled is not None:
        images["pseudo_labelled"] = pseudo_labelled_images(settings.pseudo_labelled, train)
    return {name: CachedPairs(each, train.resolution) for name, each in images.items()}


def check_labels_of_people(dataset: str) -> None:
    """Raise for a dataset with predicted labels, by its record: they would count as true ones."""
    record = read_record(dataset)
    if any(PSEUDO_LABELS in each for each in (record, *record.get("joined", ()))):
        raise ValueError(
            f"'{dataset}' holds labels that a network predicted, which would count as true ones. Use a dataset that "
            "people labelled; predicted labels go to --pseudo_labelled."
        )


def pseudo_labelled_images(folder: str, train: PairDataset) -> ImageSet:
    """Return the photos of the training split of a folder of `label`, of the classes and size of the real ones."""
    if PSEUDO_LABELS not in read_record(folder):
        raise ValueError(f"--pseudo_labelled '{folder}': expected a folder that `semseg-diffusers label` wrote.")
    pairs = load_pairs(folder, "train")
    check_same_classes(train, pairs)
    check_one_size(train, pairs)
    return real_images(pairs)


def chosen_images(settings: StudySettings, train: PairDataset) -> ImageSet:
    """Return the real training images of the share that is studied."""
    (share,) = settings.real_share
    images = real_images(train)
    return images if share == 1 else images.subset(subset_indices(images.names, share, settings.subset_seed))


def num_synthetic(amount: float, num_real: int) -> int:
    """Return the number of synthetic pairs for an amount, at least one."""
    return max(1, round(amount * num_real))


def check_amounts(settings: StudySettings, data: StudyData) -> None:
    """Raise for amounts that exceed the available images."""
    largest, num_real = max(settings.amounts), len(data["real"])
    needed = num_synthetic(largest, num_real)
    for name in dict.fromkeys(SYNTHETIC[arm] for arm in settings.arms if arm in SYNTHETIC):
        available = len(data[name])
        if needed > available:
            raise ValueError(
                f"--amounts {largest:g} needs {needed} images for {num_real} real ones, and --{name} holds "
                f"{available}. Generate more, or use at most {int(1000 * available / num_real) / 1000:g}."
            )


def pool_members(training: Training, data: StudyData) -> list[tuple[str, int]]:
    """Return the pool of a training: name of the set and index in it, for every pair."""
    real = [("real", index) for index in range(len(data["real"]))]
    pool = real
    if training.arm in TARGET_ARMS and training.arm != "real_recolored":
        pool = real + [("pseudo_labelled", index) for index in range(len(data["pseudo_labelled"]))]
    if training.amount is None:
        return pool
    count = num_synthetic(training.amount, len(real))
    if training.arm == "real_duplicated":
        order = shuffled_order(data["real"].names, training.seed)
        return pool + [("real", order[index % len(order)]) for index in range(count)]
    name = SYNTHETIC[training.arm]
    synthetic = [(name, index) for index in shuffled_order(data[name].names, training.seed)[:count]]
    return pool + synthetic if training.arm.startswith("real_") else synthetic


def training_pairs(members: Iterable[tuple[str, int]], data: StudyData) -> LabelledImages:
    """Return members of a pool to train on, with the class weights of the real images: all arms share the loss."""
    indices: dict[str, list[int]] = {}
    for name, index in members:
        indices.setdefault(name, []).append(index)
    pool: ConcatDataset = ConcatDataset(Subset(data[name], chosen) for name, chosen in indices.items())
    return LabelledImages(pool, like=LabelledImages(data["real"]))


def image_digests(pairs: CachedPairs | PairDataset) -> list[bytes]:
    """Hash the pixels of each image."""
    return [hashlib.sha256(pairs[index]["image"].numpy()).digest() for index in range(len(pairs))]


def data_hash(pairs: CachedPairs, digests: Iterable[bytes]) -> str:
    """Hash names, pixels, masks and classes of a set, independently of its files."""
    result = hashlib.sha256(repr((pairs.resolution, pairs.labels.names, pairs.labels.ignore_index)).encode())
    for index, digest in enumerate(digests):
        result.update(pairs.names[index].encode() + b"\0" + digest)
        result.update(pairs[index]["mask"].numpy())
    return f"sha256:{result.hexdigest()[:16]}"
