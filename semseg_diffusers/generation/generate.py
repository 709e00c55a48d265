"""Turn masks into labelled images: a folder of masks in, a data set out that load_dataset("imagefolder") reads.

Masks are class ids (one channel or palette) or pictures in the model's class colours; those of another label set are
mapped to the model's classes by name (--mask_labels). A run that was interrupted or killed is continued by the same
command; asking for more images per mask, or for more masks, adds to the same output.

  semseg-diffusers generate --model RUN --masks DIR --output NEW
  semseg-diffusers generate ... --variations guidance_scale=1.5,3 weather=clear,rainy    each combination for each mask
  semseg-diffusers generate ... --edit --photos SPLIT --masks EDITED       photos made anew where masks were edited
  semseg-diffusers generate ... --strength 0.6 --photos SPLIT              photos redrawn, their layout kept

Several processes, GPUs or machines share the work, with the same images in the end:
  accelerate launch [--config_file FILE] -m semseg_diffusers.generation --model ... (the options below)
Machines need one file system for masks and output.
"""

import argparse
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

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.generation.batches import BatchGenerator, in_batches_that_fit
from semseg_diffusers.generation.jobs import Job
from semseg_diffusers.generation.model import DTYPES, load_guide, load_model, speed_up
from semseg_diffusers.generation.near_copies import THRESHOLD, flag_near_copies
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
from semseg_diffusers.generation.settings import (
    EditSettings,
    GenerationSettings,
    read_attributes,
    read_variations,
)
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
class Found:
    """What a process finds when it reads its share of the masks."""

    missing: list[Job] = field(default_factory=list)  # images to make
    columns: dict[Path, dict[str, Any]] = field(default_factory=dict)  # of each mask that can be used
    bad: dict[Path, str] = field(default_factory=dict)  # masks that cannot be used -> why
    num_unchanged: int = 0
    lost: int | np.ndarray = 0  # pixels by class, where masks are mapped

    def add(self, other: "Found") -> None:
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
    """Generate images for every mask of a folder and write a data set that `load_dataset("imagefolder")` reads.

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
    def make_plan() -> tuple[Plan, Found]:
        if num_images_per_mask < 1 or batch_size < 1:
            raise ValueError(
                f"num_images_per_mask and batch_size must be at least 1; got {num_images_per_mask}, {batch_size}"
            )
        if contact_sheet_rows < 0 or not tolerance >= 0:
            raise ValueError(f"contact_sheet and tolerance must be 0 or more; got {contact_sheet_rows}, {tolerance}")
        plan = plan_generation(pipeline, masks, settings, inputs, tolerance, mask_labels)
        check_output(output, plan.record, plan.labels)
        found = Found()
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
    found = Found()
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
        drawer = BatchGenerator(pipeline, plan, inputs.guide, processes.end_with_launcher)

        def draw(batch: list[Job]) -> tuple[list[np.ndarray], list[Image.Image]]:
            read = {path: plan.reader.read(path) for path in dict.fromkeys(job.mask_path for job in batch)}
            sources = [read[job.mask_path] for job in batch]
            return [source.ids for source in sources], drawer.draw(batch, sources)

        def on_halved(before: int, now: int) -> None:
            which = f"process {processes.index + 1} of {processes.count}: " if processes.count > 1 else ""
            tqdm.write(f"{which}out of memory with {before} images at a time: going on with {now}", file=sys.stderr)

        try:
            num_made = 0
            jobs = processes.share(missing)
            make_folders(output)
            title = "generating" if processes.count == 1 else f"generating, process 1 of {processes.count}"
            with drawer.quiet(), progress_bar(total=len(jobs), desc=title, unit="image", disable=hide_progress) as bar:
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


def _check_found(found: Found, skipped: dict[str, str], skip_errors: bool) -> None:
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


TRAINING_SPLIT = "train"  # of --training_set, by default


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how an image is sampled, for every command that generates."""
    defaults = GenerationSettings()
    parser.add_argument(
        "--num_inference_steps",
        type=int,
        default=defaults.num_inference_steps,
        help="sampling steps (default %(default)s)",
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=defaults.guidance_scale,
        help="how strongly the mask is followed; 1 is without guidance, at half the cost (default %(default)s)",
    )
    parser.add_argument(
        "--guidance_start",
        type=float,
        default=defaults.guidance_start,
        help="share of the steps to begin guidance at",
    )
    parser.add_argument(
        "--guidance_stop", type=float, default=defaults.guidance_stop, help="share of the steps to end guidance at"
    )
    parser.add_argument(
        "--scheduler",
        metavar="CLASS[:OPTION=VALUE,...]",
        help="class name of a diffusers scheduler, with options of its own (default: the model's); such as "
        "DDIMScheduler, or DPMSolverMultistepScheduler:thresholding=true",
    )
    parser.add_argument(
        "--variant",
        help="weights beside the model's own, as diffusers calls them: raw, or an average such as ema_0_9999",
    )


