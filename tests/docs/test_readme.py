"""README.md and docs/results: their numbers are those of the result files, and the README stays a front page."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.page_blocks import blocks_of
from PIL import Image, ImageChops, ImageStat

from semseg_diffusers.reports.findings import read_distances
from semseg_diffusers.reports.render import number


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "docs" / "results"
CAMVID = (RESULTS / "camvid.md").read_text(encoding="utf-8")
GROWING = (RESULTS / "growing.md").read_text(encoding="utf-8")
MEASURES = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy"}


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results() -> dict:
    return read("camvid.json")


def rows() -> dict[str, list[str]]:
    """Return the table of results: measure -> its cells."""
    table = CAMVID.split("| measure | better |")[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in lines}


def test_agreement_of_the_table_is_that_of_the_results(results):
    for name, key in MEASURES.items():
        measured = [results["agreement"][row][key] for row in ("shuffled", "generated", "real")]
        assert rows()[name] == ["higher", *map(number, measured)]


def test_distances_of_the_table_are_those_of_the_results(results):
    imagenet, own = map(read_distances, results["fidelity"])
    for reference in imagenet["references"]:
        for key, title in imagenet["names"].items():
            floor, generated = (number(reference[part][key]) for part in ("floor", "generated"))
            assert f"| {title} to {reference['reference']} | lower | {floor} | {generated} |" in CAMVID
    own = own["references"][0]
    assert f"({number(own['generated']['frechet'])} against\n{number(own['floor']['frechet'])})" in CAMVID


def test_tables_of_distances_in_features_of_imagenet_are_those_of_their_file():
    found = read("distances.json")
    page = (ROOT / "docs" / "how_to" / "evaluating.md").read_text(encoding="utf-8")
    for title, measured in found["networks"]["efficientnet-lite2"].items():
        assert f"| {title} | {measured['frechet']['mean']:.3g} | {measured['kernel']['mean']:.3f} |" in page
    (entry,) = map(read_distances, found["evaluation"])
    for reference in entry["references"]:
        for key, name in entry["names"].items():
            floor, value = (number(reference[part][key]) for part in ("floor", "generated"))
            assert f"| {name} to {reference['reference']} | lower | {floor} | {value} |" in CAMVID


def test_text_beside_the_table_is_that_of_the_results(results):
    assert f"{results['data']['num_masks']} validation masks" in CAMVID
    assert f"takes {results['generation']['num_inference_steps']} steps" in CAMVID
    assert results["data"]["num_generated"] == 2 * results["data"]["num_masks"]
    assert "two seeds each" in CAMVID


def test_table_of_the_study_is_that_of_its_results():
    study = read("grow_camvid.json")
    over_real = {each["arm"]: each["mean_iou"] for each in study["comparisons"] if each["against"]["arm"] == "real"}
    for arm in study["arms"]:
        title = arm["title"].removesuffix(", 1x")
        (line,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", GROWING, flags=re.MULTILINE)
        mean, deviation, difference, rider, car = (cell.strip() for cell in line.split("|"))
        assert (float(mean), float(deviation)) == (
            round(arm["mean_iou"]["mean"], 3),
            round(arm["mean_iou"]["std"], 4),
        )
        assert [float(rider), float(car)] == [round(arm["iou"][name]["mean"], 3) for name in ("rider", "car")]
        if arm["arm"] in over_real:
            gain = over_real[arm["arm"]]
            assert difference == f"{gain['mean']:+.3f} ({gain['low']:.3f} to {gain['high']:.3f})"


def test_results_of_the_readme_are_those_of_the_files(results):
    text = " ".join(README.split("## Results")[1].split("## Documentation")[0].split())
    low, generated, high = (number(results["agreement"][row]["mean_iou"]) for row in ("shuffled", "generated", "real"))
    assert f"at {generated} mean IoU, between {low} for mismatched masks and {high}" in text
    (to_val,) = [each for each in read_distances(results["fidelity"][0])["references"] if each["reference"] == "val"]
    assert f"is {number(to_val['generated']['frechet'])} in features of ImageNet" in text
    assert f"reach {number(to_val['floor']['frechet'])};" in text
    study = read("grow_camvid.json")
    (gain,) = [
        each["mean_iou"]
        for each in study["comparisons"]
        if each["arm"] == "real_synthetic" and each["against"]["arm"] == "real"
    ]
    assert f"by {gain['mean']:+.3f} (95 % interval {gain['low']:.3f} to {gain['high']:.3f}, three seeds)" in text
    first_screen = " ".join(README.split("## ")[0].split())
    assert f"by {gain['mean']:+.3f}, within noise ({gain['low']:.3f} to {gain['high']:.3f})" in first_screen
    (transfer,) = [
        each
        for each in read("transfer.json")["comparisons"]
        if (each["arm"], each["against"]["arm"]) == ("real_synthetic", "real")
    ]
    gain, cars = transfer["mean_iou"], transfer["iou"]["car"]
    said = f"by {gain['mean']:+.3f} ({gain['low']:.3f} to {gain['high']:.3f}), where cars gain {cars['mean']:.3f}"
    assert said in first_screen
    (edits,) = read("rare_classes_edits_real.json")["comparisons"]
    assert (
        f"rare classes by {edits['mean_iou']['mean']:+.3f}, riders by {edits['iou']['rider']['mean']:+.3f}"
        in first_screen
    )
    share = next(entry for entry in read("little_data.json")["shares"] if entry["num_real"] == 92)
    assert f"cost {-share['comparisons'][0]['mean_iou']['mean']:.3f}" in first_screen
    assert f"{read('first_photo.json')['sum']:.0f} seconds from `git clone`" in text
    few = read("few_steps.json")["arms"]["turbo_4"]
    assert f"{few['gflop']:.0f} GFLOP and {few['seconds']:.2f} seconds of one core an image" in text
    assert f"distance is {few['frechet_features']:.1f} at {few['mean_iou']:.3f} mean IoU" in text
    assert f"by {few['diversity']['share']:.2f} of the teacher's distance" in text


def test_picture_of_the_readme_is_what_its_first_snippet_makes(tmp_path, monkeypatch):
    (snippet, *_) = [block for block in blocks_of(ROOT / "README.md") if block.language == "python"]
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    with torch.random.fork_rng(devices=[]):
        exec(compile(snippet.code, "README.md", "exec"), {})
    # demo/large.png in half of its size: four columns of 512 pixels, and 4 around each
    with Image.open("street.png") as made, Image.open(ROOT / "docs" / "images" / "front.jpg") as front:
        shown = front.crop((260, 2, 516, 258))
        difference = ImageStat.Stat(ImageChops.difference(made.convert("RGB").resize(shown.size), shown)).mean
    assert max(difference) < 4  # grey levels: convolutions differ a little between processors, and JPEG loses some


def test_addresses_of_the_repository_are_one():
    url = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M)[1]
    files = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md", *(ROOT / ".github").rglob("*.yml")]
    found = {name for file in files for name in re.findall(r"github\.com/[\w-]+/semseg_diffusers", file.read_text())}
    assert found == {url.removeprefix("https://")}


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_readme_is_a_front_page():
    assert len(README.splitlines()) < 200
    assert README.index("](docs/images/") < README.index("## ")  # a picture before all else
    sections = re.findall(r"^## (.+)$", README, flags=re.MULTILINE)
    contents = re.findall(r"\[([^]]+)\]\(#", README)
    assert contents == sections
