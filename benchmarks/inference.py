"""Formats and compilation: what they bring to a forward pass of the network, and to an image, against plain float32.

Arms: float32; channels-last memory; bfloat16 weights; `torch.compile`, alone and with channels-last. All start from
the same weights and take turns in one process, so that whatever else the machine does is shared; an arm whose first
pass takes `PATIENCE` times as long as float32's is timed once (bfloat16 on processors without instructions for it).
Prints a table, with the largest difference of the output from float32's, and writes JSON.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers import LabelSet
from semseg_diffusers.generation.model import speed_up
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import code_commit, versions, write_json


LABELS = LabelSet.from_preset("camvid")
PATIENCE = 10
# name -> dtype of weights and input, options of `speed_up`
ARMS: dict[str, tuple[torch.dtype, dict[str, bool]]] = {
    "float32": (torch.float32, {}),
    "channels_last": (torch.float32, {"channels_last": True}),
    "compile": (torch.float32, {"torch_compile": True}),
    "compile, channels_last": (torch.float32, {"torch_compile": True, "channels_last": True}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, channels_last": (torch.bfloat16, {"channels_last": True}),
}


def forward_pass(unet: torch.nn.Module, arm: str, batch: int, size: int) -> Callable[[], torch.Tensor]:
    """Return the forward pass of an arm: the network on a batch of noise and masks."""
    dtype, options = ARMS[arm]
    network: Any = copy.deepcopy(unet)
    if dtype != torch.float32:
        network.to(dtype)
    speed_up(network, **{"torch_compile": False, "channels_last": False} | options)
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 3, size, size, generator=random).to(dtype)
    if options.get("channels_last"):
        sample = sample.contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, LABELS.num_classes, (batch, size, size), generator=random)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return network(sample, torch.full((batch,), 500), mask=mask).sample.float()

    return run


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    output = run()
    return time.perf_counter() - start, output


def measure(args: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """Return a row of each arm at one batch size."""
    settings = TrainingSettings(dataset="none", output_dir="none")  # neither is opened
    torch.manual_seed(0)
    unet = build_network(settings, LABELS, (args.size, args.size)).eval()
    runs = {arm: forward_pass(unet, arm, batch, args.size) for arm in args.arms}
    first, outputs, seconds = {}, {}, {arm: [] for arm in runs}
    for arm, run in runs.items():  # also a warm-up, in which compiled networks are compiled
        first[arm], outputs[arm] = timed(run)
        print(f"{arm}, batch {batch}: {first[arm]:.2f} s at first", file=sys.stderr, flush=True)
    slow = {arm for arm in runs if not ARMS[arm][1].get("torch_compile") and first[arm] > PATIENCE * first["float32"]}
    for _ in range(args.repeats):
        for arm, run in runs.items():
            if arm not in slow:
                seconds[arm].append(timed(run)[0])
    rows = []
    for arm in runs:
        each = statistics.median(seconds[arm] or [first[arm]])
        rows.append(
            {
                "arm": arm, "batch": batch, "seconds": each / batch, "repeats": len(seconds[arm]) or 1,
                "first_seconds": first[arm],
                "times_faster": statistics.median(seconds["float32"]) / each,
                "largest_difference": (outputs[arm] - outputs["float32"]).abs().max().item(),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="beside float32 (default: all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at a time (default 1 8)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (128)")
    parser.add_argument("--repeats", type=int, default=9, help="turns of all arms; the median counts (9)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/inference.json"))
    args = parser.parse_args()
    args.arms = ["float32", *(arm for arm in args.arms if arm != "float32")]
    load = os.getloadavg()[0]
    rows = [row for batch in args.batches for row in measure(args, batch)]
    print("| format | batch | seconds per image and pass | times faster | first pass, s | largest difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['arm']} | {row['batch']} | {row['seconds']:.3f} | {row['times_faster']:.2f} | "
            f"{row['first_seconds']:.2f} | {row['largest_difference']:.1e} |"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        args.output,
        {
            "rows": rows, "size": args.size, "num_threads": torch.get_num_threads(),
            "machine": {
                "cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability(), "load_before": load
            },
            "versions": versions("torch", "diffusers"), "commit": code_commit(),
        },
    )  # fmt: skip
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
