"""Run all stages from a dataset to a better segmentation network, and back into the dataset: the command `grow`."""

import subprocess
import sys
from pathlib import Path

from semseg_diffusers.data.dataset import column_options, load_pairs
from semseg_diffusers.growth.growth_page import write_growth_page
from semseg_diffusers.growth.merge import read_real_record
from semseg_diffusers.growth.settings import GrowSettings
from semseg_diffusers.growth.stages import Progress, Stage, default_target, make_stage
from semseg_diffusers.utils.files import exclusive_folder
from semseg_diffusers.utils.signals import route_signals


STATE_FILE, PAGE_FILE = "grow.json", "index.html"
# Stages whose commands run in several processes -> the module that a launcher starts.
LAUNCHED = {"train": "semseg_diffusers.training", "generate": "semseg_diffusers.generation"}


class StageError(ValueError):
    """A stage ended with an error, which it has reported itself."""


def run(settings: GrowSettings) -> None:
    """Run the stages that are not done yet, and write the page."""
    if settings.config_file is not None and not Path(settings.config_file).is_file():
        raise ValueError(f"--config_file: there is no file '{settings.config_file}'.")
    read_real_record(settings.dataset)
    pairs = load_pairs(settings.dataset, "train", **column_options(settings))
    num_masks = settings.num_masks or len(pairs)
    for name in settings.stages:  # before the statistics, which take time
        make_stage(settings, name, settings.target or ["CLASS=4"], num_masks).check()
    target = settings.target or (default_target(pairs) if settings.masks is None else ())
    stages = [make_stage(settings, name, target, num_masks) for name in settings.stages]
    if settings.dry_run:
        sys.stdout.write("".join(f"{stage.command}\n" for stage in stages))
        return
    with exclusive_folder(settings.output, "growing in"):
        progress = Progress(settings.output / STATE_FILE)
        for stage in stages:
            progress.check(stage)
            if not progress.is_done(stage.name):
                progress.note(stage, done=False)
                run_stage(stage, settings.config_file)
                progress.note(stage, done=True)
            if stage.name == settings.until:
                break
        done = {stage.name: (stage.folder, stage.command) for stage in stages if progress.is_done(stage.name)}
        remaining = [stage.name for stage in stages if stage.name not in done]
        write_growth_page(settings.output / PAGE_FILE, settings.dataset, settings.model, done, remaining)
    sys.stdout.write(f"page: {settings.output / PAGE_FILE}\n")


def run_stage(stage: Stage, config_file: str | None) -> None:
    """Run the command of a stage in a process of its own, unless its folder is complete.

    Raises:
        StageError: it ended with an error.
    """
    if stage.is_complete:
        return
    sys.stdout.write(f"\n[{stage.name}] {stage.command}\n")
    sys.stdout.flush()
    words = [sys.executable, "-m", "semseg_diffusers.cli", *stage.arguments]
    if config_file is not None and stage.name in LAUNCHED:
        launcher = ["accelerate.commands.launch", "--config_file", config_file, "-m", LAUNCHED[stage.name]]
        words = [sys.executable, "-m", *launcher, *stage.arguments[1:]]
    process = subprocess.Popen(words)
    try:
        with route_signals(lambda number, _: process.send_signal(number)):
            status = process.wait()
    except KeyboardInterrupt:  # the terminal has sent the signal to the stage as well
        process.wait()
        raise
    if status:
        raise StageError(
            f"stage {stage.name} ended with exit code {status}; its message is above. The same command resumes it."
        )
