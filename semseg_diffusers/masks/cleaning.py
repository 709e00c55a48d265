"""Turn hand-painted masks into masks that `generate` takes: any editor's PNG or JPEG, in the label set's colours.

  semseg-diffusers labels --preset camvid --output legend          # the colours to paint with
  semseg-diffusers clean --masks painted --labels camvid --output cleaned
  semseg-diffusers generate --model runs/camvid128 --masks cleaned/masks --output new

Blends of soft brushes, resizing and JPEG get the class of what is around them; pixels that have exactly a class's
colour are never changed; transparent ones are unknown, which leaves them to the model. `clean.json` and `guessed.png`
say what was guessed. A picture with too many colours of no class is refused: it is a photo, or of another label set,
or a part of it was left unpainted.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.mask_files import find_masks, labels_of_masks, new_output
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.pipelines.mask_inputs import open_image, pack_colors, palette_agrees, unpack_colors
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.utils.images import image_grid, save_png


# Euclidean distances in RGB (0 to 441).
PLAIN = 16.0  # most of a painting is this near to a colour, as JPEG; hardly anything of a photo is
SURE = 40.0  # a pixel this near to a colour is that class, if most around it are; JPEG at quality 85 stays below
OWN = 60.0  # a pixel this near may be a class that nothing around it is: a pole one pixel wide
MARGIN = 20.0  # for that its colour must lie nearer than any blend of the classes near it, by this much
STRANGE = 60.0  # a pixel farther from every class, and from every blend of those near it, is of no class
REACH = 4  # pixels; so far from a pixel the classes stand that it may be a blend of: a seam is some pixels wide
VOTES = 5  # of the 9 pixels around a sure one, itself among them, have its class as the nearest
MINORITY = 2  # a guessed pixel with at most so many of its class among the 9 takes that of most of them


@dataclass(frozen=True)
class Cleaned:
    """A painted mask as class ids, and what was guessed of it."""

    ids: np.ndarray  # (H, W) uint8
    exact: np.ndarray  # (H, W) bool: pixels that have the colour of a class, or of unknown
    guessed: np.ndarray  # (H, W) bool: pixels whose class was not that of their colour, but told by those around them
    strange: np.ndarray  # (H, W) bool: those of them whose colour no blend of classes explains
    specks: np.ndarray  # (H, W) bool: those of them that were in a speck
    plain_share: float  # of the pixels that are near the colour of a class: under a half it is no painting
    colors: dict[tuple[int, int, int], int]  # colours that no class has -> pixels, the most frequent first


def clean_painting(picture: Image.Image, labels: LabelSet, min_area: int = 8, source: str | None = None) -> Cleaned:
    """Read a painted mask.

    1. A pixel with exactly the colour of a class, or of unknown, is it.
    2. One near a colour is that class where most pixels around have the same nearest colour.
    3. The others are decided from there outwards: a pixel takes the nearest in colour of the classes near it, or
       another class if its colour lies much nearer to that than to any blend of those.
    4. A majority filter takes single pixels back, and regions under `min_area` pixels become what is around them;
       both where no colour was exact.

    Args:
        picture (`PIL.Image.Image`): RGB, with or without transparency (unknown), or whatever `LabelSet.encode` reads
            as ids, which then come back as they are.
        labels (`LabelSet`): the colorbook.
        min_area (`int`, defaults to 8): specks smaller than this, in pixels, are removed; 0 and 1 keep them.
        source (`str`, *optional*): what messages call the picture.

    Returns:
        `Cleaned`

    Raises:
        ValueError: the picture holds ids out of range.
    """
    picture = ImageOps.exif_transpose(picture)
    if _holds_ids(picture, labels):
        ids = labels.encode(picture, source=source)
        nothing = np.zeros(ids.shape, dtype=bool)
        return Cleaned(ids, ~nothing, nothing, nothing, nothing, 1.0, {})
    over = Image.new("RGBA", picture.size, (*labels.ignore_color, 255))
    rgb = np.asarray(Image.alpha_composite(over, picture.convert("RGBA")).convert("RGB"))  # (H, W, 3)

    table = np.array([*labels.colors, labels.ignore_color], dtype=np.float32)  # (N, 3), the last is unknown
    found, inverse, counts = np.unique(pack_colors(rgb), return_inverse=True, return_counts=True)
    inverse = inverse.reshape(rgb.shape[:2])
    distances = np.linalg.norm(unpack_colors(found)[:, None] - table, axis=-1)  # (colours found, N)
    nearest, distance = distances.argmin(axis=1)[inverse], distances.min(axis=1)[inverse]  # (H, W)
    exact = distance == 0
    sure = exact | ((distance <= SURE) & (_votes(nearest) >= VOTES))

    classes, blend = _grow(np.where(sure, nearest, -1), rgb, distances, inverse, table)
    classes = np.where(~exact & (_votes(classes) <= MINORITY), _most_around(classes), classes)
    classes, specks = _without_specks(classes, exact, min_area)
    ids = np.where(classes == labels.num_classes, labels.ignore_index, classes).astype(np.uint8)
    strange = ~sure & (np.minimum(blend, distance) > STRANGE)
    order = [k for k in np.argsort(-counts, kind="stable") if distances[k].min() > 0]
    colors = {tuple(unpack_colors(found[k]).tolist()): int(counts[k]) for k in order}
    guessed = ~sure | (classes != nearest)
    return Cleaned(ids, exact, guessed, strange, specks, float((distance <= PLAIN).mean()), colors)


def _holds_ids(picture: Image.Image, labels: LabelSet) -> bool:
    """Whether the picture is class ids rather than colours, as `read_mask` tells them apart."""
    if picture.mode == "P" and "transparency" not in picture.info:
        return palette_agrees(picture, labels.num_classes, labels.colors, labels.ignore_index)
    return picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16")


def _around(classes: np.ndarray) -> np.ndarray:
    """Each pixel's 9 surroundings, itself among them: (9, H, W); -1 outside the frame."""
    height, width = classes.shape
    padded = np.pad(classes, 1, constant_values=-1)
    return np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])