def sampling_settings(args: argparse.Namespace, **more: Any) -> GenerationSettings:
    """Read what `add_sampling_arguments` added, and `--seed`; `more` are other fields of the settings."""
    return GenerationSettings(
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        guidance_start=args.guidance_start,
        guidance_stop=args.guidance_stop,
        seed=args.seed,
        variant=args.variant,
        **more,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers generate`."""
    parser.add_argument("--model", required=True, help="folder of a training run, or a Hub repo id")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument("--masks", required=True, help="folder of masks (with its sub-folders), or one mask file")
    parser.add_argument(
        "--mask_labels",
        metavar="PRESET|FILE",
        help="label set of the masks, where it is another than the model's: classes are mapped by name, what has no "
        f"counterpart becomes unknown; {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    parser.add_argument("--output", required=True, help="folder to make, or to continue")
    parser.add_argument("--num_images_per_mask", type=int, default=1, help="default 1")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--skip_errors",
        action="store_true",
        help="leave out masks that cannot be used, and name them at the end (default: then nothing is made)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="take the nearest class colour up to this RGB distance",
    )
    parser.add_argument(
        "--contact_sheet", type=int, default=8, metavar="ROWS", help="masks on contact_sheet.png (default 8; 0: none)"
    )
    _add_sampling(parser.add_argument_group("how images are sampled"))
    _add_photos(parser.add_argument_group("photos that are changed"))
    _add_copies(parser.add_argument_group("near-copies of training photos"))
    _add_device(parser.add_argument_group("device and memory"))


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    add_sampling_arguments(group)
    group.add_argument(
        "--attributes",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="for all images: weather=rainy timeofday=night; 'unknown' leaves one to the model",
    )
    group.add_argument(
        "--attributes_from",
        metavar="FILE|DIR",
        help="attributes of each mask by its name: CSV with a column `stem`, JSON lines, or a split of a prepared "
        "data set; --attributes goes first",
    )
    group.add_argument(
        "--attribute_guidance_scale",
        type=float,
        help="how strongly attributes are followed, apart from the mask, at half as much cost again (default: as one)",
    )
    group.add_argument(
        "--conditioning_scale",
        type=float,
        help="how much the control branch of a model of `train --base_model` counts; 0 is the base alone (default 1)",
    )
    group.add_argument(
        "--guide_model",
        metavar="DIR|ID",
        help="a smaller or less trained model: guidance leads away from it (autoguidance) in place of no mask",
    )
    group.add_argument("--guide_revision", help="branch, tag or commit of it on the Hub")
    group.add_argument("--guide_variant", help="weights beside its own, as --variant")
    group.add_argument(
        "--variations",
        nargs="+",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="each combination for each mask, from the same noise: guidance_scale, guidance_start, guidance_stop, "
        "attribute_guidance_scale, conditioning_scale, strength, or an attribute",
    )


def _add_photos(group: argparse._ArgumentGroup) -> None:
    defaults = EditSettings()
    group.add_argument(
        "--photos",
        metavar="DIR",
        help="photos, or a folder with images/ and masks/ such as a split; found by the masks' names, and for what "
        "`enrich` made by those of the masks that it began with",
    )
    group.add_argument(
        "--edit", action="store_true", help="make photos anew where --masks differ from their old masks"
    )
    group.add_argument("--old_masks", metavar="DIR", help="masks that the photos have (default: masks/ in --photos)")
    group.add_argument(
        "--edit_margin",
        type=int,
        metavar="PIXELS",
        help=f"around what differs, made anew too (default {defaults.margin})",
    )
    group.add_argument(
        "--padding_mask_crop",
        type=int,
        metavar="PIXELS",
        help="keep photos at their own size, and draw a window with so many pixels around each edit "
        "(default: photos and masks are brought to the size of the model)",
    )
    group.add_argument(
        "--feather",
        type=int,
        metavar="PIXELS",
        help=f"inside its border, an edit fades in over these (default {defaults.feather})",
    )
    group.add_argument(
        "--jump_n_sample",
        type=int,
        metavar="TIMES",
        help=f"RePaint's resampling: each step is done so often (default {defaults.jump_n_sample}: none); with DDPM "
        "or DDIM schedulers",
    )
    group.add_argument(
        "--jump_length",
        type=int,
        metavar="STEPS",
        help=f"steps that are done again together (default {defaults.jump_length})",
    )
    group.add_argument(
        "--strength",
        type=float,
        help="redraw photos from this share of noise: 0 leaves them as they are, 1 leaves nothing of them",
    )


def _add_copies(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--training_set",
        metavar="DIR|ID",
        help="data set that the model was trained on: metadata name the nearest photo of each image, and near-copies",
    )
    group.add_argument("--training_split", help=f"default {TRAINING_SPLIT}")
    group.add_argument(
        "--near_copy_threshold",
        type=float,
        metavar="LEVELS",
        help=f"nearer is a near-copy: grey levels of 255, root mean square over 32 x 32 (default {THRESHOLD})",
    )


def _add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="images at a time in a process (default %(default)s); halved where the memory is full",
    )
    group.add_argument("--height", type=int, help="pixels (default: the model's)")
    group.add_argument("--width", type=int, help="pixels (default: the model's)")
    group.add_argument("--device", help="default: GPU if any; of several processes each takes one of its own")
    group.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default %(default)s")
    group.add_argument("--torch_compile", action="store_true", help="compile the network first, which takes a minute")
    group.add_argument("--channels_last", action="store_true", help="memory layout that is faster on most GPUs")


def settings_from(args: argparse.Namespace) -> GenerationSettings:
    """Read the options that images depend on.

    Raises:
        ValueError: options that do not go together.
    """
    given = {
        "margin": args.edit_margin,
        "padding_mask_crop": args.padding_mask_crop,
        "feather": args.feather,
        "jump_length": args.jump_length,
        "jump_n_sample": args.jump_n_sample,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given and not args.edit:
        names = ", ".join("--edit_margin" if name == "margin" else f"--{name}" for name in given)
        raise ValueError(f"{names}: only with --edit. Give it, or leave them away.")
    if args.training_set is not None and args.edit:
        raise ValueError("--training_set: an edited photo is a near-copy of its own. Leave it away with --edit.")
    for whole, parts in (
        ("guide_model", ("guide_revision", "guide_variant")),
        ("jump_n_sample", ("jump_length",)),
        ("training_set", ("training_split", "near_copy_threshold")),
    ):
        lone = [f"--{part}" for part in parts if getattr(args, part) is not None]
        if lone and getattr(args, whole) is None:
            raise ValueError(f"{', '.join(lone)}: only with --{whole}. Give it, or leave them away.")
    if args.near_copy_threshold is not None and not args.near_copy_threshold > 0:
        raise ValueError(f"--near_copy_threshold {args.near_copy_threshold}; wanted grey levels above 0.")
    return sampling_settings(
        args,
        height=args.height,
        width=args.width,
        attributes=read_attributes(args.attributes) or None,
        attribute_guidance_scale=args.attribute_guidance_scale,
        conditioning_scale=args.conditioning_scale,
        strength=args.strength,
        edit=EditSettings(**given) if args.edit else None,
        variations=read_variations(args.variations) or None,
    )


def run(args: argparse.Namespace) -> int:
    """Load the pipeline and generate, together with the other processes of the launch where there are any."""
    settings = settings_from(args)
    return run_distributed(args.device, lambda processes, device: _generate(args, settings, processes, device))


def _generate(
    args: argparse.Namespace, settings: GenerationSettings, processes: Processes, device: torch.device
) -> None:
    def load() -> tuple[Any, Any, LabelSet | None]:
        dtype = DTYPES[args.dtype]
        pipeline = load_model(args.model, args.revision, args.scheduler, dtype, device, variant=args.variant)
        guide = None
        if args.guide_model is not None:
            guide = load_guide(args.guide_model, args.guide_revision, pipeline, args.guide_variant)
        networks = [pipeline.unet] if guide is None else [pipeline.unet, guide]
        speed_up(*networks, torch_compile=args.torch_compile, channels_last=args.channels_last)
        return pipeline, guide, None if args.mask_labels is None else LabelSet.from_name(args.mask_labels)

    split = args.training_split or TRAINING_SPLIT

    def load_training() -> Any:
        return None if args.training_set is None else load_pairs(args.training_set, split)

    pipeline, guide, mask_labels = processes.run_on_all_ranks(load)
    training = processes.run_in_main(load_training)  # there, or refused before any work
    report = generate_dataset(
        pipeline,
        args.masks,
        args.output,
        settings,
        inputs=Inputs(args.attributes_from, args.photos, args.old_masks, guide, args.guide_model),
        mask_labels=mask_labels,
        num_images_per_mask=args.num_images_per_mask,
        batch_size=args.batch_size,
        tolerance=args.tolerance,
        skip_errors=args.skip_errors,
        contact_sheet_rows=args.contact_sheet,
        show_progress=True,
        processes=processes,
    )
    if processes.is_main:
        sys.stdout.write(_summary(report))
        if training is not None:
            name, threshold = f"{args.training_set} ({split})", args.near_copy_threshold or THRESHOLD
            copies = flag_near_copies(Path(args.output), training, name, threshold, show_progress=True)
            sys.stdout.write(f"{copies.in_words()}\n")


def _summary(report: GenerationReport) -> str:
    """What was done, and every mask that was left out."""
    text = f"{report.num_made} images made, {report.num_kept} kept in {report.output}"
    if report.num_unchanged:
        text += f"; {report.num_unchanged} masks are those that their photos have: nothing to edit"
    text += f"; contact sheet {report.contact_sheet}\n" if report.contact_sheet else "\n"
    if report.skipped:
        text += f"{len(report.skipped)} masks skipped:\n"
        text += "".join(f"  {name}: {reason}\n" for name, reason in report.skipped.items())
    return text
