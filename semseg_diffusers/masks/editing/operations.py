"""Edits of a mask as pure functions: class ids (H, W) uint8 in, new ones out, the input unchanged.

Removed objects are filled from their surroundings (`fill`). Inserted ones occlude what is behind them and are occluded
by what is in front (`standing_in_front`): of two upright objects, the one whose foot is lower in the frame is nearer.
"""

import numpy as np

from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.masks.editing.objects import MaskObject, objects_of
from semseg_diffusers.masks.editing.street import Street


# Weights of distances when a gap is filled: what an object occludes usually continues at its sides; next is the ground
# below it; what is above (buildings, trees, sky) reaches down last.
SIDEWAYS, DOWNWARDS, UPWARDS = 1.0, 1.5, 2.0


def standing_in_front(ids: np.ndarray, street: Street, row: int) -> np.ndarray:
    """Return the pixels (H, W) bool of upright objects whose foot is below a row: they occlude what stands on it."""
    front = np.zeros(ids.shape, dtype=bool)
    for entry in objects_of(ids, street, street.standing):
        if entry.bottom > row:
            box = slice(entry.top, entry.bottom + 1), slice(entry.left, entry.right + 1)
            front[box] |= entry.shape
    return front


def pixels_in_frame(entry: MaskObject, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an object in a frame of this height and width, (H, W) bool, cropped to the frame."""
    frame = np.zeros(size, dtype=bool)
    rows, columns = np.nonzero(entry.shape)
    rows, columns = rows + entry.top, columns + entry.left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    frame[rows[inside], columns[inside]] = True
    return frame


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
    visible = pixels_in_frame(entry, ids.shape)
    if in_front is not None:
        visible &= ~in_front
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
    views = (  # turns an array so that the source is to the left; `back` undoes it
        (lambda a: a, SIDEWAYS),
        (lambda a: a[:, ::-1], SIDEWAYS),
        (lambda a: a[::-1].T, DOWNWARDS),
        (lambda a: a.T, UPWARDS),
    )
    back = (lambda a: a, lambda a: a[:, ::-1], lambda a: a.T[::-1], lambda a: a.T)
    found, costs = [], []
    for (turn, weight), undo in zip(views, back, strict=True):
        seen, classes = turn(usable), turn(ids)
        position = np.arange(seen.shape[1])[None]
        last = np.maximum.accumulate(np.where(seen, position, -1), axis=1)
        found.append(undo(np.where(last < 0, ignore, np.take_along_axis(classes, np.maximum(last, 0), axis=1))))
        costs.append(undo(np.where(last < 0, np.inf, (position - last) * weight)))
    found, costs = np.stack(found), np.stack(costs)  # (4, H, W): left, right, below, above
    chosen = np.take_along_axis(found, costs.argmin(axis=0)[None], axis=0)[0]
    agree = (found[0] == found[1]) & (found[0] != ignore)
    filled = np.where(gap, np.where(agree, found[0], chosen), ids).astype(np.uint8)
    return majority(filled, gap)


def majority(ids: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Give the pixels in `where` (H, W) bool the majority class of the 9 pixels around them; ties keep their own."""
    height, width = ids.shape
    padded = np.pad(ids, 1, mode="edge")
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    best, votes = ids.copy(), sum((view == ids).astype(np.int8) for view in around)
    for view in around:
        count = sum((other == view).astype(np.int8) for other in around)
        better = count > votes
        best[better], votes[better] = view[better], count[better]
    return np.where(where, best, ids).astype(np.uint8)


def remove(ids: np.ndarray, entry: MaskObject, street: Street) -> np.ndarray:
    """Remove an object; `fill` fills the gap."""
    return fill(ids, pixels_in_frame(entry, ids.shape), street)


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
    height, width = ids.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"row {row}, column {column} is outside the mask, which is {height} x {width}.")
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
            self.owner[pixels_in_frame(entry, ids.shape)] = len(self.objects)
            self.objects.append(entry)
        # A sign and its pole are one object, but each of the two must remain visible.
        found = find_objects(ids, street.labels.ignore_index)
        self.part = np.where(self.owner >= 0, found.numbers, 0)  # (H, W): connected pixels of one class; 0: none
        self.part_sizes = np.concatenate([[0], found.sizes])  # original pixels of each

    def visible(self, entry: MaskObject) -> np.ndarray:
        """Return the pixels of an object that would be visible, (H, W) bool; objects with a lower foot occlude it."""
        pixels = pixels_in_frame(entry, self.ids.shape)
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
        rows, columns = np.nonzero(seen)
        self.ids[rows, columns] = entry.ids[rows - entry.top, columns - entry.left]
        self.owner[seen] = len(self.objects)
        self.objects.append(entry)
        self.part[seen] = len(self.part_sizes)
        self.part_sizes = np.append(self.part_sizes, len(rows))
