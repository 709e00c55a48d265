"""The page of a study: `results.json` and pictures of what was trained on, as one self-contained HTML file.
Every mean stands beside the results of its seeds, and every difference beside its interval."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from semseg_diffusers.data.dataset import read_record
from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.evaluation.study.pools import StudyData, pool_members
from semseg_diffusers.evaluation.study.results import BETTER, UNKNOWN, WITHIN, WORSE, title
from semseg_diffusers.evaluation.study.settings import ARMS, StudySettings, Training
from semseg_diffusers.reports.charts import Bars, axis_header, bar_table, line_chart, spread_mark, ticks
from semseg_diffusers.reports.figures import color_list, named_color, picture_table
from semseg_diffusers.reports.html import (
    NOTHING,
    Section,
    bullets,
    commands,
    exact,
    facts,
    folded,
    number,
    page,
    paragraph,
    percent,
    section,
    settings_table,
    subheading,
    table,
    warning,
    write_page,
)


SETS = {"real": "real", "synthetic": "generated", "filtered": "filtered"}  # arm that draws from one set -> the set
PICTURES = 4  # pairs of each pool
SHORT = {BETTER: "better, beyond noise", WITHIN: "within noise", WORSE: "worse, beyond noise", UNKNOWN: "one seed"}
SIGNS = {BETTER: " ▲", WORSE: " ▼"}  # beyond the noise between seeds


def write_study_page(path: Path, results: Mapping[str, Any], settings: StudySettings, data: StudyData) -> None:
    """Write the page of a study.

    Args:
        path: the HTML file.
        results: what `results.json` holds.
        settings: of the study.
        data: gives pictures, and classes their colours.
    """
    sections = [
        _says(results),
        _arms(results),
        *_amounts(results),
        _classes(results, data),
        _pools(settings, data),
        _how(results),
        section("Notes", bullets(results["notes"])),
    ]
    seeds = results["seeds"]
    lead = (
        f"The same segmentation network, trained on {len(results['arms'])} pools of pairs with "
        f"{len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'} each, {results['settings']['max_train_steps']:,} steps "
        f"of {results['settings']['train_batch_size']} pairs throughout, and read on "
        f"{results['data']['validation']['num_images']} real photos of the validation split."
    )
    version = results["versions"]["semseg_diffusers"]
    footer = f"Written by semseg-diffusers {version}. All numbers in full: results.json beside this page."
    write_page(path, page("Do synthetic images help?", sections, lead=lead, footer=footer))


def _says(results: Mapping[str, Any]) -> Section:
    data, network, resolution = results["data"], results["network"], results["resolution"]
    height, width = network["input_size"]
    counts = ", ".join(f"{entry['num_images']:,} {name}" for name, entry in data.items())
    about = {
        "Images": counts,
        "Resolution": f"{resolution[0]} × {resolution[1]} pixels (height × width)",
        "Network": f"{_name(results)}, {network['num_parameters']:,} parameters, reads {height} × {width}",
        "Seeds": exact(results["seeds"]),
    }
    forced = [warning(note) for note in results["forced"]]
    says = bullets(
        Markup("<strong>{}.</strong> {}").format(each["topic"], each["text"]) for each in results["findings"]
    )
    return section("What it says", *forced, says, facts(about))


def _name(results: Mapping[str, Any]) -> str:
    return results["network"]["architecture"] or results["settings"]["base_model"]


# Numbers -------------------------------------------------------------------------------------------------------------


def _arms(results: Mapping[str, Any]) -> Section:
    arms = results["arms"]
    values = [value for arm in arms for value in arm["mean_iou"]["values"]]
    axis = ticks(min(values), max(values), count=4)
    real = next(arm["mean_iou"]["mean"] for arm in arms if arm["arm"] == "real")
    rows = [
        [
            arm["title"],
            spread_mark(axis, arm["mean_iou"]["mean"], points=arm["mean_iou"]["values"], mark=real),
            arm["mean_iou"]["mean"],
            arm["mean_iou"]["std"],
            arm["pixel_accuracy"]["mean"],
            arm["num_pairs"],
            arm["passes"],
        ]
        for arm in arms
    ]
    headers = ["trained on", axis_header(axis), "mean IoU", "std", "pixel accuracy", "pairs", "passes"]
    caption = (
        "Large dots: mean over seeds; small dots: each seed; dashed: real photos alone. 0.5x is half as many "
        "synthetic (or duplicated) pairs as there are real photos. Passes: how often a pair was seen."
    )
    return section(
        "Mean IoU",
        paragraph(
            "Mean IoU over the classes that the validation masks hold, from one confusion matrix over all photos; "
            "higher is better. Duplicates are the control: as many pairs, nothing new in them."
        ),
        table(headers, rows, caption, drawing=1),
        *_differences(results["comparisons"]),
    )


def _differences(comparisons: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Every comparison of mean IoU with its interval, grouped by what it is held against."""
    blocks = [subheading("Differences, seed by seed")]
    ends = [comparison["mean_iou"] for comparison in comparisons]
    known = [value for each in ends for value in (each["low"], each["high"], *each["values"]) if value is not None]
    axis = ticks(min([0.0, *known]), max([0.0, *known]), count=4)
    for against in dict.fromkeys(comparison["against"]["arm"] for comparison in comparisons):
        rows = [
            [title(each["arm"], each["amount"]), *_difference_cells(each["mean_iou"], axis)]
            for each in comparisons
            if each["against"]["arm"] == against
        ]
        headers = [f"against {ARMS[against]}", axis_header(axis), "difference", "95 % interval", "reading"]
        blocks.append(table(headers, rows, "", drawing=1))
    return blocks


