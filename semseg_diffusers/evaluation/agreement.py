"""How well images carry their masks: what a segmentation network reads from them, against the masks they were made
from, between a ceiling (real photos) and a floor (masks of others). One confusion matrix over the set."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.controls import shuffled_indices
from semseg_diffusers.evaluation.metrics import (
    SegmentationScores,
    image_scores,
    new_confusion_matrix,
    scores_from_confusion_matrix,
    update_confusion_matrix,
    without_classes,
)


@dataclass(frozen=True)
class ReadImages:
    """What the network read from a set of images.

    Args:
        stems: the scene of each image.
        predictions: (N, H, W) uint8 ids; the ignore id where the network says nothing that has a class.
        masks: (N, H, W) uint8 ids; the ignore id is unknown.
    """

    stems: Sequence[str]
    predictions: torch.Tensor
    masks: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """Scores of the sets, and of each generated image alone."""

    real: SegmentationScores  # the ceiling
    generated: SegmentationScores
    shuffled: SegmentationScores  # the floor
    # reading of the photo against reading of the image: PAPER, section IV-A; None: no photo that a class is read in
    paper: SegmentationScores | None
    image_mean_iou: list[float | None]  # over the classes that an image's mask holds; None: no labelled pixel
    pixel_share: dict[str, float]  # of the labelled pixels of the generated images' masks, by class


def score_agreement(
    real: ReadImages, generated: ReadImages, labels: LabelSet, seed: int, not_judged: Sequence[str] = ()
) -> Agreement:
    """Score what was read from real photos and from generated images.

    The real photos are narrowed to the scenes that were generated, where all of them are there: so the rows speak of
    the same scenes. The paper's variant takes the images whose mask is that of a photo, pixel by pixel.

    Args:
        real: photos of a split.
        generated: images made from masks, of two scenes at least.
        labels: the classes.
        seed: of the shuffle.
        not_judged: classes that the network does not know: their pixels count as unknown.

    Raises:
        ValueError: fewer than two masks; no labelled pixel in any mask.
    """

    def score(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> SegmentationScores:
        matrix = new_confusion_matrix(labels.num_classes, labels.ignore_index)
        for prediction, truth in pairs:
            update_confusion_matrix(matrix, prediction, truth)
        return scores_from_confusion_matrix(matrix.compute(), labels.names, len(pairs))

    def judged(masks: torch.Tensor) -> torch.Tensor:
        return without_classes(masks, labels.names, not_judged, labels.ignore_index)

    real_masks, masks = judged(real.masks), judged(generated.masks)
    place_of = {stem: place for place, stem in enumerate(real.stems)}
    scenes = set(generated.stems)
    chosen = [place for stem, place in place_of.items() if stem in scenes]
    if len(chosen) < len(scenes):
        chosen = list(place_of.values())
    others = shuffled_indices(list(generated.stems), seed)
    pairs = [
        (place_of[stem], place)
        for place, stem in enumerate(generated.stems)
        if stem in place_of and torch.equal(real.masks[place_of[stem]], generated.masks[place])
    ]
    read = any((real.predictions[photo] != labels.ignore_index).any() for photo, _ in pairs)
    by_image = image_scores(generated.predictions, masks, labels.names, labels.ignore_index)
    counts = torch.bincount(masks[masks != labels.ignore_index].long(), minlength=labels.num_classes)
    return Agreement(
        real=score([(real.predictions[place], real_masks[place]) for place in chosen]),
        generated=score(list(zip(generated.predictions, masks, strict=True))),
        shuffled=score([(generated.predictions[i], masks[j]) for i, j in enumerate(others)]),
        paper=score([(generated.predictions[j], real.predictions[i]) for i, j in pairs]) if read else None,
        image_mean_iou=[None if scores is None else scores.mean_iou for scores in by_image],
        pixel_share=dict(zip(labels.names, (counts / counts.sum().clamp(min=1).double()).tolist(), strict=True)),
    )
