"""The stages of growing a dataset: commands of the package with their settings, each with a folder of its own.

Whatever `grow` does can therefore be done by hand, stage by stage, with the commands that it prints and records.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semseg_diffusers.cli import load_settings
from semseg_diffusers.data.dataset import PairDataset, load_pairs, load_photos, metadata_folders, read_record
from semseg_diffusers.data.dataset_format import PSEUDO_LABELS, SETTINGS_FILE, find_masks
from semseg_diffusers.evaluation.inputs import check_one_size, check_same_classes
from semseg_diffusers.evaluation.settings import FILTER_SEED, NO_SPLIT
from semseg_diffusers.growth.settings import ADAPTATION, OVERRIDABLE, SOURCE, STAGES, STYLE, TARGET, GrowSettings
from semseg_diffusers.masks.editing.placement import check_placeable
from semseg_diffusers.masks.editing.scene_prior import fit_dataset_prior
from semseg_diffusers.masks.statistics.counts import class_figures, collect_statistics, underrepresented_classes
from semseg_diffusers.utils.settings import Settings, build_settings, value_type


# Stage -> a file that its folder holds only when the stage is complete, for commands that are slow to find out.
MARKERS = {"train": "model_index.json", "enrich": "enrich.json"}
MARKERS |= dict.fromkeys(("label", "join", "merge"), SETTINGS_FILE)
FACTOR = 4.0  # times its pixel share that an underrepresented class should have in the new masks
MAX_SHARE = 0.25  # of all pixels, for all targets together; `enrich` refuses twice as much
MAX_PRIOR_MASKS = 200  # from which the scene prior is fitted


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command that `grow` runs."""

    name: str  # one of STAGES
    folder: Path  # its output
    settings: Settings  # of the command

    @property
    def command(self) -> str:
        """The equivalent shell command."""
        return self.settings.to_command(STAGES[self.name])

    @property
    def is_complete(self) -> bool:
        """Whether the folder alone shows that the stage is complete."""
        return self.name in MARKERS and (self.folder / MARKERS[self.name]).is_file()


def comparable_words(settings: Settings) -> list[str]:
    """Return the options with absolute paths, to compare them with those of an earlier call."""
    return [os.path.abspath(word) if os.path.exists(word) else word for word in settings.to_arguments()]


def make_stages(
    settings: GrowSettings,
    target: Sequence[str],
    num_masks: int,
    generator: str | None = None,
    size: tuple[int, int] | None = None,
) -> list[Stage]:
    """Return the stages whose results are not given, with checked settings; `target` holds CLASS=FACTOR.

    `generator` is the model that generates, by default the one that the settings choose now; `size` (height, width)
    that to which the photos of a folder are brought.
    """
    folders = {stage: str(settings.output / stage) for stage in STAGES}
    masks = settings.given_masks or str(settings.output / "enrich" / "masks")
    segmenter = settings.filter_segmenter or folders["segmenter"]
    generated, filtered = folders["generate"], folders["filter"]

    def pick(*names: str) -> dict[str, Any]:
        return {name: getattr(settings, name) for name in names}

    generator = generator or settings.generator
    data = pick("dataset", "image_column", "mask_column", "labels")
    options: dict[str, dict[str, Any]] = {
        "statistics": data,
        "train": {**data, **pick("seed", "device"), "resume_from_checkpoint": "latest"},
        "enrich": {**pick("dataset", "seed"), "num_masks": num_masks, "target": target},
        "generate": {
            "model": generator,
            "masks": masks,
            **pick("num_images_per_mask", "seed", "device"),
        }
        | ({} if settings.upscaler is None else pick("upscaler")),
        # The network that selects images must not be selected on the images that the study evaluates on.
        "segmenter": {**data, **pick("device"), "seed": settings.seed + FILTER_SEED, "validation_split": NO_SPLIT},
        "filter": {**data, "generated": generated, "segmenter": segmenter, **pick("seed", "device")},
        "study": {**data, "generated": generated, "filtered": filtered, **pick("amounts", "seeds", "device")},
        "merge": {**data, "generated": filtered},
    }
    if settings.photos is not None:
        joined = {"dataset": folders["join"]}  # with the columns of a prepared folder
        # Min-SNR weights hardly train the noisiest steps, which decide light and colour: the style.
        trained = {**pick("seed", "device"), "resume_from_checkpoint": "latest", "snr_gamma": None}
        if settings.init_from is None:
            trained |= {**joined, "attributes": (STYLE,), "norm_num_groups": 4}
            options["generate"]["attributes"] = (f"{STYLE}={TARGET}",)
        else:
            trained |= {"dataset": folders["label"], **pick("init_from"), **ADAPTATION}
        options["label"] = {"images": settings.photos, "segmenter": segmenter, **pick("device")}
        options["label"] |= {} if size is None else {"resolution": size}
        options["join"] = {
            **pick("image_column", "mask_column", "labels"),
            "datasets": (settings.dataset, folders["label"]),
            "attribute": f"{STYLE}={SOURCE},{TARGET}",
        }
        options["train"] = trained
        options["study"] |= {"pseudo_labelled": folders["label"], "validation_dataset": labelled_target(settings)}
        options["merge"] = {**joined, "generated": filtered}
    stages = []
    for name in settings.stages:
        own = {**options[name], "output_dir" if name == "train" else "output": folders[name]}
        changes = settings.changes.get(name, {})
        for option in changes:
            if option in own and option not in OVERRIDABLE:
                raise ValueError(f"--set {name}.{option}: grow sets it itself, to {own[option]}.")
        kind = load_settings(STAGES[name])
        several = {
            field.name
            for field in dataclasses.fields(kind)
            if value_type(field)[1] and field.metadata.get("parse") is None  # 256x512 is one value
        }
        values = {option: text.split(",") if option in several else text for option, text in changes.items()}
        try:
            command = build_settings(kind, ("grow", own), ("--set", values), named=frozenset(values))
        except ValueError as err:
            listed = f"`semseg-diffusers {STAGES[name]} --help` lists its options."
            raise ValueError(f"stage {name}: {str(err).removesuffix('.')}. {listed}") from err
        stages.append(Stage(name, settings.output / name, command))
    return stages


