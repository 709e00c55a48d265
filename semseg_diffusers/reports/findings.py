"""Results of an evaluation as text: findings, a Markdown table, and the commands that reproduce them.

Findings follow from the numbers by fixed rules: every value is judged by its floor and ceiling.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from semseg_diffusers.reports.render import NOTHING, is_finite, number, percent


ROWS = ("shuffled", "generated", "real")  # floor, value, ceiling
MIN_RANGE = 0.02  # mean IoU between floor and ceiling, below which a value between them says nothing
FRACTIONS = (  # up to this fraction of the way from floor to ceiling -> sentence
    (0.1, "the images hardly follow their masks"),
    (0.5, "the images follow their masks in part"),
    (0.9, "the images follow their masks for the most part"),
    (1.0, "almost as well as real photos"),
)
FEW_MASKS = 50  # below this a class is often in a handful of images only
SAME_IMAGE = 0.1  # diversity ratio below which seeds hardly change the image
LESS_VARIED = 0.8  # of the real photos' own variety
CLOSE_TO_FLOOR = 1.5  # times the floor


# FID and KID are distances in the features of Inception, by torchmetrics or in NVIDIA's TorchScript file.
_INCEPTION = re.compile(r"inception(:.+)?|(.*[/\\])?inception-2015-12-05\.pt")


def distance_keys(features: str) -> tuple[str, str]:
    """Return the keys of the Fréchet and the kernel distance in the features of a network, in `results.json`."""
    return ("fid", "kid") if _INCEPTION.fullmatch(features) else ("frechet_distance", "kernel_distance")


def read_distances(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `fidelity` with `frechet`, `kernel`, `kernel_std` and `subset_size` in place of its own keys.

    Its `names` are those of the two distances. Files of earlier versions call the distances of every network FID and
    KID; here they get the names that they have now.
    """
    features = entry["features"]["name"]
    frechet, kernel = distance_keys(features)

    def read(row: Mapping[str, Any] | None) -> dict[str, Any]:
        row = dict(row or {})
        values = {}
        for key, current, old in (
            ("frechet", frechet, "fid"),
            ("kernel", kernel, "kid"),
            ("kernel_std", f"{kernel}_std", "kid_std"),
            ("subset_size", f"{kernel}_subset_size", "kid_subset_size"),
        ):
            values[key] = row.get(current, row.get(old))
        return {**row, **values}

    if frechet == "fid":
        names = {"frechet": "FID", "kernel": "KID"}
    else:
        fd_dino = features == "facebook/dinov2-large"
        names = {"frechet": "FD-DINOv2" if fd_dino else "Fréchet distance", "kernel": "kernel distance"}
    rows = [
        {**row, "generated": read(row.get("generated")), "floor": read(row.get("floor"))}
        for row in entry.get("references") or []
    ]
    return {**entry, "names": names, "keys": {"frechet": frechet, "kernel": kernel}, "references": rows}


class Finding(NamedTuple):
    """One or two sentences, and their topic."""

    topic: str
    text: str


def fraction_of_ceiling(floor: float | None, value: float | None, ceiling: float | None) -> float | None:
    """Return the fraction of the way from floor (0) to ceiling (1); None if the two are too close."""
    if not (is_finite(floor) and is_finite(value) and is_finite(ceiling)) or ceiling - floor < MIN_RANGE:
        return None
    return round((value - floor) / (ceiling - floor), 6)


def ratio(value: float | None, floor: float | None) -> float | None:
    """Return how many times its floor a distance is; None without a floor to divide by."""
    return value / floor if is_finite(value) and is_finite(floor) and floor > 0 else None


def evaluation_findings(results: Mapping[str, Any]) -> list[Finding]:
    """Return the findings of `results.json`, part by part, without those that were not measured."""
    found = [
        _agreement(results.get("agreement") or {}),
        _fidelity(results),
        *map(_neighbours, results.get("neighbours") or []),
        _diversity((results.get("diversity") or [None])[0]),
    ]
    num_masks = results["data"].get("num_masks")
    if num_masks is not None and num_masks < FEW_MASKS:
        text = f"Only {num_masks:,} masks were used: small differences between two such evaluations are chance."
        found.append(Finding("Size", text))
    return [each for each in found if each is not None]


def _agreement(agreement: Mapping[str, Any]) -> Finding | None:
    floor, value, ceiling = ((agreement.get(name) or {}).get("mean_iou") for name in ROWS)
    if value is None:
        return None
    topic = "Agreement with the masks"
    if not all(map(is_finite, (floor, value, ceiling))):
        return Finding(topic, f"Mean IoU {number(value)}; without floor and ceiling this says little.")
    ends = f"real photos reach {number(ceiling)} (ceiling), wrong masks {number(floor)} (floor)"
    measured = f"Mean IoU {number(value)}; {ends}."
    fraction = fraction_of_ceiling(floor, value, ceiling)
    if fraction is None:
        return Finding(topic, f"{measured} Floor and ceiling are too close for a conclusion: use a better segmenter.")
    if fraction > 1:
        reading = (
            "The segmenter does better on the generated images than on real photos. They are easier to segment, as "
            "simple, typical images are, which does not make them better."
        )
    elif fraction <= 0:
        reading = "The images carry their masks no better than masks of other images: they do not follow them."
    else:
        follows = next(text for limit, text in FRACTIONS if fraction <= limit)
        reading = f"That is {percent(fraction)} of the way from floor to ceiling: {follows}."
    return Finding(topic, f"{measured} {reading}")


