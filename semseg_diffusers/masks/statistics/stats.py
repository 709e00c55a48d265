"""Write the statistics of a dataset's masks; see `StatsSettings` for the command."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from semseg_diffusers.data.dataset import PairDataset, column_options, load_pairs
from semseg_diffusers.masks.settings import StatsSettings
from semseg_diffusers.masks.statistics.counts import (
    MaskStatistics,
    class_figures,
    collect_statistics,
    heat_maps,
    unknown_share,
)
from semseg_diffusers.masks.statistics.figure import draw_statistics
from semseg_diffusers.masks.statistics.page import statistics_page
from semseg_diffusers.masks.statistics.underrepresented import RULES, UnderrepresentedClass, underrepresented_classes
from semseg_diffusers.reports.html import write_page
from semseg_diffusers.utils.files import package_version, write_text, written_beside
from semseg_diffusers.utils.images import save_png


def statistics_record(
    statistics: MaskStatistics, underrepresented: list[UnderrepresentedClass], dataset: str, split: str
) -> dict:
    """Return all statistics as JSON values: of the full split and of each group."""
    labels = statistics.labels
    rows, columns = statistics.cells[None].shape[1:]
    return {
        "dataset": dataset,
        "split": split,
        "num_masks": len(statistics.pixels),
        "sizes": [{"height": h, "width": w, "masks": n} for (h, w), n in sorted(statistics.frames.items())],
        "unknown_share": unknown_share(statistics),
        "classes": _classes(statistics, None),
        "weak_classes": [dataclasses.asdict(entry) for entry in underrepresented],
        "rules": RULES,
        "groups": [
            {
                "attribute": group[0],
                "value": group[1],
                "num_masks": int(statistics.members(group).sum()),
                "unknown_share": unknown_share(statistics, group),
                "classes": _classes(statistics, group),
            }
            for group in statistics.groups
        ],
        "heat_maps": {"file": "stats.npz", "rows": rows, "columns": columns},
        "labels": labels.to_config(),
        "versions": {"semseg_diffusers": package_version(), "numpy": np.__version__},
    }


def _classes(statistics: MaskStatistics, group: tuple[str, str] | None) -> list[dict]:
    return [{"id": i, **dataclasses.asdict(row)} for i, row in enumerate(class_figures(statistics, group))]


def save_arrays(path: Path, statistics: MaskStatistics, stems: list[str]) -> None:
    """Write `stats.npz`: `heat` and `heat:ATTRIBUTE=VALUE` (C, rows, columns), `pixels` (N, C + 1), `stems` (N,)."""
    arrays = {"pixels": statistics.pixels, "stems": np.array(stems), "heat": heat_maps(statistics)}
    arrays |= {f"heat:{name}={value}": heat_maps(statistics, (name, value)) for name, value in statistics.groups}
    arrays = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
    with written_beside(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


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
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def run(settings: StatsSettings) -> None:
    pairs: PairDataset = load_pairs(settings.dataset, settings.split, **column_options(settings))
    statistics = collect_statistics(
        pairs.mask, len(pairs), pairs.labels, pairs.attributes, num_workers=settings.num_workers, progress=True
    )
    underrepresented = underrepresented_classes(statistics)
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    record = statistics_record(statistics, underrepresented, settings.dataset, settings.split)
    write_text(output / "stats.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    save_arrays(output / "stats.npz", statistics, pairs.stems)
    name = f"{Path(settings.dataset).name} ({settings.split})"
    save_png(output / "stats.png", draw_statistics(statistics, describe(statistics, name)))
    write_page(output / "index.html", statistics_page(statistics, underrepresented, name))
    sys.stdout.write(f"{describe(statistics, name)}\n\n{_table(statistics)}\n\n")
    for entry in underrepresented:
        reasons = "; ".join(f"{reason.rule}: {reason.text}" for reason in entry.reasons)
        sys.stdout.write(f"underrepresented: {entry.name} ({reasons})\n")
    sys.stdout.write(f"written: {settings.output}/index.html, stats.json, stats.npz, stats.png\n")
