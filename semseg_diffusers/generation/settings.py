"""What an image depends on beside the model, its scheduler and its mask; and grids of settings and attributes, whose
combinations every mask gets (`--variations`)."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


UNKNOWN_VALUE = "unknown"  # of an attribute: left to the model, as the class "unknown" is in masks
# Settings that a grid may vary; whatever else it names is an attribute.
SWEEPABLE = (
    "guidance_scale", "guidance_start", "guidance_stop", "attribute_guidance_scale", "conditioning_scale", "strength"
)  # fmt: skip
MOST_VARIATIONS = 1000  # a longer grid is most likely a slip


@dataclass(frozen=True)
class EditSettings:
    """How a photo is made anew where its mask was edited: arguments of `MaskGuidedInpaintPipeline`."""

    margin: int = 4  # pixels around what differs between old and new mask
    padding_mask_crop: int | None = None  # photos of any size: a window with this many pixels around is drawn
    feather: int = 0  # pixels over which the photo fades into what was drawn
    jump_length: int = 1  # steps that are done again together, for RePaint's resampling
    jump_n_sample: int = 1  # how often; 1 is no resampling


@dataclass(frozen=True)
class GenerationSettings:
    """What an image depends on, beside the model, its scheduler and its mask."""

    num_inference_steps: int = 20
    guidance_scale: float = 2.0  # 1: plain conditional sampling, one forward a step instead of two
    guidance_start: float = 0.0  # share of the steps, from the noise on, where guidance begins
    guidance_stop: float = 1.0  # and where it ends
    height: int | None = None  # pixels; None: the model's sample_size
    width: int | None = None
    seed: int = 0
    variant: str | None = None  # which of the model's weights draw, as diffusers calls them; None: the pipeline's own
    # None in what follows is no setting at all, so that folders from before there was one are continued.
    attributes: Mapping[str, str] | None = None  # name -> value for all images, over what is known of each mask
    attribute_guidance_scale: float | None = None  # None: mask and attributes are guided as one
    conditioning_scale: float | None = None  # of a control branch: 0 is its base alone; None: as trained, 1
    strength: float | None = None  # share of the noise that a photo is redrawn from, in [0, 1]
    edit: EditSettings | None = None  # photos are made anew where their mask was edited
    variations: Mapping[str, tuple] | None = None  # setting or attribute -> values; each combination for each mask


def read_attributes(texts: Iterable[str]) -> dict[str, str]:
    """Read what stands after --attributes.

    Raises:
        ValueError: a text has another form, or a name stands twice.

    Example:
        >>> read_attributes(["weather=rainy", "timeofday=night"])
        {'weather': 'rainy', 'timeofday': 'night'}
    """
    return {name: value for name, value in _named(texts, "--attributes", "NAME=VALUE: weather=rainy")}


def read_variations(texts: Iterable[str]) -> dict[str, tuple]:
    """Read what stands after --variations.

    Raises:
        ValueError: a text has another form, a name or a value stands twice, or a setting's value is no number.

    Example:
        >>> read_variations(["guidance_scale=1.5,3", "weather=clear,rainy"])
        {'guidance_scale': (1.5, 3.0), 'weather': ('clear', 'rainy')}
    """
    variations = {}
    for name, text in _named(texts, "--variations", "NAME=VALUE,VALUE: guidance_scale=1.5,3"):
        values = tuple(value.strip() for value in text.split(","))
        if name in SWEEPABLE:
            values = tuple(_number(name, value) for value in values)
        if "" in values or len(set(values)) < len(values):
            raise ValueError(f"--variations {name}={text}: wanted values that differ, with commas between them.")
        variations[name] = values
    return variations


def check_attributes(given: Mapping[str, Iterable[str]], known: Mapping[str, list[str]], option: str) -> None:
    """Refuse names and values of attributes that a network does not know.

    Raises:
        ValueError: listing what it knows.
    """
    for name, values in given.items():
        if name not in known:
            there = f"it knows {', '.join(known)}" if known else "it was trained without any"
            raise ValueError(f"{option}: the model has no attribute '{name}'; {there}.")
        for value in values:
            if value not in (UNKNOWN_VALUE, *known[name]):
                raise ValueError(
                    f"{option}: '{value}' is no value of '{name}'; the model knows {', '.join(known[name])}, and "
                    f"'{UNKNOWN_VALUE}' leaves it open."
                )


def _named(texts: Iterable[str], option: str, form: str) -> list[tuple[str, str]]:
    """Take NAME=VALUE apart."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise ValueError(f"{option} '{text}' is not understood; wanted {form}.")
        if name in found:
            raise ValueError(f"{option} names '{name}' twice; wanted each once.")
        found[name] = value
    return list(found.items())


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--variations {name}={text}: wanted numbers.")
    return value


def grid(variations: Mapping[str, tuple] | None) -> dict[str, dict[str, Any]]:
    """All combinations, the last name changing fastest, under names that sort in this order.

    Returns:
        name -> what it sets; one without a name that sets nothing, where there are no variations.

    Raises:
        ValueError: there are more than 1000.

    Example:
        >>> grid({"guidance_scale": (1.5, 3.0)})
        {'v0': {'guidance_scale': 1.5}, 'v1': {'guidance_scale': 3.0}}
    """
    if not variations:
        return {"": {}}
    count = math.prod(map(len, variations.values()))
    if count > MOST_VARIATIONS:
        raise ValueError(f"--variations are {count} combinations for each mask; wanted {MOST_VARIATIONS} at most.")
    digits = len(str(count - 1))
    combinations = itertools.product(*variations.values())
    return {
        f"v{number:0{digits}}": dict(zip(variations, values, strict=True))
        for number, values in enumerate(combinations)
    }
