"""Functions that the page calls. They check all input, since anybody can call them over HTTP with anything."""

import base64
import contextlib
import html
import io
import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.processing_utils import save_bytes_to_cache
from PIL import Image

from semseg_diffusers.app.collection import Collection, zip_of
from semseg_diffusers.app.inputs import pack_mask, read_mask_upload, read_photo_upload, unpack_mask, unpack_texts
from semseg_diffusers.app.sampler import EDIT, NOISE, Photo, Sample, Sampler, SamplingRequest
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.generation.batches import is_out_of_memory
from semseg_diffusers.utils.images import save_png


OWN_SCHEDULER, ANY = "the model's own", "any"
# What a visitor chooses, in the order of the page, as `SamplingRequest` names it; attributes follow.
OPTIONS = (
    "mode", "scheduler", "num_inference_steps", "guidance_scale", "seed", "num_images", "strength",
    "attribute_guidance_scale",
)  # fmt: skip
TOAST_SECONDS = 15  # how long an error message is shown
VISITOR_LENGTH = 32  # characters of the name that the canvas gives its visitor
MAX_VISITORS = 32  # whose photo and samples are kept for a reload; the oldest are forgotten
VISITOR_SECONDS = 3600  # how long photo and samples are kept after they were last loaded, generated or restored


class Cancelled(Exception):  # noqa: N818  requested by a visitor
    """Sampling was cancelled between two steps."""


@contextlib.contextmanager
def show_errors() -> Iterator[None]:
    """Show invalid input and a full memory as messages on the page; other exceptions are bugs."""
    try:
        yield
    except (ValueError, OSError) as err:
        message = html.escape(" ".join(str(err).split()), quote=False)
        raise gr.Error(message, TOAST_SECONDS, print_exception=False) from err
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise gr.Error("the memory of the machine is full; request less, or try again later.", TOAST_SECONDS) from err


