"""Generate labelled images from masks: `generate_dataset`, and the command `generate`."""

import contextlib
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.batches import BatchGenerator, in_batches_that_fit
from semseg_diffusers.generation.jobs import Job
from semseg_diffusers.generation.model import DTYPES, load_guide, load_model, speed_up
from semseg_diffusers.generation.near_copies import flag_near_copies
from semseg_diffusers.generation.output_folder import (
    check_output,
    is_complete,
    make_folders,
    open_output,
    save_contact_sheet,
    save_pair,
    sole_run,
    update_metadata,
    update_skipped,
    wait_for_images,
)
from semseg_diffusers.generation.plan import Inputs, Plan, plan_generation
from semseg_diffusers.generation.settings import GenerateOptions, GenerationSettings
from semseg_diffusers.utils.distributed import Processes, run_distributed
from semseg_diffusers.utils.progress import progress_bar


MOST_NAMED = 10  # bad masks that a refusal names


@dataclass(frozen=True)
class GenerationReport:
    """What a call of `generate_dataset` did, in all its processes together."""

    output: Path
    num_made: int
    num_kept: int  # complete images of an earlier run with the same settings
    contact_sheet: Path | None  # the main process makes it
    mapped: str | None = None  # how many pixels have no class of the model, where the masks are of another label set
    skipped: dict[str, str] = field(default_factory=dict)  # masks that could not be used -> why
    num_unchanged: int = 0  # masks that their photo has already, so that there is nothing to edit


@dataclass
class ScanResult:
    """What a process finds when it reads its share of the masks."""

    missing: list[Job] = field(default_factory=list)  # images to make
    columns: dict[Path, dict[str, Any]] = field(default_factory=dict)  # of each mask that can be used
    bad: dict[Path, str] = field(default_factory=dict)  # masks that cannot be used -> why
    num_unchanged: int = 0
    lost: int | np.ndarray = 0  # pixels by class, where masks are mapped

    def add(self, other: "ScanResult") -> None:
        self.missing += other.missing
        self.columns |= other.columns
        self.bad |= other.bad
        self.num_unchanged += other.num_unchanged
        self.lost = self.lost + other.lost


