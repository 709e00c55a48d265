"""The painter's page: the canvas, what is asked for, what comes of it. Handlers check all that they are given, since
anybody can call them over HTTP with anything at all."""

import contextlib
import html
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from gradio_client.utils import is_http_url_like

from semseg_diffusers.app.collection import Collection, zip_of
from semseg_diffusers.app.drawing import EDIT, NOISE, REDRAW, WAYS, Drawn, Painter, Photo, Wish
from semseg_diffusers.app.limits import MOST_GUIDANCE, MOST_SEED
from semseg_diffusers.app.mask_runs import pack_mask, unpack_mask
from semseg_diffusers.app.page_canvas import mask_canvas
from semseg_diffusers.app.shapes import Shape
from semseg_diffusers.app.uploads import data_url, read_mask_upload, read_photo_upload
from semseg_diffusers.data.pictures import save_png
from semseg_diffusers.generation.drawing import is_out_of_memory
from semseg_diffusers.generation.settings import GenerationSettings


OWN_SCHEDULER, ANY = "the model's own", "any"
TOLD = 15  # seconds that a refusal is shown
DOWNLOAD = "Download images, masks, metadata"
KEPT = 3600  # seconds that files, and what a visitor drew, are kept
FILE_ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]  # a hint to the browser; the content decides


class Cancelled(Exception):  # noqa: N818  no error: a visitor's wish
    """The drawing was cancelled between two steps."""


class Cancellations:
    """Which visitors have cancelled what is drawn for them."""

    def __init__(self):
        self._events: dict[str | None, threading.Event] = {}

    @contextlib.contextmanager
    def watched(self, session: str | None) -> Iterator[threading.Event]:
        """An event that `cancel` of this visitor sets."""
        event = self._events[session] = threading.Event()
        try:
            yield event
        finally:
            self._events.pop(session, None)

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
        return gr.update(value=pack_mask(ids), photo=data_url(picture)), Photo(picture, ids), EDIT, told

    def load_photo_mask(self, data: bytes, clean: bool, photo: Photo | None) -> tuple[dict, Photo, str]:
        with refusals():
            if photo is None:
                raise ValueError("there is no photo that this mask could be of: load the photo first.")
            ids = self._read_mask(data, clean)
        told = "This is the photo's mask. Change it: only what differs from it is drawn anew."
        return pack_mask(ids), Photo(photo.picture, ids), told

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
                try:
                    for sample in painter.draw(ids, wish, photo, on_step):
                        drawn.append(sample)
                        yield self._shown(drawn, f"{len(drawn)} of {wish.num_images:g} drawn")
                except Cancelled:
                    told = f"Cancelled; {len(drawn)} of {wish.num_images:g} drawn."
            yield self._finished(drawn, told or f"{len(drawn)} drawn.")

    def _shown(self, drawn: list[Drawn], told: str) -> tuple:
        """What the page is given meanwhile. Each picture is written once, so that none changes while it is sent."""
        gallery = []
        for entry in drawn:
            path = Path(self.cache) / entry.row["stem"] / entry.job.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                save_png(path, entry.image)
            gallery.append((str(path), f"{entry.row['index']}: {entry.row['seed']}"))
        return gallery, drawn, gr.skip(), gr.skip(), told

    def _finished(self, drawn: list[Drawn], told: str) -> tuple:
        gallery, state, *_ = self._shown(drawn, told)
        if not drawn:
            nothing = gr.CheckboxGroup([], value=[], visible=False)
            return gallery, state, gr.DownloadButton(interactive=False), nothing, told
        name = f"{drawn[0].row['stem']}.zip"
        path = save_bytes_to_cache(zip_of(drawn, self.painter.labels), name, self.cache)
        numbers = [str(entry.row["index"]) for entry in drawn]
        download = gr.DownloadButton(value=path, interactive=True)
        keep = gr.CheckboxGroup(numbers, value=numbers, visible=self.collection is not None)
        return gallery, state, download, keep, told

    def cancel(self, request: gr.Request) -> str:
        return "Cancelling …" if self.cancellations.cancel(request.session_hash) else "Nothing is being drawn."

    def add(self, drawn: list[Drawn] | None, keep: Sequence[str]) -> str:
        """Add the chosen samples to the data set."""
        chosen = [entry for entry in drawn or [] if str(entry.row["index"]) in {*map(str, keep or ())}]
        with refusals():
            if not chosen:
                raise ValueError("there is nothing to add: generate first, and choose samples to keep.")
            added = self.collection.add(chosen)
        known = f", {len(chosen) - added} were there already" if added < len(chosen) else ""
        return f"{added} added to {self.collection.folder.name}{known}; it holds {len(self.collection)}."


def _take_uploads_only(button: gr.UploadButton) -> None:
    """Refuse what is no uploaded file: gradio would fetch an address that a caller names in place of one."""
    keep = button.async_move_resource_to_block_cache

    async def keep_upload(path: str) -> str | None:
        if is_http_url_like(path):
            raise gr.Error("a file is uploaded here, not fetched from elsewhere.", TOLD, print_exception=False)
        return await keep(path)

    button.async_move_resource_to_block_cache = keep_upload


