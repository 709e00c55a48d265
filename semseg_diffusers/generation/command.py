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
import sys
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.loading import load_pairs
from semseg_diffusers.generation.dataset import GenerationReport, generate_dataset
from semseg_diffusers.generation.model import DTYPES, load_guide, load_model, speed_up
from semseg_diffusers.generation.near_copies import THRESHOLD, flag_near_copies
from semseg_diffusers.generation.plan import Inputs
from semseg_diffusers.generation.processes import Processes, work_together
from semseg_diffusers.generation.settings import (
    EditSettings,
    GenerationSettings,
    read_attributes,
    read_variations,
)


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
    return work_together(args.device, lambda processes, device: _generate(args, settings, processes, device))


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

    pipeline, guide, mask_labels = processes.agree(load)
    training = processes.agree_in_main(load_training)  # there, or refused before any work
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
