"""Load a model and serve the painter's page: the command `app`."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semseg_diffusers.app.collection import Collection, short_name
from semseg_diffusers.app.hosts import check_address
from semseg_diffusers.app.sampler import Sampler
from semseg_diffusers.app.settings import DEFAULT_SEGMENTER, DEFAULT_UPSCALER, NO_OUTPUT, AppSettings
from semseg_diffusers.app.shapes import (
    Shape,
    cut_shapes,
    drawn_shapes,
    folder_masks,
    plain_street,
    toy_masks,
)
from semseg_diffusers.data.label_mapping import match_classes
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.generation.model import DTYPES, find_model, load_model, load_upscaler
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import read_json
from semseg_diffusers.utils.signals import exit_on_signals


MAX_UNKNOWN_STREET = 0.5  # share of the plain street that a label set may have no class for
SETTINGS_FILE = "settings.json"  # of a training run
NEVER = str(2**31)  # requests until gradio summarises them all for a page that is not served: a cost at every stroke


def training_masks(run: str, labels: LabelSet, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return masks of the dataset that a run was trained on, if it is still there; else none."""
    try:
        settings = read_json(Path(run) / SETTINGS_FILE)
        splits = settings["validation_split"], settings["train_split"]
        folders = [Path(settings["dataset"]) / split / "masks" for split in splits]
        return folder_masks(next(folder for folder in folders if folder.is_dir()), labels, size)
    except (KeyError, OSError, StopIteration, TypeError, ValueError):  # no run, or its dataset has moved or changed
        return {}


def starting_masks(
    settings: AppSettings, runs: Sequence[str], labels: LabelSet, size: tuple[int, int]
) -> tuple[dict[str, np.ndarray], list[Shape]]:
    """Return masks to start from, the first one shown, and objects to place.

    A plain street comes first where the label set has its classes, else a mask of the dataset of the first run whose
    dataset is there.
    """
    if settings.masks is not None:
        masks = folder_masks(settings.masks, labels, size)
    else:
        masks = next(filter(None, (training_masks(run, labels, size) for run in runs)), {})
    street = plain_street(labels, size)
    is_street = (street == labels.ignore_index).mean() <= MAX_UNKNOWN_STREET
    examples = ({"plain street": street} if is_street else {}) | (masks or toy_masks(labels, size))
    return examples, drawn_shapes(labels, size[0]) + cut_shapes(list(masks.values()), labels)


def find_upscaler(settings: AppSettings, pipeline: Any) -> tuple[Any, str]:
    """Return the upscaler of a pipeline's images and its name, or None and ""."""
    if settings.upscaler == NO_OUTPUT:
        return None, ""
    if settings.upscaler is not None:
        return load_upscaler(settings.upscaler, settings.upscaler_revision, pipeline), settings.upscaler
    config = Path(DEFAULT_UPSCALER) / "unet" / "config.json"
    labels = LabelSet.from_config(pipeline.unet.config)
    if not config.is_file() or LabelSet.from_config(read_json(config)).names != labels.names:
        return None, ""
    return load_upscaler(DEFAULT_UPSCALER, None, pipeline), DEFAULT_UPSCALER


def find_segmenter(settings: AppSettings, labels: LabelSet, device: str) -> Judge | None:
    """Return the network that suggests masks of a label set, if there is one."""
    if settings.segmenter == NO_OUTPUT or (settings.segmenter is None and not Path(DEFAULT_SEGMENTER).is_dir()):
        return None
    if settings.segmenter is not None:
        return load_judge(settings.segmenter, labels, device=device)
    if None in match_classes(labels.names, LabelSet.from_json(Path(DEFAULT_SEGMENTER) / "labels.json")):
        return None
    judge = load_judge(DEFAULT_SEGMENTER, labels, device=device)
    return None if judge.not_judged else judge


def run(settings: AppSettings) -> None:
    """Load the model, and serve the page until the process is ended."""
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("gradio is not installed", name="gradio")
    model = settings.model or find_model()
    device = choose_device(settings.device)
    pipeline = load_model(model, settings.revision, None, DTYPES[settings.dtype], device, variant=settings.variant)
    upscaler, upscaler_name = find_upscaler(settings, pipeline)
    sampler = Sampler(pipeline, settings, upscaler, upscaler_name)
    collection = None
    if settings.output != NO_OUTPUT:
        collection = Collection(Path(settings.output), sampler.labels, sampler.size)
    segmenter = find_segmenter(settings, sampler.labels, device)
    runs = [name for name in (upscaler_name, model) if name]  # masks of the upscaler's dataset are large
    examples, shapes = starting_masks(settings, runs, sampler.labels, sampler.size)
    check_address(settings.host, settings.port)
    with exit_on_signals(), tempfile.TemporaryDirectory(prefix="semseg-app-") as folder:
        # Uploads and results of this app alone. gradio reads the variables when it is imported, so that comes after.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = NEVER
        from semseg_diffusers.app.page import build_page, serve

        title = short_name(model)
        page = build_page(sampler, collection, examples, shapes, title, settings.seed, segmenter)
        enlarged = f", enlarged by {short_name(upscaler_name)}" if upscaler else ""
        kept = f"; pairs go to {settings.output}" if collection is not None else ""
        sys.stdout.write(f"{title} on {device}{enlarged}{kept}. Ctrl-C ends it.\n")
        address = settings.host, settings.port, settings.allowed_hosts
        serve(page, settings, *address, in_browser=settings.open)
