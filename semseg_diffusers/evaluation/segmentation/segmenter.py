"""Trains a segmentation network on a dataset and saves it as a transformers folder with its record."""

import dataclasses
import json
import signal
import sys
import time
from datetime import datetime, timezone
from types import FrameType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from semseg_diffusers.data.dataset import MissingSplitError, column_options, load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.evaluation.inputs import check_one_size
from semseg_diffusers.evaluation.metrics import SegmentationScores
from semseg_diffusers.evaluation.segmentation.judge import RECORD_FILE
from semseg_diffusers.evaluation.segmentation.networks import PROCESSOR_FILE, build_segmenter
from semseg_diffusers.evaluation.segmentation.training import LabelledImages, describe_recipe, train_segmenter
from semseg_diffusers.evaluation.settings import NO_SPLIT, VALIDATION_SPLIT, SegmenterSettings
from semseg_diffusers.reports.plots import training_curve
from semseg_diffusers.utils.distributed import check_device_available
from semseg_diffusers.utils.files import code_commit, new_folder, versions, write_json
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.signals import SIGNALS, route_signals


LOG_FILE = "log.jsonl"
CURVE_FILE = "curve.png"
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per split


def run(settings: SegmenterSettings) -> int:
    """Train, save the folder atomically and print the scores on the validation split; returns the exit code."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device_available(device)
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
        train, validation = _read_data(settings)
        initial = build_segmenter(settings, train.labels, train.resolution, settings.seed, device)
        network = initial.network
        started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
        with (
            route_signals(on_signal, (*SIGNALS, signal.SIGINT)),
            progress_bar(total=settings.max_train_steps, desc="training the segmenter", unit="step") as bar,
            (folder / LOG_FILE).open("w") as file,
        ):
            history = train_segmenter(
                network,
                initial.preprocessing,
                train,
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
                "num_pairs": {"train": len(train), "validation": 0 if validation is None else len(validation)},
                "resolution": list(train.resolution),
                "input_size": list(initial.input_size),
                "commit": code_commit(),
                "versions": versions("torch", "transformers", "torchmetrics"),
                "started": started,
                "seconds": round(time.monotonic() - clock, 1),
            }
            network.save_pretrained(folder)
            write_json(folder / PROCESSOR_FILE, dict(sorted(initial.processor.items())))
            write_json(folder / RECORD_FILE, record)
            title = f"{settings.architecture_name or settings.base_model}, {len(train)} pairs"
            save_png(folder / CURVE_FILE, training_curve(history.log, history.best_step, title))
            train.labels.save_json(folder / LABELS_FILE)
    if stopped_by is not None:
        sys.stdout.write(f"stopped by {stopped_by.name} after step {history.steps}\n")
    if history.scores is None:
        sys.stdout.write(f"weights of step {history.steps}, not validated\n")
    else:
        weights = f"weights of step {history.best_step} of {history.steps}"
        sys.stdout.write(f"{weights}, on {history.scores.num_images} images:\n{format_scores(history.scores)}")
    sys.stdout.write(f"saved {settings.output}\n")
    return 0 if stopped_by is None else 128 + stopped_by


def _read_data(settings: SegmenterSettings) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the training and validation pairs; without --validation_split, a missing split is not an error."""
    validation_split = settings.validation_split or VALIDATION_SPLIT
    columns = column_options(settings)
    train, validation = load_pairs(settings.dataset, settings.train_split, **columns), None
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
    return LabelledImages(train), None if validation is None else LabelledImages(validation)


def format_scores(scores: SegmentationScores) -> str:
    """Return scores as a Markdown table with one row per class."""
    lines = ["| class | IoU |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in scores.iou.items()]
    lines += [f"| {name} | not in the masks |" for name in scores.absent]
    lines += [f"| **mean IoU** | {scores.mean_iou:.3f} |", f"| **pixel accuracy** | {scores.pixel_accuracy:.3f} |"]
    return "\n".join(lines) + "\n"