def _difference_cells(found: Mapping[str, Any], axis: Sequence[float]) -> list[Any]:
    mark = spread_mark(axis, found["mean"], found["low"], found["high"], found["values"], mark=0.0)
    return [mark, f"{found['mean']:+.3f}", _interval(found), SHORT[found["reading"]]]


def _interval(found: Mapping[str, Any]) -> str:
    return NOTHING if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"


def _amounts(results: Mapping[str, Any]) -> list[Section]:
    amounts = sorted(results["settings"]["amounts"])
    if len(amounts) < 2:
        return []
    lines: dict[str, list[tuple[float, float]]] = {}
    for arm in results["arms"]:
        mean = arm["mean_iou"]["mean"]
        points = [(amounts[0], mean), (amounts[-1], mean)] if arm["amount"] is None else [(arm["amount"], mean)]
        lines.setdefault(ARMS[arm["arm"]], []).extend(points)
    chart = line_chart(lines, "pairs added, as multiples of the real photos", "mean IoU, mean over seeds")
    return [section("By amount", chart)]


def _classes(results: Mapping[str, Any], data: StudyData) -> Section:
    labels = data.real.labels
    colors = dict(zip(labels.names, labels.colors, strict=True))
    most = max(results["settings"]["amounts"])
    shown = [arm for arm in results["arms"] if arm["amount"] in (None, most)]
    names = [name for name in labels.names if name in shown[0]["iou"]]
    bars = [Bars(named_color(name, colors[name]), [arm["iou"][name]["mean"] for arm in shown]) for name in names]
    explained = paragraph(
        "▲ better and ▼ worse lie beyond the noise between seeds, each by itself; among so many, some do so by chance."
    )
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for each in results["comparisons"]:
        groups.setdefault((-each["amount"], each["against"]["arm"]), []).append(each)
    tables = []
    for (amount, against), comparisons in sorted(groups.items(), key=lambda item: item[0][0]):  # largest amount first
        content = _class_table(comparisons, names)
        summary = f"Against {ARMS[against]}, {-amount:g}x"
        tables.append(content if (-amount, against) == (most, "real") else folded(summary, content))
    missing = [paragraph(f"In no validation mask: {', '.join(results['absent'])}.")] if results["absent"] else []
    caption = f"IoU by class, mean over seeds, at {most:g}x."
    return section(
        "Classes",
        bar_table(bars, [ARMS[arm["arm"]] for arm in shown], caption, maximum=1.0),
        *missing,
        subheading("Differences by class"),
        explained,
        *tables,
    )


def _class_table(comparisons: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Markup:
    rows = []
    for name in names:
        found = [comparison["iou"][name] for comparison in comparisons]
        cells = [
            f"{each['mean']:+.3f} ({_interval(each)}){SIGNS.get(each['reading'], '')}" if any(each["values"]) else "0"
            for each in found
        ]
        rows.append([name, *cells])
    headers, amount = [ARMS[each["arm"]] for each in comparisons], comparisons[0]["amount"]
    against = ARMS[comparisons[0]["against"]["arm"]]
    return table(["class", *headers], rows, f"IoU minus that of {against}, at {amount:g}x, with its 95 % interval.")


# What it was trained on ----------------------------------------------------------------------------------------------


def _pools(settings: StudySettings, data: StudyData) -> Section:
    """A few pairs of each set that a pool draws from, at even distances in the order of the first seed."""
    seed, most = settings.seeds[0], max(settings.amounts)
    rows = []
    for arm, name in SETS.items():
        if name not in data.sets:
            continue
        places = [place for _, place in pool_members(Training(arm, None if arm == "real" else most, seed), data)]
        count = min(PICTURES, len(places))
        chosen = [places[index * len(places) // count] for index in range(count)]
        pictures = [picture for place in chosen for picture in _pair(data.sets[name], place)]
        text = f"{ARMS[arm]}: {', '.join(data.sets[name].names[place] for place in chosen)}"
        rows.append((text, pictures + [None] * (2 * (PICTURES - count))))
    _, terms = data_license(read_record(settings.dataset).get("format"), "these pictures")
    labels = data.real.labels
    shares = {ARMS[arm]: percent(_unknown(data.sets[name])) for arm, name in SETS.items() if name in data.sets}
    return section(
        "What was trained on",
        picture_table(["photo", "mask"] * PICTURES, rows, f"Seed {seed}, at even distances. {terms}"),
        color_list((*labels.names, "unknown"), (*labels.colors, labels.ignore_color)),
        paragraph("Share of pixels that are unknown, of which nothing is learned:"),
        facts(shares),
    )


def _pair(pairs: Any, place: int) -> list[Image.Image]:
    item = pairs[place]
    return [Image.fromarray(item["image"].permute(1, 2, 0).numpy()), pairs.labels.decode(item["mask"].numpy())]


def _unknown(pairs: Any) -> float:
    known = [(pairs[index]["mask"] != pairs.labels.ignore_index).float().mean().item() for index in range(len(pairs))]
    return 1 - sum(known) / len(known)


def _how(results: Mapping[str, Any]) -> Section:
    made = {
        "Commit": exact(results["commit"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "Highest learning rate": number(float(results["network"]["learning_rate"])),
        "Data": ", ".join(f"{name} {entry['hash']}" for name, entry in results["data"].items()),
    }
    words = ["semseg-diffusers study --output DIR"]
    for name, value in results["settings"].items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            words.append(" ".join([f"--{name}", *(shlex.quote(exact(each)) for each in values)]))
    return section(
        "How this was made",
        facts(made),
        subheading("To give it again"),
        commands([" \\\n  ".join(words)]),
        subheading("Settings"),
        settings_table(results["settings"]),
        subheading("Recipe"),
        settings_table(results["recipe"]),
    )
