"""How a mask travels between page and server: `{"height", "width", "runs"}`, with runs [id, count, id, count, ...] row
by row. Exact, small, and plain JSON; what comes from outside is checked here before it becomes an array."""

from typing import Any

import numpy as np

from semseg_diffusers.data.labels import LabelSet


def pack_runs(ids: np.ndarray) -> list[int]:
    """Class ids (H, W) as runs.

    Example:
        >>> pack_runs(np.array([[5, 5, 5], [5, 2, 2]]))
        [5, 4, 2, 2]
    """
    flat = np.asarray(ids).reshape(-1).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    counts = np.diff(np.concatenate([starts, [len(flat)]]))
    return np.stack([flat[starts], counts], axis=1).reshape(-1).tolist()


def pack_mask(ids: np.ndarray) -> dict[str, Any]:
    """Class ids (H, W) as the canvas takes them."""
    return {"height": ids.shape[0], "width": ids.shape[1], "runs": pack_runs(ids)}


def unpack_mask(value: Any, labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Read what a canvas, or a call from outside, gives as a mask.

    Args:
        value: `{"height", "width", "runs"}`.
        labels (`LabelSet`): the classes that it may hold.
        size (`tuple[int, int]`): height and width that it must have.

    Returns:
        `np.ndarray`: class ids, (H, W) uint8.

    Raises:
        ValueError: it is of another form or size, or holds an id that is neither a class nor unknown.
    """
    height, width = size
    form = f'{{"height": {height}, "width": {width}, "runs": [id, count, ...]}}'
    if not isinstance(value, dict) or not {"height", "width", "runs"} <= value.keys():
        raise ValueError(f"a mask is wanted as {form}; got {value!r:.80}.")
    if (value["height"], value["width"]) != size:
        raise ValueError(
            f"the mask is {value['height']!s:.20} x {value['width']!s:.20}; this model draws {height} x {width} "
            "(height x width)."
        )
    runs = value["runs"]
    if not isinstance(runs, list) or len(runs) % 2 or not 0 < len(runs) <= 2 * height * width:
        raise ValueError(f"the runs of a mask are pairs of id and count, {height * width} at most; wanted {form}.")
    if not all(type(number) is int and 0 <= number <= max(255, height * width) for number in runs):
        raise ValueError("the runs of a mask are whole numbers from 0, none larger than an id or the mask may be.")
    numbers, counts = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    if counts.sum() != height * width:
        raise ValueError(f"the runs of the mask hold {counts.sum()} pixels; wanted {height} x {width}.")
    labels.check_ids(numbers)
    return np.repeat(numbers.astype(np.uint8), counts).reshape(height, width)
