"""Generate labelled images from masks: `generate_dataset`, and the command `generate`."""

import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced, plain_load_note
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.batches import BatchGenerator
from semseg_diffusers.generation.inputs import InputReader, check_labels_near
from semseg_diffusers.generation.model import (
    DTYPES,
    find_model,
    known_attributes,
    load_guide,
    load_model,
    load_upscaler,
    speed_up,
)
from semseg_diffusers.generation.near_copies import RECORD_TEXT, flag_near_copies
from semseg_diffusers.generation.output_folder import (
    check_output,
    is_complete,
    open_output,
    save_contact_sheet,
    save_pair,
    sole_run,
    update_metadata,
    wait_for_images,
)
from semseg_diffusers.generation.plan import Job, Plan, plan_generation
from semseg_diffusers.generation.settings import GenerateOptions, GenerationSettings, Inputs, check_option_combinations
from semseg_diffusers.utils.distributed import Processes, run_distributed
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.settings import as_list


MAX_NAMED = 10  # masks that cannot be used, in one message


@dataclass(frozen=True)
class GenerationReport:
    """What a call of `generate_dataset` did, in all its processes together."""

    output: Path
    num_made: int
    num_kept: int  # complete images of an earlier run with the same settings
    contact_sheet: Path | None  # the main process writes it
    mapped: str | None = None  # how many pixels have no class of the model, if the masks have another label set
    skipped: dict[str, str] = field(default_factory=dict)  # masks that could not be used -> why
    num_unchanged: int = 0  # masks that equal the old ones of their images, so that there is nothing to edit


@dataclass(frozen=True)
class MaskScan:
    """What reading the masks shows."""

    used: dict[str, Path]  # masks that can be used, by their names in reports
    rows: dict[Job, dict[str, Any]]  # metadata of all their images
    missing: list[Job]  # images that do not exist yet, in the order of generation
    skipped: dict[str, str]  # masks that cannot be used -> why
    num_unchanged: int
    mapped: str | None  # how many pixels have no class of the model, if masks are mapped


def generate_dataset(
    pipeline: Any,
    masks: str | os.PathLike,
    output: str | os.PathLike,
    settings: GenerationSettings | None = None,
    *,
    inputs: Inputs | None = None,
    mask_labels: LabelSet | None = None,
    num_images_per_mask: int = 1,
    num_masks: int | None = None,
    batch_size: int = 8,
    tolerance: float = 0.0,
    skip_errors: bool = False,
    contact_sheet_rows: int = 8,
    show_progress: bool = False,
    processes: Processes | None = None,
) -> GenerationReport:
    """Generate images for every mask of a folder and write a dataset that `load_dataset("imagefolder")` reads.

    All masks are read and checked before the first image is generated. An output of the same settings is resumed:
    complete images stay and missing ones are generated, so more masks or more images per mask can be requested later.
    A run that is killed loses only its current batch.

    Args:
        pipeline: mask-guided pipeline; its device, dtype and scheduler are used.
        masks: mask file, or folder searched with its sub-folders; class ids, palettes or the label set's colours.
        output: folder to create or to resume.
        settings: what the images depend on.
        inputs: what they are generated from beside the masks: images to change, attributes of each mask, a guide.
        mask_labels: label set of the masks. If it is not the model's, classes are mapped by name, and those without a
            counterpart become unknown. By default the model's; masks with another label file near them are refused.
        num_images_per_mask: at least 1, of each variation; image i of a mask is the same whatever this number.
        num_masks: use so many of the masks, evenly spaced; None for all.
        batch_size: images per forward pass; changes an image by float rounding at most (1 of 255 levels). A batch that
            does not fit in memory is halved, by each process for itself.
        tolerance: accept the nearest class colour up to this Euclidean RGB distance; 0 refuses unknown colours.
        skip_errors: skip masks that cannot be used, and name them in the report and in generation.json.
        contact_sheet_rows: masks on `contact_sheet.png`, the first ones; 0 for no sheet.
        show_progress: show progress bars on stderr, in the main process.
        processes: those that share the work, from `join_processes`, all calling this; by default this one alone.

    Returns:
        how many images there are, which masks were skipped, and what users should know.

    Raises:
        FileNotFoundError: there are no masks.
        ValueError: masks that cannot be read or do not fit the model's classes, all of them named; a label set that
            has nothing in common with the model's, sizes the network cannot take, an output folder of other settings
            or that another run is writing to; not even one image fits in memory.
        PeerError: another of the processes has failed.
    """
    settings, inputs, processes = settings or GenerationSettings(), inputs or Inputs(), processes or Processes()
    output, hide_progress = Path(output), not (show_progress and processes.is_main)

    # 1. The plan, and what is missing of it: checked in full before any work
    def make_plan() -> tuple[Plan, InputReader]:
        _check_numbers(num_images_per_mask, batch_size, contact_sheet_rows, tolerance)
        check_option_combinations(settings, inputs, known_attributes(pipeline.unet))
        plan = plan_generation(
            pipeline, settings, inputs.guide, inputs.guide_name, mask_labels, inputs.upscaler, inputs.upscaler_name
        )
        reader = InputReader(masks, plan, inputs, tolerance)
        reader.mask_paths = evenly_spaced(reader.mask_paths, num_masks)
        if mask_labels is None:
            check_labels_near(reader.mask_paths, masks, plan.labels)
        check_output(output, plan.record, plan.labels)
        return plan, reader

    plan, reader = processes.run_on_all_ranks(make_plan)
    scan = _scan_masks(plan, reader, output, num_images_per_mask, processes, hide_progress)
    processes.run_in_main(lambda: _check_usable(scan, skip_errors))
    if scan.mapped is not None and not hide_progress:
        tqdm.write(f"masks mapped to the model's classes: {scan.mapped}", file=sys.stderr)

    # 2. The output folder, which the main process locks
    with contextlib.ExitStack() as held:
        processes.run_in_main(lambda: held.enter_context(sole_run(output)))
        processes.run_in_main(lambda: open_output(output, plan.record, plan.labels, scan.skipped, scan.used))

        # 3. Images: each process generates its share of the missing ones
        share, several = processes.share(scan.missing), f"process {processes.index + 1} of {processes.count}"
        title, prefix = ("generating", "") if processes.count == 1 else (f"generating, {several}", f"{several}: ")
        generator = BatchGenerator(pipeline, plan, inputs.guide, processes.end_with_launcher, inputs.upscaler)
        try:
            with progress_bar(total=len(share), desc=title, unit="image", disable=hide_progress) as bar:
                for job, source, image in generator.generate(share, reader.read, batch_size, prefix):
                    save_pair(output, scan.rows[job], plan.labels.decode(source.label), image)
                    bar.update()
            num_made = sum(processes.gather(len(share)))  # waits for all
        except BaseException:  # failed, interrupted or terminated: finished images get their rows
            update_metadata(output, scan.rows.values())
            raise

        # 4. Metadata and contact sheet
        sheet = None
        if processes.is_main:
            if processes.count > 1:
                wait_for_images(output, [plan.image_file(job) for job in scan.missing])
            update_metadata(output, scan.rows.values())
            if contact_sheet_rows > 0:
                shown = [*scan.used.values()][:contact_sheet_rows]
                sources = [None if inputs.photos is None else reader.read(path).image for path in shown]
                sheet = save_contact_sheet(output, plan, shown, num_images_per_mask, sources)
    num_kept = len(scan.rows) - len(scan.missing)
    return GenerationReport(output, num_made, num_kept, sheet, scan.mapped, scan.skipped, scan.num_unchanged)