def generate_dataset(
    pipeline: Any,
    masks: str | os.PathLike,
    output: str | os.PathLike,
    settings: GenerationSettings | None = None,
    *,
    inputs: Inputs | None = None,
    mask_labels: LabelSet | None = None,
    num_images_per_mask: int = 1,
    batch_size: int = 8,
    tolerance: float = 0.0,
    skip_errors: bool = False,
    contact_sheet_rows: int = 8,
    show_progress: bool = False,
    processes: Processes | None = None,
) -> GenerationReport:
    """Generate images for every mask of a folder and write a dataset that `load_dataset("imagefolder")` reads.

    Every mask is read and checked before the first image is made. An output of the same settings is continued:
    complete images stay, missing ones are made, so more masks or more images per mask can be asked for later. A run
    that is killed loses the batch it was at, and the next one goes on from there.

    Args:
        pipeline: mask-guided pipeline; its device, dtype and scheduler are used.
        masks: mask file, or folder searched with its sub-folders; class ids, palettes or the label set's colours.
        output: folder to make or to continue.
        settings: what the images depend on.
        inputs: what they are made from beside the masks: photos to change, attributes of each mask, a guide.
        mask_labels: the classes that the masks are in; of another set than the model's they are mapped to that by
            name, and what has no counterpart becomes unknown. By default they are in the model's, and refused where
            another set lies beside them or above.
        num_images_per_mask: at least 1, of each variation; image i of a mask is the same whatever this number.
        batch_size: images a forward; changes an image by float rounding at most (1 of 255 levels). One that does not
            fit in the memory is halved, by each process for itself.
        tolerance: take the nearest class colour up to this Euclidean RGB distance; 0 refuses unknown colours.
        skip_errors: leave out masks that cannot be used, and name them in the report and in generation.json.
        contact_sheet_rows: masks on `contact_sheet.png`, the first ones; 0 leaves it away.
        show_progress: show a bar of images on stderr, in the main process, and how many pixels were mapped to nothing.
        processes: those that share the work, from `join_processes`, all calling this; by default this one alone.

    Raises:
        FileNotFoundError: no masks there.
        ValueError: masks that cannot be read or do not fit the model's classes, all of them named; a label set that
            has nothing in common with the model's, sizes the network cannot take, an output folder of other settings
            or that another run is writing to; not even one image fits in the memory.
        PeerError: another of the processes has failed.
    """
    settings, inputs = settings or GenerationSettings(), inputs or Inputs()
    processes = processes or Processes()
    output = Path(output)
    hide_progress = not (show_progress and processes.is_main)

    # 1. What is to be done, all of it checked before any work is lost; each process reads its share of the masks
    def make_plan() -> tuple[Plan, ScanResult]:
        if num_images_per_mask < 1 or batch_size < 1:
            raise ValueError(
                f"num_images_per_mask and batch_size must be at least 1; got {num_images_per_mask}, {batch_size}"
            )
        if contact_sheet_rows < 0 or not tolerance >= 0:
            raise ValueError(f"contact_sheet and tolerance must be 0 or more; got {contact_sheet_rows}, {tolerance}")
        plan = plan_generation(pipeline, masks, settings, inputs, tolerance, mask_labels)
        check_output(output, plan.record, plan.labels)
        found = ScanResult()
        for path in progress_bar(
            processes.share(plan.mask_paths), desc="reading masks", unit="mask", disable=hide_progress
        ):
            processes.end_with_launcher()
            try:
                source = plan.reader.read(path)
            except (ValueError, OSError) as err:
                found.bad[path] = " ".join(str(err).split())
                continue
            if source.is_unchanged:
                found.num_unchanged += 1
                continue
            found.columns[path] = source.columns
            found.lost = found.lost + source.lost
            for job in plan.jobs(path, num_images_per_mask):
                if not is_complete(output, job, source.ids, plan.labels, plan.row(job, source.columns)):
                    found.missing.append(job)
        return plan, found

    plan, share = processes.run_on_all_ranks(make_plan)
    found = ScanResult()
    for part in processes.gather(share):
        found.add(part)
    skipped = {_short(path, masks): reason for path, reason in sorted(found.bad.items())}
    paths = [path for path in plan.mask_paths if path in found.columns]
    processes.run_in_main(lambda: _check_found(found, skipped, skip_errors))
    missing = sorted(found.missing, key=lambda job: (plan.group(job), job))
    mapped = None
    if plan.reader.mapping is not None:
        mapped = plan.reader.mapping.describe(found.lost)
        if not hide_progress:
            tqdm.write(f"masks mapped to the model's classes: {mapped}", file=sys.stderr)
    weights = [plan.record[name] for name in ("revision", "guide_revision") if plan.record[name] is not None]
    revisions = set(processes.gather(" and ".join(weights)))
    mappings = set(processes.gather(plan.record["mask_labels"]))

    with contextlib.ExitStack() as held:
        # 2. The folder: the main process keeps it to this run
        def take_output() -> None:
            if len(revisions) > 1:
                raise ValueError(
                    f"the processes have loaded different weights ({', '.join(sorted(revisions))}): give all machines "
                    "the same --model and --guide_model"
                )
            if len(mappings) > 1:
                raise ValueError(
                    "the processes have loaded different label sets of the masks: give all machines the same "
                    "--mask_labels"
                )
            held.enter_context(sole_run(output))
            open_output(output, plan.record, plan.labels)
            noted = {name: re.sub(r"'[^']*/([^'/]+)'", r"'\1'", reason) for name, reason in skipped.items()}
            update_skipped(output, noted, (_short(path, masks) for path in paths))  # no paths: it may be published

        processes.run_in_main(take_output)

        # 3. Images
        wanted = [job for path in paths for job in plan.jobs(path, num_images_per_mask)]
        rows = {job: plan.row(job, found.columns[job.mask_path]) for job in wanted}
        generator = BatchGenerator(pipeline, plan, inputs.guide, processes.end_with_launcher)

        def draw(batch: list[Job]) -> tuple[list[np.ndarray], list[Image.Image]]:
            read = {path: plan.reader.read(path) for path in dict.fromkeys(job.mask_path for job in batch)}
            sources = [read[job.mask_path] for job in batch]
            return [source.ids for source in sources], generator.generate(batch, sources)

        def on_halved(before: int, now: int) -> None:
            which = f"process {processes.index + 1} of {processes.count}: " if processes.count > 1 else ""
            tqdm.write(f"{which}out of memory with {before} images at a time: going on with {now}", file=sys.stderr)

        try:
            num_made = 0
            jobs = processes.share(missing)
            make_folders(output)
            title = "generating" if processes.count == 1 else f"generating, process 1 of {processes.count}"
            with (
                generator.quiet(),
                progress_bar(total=len(jobs), desc=title, unit="image", disable=hide_progress) as bar,
            ):
                for batch, (ids, images) in in_batches_that_fit(jobs, batch_size, plan.group, draw, on_halved):
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
                sheet = save_contact_sheet(
                    output,
                    [plan.jobs(path, num_images_per_mask) for path in paths[:contact_sheet_rows]],
                    _titles(plan, num_images_per_mask),
                    None if inputs.photos is None else lambda job: plan.reader.read(job.mask_path).photo,
                )
    num_kept = len(wanted) - len(missing)
    return GenerationReport(output, num_made, num_kept, sheet, mapped, skipped, found.num_unchanged)