def _votes(classes: np.ndarray) -> np.ndarray:
    """How many of the 9 pixels around have the class of the middle one, as if the frame went on beyond its edge."""
    height, width = classes.shape
    padded = np.pad(classes, 1, mode="edge")
    return sum((padded[y : y + height, x : x + width] == classes).astype(np.int8) for y in range(3) for x in range(3))


def _most_around(classes: np.ndarray) -> np.ndarray:
    """The class that most of the 9 pixels around have; of several the one that stands first. -1 does not count."""
    views = _around(classes)
    votes = np.stack([((views == view) & (view >= 0)).sum(axis=0) for view in views])
    return np.take_along_axis(views, votes.argmax(axis=0)[None], axis=0)[0]


def _grow(
    classes: np.ndarray, rgb: np.ndarray, distances: np.ndarray, inverse: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide open pixels (-1) from the decided ones around them, ring by ring.

    Args:
        classes (`np.ndarray`): (H, W), -1 where open.
        rgb (`np.ndarray`): (H, W, 3) uint8.
        distances (`np.ndarray`): (U, N) of each colour of the picture to each of the table.
        inverse (`np.ndarray`): (H, W), which of the U colours a pixel has.
        table (`np.ndarray`): (N, 3).

    Returns:
        classes (H, W), and how far each open pixel's colour was from the classes around it and their blends.
    """
    classes, blend = classes.copy(), np.full(classes.shape, np.inf, dtype=np.float32)
    while True:
        rows, columns = np.nonzero((classes < 0) & (_around(classes) >= 0).any(axis=0))
        if not len(rows):
            break
        near = _near(classes, rows, columns, len(table))  # (N, P)
        to_each = distances[inverse[rows, columns]].T  # (N, P)
        best = np.where(near, to_each, np.inf).argmin(axis=0)
        to_blend = _distance_to_blends(rgb[rows, columns].astype(np.float32), near, to_each, table)
        own = to_each.argmin(axis=0)
        to_own = to_each.min(axis=0)
        classes[rows, columns] = np.where((to_own <= OWN) & (to_own + MARGIN < to_blend), own, best)
        blend[rows, columns] = to_blend
    left = classes < 0  # nothing in the picture was sure
    classes[left] = distances.argmin(axis=1)[inverse[left]]
    return classes, blend


def _near(classes: np.ndarray, rows: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
    """Which classes stand within `REACH` of P pixels: (count, P) bool."""
    padded = np.pad(classes, REACH, constant_values=-1)
    near = np.zeros((count + 1, len(rows)), dtype=bool)  # the last row takes what is open
    for y in range(2 * REACH + 1):
        for x in range(2 * REACH + 1):
            near[padded[rows + y, columns + x], np.arange(len(rows))] = True
    return near[:-1]


def _distance_to_blends(colors: np.ndarray, near: np.ndarray, to_each: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Distance of P colours (P, 3) to the nearest class near them, or blend of two of those: (P,)."""
    shortest = np.where(near, to_each, np.inf).min(axis=0).astype(np.float32)
    for i, first in enumerate(table):
        for j in range(i + 1, len(table)):
            both = np.flatnonzero(near[i] & near[j])
            if not len(both):
                continue
            line = table[j] - first
            along = np.clip((colors[both] - first) @ line / (line @ line), 0, 1)
            away = np.linalg.norm(colors[both] - first - along[:, None] * line, axis=1)
            shortest[both] = np.minimum(shortest[both], away)
    return shortest


def _without_specks(classes: np.ndarray, exact: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray]:
    """Give regions under `min_area` pixels without an exact one the class of most around them; and say which."""
    regions = find_objects(classes, ignore_index=-1)
    small = np.concatenate([[False], regions.sizes < min_area])
    small[np.unique(regions.numbers[exact])] = False
    specks = small[regions.numbers]
    if specks.all():
        return classes, np.zeros_like(specks)
    classes = np.where(specks, -1, classes)
    while (classes < 0).any():
        classes = np.where(classes < 0, _most_around(classes), classes)
    return classes, specks


ROWS = 16  # masks on guessed.png
LEAST_PLAIN = 0.5  # share of a painting that is near the colours of classes
CELL = 512  # pixels; larger paintings are shown smaller
NAMED_COLORS = 20  # colours of a mask in clean.json
MARK, STRANGE_MARK = (255, 0, 255), (255, 140, 0)  # guessed pixels on guessed.png, and those of no class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", required=True, metavar="FILE|DIR", help="painted mask, or folder of them")
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"their colours: {', '.join(PRESET_NAMES)}, or a JSON file (default: {LABELS_FILE} near the masks)",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make: masks/, clean.json, guessed.png"
    )
    parser.add_argument(
        "--min_area", type=int, default=8, help="specks under so many pixels are removed (default %(default)s)"
    )
    parser.add_argument(
        "--max_strange",
        type=float,
        default=0.05,
        help="share of pixels of no class from which on a picture is refused (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    if args.min_area < 0 or not 0 <= args.max_strange <= 1:
        raise ValueError(
            f"--min_area {args.min_area} --max_strange {args.max_strange}; wanted 0 or more, and a share from 0 to 1."
        )
    paths, labels = find_masks(args.masks), labels_of_masks(args.masks, args.labels)
    with new_output(args.output) as folder:
        (folder / "masks").mkdir()
        rows, notes = [], []
        for path in paths:
            picture = open_image(path)
            cleaned = clean_painting(picture, labels, args.min_area, source=str(path))
            if cleaned.strange.mean() > args.max_strange or cleaned.plain_share < LEAST_PLAIN:
                raise ValueError(_refusal(path, cleaned, args.max_strange))
            labels.decode(cleaned.ids).save(folder / "masks" / f"{path.stem}.png")
            notes.append(_note(path, cleaned, labels))
            if len(rows) < ROWS:
                shown = [picture.convert("RGB"), labels.decode(cleaned.ids), show_guesses(cleaned)]
                rows.append([_fitted(image) for image in shown])
        names = [path.stem for path in paths[:ROWS]]
        save_png(folder / "guessed.png", image_grid(rows, ["painted", "cleaned", "guessed"], names, cell_size=192))
        labels.save_json(folder / LABELS_FILE)
        record = {"min_area": args.min_area, "max_strange": args.max_strange, "masks": notes}
        write_text(folder / "clean.json", json.dumps(record, indent=2) + "\n")
    exact, guessed = (np.mean([note[f"{what}_share"] for note in notes]) for what in ("exact", "guessed"))
    sys.stdout.write(
        f"{len(notes)} mask(s): {exact:.1%} of the pixels have exactly a class's colour, {guessed:.1%} were told by "
        f"those around them; look at {Path(args.output) / 'guessed.png'}. Next: semseg-diffusers generate --masks "
        f"{Path(args.output) / 'masks'}\n"
    )


def _note(path: Path, cleaned: Cleaned, labels: LabelSet) -> dict:
    """What `clean.json` says of a mask."""
    names = {**labels.id2label, labels.ignore_index: "unknown"}
    ids, counts = np.unique(cleaned.ids, return_counts=True)
    return {
        "mask": str(path),
        "output": f"masks/{path.stem}.png",
        "exact_share": float(cleaned.exact.mean()),
        "guessed_share": float(cleaned.guessed.mean()),
        "strange_share": float(cleaned.strange.mean()),
        "speck_pixels": int(cleaned.specks.sum()),
        "classes": {names[i]: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True)},
        "colors": [{"color": list(color), "pixels": n} for color, n in list(cleaned.colors.items())[:NAMED_COLORS]],
        "num_colors": len(cleaned.colors),
    }


