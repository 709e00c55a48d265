"""The page of `semseg-diffusers stats`: underrepresented classes with their reasons, then all statistics.

Self-contained HTML; the bars correspond to figure 9 of the paper.
"""

from markupsafe import Markup

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.statistics.counts import (
    ClassFigures,
    Group,
    MaskStatistics,
    class_figures,
    heat_maps,
    unknown_share,
)
from semseg_diffusers.masks.statistics.figure import LOWEST, heat_image, log_position
from semseg_diffusers.masks.statistics.underrepresented import RARE_SHARE, RULES, UnderrepresentedClass
from semseg_diffusers.reports.figures import named_color, picture
from semseg_diffusers.reports.html import (
    NOTHING,
    Section,
    bullets,
    facts,
    page,
    paragraph,
    percent,
    pieces,
    section,
    subheading,
    table,
)
from semseg_diffusers.utils.files import package_version


TICKS = (LOWEST, 0.01, 1.0)  # shares labelled above the bars


def statistics_page(statistics: MaskStatistics, weak: list[UnderrepresentedClass], name: str) -> str:
    """Return the page.

    Args:
        statistics: from `collect_statistics`.
        weak: from `underrepresented_classes`.
        name: dataset and split, for the title.
    """
    labels = statistics.labels
    figures = class_figures(statistics)
    order = sorted(range(labels.num_classes), key=lambda index: -figures[index].pixel_share)
    lead = f"{len(statistics.pixels)} masks, {labels.num_classes} classes. "
    if weak:
        lead += f"A model trained on them is likely to be weak on {', '.join(entry.name for entry in weak)}."
    else:
        lead += "By the rules below no class is too rare, too small or too one-sided to be learned."
    sections = [
        _weak_section(labels, weak),
        _shares_section(labels, figures, order),
        _objects_section(labels, figures, order),
        _places_section(statistics, figures, order),
    ]
    if statistics.attributes:
        sections.append(_attributes_section(statistics, order))
    sections.append(_counted_section(statistics))
    return page(f"Masks of {name}", sections, lead, f"semseg-diffusers {package_version()}")


def _named(labels: LabelSet, index: int) -> Markup:
    named = named_color(labels.names[index], labels.colors[index])
    return Markup('<span style="white-space:nowrap">{}</span>').format(named)


def _weak_section(labels: LabelSet, weak: list[UnderrepresentedClass]) -> Section:
    blocks = []
    if weak:
        rows = []
        for entry in weak:
            reasons = [Markup("<b>{}</b>: {}").format(reason.rule, reason.text) for reason in entry.reasons]
            rows.append([_named(labels, labels.names.index(entry.name)), Markup("<br>").join(reasons)])
        blocks.append(table(["class", "why"], rows))
    else:
        blocks.append(paragraph("None falls under a rule."))
    blocks += [
        subheading("The rules"),
        bullets([Markup("<b>{}</b>: {}").format(rule, text) for rule, text in RULES.items()]),
        paragraph(
            "They are rules of thumb, not measurements of a model. More images that show such a class help most. "
            "Training with --class_balanced_sampling shows existing ones more often. At a higher resolution small "
            "objects have more pixels."
        ),
    ]
    return section("Underrepresented classes", *blocks)


def _shares_section(labels: LabelSet, figures: list[ClassFigures], order: list[int]) -> Section:
    rows = []
    for index in order:
        row = figures[index]
        shares = (100 * row.pixel_share, row.images, 100 * row.image_share)
        rows.append([_named(labels, index), _bar(row.pixel_share, labels.colors[index]), *shares])
    axis = pieces().axis([(100 * log_position(tick), f"{100 * tick:g} %") for tick in TICKS])
    caption = (
        "Share of the labelled pixels. The scale is logarithmic, so that rare classes are visible: each tenfold share "
        f"adds the same length. Classes that end left of the dashed line ({RARE_SHARE:.1%}) are rare."
    )
    headers = ["class", axis, "pixels, %", "images", "images, %"]
    return section("Pixels of each class", table(headers, rows, caption, drawing=1))


