"""Segmentation scores of a whole set from one confusion matrix: IoU per class, its mean, and pixel accuracy.
One matrix over the set, not a mean over images; averaged over classes the masks hold, as BDD100K does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics import classification


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of predicted class ids against masks, all in [0, 1]."""

    mean_iou: float  # over the classes in `iou`
    pixel_accuracy: float  # share of labelled pixels
    iou: dict[str, float]  # by class name, for the classes present in the masks
    absent: tuple[str, ...]  # classes that no mask holds: not in the mean
    num_images: int
    num_pixels: int  # labelled ones


def new_confusion_matrix(num_classes: int, ignore_index: int = 255) -> classification.MulticlassConfusionMatrix:
    """Return torchmetrics' matrix, (num_classes + 1, num_classes + 1): rows ground truth, columns predictions.

    The last column counts predictions of `ignore_index` on labelled pixels, which are wrong like any other; the last
    row stays empty. Fed by `update_confusion_matrix`.
    """
    # sync_on_compute: one process counts; torchmetrics would wait for the others of the launch
    return classification.MulticlassConfusionMatrix(
        num_classes + 1, ignore_index=ignore_index, validate_args=False, sync_on_compute=False
    )


def update_confusion_matrix(
    matrix: classification.MulticlassConfusionMatrix, predictions: torch.Tensor, masks: torch.Tensor
) -> None:
    """Count predicted ids (B, H, W) against masks (B, H, W) of any integer dtype."""
    # 64 bits: torchmetrics forms target * num_classes + prediction, which wraps around in uint8.
    predictions = predictions.long().to(matrix.device)
    predictions = torch.where(predictions == matrix.ignore_index, matrix.num_classes - 1, predictions)
    matrix.update(predictions, masks.long().to(matrix.device))


def without_classes(
    masks: torch.Tensor, class_names: Sequence[str], not_judged: Sequence[str], ignore_index: int = 255
) -> torch.Tensor:
    """Return masks in which the pixels of some classes are unknown, so that these classes are not scored.

    Args:
        masks: integer ids of any shape; left as they are.
        class_names: one per class.
        not_judged: names of the classes to leave out.
        ignore_index: the id of unknown pixels.

    Raises:
        ValueError: a name is no class.

    Example:
        >>> without_classes(torch.tensor([0, 1, 2]), ["sky", "road", "car"], ["road"])
        tensor([  0, 255,   2])
    """
    unknown = [name for name in not_judged if name not in class_names]
    if unknown:
        raise ValueError(f"no class is called {', '.join(unknown)}; there are {', '.join(class_names)}.")
    ids = torch.tensor([list(class_names).index(name) for name in not_judged], dtype=masks.dtype, device=masks.device)
    return masks.masked_fill(torch.isin(masks, ids), ignore_index)


def image_scores(
    predictions: torch.Tensor, masks: torch.Tensor, class_names: Sequence[str], ignore_index: int = 255
) -> list[SegmentationScores | None]:
    """Score each image by itself: mean IoU over the classes that its own mask holds.

    Args:
        predictions: (B, H, W) ids; `ignore_index` is a wrong answer.
        masks: (B, H, W) ids of any integer dtype.
        class_names: one per class.
        ignore_index: the id of unknown pixels.

    Returns:
        one entry an image; None where its mask holds unknown pixels only.
    """
    results = []
    for prediction, mask in zip(predictions, masks, strict=True):
        matrix = new_confusion_matrix(len(class_names), ignore_index).to(mask.device)
        update_confusion_matrix(matrix, prediction, mask)
        labelled = bool((mask != ignore_index).any())
        results.append(scores_from_confusion_matrix(matrix.compute(), class_names, 1) if labelled else None)
    return results


def scores_from_confusion_matrix(
    counts: torch.Tensor, class_names: Sequence[str], num_images: int
) -> SegmentationScores:
    """Turn counts into scores.

    Args:
        counts: (num_classes, num_classes) integers, rows ground truth, columns predictions; or one row and column
            more, as `new_confusion_matrix` counts, for predictions of no class.
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
