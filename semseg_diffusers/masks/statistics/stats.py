"""Write the statistics of a dataset's masks: numbers, a figure, a page; see `StatsSettings` for the command."""

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, column_options, load_pairs
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.settings import StatsSettings
from semseg_diffusers.masks.statistics.counts import (
    FEW_IMAGES,
    FEW_RULE,
    RARE_SHARE,
    RULES,
    ClassFigures,
    Group,
    MaskStatistics,
    UnderrepresentedClass,
    class_figures,
    collect_statistics,
    heat_maps,
    underrepresented_classes,
    unknown_share,
)
from semseg_diffusers.reports.plots import figure_image, new_figure
from semseg_diffusers.reports.render import percent, rgb_hex, write_page
from semseg_diffusers.utils.files import package_version, versions, write_text, written_beside
from semseg_diffusers.utils.images import save_png


# The figure: bars correspond to figure 9 of the paper, on a logarithmic scale, so that rare classes are visible.
LOWEST = 1e-5  # left end of the logarithmic scale: a share of the labelled pixels
WIDTH, ROW, HEADER, HEAT_HEADER = 1320, 30, 160, 32  # pixels
HEAT_COLUMNS = 6
HEAT_COLORS = "Blues"  # of matplotlib, light to dark in one hue, so that it also reads in grey
MAX_NAME = 22  # letters
NO_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind text that lines would cross
RED, GREY, GRID = "#c81e1e", "#6e6e74", "#d6d6dc"
# The page
TICKS = (LOWEST, 0.01, 1.0)  # shares labelled above the bars of the page
MAX_SIZES = 5  # sizes of masks that the page lists
SAMPLE_PAIRS, SAMPLE_WIDTH = 6, 320  # pairs that the page shows, and their largest width in pixels


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


def log_position(share: float) -> float:
    """Return where a share is on the logarithmic scale of the bars, in percent: 0 up to `LOWEST`, 100 for all."""
    return round(100 * (1 - math.log(max(share, LOWEST)) / math.log(LOWEST)), 2)


def statistics_record(
    statistics: MaskStatistics, underrepresented: list[UnderrepresentedClass], dataset: str, split: str
) -> dict:
    """Return all statistics as JSON values: of the full split and of each group."""

    def numbers(group: Group | None) -> dict:
        classes = enumerate(class_figures(statistics, group))
        return {
            "num_masks": int(statistics.members(group).sum()),
            "unknown_share": unknown_share(statistics, group),
            "classes": [{"id": i, **dataclasses.asdict(row)} for i, row in classes],
        }

    rows, columns = statistics.cells[None].shape[1:]
    return {
        "dataset": dataset,
        "split": split,
        **numbers(None),
        "sizes": [{"height": h, "width": w, "masks": n} for (h, w), n in sorted(statistics.frames.items())],
        "weak_classes": [dataclasses.asdict(entry) for entry in underrepresented],
        "rules": RULES,
        "groups": [{"attribute": group[0], "value": group[1], **numbers(group)} for group in statistics.groups],
        "heat_maps": {"file": "stats.npz", "rows": rows, "columns": columns},
        "labels": statistics.labels.to_config(),
        "versions": versions("numpy"),
    }


def write_statistics_page(
    path: Path,
    statistics: MaskStatistics,
    underrepresented: list[UnderrepresentedClass],
    name: str,
    samples: Sequence[tuple[str, dict[str, Image.Image]]] = (),
) -> None:
    """Write the page: underrepresented classes with their reasons, then all statistics; `name` is for the title."""
    labels = statistics.labels
    underrepresented, few = say_few_once(underrepresented, len(statistics.pixels))
    by_share = sorted(enumerate(class_figures(statistics)), key=lambda item: -item[1].pixel_share)
    conditions: dict[str, list[dict]] = {attribute: [] for attribute in statistics.attributes}
    for group in statistics.groups:
        figures = {row.name: row for row in class_figures(statistics, group)}
        masks = int(statistics.members(group).sum())
        conditions[group[0]].append({"value": group[1], "masks": masks, "figures": figures})
    heat = heat_maps(statistics)
    sizes = [f"{height} x {width} ({count} masks)" for (height, width), count in sorted(statistics.frames.items())]
    if len(sizes) > MAX_SIZES:
        sizes[MAX_SIZES:] = [f"and {len(sizes) - MAX_SIZES} more"]
    rows, columns = heat.shape[1:]
    write_page(
        path,
        "statistics.html.j2",
        name=name,
        num_masks=len(statistics.pixels),
        version=package_version(),
        underrepresented=underrepresented,
        few=few,
        samples=samples,
        rules=RULES,
        colors=dict(zip(labels.names, labels.colors, strict=True)),
        classes=[(row, log_position(row.pixel_share)) for _, row in by_share],
        ticks=[(log_position(share), f"{100 * share:g} %") for share in TICKS],
        rare_share=RARE_SHARE,
        rare_position=log_position(RARE_SHARE),
        heat_maps=[
            (row.name, heat_image(heat[index]), percent(float(heat[index].max())))
            for index, row in by_share
            if row.pixels
        ],
        conditions=conditions,
        counts={
            "masks": f"{len(statistics.pixels)}",
            "sizes": f"{', '.join(sizes)}, height x width",
            "unknown pixels": f"{percent(unknown_share(statistics))} of all; excluded from all other numbers",
            "cells of a heat map": f"{rows} x {columns}",
        },
    )


