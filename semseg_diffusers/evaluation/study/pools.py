"""The pairs of a study, the training pool of each arm, and checks for leaks between training and validation.
A larger amount contains the smaller one: the order of synthetic images is a pure function of seed and names.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
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
from semseg_diffusers.data.dataset_format import PSEUDO_LABELS, SETTINGS_FILE
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.data.subset import shuffled_order, subset_indices
from semseg_diffusers.evaluation.filtering.rules import read_filter
from semseg_diffusers.evaluation.inputs import (
    ImageSet,
    check_one_size,
    check_same_classes,
    generated_images,
    real_images,
)
from semseg_diffusers.evaluation.segmentation.networks import PretrainedSource
from semseg_diffusers.evaluation.segmentation.training import LabelledImages
from semseg_diffusers.evaluation.settings import SYNTHETIC, TARGET_ARMS, StudySettings, Training
from semseg_diffusers.generation.inputs import Names
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.utils.files import composed, read_json


MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per process and set
OF_SUBSET = "Make them with `subset` of the same share and seed: its masks, and a model trained on it."
RUN_SETTINGS = "settings.json"  # of a training run: the data it was trained on


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


def find_leaks(settings: StudySettings, data: StudyData, digests: dict[str, list[bytes]]) -> list[str]:
    """Return leaks of validation images into the training sets, one sentence each; `digests` are of each set."""
    found = []
    learned: list[tuple[str, str | None, str | None]] = []  # who has learned, from which dataset and split
    of_validation = dict(zip(digests["validation"], data["validation"].names, strict=True))
    for name in [name for name in digests if name != "validation"]:
        same = [of_validation[digest] for digest in digests[name] if digest in of_validation]
        if same:
            where = "the training split" if name == "real" else f"--{name}"
            found.append(f"{len(same)} validation image(s) are also in {where}, pixel by pixel, such as '{same[0]}'.")
    # a name in both splits means nothing
    only_validation = set(data["validation"].names) - set(data["real"].names)
    left_out = names_left_out(settings, data)
    for name, folder in settings.synthetic.items():
        rows = read_metadata(folder)
        sources = _made_from(rows)
        if others := sorted(left_out & sources):
            found.append(
                f"--{name} '{folder}' holds images generated from masks or images that --real_share leaves out "
                f"({len(others)} of them, such as '{others[0]}'). {OF_SUBSET}"
            )
        leaked = sorted(only_validation & sources)
        if leaked:
            found.append(
                f"--{name} '{folder}' holds images generated from masks or images of the validation split "
                f"({len(leaked)} of them, such as '{leaked[0]}'). Generate from masks of the training split."
            )
        learned += [(f"{name} '{folder}' was {text}", *source) for text, *source in _filtered_by(folder)]
        for model in sorted({str(row["model"]) for row in rows if row.get("model")}):
            path = Path(model) / RUN_SETTINGS
            run = read_json(path) if path.is_file() else {}
            text = f"{name} '{folder}' was generated by '{model}', which was trained on"
            learned.append((text, run.get("dataset"), run.get("train_split")))
    if settings.pseudo_labelled is not None:
        same = sorted({*data["pseudo_labelled"].names} & {*data["validation"].names})
        if same and settings.validation_dataset is not None:  # of the same target: the same photos
            found.append(
                f"--pseudo_labelled '{settings.pseudo_labelled}' holds {len(same)} photo(s) with the names of "
                f"validation photos, such as '{same[0]}'. Label others only."
            )
        labelled = read_record(settings.pseudo_labelled)[PSEUDO_LABELS]
        trained_on = labelled.get("trained_on") or {}
        text = f"pseudo_labelled '{settings.pseudo_labelled}' was labelled by '{labelled['segmenter']}'"
        learned.append((f"{text}, which was trained on", trained_on.get("dataset"), trained_on.get("split")))
    validated_on = Path(settings.validation_dataset or settings.dataset).absolute()
    seen_in = functools.cache(lambda dataset, split: _seen(dataset, split, of_validation, data))
    for text, dataset, split in learned:
        splits = {SPLITS.get(each, each) for each in (str(split), settings.validation_split)}
        if len(splits) == 1 and Path(str(dataset)).absolute() == validated_on:
            found.append(f"--{text} the validation split. Use the training split.")
        elif settings.validation_dataset is not None and (seen := seen_in(str(dataset), split)):
            found.append(f"--{text} {len(seen)} validation photo(s), such as '{seen[0]}'. Use others only.")
        if left_out and (others := sorted(left_out & _trained_names(str(dataset), split))):
            found.append(
                f"--{text} images that --real_share leaves out ({len(others)} of them, such as '{others[0]}'). "
                f"{OF_SUBSET}"
            )
    return found


def _filtered_by(folder: str) -> list[tuple[str, str | None, str | None]]:
    """Return what a filter has learned from: how, dataset and split; nothing for a folder that was not filtered."""
    record = read_filter(folder) or {}
    segmenter, (dataset, _, split) = record.get("segmenter") or {}, str(record.get("real")).rpartition(" (")
    trained_on = segmenter.get("trained_on") or {}
    return [
        (
            f"filtered by '{segmenter.get('name')}', which was trained on",
            trained_on.get("dataset"),
            trained_on.get("split"),
        ),
        ("filtered by class losses on", dataset, split.removesuffix(")")),
    ]


def _seen(dataset: str, split: str | None, of_validation: Mapping[bytes, str], data: StudyData) -> list[str]:
    """Return which validation photos a split of a dataset holds, by pixels or by names that no real training pair has.

    Names in a joined dataset may have the value of its attribute in front. None are seen where the dataset is gone.
    """
    if not (Path(dataset) / SETTINGS_FILE).is_file():
        return []
    pairs = load_pairs(dataset, split or "train")
    names = {composed(stem) for stem in pairs.stems} - {*data["real"].names}
    for part in read_record(dataset).get("joined", ()):
        names |= {name.removeprefix(f"{part['value']}_") for name in names}
    seen = {of_validation[digest] for digest in image_digests(pairs) if digest in of_validation}
    return sorted(seen | (names & {*data["validation"].names}))


def names_left_out(settings: StudySettings, data: StudyData) -> set[str]:
    """Return the names of the real training images that the share of a study leaves out."""
    if settings.real_share == (1.0,):
        return set()
    train = load_pairs(settings.dataset, settings.train_split, **column_options(settings))
    return {composed(stem) for stem in train.stems} - set(data["real"].names)


def _trained_names(dataset: str, split: str | None) -> set[str]:
    """Return the names of the images of a dataset that a network was trained on; none where the dataset is gone."""
    if not (Path(dataset) / SETTINGS_FILE).is_file():
        return set()
    return {composed(stem) for stem in load_pairs(dataset, split or "train").stems}


def _made_from(rows: list[dict[str, Any]]) -> set[str]:
    """Return the names of all masks and real images that generated images come from."""
    stems = {str(row["stem"]) for row in rows if row.get("stem")}
    stems |= {Path(row["source_photo"]).stem for row in rows if row.get("source_photo")}
    masks = [Path(row["source_mask"]) for row in rows if row.get("source_mask")]
    names = {folder: Names(folder) for folder in {mask.parent for mask in masks}}
    # for masks of `enrich`: the masks they were made from
    return {composed(stem) for stem in stems} | {stem for mask in masks for stem in names[mask.parent].of(mask.stem)}


def filter_weights(settings: StudySettings) -> dict[str, str | None]:
    """Return the hash of the network that filtered each folder of synthetic images; None if it was not filtered."""
    return {
        name: None if (record := read_filter(folder)) is None else record["segmenter_sha256"]
        for name, folder in settings.synthetic.items()
    }


def base_weights(settings: StudySettings) -> str | None:
    """Return the hash of the pretrained weights of all networks; None for random ones."""
    if settings.base_model is None:
        return None
    source = PretrainedSource(settings.base_model, settings.revision, "--base_model")
    return weights_hash(source.network().state_dict())


def find_filter_as_judge(settings: StudySettings, weights: str | None) -> list[str]:
    """Return a sentence for each folder that was filtered by the base model, which has the hash `weights`."""
    return [
        f"--base_model '{settings.base_model}' is the network that filtered --{name} '{settings.synthetic[name]}' "
        f"({weights}): it has already learned what it kept. Use another one, or random weights."
        for name, filtered_by in filter_weights(settings).items()
        if weights is not None and filtered_by == weights
    ]
