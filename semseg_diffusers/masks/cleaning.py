"""Turn hand-painted masks into masks of exact class colours; see `CleanSettings` for the command."""

import itertools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps

from semseg_diffusers.data.dataset_format import find_masks, labels_of_masks, new_output
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.components import find_objects, most_frequent, neighbors
from semseg_diffusers.masks.output import write_changed
from semseg_diffusers.masks.settings import CleanSettings
from semseg_diffusers.pipelines.mask_inputs import open_image, pack_colors, unpack_colors
from semseg_diffusers.utils.files import write_json


# Euclidean distances in RGB (0 to 441).
PLAIN_COLOR_DISTANCE = 16.0  # most pixels of a painting are this close to a class colour, also after JPEG
SURE_COLOR_DISTANCE = 40.0  # such a pixel has that class if most around it do; JPEG at quality 85 stays below
OWN_COLOR_DISTANCE = 60.0  # such a pixel may have a class that nothing around it has: a pole one pixel wide
BLEND_MARGIN = 20.0  # by which its colour must then be closer than any blend of the classes around it
STRANGE_COLOR_DISTANCE = 60.0  # a pixel farther from every class and blend around it belongs to no class
BLEND_RADIUS = 4  # pixels; a pixel may be a blend of classes this close to it
MIN_VOTES = 5  # of the 9 pixels around a sure one, itself included, that share its nearest class
MAX_MINORITY = 2  # a guessed pixel with at most so many of its class among the 9 takes the majority's class

MIN_PLAIN_SHARE = 0.5  # share of plain pixels below which an image is not a painted mask
CELL = 512  # pixels; larger paintings are shown reduced
MAX_COLORS = 20  # colours of a mask in clean.json
MARK, STRANGE_MARK = (255, 0, 255), (255, 140, 0)  # guessed pixels on guessed.png, and those of no class


@dataclass(frozen=True)
class Cleaned:
    """A painted mask as class ids, and what was guessed."""

    ids: np.ndarray  # (H, W) uint8
    exact: np.ndarray  # (H, W) bool: pixels with the colour of a class or of unknown
    guessed: np.ndarray  # (H, W) bool: pixels whose class follows from their surroundings, not from their colour
    strange: np.ndarray  # (H, W) bool: guessed pixels whose colour no blend of classes explains
    specks: np.ndarray  # (H, W) bool: guessed pixels that were in a speck
    plain_share: float  # share of pixels close to a class colour: below a half it is no painting
    colors: dict[tuple[int, int, int], int]  # colours of no class -> pixels, the most frequent first


def clean_painting(image: Image.Image, labels: LabelSet, min_area: int = 8, source: str | None = None) -> Cleaned:
    """Read a painted mask.

    1. A pixel with exactly the colour of a class, or of unknown, has that class.
    2. One close to a colour has that class if most pixels around it have the same nearest colour.
    3. The others are decided from there outwards: a pixel takes the class near it with the nearest colour, or
       another class if its colour is much closer to that than to any blend of those.
    4. A majority filter removes single pixels, and regions under `min_area` pixels take the class around them;
       both only where no colour was exact.

    Args:
        image: RGB, with or without transparency (unknown), or class ids as `LabelSet.encode` reads them, which are
            returned unchanged.
        labels: the label set.
        min_area: specks smaller than this, in pixels, are removed; 0 and 1 keep them.
        source: name of the image in messages.

    Returns:
        `Cleaned`

    Raises:
        ValueError: If the image holds ids out of range.
    """
    image = ImageOps.exif_transpose(image)
    if _holds_ids(image, labels):
        ids = labels.encode(image, source=source)
        nothing = np.zeros(ids.shape, dtype=bool)
        return Cleaned(ids, ~nothing, nothing, nothing, nothing, 1.0, {})
    over = Image.new("RGBA", image.size, (*labels.ignore_color, 255))
    rgb = np.asarray(Image.alpha_composite(over, image.convert("RGBA")).convert("RGB"))  # (H, W, 3)

    table = np.array([*labels.colors, labels.ignore_color], dtype=np.float32)  # (N, 3), the last is unknown
    values, inverse, counts = np.unique(pack_colors(rgb), return_inverse=True, return_counts=True)
    inverse = inverse.reshape(rgb.shape[:2])
    distances = np.linalg.norm(unpack_colors(values)[:, None] - table, axis=-1)  # (U, N)
    nearest, distance = distances.argmin(axis=1)[inverse], distances.min(axis=1)[inverse]  # (H, W)
    exact = distance == 0
    sure = exact | ((distance <= SURE_COLOR_DISTANCE) & (_votes(nearest) >= MIN_VOTES))

    classes, blend = _grow(np.where(sure, nearest, -1), rgb, distances, inverse, table)
    classes = np.where(~exact & (_votes(classes) <= MAX_MINORITY), _most_around(classes), classes)
    classes, specks = _without_specks(classes, exact, min_area)
    ids = np.where(classes == labels.num_classes, labels.ignore_index, classes).astype(np.uint8)
    strange = ~sure & (np.minimum(blend, distance) > STRANGE_COLOR_DISTANCE)
    order = [k for k in np.argsort(-counts, kind="stable") if distances[k].min() > 0]
    colors = {tuple(unpack_colors(values[k]).tolist()): int(counts[k]) for k in order}
    guessed = ~sure | (classes != nearest)
    return Cleaned(ids, exact, guessed, strange, specks, float((distance <= PLAIN_COLOR_DISTANCE).mean()), colors)


