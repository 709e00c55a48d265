"""Agreement with masks: IoU per class, mean IoU and pixel accuracy, with floor and ceiling.

One confusion matrix over a set, not a mean over images; the mean is over classes in the masks, as BDD100K does.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torchmetrics import classification

from semseg_diffusers.data.labels import LabelSet


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of predicted class ids against masks, all in [0, 1]."""

    mean_iou: float  # over the classes in `iou`
    pixel_accuracy: float  # share of labelled pixels
    iou: dict[str, float]  # by class name, for the classes present in the masks
    absent: tuple[str, ...]  # classes in no mask: not in the mean
    num_images: int
    num_pixels: int  # labelled ones


def new_confusion_matrix(num_classes: int, ignore_index: int = 255) -> classification.MulticlassConfusionMatrix:
    """Return torchmetrics' matrix, (num_classes + 1, num_classes + 1): rows ground truth, columns predictions.

    The last column counts predictions of `ignore_index` on labelled pixels, which are wrong like any other; the last
    row stays empty. Use `update_confusion_matrix` to count.
    """
    # sync_on_compute: only one process counts; torchmetrics would wait for the others
    return classification.MulticlassConfusionMatrix(
        num_classes + 1, ignore_index=ignore_index, validate_args=False, sync_on_compute=False
    )


def update_confusion_matrix(
    matrix: classification.MulticlassConfusionMatrix, predictions: torch.Tensor, masks: torch.Tensor
) -> None:
    """Count predicted ids (B, H, W) against masks (B, H, W) of any integer dtype."""
    # 64 bits: torchmetrics computes target * num_classes + prediction, which overflows in uint8.
    predictions = predictions.long().to(matrix.device)
    assert matrix.ignore_index is not None
    predictions = predictions.masked_fill(predictions == matrix.ignore_index, matrix.num_classes - 1)
    matrix.update(predictions, masks.long().to(matrix.device))


def scores_from_confusion_matrix(
    counts: torch.Tensor, class_names: Sequence[str], num_images: int
) -> SegmentationScores:
    """Compute scores from counts.

    Args:
        counts: (num_classes, num_classes) integers, rows ground truth, columns predictions; or with one more row and
            column, as in `new_confusion_matrix`, for predictions of no class.
        class_names: one per class.
        num_images: number of counted images, stored with the scores.

    Raises:
        ValueError: the masks hold no labelled pixel.

    Example:
        >>> scores = scores_from_confusion_matrix(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["a", "b", "c"], 1)
        >>> scores.pixel_accuracy, scores.iou, scores.absent
        (0.875, {'a': 0.75, 'b': 0.8}, ('c',))
    """
    counts = counts.to(torch.float64)
    num_classes = len(class_names)
    correct, truth, predicted = (
        values[:num_classes] for values in (counts.diag(), counts.sum(1), counts.sum(0))
    )  # (num_classes,) each
    if truth.sum() == 0:
        raise ValueError("the masks hold no labelled pixel, only unknown ones: there is nothing to score")
    iou = correct / (truth + predicted - correct)
    present = {name: value.item() for name, value, count in zip(class_names, iou, truth, strict=True) if count > 0}
    return SegmentationScores(
        mean_iou=sum(present.values()) / len(present),
        pixel_accuracy=(correct.sum() / truth.sum()).item(),
        iou=present,
        absent=tuple(name for name in class_names if name not in present),
        num_images=num_images,
        num_pixels=int(truth.sum()),
    )


def score_pairs(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], class_names: Sequence[str], ignore_index: int = 255
) -> SegmentationScores:
    """Score predictions (H, W) against masks (H, W), one pair per image."""
    matrix, count = new_confusion_matrix(len(class_names), ignore_index), 0
    for prediction, mask in pairs:
        update_confusion_matrix(matrix, prediction, mask)
        count += 1
    return scores_from_confusion_matrix(matrix.compute(), class_names, count)


def image_scores(
    predictions: torch.Tensor, masks: torch.Tensor, class_names: Sequence[str], ignore_index: int = 255
) -> list[SegmentationScores | None]:
    """Score each image separately: mean IoU over the classes in its own mask.

    Args:
        predictions: (B, H, W) ids; `ignore_index` counts as wrong.
        masks: (B, H, W) ids of any integer dtype.
        class_names: one per class.
        ignore_index: the id of unknown pixels.

    Returns:
        one entry per image; None if its mask holds only unknown pixels.
    """
    return [
        score_pairs([(prediction, mask)], class_names, ignore_index) if (mask != ignore_index).any() else None
        for prediction, mask in zip(predictions, masks, strict=True)
    ]


def without_classes(
    masks: torch.Tensor, class_names: Sequence[str], not_judged: Sequence[str], ignore_index: int = 255
) -> torch.Tensor:
    """Return a copy of masks, of any shape, with the classes `not_judged` set to unknown, so that none is scored."""
    unknown = [name for name in not_judged if name not in class_names]
    if unknown:
        raise ValueError(f"no class is called {', '.join(unknown)}; expected {', '.join(class_names)}.")
    ids = torch.tensor([list(class_names).index(name) for name in not_judged], dtype=masks.dtype, device=masks.device)
    return masks.masked_fill(torch.isin(masks, ids), ignore_index)


