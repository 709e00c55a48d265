"""The page of a study: each mean with its seeds, each difference with its interval, and what was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from semseg_diffusers.data.dataset import read_record
from semseg_diffusers.data.dataset_format import JOINED, data_license, evenly_spaced
from semseg_diffusers.evaluation.settings import ARMS, WITHOUT_AMOUNT, StudySettings, Training
from semseg_diffusers.evaluation.study.pools import StudyData, pool_members
from semseg_diffusers.evaluation.study.results import BETTER, UNKNOWN, WITHIN, WORSE, title
from semseg_diffusers.reports.findings import command_line
from semseg_diffusers.reports.plots import Plot, line_plot
from semseg_diffusers.reports.render import NOTHING, BarRow, axis_ticks, class_legend, exact, percent, write_page
from semseg_diffusers.utils.images import to_image


# set -> an arm that uses it, and its title
SETS = {
    "real": ("real", ARMS["real"]),
    "pseudo_labelled": ("real_pseudo", "pseudo-labelled photos"),
    "generated": ("synthetic", ARMS["synthetic"]),
    "filtered": ("filtered", ARMS["filtered"]),
}
PAIRS = 4  # shown of each pool
SHORT = {BETTER: "better, beyond noise", WITHIN: "within noise", WORSE: "worse, beyond noise", UNKNOWN: "one seed"}
SIGNS = {BETTER: " ▲", WORSE: " ▼"}  # beyond the noise between seeds


def write_study_page(path: Path, results: Mapping[str, Any], settings: StudySettings, data: StudyData) -> None:
    """Write the page of a study."""
    labels, arms, comparisons = data["real"].labels, results["arms"], results["comparisons"]
    scores = [value for arm in arms for value in arm["mean_iou"]["values"]]
    found = [each["mean_iou"] for each in comparisons]
    ends = [value for each in found for value in (each["low"], each["high"], *each["values"]) if value is not None]
    most = max(results["settings"]["amounts"])
    shown = [arm for arm in arms if arm["amount"] in (None, most)]
    shown_data = filter(None, (settings.dataset, settings.pseudo_labelled))
    formats = dict.fromkeys(str(read_record(name).get("format")) for name in shown_data)
    _, terms = data_license(JOINED.join(formats), "these pictures")
    write_page(
        path,
        "study.html.j2",
        results=results,
        real_mean=next(arm["mean_iou"]["mean"] for arm in arms if arm["arm"] == "real"),
        arms_axis=axis_ticks(min(scores), max(scores)),
        differences=_differences(comparisons),
        differences_axis=axis_ticks(min([0.0, *ends]), max([0.0, *ends])),
        by_amount=_by_amount(results),
        most=most,
        series=[ARMS[arm["arm"]] for arm in shown],
        classes=[
            BarRow(name, [arm["iou"][name]["mean"] for arm in shown], color=color)
            for name, color in zip(labels.names, labels.colors, strict=True)
            if name in shown[0]["iou"]
        ],
        class_tables=_class_tables(comparisons, most, [name for name in labels.names if name in shown[0]["iou"]]),
        pools=_pools(settings, data),
        terms=terms,
        colors=class_legend(labels),
        unknown_shares={
            shown: percent(_unknown_share(data[name])) for name, (_, shown) in SETS.items() if name in data
        },
        command=study_command(results["settings"]),
    )


def study_command(settings: Mapping[str, Any]) -> str:
    """Return the command of a study with the settings that its results record."""
    off = {field.name: "false" for field in fields(StudySettings) if field.default is True}
    given = {name: off[name] if name in off and value is False else value for name, value in settings.items()}
    return command_line("study --output DIR", given, " \\\n  ", exact)


def _differences(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the differences of mean IoU by what the arms are compared with."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in comparisons:
        found, name = each["mean_iou"], title(each["arm"], each["amount"])
        texts = {"title": name, "interval": _interval(found), "reading": SHORT[found["reading"]]}
        groups.setdefault(ARMS[each["against"]["arm"]], []).append({**found, **texts})
    return groups


def _interval(found: Mapping[str, Any]) -> str:
    return NOTHING if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"


def _by_amount(results: Mapping[str, Any]) -> Plot | None:
    """Plot mean IoU over the amounts; arms without synthetic pairs are level lines."""
    amounts = sorted(results["settings"]["amounts"])
    if len(amounts) < 2:
        return None
    lines: dict[str, list[tuple[float, float | None]]] = {}
    for arm in results["arms"]:
        mean = arm["mean_iou"]["mean"]
        points = [(amounts[0], mean), (amounts[-1], mean)] if arm["amount"] is None else [(arm["amount"], mean)]
        lines.setdefault(ARMS[arm["arm"]], []).extend(points)
    return line_plot(lines, "pairs added, as multiples of the real photos", "mean IoU, mean over seeds")


def _class_tables(comparisons: Sequence[Mapping[str, Any]], most: float, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a table of differences by class for each amount and baseline: that of the largest amount first."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for each in comparisons:
        groups.setdefault((each["amount"] or most, each["against"]["arm"]), []).append(each)

    def cell(found: Mapping[str, Any]) -> str:
        text = f"{found['mean']:+.3f} ({_interval(found)}){SIGNS.get(found['reading'], '')}"
        return text if any(found["values"]) else "0"

    return [
        {
            "headers": ["class", *(ARMS[each["arm"]] for each in group)],
            "rows": [[name, *(cell(each["iou"][name]) for each in group)] for name in names],
            "against": ARMS[against],
            "amount": f"{amount:g}x",
        }
        for (amount, against), group in sorted(groups.items(), key=lambda it: (it[0] != (most, "real"), -it[0][0]))
    ]


def _pools(settings: StudySettings, data: StudyData) -> list[tuple[str, list[Image.Image]]]:
    """Return a few pairs of each set that a pool uses, at even distances in the order of the first seed."""
    seed, most = settings.seeds[0], max(settings.amounts)
    rows = []
    for name, (arm, shown) in SETS.items():
        if name not in data:
            continue
        pairs = data[name]
        pool = pool_members(Training(arm, None if arm in WITHOUT_AMOUNT else most, seed), data)
        chosen = evenly_spaced([index for each, index in pool if each == name], PAIRS)
        images = [to_image(pairs[index][key], pairs.labels) for index in chosen for key in ("image", "mask")]
        rows.append((f"{shown}: {', '.join(pairs.names[index] for index in chosen)}", images))
    return rows


def _unknown_share(pairs: Any) -> float:
    known = [(pairs[index]["mask"] != pairs.labels.ignore_index).float().mean().item() for index in range(len(pairs))]
    return 1 - sum(known) / len(known)
