"""Check input from the page or over HTTP: numbers in range, images of known formats and sizes, and only scheduler
options that cannot exhaust the memory."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from semseg_diffusers.app.settings import Limits
from semseg_diffusers.data.crop_resize import place_frame
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.cleaning import MIN_PLAIN_SHARE, clean_painting
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.utils.images import DECODER_ERRORS, naming


# Detected from the content of a file, not its name. No other decoder of Pillow is tried.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Options of diffusers' schedulers that a visitor may set -> allowed values. Others (the number of training steps,
# lists of betas) could allocate any amount of memory.
FLAGS = (False, True)
SCHEDULER_OPTIONS: dict[str, tuple] = {
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "solver_order": (1, 2, 3),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "skip_prk_steps": FLAGS,
    "thresholding": FLAGS,
    "clip_sample": FLAGS,
    "lower_order_final": FLAGS,
    "euler_at_final": FLAGS,
    "predict_x0": FLAGS,
    "use_karras_sigmas": FLAGS,
    "use_exponential_sigmas": FLAGS,
}


def check_integer(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number in a range; 3.0 is one, as in the JSON of a page.

    Raises:
        ValueError: it is not one.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value != int(value):  # nan is in no range
        raise ValueError(f"{name} is {value!r:.40}; expected a whole number from {least} to {most}.")
    return int(value)


def check_real(name: str, value: Any, least: float, most: float) -> float:
    """Return a number in a range.

    Raises:
        ValueError: it is not one, or not finite.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; expected a number from {least:g} to {most:g}.")
    return float(value)


def check_scheduler(text: Any) -> str | None:
    """Return a scheduler in the form of `generate --scheduler`, with harmless options only; None for the model's own.

    Raises:
        ValueError: naming the option, and those that are allowed.
    """
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > 200:
        raise ValueError(f"the scheduler is {text!r:.40}; expected the name of a class of diffusers.")
    for part in filter(None, text.partition(":")[2].split(",")):
        name, _, given = part.partition("=")
        try:
            value = json.loads(given)
        except json.JSONDecodeError:
            value = given
        known = SCHEDULER_OPTIONS.get(name)
        if known is None:
            raise ValueError(
                f"scheduler option '{name:.40}' cannot be set here; expected {', '.join(SCHEDULER_OPTIONS)}."
            )
        if not any(type(value) is type(entry) and value == entry for entry in known):
            values = ", ".join(json.dumps(entry).strip('"') for entry in known)
            raise ValueError(f"scheduler option {part:.60}: expected one of {values}.")
    return text


def read_upload(data: Any, what: str, limits: Limits) -> Image.Image:
    """Decode an uploaded image, rotated as its EXIF data say.

    Args:
        data (`bytes`): content of the file.
        what (`str`): its name in messages: "mask", "photo".
        limits (`Limits`): of uploads.

    Raises:
        ValueError: too large a file, a format not in `FORMATS`, too many pixels, or damaged.
    """
    if not isinstance(data, bytes) or not data:
        raise ValueError(f"the {what} is empty. Choose an image file.")
    if len(data) > limits.max_upload_mb * 1e6:
        raise ValueError(f"the {what} has {len(data) / 1e6:.1f} MB; expected at most {limits.max_upload_mb:g}.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODER_ERRORS as err:
        raise ValueError(
            f"the {what} is not an image in a supported format ({', '.join(FORMATS)}), whatever its name says."
        ) from err
    if max(image.size) > limits.max_size:
        raise ValueError(
            f"the {what} is {image.height} x {image.width} pixels (height x width); expected at most "
            f"{limits.max_size} per side. Make it smaller first."
        )
    with naming(what, "upload"):
        image.load()
        return ImageOps.exif_transpose(image)


MAX_UNKNOWN_COLORS = 0.05  # share of pixels far from every class colour; above it, an image is not a painting
MAX_CLEANED_SIZE = 1024  # pixels per side: cleaning looks at the neighbourhood of every pixel


def read_mask_upload(data: bytes, labels: LabelSet, size: tuple[int, int], limits: Limits, clean: bool) -> np.ndarray:
    """Return a mask file as class ids, center-cropped and resized by nearest neighbour.

    Args:
        data (`bytes`): the file: ids, a palette, or the label set's colours.
        labels (`LabelSet`): of the model.
        size (`tuple[int, int]`): height and width of the result.
        limits (`Limits`): of uploads.
        clean (`bool`): clean soft edges and JPEG noise, as `semseg-diffusers clean` does.

    Returns:
        `np.ndarray`: (H, W) uint8.

    Raises:
        ValueError: not an image, too large, or not a mask of these classes.
    """
    image = read_upload(data, "mask", limits)
    if not clean:
        return resize_ids(labels.encode(image), *size)
    if max(image.size) > MAX_CLEANED_SIZE:
        raise ValueError(
            f"the mask is {image.height} x {image.width} pixels (height x width); cleaning takes "
            f"at most {MAX_CLEANED_SIZE} per side. Make it smaller first."
        )
    cleaned = clean_painting(image, labels)
    if cleaned.plain_share < MIN_PLAIN_SHARE or cleaned.strange.mean() > MAX_UNKNOWN_COLORS:
        raise ValueError(
            f"only {cleaned.plain_share:.0%} of the mask's pixels are near the colour of a class, and "
            f"{cleaned.strange.mean():.0%} are near none. Is it a photo, or painted in other colours?"
        )
    return resize_ids(cleaned.ids, *size)


def read_photo_upload(data: bytes, size: tuple[int, int], limits: Limits) -> Image.Image:
    """Return an RGB image, center-cropped and resized as `prepare` does.

    Raises:
        ValueError: not an image, or too large.
    """
    photo = read_upload(data, "photo", limits).convert("RGB")
    return place_frame(photo.height, photo.width, size).place_photo(photo)


def data_url(image: Image.Image) -> str:
    """Return an image losslessly as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
