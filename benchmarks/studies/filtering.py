"""What `filter` keeps of labels that are right and of labels that are another scene's: what its floor is judged by.

Reads a folder that `generate` wrote (an image of each mask) and the real photos of a split, each with its own mask and
with that of another. Prints the table of docs/how_to/filtering.md and writes JSON.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.evaluation.filtering.rules import (
    LossReader,
    compute_class_losses,
    find_class_losses,
    kept_shares,
    losses_key,
)
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images, real_images
from semseg_diffusers.evaluation.metrics import derangement
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.evaluation.settings import FilterSettings
from semseg_diffusers.utils.files import write_json


FLOORS = (0.5, 0.6, 0.7)  # of --minimum_kept
SEED = 0  # of the exchange of masks


def shares_of(images: ImageSet, masks: Sequence[int], segmenter: Judge, thresholds: np.ndarray) -> list[float]:
    """Return the share of its labels that each image keeps with the mask at the index in `masks`."""

    def pair_of(index: int) -> dict[str, torch.Tensor]:
        return {"image": images.image(index), "mask": images.mask(masks[index])}

    found = LossReader(segmenter, batch_size=1).filter(pair_of, range(len(masks)), thresholds, "filtering")
    counts = [(np.array(scores["pixels"]), np.array(scores["kept"])) for _, scores in found]
    shares = [kept_shares(before, after, images.labels)["kept_share"] for before, after in counts]
    return [share for share in shares if share is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", required=True, help="folder that `generate` wrote")
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--segmenter", required=True, help="network that filters")
    parser.add_argument("--class_losses", help="folder that was filtered with it: take its mean losses from there")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/filtering.json"))
    args = parser.parse_args()
    train, val = (load_pairs(args.dataset, split) for split in ("train", "val"))
    segmenter = load_judge(args.segmenter, train.labels)
    key = losses_key(segmenter, torch.float32, train)
    losses = None if args.class_losses is None else find_class_losses(args.class_losses, key)
    losses = losses or compute_class_losses(LossReader(segmenter, show_progress=True), train, key)
    margin = FilterSettings().tolerance_margin
    thresholds = losses.thresholds(margin, keep_unchecked=False)
    results = {}
    print(f"| labels | images | kept, median | least | most | {' | '.join(f'below {floor}' for floor in FLOORS)} |")
    print(f"|---|{'---|' * (4 + len(FLOORS))}")
    generated = generated_images(args.generated, val)
    first = {stem: place for place, stem in reversed([*enumerate(generated.stems)])}
    generated = generated.subset(sorted(first.values()))
    for kind, images in (("real photos", real_images(val)), ("generated images", generated)):
        for whose, masks in (("own", range(len(images))), ("others'", derangement(len(images), SEED))):
            shares = shares_of(images, masks, segmenter, thresholds)
            below = {str(floor): sum(share < floor for share in shares) for floor in FLOORS}
            row = {
                "images": len(shares),
                "median": statistics.median(shares),
                "least": min(shares),
                "most": max(shares),
            }
            results[f"{kind}, {whose} masks"] = {**row, "below": below}
            numbers = [str(len(shares)), *(f"{row[name]:.2f}" for name in ("median", "least", "most"))]
            print(f"| {kind}, {whose} masks | {' | '.join([*numbers, *map(str, below.values())])} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"tolerance_margin": margin, "kept": results})


if __name__ == "__main__":
    main()
