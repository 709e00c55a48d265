"""docs/how_to/study.md names every arm, and docs/results/ say what the studies measured."""

import json
from pathlib import Path
from typing import Any

from semseg_diffusers.evaluation.settings import ARMS
from semseg_diffusers.evaluation.study.results import paired_difference


DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "how_to" / "study.md").read_text(encoding="utf-8")
CONTROLS = ("real", "real_recolored", "real_pseudo")


def table(results: dict[str, Any]) -> list[str]:
    """Return the rows of a study's arms: pairs, mean IoU over the seeds, and its differences to the controls."""
    against = {(each["arm"], each["against"]["arm"]): each["mean_iou"] for each in results["comparisons"]}
    rows = []
    for arm in results["arms"]:
        score = arm["mean_iou"]
        cells = [arm["title"], f"{arm['num_pairs']:,}", f"{score['mean']:.3f} ± {score['std']:.3f}"]
        for control in CONTROLS:
            found = against.get((arm["arm"], control))
            cells.append(f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" if found else "")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def test_every_arm_is_on_the_page():
    for arm in ARMS:
        assert f"`{arm}`" in PAGE


def test_the_page_of_the_transfer_says_what_was_measured():
    page = (DOCS / "results" / "transfer.md").read_text(encoding="utf-8")
    for file in sorted((DOCS / "results").glob("transfer*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        assert results["forced"] == []
        for row in table(results):
            assert row in page


def rare_classes() -> list[str]:
    """Return the rows of the study of rare classes: means by class, and differences of arms by seed."""
    names = ("rare_classes.json", "rare_classes_copy_paste.json")
    studies = [json.loads((DOCS / "results" / name).read_text(encoding="utf-8")) for name in names]
    real, images, pasted, both = (arm for study in studies for arm in study["arms"])
    rows = []
    for label in (None, *real["iou"]):
        scores = [
            (arm["mean_iou"] if label is None else arm["iou"][label])["values"] for arm in (real, pasted, images, both)
        ]
        cells = [label or "**mean IoU**", *(f"{sum(values) / len(values):.3f}" for values in scores)]
        for one, other in ((1, 0), (2, 0), (2, 1), (3, 1)):
            found = paired_difference(scores[one], scores[other])
            cells.append(f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def changes_of_the_loop() -> list[str]:
    """Return the rows of what each change of the loop moves: differences to real photos, of the mean and classes."""
    rows = []
    for name, title in (
        ("", "as above"),
        ("_first", "images first, then photos"),
        ("_edits", "edited photos"),
        ("_edits_real", "edited photos that keep their labels"),
    ):
        study = json.loads((DOCS / "results" / f"rare_classes{name}.json").read_text(encoding="utf-8"))
        images = study["arms"][1]
        (found,) = study["comparisons"]
        cells = [title, f"{images['mean_iou']['mean']:.3f}"]
        for each in (found["mean_iou"], *(found["iou"][label] for label in ("road", "car", "person", "rider"))):
            cells.append(f"{each['mean']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def test_the_page_of_rare_classes_says_what_was_measured():
    page = (DOCS / "results" / "rare_classes.md").read_text(encoding="utf-8")
    assert all(row in page for row in [*rare_classes(), *changes_of_the_loop()])


def shares(name: str) -> list[str]:
    """Return the rows of a study of several shares: mean IoU of each arm, with its difference to real photos."""
    studied = json.loads((DOCS / "results" / name).read_text(encoding="utf-8"))["shares"]
    titles = dict.fromkeys(arm["title"] for entry in studied for arm in entry["arms"])
    rows = []
    for title in titles:
        cells = [title]
        for entry in studied:
            arm = next((each for each in entry["arms"] if each["title"] == title), None)
            key = arm and (arm["arm"], arm["amount"])
            against = [each for each in entry["comparisons"] if (each["arm"], each["amount"]) == key]
            found = against[0]["mean_iou"] if against else None
            gain = f", {found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" if found else ""
            cells.append(f"{arm['mean_iou']['mean']:.3f}{gain}" if arm else "")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def uses() -> list[str]:
    """Return the rows of uses of the same images: for 1x and 4x, mean IoU, less real photos, and less all alike."""
    titles = {
        "": "all alike (default)",
        "_first": "images first, then photos",
        "_relabel": "labels read again",
        "_hard": "hard masks more often",
        "_share": "half of each batch",
    }
    alike: dict[float, list[float]] = {}
    rows = []
    for name, title in titles.items():
        study = json.loads((DOCS / "results" / f"little_data{name}.json").read_text(encoding="utf-8"))
        study = next(entry for entry in study["shares"] if entry["num_real"] == 92) if "shares" in study else study
        images = {arm["amount"]: arm["mean_iou"] for arm in study["arms"] if arm["arm"] == "real_filtered"}
        less_real = {each["amount"]: each["mean_iou"] for each in study["comparisons"]}
        alike = alike or {amount: scores["values"] for amount, scores in images.items()}
        cells = [title]
        for amount in (1.0, 4.0):
            if amount not in images:
                cells += ["", "", ""]
                continue
            less = [less_real[amount]]
            less += [paired_difference(images[amount]["values"], alike[amount])] if name else []
            texts = [f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" for found in less]
            cells += [f"{images[amount]['mean']:.3f}", *texts, *[""] * (2 - len(texts))]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def test_the_page_of_little_data_says_what_was_measured():
    page = (DOCS / "results" / "little_data.md").read_text(encoding="utf-8")
    assert all(row in page for row in [*shares("little_data.json"), *uses()])
    (edits,) = json.loads((DOCS / "results" / "little_data_edits.json").read_text(encoding="utf-8"))["comparisons"]
    (ten,) = json.loads((DOCS / "results" / "little_data_ten.json").read_text(encoding="utf-8"))["comparisons"]
    quoted = (edits["mean_iou"], edits["iou"]["building"], edits["iou"]["car"], ten["mean_iou"], ten["iou"]["car"])
    for found in quoted:
        assert f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" in page