def _check_numbers(num_images_per_mask: int, batch_size: int, contact_sheet_rows: int, tolerance: float) -> None:
    if num_images_per_mask < 1 or batch_size < 1:
        raise ValueError(
            f"num_images_per_mask and batch_size must be at least 1; got {num_images_per_mask}, {batch_size}."
        )
    if contact_sheet_rows < 0 or not tolerance >= 0:
        raise ValueError(f"contact_sheet and tolerance must be 0 or more; got {contact_sheet_rows}, {tolerance}.")


def _scan_masks(
    plan: Plan, reader: InputReader, output: Path, num_images: int, processes: Processes, hide_progress: bool
) -> MaskScan:
    """Read all masks, each process its share, and find the images that are missing."""

    def scan_share() -> tuple[dict[Path, dict[str, Any]], dict[Path, str], list[Job], int | np.ndarray]:
        columns: dict[Path, dict[str, Any]] = {}
        errors: dict[Path, str] = {}
        missing: list[Job] = []
        lost: int | np.ndarray = 0
        share = processes.share(reader.mask_paths)
        for path in progress_bar(share, desc="reading masks", unit="mask", disable=hide_progress):
            processes.end_with_launcher()
            try:
                source = reader.read(path)
            except (ValueError, OSError) as err:
                errors[path] = " ".join(str(err).split())
                continue
            if source.is_unchanged:
                continue
            columns[path], lost = source.columns, lost + source.lost
            for job in plan.jobs(path, num_images):
                if not is_complete(output, job, source.label, plan.labels, plan.row(job, source.columns)):
                    missing.append(job)
        return columns, errors, missing, lost

    records = processes.gather(plan.record)
    processes.run_in_main(lambda: _check_processes_agree(records))
    shares = processes.gather(processes.run_on_all_ranks(scan_share))
    columns = {path: share[0][path] for share in shares for path in share[0]}
    errors = {path: share[1][path] for share in shares for path in share[1]}
    num_unchanged = len(reader.mask_paths) - len(columns) - len(errors)
    skipped = {reader.name(path): errors[path] for path in sorted(errors)}
    lost = np.asarray(sum(share[3] for share in shares))
    mapped = plan.mapping.describe(lost) if plan.mapping is not None and columns else None
    rows = {job: plan.row(job, columns[path]) for path in sorted(columns) for job in plan.jobs(path, num_images)}
    missing = sorted((job for share in shares for job in share[2]), key=lambda job: (plan.group(job), job))
    used = {reader.name(path): path for path in sorted(columns)}
    return MaskScan(used, rows, missing, skipped, num_unchanged, mapped)


