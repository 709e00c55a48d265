"""Which images a run of `generate` makes of its masks, with which settings and seeds: checked before any work.

Two runs with an equal `record` make the same images, so an output folder is resumed only by such a run.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.model import known_attributes, model_revision, pipeline_for
from semseg_diffusers.generation.settings import SWEEPABLE, UNKNOWN_VALUE, GenerationSettings, grid


# Columns of the metadata, which are no names for attributes; the last two are what load_dataset calls the files.
COLUMNS = (
    "image_file_name", "mask_file_name", "stem", "index", "source_mask", "model", "revision", "seed", "scheduler",
    "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "variant", "variation",
    "attribute_guidance_scale", "conditioning_scale", "guide_model", "guide_revision", "strength", "source_photo",
    "source_photo_hash", "edited_share", "synthetic", "nearest_training_photo", "nearest_training_distance",
    "near_copy", "image", "mask",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Job:
    """One image to generate."""

    mask_path: Path
    index: int  # of the images of its mask; those of one index share their noise over all variations
    variation: str = ""  # its name in the grid

    @property
    def stem(self) -> str:
        """Name of the mask."""
        return self.mask_path.stem

    @property
    def file_name(self) -> str:
        """Name of image and mask in the output."""
        return "_".join(part for part in (self.stem, self.variation, str(self.index)) if part) + ".png"


def image_seed(seed: int, stem: str, index: int) -> int:
    """Return the seed of one image: a stable hash, so that no other image, order or batch size changes it.

    Example:
        >>> image_seed(0, "scene", 0)
        5781559387006414368
    """
    digest = hashlib.sha256(f"{seed}/{stem}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch and JSON readers both take it


@dataclass(frozen=True)
class Plan:
    """What to generate, checked."""

    record: dict[str, Any]  # the settings as generation.json keeps them
    settings: GenerationSettings
    labels: LabelSet
    mapping: LabelMapping | None  # from the masks' label set, if that is another
    known: dict[str, list[str]]  # the network's attributes and their values
    size: tuple[int, int]  # (height, width) of the generated images

    @cached_property
    def variations(self) -> dict[str, dict[str, Any]]:
        """The grid: name -> what it sets."""
        return grid(self.settings.variations)

    def jobs(self, path: Path, num_images: int) -> list[Job]:
        """Return the images of a mask: the first of each variation, then the second of each."""
        return [Job(path, index, variation) for index in range(num_images) for variation in self.variations]

    def group(self, job: Job) -> str:
        """Return the sampling settings that vary, as text: images of one group may be in one batch."""
        return str({name: value for name, value in self.variations[job.variation].items() if name in SWEEPABLE})

    def sampling(self, job: Job) -> GenerationSettings:
        """Return the settings that an image is sampled with."""
        return _varied(self.settings, self.variations[job.variation])

    def seed(self, job: Job) -> int:
        """Return the seed of an image."""
        return image_seed(self.settings.seed, job.stem, job.index)

    def attributes(self, job: Job, columns: Mapping[str, Any]) -> dict[str, str | None]:
        """Return each attribute of an image, None where the model chooses; settings precede the input's `columns`."""
        of_mask = {name: columns.get(name) for name in self.known}
        varied = {name: value for name, value in self.variations[job.variation].items() if name not in SWEEPABLE}
        values = {**of_mask, **(self.settings.attributes or {}), **varied}
        return {name: None if value == UNKNOWN_VALUE else value for name, value in values.items()}

    def row(self, job: Job, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metadata row of an image; `columns` are those of its input."""
        sampling = asdict(self.sampling(job))
        optional = {
            "variant": sampling["variant"],
            "variation": job.variation or None,
            **{name: sampling[name] for name in ("attribute_guidance_scale", "conditioning_scale")},
            **{name: self.record[name] for name in ("guide_model", "guide_revision")},
            "strength": sampling["strength"],
            **{name: value for name, value in columns.items() if name not in self.known},
        }
        required = ("num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop")
        return {
            "image_file_name": f"images/{job.file_name}",
            "mask_file_name": f"masks/{job.file_name}",
            "stem": job.stem,
            "index": job.index,
            "source_mask": str(job.mask_path),
            "model": self.record["model"],
            "revision": self.record["revision"],
            "seed": self.seed(job),
            "scheduler": self.record["scheduler"],
            **{name: sampling[name] for name in required},
            **{name: value for name, value in optional.items() if value is not None},
            **self.attributes(job, columns),
            "synthetic": True,
        }


def _varied(settings: GenerationSettings, changes: Mapping[str, Any]) -> GenerationSettings:
    return replace(settings, **{name: value for name, value in changes.items() if name in SWEEPABLE})


def plan_generation(
    pipeline: Any,
    settings: GenerationSettings,
    guide: Any = None,
    guide_name: str | None = None,
    mask_labels: LabelSet | None = None,
) -> Plan:
    """Check settings against a pipeline, and record all that the images depend on beside their inputs.

    Args:
        pipeline: mask-guided pipeline.
        settings: what the images depend on.
        guide: network that guidance leads away from.
        guide_name: its folder or Hub id, for the record.
        mask_labels: label set of the masks; None: the model's.

    Raises:
        ValueError: as `generate_dataset`.
    """
    labels, known = LabelSet.from_config(pipeline.unet.config), known_attributes(pipeline.unet)
    size = target_size(pipeline, settings)
    taken = ", ".join(sorted({*known} & {*COLUMNS}))
    if taken:
        raise ValueError(
            f"the model was trained with attributes called {taken}; the metadata of its images would have such "
            "columns twice. Rename the columns in its dataset, and train it by their new names."
        )
    _check_pipeline_takes(pipeline_for(pipeline, settings), settings, size, guide)
    mapping = None if mask_labels in (None, labels) else LabelMapping(mask_labels, labels)
    scheduler_config = {
        key: str(value) if value in (math.inf, -math.inf) else value  # JSON has no infinity
        for key, value in pipeline.scheduler.config.items()
        if not key.startswith("_")
    }
    record = {
        "model": str(pipeline.config.get("_name_or_path") or "unsaved"),
        "revision": model_revision(pipeline.unet),
        "guide_model": None if guide is None else guide_name or "unsaved",
        "guide_revision": None if guide is None else model_revision(guide),
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": scheduler_config,
        **asdict(settings),
        "mask_labels": None if mapping is None else mapping.names,
        "height": size[0],
        "width": size[1],
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    return Plan(json.loads(json.dumps(record, default=str)), settings, labels, mapping, known, size)


def target_size(pipeline: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return (height, width) of the images: as set, else the model's sample size."""
    if settings.height is not None and settings.width is not None:
        return settings.height, settings.width
    if settings.height is not None or settings.width is not None:
        raise ValueError(f"expected height and width, or none of them; got {settings.height} and {settings.width}.")
    sample_size = pipeline.unet.config.sample_size
    if sample_size is None:
        raise ValueError("this model has no sample_size of its own; give height and width.")
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)


def _check_pipeline_takes(pipeline: Any, settings: GenerationSettings, size: tuple[int, int], guide: Any) -> None:
    """Refuse settings that a pipeline cannot take, in any variation."""
    pipeline.prepare_class_labels(None, num_masks=1)  # refuses a network that needs them
    for changes in grid(settings.variations).values():
        varied = _varied(settings, changes)
        pipeline.check_inputs(1, 1, varied.num_inference_steps, *size)
        pipeline.prepare_guidance(
            varied.guidance_scale,
            varied.guidance_start,
            varied.guidance_stop,
            varied.attribute_guidance_scale,
            varied.conditioning_scale,
        )
        pipeline.prepare_guide(guide, varied.attribute_guidance_scale)
        if varied.strength is not None:
            pipeline.check_strength(varied.strength)
    if settings.edit is not None:
        pipeline.check_edit_inputs(**asdict(settings.edit))
    pipeline.scheduler.set_timesteps(settings.num_inference_steps)  # some refuse more than they were trained with
