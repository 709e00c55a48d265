"""Toy street scenes with exact masks in the 19 BDD100K classes, each a pure function of its seed.

`draw_scene` draws one, `write_toy_dataset` writes a prepared dataset of them: no download, no licence.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.dataset_format import finish_dataset, make_split, new_dataset, plain_load_note, save_pair
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.pipelines.text_inputs import number_things
from semseg_diffusers.toy import objects as things
from semseg_diffusers.toy.painter import Look, Painter, Rng, tint
from semseg_diffusers.toy.settings import ToySettings
from semseg_diffusers.toy.street import draw_street
from semseg_diffusers.utils.progress import progress_bar


# (share, look): light and weather of the scenes.
# Look: weather, timeofday, light, sky_top, sky_bottom, haze, visibility, sun, clouds, lamps, wet
LOOKS = (
    (0.28, Look("clear", "daytime", (1.0, 0.98, 0.94), (0.3, 0.5, 0.8), (0.72, 0.83, 0.93), (0.74, 0.82, 0.9),
           420, 0.9, 0.25, False, 0.0)),
    (0.1, Look("partly cloudy", "daytime", (0.94, 0.93, 0.92), (0.36, 0.53, 0.77), (0.77, 0.84, 0.9),
           (0.76, 0.82, 0.87), 380, 0.6, 0.9, False, 0.0)),
    (0.14, Look("overcast", "daytime", (0.76, 0.78, 0.8), (0.66, 0.69, 0.72), (0.8, 0.82, 0.83), (0.76, 0.78, 0.8),
           300, 0.1, 0.35, False, 0.0)),
    (0.14, Look("clear", "dawn/dusk", (0.68, 0.54, 0.46), (0.27, 0.29, 0.48), (0.96, 0.62, 0.36), (0.8, 0.56, 0.44),
           300, 0.5, 0.55, True, 0.0)),
    (0.12, Look("clear", "night", (0.33, 0.33, 0.39), (0.02, 0.03, 0.08), (0.12, 0.12, 0.19), (0.08, 0.08, 0.13),
           190, 0.0, 0.0, True, 0.1)),
    (0.1, Look("rainy", "daytime", (0.6, 0.63, 0.68), (0.46, 0.5, 0.55), (0.63, 0.66, 0.7), (0.6, 0.63, 0.67),
           130, 0.0, 0.4, False, 0.85)),
    (0.04, Look("rainy", "night", (0.31, 0.32, 0.37), (0.04, 0.04, 0.08), (0.14, 0.14, 0.19), (0.11, 0.11, 0.15),
           110, 0.0, 0.0, True, 1.0)),
    (0.08, Look("foggy", "daytime", (0.8, 0.81, 0.82), (0.74, 0.76, 0.78), (0.8, 0.81, 0.82), (0.8, 0.81, 0.82),
           38, 0.0, 0.0, False, 0.2)),
)  # fmt: skip

# Amplitude of fine and coarse noise per class, as a share of brightness: leaves and grass are rough, sky is smooth.
FINE_TEXTURE = np.array([3, 3, 2, 4, 3, 1, 1, 1, 10, 9, 0, 3, 3, 1, 1, 1, 1, 2, 2], np.float32) / 50
COARSE_TEXTURE = np.array([3, 3, 3, 5, 3, 1, 0, 0, 8, 10, 0, 2, 2, 2, 2, 2, 2, 1, 1], np.float32) / 50

THINGS = (things.CAR, things.TRUCK, things.BUS)  # captions are about each of these, and about all of a train
VEHICLES = (*THINGS, things.TRAIN)
COLORS_COLUMN = "colors"
DRAWING_HEIGHT = 256  # pixels; small scenes are drawn about this large and reduced


def draw_scene(seed: int, size: tuple[int, int] = (128, 128)) -> tuple[Image.Image, np.ndarray, dict[str, str]]:
    """Draw one street scene; the same seed gives the same street at every size.

    Args:
        seed: any integer.
        size: height and width in pixels, at least 16 each.

    Returns:
        RGB image, class ids as uint8 of shape (H, W) in 0..18, and the attributes weather, scene and timeofday in
        the words of BDD100K.

    Example:
        >>> image, ids, attributes = draw_scene(seed=0, size=(64, 96))
        >>> image.size, ids.shape, str(ids.dtype)
        ((96, 64), (64, 96), 'uint8')
    """
    return _draw_scene(seed, size)[1:]


def _draw_scene(seed: int, size: tuple[int, int]) -> tuple[Painter, Image.Image, np.ndarray, dict[str, str]]:
    """Draw a scene as `draw_scene` does, and return what it was painted with as well."""
    height, width = size
    if height < 16 or width < 16:
        raise ValueError(f"expected at least 16 x 16 pixels for a toy scene; got {height} x {width}.")
    rng = Rng(seed)
    scale = min(max(round(DRAWING_HEIGHT / height), 2), 4)
    (look,) = rng.choices([look for _, look in LOOKS], [share for share, _ in LOOKS])
    exposure, visibility, amount = rng.uniform(0.90, 1.08), rng.uniform(0.8, 1.25), 0.07 * sum(look.sky_top)
    look = dataclasses.replace(
        look,
        light=tint(look.light, exposure),
        visibility=look.visibility * visibility,
        sky_top=rng.jitter(look.sky_top, amount),
        sky_bottom=rng.jitter(look.sky_bottom, amount),
    )
    painter = Painter(
        (height * scale, width * scale),
        look,
        horizon=rng.uniform(0.48, 0.60),
        focal=rng.uniform(0.68, 0.92),
        eye=rng.uniform(1.35, 1.95),
        bend=0.0 if rng.chance(0.45) else rng.uniform(-0.0019, 0.0019),
        line=1.15 * scale,
    )
    _draw_sky(painter)
    scene = draw_street(painter, rng)
    noise = np.random.default_rng(rng.getrandbits(64))
    ids = _majority(painter.mask, scale)
    image = _develop(painter, ids, scale, noise)
    return painter, image, ids, {"weather": look.weather, "scene": scene, "timeofday": look.timeofday}


def _painted_regions(p: Painter, ids: np.ndarray, labels: LabelSet) -> list[dict[str, Any]]:
    """Return the colours of each vehicle, and of all houses, as `caption --colors_column` reads them."""
    scale = p.height // len(ids)
    tags = np.asarray(p.tags)[scale // 2 :: scale, scale // 2 :: scale]  # (H, W)
    rgb = np.round(255 * np.array(p.colors).reshape(-1, 3)).astype(int)
    regions = []
    for label in (things.BUILDING, *VEHICLES):
        inside = ids == label
        numbers = number_things(inside) if label in THINGS else np.where(inside, 0, -1)
        for number in range(numbers.max() + 1):
            counts = np.bincount(tags[numbers == number], minlength=len(rgb) + 1)[1:]
            colors = [[*rgb[tag].tolist(), int(counts[tag])] for tag in counts.nonzero()[0]]
            if colors:
                thing = number if label in THINGS else -1
                regions.append({"class": labels.names[label], "thing": thing, "colors": colors})
    return regions


def _draw_sky(p: Painter) -> None:
    """Paint the gradient from the top of the sky to the horizon."""
    down = np.clip(np.arange(p.height, dtype=np.float32) / p.horizon, 0, 1)[:, None] ** 1.3
    column = (1 - down) * np.array(p.look.sky_top) + down * np.array(p.look.sky_bottom)  # (H, 3)
    column = Image.fromarray((255 * column.clip(0, 1)).astype(np.uint8)[:, None])  # one pixel wide
    p.image.paste(column.resize((p.width, p.height)))


def _majority(mask: Image.Image, scale: int) -> np.ndarray:
    """Return the most frequent class of each block of scale x scale pixels."""
    array = np.asarray(mask)
    present = np.flatnonzero(np.bincount(array.ravel(), minlength=19))
    shares = [np.asarray(Image.fromarray((array == label).view(np.uint8) * 255).reduce(scale)) for label in present]
    return present[np.argmax(np.stack(shares), axis=0)].astype(np.uint8)  # (H, W)


def _smooth_noise(noise: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Return noise in about -1..1 with blobs of `cell` pixels."""
    small = noise.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _develop(p: Painter, ids: np.ndarray, scale: int, noise: np.random.Generator) -> Image.Image:
    """Apply texture, clouds, reduction, glow, wet road, rain and sensor noise; the mask does not change."""
    look, (height, width) = p.look, ids.shape
    mask, image = np.asarray(p.mask), np.asarray(p.image)
    inside = (lamp for lamp in p.lamps if 0 <= lamp[0] < p.width and 0 <= lamp[1] < p.height)
    glowing = [lamp for lamp in inside if p.image.getpixel((int(lamp[0]), int(lamp[1]))) == lamp[3]]  # not covered
    # 1. Texture at the size of the drawing.
    fine = noise.standard_normal((p.height // 2, p.width // 2), dtype=np.float32).repeat(2, 0).repeat(2, 1)
    fine = np.pad(fine, ((0, p.height - fine.shape[0]), (0, p.width - fine.shape[1])), mode="edge")
    texture = FINE_TEXTURE[mask] * fine + COARSE_TEXTURE[mask] * _smooth_noise(noise, p.height, p.width, 3 * scale)
    far = np.abs(np.arange(p.height, dtype=np.float32) - p.horizon) / (0.25 * p.height)  # 0 at the horizon
    texture *= (np.clip(far, 0.25, 1) * min(look.visibility / 150, 1))[:, None]
    image = image * (1 + texture)[..., None]
    np.clip(image, 0, 255, out=image)
    # 2. The size of the result, antialiased.
    image = np.asarray(Image.fromarray(image.astype(np.uint8)).reduce(scale)).astype(np.float32) / 255  # (H, W, 3)
    # 3. Clouds.
    if look.clouds:
        cloud = _smooth_noise(noise, height, width, max(height // 6, 2))
        cloud = cloud + 0.5 * _smooth_noise(noise, height, width, max(height // 14, 2))
        cloud = (np.clip(cloud * 0.9 + 0.1, 0, 1) * look.clouds * (ids == things.SKY) * 0.75)[..., None]
        image += cloud * (np.array(look.light, np.float32) * 0.98 - image)
    # 4. Headlights on the ground ahead, and the glow of every lamp.
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    if look.timeofday == "night":
        across = np.exp(-(((x - width / 2) / (0.34 * width)) ** 2))
        down = np.clip((y - p.horizon / scale) / (height - p.horizon / scale), 0, 1) ** 0.5
        down *= np.exp(-(((y - 0.8 * height) / (0.32 * height)) ** 2))
        image *= 1 + 1.5 * (down[:, None] * across)[..., None]
    for lamp_x, lamp_y, radius, color in glowing[:40]:
        reach = 2.2 * radius / scale + 0.012 * height
        spot = np.exp(-(((y - lamp_y / scale) / reach) ** 2))[:, None] * np.exp(-(((x - lamp_x / scale) / reach) ** 2))
        image += (0.5 if look.timeofday == "night" else 0.25) * spot[..., None] * np.array(color, np.float32) / 255
    # 5. A wet road mirrors what is above it.
    if look.wet:
        horizon = p.horizon / scale
        above = np.clip(np.round(2 * horizon - y).astype(int), 0, height - 1)
        mirror = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).reduce((1, 2)).resize((width, height))
        mirror = np.asarray(mirror)[above].astype(np.float32) / 255
        puddles = 1 + 0.3 * _smooth_noise(noise, height, width, max(height // 10, 2))
        share = 0.38 * look.wet * (ids == things.ROAD) * puddles
        image += np.clip(share, 0, 0.7)[..., None] * (mirror - 0.55 * image)
    if look.weather == "rainy":
        streaks = noise.random((height, width), dtype=np.float32) > 0.985
        streaks = streaks | np.roll(streaks, 1, 0) | np.roll(streaks, 2, 0)
        image += 0.1 * streaks[..., None] * (np.array(look.sky_bottom, np.float32) + 0.15 - 0.5 * image)
    # 6. Vignette and sensor noise, stronger in the dark.
    corner = ((x / width - 0.5) ** 2)[None] + ((y / height - 0.5) ** 2)[:, None]
    image *= (1 - 0.28 * corner)[..., None]
    image += noise.standard_normal(image.shape, dtype=np.float32) * (0.012 if look.timeofday == "night" else 0.007)
    return Image.fromarray((image.clip(0, 1) * 255 + 0.5).astype(np.uint8))


# A dataset of scenes -----------------------------------------------------------------------------------------------

VALIDATION_START = 5_000_000  # scenes of a seed from this number on are for validation; training scenes come before


def write_toy_dataset(
    output: str | os.PathLike,
    num_train: int = 256,
    num_val: int = 32,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    colors: bool = False,
) -> Path:
    """Write a prepared dataset of toy scenes; more scenes of the same seed start with the same scenes.

    Args:
        output: new folder.
        num_train: training scenes, at least 1.
        num_val: validation scenes, none of them among the training scenes.
        size: height and width in pixels.
        seed: seed of the scenes.
        overwrite: replace a dataset at `output`.
        progress: show a progress bar on stderr.
        colors: write the column `colors`, in what vehicles and houses were painted.

    Returns:
        The folder.

    Raises:
        ValueError: If a count or the seed is out of range, or `output` exists and is not empty.
    """
    if not 1 <= num_train <= VALIDATION_START or not 0 <= num_val <= VALIDATION_START:
        raise ValueError(
            f"num_train={num_train}, num_val={num_val}; expected at least 1 and 0, at most {VALIDATION_START}."
        )
    if seed < 0:
        raise ValueError(f"seed={seed}; expected 0 or more.")
    labels = LabelSet.from_preset("bdd100k")
    numbers = {"train": range(num_train), "val": range(VALIDATION_START, VALIDATION_START + num_val)}
    rows: dict[str, list[dict]] = {split: [] for split, part in numbers.items() if part}
    record = {"format": "toy", "resolution": list(size), "labels": "bdd100k", "seed": seed}
    with (
        new_dataset(output, overwrite) as folder,
        progress_bar(total=num_train + num_val, desc="drawing scenes", unit="scene", disable=not progress) as bar,
    ):
        for split, lines in rows.items():
            split_folder = make_split(folder, split)
            for number in numbers[split]:
                painter, image, ids, attributes = _draw_scene(seed * 2 * VALIDATION_START + number, size)
                row = save_pair(split_folder, f"toy_{seed}_{number:07}", image, ids, labels)
                if colors:
                    row[COLORS_COLUMN] = _painted_regions(painter, ids, labels)
                lines.append({**row, **attributes})
                bar.update()
        finish_dataset(folder, rows, labels, record)
    return Path(output)


def run(settings: ToySettings) -> None:
    """Run `semseg-diffusers toy`."""
    counts = settings.num_train, settings.num_val
    options = {"overwrite": settings.overwrite, "colors": settings.colors}
    write_toy_dataset(settings.output, *counts, settings.size, settings.seed, progress=True, **options)
    sys.stdout.write(f"{settings.num_train} training and {settings.num_val} validation scenes in {settings.output}\n")
    sys.stdout.write(plain_load_note(settings.output))
