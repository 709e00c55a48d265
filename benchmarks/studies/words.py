"""Do words do what they say: colours asked for things of a mask, and for its light, against nothing said.

Of every class of `--things`, the largest thing of each mask is asked for in each colour, in a wording of the captions
and in the wordings of `--wording`, which no caption has. All images of a mask start from the same noise. Figures of
the thing's pixels: the share of images whose thing has the name of the colour that was asked, and how lightness and
the two axes of colour (CIELAB) move against the image of which nothing was said; of all other pixels: how much they
change. A class without things (building) is asked for as a whole. Colours are named as `caption` names them, or, with
`--colors_column`, by the nearest mean of regions of photos (`--photos`) whose colour that column knows: shade, windows
and tyres are in both. Then the agreement of a segmentation network with the masks, with words less without.
`--text` is said of all images, also of those of which nothing else is said. `--prompt NAME=TEXT` are
texts about the whole image, of which lightness and the colour of the sky are measured. Differences are taken mask by
mask, with the 95 % interval of resampled masks; combinations of `--held_out` were in no caption of the training, and
are marked. Finished work is kept: the same command resumes. Prints the tables of docs/results/words.md, writes
`words.json` and a sheet.

    python benchmarks/studies/words.py --model runs/toy-words --dataset data/toy64 --segmenter runs/segmenter
        --things car truck bus --colors red blue white black --held_out truck:red bus:blue --output words
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_steps import named_folder, write_jpeg
from PIL import Image
from safetensors.torch import load_file, save_file
from sampling import Read, confusion_counts, difference, interval, interval_text, mean_iou, resampled

from semseg_diffusers.captions.caption import THING_WORDINGS, measure_colors, number_regions, read_colors
from semseg_diffusers.captions.colors import NAMES, name_colors, region_color, rgb_to_lab
from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.inputs import ImageSet, cached_inference, real_images
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.generation.model import load_model
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.utils.files import code_commit, versions, write_json, written_beside
from semseg_diffusers.utils.images import BACKGROUND, image_grid


NOTHING = "nothing said"
AXES = ("lightness", "green to red", "blue to yellow")
SHEET_MASKS = 6
SheetPart = tuple[list[str], list[list[Any]]]  # headers, rows of pictures
PREVAILS = 0.7  # share of what a region was painted in, of photos that show how a colour looks
MIN_PHOTOS = 5  # regions of which such a look is the mean
RING = 2  # pixels around a thing that belong neither to it nor to the others: edges and reflections


@dataclass(frozen=True)
class Thing:
    """One thing of a mask."""

    index: int  # of the mask in the split
    number: int  # from left to right, among those of its class
    inside: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class Arm:
    """What is said of all masks."""

    name: str
    color: str | None = None  # asked for the thing
    wording: str = ""
    prompt: str | None = None  # about the whole image


def largest_things(pairs: PairDataset, class_id: int, min_area: int, num_masks: int | None) -> list[Thing]:
    """Return the largest thing of a class, or all of a class without things, of each mask that has so many pixels.

    Of more than `num_masks` those at even distances: neighbouring frames of a drive show the same things.
    """
    found, has_things = [], class_id in Street.of(pairs.labels).things
    for index in range(len(pairs)):
        numbers = number_regions(pairs.mask(index) == class_id, has_things)
        areas = np.bincount(numbers[numbers >= 0]) if (numbers >= 0).any() else np.zeros(1, int)
        if areas.max() >= min_area:
            found.append(Thing(index, int(areas.argmax()), numbers == areas.argmax()))
    return evenly_spaced(found, num_masks)


class Namer:
    """Names the colour of pixels (N, 3) in CIELAB of a class.

    A colour that no photo knows of a class, such as a black bus, has the mean of all vehicles of that colour.
    """

    def __init__(self, args: argparse.Namespace, pairs: PairDataset):
        self.args, self.street = args, Street.of(pairs.labels)
        self.means: dict[str, dict[str, np.ndarray]] = {}  # class -> name of the colour -> mean
        if args.colors_column is None:
            return
        found: dict[str, dict[str, list[np.ndarray]]] = {}
        for class_id, color, pixels in self.photos(load_pairs(args.photos or args.dataset, "train")):
            for name in [pairs.labels.names[class_id], *(["vehicle"] if self.is_vehicle(class_id) else [])]:
                found.setdefault(name, {}).setdefault(color, []).append(pixels.mean(axis=0))
        means = {
            name: {color: np.mean(each, axis=0) for color, each in colors.items() if len(each) >= MIN_PHOTOS}
            for name, colors in found.items()
        }
        of_vehicles = means.pop("vehicle", {})
        for name, colors in means.items():
            is_vehicle = self.is_vehicle(pairs.labels.label2id[name])
            self.means[name] = {**of_vehicles, **colors} if is_vehicle else colors

    def is_vehicle(self, class_id: int) -> bool:
        thing = self.street.things.get(class_id)
        return thing is not None and thing.vehicle

    def photos(self, pairs: PairDataset) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yield class, name of the colour that is known to prevail, and pixels of the regions of photos."""
        known = read_colors(pairs, self.args.colors_column)
        assert known is not None
        for index in range(len(pairs)):
            if any(pairs.attributes[name][index] != value for name, value in self.args.where):
                continue
            ids, lab = pairs.mask(index), None
            regions = [(name, number) for name in self.args.things for number in known[index].get(name, ())]
            for name, number in regions:
                class_id = pairs.labels.label2id[name]
                inside = number_regions(ids == class_id, class_id in self.street.things) == max(number, 0)
                if inside.sum() < self.args.min_area:
                    continue
                counts = np.bincount(name_colors(known[index][name][number]), minlength=len(NAMES))
                if counts.max() >= PREVAILS * counts.sum():
                    lab = rgb_to_lab(np.asarray(pairs.photo(index))) if lab is None else lab
                    yield class_id, NAMES[counts.argmax()], lab[inside]

    def name(self, pixels: np.ndarray, class_id: int) -> str | None:
        """Return the name of the colour of a region's pixels (N, 3); None where none prevails."""
        if self.args.colors_column is not None:
            means = self.means.get(self.street.labels.names[class_id], {})
            return min(
                means, key=lambda color: float(np.linalg.norm(means[color] - pixels.mean(axis=0))), default=None
            )
        found = region_color(pixels, self.is_vehicle(class_id))
        return None if found is None else found[0]

    def accuracy(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return how many regions of photos of the split get the name that is known, by class and colour."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        if self.args.colors_column is None:
            return found
        for class_id, color, pixels in self.photos(load_pairs(self.args.photos or self.args.dataset, self.args.split)):
            of_class = found.setdefault(self.street.labels.names[class_id], {})
            counts = of_class.setdefault(color, {"regions": 0, "right": 0})
            counts["regions"] += 1
            counts["right"] += self.name(pixels, class_id) == color
        return found


class Sampling:
    """Samples arms in batches, and keeps their images."""

    def __init__(self, args: argparse.Namespace, pairs: PairDataset):
        self.args, self.pairs = args, pairs
        self.pipe: Any = load_model(args.model)
        self.pipe.to(torch.float32).set_progress_bar_config(disable=True)
        self.weights = weights_hash(self.pipe.unet.state_dict())

    def images(self, things: list[Thing], class_name: str, arm: Arm) -> torch.Tensor:
        """Return an image of each mask, uint8 (M, 3, H, W)."""
        args = self.args
        said = repr((arm, class_name, args.prompt_guidance_scale, args.seed, [(t.index, t.number) for t in things]))
        said += f" by {self.weights}"
        said += f" in {args.steps} steps" if args.steps else ""
        said += f", {args.text}" if args.text else ""
        file = args.output / "images" / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
        if file.is_file():
            return load_file(file)["images"]
        parts = []
        for start in range(0, len(things), args.batch_size):
            batch = things[start : start + args.batch_size]
            words: dict[str, Any] = {}
            if arm.color is not None:
                text = arm.wording.format(color=arm.color, name=class_name)
                if self.pairs.labels.label2id[class_name] in Street.of(self.pairs.labels).things:
                    words["instance_prompts"] = [{class_name: [None] * thing.number + [text]} for thing in batch]
                else:
                    words["class_prompts"] = {class_name: text}
            if arm.prompt is not None or args.text is not None:
                words["prompt"] = arm.prompt or args.text
            if words and args.prompt_guidance_scale is not None:
                words["prompt_guidance_scale"] = args.prompt_guidance_scale
            masks = torch.stack([torch.from_numpy(self.pairs.mask(thing.index)) for thing in batch]).long()
            seeds = [torch.Generator().manual_seed(args.seed + thing.index) for thing in batch]
            parts.append(
                self.pipe(masks, generator=seeds, output_type="pt", num_inference_steps=args.steps, **words).images
            )
        images = (torch.cat(parts) * 255).round().to(torch.uint8).contiguous()
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(file) as temporary:
            save_file({"images": images}, temporary)
        return images


# Figures -------------------------------------------------------------------------------------------------------------


def to_lab(
    args: argparse.Namespace, pairs: PairDataset, things: list[Thing], images: torch.Tensor, balance: bool
) -> np.ndarray:
    """Convert uint8 (M, 3, H, W) to CIELAB (M, H, W, 3), as `caption` measures it."""
    street, balance = Street.of(pairs.labels), balance and not args.no_white_balance
    pixels = images.permute(0, 2, 3, 1).numpy()
    masks = [pairs.mask(thing.index) for thing in things]
    return np.stack([measure_colors(image, ids, street, balance) for image, ids in zip(pixels, masks, strict=True)])


def of_masks(values: Any, seed: int) -> dict[str, float]:
    """Return the mean of a value of each mask, with its interval."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float64)
    return interval(values.mean(), resampled(len(values), seed) @ values / len(values))


def around(inside: np.ndarray) -> np.ndarray:
    """Return a region (H, W) and what is within `RING` pixels of it."""
    padded, (height, width) = np.pad(inside, RING), inside.shape
    steps = range(2 * RING + 1)
    return np.any([padded[y : y + height, x : x + width] for y in steps for x in steps], axis=0)


def of_color(
    args: argparse.Namespace,
    pairs: PairDataset,
    namer: Namer,
    things: list[Thing],
    lab: np.ndarray,
    plain: np.ndarray,
    arm: Arm,
) -> dict[str, Any]:
    """Return the figures of images whose thing was asked for in a colour, against those of which nothing was said."""
    hits, moves, named_otherwise = ([], []), [], []
    changes: dict[str, list[float]] = {"inside": [], "outside": [], "others": []}
    kinds = Street.of(pairs.labels).things
    for thing, asked, before in zip(things, lab, plain, strict=True):
        ids = pairs.mask(thing.index)
        class_id = ids[thing.inside][0]
        for each, found in zip((asked, before), hits, strict=True):
            found.append(namer.name(each[thing.inside], class_id) == arm.color)
        moves.append(asked[thing.inside].mean(axis=0) - before[thing.inside].mean(axis=0))
        change = np.linalg.norm(asked - before, axis=-1)  # (H, W): CIE76
        changes["inside"].append(change[thing.inside].mean())
        changes["outside"].append(change[~around(thing.inside)].mean())
        others = number_regions(ids == class_id, class_id in kinds)
        for number in range(others.max() + 1):
            if number != thing.number and (others == number).sum() >= args.min_area:
                changes["others"].append(change[others == number].mean())
                both = [namer.name(each[others == number], class_id) for each in (asked, before)]
                named_otherwise.append(both[0] != both[1] and None not in both)
    return {
        "images": len(things),
        "has_it": of_masks(hits[0], args.seed),
        "had_it": float(np.mean(hits[1])),
        **{axis: of_masks(np.stack(moves)[:, i], args.seed) for i, axis in enumerate(AXES)},
        **{where: float(np.mean(values)) for where, values in changes.items() if values},
        "other_things": len(named_otherwise),
        "other_things_changed": int(np.sum(named_otherwise)),
    }


def of_light(args: argparse.Namespace, pairs: PairDataset, things: list[Thing], lab: np.ndarray, plain: np.ndarray):
    """Return how light and sky of images with a text move against those without."""
    sky_id = pairs.labels.label2id.get("sky")
    found: dict[str, Any] = {
        "images": len(things),
        "lightness": of_masks((lab - plain)[..., 0].mean((1, 2)), args.seed),
    }
    skies = [pairs.mask(thing.index) == sky_id for thing in things]
    seen = [i for i, sky in enumerate(skies) if sky.sum() >= args.min_area]
    if seen:
        moves = np.stack([(lab[i] - plain[i])[skies[i]].mean(axis=0) for i in seen])
        found["sky"] = {axis: of_masks(moves[:, i], args.seed) for i, axis in enumerate(AXES)}
    return found


def image_set(pairs: PairDataset, things: list[Thing], images: torch.Tensor) -> ImageSet:
    real = real_images(pairs)
    names = [real.stems.index(pairs.stems[thing.index]) for thing in things]
    return replace(real.subset(names), image=lambda index: images[index])


def collect(args: argparse.Namespace, sampling: Sampling) -> tuple[dict[str, Any], list[SheetPart]]:
    """Return all results, and the part of each class of the sheet."""
    pairs, judge = sampling.pairs, load_judge(args.segmenter, sampling.pairs.labels)

    def read(things: list[Thing], images: torch.Tensor) -> Read:
        found = image_set(pairs, things, images)
        identity = judge.identity(pairs.resolution)
        predictions = cached_inference(judge.read, found, identity=identity, folder=args.output / "cache")
        return Read(found.stems, confusion_counts(found, predictions), torch.empty(len(things), 0), images)

    namer = Namer(args, pairs)
    record: dict[str, Any] = {"things": {}, "prompts": {}, "photos": namer.accuracy()}
    sheet: list[SheetPart] = []
    wordings = {"as captions": THING_WORDINGS[0]} | {text: text for text in args.wording}
    for name in args.things:
        class_id = pairs.labels.label2id[name]
        things = largest_things(pairs, class_id, args.min_area, args.num_masks)
        if not things:
            raise ValueError(f"no mask of '{args.dataset}' has a {name} of {args.min_area} pixels.")
        plain = sampling.images(things, name, Arm(NOTHING))
        plain_lab, without = to_lab(args, pairs, things, plain, True), read(things, plain)
        rows, shown, matrices = [], [plain], []
        colors = dict(args.colors_of).get(name, args.colors)
        for title, wording in wordings.items():
            for color in colors:
                arm = Arm(f"{color}, {title}", color, wording)
                images = sampling.images(things, name, arm)
                figures = of_color(
                    args, pairs, namer, things, to_lab(args, pairs, things, images, True), plain_lab, arm
                )
                held_out = f"{name}:{color}" in args.held_out
                rows.append({"color": color, "wording": title, "held_out": held_out, **figures})
                matrices.append(read(things, images).matrices.double())
                if title == "as captions":
                    shown.append(images)
        words = replace(without, matrices=torch.stack(matrices).mean(0))
        record["things"][name] = {
            "rows": rows,
            "mean_iou": {key: mean_iou(each.matrices.double().sum(0)).item() for key, each in
                         (("without", without), ("with", words))},
            "agreement": difference(words, without, args.seed)["mean_iou"],
        }  # fmt: skip
        random = torch.Generator().manual_seed(args.seed)
        count, pictures = max(1, SHEET_MASKS // len(args.things)), []
        for place in torch.randperm(len(things), generator=random)[:count].tolist():
            mask = pairs.labels.decode(pairs.mask(things[place].index))
            pictures.append([mask, *(images[place] for images in shown)])
        sheet.append((["mask", NOTHING, *(f"{color} {name}" for color in colors)], pictures))
    if args.prompt:
        things = [Thing(index, 0, np.zeros(0)) for index in evenly_spaced(range(len(pairs)), args.num_masks)]
        plain = sampling.images(things, "", Arm(NOTHING))
        without, plain_lab = read(things, plain), to_lab(args, pairs, things, plain, False)
        for name, text in args.prompt:
            images = sampling.images(things, "", Arm(name, prompt=text))
            found = of_light(args, pairs, things, to_lab(args, pairs, things, images, False), plain_lab)
            found["agreement"] = difference(read(things, images), without, args.seed)["mean_iou"]
            record["prompts"][name] = {"text": text, **found}
    record |= {
        "command": " ".join(["python", *sys.argv]), "prompt_guidance_scale": args.prompt_guidance_scale,
        "steps": args.steps,
        "min_area": args.min_area, "seed": args.seed, "split": args.split, "resolution": list(pairs.resolution),
        "segmenter": judge.describe(pairs.resolution), "commit": code_commit(), "versions": versions(),
    }  # fmt: skip
    return record, sheet


def write_sheet(parts: list[SheetPart], path: Path) -> None:
    """Write the parts below each other, each with headers of its own: classes are asked for in their own colours."""
    grids = [image_grid(rows, headers) for headers, rows in parts]
    sheet = Image.new("RGB", (max(grid.width for grid in grids), sum(grid.height for grid in grids)), BACKGROUND)
    top = 0
    for grid in grids:
        sheet.paste(grid, (0, top))
        top += grid.height
    write_jpeg(sheet, path)


def tables(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    heads = [
        "asked",
        "wording",
        "images",
        "has the colour",
        "by chance",
        *AXES,
        "change inside",
        "outside",
        "of other things",
        "renamed",
    ]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for name, found in record["things"].items():
        for row in found["rows"]:
            asked = f"{row['color']} {name}{', held out' if row['held_out'] else ''}"
            share = f"{100 * row['has_it']['difference']:.0f} % ({100 * row['has_it']['low']:.0f} to "
            share += f"{100 * row['has_it']['high']:.0f})"
            chance = f"{100 * row['had_it']:.0f} %"
            axes = [interval_text(row[axis], ".1f") for axis in AXES]
            cells = [f"{row['inside']:.1f}", f"{row['outside']:.1f}"]
            cells.append(f"{row['others']:.1f}" if "others" in row else "")
            others = f"{row['other_things_changed']} of {row['other_things']}"
            lines.append([asked, row["wording"], str(row["images"]), share, chance, *axes, *cells, others])
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    for name, found in record["things"].items():
        values = [f"{found['mean_iou'][key]:.3f}" for key in ("with", "without")]
        parts.append(f"Mean IoU at masks with a {name}: {values[0]} with words, {values[1]} without, "
                     f"{interval_text(found['agreement'])}.")  # fmt: skip
    for name, colors in record.get("photos", {}).items():
        found = [f"{color} {counts['right']} of {counts['regions']}" for color, counts in sorted(colors.items())]
        parts.append(f"Photos with a {name} whose colour is named as it is known: {', '.join(found)}.")
    if record["prompts"]:
        heads = ["text", "images", "lightness", *(f"sky, {axis}" for axis in AXES), "mean IoU"]
        lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
        for found in record["prompts"].values():
            sky = [interval_text(found.get("sky", {}).get(axis), ".1f") for axis in AXES]
            light = interval_text(found["lightness"], ".1f")
            lines.append([found["text"], str(found["images"]), light, *sky, interval_text(found["agreement"])])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def several_colors(text: str) -> tuple[str, list[str]]:
    name, colors = named_folder(text)
    return name, colors.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder of a network that reads texts")
    parser.add_argument("--dataset", required=True, help="prepared folder")
    parser.add_argument("--segmenter", required=True, help="the judge: a folder of `semseg-diffusers segmenter`")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, or to continue")
    parser.add_argument("--things", nargs="+", default=["car"], help="classes whose things are asked for (car)")
    parser.add_argument(
        "--colors", nargs="+", default=["red", "blue", "white", "black"], help="as `caption` names them"
    )
    parser.add_argument(
        "--held_out", nargs="*", default=[], metavar="CLASS:COLOR", help="in no caption of the training"
    )
    parser.add_argument("--wording", action="append", default=[], help="with {color} and {name}; as often as needed")
    parser.add_argument("--prompt", type=named_folder, action="append", default=[], metavar="NAME=TEXT")
    parser.add_argument("--text", help="said of all images")
    parser.add_argument("--colors_column", help="of the dataset, as of `caption`: colours that are known")
    parser.add_argument("--photos", help="prepared folder with photos whose colours are known (default: --dataset)")
    parser.add_argument("--where", type=named_folder, action="append", default=[], metavar="COLUMN=VALUE",
                        help="of the photos with colours that are known, those of one light")  # fmt: skip
    parser.add_argument("--colors_of", type=several_colors, action="append", default=[], metavar="CLASS=COLOR,COLOR",
                        help="in place of --colors")  # fmt: skip
    parser.add_argument("--prompt_guidance_scale", type=float, help="default: that of the mask")
    parser.add_argument("--steps", type=int, help="default: what the model recommends")
    parser.add_argument("--min_area", type=int, default=64, help="pixels of a thing that is asked for (64)")
    parser.add_argument("--no_white_balance", action="store_true", help="where the captions were written without it")
    parser.add_argument("--split", default="val", help="default val")
    parser.add_argument("--num_masks", type=int, help="at most, of each class, at even distances (default: all)")
    parser.add_argument("--batch_size", type=int, default=8, help="default 8")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    record, sheet = collect(args, Sampling(args, load_pairs(args.dataset, args.split)))
    write_json(args.output / "words.json", record)
    write_sheet(sheet, args.output / "words.jpg")
    print(tables(record))


if __name__ == "__main__":
    main()
