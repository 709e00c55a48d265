"""Write captions of a dataset: texts about images, classes and things; see `CaptionSettings` for the command."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semseg_diffusers.captions.colors import balance_white, region_color, rgb_to_lab
from semseg_diffusers.captions.settings import CaptionSettings
from semseg_diffusers.data.dataset import PairDataset, attribute_values, load_pairs, metadata_folders
from semseg_diffusers.data.dataset_format import METADATA_FILE, check_prepared, new_output
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.pipelines.text_inputs import number_things
from semseg_diffusers.utils.files import read_json_lines, versions, write_json, write_text
from semseg_diffusers.utils.progress import progress_bar


if TYPE_CHECKING:
    from semseg_diffusers.captions.captioner import Captioner

RECORD_FILE = "caption.json"
DARK, BRIGHT = 30, 65  # mean lightness of images that are called so
OPENINGS = ("a street", "a street scene", "a photo of a street", "a view of a road")
# The mask says what a region is: a colour without its name means the same everywhere, also where it was never seen
COLOR_WORDINGS = ("{color}", "in {color}")
THING_WORDINGS = (
    "a {color} {name}",
    "{color} {name}",
    "the {name} is {color}",
    "{name}, {color}",
    "{name} in {color}",
    *COLOR_WORDINGS,
)
CLASS_WORDINGS = ("{color} {name}", "the {name} is {color}", "{name}, {color}", "{name} in {color}", *COLOR_WORDINGS)
UNKNOWN_WORDS = ("", "undefined", "unknown")


def measure_colors(image: np.ndarray, ids: np.ndarray, street: Street, white_balance: bool = True) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with class ids (H, W) in CIELAB (H, W, 3), white-balanced where asked.

    The sky is a light itself and keeps its colour.
    """
    lab = rgb_to_lab(image)
    if not white_balance:
        return lab
    is_sky = ids == street.labels.label2id.get("sky", -1)
    return np.where(is_sky[..., None], lab, balance_white(lab, np.isin(ids, list(street.ground))))


def number_regions(inside: np.ndarray, has_things: bool) -> np.ndarray:
    """Number the things of a class (H, W) bool from left to right, or all its pixels 0; elsewhere -1."""
    return number_things(inside) if has_things else np.where(inside, 0, -1)


