"""Generates samples for the page, one after the other and each from its own seed, with the plan, metadata and
pipelines of `generate`, so that the results are those of that command. With an upscaler, masks, photos and samples are
of its size, and each sample comes twice: small as a preview, then enlarged.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.app.inputs import check_number, check_scheduler
from semseg_diffusers.app.settings import MAX_GUIDANCE, MAX_SEED, Limits
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.batches import BatchGenerator
from semseg_diffusers.generation.inputs import GenerationInput, edited_region, resize_photo, source_columns
from semseg_diffusers.generation.model import known_attributes, new_scheduler
from semseg_diffusers.generation.plan import NUM_THINGS, Job, enlarged_size, plan_generation, target_size
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, check_attributes
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.pipelines.scheduler_trial import check_scheduler as try_scheduler
from semseg_diffusers.pipelines.text_inputs import number_things


NOISE, EDIT, REDRAW = "a new photo", "edit where the mask changed", "redraw the photo"
MODES = (NOISE, EDIT, REDRAW)
FEW_STEPS = 4  # a model that recommends at most so many is quick enough to generate at every stroke
STEM = "painted"  # name of every mask during sampling: seeds depend on it, and not on what is painted
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler:skip_prk_steps=true",  # Runge-Kutta steps can start from pure noise only
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True, eq=False)
class Photo:
    """A real image to change, as the canvas shows it, and its mask."""

    image: Image.Image  # RGB, of the size of the masks
    ids: np.ndarray  # (H, W) uint8; all unknown if its mask is not known
    key: str = ""  # sent by the canvas with each mask painted over this photo


@dataclass(frozen=True)
class SamplingRequest:
    """What to generate from a mask: options of `generate`, not checked yet."""

    mode: str = NOISE
    scheduler: str | None = None  # None: the model's own
    num_inference_steps: float | None = None  # None: what the model recommends, as the next
    guidance_scale: float | None = None
    seed: float = 0
    num_images: float = 4
    attributes: dict[str, str] | None = None  # name -> value; the model chooses the others
    attribute_guidance_scale: float | None = None  # None: mask and attributes are guided together
    strength: float = 0.5  # for REDRAW
    prompt: str | None = None  # a text about the whole image
    negative_prompt: str | None = None  # one that guidance leads away from
    class_prompts: dict[str, str] | None = None  # class -> a text about all its pixels
    thing_prompts: dict[tuple[int, int], str] | None = None  # (x, y) of a pixel -> a text about the thing there

    def settings(self, limits: Limits, recommended: tuple[int, float]) -> GenerationSettings:
        """Return the settings that `generate` would use, with checked numbers; `recommended`: steps and guidance."""
        if self.mode not in MODES:
            raise ValueError(f"the mode is {self.mode!r:.40}; expected one of {', '.join(MODES)}.")
        strength, scale = check_number("strength", self.strength, 0, 1), self.attribute_guidance_scale
        asked = self.num_inference_steps, self.guidance_scale
        steps, guidance = (b if a is None else a for a, b in zip(asked, recommended, strict=True))
        return GenerationSettings(
            num_inference_steps=check_number("number of steps", steps, 1, limits.max_steps, int),
            guidance_scale=check_number("guidance", guidance, 0, MAX_GUIDANCE),
            seed=check_number("seed", self.seed, 0, MAX_SEED, int),
            attributes=self.attributes or None,
            attribute_guidance_scale=None if scale is None else check_number("guidance", scale, 0, MAX_GUIDANCE),
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            strength=strength if self.mode == REDRAW else None,
            edit=EditSettings() if self.mode == EDIT else None,
        )

    def region_prompts(self, ids: np.ndarray, small_ids: np.ndarray, labels: LabelSet) -> dict[str, Any] | None:
        """Return the texts about classes and things as `GenerationSettings.class_prompts` has them.

        Things are connected parts of the mask, (H, W) ids; the model reads it at its own size, where those that have
        vanished are left out.
        """
        prompts: dict[str, Any] = dict(self.class_prompts or {})
        for (x, y), text in (self.thing_prompts or {}).items():
            class_id = int(ids[y, x])
            if class_id == labels.ignore_index:
                raise ValueError(f"there is nothing at x {x}, y {y} that {text!r:.40} could be about: paint it first.")
            things, small_things = (number_things(each == class_id) for each in (ids, small_ids))
            inside = resize_ids((things == things[y, x]).astype(np.uint8), *small_ids.shape) > 0
            seen = small_things[inside & (small_things >= 0)]
            if not len(seen):
                continue
            name = labels.names[class_id]
            if not isinstance(prompts.get(name), list):
                prompts[name] = [prompts.get(name)] * int(small_things.max() + 1)
            prompts[name][np.bincount(seen).argmax()] = text
        return prompts or None


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample with the metadata that `generate` would write."""

    image: Image.Image
    ids: np.ndarray  # (H, W) uint8
    row: dict[str, Any]
    record: dict[str, Any]  # of the settings, as generation.json keeps them
    is_preview: bool = False  # the small image, which an upscaler has not enlarged yet

    @property
    def job(self) -> Job:
        """The name in a dataset: the same for the same mask, photo and settings."""
        return Job(Path(f"{self.row['stem']}.png"), self.row["index"])


