"""Trains and scores the networks of a study, in parallel processes, with one result file per network.
The last weights are scored, not the best ones: selection by the validation split would favor noisier trainings.
"""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from semseg_diffusers.evaluation.segmentation.initialization import InitialSegmenter, build_segmenter
from semseg_diffusers.evaluation.segmentation.training import LabelledImages, score_network, train_segmenter
from semseg_diffusers.evaluation.study.pools import Pool, StudyData, load_data, pool_members
from semseg_diffusers.evaluation.study.settings import MAX_JOBS, StudySettings, Training
from semseg_diffusers.utils.files import write_text
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.signals import exit_on_signals


TRAININGS = "trainings"  # folder of the result files
POLL_SECONDS = 0.2  # between checks of the processes


class StoppedError(RuntimeError):
    """A training was stopped before its last step; no result is kept."""


def initial_network(settings: StudySettings, data: StudyData, seed: int) -> InitialSegmenter:
    """Return the network of a seed before its first step, the same for every arm."""
    return build_segmenter(settings, data.real.labels, data.real.resolution, seed)


def train_one(
    training: Training,
    settings: StudySettings,
    data: StudyData,
    device: str,
    on_steps: Callable[[int], Any] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train one network and score it on the validation split.

    Args:
        training: arm, amount and seed.
        settings: of the study.
        data: of the study.
        device: of the network.
        on_steps: called from time to time with the number of optimizer steps since the last call.
        should_stop: called after each step; True ends the training.

    Returns:
        JSON: training set, scores, last loss and seconds.

    Raises:
        StoppedError: `should_stop` returned True.
        ValueError: the training diverged.
    """
    started, reported = time.monotonic(), 0

    def on_log(line: dict[str, Any]) -> None:
        nonlocal reported
        on_steps(line["step"] - reported)
        reported = line["step"]

    initial = initial_network(settings, data, training.seed)
    network = initial.network.to(device)
    history = train_segmenter(
        network,
        initial.preprocessing,
        Pool(training, data, LabelledImages(data.real).pixels),
        max_train_steps=settings.max_train_steps,
        train_batch_size=settings.train_batch_size,
        learning_rate=initial.learning_rate,
        seed=training.seed,
        mixed_precision=settings.mixed_precision,
        on_log=on_log,
        should_stop=should_stop,
    )
    if history.steps < settings.max_train_steps:
        raise StoppedError(training.name)
    loss = history.log[-1]["loss"]
    if not math.isfinite(loss):
        raise ValueError(
            f"'{training.name}' diverged: its final loss is {loss}. Lower --learning_rate (it is "
            f"{initial.learning_rate:g}) or omit --mixed_precision."
        )
    scores = score_network(network, initial.preprocessing, LabelledImages(data.validation), settings.mixed_precision)
    pool = pool_members(training, data)
    return {
        **dataclasses.asdict(training),
        "num_pairs": len(pool),
        "num_synthetic": sum(name != "real" for name, _ in pool),
        "scores": {**dataclasses.asdict(scores), "absent": list(scores.absent)},
        "loss": loss,
        "device": str(torch.device(device)),
        "seconds": round(time.monotonic() - started, 1),
    }


def result_file(output: Path, training: Training) -> Path:
    """Return the path of a training's result."""
    return output / TRAININGS / f"{training.name}.json"


def save_result(output: Path, training: Training, result: dict[str, Any]) -> None:
    """Write a result atomically."""
    write_text(result_file(output, training), json.dumps(result, indent=2) + "\n")


def read_result(output: Path, training: Training) -> dict[str, Any] | None:
    """Return the result of a training; None if it is not finished.

    Raises:
        ValueError: a file with other content.
    """
    path = result_file(output, training)
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        saved = Training(result["arm"], result["amount"], result["seed"])
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"'{path}' holds no result of a training ({err}). Delete it to train again.") from err
    if saved != training:
        raise ValueError(f"'{path}' belongs to {saved.name}. Delete it to train {training.name} again.")
    return result


def default_jobs(device: str) -> int:
    """Return the number of GPUs, or of available CPU cores up to `MAX_JOBS`."""
    if torch.device(device).type != "cpu":
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_JOBS)


def run_trainings(
    missing: list[Training],
    settings: StudySettings,
    data: StudyData,
    output: Path,
    device: str,
    jobs: int,
    show_progress: bool = False,
) -> None:
    """Train missing networks; each result is written when it is complete.

    Args:
        missing: trainings, in this order.
        settings: of the study.
        data: of the study, for trainings in this process; other processes load their own.
        output: folder of the study.
        device: "cuda" distributes processes over the GPUs; other devices are shared.
        jobs: parallel processes, at least 1; a single one runs here.
        show_progress: show a bar of optimizer steps on stderr.

    Raises:
        ChildProcessError: a process ended early.
        ValueError: a training diverged.
    """
    total = len(missing) * settings.max_train_steps
    jobs = min(jobs, len(missing))
    with (
        exit_on_signals(),
        progress_bar(total=total, desc=f"{len(missing)} trainings", unit="step", disable=not show_progress) as bar,
    ):
        if jobs > 1:
            _run_processes(missing, settings, output, device, jobs, bar)
        elif missing:
            with _one_thread():
                for training in missing:
                    save_result(output, training, train_one(training, settings, data, device, bar.update))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one CPU thread, like parallel processes do, so that results are bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_processes(
    missing: list[Training], settings: StudySettings, output: Path, device: str, jobs: int, bar: Any
) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    counter, steps = context.Value("q", 0), context.Value("q", 0)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    processes = []
    try:
        for number in range(jobs):
            own = f"cuda:{number % gpus}" if gpus else device
            arguments = (missing, settings, output, own, counter, steps, os.getpid())
            process = context.Process(target=_work, args=arguments, name=f"study-{number}")
            process.start()
            processes.append(process)
        while any(process.is_alive() for process in processes) and not _failed(processes):
            time.sleep(POLL_SECONDS)
            bar.update(steps.value - bar.n)
        bar.update(steps.value - bar.n)
        failed = _failed(processes)
        if failed:
            killed = " A killed process (-9) usually ran out of memory: use fewer --jobs." if -9 in failed else ""
            raise ChildProcessError(
                f"a training process ended with {failed[0]}; its message is above.{killed} Finished trainings are "
                "kept: the same command resumes."
            )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _failed(processes: list[Any]) -> list[int]:
    return [process.exitcode for process in processes if process.exitcode not in (None, 0)]


def _work(
    missing: list[Training],
    settings: StudySettings,
    output: Path,
    device: str,
    counter: Any,
    steps: Any,
    parent: int,
) -> None:
    """Run the next training until none is left; the process ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    data = load_data(settings)

    def is_orphan() -> bool:
        return os.getppid() != parent

    def take_next() -> Training | None:
        with counter.get_lock():
            index, counter.value = counter.value, counter.value + 1
        return missing[index] if index < len(missing) else None

    def add_steps(count: int) -> None:
        with steps.get_lock():
            steps.value += count

    try:
        while (training := take_next()) is not None:
            save_result(output, training, train_one(training, settings, data, device, add_steps, is_orphan))
    except StoppedError:
        return
    except (ValueError, OSError) as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(2)
