"""Trains and scores one network of a study, and keeps what came of it in a file of its own.
The last weights are scored, not the best of several: choosing by the validation split would flatter what varies more.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.evaluation.segmenters.batches import LabelledPhotos
from semseg_diffusers.evaluation.segmenters.beginnings import Beginning, begin
from semseg_diffusers.evaluation.segmenters.training import score_network, train_segmenter
from semseg_diffusers.evaluation.study.pools import Pool, StudyData, members
from semseg_diffusers.evaluation.study.settings import StudySettings, Training
from semseg_diffusers.pipelines.saved_files import write_text


TRAININGS = "trainings"  # folder of one file for each network


class StoppedError(RuntimeError):
    """A training was told to end before its last step; nothing of it is kept."""


def beginning_of(settings: StudySettings, data: StudyData, seed: int) -> Beginning:
    """The network of a seed before its first step: the same for every arm."""
    return begin(
        data.real.labels,
        data.real.resolution,
        architecture=settings.architecture,
        base_model=settings.base_model,
        revision=settings.revision,
        input_size=settings.input_size,
        learning_rate=settings.learning_rate,
        seed=seed,
    )


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

    beginning = beginning_of(settings, data, training.seed)
    network = beginning.network.to(device)
    history = train_segmenter(
        network,
        beginning.preprocessing,
        Pool(training, data, LabelledPhotos(data.real).pixels),
        max_train_steps=settings.max_train_steps,
        train_batch_size=settings.train_batch_size,
        learning_rate=beginning.learning_rate,
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
            f"{beginning.learning_rate:g}) or leave --mixed_precision."
        )
    scores = score_network(network, beginning.preprocessing, LabelledPhotos(data.validation), settings.mixed_precision)
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
