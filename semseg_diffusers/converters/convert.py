"""Turn a published checkpoint into a pipeline folder that loads, generates and can be pushed like any other.

Pickles are opened with weights_only=True alone: one that holds code is refused.
"""

import argparse
import sys

from semseg_diffusers.converters import id_channel, paper, sdm
from semseg_diffusers.converters.conversion import CONVERSION_FILE, KIND, save_conversion
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.options import parse_resolution
from semseg_diffusers.utils.files import check_output


# --from -> (what reads it, the options of it that not every source has)
SOURCES = {
    paper.SOURCE: (paper.convert_paper, ("weights", "sample_size", "num_train_timesteps")),
    sdm.SOURCE: (sdm.convert_sdm, ("instance_edges", "num_head_channels", "sample_size", "num_train_timesteps")),
    id_channel.SOURCE: (id_channel.convert_id_channel, ("num_classes",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers convert`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the file; of segmentation-guided-diffusion the folder"
    )
    parser.add_argument("--from", dest="source", required=True, choices=list(SOURCES), help="the code that made it")
    parser.add_argument("--output", required=True, metavar="DIR", help="pipeline folder to make")
    parser.add_argument(
        "--colormap",
        metavar="FILE",
        help=f"the classes: colormap.json or labels.json of its training data, or {', '.join(PRESET_NAMES)} "
        "(default: numbers for names)",
    )
    parser.add_argument("--weights", choices=list(paper.PREFIXES), help="paper: which of two sets (default: ema)")
    parser.add_argument(
        "--instance_edges", action="store_const", const=True, help="sdm: the last mask channel is that of the edges"
    )
    parser.add_argument("--num_head_channels", type=int, metavar="N", help="sdm: width of an attention head [64]")
    parser.add_argument("--sample_size", metavar="HxW", help="paper, sdm: size of its images, e.g. 256x512")
    parser.add_argument("--num_train_timesteps", type=int, metavar="N", help="paper, sdm: diffusion steps [1000]")
    parser.add_argument("--num_classes", type=int, metavar="N", help="segmentation-guided-diffusion: with background")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that this command made")


def run(args: argparse.Namespace) -> None:
    """Convert, and say what it is."""
    convert, own = SOURCES[args.source]
    options = {}
    for name in sorted({name for _, names in SOURCES.values() for name in names}):
        value = getattr(args, name)
        if value is None:
            continue
        if name not in own:
            raise ValueError(f"--{name} is no option of --from {args.source}.")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name} must be 1 or more; got {value}.")
        options[name] = value
    if "sample_size" in options:
        options["sample_size"] = _sample_size(options["sample_size"])
    labels = None if args.colormap is None else LabelSet.from_name(args.colormap)
    check_output(args.output, args.overwrite, CONVERSION_FILE, KIND)  # before gigabytes are read

    conversion = convert(args.checkpoint, labels=labels, **options)
    folder = save_conversion(conversion, args.output, args.overwrite)
    unet = conversion.unet
    lines = [
        f"{type(unet).__name__}, {unet.num_parameters():,} parameters, {conversion.labels.num_classes} classes, "
        f"sample_size {unet.config.sample_size}",
        *([f"weights taken: {conversion.details['weights']}"] if "weights" in conversion.details else []),
        *(
            []
            if labels
            else ["the classes have numbers for names: give --colormap, so that masks in colours are read"]
        ),
        f"written: {folder}",
        "its licence is not known here: find it out and fill it in at the head of README.md before you publish",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _sample_size(text: str) -> int | tuple[int, int]:
    size = parse_resolution(text)
    if size is None:
        raise ValueError("--sample_size native is no size; wanted a number (256) or HxW (256x512).")
    return size[0] if size[0] == size[1] else size
