"""Generates images in batches, each image from its own seed. A batch that does not fit in memory is halved, which
leaves the images as they are.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from tqdm.auto import tqdm

from semseg_diffusers.generation.inputs import GenerationInput
from semseg_diffusers.generation.model import known_attributes, pipeline_for
from semseg_diffusers.generation.plan import Job, Plan
from semseg_diffusers.generation.settings import GUIDANCE, EditSettings
from semseg_diffusers.pipelines.image_inputs import paste, read_image, to_output


# What accelerate's list leaves out: the CPU allocator of Windows, and NVIDIA's libraries.
OUT_OF_MEMORY = ("not enough memory", "STATUS_ALLOC_FAILED")


class BatchGenerator:
    """Generates the images of a plan; `on_step` is called after each step and may raise to end the run."""

    def __init__(self, pipeline: Any, plan: Plan, guide: Any, on_step: Callable[[], None], upscaler: Any = None):
        self.pipeline, self.plan, self.guide = pipeline_for(pipeline, plan.settings), plan, guide
        self.upscaler, self.on_step = upscaler, on_step

    def generate(
        self, jobs: list[Job], read: Callable[[Path], GenerationInput], batch_size: int, prefix: str = ""
    ) -> Iterator[tuple[Job, GenerationInput, Image.Image]]:
        """Yield each job with its input and its image; when the memory is full, continue with half the batch.

        Jobs of a group follow each other; `read` returns the input of a mask; messages start with `prefix`.
        """
        start = 0
        while start < len(jobs):
            group = self.plan.group(jobs[start])
            batch = [job for job in jobs[start : start + batch_size] if self.plan.group(job) == group]
            by_mask = {path: read(path) for path in dict.fromkeys(job.mask_path for job in batch)}
            inputs = [by_mask[job.mask_path] for job in batch]
            try:
                yield from zip(batch, inputs, self.generate_batch(batch, inputs), strict=True)
                start += len(batch)
                continue
            except (RuntimeError, MemoryError) as err:
                if not is_out_of_memory(err):
                    raise
                error = " ".join(str(err).split())[:200]  # the exception itself keeps tensors alive
            if len(batch) == 1:
                raise ValueError(
                    f"one image does not fit in memory ({error}). Use a smaller --height and --width, --dtype "
                    "bfloat16 or float16, or a --device with more memory."
                )
            clear_device_cache(garbage_collection=True)
            batch_size = len(batch) // 2
            text = f"{prefix}out of memory with {len(batch)} images at a time; continuing with {batch_size}"
            tqdm.write(text, file=sys.stderr)

    def generate_batch(self, jobs: list[Job], inputs: list[GenerationInput]) -> list[Image.Image]:
        """Generate images of one group of the plan together; values that are not finite are a `ValueError`."""
        *_, images = self.generate_stages(jobs, inputs)
        return images

    def generate_stages(self, jobs: list[Job], inputs: list[GenerationInput]) -> Iterator[list[Image.Image]]:
        """Generate such images, and yield them; with an upscaler, then yield them enlarged."""
        sampling, attributes = self.plan.sampling(jobs[0]), None
        options = {name: getattr(sampling, name) for name in ("num_inference_steps", *GUIDANCE)}
        if sampling.strength is not None:
            options |= {"image": [each.image for each in inputs], "strength": sampling.strength}
        if sampling.edit is not None:
            options |= {key: value for key, value in asdict(sampling.edit).items() if key != "margin"}
            options |= {"image": [each.image for each in inputs], "edit_region": [each.region for each in inputs]}
            if self.upscaler is not None:
                options["feather"] = 0  # once, at the large size
        if self.plan.known:
            pairs = zip(jobs, inputs, strict=True)
            attributes = [self.plan.attributes(job, each.columns) for job, each in pairs]
        if self.plan.reads_texts:
            texts = [self.plan.texts(job, each.columns) for job, each in zip(jobs, inputs, strict=True)]
            options |= {name: [each[name] for each in texts] for name in texts[0]}
        generators = [torch.Generator().manual_seed(self.plan.seed(job)) for job in jobs]
        images = self._call(
            self.pipeline,
            mask=[each.ids for each in inputs],
            guide_unet=self.guide,
            height=self.plan.size[0],
            width=self.plan.size[1],
            generator=generators,
            attributes=attributes,
            **options,
        )
        yield images
        if self.upscaler is None:
            return
        enlarged = self._call(
            self.upscaler,
            image=images,
            mask=[each.label for each in inputs],
            num_inference_steps=self.plan.settings.upscaler_steps,
            noise_level=self.plan.settings.noise_level,
            generator=generators,  # further numbers of the seed of each image
            attributes=attributes and [known_values(self.upscaler.unet, values) for values in attributes],
        )
        if sampling.edit is not None:
            enlarged = [paste_edit(*pair, sampling.edit) for pair in zip(inputs, enlarged, strict=True)]
        yield enlarged

    def _call(self, pipeline: Any, **arguments: Any) -> list[Image.Image]:
        """Call a pipeline without its progress bar; this run has one of its own."""

        def on_step_end(*_) -> dict:
            self.on_step()
            return {}

        progress_config = getattr(pipeline, "_progress_bar_config", {})
        pipeline.set_progress_bar_config(disable=True)
        try:
            callback = {"callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": []}
            return pipeline(**arguments, **callback).images
        finally:
            pipeline._progress_bar_config = progress_config


def known_values(unet: Any, values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return those attributes of an image that another network knows, with values that it knows."""
    known = known_attributes(unet)
    return {name: value for name, value in values.items() if value in known.get(name, ())}


def paste_edit(source: GenerationInput, enlarged: Image.Image, settings: EditSettings) -> Image.Image:
    """Return the large image of an input with its region from an enlarged image; other pixels stay as they are."""
    assert source.large_image is not None, "an edit has an image"
    assert source.region is not None, "an edit has a region"
    factor = enlarged.height // source.region.shape[0]
    region = source.region.repeat(factor, axis=0).repeat(factor, axis=1)  # (H, W)
    large, new = read_image(source.large_image), read_image(enlarged)
    pasted = paste(large, new, region, (0, 0, *enlarged.size), settings.feather * factor)
    return to_output([pasted], "pil", torch.float32, "cpu")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or Python says that the memory of the device or the machine is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
