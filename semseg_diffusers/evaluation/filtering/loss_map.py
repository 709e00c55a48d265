"""The picture of where a network disagrees with a mask: the loss of each pixel, in steps of what its class may lose.
No equation stands behind it."""

import numpy as np
from PIL import Image

from semseg_diffusers.evaluation.report_pictures import STRIPE, UNKNOWN


STEPS = {  # loss over the tolerance of its class, below -> colour and what the page says of it
    0.5: ((240, 240, 240), "below half of the tolerance"),
    1.0: ((250, 222, 150), "half of it to all of it"),
    2.0: ((244, 140, 60), "above it, to twice: unknown"),
    4.0: ((214, 50, 40), "twice to four times: unknown"),
    np.inf: ((105, 0, 25), "more: unknown"),
}
NOT_CHECKED = "unknown before, or of a class that cannot be checked"
LEGEND = {text: color for color, text in STEPS.values()} | {NOT_CHECKED: UNKNOWN[0]}


def loss_map(ids: np.ndarray, losses: np.ndarray, thresholds: np.ndarray) -> Image.Image:
    """Show how each pixel's loss lies to the tolerance of its class, in the colours of `LEGEND`; stripes: not checked.

    Args:
        ids: class ids (H, W); those without a threshold are unknown.
        losses: (H, W); NaN where there is none.
        thresholds: of each class (num_classes,); NaN or infinite where there is none.

    Returns:
        P-mode picture, hard edges kept wherever it is resized.

    Example:
        >>> picture = loss_map(np.array([[0, 0, 255]]), np.array([[0.1, 1.5, np.nan]]), np.array([1.0]))
        >>> [picture.convert("RGB").getpixel((x, 0)) for x in range(3)]
        [(240, 240, 240), (244, 140, 60), (200, 200, 200)]
    """
    limit = np.full(256, np.nan)
    limit[: len(thresholds)] = np.where(np.isfinite(thresholds), thresholds, np.nan)
    ratio = losses / limit[ids]  # (H, W)
    steps = np.searchsorted(list(STEPS), ratio, side="left").clip(max=len(STEPS) - 1)
    rows, columns = np.indices(ids.shape)
    stripes = len(STEPS) + (rows + columns) // STRIPE % 2
    picture = Image.fromarray(np.where(np.isfinite(ratio), steps, stripes).astype(np.uint8), mode="P")
    picture.putpalette([level for color in (*(color for color, _ in STEPS.values()), *UNKNOWN) for level in color])
    return picture
