"""How well generated images carry their masks, as a small segmentation network reads them.

The network is trained on the real photos of the data set (or loaded), then reads three sets: the real photos of a
split (the ceiling), the generated images, and the generated images against the masks of others (the floor). Agreement
alone does not measure how good pictures look.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from semseg_diffusers.data.loading import PairDataset, load_pairs
from semseg_diffusers.evaluation.metrics import SegmentationScores
from semseg_diffusers.evaluation.provenance import code_commit, versions
from semseg_diffusers.evaluation.segmentation import (
    agreement,
    balanced_class_weights,
    load_segmenter,
    train_segmenter,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers agreement`."""
    parser.add_argument("--dataset", required=True, help="prepared folder or Hub data set id: the real photos")
    parser.add_argument("--generated", required=True, help="folder that `semseg-diffusers generate` wrote")
    parser.add_argument("--output", required=True, metavar="FILE.json", help="where the results go")
    parser.add_argument("--split", default="val", help="real photos to score (default %(default)s)")
    parser.add_argument("--segmenter", help="folder that --save_segmenter wrote (default: train one)")
    parser.add_argument("--save_segmenter", help="folder to keep the trained segmenter in")
    parser.add_argument("--segmenter_steps", type=int, default=800, help="training steps (default %(default)s)")
    parser.add_argument("--segmenter_batch_size", type=int, default=4, help="default %(default)s")
    parser.add_argument("--segmenter_learning_rate", type=float, default=3e-3, help="default %(default)s")
    parser.add_argument("--batch_size", type=int, default=16, help="images read at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of segmenter and shuffle (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")


def derangement(count: int, seed: int) -> list[int]:
    """Return a seeded order in which nothing stays at its place.

    Raises:
        ValueError: for fewer than two things.

    Example:
        >>> order = derangement(5, seed=0)
        >>> sorted(order), any(place == index for index, place in enumerate(order))
        ([0, 1, 2, 3, 4], False)
    """
    if count < 2:
        raise ValueError(f"masks can be shuffled from two on; got {count}. Generate from more masks.")
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))  # one cycle through all
    return [successor[index] for index in range(count)]


def shuffled_indices(stems: list[str], seed: int) -> list[int]:
    """For each image return the index of an image of another mask.

    Images of one mask share a stem and get the same other mask, so a stem is never scored against its own.
    """
    first = {stem: index for index, stem in reversed(list(enumerate(stems)))}
    unique = sorted(first)
    other = {unique[index]: unique[place] for index, place in enumerate(derangement(len(unique), seed))}
    return [first[other[stem]] for stem in stems]


def score_generated(
    segmenter: torch.nn.Module, real: PairDataset, generated: PairDataset, seed: int, batch_size: int = 16
) -> dict[str, SegmentationScores]:
    """Score real photos, generated images, and generated images against the masks of others.

    Args:
        segmenter: network trained on real photos of the same classes.
        real: photos it has not seen; narrowed to the masks that were generated from, where all of them are in it, so
            that the three rows speak of the same scenes.
        generated: images with the masks they were made from.
        seed: of the shuffle.
        batch_size: images a forward.

    Returns:
        scores by "real", "generated", "shuffled".
    """
    stems = set(generated.stems)
    chosen = [index for index, stem in enumerate(real.stems) if stem in stems]
    if {real.stems[index] for index in chosen} != stems:
        chosen = list(range(len(real)))
    others = shuffled_indices(list(generated.stems), seed)

    def score(pairs: PairDataset, indices: list[int], mask_indices: list[int]) -> SegmentationScores:
        images = (pairs[index]["image"] for index in indices)
        masks = (pairs[index]["mask"] for index in mask_indices)
        return agreement(segmenter, images, masks, pairs.labels, batch_size)

    everything = list(range(len(generated)))
    return {
        "real": score(real, chosen, chosen),
        "generated": score(generated, everything, everything),
        "shuffled": score(generated, everything, others),
    }


def format_table(scores: dict[str, SegmentationScores]) -> str:
    """Return the scores as a Markdown table."""
    titles = {
        "real": "real photos, their masks (ceiling)",
        "generated": "generated, their masks",
        "shuffled": "generated, masks of others (floor)",
    }
    lines = ["| images, scored against | mean IoU | pixel accuracy | images |", "|---|---|---|---|"]
    lines += [
        f"| {titles[name]} | {row.mean_iou:.3f} | {row.pixel_accuracy:.3f} | {row.num_images} |"
        for name, row in scores.items()
    ]
    return "\n".join(lines)


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write JSON beside and rename, so that no half-written file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run(args: argparse.Namespace) -> None:
    """Train or load the segmenter, score, print the table, write the results."""
    real = load_pairs(args.dataset, args.split)
    generated = load_pairs(args.generated)
    if generated.labels != real.labels:
        raise ValueError(
            f"'{args.generated}' and '{args.dataset}' have other label sets ({', '.join(generated.labels.names)} / "
            f"{', '.join(real.labels.names)}): score images against the data set their model was trained on"
        )
    shuffled_indices(list(generated.stems), args.seed)  # fewer than two masks: say so before training
    if args.segmenter:
        segmenter = load_segmenter(args.segmenter, real.labels).to(args.device)
    else:
        train = load_pairs(args.dataset, "train")
        with tqdm(total=args.segmenter_steps, desc="training the segmenter", unit="step") as bar:

            def show(step: int, loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.3f}")
                bar.update(step - bar.n)

            segmenter = train_segmenter(
                train,
                num_steps=args.segmenter_steps,
                batch_size=args.segmenter_batch_size,
                learning_rate=args.segmenter_learning_rate,
                seed=args.seed,
                device=args.device,
                class_weights=balanced_class_weights(train),
                on_step=show,
            )
        if args.save_segmenter:
            segmenter.save_pretrained(args.save_segmenter)
    scores = score_generated(segmenter, real, generated, args.seed, args.batch_size)
    generation_file = Path(args.generated) / "generation.json"
    results = {
        "settings": {key: value for key, value in sorted(vars(args).items())},
        "seed": args.seed,
        "commit": code_commit(),
        "versions": versions("torch", "transformers", "torchmetrics"),
        "resolution": {"real": list(real.resolution), "generated": list(generated.resolution)},
        "num_masks": len(set(generated.stems)),
        "generation": json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.is_file() else None,
        "scores": {name: dataclasses.asdict(row) for name, row in scores.items()},
    }
    write_results(Path(args.output), results)
    sys.stdout.write(f"{format_table(scores)}\n")
    absent = scores["generated"].absent
    if absent:
        sys.stdout.write(f"not in the masks, so not in the mean: {', '.join(absent)}\n")
    sys.stdout.write(f"results: {args.output}\n")
