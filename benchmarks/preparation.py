"""What preparing a dataset and reading it in training cost: the way of the paper's authors against this package's.

Both work on the same files, in one run and one process, item by item in turns; what counts is the time of the
processor. Street scenes are drawn and saved as JPEGs of 1280 x 720, their masks traced into polygons as BDD100K has
them (Scalabel's JSON); or --source names BDD100K itself.

Reading: the authors open a JPEG and an RGB mask of 128 x 128 and compare each colour of the map with every pixel into
one-hot floats; this package opens two PNGs by `load_pairs` the first time, and keeps them decoded.

Preparing: the authors decode the photo whole, crop and resize it, and paint polygons into an RGB mask; timed as their
script does it (vertices scaled, painted at 128 x 128), and with the mask painted at full size, cropped and resized.
Their code is not used: it is rewritten from what it does. It paints with Pillow, which is faster than scikit-image
that their script uses; where that is installed, it is timed too. Prints a table and writes JSON.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import make_split
from semseg_diffusers.data.labels import CITYSCAPES, PAPER, PAPER_NAMES
from semseg_diffusers.data.prepare import PrepareSettings, make_pair, prepare_dataset
from semseg_diffusers.data.readers import read_source
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.utils.files import write_json


FRAME = (720, 1280)  # height and width, BDD100K's
DRAWN = (180, 320)  # the size at which scenes are drawn; a quarter, whose pixels become curves and corners
# Noise and quality make files of about 100 KB, as much to decode as BDD100K's: its 10,000 photos and their labels were
# one archive of 1.3 GB (github.com/mseg-dataset/mseg-api, issue 26), 0.3 GB of it labels.
QUALITY = 77
CROP, SIZE = 720, 128  # the paper's: centre crop, then resize
WAYS = {
    "full_size": "authors, mask at full size, then resized",
    "full_size_skimage": "the same with scikit-image",
    "script": "authors' script",
    "script_skimage": "the same with scikit-image",
    "ours": "ours",
}


# The files ---------------------------------------------------------------------------------------------------------


def write_scenes(root: Path, count: int) -> None:
    """Photos and polygons in BDD100K's layout."""
    frames = []
    for seed in range(count):
        photo, ids, *_ = draw_scene(seed=seed, size=DRAWN)
        noise = np.random.default_rng(seed).normal(0, 6, (*FRAME, 3))
        large = np.asarray(photo.resize(FRAME[::-1], Image.Resampling.BICUBIC)) + noise
        path = root / "images" / "10k" / "train" / f"scene{seed:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        frames.append({"name": path.name, "labels": trace(ids)})
    target = root / "labels" / "sem_seg" / "polygons" / "sem_seg_train.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(frames))


def trace(ids: np.ndarray) -> list[dict]:
    """Polygons around the regions of each class, large ones first, at the size of the frame."""
    names, scale = list(CITYSCAPES), FRAME[0] // ids.shape[0]
    labels = []
    for class_id in np.unique(ids[ids < len(names)]):
        for outline in outlines(ids == class_id):
            vertices = (np.array(outline) * scale).tolist()
            following = vertices[1:] + vertices[:1]
            area = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(vertices, following, strict=True)))
            label = {"category": names[class_id], "poly2d": [{"vertices": vertices, "types": "L" * len(vertices)}]}
            labels.append((area, label))
    return [label for _, label in sorted(labels, key=lambda entry: -entry[0])]


def outlines(inside: np.ndarray) -> list[list[tuple[int, int]]]:
    """The outer and inner borders of a region, as corners (x, y) of pixels; borders run clockwise."""
    padded = np.pad(inside, 1)
    follow: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in np.argwhere(padded[1:-1, 1:-1]):
        for beside, start, end in (
            (padded[y, x + 1], (x, y), (x + 1, y)),
            (padded[y + 1, x + 2], (x + 1, y), (x + 1, y + 1)),
            (padded[y + 2, x + 1], (x + 1, y + 1), (x, y + 1)),
            (padded[y + 1, x], (x, y + 1), (x, y)),
        ):
            if not beside:
                follow.setdefault(start, []).append(end)
    found = []
    while follow:
        first = point = next(iter(follow))
        border = []
        while True:
            border.append(point)
            ends = follow[point]
            point = ends.pop()
            if not ends:
                del follow[border[-1]]
            if point == first:
                break
        around = zip(border[-1:] + border[:-1], border, border[1:] + border[:1], strict=True)
        # a point in the middle of a straight line is no corner
        corners = [b for a, b, c in around if a[0] + c[0] != 2 * b[0] or a[1] + c[1] != 2 * b[1]]
        found.append(corners)
    return found


