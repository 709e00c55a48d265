"""Evaluate a model, or a folder of generated images, against the real photos of a data set.

Agreement with the masks lies between a ceiling (real photos) and a floor (masks of others); fidelity stands beside its
own floor; samples of one mask are compared, and training photos searched for copies. results.json holds all numbers,
report.html shows them with pictures. The same command goes on where an interrupted one ended.

Several processes, GPUs or machines share the work:
  accelerate launch [--config_file FILE] -m semseg_diffusers.evaluation --dataset ... (the options below)
"""

import argparse
import sys

import torch

from semseg_diffusers.data.layout import parse_resolution
from semseg_diffusers.data.loading import add_column_arguments
from semseg_diffusers.evaluation.evaluation import evaluate
from semseg_diffusers.evaluation.inputs import PAGE_FILE
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.command import add_sampling_arguments, sampling_settings
from semseg_diffusers.generation.model import DTYPES
from semseg_diffusers.generation.processes import Processes, work_together
from semseg_diffusers.hub.card_results import results_table


DEFAULTS = EvaluationSettings.__dataclass_fields__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="run folder or Hub repo id: images are generated from the split's masks")
    what.add_argument(
        "--generated",
        metavar="DIR",
        help="folder that `generate` wrote, or pictures named after the split's masks: STEM.png, STEM_NUMBER.png",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dataset", required=True, help="prepared folder or Hub data set id: the real photos")
    parser.add_argument("--split", default=DEFAULTS["split"].default, help="masks and photos (default %(default)s)")
    parser.add_argument(
        "--train_split",
        default=DEFAULTS["train_split"].default,
        help="photos that the model may have seen (default %(default)s)",
    )
    add_column_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make, or to continue")
    parser.add_argument(
        "--segmenter",
        default=DEFAULTS["segmenter"].default,
        help="network that reads the images: folder of `semseg-diffusers segmenter`, or Hub id (default %(default)s)",
    )
    parser.add_argument("--segmenter_revision", help="branch, tag or commit of a segmenter on the Hub")
    parser.add_argument("--segmenter_size", metavar="HxW", help="size it reads images at (default: its own)")
    parser.add_argument(
        "--features",
        nargs="+",
        default=list(EvaluationSettings.__dataclass_fields__["features"].default),
        help="networks that fidelity is measured with: folder or Hub id of an image network, inception, a TorchScript "
        "file, or none (default %(default)s)",
    )
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument(
        "--num_images_per_mask",
        type=int,
        default=DEFAULTS["num_images_per_mask"].default,
        help="two and more show diversity (default %(default)s)",
    )
    add_sampling_arguments(parser)
    parser.add_argument("--kid_subsets", type=int, default=DEFAULTS["kid_subsets"].default, help="default %(default)s")
    parser.add_argument("--kid_subset_size", type=int, help="images (default: half of the smaller set, at most 1000)")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=DEFAULTS["batch_size"].default,
        help="images a forward in a process (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of images, shuffle and subsets (default %(default)s)")
    parser.add_argument("--device", help="default: GPU if any; of several processes each takes one of its own")
    parser.add_argument("--dtype", choices=list(DTYPES), default=DEFAULTS["dtype"].default, help="default %(default)s")


def settings_from(args: argparse.Namespace) -> EvaluationSettings:
    """Read the options.

    Raises:
        ValueError: options that do not go together.
    """
    if "none" in args.features and len(args.features) > 1:
        raise ValueError(f"--features: none stands alone; got {' '.join(args.features)}.")
    return EvaluationSettings(
        dataset=args.dataset,
        output=args.output,
        model=args.model,
        revision=args.revision,
        generated=args.generated,
        split=args.split,
        train_split=args.train_split,
        image_column=args.image_column,
        mask_column=args.mask_column,
        labels=args.labels,
        segmenter=args.segmenter,
        segmenter_revision=args.segmenter_revision,
        segmenter_size=parse_resolution(args.segmenter_size) if args.segmenter_size else None,
        features=() if args.features == ["none"] else tuple(args.features),
        num_masks=args.num_masks,
        num_images_per_mask=args.num_images_per_mask,
        sampling=sampling_settings(args),
        scheduler=args.scheduler,
        kid_subsets=args.kid_subsets,
        kid_subset_size=args.kid_subset_size,
        dtype=args.dtype,
        batch_size=args.batch_size,
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, together with the other processes of the launch where there are any, and print the table."""
    settings = settings_from(args)
    return work_together(args.device, lambda processes, device: _evaluate(settings, processes, device))


def _evaluate(settings: EvaluationSettings, processes: Processes, device: torch.device) -> None:
    results = evaluate(settings, device=device, processes=processes, show_progress=True)
    if results is not None:
        notes = "".join(f"{note}\n" for note in results["notes"])
        sys.stdout.write(f"{results_table(results)}\n{notes}results and page: {settings.output}/{PAGE_FILE}\n")
