"""A mask while things are put into it: what stands where, which foot is nearer, how much of each is still seen."""

import numpy as np

from semseg_diffusers.data.editing.objects import MaskObject, objects_of
from semseg_diffusers.data.editing.operations import pixels_in_frame
from semseg_diffusers.data.editing.street import Street
from semseg_diffusers.data.statistics.objects import find_objects


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
