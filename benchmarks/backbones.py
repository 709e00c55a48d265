"""What features of an `ImageBackbone` cost: float32 in the layout of the reference package against ours and bfloat16.

The reference is the EfficientNet-Lite of `efficientnet-lite-pytorch`, which computes in torch's default layout (NCHW).
An `ImageBackbone` switches to channels-last after the first convolution. All run in turns, in one process, on the same
random images; what counts is the time of the processor in the fastest turn. Prints a table and writes JSON.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet

from semseg_diffusers import ImageBackbone
from semseg_diffusers.utils.files import versions, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--side", type=int, default=256, help="of the images, in pixels (default: 256)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/backbones.json"))
    args = parser.parse_args()

    images = torch.rand(args.batch_size, 3, args.side, args.side)
    ways = {}
    for training in (False, True):
        options = {"trainable": training, "pretrained": False}
        backbones = {
            "float32": ImageBackbone.from_name(args.backbone, **options),
            "bfloat16": ImageBackbone.from_name(args.backbone, dtype=torch.bfloat16, **options),
        }
        reference = EfficientNet.from_name(args.backbone, image_size=None).train(training).requires_grad_(training)
        what = "training step" if training else "features"
        ways[f"{what}, reference"] = (training, lambda network=reference: last_map(network, images))
        for name, backbone in backbones.items():
            ways[f"{what}, {name}"] = (training, lambda backbone=backbone: backbone(images)[-1])

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.turns + 1):
        for name, (training, run) in ways.items():
            start = time.process_time()
            _step(run, training)
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    best = {name: min(values) for name, values in seconds.items()}

    record = {
        **{key: value for key, value in vars(args).items() if key != "output"},
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions("torch"),
        "seconds": best,
    }
    print("| | seconds | times as fast as the reference |")
    print("|---|---:|---:|")
    for name, value in best.items():
        ratio = best[f"{name.split(',')[0]}, reference"] / value
        record.setdefault("ratios", {})[name] = round(ratio, 3)
        print(f"| {name} | {value:.3f} | {ratio:.2f} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, record)


def last_map(network: EfficientNet, images: torch.Tensor) -> torch.Tensor:
    """Return what the package computes before its classifier, without the last 1x1 convolution."""
    x = network._swish(network._bn0(network._conv_stem(images)))
    for index, block in enumerate(network._blocks):
        x = block(x, drop_connect_rate=network._global_params.drop_connect_rate * index / len(network._blocks))
    return x


def _step(run: Callable[[], torch.Tensor], training: bool) -> None:
    if training:
        run().float().square().mean().backward()
    else:
        with torch.no_grad():
            run()


if __name__ == "__main__":
    main()
