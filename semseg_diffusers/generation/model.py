"""The networks that generation works with: a pipeline from a folder or the Hub, another scheduler, a guide, and what
lets them compute faster on a device.
"""

import contextlib
import inspect
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from semseg_diffusers.data.label_mapping import some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.settings import DEFAULT_MODELS, DTYPE_NAMES, GenerationSettings
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline
from semseg_diffusers.pipelines.scheduler_trial import check_scheduler, mend_scheduler


SUITABLE_STEPS = 20  # at which schedulers are tried for the list of those that suit
SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def new_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Build a diffusers scheduler by its class name from the configuration of another.

    Args:
        name: the class, and options of its own that differ from `config`, as
            "DPMSolverMultistepScheduler:algorithm_type=dpmsolver++,thresholding=true".
        config: of the scheduler whose noise levels it takes.

    Raises:
        ValueError: diffusers has no such scheduler; it has noise levels of its own, or its step needs other arguments;
            it does not support zero terminal SNR, with which the network was trained; or it does not take the options.
    """
    name, _, text = name.partition(":")
    name = full_name(name)
    scheduler_class = _schedulers([name]).get(name)
    if scheduler_class is None or not _is_compatible(scheduler_class, config):
        reason = f"{name} has noise levels or steps of its own, which are not those that this model was trained with"
        if scheduler_class is None:
            reason = f"no scheduler of diffusers {diffusers.__version__} is called {name!r}"
        raise ValueError(f"{reason}; those that sample this model: {', '.join(suitable_schedulers(config))}")
    takes = _arguments(scheduler_class)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        schedulers = _schedulers(dir(diffusers)).items()
        able = [key for key, each in schedulers if "rescale_betas_zero_snr" in _arguments(each)]
        raise ValueError(
            f"{name} does not know rescale_betas_zero_snr, with which this model was trained; expected one of "
            f"{', '.join(able)}"
        )
    # `from_config` would drop what this lists, and take defaults of the new class in place of the other's betas
    config = {key: value for key, value in config.items() if key != "_use_default_values"}
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        option, _, value = part.partition("=")
        if not value or option not in takes:
            raise ValueError(f"{name}:{part}: expected OPTION=VALUE, with one of the options {', '.join(takes)}.")
        try:
            options[option] = json.loads(value)  # 0.5, true
        except json.JSONDecodeError:
            options[option] = value
    if "algorithm_type" in takes and not name.startswith("DPMSolver"):  # others refuse "dpmsolver++"
        config = {key: value for key, value in config.items() if key != "algorithm_type"}
    try:
        scheduler: Any = scheduler_class.from_config(config, **options)
    except (NotImplementedError, TypeError, ValueError) as err:  # in the words of diffusers
        raise ValueError(f"{name} does not take {text or 'the settings of this model'}: {err}") from err
    scheduler.keeps_spacing = "timestep_spacing" in options
    mend_scheduler(scheduler)
    return scheduler


def scheduler_options(scheduler: Any, saved: Any) -> str | None:
    """Return the options that `new_scheduler` needs, after the name, to build a scheduler from the saved one's."""
    if scheduler is saved:
        return None
    try:
        default = new_scheduler(type(scheduler).__name__, saved.config).config
    except ValueError:  # of a user
        return None
    options = {
        name: value
        for name, value in sorted(scheduler.config.items())
        if name in _arguments(type(scheduler)) and value != default.get(name) and isinstance(value, (str, int, float))
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return ",".join(f"{name}={text}" for name, text in texts.items()) or None


def full_name(name: str) -> str:
    """Return the class name of a scheduler that is called in short, such as "ddim", "euler_a" or "DPM++"."""
    short = name.lower().replace("-", "_")
    return SHORT_NAMES.get(short, SHORT_NAMES.get(short.removesuffix("scheduler"), name))


def suitable_schedulers(config: dict[str, Any]) -> list[str]:
    """Return the schedulers of diffusers that sample what the scheduler with this configuration was trained for."""
    found: list[str] = []
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # what they say of each other's settings is no news
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = getattr(diffusers, config.get("_class_name", ""), diffusers.DDPMScheduler).from_config(config)
            for name, each in _schedulers(dir(diffusers)).items():
                if _is_compatible(each, config):
                    with contextlib.suppress(ValueError, ImportError):  # some need scipy
                        check_scheduler(new_scheduler(name, config), SUITABLE_STEPS, saved)
                        found.append(name)
    finally:
        diffusers.logging.set_verbosity(verbosity)
    return found


def _schedulers(names: Iterable[str]) -> dict[str, Any]:
    """Return the schedulers of diffusers among names, with their classes; not those that need missing packages."""
    names = [name for name in names if re.fullmatch(r"(?!Flax|[a-z_]).+Scheduler", name)]
    classes = ((name, getattr(diffusers, name, None)) for name in names)
    return {name: each for name, each in classes if isinstance(each, type) and issubclass(each, SchedulerMixin)}


def _arguments(scheduler_class: Any) -> list[str]:
    return [name for name in inspect.signature(scheduler_class.__init__).parameters if name != "self"]


def _is_compatible(scheduler_class: Any, config: dict[str, Any]) -> bool:
    """Return whether a scheduler takes the noise levels of another, and a pipeline can call its step."""
    if not hasattr(scheduler_class, "step"):
        return False
    parameters = inspect.signature(scheduler_class.step).parameters.values()
    required = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    takes_levels = "beta_schedule" not in config or "beta_schedule" in _arguments(scheduler_class)
    return takes_levels and required <= {"self", "model_output", "timestep", "sample"}


def find_model() -> str:
    """Return the first of the default models that exists here."""
    found = next((name for name in DEFAULT_MODELS if (Path(name) / "model_index.json").is_file()), None)
    if found is None:
        raise ValueError(f"there is none of {', '.join(DEFAULT_MODELS)} here. Name a model: --model runs/camvid128")
    return found


def load_model(
    name: str,
    revision: str | None = None,
    scheduler: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    variant: str | None = None,
) -> MaskGuidedDDPMPipeline:
    """Load a pipeline to generate with.

    Args:
        name: folder of a training run, or Hub repo id.
        revision: branch, tag or commit of a Hub repo.
        scheduler: class name of a diffusers scheduler that replaces the saved one.
        dtype: of weights and latents.
        device: of the network.
        variant: weights saved beside the pipeline's own: `raw`, or an average such as `ema_0_9999`.

    Raises:
        ValueError, OSError: no such pipeline, weights or scheduler; the message says what to do.
    """
    pipeline: Any = load_pipeline(name, revision=revision, variant=variant, dtype=dtype)
    if dtype == torch.float16 and pipeline.vae is not None and pipeline.vae.config.get("force_upcast"):
        pipeline.vae.to(torch.float32)  # its values leave the range of float16
    pipeline.to(device)
    if scheduler:
        pipeline.scheduler = new_scheduler(scheduler, pipeline.scheduler.config)
    return pipeline


def load_guide(name: str, revision: str | None, pipeline: Any, variant: str | None = None) -> torch.nn.Module:
    """Load the network of a weaker model that a pipeline is guided away from (autoguidance, Karras et al. 2024).

    Args:
        name: folder of a training run, or Hub repo id.
        revision: branch, tag or commit of a Hub repo.
        pipeline: the pipeline to guide; its dtype and device are used.
        variant: weights saved beside that model's own, such as `raw`.

    Raises:
        ValueError, OSError: no such pipeline, or one that has other classes or predicts another quantity.
    """
    guide = load_model(name, revision, None, pipeline.unet.dtype, pipeline.device, variant)
    ours, theirs = (LabelSet.from_config(each.unet.config) for each in (pipeline, guide))
    if theirs.names != ours.names:
        raise ValueError(
            f"--guide_model '{name}' has other classes ({some_names(theirs)}) than the model "
            f"({some_names(ours)}): a guide is a smaller or less trained model of the same dataset."
        )
    try:
        return pipeline.prepare_guide(guide, None)
    except ValueError as err:
        raise ValueError(f"--guide_model '{name}': {err}") from err


def load_upscaler(name: str, revision: str | None, pipeline: Any) -> Any:
    """Load the upscaler of a pipeline's images; its dtype and device are used.

    Args:
        name: folder of a training run, or Hub repo id.
        revision: branch, tag or commit of a Hub repo.
        pipeline: the pipeline whose images it enlarges.

    Raises:
        ValueError, OSError: no such pipeline, no upscaler, or one of other classes.
    """
    upscaler: Any = load_pipeline(name, revision=revision, upscaler=True, dtype=pipeline.unet.dtype)
    ours, theirs = (LabelSet.from_config(each.unet.config) for each in (pipeline, upscaler))
    if theirs.names != ours.names:
        raise ValueError(
            f"--upscaler '{name}' has other classes ({some_names(theirs)}) than the model ({some_names(ours)}): both "
            "read the same masks. Train one with the label set of the other."
        )
    return upscaler.to(pipeline.device)


def pipeline_for(pipeline: Any, settings: GenerationSettings) -> Any:
    """Return the pipeline for these settings: from noise, from an image, or in a part of one."""
    if settings.edit is None and settings.strength is None:
        return pipeline
    kind = MaskGuidedImg2ImgPipeline if settings.edit is None else MaskGuidedInpaintPipeline
    other = kind(
        pipeline.unet,
        pipeline.scheduler,
        trained_timesteps=pipeline.config.get("trained_timesteps"),
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        vae=pipeline.vae,
    )
    other.trained_scheduler = pipeline.trained_scheduler
    return other


def known_attributes(unet: Any) -> dict[str, list[str]]:
    """Return the attributes that a network was trained with, and their values; none for most."""
    return {name: list(values) for name, values in (getattr(unet.config, "attributes", None) or {}).items()}


def model_revision(unet: Any) -> str:
    """Return the commit of weights that came from the Hub, else a hash of the weights themselves."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})", str(unet.config.get("_name_or_path", "")))
    return commit.group(1) if commit else weights_hash(unet.state_dict())


def encoder_revision(text_encoder: Any) -> str:
    """Return a hash of the weights of a text encoder, wherever it was loaded from."""
    return weights_hash(text_encoder.state_dict())


def speed_up(*networks: Any, torch_compile: bool, channels_last: bool) -> None:
    """Let networks compute faster, with the same results but for rounding; they save and load as before."""
    for network in networks:
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if torch_compile:
            network.compile()
