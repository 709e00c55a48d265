"""The demo runs from end to end in small, and fails where the images do not carry their masks."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.training_runs import start
from PIL import Image

from semseg_diffusers import LabelSet
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.utils.images import grid_cells


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # where they import each other from
demo, first_images = (importlib.import_module(name) for name in ("demo", "first_images"))
CAMVID, BDD = LabelSet.from_preset("camvid"), LabelSet.from_preset("bdd100k")


def run_demo(output: Path, *options: str) -> tuple[int, str]:
    """Return the exit code and all that was written."""
    process = start(ROOT / "examples" / "demo.py", "--output", output, *options)
    said, _ = process.communicate(timeout=1200)
    return process.returncode, said


@pytest.mark.slow
def test_the_demo_writes_images_and_scores_and_fails_below_its_margin(tmp_path):
    small = ("--num_train", "32", "--num_val", "6", "--max_train_steps", "2", "--segmenter_steps", "2")
    small += ("--first_steps", "2")
    output = tmp_path / "demo"
    code, said = run_demo(output, *small, "--margin", "0.9")
    assert code == 1, said
    assert "expected at least 0.90. Train the network for longer" in said
    assert "do the images follow their masks?" in said
    assert re.search(r"the first image, \d+ s after all libraries were loaded", said)
    assert re.search(r"the first photo of 512 x 512, \d+ s after all libraries were loaded", said)
    assert [len(row) for row in grid_cells(Image.open(output / "large.png"))] == [4, 4]  # masks and photos
    assert {Image.open(path).size for path in (output / "large").glob("*.png")} == {(512, 512)}
    first = grid_cells(Image.open(output / "first.png"))
    assert [len(row) for row in first] == [5] * 5  # mask, student and three samplers
    assert len([*(output / "first").glob("*.png")]) == 25
    scores = json.loads((output / "evaluation" / "results.json").read_text())["agreement"]
    assert scores["generated"]["num_images"] == scores["real"]["num_images"] == 6
    cells = grid_cells(Image.open(output / "demo.png"))  # mask, before and after training, original
    assert [len(row) for row in cells] == [4] * 7
    assert json.loads((output / "run" / "settings.json").read_text())["init_from"].endswith("toy")

    folders = output / "a_street", output / "a_car_painted_in"
    street, edited = (np.asarray(Image.open(folder / "mask.png")) for folder in folders)
    changed = street != edited
    assert 0 < changed.mean() < 0.2
    images = [np.asarray(Image.open(folder / "image.png"), dtype=int) for folder in folders]
    difference = np.abs(images[0] - images[1]).sum(axis=2)
    assert difference[changed].mean() > 3 * difference[~changed].mean()  # the same noise: only the edit differs


@pytest.mark.parametrize("is_night", [False, True])
def test_snow_covers_the_ground_by_the_mask_and_leaves_the_rest(tmp_path, is_night):
    scene = next(s for s in map(draw_scene, range(50)) if (s[2]["timeofday"] == "night") == is_night)
    for name in ("train/images", "train/masks"):
        (tmp_path / name).mkdir(parents=True)
    BDD.save_json(tmp_path / "labels.json")
    scene[0].save(tmp_path / "train" / "images" / "a.png")
    BDD.decode(scene[1]).save(tmp_path / "train" / "masks" / "a.png")
    demo.let_it_snow(tmp_path)
    before, after = np.asarray(scene[0], dtype=int), np.asarray(Image.open(tmp_path / "train" / "images" / "a.png"))
    covered = np.isin(scene[1], [BDD.label2id[name] for name in demo.SNOW])
    assert np.array_equal(before[~covered], after[~covered])
    assert (after[covered].mean() - before[covered].mean()) > 25


@pytest.mark.slow
def test_the_demo_refuses_a_folder_with_other_files(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, said = run_demo(tmp_path)
    assert code == 1
    assert "holds files that the demo did not write" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("labels", "size"), [(CAMVID, 128), (BDD, 64)], ids=["camvid128", "toy"])
def test_the_masks_of_the_first_images_are_streets_in_the_model_classes(labels, size):
    masks = first_images.make_masks(labels, size)
    assert len(masks) == 5
    for title, ids in masks.items():
        assert (ids.shape, ids.dtype) == ((size, size), np.uint8), title
        labels.check_ids(ids)
        names = {labels.names[number] for number in np.unique(ids)}
        assert {"sky", "building", "road", "sidewalk", "vegetation", "car", "person"} <= names, title
        assert labels.names[ids[-1, size // 2]] == "road", title
        assert labels.names[ids[0, size // 2]] == "sky", title
    before, edited = masks[first_images.EDITED], masks[f"{first_images.EDITED}, edited"]
    assert 0.02 < (before != edited).mean() < 0.15


def test_the_painted_mask_is_read_by_its_palette_as_camvid_classes():
    picture = Image.open(first_images.PAINTED)
    assert (picture.mode, picture.size) == ("P", (128, 128))
    assert np.array_equal(CAMVID.encode(picture), np.asarray(picture))


def test_the_best_existing_checkpoint_is_used_and_a_fallback_named(tmp_path, monkeypatch, capsys):
    best, toy = tmp_path / "camvid128", tmp_path / "toy"
    monkeypatch.setattr(first_images, "CHECKPOINTS", (best, toy))
    with pytest.raises(SystemExit, match="do not exist; restore them from git"):
        first_images.find_checkpoint()
    for folder in (toy, best):
        folder.mkdir()
        (folder / "model_index.json").touch()
        assert first_images.find_checkpoint() == folder
    assert capsys.readouterr().out.count(f"{best} does not exist: using {toy}") == 1
