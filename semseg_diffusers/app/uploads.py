"""Uploaded pictures as the page uses them: masks as class ids at the size of the model, photos at that size too."""

import base64
import io

import numpy as np
from PIL import Image

from semseg_diffusers.app.limits import Limits, read_upload
from semseg_diffusers.data.clean_command import LEAST_PLAIN
from semseg_diffusers.data.fitting import place_frame
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.painting import clean_painting
from semseg_diffusers.pipelines.mask_inputs import resize_ids


MOST_STRANGE = 0.05  # share of pixels of no class from which on a picture is no painting, as `clean` has it
LARGEST_CLEANED = 1024  # pixels of a side: cleaning looks at the surroundings of every pixel


def read_mask_upload(data: bytes, labels: LabelSet, size: tuple[int, int], limits: Limits, clean: bool) -> np.ndarray:
    """A mask file as class ids, cropped around the centre and resized by nearest neighbour.

    Args:
        data (`bytes`): the file: ids, a palette, or the label set's colours.
        labels (`LabelSet`): of the model.
        size (`tuple[int, int]`): height and width that are wanted.
        limits (`Limits`)
        clean (`bool`): decide soft edges and JPEG's colours, as `semseg-diffusers clean` does.

    Returns:
        `np.ndarray`: (H, W) uint8.

    Raises:
        ValueError: it is no picture, too large, or no mask of these classes.
    """
    picture = read_upload(data, "mask", limits)
    if not clean:
        return resize_ids(labels.encode(picture), *size)
    if max(picture.size) > LARGEST_CLEANED:
        raise ValueError(
            f"the mask is {picture.height} x {picture.width} pixels (height x width); cleaning takes "
            f"{LARGEST_CLEANED} at most a side. Make it smaller first."
        )
    cleaned = clean_painting(picture, labels)
    if cleaned.plain_share < LEAST_PLAIN or cleaned.strange.mean() > MOST_STRANGE:
        raise ValueError(
            f"only {cleaned.plain_share:.0%} of the mask's pixels are near the colour of a class, and "
            f"{cleaned.strange.mean():.0%} are near none. Is it a photo, or painted in other colours?"
        )
    return resize_ids(cleaned.ids, *size)


def read_photo_upload(data: bytes, size: tuple[int, int], limits: Limits) -> Image.Image:
    """A photo, RGB, cropped around the centre and resized as `prepare` does.

    Raises:
        ValueError: it is no picture, or too large.
    """
    photo = read_upload(data, "photo", limits).convert("RGB")
    return place_frame(photo.height, photo.width, size).place_photo(photo)


def data_url(picture: Image.Image) -> str:
    """A picture as the canvas shows it, to the last bit."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
