"""README.md says what is measured, names what there is, and stays a front page."""

import json
import re
from pathlib import Path

import pytest

from semseg_diffusers.reports.html import number


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURES = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy"}


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((ROOT / "docs" / "results" / "camvid.json").read_text(encoding="utf-8"))


def rows() -> dict[str, list[str]]:
    """The table of results: measure -> its cells."""
    table = README.split("| measure | better |")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in lines}


def test_agreement_of_the_table_is_that_of_the_results(results):
    for name, key in MEASURES.items():
        measured = [results["agreement"][row][key] for row in ("shuffled", "generated", "real")]
        assert rows()[name] == ["higher", *map(number, measured)]


def test_distances_of_the_table_are_those_of_the_results(results):
    (features,) = results["fidelity"]
    for reference in features["references"]:
        for key in ("fid", "kid"):
            (cells,) = [
                cells
                for name, cells in rows().items()
                if name.startswith(f"{key.upper()} to {reference['reference']}")
            ]
            assert cells == ["lower", number(reference["floor"][key]), number(reference["generated"][key]), "–"]


def test_text_beside_the_table_is_that_of_the_results(results):
    assert f"{results['data']['num_masks']} validation masks" in README
    generation = results["generation"]
    assert f"takes {generation['num_inference_steps']} steps" in README
    assert results["data"]["num_generated"] == 2 * results["data"]["num_masks"]
    assert "two seeds each" in README


def test_table_of_the_study_is_that_of_its_results():
    study = json.loads((ROOT / "docs" / "results" / "grow_camvid.json").read_text(encoding="utf-8"))
    over_real = {each["arm"]: each["mean_iou"] for each in study["comparisons"] if each["against"]["arm"] == "real"}
    for arm in study["arms"]:
        title = arm["title"].removesuffix(", 1x")
        (line,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", README, flags=re.MULTILINE)
        mean, deviation, difference, rider, car = (cell.strip() for cell in line.split("|"))
        assert (float(mean), float(deviation)) == (
            round(arm["mean_iou"]["mean"], 3),
            round(arm["mean_iou"]["std"], 4),
        )
        assert [float(rider), float(car)] == [round(arm["iou"][name]["mean"], 3) for name in ("rider", "car")]
        if arm["arm"] in over_real:
            gain = over_real[arm["arm"]]
            assert difference == f"{gain['mean']:+.3f} ({gain['low']:.3f} to {gain['high']:.3f})"


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_readme_is_a_front_page():
    assert len(README.splitlines()) < 200
    assert README.index("![") < README.index("## ")  # a picture before all else
