"""Draws what the page asks for: one sample after the other, each from its own seed, with the plan, the rows and the
pipelines of `generate`, so that what comes out is what that command makes."""

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

from semseg_diffusers.app.uploads import MOST_GUIDANCE, MOST_SEED, Limits, check_real, check_scheduler, check_whole
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.batches import BatchGenerator
from semseg_diffusers.generation.inputs import Source
from semseg_diffusers.generation.jobs import Job
from semseg_diffusers.generation.model import known_attributes, new_scheduler
from semseg_diffusers.generation.plan import Inputs, Plan, plan_generation, target_size
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, check_attributes
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.images import save_png


NOISE, EDIT, REDRAW = "from noise", "edit where the mask changed", "redraw the photo"
WAYS = (NOISE, EDIT, REDRAW)
STEM = "painted"  # the mask's name while it is drawn: seeds depend on it, and not on what is painted
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
    "PNDMScheduler:skip_prk_steps=true",  # its Runge-Kutta steps can start from noise alone
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo that is to be changed, as the canvas shows it, and the mask that it has."""

    picture: Image.Image  # RGB, at the size of the model
    ids: np.ndarray  # (H, W) uint8; unknown everywhere where its mask is not known
    key: str = ""  # what the canvas says with a mask that was painted over this photo


@dataclass(frozen=True)
class Wish:
    """What is to be drawn of a mask.

    Args:
        way: one of `WAYS`.
        scheduler: as `generate --scheduler`; None is the model's own.
        num_inference_steps, guidance_scale, seed: as there.
        num_images: samples.
        attributes: name -> value; what is left out is the model's choice.
        attribute_guidance_scale: None guides mask and attributes as one.
        strength: for `REDRAW`: the share of noise, 0 to 1.
    """

    way: str = NOISE
    scheduler: str | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    seed: int = 0
    num_images: int = 4
    attributes: dict[str, str] | None = None
    attribute_guidance_scale: float | None = None
    strength: float = 0.5

    def checked(self, limits: Limits) -> "Wish":
        """The same with every number in its range.

        Raises:
            ValueError: naming the first that is not.
        """
        if self.way not in WAYS:
            raise ValueError(f"the way is {self.way!r:.40}; wanted one of {', '.join(WAYS)}.")
        scale = self.attribute_guidance_scale
        return replace(
            self,
            scheduler=check_scheduler(self.scheduler),
            num_inference_steps=check_whole("number of steps", self.num_inference_steps, 1, limits.max_steps),
            guidance_scale=check_real("guidance", self.guidance_scale, 0, MOST_GUIDANCE),
            seed=check_whole("seed", self.seed, 0, MOST_SEED),
            num_images=check_whole("number of samples", self.num_images, 1, limits.max_images),
            attribute_guidance_scale=None if scale is None else check_real("guidance", scale, 0, MOST_GUIDANCE),
            strength=check_real("strength", self.strength, 0, 1),
        )

    def settings(self) -> GenerationSettings:
        """As `generate` has them."""
        return GenerationSettings(
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            attributes=self.attributes or None,
            attribute_guidance_scale=self.attribute_guidance_scale,
            strength=self.strength if self.way == REDRAW else None,
            edit=EditSettings() if self.way == EDIT else None,
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """One sample with all that is known of it, as `generate` would write it."""

    image: Image.Image
    ids: np.ndarray  # (H, W) uint8
    row: dict[str, Any]
    record: dict[str, Any]  # of the settings, as generation.json keeps them

    @property
    def job(self) -> Job:
        """Its name in a data set: the same for the same mask, photo and settings."""
        return Job(Path(f"{self.row['stem']}.png"), self.row["index"])


class Painter:
    """A model that draws for the page, one visitor at a time.

    Args:
        pipeline (`MaskGuidedDDPMPipeline`): its device and dtype are used.
        limits (`Limits`): how much may be asked for.

    Raises:
        ValueError: the model carries no label set, or has no size of its own.
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
        except (ValueError, ImportError):  # some want scipy
            return False
        return True

    def draw(
        self,
        ids: np.ndarray,
        wish: Wish,
        photo: Photo | None = None,
        on_step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> Iterator[Drawn]:
        """Draw the samples of a mask, one after the other.

        Args:
            ids (`np.ndarray`): class ids, (H, W) of the model's size.
            wish (`Wish`)
            photo (`Photo`, *optional*): for the ways that change one.
            on_step: called after each step with the sample's number, the steps done of it, and the steps of each; it
                may raise to end the drawing.

        Raises:
            ValueError: what is wished for is out of range, or the model or its scheduler cannot do it.
        """
        wish = wish.checked(self.limits)
        if wish.way != NOISE and photo is None:
            raise ValueError(f"'{wish.way}' changes a photo: load one first.")
        check_attributes(
            {name: [value] for name, value in (wish.attributes or {}).items()}, self.attributes, "attributes"
        )
        pipeline = copy.copy(self.pipeline)  # shares the network; the scheduler is its own
        own = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        pipeline.scheduler = own if wish.scheduler is None else new_scheduler(wish.scheduler, own.config)
        with tempfile.TemporaryDirectory(prefix="semseg-painter-") as folder:
            mask_file, inputs = self._lay_out(Path(folder), ids, photo if wish.way != NOISE else None, wish.way)
            plan = plan_generation(pipeline, mask_file, wish.settings(), inputs, mask_labels=self.labels)
            source = plan.reader.read(mask_file)
        if source.is_unchanged:
            raise ValueError("the mask is the one that the photo has, so there is nothing to edit: change it.")
        old_ids = photo.ids if wish.way == EDIT else None
        stem = f"{STEM}_{self._digest(ids, old_ids, plan.record, source.columns)}"
        for index in range(wish.num_images):
            job = Job(mask_file, index)
            image = self._draw_one(pipeline, plan, job, source, functools.partial(on_step, index))
            row = {**plan.row(job, source.columns), **_names(stem, index), "source_mask": f"{stem}.png"}
            if "source_photo" in row:
                row["source_photo"] = None  # it lay here for a moment; its hash says which it was
            yield Drawn(image, ids, row, plan.record)

    def _draw_one(
        self,
        pipeline: MaskGuidedDDPMPipeline,
        plan: Plan,
        job: Job,
        source: Source,
        on_step: Callable[[int, int], None],
    ) -> Image.Image:
        counter = itertools.count(1)

        def at_each_step() -> None:
            on_step(next(counter), drawer.pipeline.num_timesteps)

        drawer = BatchGenerator(pipeline, plan, None, at_each_step)
        with self._lock, drawer.quiet():
            return drawer.draw([job], [source])[0]

    def _lay_out(self, folder: Path, ids: np.ndarray, photo: Photo | None, way: str) -> tuple[Path, Inputs]:
        """Write mask and photo as `generate` reads them."""
        mask_file = folder / "new" / f"{STEM}.png"
        mask_file.parent.mkdir()
        save_png(mask_file, self.labels.decode(ids))
        if photo is None:
            return mask_file, Inputs()
        for name, picture in (("images", photo.picture), ("masks", self.labels.decode(photo.ids))):
            (folder / "photos" / name).mkdir(parents=True)
            save_png(folder / "photos" / name / f"{STEM}.png", picture)
        old = folder / "photos" / "masks" if way == EDIT else None
        return mask_file, Inputs(photos=folder / "photos", old_masks=old)

    def _digest(
        self, ids: np.ndarray, old_ids: np.ndarray | None, record: dict[str, Any], columns: dict[str, Any]
    ) -> str:
        """Tells images of other masks, settings, photos, or masks that these had, apart."""
        told = {**record, "photo": columns.get("source_photo_hash")}
        text = json.dumps(told, sort_keys=True, default=str)
        before = b"" if old_ids is None else old_ids.tobytes()
        return hashlib.sha256(ids.tobytes() + before + text.encode()).hexdigest()[:10]


def _names(stem: str, index: int) -> dict[str, str]:
    """What a row says of its files."""
    name = Job(Path(f"{stem}.png"), index).file_name
    return {"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}", "stem": stem}
