"""The page of an evaluation: `results.json` and pictures as one self-contained HTML file, and its short table in text.
What is measured and why stands beside the numbers; the readings at the top follow the rules of `verdict.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.pages.frame import (
    NOTHING,
    Section,
    bullets,
    commands,
    exact,
    facts,
    is_finite,
    number,
    page,
    paragraph,
    section,
    settings_table,
    subheading,
    write_page,
)
from semseg_diffusers.data.pages.pictures import color_list, picture_table
from semseg_diffusers.evaluation.report_pictures import ReportPictures
from semseg_diffusers.evaluation.report_sections import (
    agreement_section,
    diversity_section,
    fidelity_section,
    neighbours_section,
    not_measured,
    paper_section,
)
from semseg_diffusers.evaluation.verdict import findings
from semseg_diffusers.hub.card_results import results_commands


def write_report(path: str | Path, results: Mapping[str, Any], pictures: ReportPictures) -> None:
    """Write the page of an evaluation.

    Args:
        path: the HTML file; its folder is made where missing.
        results: what `results.json` holds; parts that are null are named as not measured.
        pictures: masks, photos and samples to show; each part may be missing.
    """
    settings = results["settings"]
    model = settings.get("model") or settings.get("generated") or "generated images"
    sections = [
        _summary(results),
        *_grid(pictures),
        agreement_section(results, pictures),
        fidelity_section(results),
        diversity_section(results),
        neighbours_section(results, pictures),
        *_examples(results, pictures),
        paper_section(results),
        _how(results),
        *([section("Notes", bullets(results["notes"]))] if results.get("notes") else []),
    ]
    html = page(f"Evaluation of {model}", sections, lead=_lead(results), footer=_footer(results))
    write_page(path, html)


def _size(resolution: Sequence[int] | None) -> str:
    return NOTHING if resolution is None else f"{resolution[0]} × {resolution[1]} pixels (height × width)"


# What it says --------------------------------------------------------------------------------------------------------


def _lead(results: Mapping[str, Any]) -> str:
    data, settings = results["data"], results["settings"]
    images, masks = data.get("num_generated"), data.get("num_masks")
    source = f"{settings.get('dataset')} (split {settings.get('split')})"
    return (
        f"{number(images)} images drawn from {number(masks)} masks of {source}, compared with their masks and with "
        f"real photos. Every number stands beside what real photos reach and what chance reaches."
    )


def _summary(results: Mapping[str, Any]) -> Section:
    found = findings(results)
    says = bullets(Markup("<strong>{}.</strong> {}").format(*each) for each in found)
    data, generation, judge = results["data"], results.get("generation") or {}, results.get("segmenter") or {}
    about = {
        "Images": f"{number(data.get('num_generated'))} generated, {number(data.get('num_real'))} real photos of the "
        f"split, {number(data.get('num_train'))} training photos",
        "Resolution": _size(results.get("resolution")),
    }
    sampler = [
        exact(generation[key]) + unit
        for key, unit in (("variant", " weights"), ("scheduler", ""), ("num_inference_steps", " steps"))
        if generation.get(key) is not None
    ]
    if generation.get("guidance_scale") is not None:
        sampler.append(f"guidance {exact(generation['guidance_scale'])}")
    about["Sampler"] = ", ".join(sampler) or "not known: the images were not made by this package"
    seeds = f"{exact(results.get('seed'))} for the evaluation"
    if generation.get("seed") is not None:
        seeds += f", {exact(generation['seed'])} for the images"
    about["Seeds"] = seeds
    if judge:
        about["Masks read by"] = f"{judge.get('name')}, {_validation(judge.get('validation'))}"
    if results.get("fidelity"):
        about["Photos compared by"] = ", ".join(str(entry["features"]["name"]) for entry in results["fidelity"])
    return section("What it says", says if found else not_measured(results), facts(about))


def _validation(record: Mapping[str, Any] | None) -> str:
    score = (record or {}).get("mean_iou")
    if not is_finite(score):
        return "no validation score of its own is known: the ceiling says how well it reads these photos"
    return f"whose mean IoU on its own validation photos is {number(float(score))}"


def _grid(pictures: ReportPictures) -> list[Section]:
    if not pictures.grid:
        return []
    most = max(len(row.samples) for row in pictures.grid)
    headers = ["mask", "real photo", *(f"sample {index + 1}" if most > 1 else "sample" for index in range(most))]
    rows = [
        (row.stem, [row.mask, row.real, *row.samples, *[None] * (most - len(row.samples))]) for row in pictures.grid
    ]
    masks = [row.mask for row in pictures.grid]
    classes = [] if pictures.labels is None else [color_list(*_classes_in(masks, pictures.labels))]
    explained = paragraph("The mask is all that the model saw; the real photo is the one the mask was drawn on.")
    return [section("Pictures", explained, picture_table(headers, rows), *classes)]


# Examples ------------------------------------------------------------------------------------------------------------


def _classes_in(masks: Sequence[Image.Image], labels: LabelSet) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colours of what these masks show, unknown last."""
    found = {color for mask in masks for _, color in mask.convert("RGB").getcolors(mask.width * mask.height)}
    known = zip((*labels.names, "unknown"), (*labels.colors, labels.ignore_color), strict=True)
    shown = [(name, color) for name, color in known if color in found]
    return [name for name, _ in shown], [color for _, color in shown]


