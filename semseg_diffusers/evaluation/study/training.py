"""Trains and scores one network of a study, and keeps what came of it in a file of its own.
The last weights are scored, not the best of several: choosing by the validation split would flatter what varies more.
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
from semseg_diffusers.evaluation.study.pools import Pool, StudyData, load_data, members
from semseg_diffusers.evaluation.study.settings import MAX_JOBS, StudySettings, Training
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.utils.files import terminate_as_exception
from semseg_diffusers.utils.progress import progress_bar


TRAININGS = "trainings"  # folder of one file for each network


class StoppedError(RuntimeError):
    """A training was told to end before its last step; nothing of it is kept."""


def initial_network(settings: StudySettings, data: StudyData, seed: int) -> InitialSegmenter:
    """The network of a seed before its first step: the same for every arm."""
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
        device: where the network is.
        on_steps: told now and then how many optimizer steps were done since it was last told.
        should_stop: asked after each step.

    Returns:
        JSON: what it was trained on, its scores, last loss, and seconds.

    Raises:
        StoppedError: `should_stop` said so.
        ValueError: it diverged.
    """
    started, told = time.monotonic(), 0

    def on_log(line: dict[str, Any]) -> None:
        nonlocal told
        on_steps(line["step"] - told)
        told = line["step"]

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
            f"'{training.name}' diverged: its loss is {loss} at the end. Lower --learning_rate (it is "
            f"{initial.learning_rate:g}) or leave --mixed_precision."
        )
    scores = score_network(network, initial.preprocessing, LabelledImages(data.validation), settings.mixed_precision)
    pool = members(training, data)
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
    """Where a training's result stands once it is done."""
    return output / TRAININGS / f"{training.name}.json"


def save_result(output: Path, training: Training, result: dict[str, Any]) -> None:
    """Write a result whole."""
    write_text(result_file(output, training), json.dumps(result, indent=2) + "\n")


def read_result(output: Path, training: Training) -> dict[str, Any] | None:
    """What came of a training; None where it is not done.

    Raises:
        ValueError: the file is of something else.
    """
    path = result_file(output, training)
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        there = Training(result["arm"], result["amount"], result["seed"])
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"'{path}' holds no result of a training ({err}). Delete it: it is trained again.") from err
    if there != training:
        raise ValueError(f"'{path}' is of {there.name}. Delete it: {training.name} is trained again.")
    return result


PAUSE = 0.2  # seconds between looks at the processes


def default_jobs(device: str) -> int:
    """One for each GPU, or for each CPU core that may be used."""
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
    """Train what is missing; each result is written as soon as it is there.

    Args:
        missing: what to train, in this order.
        settings: of the study.
        data: of the study, for trainings in this process; others read it for themselves.
        output: folder of the study.
        device: "cuda" gives each process a GPU in turn; other devices are shared.
        jobs: processes at once, at least 1; one works here.
        show_progress: show a bar of optimizer steps on stderr.

    Raises:
        ChildProcessError: a process ended before its work was done.
        ValueError: a training diverged.
    """
    total = len(missing) * settings.max_train_steps
    jobs = min(jobs, len(missing))
    with (
        terminate_as_exception(),
        progress_bar(total=total, desc=f"{len(missing)} trainings", unit="step", disable=not show_progress) as bar,
    ):
        if jobs > 1:
            _run_apart(missing, settings, output, device, jobs, bar)
        elif missing:
            with _one_thread():
                for training in missing:
                    save_result(output, training, train_one(training, settings, data, device, bar.update))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread, as each of several processes does: sums are then the same to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_apart(
    missing: list[Training], settings: StudySettings, output: Path, device: str, jobs: int, bar: Any
) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    following, steps = context.Value("q", 0), context.Value("q", 0)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    processes = []
    try:
        for number in range(jobs):
            own = f"cuda:{number % gpus}" if gpus else device
            arguments = (missing, settings, output, own, following, steps, os.getpid())
            process = context.Process(target=_work, args=arguments, name=f"study-{number}")
            process.start()
            processes.append(process)
        while any(process.is_alive() for process in processes) and not _failed(processes):
            time.sleep(PAUSE)
            bar.update(steps.value - bar.n)
        bar.update(steps.value - bar.n)
        failed = _failed(processes)
        if failed:
            killed = " A process that was killed (-9) mostly lacked memory: give fewer --jobs." if -9 in failed else ""
            raise ChildProcessError(
                f"a training process ended with {failed[0]}; what it said stands above.{killed} What is done stays: "
                "the same command goes on."
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
    following: Any,
    steps: Any,
    parent: int,
) -> None:
    """Take the next training until there is none: what each of several processes does. It ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    data = load_data(settings)

    def is_orphan() -> bool:
        return os.getppid() != parent

    try:
        while (training := _next(missing, following)) is not None:
            on_steps = _adder(steps)
            save_result(output, training, train_one(training, settings, data, device, on_steps, is_orphan))
    except StoppedError:
        return
    except (ValueError, OSError) as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(2)


def _next(missing: list[Training], following: Any) -> Training | None:
    with following.get_lock():
        place, following.value = following.value, following.value + 1
    return missing[place] if place < len(missing) else None


def _adder(steps: Any) -> Callable[[int], None]:
    def add(count: int) -> None:
        with steps.get_lock():
            steps.value += count

    return add
