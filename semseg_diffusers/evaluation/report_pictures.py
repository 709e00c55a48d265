"""The pictures that an evaluation's page shows, and the map of where a segmentation network errs.
No equation stands behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.data.labels import LabelSet


RIGHT = (240, 240, 240)  # near white: what is right needs no attention
UNKNOWN = ((200, 200, 200), (165, 165, 165))  # stripes: no class has those
NO_CLASS = (0, 0, 0)  # wrong, and the network named no class of the label set
STRIPE = 3  # pixels


@dataclass(frozen=True)
class GridRow:
    """One mask, the real photo it belongs to, and the images made from it."""

    stem: str
    mask: Image.Image
    real: Image.Image | None
    samples: Sequence[Image.Image]


@dataclass(frozen=True)
class ExamplePictures:
    """One generated image with its mask and how it was read; `mistakes` is made by `error_map`."""

    mask: Image.Image
    generated: Image.Image
    prediction: Image.Image
    mistakes: Image.Image
    real: Image.Image | None = None


@dataclass(frozen=True)
class PairPictures:
    """A generated image and the training photo that lies closest to it."""

    generated: Image.Image
    train: Image.Image


@dataclass(frozen=True)
class ReportPictures:
    """All pictures of a page; each part may be missing.

    Args:
        labels: gives classes their order and colours on the page.
        grid: mask, real photo and samples, row by row.
        examples: by `image` of the entries in `results["examples"]`.
        closest: by `image` and `train_stem` of the entries in the `closest` of `results["neighbours"]`.
    """

    labels: LabelSet | None = None
    grid: Sequence[GridRow] = ()
    examples: Mapping[str, ExamplePictures] = field(default_factory=dict)
    closest: Mapping[tuple[str, str], PairPictures] = field(default_factory=dict)


def error_map(prediction: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, labels: LabelSet) -> Image.Image:
    """Show where a prediction differs from its mask.

    Right pixels are near white; wrong ones take the colour of the class that was predicted (black where the network
    named none of the label set); pixels that the mask does not know are striped grey.

    Args:
        prediction: class ids (H, W), `labels.ignore_index` where no class was named.
        mask: class ids (H, W).
        labels: of both.

    Returns:
        P-mode picture, hard edges kept wherever it is resized.

    Raises:
        ValueError: where the two differ in size, or hold other ids.

    Example:
        >>> labels = LabelSet(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
        >>> error_map(np.array([[0, 1]]), np.array([[0, 0]]), labels).convert("RGB").getpixel((1, 0))
        (70, 130, 180)
    """
    prediction, mask = (ids.cpu().numpy() if isinstance(ids, torch.Tensor) else ids for ids in (prediction, mask))
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction and mask must both be (H, W); got {prediction.shape} and {mask.shape}.")
    labels.check_ids(prediction, source="the prediction")
    labels.check_ids(mask)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:] = NO_CLASS
    table[: labels.num_classes] = labels.colors
    picture = table[prediction]  # (H, W, 3)
    picture[prediction == mask] = RIGHT
    rows, columns = np.indices(mask.shape)
    stripes = np.asarray(UNKNOWN, dtype=np.uint8)[(rows + columns) // STRIPE % 2]  # (H, W, 3)
    unknown = mask == labels.ignore_index
    picture[unknown] = stripes[unknown]
    return _with_palette(picture)


def _with_palette(picture: np.ndarray) -> Image.Image:
    """RGB (H, W, 3) of at most 256 colours to a P-mode picture."""
    colors, ids = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    result = Image.fromarray(ids.reshape(picture.shape[:2]).astype(np.uint8), mode="P")
    result.putpalette(colors.astype(np.uint8).tobytes())
    return result
