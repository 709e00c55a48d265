"""The stages of growing a data set: each is one of the package's commands with its options, in a folder of its own.

So whatever `grow` does can be done by hand, stage by stage, with the commands that it prints and keeps.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from semseg_diffusers.cli import command_parser
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.utils.settings import SettingsParser


# stage -> the command that does it, in their order
STAGES = {
    "statistics": "stats",
    "train": "train",
    "enrich": "enrich",
    "generate": "generate",
    "segmenter": "segmenter",
    "filter": "filter",
    "study": "study",
    "merge": "merge",
}
# stage -> a file that stands in its folder only when all of it is done; such commands do not go on, or do so slowly
MARKERS = {"train": "model_index.json", "enrich": "enrich.json", "segmenter": "config.json", "merge": "prepare.json"}
# commands that several processes share, by the module that a launcher starts
LAUNCHED = {"train": "semseg_diffusers.training", "generate": "semseg_diffusers.generation"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of the way."""

    name: str  # one of STAGES
    folder: Path  # what it fills
    options: Mapping[str, Sequence[str]]  # name without dashes -> values; no values for a switch

    @property
    def arguments(self) -> list[str]:
        """Command and options, as the console script takes them."""
        words = [STAGES[self.name]]
        for name, values in self.options.items():
            words += [f"--{name}", *values]
        return words

    @property
    def command(self) -> str:
        """What a user would type."""
        return shlex.join(["semseg-diffusers", *self.arguments])

    @property
    def is_complete(self) -> bool:
        """Whether the folder says by itself that all is done."""
        return self.name in MARKERS and (self.folder / MARKERS[self.name]).is_file()

    def check(self) -> None:
        """Let the command's own parser read the options.

        Raises:
            ValueError: naming the stage and what is wrong.
        """
        parser = command_parser(STAGES[self.name])
        parser.error = _raise
        parse = parser.parse_settings if isinstance(parser, SettingsParser) else parser.parse_args
        try:
            parse(self.arguments[1:])
        except ValueError as err:
            raise ValueError(f"stage {self.name}: {err}. `{self._help}` lists its options.") from err

    @property
    def _help(self) -> str:
        return f"semseg-diffusers {STAGES[self.name]} --help"


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def read_changes(texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Options of stages from texts like "train.max_train_steps=2000" or "study.seeds=0,1,2".

    Returns:
        stage -> name -> values; "true" alone is a switch without values.

    Raises:
        ValueError: a text has another form, or names no stage.

    Example:
        >>> read_changes(["study.seeds=0,1", "generate.skip_errors=true"])
        {'study': {'seeds': ['0', '1']}, 'generate': {'skip_errors': []}}
    """
    changes: dict[str, dict[str, list[str]]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        stage, point, option = name.partition(".")
        if not equals or not point or not option or not value:
            raise ValueError(
                f"--set '{text}' is not understood; wanted STAGE.OPTION=VALUE: train.max_train_steps=2000."
            )
        if stage not in STAGES:
            raise ValueError(f"--set '{text}': there is no stage '{stage}'; there are {', '.join(STAGES)}.")
        changes.setdefault(stage, {})[option] = [] if value == "true" else value.split(",")
    return changes


def comparable(stage: Stage) -> list[str]:
    """The command as it is compared with that of an earlier call: paths do not hang on where it is called."""
    return [os.path.abspath(word) if os.path.exists(word) else word for word in stage.arguments]


class Progress:
    """Which stages were begun and are done, with which commands, kept in `grow.json` of the output folder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stages: dict[str, dict] = (
            json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else {}
        )

    def is_done(self, name: str) -> bool:
        return name in self._stages and self._stages[name]["done"]

    def check(self, stage: Stage) -> None:
        """Refuse a stage that was done with other options.

        Raises:
            ValueError: naming what differs.
        """
        if not self.is_done(stage.name) and not (stage.is_complete and stage.name in self._stages):
            return
        there, now = self._stages[stage.name]["command"], comparable(stage)
        if there != now:
            differing = [word for word in [*now, *there] if (word in now) != (word in there)]
            raise ValueError(
                f"stage {stage.name} was done with other options (they differ in {shlex.join(differing[:6])}). Give "
                f"those again, or remove '{stage.folder}' and what later stages made of it with '{self.path}', or "
                "choose another --output."
            )

    def note(self, stage: Stage, done: bool) -> None:
        """Keep that a stage begins, or is done."""
        self._stages[stage.name] = {"command": comparable(stage), "done": done}
        write_text(self.path, json.dumps({"stages": self._stages}, indent=1) + "\n")