def build_page(
    painter: Painter,
    collection: Collection | None,
    examples: dict[str, np.ndarray],
    shapes: list[Shape],
    title: str,
    seed: int = 0,
) -> gr.Blocks:
    """Build the page.

    Args:
        painter (`Painter`): draws.
        collection (`Collection`, *optional*): takes pairs; without it the page offers none.
        examples (`dict[str, np.ndarray]`): masks to start from, (H, W), by name; the first is shown.
        shapes (`list[Shape]`): things to place.
        title (`str`): what model it is.
        seed (`int`, defaults to 0): what the field of the seed holds first.

    Returns:
        `gr.Blocks`: not launched; `queue` is set.
    """
    limits, defaults = painter.limits, GenerationSettings()
    unknown = np.full(painter.size, painter.labels.ignore_index, dtype=np.uint8)
    size = f"{painter.size[0]} × {painter.size[1]}"
    with gr.Blocks(title="Painter", analytics_enabled=False, fill_width=True, delete_cache=(KEPT // 6, KEPT)) as page:
        photo = gr.State(None, time_to_live=KEPT)
        drawn = gr.State(None, time_to_live=KEPT)
        gr.Markdown(f"## Paint a mask, get photos\n{html.escape(title)} · {size} pixels")
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                canvas = mask_canvas(next(iter(examples.values()), unknown), painter.labels, shapes, examples)
                with gr.Accordion("Load a mask or a photo", open=False):
                    with gr.Row():
                        mask_file = gr.UploadButton("Mask …", type="binary", file_types=FILE_ENDINGS, size="sm")
                        photo_file = gr.UploadButton("Photo …", type="binary", file_types=FILE_ENDINGS, size="sm")
                        photo_mask_file = gr.UploadButton(
                            "The photo's mask …", type="binary", file_types=FILE_ENDINGS, size="sm"
                        )
                        drop = gr.Button("Drop the photo", size="sm")
                    clean = gr.Checkbox(False, label="Clean soft edges and JPEG noise of masks")
                    gr.Markdown(
                        f"PNG, JPEG, WebP or BMP, {limits.max_upload_mb:g} MB and {limits.max_size} pixels a side at "
                        f"most; cropped around the centre and brought to {size}. Masks are class ids, a palette or "
                        "the colours above."
                    )
            with gr.Column(scale=4, min_width=320):
                way = gr.Radio(WAYS, value=NOISE, label="What is drawn")
                strength = gr.Slider(0, 1, 0.5, step=0.05, label="Strength: 0 is the photo, 1 leaves nothing of it")
                attributes = [
                    gr.Dropdown([ANY, *values], value=ANY, label=name) for name, values in painter.attributes.items()
                ]
                with gr.Row():
                    num_images = gr.Slider(1, limits.max_images, min(4, limits.max_images), step=1, label="Samples")
                    seed_field = gr.Number(seed, label="Seed", precision=0, minimum=0, maximum=MOST_SEED)
                with gr.Accordion("Steps, guidance, scheduler", open=False):
                    steps = gr.Slider(
                        1, limits.max_steps, min(defaults.num_inference_steps, limits.max_steps), step=1, label="Steps"
                    )
                    guidance = gr.Slider(
                        0,
                        MOST_GUIDANCE,
                        defaults.guidance_scale,
                        step=0.25,
                        label="Guidance",
                        info="how strongly the mask is followed; 1 is none, at half the cost",
                    )
                    attribute_guidance = gr.Number(
                        None,
                        label="Guidance of the attributes alone (empty: as the mask)",
                        minimum=0,
                        maximum=MOST_GUIDANCE,
                        visible=bool(attributes),
                    )
                    scheduler = gr.Dropdown(
                        [OWN_SCHEDULER, *painter.schedulers],
                        value=OWN_SCHEDULER,
                        label="Scheduler",
                        info="of diffusers; options behind a colon: CLASS:OPTION=VALUE",
                        allow_custom_value=True,
                    )
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Cancel", variant="stop", elem_id="cancel")
                told = gr.Markdown("", elem_id="told", min_height=76, container=True)
                gallery = gr.Gallery(
                    label="Samples, with their seeds",
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    format="png",
                    elem_id="samples",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                )
                download = gr.DownloadButton(DOWNLOAD, interactive=False, size="md", elem_id="download")
                keep = gr.CheckboxGroup([], label="Keep the samples", visible=False, elem_id="keep")
                add = gr.Button("Add to the data set", visible=collection is not None, size="md", elem_id="add")

        for button in (mask_file, photo_file, photo_mask_file):
            _take_uploads_only(button)
        handlers = Handlers(painter, collection, download.GRADIO_CACHE)
        mask_file.upload(handlers.load_mask, [mask_file, clean], canvas, api_name="load_mask")
        photo_file.upload(handlers.load_photo, photo_file, [canvas, photo, way, told], api_name="load_photo")
        photo_mask_file.upload(
            handlers.load_photo_mask,
            [photo_mask_file, clean, photo],
            [canvas, photo, told],
            api_name="load_photo_mask",
        )
        drop.click(handlers.drop_photo, None, [canvas, photo, way, told], api_name="drop_photo")
        wishes = [way, scheduler, steps, guidance, seed_field, num_images, strength, attribute_guidance, *attributes]
        start.click(
            handlers.generate,
            [canvas, photo, *wishes],
            [gallery, drawn, download, keep, told],
            api_name="generate",
            show_progress="full",
            show_progress_on=told,
            concurrency_limit=1,
            trigger_mode="once",
        )
        stop.click(handlers.cancel, None, told, api_name="cancel", queue=False, show_progress="hidden")
        if collection is not None:
            add.click(handlers.add, [drawn, keep], told, api_name="add")
        way.change(
            lambda chosen: gr.Slider(visible=chosen == REDRAW), way, strength, api_visibility="private", queue=False
        )
        page.load(lambda: gr.Slider(visible=False), None, strength, api_visibility="private", queue=False)
    return page.queue(max_size=limits.queue_size, default_concurrency_limit=4)
