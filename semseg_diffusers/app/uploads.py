"""What the painter takes from outside, by its page or over HTTP: numbers in range, pictures of known formats and
sizes, and of schedulers only options that cannot fill the memory."""

import base64
import io
import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from semseg_diffusers.data.crop_resize import place_frame
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.cleaning import MIN_PLAIN_SHARE, clean_painting
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.utils.images import DECODER_ERRORS, naming


# Told by the content of a file, whatever its name says. No decoder of Pillow's but these is asked.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_SEED = 2**31 - 1
MOST_GUIDANCE = 20.0
# Options of diffusers' schedulers that a visitor may set -> the values that they take. Others (the number of training
# steps, lists of betas) could ask for any amount of memory.
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


@dataclass(frozen=True)
class Limits:
    """How much one visitor may ask for.

    Args:
        max_size (`int`): the longer side of an uploaded picture, in pixels; told from its head, before decoding.
        max_upload_mb (`float`): its file, in MB.
        max_steps (`int`): sampling steps of an image.
        max_images (`int`): images at a time.
        queue_size (`int`): requests that may wait.

    Raises:
        ValueError: one is not above 0.
    """

    max_size: int = 4096
    max_upload_mb: float = 10.0
    max_steps: int = 100
    max_images: int = 8
    queue_size: int = 16

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{field.name} {value}; wanted a number above 0.")


def check_whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range; 3.0 is one, as JSON of a page has it.

    Raises:
        ValueError: it is none.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or value != int(value):  # nan is in no range
        raise ValueError(f"{name} is {value!r:.40}; wanted a whole number from {least} to {most}.")
    return int(value)


def check_real(name: str, value: Any, least: float, most: float) -> float:
    """A number in a range.

    Raises:
        ValueError: it is none, or not finite.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; wanted a number from {least:g} to {most:g}.")
    return float(value)


def check_scheduler(text: Any) -> str | None:
    """A scheduler as `generate --scheduler` takes it, with harmless options alone; None for the model's own.

    Raises:
        ValueError: naming the option, and those that are taken.
    """
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > 200:
        raise ValueError(f"the scheduler is {text!r:.40}; wanted the name of one of diffusers' classes.")
    for part in filter(None, text.partition(":")[2].split(",")):
        name, _, given = part.partition("=")
        try:
            value = json.loads(given)
        except json.JSONDecodeError:
            value = given
        known = SCHEDULER_OPTIONS.get(name)
        if known is None:
            raise ValueError(
                f"scheduler option '{name:.40}' cannot be set here; wanted {', '.join(SCHEDULER_OPTIONS)}."
            )
        if not any(type(value) is type(entry) and value == entry for entry in known):
            values = ", ".join(json.dumps(entry).strip('"') for entry in known)
            raise ValueError(f"scheduler option {part:.60}: wanted one of {values}.")
    return text


def read_upload(data: Any, what: str, limits: Limits) -> Image.Image:
    """Decode an uploaded picture, upright as its EXIF says.

    Args:
        data (`bytes`): the whole file.
        what (`str`): what messages call it: "mask", "photo".
        limits (`Limits`)

    Raises:
        ValueError: it is too large, of another format than `FORMATS`, of too many pixels, or damaged.
    """
    if not isinstance(data, bytes) or not data:
        raise ValueError(f"the {what} is empty. Choose a file with a picture.")
    if len(data) > limits.max_upload_mb * 1e6:
        raise ValueError(f"the {what} has {len(data) / 1e6:.1f} MB; wanted {limits.max_upload_mb:g} at most.")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODER_ERRORS as err:
        raise ValueError(
            f"the {what} is no picture of a format that is read here ({', '.join(FORMATS)}), whatever its name says."
        ) from err
    if max(picture.size) > limits.max_size:
        raise ValueError(
            f"the {what} is {picture.height} x {picture.width} pixels (height x width); wanted {limits.max_size} at "
            "most a side. Make it smaller first."
        )
    with naming(what, "upload"):
        picture.load()
        return ImageOps.exif_transpose(picture)


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
    if cleaned.plain_share < MIN_PLAIN_SHARE or cleaned.strange.mean() > MOST_STRANGE:
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
