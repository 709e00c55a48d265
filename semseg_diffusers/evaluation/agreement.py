"""How well images carry their masks: what a segmentation network reads from them, against the masks they were made
from, between a ceiling (real photos) and a floor (masks of others). One confusion matrix over the set."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.controls import shuffled_indices
from semseg_diffusers.evaluation.metrics import SegmentationScores, confusion_counts, scores_from_confusion_matrix


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
    paper: SegmentationScores | None  # reading of the photo against reading of the image: PAPER, section IV-A
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
    known = _KnownPixels(labels, not_judged)
    place_of = {stem: place for place, stem in enumerate(real.stems)}
    scenes = set(generated.stems)
    chosen = [place for stem, place in place_of.items() if stem in scenes]
    if len(chosen) < len(scenes):
        chosen = list(place_of.values())
    others = shuffled_indices(list(generated.stems), seed)
    per_image = [
        known.counts(prediction, mask) for prediction, mask in zip(generated.predictions, generated.masks, strict=True)
    ]
    pairs = [
        (place_of[stem], place)
        for place, stem in enumerate(generated.stems)
        if stem in place_of and torch.equal(real.masks[place_of[stem]], generated.masks[place])
    ]
    truth = torch.stack(per_image).sum((0, 2))  # (num_classes,)
    return Agreement(
        real=known.score([(real.predictions[place], real.masks[place]) for place in chosen]),
        generated=known.scores_of(per_image),
        shuffled=known.score([(generated.predictions[i], generated.masks[j]) for i, j in enumerate(others)]),
        paper=known.score([(generated.predictions[j], real.predictions[i]) for i, j in pairs]) if pairs else None,
        image_mean_iou=[known.scores_of([counts]).mean_iou if counts.sum() > 0 else None for counts in per_image],
        pixel_share=dict(zip(labels.names, (truth / truth.sum()).tolist(), strict=True)),
    )


class _KnownPixels:
    """Counts and scores over the classes that the network knows."""

    def __init__(self, labels: LabelSet, not_judged: Sequence[str]):
        self.labels = labels
        self._not_judged = [labels.label2id[name] for name in not_judged]

    def counts(self, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        for index in self._not_judged:
            truth = torch.where(truth == index, self.labels.ignore_index, truth)
        return confusion_counts(prediction, truth, self.labels.num_classes, self.labels.ignore_index)

    def score(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> SegmentationScores:
        return self.scores_of([self.counts(prediction, truth) for prediction, truth in pairs])

    def scores_of(self, counts: list[torch.Tensor]) -> SegmentationScores:
        return scores_from_confusion_matrix(torch.stack(counts).sum(0), self.labels.names, len(counts))
