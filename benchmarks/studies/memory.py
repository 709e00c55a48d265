"""What a training needs of memory: weights with all that belongs to them, and what a forward pass keeps of an image.

Counted, not measured: the tensors that torch keeps for the backward pass, under bfloat16 autocast, on the CPU. Prints
the table of docs/how_to/training.md and writes JSON.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from semseg_diffusers import LabelSet
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json


COPIES = 5  # of 4 bytes: weight, gradient, two moments of AdamW, average
BATCH = 2
CASES = {
    "default, 128 x 128": ((128, 128), {}),
    "default, 256 x 448": ((256, 448), {}),
    "`--block_out_channels 64 128 256 384`, 128 x 128": ((128, 128), {"block_out_channels": (64, 128, 256, 384)}),
    "`--patch_size 1`, 128 x 128": ((128, 128), {"patch_size": 1}),
    "the paper's, 128 x 128": ((128, 128), {"network": "paper"}),
}


def bytes_of_an_image(unet: torch.nn.Module, size: tuple[int, int]) -> float:
    """What a forward pass of training keeps for the backward pass, weights aside."""
    weights = {weight.data_ptr() for weight in unet.parameters()}
    storages: dict[int, int] = {}
    kept = []  # so that no storage is given to another tensor meanwhile

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    mask = torch.zeros(BATCH, *size, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        output = unet(torch.randn(BATCH, 3, *size), torch.arange(BATCH), mask=mask).sample
    del output
    return sum(storages.values()) / BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory.json"))
    args = parser.parse_args()
    base, labels = TrainingSettings(dataset="none", output_dir="none"), LabelSet.from_preset("bdd100k")
    results = {}
    print("| network and size | weights | an image | with `--gradient_checkpointing` |")
    print("|---|---|---|---|")
    for name, (size, changes) in CASES.items():
        unet = build_network(dataclasses.replace(base, **changes), labels, size).train()
        number = sum(weight.numel() for weight in unet.parameters())
        plain = bytes_of_an_image(unet, size)
        unet.enable_gradient_checkpointing()
        checkpointed = bytes_of_an_image(unet, size)
        results[name] = {"weights": number, "bytes_of_an_image": plain, "with_gradient_checkpointing": checkpointed}
        states = f"{number / 1e6:.1f} million, {number * 4 * COPIES / 1e9:.2f} GB"
        print(f"| {name} | {states} | {plain / 1e6:.0f} MB | {checkpointed / 1e6:.0f} MB |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"torch": torch.__version__, "networks": results})


if __name__ == "__main__":
    main()
