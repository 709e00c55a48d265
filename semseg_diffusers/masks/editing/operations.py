"""Changes of a mask, each a pure function: class ids (H, W) uint8 in, new ones out, the old array untouched.

What is removed is filled from its surroundings (`fill`); what is put in hides what stands behind it and is hidden by
what stands in front (`standing_in_front`): of two upright things the one whose foot is lower in the frame is nearer.
"""

import numpy as np

from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.masks.editing.objects import MaskObject, objects_of
from semseg_diffusers.masks.editing.street import Street


# Pixels of distance count this much when a gap is filled: what a thing hides goes on to its sides; the ground below it
# comes next; what is above (buildings, trees, sky) is the last to reach down.
SIDEWAYS, DOWNWARDS, UPWARDS = 1.0, 1.5, 2.0


def standing_in_front(ids: np.ndarray, street: Street, row: int) -> np.ndarray:
    """The pixels of things and furniture whose foot is below a row of the frame, so that they hide what stands on it.

    Returns:
        `np.ndarray`: (H, W) bool.
    """
    front = np.zeros(ids.shape, dtype=bool)
    for entry in objects_of(ids, street, street.standing):
        if entry.bottom > row:
            box = slice(entry.top, entry.bottom + 1), slice(entry.left, entry.right + 1)
            front[box] |= entry.shape
    return front


def pixels_in_frame(entry: MaskObject, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object in a frame of this height and width: (H, W) bool. What is outside is cut off."""
    frame = np.zeros(size, dtype=bool)
    rows, columns = np.nonzero(entry.shape)
    rows, columns = rows + entry.top, columns + entry.left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    frame[rows[inside], columns[inside]] = True
    return frame


def paste(ids: np.ndarray, entry: MaskObject, in_front: np.ndarray | None = None) -> np.ndarray:
    """Put an object where its `top` and `left` say.

    Args:
        ids (`np.ndarray`): class ids, (H, W) uint8.
        entry (`MaskObject`): the object, at its place.
        in_front (`np.ndarray`, *optional*): (H, W) bool, pixels that stay as they are; see `standing_in_front`.

    Returns:
        `np.ndarray`: class ids, (H, W) uint8.

    Raises:
        ValueError: no pixel of it would be seen.
    """
    visible = pixels_in_frame(entry, ids.shape)
    if in_front is not None:
        visible &= ~in_front
    if not visible.any():
        raise ValueError(
            f"nothing of the object would be seen: its box is rows {entry.top} to {entry.bottom}, columns "
            f"{entry.left} to {entry.right}, in a mask of {ids.shape[0]} x {ids.shape[1]}."
        )
    result = ids.copy()
    rows, columns = np.nonzero(visible)
    result[rows, columns] = entry.ids[rows - entry.top, columns - entry.left]
    return result


def fill(ids: np.ndarray, gap: np.ndarray, street: Street) -> np.ndarray:
    """Fill pixels from their surroundings, as if what stood there had been lifted off.

    For each pixel the nearest one to the left, to the right, below and above that is known and is no upright thing is
    asked, so that a gap between two cars becomes road and not car. If left and right agree, that is it; else the
    nearest counts, with distance downwards 1.5 times and upwards twice. At last a pixel of the gap whose neighbours
    disagree takes the class of most of the 9 around it. Where no such pixel is in reach, the gap stays unknown.

    Args:
        ids (`np.ndarray`): class ids, (H, W) uint8.
        gap (`np.ndarray`): what to fill, (H, W) bool.
        street (`Street`): says which classes are upright things.

    Returns:
        `np.ndarray`: class ids, (H, W) uint8.
    """
    ignore = street.labels.ignore_index
    usable = ~gap & (ids != ignore) & ~np.isin(ids, street.standing)
    views = (  # how an array is turned so that the source lies to the left, and back
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
    """Give the pixels in `where` (H, W) bool the class that most of the 9 pixels around have; ties keep their own."""
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
    """Lift an object off; what was behind it is filled in by `fill`."""
    return fill(ids, pixels_in_frame(entry, ids.shape), street)


def move(ids: np.ndarray, entry: MaskObject, changed: MaskObject, street: Street) -> np.ndarray:
    """Take an object off and put `changed` (moved, scaled, mirrored) in, behind what stands in front of it there."""
    without = remove(ids, entry, street)
    return paste(without, changed, standing_in_front(without, street, changed.bottom))


def draw(ids: np.ndarray, shape: np.ndarray, class_id: int) -> np.ndarray:
    """Give the pixels of a shape (H, W) bool, from `drawing.py`, a class.

    Raises:
        ValueError: the shape has no pixel in the mask.
    """
    if not shape.any():
        raise ValueError(f"the shape has no pixel inside the mask, which is {ids.shape[0]} x {ids.shape[1]} pixels.")
    return np.where(shape, np.uint8(class_id), ids)


def region_at(ids: np.ndarray, row: int, column: int) -> np.ndarray:
    """The connected pixels of one class, or of unknown ones, around a pixel: (H, W) bool."""
    height, width = ids.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"row {row}, column {column} is outside the mask, which is {height} x {width}.")
    numbers = find_objects(ids, ignore_index=-1).numbers  # unknown pixels are a region too
    return numbers == numbers[row, column]


class Scene:
    """A mask with its upright things in order of depth.

    Args:
        ids (`np.ndarray`): class ids, (H, W) uint8; copied.
        street (`Street`): says what stands upright.
    """

    def __init__(self, ids: np.ndarray, street: Street):
        self.ids, self.street = ids.copy(), street
        self.objects: list[MaskObject] = []
        self.owner = np.full(ids.shape, -1)  # (H, W): which of `objects` is seen there; -1: none
        for entry in objects_of(ids, street, street.standing):
            self.owner[pixels_in_frame(entry, ids.shape)] = len(self.objects)
            self.objects.append(entry)
        # A sign is one object with its pole, but each of the two is to be seen still.
        found = find_objects(ids, street.labels.ignore_index)
        self.part = np.where(self.owner >= 0, found.numbers, 0)  # (H, W): connected pixels of one class; 0: none
        self.part_sizes = np.concatenate([[0], found.sizes])  # pixels of each when it came

    def visible(self, entry: MaskObject) -> np.ndarray:
        """The pixels that would be seen of an object: (H, W) bool. Things whose foot is lower hide it."""
        pixels = pixels_in_frame(entry, self.ids.shape)
        nearer = np.array([other.bottom > entry.bottom for other in self.objects] + [False])  # the last is for "none"
        return pixels & ~nearer[self.owner]

    def covered(self, seen: np.ndarray) -> float:
        """The largest share of anything upright that would be hidden, with what hides it already, by `seen`."""
        touched = np.unique(self.part[seen])
        touched = touched[touched > 0]
        if not len(touched):
            return 0.0
        left = np.bincount(self.part[~seen], minlength=len(self.part_sizes))
        return float((1 - left[touched] / self.part_sizes[touched]).max())

    def put(self, entry: MaskObject, seen: np.ndarray) -> None:
        """Put an object in; `seen` are the pixels of it to draw."""
        rows, columns = np.nonzero(seen)
        self.ids[rows, columns] = entry.ids[rows - entry.top, columns - entry.left]
        self.owner[seen] = len(self.objects)
        self.objects.append(entry)
        self.part[seen] = len(self.part_sizes)
        self.part_sizes = np.append(self.part_sizes, len(rows))
