"""Previews of a run: a grid mask | samples | image from fixed masks and noise; trackers."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, attribute_numbers
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.pipelines.mask_guided_mixin import MaskGuidedMixin
from semseg_diffusers.training.captions import Captions
from semseg_diffusers.training.dataset import crop
from semseg_diffusers.training.low_res import reduce_window
from semseg_diffusers.training.networks import EMA
from semseg_diffusers.training.settings import LoopSettings
from semseg_diffusers.utils.images import image_grid


PROJECT = "semseg_diffusers"
PIP = {"tensorboard": "'semseg-diffusers[train]'", "comet_ml": "comet-ml"}  # if it is not the tracker's name
SINGLE_IMAGE = ("aim", "clearml")  # trackers that take an image where others take a list


def preview_pairs(settings: LoopSettings, pairs: PairDataset, unet: Any) -> list[dict[str, Any]]:
    """Return evenly spaced pairs of a split, as the network sees them; for an upscaler also `low_res` (3, h, w)."""
    indices = evenly_spaced(range(len(pairs)), settings.preview_masks)
    chosen = [{**pairs[index], "index": index} for index in indices]
    if (size := settings.random_crop_size) is not None:  # the centre, at the scale of training
        for row, pair in enumerate(chosen):
            top, left = ((whole - part) // 2 for whole, part in zip(pair["mask"].shape, size, strict=True))
            chosen[row] = crop(pair, top, left, size)
    if factor := getattr(unet.config, "upscale_factor", None):
        for pair in chosen:
            image = pair["image"].permute(1, 2, 0).numpy()
            pair["low_res"] = reduce_window(image, factor, (0, 0, image.shape[1], image.shape[0]))
    return chosen


def sample_images(
    pipeline: MaskGuidedMixin,
    split: PairDataset,
    pairs: Sequence[dict[str, Any]],
    num_samples: int,
    seed: int,
    ema: EMA | None,
    captions: Captions | None = None,
    **sampling: Any,
) -> list[list[Image.Image]]:
    """Return samples of each pair's mask, the same noise each time, by the first of the averages if any.

    What `captions` say of a pair is said of its samples.
    An upscaler enlarges the `low_res` of each pair.
    """
    pipeline.set_progress_bar_config(disable=True)
    unet, attributes = pipeline.unet, None
    if known := getattr(unet.config, "attributes", None):  # those of the image beside
        numbers = attribute_numbers(split, known)[[pair["index"] for pair in pairs]].tolist()
        attributes = [
            {name: values[number] for (name, values), number in zip(known.items(), row, strict=True) if number >= 0}
            for row in numbers
        ]
    if captions is not None:
        said = [
            captions.prompts(pair["index"], tuple(pair["mask"].shape) == split.sizes[pair["index"]]) for pair in pairs
        ]
        sampling |= {name: [texts[name] for texts in said] for name in said[0]}
    if "low_res" in pairs[0]:
        sampling["image"] = [pair["low_res"] for pair in pairs]
    with contextlib.nullcontext() if ema is None else ema.swapped_in(unet):
        (images,) = pipeline(
            mask=torch.stack([pair["mask"] for pair in pairs]),
            num_images_per_mask=num_samples,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(len(pairs) * num_samples)],
            attributes=attributes,
            return_dict=False,
            **sampling,
        )
    return [images[row * num_samples : (row + 1) * num_samples] for row in range(len(pairs))]


def preview_sheet(
    labels: LabelSet, pairs: Sequence[dict[str, Any]], samples: Sequence[Sequence[Image.Image]], headers: Sequence[str]
) -> Image.Image:
    """Return a grid mask | samples, under their headers | image; of an upscaler also what it enlarges."""
    shown = [name for name in ("low_res", "image") if name in pairs[0]]
    rows = [
        [
            labels.decode(pair["mask"].numpy()),
            *images,
            *(Image.fromarray(pair[name].permute(1, 2, 0).numpy()) for name in shown),
        ]
        for pair, images in zip(pairs, samples, strict=True)
    ]
    names = {"low_res": "image to enlarge", "image": "image"}
    return image_grid(rows, headers=["mask", *headers, *(names[name] for name in shown)])


def parse_trackers(report_to: str) -> list[str]:
    """Return the names of the trackers in `--report_to`; refuse those unknown to accelerate or not installed."""
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


def start_tracking(accelerator: Accelerator, settings: LoopSettings, run: Path) -> None:
    """Open the trackers with the settings; local files of Weights & Biases go into the run folder."""
    if accelerator.is_main_process:
        (run / "logs").mkdir(exist_ok=True)
    values = dataclasses.asdict(settings)
    config = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in values.items()}
    options = {"wandb": {"name": run.resolve().name, "dir": str(run / "logs")}}
    accelerator.init_trackers(PROJECT, config, init_kwargs=options)


def log_preview(accelerator: Accelerator, preview: Image.Image, step: int) -> None:
    """Hand a preview to the trackers that take images."""
    pixels = np.asarray(preview)  # (H, W, 3)
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            images = {"preview": pixels if tracker.name in SINGLE_IMAGE else pixels[None]}
            tracker.log_images(images, step=step, **layout)
