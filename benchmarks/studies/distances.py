"""How distances of features rank real, damaged and generated images: what the features of `evaluate` can tell.

A validation split is divided into halves at random. One is the reference; compared with it are the other half, as it
is and damaged (blur, noise, JPEG), images generated from the masks of that half, and as many training photos. Sets
have the same size, and all but the last show the same scenes, so that their distances differ by appearance only.
Prints the table of docs/how_to/evaluating.md and writes JSON.
"""

import argparse
import io
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from few_steps_figures import frechet_distances
from PIL import Image, ImageFilter

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.features import extract, load_extractor
from semseg_diffusers.evaluation.fidelity import kid
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images
from semseg_diffusers.generation.near_copies import to_tensor
from semseg_diffusers.utils.files import read_json, versions, write_json
from semseg_diffusers.utils.images import to_image


FEATURES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
REAL, GENERATED, TRAINING = "real images", "generated images", "training images (other drives)"


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def noisy(image: Image.Image, levels: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, levels, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer).convert("RGB")


DAMAGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred by 0.5 pixels": partial(blurred, radius=0.5),
    "blurred by 1 pixel": partial(blurred, radius=1),
    "blurred by 2 pixels": partial(blurred, radius=2),
    "with noise of 10 levels": partial(noisy, levels=10),
    "with noise of 30 levels": partial(noisy, levels=30),
    "as JPEG of quality 10": partial(as_jpeg, quality=10),
}


def features_of(name: str, val: PairDataset, train: PairDataset, generated: ImageSet) -> dict[str, torch.Tensor]:
    """Return the features (N, D) of each set by one network, in the order of their stems."""
    extractor = load_extractor(name)
    order = sorted(range(len(val)), key=lambda index: val.stems[index])
    photos = [val[index]["image"] for index in order]
    sets = {REAL: extract(extractor, photos)}
    for title, damage in DAMAGES.items():
        sets[title] = extract(extractor, [to_tensor(damage(to_image(photo))) for photo in photos])
    sets[GENERATED] = extract(extractor, [generated.image(index) for index in range(len(generated))])
    sets[TRAINING] = extract(
        extractor, [train[index]["image"] for index in evenly_spaced(range(len(train)), 2 * len(val))]
    )
    return sets


def compare(sets: dict[str, torch.Tensor], stems: Sequence[str], num_splits: int, seed: int) -> dict[str, dict]:
    """Return the mean and standard deviation of both distances over random halves; `stems` are of generated images."""
    count = len(sets[REAL])
    found: dict[str, dict[str, list[float]]] = {title: {"frechet": [], "kernel": []} for title in sets}
    scenes = sorted(set(stems))
    for split in range(num_splits):
        order = np.random.default_rng([seed, split]).permutation(count)
        reference, others = order[: count // 2], order[count // 2 : 2 * (count // 2)]
        first_of = {stem: index for index, stem in reversed([*enumerate(stems)])}
        for title, features in sets.items():
            rows = others
            if title == GENERATED:
                rows = [first_of[scenes[index]] for index in others]
            elif title == TRAINING:
                rows = np.random.default_rng([seed, split]).choice(len(features), len(others), replace=False)
            photos, images = sets[REAL][reference], features[rows]
            distances = frechet_distances(images[:, None], photos, torch.ones(1, len(images)))
            found[title]["frechet"].append(distances.item())
            found[title]["kernel"].append(kid(photos, images, seed=seed).mean)
    return {
        title: {
            key: {"mean": statistics.mean(values), "std": statistics.stdev(values)} for key, values in measured.items()
        }
        for title, measured in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="prepared folder with val and train")
    parser.add_argument("--generated", required=True, help="images of the masks of val, as `generate` writes them")
    parser.add_argument("--features", nargs="+", default=list(FEATURES), help="as of `evaluate`")
    parser.add_argument("--num_splits", type=int, default=5, help="random halves (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="results.json of `evaluate` of these images, to record with them")
    parser.add_argument("--output", type=Path, default=Path("distances.json"))
    args = parser.parse_args()

    val, train = (load_pairs(args.dataset, split) for split in ("val", "train"))
    generated = generated_images(args.generated, val)
    if set(generated.stems) != set(val.stems):
        raise SystemExit(
            f"error: --generated '{args.generated}' needs an image of each of the {len(val)} masks of val."
        )
    networks = {}
    for name in args.features:
        networks[name] = compare(features_of(name, val, train, generated), generated.stems, args.num_splits, args.seed)
        print(f"\n| compared with half of the real images | Fréchet distance ({name}) | kernel distance ({name}) |")
        print("|---|---:|---:|")
        for title, measured in networks[name].items():
            cells = (f"{measured[key]['mean']:.3g} ± {measured[key]['std']:.2g}" for key in ("frechet", "kernel"))
            print(f"| {title} | {' | '.join(cells)} |", flush=True)
    record = {
        "dataset": Path(args.dataset).name,
        "resolution": list(val.resolution),
        "num_real": len(val),
        "num_generated": len(generated),
        "images_per_set": len(val) // 2,
        "num_splits": args.num_splits,
        "seed": args.seed,
        "versions": versions("torch", "torchmetrics"),
        "networks": networks,
    }
    if args.results is not None:
        results = read_json(args.results)
        own = results["settings"]["segmenter"]
        record["evaluation"] = [each for each in results["fidelity"] if each["features"]["name"] != own]
        names = ("model", "revision", "scheduler", "num_inference_steps", "guidance_scale", "seed")
        record["generation"] = {name: results["generation"][name] for name in names}
    write_json(args.output, record)
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
