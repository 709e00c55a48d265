"""The networks that generation works with: a pipeline from a folder or the Hub, another scheduler, a guide, and what
lets them compute faster on a device."""

import inspect
import json
import re
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from semseg_diffusers.data.label_mapping import some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.settings import DTYPE_NAMES, GenerationSettings
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline


# Their steps go on by as many timesteps as spacing "trailing" has; with "linspace" some noise stays in the image.
FIXED_STRIDE = ("DDIMScheduler", "DDIMParallelScheduler")
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def new_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Build a diffusers scheduler by its class name from the configuration of another.

    Args:
        name: the class, and options of its own that differ from `config`, as
            "DPMSolverMultistepScheduler:algorithm_type=dpmsolver++,thresholding=true".
        config: of the scheduler whose noise levels it takes.

    Raises:
        ValueError: for a name that is no scheduler of diffusers, or of one that cannot draw with this network: it has
            noise levels of its own, or a step that wants to be told more. The message lists those that can. For one
            that does not know zero terminal SNR, where the network was trained with it, too; and for options that it
            does not take.
    """
    name, _, text = name.partition(":")
    scheduler_class = _scheduler_class(name)
    if scheduler_class is None or not _can_take_over(scheduler_class, config):
        able = [entry for entry in dir(diffusers) if _can_take_over(_scheduler_class(entry), config)]
        wrong = (
            f"no scheduler of diffusers {diffusers.__version__} is called {name!r}"
            if scheduler_class is None
            else f"{name} has noise levels or steps of its own, which are not those that this model was trained with"
        )
        raise ValueError(f"{wrong}; known: {', '.join(able)}")
    if config.get("rescale_betas_zero_snr") and not _takes(scheduler_class, "rescale_betas_zero_snr"):
        able = [entry for entry in dir(diffusers) if entry.endswith("Scheduler") and not entry.startswith("Flax")]
        able = [entry for entry in able if _takes(getattr(diffusers, entry), "rescale_betas_zero_snr")]
        raise ValueError(
            f"{name} does not know rescale_betas_zero_snr, with which this model was trained; take one of "
            f"{', '.join(able)}"
        )
    options = _read_options(text, scheduler_class)
    if name in FIXED_STRIDE and config.get("timestep_spacing") == "linspace":
        options = {"timestep_spacing": "trailing", **options}
    if _takes(scheduler_class, "algorithm_type") and not name.startswith("DPMSolver"):  # others refuse "dpmsolver++"
        config = {key: value for key, value in config.items() if key != "algorithm_type"}
    try:
        return scheduler_class.from_config(config, **options)
    except (NotImplementedError, TypeError, ValueError) as err:  # diffusers' own words
        raise ValueError(f"{name} does not take {text or 'the settings of this model'}: {err}") from err


def _read_options(text: str, scheduler_class: type) -> dict[str, Any]:
    """Read OPTION=VALUE,OPTION=VALUE; a value is JSON (0.5, true), or text."""
    options = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if not name or not value or not _takes(scheduler_class, name):
            known = [option for option in inspect.signature(scheduler_class.__init__).parameters if option != "self"]
            raise ValueError(
                f"{scheduler_class.__name__}:{part} is not understood; wanted OPTION=VALUE of {', '.join(known)}."
            )
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _scheduler_class(name: str) -> type | None:
    found = getattr(diffusers, name, None) if re.fullmatch(r"(?!Flax|[a-z_]).+Scheduler", name) else None
    return found if isinstance(found, type) and issubclass(found, SchedulerMixin) else None


def _can_take_over(scheduler_class: type | None, config: dict[str, Any]) -> bool:
    """Tell whether a scheduler takes the noise levels of another, and steps by what a pipeline tells it."""
    if scheduler_class is None or not hasattr(scheduler_class, "step"):
        return False
    told = inspect.signature(scheduler_class.step).parameters.values()
    wanted = {parameter.name for parameter in told if parameter.default is inspect.Parameter.empty}
    takes_levels = "beta_schedule" not in config or _takes(scheduler_class, "beta_schedule")
    return takes_levels and wanted <= {"self", "model_output", "timestep", "sample"}


def _takes(scheduler_class: type, option: str) -> bool:
    return option in inspect.signature(scheduler_class.__init__).parameters


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
        scheduler: class name of a diffusers scheduler that takes the place of the saved one.
        dtype: of weights and images in the making.
        device: where to.
        variant: weights beside the pipeline's own: `raw`, or an average such as `ema_0_9999`.

    Raises:
        ValueError, OSError: no such pipeline, weights or scheduler; the message says what to do.
    """
    pipeline = load_pipeline(name, revision=revision, variant=variant, dtype=dtype).to(device)
    if scheduler:
        pipeline.scheduler = new_scheduler(scheduler, pipeline.scheduler.config)
    return pipeline


def load_guide(
    name: str, revision: str | None, pipeline: MaskGuidedDDPMPipeline, variant: str | None = None
) -> torch.nn.Module:
    """Load the network of a weaker model that a pipeline is guided away from (autoguidance, Karras et al. 2024).

    Args:
        name: folder of a training run, or Hub repo id.
        revision: branch, tag or commit of a Hub repo.
        pipeline: the pipeline to guide; its dtype and device are taken.
        variant: weights beside that model's own, such as `raw`.

    Raises:
        ValueError, OSError: no such pipeline, or one that draws other classes or predicts another thing.
    """
    guide = load_pipeline(name, revision=revision, variant=variant, dtype=pipeline.unet.dtype).to(pipeline.device)
    ours, theirs = (LabelSet.from_config(entry.unet.config) for entry in (pipeline, guide))
    if theirs.names != ours.names:
        raise ValueError(
            f"--guide_model '{name}' draws other classes ({some_names(theirs)}) than the model "
            f"({some_names(ours)}): a guide is a smaller or less trained model of the same dataset."
        )
    try:
        return pipeline.prepare_guide(guide, None)
    except ValueError as err:
        raise ValueError(f"--guide_model '{name}': {err}") from err


def pipeline_for(pipeline: MaskGuidedDDPMPipeline, settings: GenerationSettings) -> Any:
    """The pipeline that makes images of these settings: from noise, from a photo, or in a part of one."""
    if settings.edit is not None:
        return MaskGuidedInpaintPipeline(pipeline.unet, pipeline.scheduler)
    if settings.strength is not None:
        return MaskGuidedImg2ImgPipeline(pipeline.unet, pipeline.scheduler)
    return pipeline


def known_attributes(unet: torch.nn.Module) -> dict[str, list[str]]:
    """The attributes that a network was trained with, and their values; none for most."""
    return {name: list(values) for name, values in (getattr(unet.config, "attributes", None) or {}).items()}


def model_revision(unet: torch.nn.Module) -> str:
    """Return the commit of weights that came from the Hub, else a hash of the weights themselves."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})", str(unet.config.get("_name_or_path", "")))
    if commit:
        return commit.group(1)
    return weights_hash(unet.state_dict())


def speed_up(*networks: torch.nn.Module, torch_compile: bool, channels_last: bool) -> None:
    """Let networks compute faster, with the same results but for rounding.

    Args:
        networks: changed in place; they save and load as before.
        torch_compile: compile `forward` at its first call, which takes minutes at most.
        channels_last: lay weights out as GPUs with tensor cores read them, channels beside each other.
    """
    for network in networks:
        if channels_last:
            network.to(memory_format=torch.channels_last)
        if torch_compile:
            network.compile()
