"""Attributes take effect: a network trained for a minute on toy scenes generates dark nights and grey rain."""

import json
from pathlib import Path

import pytest
from helpers.training_runs import start
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]


def run_example(output: Path, *options: str) -> tuple[int, str]:
    """Return the exit code and all that was written."""
    process = start(ROOT / "examples" / "attributes.py", "--output", output, *options)
    said, _ = process.communicate(timeout=1200)
    return process.returncode, said


@pytest.mark.slow
def test_night_is_dark_and_rain_grey_from_the_same_noise(tmp_path):
    small = ("--resolution", "32", "--num_train", "800", "--num_val", "8", "--max_train_steps", "600")
    code, said = run_example(tmp_path / "attributes", *small, "--num_inference_steps", "10", "--share", "0.25")
    assert code == 0, said
    results = json.loads((tmp_path / "attributes" / "results.json").read_text())
    for question in ("night is darker", "rain is greyer"):
        found = results[question]
        assert found["real_separated"] > 0.98  # the measure separates real images of the two looks
        assert found["share"] > 0.25
        assert found["streets_separated"] >= 0.75
    with Image.open(tmp_path / "attributes" / "attributes.png") as image:
        assert image.width > 4 * 128


@pytest.mark.slow
def test_an_untrained_network_fails_and_a_folder_with_files_is_refused(tmp_path):
    small = ("--resolution", "32", "--num_train", "40", "--num_val", "2", "--max_train_steps", "1")
    code, said = run_example(tmp_path / "attributes", *small, "--num_inference_steps", "2")
    assert code == 1
    assert "error: too small a difference: night is darker, rain is greyer. Train the network for longer." in said
    code, said = run_example(tmp_path / "attributes", *small)
    assert code == 1
    assert "attributes' is not empty; give another --output, or remove it" in said
