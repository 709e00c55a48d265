"""Write a trained model as a folder to ship: weights in half precision, code files, settings, and a card that shows
its results and what it draws. It loads like any other, and `push` publishes it as it is.

  semseg-diffusers export --model RUN --output checkpoints/streets --results evaluation/results.json --masks DIR
"""

import argparse
import sys
from pathlib import Path

import torch

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.shipping.export import DTYPES, export_model
from semseg_diffusers.shipping.sample_sheet import SheetSettings


DEFAULTS = SheetSettings.__dataclass_fields__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers export`."""
    parser.add_argument("--model", required=True, metavar="RUN", help="run folder, or what save_pretrained wrote")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make; the card names it as it is given here"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float16", help="what weights are stored in (default %(default)s)"
    )
    parser.add_argument(
        "--results", nargs="+", metavar="FILE", help="results.json that `evaluate` wrote of this model, for its card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that this command made")
    sheet = parser.add_argument_group("the card's picture")
    sheet.add_argument("--masks", metavar="DIR", help="masks to choose from (default: no picture)")
    sheet.add_argument(
        "--mask_labels",
        metavar="PRESET|FILE",
        help=f"their label set, where it is another than the model's: {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    for name, text in (
        ("num_masks", "masks on it"),
        ("samples", "samples of each"),
        ("seed", "chooses the masks, and begins the seeds of the samples"),
    ):
        sheet.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default {DEFAULTS[name].default})")
    sheet.add_argument("--batch_size", type=int, default=8, help="images a forward (default %(default)s)")
    sheet.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")


def run(args: argparse.Namespace) -> None:
    """Export, and say where it is and how large."""
    given = {name: getattr(args, name) for name in ("mask_labels", "num_masks", "samples", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.masks is None:
        raise ValueError(
            f"{', '.join(f'--{name}' for name in given)}: only with --masks. Give it, or leave them away."
        )
    if "mask_labels" in given:
        given["mask_labels"] = LabelSet.from_name(given["mask_labels"])
    sheet = None if args.masks is None else SheetSettings(Path(args.masks), **given)
    folder = export_model(
        args.model,
        args.output,
        dtype=args.dtype,
        results=args.results,
        sheet=sheet,
        batch_size=args.batch_size,
        device=args.device,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sys.stdout.write(f"{args.output}: {size / 1e6:.1f} MB, weights in {args.dtype}\n")