def describe(statistics: MaskStatistics, name: str) -> str:
    """Return a line on the split: number and sizes of the masks, share of unknown pixels."""
    sizes = [f"{height} x {width}" for height, width in sorted(statistics.frames)]
    of = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, {sizes[0]} to {sizes[-1]}"
    return f"{name}: {len(statistics.pixels)} masks of {of}, {unknown_share(statistics):.1%} unknown"


def _table(statistics: MaskStatistics) -> str:
    """Return the statistics as a text table, the most frequent class first."""
    lines = [("class", "pixels", "images", "objects", "median", "typical")]
    for row in sorted(class_figures(statistics), key=lambda row: -row.pixel_share):
        sizes = (f"{row.median_object:.0f} px", f"{row.typical_object:.0f} px")
        lines.append((row.name, f"{row.pixel_share:.3%}", f"{row.image_share:.1%}", f"{row.objects}", *sizes))
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    widths = [f"<{first}", *(f">{width}" for width in others)]
    return "\n".join("  ".join(map(format, line, widths)) for line in lines)


def say_few_once(
    underrepresented: list[UnderrepresentedClass], num_masks: int
) -> tuple[list[UnderrepresentedClass], str | None]:
    """Return classes without the reason that all have where there are few masks, and one sentence in its place."""
    if num_masks >= FEW_IMAGES:
        return underrepresented, None
    kept = []
    for entry in underrepresented:
        reasons = tuple(reason for reason in entry.reasons if reason.rule != FEW_RULE)
        kept += [dataclasses.replace(entry, reasons=reasons)] if reasons else []
    return kept, (
        f"{num_masks} masks: with fewer than {FEW_IMAGES}, every class is in few images. Start a model on them from a "
        "trained one (train --init_from)."
    )


def statistics_csv(statistics: MaskStatistics) -> str:
    """Return the figures of each class as a table for spreadsheets."""
    rows = [dataclasses.asdict(figures) for figures in class_figures(statistics)]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def sample_pairs(pairs: PairDataset) -> list[tuple[str, dict[str, Image.Image]]]:
    """Return some pairs for the page, evenly spaced: name, image and mask, reduced."""
    found = []
    for index in evenly_spaced(range(len(pairs)), SAMPLE_PAIRS):
        try:
            image, mask = pairs.photo(index), pairs.labels.decode(pairs.mask(index))
        except (OSError, ValueError):  # `check` says why; the statistics need no photos
            continue
        size = (SAMPLE_WIDTH, max(1, round(SAMPLE_WIDTH * image.height / image.width)))
        if size[0] < image.width:
            image, mask = image.resize(size, Image.Resampling.LANCZOS), mask.resize(size, Image.Resampling.NEAREST)
        found.append((pairs.stems[index], {"image": image, "mask": mask}))
    return found


def run(settings: StatsSettings) -> None:
    """Run `semseg-diffusers stats`."""
    pairs: PairDataset = load_pairs(settings.dataset, settings.split, **column_options(settings))
    statistics = collect_statistics(
        pairs.mask, len(pairs), pairs.labels, pairs.attributes, num_workers=settings.num_workers, progress=True
    )
    underrepresented = underrepresented_classes(statistics)
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    record = statistics_record(statistics, underrepresented, settings.dataset, settings.split)
    write_text(output / "stats.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(output / "stats.csv", statistics_csv(statistics))
    groups: dict[str, Group | None] = {"heat": None} | {
        f"heat:{key}={value}": (key, value) for key, value in statistics.groups
    }
    arrays: dict[str, Any] = {key: heat_maps(statistics, group).astype(np.float32) for key, group in groups.items()}
    with written_beside(output / "stats.npz") as temporary, temporary.open("wb") as file:
        # heat maps (C, rows, columns), pixels (N, C + 1), stems (N,)
        np.savez_compressed(file, pixels=statistics.pixels, stems=np.array(pairs.stems), **arrays)
    name = f"{Path(settings.dataset).name} ({settings.split})"
    save_png(output / "stats.png", plot_statistics(statistics, describe(statistics, name)))
    write_statistics_page(output / "index.html", statistics, underrepresented, name, sample_pairs(pairs))
    sys.stdout.write(f"{describe(statistics, name)}\n\n{_table(statistics)}\n\n")
    underrepresented, few = say_few_once(underrepresented, len(pairs))
    sys.stdout.write("" if few is None else f"{few}\n")
    for entry in underrepresented:
        reasons = "; ".join(f"{reason.rule}: {reason.text}" for reason in entry.reasons)
        sys.stdout.write(f"underrepresented: {entry.name} ({reasons})\n")
    sys.stdout.write(f"written: {settings.output}/index.html, stats.json, stats.csv, stats.npz, stats.png\n")
