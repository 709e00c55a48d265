"""Previews of a run: a grid mask | samples | image from fixed masks and noise, and its change over time; trackers."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from diffusers import DDPMScheduler
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, attribute_numbers
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.reports.run_folder import list_previews, preview_path
from semseg_diffusers.training.dataset import center_crop
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.training.objective import build_sampler
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.images import image_grid, save_png


def sample_preview(
    settings: TrainingSettings,
    unet: torch.nn.Module,
    noise_scheduler: DDPMScheduler,
    ema: EMA | None,
    pairs: PairDataset,
) -> Image.Image:
    """Sample from evenly spaced masks of a split, with the averaged weights if there are any.

    Args:
        settings: number of masks, samples and steps, guidance scale and seed.
        unet: its own weights are restored afterwards.
        noise_scheduler: the training schedule; the sampler is built from its config (`build_sampler`).
        ema: weight averages; the first is used.
        pairs: masks and images.

    Returns:
        a grid: mask | samples | image.
    """
    num_masks, num_samples = min(settings.preview_masks, len(pairs)), settings.preview_samples
    indices = [row * len(pairs) // num_masks for row in range(num_masks)]
    chosen = [pairs[index] for index in indices]
    if settings.random_crop_size is not None:  # at the scale of training
        chosen = [center_crop(pair, settings.random_crop_size) for pair in chosen]
    pipeline = MaskGuidedDDPMPipeline(unet=unet, scheduler=build_sampler(noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    conditions = {}
    if known := getattr(unet.config, "attributes", None):  # those of the image beside
        numbers = attribute_numbers(pairs, known)[indices].tolist()
        conditions["attributes"] = [
            {name: values[number] for (name, values), number in zip(known.items(), row, strict=True) if number >= 0}
            for row in numbers
        ]
    with contextlib.nullcontext() if ema is None else ema.swapped_in(unet):
        images = pipeline(
            torch.stack([pair["mask"] for pair in chosen]),
            num_images_per_mask=num_samples,
            num_inference_steps=settings.preview_inference_steps,
            guidance_scale=settings.preview_guidance_scale,
            generator=[
                torch.Generator().manual_seed(settings.seed + index) for index in range(num_masks * num_samples)
            ],
            **conditions,
        ).images
    rows = [
        [
            pairs.labels.decode(pair["mask"].numpy()),
            *images[row * num_samples : (row + 1) * num_samples],
            Image.fromarray(pair["image"].permute(1, 2, 0).numpy()),
        ]
        for row, pair in enumerate(chosen)
    ]
    return image_grid(rows, headers=["mask", *["sample"] * num_samples, "image"])


def remove_later_previews(run: Path, step: int) -> None:
    """Remove the previews after `step`, which a run resumed there samples again."""
    for later, path in list_previews(run):
        if later > step:
            path.unlink()


PROJECT = "semseg_diffusers"
PIP = {"tensorboard": "'semseg-diffusers[train]'", "comet_ml": "comet-ml"}  # if it is not the tracker's name
ONE_PICTURE = ("aim", "clearml")  # trackers that take an image where others take a list


def parse_trackers(report_to: str) -> list[str]:
    """Return the names of the trackers in `--report_to`.

    Args:
        report_to: names separated by commas, `all` for those installed, or `none`.

    Raises:
        ValueError: accelerate does not know the name, or its library is not installed.

    Example:
        >>> parse_trackers("none"), parse_trackers("tensorboard")
        ([], ['tensorboard'])
    """
    names = [name.strip() for name in report_to.split(",")]
    installed = [str(tracker) for tracker in get_available_trackers()]
    if names == ["none"]:
        return []
    if names == ["all"]:
        if not installed:
            raise ValueError("--report_to all: no tracker is installed. pip install tensorboard, or wandb.")
        return installed
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"--report_to {name!r}: expected one or more of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, separated "
                "by commas, `all` for those installed, or `none`."
            )
        if name in LoggerType.list() and name not in installed:
            raise ValueError(
                f"--report_to {name} needs a library that is not installed: pip install {PIP.get(name, name)}"
            )
    return names


def start_tracking(accelerator: Accelerator, settings: TrainingSettings, run: Path) -> None:
    """Open the trackers with the settings; local files of Weights & Biases go into the run folder."""
    if accelerator.is_main_process:
        (run / "logs").mkdir(exist_ok=True)
    values = dataclasses.asdict(settings)
    config = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in values.items()}
    options = {"wandb": {"name": run.resolve().name, "dir": str(run / "logs")}}
    accelerator.init_trackers(PROJECT, config, init_kwargs=options)


def save_preview(
    settings: TrainingSettings,
    unet: torch.nn.Module,
    noise_scheduler: DDPMScheduler,
    ema: EMA | None,
    pairs: PairDataset,
    accelerator: Accelerator,
    run: Path,
    step: int,
) -> None:
    """Sample a preview, save it, and hand it to the trackers that take images."""
    preview = sample_preview(settings, unet, noise_scheduler, ema, pairs)
    preview_path(run, step).parent.mkdir(exist_ok=True)
    save_png(preview_path(run, step), preview)
    pixels = np.asarray(preview)  # (H, W, 3)
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(
                {"preview": pixels if tracker.name in ONE_PICTURE else pixels[None]}, step=step, **layout
            )
