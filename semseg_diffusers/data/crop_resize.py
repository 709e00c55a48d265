"""Brings photo and mask of a pair to one size: which part of the frame is shown, and where in the result it lies.

Photos are resized with an antialiased filter, masks take the class at the middle of each new pixel.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from semseg_diffusers.pipelines.mask_inputs import center_crop_box


ASPECT_TOLERANCE = 0.01  # how far, in parts, the aspect of a whole frame may be from that of the resolution


@dataclass(frozen=True, eq=False)
class Placement:
    """How a frame becomes a picture of another size."""

    frame: tuple[int, int]  # height and width of the frame, pixels
    size: tuple[int, int]  # height and width of the result
    box: tuple[int, int, int, int]  # part of the frame that is shown: left, top, right, bottom
    inset: tuple[int, int, int, int]  # where in the result: left, top, right, bottom; outside, it is padded

    @property
    def scale(self) -> float:
        """Pixels of the frame to one of the result, in the direction where they are fewer."""
        left, top, right, bottom = self.inset
        return min((self.box[2] - self.box[0]) / (right - left), (self.box[3] - self.box[1]) / (bottom - top))

    @property
    def is_padded(self) -> bool:
        return self.inset != (0, 0, self.size[1], self.size[0])

    @property
    def rows(self) -> np.ndarray:
        """The row of the frame at the middle of each row of the result, padding left out."""
        return _middles(self.box[1], self.box[3], self.inset[3] - self.inset[1])

    @property
    def columns(self) -> np.ndarray:
        return _middles(self.box[0], self.box[2], self.inset[2] - self.inset[0])

    def pad_ids(self, ids: np.ndarray, unknown: int) -> np.ndarray:
        """Ids of the inset (h, w), with what is around it unknown: (H, W)."""
        if not self.is_padded:
            return ids
        left, top, right, bottom = self.inset
        padded = np.full(self.size, unknown, dtype=ids.dtype)
        padded[top:bottom, left:right] = ids
        return padded

    def place_photo(self, photo: Image.Image) -> Image.Image:
        """The photo of the frame, which may have been decoded smaller than it is, as it is in the result."""
        height, width = self.size
        if photo.size == (width, height) and self.frame == self.size:
            return photo
        left, top, right, bottom = self.inset
        across, down = photo.width / self.frame[1], photo.height / self.frame[0]
        box = (self.box[0] * across, self.box[1] * down, self.box[2] * across, self.box[3] * down)
        placed = photo.resize((right - left, bottom - top), Image.Resampling.LANCZOS, box=box)
        if not self.is_padded:
            return placed
        padded = Image.new("RGB", (width, height))
        padded.paste(placed, (left, top))
        return padded


def place_frame(height: int, width: int, resolution: tuple[int, int] | None, fit: str = "crop") -> Placement:
    """Decide how a frame of height x width is brought to a resolution.

    Args:
        height, width (`int`): Of the frame, pixels.
        resolution (`tuple[int, int]`, *optional*): Height and width of the result; None keeps the frame as it is.
        fit (`str`, defaults to `"crop"`): "crop" cuts the largest centred part of the resolution's aspect; "whole"
            takes the whole frame, whose aspect must be the same; "pad" takes the whole frame and fills up with black
            in the photo and unknown in the mask.

    Raises:
        ValueError: The whole frame is wanted and its aspect is another.

    Example:
        >>> place_frame(720, 1280, (128, 128)).box, place_frame(720, 1280, (128, 128), "pad").inset
        ((280, 0, 1000, 720), (0, 28, 128, 100))
    """
    whole = (0, 0, width, height)
    if resolution is None:
        return Placement((height, width), (height, width), whole, whole)
    rows, columns = resolution
    everything = (0, 0, columns, rows)
    if fit == "crop":
        return Placement((height, width), resolution, center_crop_box(height, width, rows, columns), everything)
    if fit == "pad":
        inner = min(columns, max(1, round(rows * width / height))), min(rows, max(1, round(columns * height / width)))
        left, top = (columns - inner[0]) // 2, (rows - inner[1]) // 2
        return Placement((height, width), resolution, whole, (left, top, left + inner[0], top + inner[1]))
    assert fit == "whole", f"fit is {fit!r}"
    if abs(width * rows / (height * columns) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"the frame is {height} x {width}, and {rows} x {columns} has another aspect (height x width): resized "
            f"whole it would be distorted. Use --fit pad or crop, or a resolution such as "
            f"{max(1, round(columns * height / width))}x{columns}."
        )
    return Placement((height, width), resolution, whole, everything)


def _middles(start: int, stop: int, count: int) -> np.ndarray:
    """The pixels of start..stop at the middles of `count` equal parts."""
    return start + (2 * np.arange(count) + 1) * (stop - start) // (2 * count)
