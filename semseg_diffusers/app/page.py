"""The page of the painter. Its canvas is our own component, since gradio's blends edges and has no named colours:
template, style and script are in `canvas/`, and its value is the mask as run lengths (`inputs.py`).
"""

import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import gradio as gr
import numpy as np
from gradio_client.utils import is_http_url_like
from starlette.middleware import Middleware

from semseg_diffusers.app.collection import Collection, short_name
from semseg_diffusers.app.handlers import ANY, OWN_SCHEDULER, TOAST_SECONDS, Handlers
from semseg_diffusers.app.hosts import OwnHosts, without_brackets
from semseg_diffusers.app.inputs import pack_mask
from semseg_diffusers.app.sampler import MODES, NOISE, REDRAW, Sampler
from semseg_diffusers.app.settings import MAX_GUIDANCE, MAX_SEED, Limits
from semseg_diffusers.app.shapes import Shape
from semseg_diffusers.evaluation.segmentation.judge import Judge


# Inside of @media, gradio prefixes selectors with its container: these cannot name it, or what is outside of it.
CSS = """
.gradio-container {
  max-width: min(1360px, 100%) !important; margin: 0 auto;
  padding-bottom: clamp(0px, (641px - 100vw) * 99, 72px) !important;
}
.main.fillable { padding-inline: clamp(12px, (100vw - 640px) * 99, 32px) !important; }
.toast-wrap { top: auto !important; bottom: clamp(12px, (641px - 100vw) * 99, 76px) !important; }
#message .progress-text { position: static; order: 3; transform: none; }
.toast-close { opacity: 1 !important; color: inherit !important; }
#painting:has(.is-live) { flex-grow: 10 !important; }
#samples .grid-wrap { height: auto !important; max-height: none !important; }
#samples .caption-label { max-width: 100%; font-size: 11px; }
#seed {
  align-items: end; gap: 0; padding-right: 12px;
  border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  background: var(--block-background-fill);
}
#seed .form, #seed .block { border: none; box-shadow: none; }
#seed > button { height: 42px; margin-bottom: 10px; }
footer { margin-top: 2px !important; }
@media (min-width: 1100px) {
  #title { margin-bottom: -8px; }
  #title h2 { display: inline; font-size: 20px; margin: 0 16px 0 0; }
  #title p { display: inline; margin: 0; }
  #painting, #controls { gap: 5px; }
  #painting .html-container { padding: 0 !important; }
  #mode { padding-block: 6px 0; }
  #mode .wrap { gap: 4px; }
  #mode label { padding: 3px 8px; font-size: 13px; }
  #message { min-height: 56px !important; padding-block: 4px; }
  #samples .empty { min-height: 90px; }
  #samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
  #samples .grid-wrap { min-height: 0 !important; }
  #samples:has(.preview) .grid-wrap { min-height: 340px !important; }
  #seed .block { padding-block: 4px; }
  #seed > button { margin-bottom: 4px; }
  #keep { padding-block: 6px; }
  #keep label { padding: 2px 8px; }
}
@media (max-width: 640px) {
  #actions {
    position: fixed; inset: auto 0 0 0; z-index: 40; padding: 8px 12px; gap: 8px; flex-wrap: nowrap;
    background: var(--background-fill-primary); border-top: 1px solid var(--border-color-primary);
  }
  #actions > * { min-width: 0 !important; }
  #title h2 { font-size: 20px; margin: 0; }
  #title p { font-size: 12px; margin: 4px 0 0; }
  #painting .html-container { padding: 0 !important; }
}
"""
# Of gradio's theme, colours on which text has a contrast of 4.5 (WCAG 2.2, AA), in light and dark mode.
COLORS = {
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_cancel_background_fill": "#b91c1c",
    "button_cancel_background_fill_hover": "#991b1b",
    "button_cancel_text_color": "white",
    "body_text_color_subdued": "*neutral_600",
    "block_info_text_color": "*neutral_600",
    "block_label_text_color": "*neutral_600",
    "block_title_text_color": "*neutral_700",
}
COLORS |= {f"{name}_dark": value for name, value in COLORS.items() if name.startswith("button")}
COLORS |= {f"{name}_dark": "*neutral_300" for name in COLORS if "text_color" in name and not name.startswith("button")}
KEPT = 24 * 3600  # seconds that files are kept; the state of a visitor is deleted an hour after the page was closed
WITHDRAW = "withdraw"  # id of a hidden button
FILE_ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".bmp"]  # a hint for the browser; the content counts


