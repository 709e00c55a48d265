"""Trains a segmentation network on a dataset and saves it as a transformers folder with its record."""

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from semseg_diffusers.data.dataset import (
    MissingSplitError,
    PairDataset,
    column_options,
    load_pairs,
)
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.evaluation.metrics import SegmentationScores
from semseg_diffusers.evaluation.results import code_commit, versions
from semseg_diffusers.evaluation.segmentation.initialization import build_segmenter
from semseg_diffusers.evaluation.segmentation.judge import RECORD_FILE
from semseg_diffusers.evaluation.segmentation.networks import PROCESSOR_FILE
from semseg_diffusers.evaluation.segmentation.settings import (
    DEFAULT_ARCHITECTURE,
    NO_SPLIT,
    VALIDATION_SPLIT,
    SegmenterSettings,
)
from semseg_diffusers.evaluation.segmentation.training import RECIPE, History, LabelledImages, train_segmenter
from semseg_diffusers.reports.segmenter_page import draw_curve
from semseg_diffusers.utils.distributed import check_device_available
from semseg_diffusers.utils.files import new_folder
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar
from semseg_diffusers.utils.signals import SIGNALS, route_signals


LOG_FILE = "log.jsonl"
CURVE_FILE = "curve.png"
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per split


class _StopRequest:
    """Stores the first signal, which ends the training; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.number: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


def run(settings: SegmenterSettings) -> int:
    """Train, save the folder atomically and print the scores on the validation split; returns the exit code."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device_available(device)
    transformers_logging.disable_progress_bar()
    stop = _StopRequest()
    with new_folder(settings.output, RECORD_FILE, "segmenter", settings.overwrite) as folder:
        train, validation = _read_data(settings)
        labels = train.labels
        initial = build_segmenter(settings, labels, train.resolution, settings.seed)
        network = initial.network.to(device)
        started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
        with (
            route_signals(stop, (*SIGNALS, signal.SIGINT)),
            _progress(settings.max_train_steps, folder / LOG_FILE) as on_log,
        ):
            history = train_segmenter(
                network,
                initial.preprocessing,
                train,
                validation,
                max_train_steps=settings.max_train_steps,
                train_batch_size=settings.train_batch_size,
                learning_rate=initial.learning_rate,
                validation_steps=settings.validation_steps,
                seed=settings.seed,
                mixed_precision=settings.mixed_precision,
                on_log=on_log,
                should_stop=lambda: stop.number is not None,
            )
            stopped_by = signal.Signals(stop.number).name if history.steps < settings.max_train_steps else None
            record = {
                "kind": "segmenter",
                "network": type(network).__name__,
                "architecture": None if settings.base_model else settings.architecture or DEFAULT_ARCHITECTURE,
                "base_model": settings.base_model,
                "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
                "settings": {
                    **settings.to_dict(),
                    "validation_split": settings.validation_split or None,
                    "device": device,
                    "learning_rate": initial.learning_rate,
                },
                "recipe": RECIPE,
                "seed": settings.seed,
                "steps": history.steps,
                "stopped_by": stopped_by,
                "best_step": history.best_step,
                "validation": None if history.scores is None else dataclasses.asdict(history.scores),
                "num_pairs": {"train": len(train), "validation": 0 if validation is None else len(validation)},
                "resolution": list(train.resolution),
                "input_size": list(initial.input_size),
                "commit": code_commit(),
                "versions": versions("torch", "transformers", "torchmetrics"),
                "started": started,
                "seconds": round(time.monotonic() - clock, 1),
            }
            _save(folder, network, initial.processor, record, history)
            labels.save_json(folder / LABELS_FILE)
    sys.stdout.write(_report(record, history) + f"saved {settings.output}\n")
    return 0 if stopped_by is None else 128 + stop.number


def _read_data(settings: SegmenterSettings) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the training and validation pairs; without --validation_split, a missing split is not an error."""
    validation_split = settings.validation_split or VALIDATION_SPLIT
    columns = column_options(settings)
    train_pairs = load_pairs(settings.dataset, settings.train_split, **columns)
    if validation_split == NO_SPLIT:
        return _kept(train_pairs), None
    try:
        pairs = load_pairs(settings.dataset, validation_split, **columns)
    except MissingSplitError as err:
        if settings.validation_split:
            raise
        sys.stderr.write(f"{err} Training runs without validation and keeps the last weights.\n")
        return _kept(train_pairs), None
    train, validation = _kept(train_pairs), _kept(pairs)
    if validation.resolution != train.resolution:
        raise ValueError(
            f"expected images of one size; '{settings.dataset}' has {train.resolution} in {settings.train_split} and "
            f"{validation.resolution} in {validation_split} (height, width). Prepare them at one --resolution."
        )
    return train, validation


def _kept(pairs: PairDataset) -> LabelledImages:
    """Return the pairs of a split, kept decoded in memory after the first read."""
    pairs.keep_decoded(MEMORY_LIMIT)
    return LabelledImages(pairs)


@contextlib.contextmanager
def _progress(total: int, path: Path) -> Iterator[Any]:
    """Yield a log function that writes each line to a file and updates a progress bar on stderr."""
    shown: dict[str, str] = {}
    with progress_bar(total=total, desc="training the segmenter", unit="step") as bar, path.open("w") as file:

        def on_log(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            shown.update({key: f"{line[key]:.3f}" for key in ("loss", "mean_iou") if key in line})
            bar.set_postfix(shown, refresh=False)
            bar.update(line["step"] - bar.n)

        yield on_log


def _save(folder: Path, network: Any, processor: dict[str, Any], record: dict[str, Any], history: History) -> None:
    """Write network, image processor, record and training curve."""
    network.save_pretrained(folder)
    (folder / PROCESSOR_FILE).write_text(json.dumps(processor, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    title = f"{record['architecture'] or record['base_model']}, {record['num_pairs']['train']} pairs"
    save_png(folder / CURVE_FILE, draw_curve(history.log, history.best_step, title))


def format_scores(scores: SegmentationScores) -> str:
    """Return scores as a Markdown table with one row per class."""
    lines = ["| class | IoU |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in scores.iou.items()]
    lines += [f"| {name} | not in the masks |" for name in scores.absent]
    lines += [f"| **mean IoU** | {scores.mean_iou:.3f} |", f"| **pixel accuracy** | {scores.pixel_accuracy:.3f} |"]
    return "\n".join(lines) + "\n"


def _report(record: dict[str, Any], history: History) -> str:
    text = f"stopped by {record['stopped_by']} after step {record['steps']}\n" if record["stopped_by"] else ""
    if history.scores is None:
        return text + f"weights of step {record['steps']}, not validated\n"
    text += f"weights of step {record['best_step']} of {record['steps']}, on {history.scores.num_images} images:\n"
    return text + format_scores(history.scores)
