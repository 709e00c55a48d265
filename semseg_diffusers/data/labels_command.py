"""`semseg-diffusers labels`: writes a label set as a legend picture, an editor palette and a JSON file."""

import argparse
import sys
from pathlib import Path

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.utils.images import save_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=PRESET_NAMES, help="a public label set")
    which.add_argument(
        "--labels", type=Path, metavar="FILE", help='colormap.json ({"name": [r, g, b], ...}) or labels.json'
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the three files go")
    parser.add_argument("--columns", type=int, default=1, help="columns of the legend (default 1)")


def run(args: argparse.Namespace) -> None:
    labels = LabelSet.from_preset(args.preset) if args.preset else LabelSet.from_json(args.labels)
    name = args.preset or args.labels.stem
    legend = labels.legend(columns=args.columns)

    args.output.mkdir(parents=True, exist_ok=True)
    save_png(args.output / "legend.png", legend)
    labels.save_palette(args.output / f"{name}.gpl")
    labels.save_json(args.output / "labels.json")
    sys.stdout.write(f"{labels.num_classes} classes: {args.output}/legend.png, {name}.gpl, labels.json\n")
