"""Segmentation scores of a whole set from one confusion matrix: IoU per class, its mean, and pixel accuracy.
One matrix over the set, not a mean over images; averaged over classes the masks hold, as BDD100K does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics.classification import MulticlassConfusionMatrix


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of predicted class ids against masks, all in [0, 1]."""

    mean_iou: float  # over the classes in `iou`
    pixel_accuracy: float  # share of labelled pixels
    iou: dict[str, float]  # by class name, for the classes present in the masks
    absent: tuple[str, ...]  # classes that no mask holds: not in the mean
    num_images: int
    num_pixels: int  # labelled ones


def new_confusion_matrix(num_classes: int, ignore_index: int = 255) -> MulticlassConfusionMatrix:
    """Return torchmetrics' matrix: rows ground truth, columns predictions; fed by `update_confusion_matrix`."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)


def update_confusion_matrix(matrix: MulticlassConfusionMatrix, predictions: torch.Tensor, masks: torch.Tensor) -> None:
    """Count predicted ids (B, H, W) against masks (B, H, W) of any integer dtype."""
    # 64 bits: torchmetrics forms target * num_classes + prediction, which wraps around in uint8.
    matrix.update(predictions.long().to(matrix.device), masks.long().to(matrix.device))


def scores_from_confusion_matrix(
    counts: torch.Tensor, class_names: Sequence[str], num_images: int
) -> SegmentationScores:
    """Turn counts into scores.

    Args:
        counts: (num_classes, num_classes) integers, rows ground truth, columns predictions.
        class_names: one per class.
        num_images: how many images were counted, kept beside the scores.

    Raises:
        ValueError: where the masks hold no labelled pixel at all.

    Example:
        >>> scores = scores_from_confusion_matrix(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["a", "b", "c"], 1)
        >>> scores.pixel_accuracy, scores.iou, scores.absent
        (0.875, {'a': 0.75, 'b': 0.8}, ('c',))
    """
    counts = counts.to(torch.float64)
    correct, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)  # (num_classes,) each
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
