"""Masks that are mostly unknown: what models make of one painted thing, or of a street with classes left out.

Cases: whole masks; masks of which a quarter, half or three quarters of the classes are unknown; one connected object
with all else unknown; no mask at all. All models sample the same masks from the same noise, with their recommended
steps. Figures: the share of the known pixels that a segmentation network reads as their class (photos have a ceiling),
and the kernel distance of the images to the photos of the split. Differences are to the first model of the same number
of steps, mask by mask. Finished work is kept: the same command resumes. Prints the table of
docs/results/few_steps.md, and writes `partial_masks.json` and a sheet of pictures.

    python benchmarks/studies/partial_masks.py --model whole=checkpoints/camvid128 --model partial=runs/partial
        --dataset data/camvid128 --segmenter runs/segmenter --output partial_masks
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from few_steps import named_folder, write_jpeg
from few_steps_figures import kernel_distances
from sampling import Read, Reader, accuracy, interval, interval_text, resampled

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.evaluate import write_masks
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images, real_images
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import load_model
from semseg_diffusers.generation.settings import GenerationSettings
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.utils.files import code_commit, versions, write_json
from semseg_diffusers.utils.images import image_grid


# Case -> share of the classes of a mask that are unknown; None: all but one connected object.
CASES: dict[str, float | None] = {
    "whole": 0.0, "a quarter unknown": 0.25, "half unknown": 0.5, "three quarters unknown": 0.75, "one object": None,
    "no mask": 1.0,
}  # fmt: skip
MIN_OBJECT = 0.01  # share of the pixels of the one object: smaller ones are hardly seen
SHEET_ROWS = 3  # masks of each case on the sheet


def partial_mask(mask: torch.Tensor, share: float | None, unknown: int, generator: torch.Generator) -> torch.Tensor:
    """Leave out a share of the classes of a mask (H, W), at random and rounded down, or all but one object."""
    if share is None:
        objects = find_objects(mask.numpy(), unknown)
        large = [i for i, size in enumerate(objects.sizes) if size >= MIN_OBJECT * mask.numel()]
        chosen = large[int(torch.randint(len(large), (), generator=generator))]
        return mask.where(torch.from_numpy(objects.numbers == 1 + chosen), unknown)
    found = mask[mask != unknown].unique()
    gone = found[torch.randperm(len(found), generator=generator)[: int(len(found) * share)]]
    return mask.masked_fill(torch.isin(mask, gone), unknown)


def partial_set(images: ImageSet, share: float | None, seed: int) -> ImageSet:
    """Return images with partial masks, each a function of its place and the seed."""
    unknown = images.labels.ignore_index
    masks = [
        partial_mask(images.mask(i).long(), share, unknown, torch.Generator().manual_seed(seed + i))
        for i in range(len(images))
    ]
    return ImageSet(images.labels, images.names, images.stems, images.image, lambda i: masks[i].to(torch.uint8))


def read_model(
    args: argparse.Namespace, name: str, case: str, masks: ImageSet, pairs: PairDataset, reader: Reader
) -> Read:
    """Sample what is missing of a model and a case, and return what the networks read."""
    folder = args.output / case.replace(" ", "_")
    pipeline: Any = load_model(dict(args.model)[name])
    pipeline.set_progress_bar_config(disable=True)
    steps, scale = pipeline.resolve_sampling()
    write_masks(folder / "masks", masks)
    settings = GenerationSettings(steps, scale, seed=args.seed)
    generate_dataset(
        pipeline, folder / "masks", folder / name, settings, mask_labels=pairs.labels, batch_size=args.batch_size,
        contact_sheet_rows=0,
    )  # fmt: skip
    found = generated_images(folder / name, pairs)
    return reader.read(found.subset([found.names.index(f"{stem}_0") for stem in masks.stems]))


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Return all results, and write the sheet."""
    pairs = load_pairs(args.dataset, args.split)
    reader, real = Reader(args, pairs), real_images(pairs)
    photos = reader.read(real)
    chosen = real.subset([real.stems.index(stem) for stem in evenly_spaced(real.stems, args.num_masks)])
    weights = torch.cat([torch.ones(1, len(chosen), dtype=torch.float64), resampled(len(chosen), args.seed)])
    names = [name for name, _ in args.model]
    steps = {name: load_model(folder).resolve_sampling()[0] for name, folder in args.model}
    rows, sheet = [], []
    for case, share in CASES.items():
        masks = partial_set(chosen, share, args.seed)
        known = reader.read(masks)  # the photos of these masks
        reads = {name: read_model(args, name, case, masks, pairs, reader) for name in names}
        for name in names:
            read, reference = reads[name], reads[next(each for each in names if steps[each] == steps[name])]
            distance, other = (
                kernel_distances(each.features[:, None], photos.features, weights) for each in (read, reference)
            )
            row: dict[str, Any] = {"case": case, "model": name, "steps": steps[name], "kernel": distance[0].item()}
            if share != 1:  # else there is nothing to follow
                row["accuracy"], row["photos_accuracy"] = (
                    accuracy(each.matrices.sum(0)).item() for each in (read, known)
                )
            if read is not reference:
                row["less_kernel"] = interval((distance - other)[0], (distance - other)[1:])
            if read is not reference and share != 1:
                values, others = (
                    accuracy(torch.einsum("rn,nij->rij", weights, each.matrices.double()))
                    for each in (read, reference)
                )
                row["less_accuracy"] = interval((values - others)[0], (values - others)[1:])
            rows.append(row)
        for place in range(0, len(chosen), max(1, len(chosen) // SHEET_ROWS))[:SHEET_ROWS]:
            shown = [reads[name].images[place] for name in names]
            sheet.append([pairs.labels.decode(masks.mask(place).numpy()), *shown, chosen.image(place)])
    write_jpeg(image_grid(sheet, ["mask", *names, "photo"]), args.output / "partial_masks.jpg")
    return {
        "kind": "partial_masks", "rows": rows, "num_masks": len(chosen), "split": args.split, "seed": args.seed,
        "segmenter": reader.judge.describe(pairs.resolution), "features": reader.extractor.describe(),
        "commit": code_commit(), "versions": versions("torch", "diffusers", "transformers"),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    heads = ["masks", "model", "steps", "known pixels read as their class", "difference", "kernel distance",
             "difference"]  # fmt: skip
    lines = []
    for row in record["rows"]:
        followed = f"{row['accuracy']:.3f} (photos {row['photos_accuracy']:.3f})" if "accuracy" in row else ""
        differences = [interval_text(row.get(name)) for name in ("less_accuracy", "less_kernel")]
        lines.append(
            [
                row["case"],
                row["model"],
                str(row["steps"]),
                followed,
                differences[0],
                f"{row['kernel']:.3f}",
                differences[1],
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * 2 + ["---:"] * 5, *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=named_folder, action="append", required=True, metavar="NAME=DIR", help="as often as needed"
    )
    parser.add_argument("--dataset", required=True, help="prepared folder")
    parser.add_argument("--segmenter", required=True, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--features", default="efficientnet-lite2", help="as of `evaluate` (efficientnet-lite2)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument("--batch_size", type=int, default=8, help="default 8")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    record = collect(args)
    write_json(args.output / "partial_masks.json", record)
    print(table(record))


if __name__ == "__main__":
    main()