def _holds_ids(image: Image.Image, labels: LabelSet) -> bool:
    """Return whether the image holds class ids rather than colours, by the rules of `read_mask`."""
    if image.mode == "P" and "transparency" in image.info:
        return False
    return labels.mask_values(image)[0] in ("ids", "red")


def _votes(classes: np.ndarray) -> np.ndarray:
    """Count the pixels among the 9 that have the class of the middle one; edges are replicated."""
    return (neighbors(classes) == classes).sum(axis=0)


def _most_around(classes: np.ndarray) -> np.ndarray:
    """Return the most frequent class of the 9 pixels, the first of several; open ones (-1) do not count."""
    around = neighbors(classes, outside=-1)
    return most_frequent(around, around)


def _grow(
    classes: np.ndarray, rgb: np.ndarray, distances: np.ndarray, inverse: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide open pixels (-1) from those around them, ring by ring; return also how far each is from any blend there.

    `distances` (U, N) are those of the image's colours to the table's (N, 3), `inverse` (H, W) the pixels' colours.
    """
    classes, blend = classes.copy(), np.full(classes.shape, np.inf, dtype=np.float32)
    side = 2 * BLEND_RADIUS + 1
    while True:
        rows, columns = np.nonzero((classes < 0) & (neighbors(classes, outside=-1) >= 0).any(axis=0))
        if not len(rows):
            break
        padded = np.pad(classes, BLEND_RADIUS, constant_values=-1)
        windows = sliding_window_view(padded, (side, side))[rows, columns].reshape(len(rows), -1)
        near = np.zeros((len(table) + 1, len(rows)), dtype=bool)  # which classes are around; the last is for open ones
        near[windows, np.arange(len(rows))[:, None]] = True
        near = near[:-1]  # (N, P)
        to_each = distances[inverse[rows, columns]].T  # (N, P)
        best = np.where(near, to_each, np.inf).argmin(axis=0)
        to_blend = _distance_to_blends(rgb[rows, columns].astype(np.float32), near, to_each, table)
        own, to_own = to_each.argmin(axis=0), to_each.min(axis=0)
        is_own = (to_own <= OWN_COLOR_DISTANCE) & (to_own + BLEND_MARGIN < to_blend)
        classes[rows, columns] = np.where(is_own, own, best)
        blend[rows, columns] = to_blend
    left = classes < 0  # no pixel of the image was sure
    classes[left] = distances.argmin(axis=1)[inverse[left]]
    return classes, blend


def _distance_to_blends(colors: np.ndarray, near: np.ndarray, to_each: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the distance of P colours (P, 3) to the nearest class around them, or blend of two of those: (P,)."""
    shortest = np.where(near, to_each, np.inf).min(axis=0).astype(np.float32)
    for i, j in itertools.combinations(range(len(table)), 2):
        both = np.flatnonzero(near[i] & near[j])
        if len(both):
            from_first, line = colors[both] - table[i], table[j] - table[i]
            along = np.clip(from_first @ line / (line @ line), 0, 1)
            away = np.linalg.norm(from_first - along[:, None] * line, axis=1)
            shortest[both] = np.minimum(shortest[both], away)
    return shortest


def _without_specks(classes: np.ndarray, exact: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray]:
    """Give regions under `min_area` pixels, none of them exact, the majority class around them; return both."""
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


def run(settings: CleanSettings) -> None:
    """Run `semseg-diffusers clean`."""
    paths, labels = find_masks(settings.masks), labels_of_masks(settings.masks, settings.labels)
    names = {**labels.id2label, labels.ignore_index: "unknown"}

    def change(path: Path) -> tuple[np.ndarray, dict[str, Any], list[Image.Image]]:
        image = open_image(path)
        cleaned = clean_painting(image, labels, settings.min_area, source=str(path))
        if cleaned.strange.mean() > settings.max_strange or cleaned.plain_share < MIN_PLAIN_SHARE:
            raise ValueError(_refusal(path, cleaned, settings.max_strange))
        shown = [image.convert("RGB"), labels.decode(cleaned.ids), show_guesses(cleaned)]
        for cell in shown:
            cell.thumbnail((CELL, CELL), Image.Resampling.NEAREST if cell.mode == "P" else Image.Resampling.LANCZOS)
        ids, counts = np.unique(cleaned.ids, return_counts=True)
        note = {
            "exact_share": float(cleaned.exact.mean()),
            "guessed_share": float(cleaned.guessed.mean()),
            "strange_share": float(cleaned.strange.mean()),
            "speck_pixels": int(cleaned.specks.sum()),
            "classes": {names[i]: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True)},
            "colors": [{"color": list(color), "pixels": n} for color, n in list(cleaned.colors.items())[:MAX_COLORS]],
            "num_colors": len(cleaned.colors),
        }
        return cleaned.ids, note, shown

    with new_output(settings.output) as folder:
        notes = write_changed(paths, labels, folder, change, "guessed.png", ["painted", "cleaned", "guessed"])
        record = {"min_area": settings.min_area, "max_strange": settings.max_strange, "masks": notes}
        write_json(folder / "clean.json", record)
    exact, guessed = (np.mean([note[f"{what}_share"] for note in notes]) for what in ("exact", "guessed"))
    sys.stdout.write(
        f"{len(notes)} mask(s): {exact:.1%} of the pixels have exactly a class's colour, {guessed:.1%} were guessed "
        f"from their surroundings; look at {Path(settings.output) / 'guessed.png'}. "
        f"Next: semseg-diffusers generate --masks {shlex.quote(str(Path(settings.output) / 'masks'))}\n"
    )


