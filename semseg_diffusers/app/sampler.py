"""Generate samples for the page, one after the other and each from its own seed, with the plan, metadata and pipelines
of `generate`, so that the results are those of that command."""

import copy
import functools
import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.app.settings import MAX_GUIDANCE, MAX_SEED, Limits
from semseg_diffusers.app.uploads import check_integer, check_real, check_scheduler
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.batches import BatchGenerator
from semseg_diffusers.generation.inputs import GenerationInput
from semseg_diffusers.generation.model import known_attributes, new_scheduler
from semseg_diffusers.generation.plan import Job, Plan, plan_generation, target_size
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs, check_attributes
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.images import save_png


NOISE, EDIT, REDRAW = "from noise", "edit where the mask changed", "redraw the photo"
MODES = (NOISE, EDIT, REDRAW)
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

    image: Image.Image  # RGB, at the size of the model
    ids: np.ndarray  # (H, W) uint8; all unknown if its mask is not known
    key: str = ""  # sent by the canvas with each mask painted over this photo


@dataclass(frozen=True)
class SamplingRequest:
    """What to generate from a mask.

    Args:
        mode: one of `MODES`.
        scheduler: as `generate --scheduler`; None is the model's own.
        num_inference_steps, guidance_scale, seed: as for `generate`.
        num_images: number of samples.
        attributes: name -> value; the model chooses the others.
        attribute_guidance_scale: None guides mask and attributes together.
        strength: for `REDRAW`, the share of noise, 0 to 1.
    """

    mode: str = NOISE
    scheduler: str | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    seed: int = 0
    num_images: int = 4
    attributes: dict[str, str] | None = None
    attribute_guidance_scale: float | None = None
    strength: float = 0.5

    def checked(self, limits: Limits) -> "SamplingRequest":
        """Return this request with checked numbers.

        Raises:
            ValueError: naming the first that is out of range.
        """
        if self.mode not in MODES:
            raise ValueError(f"the mode is {self.mode!r:.40}; expected one of {', '.join(MODES)}.")
        scale = self.attribute_guidance_scale
        return replace(
            self,
            scheduler=check_scheduler(self.scheduler),
            num_inference_steps=check_integer("number of steps", self.num_inference_steps, 1, limits.max_steps),
            guidance_scale=check_real("guidance", self.guidance_scale, 0, MAX_GUIDANCE),
            seed=check_integer("seed", self.seed, 0, MAX_SEED),
            num_images=check_integer("number of samples", self.num_images, 1, limits.max_images),
            attribute_guidance_scale=None if scale is None else check_real("guidance", scale, 0, MAX_GUIDANCE),
            strength=check_real("strength", self.strength, 0, 1),
        )

    def settings(self) -> GenerationSettings:
        """Return the settings that `generate` would use."""
        return GenerationSettings(
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            attributes=self.attributes or None,
            attribute_guidance_scale=self.attribute_guidance_scale,
            strength=self.strength if self.mode == REDRAW else None,
            edit=EditSettings() if self.mode == EDIT else None,
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample with the metadata that `generate` would write."""

    image: Image.Image
    ids: np.ndarray  # (H, W) uint8
    row: dict[str, Any]
    record: dict[str, Any]  # of the settings, as generation.json keeps them

    @property
    def job(self) -> Job:
        """The name in a dataset: the same for the same mask, photo and settings."""
        return Job(Path(f"{self.row['stem']}.png"), self.row["index"])


class Sampler:
    """A model that generates for the page, one visitor at a time.

    Args:
        pipeline (`MaskGuidedDDPMPipeline`): its device and dtype are used.
        limits (`Limits`): of a request.

    Raises:
        ValueError: the model has no label set, or no size of its own.
    """

    def __init__(self, pipeline: MaskGuidedDDPMPipeline, limits: Limits):
        self.pipeline, self.limits = pipeline, limits
        self.labels = LabelSet.from_config(pipeline.unet.config)
        self.size = target_size(pipeline, GenerationSettings())  # height, width
        self.attributes = known_attributes(pipeline.unet)
        self.schedulers = [name for name in SCHEDULERS if self._takes(name)]
        self._lock = threading.Lock()  # one network: one image at a time

    def _takes(self, scheduler: str) -> bool:
        try:
            new_scheduler(scheduler, self.pipeline.scheduler.config)
        except (ValueError, ImportError):  # some need scipy
            return False
        return True

    def generate(
        self,
        ids: np.ndarray,
        request: SamplingRequest,
        photo: Photo | None = None,
        on_step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> Iterator[Sample]:
        """Generate the samples of a mask, one after the other.

        Args:
            ids (`np.ndarray`): class ids, (H, W) of the model's size.
            request (`SamplingRequest`): what to generate.
            photo (`Photo`, *optional*): for the modes that change one.
            on_step: called after each step with the index of the sample, its finished steps, and the steps of each;
                it may raise to end sampling.

        Raises:
            ValueError: the request is out of range, or not possible with the model or the scheduler.
        """
        request = request.checked(self.limits)
        if request.mode != NOISE and photo is None:
            raise ValueError(f"'{request.mode}' changes a photo: load one first.")
        check_attributes(
            {name: [value] for name, value in (request.attributes or {}).items()}, self.attributes, "attributes"
        )
        pipeline = copy.copy(self.pipeline)  # shares the network; the scheduler is its own
        own = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        pipeline.scheduler = own if request.scheduler is None else new_scheduler(request.scheduler, own.config)
        with tempfile.TemporaryDirectory(prefix="semseg-painter-") as folder:
            mask_file, inputs = self._lay_out(
                Path(folder), ids, photo if request.mode != NOISE else None, request.mode
            )
            plan = plan_generation(pipeline, mask_file, request.settings(), inputs, mask_labels=self.labels)
            source = plan.reader.read(mask_file)
        if source.is_unchanged:
            raise ValueError("the mask equals that of the photo, so there is nothing to edit: change it.")
        old_ids = photo.ids if request.mode == EDIT else None
        stem = f"{STEM}_{self._digest(ids, old_ids, plan.record, source.columns)}"
        for index in range(request.num_images):
            job = Job(mask_file, index)
            image = self._generate_one(pipeline, plan, job, source, functools.partial(on_step, index))
            row = {**plan.row(job, source.columns), **_names(stem, index), "source_mask": f"{stem}.png"}
            if "source_photo" in row:
                row["source_photo"] = None  # a temporary file; the hash identifies it
            yield Sample(image, ids, row, plan.record)

    def _generate_one(
        self,
        pipeline: MaskGuidedDDPMPipeline,
        plan: Plan,
        job: Job,
        source: GenerationInput,
        on_step: Callable[[int, int], None],
    ) -> Image.Image:
        counter = itertools.count(1)

        def at_each_step() -> None:
            on_step(next(counter), generator.pipeline.num_timesteps)

        generator = BatchGenerator(pipeline, plan, None, at_each_step)
        with self._lock, generator.quiet():
            return generator.generate_batch([job], [source])[0]

    def _lay_out(self, folder: Path, ids: np.ndarray, photo: Photo | None, mode: str) -> tuple[Path, Inputs]:
        """Write mask and photo in the layout that `generate` reads."""
        mask_file = folder / "new" / f"{STEM}.png"
        mask_file.parent.mkdir()
        save_png(mask_file, self.labels.decode(ids))
        if photo is None:
            return mask_file, Inputs()
        for name, picture in (("images", photo.image), ("masks", self.labels.decode(photo.ids))):
            (folder / "photos" / name).mkdir(parents=True)
            save_png(folder / "photos" / name / f"{STEM}.png", picture)
        old = folder / "photos" / "masks" if mode == EDIT else None
        return mask_file, Inputs(photos=folder / "photos", old_masks=old)

    def _digest(
        self, ids: np.ndarray, old_ids: np.ndarray | None, record: dict[str, Any], columns: dict[str, Any]
    ) -> str:
        """Return a hash of mask, settings, photo, and the mask that it had."""
        content = {**record, "photo": columns.get("source_photo_hash")}
        text = json.dumps(content, sort_keys=True, default=str)
        before = b"" if old_ids is None else old_ids.tobytes()
        return hashlib.sha256(ids.tobytes() + before + text.encode()).hexdigest()[:10]


def _names(stem: str, index: int) -> dict[str, str]:
    """Return the names in a metadata row."""
    name = Job(Path(f"{stem}.png"), index).file_name
    return {"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}", "stem": stem}
