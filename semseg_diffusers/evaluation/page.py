"""The pictures of an evaluation's page, read from the sets that were evaluated; `report.py` lays them out."""

from typing import Any

import torch
from PIL import Image

from semseg_diffusers.data.pictures import to_picture
from semseg_diffusers.evaluation.image_sets import ImageSet
from semseg_diffusers.evaluation.metrics import without_classes
from semseg_diffusers.evaluation.report_pictures import (
    ExamplePictures,
    GridRow,
    PairPictures,
    ReportPictures,
    error_map,
)


GRID_ROWS = 8  # masks, at even distances
GRID_SAMPLES = 4  # images of a mask, at most


def collect_pictures(
    results: dict[str, Any],
    real: ImageSet,
    train: ImageSet | None,
    generated: ImageSet,
    predictions: torch.Tensor,
) -> ReportPictures:
    """Read the pictures that the results speak of.

    Args:
        results: what `results.json` holds.
        real, train, generated: the sets.
        predictions: (N, H, W) ids that the segmentation network read from the generated images.
    """
    labels = generated.labels
    photo_of = {stem: place for place, stem in enumerate(real.stems)}
    samples_of: dict[str, list[int]] = {}
    for place, stem in enumerate(generated.stems):
        samples_of.setdefault(stem, []).append(place)
    place_of = {name: place for place, name in enumerate(generated.names)}
    stems = list(samples_of)
    count = min(GRID_ROWS, len(stems))

    def photo(stem: str) -> Image.Image | None:
        return to_picture(real.image(photo_of[stem])) if stem in photo_of else None

    grid = [
        GridRow(
            stem=stem,
            mask=labels.decode(generated.mask(samples_of[stem][0])),
            real=photo(stem),
            samples=[to_picture(generated.image(place)) for place in samples_of[stem][:GRID_SAMPLES]],
        )
        for stem in (stems[row * len(stems) // count] for row in range(count))
    ]
    examples = {}
    for entry in (*results["examples"]["best"], *results["examples"]["worst"]):
        place = place_of[entry["image"]]
        mask, prediction = generated.mask(place), predictions[place]
        judged = without_classes(mask, labels.names, results["segmenter"]["not_judged"], labels.ignore_index)
        examples[entry["image"]] = ExamplePictures(
            mask=labels.decode(mask),
            generated=to_picture(generated.image(place)),
            prediction=labels.decode(prediction),
            mistakes=error_map(prediction, judged, labels),
            real=photo(entry["stem"]),
        )
    closest = {}
    if results["neighbours"] is not None and train is not None:
        train_place = {stem: place for place, stem in enumerate(train.stems)}
        for found in results["neighbours"]:
            for pair in found["closest"]:
                closest[pair["image"], pair["train_stem"]] = PairPictures(
                    generated=to_picture(generated.image(place_of[pair["image"]])),
                    train=to_picture(train.image(train_place[pair["train_stem"]])),
                )
    return ReportPictures(labels=labels, grid=grid, examples=examples, closest=closest)
