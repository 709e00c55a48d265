"""The images that the filter's page shows, chosen by rules and a seed, not by eye: mask, filtered mask, loss map.
No equation stands behind it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.losses import LEGEND, ClassLosses, loss_map, read_batch
from semseg_diffusers.evaluation.filtering.rules import EASY_MASK, REASONS, Scored, filter_ids
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.reports.charts import Bars, bar_table
from semseg_diffusers.reports.figures import color_list, named_color, picture_table
from semseg_diffusers.reports.html import (
    Section,
    bullets,
    commands,
    facts,
    number,
    page,
    paragraph,
    percent,
    section,
    settings_table,
    subheading,
    warning,
    write_page,
)
from semseg_diffusers.utils.images import to_image


ROWS = 8  # images of each group on the page


@dataclass(frozen=True)
class Examples:
    """Names of images, by what became of them."""

    dropped: tuple[str, ...]  # for what they show: those that keep least
    strongly_filtered: tuple[str, ...]  # of those that stay, the same
    kept: tuple[str, ...]  # by seed

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.dropped, *self.strongly_filtered, *self.kept)))


@dataclass(frozen=True)
class ExamplePictures:
    """What is shown of one image."""

    mask: Image.Image
    image: Image.Image
    filtered: Image.Image
    losses: Image.Image


def choose_examples(images: Sequence[Scored], reasons: Mapping[str, str], seed: int) -> Examples:
    """Choose the images to show.

    Args:
        images: all of them.
        reasons: name -> why it was dropped. Images that were dropped for their easy mask only look like those that
            stay, and are not shown among the dropped.
        seed: of those that are shown as kept.
    """

    def least(chosen: list[Scored]) -> tuple[str, ...]:
        chosen.sort(key=lambda image: (-1.0 if image.kept_share is None else image.kept_share, image.name))
        return tuple(image.name for image in chosen[:ROWS])

    kept = [image for image in images if image.name not in reasons]
    drawn = random.Random(seed).sample(sorted(image.name for image in kept), min(ROWS, len(kept)))
    return Examples(
        dropped=least([image for image in images if reasons.get(image.name, EASY_MASK) != EASY_MASK]),
        strongly_filtered=least(kept),
        kept=tuple(drawn),
    )


def example_pictures(
    examples: Examples, images: ImageSet, segmenter: Judge, thresholds: np.ndarray
) -> dict[str, ExamplePictures]:
    """Read the examples once more, for their loss maps; name -> pictures."""
    place_of = {name: place for place, name in enumerate(images.names)}
    pictures = {}
    for name in examples.names:
        image, mask = images.image(place_of[name]), images.mask(place_of[name])
        ids, losses = next(iter(read_batch(segmenter, [image], [mask])))
        filtered = filter_ids(ids, losses, thresholds, images.labels.ignore_index)
        pictures[name] = ExamplePictures(
            mask=images.labels.decode(ids),
            image=to_image(image),
            filtered=images.labels.decode(filtered),
            losses=loss_map(ids, losses, thresholds),
        )
    return pictures


BINS = 10  # of the histogram of kept shares
MUCH_LESS = 0.1  # of a class is kept than of the same in real photos: it is named
MOST_NAMED = 4  # such classes


def write_filter_page(
    path: str | Path,
    record: Mapping[str, Any],
    images: Sequence[Scored],
    reasons: Mapping[str, str],
    examples: Examples,
    pictures: Mapping[str, ExamplePictures],
    labels: LabelSet,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        record: what `filter.json` holds.
        images: all of them.
        reasons: name -> why it was dropped.
        examples: which to show.
        pictures: of these, by name.
        labels: the classes, for order and colours.
    """
    results, settings = record["results"], record["settings"]
    sections = [
        _summary(record),
        _classes(record, labels),
        _histogram(images, reasons, settings["minimum_kept"]),
        *_pictures(images, reasons, examples, pictures, labels),
        _how(record),
    ]
    lead = (
        f"{number(results['num_images'])} generated images from {number(results['num_masks'])} masks, read by a "
        f"segmentation network that was trained on real photos. Where it does not find what the mask says, the label "
        "became unknown; images that lost too much were dropped."
    )
    footer = "Written by semseg-diffusers. All numbers in full: filter.json and dropped.jsonl beside this page."
    write_page(path, page(f"Filter of {record['generated']}", sections, lead=lead, footer=footer))


