"""Trains a segmentation network on a dataset and saves it as a transformers folder with its record.

The command `segmenter` calls `run`; what needs a network of its own (`evaluate`, `filter`, `grow`) `ensure_segmenter`.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from semseg_diffusers.data.dataset import MissingSplitError, PairDataset, column_options, load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.inputs import check_one_size
from semseg_diffusers.evaluation.metrics import SegmentationScores
from semseg_diffusers.evaluation.segmentation.judge import RECORD_FILE
from semseg_diffusers.evaluation.segmentation.networks import PROCESSOR_FILE, build_segmenter
from semseg_diffusers.evaluation.segmentation.training import (
    History,
    LabelledImages,
    describe_recipe,
    train_segmenter,
)
from semseg_diffusers.evaluation.settings import HUB_SEGMENTER, NO_SPLIT, VALIDATION_SPLIT, SegmenterSettings
from semseg_diffusers.reports.plots import training_curve
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import code_commit, follow_umask, new_folder, read_json, versions, write_json
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.settings import differences
from semseg_diffusers.utils.signals import SIGNALS, route_signals


LOG_FILE = "log.jsonl"
CURVE_FILE = "curve.png"
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per split
# Settings that change no weights, or that classes and pairs stand for.
NOT_COMPARED = ("output", "overwrite", "save_dtype", "device", "dataset", "labels")


def run(settings: SegmenterSettings) -> int:
    """Train, save the folder and print the scores on the validation split; returns the exit code."""
    history, stopped_by = train(settings, save_when_stopped=True)
    if stopped_by is not None:
        sys.stdout.write(f"stopped by {stopped_by.name} after step {history.steps}\n")
    if history.scores is None:
        sys.stdout.write(f"weights of step {history.steps}, not validated\n")
    else:
        weights = f"weights of step {history.best_step} of {history.steps}"
        sys.stdout.write(f"{weights}, on {history.scores.num_images} images:\n{format_scores(history.scores)}")
    sys.stdout.write(f"saved {settings.output}\n")
    return 0 if stopped_by is None else 128 + stopped_by


def ensure_segmenter(settings: SegmenterSettings, option: str = "--segmenter") -> None:
    """Train a network with these settings, unless their output folder holds it already.

    A signal ends the process and leaves nothing of the training, so that the next call repeats it; `run` would save
    the best network so far.

    Args:
        settings: of the training. Its split must hold real pairs, at least those of one batch.
        option: that names a trained network in its place, for messages.

    Raises:
        ValueError: unsuitable pairs, or a folder that holds something else.
    """
    what = f"without {option}, a segmentation network is trained on '{settings.dataset}'"
    other = f"Give a trained one: {option} with a folder of `segmenter`, or a Hub id such as {HUB_SEGMENTER}."
    try:
        pairs = load_pairs(settings.dataset, settings.train_split, **column_options(settings))
    except MissingSplitError as err:
        raise ValueError(f"{what}: {err} {other}") from err
    if pairs.num_synthetic:
        raise ValueError(
            f"{what}: expected real pairs; {pairs.num_synthetic} of the {len(pairs)} of {pairs.name} are synthetic. "
            f"{other}"
        )
    if len(pairs) < settings.train_batch_size:
        raise ValueError(
            f"{what}: expected {settings.train_batch_size} or more pairs, those of one step; {pairs.name} holds "
            f"{len(pairs)}. {other}"
        )
    folder = Path(settings.output)
    network = settings.architecture_name or settings.base_model
    if folder.is_dir() and any(folder.iterdir()):
        different = _differences(folder, settings, pairs)
        if different:
            raise ValueError(
                f"'{folder}' does not hold the network that is to be trained ({different}). Give {option} {folder} to "
                "use what it holds, or remove it, or choose another --output."
            )
        return
    sys.stderr.write(
        f"Training {network} on the {len(pairs)} pairs of {pairs.name}, {settings.max_train_steps} steps. It is kept "
        f"in {folder}: give {option} {folder} to use it again elsewhere.\n"
    )
    train(settings, save_when_stopped=False)


def _differences(folder: Path, settings: SegmenterSettings, pairs: PairDataset) -> str:
    """Return how the segmenter in a folder differs from that of these settings; an empty text if it does not."""
    if not (folder / RECORD_FILE).is_file():
        return f"it has no {RECORD_FILE}"
    record = read_json(folder / RECORD_FILE)
    saved = {**(record.get("settings") or {}), **{name: record.get(name) for name in ("architecture", "stopped_by")}}
    saved |= {"pairs": record.get("pairs_digest"), "classes": LabelSet.from_json(folder / LABELS_FILE).names}
    current = {**settings.to_dict(), "architecture": settings.architecture_name, "stopped_by": None}
    current |= {"pairs": pairs.digest[:16], "classes": pairs.labels.names}
    current["validation_split"] = settings.validation_split or None
    ignored = NOT_COMPARED if settings.learning_rate else (*NOT_COMPARED, "learning_rate")  # recorded as it was chosen
    return differences(saved, {**current, **{name: saved.get(name) for name in ignored}})


def train(settings: SegmenterSettings, *, save_when_stopped: bool) -> tuple[History, signal.Signals | None]:
    """Train and save the folder atomically; return the progress, and the signal that ended it early.

    With `save_when_stopped`, a first signal ends the training and the best network so far is saved; else it ends the
    process, and nothing is saved.
    """
    device = choose_device(settings.device)
    sys.stderr.write(settings.fallback_hint or "")
    transformers_logging.disable_progress_bar()
    shown: dict[str, str] = {}  # behind the progress bar
    received: list[int] = []  # signals: the first ends the training, a second Ctrl-C interrupts at once

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def on_log(line: dict[str, Any]) -> None:
        file.write(json.dumps(line) + "\n")
        file.flush()
        shown.update({key: f"{line[key]:.3f}" for key in ("loss", "mean_iou") if key in line})
        bar.set_postfix(shown, refresh=False)
        bar.update(line["step"] - bar.n)

    with new_folder(settings.output, RECORD_FILE, "segmenter", settings.overwrite) as folder:
        pairs, validation_pairs = _read_data(settings)
        train_images = LabelledImages(pairs)
        validation = None if validation_pairs is None else LabelledImages(validation_pairs)
        initial = build_segmenter(settings, pairs.labels, pairs.resolution, settings.seed, device)
        network = initial.network
        started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
        caught = route_signals(on_signal, (*SIGNALS, signal.SIGINT)) if save_when_stopped else contextlib.nullcontext()
        with (
            caught,
            progress_bar(total=settings.max_train_steps, desc="training the segmenter", unit="step") as bar,
            (folder / LOG_FILE).open("w") as file,
        ):
            history = train_segmenter(
                network,
                initial.preprocessing,
                train_images,
                validation,
                **settings.schedule,
                learning_rate=initial.learning_rate,
                recipe=initial.recipe,
                validation_steps=settings.validation_steps,
                seed=settings.seed,
                on_log=on_log,
                should_stop=lambda: bool(received),
            )
            stopped_by = signal.Signals(received[0]) if history.steps < settings.max_train_steps else None
            record = {
                "kind": "segmenter",
                "network": type(network).__name__,
                "architecture": settings.architecture_name,
                "base_model": settings.base_model,
                "encoder": initial.encoder,
                "num_parameters": network.num_parameters(),
                "settings": {
                    **settings.to_dict(),
                    "validation_split": settings.validation_split or None,
                    "device": device,
                    "learning_rate": initial.learning_rate,
                },
                "recipe": describe_recipe(initial.recipe),
                "seed": settings.seed,
                "steps": history.steps,
                "stopped_by": stopped_by and stopped_by.name,
                "best_step": history.best_step,
                "validation": history.scores and dataclasses.asdict(history.scores),
                "num_pairs": {"train": len(pairs), "validation": 0 if validation is None else len(validation)},
                "pairs_digest": pairs.digest[:16],
                "resolution": list(pairs.resolution),
                "input_size": list(initial.input_size),
                "commit": code_commit(),
                "versions": versions("torch", "transformers", "torchmetrics"),
                "started": started,
                "seconds": round(time.monotonic() - clock, 1),
            }
            network.to(getattr(torch, settings.save_dtype)).save_pretrained(folder)
            follow_umask(folder)
            write_json(folder / PROCESSOR_FILE, dict(sorted(initial.processor.items())))
            write_json(folder / RECORD_FILE, record)
            title = f"{settings.architecture_name or settings.base_model}, {len(pairs)} pairs"
            save_png(folder / CURVE_FILE, training_curve(history.log, history.best_step, title))
            pairs.labels.save_json(folder / LABELS_FILE)
    return history, stopped_by


def _read_data(settings: SegmenterSettings) -> tuple[PairDataset, PairDataset | None]:
    """Return the training and validation pairs; without --validation_split, a missing split is not an error."""
    validation_split = settings.validation_split or VALIDATION_SPLIT
    columns = column_options(settings)
    validation = None
    train = load_pairs(settings.dataset, settings.train_split, **columns)
    if validation_split != NO_SPLIT:
        try:
            validation = load_pairs(settings.dataset, validation_split, **columns)
        except MissingSplitError as err:
            if settings.validation_split:
                raise
            sys.stderr.write(f"{err} Training runs without validation and keeps the last weights.\n")
    if validation is not None:
        check_one_size(train, validation)
        validation.keep_decoded(MEMORY_LIMIT)
    train.keep_decoded(MEMORY_LIMIT)
    return train, validation


def format_scores(scores: SegmentationScores) -> str:
    """Return scores as a Markdown table with one row per class."""
    lines = ["| class | IoU |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in scores.iou.items()]
    lines += [f"| {name} | not in the masks |" for name in scores.absent]
    lines += [f"| **mean IoU** | {scores.mean_iou:.3f} |", f"| **pixel accuracy** | {scores.pixel_accuracy:.3f} |"]
    return "\n".join(lines) + "\n"
