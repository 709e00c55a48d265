"""Whether an edit shows: things of one photo's mask put into another photo, drawn by `MaskGuidedInpaintPipeline`.

A segmentation network reads the photos before and after. What counts is the share of the new pixels, those that the
edit gave the class, in which it finds that class; the difference is paired, its interval the 95 % of the mean. Prints
the figures of docs/how_to/editing_photos.md and writes JSON.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from semseg_diffusers import LabelSet, MaskGuidedInpaintPipeline
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.utils.files import write_json


FAR = 5  # pairs between the photo and the one that the thing is taken from: neighbours show the same street
TRIES = 1000  # of places for things, for each edit


@dataclass(frozen=True)
class Edit:
    """One photo, (H, W, 3), its mask before and after, (H, W), and the pixels that the edit gave a class."""

    photo: np.ndarray
    old: np.ndarray
    new: np.ndarray
    added: np.ndarray
    class_id: int


def make_edits(args: argparse.Namespace, labels: LabelSet) -> list[Edit]:
    """Take things of the classes by turns, at random, and put each where it stood into another photo."""
    pairs = load_pairs(args.dataset, args.split)
    if len(pairs) <= FAR:
        raise ValueError(f"--split {args.split} has {len(pairs)} pairs; expected more than {FAR}.")
    order = np.argsort(pairs.stems)
    masks = [pairs.mask(int(index)) for index in order]
    classes = {labels.label2id[name]: size for name, size in zip(args.classes, args.least, strict=True)}
    things: dict[int, list[tuple[int, np.ndarray]]] = {class_id: [] for class_id in classes}
    for place, ids in enumerate(masks):
        for class_id, least in classes.items():
            numbered, count = ndimage.label(ids == class_id)
            regions = (numbered == number for number in range(1, count + 1))
            things[class_id] += [(place, region) for region in regions if region.sum() > least]
    for class_id, least in classes.items():
        if not any(max(place, len(masks) - 1 - place) >= FAR for place, _ in things[class_id]):
            raise ValueError(
                f"--split {args.split} has no {labels.names[class_id]} of more than {least} pixels that is {FAR} "
                "pairs away from another photo; choose other --classes, or a smaller --least."
            )
    edits, random = [], np.random.default_rng(args.seed)
    for _ in range(TRIES * args.num_edits):
        if len(edits) == args.num_edits:
            break
        class_id = list(classes)[len(edits) % len(classes)]
        source, region = things[class_id][random.integers(len(things[class_id]))]
        place = int(random.integers(len(masks)))
        added = region & (masks[place] != class_id)
        if abs(place - source) < FAR or added.sum() < 0.75 * classes[class_id]:
            continue
        photo = np.asarray(pairs.photo(int(order[place])).convert("RGB"))
        new = np.where(region, class_id, masks[place]).astype(np.uint8)
        edits.append(Edit(photo, masks[place], new, added, class_id))
    if len(edits) < args.num_edits:
        raise ValueError(
            f"--split {args.split}: {len(edits)} of {args.num_edits} edits found; where things of the split could be "
            "put, photos have the class already. Choose other --classes, or a smaller --least."
        )
    return edits


def found_shares(judge, photos: list, edits: list[Edit]) -> np.ndarray:
    """In what share of its new pixels each edit's class is found."""
    batch = torch.from_numpy(np.stack([np.asarray(photo) for photo in photos])).permute(0, 3, 1, 2)
    read = judge.read(batch).numpy()
    return np.array([(ids[edit.added] == edit.class_id).mean() for ids, edit in zip(read, edits, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder or Hub id")
    parser.add_argument("--dataset", required=True, help="prepared folder of the model's size and classes")
    parser.add_argument("--segmenter", required=True, help="folder of `semseg-diffusers segmenter`, or Hub id")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--classes", nargs="+", default=["car", "person"], help="by turns (default car person)")
    parser.add_argument("--least", type=int, nargs="+", default=[400, 80], help="pixels of a thing (default 400 80)")
    parser.add_argument("--num_edits", type=int, default=48, help="default 48")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--guidance_scale", type=float, nargs="+", default=[2.0, 4.0], help="default 2 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/editing.json"))
    args = parser.parse_args()
    pipe = MaskGuidedInpaintPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    labels = LabelSet.from_config(pipe.unet.config)
    judge = load_judge(args.segmenter, labels)
    edits = make_edits(args, labels)
    photos = [edit.photo for edit in edits]
    before = found_shares(judge, photos, edits)
    print(f"untouched: the class is found in {before.mean():.3f} of the new pixels")
    results = {"settings": {name: str(value) for name, value in vars(args).items()}, "untouched": before.mean()}
    for scale in args.guidance_scale:
        images = pipe(
            photos,
            [edit.new for edit in edits],
            old_mask=[edit.old for edit in edits],
            num_inference_steps=args.steps,
            guidance_scale=scale,
            generator=[torch.Generator().manual_seed(args.seed + index) for index in range(len(edits))],
        ).images
        after = found_shares(judge, images, edits)
        gain = after - before
        interval = 1.96 * gain.std(ddof=1) / math.sqrt(len(gain))
        results[f"guidance {scale:g}"] = {"edited": after.mean(), "gain": gain.mean(), "interval": interval}
        print(f"guidance {scale:g}: {after.mean():.3f}, {gain.mean():+.3f} plus or minus {interval:.3f}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, results)


if __name__ == "__main__":
    main()
