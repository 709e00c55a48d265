"""Paint masks in the browser, and see the photos that a model draws from them.

  semseg-diffusers app --model runs/camvid128                     # http://127.0.0.1:7860
  semseg-diffusers app --model runs/camvid128 --masks data/camvid128/val/masks --output painted

What is added to the data set lies in --output as `generate` writes it: `check`, `filter`, `merge` and `train` take it.
Nobody but this machine reaches the page, unless --host says otherwise.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import gradio as gr
import torch

from semseg_diffusers.app.collection import Collection
from semseg_diffusers.app.sampler import Painter
from semseg_diffusers.app.shapes import cut_shapes, drawn_shapes, folder_masks, plain_street, toy_masks
from semseg_diffusers.app.uploads import MOST_SEED, Limits, check_whole
from semseg_diffusers.generation.model import DTYPES, load_model
from semseg_diffusers.utils.distributed import check_device_available
from semseg_diffusers.utils.files import terminate_as_exception


CSS = """
.gradio-container { max-width: min(1360px, 100%) !important; margin: 0 auto; }
#samples .grid-wrap { height: auto !important; max-height: none !important; }
#samples .caption-label { max-width: 100%; font-size: 11px; }
footer { opacity: 0.6; }
"""


def serve(
    page: gr.Blocks,
    limits: Limits,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    in_browser: bool = False,
    in_background: bool = False,
) -> str:
    """Serve a page of `build_page`.

    Args:
        page (`gr.Blocks`)
        limits (`Limits`)
        host, port: where to; None takes a port that is free.
        in_browser (`bool`): open it in a browser of this machine.
        in_background (`bool`): come back; `page.close()` ends it. Else this call lasts until Ctrl-C.

    Returns:
        `str`: the address.

    Raises:
        OSError: the port is taken.
    """
    # Fonts that every system has: gradio's own themes name fonts to load.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=in_browser,
        prevent_thread_lock=in_background,
        quiet=in_background,
        share=False,
        show_error=False,  # what went wrong inside is not for visitors; refusals are shown all the same
        max_file_size=int(limits.max_upload_mb * 1e6),
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        footer_links=["api"],
        theme=theme,
        css=CSS,
    )
    return address


if importlib.util.find_spec("gradio") is None:  # imported in `run`, where its folder is known
    raise ModuleNotFoundError("there is no gradio", name="gradio")

NO_OUTPUT = "off"
HELP = {
    "max_size": "longer side of an uploaded picture, in pixels",
    "max_upload_mb": "size of an uploaded file, in MB",
    "max_steps": "sampling steps",
    "max_images": "samples at a time",
    "queue_size": "requests that may wait",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder of a training run, or a Hub repo id")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument("--variant", help="weights beside the model's own, as diffusers calls them")
    parser.add_argument(
        "--output",
        default="painted",
        metavar=f"DIR|{NO_OUTPUT}",
        help=f"data set that the page may add to (default %(default)s; {NO_OUTPUT}: none)",
    )
    parser.add_argument("--masks", metavar="DIR", help="masks to start from, and to cut things from")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default %(default)s")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    for field in fields(Limits):
        parser.add_argument(
            f"--{field.name}", type=field.type, default=field.default, help=f"{HELP[field.name]} (default %(default)s)"
        )
    parser.add_argument("--seed", type=int, default=0, help="what the page begins with (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: GPU if any")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default %(default)s")


def run(args: argparse.Namespace) -> None:
    """Load the model, and serve the page until the process is ended."""
    seed = check_whole("--seed", args.seed, 0, MOST_SEED)
    limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
    check_device_available(args.device)
    pipeline = load_model(args.model, args.revision, None, DTYPES[args.dtype], args.device, variant=args.variant)
    painter = Painter(pipeline, limits)
    collection = None
    if args.output != NO_OUTPUT:
        collection = Collection(Path(args.output), painter.labels, painter.size)
    masks = {} if args.masks is None else folder_masks(args.masks, painter.labels, painter.size)
    examples = {"plain street": plain_street(painter.labels, painter.size)}
    examples |= masks or toy_masks(painter.labels, painter.size)
    shapes = drawn_shapes(painter.labels) + cut_shapes(list(masks.values()), painter.labels)
    with terminate_as_exception(), tempfile.TemporaryDirectory(prefix="semseg-app-") as folder:
        # uploads and what is shown, of this app alone; gradio reads it while it is imported
        os.environ["GRADIO_TEMP_DIR"] = folder
        from semseg_diffusers.app.app import serve
        from semseg_diffusers.app.page import build_page

        title = Path(args.model).name if Path(args.model).is_dir() else args.model
        page = build_page(painter, collection, examples, shapes, title, seed)
        sys.stdout.write(f"{title} on {args.device}; pairs go to {args.output}. Ctrl-C ends it.\n")
        serve(page, limits, args.host, args.port, in_browser=args.open)
