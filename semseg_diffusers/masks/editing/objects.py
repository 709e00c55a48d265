"""The objects of a mask: connected pixels of a class, cut out with their position, scaled and mirrored.

Ids are never mixed: in scaling, the class that covers most of a new pixel gets it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.masks.editing.street import Street


@dataclass(frozen=True, eq=False)
class MaskObject:
    """A piece of a mask and its position. A rider includes the bicycle.

    Args:
        class_id: the class it counts as.
        ids: class ids of its bounding box, (h, w) uint8; only those in `shape` count.
        shape: its pixels, (h, w) bool.
        top: row of the box's first pixel in the frame.
        left: column of that pixel.
    """

    class_id: int
    ids: np.ndarray
    shape: np.ndarray
    top: int
    left: int

    @property
    def height(self) -> int:
        """Rows of its box."""
        return self.shape.shape[0]

    @property
    def width(self) -> int:
        """Columns of its box."""
        return self.shape.shape[1]

    @property
    def bottom(self) -> int:
        """The contact row: the lowest row of the frame with a pixel of it."""
        return self.top + self.height - 1

    @property
    def right(self) -> int:
        """The last column of the frame with a pixel of it."""
        return self.left + self.width - 1

    @property
    def area(self) -> int:
        """Number of its pixels."""
        return int(self.shape.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First and last pixels in the frame: left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    def pixels(self, size: tuple[int, ...]) -> np.ndarray:
        """Return its pixels in a frame of this height and width, (H, W) bool, cropped to the frame."""
        frame = np.zeros(size, dtype=bool)
        rows, columns = np.nonzero(self.shape)
        rows, columns = rows + self.top, columns + self.left
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        frame[rows[inside], columns[inside]] = True
        return frame

    def feet(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns, in the frame, of its contact pixels: lowest of a column, near the contact row."""
        columns = np.flatnonzero(self.shape.any(axis=0))
        rows = self.height - 1 - self.shape[::-1, columns].argmax(axis=0)
        near = rows >= self.height - 1 - max(1, round(0.06 * self.height))
        return self.top + rows[near], self.left + columns[near]

    def at(self, bottom: int, left: int) -> "MaskObject":
        """Return it at another position, given by its lowest row and first column."""
        return replace(self, top=bottom - self.height + 1, left=left)

    def flipped(self) -> "MaskObject":
        """Return it mirrored left to right inside its box."""
        return replace(self, ids=self.ids[:, ::-1], shape=self.shape[:, ::-1])

    def scaled(self, factor: float) -> "MaskObject":
        """Return it scaled by a factor; the middle of its lowest row stays.

        Raises:
            ValueError: If the factor is not positive, or no pixel would be left.
        """
        if not 0 < factor < 1000:
            raise ValueError(f"expected a scale factor above 0; got {factor}.")
        height, width = max(1, round(self.height * factor)), max(1, round(self.width * factor))
        if (height, width) == self.shape.shape:
            return self
        present = np.unique(self.ids[self.shape])
        layers = [~self.shape, *((self.ids == i) & self.shape for i in present)]
        how = Image.Resampling.BILINEAR if height > self.height else Image.Resampling.BOX
        resized = [Image.fromarray(layer.astype(np.float32)).resize((width, height), how) for layer in layers]
        cover = np.stack([np.asarray(share) for share in resized])  # (1 + classes, h', w') in [0, 1]
        inside = cover[1:].sum(axis=0) >= 0.5
        boxes = ndimage.find_objects(inside.astype(np.uint8))
        if not boxes:
            raise ValueError(
                f"an object of {self.height} x {self.width} pixels scaled by {factor:g} has no pixels left."
            )
        ids = present[cover[1:].argmax(axis=0)].astype(np.uint8)[boxes[0]]
        middle = self.left + (self.width - 1) / 2
        scaled = replace(self, ids=ids, shape=inside[boxes[0]])
        return scaled.at(self.bottom, round(middle - (scaled.width - 1) / 2))


def objects_of(ids: np.ndarray, street: Street, classes: Iterable[int] | None = None) -> list[MaskObject]:
    """Return the objects of a mask, the largest first.

    Args:
        ids: class ids, (H, W) uint8.
        street: the roles of the classes. Classes of one group that touch are one object, which counts as the first
            class of the group that it contains.
        classes: ids of the classes to look for; all things by default.

    Returns:
        The objects; those of equal size in reading order.
    """
    selected = set(street.things if classes is None else classes)
    grouped = street.group[ids]
    connected = find_objects(grouped, street.labels.ignore_index)
    boxes = ndimage.find_objects(connected.numbers)
    found = []
    for index in np.flatnonzero(np.isin(connected.classes, [street.group[i] for i in selected])):
        box = boxes[index]
        shape, piece = connected.numbers[box] == index + 1, ids[box].copy()
        present = np.unique(piece[shape]).tolist()
        class_id = connected.classes[index] if connected.classes[index] in present else present[0]
        if class_id in selected:
            found.append(MaskObject(int(class_id), piece, shape, box[0].start, box[1].start))
    return sorted(found, key=lambda entry: (-entry.area, entry.top, entry.left))


def check_inside(ids: np.ndarray, row: int, column: int) -> None:
    """Refuse a pixel outside a mask."""
    if not (0 <= row < ids.shape[0] and 0 <= column < ids.shape[1]):
        raise ValueError(f"row {row}, column {column} is outside the mask, which is {ids.shape[0]} x {ids.shape[1]}.")


def object_at(ids: np.ndarray, street: Street, row: int, column: int) -> MaskObject:
    """Return the object at a pixel, of any class.

    Raises:
        ValueError: If the pixel is outside the mask, or unknown.
    """
    check_inside(ids, row, column)
    if ids[row, column] == street.labels.ignore_index:
        raise ValueError(f"the pixel at row {row}, column {column} is unknown (ignored); expected one with a class.")
    group = street.group == street.group[ids[row, column]]
    found = objects_of(ids, street, np.flatnonzero(group[: street.labels.num_classes]))
    return next(entry for entry in found if entry.pixels(ids.shape)[row, column])
