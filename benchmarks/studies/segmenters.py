"""What ImageNet weights bring to a segmentation network: equal networks and steps, from these and from random weights.

Trains each arm with each seed by the recipe of `segmenter`, scores the last weights on the validation split and writes
one file per training, so an interrupted study resumes. Prints the table of docs/how_to/evaluating.md and writes JSON.
"""

import argparse
import functools
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.evaluation.segmentation.networks import build_segmenter
from semseg_diffusers.evaluation.segmentation.training import (
    LabelledImages,
    describe_recipe,
    score_network,
    train_segmenter,
)
from semseg_diffusers.evaluation.settings import SegmenterTrainingOptions
from semseg_diffusers.utils.files import code_commit, read_json, versions, write_json
from semseg_diffusers.utils.settings import differences


# name -> options of `segmenter`
ARMS: dict[str, dict[str, Any]] = {
    "DeepLabV3+, ImageNet": {"architecture": "deeplabv3plus-lite0"},
    "DeepLabV3+, random": {"architecture": "deeplabv3plus-lite0", "pretrained_encoder": False},
    "DeepLabV3, ImageNet": {"architecture": "deeplabv3-lite0"},
    "DeepLabV3, random": {"architecture": "deeplabv3-lite0", "pretrained_encoder": False},
    "SegFormer-B0, random": {"architecture": "segformer-b0"},
}
COST_ARMS = ("DeepLabV3+, ImageNet", "DeepLabV3, ImageNet", "SegFormer-B0, random")
COST_STEPS = 6
CLASSES = ("pole", "traffic sign", "person", "rider")  # of the table; the JSON holds all


def train(arm: str, seed: int, pairs: LabelledImages, validation: LabelledImages, options: dict[str, Any]) -> Any:
    """Train one network and return its record."""
    settings = SegmenterTrainingOptions(**{**ARMS[arm], **options})
    initial = build_segmenter(settings, pairs.labels, pairs.resolution, seed)
    network = initial.network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(pixel_values=torch.zeros(1, 3, *initial.input_size))
    cpu, clock = time.process_time(), time.monotonic()
    history = train_segmenter(
        network, initial.preprocessing, pairs, **settings.schedule, learning_rate=initial.learning_rate,
        recipe=initial.recipe, seed=seed, on_log=lambda line: print(arm, seed, line, file=sys.stderr, flush=True),
    )  # fmt: skip
    steps = settings.max_train_steps
    cpu, clock = (time.process_time() - cpu) / steps, (time.monotonic() - clock) / steps
    scores = score_network(network, initial.preprocessing, validation)
    return {
        "arm": arm, "seed": seed, "command": settings.to_command("segmenter"),
        "recipe": describe_recipe(initial.recipe), "learning_rate": initial.learning_rate,
        "input_size": initial.input_size, "num_parameters": network.num_parameters(),
        "gflop_per_image": counter.get_total_flops() / 1e9, "cpu_seconds_per_step": cpu, "seconds_per_step": clock,
        "loss": history.log[-1]["loss"], "mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy,
        "iou": scores.iou, "num_images": scores.num_images,
    }  # fmt: skip


def measure_cost(arm: str, pairs: LabelledImages) -> dict[str, Any]:
    """Return the cost of a network at the default input size: GFLOP of a forward pass, CPU seconds of a step of 8."""
    cost: dict[str, Any] = {}
    for precision in ("no", "bf16"):
        settings = SegmenterTrainingOptions(**ARMS[arm], max_train_steps=COST_STEPS, mixed_precision=precision)
        initial = build_segmenter(settings, pairs.labels, pairs.resolution, 0)
        marks: list[float] = []

        def mark(marks: list[float] = marks) -> bool:
            marks.append(time.process_time())
            return False

        train_segmenter(
            initial.network, initial.preprocessing, pairs, **settings.schedule, recipe=initial.recipe, should_stop=mark
        )
        seconds = min(after - before for before, after in itertools.pairwise(marks))
        cost[f"cpu_seconds_per_step_{precision}"] = round(seconds, 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        initial.network(pixel_values=torch.zeros(1, 3, *initial.input_size))
    return {"input_size": initial.input_size, "gflop_per_image": counter.get_total_flops() / 1e9, **cost}


def kept(path: Path, options: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the record of a file, which is made if it is missing; one that other options made is refused."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**make(), "options": options})
    record = read_json(path)
    if (saved := record.get("options", {})) != options:
        raise ValueError(f"'{path}' is of other options ({differences(saved, options)}). Choose another --output.")
    return record


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS], metavar="ARM")
    parser.add_argument("--cost_arms", nargs="*", default=list(COST_ARMS), choices=[*ARMS], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, default=400)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further options of every arm")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/segmenters"), help="one file a training"
    )
    parser.add_argument("--json", type=Path, help="file of all results (default: segmenters.json beside the folder)")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    options = {name: json.loads(value) for name, value in (text.split("=", 1) for text in args.set)}
    options["max_train_steps"] = args.max_train_steps
    sets = [LabelledImages(load_pairs(args.dataset, split)) for split in ("train", "val")]
    results, costs = [], {}
    for seed in args.seeds:
        for arm in args.arms:
            path = args.output / f"{arm.replace(', ', '-')}-seed{seed}.json"
            given = {"dataset": args.dataset, **ARMS[arm], **options}
            results.append(kept(path, given, functools.partial(train, arm, seed, *sets, options)))
    for arm in args.cost_arms:
        path = args.output / f"{arm.replace(', ', '-')}-cost.json"
        given = {"dataset": args.dataset, **ARMS[arm]}
        costs[arm] = kept(path, given, functools.partial(measure_cost, arm, sets[0]))
    classes = [name for name in CLASSES if name in results[0]["iou"]]
    print(f"| network, start | mean IoU | {' | '.join(classes)} |\n|---|{'---|' * (1 + len(classes))}")
    for arm in args.arms:
        own = [result for result in results if result["arm"] == arm]
        scores = [spread([result["mean_iou"] for result in own])]
        scores += [spread([result["iou"][name] for result in own]) for name in classes]
        print(f"| {arm} | {' | '.join(scores)} |")
    print("\n| network | input | GFLOP an image | CPU seconds a step | in bfloat16 |\n|---|---|---|---|---|")
    for arm, cost in costs.items():
        steps = f"{cost['cpu_seconds_per_step_no']:.2f} | {cost['cpu_seconds_per_step_bf16']:.2f}"
        size = " x ".join(map(str, cost["input_size"]))
        print(f"| {arm.split(',')[0]} | {size} | {cost['gflop_per_image']:.1f} | {steps} |")
    record = {
        "command": shlex.join(["python", *sys.argv]), "commit": code_commit(), "threads": torch.get_num_threads(),
        "versions": versions("torch", "transformers"), "max_train_steps": args.max_train_steps, "results": results,
        "costs": costs,
    }  # fmt: skip
    write_json(args.json or args.output.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
