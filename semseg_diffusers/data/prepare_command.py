"""Turns a public data set, or a folder of pairs, into a prepared folder that `datasets.load_dataset` reads.

Photos are cropped around the centre to the aspect and resized with an antialiased filter, masks to the nearest pixel.
Pairs smaller than the resolution are enlarged, and counted. After an error nothing is left behind; a run that was
stopped or killed goes on when the same command is given again.
"""

import argparse
import os
import signal
import sys

from semseg_diffusers.data.fitting import FITS
from semseg_diffusers.data.labels import PRESET_NAMES
from semseg_diffusers.data.layout import parse_resolution
from semseg_diffusers.data.prepare import PrepareSettings, prepare_dataset
from semseg_diffusers.data.readers import ANNOTATIONS, FORMATS, NAMED
from semseg_diffusers.data.staging import staging_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        required=True,
        nargs="+",
        metavar="DIR|ZIP",
        help="the data as it was published; nothing is unpacked",
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), help=f"{'; '.join(_layouts())} (default: the one that the layout shows)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the prepared data set to make")
    parser.add_argument(
        "--resolution",
        default="128",
        metavar="N|HxW|native",
        help="a number is a square centre crop, HxW height first, native keeps the frame (default 128)",
    )
    parser.add_argument(
        "--fit",
        default="crop",
        choices=FITS,
        help="crop: the largest centred part of the resolution's aspect; whole: the whole frame, where the aspects "
        "agree; pad: the whole frame, filled up with black and unknown (default crop)",
    )
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"classes, where the format does not bring them: {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    parser.add_argument(
        "--map_to",
        metavar="PRESET|FILE",
        help="label set that the masks come to: classes are mapped by name, what has no counterpart becomes unknown "
        "(default: the source's own)",
    )
    parser.add_argument(
        "--annotations", choices=ANNOTATIONS, help="of bdd100k, which form of the masks (default: the first there)"
    )
    parser.add_argument("--image_column", metavar="NAME", help="of datasets, the column of photos")
    parser.add_argument("--mask_column", metavar="NAME", help="of datasets, the column of masks")
    parser.add_argument(
        "--streaming", action="store_true", help="of datasets, take rows as they come, download no more"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="unknown mask colours take the class at most this far away in RGB (default 0: they are an error)",
    )
    parser.add_argument(
        "--val_fraction", type=float, default=0.0, help="share for val, where the source has no splits (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pairs --val_fraction takes (default 0)")
    parser.add_argument("--skip_unmatched", action="store_true", help="leave out photos and masks without partner")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared data set at --output")


def _layouts() -> list[str]:
    first_lines = {name: (entry.read.__doc__ or "").splitlines()[0] for name, entry in FORMATS.items()}
    return [f"{name}: {line.replace('`', '').rstrip('.')}" for name, line in first_lines.items()]


def run(args: argparse.Namespace) -> int:
    settings = PrepareSettings(
        source=args.source[0] if len(args.source) == 1 else tuple(args.source),
        output=args.output,
        data_format=args.format,
        resolution=parse_resolution(args.resolution),
        fit=args.fit,
        labels=args.labels,
        map_to=args.map_to,
        annotations=args.annotations,
        image_column=args.image_column,
        mask_column=args.mask_column,
        streaming=args.streaming,
        tolerance=args.tolerance,
        val_fraction=args.val_fraction,
        seed=args.seed,
        skip_unmatched=args.skip_unmatched,
        overwrite=args.overwrite,
        num_workers=args.num_workers,
    )
    try:
        report = prepare_dataset(settings, progress=True)
    except (KeyboardInterrupt, SystemExit) as stop:
        folder = staging_folder(args.output)
        left = f"; what is made stays in {folder}, and the same command goes on with it" if folder.is_dir() else ""
        sys.stderr.write(f"\nstopped{left}\n")
        return 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.code
    counts = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    sys.stdout.write(f"{counts} pairs in {args.output}, read as {report.data_format}\n")
    for note in report.notes:
        sys.stdout.write(f"{note}\n")
    if report.resumed:
        sys.stdout.write(f"{report.resumed} of them were there from a run that was stopped\n")
    if report.unmatched:
        names = ", ".join(path.name for path in report.unmatched[:NAMED])
        sys.stdout.write(f"left out, without partner: {len(report.unmatched)} files ({names})\n")
    if report.enlarged:
        sys.stdout.write(f"warning: {report.enlarged} pairs were smaller than {args.resolution} and were enlarged\n")
    return 0
