"""The console script `semseg-diffusers`: maps each command to its settings and its function, and imports only these.

`--help` of the script and of a command loads neither torch nor diffusers: settings modules import nothing heavy.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import semseg_diffusers
from semseg_diffusers.utils.settings import Settings, SettingsParser, command_error, did_you_mean


class Command(NamedTuple):
    """A command: its settings as `package:class`, its function in that package as `module:name`, a line of help."""

    settings: str
    run: str
    help: str


# In the order of use.
COMMANDS = {
    "prepare": Command("data:PrepareSettings", "prepare:run", "prepare a public dataset or your own image-mask pairs"),
    "check": Command("data:CheckSettings", "check.check:run", "report problems of a source or a prepared dataset"),
    "subset": Command("data:SubsetSettings", "subset:run", "copy a dataset with a share of its training pairs"),
    "join": Command("growth:JoinSettings", "join:run", "join datasets, with an attribute that says which is which"),
    "toy": Command("toy:ToySettings", "scenes:run", "generate street scenes with exact masks from a seed"),
    "stats": Command("masks:StatsSettings", "statistics.stats:run", "report class statistics of masks"),
    "labels": Command("data:LabelsSettings", "labels:run", "export a label set: legend image, palette file, JSON"),
    "clean": Command("masks:CleanSettings", "cleaning:run", "turn hand-painted images into masks"),
    "edit": Command("masks:EditSettings", "editing.edit:run", "edit masks: move, paste, remove, draw objects"),
    "caption": Command("captions:CaptionSettings", "caption:run", "describe images and things by measured colours"),
    "enrich": Command("masks:EnrichSettings", "enrich:run", "create masks with more of the rare classes"),
    "autoencoder": Command("autoencoders:AutoencoderSettings", "autoencoder:run", "train an autoencoder on photos"),
    "train": Command("training:TrainingSettings", "loop:run", "train a mask-guided diffusion model"),
    "distill": Command("distillation:DistillationSettings", "distill:run", "distill a model into one of few steps"),
    "report": Command("training:ReportSettings", "loop:report", "write the HTML report of a training run"),
    "generate": Command("generation:GenerateOptions", "generate:run", "generate labelled images from masks"),
    "app": Command("app:AppSettings", "app:run", "paint masks in the browser and generate images from them"),
    "segmenter": Command("evaluation:SegmenterSettings", "segmentation.segmenter:run", "train a segmentation network"),
    "label": Command("evaluation:LabelSettings", "segmentation.label:run", "label photos with a segmentation network"),
    "filter": Command("evaluation:FilterCommandSettings", "filtering.filter:run", "drop what does not show its mask"),
    "evaluate": Command("evaluation:EvaluationSettings", "evaluate:run", "evaluate generated images"),
    "study": Command("evaluation:StudyCommandSettings", "study.shares:run", "measure whether synthetic images help"),
    "merge": Command("growth:MergeSettings", "merge:run", "merge generated images into their dataset"),
    "grow": Command("growth:GrowSettings", "grow:run", "run every stage, from a dataset to a larger one"),
    "convert": Command("converters:ConvertSettings", "convert:convert", "convert published checkpoints to pipelines"),
    "export": Command("hub:ExportSettings", "export:export", "export a trained model as a small folder to share"),
    "push": Command("hub:PushSettings", "push:push", "publish a model or a dataset on the Hugging Face Hub"),
}

AGAIN = "interrupted: what is done stays, and the same command resumes"
TRAIN_AGAIN = "interrupted: the same command with --resume_from_checkpoint latest resumes at the last checkpoint"
# What is said after Ctrl-C by commands that resume; the others start again.
INTERRUPTED = {
    **dict.fromkeys(("generate", "filter", "evaluate", "study", "grow"), AGAIN),
    **dict.fromkeys(("autoencoder", "train", "distill"), TRAIN_AGAIN),
}


def load_settings(name: str) -> type[Settings]:
    """Return the class of a command's settings."""
    package, _, settings = COMMANDS[name].settings.partition(":")
    return getattr(importlib.import_module(f"semseg_diffusers.{package}.settings"), settings)


def load_function(name: str) -> Callable[[Any], int | None]:
    """Return the function that a command runs."""
    package = COMMANDS[name].settings.partition(":")[0]
    module, _, function = COMMANDS[name].run.partition(":")
    return getattr(importlib.import_module(f"semseg_diffusers.{package}.{module}"), function)


def command_parser(name: str, prog: str | None = None) -> SettingsParser:
    """Return the parser of a command's options."""
    return SettingsParser(load_settings(name), prog=prog or f"semseg-diffusers {name}")


def run_command(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse a command's options, run it, and return its exit code: 2 after invalid input, 130 after Ctrl-C.

    Both print one line to stderr, or a list of errors; with SEMSEG_DEBUG=1 the exception is raised.
    """
    try:
        settings = command_parser(name, prog).parse_settings(arguments)
        return load_function(name)(settings) or 0
    except KeyboardInterrupt:
        if os.environ.get("SEMSEG_DEBUG") == "1":
            raise
        print(INTERRUPTED.get(name, "interrupted"), file=sys.stderr)
        return 130
    except (ModuleNotFoundError, ValueError, OSError) as err:
        print(f"error: {command_error(err, name)}", file=sys.stderr)
        return 2


class CommandParser(argparse.ArgumentParser):
    """The parser of the script, which asks whether a command near an unknown one was meant."""

    def error(self, message: str) -> NoReturn:
        """Print a mistake and end."""
        if "invalid choice" in message:
            unknown = message.partition("invalid choice: ")[2].rpartition(" (choose from")[0].strip("'\"")
            message = f"unknown command {unknown!r}; expected one of {', '.join(COMMANDS)}."
            message += did_you_mean(unknown, COMMANDS)
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; returns its exit code."""
    width = max(len(name) for name in COMMANDS)
    listing = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = CommandParser(
        prog="semseg-diffusers",
        description="Grow a labelled driving dataset with mask-guided diffusion.",
        epilog=f"commands:\n{listing}\n\nsemseg-diffusers COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
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
