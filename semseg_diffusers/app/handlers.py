"""Handlers of the painter's page. They check all input, since anybody can call them over HTTP with anything."""

import contextlib
import html
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from semseg_diffusers.app.collection import Collection, zip_of
from semseg_diffusers.app.mask_rle import pack_mask, unpack_mask
from semseg_diffusers.app.sampler import EDIT, NOISE, Photo, Sample, Sampler, SamplingRequest
from semseg_diffusers.app.uploads import data_url, read_mask_upload, read_photo_upload
from semseg_diffusers.generation.batches import is_out_of_memory
from semseg_diffusers.utils.images import save_png


OWN_SCHEDULER, ANY = "the model's own", "any"
TOAST_SECONDS = 15  # how long an error message is shown


class Cancelled(Exception):  # noqa: N818  requested by a visitor
    """Sampling was cancelled between two steps."""


class Cancellations:
    """Which visitors have cancelled their running request. Requests in the queue are cancelled by gradio."""

    def __init__(self):
        self._events: dict[str | None, threading.Event] = {}

    @contextlib.contextmanager
    def watched(self, session: str | None) -> Iterator[threading.Event]:
        """Yield an event that `cancel` of this visitor sets."""
        event = self._events[session] = threading.Event()
        try:
            yield event
        finally:
            if self._events.get(session) is event:
                del self._events[session]

    def cancel(self, session: str | None) -> bool:
        """Set the event; return whether a request was running."""
        event = self._events.get(session)
        if event is not None:
            event.set()
        return event is not None


@contextlib.contextmanager
def show_errors() -> Iterator[None]:
    """Show invalid input and a full memory as messages on the page; other exceptions are bugs."""
    try:
        yield
    except (ValueError, OSError) as err:
        raise gr.Error(
            html.escape(" ".join(str(err).split()), quote=False), TOAST_SECONDS, print_exception=False
        ) from err
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise gr.Error("the memory of the machine is full; request less, or try again later.", TOAST_SECONDS) from err


def _pack_photo_mask(photo: Photo) -> dict[str, Any]:
    """Return the mask of a photo for the canvas, which sends the key of the photo back with each mask."""
    return {**pack_mask(photo.ids), "photo": photo.key}