def _refusal(path: Path, cleaned: Cleaned, most: float) -> str:
    named = ", ".join(f"{color} in {count} pixels" for color, count in list(cleaned.colors.items())[:3])
    if cleaned.plain_share < LEAST_PLAIN:
        found = f"only {cleaned.plain_share:.0%} of its pixels are near the colour of a class"
        asked = "Is it a photo, or painted in the colours of another label set?"
    else:
        found = (
            f"{cleaned.strange.mean():.0%} of its pixels have colours of no class, more than --max_strange {most:g}"
        )
        asked = "Was a part left unpainted? Paint it, in the colour of unknown where the model is to choose."
    legend = "The colours: semseg-diffusers labels."
    return f"mask '{path}': {found}; the most frequent such colours are {named}. {asked} {legend}"


def show_guesses(cleaned: Cleaned) -> Image.Image:
    """Guessed pixels marked on the cleaned mask in grey: P mode, so that it is shown with hard edges."""
    grey = np.arange(256, dtype=np.uint8) // 2 + 100
    shown = np.minimum(cleaned.ids, 19) * 6  # neighbouring classes differ in grey
    shown[cleaned.guessed], shown[cleaned.strange] = 254, 255
    picture = Image.fromarray(shown.astype(np.uint8))
    palette = np.stack([grey] * 3, axis=1)
    palette[254], palette[255] = MARK, STRANGE_MARK
    picture.putpalette(palette.astype(np.uint8).tobytes())
    return picture


def _fitted(image: Image.Image) -> Image.Image:
    """A picture no larger than a cell of the report may be."""
    scale = min(1.0, CELL / max(image.size))
    how = Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
