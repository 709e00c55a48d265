"""The demo runs from end to end in small, and fails where the images do not carry their masks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent


def run_demo(output: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--output", str(output), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


@pytest.mark.slow
def test_the_demo_leaves_picture_and_table_and_fails_below_its_margin(tmp_path):
    small = ("--num_train", "32", "--num_val", "6", "--max_train_steps", "2", "--segmenter_steps", "2")
    result = run_demo(tmp_path / "demo", *small, "--margin", "0.9")
    assert result.returncode == 1, result.stderr
    assert "wanted 0.90. The network has not learned to follow masks" in result.stderr
    assert "do the images carry their masks?" in result.stdout
    scores = json.loads((tmp_path / "demo" / "evaluation" / "results.json").read_text())["agreement"]
    assert scores["generated"]["num_images"] == scores["real"]["num_images"] == 6
    picture = Image.open(tmp_path / "demo" / "demo.png")
    assert picture.width > 3 * 192
    assert picture.height > 7 * 192

    before, edited = (Image.open(tmp_path / "demo" / name / "street.png") for name in ("before", "edited"))
    assert before.tobytes() != edited.tobytes()
    seeds = [
        json.loads((tmp_path / "demo" / name / "metadata.jsonl").read_text())["seed"]
        for name in ("generated_before", "generated_edited")
    ]
    assert seeds[0] == seeds[1]


@pytest.mark.slow
def test_the_demo_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = run_demo(tmp_path)
    assert result.returncode == 1
    assert "holds something that is not a demo's" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