# What it says --------------------------------------------------------------------------------------------------------


def _summary(record: Mapping[str, Any]) -> Section:
    results, reference = record["results"], record["reference"]
    says = [
        Markup("<strong>{} of {} images are kept</strong>, from {} of {} masks.").format(
            number(results["num_kept"]),
            number(results["num_images"]),
            number(results["num_masks_kept"]),
            number(results["num_masks"]),
        )
    ]
    says += [
        f"{number(count)} dropped: {REASONS[reason]}." for reason, count in results["num_dropped"].items() if count
    ]
    kept = Markup("<strong>{} of the labelled pixels</strong> keep their label").format(percent(results["kept_share"]))
    if results["num_kept"] < results["num_images"]:
        kept += f", {percent(results['kept_share_of_kept_images'])} in images that are kept"
    says.append(kept + f"; the worst image keeps {percent(results['least_kept_share'])}.")
    if reference is not None:
        says.append(
            f"Of real photos the same rule keeps {percent(reference['kept_share'])}, of the worst one "
            f"{percent(reference['least_kept_share'])} ({number(reference['num_photos'])} photos of "
            f"{reference['name']}): about what exact labels reach."
        )
        says += _drawn_badly(results["kept_share_by_class"], reference["kept_share_by_class"])
    losses = ClassLosses.from_record(record["class_losses"])
    segmenter, judge = record["segmenter"], record["judge"]
    score = (segmenter["validation"] or {}).get("mean_iou")
    read = "no score of its own is known" if score is None else f"mean IoU {number(score)} on its validation photos"
    about = {
        "Filtered by": f"{segmenter['name']} ({read}; weights {record['segmenter_sha256']})",
        "Judged by": "not said" if judge is None else f"{judge['name']} (weights {judge['weights_sha256']})",
        "Class losses": f"{number(losses.num_photos)} photos of {record['real']}",
    }
    return section("What it says", bullets(says), *_warnings(losses, record), facts(about))


def _drawn_badly(generated: Mapping[str, float], real: Mapping[str, float]) -> list[str]:
    """Which classes are read much less often than in real photos, the worst first."""
    lost = {name: real[name] - share for name, share in generated.items() if name in real}
    worst = sorted((name for name in lost if lost[name] > MUCH_LESS), key=lambda name: (-lost[name], name))[
        :MOST_NAMED
    ]
    named = (f"{name} ({percent(generated[name])}, in real photos {percent(real[name])})" for name in worst)
    return [f"Drawn worst, by the share that keeps its label: {', '.join(named)}."] if worst else []


def _warnings(losses: ClassLosses, record: Mapping[str, Any]) -> list[Markup]:
    texts, there = [], record["results"]["pixels"]
    unchecked = [name for name in losses.unchecked if there[name]]
    if unchecked:
        what = "were left as they are (--keep_unchecked)" if record["settings"]["keep_unchecked"] else "became unknown"
        texts.append(
            f"Not checked, because no real pixel of theirs is there or the network does not know them: "
            f"{', '.join(unchecked)}. Their labels {what}."
        )
    if losses.unread:
        texts.append(
            f"The network reads these no better than chance, so nearly all of their labels pass, right or wrong: "
            f"{', '.join(losses.unread)}. A better segmenter would tell."
        )
    judge = record["judge"]
    if judge is not None and judge["weights_sha256"] == record["segmenter_sha256"]:
        texts.append("The judge is this very network: what it measures on these images is no evidence.")
    if not record["results"]["num_kept"]:
        texts.append("No image is kept. Lower --minimum_kept, raise --tolerance_margin, or train the model further.")
    return [warning(text) for text in texts]


# Numbers -------------------------------------------------------------------------------------------------------------


