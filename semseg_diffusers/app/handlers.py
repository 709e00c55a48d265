"""What the painter's page calls. Handlers check all that they are given, since anybody can call them over HTTP with
anything at all."""

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
from semseg_diffusers.app.sampler import EDIT, NOISE, Drawn, Painter, Photo, Wish
from semseg_diffusers.app.uploads import data_url, read_mask_upload, read_photo_upload
from semseg_diffusers.generation.batches import is_out_of_memory
from semseg_diffusers.utils.images import save_png


OWN_SCHEDULER, ANY = "the model's own", "any"
TOLD = 15  # seconds that a refusal is shown


class Cancelled(Exception):  # noqa: N818  no error: a visitor's wish
    """The drawing was cancelled between two steps."""


class Cancellations:
    """Which visitors have cancelled what is drawn for them. What waits in the queue is gradio's to cancel."""

    def __init__(self):
        self._events: dict[str | None, threading.Event] = {}

    @contextlib.contextmanager
    def watched(self, session: str | None) -> Iterator[threading.Event]:
        """An event that `cancel` of this visitor sets."""
        event = self._events[session] = threading.Event()
        try:
            yield event
        finally:
            if self._events.get(session) is event:
                del self._events[session]

    def cancel(self, session: str | None) -> bool:
        """Set it; tells whether something was being drawn."""
        event = self._events.get(session)
        if event is not None:
            event.set()
        return event is not None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Let the page show what is refused, and why; a bug stays one."""
    try:
        yield
    except (ValueError, OSError) as err:
        raise gr.Error(html.escape(" ".join(str(err).split()), quote=False), TOLD, print_exception=False) from err
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise gr.Error("the memory of the machine is full; ask for less, or try again later.", TOLD) from err


def _over(photo: Photo) -> dict[str, Any]:
    """The mask of a photo for the canvas, which says with all that is painted on it what photo that is over."""
    return {**pack_mask(photo.ids), "photo": photo.key}


class Handlers:
    """What the page calls.

    Args:
        painter (`Painter`): draws.
        collection (`Collection`, *optional*): takes pairs.
        cache (`str`): folder of the files that visitors may load.
    """

    def __init__(self, painter: Painter, collection: Collection | None, cache: str):
        self.painter, self.collection, self.cache = painter, collection, cache
        self.cancellations = Cancellations()

    def load_mask(self, data: bytes, clean: bool) -> dict[str, Any]:
        with refusals():
            return pack_mask(self._read_mask(data, clean))

    def _read_mask(self, data: bytes, clean: bool) -> np.ndarray:
        painter = self.painter
        return read_mask_upload(data, painter.labels, painter.size, painter.limits, clean is True)

    def load_photo(self, data: bytes) -> tuple[Any, Photo, str, str]:
        """Put a photo under an empty mask: what is painted over it is what changes."""
        painter = self.painter
        with refusals():
            picture = read_photo_upload(data, painter.size, painter.limits)
        ids = np.full(painter.size, painter.labels.ignore_index, dtype=np.uint8)
        told = "Paint over the photo: only that is drawn anew. Or load the mask that the photo has, and change it."
        photo = Photo(picture, ids, uuid.uuid4().hex)
        return gr.update(value=_over(photo), photo=data_url(picture)), photo, EDIT, told

    def load_photo_mask(self, data: bytes, clean: bool, photo: Photo | None) -> tuple[dict, Photo, str]:
        with refusals():
            if photo is None:
                raise ValueError("there is no photo that this mask could be of: load the photo first.")
            ids = self._read_mask(data, clean)
        told = "This is the photo's mask. Change it: only what differs from it is drawn anew."
        photo = Photo(photo.picture, ids, uuid.uuid4().hex)
        return _over(photo), photo, told

    def drop_photo(self) -> tuple[Any, None, str, str]:
        return gr.update(photo=""), None, NOISE, ""

    def generate(
        self,
        request: gr.Request,
        mask: dict,
        photo: Photo | None,
        way: str,
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
        """Draw samples, shown as they come: gallery, state, file to download, which to keep, what is told."""
        painter = self.painter
        given = dict(zip(painter.attributes, attributes, strict=False))
        wish = Wish(
            way=way,
            scheduler=None if scheduler == OWN_SCHEDULER else scheduler,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            num_images=num_images,
            attributes={name: value for name, value in given.items() if value not in (None, ANY)},
            attribute_guidance_scale=attribute_guidance_scale if painter.attributes else None,
            strength=strength,
        )
        drawn: list[Drawn] = []
        with self.cancellations.watched(request.session_hash) as cancelled:

            def on_step(index: int, step: int, steps: int) -> None:
                if cancelled.is_set():
                    raise Cancelled
                told = f"sample {index + 1} of {num_images:g}, step {step} of {steps}"
                progress((index * steps + step, int(num_images) * steps), desc=told, unit="steps")

            told = ""
            with refusals():
                ids = unpack_mask(mask, painter.labels, painter.size)
                if way != NOISE and photo is not None and mask.get("photo") not in (None, photo.key):
                    raise ValueError("another photo, or mask of it, was loaded while this waited: generate again.")
                try:
                    for sample in painter.draw(ids, wish, photo, on_step):
                        drawn.append(sample)
                        yield self._shown(drawn, f"{len(drawn)} of {wish.num_images:g} drawn")
                except Cancelled:
                    told = f"Cancelled; {len(drawn)} of {wish.num_images:g} drawn."
                except Exception:
                    if drawn:  # which can be kept all the same
                        yield self._finished(drawn, f"Ended by an error; {len(drawn)} of {wish.num_images:g} drawn.")
                    raise
            yield self._finished(drawn, told or f"{len(drawn)} drawn.")

    def _shown(self, drawn: list[Drawn], told: str) -> tuple:
        """What the page is given meanwhile: nothing to take away, since the file and the ticks there are of samples
        that are no longer shown. Each picture is written once, so that none changes while it is sent."""
        gallery = []
        for entry in drawn:
            path = Path(self.cache) / entry.row["stem"] / entry.job.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                save_png(path, entry.image)
            gallery.append((str(path), f"{entry.row['index']}: {entry.row['seed']}"))
        nothing = gr.CheckboxGroup([], value=[], visible=False)
        return gallery, drawn, gr.DownloadButton(interactive=False), nothing, told

    def _finished(self, drawn: list[Drawn], told: str) -> tuple:
        if not drawn:  # what was drawn before stays
            return *(gr.skip() for _ in range(4)), told
        gallery, state, *_ = self._shown(drawn, told)
        name = f"{drawn[0].row['stem']}.zip"
        path = save_bytes_to_cache(zip_of(drawn, self.painter.labels), name, self.cache)
        numbers = [str(entry.row["index"]) for entry in drawn]
        download = gr.DownloadButton(value=path, interactive=True)
        keep = gr.CheckboxGroup(numbers, value=numbers, visible=self.collection is not None)
        return gallery, state, download, keep, told

    def cancel(self, request: gr.Request) -> tuple[str, bool]:
        """End what is drawn for a visitor: what is told, and whether nothing is, so that only waiting can end."""
        drawing = self.cancellations.cancel(request.session_hash)
        return "Cancelling …" if drawing else "Cancelled: nothing is being drawn.", not drawing

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the page: what is drawn ends."""
        self.cancellations.cancel(request.session_hash)

    def add(self, drawn: list[Drawn] | None, keep: Sequence[str]) -> str:
        """Add the chosen samples to the data set."""
        chosen = [entry for entry in drawn or [] if str(entry.row["index"]) in {*map(str, keep or ())}]
        with refusals():
            if not chosen:
                raise ValueError("there is nothing to add: generate first, and choose samples to keep.")
            added = self.collection.add(chosen)
        known = f", {len(chosen) - added} were there already" if added < len(chosen) else ""
        return f"{added} added to {self.collection.folder.name}{known}; it holds {len(self.collection)}."