# The authors' way --------------------------------------------------------------------------------------------------


def authors_photo(source: Path, target: Path) -> None:
    with Image.open(source) as photo:
        left, top = (photo.width - CROP) / 2, (photo.height - CROP) / 2
        crop = photo.crop((left, top, left + CROP, top + CROP))
        crop.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(target)


def paint_with_pillow(mask: np.ndarray, vertices: np.ndarray, value: int) -> np.ndarray:
    picture = Image.fromarray(mask)
    ImageDraw.Draw(picture).polygon(vertices.ravel().tolist(), fill=value)
    return np.asarray(picture)


def paint_with_skimage(mask: np.ndarray, vertices: np.ndarray, value: int) -> np.ndarray:
    from skimage.draw import polygon  # not among our dependencies

    rows, columns = polygon(vertices[:, 1], vertices[:, 0], mask.shape)
    mask[rows, columns] = value
    return mask


def authors_pair(frame: dict, images: Path, output: Path, full_size: bool, paint: Callable) -> None:
    """One pair: polygons in the order of the file, painted into a mask of indices, then coloured.

    With `full_size` the mask is painted and coloured at the size of the frame, cropped and resized.
    """
    stem = frame["name"][:-4]
    authors_photo(images / frame["name"], output / "images" / f"{stem}.jpg")
    colors = np.array(list(PAPER.values()), dtype=np.int32)
    left = (FRAME[1] - CROP) / 2
    mask = np.zeros(FRAME if full_size else (SIZE, SIZE), dtype=np.uint8)
    for label in frame["labels"]:
        if label["category"] not in PAPER_NAMES:
            continue
        for outline in label["poly2d"]:
            vertices = np.array(outline["vertices"], dtype=float)
            if not full_size:
                vertices = np.clip((vertices - (left, 0)) * (SIZE / CROP), 0, SIZE - 1)
            mask = paint(mask, vertices, PAPER_NAMES.index(label["category"]))
    picture = Image.fromarray(colors[mask].astype(np.uint8))
    if full_size:
        picture = picture.crop((left, 0, left + CROP, CROP)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    picture.save(output / "semsegs" / f"{stem}.png")


def authors_item(folder: Path, stem: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One training item: the photo in [-1, 1], and a one-hot float for each pixel and class."""
    image = np.array(Image.open(folder / "images" / f"{stem}.jpg").convert("RGB"))
    photo = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1  # (3, H, W)
    mask = np.array(Image.open(folder / "semsegs" / f"{stem}.png"))
    one_hot = np.zeros((*mask.shape[:2], len(PAPER)), dtype=np.int8)
    for i, color in enumerate(PAPER.values()):
        one_hot[:, :, i] = np.all(mask == color, axis=-1)
    return photo, torch.tensor(one_hot).float().permute(2, 0, 1)


# Timing ------------------------------------------------------------------------------------------------------------


def time_by_turns(ways: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, float]:
    """Median seconds an item of each way; the ways take turns item by item."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    for _ in range(repeats):
        for index in range(count):
            for name, way in ways.items():
                start = time.process_time()
                way(index)
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_preparation(root: Path, work: Path, repeats: int) -> dict[str, float]:
    """Seconds a pair of each way of preparing."""
    images = root / "images" / "10k" / "train"
    frames = json.loads((root / "labels" / "sem_seg" / "polygons" / "sem_seg_train.json").read_text())
    source = read_source(root, "bdd100k")
    pairs = list(source.pairs)
    make_split(work / "ours", "train")
    for name in ("published", "full"):
        for part in ("images", "semsegs"):
            (work / name / part).mkdir(parents=True)
    settings = PrepareSettings(source=str(root), output=str(work / "ours"), resolution=(SIZE, SIZE))
    ours = partial(make_pair, folder=work / "ours", source=source, settings=settings)
    full, published = (partial(authors_pair, images=images, full_size=whole) for whole in (True, False))
    ways = {
        "full_size": lambda i: full(frames[i], output=work / "full", paint=paint_with_pillow),
        "script": lambda i: published(frames[i], output=work / "published", paint=paint_with_pillow),
        "ours": lambda i: ours(pairs[i]),
    }
    if find_spec("skimage"):
        ways["full_size_skimage"] = lambda i: full(frames[i], output=work / "full", paint=paint_with_skimage)
        ways["script_skimage"] = lambda i: published(frames[i], output=work / "published", paint=paint_with_skimage)
    return time_by_turns(ways, len(pairs), repeats)


def compare_reading(root: Path, work: Path, repeats: int) -> dict[str, float]:
    """Seconds an item of each way of reading, after `compare_preparation`."""
    prepare_dataset(PrepareSettings(source=str(root), output=str(work / "prepared"), format="bdd100k"))
    first, later = (load_pairs(work / "prepared", cache_dir=work / "cache") for _ in range(2))
    later.keep_decoded(10**9)
    for index in range(len(later)):
        later[index]
    ways = {
        "authors": lambda i: authors_item(work / "published", first.stems[i]),
        "ours_first": lambda i: first[i],
        "ours_later": lambda i: later[i],
    }
    return time_by_turns(ways, len(first), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24, help="pairs that are drawn (default 24)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each pair is made and read (default 5)")
    parser.add_argument("--source", type=Path, help="BDD100K with polygons, in place of drawn scenes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/preparation.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="preparation-"))
    try:
        root = args.source or work / "scenes"
        if args.source is None:
            write_scenes(root, args.scenes)
        preparing = compare_preparation(root, work, args.repeats)
        reading = compare_reading(root, work, args.repeats)
        source = read_source(root, "bdd100k")
        polygons = statistics.mean(len(pair.mask.regions) for pair in source.pairs)
        vertices = statistics.mean(sum(len(p.vertices) for p in pair.mask.regions) for pair in source.pairs)
        kilobytes = statistics.mean(os.path.getsize(pair.image) / 1024 for pair in source.pairs)
    finally:
        shutil.rmtree(work)
    ratios = {
        "reading_first": reading["authors"] / reading["ours_first"],
        "reading_later": reading["authors"] / reading["ours_later"],
        **{f"preparing_{way}": seconds / preparing["ours"] for way, seconds in preparing.items() if way != "ours"},
    }
    print("| step | way | ms | ours is so many times faster |")
    print("|---|---|---|---|")
    print(f"| read an item | authors | {1000 * reading['authors']:.1f} | |")
    for when, times in (("first", "the first time"), ("later", "from then on")):
        milliseconds, ratio = 1000 * reading[f"ours_{when}"], ratios[f"reading_{when}"]
        print(f"| read an item | ours, {times} | {milliseconds:.3f} | {ratio:.1f} |")
    for way, words in WAYS.items():
        if way in preparing:
            ratio = f"{ratios[f'preparing_{way}']:.1f}" if way != "ours" else ""
            print(f"| prepare a pair | {words} | {1000 * preparing[way]:.1f} | {ratio} |")
    results = {
        "seconds": {"reading": reading, "preparing": preparing},
        "ratios": ratios,
        "pairs": {"polygons": polygons, "vertices": vertices, "photo_kilobytes": kilobytes, "frame": list(FRAME)},
        "resolution": [SIZE, SIZE],
        "num_threads": 1,
        "settings": {"scenes": args.scenes, "repeats": args.repeats, "source": str(args.source or "drawn")},
        "machine": platform.machine(),
        "versions": {"pillow": PIL.__version__, "numpy": np.__version__, "torch": torch.__version__},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, results)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
