"""What a person looks at while a run goes on: a grid mask | samples | photo, from fixed masks and noise; and from the
grids of a run one picture that shows how its samples changed."""

import contextlib
import dataclasses
import re
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
from semseg_diffusers.training.class_balance import evenly
from semseg_diffusers.training.dataset import central_part
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.training.objective import build_sampler
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.sharding import ready_to_sample
from semseg_diffusers.utils.images import grid_cells, image_grid


FOLDER, OVER_TIME = "previews", "over_time.png"
MOST_STEPS = 8  # columns of samples in the picture over time: as many as can be told apart beside each other
CELL_SIDE = 128  # pixels of the shorter side there


def draw_preview(
    settings: TrainingSettings,
    unet: torch.nn.Module,
    noise_scheduler: DDPMScheduler,
    averages: EMA | None,
    pairs: PairDataset,
) -> Image.Image:
    """Sample from evenly spaced masks of a split, with the averaged weights where they are kept.

    With a sharded network every process must call it, and each gets the same picture.

    Args:
        settings: how many masks and samples, how many steps, which guidance and seed.
        unet: its own weights are back in place afterwards.
        noise_scheduler: the training schedule; the sampler is made from its config (`build_sampler`).
        averages: of the weights; the first draws.
        pairs: where masks and photos come from.

    Returns:
        a picture: mask | samples | photo.
    """
    num_masks, num_samples = min(settings.preview_masks, len(pairs)), settings.preview_samples
    indices = [row * len(pairs) // num_masks for row in range(num_masks)]
    chosen = [pairs[index] for index in indices]
    if settings.random_crop_size is not None:  # at the scale that the network knows
        chosen = [central_part(pair, settings.random_crop_size) for pair in chosen]
    pipeline = MaskGuidedDDPMPipeline(unet=unet, scheduler=build_sampler(noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    conditions = {}
    if known := getattr(unet.config, "attributes", None):  # those of the photo beside
        numbers = attribute_numbers(pairs, known)[indices].tolist()
        conditions["attributes"] = [
            {name: values[number] for (name, values), number in zip(known.items(), row, strict=True) if number >= 0}
            for row in numbers
        ]
    with contextlib.nullcontext() if averages is None else averages.applied(unet), ready_to_sample(unet):
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
    return image_grid(rows, headers=["mask", *["sample"] * num_samples, "photo"])


def preview_path(run: Path, step: int) -> Path:
    """Where the preview of a step lies."""
    return run / FOLDER / f"step-{step:07d}.png"


def list_previews(run: Path) -> list[tuple[int, Path]]:
    """The previews of a run and their steps, the first step first."""
    found = [(re.fullmatch(r"step-(\d+)\.png", path.name), path) for path in (run / FOLDER).glob("step-*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)


def remove_later_previews(run: Path, step: int) -> None:
    """Remove the previews after `step`, which a run that goes on from there draws again."""
    for later, path in list_previews(run):
        if later > step:
            path.unlink()


def draw_over_time(previews: list[tuple[int, Path]]) -> Image.Image | None:
    """Put the first sample of each mask at some steps beside each other: mask | sample at each step | photo.

    Args:
        previews: steps and their previews, as `list_previews` gives them; of many, evenly spaced ones are taken.

    Returns:
        a picture, its rows the masks of the last preview; None where no preview says how its cells lie. A preview that
        does not show a mask leaves its place empty.
    """
    sheets = []
    for index in evenly(len(previews), MOST_STEPS):
        step, path = previews[index]
        with Image.open(path) as sheet:
            cells = grid_cells(sheet)
        if cells is not None:
            # the first samples by the masks they were drawn from, which settings changed on resume may have replaced
            sheets.append((step, {row[0].tobytes(): row[1] for row in cells}, cells))
    if not sheets:
        return None
    last = {row[0].tobytes(): (row[0], row[-1]) for row in sheets[-1][2]}
    shown = [(step, samples) for step, samples, _ in sheets if samples.keys() & last.keys()]
    rows = [[mask, *[samples.get(key) for _, samples in shown], photo] for key, (mask, photo) in last.items()]
    small = [[None if cell is None else _small(cell) for cell in row] for row in rows]
    return image_grid(small, headers=["mask", *[f"step {step:,}" for step, _ in shown], "photo"], cell_size=CELL_SIDE)


def _small(cell: Image.Image) -> Image.Image:
    scale = CELL_SIDE / min(cell.size)
    return cell.resize([round(side * scale) for side in cell.size], Image.Resampling.LANCZOS) if scale < 1 else cell


PROJECT = "semseg_diffusers"
PIP = {"tensorboard": "'semseg-diffusers[train]'", "comet_ml": "comet-ml"}  # where it is not the tracker's own name
ONE_PICTURE = ("aim", "clearml")  # trackers that take a picture where the others take a list of them


def trackers_of(report_to: str) -> list[str]:
    """The names of the trackers that `--report_to` asks for.

    Args:
        report_to: names with commas between them, `all` for those installed, or `none`.

    Raises:
        ValueError: a name that accelerate does not know (its own or one registered there), or whose library is not
            installed.

    Example:
        >>> trackers_of("none"), trackers_of("tensorboard")
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
                f"--report_to {name!r} is no tracker; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, several "
                "with commas between them, `all` for those installed, and `none`."
            )
        if name in LoggerType.list() and name not in installed:
            raise ValueError(
                f"--report_to {name} needs a library that is not installed: pip install {PIP.get(name, name)}"
            )
    return names


def begin_tracking(accelerator: Accelerator, settings: TrainingSettings, run: Path) -> None:
    """Open the trackers and hand them the settings; what Weights & Biases keeps on this machine goes into the run."""
    if accelerator.is_main_process:
        (run / "logs").mkdir(exist_ok=True)
    values = dataclasses.asdict(settings)
    config = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in values.items()}
    options = {"wandb": {"name": run.resolve().name, "dir": str(run / "logs")}}
    accelerator.init_trackers(PROJECT, config, init_kwargs=options)


def track_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Hand a preview to the trackers that take pictures."""
    pixels = np.asarray(picture)  # (H, W, 3)
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(
                {"preview": pixels if tracker.name in ONE_PICTURE else pixels[None]}, step=step, **layout
            )
