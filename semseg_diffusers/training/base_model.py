"""The pretrained network that a control branch is trained on (`--base_model`), and the noise schedule that it knows.

Zhang et al. 2023 (ControlNet) train on a network that stays as it is; so what it predicts, and over which noise
levels, is not for the run to choose where the base says it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from safetensors import SafetensorError
from safetensors.torch import load_file

from semseg_diffusers.utils.hub_errors import check_name, hub_errors


if TYPE_CHECKING:  # the command line reads the schedule's settings, and needs no torch for that
    from diffusers import DDPMScheduler, UNet2DModel

    from semseg_diffusers.training.settings import TrainingSettings


CONFIG_FILE, SCHEDULER_FILE, INDEX_FILE = "config.json", "scheduler_config.json", "model_index.json"
OF_THE_SCHEDULE = ("prediction_type", "num_train_timesteps", "rescale_betas_zero_snr", "noise_schedule")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class BaseModel:
    """A base, read and found fit."""

    unet: "UNet2DModel"
    noise_scheduler: "DDPMScheduler | None"  # None: nothing beside the weights says, the settings do


def find_file(source: str, name: str, action: str) -> Path | None:
    """A file of a folder here, or of a repository of the Hub, from where it is downloaded.

    Args:
        source: a folder, or a Hub id.
        name: its path inside.
        action: what it is for ("--init_from: loading the model 'x'"); errors begin with it.

    Returns:
        its path here; None where there is no such file.

    Raises:
        ValueError: the source is neither a folder nor, by its form, an id.
        HubError: the Hub has no such repository, does not let one in, or cannot be reached.
    """
    check_name(source)
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder, _, file = name.rpartition("/")
    with hub_errors(action, source):
        try:
            return Path(hf_hub_download(source, file, subfolder=folder or None))
        except LocalEntryNotFoundError:
            raise  # the Hub cannot be reached
        except EntryNotFoundError:
            return None


def _read(source: str, *names: str) -> tuple[dict[str, Any], str] | None:
    """The first of some JSON files that there is, and its name."""
    for name in names:
        path = find_file(source, name, f"--base_model: loading '{source}'")
        if path is not None:
            try:
                return json.loads(path.read_text(encoding="utf-8")), name
            except ValueError as err:
                raise ValueError(f"--base_model {source}: {path} is not JSON: {err}. Is it whole?") from err
    return None


def control_defaults(source: str) -> dict[str, Any]:
    """Settings that a run on a base begins from, before those that are given.

    Masks are not dropped: where there is none the base speaks alone, and nothing is learned.

    Args:
        source: a folder that holds a `UNet2DModel` or a pipeline of one, or a Hub id of one.

    Returns:
        values of `TrainingSettings`: the network, what the base's schedule decides where one lies beside it.

    Raises:
        ValueError, HubError: there is no such folder or repository, or its schedule cannot be trained with.
    """
    found = {"network": "control", "mask_dropout": 0.0}
    config = _scheduler_config(source)
    if config is not None:
        found |= {
            "prediction_type": config.get("prediction_type", "epsilon"),
            "num_train_timesteps": config.get("num_train_timesteps", 1000),
            "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
            "noise_schedule": "base",
        }
    return found


def _scheduler_config(source: str) -> dict[str, Any] | None:
    found = _read(source, f"scheduler/{SCHEDULER_FILE}", SCHEDULER_FILE)
    if found is None:
        return None
    config, name = found
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"--base_model {source}: its {name} is of a {config.get('_class_name')}, which has noise levels of its "
            "own; wanted a scheduler with betas, such as DDPMScheduler."
        )
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ValueError(
            f"--base_model {source}: it predicts {config['prediction_type']} ({name}); wanted one of "
            f"{', '.join(PREDICTION_TYPES)}."
        )
    return config


def load_base(settings: "TrainingSettings") -> BaseModel:
    """Read the base of a run, and refuse one that cannot be trained on, or not as the settings say.

    Args:
        settings: of a run with `base_model`.

    Raises:
        ValueError: it is no plain `UNet2DModel` of photos, wants a class label, or contradicts a setting.
        HubError: the Hub has no such model, or does not let one in.
    """
    source = settings.base_model
    unet = _load_network(source)
    refusal = _unfit(unet.config, settings.base_class_label)
    if refusal is not None:
        raise ValueError(f"--base_model {source}: {refusal}")
    return BaseModel(unet, _load_schedule(settings))


def _load_network(source: str) -> "UNet2DModel":
    from diffusers import UNet2DModel
    from safetensors import SafetensorError

    found = _read(source, f"unet/{CONFIG_FILE}", CONFIG_FILE)
    if found is None:
        raise ValueError(
            f"--base_model {source}: it holds neither unet/{CONFIG_FILE} nor {CONFIG_FILE}. Give a folder or a Hub id "
            "of a UNet2DModel, or of a pipeline of one."
        )
    config, name = found
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        ours = "num_classes" in config and kind is not None
        hint = (
            " It reads masks already: go on with it by --init_from, without --base_model."
            if ours
            else " Networks of latents and of text are not built."
        )
        raise ValueError(f"--base_model {source}: its network is a {kind}; wanted a plain UNet2DModel.{hint}")
    parts, _ = _read(source, INDEX_FILE) or ({}, "")
    if coder := next((part for part in ("vqvae", "vae") if parts.get(part, [None])[0] is not None), None):
        raise ValueError(
            f"--base_model {source}: it draws latents, which its {coder} turns into photos; wanted a network that "
            "draws the pixels themselves."
        )
    subfolder = "unet" if name.startswith("unet/") else None
    with hub_errors(f"--base_model: loading '{source}'", source):
        try:
            return UNet2DModel.from_pretrained(source, subfolder=subfolder)
        except SafetensorError as err:
            raise ValueError(f"--base_model {source}: its weights cannot be read: {err}. Are they whole?") from err
        except (OSError, RuntimeError, ValueError) as err:
            if not Path(source).is_dir():
                raise
            raise ValueError(f"--base_model {source}: its weights cannot be read: {err}") from err


def _unfit(config, label: int | None) -> str | None:
    """Why a base cannot be trained on; None where it can."""
    if config.in_channels != 3:
        return f"it takes {config.in_channels} channels, and photos have 3. Give one of red, green and blue."
    if config.out_channels != 3:
        return (
            f"it gives {config.out_channels} channels for 3, as networks that learned their variance do: the mean "
            "squared error teaches none. Give one of 3."
        )
    if config.class_embed_type == "identity":
        return "it is told classes by vectors, for which there is no option. Give an unconditional one."
    takes_label = config.class_embed_type is not None or config.num_class_embeds is not None
    if takes_label and label is None:
        known = "" if config.num_class_embeds is None else f" of 0 to {config.num_class_embeds - 1}"
        return f"it is class-conditional: give the label{known} that stands for your photos, --base_class_label."
    return None  # a label that the network does not know is refused where it is built


def _load_schedule(settings: "TrainingSettings") -> "DDPMScheduler | None":
    """The schedule beside a base, made to train with; the settings must say the same."""
    import torch
    from diffusers import DDPMScheduler

    from semseg_diffusers.training.objective import build_noise_scheduler

    config = _scheduler_config(settings.base_model)
    if config is None:
        if settings.noise_schedule == "base":
            raise ValueError(
                f"--noise_schedule base: no {SCHEDULER_FILE} lies beside the weights of {settings.base_model}. Give "
                "the one that it was trained with, and its --prediction_type."
            )
        return None
    # as in `build_noise_scheduler`: guidance carries x0 out of [-1, 1] on the way
    scheduler = DDPMScheduler.from_config({**config, "clip_sample": False})
    theirs = control_defaults(settings.base_model)
    differing = [name for name in OF_THE_SCHEDULE if getattr(settings, name) != theirs[name]]
    if differing == ["noise_schedule"]:  # named, where "base" would do: the noise levels may be the same
        ours = build_noise_scheduler(settings).alphas_cumprod
        differing = [] if torch.allclose(ours, scheduler.alphas_cumprod, atol=1e-6) else differing
    for name in differing:
        shown = "betas of its own" if name == "noise_schedule" else theirs[name]
        raise ValueError(
            f"--{name} {getattr(settings, name)} contradicts --base_model {settings.base_model}, which was trained "
            f"with {shown}. Leave it out."
        )
    return scheduler


logger = get_logger(__name__)

WEIGHTS_FILE, CONFIG_FILE = "diffusion_pytorch_model.safetensors", "config.json"


def load_first_weights(unet: torch.nn.Module, source: str) -> tuple[list[str], list[str]]:
    """Take over the weights of another model that have the name and the shape of the network's own.

    Args:
        unet: the network, changed in place.
        source: a folder that holds a pipeline or a network, or a Hub id of one.

    Returns:
        names of what the network keeps of its own, with the reason, and of what it has no place for.

    Raises:
        ValueError: there is no such model, its weights are no safetensors, or nothing agrees.
        HubError: the Hub has no such model, or does not let one in.
    """
    weights_file, config = _find_weights(source)
    try:
        theirs = load_file(weights_file)
    except SafetensorError as err:
        raise ValueError(f"--init_from {source}: {weights_file} cannot be read: {err}. Is it whole?") from err
    ours = json.loads(json.dumps(getattr(unet.config, "attributes", None)))
    frozen = {name for name, weight in unet.named_parameters() if not weight.requires_grad}  # a base stays as it is
    own = {name: weight for name, weight in unet.state_dict().items() if name not in frozen}
    if other := [name for name in sorted(frozen & set(theirs)) if not _same(theirs[name], unet.get_parameter(name))]:
        logger.warning(
            f"--init_from {source}: its base is another one than --base_model ({len(other)} weights differ): what its "
            "control branch learned belongs to that one."
        )
    kept, taken = [], {}
    for name, weight in own.items():
        if name == "attribute_embedding.weight" and name in theirs and config.get("attributes") != ours:
            kept.append(f"{name} (of other values there)")  # a column is a value
        elif name not in theirs:
            kept.append(f"{name} (not there)")
        elif theirs[name].shape != weight.shape:
            kept.append(f"{name} ({tuple(theirs[name].shape)} there, {tuple(weight.shape)} here)")
        else:
            taken[name] = theirs[name]
    if not taken:
        raise ValueError(
            f"--init_from {source}: none of its {len(theirs)} weights has the name and the shape of one of this "
            f"network's, a {type(unet).__name__}; it is a {config.get('_class_name', 'model of an unknown kind')}. "
            "Give a model of the same kind and widths."
        )
    classes, their_classes = getattr(unet.config, "id2label", None), config.get("id2label")
    if classes and their_classes and len(classes) == len(their_classes):  # of another number, shapes differ
        differing = [
            f"{number} is {their_classes.get(number)} there, {name} here"
            for number, name in classes.items()
            if their_classes.get(number) != name
        ]
        if differing:
            logger.warning(
                f"--init_from {source}: the weights that read masks learned other classes, {len(differing)} of "
                f"{len(classes)} ({'; '.join(differing[:3])}). They are taken over, and have to learn these anew."
            )
    unet.load_state_dict(taken, strict=False)
    return kept, sorted(set(theirs) - set(own) - frozen)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one.to(other) == other).all())


def _find_weights(source: str) -> tuple[Path, dict]:
    """The weights of a pipeline's or a network's folder, here or on the Hub, and the config beside them."""
    for folder in ("unet/", ""):
        action = f"--init_from: loading the model '{source}'"
        found = [find_file(source, f"{folder}{name}", action) for name in (WEIGHTS_FILE, CONFIG_FILE)]
        if None not in found:
            try:
                return found[0], json.loads(found[1].read_text(encoding="utf-8"))
            except ValueError as err:
                raise ValueError(f"--init_from {source}: {found[1]} is not JSON: {err}. Is it whole?") from err
    raise ValueError(
        f"--init_from {source}: it holds neither unet/{WEIGHTS_FILE} nor {WEIGHTS_FILE}, with its {CONFIG_FILE}. Give "
        "a run folder, or what `save_pretrained` of a pipeline or a network wrote."
    )
