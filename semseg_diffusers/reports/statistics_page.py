"""The page of `semseg-diffusers stats`: the weak classes with their reasons, then the figures these come from.
Self-contained HTML made of the pieces of `data/pages`; the bars show what figure 9 of the paper shows.
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
from semseg_diffusers.masks.statistics.figure import LOWEST, heat_picture, log_place
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


TICKS = (LOWEST, 0.01, 1.0)  # shares written above the bars


def statistics_page(statistics: MaskStatistics, weak: list[UnderrepresentedClass], name: str) -> str:
    """The whole page.

    Args:
        statistics (`MaskStatistics`)
        weak (`list[UnderrepresentedClass]`): what `underrepresented_classes` says of them.
        name (`str`): data set and split, for the title.
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
    return page(f"What the masks of {name} hold", sections, lead, f"semseg-diffusers {package_version()}")


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
            "Training with --class_balanced_sampling shows those that are there more often. At a higher resolution "
            "small things have more pixels."
        ),
    ]
    return section("Weak classes", *blocks)


def _shares_section(labels: LabelSet, figures: list[ClassFigures], order: list[int]) -> Section:
    rows = []
    for index in order:
        row = figures[index]
        shares = (100 * row.pixel_share, row.images, 100 * row.image_share)
        rows.append([_named(labels, index), _bar(row.pixel_share, labels.colors[index]), *shares])
    axis = pieces().axis([(100 * log_place(tick), f"{100 * tick:g} %") for tick in TICKS])
    caption = (
        "Share of the labelled pixels. The scale is logarithmic, so that rare classes show: a bar grows by the same "
        f"length for each tenfold share. Classes that end left of the dashed line ({RARE_SHARE:.1%}) are rare."
    )
    headers = ["class", axis, "pixels, %", "images", "images, %"]
    return section("How much of each class", table(headers, rows, caption, drawing=1))


def _bar(share: float, color: tuple[int, int, int]) -> Markup:
    """A bar on the logarithmic scale, in the colour of its class."""
    return Markup(
        '<svg height="16" aria-hidden="true" focusable="false">'
        '<rect x="0" y="1" width="{:.2f}%" height="14" style="fill:#{:02x}{:02x}{:02x};stroke:var(--soft)"/>'
        '<line class="mark" x1="{:.2f}%" x2="{:.2f}%" y1="-4" y2="20"/></svg>'
    ).format(100 * log_place(share), *color, *[100 * log_place(RARE_SHARE)] * 2)


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
        "Typical object: half of the pixels of the class lie in objects at least this large; specks move the median, "
        "not this. On an edge: pixels beside another class; near 100 % the class is a pixel or two wide. Spread: how "
        "much of the frame the class fills in the course of the set, 100 % if it is everywhere alike."
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
        alt = f"where in the frame {name} lies, at most {most} at one place"
        cards.append(
            (
                Markup("{}, up to {}").format(_named(statistics.labels, index), most),
                [picture(heat_picture(heat[index]), alt)],
            )
        )
    text = "The chance that a labelled pixel is of the class, place by place; below, that of the darkest cell."
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
        "What was counted",
        facts(
            {
                "masks": f"{len(statistics.pixels)}",
                "sizes": f"{', '.join(shown)}, height x width",
                "unknown pixels": f"{percent(unknown_share(statistics))} of all; they are in no other figure",
                "cells of a heat map": f"{rows} x {columns}",
            }
        ),
    )
