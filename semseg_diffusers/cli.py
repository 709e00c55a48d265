"""The console script `semseg-diffusers`: maps each command to its settings and its function, and imports only these.

`--help` of the script and of a command loads neither torch nor diffusers: settings modules import nothing heavy.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import semseg_diffusers
from semseg_diffusers.utils.settings import SettingsParser


class Command(NamedTuple):
    """A command: where its settings and its function are, as `module:name`, and one line of help."""

    settings: str
    run: str
    help: str


# In the order of use.
COMMANDS = {
    "prepare": Command(
        "semseg_diffusers.data.settings:PrepareSettings",
        "semseg_diffusers.data.prepare:run",
        "prepare a public dataset or your own image-mask pairs",
    ),
    "check": Command(
        "semseg_diffusers.data.settings:CheckSettings",
        "semseg_diffusers.data.check.check:run",
        "report what is wrong with a source or a prepared dataset",
    ),
    "toy": Command(
        "semseg_diffusers.toy.settings:ToySettings",
        "semseg_diffusers.toy.scenes:run",
        "generate street scenes with exact masks from a seed",
    ),
    "stats": Command(
        "semseg_diffusers.masks.settings:StatsSettings",
        "semseg_diffusers.masks.statistics.stats:run",
        "report class statistics and underrepresented classes",
    ),
    "labels": Command(
        "semseg_diffusers.data.settings:LabelsSettings",
        "semseg_diffusers.data.labels:run",
        "export a label set: legend image, palette file, JSON",
    ),
    "clean": Command(
        "semseg_diffusers.masks.settings:CleanSettings",
        "semseg_diffusers.masks.cleaning:run",
        "turn hand-painted images into masks",
    ),
    "edit": Command(
        "semseg_diffusers.masks.settings:EditSettings",
        "semseg_diffusers.masks.editing.edit:run",
        "edit masks: move, paste, remove, draw objects",
    ),
    "enrich": Command(
        "semseg_diffusers.masks.settings:EnrichSettings",
        "semseg_diffusers.masks.enrich:run",
        "create masks with more of the rare classes",
    ),
    "train": Command(
        "semseg_diffusers.training.settings:TrainingSettings",
        "semseg_diffusers.training.loop:run",
        "train a mask-guided diffusion model",
    ),
    "report": Command(
        "semseg_diffusers.training.settings:ReportSettings",
        "semseg_diffusers.training.run:report",
        "write the HTML report of a training run",
    ),
    "generate": Command(
        "semseg_diffusers.generation.settings:GenerateOptions",
        "semseg_diffusers.generation.generate:run",
        "generate labelled images from masks",
    ),
    "app": Command(
        "semseg_diffusers.app.settings:AppSettings",
        "semseg_diffusers.app.app:run",
        "paint masks in the browser and generate images from them",
    ),
    "segmenter": Command(
        "semseg_diffusers.evaluation.segmentation.settings:SegmenterSettings",
        "semseg_diffusers.evaluation.segmentation.segmenter:run",
        "train a segmentation network",
    ),
    "filter": Command(
        "semseg_diffusers.evaluation.filtering.settings:FilterCommandSettings",
        "semseg_diffusers.evaluation.filtering.filter:run",
        "remove labels and images that do not show their masks",
    ),
    "evaluate": Command(
        "semseg_diffusers.evaluation.settings:EvaluationSettings",
        "semseg_diffusers.evaluation.evaluate:run",
        "evaluate generated images against masks and real images",
    ),
    "study": Command(
        "semseg_diffusers.evaluation.study.settings:StudyCommandSettings",
        "semseg_diffusers.evaluation.study.study:run",
        "measure whether synthetic images improve a segmentation network",
    ),
    "merge": Command(
        "semseg_diffusers.growth.settings:MergeSettings",
        "semseg_diffusers.growth.merge:run",
        "merge generated images into the dataset they were made for",
    ),
    "grow": Command(
        "semseg_diffusers.growth.settings:GrowSettings",
        "semseg_diffusers.growth.grow:run",
        "run every stage from a dataset to a better segmentation network",
    ),
    "convert": Command(
        "semseg_diffusers.converters.settings:ConvertSettings",
        "semseg_diffusers.converters.convert:convert",
        "convert a published checkpoint into a pipeline folder",
    ),
    "export": Command(
        "semseg_diffusers.hub.settings:ExportSettings",
        "semseg_diffusers.hub.export:export",
        "export a trained model as a small folder to share",
    ),
    "push": Command(
        "semseg_diffusers.hub.settings:PushSettings",
        "semseg_diffusers.hub.push:push",
        "publish a model or a dataset on the Hugging Face Hub",
    ),
}

# Package -> the extra of ours that installs it.
EXTRAS = {"torchmetrics": "eval", "gradio": "app"}


def load(path: str):
    """Return the object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the script itself; options of a command are read by `command_parser`."""
    width = max(len(name) for name in COMMANDS)
    listing = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="semseg-diffusers",
        description="Grow a labelled driving dataset with mask-guided diffusion.",
        epilog=f"commands:\n{listing}\n\nsemseg-diffusers COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help="one of the commands below"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
    return parser


def command_parser(name: str, prog: str | None = None) -> SettingsParser:
    """Return the parser of a command's options."""
    return SettingsParser(load(COMMANDS[name].settings), prog=prog or f"semseg-diffusers {name}")


def run_command(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse a command's options, import its function and run it.

    Args:
        name: of the command.
        arguments: its options; those of the process by default.
        prog: how its help calls it.

    Returns:
        exit code: that of the command, 2 after invalid input, 130 after Ctrl-C (one line on stderr; a traceback with
        SEMSEG_DEBUG=1).
    """
    debug = os.environ.get("SEMSEG_DEBUG") == "1"
    try:
        settings = command_parser(name, prog).parse_settings(arguments)
        return load(COMMANDS[name].run)(settings) or 0
    except ModuleNotFoundError as err:
        if err.name not in EXTRAS:
            raise
        print(f"error: {name} needs {err.name}: pip install 'semseg-diffusers[{EXTRAS[err.name]}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as err:
        if debug:
            raise
        print(f"error: {' '.join(str(err).splitlines())}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"semseg-diffusers {semseg_diffusers.__version__}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return run_command(args.command, args.options)


if __name__ == "__main__":
    sys.exit(main())
