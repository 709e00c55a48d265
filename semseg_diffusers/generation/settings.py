"""Options of `generate`, what an image depends on, and which options go together.

Imports nothing heavy, so that `--help` is instant.
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from semseg_diffusers.data.settings import LABEL_PRESETS
from semseg_diffusers.utils.settings import Settings, option, parse_yaml


# The first that exists is used without --model: what comes with a checkout, quickest first, or what its demo trained.
DEFAULT_MODELS = ("checkpoints/camvid128-turbo", "checkpoints/camvid128", "checkpoints/toy", "demo/run")
DEFAULT_MODEL_HELP = f"folder of a training run, or a Hub repo id (default: the first of {', '.join(DEFAULT_MODELS)})"
UNKNOWN_VALUE = "unknown"  # of an attribute: the model chooses, as for the class "unknown" in masks
GUIDANCE = (
    "guidance_scale", "guidance_start", "guidance_stop", "attribute_guidance_scale", "conditioning_scale",
    "prompt_guidance_scale",
)  # fmt: skip
SWEEPABLE = (*GUIDANCE, "strength")  # what --variations may change; any other name in it is an attribute
TEXTS = ("prompt", "class_prompts")  # vary where several are given
MAX_VARIATIONS = 1000  # more are most likely a mistake
DTYPE_NAMES = ("float32", "float16", "bfloat16")
IMAGE_FORMATS = ("png", "jpg")  # and endings of file names
NEAR_COPY_THRESHOLD = 15.0  # grey levels, root mean square; see near_copies.py


@dataclass(frozen=True)
class EditSettings:
    """How a real image is regenerated where its mask was edited: arguments of `MaskGuidedInpaintPipeline`."""

    margin: int = 4  # pixels around the difference between old and new mask
    padding_mask_crop: int | None = None  # images of any size: generate a window with this many pixels around the edit
    feather: int = 0  # pixels over which the real image blends into the generated part
    jump_length: int = 1  # steps that RePaint's resampling repeats together
    jump_n_sample: int = 1  # how often; 1 is no resampling


@dataclass(frozen=True)
class GenerationSettings:
    """What an image depends on, beside the model, its scheduler and its inputs."""

    num_inference_steps: int | None = None  # None: what the model recommends, else 20; plans hold the number
    guidance_scale: float | None = None  # likewise, else 2; 1: plain conditional sampling, half the forward passes
    guidance_start: float = 0.0  # share of the steps, counted from pure noise, at which guidance starts
    guidance_stop: float = 1.0  # and at which it stops
    height: int | None = None  # pixels; None: the model's sample_size
    width: int | None = None
    seed: int = 0
    variant: str | None = None  # which of the model's weights, as diffusers calls them; None: the pipeline's own
    # None below means "not set", so that folders written before an option existed can be resumed.
    attributes: Mapping[str, str] | None = None  # name -> value for all images; overrides those of each mask
    attribute_guidance_scale: float | None = None  # None: mask and attributes are guided together
    conditioning_scale: float | None = None  # of a control branch: 0 is its base alone; None: as trained, 1
    prompt: str | None = None  # a text about the whole image
    negative_prompt: str | None = None  # in place of none where guidance leads away from
    # Class -> a text about all its pixels, or a list for its things from left to right, None where nothing is said;
    # masks with fewer things leave out the rest.
    class_prompts: Mapping[Any, str | Sequence[str | None] | None] | None = None
    prompt_guidance_scale: float | None = None  # None: mask and texts are guided together
    strength: float | None = None  # share of the noise added to a real image before it is denoised, in [0, 1]
    edit: EditSettings | None = None  # regenerate real images where their mask was edited
    upscaler_steps: int | None = None  # of an upscaler; plans hold the number, like the next
    noise_level: int | None = None  # on the images that it enlarges
    variations: Mapping[str, tuple] | None = None  # setting, text or attribute -> values; all combinations
    image_format: str = IMAGE_FORMATS[0]  # of the files; masks are PNG, which keeps their ids


@dataclass(frozen=True)
class Inputs:
    """What images are generated from, beside the masks.

    Args:
        attributes_from: attributes of each mask by its name: CSV, JSON lines, or a split of a prepared dataset.
        photos: folder of real images to change; required by `settings.edit` and `settings.strength`, and only by them.
        old_masks: the masks of these images, for `settings.edit`; by default `masks/` in their folder.
        guide: network of a weaker model, which guidance leads away from.
        guide_name: its folder or Hub id, for the record.
        upscaler: `MaskGuidedUpscalePipeline` that enlarges the images, for images and masks of the large size.
        upscaler_name: its folder or Hub id, for the record.
    """

    attributes_from: str | os.PathLike | None = None
    photos: str | os.PathLike | None = None
    old_masks: str | os.PathLike | None = None
    guide: Any = None
    guide_name: str | None = None
    upscaler: Any = None
    upscaler_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Settings):
    """How images are sampled, for every command that generates."""

    _group = "sampling"
    num_inference_steps: int | None = option(None, help="sampling steps (default: what the model recommends, else 20)")
    guidance_scale: float | None = option(
        None,
        help="how strongly the mask is followed; 1 is no guidance, at half the cost (default: what the model "
        "recommends, else 2)",
    )
    guidance_start: float = option(0.0, help="share of the steps at which guidance starts")
    guidance_stop: float = option(1.0, help="share of the steps at which guidance stops")
    scheduler: str | None = option(
        None, metavar="CLASS[:OPTION=VALUE,...]",
        help="a diffusers scheduler, with options of its own (default: the model's); such as ddim, euler, unipc, or "
        "DPMSolverMultistepScheduler:thresholding=true",
    )  # fmt: skip
    variant: str | None = option(
        None, help="weights saved beside the model's own, as diffusers calls them: raw, or an average such as "
        "ema_0_9999",
    )  # fmt: skip

    def generation_settings(self, **others: Any) -> GenerationSettings:
        """Return what the images depend on: the options of the same names, and `others`."""
        names = [field.name for field in fields(GenerationSettings) if hasattr(self, field.name)]
        return GenerationSettings(**{name: getattr(self, name) for name in names} | others)


@dataclass(frozen=True, kw_only=True)
class ConditionOptions(Settings):
    """Attributes, texts, guides and grids of settings."""

    _group = "attributes, texts, guides and variations"
    attributes: tuple[str, ...] = option(
        (), metavar="NAME=VALUE",
        help="for all images: weather=rainy timeofday=night; 'unknown' leaves one to the model",
    )  # fmt: skip
    attributes_from: str | None = option(
        None, metavar="FILE|DIR",
        help="attributes of each mask by its name: CSV with a column `stem`, JSON lines, or a split of a prepared "
        "dataset; --attributes takes precedence",
    )  # fmt: skip
    attribute_guidance_scale: float | None = option(
        None, help="how strongly attributes are followed, apart from the mask, at half as much cost again (default: "
        "both together)",
    )  # fmt: skip
    prompt: tuple[str, ...] = option(
        (), metavar="TEXT",
        help="a text about the whole image, such as 'a rainy evening'; each of several for each mask, from the same "
        "noise",
    )  # fmt: skip
    negative_prompt: str | None = option(None, metavar="TEXT", help="a text that guidance leads away from")
    class_prompts: str | None = option(
        None, metavar="FILE",
        help="JSON or YAML, texts about classes and things: {car: a red car, bus: [a white bus, null, a blue bus]}, a "
        "list for the things of a class from left to right; each of a list of such for each mask, from the same noise",
    )  # fmt: skip
    prompt_guidance_scale: float | None = option(
        None, help="how strongly texts are followed, apart from the mask, at half as much cost again (default: both "
        "together)",
    )  # fmt: skip
    conditioning_scale: float | None = option(
        None, help="weight of the control branch of a model of `train --base_model`; 0 is the base alone (default: 1)"
    )
    guide_model: str | None = option(
        None, metavar="DIR|ID",
        help="a smaller or less trained model: guidance leads away from it (autoguidance) instead of from no mask",
    )  # fmt: skip
    guide_revision: str | None = option(None, help="its branch, tag or commit on the Hub")
    guide_variant: str | None = option(None, help="weights saved beside its own, as --variant")
    variations: tuple[str, ...] = option(
        (), metavar="NAME=VALUE,VALUE",
        help=f"each combination for each mask, from the same noise: {', '.join(SWEEPABLE)}, or an attribute",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhotoOptions(Settings):
    """Real images to change."""

    _group = "real images to change"
    photos: str | None = option(
        None, metavar="DIR",
        help="real images, or a folder with images/ and masks/ such as a split; found by the names of the masks, or, "
        "for masks of `enrich`, of those that they were made from",
    )  # fmt: skip
    edit: bool = option(False, help="regenerate real images where --masks differ from their old masks")
    old_masks: str | None = option(None, metavar="DIR", help="masks of the real images (default: masks/ in --photos)")
    edit_margin: int = option(4, metavar="PIXELS", help="regenerate these around the difference, too")
    padding_mask_crop: int | None = option(
        None, metavar="PIXELS",
        help="keep real images at their own size, and generate a window with so many pixels around each edit "
        "(default: resize images and masks to the model's size)",
    )  # fmt: skip
    feather: int = option(0, metavar="PIXELS", help="inside its border, an edit fades in over these")
    jump_n_sample: int = option(
        1, metavar="TIMES",
        help="RePaint's resampling: how often each step is repeated; with DDPM or DDIM schedulers",
    )  # fmt: skip
    jump_length: int = option(1, metavar="STEPS", help="steps that are repeated together")
    strength: float | None = option(
        None, help="regenerate real images from this share of noise: 0 keeps them as they are, 1 keeps nothing"
    )


@dataclass(frozen=True, kw_only=True)
class UpscalingOptions(Settings):
    """Enlarged images."""

    _group = "enlarged images"
    upscaler: str | None = option(
        None, metavar="DIR|ID", help="model of `train --upscale_factor`: enlarge each image, under its mask at the "
        "large size; images and masks are written at that size",
    )  # fmt: skip
    upscaler_revision: str | None = option(None, help="its branch, tag or commit on the Hub")
    upscaler_steps: int | None = option(None, above=0, help="its sampling steps (default: what it recommends)")
    noise_level: int | None = option(
        None, at_least=0, help="noise on the images to enlarge: more hides artefacts and keeps less of the images "
        "(default: what the upscaler recommends)",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        names = ("upscaler_revision", "upscaler_steps", "noise_level")
        if self.upscaler is None and (unused := self.given(names)):
            raise ValueError(f"{', '.join(unused)}: only with --upscaler. Add it, or omit them.")


@dataclass(frozen=True, kw_only=True)
class NearCopyOptions(Settings):
    """Near-copies of training images."""

    _group = "near-copies of training images"
    training_set: str | None = option(
        None, metavar="DIR|ID",
        help="dataset that the model was trained on: the metadata name the nearest training image of each image, and "
        "near-copies",
    )  # fmt: skip
    training_split: str = option("train", help="its split")
    near_copy_threshold: float = option(
        NEAR_COPY_THRESHOLD, above=0, metavar="LEVELS",
        help="a smaller distance is a near-copy: grey levels of 255, root mean square over 32 x 32",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(Settings):
    """Device, memory and size."""

    _group = "device and memory"
    batch_size: int = option(8, help="images per process and batch; halved when the memory is full")
    height: int | None = option(None, help="pixels (default: the model's)")
    width: int | None = option(None, help="pixels (default: the model's)")
    device: str | None = option(None, help="default: GPU if any; each of several processes uses one of its own")
    dtype: str = option("float32", choices=DTYPE_NAMES, help="of the weights")
    torch_compile: bool = option(False, help="compile the network first, which takes a minute")
    channels_last: bool = option(False, help="memory format that is faster on most GPUs")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(
    ComputeOptions, NearCopyOptions, UpscalingOptions, PhotoOptions, ConditionOptions, SamplingOptions
):
    """Generate labelled images from masks, as a dataset that load_dataset("imagefolder") reads.

    Masks are class ids (one channel or palette) or images in the model's class colours; those of another label set are
    mapped to the model's classes by name (--mask_labels). The same command resumes an interrupted run; asking for
    more images per mask, or for more masks, adds to the same output.

      semseg-diffusers generate --masks DIR --output NEW      # in a checkout: with a model that comes with it
      semseg-diffusers generate --model RUN --masks DIR --output NEW
      semseg-diffusers generate ... --variations guidance_scale=1.5,3 weather=clear,rainy    all combinations
      semseg-diffusers generate ... --edit --photos SPLIT --masks EDITED    real images, regenerated at the edits
      semseg-diffusers generate ... --strength 0.6 --photos SPLIT           real images, regenerated with their layout

    Several processes, GPUs or machines share the work and give the same images:
      accelerate launch [--config_file FILE] -m semseg_diffusers.generation --model ... (the options below)
    Machines need one file system for masks and output.
    """

    model: str | None = option(None, help=DEFAULT_MODEL_HELP)
    revision: str | None = option(None, help="branch, tag or commit of a Hub repo")
    masks: str = option(help="folder of masks (with its sub-folders), or one mask file")
    mask_labels: str | None = option(
        None, metavar="PRESET|FILE",
        help="label set of the masks, if it is not the model's: classes are mapped by name, those without a "
        f"counterpart become unknown; {', '.join(LABEL_PRESETS)}, or a JSON file",
    )  # fmt: skip
    output: str = option(help="folder to create or resume")
    num_masks: int | None = option(None, at_least=1, help="masks to use, evenly spaced (default: all)")
    num_images_per_mask: int = option(1, metavar="N", help="of each variation")
    image_format: str = option(
        IMAGE_FORMATS[0], choices=IMAGE_FORMATS,
        help="of the images: jpg, of quality 95, is smaller and its pixels are a little off; masks are always PNG",
    )  # fmt: skip
    seed: int = option(0, help="seed of all images, from which each gets its own")
    skip_errors: bool = option(
        False, help="skip masks that cannot be used, and list them at the end; otherwise nothing is generated"
    )
    tolerance: float = option(0.0, help="accept the nearest class colour up to this RGB distance")
    contact_sheet: int = option(8, metavar="ROWS", help="masks on contact_sheet.png; 0 for none")

    def __post_init__(self):
        super().__post_init__()
        for required, is_given, names in (
            ("model", self.model is not None, ("revision",)),
            ("edit", self.edit, ("edit_margin", "padding_mask_crop", "feather", "jump_n_sample", "jump_length")),
            ("guide_model", self.guide_model is not None, ("guide_revision", "guide_variant")),
            ("jump_n_sample", self.jump_n_sample != 1, ("jump_length",)),
            ("training_set", self.training_set is not None, ("training_split", "near_copy_threshold")),
        ):
            unused = [] if is_given else self.given(names)
            if unused:
                raise ValueError(f"{', '.join(unused)}: only with --{required}. Add it, or omit them.")
        if self.training_set is not None and self.edit:
            raise ValueError("--training_set: an edited image is a near-copy of its original. Omit it with --edit.")
        read_attributes(self.attributes)
        read_variations(self.variations)

    def generation_settings(self, **others: Any) -> GenerationSettings:
        """Return what the images depend on; the file of `class_prompts` is read."""
        edit = EditSettings(
            self.edit_margin, self.padding_mask_crop, self.feather, self.jump_length, self.jump_n_sample
        )
        texts: dict[str, Any] = {}
        variations: dict[str, tuple] = {}
        entries = () if self.class_prompts is None else read_class_prompts(self.class_prompts)
        for name, values in (("prompt", self.prompt), ("class_prompts", entries)):
            if any(value in values[:number] for number, value in enumerate(values)):
                raise ValueError(f"--{name} gives one twice; expected each once: they are variations of each image.")
            if len(values) > 1:
                variations[name] = values
            texts[name] = values[0] if len(values) == 1 else None
        return super().generation_settings(
            attributes=read_attributes(self.attributes) or None,
            edit=edit if self.edit else None,
            variations={**variations, **read_variations(self.variations)} or None,
            **texts,
            **others,
        )


def check_option_combinations(
    settings: GenerationSettings, inputs: Inputs, known_attributes: Mapping[str, list[str]]
) -> None:
    """Refuse settings and inputs that do not go together, or not with the attributes of the model."""
    edits, redraws = settings.edit is not None, settings.strength is not None
    fixed, varied = settings.attributes or {}, settings.variations or {}
    changes = "--strength" if redraws else "--edit"
    twice, untrained = ", ".join(sorted({*fixed} & {*varied})), "the model was trained without attributes; omit it."
    texts_twice = ", ".join(name for name in TEXTS if name in varied and getattr(settings, name) is not None)
    for is_wrong, message in (
        ("strength" in varied and not redraws, "--variations strength=...: give --strength as well."),
        (redraws and edits, "--edit regenerates a part of an image, --strength all of it: give one of them."),
        (inputs.photos is None and (redraws or edits), f"{changes} changes real images: give their folder, --photos."),
        (
            inputs.photos is not None and not (redraws or edits),
            "--photos: give --edit (regenerate where masks changed) or --strength (regenerate everything) as well.",
        ),
        (
            inputs.upscaler is not None and settings.edit is not None and settings.edit.padding_mask_crop is not None,
            "--padding_mask_crop keeps real images at their own size, and --upscaler has one of its own: give one of "
            "them.",
        ),
        (inputs.old_masks is not None and not edits, "--old_masks: only with --edit. Add it, or omit them."),
        (twice, f"{twice}: given by --attributes and by --variations; expected one of them."),
        (texts_twice, f"{texts_twice}: given by itself and by variations; expected one of them."),
        (inputs.attributes_from is not None and not known_attributes, f"--attributes_from: {untrained}"),
        (
            settings.attribute_guidance_scale is not None and not known_attributes,
            f"--attribute_guidance_scale: {untrained}",
        ),
    ):
        if is_wrong:
            raise ValueError(message)
    check_attributes({name: [value] for name, value in fixed.items()}, known_attributes, "--attributes")
    other = {name: values for name, values in varied.items() if name not in (*SWEEPABLE, *TEXTS)}
    check_attributes(other, known_attributes, "--variations")


def read_attributes(
    texts: Iterable[str], option: str = "--attributes", form: str = "NAME=VALUE: weather=rainy"
) -> dict[str, str]:
    """Parse NAME=VALUE pairs; messages name the option and the form."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise ValueError(f"{option} '{text}': expected {form}.")
        if name in found:
            raise ValueError(f"{option} names '{name}' twice; expected each once.")
        found[name] = value
    return found


