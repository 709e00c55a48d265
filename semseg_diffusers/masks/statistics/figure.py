"""The figure of `stats`: bars and a heat map of positions for each class.

The bars correspond to figure 9 of the paper, on a logarithmic scale, so that rare classes are visible.
"""

from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.statistics.counts import ClassFigures, MaskStatistics, class_figures, heat_maps
from semseg_diffusers.masks.statistics.underrepresented import RARE_SHARE
from semseg_diffusers.reports.plots import figure_image, new_figure
from semseg_diffusers.reports.render import percent, rgb_hex


LOWEST = 1e-5  # left end of the logarithmic scale: a share of the labelled pixels
WIDTH, ROW, HEADER, HEAT_HEADER = 1320, 30, 160, 32  # pixels
HEAT_COLUMNS = 6
HEAT_COLORS = "Blues"  # of matplotlib, light to dark in one hue, so that it also reads in grey
MAX_NAME = 22  # letters
NO_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind text that lines would cross
RED, GREY, GRID = "#c81e1e", "#6e6e74", "#d6d6dc"


def plot_statistics(statistics: MaskStatistics, title: str) -> Image.Image:
    """Plot bars of pixel and image shares, numbers of objects, and a heat map of each class, `WIDTH` pixels wide."""
    labels = statistics.labels
    figures = class_figures(statistics)
    order = sorted(range(labels.num_classes), key=lambda index: -figures[index].pixel_share)
    heat = heat_maps(statistics)
    heat_rows = -(-len(order) // HEAT_COLUMNS)
    heat_height = HEAT_HEADER + WIDTH // HEAT_COLUMNS * heat.shape[1] // heat.shape[2]
    heights = (ROW * len(order) + HEADER, heat_height * heat_rows + ROW)
    figure = new_figure((WIDTH, sum(heights)), dpi=100, w_pad=0.12, h_pad=0.08, wspace=0.02)
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).flat
    top.suptitle(title, x=0.01, ha="left", fontsize=17)
    pixels, images, numbers = top.subplots(1, 3, sharey=True, width_ratios=(4.8, 3, 3.8))
    _plot_bars(pixels, images, labels, [figures[index] for index in order], order)
    _write_numbers(numbers, [figures[index] for index in order])
    bottom.suptitle(
        "Where in the frame: share of the class in each cell, from 0 (light) to the number above the map (dark)",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    for position, axes in enumerate(bottom.subplots(heat_rows, HEAT_COLUMNS, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        if position >= len(order):
            axes.set_axis_off()
            continue
        index = order[position]
        most = percent(float(heat[index].max())) if figures[index].pixels else "never seen"
        axes.imshow(heat[index], cmap=HEAT_COLORS, vmin=0, vmax=max(heat[index].max(), 1e-12), aspect="equal")
        axes.set_title(_shorten(labels.names[index]), loc="left", fontsize=10, parse_math=False)
        axes.set_title(most, loc="right", fontsize=9, color=GREY)
        axes.spines[:].set_color(rgb_hex(labels.colors[index]))
        axes.spines["top"].set(linewidth=5, capstyle="butt")
    return figure_image(figure)


def heat_image(heat: np.ndarray) -> Image.Image:
    """Return a heat map (rows, columns) as a P-mode image, one pixel per cell, the largest value the darkest."""
    from matplotlib import colormaps

    image = Image.fromarray((255 * heat / max(heat.max(), 1e-12)).round().astype(np.uint8))
    image.putpalette(colormaps[HEAT_COLORS](np.arange(256), bytes=True)[:, :3].tobytes())
    return image


def _plot_bars(pixels: Any, images: Any, labels: LabelSet, figures: list[ClassFigures], order: list[int]) -> None:
    rows = np.arange(len(figures))
    style = {"height": 0.55, "color": [rgb_hex(labels.colors[index]) for index in order], "edgecolor": GREY}
    for axes, name in ((pixels, "pixel_share"), (images, "image_share")):
        shares = [getattr(row, name) for row in figures]
        bars = axes.barh(rows, np.maximum(shares, LOWEST), **style)
        axes.bar_label(bars, [percent(share) for share in shares], padding=5, fontsize=9, bbox=NO_LINES)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    pixels.set_title("share of the labelled pixels", loc="left", fontsize=11)
    pixels.set(xscale="log", xlim=(LOWEST, 4))
    powers = range(-5, 1)
    pixels.set_xticks([10.0**power for power in powers], [f"{10.0 ** (power + 2):g} %" for power in powers])
    pixels.minorticks_off()
    pixels.axvline(RARE_SHARE, color=RED, linestyle="--", linewidth=1)
    rare = f"rare: below {percent(RARE_SHARE)}"
    pixels.text(RARE_SHARE, len(figures), rare, color=RED, fontsize=9, ha="center", bbox=NO_LINES)
    pixels.set_yticks(rows, [_shorten(row.name) for row in figures], parse_math=False)
    pixels.set_ylim(len(figures) + 0.1, -0.6)
    images.set_title("share of the images", loc="left", fontsize=11)
    images.set_xlim(0, 1.25)
    images.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])


def _write_numbers(axes: Any, figures: list[ClassFigures]) -> None:
    """Write the numbers of each class beside its bars."""
    axes.set_axis_off()
    titles = ("images", "objects", "objects\nan image", "median\nobject", "typical\nobject")
    for column, title in enumerate(titles, start=1):
        axes.text(column / len(titles), -0.7, title, ha="right", va="bottom", fontsize=10)
    for row, of_class in enumerate(figures):
        texts = [f"{of_class.images}", f"{of_class.objects}", f"{of_class.objects_per_image:.1f}"]
        texts += [f"{of_class.median_object:.0f} px", f"{of_class.typical_object:.0f} px"]
        for column, text in enumerate(texts, start=1):
            axes.text(column / len(titles), row, text, ha="right", va="center", fontsize=9)
    note = "typical object: half of the pixels of the class are in objects at least this large"
    axes.text(1, len(figures), note, ha="right", color=GREY, fontsize=9)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
