"""The objects of a mask, and the roles of classes in a street: things, ground, furniture.

A class has the kind that its label set gives it, otherwise that of its name (data/classes.yaml). Where a dataset shows
too few things, their sizes and positions follow from their kind (`scene_prior.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from semseg_diffusers.data.label_mapping import all_kinds, normalize
from semseg_diffusers.data.labels import CLASSES, LabelSet
from semseg_diffusers.masks.components import find_objects


@dataclass(frozen=True)
class Thing:
    """A kind of object on the ground."""

    metres: float  # usual height; relates sizes of rare classes to those of others
    ground: dict[str, float]  # kind of ground -> pseudo-count, before any data
    aspect: tuple[float, float]  # width / height of a single complete one; wider are several in a row
    fill: float = 0.33  # smallest share of its box that a complete one fills
    vehicle: bool = False  # a solid body that extends back over the ground


THINGS = {
    kind: Thing(**{key: value for key, value in entry.items() if key != "names"})
    for kind, entry in CLASSES["kinds"].items()
    if "metres" in entry
}
GROUND = ("road", "sidewalk")  # kinds on which things stand
FURNITURE = ("pole", "upright")  # kinds that occlude what is behind them but are not placed
BACKGROUND = "background"  # road and everything unlabelled in label sets without road (the paper's)
# Kinds that form one object where they touch, such as a rider and the bicycle; the first one present names it.
ONE_OBJECT = (("rider", "motorcycle", "bicycle"), ("pole",))


@dataclass(frozen=True)
class Street:
    """The roles of a label set's classes in a street. Create it with `Street.of(labels)`."""

    labels: LabelSet
    things: dict[int, Thing]  # by class id
    ground: dict[int, str]  # class id -> "road" or "sidewalk"
    furniture: tuple[int, ...]
    kinds: dict[int, str | None]  # of every class; None: its name says nothing
    group: np.ndarray = field(repr=False)  # (256,) uint8: id -> id of the object class it is part of

    @classmethod
    def of(cls, labels: LabelSet) -> "Street":
        """Derive the roles from the kinds of the classes."""
        kinds = dict(enumerate(all_kinds(labels)))
        things = {i: THINGS[kind] for i, kind in kinds.items() if kind in THINGS}
        ground = {i: kind for i, kind in kinds.items() if kind in GROUND}
        if "road" not in ground.values():
            ground |= {i: "road" for i, kind in kinds.items() if not kind and normalize(labels.names[i]) == BACKGROUND}
        group = np.arange(256, dtype=np.uint8)
        for members in ONE_OBJECT:
            found = [i for member in members for i, kind in kinds.items() if kind == member]
            if found:
                group[found] = found[0]
        furniture = tuple(i for i, kind in kinds.items() if kind in FURNITURE)
        return cls(labels, things, ground, furniture, kinds, group)

    @property
    def standing(self) -> tuple[int, ...]:
        """Ids of all upright classes: things and furniture."""
        return (*self.things, *self.furniture)

    def is_ground(self, kinds) -> np.ndarray:
        """Return which ids are ground of these kinds ("road", "sidewalk"): (256,) bool, to index with a mask."""
        table = np.zeros(256, dtype=bool)
        table[[i for i, kind in self.ground.items() if kind in kinds]] = True
        return table

    def class_id(self, name: str) -> int:
        """Return the id of a class.

        Raises:
            ValueError: If there is no such class.
        """
        if name not in self.labels.label2id:
            raise ValueError(f"there is no class '{name}'; there are {', '.join(self.labels.names)}.")
        return self.labels.label2id[name]


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
            ValueError: If the factor is out of range, or no pixel would be left.
        """
        if not 0 < factor < 1000:
            raise ValueError(f"expected a scale factor above 0 and below 1000; got {factor}.")
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
