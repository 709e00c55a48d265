"""Turn masks into labelled images: a folder of masks in, a data set out that load_dataset("imagefolder") reads.

Masks are class ids (one channel or palette) or pictures in the model's class colours. An interrupted run is continued
by the same command; asking for more images per mask, or for more masks, adds to the same output.
"""

import argparse
import sys

import torch

from semseg_diffusers.generation.dataset import GenerationSettings, generate_dataset, new_scheduler
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers generate`."""
    defaults = GenerationSettings()
    parser.add_argument("--model", required=True, help="folder of a training run, or a Hub repo id")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument("--masks", required=True, help="folder of masks (with its sub-folders), or one mask file")
    parser.add_argument("--output", required=True, help="folder to make, or to continue")
    parser.add_argument("--num_images_per_mask", type=int, default=1, help="default 1")
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
    parser.add_argument("--batch_size", type=int, default=8, help="images at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="default %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")
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


def run(args: argparse.Namespace) -> None:
    """Load the pipeline and generate."""
    pipeline = MaskGuidedDDPMPipeline.from_pretrained(args.model, revision=args.revision, dtype=DTYPES[args.dtype]).to(
        args.device
    )
    if args.scheduler:
        pipeline.scheduler = new_scheduler(args.scheduler, pipeline.scheduler.config)
    settings = GenerationSettings(
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        guidance_start=args.guidance_start,
        guidance_stop=args.guidance_stop,
        height=args.height,
        width=args.width,
        seed=args.seed,
    )
    report = generate_dataset(
        pipeline,
        args.masks,
        args.output,
        settings,
        num_images_per_mask=args.num_images_per_mask,
        batch_size=args.batch_size,
        tolerance=args.tolerance,
        contact_sheet_rows=args.contact_sheet,
        show_progress=True,
    )
    sheet = f"; contact sheet {report.contact_sheet}" if report.contact_sheet else ""
    sys.stdout.write(f"{report.num_made} images made, {report.num_kept} kept in {report.output}{sheet}\n")
