"""The pairs of a study, and the pool that each arm draws from: a larger amount holds all of the smaller one.
Which synthetic images come first is a pure function of the seed and their names."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.data.dataset import column_options, load_pairs
from semseg_diffusers.data.decode_cache import DecodedPairs
from semseg_diffusers.data.options import SPLITS
from semseg_diffusers.evaluation.filtering.rules import read_filter
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images, real_images
from semseg_diffusers.evaluation.segmentation.networks import PretrainedSource
from semseg_diffusers.evaluation.segmentation.training import LabelledImages
from semseg_diffusers.evaluation.study.settings import OF_FILTERED, OF_GENERATED, StudySettings, Training
from semseg_diffusers.generation.inputs import Names
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.hub.folders import weights_hash


MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs that a process keeps, of each set


class CachedPairs:
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

    real: CachedPairs
    validation: CachedPairs
    generated: CachedPairs | None
    filtered: CachedPairs | None

    @property
    def sets(self) -> dict[str, CachedPairs]:
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
        name: None if folder is None else CachedPairs(generated_images(folder, train), train.resolution)
        for name, folder in (("generated", settings.generated), ("filtered", settings.filtered))
    }
    return StudyData(
        real=CachedPairs(real_images(train), train.resolution),
        validation=CachedPairs(real_images(validation), train.resolution),
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


class Pool(LabelledImages):
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


RUN_SETTINGS = "settings.json"  # of a training run: what a model was trained on


def photo_digests(pairs: CachedPairs) -> list[bytes]:
    """A hash of the pixels of each photo."""
    return [hashlib.sha256(pairs[index]["image"].numpy()).digest() for index in range(len(pairs))]


def data_hash(pairs: CachedPairs, digests: Iterable[bytes]) -> str:
    """A hash of a set by names, pixels, masks and classes, whatever files they lie in."""
    whole = hashlib.sha256(repr((pairs.resolution, pairs.labels.names, pairs.labels.ignore_index)).encode())
    for index, digest in enumerate(digests):
        whole.update(pairs.names[index].encode() + b"\0" + digest)
        whole.update(pairs[index]["mask"].numpy())
    return f"sha256:{whole.hexdigest()[:16]}"


def find_leaks(settings: StudySettings, data: StudyData, digests: dict[str, list[bytes]]) -> list[str]:
    """Return what is wrong, a sentence each; nothing where all is well.

    Args:
        settings: folders of the synthetic images.
        data: the sets.
        digests: `photo_digests` of each.
    """
    found = []
    of_validation = dict(zip(digests["validation"], data.validation.names, strict=True))
    for name in [name for name in digests if name != "validation"]:
        same = [of_validation[digest] for digest in digests[name] if digest in of_validation]
        if same:
            where = "the training split" if name == "real" else f"--{name}"
            found.append(f"{_photos(len(same))} also among those of {where}, pixel by pixel, such as '{same[0]}'.")
    # a name that both splits use says nothing
    only_validation = set(data.validation.names) - set(data.real.names)
    for name in ("generated", "filtered"):
        folder = getattr(settings, name)
        if folder is None:
            continue
        rows = read_metadata(folder)
        leaked = sorted(only_validation & _made_from(rows))
        if leaked:
            found.append(
                f"--{name} '{folder}' holds images that were made from masks or photos of the validation split "
                f"({len(leaked)} of them, such as '{leaked[0]}'). Generate from masks of the training split."
            )
        for model in sorted({str(row["model"]) for row in rows if row.get("model")}):
            if _was_trained_on_validation(model, settings):
                found.append(
                    f"--{name} '{folder}' was drawn by '{model}', which was trained on the validation split. Train a "
                    "model on the training split."
                )
    return found


def _photos(count: int) -> str:
    return f"{count} photos of the validation split are" if count > 1 else "a photo of the validation split is"


def _made_from(rows: list[dict[str, Any]]) -> set[str]:
    """The names of all masks and photos that stand behind images."""
    stems = {str(row["stem"]) for row in rows if row.get("stem")}
    stems |= {Path(row["source_photo"]).stem for row in rows if row.get("source_photo")}
    masks = [Path(row["source_mask"]) for row in rows if row.get("source_mask")]
    names = {folder: Names(folder) for folder in {mask.parent for mask in masks}}
    # of masks that `enrich` made, those that they began with
    return stems | {stem for mask in masks for stem in names[mask.parent].of(mask.stem)}


def _was_trained_on_validation(model: str, settings: StudySettings) -> bool:
    """Whether a run that is here says that it learned the split that is to judge."""
    path = Path(model) / RUN_SETTINGS
    if not path.is_file():
        return False
    run = json.loads(path.read_text(encoding="utf-8"))
    split, validation = (SPLITS.get(name, name) for name in (run.get("train_split"), settings.validation_split))
    same_data = Path(str(run.get("dataset"))).absolute() == Path(settings.dataset).absolute()
    return split == validation and same_data


def filter_weights(folder: str | None) -> str | None:
    """The hash of the network that filtered a folder; None where it was not filtered."""
    record = None if folder is None else read_filter(folder)
    return None if record is None else record["segmenter_sha256"]


def base_weights(settings: StudySettings) -> str | None:
    """The hash of the weights that all networks begin with; None for random ones."""
    if settings.base_model is None:
        return None
    source = PretrainedSource.of(settings.base_model, settings.revision, "--base_model")
    return weights_hash(source.network().state_dict())


def find_filter_as_judge(settings: StudySettings, weights: str | None) -> list[str]:
    """Return a sentence where the networks would begin with the one that filtered the images.

    Args:
        settings: folders of the synthetic images.
        weights: what `base_weights` returns.
    """
    return [
        f"--base_model '{settings.base_model}' is the network that filtered --{name} '{folder}' ({weights}): what it "
        "took for right it has learned already. Begin with another, or with random weights."
        for name, folder in (("generated", settings.generated), ("filtered", settings.filtered))
        if weights is not None and filter_weights(folder) == weights
    ]
