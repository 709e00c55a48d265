"""examples/first_day.py: KITTI's pairs with classes of one's own become images, by the commands that the docs name."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.training_runs import start
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_first_day_leads_from_photos_of_ones_own_to_images(tmp_path, data_root):
    words = (data_root / "kitti", tmp_path / "day", "--max_train_steps", 1)
    process = start(ROOT / "examples" / "first_day.py", *words, "--train_batch_size", 1)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    folder = tmp_path / "day"
    assert "dynamic thing from car, person, rider" in said
    assert "every class is in few images" in said
    assert len(list((folder / "images" / "images").glob("*.png"))) == 12
    assert json.loads((folder / "enriched" / "enrich.json").read_text())["num_masks"] == 12
    assert set(json.loads((folder / "minutes.json").read_text())) >= {"check", "prepare", "train", "enrich", "grow"}
    for sheet in ("images/contact_sheet.png", "enriched/contact_sheet.png", "statistics/stats.png"):
        Image.open(folder / sheet).verify()
    if shutil.which("chromium"):
        sizes = [Image.open(folder / f"painter_{name}.png").size[0] for name in ("desktop", "phone")]
        assert sizes == [1280, 390]
