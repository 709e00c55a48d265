"""The page of a grown dataset: what each stage found, and the commands that did it, in one self-contained file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, REASONS
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.reports.figures import wide_picture
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
    table,
    write_page,
)


# stage -> its own page
PAGES = {
    "statistics": "index.html",
    "train": "run.html",
    "enrich": "statistics.html",
    "filter": "filter.html",
    "study": "report.html",
}
SHEET_COLUMNS = 4  # of the contact sheet, as wide as the page shows them


def write_growth_page(
    path: Path, dataset: str, model: str | None, done: Mapping[str, tuple[Path, str]], remaining: Sequence[str]
) -> Path:
    """Write the page of the stages done so far.

    Args:
        path: the HTML file.
        dataset: that was grown.
        model: diffusion model; None if it was trained for this dataset.
        done: stage -> (its folder, its command).
        remaining: names of the other stages.

    Returns:
        the path.
    """
    writers = {
        "study": _study, "statistics": _statistics, "enrich": _enrich, "generate": _generate, "filter": _filter,
        "merge": _merge,
    }  # fmt: skip
    sections = [write(done[name][0]) for name, write in writers.items() if name in done]
    sections.append(section("Commands", commands([command for _, command in done.values()])))
    lead = f"Grown from {dataset}, with {model or 'a model trained for it'}."
    if remaining:
        lead += f" Still to be done: {', '.join(remaining)}."
    write_page(path, page("A dataset grown", sections, lead=lead))
    return path


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _own_page(folder: Path, name: str) -> Markup:
    """A link to the page of a stage; the page of the whole lies above its folder."""
    return Markup('<p><a href="{0}/{1}">{0}/{1}</a></p>\n').format(folder.name, PAGES[name])


def _study(folder: Path) -> Section:
    results = _read(folder / "results.json")
    says = bullets(
        Markup("<strong>{}.</strong> {}").format(each["topic"], each["text"]) for each in results["findings"]
    )
    rows = [
        [arm["title"], arm["mean_iou"]["mean"], arm["mean_iou"]["std"], arm["num_pairs"], arm["num_synthetic"]]
        for arm in results["arms"]
    ]
    headers = ["trained on", "mean IoU", "std over seeds", "pairs", "of them synthetic"]
    return section("What it brings", says, table(headers, rows), _own_page(folder, "study"))


def _statistics(folder: Path) -> Section:
    record = _read(folder / "stats.json")
    share = {row["name"]: row["pixel_share"] for row in record["classes"]}
    rows = [
        [entry["name"], percent(share[entry["name"]]), "; ".join(reason["text"] for reason in entry["reasons"])]
        for entry in record["weak_classes"]
    ]
    text = f"{record['num_masks']} masks. " + ("No class is weak." if not rows else "Classes that are weak in them:")
    content = table(["class", "share of the pixels", "why"], rows) if rows else Markup("")
    return section("What the masks lack", paragraph(text), content, _own_page(folder, "statistics"))


def _enrich(folder: Path) -> Section:
    record = _read(folder / "enrich.json")
    rows = [
        [entry["name"], f"{entry['wished']:g} x", f"{entry['reached']:.2f} x", percent(entry["share_after"])]
        for entry in record["wishes"]
    ]
    return section(
        "New masks",
        paragraph(f"{record['num_masks']} masks of the dataset with more things in them."),
        table(["class", "wished", "reached", "share of the pixels"], rows),
        _own_page(folder, "enrich"),
    )


def _generate(folder: Path) -> Section:
    record = _read(folder / "generation.json")
    how = (
        f"{len(read_metadata(folder)):,} images by {record['model']}: {record['scheduler']}, "
        f"{record['num_inference_steps']} steps, guidance {record['guidance_scale']:g}."
    )
    with Image.open(folder / "contact_sheet.png") as sheet:
        shown = wide_picture(sheet.convert("RGB"), "masks and what was drawn from them", SHEET_COLUMNS)
    return section("Images", paragraph(how), shown)


def _filter(folder: Path) -> Section:
    record = _read(folder / FILTER_FILE)
    results, reference = record["results"], record["reference"]
    told = {"Kept": f"{number(results['num_kept'])} of {number(results['num_images'])} images"}
    dropped = [f"{number(count)} {REASONS[name]}" for name, count in results["num_dropped"].items() if count]
    if dropped:
        told["Dropped"] = "; ".join(dropped)
    told["Labels left in the kept"] = percent(results["kept_share_of_kept_images"])
    if reference is not None:
        told[f"The same rule on real photos ({reference['name']})"] = percent(reference["kept_share"])
    return section("Filter", facts(told), _own_page(folder, "filter"))


def _merge(folder: Path) -> Section:
    record = _read(folder / "prepare.json")
    synthetic = record["synthetic"]
    told = {
        "Folder": f"{folder.name}/",
        "Pairs": ", ".join(f"{split} {number(count)}" for split, count in record["splits"].items()),
        "Synthetic": f"{number(synthetic['count'])} of the split {synthetic['split']}",
        "Model": f"{synthetic['model']}, {synthetic['revision']}",
        "Licence": synthetic["license"] or "not known: fill it in before you publish",
    }
    publish = f"semseg-diffusers push --dataset {folder} --repo_id USER/NAME"
    return section("The dataset", facts(told), commands([publish]))
