"""Generated folders that the tests of the filter share: scenes of `evaluation_place`, some with wrong labels."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.evaluation_place import LABELS, SEEN, SIZE


POLE = LABELS.names.index("pole")  # a class in no real image
GENERATION = {
    "model": "runs/model",
    "revision": "sha256:0123456789abcdef",
    "scheduler": "DDIMScheduler",
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "guidance_start": 0.0,
    "guidance_stop": 1.0,
    "seed": 0,
    "height": SIZE,
    "width": SIZE,
    "dtype": "float32",
    "versions": {"torch": "2"},
}


def draw_ids(seed: int) -> np.ndarray:
    """Return ids of blocks as in real images, (SIZE, SIZE)."""
    blocks = np.random.default_rng(seed).integers(0, SEEN, (4, 4), dtype=np.uint8)
    return blocks.repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)


def draw_photo(ids: np.ndarray, seed: int) -> Image.Image:
    """Return the image of ids, as `evaluation_place` makes them."""
    noise = np.random.default_rng([9, seed]).integers(-9, 10, (*ids.shape, 3))
    return Image.fromarray((np.asarray(LABELS.colors, np.int64)[ids] + noise).clip(0, 255).astype(np.uint8))


def shifted(ids: np.ndarray) -> np.ndarray:
    """Return the scene with its upper left block, a car here, moved one block to the right."""
    moved = ids.copy()
    block = SIZE // 4
    moved[:block, block : 2 * block], moved[:block, :block] = 2, 0
    return moved


def with_car(seed: int) -> np.ndarray:
    """Return a scene with a car in its upper left block, and road to the right of it."""
    ids, block = draw_ids(seed), SIZE // 4
    ids[:block, :block], ids[:block, block : 2 * block] = 2, 0
    return ids


def add_image(folder: Path, stem: str, index: int, ids: np.ndarray, photo: Image.Image, **more) -> None:
    """Add an image to a folder as `generate` writes it; the folder is created if necessary."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if not (folder / "generation.json").is_file():
        (folder / "generation.json").write_text(json.dumps(GENERATION))
        LABELS.save_json(folder / "labels.json")
    row = {
        "image_file_name": f"images/{stem}_{index}.png",
        "mask_file_name": f"masks/{stem}_{index}.png",
        "stem": stem,
        "index": index,
        "model": GENERATION["model"],
        "seed": index,
        "synthetic": True,
        **more,
    }
    photo.save(folder / row["image_file_name"])
    LABELS.decode(ids).save(folder / row["mask_file_name"])
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def generated_folder(folder: Path) -> Path:
    """Write four correct scenes of two images each, `wrong_0` with another mask, and `moved_0` with a shifted car."""
    for seed in range(4):
        for index in range(2):
            add_image(folder, f"good{seed}", index, draw_ids(seed), draw_photo(draw_ids(seed), 10 * seed + index))
    add_image(folder, "wrong", 0, draw_ids(50), draw_photo((draw_ids(50) + 1) % SEEN, 50))
    add_image(folder, "moved", 0, with_car(60), draw_photo(shifted(with_car(60)), 60))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file in a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
