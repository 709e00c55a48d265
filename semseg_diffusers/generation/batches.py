"""Draws batches of images, each from its own seed, in as large batches as the memory takes: one that does not fit is
halved, and the images stay the same."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image

from semseg_diffusers.generation.inputs import GenerationInput
from semseg_diffusers.generation.jobs import Job, image_seed
from semseg_diffusers.generation.model import pipeline_for
from semseg_diffusers.generation.plan import Plan


T = TypeVar("T")
# What accelerate's list leaves out: Windows' allocator of the CPU, and the libraries of NVIDIA.
NO_MEMORY = ("not enough memory", "STATUS_ALLOC_FAILED")


class BatchGenerator:
    """Draws what a plan says.

    Args:
        pipeline: mask-guided pipeline; its device, dtype and scheduler are used.
        plan: what is to be done.
        guide: network that guidance leads away from.
        at_each_step: called after each step; it may raise to end the run.
    """

    def __init__(self, pipeline: Any, plan: Plan, guide: Any, at_each_step: Callable[[], None]):
        self.pipeline, self.plan, self.guide = pipeline_for(pipeline, plan.settings), plan, guide
        self.at_each_step = at_each_step

    def generate(self, jobs: list[Job], sources: list[GenerationInput]) -> list[Image.Image]:
        """Generate images of one group of the plan.

        Raises:
            ValueError: numbers are no longer finite after a step, so that the images would be of nothing.
        """

        finite: list[torch.Tensor] = []  # after each step; read at the end, so that no step waits for the device

        def on_step_end(_pipeline, _step, _timestep, tensors: dict[str, torch.Tensor]) -> dict:
            self.at_each_step()
            finite.append(torch.isfinite(tensors["latents"]).all())
            return {}

        sampling, (height, width) = self.plan.sampling(jobs[0]), self.plan.size
        options: dict[str, Any] = {}
        if sampling.strength is not None:
            options = {"image": [source.photo for source in sources], "strength": sampling.strength}
        if sampling.edit is not None:
            edit = sampling.edit
            options = {
                "image": [source.photo for source in sources],
                "edit_region": [source.region for source in sources],
                "padding_mask_crop": edit.padding_mask_crop,
                "feather": edit.feather,
                "jump_length": edit.jump_length,
                "jump_n_sample": edit.jump_n_sample,
            }
        if self.plan.reader.known:
            pairs = zip(jobs, sources, strict=True)
            options["attributes"] = [self.plan.attributes(job, source.columns) for job, source in pairs]
            options["attribute_guidance_scale"] = sampling.attribute_guidance_scale
        images = self.pipeline(
            mask=[source.ids for source in sources],
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            guidance_start=sampling.guidance_start,
            guidance_stop=sampling.guidance_stop,
            guide_unet=self.guide,
            conditioning_scale=sampling.conditioning_scale,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(image_seed(sampling.seed, job.stem, job.index)) for job in jobs],
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=["latents"],
            **options,
        ).images
        flags = [flag.item() for flag in finite]
        if not all(flags):
            raise ValueError(
                f"{type(self.pipeline.scheduler).__name__} left the finite numbers at step {flags.index(False) + 1} "
                f"of {len(flags)}: give it other options, more steps or --dtype float32."
            )
        return images

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Switch off the pipeline's own progress bar, and put it back as it was."""
        before = getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            self.pipeline._progress_bar_config = before


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch or Python says that the memory of the device, or of the machine, is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return should_reduce_batch_size(error) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    )


def in_batches_that_fit(
    jobs: list[Job],
    batch_size: int,
    group: Callable[[Job], int],
    draw: Callable[[list[Job]], T],
    on_halved: Callable[[int, int], None],
) -> Iterator[tuple[list[Job], T]]:
    """Draw all jobs, those of one group together; when the memory is full, go on with half the batch.

    Args:
        jobs: in order; those of a group follow each other.
        batch_size: images at a time to begin with.
        group: of a job.
        draw: draws a batch.
        on_halved: is told the batch that did not fit, and the one that comes now.

    Yields:
        batch and what `draw` made of it.

    Raises:
        ValueError: not even one image fits.
    """
    start = 0
    while start < len(jobs):
        batch = [job for job in jobs[start : start + batch_size] if group(job) == group(jobs[start])]
        full = None
        try:
            drawn = draw(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            full = " ".join(str(error).split())[:200]  # the error itself holds the tensors that it failed on
        if full is None:
            yield batch, drawn
            start += len(batch)
            continue
        if len(batch) == 1:
            raise ValueError(
                f"the memory does not take one image ({full}). Give a smaller --height and --width, --dtype bfloat16 "
                "or float16, or a --device with more of it."
            )
        clear_device_cache(garbage_collection=True)
        batch_size = len(batch) // 2
        on_halved(len(batch), batch_size)
