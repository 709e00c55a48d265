"""The report of `enrich`: statistics of the dataset next to those of the new masks, as numbers, images and a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.masks.statistics.counts import ClassFigures, MaskStatistics, class_figures, heat_maps
from semseg_diffusers.masks.statistics.figure import heat_image, plot_statistics
from semseg_diffusers.reports.render import BarRow, write_page
from semseg_diffusers.utils.images import image_grid


EXAMPLES = 12  # pairs of masks on the page
SHEET_COLUMNS = 4  # pairs in a row of the contact sheet


@dataclass(frozen=True)
class Reached:
    """A target and what was reached."""

    name: str
    wished: float  # factor of the share in the dataset; codespell:ignore
    reached: float  # the same, of the new masks
    share_before: float  # of the labelled pixels
    share_after: float
    objects_before: float  # connected regions per mask
    objects_after: float
    added: int  # objects added
    refused: dict[str, int]  # attempts refused by each rule


def compare_targets(
    factors: Mapping[int, float], before: MaskStatistics, after: MaskStatistics, rows: Sequence[dict]
) -> list[Reached]:
    """Return what was reached of each target.

    Args:
        factors: class id -> target factor of its share of the pixels.
        before, after: statistics of the dataset and of the new masks.
        rows: lines of the manifest.
    """
    old, new = class_figures(before), class_figures(after)
    found = []
    for class_id, factor in factors.items():
        name = before.labels.names[class_id]
        refused: Counter = Counter()
        for row in rows:
            refused.update(row["refused"].get(name, {}))
        found.append(
            Reached(
                name=name,
                wished=factor,  # codespell:ignore
                reached=new[class_id].pixel_share / old[class_id].pixel_share,
                share_before=old[class_id].pixel_share,
                share_after=new[class_id].pixel_share,
                objects_before=_objects(old[class_id], before),
                objects_after=_objects(new[class_id], after),
                added=sum(entry["class"] == name for row in rows for entry in row["added"]),
                refused=dict(refused.most_common()),
            )
        )
    return found


def _objects(figures: ClassFigures, statistics: MaskStatistics) -> float:
    return figures.objects / len(statistics.pixels)


def contact_sheet(sheet: list[list[Image.Image]]) -> Image.Image:
    """Return pairs of base and new mask, side by side."""
    starts = range(0, len(sheet), SHEET_COLUMNS)
    rows = [[image for pair in sheet[start : start + SHEET_COLUMNS] for image in pair] for start in starts]
    if not rows:
        return Image.new("RGB", (8, 8), "white")
    return image_grid(rows, headers=["before", "after"] * (len(rows[0]) // 2), cell_size=160)


def both_statistics(before: MaskStatistics, after: MaskStatistics, name: str) -> Image.Image:
    """Return the statistics of the dataset above those of the new masks."""
    parts = (plot_statistics(before, f"before: {name}"), plot_statistics(after, "after: the new masks"))
    return Image.fromarray(np.vstack([np.asarray(part) for part in parts]))


def write_enrich_page(
    path: Path,
    record: dict[str, Any],
    reached: list[Reached],
    before: MaskStatistics,
    after: MaskStatistics,
    pairs: list[tuple[dict, list[Image.Image]]],
) -> None:
    """Write the page `statistics.html`: targets, all classes, pairs of masks, refusals.

    Args:
        path: the HTML file.
        record: content of `enrich.json`.
        reached: from `compare_targets`.
        before, after: statistics of the dataset and of the new masks.
        pairs: lines of the manifest, each with the mask before and after.
    """
    heat_before, heat_after = heat_maps(before), heat_maps(after)
    ids = [before.labels.label2id[each.name] for each in reached]
    write_page(
        path,
        "enrich.html.j2",
        record=record,
        reached=reached,
        classes=[
            BarRow(
                old.name, [100 * old.pixel_share, 100 * new.pixel_share], [_objects(old, before), _objects(new, after)]
            )
            for old, new in zip(class_figures(before), class_figures(after), strict=True)
        ],
        examples=[
            (_caption(row), dict(zip(("before", "after"), masks, strict=True))) for row, masks in pairs[:EXAMPLES]
        ],
        heat_maps=[
            (each.name, {"before": heat_image(heat_before[i]), "after": heat_image(heat_after[i])})
            for each, i in zip(reached, ids, strict=True)
        ],
        refusals=[f"{each.name}: {why}, {count} times" for each in reached for why, count in each.refused.items()],
        settings={key: record[key] for key in record if key not in ("wishes", "sizes")},  # codespell:ignore
    )


def _caption(row: dict[str, Any]) -> str:
    """Return the name of a mask and what was added to it."""
    counts = Counter(entry["class"] for entry in row["added"])
    return f"{row['base']}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
