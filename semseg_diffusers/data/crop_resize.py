"""Bring image and mask of a pair to one size: which part of the frame is shown, and where in the result.

Images are resized with an antialiased filter; masks take the class at the middle of each new pixel.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from semseg_diffusers.pipelines.mask_inputs import center_crop_box


ASPECT_TOLERANCE = 0.01  # relative difference of the aspect ratios of a whole frame and the resolution


@dataclass(frozen=True, eq=False)
class CropResize:
    """How a frame becomes an image of another size."""

    frame: tuple[int, int]  # height and width of the frame, pixels
    size: tuple[int, int]  # height and width of the result
    box: tuple[int, int, int, int]  # part of the frame that is shown: left, top, right, bottom
    inset: tuple[int, int, int, int]  # where in the result: left, top, right, bottom; outside, it is padded

    @property
    def scale(self) -> float:
        """Return the pixels of the frame to one of the result, in the direction where they are fewer."""
        left, top, right, bottom = self.inset
        return min((self.box[2] - self.box[0]) / (right - left), (self.box[3] - self.box[1]) / (bottom - top))

    @property
    def rows(self) -> np.ndarray:
        """Return the row of the frame at the middle of each row of the result, padding left out."""
        return _middles(self.box[1], self.box[3], self.inset[3] - self.inset[1])

    @property
    def columns(self) -> np.ndarray:
        """Return the column of the frame at the middle of each column of the result, padding left out."""
        return _middles(self.box[0], self.box[2], self.inset[2] - self.inset[0])

    def pad_ids(self, ids: np.ndarray, unknown: int) -> np.ndarray:
        """Return ids at `rows` and `columns` (h, w) with the padding as unknown: (H, W)."""
        left, top, right, bottom = self.inset
        padded = np.full(self.size, unknown, dtype=ids.dtype)
        padded[top:bottom, left:right] = ids
        return padded

    def resize_image(self, image: Image.Image) -> Image.Image:
        """Crop, resize and pad the image of the frame, which may have been decoded at a smaller size."""
        height, width = self.size
        if image.size == (width, height) and self.frame == self.size:
            return image
        left, top, right, bottom = self.inset
        x, y = image.width / self.frame[1], image.height / self.frame[0]
        box = (self.box[0] * x, self.box[1] * y, self.box[2] * x, self.box[3] * y)
        padded = Image.new("RGB", (width, height))
        padded.paste(image.resize((right - left, bottom - top), Image.Resampling.LANCZOS, box=box), (left, top))
        return padded


def crop_resize(height: int, width: int, resolution: tuple[int, int] | None, fit: str = "crop") -> CropResize:
    """Decide how a frame is brought to a resolution (height, width); None keeps it as it is.

    "crop" takes the largest centred part with the aspect ratio of the resolution, "whole" the whole frame, whose
    aspect ratio must be the same, "pad" the whole frame, padded with black in the image and unknown in the mask.
    """
    frame, whole = (height, width), (0, 0, width, height)
    if resolution is None:
        return CropResize(frame, frame, whole, whole)
    rows, columns = resolution
    if fit == "pad":
        inner = min(columns, max(1, round(rows * width / height))), min(rows, max(1, round(columns * height / width)))
        left, top = (columns - inner[0]) // 2, (rows - inner[1]) // 2
        return CropResize(frame, resolution, whole, (left, top, left + inner[0], top + inner[1]))
    box = center_crop_box(height, width, rows, columns) if fit == "crop" else whole
    if fit == "whole" and abs(width * rows / (height * columns) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"the frame is {height} x {width}, and {rows} x {columns} has another aspect (height x width): the whole "
            f"frame would be distorted. Use --fit pad or crop, or a resolution such as "
            f"{max(1, round(columns * height / width))}x{columns}."
        )
    return CropResize(frame, resolution, box, (0, 0, columns, rows))


def _middles(start: int, stop: int, count: int) -> np.ndarray:
    """Return the pixels of start..stop at the middles of `count` equal parts."""
    return start + (2 * np.arange(count) + 1) * (stop - start) // (2 * count)
