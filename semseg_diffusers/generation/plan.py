"""What a run of generation will make, checked before any work: settings, the network's size and revision, masks.
Two runs with an equal `record` make the same images, so an output folder is continued only by such a run."""

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from semseg_diffusers.data.dataset_format import find_masks, label_file_near
from semseg_diffusers.data.label_mapping import LabelMapping, some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.inputs import InputReader, Names, Photos, read_table
from semseg_diffusers.generation.jobs import Job, image_seed
from semseg_diffusers.generation.model import known_attributes, model_revision, pipeline_for
from semseg_diffusers.generation.settings import SWEEPABLE, UNKNOWN_VALUE, GenerationSettings, check_attributes, grid


# What the metadata say of an image beside its attributes, which may have none of these names; the last two are what
# load_dataset calls the files.
COLUMNS = (
    "image_file_name", "mask_file_name", "stem", "index", "source_mask", "model", "revision", "seed", "scheduler",
    "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "variant", "variation",
    "attribute_guidance_scale", "conditioning_scale", "guide_model", "guide_revision", "strength", "source_photo",
    "source_photo_hash", "edited_share", "synthetic", "nearest_training_photo", "nearest_training_distance",
    "near_copy", "image", "mask",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Where what images are made from lies, beside the masks.

    Args:
        attributes_from: attributes of each mask by its name, see `sources.read_table`.
        photos: folder of photos to be changed; needed for `settings.edit` and `settings.strength`, and only for these.
        old_masks: the masks that the photos have, for `settings.edit`; by default `masks/` in the folder of photos.
        guide: the network of a weaker model, which guidance leads away from.
        guide_name: folder or Hub id of it, for the record.
    """

    attributes_from: str | os.PathLike | None = None
    photos: str | os.PathLike | None = None
    old_masks: str | os.PathLike | None = None
    guide: Any = None
    guide_name: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked."""

    record: dict[str, Any]  # the settings as generation.json keeps them
    settings: GenerationSettings
    labels: LabelSet
    size: tuple[int, int]  # (height, width) that is drawn
    mask_paths: list[Path]
    reader: InputReader

    @functools.cached_property
    def variations(self) -> dict[str, dict[str, Any]]:
        return grid(self.settings.variations)

    @functools.cached_property
    def _group_of(self) -> dict[str, int]:
        """The number of the sampling settings of each variation: those that differ in attributes only share one."""
        groups = list(dict.fromkeys(map(self._varied, self.variations)))
        return {name: groups.index(self._varied(name)) for name in self.variations}

    def _varied(self, variation: str) -> tuple:
        return tuple((name, value) for name, value in self.variations[variation].items() if name in SWEEPABLE)

    def jobs(self, path: Path, num_images: int) -> list[Job]:
        """The images of a mask: the first of each variation, then the second of each."""
        return [Job(path, index, variation) for index in range(num_images) for variation in self.variations]

    def group(self, job: Job) -> int:
        """Images of one group may be of one batch."""
        return self._group_of[job.variation]

    def sampling(self, job: Job) -> GenerationSettings:
        """The settings that an image is sampled with."""
        return replace(self.settings, **dict(self._varied(job.variation)))

    def attributes(self, job: Job, columns: Mapping[str, Any]) -> dict[str, str | None]:
        """The value of each attribute for an image; None leaves it to the model.

        Args:
            job: the image.
            columns: of its source; what is asked for in the settings goes first.
        """
        of_mask = {name: columns.get(name) for name in self.reader.known}
        varied = {name: value for name, value in self.variations[job.variation].items() if name not in SWEEPABLE}
        wanted = {**of_mask, **(self.settings.attributes or {}), **varied}
        return {name: None if value == UNKNOWN_VALUE else value for name, value in wanted.items()}

    def row(self, job: Job, columns: Mapping[str, Any]) -> dict[str, Any]:
        """An image's row of the metadata; `columns` are those of its source."""
        sampling = self.sampling(job)
        attribute_scale = sampling.attribute_guidance_scale
        more = {
            "variant": sampling.variant,
            "variation": job.variation or None,
            "attribute_guidance_scale": attribute_scale,
            "conditioning_scale": sampling.conditioning_scale,
            "guide_model": self.record["guide_model"],
            "guide_revision": self.record["guide_revision"],
            "strength": sampling.strength,
            **{name: value for name, value in columns.items() if name not in self.reader.known},
        }
        return {
            "image_file_name": f"images/{job.file_name}",
            "mask_file_name": f"masks/{job.file_name}",
            "stem": job.stem,
            "index": job.index,
            "source_mask": str(job.mask_path),
            "model": self.record["model"],
            "revision": self.record["revision"],
            "seed": image_seed(self.settings.seed, job.stem, job.index),
            "scheduler": self.record["scheduler"],
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
            "guidance_start": sampling.guidance_start,
            "guidance_stop": sampling.guidance_stop,
            **{name: value for name, value in more.items() if value is not None},
            **self.attributes(job, columns),
            "synthetic": True,
        }


def target_size(pipeline: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return (height, width) of the images: as set, else the model's sample size."""
    if (settings.height is None) != (settings.width is None):
        raise ValueError(
            f"height and width go together, give both or none; got {settings.height} and {settings.width}"
        )
    if settings.height is not None:
        return settings.height, settings.width
    sample_size = pipeline.unet.config.sample_size
    if sample_size is None:
        raise ValueError("this model has no sample_size of its own; give height and width")
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)


def check_labels_near(mask_paths: list[Path], masks: str | os.PathLike, labels: LabelSet) -> None:
    """Refuse masks beside which another label set than the model's lies: their ids would be taken for other classes.

    They are not mapped unasked: the labels of the images are then of other classes than the data they are for, which
    may be seen after hours of work only.

    Raises:
        ValueError: naming the file, and the option that has them mapped.
    """
    for folder in dict.fromkeys(path.parent for path in mask_paths):
        file = label_file_near(folder, masks)
        near = None if file is None else LabelSet.from_json(file)
        if near not in (None, labels):
            what = "colours" if near.names == labels.names else "classes"
            raise ValueError(
                f"the masks in '{folder}' are of the label set in '{file}' ({some_names(near)}), and the model has "
                f"other {what} ({some_names(labels)}). To have them mapped by name, give --mask_labels '{file}'. If "
                "they are in the model's all the same, name that one there: a preset, or the model's unet/config.json."
            )


def check_settings(pipeline: Any, settings: GenerationSettings, size: tuple[int, int], guide: Any) -> None:
    """Refuse settings that a pipeline cannot take, each variation by itself.

    Raises:
        ValueError: naming the setting.
    """
    pipeline.prepare_class_labels(None, num_masks=1)  # a network that needs them is refused
    for changes in grid(settings.variations).values():
        one = replace(settings, **{name: value for name, value in changes.items() if name in SWEEPABLE})
        pipeline.check_inputs(1, 1, one.num_inference_steps, *size)
        pipeline.prepare_guidance(
            one.guidance_scale,
            one.guidance_start,
            one.guidance_stop,
            one.attribute_guidance_scale,
            one.conditioning_scale,
        )
        pipeline.prepare_guide(guide, one.attribute_guidance_scale)
        if one.strength is not None:
            pipeline.check_strength(one.strength)
    if settings.edit is not None:
        pipeline.check_edit_inputs(**asdict(settings.edit))
    pipeline.scheduler.set_timesteps(settings.num_inference_steps)  # some refuse more than they were trained with


def check_option_combinations(settings: GenerationSettings, inputs: Inputs) -> None:
    """Refuse settings and inputs that do not go together.

    Raises:
        ValueError: naming the options.
    """
    redrawn = settings.strength is not None
    if "strength" in (settings.variations or {}) and not redrawn:
        raise ValueError("--variations strength=...: give --strength too, which says that photos are redrawn.")
    if redrawn and settings.edit is not None:
        raise ValueError("--edit makes a part of a photo anew, --strength redraws all of it: give one of them.")
    if inputs.photos is None and (redrawn or settings.edit is not None):
        raise ValueError(f"{'--strength' if redrawn else '--edit'} changes photos: give their folder, --photos.")
    if inputs.photos is not None and not redrawn and settings.edit is None:
        raise ValueError("--photos: say what to do with them, --edit (where masks changed) or --strength (all over).")
    if inputs.old_masks is not None and settings.edit is None:
        raise ValueError("--old_masks are compared with the new ones by --edit: give it, or leave them away.")
    twice = sorted({*(settings.attributes or {})} & {*(settings.variations or {})})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given by --attributes and by --variations; wanted one of them.")


def plan_generation(
    pipeline: Any,
    masks: str | os.PathLike,
    settings: GenerationSettings,
    inputs: Inputs,
    tolerance: float = 0.0,
    mask_labels: LabelSet | None = None,
) -> Plan:
    """Refuse settings that this pipeline cannot take, and write down what the images depend on.

    Raises:
        FileNotFoundError, ValueError: as `generate_dataset`.
    """
    labels, known = LabelSet.from_config(pipeline.unet.config), known_attributes(pipeline.unet)
    height, width = target_size(pipeline, settings)
    # 1. Settings
    taken = sorted({*known} & {*COLUMNS})
    if taken:
        raise ValueError(
            f"the model was trained with attributes called {', '.join(taken)}; the metadata of its images would have "
            "such columns twice. Rename the columns in its dataset, and train it by their new names."
        )
    check_option_combinations(settings, inputs)
    check_attributes({name: [value] for name, value in (settings.attributes or {}).items()}, known, "--attributes")
    varied = {name: values for name, values in (settings.variations or {}).items() if name not in SWEEPABLE}
    check_attributes(varied, known, "--variations")
    if inputs.attributes_from is not None and not known:
        raise ValueError("--attributes_from: the model was trained without attributes; leave it away.")
    if settings.attribute_guidance_scale is not None and not known:
        raise ValueError("--attribute_guidance_scale: the model was trained without attributes; leave it away.")
    check_settings(pipeline_for(pipeline, settings), settings, (height, width), inputs.guide)

    # 2. Masks, and what belongs to them
    mask_paths = find_masks(masks)
    if mask_labels is None:
        check_labels_near(mask_paths, masks, labels)
    mapping = None if mask_labels in (None, labels) else LabelMapping(mask_labels, labels)
    photos = None
    if inputs.photos is not None:
        photos = Photos(Path(inputs.photos), None if inputs.old_masks is None else Path(inputs.old_masks))
        _ = photos.photo_files, settings.edit and photos.old_mask_files  # there, or refused here
    own_sizes = settings.edit is not None and settings.edit.padding_mask_crop is not None
    reader = InputReader(
        labels,
        mapping,
        tolerance,
        size=None if own_sizes else (height, width),
        known=known,
        names=Names(masks),
        table=None if inputs.attributes_from is None else read_table(inputs.attributes_from, known),
        table_from=inputs.attributes_from or "",
        photos=photos,
        edit_margin=settings.edit.margin if settings.edit is not None else None,
    )

    # 3. The record
    record = {
        "model": str(pipeline.config.get("_name_or_path") or "unsaved"),
        "revision": model_revision(pipeline.unet),
        "guide_model": None if inputs.guide is None else inputs.guide_name or "unsaved",
        "guide_revision": None if inputs.guide is None else model_revision(inputs.guide),
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": {
            key: str(value) if value in (math.inf, -math.inf) else value  # JSON has no infinity
            for key, value in pipeline.scheduler.config.items()
            if not key.startswith("_")
        },
        **asdict(settings),
        "mask_labels": None if mapping is None else mapping.names,
        "height": height,
        "width": width,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    return Plan(record, settings, labels, (height, width), mask_paths, reader)