class Handlers:
    """Functions that the page calls.

    Args:
        sampler (`Sampler`): generates.
        collection (`Collection`, *optional*): stores pairs.
        cache (`str`): folder of the files that visitors may download.
    """

    def __init__(self, sampler: Sampler, collection: Collection | None, cache: str):
        self.sampler, self.collection, self.cache = sampler, collection, cache
        self.cancellations = Cancellations()

    def load_mask(self, data: bytes, clean: bool) -> dict[str, Any]:
        with show_errors():
            return pack_mask(self._read_mask(data, clean))

    def _read_mask(self, data: bytes, clean: bool) -> np.ndarray:
        sampler = self.sampler
        return read_mask_upload(data, sampler.labels, sampler.size, sampler.limits, clean is True)

    def load_photo(self, data: bytes) -> tuple[Any, Photo, str, str]:
        """Show a photo below an empty mask: it changes where it is painted over."""
        sampler = self.sampler
        with show_errors():
            image = read_photo_upload(data, sampler.size, sampler.limits)
        ids = np.full(sampler.size, sampler.labels.ignore_index, dtype=np.uint8)
        message = "Paint over the photo: only that part is regenerated. Or load the photo's mask, and change it."
        photo = Photo(image, ids, uuid.uuid4().hex)
        return gr.update(value=_pack_photo_mask(photo), photo=data_url(image)), photo, EDIT, message

    def load_photo_mask(self, data: bytes, clean: bool, photo: Photo | None) -> tuple[dict, Photo, str]:
        with show_errors():
            if photo is None:
                raise ValueError("there is no photo for this mask: load the photo first.")
            ids = self._read_mask(data, clean)
        message = "This is the photo's mask. Change it: only the part that differs is regenerated."
        photo = Photo(photo.image, ids, uuid.uuid4().hex)
        return _pack_photo_mask(photo), photo, message

    def drop_photo(self) -> tuple[Any, None, str, str]:
        return gr.update(photo=""), None, NOISE, ""

    def generate(
        self,
        request: gr.Request,
        mask: dict,
        photo: Photo | None,
        mode: str,
        scheduler: str,
        num_inference_steps: float,
        guidance_scale: float,
        seed: float,
        num_images: float,
        strength: float,
        attribute_guidance_scale: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
        *attributes: str,
    ) -> Iterator[tuple]:
        """Yield gallery, state, download button, choice of samples to keep and message after each sample."""
        sampler = self.sampler
        given = dict(zip(sampler.attributes, attributes, strict=False))
        asked = SamplingRequest(
            mode=mode,
            scheduler=None if scheduler == OWN_SCHEDULER else scheduler,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            num_images=num_images,
            attributes={name: value for name, value in given.items() if value not in (None, ANY)},
            attribute_guidance_scale=attribute_guidance_scale if sampler.attributes else None,
            strength=strength,
        )
        samples: list[Sample] = []
        with self.cancellations.watched(request.session_hash) as cancelled:

            def on_step(index: int, step: int, steps: int) -> None:
                if cancelled.is_set():
                    raise Cancelled
                text = f"sample {index + 1} of {num_images:g}, step {step} of {steps}"
                progress((index * steps + step, int(num_images) * steps), desc=text, unit="steps")

            message = ""
            with show_errors():
                ids = unpack_mask(mask, sampler.labels, sampler.size)
                if mode != NOISE and photo is not None and mask.get("photo") not in (None, photo.key):
                    raise ValueError(
                        "another photo, or mask of it, was loaded while this request waited: generate again."
                    )
                try:
                    for sample in sampler.generate(ids, asked, photo, on_step):
                        samples.append(sample)
                        yield self._shown(samples, f"{len(samples)} of {asked.num_images:g} generated")
                except Cancelled:
                    message = f"Cancelled; {len(samples)} of {asked.num_images:g} generated."
                except Exception:
                    if samples:  # they can still be kept
                        yield self._finished(
                            samples, f"Ended by an error; {len(samples)} of {asked.num_images:g} generated."
                        )
                    raise
            yield self._finished(samples, message or f"{len(samples)} generated.")

    def _shown(self, samples: list[Sample], message: str) -> tuple:
        """Return the outputs during sampling: without download or choice, which would be those of earlier samples.

        Each image is written once, so that none changes while it is sent.
        """
        gallery = []
        for entry in samples:
            path = Path(self.cache) / entry.row["stem"] / entry.job.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                save_png(path, entry.image)
            gallery.append((str(path), f"{entry.row['index']}: {entry.row['seed']}"))
        nothing = gr.CheckboxGroup([], value=[], visible=False)
        return gallery, samples, gr.DownloadButton(interactive=False), nothing, message

    def _finished(self, samples: list[Sample], message: str) -> tuple:
        if not samples:  # earlier samples stay
            return *(gr.skip() for _ in range(4)), message
        gallery, state, *_ = self._shown(samples, message)
        name = f"{samples[0].row['stem']}.zip"
        path = save_bytes_to_cache(zip_of(samples, self.sampler.labels), name, self.cache)
        numbers = [str(entry.row["index"]) for entry in samples]
        download = gr.DownloadButton(value=path, interactive=True)
        keep = gr.CheckboxGroup(numbers, value=numbers, visible=self.collection is not None)
        return gallery, state, download, keep, message

    def cancel(self, request: gr.Request) -> tuple[str, bool]:
        """End the running request of a visitor; return a message, and whether none is running."""
        running = self.cancellations.cancel(request.session_hash)
        return "Cancelling …" if running else "Cancelled: nothing is being generated.", not running

    def leave(self, request: gr.Request) -> None:
        """End the request of a visitor who has closed the page."""
        self.cancellations.cancel(request.session_hash)

    def add(self, samples: list[Sample] | None, keep: Sequence[str]) -> str:
        """Add the chosen samples to the dataset."""
        chosen = [entry for entry in samples or [] if str(entry.row["index"]) in {*map(str, keep or ())}]
        with show_errors():
            if not chosen:
                raise ValueError("there is nothing to add: generate first, and choose samples to keep.")
            added = self.collection.add(chosen)
        known = f", {len(chosen) - added} were already there" if added < len(chosen) else ""
        return f"{added} added to {self.collection.folder.name}{known}; it holds {len(self.collection)}."
