"""Run all stages from a dataset to a better segmentation network, and back into the dataset: the command `grow`."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from PIL import Image

from semseg_diffusers.cli import command_parser, load_function
from semseg_diffusers.data.dataset import column_options, load_pairs
from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, REASONS
from semseg_diffusers.evaluation.segmentation.segmenter import ensure_segmenter
from semseg_diffusers.evaluation.settings import FilterCommandSettings, SegmenterSettings
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.growth.merge import read_real_record
from semseg_diffusers.growth.settings import STAGES, GrowSettings
from semseg_diffusers.growth.stages import (
    Stage,
    check_target,
    comparable_words,
    default_target,
    labelled_target,
    make_stages,
)
from semseg_diffusers.reports.render import write_page
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import CONFIG_FILE, read_config
from semseg_diffusers.utils.files import exclusive_folder, read_json, write_json
from semseg_diffusers.utils.signals import exit_on_signals, route_signals


STATE_FILE, PAGE_FILE = "grow.json", "index.html"
UNLABELLED = (
    "'{}' has no validation split with labels of people: the study scores on that of the dataset, and shows nothing "
    "about the target."
)
# Stages that can run in several processes -> the module that a launcher starts.
LAUNCHED = {"train": "semseg_diffusers.training", "generate": "semseg_diffusers.generation"}


def run(settings: GrowSettings) -> int:
    """Run the stages that are not done yet, and write the page; returns the exit code."""
    if settings.config_file is not None and not Path(settings.config_file).is_file():
        raise ValueError(f"--config_file: there is no file '{settings.config_file}'.")
    read_real_record(settings.dataset)
    pairs = load_pairs(settings.dataset, "train", **column_options(settings))
    num_masks = settings.num_masks or len(pairs)
    size = None if settings.photos is None else check_target(settings, pairs)
    make_stages(settings, settings.class_targets or ["CLASS=4"], num_masks, size=size)  # before the slow statistics
    target = settings.class_targets or (default_target(pairs) if "enrich" in settings.stages else ())
    generator = choose_generator(settings)
    stages = make_stages(settings, target, num_masks, generator, size)
    is_unlabelled = settings.photos is not None and labelled_target(settings) is None
    note = UNLABELLED.format(settings.photos) if is_unlabelled else None
    if note is not None:
        sys.stdout.write(f"note: {note}\n")
    del pairs
    if settings.dry_run:
        sys.stdout.write("".join(f"{stage.command}\n" for stage in stages))
        return 0
    start = next((s.settings.init_from for s in stages if isinstance(s.settings, TrainingSettings)), None)
    if start is not None and read_config(start, "--init_from", f"unet/{CONFIG_FILE}", CONFIG_FILE) is None:
        raise ValueError(
            f"--init_from {start}: it has neither unet/{CONFIG_FILE} nor {CONFIG_FILE}. Give a run folder."
        )
    with exclusive_folder(settings.output, "growing in"), exit_on_signals():
        progress = Progress(settings.output / STATE_FILE)
        for stage in stages:
            progress.check(stage)
            if not progress.is_done(stage.name):
                progress.note(stage, done=False)
                status = 0 if stage.is_complete else run_stage(stage, settings.config_file)
                if status:
                    then = "The same command resumes it."
                    if isinstance(stage.settings, FilterCommandSettings) and status == 1:  # no image was kept
                        then = f"Remove {stage.settings.output}, and lower --set filter.minimum_kept"
                        then += " or raise --set filter.tolerance_margin."
                    sys.stderr.write(f"error: stage {stage.name} ended with exit code {status}. {then}\n")
                    return status
                progress.note(stage, done=True)
            if stage.name == settings.until:
                break
        done = {stage.name: (stage.folder, stage.command) for stage in stages if progress.is_done(stage.name)}
        remaining = [stage.name for stage in stages if stage.name not in done]
        model = None if settings.model is None else generator
        write_growth_page(settings.output / PAGE_FILE, settings.dataset, model, done, remaining, note)
    sys.stdout.write(f"page: {settings.output / PAGE_FILE}\n")
    return 0


def choose_generator(settings: GrowSettings) -> str:
    """Return the model that generates: the one of a loop that is continued, though a student came to be since."""
    path = settings.output / STATE_FILE
    started = read_json(path)["stages"].get("generate") if path.is_file() else None
    if started is None or settings.student is not None or settings.model is None:
        return settings.generator
    command, *words = started["command"]
    before: Any = command_parser(command).parse_settings(words)
    is_same = os.path.abspath(before.model) == os.path.abspath(settings.model)  # a recorded folder is absolute
    return settings.model if is_same else settings.generator


def run_stage(stage: Stage, config_file: str | None) -> int:
    """Run a stage in this process, or in those that accelerate launches; returns its exit code."""
    sys.stdout.write(f"\n[{stage.name}] {stage.command}\n")
    sys.stdout.flush()
    if config_file is None or stage.name not in LAUNCHED:
        try:
            if isinstance(stage.settings, SegmenterSettings):
                ensure_segmenter(stage.settings, "--filter_segmenter")
                return 0
            return load_function(STAGES[stage.name])(stage.settings) or 0
        except ValueError as err:
            raise ValueError(f"stage {stage.name}: {err}") from err
        except OSError as err:
            raise ValueError(f"stage {stage.name}: {str(err).rstrip('.')}. The same command resumes it.") from err
        finally:
            clear_device_cache(garbage_collection=True)  # the next stage needs the memory
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    process = subprocess.Popen([*launcher, "-m", LAUNCHED[stage.name], *stage.settings.to_arguments()])
    try:
        with route_signals(lambda number, _: process.send_signal(number)):
            return process.wait()
    except KeyboardInterrupt:  # the terminal has sent the signal to the stage as well
        process.wait()
        raise


class Progress:
    """Which stages were started and which are done, with their commands, kept in `grow.json` of the output folder."""

    def __init__(self, path: Path):
        self.path = path
        self._stages: dict[str, dict[str, Any]] = read_json(path)["stages"] if path.is_file() else {}

    def is_done(self, name: str) -> bool:
        """Return whether a stage is done."""
        return name in self._stages and self._stages[name]["done"]

    def check(self, stage: Stage) -> None:
        """Refuse a stage that was done with other options."""
        if not self.is_done(stage.name) and not (stage.is_complete and stage.name in self._stages):
            return
        command, *words = self._stages[stage.name]["command"]
        before = comparable_words(command_parser(command).parse_settings(words))  # old names of options become new
        now = comparable_words(stage.settings)
        if before != now:
            different = [word for word in [*now, *before] if (word in now) != (word in before)]
            raise ValueError(
                f"stage {stage.name} was done with other options (they differ in {shlex.join(different[:6])}). Give "
                f"those again, or remove '{stage.folder}' and what later stages made of it with '{self.path}', or "
                "choose another --output."
            )

    def note(self, stage: Stage, done: bool) -> None:
        """Record that a stage starts, or is done."""
        command = [STAGES[stage.name], *comparable_words(stage.settings)]
        self._stages[stage.name] = {"command": command, "done": done}
        write_json(self.path, {"stages": self._stages})


def write_growth_page(
    path: Path,
    dataset: str,
    model: str | None,
    done: Mapping[str, tuple[Path, str]],
    remaining: Sequence[str],
    note: str | None = None,
) -> None:
    """Write the page of the stages done so far (stage -> its folder and command); no `model` means a trained one.

    `note` is a sentence about the study.
    """
    stages = {
        "study": ("results.json", "report.html"),
        "statistics": ("stats.json", "index.html"),
        "label": ("prepare.json", None),
        "join": ("prepare.json", None),
        "enrich": ("enrich.json", "statistics.html"),
        "generate": ("generation.json", None),
        "filter": (FILTER_FILE, "filter.html"),
        "merge": ("prepare.json", None),
    }
    records: dict[str, dict[str, Any] | None] = dict.fromkeys(stages)
    for name, (record_file, page) in stages.items():
        if name in done:
            folder = done[name][0]
            record = {**read_json(folder / record_file), "folder": folder, "page": f"{folder.name}/{page}"}
            if name == "generate":
                record["num_images"], file = len(read_metadata(folder)), folder / "contact_sheet.png"
                if file.is_file():  # not with --set generate.contact_sheet=0
                    with Image.open(file) as sheet:
                        record["sheet"] = sheet.convert("RGB")
            records[name] = record
    commands = [command for _, command in done.values()]
    context = {"dataset": dataset, "model": model, "remaining": remaining, "commands": commands, "note": note}
    write_page(path, "growth.html.j2", reasons=REASONS, **context, **records)