def read_variations(texts: Iterable[str]) -> dict[str, tuple]:
    """Parse the values of --variations: {"guidance_scale": (1.5, 3.0), "weather": ("clear", "rainy")}."""
    variations: dict[str, tuple] = {}
    for name, text in read_attributes(texts, "--variations", "NAME=VALUE,VALUE: guidance_scale=1.5,3").items():
        if name in TEXTS:
            several = "several texts to --prompt" if name == "prompt" else "--class_prompts a file with a list"
            raise ValueError(f"--variations {name}={text}: give {several} instead.")
        values: list[Any] = [value.strip() for value in text.split(",")]
        if name in SWEEPABLE:
            try:
                values = [float(value) for value in values]
            except ValueError:
                values = [math.nan]
            if not all(map(math.isfinite, values)):
                raise ValueError(f"--variations {name}={text}: expected numbers.")
        if "" in values or len(set(values)) < len(values):
            raise ValueError(f"--variations {name}={text}: expected distinct values, separated by commas.")
        variations[name] = tuple(values)
    return variations


def read_class_prompts(path: str | os.PathLike) -> tuple[dict[Any, Any], ...]:
    """Read the texts of a file about classes and things: one dict, or each of a list of them."""
    file, form = Path(path), "{car: a red car, bus: [a white bus, null]}, or a list of such"
    if not file.is_file():
        raise ValueError(f"--class_prompts: there is no file '{path}'; expected JSON or YAML, {form}.")
    try:
        content = parse_yaml(file.read_bytes())  # of bytes, YAML finds the encoding
    except yaml.YAMLError as err:
        raise ValueError(f"--class_prompts: '{path}' is not JSON or YAML: {' '.join(str(err).split())}.") from err
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) for entry in entries) or not any(entries):
        raise ValueError(f"--class_prompts: '{path}' holds {content!r:.80}; expected {form}.")
    return tuple(entries)


