"""A painter with a tiny model, its page served on this machine, and calls of it over HTTP."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from diffusers import LCMScheduler

from helpers.generation_places import LABELS, tiny_pipeline
from semseg_diffusers.app.app import NEVER
from semseg_diffusers.app.collection import Collection
from semseg_diffusers.app.handlers import OWN_SCHEDULER
from semseg_diffusers.app.inputs import pack_mask
from semseg_diffusers.app.page import build_page, serve
from semseg_diffusers.app.sampler import NOISE, Sampler
from semseg_diffusers.app.settings import Limits
from semseg_diffusers.app.shapes import drawn_shapes, plain_street
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


SIZE = (16, 16)  # height, width of the tiny model
LIMITS = Limits(max_size=512, max_upload_mb=1.0, max_steps=50, max_images=4)
STREET = plain_street(LABELS, SIZE)


def tiny_sampler(**options) -> Sampler:
    return Sampler(tiny_pipeline(**options), LIMITS)


def few_step_sampler(**options) -> Sampler:
    """A sampler of a model that was distilled for four steps, with options of `Sampler`."""
    timesteps = [999, 749, 499, 249]
    pipeline = MaskGuidedDDPMPipeline(
        tiny_pipeline().unet, LCMScheduler(original_inference_steps=len(timesteps)),
        default_num_inference_steps=len(timesteps), default_guidance_scale=1.0, trained_timesteps=timesteps,
    )  # fmt: skip
    return Sampler(pipeline, LIMITS, **options)


@contextlib.contextmanager
def served(
    folder: Path, sampler: Sampler | None = None, street: np.ndarray = STREET, host: str = "127.0.0.1"
) -> Iterator[str]:
    """The address of a page that adds to `folder/painted`; its files lie in `folder/files`."""
    sampler = sampler or tiny_sampler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "files"))
        patch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", NEVER)
        patch.setattr("gradio.networking.url_ok", lambda _: True)  # a busy machine needs more than its 3 seconds
        collection = Collection(folder / "painted", sampler.labels, sampler.size)
        page = build_page(sampler, collection, {"plain street": street}, drawn_shapes(LABELS), "tiny")
        try:
            yield serve(page, LIMITS, host, port=None, in_background=True)
        finally:
            page.close(verbose=False)


def call(address: str, name: str, *data, session: str | None = None) -> tuple[str, object]:
    """Call a handler as any program may: how it ended ("complete", "error") and what it answered."""
    content = json.dumps({"data": data, "session_hash": session})  # as Python writes it: NaN too
    url = f"{address}gradio_api/call/{name}"
    answer = httpx.post(url, content=content, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 200, answer.text
    event, last = "", ("", None)
    with httpx.stream("GET", f"{url}/{answer.json()['event_id']}", timeout=60) as stream:
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                event = value
            elif key == "data" and event != "heartbeat":
                last = event, json.loads(value)
    return last


def arguments(
    mask: object = None, mode: object = NOISE, scheduler: object = OWN_SCHEDULER, steps: object = 2,
    guidance: object = 1, seed: object = 0, images: object = 1, strength: object = 0.5,
    attribute_guidance: object = None, photo: object = None,
) -> list:  # fmt: skip
    """Return the arguments of `generate` in their order."""
    mask = pack_mask(STREET) if mask is None else mask
    return [mask, photo, mode, scheduler, steps, guidance, seed, images, strength, attribute_guidance]


def upload(address: str, name: str, data: bytes) -> dict:
    """Upload a file as the page does; what a handler is given for it."""
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": (name, data)}, timeout=60)
    assert answer.status_code == 200, answer.text
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