def _refusal(path: Path, cleaned: Cleaned, most: float) -> str:
    named = ", ".join(f"{color} in {count} pixels" for color, count in list(cleaned.colors.items())[:3])
    if cleaned.plain_share < MIN_PLAIN_SHARE:
        found = f"only {cleaned.plain_share:.0%} of its pixels are close to a class colour"
        hint = "Is it a photo, or painted in the colours of another label set?"
    else:
        share = cleaned.strange.mean()
        found = f"{share:.0%} of its pixels have colours of no class, more than --max_strange {most:g}"
        hint = "Is a part unpainted? Paint it, in the colour of unknown where the model should choose."
    hint += " See the colours with semseg-diffusers labels."
    return f"mask '{path}': {found}; the most frequent such colours are {named}. {hint}"


def show_guesses(cleaned: Cleaned) -> Image.Image:
    """Return the cleaned mask in grey with guessed pixels marked: P mode, so that it is shown with hard edges."""
    shown = np.minimum(cleaned.ids, 19) * 6  # neighbouring classes differ in grey
    shown[cleaned.guessed], shown[cleaned.strange] = 254, 255
    palette = (np.arange(256, dtype=np.uint8) // 2 + 100)[:, None].repeat(3, axis=1)
    palette[254], palette[255] = MARK, STRANGE_MARK
    image = Image.fromarray(shown)
    image.putpalette(palette.tobytes())
    return image
