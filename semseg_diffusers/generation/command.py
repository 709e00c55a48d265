"""Turn masks into labelled images: a folder of masks in, a data set out that load_dataset("imagefolder") reads.

Masks are class ids (one channel or palette) or pictures in the model's class colours; those of another label set are
mapped to the model's classes by name (--mask_labels). A run that was interrupted or killed is continued by the same
command; asking for more images per mask, or for more masks, adds to the same output.

Several processes, GPUs or machines share the work, with the same images in the end:
  accelerate launch [--config_file FILE] -m semseg_diffusers.generation --model ... (the options below)
Machines need one file system for masks and output.
"""

import argparse
import sys

import torch

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.generation.dataset import generate_dataset
from semseg_diffusers.generation.plan import DTYPES, GenerationSettings, load_model
from semseg_diffusers.generation.processes import Processes, work_together


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
    parser.add_argument("--scheduler", help="class name of a diffusers scheduler (default: the model's)")
    parser.add_argument(
        "--variant",
        help="weights beside the model's own, as diffusers calls them: raw, or an average such as ema_0_9999",
    )


def sampling_settings(args: argparse.Namespace, **more: int | None) -> GenerationSettings:
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
    add_sampling_arguments(parser)
    parser.add_argument(
        "--batch_size", type=int, default=8, help="images at a time in a process (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--device", help="default: GPU if any; of several processes each takes one of its own")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default %(default)s")
    parser.add_argument("--height", type=int, help="pixels (default: the model's)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="take the nearest class colour up to this RGB distance",
    )
    parser.add_argument(
        "--contact_sheet", type=int, default=8, metavar="ROWS", help="masks on contact_sheet.png (default 8; 0: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Load the pipeline and generate, together with the other processes of the launch where there are any."""
    return work_together(args.device, lambda processes, device: _generate(args, processes, device))


def _generate(args: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    settings = sampling_settings(args, height=args.height, width=args.width)
    mask_labels = processes.agree(lambda: None if args.mask_labels is None else LabelSet.from_name(args.mask_labels))
    report = generate_dataset(
        processes.agree(
            lambda: load_model(
                args.model, args.revision, args.scheduler, DTYPES[args.dtype], device, variant=args.variant
            )
        ),
        args.masks,
        args.output,
        settings,
        mask_labels=mask_labels,
        num_images_per_mask=args.num_images_per_mask,
        batch_size=args.batch_size,
        tolerance=args.tolerance,
        contact_sheet_rows=args.contact_sheet,
        show_progress=True,
        processes=processes,
    )
    if processes.is_main:
        sheet = f"; contact sheet {report.contact_sheet}" if report.contact_sheet else ""
        sys.stdout.write(f"{report.num_made} images made, {report.num_kept} kept in {report.output}{sheet}\n")