def build_page(
    sampler: Sampler,
    collection: Collection | None,
    examples: dict[str, np.ndarray],
    shapes: list[Shape],
    title: str,
    seed: int = 0,
    segmenter: Judge | None = None,
) -> gr.Blocks:
    """Build the page, not launched; the first example is shown.

    Without a collection no pair can be kept, without a segmentation network none suggests a mask for a photo.
    """
    with gr.Blocks(title="Painter", analytics_enabled=False, fill_width=True, delete_cache=(KEPT // 24, KEPT)) as page:
        photo, samples = gr.State(None), gr.State(None)
        size = f"{sampler.size[0]} × {sampler.size[1]}"
        memory = _memory_key(sampler, title)
        height, width = sampler.model_size
        facts = f"{html.escape(title)} · {height} × {width} pixels (height × width) · {sampler.recommended[0]} steps"
        if sampler.upscaler is not None:
            facts += f" · enlarged to {size} by {html.escape(short_name(sampler.upscaler_name))}"
        gr.Markdown(f"## Paint a mask, generate images\n{facts}", elem_id="title")
        with gr.Row():
            with gr.Column(scale=5, min_width=340, elem_id="painting"):
                canvas = mask_canvas(sampler, shapes, examples, title)
                uploads = _uploads(sampler.limits, size, suggests=segmenter is not None)
                mask_file, photo_file, photo_mask_file, suggest, accept, drop, clean = uploads
            with gr.Column(scale=4, min_width=320, elem_id="controls"):
                options, random_seed = _options(sampler, seed)
                with gr.Row(elem_id="actions"):
                    start = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Cancel", variant="stop", elem_id="cancel")
                withdraw = gr.Button("Withdraw", visible="hidden", elem_id=WITHDRAW)
                is_idle = gr.Checkbox(visible="hidden")
                message = gr.Markdown("", elem_id="message", min_height=96, container=True)
                gallery = gr.Gallery(
                    label="Samples, with their seeds", columns=2, height="auto", object_fit="contain", format="png",
                    elem_id="samples", buttons=["download", "fullscreen"], interactive=False,
                )  # fmt: skip
                download = gr.DownloadButton(
                    "Download images, masks, metadata", interactive=False, size="md", elem_id="download"
                )
                keep = gr.CheckboxGroup([], label="Keep the samples", visible=False, elem_id="keep")
                add = gr.Button("Add to the dataset", visible=collection is not None, size="md", elem_id="add")

        handlers = Handlers(sampler, collection, download.GRADIO_CACHE, segmenter)
        mode, seed_field, num_images, strength = options[0], *options[4:7]
        # The name of a handler is that of its HTTP endpoint.
        # None is shown at work on the canvas, where it, or an error, would cover the tools.
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        mask_file.upload(handlers.load_mask, [mask_file, clean], canvas, **quiet)
        photo_file.upload(handlers.load_photo, photo_file, [canvas, photo, mode, message], **quiet)
        photo_mask = [photo_mask_file, clean, photo]
        photo_mask_file.upload(handlers.load_photo_mask, photo_mask, [canvas, photo, message], **quiet)
        suggest.click(handlers.suggest_mask, photo, [canvas, photo, message], **quiet)
        accept.click(handlers.accept_mask, [canvas, photo], [canvas, photo, message], **quiet)
        drop.click(handlers.drop_photo, None, [canvas, photo, mode, message], **quiet)
        generating = start.click(
            handlers.generate, [canvas, photo, *options], [gallery, samples, download, keep, message],
            show_progress="full", show_progress_on=message, concurrency_limit=1, trigger_mode="once",
        )  # fmt: skip
        # What a reload or Back restores: the mask by the canvas, the options by the browser, the rest by the server.
        # The message is no output: the progress shown there of a request that was quicker would end with the answer.
        photo.change(handlers.remember_photo, [canvas, photo], None, api_visibility="private", show_progress="hidden")
        page.load(None, options, options, js=_RESTORE_OPTIONS % memory).then(
            handlers.restore, canvas, [canvas, photo, gallery, samples, download, keep],
            js=_VISITOR % memory, api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        for option in options:
            option.change(None, options, None, js=_REMEMBER_OPTIONS % memory, show_progress="hidden")
        script = f"() => Math.floor(Math.random() * {MAX_SEED + 1})"
        random_seed.click(None, None, seed_field, js=script, show_progress="hidden")
        # A running request ends between two steps, by its handler, so that earlier samples can be kept; a waiting one
        # is removed from the queue by gradio, which a hidden button of the page asks for.
        stopped = stop.click(handlers.cancel, None, [message, is_idle], queue=False, show_progress="hidden")
        script = f"(idle) => {{ if (idle) document.querySelector('#{WITHDRAW}').click(); }}"
        stopped.then(None, is_idle, None, js=script)
        withdraw.click(None, cancels=[generating])
        if collection is not None:
            add.click(handlers.add, [samples, keep], message)
        # Each change of the canvas while it draws: gradio sends the newest when the one before is done.
        live = canvas.input(
            handlers.generate_live, [canvas, photo, *options], canvas,
            show_progress="hidden", trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        live.failure(None, js=_send_to_canvas("failure"))
        canvas.release(
            handlers.supersede, canvas, None,
            queue=False, show_progress="hidden", trigger_mode="multiple", api_visibility="private",
        )  # fmt: skip
        canvas.click(None, seed_field, seed_field, js=f"(seed) => (seed + 1) % {MAX_SEED + 1}")
        for option in options:
            if option is not num_images:
                option.change(None, js=_send_to_canvas("options"), show_progress="hidden")
        mode.change(
            lambda chosen: gr.Slider(visible=chosen == REDRAW), mode, strength, api_visibility="private", queue=False
        )
        page.load(lambda: gr.Slider(visible=False), None, strength, api_visibility="private", queue=False)
        page.unload(handlers.leave)
    return page.queue(max_size=sampler.limits.queue_size, default_concurrency_limit=4)


def mask_canvas(sampler: Sampler, shapes: list[Shape], examples: dict[str, np.ndarray], title: str) -> gr.HTML:
    """Return a canvas to paint masks on.

    Its property `photo` is the URL of an image to show below, or empty; `live` is what `generate_live` returns.
    """
    # Not a subclass: gradio writes a file beside the module of each class derived from its components.
    labels, canvas = sampler.labels, resources.files("semseg_diffusers.app").joinpath("canvas")
    files = ("canvas.html", "canvas.css", "raster.js", "canvas.js")
    template, style, raster, script = (canvas.joinpath(name).read_text(encoding="utf-8") for name in files)
    ignored, unknown = str(labels.ignore_index), np.full(sampler.size, labels.ignore_index, dtype=np.uint8)
    return gr.HTML(
        value=pack_mask(next(iter(examples.values()), unknown)),
        html_template=template,
        css_template=style,
        js_on_load=raster + script,
        apply_default_css=False,
        height=sampler.size[0],
        width=sampler.size[1],
        unknown=labels.ignore_index,
        names={**{str(i): name for i, name in enumerate(labels.names)}, ignored: "unknown"},
        colors={
            str(i): [*color] for i, color in [*enumerate(labels.colors), (labels.ignore_index, labels.ignore_color)]
        },
        shapes=[shape.packed() for shape in shapes],
        examples=[{"name": name, **pack_mask(ids)} for name, ids in examples.items()],
        photo="",
        model=title,
        upscaler="" if sampler.upscaler is None else short_name(sampler.upscaler_name),
        memory=_memory_key(sampler, title),
        drawing=sampler.is_quick,
        texts=sampler.reads_texts,
        live=None,
    )


def _memory_key(sampler: Sampler, title: str) -> str:
    """Return the key of masks and options in a browser: each model and its classes have their own."""
    labels = sampler.labels
    model = [title, *sampler.size, labels.ignore_index, *labels.names]
    return hashlib.sha256(json.dumps(model).encode()).hexdigest()[:16]


# Options are kept by the browser for this tab, unless it forbids that; %s is `_memory_key`.
_REMEMBER_OPTIONS = """(...values) => {
    try { sessionStorage.setItem('options %s', JSON.stringify(values)); } catch {}
}"""
_RESTORE_OPTIONS = """(...values) => {
    let kept = [];
    try { kept = JSON.parse(sessionStorage.getItem('options %s') ?? '[]'); } catch {}
    return kept.length === values.length ? kept : values;
}"""
# The canvas names its visitor in what it keeps, which is there before its value is.
_VISITOR = """async () => {
    try { return [JSON.parse(sessionStorage.getItem('painter %s') ?? '{}')]; } catch { return [{}]; }
}"""


def _send_to_canvas(event: str) -> str:
    return f"() => document.querySelector('.painter').dispatchEvent(new Event('{event}'))"


def _uploads(limits: Limits, size: str, suggests: bool) -> list:
    """Add the buttons that load masks and photos."""
    with gr.Accordion("Load a mask or a photo", open=False):
        with gr.Row():
            buttons = [
                gr.UploadButton(text, type="binary", file_types=FILE_ENDINGS, size="sm")
                for text in ("Mask …", "Photo …", "The photo's mask …")
            ]
            suggest = gr.Button("Suggest the photo's mask", size="sm", visible=suggests, elem_id="suggest")
            accept = gr.Button("Take this as the photo's mask", size="sm", elem_id="accept")
            drop = gr.Button("Remove the photo", size="sm")
        clean = gr.Checkbox(False, label="Clean soft edges and JPEG noise of masks")
        gr.Markdown(
            f"PNG, JPEG, WebP or BMP, {limits.max_upload_mb:g} MB and {limits.max_size} pixels per side at most; "
            f"center-cropped and resized to {size}. Masks are class ids, palette images or in the colours above."
        )
    for button in buttons:
        _take_uploads_only(button)
    return [*buttons, suggest, accept, drop, clean]


def _take_uploads_only(button: gr.UploadButton) -> None:
    """Refuse anything but uploaded files: gradio would fetch a URL given instead of one."""
    keep = button.async_move_resource_to_block_cache

    async def keep_upload(path):
        if is_http_url_like(path):
            text = "files are uploaded here, not fetched from elsewhere."
            raise gr.Error(text, TOAST_SECONDS, print_exception=False)
        return await keep(path)

    button.async_move_resource_to_block_cache = keep_upload  # type: ignore[method-assign]


def _options(sampler: Sampler, seed: int) -> tuple[list, gr.Button]:
    """Add what a visitor can choose; in the order in which `Handlers.generate` takes it, and a button for the seed."""
    limits, (recommended_steps, recommended_guidance) = sampler.limits, sampler.recommended
    mode = gr.Radio(MODES, value=NOISE, label="What to generate", elem_id="mode")
    strength = gr.Slider(0, 1, 0.5, step=0.05, label="Strength: 0 keeps the photo, 1 keeps nothing of it")
    attributes = [gr.Dropdown([ANY, *values], value=ANY, label=name) for name, values in sampler.attributes.items()]
    num_images = gr.Slider(1, limits.max_images, min(4, limits.max_images), step=1, label="Samples")
    with gr.Row(elem_id="seed"):
        seed_field = gr.Number(seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)
        random_seed = gr.Button("Random seed", size="md", scale=0, min_width=140)
    with gr.Accordion("Steps, guidance, scheduler", open=False):
        steps = gr.Slider(1, limits.max_steps, recommended_steps, step=1, label="Steps")
        guidance = gr.Slider(
            0, MAX_GUIDANCE, recommended_guidance, step=0.25, label="Guidance",
            info="how strongly the mask is followed; 1 is no guidance, at half the cost",
        )  # fmt: skip
        attribute_guidance = gr.Number(
            None, label="Separate guidance of the attributes (empty: as the mask)", minimum=0, maximum=MAX_GUIDANCE,
            visible=bool(attributes),
        )  # fmt: skip
        scheduler = gr.Dropdown(
            [OWN_SCHEDULER, *sampler.schedulers], value=OWN_SCHEDULER, label="Scheduler", allow_custom_value=True,
            info="of diffusers; options after a colon: CLASS:OPTION=VALUE",
        )  # fmt: skip
    options = [mode, scheduler, steps, guidance, seed_field, num_images, strength, attribute_guidance, *attributes]
    return options, random_seed


def serve(
    page: gr.Blocks,
    limits: Limits,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    allowed_hosts: Sequence[str] = (),
    in_browser: bool = False,
    in_background: bool = False,
) -> str:
    """Serve a page at a port (None: a free one) until Ctrl-C, or, `in_background`, until `page.close()`.

    It answers to addresses, the names of this machine, and `allowed_hosts`.
    """
    host = without_brackets(host)
    # fonts that every system has: those of gradio's own themes would be downloaded
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(**COLORS)
    _, address, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,  # as in its URL
        server_port=port,
        inbrowser=in_browser,
        prevent_thread_lock=in_background,
        quiet=in_background,
        share=False,
        show_error=False,  # internal errors are not for visitors; invalid input is reported all the same
        max_file_size=int(limits.max_upload_mb * 1e6),
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=["api"],
        app_kwargs={"middleware": [Middleware(OwnHosts, names=(host, *allowed_hosts))]},
        theme=theme,
        css=CSS,
    )
    return address