@dataclass(frozen=True)
class PredictedImages:
    """A set of images with predictions and masks."""

    stems: Sequence[str]  # the scene of each image
    predictions: torch.Tensor  # (N, H, W) uint8 ids; the ignore id where the network predicts no class of the data
    masks: torch.Tensor  # (N, H, W) uint8 ids; the ignore id is unknown


@dataclass(frozen=True)
class Agreement:
    """Scores of the sets, and of each generated image."""

    real: SegmentationScores  # the ceiling
    generated: SegmentationScores
    shuffled: SegmentationScores  # the floor
    # prediction on the real image against prediction on the generated one: PAPER, section IV-A; None: no predictions
    paper: SegmentationScores | None
    image_mean_iou: list[float | None]  # over the classes in an image's mask; None: no labelled pixel
    pixel_share: dict[str, float]  # of the labelled pixels of the generated images' masks, by class


def score_agreement(
    real: PredictedImages, generated: PredictedImages, labels: LabelSet, seed: int, not_judged: Sequence[str] = ()
) -> Agreement:
    """Score the predictions on real and on generated images against their masks.

    If all generated scenes are among the real images, the ceiling is restricted to them. The paper's variant uses the
    generated images whose mask equals that of a real image, pixel by pixel.

    Args:
        real: real images of a split.
        generated: images generated from masks of at least two scenes.
        labels: the classes.
        seed: of the shuffled masks.
        not_judged: classes unknown to the network: their pixels count as unknown.

    Raises:
        ValueError: fewer than two masks; no labelled pixel in any mask.
    """
    names, ignore = labels.names, labels.ignore_index
    real_masks = without_classes(real.masks, names, not_judged, ignore)
    masks = without_classes(generated.masks, names, not_judged, ignore)

    # 1. Generated images against their masks, in total and one by one
    of_generated = score_pairs(zip(generated.predictions, masks, strict=True), names, ignore)
    by_image = image_scores(generated.predictions, masks, names, ignore)
    counts = torch.bincount(masks[masks != ignore].long(), minlength=labels.num_classes)

    # 2. The ceiling: real images of the same scenes against their masks
    index_of = {stem: index for index, stem in enumerate(real.stems)}
    scenes = set(generated.stems)
    chosen = [index for stem, index in index_of.items() if stem in scenes]
    if len(chosen) < len(scenes):
        chosen = list(index_of.values())
    of_real = score_pairs(((real.predictions[index], real_masks[index]) for index in chosen), names, ignore)

    # 3. The floor: generated images against masks of other scenes
    others = shuffled_indices(list(generated.stems), seed)
    shuffled = score_pairs(((generated.predictions[i], masks[j]) for i, j in enumerate(others)), names, ignore)

    # 4. The paper's variant: predictions on both images of a mask against each other
    pairs = [
        (generated.predictions[index], real.predictions[index_of[stem]])
        for index, stem in enumerate(generated.stems)
        if stem in index_of and torch.equal(real.masks[index_of[stem]], generated.masks[index])
    ]
    has_predictions = any((prediction != ignore).any() for _, prediction in pairs)
    return Agreement(
        real=of_real,
        generated=of_generated,
        shuffled=shuffled,
        paper=score_pairs(pairs, names, ignore) if has_predictions else None,
        image_mean_iou=[None if scores is None else scores.mean_iou for scores in by_image],
        pixel_share=dict(zip(names, (counts / counts.sum().clamp(min=1).double()).tolist(), strict=True)),
    )


def derangement(count: int, seed: int) -> list[int]:
    """Return a seeded permutation without fixed points."""
    if count < 2:
        raise ValueError(f"expected two or more masks to shuffle; got {count}. Generate from more masks.")
    cycle = shuffled_range(count, seed)
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))  # one cycle through all
    return [successor[index] for index in range(count)]


def shuffled_indices(stems: list[str], seed: int) -> list[int]:
    """Return, for each image, the index of an image of another mask; images of the same mask get the same one."""
    first = {stem: index for index, stem in reversed(list(enumerate(stems)))}
    unique = sorted(first)
    other = {unique[index]: unique[target] for index, target in enumerate(derangement(len(unique), seed))}
    return [first[other[stem]] for stem in stems]


def shuffled_range(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in an order that the seed determines."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def spread_choice(stems: Sequence[str], count: int, seed: int) -> list[int]:
    """Choose up to `count` images that cover as many masks (`stems`) as possible; returns indices, ascending."""
    earlier: dict[str, Iterator[int]] = defaultdict(itertools.count)
    rounds = [next(earlier[stem]) for stem in stems]  # second samples only after all masks have one
    rank = shuffled_range(len(stems), seed)
    order = sorted(range(len(stems)), key=lambda index: (rounds[index], rank[index]))
    return sorted(order[:count])
