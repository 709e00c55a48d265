"""The page of `semseg-diffusers stats`: underrepresented classes with their reasons, then all statistics.

The bars correspond to figure 9 of the paper.
"""

from pathlib import Path

from semseg_diffusers.masks.statistics.counts import MaskStatistics, class_figures, heat_maps, unknown_share
from semseg_diffusers.masks.statistics.figure import LOWEST, heat_image, log_position
from semseg_diffusers.masks.statistics.underrepresented import RARE_SHARE, RULES, UnderrepresentedClass
from semseg_diffusers.reports.render import percent, write_page
from semseg_diffusers.utils.files import package_version


TICKS = (LOWEST, 0.01, 1.0)  # shares labelled above the bars
MAX_SIZES = 5  # sizes of masks that are listed


def write_statistics_page(
    path: Path, statistics: MaskStatistics, underrepresented: list[UnderrepresentedClass], name: str
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        statistics: from `collect_statistics`.
        underrepresented: from `underrepresented_classes`.
        name: dataset and split, for the title.
    """
    labels = statistics.labels
    figures = class_figures(statistics)
    order = sorted(range(labels.num_classes), key=lambda index: -figures[index].pixel_share)
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
        classes=[(figures[index], _percent_position(figures[index].pixel_share)) for index in order],
        ticks=[(_percent_position(share), f"{100 * share:g} %") for share in TICKS],
        rare_share=RARE_SHARE,
        rare_position=_percent_position(RARE_SHARE),
        heat_maps=[
            (labels.names[index], heat_image(heat[index]), percent(float(heat[index].max())))
            for index in order
            if figures[index].pixels
        ],
        conditions=_conditions(statistics),
        counts={
            "masks": f"{len(statistics.pixels)}",
            "sizes": f"{', '.join(sizes)}, height x width",
            "unknown pixels": f"{percent(unknown_share(statistics))} of all; excluded from all other numbers",
            "cells of a heat map": f"{rows} x {columns}",
        },
    )


def _percent_position(share: float) -> float:
    return round(100 * log_position(share), 2)


def _conditions(statistics: MaskStatistics) -> dict[str, list[dict]]:
    """Return the figures of each group by attribute."""
    conditions: dict[str, list[dict]] = {attribute: [] for attribute in statistics.attributes}
    for attribute, value in statistics.groups:
        figures = {row.name: row for row in class_figures(statistics, (attribute, value))}
        masks = int(statistics.members((attribute, value)).sum())
        conditions[attribute].append({"value": value, "masks": masks, "figures": figures})
    return conditions
