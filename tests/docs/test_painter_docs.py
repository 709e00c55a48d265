"""docs/tutorials/painter.md and examples/: the times of a new user's path are those that were measured."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from semseg_diffusers import LabelSet


ROOT = Path(__file__).resolve().parents[2]


def test_times_of_the_page_are_those_of_the_results():
    results = json.loads((ROOT / "docs" / "results" / "first_photo.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "tutorials" / "painter.md").read_text(encoding="utf-8")
    table = page.split("| step | seconds |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", table, flags=re.MULTILINE))
    assert rows == {
        **{title: str(seconds) for title, seconds in results["seconds"].items()},
        "in all": str(results["sum"]),
    }


def test_seconds_of_a_stroke_are_those_of_the_results():
    results = json.loads((ROOT / "docs" / "results" / "painter_live.json").read_text(encoding="utf-8"))
    assert "enlarged by camvid-upscaler" in results["photo"]
    for page in ("tutorials/painter.md", "results/upscaling.md"):
        assert f"{results['median']:.2f} s " in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_painted_mask_has_the_classes_that_were_painted():
    path = ROOT / "examples" / "masks" / "painted.png"
    labels = LabelSet.from_preset("camvid")
    with Image.open(path) as picture:
        assert picture.size == (128, 128)
    names = {labels.id2label[class_id] for class_id in np.unique(labels.encode(path)).tolist()}
    assert names == {
        "sky", "building", "road", "sidewalk", "vegetation", "car", "rider", "person", "pole", "traffic sign",
    }  # fmt: skip
