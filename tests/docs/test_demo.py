"""The demo runs from end to end in small, and fails where the images do not carry their masks."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers import LabelSet
from semseg_diffusers.utils.images import grid_cells


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # where they import each other from
first_pictures = importlib.import_module("first_pictures")
CAMVID, BDD = LabelSet.from_preset("camvid"), LabelSet.from_preset("bdd100k")


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
    small += ("--first_steps", "2")
    result = run_demo(tmp_path / "demo", *small, "--margin", "0.9")
    assert result.returncode == 1, result.stderr
    assert "wanted 0.90. The network has not learned to follow masks" in result.stderr
    assert "do the images carry their masks?" in result.stdout
    assert re.search(r"the first picture, \d+ s after all libraries were loaded", result.stdout)
    first = grid_cells(Image.open(tmp_path / "demo" / "first.png"))
    assert [len(row) for row in first] == [4] * 5  # mask and three samplers
    assert len([*(tmp_path / "demo" / "first").glob("*.png")]) == 20
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


@pytest.mark.parametrize(("labels", "size"), [(CAMVID, 128), (BDD, 64)], ids=["camvid128", "toy"])
def test_the_masks_of_the_first_pictures_are_streets_in_the_model_classes(labels, size):
    masks = first_pictures.make_masks(labels, size)
    assert len(masks) == 5
    for title, ids in masks.items():
        assert (ids.shape, ids.dtype) == ((size, size), np.uint8), title
        labels.check_ids(ids)
        names = {labels.names[number] for number in np.unique(ids)}
        assert {"sky", "building", "road", "sidewalk", "vegetation", "car", "person"} <= names, title
        assert labels.names[ids[-1, size // 2]] == "road", title
        assert labels.names[ids[0, size // 2]] == "sky", title
    before, edited = masks[first_pictures.EDITED], masks[f"{first_pictures.EDITED}, edited"]
    assert 0.02 < (before != edited).mean() < 0.15


def test_the_painted_mask_is_read_by_its_palette_as_camvid_classes():
    picture = Image.open(first_pictures.PAINTED)
    assert (picture.mode, picture.size) == ("P", (128, 128))
    assert np.array_equal(CAMVID.encode(picture), np.asarray(picture))


def test_the_first_checkpoint_that_is_there_draws_and_another_is_named(tmp_path, monkeypatch, capsys):
    best, toy = tmp_path / "camvid128", tmp_path / "toy"
    monkeypatch.setattr(first_pictures, "CHECKPOINTS", (best, toy))
    with pytest.raises(SystemExit, match="are not there; get them back from git"):
        first_pictures.find_checkpoint()
    for folder in (toy, best):
        folder.mkdir()
        (folder / "model_index.json").touch()
        assert first_pictures.find_checkpoint() == folder
    assert capsys.readouterr().out.count(f"{best} is not there: {toy} draws") == 1