class Handlers:
    """Functions that the page calls.

    `cache` is the folder of the files that visitors may download, `segmenter` suggests masks for photos.
    """

    def __init__(self, sampler: Sampler, collection: Collection | None, cache: str, segmenter: Judge | None = None):
        self.sampler, self.collection, self.cache, self.segmenter = sampler, collection, cache, segmenter
        self._running: dict[str | None, threading.Event] = {}  # visitor -> event that cancels the running request
        self._strokes: dict[str | None, int] = {}  # visitor -> newest stroke known, while one is being generated for
        self._strokes_lock = threading.Lock()
        self._visitors: OrderedDict[str, dict[str, Any]] = OrderedDict()  # name -> photo, samples, time
        self._visitors_lock = threading.Lock()

    def _remember(self, mask: Any, **what: Any) -> None:
        """Keep a photo or samples under the name that the canvas gives its visitor, a secret of the browser."""
        name = mask.get("visitor") if isinstance(mask, dict) else None
        if not isinstance(name, str) or len(name) != VISITOR_LENGTH:
            return
        with self._visitors_lock:
            self._visitors[name] = {**self._recall(name), **what, "time": time.monotonic()}
            while len(self._visitors) > MAX_VISITORS:
                self._visitors.popitem(last=False)

    def _recall(self, name: str) -> dict[str, Any]:
        """Return and remove what is kept of a visitor, after that of visitors who have been away for too long."""
        oldest = time.monotonic() - VISITOR_SECONDS
        while self._visitors and next(iter(self._visitors.values()))["time"] < oldest:
            self._visitors.popitem(last=False)
        return self._visitors.pop(name, {})

    def remember_photo(self, mask: dict, photo: Photo | None) -> None:
        """Keep the photo that a visitor has loaded or removed, for a reload."""
        self._remember(mask, photo=photo)

    def restore(self, mask: Any) -> tuple:
        """Show a visitor's photo and samples again after a reload."""
        name = mask.get("visitor") if isinstance(mask, dict) else None
        kept: dict[str, Any] = {}
        with self._visitors_lock:
            if isinstance(name, str) and (kept := self._recall(name)):
                self._visitors[name] = kept | {"time": time.monotonic()}
        photo, samples = kept.get("photo"), kept.get("samples")
        shown = gr.skip() if photo is None else gr.update(photo=_data_url(photo.image))
        rest = tuple(gr.skip() for _ in range(4)) if not samples else self._finished(samples, "")[:-1]
        return shown, photo, *rest

    def load_mask(self, data: bytes, clean: bool) -> dict[str, Any]:
        """Return an uploaded mask for the canvas."""
        with show_errors():
            return pack_mask(self._read_mask(data, clean))

    def load_photo(self, data: bytes) -> tuple[Any, Photo, str, str]:
        """Show a photo below an empty mask: it changes where it is painted over."""
        sampler = self.sampler
        with show_errors():
            image = read_photo_upload(data, sampler.size, sampler.limits)
        photo = Photo(image, np.full(sampler.size, sampler.labels.ignore_index, dtype=np.uint8), uuid.uuid4().hex)
        what = "load the photo's mask" if self.segmenter is None else "load the photo's mask or have one suggested"
        message = f"Paint over the photo: only that part is regenerated. Or {what}, and change it."
        return gr.update(value=_pack_photo_mask(photo), photo=_data_url(image)), photo, EDIT, message

    def load_photo_mask(self, data: bytes, clean: bool, photo: Photo | None) -> tuple[dict, Photo, str]:
        """Show the mask of the photo."""
        with show_errors():
            if photo is None:
                raise ValueError("there is no photo for this mask: load the photo first.")
            photo = Photo(photo.image, self._read_mask(data, clean), uuid.uuid4().hex)
        message = "This is the photo's mask. Change it: only the part that differs is regenerated."
        return _pack_photo_mask(photo), photo, message

    def suggest_mask(self, photo: Photo | None) -> tuple[dict, Photo, str]:
        """Show what the segmentation network takes the photo for, as its mask."""
        with show_errors():
            if photo is None:
                raise ValueError("there is no photo to suggest a mask for: load one first.")
            if self.segmenter is None:
                raise ValueError("no segmentation network was given: start the painter with --segmenter.")
            pixels = torch.from_numpy(np.array(photo.image)).permute(2, 0, 1)[None].contiguous()  # (1, 3, H, W)
            photo = Photo(photo.image, self.segmenter.read(pixels)[0].numpy(), uuid.uuid4().hex)
        message = (
            "A suggestion, which may be wrong. Correct it, and press “Take this as the photo's mask”; what you change "
            "after that is regenerated."
        )
        return _pack_photo_mask(photo), photo, message

    def accept_mask(self, mask: dict, photo: Photo | None) -> tuple[dict, Photo, str]:
        """Take what is painted as the photo's mask: only what changes after this differs from it."""
        with show_errors():
            if photo is None:
                raise ValueError("there is no photo that this could be the mask of: load one first.")
            photo = Photo(photo.image, self._unpack(mask, photo, EDIT), uuid.uuid4().hex)
        message = "This is the photo's mask now. Change it: only the part that differs is regenerated."
        return _pack_photo_mask(photo), photo, message

    def drop_photo(self) -> tuple[Any, None, str, str]:
        """Remove the photo."""
        return gr.update(photo=""), None, NOISE, ""

    def _read_mask(self, data: bytes, clean: bool) -> np.ndarray:
        sampler = self.sampler
        return read_mask_upload(data, sampler.labels, sampler.size, sampler.limits, clean is True)

    def generate(
        self,
        request: gr.Request,
        mask: dict,
        photo: Photo | None,
        way: str,  # the mode; parameter names are those of the HTTP API, where it was published as this
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
        session = request.session_hash
        asked = self._asked(
            way, scheduler, num_inference_steps, guidance_scale, seed, num_images, strength, attribute_guidance_scale,
            *attributes,
        )  # fmt: skip
        cancelled = self._running[session] = threading.Event()

        def check() -> None:
            if cancelled.is_set():
                raise Cancelled

        def on_step(index: int, step: int, steps: int) -> None:
            check()
            text = f"sample {index + 1} of {num_images:g}, step {step} of {steps}"
            progress((index * steps + step, int(num_images) * steps), desc=text, unit="steps")

        samples: list[Sample] = []
        preview, message = None, ""

        def ended(text: str) -> tuple:
            """Return the outputs at the end: a preview that was not enlarged is not shown on."""
            return self._shown([], text) if preview and not samples else self._finished(samples, text)

        try:
            with show_errors():
                ids = self._unpack(mask, photo, way)
                asked = replace(asked, **unpack_texts(mask, self.sampler.labels, self.sampler.size))
                try:
                    for sample in self.sampler.generate(ids, asked, photo, on_step, check):
                        if sample.is_preview:
                            preview = sample
                            text = f"{len(samples)} of {num_images:g} generated, the next is being enlarged"
                            yield self._shown(samples, text, preview)
                            continue
                        samples.append(sample)
                        self._remember(mask, samples=list(samples))
                        yield self._shown(samples, f"{len(samples)} of {num_images:g} generated")
                except Cancelled:
                    message = f"Cancelled; {len(samples)} of {num_images:g} generated."
                except Exception:
                    if samples or preview:  # samples can still be kept
                        yield ended(f"Ended by an error; {len(samples)} of {num_images:g} generated.")
                    raise
        finally:
            if self._running.get(session) is cancelled:
                del self._running[session]
        yield ended(message or f"{len(samples)} generated.")

    def _asked(self, *options: Any) -> SamplingRequest:
        """Return what is to be generated from the options of the page, in the order of `generate`; not checked yet."""
        given = dict(zip(OPTIONS, options, strict=False))
        attributes = dict(zip(self.sampler.attributes, options[len(OPTIONS) :], strict=False))
        if given["scheduler"] == OWN_SCHEDULER:
            given["scheduler"] = None
        if not self.sampler.attributes:
            given["attribute_guidance_scale"] = None
        return SamplingRequest(
            **given, attributes={name: value for name, value in attributes.items() if value not in (None, ANY)}
        )

    def _unpack(self, mask: dict, photo: Photo | None, mode: str) -> np.ndarray:
        """Return the class ids of the canvas, if they were painted over this photo."""
        ids = unpack_mask(mask, self.sampler.labels, self.sampler.size)
        if mode != NOISE and photo is not None and mask.get("photo") not in (None, photo.key):
            raise ValueError("another photo, or mask of it, was loaded while this request waited: generate again.")
        return ids

    def generate_live(self, request: gr.Request, mask: dict, photo: Photo | None, *options: Any) -> Iterator[Any]:
        """Show one image of the mask beside it, unless its visitor has painted on meanwhile; errors are shown there.

        The options are those of `generate`, in the same order. The image is that request's first sample, after its
        preview if it has one.
        """
        session, stroke = request.session_hash, self._note_stroke(request, mask)

        def check(*_: int) -> None:
            if self._strokes.get(session, math.inf) > stroke:  # none: the visitor has left
                raise Cancelled

        live: dict[str, Any] = {"stroke": stroke}
        try:
            with show_errors():
                asked = replace(self._asked(*options), num_images=1)
                ids = self._unpack(mask, photo, asked.mode)
                asked = replace(asked, **unpack_texts(mask, self.sampler.labels, self.sampler.size))
                check()  # a waiting request may be outdated before it starts
                for sample in self.sampler.generate(ids, asked, photo, check, check):
                    shown = {"image": _data_url(sample.image), "isPreview": sample.is_preview}
                    yield gr.update(live=live | shown | {"steps": asked.num_inference_steps, "seed": asked.seed})
        except Cancelled:
            yield gr.skip()
        except gr.Error as err:  # in place, not as a message that pops up at every stroke
            yield gr.update(live=live | {"error": html.unescape(err.message)})
        finally:
            with self._strokes_lock:
                if self._strokes.get(session) == stroke:
                    del self._strokes[session]

    def supersede(self, request: gr.Request, mask: dict) -> None:
        """End the live image of a visitor's earlier strokes: between two steps, or at once if it is being enlarged."""
        self._note_stroke(request, mask)

    def _note_stroke(self, request: gr.Request, mask: dict) -> int:
        """Keep the newest number of a visitor's strokes, and return that of this one."""
        number = mask.get("stroke") if isinstance(mask, dict) else None
        stroke = number if type(number) is int else 0
        with self._strokes_lock:
            self._strokes[request.session_hash] = max(stroke, self._strokes.get(request.session_hash, 0))
        return stroke

    def _shown(self, samples: list[Sample], message: str, preview: Sample | None = None) -> tuple:
        """Return the outputs during sampling: without download or choice, which would be those of earlier samples."""
        gallery = []
        for sample in samples if preview is None else [*samples, preview]:
            folder = "previews" if sample.is_preview else "samples"
            path = Path(self.cache) / sample.row["stem"] / folder / sample.job.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():  # written once, so that none changes while it is sent
                save_png(path, sample.image)
            gallery.append((str(path), f"{sample.row['index']}: {sample.row['seed']}"))
        nothing = gr.CheckboxGroup([], value=[], visible=False)
        return gallery, samples, gr.DownloadButton(interactive=False), nothing, message

    def _finished(self, samples: list[Sample], message: str) -> tuple:
        if not samples:  # earlier samples stay
            return *(gr.skip() for _ in range(4)), message
        gallery, state, *_ = self._shown(samples, message)
        archive = zip_of(samples, self.sampler.labels)
        path = save_bytes_to_cache(archive, f"{samples[0].row['stem']}.zip", self.cache)
        numbers = [str(sample.row["index"]) for sample in samples]
        keep = gr.CheckboxGroup(numbers, value=numbers, visible=self.collection is not None)
        return gallery, state, gr.DownloadButton(value=path, interactive=True), keep, message

    def cancel(self, request: gr.Request) -> tuple[str, bool]:
        """End the running request of a visitor; return a message, and whether none is running."""
        cancelled = self._running.get(request.session_hash)
        if cancelled is None:
            return "Cancelled: nothing is being generated.", True
        cancelled.set()
        return "Cancelling …", False

    def leave(self, request: gr.Request) -> None:
        """End the requests of a visitor who has closed the page."""
        self.cancel(request)
        with self._strokes_lock:
            self._strokes.pop(request.session_hash, None)

    def add(self, samples: list[Sample] | None, keep: Sequence[str]) -> str:
        """Add the chosen samples to the dataset."""
        assert self.collection is not None, "the page offers no such button"
        chosen = [sample for sample in samples or [] if str(sample.row["index"]) in {*map(str, keep or ())}]
        with show_errors():
            if not chosen:
                raise ValueError("there is nothing to add: generate first, and choose samples to keep.")
            added = self.collection.add(chosen)
        known = f", {len(chosen) - added} were already there" if added < len(chosen) else ""
        return f"{added} added to {self.collection.folder.name}{known}; it holds {len(self.collection)}."


def _pack_photo_mask(photo: Photo) -> dict[str, Any]:
    """Return the mask of a photo for the canvas, which sends the key of the photo back with each mask."""
    return {**pack_mask(photo.ids), "photo": photo.key}


def _data_url(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
