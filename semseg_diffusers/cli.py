"""The console script `semseg-diffusers`: maps each command's name to its module and imports that module only.
So `--help` answers without loading torch; a command's options stand in its own module (`add_arguments`, `run`)."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import semseg_diffusers


# name -> (module with add_arguments(parser) and run(args), one line of help), in the order of use
COMMANDS = {
    "prepare": (
        "semseg_diffusers.data.prepare_command",
        "turn a public data set or pairs of one's own into a prepared folder",
    ),
    "check": ("semseg_diffusers.data.checking.command", "what is wrong with a source or a prepared data set"),
    "toy": ("semseg_diffusers.data.toy", "draw street scenes with exact masks, from a seed"),
    "stats": ("semseg_diffusers.data.statistics.command", "what the masks hold, and which classes will be weak"),
    "labels": ("semseg_diffusers.data.labels_command", "show a label set: legend picture, palette file, JSON"),
    "clean": ("semseg_diffusers.data.clean_command", "turn hand-painted pictures into masks"),
    "edit": ("semseg_diffusers.data.editing.command", "change masks: move, paste, remove, draw objects"),
    "enrich": ("semseg_diffusers.data.editing.enrich_command", "new masks with more of the rare classes"),
    "train": ("semseg_diffusers.training.command", "train a mask-guided diffusion model"),
    "report": ("semseg_diffusers.training.report_command", "write the page of a training run, going on or ended"),
    "generate": ("semseg_diffusers.generation.command", "turn masks into labelled images"),
    "app": ("semseg_diffusers.app.command", "paint masks in the browser and see the photos drawn from them"),
    "segmenter": ("semseg_diffusers.evaluation.segmenters.command", "train a network that reads masks from photos"),
    "filter": ("semseg_diffusers.evaluation.filtering.command", "drop labels and images that do not show their masks"),
    "evaluate": ("semseg_diffusers.evaluation.command", "measure generated images against masks and real photos"),
    "study": ("semseg_diffusers.evaluation.study.command", "does a segmentation network get better with them"),
    "merge": ("semseg_diffusers.growth.merge_command", "put generated images into the data set they were made for"),
    "grow": ("semseg_diffusers.growth.command", "from a data set to a better segmentation network, all stages"),
    "convert": ("semseg_diffusers.converters.command", "turn a published checkpoint of others into a pipeline"),
    "export": ("semseg_diffusers.shipping.command", "write a trained model as a small folder to ship"),
    "push": ("semseg_diffusers.hub.command", "publish a model or a data set on the Hugging Face Hub"),
}


# package -> the extra of ours that brings it
EXTRAS = {"torchmetrics": "eval", "gradio": "app"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the outer command; options of a command are read by its own module."""
    width = max(len(name) for name in COMMANDS)
    listing = "\n".join(f"  {name:<{width}}  {help_line}" for name, (_, help_line) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="semseg-diffusers",
        description="Grow a labelled driving data set with mask-guided diffusion.",
        epilog=f"commands:\n{listing}\n\nsemseg-diffusers COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        Exit code: that of the command, 2 after a wrong input, 130 after Ctrl-C (one line on stderr; all of it with
        SEMSEG_DEBUG=1).
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"semseg-diffusers {semseg_diffusers.__version__}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[args.command][0])
    except ModuleNotFoundError as err:
        if err.name not in EXTRAS:
            raise
        extra = f"pip install 'semseg-diffusers[{EXTRAS[err.name]}]'"
        print(f"error: {args.command} needs {err.name}: {extra}", file=sys.stderr)
        return 2
    command_parser = argparse.ArgumentParser(
        prog=f"semseg-diffusers {args.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command_parser)
    command_args = command_parser.parse_args(args.options)
    try:
        return module.run(command_args) or 0
    except KeyboardInterrupt:
        if os.environ.get("SEMSEG_DEBUG") == "1":
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as err:
        if os.environ.get("SEMSEG_DEBUG") == "1":
            raise
        print(f"error: {' '.join(str(err).splitlines())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
