"""Whole tiny training runs for the tests: their settings, and the processes that train."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from helpers.preloaded import COMMANDS, LIBRARIES, Preloaded, Started
from semseg_diffusers.distillation.distill import distill
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.training.loop import train
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.settings import SettingsParser


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train_accelerate.py"
STARTED: list[Started] = []
WORKERS: list[psutil.Process] = []
PROCESSES = Preloaded((*LIBRARIES, *COMMANDS), HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
OTHER_FOLDERS = Preloaded(LIBRARIES)  # of Hugging Face's libraries, which read their variables when they are imported
TWO_PROCESSES = ROOT / "configs" / "accelerate" / "cpu_processes.yaml"
TINY = {
    "block_out_channels": (8, 16),
    "attention_levels": 0,
    "stem_channels": 8,
    "norm_num_groups": 4,
    "train_batch_size": 2,
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "logging_steps": 1,
    "preview_steps": 0,
    "lr_warmup_steps": 2,
    "learning_rate": 1e-2,
    "dataloader_num_workers": 0,
    "device": "cpu",
    "dropout": 0.1,
}


def tiny_settings(dataset, output_dir, **changes) -> TrainingSettings:
    """`TINY` with changes."""
    return TrainingSettings(**{**TINY, "dataset": str(dataset), "output_dir": str(output_dir), **changes})


def train_here(settings: TrainingSettings) -> Path:
    """Train in this process, and leave no state of accelerate behind."""
    try:
        return train(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def distill_here(settings: DistillationSettings) -> Path:
    """Distill in this process, and leave no state of accelerate behind."""
    try:
        return distill(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def parse_training(*words: str) -> TrainingSettings:
    """Return the settings that options on the command line give."""
    return SettingsParser(TrainingSettings).parse_settings([*map(str, words)])


def start(*command, **environment) -> Started:
    """Start Python with `command`, its output in one text; accelerate's launcher forks its workers as well."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    processes = OTHER_FOLDERS if any(name.startswith("HF_") for name in environment) else PROCESSES
    STARTED.append(processes.start(command, variables, Path.cwd()))
    return STARTED[-1]


def kill_started() -> None:
    """Kill what a failed test left running, with what it launched into sessions of their own."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.communicate()
    while WORKERS:  # those of a launcher that was killed
        with contextlib.suppress(psutil.NoSuchProcess):
            WORKERS.pop().kill()


def launch(*command, **environment) -> Started:
    """Start `accelerate launch` of a command with two processes on the CPU."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", TWO_PROCESSES, "--main_process_port", "0"]
    return start(*launcher, *command, **environment)


def launch_two(script, settings: TrainingSettings, **environment) -> Started:
    """Start `accelerate launch` of a script with two processes on the CPU."""
    return launch(script, *settings.to_arguments(), **environment)


def workers(launched: Started) -> list[psutil.Process]:
    """The processes of a launch in the order of their ranks, in which they are started."""
    found = sorted(psutil.Process(launched.pid).children(), key=lambda worker: worker.pid)
    WORKERS.extend(found)
    return found


def finished(process: Started, timeout: float = 300) -> str:
    """Wait for a process that should succeed, and return what it wrote."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-4000:]
    return output


def wait_until(condition: Callable[[], bool], process: Started, timeout: float = 300) -> None:
    """Wait for something that a process does, as long as it lives."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def weights(run: Path) -> dict:
    """The averaged weights of a finished run."""
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def log_lines(run: Path) -> list[dict]:
    """The lines of `log.jsonl`; none where it is not there yet."""
    path = run / "log.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.is_file() else []  # the last line may be in the writing
    return [json.loads(line) for line in whole]


def losses(run: Path) -> list[float]:
    """The losses of `log.jsonl`."""
    return [line["loss"] for line in log_lines(run)]


def status(run: Path) -> dict:
    """What `status.json` says."""
    return json.loads((run / "status.json").read_text())