def _short(path: Path, masks: str | os.PathLike) -> str:
    """A mask's name in reports: its path below the folder that was given."""
    return path.relative_to(masks).as_posix() if Path(masks).is_dir() else path.name


def _check_found(found: ScanResult, skipped: dict[str, str], skip_errors: bool) -> None:
    """Refuse masks that cannot be used, all of them at once, unless they are to be skipped; and nothing but such."""
    reasons = [reason.rstrip(".") for reason in skipped.values()]
    named = "; ".join(reasons[:MOST_NAMED]) + (f"; and {len(reasons) - MOST_NAMED} more" * (len(reasons) > MOST_NAMED))
    if reasons and not skip_errors:
        count = "" if len(reasons) == 1 else f"{len(reasons)} masks cannot be used: "
        raise ValueError(f"{count}{named}. Nothing was made; --skip_errors leaves such masks out.")
    if reasons and not found.columns:
        raise ValueError(f"none of the {len(reasons)} masks can be used: {named}.")
    if found.num_unchanged and not found.columns:
        raise ValueError(
            f"--edit: no mask differs from the one that its photo has ({found.num_unchanged} read), so there is "
            "nothing to make anew. Are --masks the edited ones?"
        )


def _titles(plan: Plan, num_images: int) -> list[str]:
    """What the contact sheet says above the images of a mask."""
    titles = []
    for job in plan.jobs(Path(), num_images):
        changes = ", ".join(f"{name} {value}" for name, value in plan.variations[job.variation].items())
        sample = f"sample {job.index}" if num_images > 1 or not changes else ""
        titles.append(" ".join(part for part in (changes, sample) if part))
    return titles


def run(options: GenerateOptions) -> int:
    """Load the pipeline and generate, together with the other processes of the launch if there are any."""
    return run_distributed(options.device, lambda processes, device: _generate(options, processes, device))


def _generate(options: GenerateOptions, processes: Processes, device: torch.device) -> None:
    def load() -> tuple[Any, Any, LabelSet | None]:
        dtype = DTYPES[options.dtype]
        pipeline = load_model(
            options.model, options.revision, options.scheduler, dtype, device, variant=options.variant
        )
        guide = None
        if options.guide_model is not None:
            guide = load_guide(options.guide_model, options.guide_revision, pipeline, options.guide_variant)
        networks = [pipeline.unet] if guide is None else [pipeline.unet, guide]
        speed_up(*networks, torch_compile=options.torch_compile, channels_last=options.channels_last)
        return pipeline, guide, None if options.mask_labels is None else LabelSet.from_name(options.mask_labels)

    def load_training_set() -> PairDataset | None:
        return None if options.training_set is None else load_pairs(options.training_set, options.training_split)

    pipeline, guide, mask_labels = processes.run_on_all_ranks(load)
    training_set = processes.run_in_main(load_training_set)  # a missing one is refused before any work
    report = generate_dataset(
        pipeline,
        options.masks,
        options.output,
        options.generation_settings(),
        inputs=Inputs(options.attributes_from, options.photos, options.old_masks, guide, options.guide_model),
        mask_labels=mask_labels,
        num_images_per_mask=options.num_images_per_mask,
        batch_size=options.batch_size,
        tolerance=options.tolerance,
        skip_errors=options.skip_errors,
        contact_sheet_rows=options.contact_sheet,
        show_progress=True,
        processes=processes,
    )
    if processes.is_main:
        sys.stdout.write(_summary(report))
        if training_set is not None:
            name = f"{options.training_set} ({options.training_split})"
            copies = flag_near_copies(
                Path(options.output), training_set, name, options.near_copy_threshold, show_progress=True
            )
            sys.stdout.write(f"{copies.in_words()}\n")


def _summary(report: GenerationReport) -> str:
    text = f"{report.num_made} images generated, {report.num_kept} kept in {report.output}"
    if report.num_unchanged:
        text += f"; {report.num_unchanged} masks equal those of their real images: nothing to edit"
    text += f"; contact sheet {report.contact_sheet}\n" if report.contact_sheet else "\n"
    if report.skipped:
        text += f"{len(report.skipped)} masks skipped:\n"
        text += "".join(f"  {name}: {reason}\n" for name, reason in report.skipped.items())
    return text
