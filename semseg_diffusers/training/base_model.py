"""Weights of other models: the frozen base of a control branch (`--base_model`), initial weights (`--init_from`).

ControlNet (Zhang et al. 2023) trains beside a frozen network, so prediction type and noise levels are those of the
base if it specifies them.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.weights import only_variant, read_weights, weight_files
from semseg_diffusers.training.class_transfer import carry_over, describe_sources, source_classes
from semseg_diffusers.training.objective import build_noise_scheduler
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import (
    CONFIG_FILE,
    SCHEDULER_FILE,
    control_defaults,
    find_file,
    read_config,
    scheduler_config,
)
from semseg_diffusers.utils.hub_errors import hub_errors


logger = get_logger(__name__)

WEIGHTS_FILE, INDEX_FILE = "diffusion_pytorch_model.safetensors", "model_index.json"
OF_THE_SCHEDULE = ("prediction_type", "num_train_timesteps", "rescale_betas_zero_snr", "noise_schedule")


@dataclass(frozen=True)
class BaseModel:
    """A base that has been read and checked."""

    unet: UNet2DModel
    noise_scheduler: DDPMScheduler | None  # None: not saved beside the weights; the settings apply


def load_base(settings: TrainingSettings) -> BaseModel:
    """Read the base of a run, and refuse one that cannot be used, or contradicts the settings."""
    source = str(settings.base_model)
    unet = _load_network(source)
    config, refusal = unet.config, None
    takes_label = config.class_embed_type is not None or config.num_class_embeds is not None
    if config.in_channels != 3:
        refusal = f"it takes {config.in_channels} channels, and images have 3. Give an RGB network."
    elif config.out_channels != 3:
        refusal = (
            f"it outputs {config.out_channels} channels for 3, like networks with learned variance, which the mean "
            "squared error does not train. Give one with 3."
        )
    elif config.class_embed_type == "identity":
        refusal = "it takes class embeddings as vectors, which is not supported. Give an unconditional one."
    elif takes_label and settings.base_class_label is None:  # an unknown label is refused when the network is built
        known = "" if config.num_class_embeds is None else f" of 0 to {config.num_class_embeds - 1}"
        refusal = f"it is class-conditional: give the label{known} of your images, --base_class_label."
    if refusal is not None:
        raise ValueError(f"--base_model {source}: {refusal}")
    return BaseModel(unet, _load_schedule(source, settings))


def _load_network(source: str) -> UNet2DModel:
    found = read_config(source, "--base_model", f"unet/{CONFIG_FILE}", CONFIG_FILE)
    if found is None:
        raise ValueError(
            f"--base_model {source}: it has neither unet/{CONFIG_FILE} nor {CONFIG_FILE}. Give a folder or a Hub id "
            "of a UNet2DModel, or of a pipeline of one."
        )
    config, name = found
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        hint = " Latent and text-conditional networks are not supported."
        if "num_classes" in config and kind is not None:
            hint = " It reads masks already: continue its training with --init_from, without --base_model."
        raise ValueError(f"--base_model {source}: its network is a {kind}; expected a plain UNet2DModel.{hint}")
    parts, _ = read_config(source, "--base_model", INDEX_FILE) or ({}, "")
    if coder := next((part for part in ("vqvae", "vae") if parts.get(part, [None])[0] is not None), None):
        raise ValueError(
            f"--base_model {source}: it generates latents, which its {coder} decodes; expected a network that "
            "generates pixels."
        )
    with hub_errors(f"--base_model: loading the model '{source}'", source):
        folder = "unet" if name.startswith("unet/") else ""
        try:
            variant = only_variant(source, folder) if Path(source).is_dir() else None
            return UNet2DModel.from_pretrained(source, subfolder=folder or None, variant=variant)
        except SafetensorError as err:
            raise ValueError(f"--base_model {source}: its weights cannot be read: {err}. Are they complete?") from err
        except (OSError, RuntimeError, ValueError) as err:
            if not Path(source).is_dir():
                raise
            raise ValueError(f"--base_model {source}: its weights cannot be read: {err}") from err


def _load_schedule(source: str, settings: TrainingSettings) -> DDPMScheduler | None:
    """Return the schedule saved beside a base, for training; the settings must match it."""
    config = scheduler_config(source)
    if config is None:
        if settings.noise_schedule == "base":
            raise ValueError(
                f"--noise_schedule base: no {SCHEDULER_FILE} was found beside the weights of {source}. Give the "
                "schedule it was trained with, and its --prediction_type."
            )
        return None
    # as in `build_noise_scheduler`: guidance moves x0 out of [-1, 1] on the way
    scheduler = DDPMScheduler.from_config({**config, "clip_sample": False})
    theirs = control_defaults(source)
    differing = [name for name in OF_THE_SCHEDULE if getattr(settings, name) != theirs[name]]
    if differing == ["noise_schedule"]:  # given by name; the noise levels may be the same
        ours = build_noise_scheduler(settings).alphas_cumprod
        differing = [] if torch.allclose(ours, scheduler.alphas_cumprod, atol=1e-6) else differing
    for name in differing:
        shown = "its own betas" if name == "noise_schedule" else theirs[name]
        raise ValueError(
            f"--{name} {getattr(settings, name)} contradicts --base_model {source}, which was trained with {shown}. "
            "Omit the option."
        )
    return scheduler


def _first_weights(source: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return config and weights of the network in a pipeline, or of a network alone."""
    for folder in ("unet", ""):
        start = f"{folder}/" if folder else ""
        found = read_config(source, "--init_from", f"{start}{CONFIG_FILE}")
        if found is None:
            continue
        find = functools.partial(_find_below, source, start)
        try:
            files = weight_files(find) or weight_files(find, variant=only_variant(source, folder))
            if files:
                return found[0], read_weights(files)
        except ValueError as err:
            raise ValueError(f"--init_from {source}: {err}") from err
    raise ValueError(
        f"--init_from {source}: it has neither unet/{WEIGHTS_FILE} nor {WEIGHTS_FILE} with its {CONFIG_FILE}. Give a "
        "run folder, or a folder saved by `save_pretrained` of a pipeline or a network."
    )


