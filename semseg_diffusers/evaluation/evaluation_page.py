"""The page of an evaluation: its images, the maps of what the segmentation network got wrong, and its numbers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.evaluation.metrics import without_classes
from semseg_diffusers.reports.findings import (
    evaluation_findings,
    fraction_of_ceiling,
    ratio,
    read_distances,
    results_commands,
)
from semseg_diffusers.reports.render import BarRow, axis_ticks, class_legend, is_finite, write_page
from semseg_diffusers.utils.images import to_image


RIGHT = (240, 240, 240)  # near white: what is right needs no attention
UNKNOWN = ((200, 200, 200), (165, 165, 165))  # stripes: no class has those
NO_CLASS = (0, 0, 0)  # wrong, and the network named no class of the label set
STRIPE = 3  # pixels
GRID_ROWS = 8  # masks, at even distances
GRID_SAMPLES = 4  # images of a mask, at most
SETS = {  # from worst to best: name, what it is, name in the table of classes
    "shuffled": ("wrong masks (floor)", "generated images against the masks of others", "wrong masks"),
    "generated": ("generated", "generated images against the masks they were made from", "generated"),
    "real": ("real photos (ceiling)", "real photos against their masks, at the same resolution", "real"),
}


@dataclass(frozen=True)
class ReportImages:
    """All images of a page; each part may be missing."""

    labels: LabelSet | None = None  # gives classes their order and colours on the page
    grid: Sequence[tuple[str, list[Image.Image | None]]] = ()  # (stem of a mask, [mask, real photo or None, samples])
    # `image` of an example -> mask, generated image, prediction, mistakes (`error_map`), real photo or None
    examples: Mapping[str, list[Image.Image | None]] = field(default_factory=dict)
    # `image` and `train_stem` of a close pair -> generated image and photo
    closest: Mapping[tuple[str, str], tuple[Image.Image, Image.Image]] = field(default_factory=dict)


def error_map(prediction: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, labels: LabelSet) -> Image.Image:
    """Show where a prediction (H, W) differs from its mask (H, W), as a P-mode image.

    Right pixels are near white; wrong ones take the colour of the class that was predicted (black where the network
    named none of the label set); pixels that the mask does not know are striped grey.
    """
    prediction, mask = (ids.cpu().numpy() if isinstance(ids, torch.Tensor) else ids for ids in (prediction, mask))
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction and mask must both be (H, W); got {prediction.shape} and {mask.shape}.")
    labels.check_ids(prediction, source="the prediction")
    labels.check_ids(mask)
    table = np.full((256, 3), NO_CLASS, dtype=np.uint8)
    table[: labels.num_classes] = labels.colors
    image = table[prediction]  # (H, W, 3)
    image[prediction == mask] = RIGHT
    rows, columns = np.indices(mask.shape)
    stripes = np.asarray(UNKNOWN, dtype=np.uint8)[(rows + columns) // STRIPE % 2]  # (H, W, 3)
    unknown = mask == labels.ignore_index
    image[unknown] = stripes[unknown]
    colors, ids = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)  # at most 256
    result = Image.fromarray(ids.reshape(mask.shape).astype(np.uint8))
    result.putpalette(colors.tobytes())
    return result


def collect_images(
    results: Mapping[str, Any], real: ImageSet, train: ImageSet | None, generated: ImageSet, predictions: torch.Tensor
) -> ReportImages:
    """Read the images that the results name; `predictions` (N, H, W) are the ids found on the generated images."""
    labels = generated.labels
    index_of = {name: index for index, name in enumerate(generated.names)}
    samples_of: dict[str, list[int]] = {}
    for index, stem in enumerate(generated.stems):
        samples_of.setdefault(stem, []).append(index)

    def photo(stem: str) -> Image.Image | None:
        return to_image(real.image(real.stems.index(stem))) if stem in real.stems else None

    grid = []
    for stem, samples in evenly_spaced([*samples_of.items()], GRID_ROWS):
        images = [to_image(generated.image(index)) for index in samples[:GRID_SAMPLES]]
        grid.append((stem, [labels.decode(generated.mask(samples[0])), photo(stem), *images]))
    examples = {}
    for entry in (*results["examples"]["best"], *results["examples"]["worst"]):
        index = index_of[entry["image"]]
        mask, prediction = generated.mask(index), predictions[index]
        judged = without_classes(mask, labels.names, results["segmenter"]["not_judged"], labels.ignore_index)
        examples[entry["image"]] = [
            labels.decode(mask),
            to_image(generated.image(index)),
            labels.decode(prediction),
            error_map(prediction, judged, labels),
            photo(entry["stem"]),
        ]
    closest = {}
    if results["neighbours"] is not None and train is not None:
        for pair in (pair for found in results["neighbours"] for pair in found["closest"]):
            image, stem = pair["image"], pair["train_stem"]
            photos = generated.image(index_of[image]), train.image(train.stems.index(stem))
            closest[image, stem] = (to_image(photos[0]), to_image(photos[1]))
    return ReportImages(labels, grid, examples, closest)


def write_report(path: str | Path, results: Mapping[str, Any], images: ReportImages) -> None:
    """Write the page of an evaluation; parts of its results that are null are named as not measured."""
    masks = [cells[0] for _, cells in images.grid if cells[0] is not None]
    colors = {color for mask in masks for _, color in mask.convert("RGB").getcolors(mask.width * mask.height) or ()}
    model = results["settings"].get("model") or (results.get("generation") or {}).get("model") or "MODEL"
    write_page(
        path,
        "evaluation.html.j2",
        results=results,
        findings=evaluation_findings(results),
        images=images,
        classes=[entry for entry in class_legend(images.labels) if entry[1] in colors] if images.labels else [],
        agreement=_agreement(results, images.labels),
        fidelity=[_fidelity(entry, results) for entry in results.get("fidelity") or [] if entry.get("references")],
        ratio=ratio,
        neighbours=[_neighbours(found) for found in results.get("neighbours") or []],
        commands=results_commands(dict(results), model, separator=" \\\n  "),
    )


def _agreement(results: Mapping[str, Any], labels: LabelSet | None) -> dict[str, Any] | None:
    """Return the scores of segmentation: of the whole set, and of each class in the order of the labels."""
    rows = {name: row for name, row in (results.get("agreement") or {}).items() if row}
    if "generated" not in rows:
        return None
    measures = []
    for key, name in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        floor, value, ceiling = (rows.get(each, {}).get(key) for each in SETS)
        fraction = fraction_of_ceiling(floor, value, ceiling)
        measures.append((name, floor, value, ceiling, None if fraction is None else 100 * fraction))
    shown = [row for row in reversed(SETS) if row in rows]
    shares = rows["generated"].get("pixel_share") or {}
    colors = {} if labels is None else dict(zip(labels.names, labels.colors, strict=True))
    measured = dict.fromkeys(name for row in shown for name in rows[row].get("iou") or {})
    classes = [
        BarRow(
            name,
            [(rows[row].get("iou") or {}).get(name) for row in shown],
            [100 * shares[name] if is_finite(shares.get(name)) else None] if shares else [],
            colors.get(name),
        )
        for name in (*filter(measured.__contains__, colors), *(name for name in measured if name not in colors))
    ]
    return {
        "measures": measures,
        "counts": {name: (text, rows[row]) for row, (name, text, _) in SETS.items() if row in rows},
        "classes": classes,
        "series": [SETS[row][2] for row in shown],
        "more": ["pixels, %"] if shares else [],
    }


def _fidelity(entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the distances in the features of one network, and whose features they are."""
    name = entry["features"]["name"]
    if name == (results.get("segmenter") or {}).get("name"):
        role = "the segmentation network itself"
    elif name.startswith("efficientnet-lite"):
        role = "pretrained on ImageNet"
    else:
        role = None
    return {**read_distances(entry), "role": role}


def _neighbours(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the distances by the features of one network, or by pixels, sorted and with their axis."""
    threshold, distances = found.get("threshold"), found.get("distances") or {}
    sets = {key: sorted(filter(is_finite, distances[key])) for key in ("real", "generated") if distances}
    ends = [value for values in sets.values() for value in values] + ([threshold] if is_finite(threshold) else [])
    medians = {key: statistics.median(values) if values else None for key, values in sets.items()}
    axis = axis_ticks(min(ends), max(ends)) if ends else [0.0, 1.0]
    return {**found, "sets": sets, "medians": medians, "axis": axis}
