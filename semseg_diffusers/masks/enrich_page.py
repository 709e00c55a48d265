"""The report of `enrich`: statistics of the dataset next to those of the new masks, as numbers, images and a page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from semseg_diffusers.masks.statistics.counts import ClassFigures, MaskStatistics, class_figures, heat_maps
from semseg_diffusers.masks.statistics.figure import draw_statistics, heat_image
from semseg_diffusers.reports.charts import Bars, bar_table
from semseg_diffusers.reports.figures import picture_cards
from semseg_diffusers.reports.html import bullets, page, paragraph, section, settings_table, table
from semseg_diffusers.utils.images import image_grid


EXAMPLES = 12  # pairs of masks on the page
SHEET_COLUMNS = 4  # pairs in a row of the contact sheet


@dataclass(frozen=True)
class Reached:
    """A target and what was reached."""

    name: str
    wished: float  # factor of the share in the dataset
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
                wished=factor,
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
    parts = [draw_statistics(before, f"before: {name}"), draw_statistics(after, "after: the new masks")]
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (0, parts[0].height))
    return whole


def enrich_page(
    record: dict,
    reached: list[Reached],
    before: MaskStatistics,
    after: MaskStatistics,
    pairs: list[tuple[dict, list[Image.Image]]],
) -> str:
    """Return the page `statistics.html`: targets, all classes, pairs of masks, refusals."""
    headers = ["class", "target factor", "reached factor", "share before, %", "share after, %"]
    headers += ["objects before", "objects after", "added"]
    cells = [
        [w.name, w.wished, w.reached, 100 * w.share_before, 100 * w.share_after, w.objects_before, w.objects_after]
        + [w.added]
        for w in reached
    ]
    bars = [
        Bars(a.name, [100 * a.pixel_share, 100 * b.pixel_share], [_objects(a, before), _objects(b, after)])
        for a, b in zip(class_figures(before), class_figures(after), strict=True)
    ]
    shares = bar_table(
        bars, ["before", "after"], "Share of the labelled pixels, in percent", more=["objects before", "objects after"]
    )
    ids = [before.labels.label2id[w.name] for w in reached]
    old, new = heat_maps(before), heat_maps(after)
    heat = [{"before": old[i], "after": new[i]} for i in ids]
    heat_cards = [
        (w.name, {when: heat_image(values) for when, values in both.items()})
        for w, both in zip(reached, heat, strict=True)
    ]
    examples = [_example(row, *masks) for row, masks in pairs[:EXAMPLES]]
    refusals = [f"{w.name}: {reason}, {count} times" for w in reached for reason, count in w.refused.items()]
    sections = [
        section("Targets", table(headers, cells, "Shares are of the labelled pixels, objects are regions per mask")),
        section("All classes", shares),
        section("Masks before and after", picture_cards(examples) if examples else paragraph("none was changed")),
        section(
            "Where in the frame",
            paragraph("The share of a class at each position before and after, from 0 (light) to its maximum (dark)."),
            picture_cards(heat_cards),
        ),
        section(
            "Refused positions",
            paragraph("How often a rule refused a position, in masks without further room."),
            bullets(refusals or ["none"]),
        ),
        section("Settings", settings_table({key: record[key] for key in record if key not in ("wishes", "sizes")})),
    ]
    lead = f"{record['num_masks']} new masks, made from masks of {record['dataset']} ({record['split']})."
    return page("Enriched masks", sections, lead)


def _example(row: dict, before: Image.Image, after: Image.Image) -> tuple[str, dict[str, Image.Image]]:
    """Return a pair of masks for the page, captioned with what was added."""
    counts = Counter(entry["class"] for entry in row["added"])
    text = f"{row['base']}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    return text, {"before": before, "after": after}
