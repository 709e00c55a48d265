"""What the page or an HTTP client sends, checked: masks as run lengths, uploaded files, numbers, and only scheduler
options that cannot exhaust the memory.

Masks are `{"height", "width", "runs"}`, with runs [id, count, id, count, ...] row by row: exact, small, plain JSON.
"""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.app.settings import Limits
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.inputs import resize_photo
from semseg_diffusers.masks.cleaning import MIN_PLAIN_SHARE, clean_painting
from semseg_diffusers.pipelines.image_inputs import to_rgb
from semseg_diffusers.pipelines.mask_inputs import (
    DECODER_ERRORS,
    check_single_image,
    image_errors,
    resize_ids,
    upright,
)


# Detected from the content of a file, not its name. No other decoder of Pillow is tried.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_UNKNOWN_COLORS = 0.05  # share of pixels far from every class colour; above it, an image is not a painting
MAX_CLEANED_SIZE = 1024  # pixels per side: cleaning looks at the neighbourhood of every pixel
# Options of diffusers' schedulers that a visitor may set -> allowed values. Others (the number of training steps,
# lists of betas) could allocate any amount of memory.
FLAGS = (False, True)
SCHEDULER_OPTIONS: dict[str, tuple] = {
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "solver_order": (1, 2, 3),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    **dict.fromkeys(("skip_prk_steps", "thresholding", "clip_sample", "lower_order_final", "euler_at_final"), FLAGS),
    **dict.fromkeys(("predict_x0", "use_karras_sigmas", "use_exponential_sigmas"), FLAGS),
}

MAX_TEXTS = 100  # about things, in one request
MAX_TEXT_LENGTH = 1000  # characters; text encoders read fewer


def pack_runs(ids: np.ndarray) -> list[int]:
    """Return class ids (H, W) as runs: [[5, 5, 5], [5, 2, 2]] is [5, 4, 2, 2]."""
    flat = np.asarray(ids).reshape(-1).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    counts = np.diff(starts, append=len(flat))
    return np.stack([flat[starts], counts], axis=1).reshape(-1).tolist()


def pack_mask(ids: np.ndarray) -> dict[str, Any]:
    """Return class ids (H, W) in the format of the canvas."""
    return {"height": ids.shape[0], "width": ids.shape[1], "runs": pack_runs(ids)}