def labelled_target(settings: GrowSettings) -> str | None:
    """Return the dataset of the photos of the target if people labelled a validation split of it, by its record."""
    photos = settings.photos
    record = {} if photos is None else read_record(photos)
    is_labelled = "val" in record.get("splits", {}) and not {PSEUDO_LABELS, "joined"} & record.keys()
    return photos if is_labelled else None


def check_target(settings: GrowSettings, pairs: PairDataset) -> tuple[int, int] | None:
    """Check the photos of the target against the training pairs of the dataset.

    Returns the size to which photos are brought: that of the pairs for a folder of photos, None for a dataset.

    Raises:
        ValueError: there are no photos; those of a dataset have another size, or the labels of its validation split
            other classes.
    """
    assert settings.photos is not None
    if Path(settings.photos).is_dir() and not metadata_folders(Path(settings.photos)):
        find_masks(settings.photos, "photo")
        return pairs.resolution
    check_one_size(pairs, load_photos(settings.photos, "train", "image", pairs.labels))
    if labelled_target(settings) is not None:
        validation = load_pairs(settings.photos, "val")
        check_same_classes(pairs, validation)
        check_one_size(pairs, validation)
    return None


def default_target(pairs: PairDataset) -> list[str]:
    """Return the underrepresented classes that can be placed in a street, each with `FACTOR` or as much as fits.

    Args:
        pairs: training split.

    Raises:
        ValueError: no class can be placed.
    """
    statistics = collect_statistics(pairs.mask, len(pairs), pairs.labels)
    share = {row.name: row.pixel_share for row in class_figures(statistics)}
    prior = fit_dataset_prior(pairs, MAX_PRIOR_MASKS)
    weak = [entry.name for entry in underrepresented_classes(statistics)]
    rarest = sorted((name for name in share if share[name] > 0 and name not in weak), key=lambda name: share[name])
    placeable = []
    for name in [*weak, *rarest]:
        with contextlib.suppress(ValueError):
            check_placeable(prior, pairs.labels.label2id[name])
            placeable.append(name)
    names = [name for name in placeable if name in weak] or placeable[:2]
    if not names:
        raise ValueError(
            "no class of the dataset can be placed in its masks: its objects are too few or too small. Give masks "
            "with --masks: your own, or those of the training split for other images of the same streets."
        )
    total = sum(FACTOR * share[name] for name in names)
    factor = FACTOR if total <= MAX_SHARE else max(1.1, FACTOR * MAX_SHARE / total)
    return [f"{name}={factor:.3g}" for name in names]