def word_regions(
    lab: np.ndarray,
    ids: np.ndarray,
    street: Street,
    generator: np.random.Generator,
    num_wordings: int = 3,
    min_area: int = 64,
    known: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> list[dict[str, Any]]:
    """Describe the regions of an image by their colours.

    Args:
        lab: colours (H, W, 3) in CIELAB, as `measure_colors` returns them.
        ids: class ids (H, W).
        street: the roles of their classes; the connected parts of things are described one by one.
        generator: source of the wordings.
        num_wordings: wordings of each text, every other one with "dark" or "light" where that is so.
        min_area: pixels that a region needs.
        known: for classes whose colours are known, those of regions by their `thing`: (N, 3) in CIELAB.

    Returns:
        for each region with a colour that prevails: `class`, `thing` (its number from left to right, -1 for all pixels
        of a class), `texts`, and `color`.
    """
    found: list[dict[str, Any]] = []
    for class_id, name in enumerate(street.labels.names):
        thing = street.things.get(class_id)
        numbers = number_regions(ids == class_id, thing is not None)  # (H, W)
        for number in range(numbers.max() + 1):
            pixels = lab[numbers == number]  # (N, 3)
            is_vehicle, shown = thing is not None and thing.vehicle, pixels
            if known is not None and name in known:
                shown, is_vehicle = known[name].get(number if thing else -1, pixels[:0]), False
            color = region_color(shown, is_vehicle) if len(pixels) >= min_area and len(shown) else None
            if color is None:
                continue
            wordings = generator.permutation(THING_WORDINGS if thing else CLASS_WORDINGS)[:num_wordings]
            # Both names of a colour, in turn: "dark blue" and "blue"
            texts = [str(text).format(color=color[1 - i % 2], name=name) for i, text in enumerate(wordings)]
            found.append({"class": name, "thing": number if thing else -1, "texts": texts, "color": color[0]})
    return found


def word_image(
    lab: np.ndarray,
    ids: np.ndarray,
    labels: LabelSet,
    attributes: Mapping[str, str | None],
    generator: np.random.Generator,
    num_wordings: int = 3,
) -> list[str]:
    """Describe an image (H, W, 3) in CIELAB as a whole, in several wordings: its attributes, its light and its sky."""
    facts = [str(value) for value in attributes.values() if value is not None and value not in UNKNOWN_WORDS]
    light = lab[..., 0].mean()
    facts += ["dark"] * bool(light < DARK) + ["bright"] * bool(light >= BRIGHT)
    sky = lab[ids == labels.label2id["sky"]] if "sky" in labels.label2id else lab[:0]
    color = region_color(sky) if len(sky) else None
    facts += [] if color is None else [f"{color[1]} sky"]
    texts: dict[str, None] = {}
    for i in range(num_wordings):
        texts[", ".join([OPENINGS[(i + generator.integers(2)) % len(OPENINGS)], *generator.permutation(facts)])] = None
    return list(texts)


def known_colors(regions: Any, where: str) -> dict[str, dict[int, np.ndarray]]:
    """Return the colours (N, 3) in CIELAB of regions by class and `thing`, of a value of `--colors_column`."""
    try:
        found: dict[str, dict[int, np.ndarray]] = {}
        for region in regions or ():
            colors = np.array(region["colors"], dtype=np.int64)  # (K, 4)
            rgb, counts = colors[:, :3], colors[:, 3]
            if rgb.min() < 0 or rgb.max() > 255 or counts.min() < 0:
                raise ValueError(f"got {region['colors']}")
            of_class = found.setdefault(str(region["class"]), {})
            of_class[int(region["thing"])] = rgb_to_lab(rgb.astype(np.uint8)).repeat(counts, axis=0)
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise ValueError(
            f"{where}: expected a list of {{'class': name, 'thing': number, 'colors': [[red, green, blue, pixels], "
            f"...]}} with colours of 0 to 255 ({err})."
        ) from err
    return found


def read_colors(pairs: PairDataset, column: str | None) -> list[dict[str, dict[int, np.ndarray]]] | None:
    """Return the known colours of each pair, with all classes that the column names for any; None without a column."""
    if column is None:
        return None
    values = pairs.column(column)
    if values is None:
        raise ValueError(f"{pairs.name} has no column of lists '{column}' (--colors_column).")
    where = f"--colors_column: '{{}}' of {pairs.name}"
    found = [known_colors(value, where.format(stem)) for value, stem in zip(values, pairs.stems, strict=True)]
    classes = {name for each in found for name in each}
    check_classes(pairs, classes, f"--colors_column {column}")
    return [{name: each.get(name, {}) for name in classes} for each in found]


def check_classes(pairs: PairDataset, names: Iterable[str], option: str) -> None:
    """Raise for a name that is no class of the pairs."""
    if unknown := sorted({*names} - {*pairs.labels.names}):
        raise ValueError(
            f"{pairs.name} has no class '{unknown[0]}', which {option} names; it has {', '.join(pairs.labels.names)}."
        )


def caption_split(
    pairs: PairDataset, settings: CaptionSettings, captioner: "Captioner | None"
) -> tuple[list[dict[str, Any]], dict[str, Counter]]:
    """Return the columns of each pair of a split, and how often each class has each colour."""
    street = Street.of(pairs.labels)
    wordings = {"num_wordings": settings.num_wordings}
    columns: list[dict[str, Any]] = []
    counts: dict[str, Counter] = {name: Counter() for name in pairs.labels.names}
    known = read_colors(pairs, settings.colors_column)
    for index in progress_bar(range(len(pairs)), desc="captions"):
        image, ids = pairs.photo(index), pairs.mask(index)
        lab = measure_colors(np.asarray(image), ids, street, settings.white_balance)
        generator = np.random.default_rng([settings.seed, index])
        if captioner is None:
            attributes = {name: pairs.attributes[name][index] for name in settings.attributes}
            texts = word_image(lab, ids, pairs.labels, attributes, generator, **wordings)
        else:
            texts = captioner.describe(image, **wordings)
        colors = None if known is None else known[index]
        regions = word_regions(lab, ids, street, generator, min_area=settings.min_area, known=colors, **wordings)
        regions = [each for each in regions if not settings.classes or each["class"] in settings.classes]
        for region in regions:
            counts[region["class"]][region.pop("color")] += 1
        columns.append({"captions": texts, "region_captions": regions})
    return columns, counts


def run(settings: CaptionSettings) -> None:
    """Run `semseg-diffusers caption`."""
    source = Path(settings.dataset)
    check_prepared(source)
    splits = {split: (path, load_pairs(source, split)) for split, path in metadata_folders(source).items()}
    for _, pairs in splits.values():
        if absent := [name for name in settings.attributes if name not in pairs.attributes]:
            attribute_values(pairs, absent)  # says which columns there are
        check_classes(pairs, settings.classes, "--classes")
    captioner, used = None, versions("numpy")
    if settings.captioner is not None:
        from semseg_diffusers.captions.captioner import Captioner  # imports torch and transformers

        captioner = Captioner(settings.captioner, settings.captioner_prompt, settings.device)
        used = versions("numpy", "torch", "transformers")
    totals: dict[str, Counter] = {}
    num_texts = 0
    with new_output(settings.output) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for path, pairs in splits.values():
            columns, counts = caption_split(pairs, settings, captioner)
            rows = read_json_lines(path / METADATA_FILE)
            lines = (json.dumps(row | new, ensure_ascii=False) for row, new in zip(rows, columns, strict=True))
            write_text(folder / path.name / METADATA_FILE, "".join(f"{line}\n" for line in lines))
            num_texts += sum(len(row["region_captions"]) for row in columns)
            for name, found in counts.items():
                totals[name] = totals.get(name, Counter()) + found
        colors = {name: dict(found.most_common()) for name, found in totals.items() if found}
        revision = None if captioner is None else captioner.revision
        record = {**asdict(settings), "captioner_revision": revision, "colors": colors, "versions": used}
        write_json(folder / RECORD_FILE, record)
    num_images = sum(len(pairs) for _, pairs in splits.values())
    sys.stdout.write(f"{settings.output}: {num_images} images, texts about {num_texts} regions of them\n")
