"""The objects of a mask: connected pixels of a class, cut out with their place, scaled and mirrored.
Ids are never mixed: scaling asks for each class how much of a new pixel it covers, and the one with most has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.masks.editing.street import Street


@dataclass(frozen=True, eq=False)
class MaskObject:
    """A piece of a mask and where it stood. A rider's piece holds the bicycle too.

    Args:
        class_id (`int`): the class it counts as.
        ids (`np.ndarray`): class ids of its bounding box, (h, w) uint8; only those in `shape` count.
        shape (`np.ndarray`): its pixels, (h, w) bool.
        top (`int`): row of the box's first pixel in the frame.
        left (`int`): its column.
    """

    class_id: int
    ids: np.ndarray
    shape: np.ndarray
    top: int
    left: int

    @property
    def height(self) -> int:
        return self.shape.shape[0]

    @property
    def width(self) -> int:
        return self.shape.shape[1]

    @property
    def bottom(self) -> int:
        """The contact row: the lowest row of the frame that it has a pixel in."""
        return self.top + self.height - 1

    @property
    def right(self) -> int:
        return self.left + self.width - 1

    @property
    def area(self) -> int:
        return int(self.shape.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Its first and last pixels in the frame: left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    def feet(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, in the frame, of the pixels it stands on: the lowest of a column, near the contact row."""
        columns = np.flatnonzero(self.shape.any(axis=0))
        rows = self.height - 1 - self.shape[::-1, columns].argmax(axis=0)
        near = rows >= self.height - 1 - max(1, round(0.06 * self.height))
        return self.top + rows[near], self.left + columns[near]

    def at(self, bottom: int, left: int) -> "MaskObject":
        """The same standing elsewhere: its lowest row, its first column."""
        return replace(self, top=bottom - self.height + 1, left=left)

    def flipped(self) -> "MaskObject":
        """Mirrored left to right inside its box."""
        return replace(self, ids=self.ids[:, ::-1], shape=self.shape[:, ::-1])

    def scaled(self, factor: float) -> "MaskObject":
        """Larger or smaller by a factor; the middle of its lowest row stays.

        Raises:
            ValueError: the factor is not positive, or nothing would be left of it.
        """
        if not 0 < factor < 1000:
            raise ValueError(f"an object is scaled by {factor}; wanted a factor above 0.")
        height, width = max(1, round(self.height * factor)), max(1, round(self.width * factor))
        if (height, width) == self.shape.shape:
            return self
        present = np.unique(self.ids[self.shape])
        layers = [~self.shape, *((self.ids == i) & self.shape for i in present)]
        cover = np.stack([_cover(layer, height, width) for layer in layers])  # (1 + classes, h', w')
        inside = cover[1:].sum(axis=0) >= 0.5
        rows, columns = inside.any(axis=1), inside.any(axis=0)
        if not rows.any():
            raise ValueError(
                f"an object of {self.height} x {self.width} pixels scaled by {factor:g} has no pixels left."
            )
        top, left = int(rows.argmax()), int(columns.argmax())
        bottom, right = height - int(rows[::-1].argmax()), width - int(columns[::-1].argmax())
        box = slice(top, bottom), slice(left, right)
        ids = present[cover[1:].argmax(axis=0)].astype(np.uint8)[box]
        middle = self.left + (self.width - 1) / 2
        scaled = replace(self, ids=ids, shape=inside[box])
        return scaled.at(self.bottom, round(middle - (scaled.width - 1) / 2))


def _cover(layer: np.ndarray, height: int, width: int) -> np.ndarray:
    """Share of each new pixel that a bool layer (h, w) covers, (height, width) float32 in [0, 1]."""
    enlarged = height > layer.shape[0]
    how = Image.Resampling.BILINEAR if enlarged else Image.Resampling.BOX
    return np.asarray(Image.fromarray(layer.astype(np.float32)).resize((width, height), how))


def objects_of(ids: np.ndarray, street: Street, classes: Sequence[int] | None = None) -> list[MaskObject]:
    """The objects of a mask, the largest first.

    Args:
        ids (`np.ndarray`): class ids, (H, W) uint8.
        street (`Street`): says which classes make one object where they touch; such an object counts as the first of
            them that it holds.
        classes (sequence of `int`, *optional*): ids of the classes to look for; all things by default.

    Returns:
        `list[MaskObject]`; equal sizes stand in reading order.
    """
    wanted = set(street.things if classes is None else classes)
    grouped = street.group[ids]
    connected = find_objects(grouped, street.labels.ignore_index)
    rows, columns = np.nonzero(np.isin(grouped, [street.group[i] for i in wanted]))
    number = connected.numbers[rows, columns]
    bounds = np.full((4, 1 + len(connected.sizes)), 1 << 30)
    for side, positions in enumerate((rows, columns, -rows, -columns)):
        np.minimum.at(bounds[side], number, positions)
    found = []
    for k in np.unique(number):
        top, left, bottom, right = bounds[0, k], bounds[1, k], -bounds[2, k], -bounds[3, k]
        box = slice(top, bottom + 1), slice(left, right + 1)
        shape, piece = connected.numbers[box] == k, ids[box].copy()
        members = street.members(int(piece[shape][0]))
        class_id = next(i for i in _in_order(members, street) if (piece[shape] == i).any())
        if class_id in wanted:
            found.append(MaskObject(class_id, piece, shape, int(top), int(left)))
    return sorted(found, key=lambda entry: (-entry.area, entry.top, entry.left))


def _in_order(members: tuple[int, ...], street: Street) -> list[int]:
    """Ids that are one object, the one it is called after first."""
    first = int(street.group[members[0]])
    return [first, *(i for i in members if i != first)]


def object_at(ids: np.ndarray, street: Street, row: int, column: int) -> MaskObject:
    """The object that a pixel belongs to, whatever its class.

    Raises:
        ValueError: the pixel is outside the mask, or unknown.
    """
    height, width = ids.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"row {row}, column {column} is outside the mask, which is {height} x {width}.")
    if ids[row, column] == street.labels.ignore_index:
        raise ValueError(f"the pixel at row {row}, column {column} is unknown (ignored); wanted one of a class.")
    for entry in objects_of(ids, street, street.members(int(ids[row, column]))):
        y, x = row - entry.top, column - entry.left
        if 0 <= y < entry.height and 0 <= x < entry.width and entry.shape[y, x]:
            return entry
    raise AssertionError("a known pixel belongs to a component of its class")
