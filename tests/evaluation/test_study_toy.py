"""The study on toy scenes: correct synthetic data helps, mislabelled data harms, and the page says so."""

import json

import pytest
from helpers.page_reading import PageReader
from helpers.study_place import shuffle_masks, study, write_scenes_as_generated

from semseg_diffusers.toy.scenes import write_toy_dataset


pytestmark = pytest.mark.slow

SIZE = 48
OPTIONS = ("--architecture", "segformer-mini", "--max_train_steps", 300, "--amounts", 15, "--jobs", 1)
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return a dataset of four training and 24 validation images."""
    folder = tmp_path_factory.mktemp("study")
    return write_toy_dataset(folder / "toy", num_train=4, num_val=24, size=(SIZE, SIZE), seed=0)


@pytest.mark.parametrize(
    ("spoiled", "reading", "says"),
    [
        (False, "better", ": beyond the noise between seeds."),
        (True, "worse", ": worse, beyond the noise between seeds."),
    ],
    ids=["useful", "mislabelled"],
)
def test_synthetic_data_helps_with_correct_labels_and_harms_with_wrong_ones(toy, tmp_path, spoiled, reading, says):
    generated = write_scenes_as_generated(tmp_path / "generated", 60, SIZE)
    arms = ["real", "real_synthetic"] if spoiled else ["real", "real_duplicated", "real_synthetic"]
    if spoiled:
        shuffle_masks(generated)
    study("--dataset", toy, "--generated", generated, "--output", tmp_path / "out", *OPTIONS, *CPU, "--arms", *arms)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [each for each in results["comparisons"] if each["arm"] == "real_synthetic"]
    assert [each["mean_iou"]["reading"] for each in found] == [reading] * (len(arms) - 1)  # to each of the others
    text = PageReader((tmp_path / "out" / "report.html").read_text()).text
    over_real = next(each["text"] for each in results["findings"] if each["topic"].startswith("Real + synthetic"))
    assert f"over real photos{says}" in over_real
    assert over_real in text