class FairLock:
    """A lock that threads get in the order in which they asked for it; that of Python may pass one over for long."""

    def __init__(self):
        self._turn = threading.Condition()
        self._waiting = self._served = 0  # numbers given out, numbers done

    def __enter__(self) -> None:
        with self._turn:
            number, self._waiting = self._waiting, self._waiting + 1
            self._turn.wait_for(lambda: number == self._served)

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._served += 1
            self._turn.notify_all()


@contextlib.contextmanager
def interruptible(network: torch.nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each layer of a network, which it may raise to end: a large step takes seconds on a CPU."""
    layers = [layer for layer in network.modules() if not any(layer.children())]
    hooks = [layer.register_forward_pre_hook(lambda *_: check()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Sampler:
    """A model that generates for the page, one visitor at a time; `upscaler` enlarges its images."""

    def __init__(self, pipeline: Any, limits: Limits, upscaler: Any = None, upscaler_name: str = "unsaved"):
        self.pipeline, self.limits, self.upscaler, self.upscaler_name = pipeline, limits, upscaler, upscaler_name
        self.labels = LabelSet.from_config(pipeline.unet.config)
        self.model_size = target_size(pipeline, GenerationSettings())  # height, width
        self.size = enlarged_size(upscaler, self.model_size)  # of masks and samples
        self.attributes = known_attributes(pipeline.unet)
        self.reads_texts = pipeline.unet.config.get("text_embed_dim", 0) > 0 and pipeline.text_encoder is not None
        steps, guidance = pipeline.resolve_sampling()
        self.recommended = min(steps, limits.max_steps), min(max(guidance, 0.0), MAX_GUIDANCE)
        self.schedulers: list[str] = []
        for name in SCHEDULERS:
            with contextlib.suppress(ValueError, ImportError):  # some need scipy
                scheduler = new_scheduler(name, pipeline.scheduler.config)
                modes: tuple[dict[str, Any], ...] = ({}, {"keeps_known": True}, {"strength": SamplingRequest.strength})
                for mode in modes:
                    try_scheduler(scheduler, self.recommended[0], pipeline.trained_scheduler, **mode)
                self.schedulers.append(name)
        self._revisions: dict[torch.nn.Module, str] = {}  # of the networks, which do not change
        self._lock = FairLock()  # one network: one image at a time, of each visitor in turn
        self.is_quick = steps <= FEW_STEPS
        self.upscaler_steps = None if upscaler is None else min(upscaler.resolve_sampling()[0], limits.max_steps)

    def generate(
        self,
        ids: np.ndarray,
        request: SamplingRequest,
        photo: Photo | None = None,
        on_step: Callable[[int, int, int], None] = lambda *_: None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Sample]:
        """Generate the samples of a mask, (H, W) class ids, one after the other, each after its preview if it has one.

        `on_step` gets the index of the sample, its finished steps, and the steps of each; `check` is called often
        while a sample is enlarged. Both may raise to end it.
        """
        settings = replace(request.settings(self.limits, self.recommended), upscaler_steps=self.upscaler_steps)
        scheduler = check_scheduler(request.scheduler)
        num_images = check_number("number of samples", request.num_images, 1, self.limits.max_images, int)
        known = {name: [value] for name, value in (request.attributes or {}).items()}
        check_attributes(known, self.attributes, "attributes")
        if request.mode != NOISE and photo is None:
            raise ValueError(f"'{request.mode}' changes a photo: load one first.")
        source = self._source(ids, settings, None if request.mode == NOISE else photo)
        if source.is_unchanged:
            raise ValueError("the mask equals that of the photo, so there is nothing to edit: change it.")
        settings = replace(settings, class_prompts=request.region_prompts(ids, source.ids, self.labels))
        pipeline = copy.copy(self.pipeline)  # shares the network; the scheduler may be another
        if scheduler is not None:
            pipeline.scheduler = new_scheduler(scheduler, pipeline.scheduler.config)
        enlarging = {"upscaler": self.upscaler, "upscaler_name": self.upscaler_name}
        plan = plan_generation(pipeline, settings, **enlarging, revisions=self._revisions)
        if plan.described_classes:
            source.columns[NUM_THINGS] = plan.num_things(source.ids)
        # The name is a hash of all that the image depends on.
        record = json.dumps({**plan.record, "photo": source.columns.get("source_photo_hash")}, sort_keys=True)
        before = photo.ids.tobytes() if photo is not None and request.mode == EDIT else b""
        digest = hashlib.sha256(ids.tobytes() + before + record.encode()).hexdigest()[:10]
        mask_file = Path(f"{STEM}_{digest}.png")
        finished = itertools.count()  # steps of all samples

        def after_step() -> None:
            steps = generator.pipeline.num_timesteps + num_enlarging_steps
            index, step = divmod(next(finished), steps)
            on_step(index, step + 1, steps)

        generator = BatchGenerator(pipeline, plan, None, after_step, self.upscaler)
        num_enlarging_steps = 0
        if self.upscaler is not None:
            scheduler = copy.deepcopy(self.upscaler.scheduler)
            scheduler.set_timesteps(plan.settings.upscaler_steps)
            num_enlarging_steps = len(scheduler.timesteps)  # some have several for one
        for index in range(num_images):
            job = Job(Path(f"{STEM}.png"), index)
            row = {**plan.row(Job(mask_file, index), source.columns), "seed": plan.seed(job)}
            if source.image is not None:
                row["source_photo"] = None  # not a file; the hash identifies it
            stages = generator.generate_stages([job], [source])
            for is_preview in (False,) if self.upscaler is None else (True, False):
                with self._lock, contextlib.ExitStack() as stack:
                    if self.upscaler is not None and not is_preview:
                        stack.enter_context(interruptible(self.upscaler.unet, check))
                    (image,) = next(stages)
                yield Sample(image, ids, row, plan.record, is_preview)

    def _source(self, ids: np.ndarray, settings: GenerationSettings, photo: Photo | None) -> GenerationInput:
        """Return what images of a mask (H, W) are generated from, as `generate` reads it from files."""
        is_enlarged = self.upscaler is not None
        small_ids, large_ids = resize_ids(ids, *self.model_size), ids if is_enlarged else None
        if photo is None:
            return GenerationInput(small_ids, {}, large_ids=large_ids)
        region = large_image = None
        if settings.edit is not None:
            region = edited_region(photo.ids, ids, self.model_size, settings.edit.margin)
            large_image = photo.image if is_enlarged else None
        image = resize_photo(photo.image, self.model_size)
        columns = source_columns(large_image or image, "", region)
        return GenerationInput(small_ids, columns, image, region, 0, large_ids, large_image)