def _check_processes_agree(records: list[dict[str, Any]]) -> None:
    """Refuse processes that have loaded different models or label sets, as machines may with paths of their own."""
    for key, what, options in (
        ("revision", "weights", "--model and --guide_model"),
        ("guide_revision", "weights", "--model and --guide_model"),
        ("upscaler_revision", "weights", "--model and --upscaler"),
        ("text_encoder_revision", "text encoders", "--model"),
        ("vae_revision", "autoencoders", "--model"),
        ("mask_labels", "label sets of the masks", "--mask_labels"),
    ):
        if any(record[key] != records[0][key] for record in records):
            raise ValueError(f"the processes have loaded different {what}: give all machines the same {options}.")


def _check_usable(scan: MaskScan, skip_errors: bool) -> None:
    """Refuse masks that cannot be used, all in one message, unless they are to be skipped and others can be used."""
    errors = [*scan.skipped.values()]
    named = [*errors[:MAX_NAMED], *([f"and {len(errors) - MAX_NAMED} more"] if len(errors) > MAX_NAMED else [])]
    if errors and not skip_errors:
        one = len(errors) == 1
        listed = f"{errors[0].rstrip('.')}. " if one else as_list(f"{len(errors)} masks cannot be used", named) + "\n"
        raise ValueError(f"{listed}Nothing was generated; --skip_errors skips such masks.")
    if errors and not scan.rows:
        raise ValueError(as_list(f"none of the {len(errors)} masks can be used", named))
    if scan.num_unchanged and not scan.rows:
        raise ValueError(
            f"--edit: no mask differs from the old mask of its image ({scan.num_unchanged} read), so there is nothing "
            "to edit. Are --masks the edited ones?"
        )


def run(options: GenerateOptions) -> int:
    """Load the pipeline and generate, together with the other processes of the launch if there are any."""
    return run_distributed(options.device, lambda processes, device: _generate(options, processes, device))


def _generate(options: GenerateOptions, processes: Processes, device: torch.device) -> None:
    def load() -> tuple[GenerationSettings, Any, Any, Any, LabelSet | None]:
        settings = options.generation_settings()
        dtype, model = DTYPES[options.dtype], options.model or find_model()
        pipeline: Any = load_model(model, options.revision, options.scheduler, dtype, device, options.variant)
        guide = None
        if options.guide_model is not None:
            guide = load_guide(options.guide_model, options.guide_revision, pipeline, options.guide_variant)
        upscaler = None
        if options.upscaler is not None:
            upscaler = load_upscaler(options.upscaler, options.upscaler_revision, pipeline)
        networks = [pipeline.unet, *([guide] if guide else []), *([upscaler.unet] if upscaler else [])]
        speed_up(*networks, torch_compile=options.torch_compile, channels_last=options.channels_last)
        return (
            settings,
            pipeline,
            guide,
            upscaler,
            None if options.mask_labels is None else LabelSet.from_name(options.mask_labels),
        )

    settings, pipeline, guide, upscaler, mask_labels = processes.run_on_all_ranks(load)
    training_set = None
    if options.training_set is not None:  # a missing one is refused before any work
        source, split = options.training_set, options.training_split
        training_set = processes.run_in_main(lambda: load_pairs(source, split))
    report = generate_dataset(
        pipeline,
        options.masks,
        options.output,
        settings,
        inputs=Inputs(
            options.attributes_from,
            options.photos,
            options.old_masks,
            guide,
            options.guide_model,
            upscaler,
            options.upscaler,
        ),
        mask_labels=mask_labels,
        num_images_per_mask=options.num_images_per_mask,
        num_masks=options.num_masks,
        batch_size=options.batch_size,
        tolerance=options.tolerance,
        skip_errors=options.skip_errors,
        contact_sheet_rows=options.contact_sheet,
        show_progress=True,
        processes=processes,
    )
    if not processes.is_main:
        return
    text = f"{report.num_made} images generated, {report.num_kept} kept in {report.output}"
    if report.num_unchanged:
        text += f"; {report.num_unchanged} masks equal those of their real images: nothing to edit"
    text += f"; contact sheet {report.contact_sheet}\n" if report.contact_sheet else "\n"
    if report.skipped:
        text += f"{len(report.skipped)} masks skipped:\n"
        text += "".join(f"  {name}: {reason}\n" for name, reason in report.skipped.items())
    sys.stdout.write(text + plain_load_note(report.output))
    if training_set is not None:
        name = f"{options.training_set} ({options.training_split})"
        copies = flag_near_copies(report.output, training_set, name, options.near_copy_threshold, show_progress=True)
        sys.stdout.write(RECORD_TEXT.format(**copies) + "\n")
