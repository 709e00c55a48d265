"""Filter generated images: labels that a segmentation network does not find become unknown, bad images are dropped.

A pixel becomes unknown where the network's loss is above --tolerance_margin times the mean loss of its class on real
photos (FreeMask). The output is a data set as `generate` writes it, with filtered masks; filter.html shows what was
thrown away, dropped.jsonl lists it with reasons. The same command goes on where an interrupted one ended, and the
generated folder is only read.

  semseg-diffusers filter --generated NEW --dataset DATA --segmenter FILTER --output FILTERED --judge JUDGE
"""

import argparse
import sys
from typing import Any

import torch

from semseg_diffusers.data.layout import SPLITS, parse_resolution
from semseg_diffusers.data.loading import (
    MissingSplitError,
    PairDataset,
    add_column_arguments,
    column_options,
    load_pairs,
)
from semseg_diffusers.evaluation.filtering.filtering import Real, filter_dataset
from semseg_diffusers.evaluation.filtering.independence import refuse_same_network
from semseg_diffusers.evaluation.filtering.output import PAGE_FILE
from semseg_diffusers.evaluation.filtering.settings import FilterSettings
from semseg_diffusers.evaluation.segmenters.judge import load_judge
from semseg_diffusers.generation.model import DTYPES
from semseg_diffusers.launch import check_usable


REFERENCE_SPLIT = "val"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers filter`."""
    defaults = FilterSettings()
    parser.add_argument("--generated", required=True, metavar="DIR", help="folder that `generate` wrote")
    parser.add_argument("--dataset", required=True, help="real photos: prepared folder or Hub data set id")
    parser.add_argument(
        "--split", default="train", help="photos that the mean losses are taken on (default %(default)s)"
    )
    parser.add_argument(
        "--reference_split",
        help=f"photos that the rule is tried on, to compare with (default: {REFERENCE_SPLIT}, where there is one; "
        "none leaves it away)",
    )
    add_column_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make, or to continue")
    parser.add_argument(
        "--segmenter", required=True, help="network that filters: folder of `semseg-diffusers segmenter`, or Hub id"
    )
    parser.add_argument("--segmenter_revision", help="branch, tag or commit of a segmenter on the Hub")
    parser.add_argument("--segmenter_size", metavar="HxW", help="size it reads images at (default: its own)")
    parser.add_argument(
        "--judge", help="network that will measure the images or the gain: refused if it is the one that filters"
    )
    parser.add_argument("--judge_revision", help="branch, tag or commit of a judge on the Hub")
    parser.add_argument(
        "--allow_same_network", action="store_true", help="let the judge be the network that filters, all the same"
    )
    parser.add_argument(
        "--tolerance_margin",
        type=float,
        default=defaults.tolerance_margin,
        help="times the mean loss of its class above which a pixel becomes unknown (default %(default)s)",
    )
    parser.add_argument(
        "--minimum_kept",
        type=float,
        metavar="SHARE",
        default=defaults.minimum_kept,
        help="share of its labelled pixels below which an image is dropped (default %(default)s)",
    )
    parser.add_argument(
        "--resample", action="store_true", help="of the images of a mask keep the best, more of them for harder masks"
    )
    parser.add_argument(
        "--keep_unchecked",
        action="store_true",
        help="keep labels of classes that are not in the real photos or that the network does not know "
        "(default: they become unknown)",
    )
    parser.add_argument(
        "--class_losses",
        metavar="DIR",
        help="folder that was filtered with this segmenter and these photos: take their mean losses from there",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images a forward (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the kept images on the page (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default %(default)s")


def run(args: argparse.Namespace) -> int:
    """Filter, and print what came of it; ends with code 1 if no image is kept."""
    settings = FilterSettings(
        tolerance_margin=args.tolerance_margin,
        minimum_kept=args.minimum_kept,
        resample=args.resample,
        keep_unchecked=args.keep_unchecked,
    )
    if args.judge is None and (args.judge_revision is not None or args.allow_same_network):
        raise ValueError("--judge_revision and --allow_same_network: only with --judge. Give it, or leave them away.")
    check_usable(args.device)
    columns = column_options(args)
    pairs = load_pairs(args.dataset, args.split, **columns)
    judge = load_judge(
        args.segmenter,
        pairs.labels,
        revision=args.segmenter_revision,
        input_size=parse_resolution(args.segmenter_size) if args.segmenter_size else None,
        device=args.device,
        dtype=DTYPES[args.dtype],
    )
    judged_by = None
    if args.judge is not None:
        sha256 = load_judge(args.judge, pairs.labels, revision=args.judge_revision, option="--judge").weights_sha256
        judged_by = {"name": args.judge, "weights_sha256": sha256}
        if not args.allow_same_network:
            refuse_same_network(judge.weights_sha256, sha256, args.judge)
    reference = _reference(args, pairs, columns)
    split = args.reference_split or REFERENCE_SPLIT
    record = filter_dataset(
        args.generated,
        Real(
            pairs,
            f"{args.dataset} ({args.split})",
            reference,
            None if reference is None else f"{args.dataset} ({split})",
        ),
        judge,
        args.output,
        settings,
        judged_by=judged_by,
        class_losses=args.class_losses,
        dtype=DTYPES[args.dtype],
        batch_size=args.batch_size,
        seed=args.seed,
        show_progress=True,
    )
    sys.stdout.write(_summary(record, args.output))
    return 0 if record["results"]["num_kept"] else 1


def _reference(args: argparse.Namespace, pairs: PairDataset, columns: dict[str, Any]) -> PairDataset | None:
    """The photos that the rule is tried on."""
    asked = args.reference_split
    if asked == "none" or (asked is None and SPLITS.get(args.split, args.split) == REFERENCE_SPLIT):
        return None
    try:
        reference = load_pairs(args.dataset, asked or REFERENCE_SPLIT, **columns)
    except MissingSplitError:
        if asked is not None:
            raise
        return None
    if reference.resolution != pairs.resolution:
        raise ValueError(
            f"the photos of '{asked or REFERENCE_SPLIT}' are {reference.resolution}, those of '{args.split}' "
            f"{pairs.resolution} (height, width); wanted one size. Prepare the data set again."
        )
    return reference


def _summary(record: dict[str, Any], output: str) -> str:
    """What came of it, and where it lies."""
    results, reference = record["results"], record["reference"]
    text = f"{results['num_kept']} of {results['num_images']} images kept"
    dropped = [f"{count} {reason}" for reason, count in results["num_dropped"].items() if count]
    text += f" (dropped: {', '.join(dropped)})" if dropped else ""
    if results["kept_share"] is not None:
        text += f"; {100 * results['kept_share']:.1f} % of the labelled pixels keep their label"
    if reference is not None and reference["kept_share"] is not None:
        text += f", of real photos {100 * reference['kept_share']:.1f} %"
    return f"{text}\n{output}, page: {output}/{PAGE_FILE}\n"
