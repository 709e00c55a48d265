"""What a run of generation will make, checked before any work: settings, the network's size and revision, masks.
Two runs with an equal `record` make the same images, so an output folder is continued only by such a run."""

import inspect
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from semseg_diffusers.data.label_mapping import LabelMapping, some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import label_file_near
from semseg_diffusers.data.mask_files import find_masks
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GenerationSettings:
    """What an image depends on, beside the model, its scheduler and its mask."""

    num_inference_steps: int = 50
    guidance_scale: float = 3.0  # 1: plain conditional sampling, one forward a step instead of two
    guidance_start: float = 0.0  # share of the steps, from the noise on, where guidance begins
    guidance_stop: float = 1.0  # and where it ends
    height: int | None = None  # pixels; None: the model's sample_size
    width: int | None = None
    seed: int = 0
    variant: str | None = None  # which of the model's weights draw, as diffusers calls them; None: the pipeline's own


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked."""

    record: dict[str, Any]  # the settings as generation.json keeps them
    labels: LabelSet
    size: tuple[int, int]  # (height, width) of the images
    mask_paths: list[Path]
    tolerance: float  # RGB distance within which the nearest class colour is taken
    mapping: LabelMapping | None = None  # from the masks' label set, where that is another than the model's

    def read_ids(self, path: Path) -> np.ndarray:
        """The mask as it is drawn from: ids of the model's classes (H, W)."""
        return self.map_ids(self.read_own_ids(path))

    def read_own_ids(self, path: Path) -> np.ndarray:
        """The mask in its own classes, at the size of the images (H, W)."""
        labels = self.labels if self.mapping is None else self.mapping.source
        return resize_ids(labels.encode(path, tolerance=self.tolerance), *self.size)

    def map_ids(self, own_ids: np.ndarray) -> np.ndarray:
        return own_ids if self.mapping is None else self.mapping.map(own_ids)


def new_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Build a diffusers scheduler by its class name from the configuration of another.

    Raises:
        ValueError: for a name that is no scheduler of diffusers; the message lists those there are. For one that does
            not know zero terminal SNR, where the network was trained with it: its noise levels would be others.
    """
    scheduler_class = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        known = sorted(entry for entry in dir(diffusers) if re.fullmatch(r"(?!Flax|[a-z_]).+Scheduler", entry))
        raise ValueError(
            f"no scheduler of diffusers {diffusers.__version__} is called {name!r}; known: {', '.join(known)}"
        )
    if config.get("rescale_betas_zero_snr") and not _takes(scheduler_class, "rescale_betas_zero_snr"):
        able = [entry for entry in dir(diffusers) if entry.endswith("Scheduler") and not entry.startswith("Flax")]
        able = [entry for entry in able if _takes(getattr(diffusers, entry), "rescale_betas_zero_snr")]
        raise ValueError(
            f"{name} does not know rescale_betas_zero_snr, with which this model was trained; take one of "
            f"{', '.join(able)}"
        )
    return scheduler_class.from_config(config)


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


def target_size(pipeline: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return (height, width) of the images: as set, else the model's sample size."""
    if (settings.height is None) != (settings.width is None):
        raise ValueError(
            f"height and width go together, give both or none; got {settings.height} and {settings.width}"
        )
    if settings.height is not None:
        return settings.height, settings.width
    sample_size = pipeline.unet.config.sample_size
    if sample_size is None:
        raise ValueError("this model has no sample_size of its own; give height and width")
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)


def model_revision(unet: torch.nn.Module) -> str:
    """Return the commit of weights that came from the Hub, else a hash of the weights themselves."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})", str(unet.config.get("_name_or_path", "")))
    if commit:
        return commit.group(1)
    return weights_hash(unet.state_dict())


def check_labels_near(mask_paths: list[Path], masks: str | os.PathLike, labels: LabelSet) -> None:
    """Refuse masks beside which another label set than the model's lies: their ids would be taken for other classes.

    They are not mapped unasked: the labels of the images are then of other classes than the data they are for, which
    may be seen after hours of work only.

    Raises:
        ValueError: naming the file, and the option that has them mapped.
    """
    for folder in dict.fromkeys(path.parent for path in mask_paths):
        file = label_file_near(folder, masks)
        near = None if file is None else LabelSet.from_json(file)
        if near not in (None, labels):
            what = "colours" if near.names == labels.names else "classes"
            raise ValueError(
                f"the masks in '{folder}' are of the label set in '{file}' ({some_names(near)}), and the model has "
                f"other {what} ({some_names(labels)}). To have them mapped by name, give --mask_labels '{file}'. If "
                "they are in the model's all the same, name that one there: a preset, or the model's unet/config.json."
            )


def plan_generation(
    pipeline: Any,
    masks: str | os.PathLike,
    settings: GenerationSettings,
    tolerance: float,
    mask_labels: LabelSet | None = None,
) -> Plan:
    """Refuse settings that this pipeline cannot take, and write down what the images depend on.

    Raises:
        FileNotFoundError, ValueError: as `generate_dataset`.
    """
    labels = LabelSet.from_config(pipeline.unet.config)
    height, width = target_size(pipeline, settings)
    pipeline.check_inputs(
        num_masks=1,
        num_images_per_mask=1,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_start=settings.guidance_start,
        guidance_stop=settings.guidance_stop,
        generator=None,
        latents=None,
        height=height,
        width=width,
        class_labels=None,
        output_type="pil",
        callback_on_step_end_tensor_inputs=[],
    )
    pipeline.scheduler.set_timesteps(settings.num_inference_steps)  # some refuse more than they were trained with
    mask_paths = find_masks(masks)
    if mask_labels is None:
        check_labels_near(mask_paths, masks, labels)
    mapping = None if mask_labels in (None, labels) else LabelMapping(mask_labels, labels)
    record = {
        "model": str(pipeline.config.get("_name_or_path") or "unsaved"),
        "revision": model_revision(pipeline.unet),
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": {
            key: str(value) if value in (math.inf, -math.inf) else value  # JSON has no infinity
            for key, value in pipeline.scheduler.config.items()
            if not key.startswith("_")
        },
        **asdict(settings),
        "mask_labels": None if mapping is None else mapping.names,
        "height": height,
        "width": width,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    return Plan(record, labels, (height, width), mask_paths, tolerance, mapping)
