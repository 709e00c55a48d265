"""Plots by matplotlib: lines as inline SVG in the colours of the page, and the curve of a segmenter's training.

matplotlib is imported inside the functions that plot, without pyplot and its global state.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from semseg_diffusers.reports.render import is_finite, number


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Colours in the SVG that become variables of style.css, which differ in light and in dark mode.
SERIES = [f"#00000{index}" for index in range(1, 7)]
GRID = "#000007"
VARIABLES = {GRID: "--line", **{color: f"--s{index}" for index, color in enumerate(SERIES)}}
DASHES = ("-", "--", ":")  # the seventh series repeats the first colour, dashed
SIZE = (420, 190)  # units of the SVG; its text is readable from 360 to 580 pixels of width
LOSS_COLOR, SCORE_COLOR = "#1f77b4", "#d65414"


class LegendEntry(NamedTuple):
    """A series in the legend of a plot."""

    name: str
    color: int
    dash: int
    last: str  # its last value


class Plot(NamedTuple):
    """A plot for a page."""

    svg: Markup
    text: str  # the same in words
    legend: list[LegendEntry]


def line_plot(
    lines: Mapping[str, Sequence[tuple[float, float | None]]], x_name: str, y_name: str, logarithmic: bool = False
) -> Plot:
    """Plot points (x, y), x rising, one line per name; None or a value that is not finite interrupts its line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = [y for points in lines.values() for _, y in points if is_finite(y)]
    if not values:
        raise ValueError(f"a plot needs at least one finite point; got none in {', '.join(lines) or 'no lines'}")
    if logarithmic and min(values) <= 0:
        raise ValueError(f"a logarithmic axis shows values above 0; got {min(values)}")
    figure = new_figure(SIZE, dpi=72)
    axes = figure.add_subplot()
    legend, texts = [], []
    for index, (name, points) in enumerate(lines.items()):
        color, dash = index % len(SERIES), index // len(SERIES) % len(DASHES)
        x, y = (np.array([point[axis] if point[axis] is not None else np.nan for point in points]) for axis in (0, 1))
        known = np.isfinite(y)
        y = np.where(known, y, np.nan)
        alone = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]  # a line through them has no length
        axes.plot(x, y, color=SERIES[color], linestyle=DASHES[dash], linewidth=1.4, clip_on=False)
        for at in np.flatnonzero(alone):
            dot = [x[at], x[at]], [y[at], y[at]]
            axes.plot(*dot, color=SERIES[color], linewidth=4, solid_capstyle="round", clip_on=False)
        last = ""
        if known.any():
            x, y = x[known], y[known]
            first, last = (f"{number(float(y[end]))} at {x[end]:,.10g}" for end in (0, -1))
            least, most = number(float(y.min())), number(float(y.max()))
            texts.append(f"{name} from {first} to {last}, least {least}, most {most}")
        legend.append(LegendEntry(name, color, dash, last))
    axes.set_xlabel(x_name, loc="right", parse_math=False)
    axes.set_title(y_name, loc="left", fontsize="medium", parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if logarithmic:
        axes.set_yscale("log")
        subs = (1, 2, 5) if max(values) / min(values) < 300 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    text = f"{y_name} over {x_name}: {'; '.join(texts)}."
    return Plot(_svg(figure), text, legend)


def training_curve(log: Sequence[Mapping[str, Any]], best_step: int | None = None, title: str = "") -> Image.Image:
    """Plot loss and, if there is any, validation score of a segmenter's training, as an RGB image.

    Args:
        log: lines with `step` and `loss`, and lines with `step` and `mean_iou` (0 to 1).
        best_step: the step whose weights are kept; marked.
        title: headline.
    """
    figure = new_figure((760, 360), dpi=100)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", parse_math=False)
    axes.set_xlabel("steps")
    axes.grid(axis="y", color="#e1e1e1")
    _curve(axes, log, "loss", "training loss", LOSS_COLOR)
    scores = {line["step"]: line["mean_iou"] for line in log if "mean_iou" in line}
    if scores:
        right = axes.twinx()
        _curve(right, log, "mean_iou", "validation mean IoU", SCORE_COLOR, marker="o", markersize=4)
        if best_step is not None and best_step in scores:
            at = (best_step, scores[best_step])
            right.plot(*at, "o", color=SCORE_COLOR, markersize=10, fillstyle="none")
            side = "right" if best_step > max(scores) / 2 else "left"
            text, below = f"kept: {at[1]:.3f}", (0, -18)
            right.annotate(text, at, below, textcoords="offset points", color=SCORE_COLOR, ha=side)
    return figure_image(figure)


def _curve(axes: Any, log: Sequence[Mapping[str, Any]], key: str, name: str, color: str, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in log if key in line]
    axes.plot(*zip(*points, strict=True) if points else ([], []), color=color, **style)
    axes.set_ylim(0, 1.1 * max((value for _, value in points), default=1.0) or 1.0)
    axes.set_ylabel(name, color=color)
    axes.tick_params(axis="y", colors=color, length=0)
    axes.spines[:].set_visible(False)


def figure_image(figure: "Figure") -> Image.Image:
    """Return a figure as an RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def new_figure(size: tuple[int, int], dpi: int, **layout: Any) -> "Figure":
    """Return an empty figure of width and height in pixels; `layout` is passed to `ConstrainedLayoutEngine`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure((size[0] / dpi, size[1] / dpi), dpi=dpi, layout=ConstrainedLayoutEngine(**layout))


def _svg(figure: "Figure") -> Markup:
    """Return a figure as an SVG element with real text and the colours of the page, the same bytes each time."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "semseg-diffusers"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # neither ids, which would be the same in two plots of a page, nor styles, which would reach the whole page
    svg = re.sub(r"<(metadata|defs)>.*?</\1>|(?<=<g) id=\"[^\"]*\"| clip-path=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*;| xmlns(:xlink)?=\"[^\"]*\"", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup(svg)