def _fidelity(results: Mapping[str, Any]) -> Finding | None:
    """Judge the Fréchet distance to the first reference by the first network."""
    entries = [read_distances(entry) for entry in results.get("fidelity") or []]
    rows = [(entry, row) for entry in entries for row in entry["references"]]
    if not rows:
        return None
    entry, reference = rows[0]
    name = entry["names"]["frechet"]
    value, floor = reference["generated"]["frechet"], reference["floor"]["frechet"]
    times = ratio(value, floor)
    topic = "Likeness to real photos"
    where = f"the {reference['reference']} photos, features of {entry['features']['name']}"
    if not is_finite(value):
        return Finding(topic, f"{name} could not be computed for {where}.")
    if times is None:
        return Finding(topic, f"{name} {number(value)} to {where}; without a floor this says little.")
    text = f"{name} {number(value)} to {where}; as many other real photos have {number(floor)} (floor): "
    if times <= 1:
        text += "the generated images are no farther away than real photos."
    elif times < CLOSE_TO_FLOOR:
        text += f"{number(times)} times the floor, close to what real photos reach."
    else:
        text += f"{number(times)} times the floor, so the set can be distinguished from real photos."
    if entry["features"]["name"] == (results.get("segmenter") or {}).get("name"):
        text += " These features are the segmenter's own, which ignores most of the appearance: this says little."
    return Finding(topic, text)


def _neighbours(neighbours: Mapping[str, Any]) -> Finding:
    closer, share, threshold = (neighbours.get(name) for name in ("num_closer", "share_closer", "threshold"))
    generated, real = neighbours.get("generated_median"), neighbours.get("real_median")
    what = f"{number(threshold)} ({neighbours['threshold_is']})"
    if closer:
        images = "image is" if closer == 1 else "images are"
        text = f"{closer:,} generated {images} closer to a training photo than {what}, {percent(share)} of all: "
        text += "look at the pairs."
    else:
        text = f"No generated image is closer to a training photo than {what}."
    if is_finite(generated) and is_finite(real):
        how = "closer" if generated < real else "no closer"
        text += f" On the whole the images are {how} to the training photos than unseen real photos are (median "
        text += f"{number(generated)} against {number(real)})"
        text += ": a sign of copying, or of images without detail." if generated < real else "."
    return Finding(f"Memorized photos, by {neighbours['features']}", text)


def _diversity(row: Mapping[str, Any] | None) -> Finding | None:
    if not row:
        return None
    value, between, real = (row.get(name) for name in ("ratio", "between_masks", "real_between"))
    if not is_finite(value):
        return Finding("Diversity", "Images of one mask could not be compared with those of others.")
    text = f"Images of one mask differ {number(value)} times as much as images of different masks"
    text += ": the seed hardly changes the image." if value < SAME_IMAGE else "."
    variety = ratio(between, real)
    if variety is not None:
        text += f" Images of different masks differ {number(variety)} times as much as different real photos"
        text += ": the set is less varied than real photos." if variety < LESS_VARIED else "."
    return Finding("Diversity", text)


def results_table(results: dict[str, Any]) -> str:
    """Return agreement and fidelity as a Markdown table: each row with its floor and, if there is one, its ceiling."""
    lines = ["| measure | better | floor | generated | ceiling |", "|---|---|---:|---:|---:|"]
    agreement = results["agreement"]
    for key, name in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        lines.append(f"| {name} | higher | {' | '.join(number(agreement[row][key]) for row in ROWS)} |")
    for entry in map(read_distances, results["fidelity"]):
        for reference in entry["references"]:
            where = f"{reference['reference']} ({entry['features']['name']})".replace("|", "\\|")
            for key, name in entry["names"].items():
                floor, value = reference["floor"][key], reference["generated"][key]
                lines.append(f"| {name} to {where} | lower | {number(floor)} | {number(value)} | {NOTHING} |")
    return "\n".join(lines)


def results_commands(
    results: dict[str, Any], model: str, separator: str = " ", is_upscaler: bool = False
) -> list[str]:
    """Return the command that reproduces these numbers with a model, after `generate` where images were given.

    An upscaler takes its own place, beside the model whose images it enlarged.
    """
    settings, generation = dict(results["settings"]), results.get("generation")
    commands, place = [], "upscaler" if is_upscaler else "model"
    if settings.get("model"):
        settings[place] = model
    elif generation:
        kept = (
            "scheduler", "num_inference_steps", "guidance_scale", "guidance_start", "guidance_stop", "height", "width",
            "dtype", "seed", "variant", "upscaler", "upscaler_steps", "noise_level",
        )  # fmt: skip
        options = {
            "model": generation.get("model"),
            "masks": f"{settings['dataset']}/{settings['split']}/masks",
            "output": settings["generated"],
            "num_images_per_mask": results["data"]["num_generated"] // results["data"]["num_masks"],
            **{name: generation.get(name) for name in kept},
            place: model,
        }
        commands.append(command_line("generate", options, separator))
    if "features" in settings:
        settings["features"] = settings["features"] or ["none"]
    if settings.get("segmenter_size") is not None:
        settings["segmenter_size"] = "x".join(map(str, settings["segmenter_size"]))
    commands.append(command_line("evaluate", settings, separator))
    return commands


def command_line(
    name: str, options: Mapping[str, Any], separator: str = " ", write: Callable[[Any], str] = str
) -> str:
    """Return a command of the package with its options, quoted for the shell; None and False leave one out."""
    words = []
    for key, value in options.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words.append(shlex.join([f"--{key}", *map(write, values)]))
    return separator.join([f"semseg-diffusers {name}", *words])
