"""Which images a run of `generate` makes of its masks, with which settings and seeds: checked before any work.

Two runs with an equal `record` make the same images, so an output folder is resumed only by such a run.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.model import (
    encoder_revision,
    known_attributes,
    model_revision,
    pipeline_for,
    scheduler_options,
)
from semseg_diffusers.generation.settings import (
    GUIDANCE,
    IMAGE_FORMATS,
    SWEEPABLE,
    TEXTS,
    UNKNOWN_VALUE,
    GenerationSettings,
    grid,
)
from semseg_diffusers.pipelines.mask_inputs import UNKNOWN
from semseg_diffusers.pipelines.text_inputs import check_text, class_id_of, number_things, split_dicts


# Columns of the metadata in order, which are no names for attributes; load_dataset gives the last two.
COLUMNS = (
    "image_file_name", "mask_file_name", "stem", "index", "source_mask", "model", "revision", "seed", "scheduler",
    "scheduler_options", "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "variant",
    "variation", "attribute_guidance_scale", "conditioning_scale", "prompt", "negative_prompt", "region_prompts",
    "prompt_guidance_scale", "guide_model", "guide_revision", "strength",
    "source_photo", "source_photo_hash", "edited_share", "edited_region_hash", "upscaler", "upscaler_revision",
    "upscaler_steps", "noise_level", "synthetic", "nearest_training_photo", "nearest_training_distance",
    "near_copy", "image", "mask",
)  # fmt: skip
NUM_THINGS = "num_things"  # of the mask, by class: a column of inputs, not of the metadata


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
        """Name of its mask in the output, and of the image unless that is no PNG."""
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
    large_size: tuple[int, int] | None = None  # of those that an upscaler makes of them
    reads_texts: bool = False  # whether any image has texts

    @cached_property
    def variations(self) -> dict[str, dict[str, Any]]:
        """The grid: name -> what it sets."""
        return grid(self.settings.variations)

    def jobs(self, path: Path, num_images: int) -> list[Job]:
        """Return the images of a mask: the first of each variation, then the second of each."""
        return [Job(path, index, variation) for index in range(num_images) for variation in self.variations]

    def image_file(self, job: Job) -> str:
        """Return the name of an image in the output."""
        return f"{Path(job.file_name).stem}.{self.settings.image_format}"

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
        varied = {name: value for name, value in self.variations[job.variation].items() if name in self.known}
        values = {**of_mask, **(self.settings.attributes or {}), **varied}
        return {name: None if value == UNKNOWN_VALUE else value for name, value in values.items()}

    @cached_property
    def described_classes(self) -> list[str]:
        """The classes that any text is about."""
        return list(dict.fromkeys(name for prompts in all_class_prompts(self.settings) for name in prompts))

    def num_things(self, ids: np.ndarray) -> dict[str, int]:
        """Return how many things, connected parts, a mask (H, W) has of each class that any text is about."""
        classes = {name: self.labels.label2id[name] for name in self.described_classes}
        return {name: int(number_things(ids == class_id).max()) + 1 for name, class_id in classes.items()}

    def texts(self, job: Job, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the texts of an image as pipelines take them, those about things that its mask lacks left out."""
        sampling = self.sampling(job)
        class_prompts: dict[str, str] = {}
        instance_prompts: dict[str, list[str | None]] = {}
        for name, given in (sampling.class_prompts or {}).items():
            if isinstance(given, str):
                class_prompts[name] = given
            elif given is not None:
                instance_prompts[name] = list(given)[: columns[NUM_THINGS][name]]
        return {
            "prompt": sampling.prompt,
            "negative_prompt": sampling.negative_prompt,
            "class_prompts": class_prompts,
            "instance_prompts": instance_prompts,
        }

    def region_prompts(self, job: Job, columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Return the texts about regions of an image as its row lists them: `thing` is a number, or -1 for all."""
        texts = self.texts(job, columns)
        found: list[tuple[str, int, str]] = []
        for name, text in texts["class_prompts"].items():
            found += [(name, -1, text)] if columns[NUM_THINGS][name] else []
        for name, each in texts["instance_prompts"].items():
            found += [(name, number, text) for number, text in enumerate(each) if text is not None]
        return [dict(zip(("class", "thing", "text"), each, strict=True)) for each in found] or None

    def row(self, job: Job, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metadata row of an image; `columns` are those of its input."""
        values = {
            **self.record,
            **asdict(self.sampling(job)),
            **columns,
            "image_file_name": f"images/{self.image_file(job)}",
            "mask_file_name": f"masks/{job.file_name}",
            "stem": job.stem,
            "index": job.index,
            "source_mask": str(job.mask_path),
            "seed": self.seed(job),
            "variation": job.variation or None,
            "region_prompts": self.region_prompts(job, columns),
        }
        row = {name: values[name] for name in COLUMNS if values.get(name) is not None}
        return {**row, **self.attributes(job, columns), "synthetic": True}


def _varied(settings: GenerationSettings, changes: Mapping[str, Any]) -> GenerationSettings:
    return replace(settings, **{name: value for name, value in changes.items() if name in (*SWEEPABLE, *TEXTS)})


def all_class_prompts(settings: GenerationSettings) -> list[Mapping[Any, Any]]:
    """Return the texts about classes and things that settings and their variations hold."""
    return [each for each in (settings.class_prompts, *(settings.variations or {}).get("class_prompts", ())) if each]


def plan_generation(
    pipeline: Any,
    settings: GenerationSettings,
    guide: Any = None,
    guide_name: str | None = None,
    mask_labels: LabelSet | None = None,
    upscaler: Any = None,
    upscaler_name: str | None = None,
    revisions: dict[Any, str] | None = None,
) -> Plan:
    """Check settings against a pipeline, and record all that the images depend on beside their inputs.

    Steps and guidance that the settings leave open are those that the pipeline recommends. `revisions` keeps those of
    networks, which a hash of their weights takes a while to find, for further calls.
    """

    def revision(network: Any, find: Callable[[Any], str] = model_revision) -> str:
        known_revisions = {} if revisions is None else revisions
        if network not in known_revisions:
            known_revisions[network] = find(network)
        return known_revisions[network]

    if settings.image_format not in IMAGE_FORMATS:
        raise ValueError(f"image_format must be one of {', '.join(IMAGE_FORMATS)}; got {settings.image_format!r}.")
    steps, scale = pipeline.resolve_sampling(settings.num_inference_steps, settings.guidance_scale)
    settings = replace(settings, num_inference_steps=steps, guidance_scale=scale)
    labels, known = LabelSet.from_config(pipeline.unet.config), known_attributes(pipeline.unet)
    size = target_size(pipeline, settings)
    taken = ", ".join(sorted({*known} & {*COLUMNS, *TEXTS, NUM_THINGS}))
    if taken:
        raise ValueError(
            f"the model was trained with attributes called {taken}; the metadata of its images would have such "
            "columns twice. Rename the columns in its dataset, and train it by their new names."
        )
    checked = pipeline_for(pipeline, settings)
    settings, reads_texts = _check_texts(checked, settings, labels)
    checked.prepare_class_labels(None, num_masks=1)  # refuses a network that needs them
    for changes in grid(settings.variations).values():
        varied = _varied(settings, changes)
        checked.check_inputs(1, 1, varied.num_inference_steps, *size)
        checked.prepare_guidance(*(getattr(varied, name) for name in GUIDANCE))
        checked.prepare_guide(guide, varied.attribute_guidance_scale, varied.prompt_guidance_scale)
        if varied.strength is not None:
            checked.check_strength(varied.strength)
            checked.check_scheduler(varied.num_inference_steps, strength=varied.strength)
        if settings.edit is not None:
            checked.check_scheduler(varied.num_inference_steps, keeps_known=True)
    if settings.edit is not None:
        checked.check_edit_inputs(**asdict(settings.edit))
    checked.scheduler.set_timesteps(settings.num_inference_steps)  # some refuse more than they were trained with
    large_size = None
    if upscaler is not None:
        steps, large_size = _check_upscaler(upscaler, settings, size)
        level = upscaler.resolve_noise_level(settings.noise_level)
        settings = replace(settings, upscaler_steps=steps, noise_level=level)
    mapping = None if mask_labels in (None, labels) else LabelMapping(mask_labels, labels)
    scheduler_config = {
        key: str(value) if value in (math.inf, -math.inf) else value  # JSON has no infinity
        for key, value in pipeline.scheduler.config.items()
        if not key.startswith("_")
    }
    record = {
        "model": str(pipeline.config.get("_name_or_path") or "unsaved"),
        "revision": revision(pipeline.unet),
        "guide_model": None if guide is None else guide_name or "unsaved",
        "guide_revision": None if guide is None else revision(guide),
        "text_encoder_revision": revision(pipeline.text_encoder, encoder_revision) if reads_texts else None,
        "vae_revision": None if pipeline.vae is None else revision(pipeline.vae),
        "upscaler": None if upscaler is None else upscaler_name or "unsaved",
        "upscaler_revision": None if upscaler is None else revision(upscaler.unet),
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": scheduler_config,
        **asdict(settings),
        "mask_labels": None if mapping is None else mapping.names,
        "height": size[0],
        "width": size[1],
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    options = scheduler_options(pipeline.scheduler, pipeline.trained_scheduler)
    if options is not None:
        record["scheduler_options"] = options
    record = json.loads(json.dumps(record, default=str))
    return Plan(record, settings, labels, mapping, known, size, large_size, reads_texts)


def _check_texts(pipeline: Any, settings: GenerationSettings, labels: LabelSet) -> tuple[GenerationSettings, bool]:
    """Return the settings with the names of the classes that texts are about, and whether there are any texts."""
    varied, config = settings.variations or {}, pipeline.unet.config
    given = {
        name: [value for value in (getattr(settings, name), *varied.get(name, ())) if value is not None]
        for name in (*TEXTS, "negative_prompt")
    }
    named = [f"--{name}" for name, values in given.items() if values]
    if not named:
        if settings.prompt_guidance_scale is not None or "prompt_guidance_scale" in varied:
            raise ValueError("--prompt_guidance_scale: only with --prompt or --class_prompts. Add one, or omit it.")
        return settings, False
    if not getattr(config, "text_embed_dim", 0):
        raise ValueError(f"{', '.join(named)}: the model was trained without texts; omit it.")
    if pipeline.text_encoder is None:
        raise ValueError(
            f"{', '.join(named)}: the model reads texts, and its folder lacks the `text_encoder` and the `tokenizer` "
            "that it was trained with: add them, or let them load where it names those of the Hub."
        )
    texts: dict[str, None] = {}

    def resolve(prompts: Any) -> dict[str, Any]:
        resolved: dict[str, Any] = {}
        for key, value in split_dicts("class_prompts", prompts, 1)[0].items():
            name = labels.names[class_id_of("class_prompts", key, labels.num_classes, config.id2label)]
            if name in resolved:
                raise ValueError(f"`class_prompts` holds the class '{name}' by its name and its id; expected it once.")
            resolved[name] = list(value) if isinstance(value, (list, tuple)) else value
            for text in resolved[name] if isinstance(resolved[name], list) else [value]:
                if text is not None:
                    check_text("class_prompts", text)
                    texts[text] = None
        return resolved

    changes: dict[str, Any] = {"class_prompts": settings.class_prompts and resolve(settings.class_prompts)}
    if "class_prompts" in varied:
        entries = tuple(resolve(prompts) for prompts in varied["class_prompts"])
        changes["variations"] = {**varied, "class_prompts": entries}
    for name in ("prompt", "negative_prompt"):
        for text in given[name]:
            check_text(name, text)
            texts[text] = None
    if texts:  # refuses those that are too long, and another encoder
        pipeline.prepare_texts([np.full((1, 1), UNKNOWN)] * len(texts), None, list(texts), None, None, None)
    return replace(settings, **changes), bool(texts)


def enlarged_size(upscaler: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the images that an upscaler makes of those of a size; None keeps them."""
    factor = 1 if upscaler is None else upscaler.unet.config.upscale_factor
    return size[0] * factor, size[1] * factor


def _check_upscaler(upscaler: Any, settings: GenerationSettings, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return an upscaler's steps and the size of its images; refuse sizes that it cannot make."""
    steps, _ = upscaler.resolve_sampling(settings.upscaler_steps)
    large = enlarged_size(upscaler, size)
    try:
        upscaler.check_inputs(1, 1, steps, *large)
    except ValueError as err:
        raise ValueError(f"--upscaler: {err}") from err
    return steps, large


def target_size(pipeline: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return (height, width) of the images: as set, else the model's sample size."""
    if settings.height is not None and settings.width is not None:
        return settings.height, settings.width
    if settings.height is not None or settings.width is not None:
        raise ValueError(f"expected height and width, or none of them; got {settings.height} and {settings.width}.")
    if pipeline.sample_size is None:
        raise ValueError("this model has no sample_size of its own; give height and width.")
    return pipeline.sample_size