def unpack_mask(value: Any, labels: LabelSet, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a canvas or an API call as class ids, (H, W) uint8 of this size."""
    height, width = size
    form = f'{{"height": {height}, "width": {width}, "runs": [id, count, ...]}}'
    if not isinstance(value, dict) or not {"height", "width", "runs"} <= value.keys():
        raise ValueError(f"expected a mask as {form}; got {value!r:.80}.")
    if (value["height"], value["width"]) != size:
        raise ValueError(
            f"the mask is {value['height']!s:.20} x {value['width']!s:.20}; this model expects {height} x {width} "
            "(height x width)."
        )
    runs = value["runs"]
    if not isinstance(runs, list) or len(runs) % 2 or not 0 < len(runs) <= 2 * height * width:
        raise ValueError(f"expected at most {height * width} runs of id and count: {form}.")
    if not all(type(number) is int and 0 <= number <= max(255, height * width) for number in runs):
        raise ValueError(
            "expected runs of whole numbers from 0, none above 255 for an id or the number of pixels for a count."
        )
    ids, counts = np.array(runs, dtype=np.int64).reshape(-1, 2).T
    if counts.sum() != height * width:
        raise ValueError(f"the runs of the mask hold {counts.sum()} pixels; expected {height} x {width}.")
    labels.check_ids(ids)
    return np.repeat(ids.astype(np.uint8), counts).reshape(height, width)


def unpack_texts(value: dict[str, Any], labels: LabelSet, size: tuple[int, int]) -> dict[str, Any]:
    """Return the texts beside a mask as `SamplingRequest` takes them; None where nothing is said."""
    names = ("prompt", "negative_prompt", "class_prompts", "thing_prompts")
    prompt, negative, classes, things = (value.get(name) for name in names)
    height, width = size
    are_classes = classes is None or (isinstance(classes, dict) and classes.keys() <= {*labels.names})
    are_things = things is None or (
        isinstance(things, list)
        and len(things) <= MAX_TEXTS
        and all(isinstance(thing, dict) and thing.keys() == {"x", "y", "text"} for thing in things)
        and all(type(thing["x"]) is int and 0 <= thing["x"] < width for thing in things)
        and all(type(thing["y"]) is int and 0 <= thing["y"] < height for thing in things)
    )
    if not are_classes or not are_things:
        raise ValueError(
            f'expected texts beside the mask as {{"class_prompts": {{"{labels.names[0]}": text}}, "thing_prompts": '
            f'[{{"x": 0, "y": 0, "text": text}}]}}, of classes of the model and of at most {MAX_TEXTS} pixels; got '
            f"{classes!r:.80} and {things!r:.80}."
        )
    points = {(thing["x"], thing["y"]): thing["text"] for thing in things or ()}
    for text in (prompt, negative, *(classes or {}).values(), *points.values()):
        if text is not None and not (isinstance(text, str) and len(text) <= MAX_TEXT_LENGTH):
            raise ValueError(f"a text is {text!r:.40}; expected at most {MAX_TEXT_LENGTH} characters.")
    return dict(zip(names, (prompt, negative, classes or None, points or None), strict=True))


def check_number(name: str, value: Any, least: float, most: float, kind: type = float) -> Any:
    """Return a number from JSON as int or float, if it is one in this range; 3.0 is a whole number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or kind(value) != value:  # nan is in no range
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {value!r:.40}; expected {expected} from {least:.10g} to {most:.10g}.")
    return kind(value)


def check_scheduler(text: Any) -> str | None:
    """Return a scheduler as `generate --scheduler` takes it, with harmless options only; None for the model's own."""
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
        if name not in SCHEDULER_OPTIONS:
            raise ValueError(
                f"scheduler option '{name:.40}' cannot be set here; expected {', '.join(SCHEDULER_OPTIONS)}."
            )
        if not any(type(value) is type(known) and value == known for known in SCHEDULER_OPTIONS[name]):
            values = ", ".join(json.dumps(known).strip('"') for known in SCHEDULER_OPTIONS[name])
            raise ValueError(f"scheduler option {part:.60}: expected one of {values}.")
    return text


def read_upload(data: Any, what: str, limits: Limits, max_size: int | None = None) -> Image.Image:
    """Decode an uploaded image, called `what` in messages, rotated as its EXIF data say."""
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
    max_size = min(limits.max_size, max_size or limits.max_size)
    if max(image.size) > max_size:
        raise ValueError(
            f"the {what} is {image.height} x {image.width} pixels (height x width); expected at most {max_size} per "
            "side. Make it smaller first."
        )
    with image_errors("upload", what):
        check_single_image(image, what, "upload")
        image.load()
    return upright(image)


def read_mask_upload(data: Any, labels: LabelSet, size: tuple[int, int], limits: Limits, clean: bool) -> np.ndarray:
    """Return a mask file (ids, palette, or class colours) as ids of this size (H, W), center-cropped and resized."""
    image = read_upload(data, "mask", limits, MAX_CLEANED_SIZE if clean else None)
    if not clean:
        return resize_ids(labels.encode(image), *size)
    cleaned = clean_painting(image, labels)
    if cleaned.plain_share < MIN_PLAIN_SHARE or cleaned.strange.mean() > MAX_UNKNOWN_COLORS:
        raise ValueError(
            f"only {cleaned.plain_share:.0%} of the mask's pixels are near the colour of a class, and "
            f"{cleaned.strange.mean():.0%} are near none. Is it a photo, or painted in other colours?"
        )
    return resize_ids(cleaned.ids, *size)


def read_photo_upload(data: Any, size: tuple[int, int], limits: Limits) -> Image.Image:
    """Return an RGB image, center-cropped and resized as `prepare` does."""
    return resize_photo(to_rgb(read_upload(data, "photo", limits), "the photo"), size)
