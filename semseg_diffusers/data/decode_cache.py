"""Keeps what was decoded once: photos and masks in memory that a process shares with the processes it forks to read.

A training run sees each pair hundreds of times; from the second time on, it is a copy of some bytes.
"""

import mmap

import numpy as np


class DecodedPairs:
    """Room for the photos and masks of the first pairs of a dataset, as many as fit; filled as they are read.

    The memory belongs to no file, and its pages are taken when they are first written. Processes that are forked
    share it: what one has decoded, all have. Two that decode the same pair write the same bytes.

    Args:
        sizes (`list[tuple[int, int]]`): Height and width of each pair, pixels.
        most_bytes (`int`): How much memory to take, at most.
    """

    def __init__(self, sizes: list[tuple[int, int]], most_bytes: int):
        pixels = np.array([height * width for height, width in sizes], dtype=np.int64)
        ends = np.cumsum(4 * pixels + 1)  # three channels, the id, and whether it is there
        self.count = int(np.searchsorted(ends, most_bytes, side="right"))
        self._sizes, self._ends = sizes, ends
        self._memory = None
        if self.count:
            self._memory = np.frombuffer(mmap.mmap(-1, int(ends[self.count - 1])), dtype=np.uint8)

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Copies of a photo (3, H, W) and its mask (H, W), uint8; None where they are not there."""
        if index >= self.count or not self._memory[self._ends[index] - 1]:
            return None
        photo, mask = self._views(index)
        return photo.copy(), mask.copy()

    def put(self, index: int, photo: np.ndarray, mask: np.ndarray) -> None:
        """Keep a photo (3, H, W) and its mask (H, W), where there is room."""
        if index >= self.count:
            return
        own_photo, own_mask = self._views(index)
        own_photo[:], own_mask[:] = photo, mask
        self._memory[self._ends[index] - 1] = 1  # last, when all is there

    def _views(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self._sizes[index]
        start, pixels = self._ends[index] - 1 - 4 * height * width, height * width
        photo = self._memory[start : start + 3 * pixels].reshape(3, height, width)
        return photo, self._memory[start + 3 * pixels : start + 4 * pixels].reshape(height, width)
