"""Trains and scores the networks of a study, in parallel processes, with one result file per network.
The last weights are scored, not the best ones: selection by the validation split would favor noisier trainings.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from semseg_diffusers.evaluation.segmentation.networks import build_segmenter
from semseg_diffusers.evaluation.segmentation.recolor import ColorTransfer, stronger_jitter
from semseg_diffusers.evaluation.segmentation.training import LabelledImages, score_network, train_segmenter
from semseg_diffusers.evaluation.settings import MAX_JOBS, SYNTHETIC_SETS, StudySettings, Training
from semseg_diffusers.evaluation.study.phases import training_phases
from semseg_diffusers.evaluation.study.pools import StudyData, load_data, pool_members
from semseg_diffusers.utils.files import read_json, write_json
from semseg_diffusers.utils.parallel import follow_parent
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.signals import exit_on_signals


TRAININGS = "trainings"  # folder of the result files
POLL_SECONDS = 0.2  # between updates of the progress bar


class StoppedError(RuntimeError):
    """A training was stopped before its last step; no result is kept."""


def train_one(
    training: Training,
    settings: StudySettings,
    data: StudyData,
    output: Path,
    device: str,
    should_stop: Callable[[], bool],
) -> None:
    """Train one network, score it on the validation split and write the result; `should_stop` runs at each step."""
    started = time.monotonic()
    initial = build_segmenter(settings, data["real"].labels, data["real"].resolution, training.seed, device)
    recipe, recolor, relabelled = initial.recipe, None, None
    if training.arm == "real_recolored":
        recipe, recolor = stronger_jitter(recipe), ColorTransfer(data["pseudo_labelled"], training.seed)
    for phase in training_phases(training, settings, data):
        history = train_segmenter(
            initial.network,
            initial.preprocessing,
            phase.pairs,
            **{**settings.schedule, "max_train_steps": phase.steps},
            learning_rate=initial.learning_rate,
            recipe=recipe,
            synthetic=phase.synthetic,
            recolor=recolor,
            seed=training.seed,
            name=f"'{training.name}'",
            should_stop=should_stop,
        )
        if history.steps < phase.steps:
            raise StoppedError(training.name)
        relabelled = history.relabelled if phase.synthetic else relabelled
    validation = LabelledImages(data["validation"])
    scores = score_network(initial.network, initial.preprocessing, validation, settings.mixed_precision)
    members = pool_members(training, data)
    result = {
        **dataclasses.asdict(training),
        "num_pairs": len(members),
        "num_synthetic": sum(name in SYNTHETIC_SETS for name, _ in members),
        "scores": {**dataclasses.asdict(scores), "absent": list(scores.absent)},
        "loss": history.log[-1]["loss"],
        **({} if relabelled is None else {"relabelled": relabelled}),
        "device": str(torch.device(device)),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_result(output, result)


def write_result(output: Path, result: dict[str, Any]) -> None:
    """Write the result of a training into the folder of a study."""
    training = Training(result["arm"], result["amount"], result["seed"])
    write_json(output / TRAININGS / f"{training.name}.json", result)


def read_result(output: Path, training: Training) -> dict[str, Any] | None:
    """Return the result of a training; None if it is not finished."""
    path = output / TRAININGS / f"{training.name}.json"
    if not path.is_file():
        return None
    try:
        result = read_json(path)
        saved = Training(result["arm"], result["amount"], result["seed"])
    except (ValueError, KeyError) as err:
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
    """Train missing networks in order; each result is written when it is complete.

    A single job runs in this process, with `data`; other processes load their own, and "cuda" distributes them over
    the GPUs. Each trains on one CPU thread, so results do not depend on the number of jobs.
    """
    total = len(missing) * settings.max_train_steps
    jobs, threads = min(jobs, len(missing)), torch.get_num_threads()
    with (
        exit_on_signals(),
        progress_bar(total=total, desc=f"{len(missing)} trainings", unit="step", disable=not show_progress) as bar,
    ):
        if jobs > 1:
            _run_processes(missing, settings, output, device, jobs, bar)
            return

        def count_step() -> bool:
            bar.update()
            return False

        torch.set_num_threads(1)
        try:
            for training in missing:
                train_one(training, settings, data, output, device, count_step)
        finally:
            torch.set_num_threads(threads)


def _run_processes(
    missing: list[Training], settings: StudySettings, output: Path, device: str, jobs: int, bar: Any
) -> None:
    """Train in several processes; the first error stops the others after their current step."""
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    devices, steps, stop = context.SimpleQueue(), context.Value("q", 0), context.Event()
    for number in range(jobs):
        devices.put(f"cuda:{number % gpus}" if gpus else device)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (settings, output, devices, steps, stop))
    try:
        pending: set[Future] = {pool.submit(_train_in_worker, training) for training in missing}
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
            bar.update(steps.value - bar.n)
            for future in done:
                future.result()
    except BrokenProcessPool as err:
        raise ChildProcessError(
            "a training process was killed, usually because memory ran out: use fewer --jobs. Finished trainings are "
            "kept: the same command resumes."
        ) from err
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_work: tuple[StudySettings, StudyData, Path, str, Callable[[], bool]]  # arguments of `train_one` in a worker process


def _start_worker(settings: StudySettings, output: Path, devices: Any, steps: Any, stop: Any) -> None:
    """Prepare a process for its trainings: load the data, take a device."""
    global _work
    follow_parent()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)

    def count_step() -> bool:
        with steps.get_lock():
            steps.value += 1
        return stop.is_set()

    _work = settings, load_data(settings), output, devices.get(), count_step


def _train_in_worker(training: Training) -> None:
    train_one(training, *_work)
