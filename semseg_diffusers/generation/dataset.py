"""Generates a labelled data set: masks in, images that carry those masks out, resumable, one seed per image.
Several processes share the work; `output_folder.py` says what is written and `processes.py` how they keep together."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.jobs import Job, image_seed
from semseg_diffusers.generation.output_folder import (
    check_output,
    is_complete,
    make_folders,
    open_output,
    save_contact_sheet,
    save_pair,
    sole_run,
    update_metadata,
    wait_for_images,
)
from semseg_diffusers.generation.plan import GenerationSettings, Plan, plan_generation
from semseg_diffusers.generation.processes import Processes


@dataclass(frozen=True)
class GenerationReport:
    """What a call of `generate_dataset` did, in all its processes together."""

    output: Path
    num_made: int
    num_kept: int  # complete images of an earlier run with the same settings
    contact_sheet: Path | None  # the main process makes it
    mapped: str | None = None  # how many pixels have no class of the model, where the masks are of another label set


def generate_dataset(
    pipeline: Any,
    masks: str | os.PathLike,
    output: str | os.PathLike,
    settings: GenerationSettings | None = None,
    *,
    mask_labels: LabelSet | None = None,
    num_images_per_mask: int = 1,
    batch_size: int = 8,
    tolerance: float = 0.0,
    contact_sheet_rows: int = 8,
    show_progress: bool = False,
    processes: Processes | None = None,
) -> GenerationReport:
    """Generate images for every mask of a folder and write a data set that `load_dataset("imagefolder")` reads.

    Every mask is read and checked before the first image is made. An output of the same settings is continued:
    complete images stay, missing ones are made, so more masks or more images per mask can be asked for later. A run
    that is killed loses the batch it was at, and the next one goes on from there.

    Args:
        pipeline: mask-guided pipeline; its device, dtype and scheduler are used.
        masks: mask file, or folder searched with its sub-folders; class ids, palettes or the label set's colours.
        output: folder to make or to continue.
        settings: what the images depend on.
        mask_labels: the classes that the masks are in; of another set than the model's they are mapped to that by
            name, and what has no counterpart becomes unknown. By default they are in the model's, and refused where
            another set lies beside them or above.
        num_images_per_mask: at least 1; image i of a mask is the same whatever this number.
        batch_size: images a forward; changes an image by float rounding at most (1 of 255 levels).
        tolerance: take the nearest class colour up to this Euclidean RGB distance; 0 refuses unknown colours.
        contact_sheet_rows: masks on `contact_sheet.png`, the first ones; 0 leaves it away.
        show_progress: show a bar of images on stderr, in the main process, and how many pixels were mapped to nothing.
        processes: those that share the work, from `join_processes`, all calling this; by default this one alone.

    Raises:
        FileNotFoundError: no masks there.
        ValueError: a mask that cannot be read or does not fit the model's classes, a label set that has nothing in
            common with the model's, sizes the network cannot take, an output folder of other settings or that another
            run is writing to.
        OtherProcessError: another of the processes has failed.
    """
    settings = settings or GenerationSettings()
    processes = processes or Processes()
    output = Path(output)
    hide_progress = not (show_progress and processes.is_main)

    # 1. What is to be done, all of it checked before any work is lost; each process reads its share of the masks
    def make_plan() -> tuple[Plan, list[Job], int | np.ndarray]:
        if num_images_per_mask < 1 or batch_size < 1:
            raise ValueError(
                f"num_images_per_mask and batch_size must be at least 1; got {num_images_per_mask}, {batch_size}"
            )
        plan = plan_generation(pipeline, masks, settings, tolerance, mask_labels)
        check_output(output, plan.record, plan.labels)
        missing, pixels = [], 0
        for path in tqdm(processes.share(plan.mask_paths), desc="reading masks", unit="mask", disable=hide_progress):
            processes.end_with_launcher()
            own_ids = plan.read_own_ids(path)
            if plan.mapping is not None:
                pixels = pixels + plan.mapping.count(own_ids)
            ids = plan.map_ids(own_ids)
            jobs = (Job(path, index) for index in range(num_images_per_mask))
            missing.extend(job for job in jobs if not is_complete(output, job, ids, plan.labels))
        return plan, missing, pixels

    plan, missing, pixels = processes.agree(make_plan)
    missing = sorted(job for share in processes.gather(missing) for job in share)
    mapped = None
    if plan.mapping is not None:
        mapped = plan.mapping.describe(sum(processes.gather(pixels)))
        if not hide_progress:
            tqdm.write(f"masks mapped to the model's classes: {mapped}", file=sys.stderr)
    revisions = set(processes.gather(plan.record["revision"]))
    mappings = set(processes.gather(plan.record["mask_labels"]))

    with contextlib.ExitStack() as held:
        # 2. The folder: the main process keeps it to this run
        def take_output() -> None:
            if len(revisions) > 1:
                raise ValueError(
                    f"the processes have loaded different weights ({', '.join(sorted(revisions))}): give all machines "
                    "the same --model"
                )
            if len(mappings) > 1:
                raise ValueError(
                    "the processes have loaded different label sets of the masks: give all machines the same "
                    "--mask_labels"
                )
            held.enter_context(sole_run(output))
            open_output(output, plan.record, plan.labels)

        processes.agree_in_main(take_output)

        # 3. Images
        wanted = [Job(path, index) for path in plan.mask_paths for index in range(num_images_per_mask)]
        rows = {job: _row(job, plan.record) for job in wanted}
        try:
            num_made = 0
            jobs = processes.share(missing)
            make_folders(output)
            title = "generating" if processes.count == 1 else f"generating, process 1 of {processes.count}"
            with _quiet(pipeline), tqdm(total=len(jobs), desc=title, unit="image", disable=hide_progress) as bar:
                for start in range(0, len(jobs), batch_size):
                    batch = jobs[start : start + batch_size]
                    ids = [plan.read_ids(job.mask_path) for job in batch]  # (B, H, W)
                    images = _draw(pipeline, batch, ids, settings, processes)
                    for job, mask, image in zip(batch, ids, images, strict=True):
                        save_pair(output, job, plan.labels.decode(mask), image, rows[job])
                        num_made += 1
                    bar.update(len(batch))
            num_made = sum(processes.gather(num_made))  # waits for all
        except BaseException:  # failed, interrupted, told to end: what is done gets its rows
            update_metadata(output, rows.values())
            raise

        # 4. Metadata and contact sheet, once
        sheet = None
        if processes.is_main:
            if processes.count > 1:
                wait_for_images(output, missing)
            update_metadata(output, rows.values())
            if contact_sheet_rows > 0:
                sheet = save_contact_sheet(output, plan.mask_paths[:contact_sheet_rows], num_images_per_mask)
    return GenerationReport(output, num_made, len(wanted) - len(missing), sheet, mapped)


@contextlib.contextmanager
def _quiet(pipeline: Any) -> Iterator[None]:
    """Switch off the pipeline's own progress bar, and put it back as it was."""
    before = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline._progress_bar_config = before


