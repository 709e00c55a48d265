"""Train a segmentation network on a dataset; it evaluates and filters generated images.

The output folder loads with `AutoModelForSemanticSegmentation` and `AutoImageProcessor` of transformers, and with
--segmenter of `evaluate` and `filter`. Ctrl-C or SIGTERM ends the training and saves the best network so far.
"""

import argparse
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
    add_column_arguments,
    column_options,
    load_pairs,
)
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.options import SPLITS
from semseg_diffusers.evaluation.inputs import code_commit, versions
from semseg_diffusers.evaluation.metrics import SegmentationScores
from semseg_diffusers.evaluation.segmentation.architectures import ARCHITECTURES
from semseg_diffusers.evaluation.segmentation.initialization import (
    DEFAULT_ARCHITECTURE,
    FINE_TUNING_RATE,
    build_segmenter,
)
from semseg_diffusers.evaluation.segmentation.judge import RECORD_FILE
from semseg_diffusers.evaluation.segmentation.networks import PROCESSOR_FILE
from semseg_diffusers.evaluation.segmentation.training import RECIPE, History, LabelledImages, train_segmenter
from semseg_diffusers.reports.segmenter_page import draw_curve
from semseg_diffusers.utils.distributed import SIGNALS, check_device_available, route_signals
from semseg_diffusers.utils.files import new_folder
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar


LOG_FILE = "log.jsonl"
CURVE_FILE = "curve.png"
VALIDATION_SPLIT, NO_SPLIT = "val", "none"
MEMORY_LIMIT = 4 * 2**30  # bytes of decoded pairs kept in memory, per split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers segmenter`."""
    known = "; ".join(f"{name}: {architecture.summary}" for name, architecture in ARCHITECTURES.items())
    rates = ", ".join(f"{name} {architecture.learning_rate:g}" for name, architecture in ARCHITECTURES.items())
    parser.add_argument("--dataset", required=True, help="prepared folder, or a data set id on the Hub")
    add_column_arguments(parser)
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a segmenter that stands there")
    parser.add_argument(
        "--architecture",
        choices=list(ARCHITECTURES),
        help=f"from random weights (default {DEFAULT_ARCHITECTURE}). {known}",
    )
    parser.add_argument("--base_model", help="folder or Hub id of a network to fine-tune instead")
    parser.add_argument("--revision", help="branch, tag or commit of --base_model on the Hub")
    parser.add_argument("--train_split", default="train", help="split to train on (default %(default)s)")
    parser.add_argument(
        "--validation_split",
        help="split to choose the best weights by (default: val; where there is none, or with `none`, the last ones "
        "stay)",
    )
    parser.add_argument("--max_train_steps", type=int, default=2000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--train_batch_size", type=int, default=8, help="photos a step (default %(default)s)")
    parser.add_argument(
        "--learning_rate", type=float, help=f"highest one (default: {rates}; {FINE_TUNING_RATE:g} for --base_model)"
    )
    parser.add_argument(
        "--input_size",
        help="what photos are resized to for the network: a number for the shorter side, or HxW (default: twice the "
        "data's size and at least 256; once for segformer-mini)",
    )
    parser.add_argument(
        "--validation_steps", type=int, default=200, help="steps between validations (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")
    parser.add_argument(
        "--mixed_precision", choices=("no", "bf16"), default="no", help="bf16 for bfloat16 autocast (default no)"
    )


class _StopRequest:
    """Stores the first signal, which ends the training; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.number: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


def run(args: argparse.Namespace) -> int:
    """Train, save the folder atomically and print the scores on the validation split; returns the exit code."""
    check_device_available(args.device)
    transformers_logging.disable_progress_bar()
    stop = _StopRequest()
    with new_folder(args.output, RECORD_FILE, "segmenter", args.overwrite) as folder:
        train, validation = _read_data(args)
        labels = train.labels
        initial = build_segmenter(
            labels,
            train.resolution,
            architecture=args.architecture,
            base_model=args.base_model,
            revision=args.revision,
            input_size=args.input_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
        network = initial.network.to(args.device)
        started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
        with (
            route_signals(stop, (*SIGNALS, signal.SIGINT)),
            _progress(args.max_train_steps, folder / LOG_FILE) as on_log,
        ):
            history = train_segmenter(
                network,
                initial.preprocessing,
                train,
                validation,
                max_train_steps=args.max_train_steps,
                train_batch_size=args.train_batch_size,
                learning_rate=initial.learning_rate,
                validation_steps=args.validation_steps,
                seed=args.seed,
                mixed_precision=args.mixed_precision,
                on_log=on_log,
                should_stop=lambda: stop.number is not None,
            )
            stopped_by = signal.Signals(stop.number).name if history.steps < args.max_train_steps else None
            record = {
                "kind": "segmenter",
                "network": type(network).__name__,
                "architecture": None if args.base_model else args.architecture or DEFAULT_ARCHITECTURE,
                "base_model": args.base_model,
                "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
                "settings": {**vars(args), "learning_rate": initial.learning_rate},
                "recipe": RECIPE,
                "seed": args.seed,
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
    sys.stdout.write(_report(record, history) + f"saved {args.output}\n")
    return 0 if stopped_by is None else 128 + stop.number


def _read_data(args: argparse.Namespace) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the training and validation pairs; without --validation_split, a missing split is not an error."""
    validation_split = args.validation_split or VALIDATION_SPLIT
    names = [SPLITS.get(name, name) for name in (args.train_split, validation_split)]
    if names[0] == names[1]:
        raise ValueError(f"--train_split and --validation_split are both '{names[0]}'; expected two splits.")
    columns = column_options(args)
    train_pairs = load_pairs(args.dataset, args.train_split, **columns)
    if validation_split == NO_SPLIT:
        return _kept(train_pairs), None
    try:
        pairs = load_pairs(args.dataset, validation_split, **columns)
    except MissingSplitError as err:
        if args.validation_split:
            raise
        sys.stderr.write(f"{err} Training runs without validation and keeps the last weights.\n")
        return _kept(train_pairs), None
    train, validation = _kept(train_pairs), _kept(pairs)
    if validation.resolution != train.resolution:
        raise ValueError(
            f"expected images of one size; '{args.dataset}' has {train.resolution} in {args.train_split} and "
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
