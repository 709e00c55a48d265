"""Write the statistics of a dataset's masks; see `StatsSettings` for the command."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from semseg_diffusers.data.dataset import PairDataset, column_options, load_pairs
from semseg_diffusers.masks.settings import StatsSettings
from semseg_diffusers.masks.statistics.counts import (
    Group,
    MaskStatistics,
    class_figures,
    collect_statistics,
    heat_maps,
    unknown_share,
)
from semseg_diffusers.masks.statistics.figure import LOWEST, heat_image, plot_statistics
from semseg_diffusers.masks.statistics.underrepresented import (
    RARE_SHARE,
    RULES,
    UnderrepresentedClass,
    underrepresented_classes,
)
from semseg_diffusers.reports.render import percent, write_page
from semseg_diffusers.utils.files import package_version, write_text, written_beside
from semseg_diffusers.utils.images import save_png


TICKS = (LOWEST, 0.01, 1.0)  # shares labelled above the bars of the page
MAX_SIZES = 5  # sizes of masks that the page lists


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
        "versions": {"semseg_diffusers": package_version(), "numpy": np.__version__},
    }


def write_statistics_page(
    path: Path, statistics: MaskStatistics, underrepresented: list[UnderrepresentedClass], name: str
) -> None:
    """Write the page: underrepresented classes with their reasons, then all statistics; `name` is for the title."""
    labels = statistics.labels
    by_share = sorted(enumerate(class_figures(statistics)), key=lambda item: -item[1].pixel_share)
    conditions: dict[str, list[dict]] = {attribute: [] for attribute in statistics.attributes}
    for group in statistics.groups:
        figures = {row.name: row for row in class_figures(statistics, group)}
        masks = int(statistics.members(group).sum())
        conditions[group[0]].append({"value": group[1], "masks": masks, "figures": figures})
    lead = f"{len(statistics.pixels)} masks, {labels.num_classes} classes. "
    if underrepresented:
        names = ", ".join(entry.name for entry in underrepresented)
        lead += f"A model trained on them is likely to be weak on {names}."
    else:
        lead += "By the rules below no class is too rare, too small or too one-sided to be learned."
    heat = heat_maps(statistics)
    sizes = [f"{height} x {width} ({count} masks)" for (height, width), count in sorted(statistics.frames.items())]
    if len(sizes) > MAX_SIZES:
        sizes[MAX_SIZES:] = [f"and {len(sizes) - MAX_SIZES} more"]
    rows, columns = heat.shape[1:]
    write_page(
        path,
        "statistics.html.j2",
        name=name,
        lead=lead,
        version=package_version(),
        underrepresented=underrepresented,
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
    groups: dict[str, Group | None] = {"heat": None} | {
        f"heat:{key}={value}": (key, value) for key, value in statistics.groups
    }
    arrays: dict[str, Any] = {key: heat_maps(statistics, group).astype(np.float32) for key, group in groups.items()}
    with written_beside(output / "stats.npz") as temporary, temporary.open("wb") as file:
        # heat maps (C, rows, columns), pixels (N, C + 1), stems (N,)
        np.savez_compressed(file, pixels=statistics.pixels, stems=np.array(pairs.stems), **arrays)
    name = f"{Path(settings.dataset).name} ({settings.split})"
    save_png(output / "stats.png", plot_statistics(statistics, describe(statistics, name)))
    write_statistics_page(output / "index.html", statistics, underrepresented, name)
    sys.stdout.write(f"{describe(statistics, name)}\n\n{_table(statistics)}\n\n")
    for entry in underrepresented:
        reasons = "; ".join(f"{reason.rule}: {reason.text}" for reason in entry.reasons)
        sys.stdout.write(f"underrepresented: {entry.name} ({reasons})\n")
    sys.stdout.write(f"written: {settings.output}/index.html, stats.json, stats.npz, stats.png\n")
