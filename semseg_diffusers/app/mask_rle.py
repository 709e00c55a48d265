"""Run-length encoding of masks between page and server: `{"height", "width", "runs"}`, with runs [id, count, id,
count, ...] row by row. Exact, small, and plain JSON; input is checked here before it becomes an array."""

from typing import Any

import numpy as np

from semseg_diffusers.data.labels import LabelSet


def pack_runs(ids: np.ndarray) -> list[int]:
    """Return class ids (H, W) as runs.

    Example:
        >>> pack_runs(np.array([[5, 5, 5], [5, 2, 2]]))
        [5, 4, 2, 2]
    """
    flat = np.asarray(ids).reshape(-1).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    counts = np.diff(np.concatenate([starts, [len(flat)]]))
    return np.stack([flat[starts], counts], axis=1).reshape(-1).tolist()


def pack_mask(ids: np.ndarray) -> dict[str, Any]:
    """Return class ids (H, W) in the format of the canvas."""
    return {"height": ids.shape[0], "width": ids.shape[1], "runs": pack_runs(ids)}


def unpack_mask(value: Any, labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Decode the mask of a canvas or an API call.

    Args:
        value: `{"height", "width", "runs"}`.
        labels (`LabelSet`): allowed classes.
        size (`tuple[int, int]`): expected height and width.

    Returns:
        `np.ndarray`: class ids, (H, W) uint8.

    Raises:
        ValueError: another form or size, or an id that is neither a class nor unknown.
    """
    height, width = size
    form = f'{{"height": {height}, "width": {width}, "runs": [id, count, ...]}}'
    if not isinstance(value, dict) or not {"height", "width", "runs"} <= value.keys():
        raise ValueError(f"expected a mask as {form}; got {value!r:.80}.")
    if (value["height"], value["width"]) != size:
        raise ValueError(
            f"the mask is {value['height']!s:.20} x {value['width']!s:.20}; this model expects {height} x {width} "
            "(height x width)."
        )
    runs = value["runs"]
    if not isinstance(runs, list) or len(runs) % 2 or not 0 < len(runs) <= 2 * height * width:
        raise ValueError(f"expected at most {height * width} runs of id and count: {form}.")
    if not all(type(number) is int and 0 <= number <= max(255, height * width) for number in runs):
        raise ValueError(
            "expected runs of whole numbers from 0, none above 255 for an id or the number of pixels for a count."
        )
    numbers, counts = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    if counts.sum() != height * width:
        raise ValueError(f"the runs of the mask hold {counts.sum()} pixels; expected {height} x {width}.")
    labels.check_ids(numbers)
    return np.repeat(numbers.astype(np.uint8), counts).reshape(height, width)