def check_attributes(given: Mapping[str, Iterable[str]], known: Mapping[str, list[str]], option: str) -> None:
    """Refuse names and values of attributes that a network does not know."""
    for name, values in given.items():
        if name not in known:
            expected = f"it knows {', '.join(known)}" if known else "it was trained without any"
            raise ValueError(f"{option}: the model has no attribute '{name}'; {expected}.")
        for value in values:
            if value not in (UNKNOWN_VALUE, *known[name]):
                raise ValueError(
                    f"{option}: '{value}' is not a value of '{name}'; the model knows {', '.join(known[name])}, and "
                    f"with '{UNKNOWN_VALUE}' it chooses."
                )


def grid(variations: Mapping[str, tuple] | None) -> dict[str, dict[str, Any]]:
    """Return all combinations, the last name changing fastest, as v0, v1, ...; {"": {}} without variations."""
    if not variations:
        return {"": {}}
    count = math.prod(map(len, variations.values()))
    if count > MAX_VARIATIONS:
        raise ValueError(f"--variations give {count} combinations per mask; expected at most {MAX_VARIATIONS}.")
    combinations = (dict(zip(variations, values, strict=True)) for values in itertools.product(*variations.values()))
    digits = len(str(count - 1))  # the names sort in this order
    return {f"v{number:0{digits}}": changes for number, changes in enumerate(combinations)}
