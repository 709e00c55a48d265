"""Find out whether a segmentation network gets better with synthetic images, and whether by more than chance.

The same network is trained on real photos; on these duplicated; with synthetic, and with filtered synthetic images
added; and on synthetic ones alone: with the same steps, several seeds, several amounts. results.json holds all figures
with paired differences and their intervals, report.html says what they mean. The same command goes on where an
interrupted one ended; more arms, seeds and amounts add to it.
"""

import argparse
import sys
from pathlib import Path

import torch

from semseg_diffusers.data.loading import add_column_arguments
from semseg_diffusers.evaluation.segmenters.architectures import ARCHITECTURES
from semseg_diffusers.evaluation.segmenters.beginnings import DEFAULT_ARCHITECTURE, FINE_TUNING_RATE
from semseg_diffusers.evaluation.study.processes import MOST_JOBS, default_jobs
from semseg_diffusers.evaluation.study.settings import ARMS, StudySettings
from semseg_diffusers.evaluation.study.study import PAGE_FILE, run_study
from semseg_diffusers.launch import check_usable


DEFAULTS = StudySettings.__dataclass_fields__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers study`."""
    known = "; ".join(f"{name}: {architecture.summary}" for name, architecture in ARCHITECTURES.items())
    rates = ", ".join(f"{name} {architecture.learning_rate:g}" for name, architecture in ARCHITECTURES.items())
    arms = "; ".join(f"{name}: {what}" for name, what in ARMS.items())
    parser.add_argument("--dataset", required=True, help="prepared folder, or a data set id on the Hub: real photos")
    add_column_arguments(parser)
    parser.add_argument("--generated", metavar="DIR", help="synthetic images: folder that `generate` wrote")
    parser.add_argument("--filtered", metavar="DIR", help="the same, filtered: folder that `filter` wrote")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make, or to go on in")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=[], help=f"default: all that there is data for. {arms}"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(DEFAULTS["seeds"].default),
        help="of first weights, order, augmentation and choice of images; more narrow the intervals (default 0 1 2)",
    )
    parser.add_argument(
        "--amounts",
        nargs="+",
        type=float,
        default=list(DEFAULTS["amounts"].default),
        help="of synthetic pairs, as multiples of the number of real ones (default 1)",
    )
    parser.add_argument("--train_split", default=DEFAULTS["train_split"].default, help="default %(default)s")
    parser.add_argument(
        "--validation_split",
        default=DEFAULTS["validation_split"].default,
        help="real photos that all networks are scored on (default %(default)s)",
    )
    parser.add_argument(
        "--architecture",
        choices=list(ARCHITECTURES),
        help=f"from random weights (default {DEFAULT_ARCHITECTURE}). {known}",
    )
    parser.add_argument("--base_model", help="folder or Hub id of a network to begin with instead")
    parser.add_argument("--revision", help="branch, tag or commit of --base_model on the Hub")
    parser.add_argument(
        "--max_train_steps",
        type=int,
        default=DEFAULTS["max_train_steps"].default,
        help="optimizer steps of every arm (default %(default)s)",
    )
    parser.add_argument(
        "--train_batch_size",
        type=int,
        default=DEFAULTS["train_batch_size"].default,
        help="pairs a step (default %(default)s)",
    )
    parser.add_argument(
        "--learning_rate", type=float, help=f"highest one (default: {rates}; {FINE_TUNING_RATE:g} for --base_model)"
    )
    parser.add_argument(
        "--input_size",
        help="what photos are resized to for the network: a number for the shorter side, HxW, or native for that of "
        "the data (default: twice the data's size and at least 256; once for segformer-mini)",
    )
    parser.add_argument(
        "--mixed_precision", choices=("no", "bf16"), default="no", help="bf16 for bfloat16 autocast (default no)"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on where validation photos or the filter's network leak into the study",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help=f"trainings at once, each on one thread (default: one for each GPU, or CPU core, at most {MOST_JOBS})",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPUs if any"
    )


def settings_from(args: argparse.Namespace) -> StudySettings:
    """Read the options.

    Raises:
        ValueError: options that do not go together.
    """
    values = {name: getattr(args, name) for name in DEFAULTS}
    return StudySettings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def run(args: argparse.Namespace) -> None:
    """Run the study, and print what it says."""
    check_usable(args.device)
    settings = settings_from(args)
    jobs = default_jobs(args.device) if args.jobs is None else args.jobs
    results = run_study(settings, Path(args.output), device=args.device, jobs=jobs, show_progress=True)
    says = "".join(f"{each['topic']}: {each['text']}\n" for each in results["findings"])
    sys.stdout.write(f"{says}page and results: {Path(args.output) / PAGE_FILE}\n")