def _bar(share: float, color: tuple[int, int, int]) -> Markup:
    """Return a bar on the logarithmic scale, in the colour of its class."""
    return Markup(
        '<svg height="16" aria-hidden="true" focusable="false">'
        '<rect x="0" y="1" width="{:.2f}%" height="14" style="fill:#{:02x}{:02x}{:02x};stroke:var(--soft)"/>'
        '<line class="mark" x1="{:.2f}%" x2="{:.2f}%" y1="-4" y2="20"/></svg>'
    ).format(100 * log_position(share), *color, *[100 * log_position(RARE_SHARE)] * 2)


def _objects_section(labels: LabelSet, figures: list[ClassFigures], order: list[int]) -> Section:
    rows = []
    for index in order:
        row = figures[index]
        sizes = (round(row.median_object), round(row.typical_object)) if row.objects else (None, None)
        shares = [100 * row.typical_object_share, 100 * row.edge_share, 100 * row.spread]
        rows.append(
            [
                _named(labels, index),
                row.objects,
                row.objects_per_image if row.objects else None,
                *sizes,
                *(shares if row.objects else [None] * 3),
            ]
        )
    caption = (
        "An object is a region of one class whose pixels touch, corners included; so two cars side by side are one. "
        "Typical object: half of the pixels of the class are in objects at least this large; unlike the median, it is "
        "robust to specks. On an edge: pixels next to another class; near 100 % the class is a pixel or two wide. "
        "Spread: how much of the frame the class covers over all masks, 100 % if uniformly."
    )
    headers = [
        "class",
        "objects",
        "in an image",
        "median, px",
        "typical, px",
        "of frame, %",
        "on an edge, %",
        "spread, %",
    ]
    return section("Objects", table(headers, rows, caption))


def _places_section(statistics: MaskStatistics, figures: list[ClassFigures], order: list[int]) -> Section:
    cards = []
    heat = heat_maps(statistics)
    for index in order:
        if not figures[index].pixels:
            continue
        name, most = statistics.labels.names[index], percent(float(heat[index].max()))
        alt = f"positions of {name} in the frame, at most {most} in one cell"
        cards.append(
            (
                Markup("{}, up to {}").format(_named(statistics.labels, index), most),
                [picture(heat_image(heat[index]), alt)],
            )
        )
    text = "The share of the class among the labelled pixels, cell by cell; below, that of the darkest cell."
    return section("Where in the frame", paragraph(text), pieces().cards(cards))


def _attributes_section(statistics: MaskStatistics, order: list[int]) -> Section:
    blocks = [
        paragraph(
            "Share of the labelled pixels under each condition, and in brackets of its images. Heat maps and objects "
            "under each condition are in stats.npz and stats.json."
        )
    ]
    for attribute in statistics.attributes:
        groups: list[Group] = [group for group in statistics.groups if group[0] == attribute]
        of_groups = [class_figures(statistics, group) for group in groups]
        headers = ["class"]
        headers += [f"{value}: {int(statistics.members((name, value)).sum())} masks" for name, value in groups]
        rows = []
        for index in order:
            cells = [
                f"{percent(row[index].pixel_share)} ({row[index].image_share:.0%})" if row[index].pixels else NOTHING
                for row in of_groups
            ]
            rows.append([_named(statistics.labels, index), *cells])
        blocks += [subheading(attribute), table(headers, rows)]
    return section("By condition", *blocks)


def _counted_section(statistics: MaskStatistics) -> Section:
    sizes = [f"{height} x {width} ({count} masks)" for (height, width), count in sorted(statistics.frames.items())]
    rows, columns = statistics.cells[None].shape[1:]
    shown = sizes if len(sizes) <= 5 else [*sizes[:5], f"and {len(sizes) - 5} more"]
    return section(
        "Counts",
        facts(
            {
                "masks": f"{len(statistics.pixels)}",
                "sizes": f"{', '.join(shown)}, height x width",
                "unknown pixels": f"{percent(unknown_share(statistics))} of all; excluded from all other numbers",
                "cells of a heat map": f"{rows} x {columns}",
            }
        ),
    )
