"""The canvas as a component of the page: an exact one, since gradio's own blends edges and names no colours. Page,
style and script lie in `canvas/`; its value is the mask as `mask_runs` packs it."""

import html
from importlib import resources

import gradio as gr
import numpy as np
from gradio_client.utils import is_http_url_like

from semseg_diffusers.app.collection import Collection
from semseg_diffusers.app.handlers import ANY, OWN_SCHEDULER, TOLD, Handlers
from semseg_diffusers.app.mask_rle import pack_mask
from semseg_diffusers.app.sampler import NOISE, REDRAW, WAYS, Painter
from semseg_diffusers.app.shapes import Shape
from semseg_diffusers.app.uploads import MOST_GUIDANCE, MOST_SEED
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.settings import GenerationSettings


def mask_canvas(mask: np.ndarray, labels: LabelSet, shapes: list[Shape], examples: dict[str, np.ndarray]) -> gr.HTML:
    """A canvas to paint masks on; its property `photo` is the address of a picture to show beneath, or empty.

    No class of its own: gradio writes a file beside the module of each component that is derived from one of its.

    Args:
        mask (`np.ndarray`): what it shows first, class ids (H, W).
        labels (`LabelSet`): the palette, "unknown" last.
        shapes (`list[Shape]`): things to place.
        examples (`dict[str, np.ndarray]`): masks to start from, (H, W), by name.
    """
    names = {**labels.id2label, labels.ignore_index: "unknown"}
    colors = {**dict(enumerate(labels.colors)), labels.ignore_index: labels.ignore_color}
    return gr.HTML(
        value=pack_mask(mask),
        html_template=_file("canvas.html"),
        css_template=_file("canvas.css"),
        js_on_load=_file("raster.js") + _file("canvas.js"),
        apply_default_css=False,
        height=mask.shape[0],
        width=mask.shape[1],
        unknown=labels.ignore_index,
        names={str(key): name for key, name in names.items()},
        colors={str(key): list(color) for key, color in colors.items()},
        shapes=[shape.packed() for shape in shapes],
        examples=[{"name": name, **pack_mask(ids)} for name, ids in examples.items()],
        photo="",
    )


def _file(name: str) -> str:
    return resources.files("semseg_diffusers.app").joinpath("canvas", name).read_text(encoding="utf-8")


DOWNLOAD = "Download images, masks, metadata"
KEPT = 24 * 3600  # seconds that files are kept; what a visitor has is forgotten an hour after the page was closed
WITHDRAW = "withdraw"  # id of a button that nobody sees
FILE_ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]  # a hint to the browser; the content decides


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
    with gr.Blocks(title="Painter", analytics_enabled=False, fill_width=True, delete_cache=(KEPT // 24, KEPT)) as page:
        photo = gr.State(None)
        drawn = gr.State(None)
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
                withdraw = gr.Button("Withdraw", visible="hidden", elem_id=WITHDRAW)
                is_idle = gr.Checkbox(visible="hidden")
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
        generating = start.click(
            handlers.generate,
            [canvas, photo, *wishes],
            [gallery, drawn, download, keep, told],
            api_name="generate",
            show_progress="full",
            show_progress_on=told,
            concurrency_limit=1,
            trigger_mode="once",
        )
        # What is drawn ends between two steps, by its handler, so that samples before it can be kept; what waits is
        # taken from the queue by gradio, which its page asks for by a button of its own.
        stopped = stop.click(
            handlers.cancel, None, [told, is_idle], api_name="cancel", queue=False, show_progress="hidden"
        )
        stopped.then(
            None, is_idle, None, js=f"(idle) => {{ if (idle) document.querySelector('#{WITHDRAW}').click(); }}"
        )
        withdraw.click(None, cancels=[generating])
        if collection is not None:
            add.click(handlers.add, [drawn, keep], told, api_name="add")
        way.change(
            lambda chosen: gr.Slider(visible=chosen == REDRAW), way, strength, api_visibility="private", queue=False
        )
        page.unload(handlers.leave)
        page.load(lambda: gr.Slider(visible=False), None, strength, api_visibility="private", queue=False)
    return page.queue(max_size=limits.queue_size, default_concurrency_limit=4)