def _classes(record: Mapping[str, Any], labels: LabelSet) -> Section:
    results, reference, losses = record["results"], record["reference"], record["class_losses"]
    margin = record["settings"]["tolerance_margin"]
    explained = paragraph(
        f"A pixel becomes unknown where its loss is above {margin:g} times the mean loss of its class on real photos, "
        "the tolerance (in nats). Bars: the share of the pixels of a class that keep their label."
    )
    bars = []
    for label, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True)):
        mean = losses["mean"][label]
        shares = [results["kept_share_by_class"].get(name)]
        if reference is not None:
            shares.append(reference["kept_share_by_class"].get(name))
        more = [None if mean is None else mean * margin, results["pixels"][name], results["pixels_left"][name]]
        bars.append(Bars(named_color(name, color), shares, more))
    series = ["generated", *([] if reference is None else ["real photos"])]
    headers = ["tolerance", "pixels before", "pixels left"]
    caption = "Pixels left are those that keep their label in images that are kept."
    return section("By class", explained, bar_table(bars, series, caption, maximum=1.0, more=headers))


def _histogram(images: Sequence[Scored], reasons: Mapping[str, str], minimum_kept: float) -> Section:
    counts = {True: [0] * BINS, False: [0] * BINS}  # kept or not -> images of each bin
    for image in images:
        if image.kept_share is not None:
            counts[image.name not in reasons][min(int(image.kept_share * BINS), BINS - 1)] += 1
    bars = [
        Bars(f"{100 * place // BINS} to {100 * (place + 1) // BINS} %", [counts[True][place], counts[False][place]])
        for place in reversed(range(BINS))
    ]
    caption = (
        f"Images by the share of their labelled pixels that keep their label; the floor is {percent(minimum_kept)}."
    )
    return section("Kept shares", bar_table(bars, ["kept", "dropped"], caption, row_name="share kept"))


# Pictures ------------------------------------------------------------------------------------------------------------


def _pictures(
    images: Sequence[Scored],
    reasons: Mapping[str, str],
    examples: Examples,
    pictures: Mapping[str, ExamplePictures],
    labels: LabelSet,
) -> list[Section]:
    of_name = {image.name: image for image in images}
    legend = color_list(list(LEGEND), list(LEGEND.values()))
    classes = color_list([*labels.names, "unknown"], [*labels.colors, labels.ignore_color])
    groups = {
        "Thrown away": (examples.dropped, "Of the dropped images, those that keep least."),
        "Strongly filtered": (examples.strongly_filtered, "Of the images that are kept, those that keep least."),
        "Kept": (examples.kept, "Of the images that are kept, some by seed."),
    }
    sections = []
    for title, (names, rule) in groups.items():
        if not names:
            nothing = "No image was dropped for what it shows." if title == "Thrown away" else "No image was kept."
            sections.append(section(title, paragraph(nothing)))
            continue
        rows = []
        for name in names:
            shown = pictures[name]
            why = f" Dropped: {reasons[name]}." if name in reasons else ""
            text = f"{name}: keeps {percent(of_name[name].kept_share)}.{why}"
            rows.append((text, [shown.mask, shown.image, shown.filtered, shown.losses]))
        table = picture_table(["mask", "image", "filtered mask", "loss"], rows)
        sections.append(section(title, paragraph(rule), legend, table, classes))
    return sections


def _how(record: Mapping[str, Any]) -> Section:
    settings = record["settings"]
    line = [
        "semseg-diffusers filter",
        f"--generated {record['generated']}",
        f"--dataset {record['real'].rpartition(' (')[0]}",
        f"--segmenter {record['segmenter']['name']}",
        "--output NEW",
        f"--tolerance_margin {settings['tolerance_margin']:g}",
        f"--minimum_kept {settings['minimum_kept']:g}",
        *(f"--{name}" for name in ("resample", "keep_unchecked") if settings[name]),
    ]
    known = {name: record.get(name) for name in ("started", "commit", "seed", "versions")}
    return section(
        "How this was made",
        commands([" \\\n  ".join(line)]),
        subheading("Settings"),
        settings_table({**settings, **known}),
        subheading("Segmenter"),
        settings_table(record["segmenter"]),
    )
