"""Miniatures of public driving datasets in their real layouts, with the real names and ids, and their preparation."""

import json
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (36, 64)  # height and width, BDD100K's aspect


def ids_of(seed: int, count: int = 19, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Blocks of class ids, some of them unknown."""
    blocks = np.random.default_rng(seed).integers(0, count + 1, (size[0] // 4, size[1] // 4)).astype(np.uint8)
    blocks[blocks == count] = 255
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_photo(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    return save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8))


def save_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def bdd100k(root: Path, masks: bool = True) -> Path:
    """Two photos for training, one for validation, one test photo without mask."""
    for seed, (split, stem) in enumerate((("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"))):
        save_photo(root / "images" / "10k" / split / f"{stem}.jpg", seed)
        if masks and split != "test":
            save(root / "labels" / "sem_seg" / "masks" / split / f"{stem}.png", ids_of(seed))
            save(root / "labels" / "sem_seg" / "colormaps" / split / f"{stem}.png", ids_of(seed))
    return root


def rectangle(category: str, left: int, top: int, right: int, bottom: int) -> dict:
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"id": "1", "category": category, "poly2d": [{"vertices": corners, "types": "LLLL", "closed": True}]}


def bdd100k_polygons(root: Path) -> Path:
    """Polygons for the three labelled photos: road below sky, a car over both, a parking sign that is no class."""
    for split, stems in (("train", "ab"), ("val", "c")):
        labels = [
            rectangle("sky", 0, 0, 64, 20),
            rectangle("road", 0, 20, 64, 36),
            rectangle("car", 10, 10, 30, 30),
            rectangle("parking sign", 40, 0, 44, 4),
        ]
        frames = [{"name": f"{stem}.jpg", "labels": labels} for stem in stems]
        save_json(root / "labels" / "sem_seg" / "polygons" / f"sem_seg_{split}.json", frames)
    return root


def detection_labels(root: Path, files: dict[str, dict[str, dict]]) -> Path:
    """Label files of the detection task: path -> name of the image -> attributes."""
    for path, frames in files.items():
        content = [{"name": name, "attributes": attributes, "labels": []} for name, attributes in frames.items()]
        save_json(root / path, content)
    return root


def cityscapes(root: Path, kind: str = "labelIds") -> Path:
    """Two cities for training, one for validation; the masks of the test split are blank."""
    stems = (
        ("train", "aachen_000000_000019"),
        ("train", "zurich_000001_000019"),
        ("val", "munster_000002_000019"),
        ("test", "berlin_000003_000019"),
    )
    for seed, (split, stem) in enumerate(stems):
        city = stem.split("_")[0]
        save_photo(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", seed)
        ids = ids_of(seed, 34 if kind == "labelIds" else 19) if split != "test" else np.zeros(SIZE, np.uint8)
        for ending in (kind, "instanceIds", "color"):
            save(root / "gtFine" / split / city / f"{stem}_gtFine_{ending}.png", ids)
        save_json(root / "gtFine" / split / city / f"{stem}_gtFine_polygons.json", {})
    return root


def zip_folder(folder: Path, archive: Path, top: str = "") -> Path:
    """Pack a folder as the publishers do, under a folder of its own or none."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{top}{path.relative_to(folder)}")
    return archive


def prepare(source: Path, output: Path, **settings):
    """Prepare a source, at its native resolution by default; return the report and the pairs of each split."""
    from semseg_diffusers.data.dataset import load_pairs
    from semseg_diffusers.data.prepare import prepare_dataset
    from semseg_diffusers.data.settings import PrepareSettings

    settings = {"resolution": None, **settings}
    report = prepare_dataset(PrepareSettings(source=str(source), output=str(output), **settings))
    cache = output.parent / "cache of pairs"
    return report, {split: load_pairs(output, split, cache_dir=cache) for split in report.splits}


def all_bytes(folder: Path, without: Collection[str] = ()) -> dict[str, bytes]:
    """Return the content of all files by path; those of some names left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