def _draw(
    pipeline: Any, batch: list[Job], ids: list[np.ndarray], settings: GenerationSettings, processes: Processes
) -> list[Image.Image]:
    """Draw the images of a batch, each from its own seed."""

    def on_step_end(*_) -> dict:
        processes.end_with_launcher()
        return {}

    height, width = ids[0].shape
    return pipeline(
        ids,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_start=settings.guidance_start,
        guidance_stop=settings.guidance_stop,
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(image_seed(settings.seed, job.stem, job.index)) for job in batch],
        callback_on_step_end=on_step_end,
        callback_on_step_end_tensor_inputs=[],
    ).images


def _row(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Return an image's row of the metadata."""
    return {
        "image_file_name": f"images/{job.file_name}",
        "mask_file_name": f"masks/{job.file_name}",
        "stem": job.stem,
        "index": job.index,
        "source_mask": str(job.mask_path),
        "model": record["model"],
        "revision": record["revision"],
        "seed": image_seed(record["seed"], job.stem, job.index),
        "scheduler": record["scheduler"],
        "num_inference_steps": record["num_inference_steps"],
        "guidance_scale": record["guidance_scale"],
        "guidance_start": record["guidance_start"],
        "guidance_stop": record["guidance_stop"],
        "synthetic": True,
    }
