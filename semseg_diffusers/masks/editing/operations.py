"""Edits of a mask as pure functions: class ids (H, W) uint8 in, new ones out, the input unchanged.

Removed objects are filled from their surroundings (`fill`). Inserted ones occlude what is behind them and are occluded
by what is in front (`standing_in_front`): of two upright objects, the one whose foot is lower in the frame is nearer.
"""

import numpy as np

from semseg_diffusers.masks.components import find_objects, most_frequent, neighbors
from semseg_diffusers.masks.editing.objects import MaskObject, Street, check_inside, objects_of


# Where a pixel of a gap looks for its class: quarter turns of the mask after which that is to the left, and the weight
# of the distance. What an object occludes usually continues at its sides; next is the ground below it; what is above
# (buildings, trees, sky) reaches down last.
LOOKS = ((0, 1.0), (2, 1.0), (3, 1.5), (1, 2.0))  # left, right, below, above


def standing_in_front(ids: np.ndarray, street: Street, row: int) -> np.ndarray:
    """Return the pixels (H, W) bool of upright objects whose foot is below a row: they occlude what is on it."""
    front = np.zeros(ids.shape, dtype=bool)
    for entry in objects_of(ids, street, street.standing):
        if entry.bottom > row:
            front |= entry.pixels(ids.shape)
    return front


def paste(ids: np.ndarray, entry: MaskObject, in_front: np.ndarray | None = None) -> np.ndarray:
    """Paste an object at its `top` and `left`.

    Args:
        ids: class ids, (H, W) uint8.
        entry: the object, at its position.
        in_front: (H, W) bool, pixels that do not change; see `standing_in_front`.

    Returns:
        Class ids, (H, W) uint8.

    Raises:
        ValueError: If no pixel of it would be visible.
    """
    visible = entry.pixels(ids.shape) & (True if in_front is None else ~in_front)
    if not visible.any():
        raise ValueError(
            f"no pixel of the object would be visible: its box is rows {entry.top} to {entry.bottom}, columns "
            f"{entry.left} to {entry.right}, in a mask of {ids.shape[0]} x {ids.shape[1]}."
        )
    result = ids.copy()
    rows, columns = np.nonzero(visible)
    result[rows, columns] = entry.ids[rows - entry.top, columns - entry.left]
    return result


def fill(ids: np.ndarray, gap: np.ndarray, street: Street) -> np.ndarray:
    """Fill pixels from their surroundings, as if the objects there had been lifted off.

    Each pixel looks left, right, down and up for the nearest one that is known and not of an upright object, so that a
    gap between two cars becomes road. If left and right agree, it takes their class; else that of the nearest, with
    distances downwards multiplied by 1.5 and upwards by 2. A majority filter follows. Pixels without any such
    neighbour become unknown.

    Args:
        ids: class ids, (H, W) uint8.
        gap: the pixels to fill, (H, W) bool.
        street: the roles of the classes.

    Returns:
        Class ids, (H, W) uint8.
    """
    ignore = street.labels.ignore_index
    usable = ~gap & (ids != ignore) & ~np.isin(ids, street.standing)
    found, costs = [], []
    for quarters, weight in LOOKS:
        seen, classes = np.rot90(usable, quarters), np.rot90(ids, quarters)
        position = np.arange(seen.shape[1])[None]
        last = np.maximum.accumulate(np.where(seen, position, -1), axis=1)
        nearest = np.where(last < 0, ignore, np.take_along_axis(classes, np.maximum(last, 0), axis=1))
        found.append(np.rot90(nearest, -quarters))
        costs.append(np.rot90(np.where(last < 0, np.inf, (position - last) * weight), -quarters))
    left, right = found[:2]
    chosen = np.take_along_axis(np.stack(found), np.stack(costs).argmin(axis=0)[None], axis=0)[0]
    filled = np.where((left == right) & (left != ignore), left, chosen)
    filled = np.where(gap, filled, ids).astype(np.uint8)
    around = neighbors(filled)
    smoothed = most_frequent(np.concatenate([filled[None], around]), around)  # of equally frequent ones its own
    return np.where(gap, smoothed, filled)


def remove(ids: np.ndarray, entry: MaskObject, street: Street) -> np.ndarray:
    """Remove an object; `fill` fills the gap."""
    return fill(ids, entry.pixels(ids.shape), street)


def move(ids: np.ndarray, entry: MaskObject, changed: MaskObject, street: Street) -> np.ndarray:
    """Remove an object and paste `changed` (moved, scaled, mirrored), behind what is in front of it there."""
    without = remove(ids, entry, street)
    return paste(without, changed, standing_in_front(without, street, changed.bottom))


def draw(ids: np.ndarray, shape: np.ndarray, class_id: int) -> np.ndarray:
    """Give the pixels of a shape (H, W) bool, from `shapes.py`, a class.

    Raises:
        ValueError: If the shape has no pixel in the mask.
    """
    if not shape.any():
        raise ValueError(f"the shape has no pixel inside the mask, which is {ids.shape[0]} x {ids.shape[1]} pixels.")
    return np.where(shape, np.uint8(class_id), ids)


def region_at(ids: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return the connected region of one class, or of unknown, around a pixel: (H, W) bool."""
    check_inside(ids, row, column)
    numbers = find_objects(ids, ignore_index=-1).numbers  # unknown pixels are a region too
    return numbers == numbers[row, column]


class Scene:
    """A mask with its upright objects ordered by depth.

    Args:
        ids: class ids, (H, W) uint8; copied.
        street: the roles of the classes.
    """

    def __init__(self, ids: np.ndarray, street: Street):
        self.ids, self.street = ids.copy(), street
        self.objects: list[MaskObject] = []
        self.owner = np.full(ids.shape, -1)  # (H, W): index of the visible object; -1: none
        for entry in objects_of(ids, street, street.standing):
            self.owner[entry.pixels(ids.shape)] = len(self.objects)
            self.objects.append(entry)
        # A sign and its pole are one object, but each of the two must remain visible.
        found = find_objects(ids, street.labels.ignore_index)
        self.part = np.where(self.owner >= 0, found.numbers, 0)  # (H, W): connected pixels of one class; 0: none
        self.part_sizes = np.concatenate([[0], found.sizes])  # original pixels of each

    def visible(self, entry: MaskObject) -> np.ndarray:
        """Return the pixels of an object that would be visible, (H, W) bool; objects with a lower foot occlude it."""
        pixels = entry.pixels(self.ids.shape)
        nearer = np.array([other.bottom > entry.bottom for other in self.objects] + [False])  # the last is for "none"
        return pixels & ~nearer[self.owner]

    def covered(self, seen: np.ndarray) -> float:
        """Return the largest share of an upright object that would be occluded, by `seen` and others together."""
        touched = np.unique(self.part[seen])
        touched = touched[touched > 0]
        if not len(touched):
            return 0.0
        left = np.bincount(self.part[~seen], minlength=len(self.part_sizes))
        return float((1 - left[touched] / self.part_sizes[touched]).max())

    def put(self, entry: MaskObject, seen: np.ndarray) -> None:
        """Insert an object; `seen` are its visible pixels."""
        self.ids = paste(self.ids, entry, ~seen)
        self.owner[seen] = len(self.objects)
        self.objects.append(entry)
        self.part[seen] = len(self.part_sizes)
        self.part_sizes = np.append(self.part_sizes, seen.sum())