def _examples(results: Mapping[str, Any], pictures: ReportPictures) -> list[Section]:
    examples = results.get("examples") or {}
    if not examples.get("best") and not examples.get("worst"):
        return []
    blocks = [
        paragraph(
            f"Chosen by a rule, not by eye: {examples.get('rule')}. Mistakes: near white where the reading is right, "
            "else the colour of the class that was read (black: none of these); striped where the mask is "
            "unknown, or of a class that is not judged."
        )
    ]
    for kind in ("worst", "best"):
        rows, without = [], []
        for entry in examples.get(kind) or []:
            text, shown = (
                f"{entry['image']}, mean IoU {number(entry['mean_iou'])}",
                pictures.examples.get(entry["image"]),
            )
            if shown is None:
                without.append(text)
            else:
                rows.append((text, [shown.mask, shown.generated, shown.prediction, shown.mistakes, shown.real]))
        blocks.append(subheading({"worst": "Worst", "best": "Best"}[kind]))
        headers = ["mask", "generated", "reading", "mistakes", "real photo"]
        blocks += [picture_table(headers, rows)] if rows else []
        blocks += [bullets(without)] if without else []
    return [section("Worst and best images", *blocks)]


# Settings ------------------------------------------------------------------------------------------------------------


def _how(results: Mapping[str, Any]) -> Section:
    seconds = results.get("seconds") or {}
    taken = ", ".join(f"{name} {number(value)} s" for name, value in seconds.items())
    made = {
        "Started": exact(results.get("started")),
        "Time": taken or NOTHING,
        "Commit": exact(results.get("commit")),
        "Versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
    }
    model = results["settings"].get("model") or (results.get("generation") or {}).get("model") or "MODEL"
    again = commands(results_commands(results, model, separator=" \\\n  "))
    blocks = [facts(made), subheading("To give it again"), again]
    tables = {
        "Settings": results["settings"],
        "Images": results.get("generation"),
        "Segmenter": results.get("segmenter"),
    }
    for entry in results.get("fidelity") or []:
        tables[f"Features: {entry['features']['name']}"] = entry["features"]
    for title, values in tables.items():
        blocks.append(subheading(title))
        blocks.append(settings_table(values) if values else paragraph("Not recorded."))
    return section("How this was made", *blocks)


def _footer(results: Mapping[str, Any]) -> str:
    version = (results.get("versions") or {}).get("semseg_diffusers")
    made = f"semseg-diffusers {version}" if version else "semseg-diffusers"
    return f"Written by {made}. All numbers in full: results.json beside this page."