def _find_below(source: str, start: str, name: str) -> Path | None:
    return find_file(source, f"{start}{name}", "--init_from")


def _label_set(config: Mapping[str, Any]) -> LabelSet | None:
    """Return the label set of a network's config; None where it does not name its classes."""
    if not config.get("id2label"):
        return None
    if config.get("id2color"):
        return LabelSet.from_config(config)
    return LabelSet.from_names([name for _, name in sorted((int(i), name) for i, name in config["id2label"].items())])


def load_first_weights(
    unet: Any, source: str, mapping: Mapping[str, Sequence[str | int]] | None = None
) -> tuple[list[str], list[str]]:
    """Load the weights of another model that have the name and the shape of the network's own, in place.

    Where the classes are others, each takes the mask weights of those that it corresponds to (`source_classes`).

    Returns names of the network's weights that were not loaded, with the reason, and of theirs without a counterpart.
    """
    config, theirs = _first_weights(source)
    own_labels, their_labels = _label_set(unet.config), _label_set(config)
    classes: dict[str, torch.Tensor] = {}
    if own_labels is not None and their_labels is not None and (mapping or own_labels.names != their_labels.names):
        try:
            sources = source_classes(own_labels, their_labels, mapping)
        except ValueError as err:
            raise ValueError(f"--init_classes: {err}") from err
        classes = carry_over(unet, theirs, their_labels.num_classes, sources)
        if classes:
            described = describe_sources(own_labels, their_labels, sources)
            logger.info(f"what {source} knows of classes is carried over: {described}")
    elif mapping:
        raise ValueError(f"--init_classes: {source} does not name its classes, so they cannot be mapped. Omit it.")
    frozen = {name: weight for name, weight in unet.named_parameters() if not weight.requires_grad}  # of a base
    own = {name: weight for name, weight in unet.state_dict().items() if name not in frozen}
    same_values = config.get("attributes") == json.loads(json.dumps(getattr(unet.config, "attributes", None)))
    kept, taken = [], {}
    for name, weight in own.items():
        if name == "attribute_embedding.weight" and name in theirs and not same_values:
            kept.append(f"{name} (of other values)")  # one column per value
        elif name not in theirs:
            kept.append(f"{name} (missing)")
        elif name in classes:
            taken[name] = classes[name]
        elif theirs[name].shape != weight.shape:
            kept.append(f"{name} ({tuple(theirs[name].shape)} there, {tuple(weight.shape)} here)")
        else:
            taken[name] = theirs[name]
    if not taken:
        raise ValueError(
            f"--init_from {source}: none of its {len(theirs)} weights has the name and the shape of one of this "
            f"{type(unet).__name__}; it is a {config.get('_class_name', 'model of an unknown kind')}. Give a model of "
            "the same kind and widths."
        )
    shared = frozen.keys() & theirs.keys()
    if other := [name for name in shared if not torch.equal(theirs[name].to(frozen[name]), frozen[name])]:
        logger.warning(
            f"--init_from {source}: its base differs from --base_model ({len(other)} weights): its control branch "
            "was trained for that base."
        )
    unet.load_state_dict(taken, strict=False)
    return kept, sorted(theirs.keys() - own.keys() - frozen.keys())
