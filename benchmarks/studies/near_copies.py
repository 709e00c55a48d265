"""How far training photos lie from themselves, changed a little, and from each other: what a near-copy is judged by.

Distances of thumbnails, as `generate --training_set` measures them (`generation/near_copies.py`), on a prepared
dataset of real photos. Prints the table of docs/how_to/generating.md and writes JSON.
"""

import argparse
import io
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.generation.near_copies import nearest_thumbnails, thumbnails
from semseg_diffusers.utils.files import write_json


def as_tensor(photo: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(photo).transpose(2, 0, 1).copy())  # (3, H, W)


def as_jpeg(photo: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer).convert("RGB")


def smaller(photo: Image.Image) -> Image.Image:
    quarter = photo.resize((photo.width // 4, photo.height // 4), Image.Resampling.BOX)
    return quarter.resize(photo.size)


def noisy(photo: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 10, (photo.height, photo.width, 3))
    return Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))


def shifted(photo: Image.Image) -> Image.Image:
    return Image.fromarray(np.roll(np.asarray(photo), 1, axis=1))


def cut(photo: Image.Image) -> Image.Image:
    across, down = round(photo.width * 0.01), round(photo.height * 0.01)
    part = photo.crop((across, down, photo.width - across, photo.height - down))
    return part.resize(photo.size, Image.Resampling.LANCZOS)


def brighter(photo: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(photo).enhance(1.1)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "itself, as JPEG of quality 75": partial(as_jpeg, quality=75),
    "itself, as JPEG of quality 10": partial(as_jpeg, quality=10),
    "itself, at a quarter of its size": smaller,
    "itself, with noise of 10 levels": noisy,
    "itself, 10 % brighter": brighter,
    "itself, shifted by a pixel": shifted,
    "itself, cut by 2 %": cut,
}


def photos_of(pairs: PairDataset) -> list[Image.Image]:
    return [pairs.photo(index).convert("RGB") for index in range(len(pairs))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="prepared folder with the splits train and val")
    parser.add_argument("--every", type=int, default=3, help="photos that are changed: each so many-th (3)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/near_copies.json"))
    args = parser.parse_args()
    train = photos_of(load_pairs(args.dataset, "train"))
    known = thumbnails(map(as_tensor, train))  # (N, 1024)
    distances = {}
    for name, change in CHANGES.items():
        changed = thumbnails(as_tensor(change(photo)) for photo in train[:: args.every])
        distances[name] = nearest_thumbnails(changed, known)[0].tolist()
    distances["the nearest other training photo"] = [
        nearest_thumbnails(known[[index]], torch.cat([known[:index], known[index + 1 :]]))[0].item()
        for index in range(len(known))
    ]
    validation = thumbnails(map(as_tensor, photos_of(load_pairs(args.dataset, "val"))))
    distances["the nearest photo of the validation split"] = nearest_thumbnails(validation, known)[0].tolist()
    results = {}
    print("| a training photo and | median | least | most |")
    print("|---|---|---|---|")
    for name, values in distances.items():
        results[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in results[name].values())} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"num_train": len(train), "levels": results})


if __name__ == "__main__":
    main()
