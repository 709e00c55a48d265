"""Load a model and serve the painter's page: the command `app`."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import torch

from semseg_diffusers.app.collection import Collection
from semseg_diffusers.app.sampler import Sampler
from semseg_diffusers.app.settings import NO_OUTPUT, AppSettings
from semseg_diffusers.app.shapes import cut_shapes, drawn_shapes, folder_masks, plain_street, toy_masks
from semseg_diffusers.generation.model import DTYPES, find_model, load_model
from semseg_diffusers.utils.distributed import check_device_available
from semseg_diffusers.utils.signals import exit_on_signals


NEVER = str(2**31)  # requests until gradio summarises them all for a page that is not served: a cost at every stroke


def run(settings: AppSettings) -> None:
    """Load the model, and serve the page until the process is ended."""
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("gradio is not installed", name="gradio")
    model = settings.model or find_model()
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device_available(device)
    pipeline = load_model(model, settings.revision, None, DTYPES[settings.dtype], device, variant=settings.variant)
    sampler = Sampler(pipeline, settings)
    collection = None
    if settings.output != NO_OUTPUT:
        collection = Collection(Path(settings.output), sampler.labels, sampler.size)
    masks = {} if settings.masks is None else folder_masks(settings.masks, sampler.labels, sampler.size)
    examples = {"plain street": plain_street(sampler.labels, sampler.size)}
    examples |= masks or toy_masks(sampler.labels, sampler.size)
    shapes = drawn_shapes(sampler.labels) + cut_shapes(list(masks.values()), sampler.labels)
    with exit_on_signals(), tempfile.TemporaryDirectory(prefix="semseg-app-") as folder:
        # Uploads and results of this app alone. gradio reads the variables when it is imported, so that comes after.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = NEVER
        from semseg_diffusers.app.page import build_page, serve

        title = Path(model).name if Path(model).is_dir() else model
        page = build_page(sampler, collection, examples, shapes, title, settings.seed)
        sys.stdout.write(f"{title} on {device}; pairs go to {settings.output}. Ctrl-C ends it.\n")
        serve(page, settings, settings.host, settings.port, in_browser=settings.open)
