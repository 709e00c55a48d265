"""The canvas as a component of the page: an exact one, since gradio's own blends edges and names no colours. Page,
style and script lie in `canvas/`; its value is the mask as `mask_runs` packs it."""

from importlib import resources

import gradio as gr
import numpy as np

from semseg_diffusers.app.mask_runs import pack_mask
from semseg_diffusers.app.shapes import Shape
from semseg_diffusers.data.labels import LabelSet


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
