"""The filter's page: every number is on it, images of what was dropped, warnings by rule."""

import copy

import numpy as np
import pytest
from helpers.page_reading import PageReader, assert_self_contained, drawings, numbers_in
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.filter_page import choose_examples, write_filter_page
from semseg_diffusers.evaluation.filtering.rules import EASY_MASK, NOTHING_LABELLED, TOO_LITTLE_KEPT, Scored
from semseg_diffusers.reports.render import number, percent


LABELS = LabelSet(("road", "sky", "pole <b>", "lion"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (255, 0, 0)))
IMAGES = [Scored(f"scene{i}_0", f"scene{i}", (100, 0, 10, 0), (10 * i, 0, 1, 0), 0.1 * i) for i in range(10)]
REASONS = {f"scene{i}_0": TOO_LITTLE_KEPT for i in range(4)} | {"scene9_0": EASY_MASK}
RECORD = {
    "kind": "filter",
    "settings": {
        "tolerance_margin": 1.75,
        "minimum_kept": 0.375,
        "resample": True,
        "keep_unchecked": False,
        "segmenter_sha256": "sha256:aaaa",
    },
    "segmenter_sha256": "sha256:aaaa",
    "segmenter": {"name": "runs/filter", "validation": {"mean_iou": 0.4567}},
    "judge": {"name": "runs/judge", "weights_sha256": "sha256:bbbb"},
    "generated": "new",
    "real": "data/street (train)",
    "class_losses": {
        "key": "k",
        "names": list(LABELS.names),
        "mean": [0.1234, 0.2345, 3.456, None],
        "pixels": [71, 72, 73, 0],
        "num_photos": 367,
    },
    "reference": {
        "name": "data/street (val)",
        "num_photos": 101,
        "kept_share": 0.8123,
        "kept_share_by_class": {"road": 0.9012, "sky": 0.7013},
        "least_kept_share": 0.7719,
    },
    "results": {
        "num_images": 203,
        "num_kept": 157,
        "num_masks": 61,
        "num_masks_kept": 59,
        "num_dropped": {TOO_LITTLE_KEPT: 43, EASY_MASK: 3, NOTHING_LABELLED: 0},
        "kept_share": 0.6271,
        "kept_share_by_class": {"road": 0.6543, "pole <b>": 0.3217},
        "kept_share_of_kept_images": 0.7351,
        "least_kept_share": 0.1433,
        "pixels": {"road": 1009, "sky": 0, "pole <b>": 107, "lion": 0},
        "pixels_left": {"road": 811, "sky": 0, "pole <b>": 37, "lion": 0},
    },
    "seed": 5,
    "commit": "e1a6b80f",
    "versions": {"torch": "2.13.0"},
    "started": "2026-11-24T07:00:00+00:00",
}


def write(tmp_path, record=RECORD, reasons=REASONS, images=IMAGES):
    examples = choose_examples(images, reasons, seed=0)
    mask, photo = LABELS.decode(np.zeros((16, 16), np.uint8)), Image.new("RGB", (16, 16))
    pictures = {name: [mask, photo, mask, mask] for names in examples for name in names}
    write_filter_page(tmp_path / "filter.html", record, images, reasons, examples, pictures, LABELS)
    html = (tmp_path / "filter.html").read_text()
    assert_self_contained(html)
    return html, PageReader(html)


def test_every_number_is_on_the_page(tmp_path):
    html, page = write(tmp_path)
    results, reference = RECORD["results"], RECORD["reference"]
    counts = ("num_images", "num_kept", "num_masks", "num_masks_kept")
    expected = [number(results[name]) for name in counts]
    expected += [number(count) for count in results["num_dropped"].values() if count]
    expected += [number(value) for part in ("pixels", "pixels_left") for value in results[part].values()]
    expected += [number(value) for value in results["kept_share_by_class"].values()]
    expected += [number(value) for value in reference["kept_share_by_class"].values()]
    expected += [number(1.75 * mean) for mean in RECORD["class_losses"]["mean"] if mean is not None]
    assert set(expected) <= numbers_in(page.text)
    shares = [part[name] for part in (results, reference) for name in ("kept_share", "least_kept_share")]
    for share in (*shares, results["kept_share_of_kept_images"], 0.375):
        assert percent(share) in page.text
    for text in (
        "runs/filter",
        "0.457",
        "runs/judge",
        "sha256:aaaa",
        "sha256:bbbb",
        "367 photos of data/street (train)",
    ):
        assert text in page.text
    assert "--tolerance_margin 1.75" in page.text
    assert "--dataset data/street " in page.text
    assert "--resample" in page.text
    assert "pole <b>" in page.text  # escaped
    assert len(drawings(html)) >= 4


def test_dropped_and_kept_images_are_shown_in_four_pictures_each(tmp_path):
    html, page = write(tmp_path)
    assert page.tags.count("img") == 4 * (4 + 5 + 5)
    assert "scene0_0: keeps 0.909 %. Dropped: too little kept." in page.text
    assert "scene4_0: keeps 37.3 %." in page.text
    assert "scene9_0" not in page.text  # dropped for its mask, not for what it shows
    assert all(alt for alt in page.values("alt"))


def test_the_histogram_counts_every_image(tmp_path):
    _, page = write(tmp_path)
    rows = page.text.split("share kept")[1].split("Dropped Of the")[0]
    for text in (" 0 to 10 % 0 1", "10 to 20 % 0 2", "80 to 90 % 0 1", "70 to 80 % 1 0", "90 to 100 % 0 0"):
        assert text in rows


def test_classes_that_are_not_checked_or_not_recognized_are_warned_of(tmp_path):
    record = copy.deepcopy(RECORD)
    record["results"]["pixels"]["lion"] = 3
    _, page = write(tmp_path, record)
    assert "Not checked, because the real photos hold no pixel of them" in page.text
    assert "lion. Their labels became unknown." in page.text
    assert "no better than chance, so nearly all of their labels pass, right or wrong: pole <b>." in page.text
    _, page = write(tmp_path)
    assert "Not checked" not in page.text  # no mask holds a lion


def test_classes_that_are_generated_much_worse_than_in_photos_are_named(tmp_path):
    _, page = write(tmp_path)
    assert "Generated worst, by the share that keeps its label: road (65.4 %, in real photos 90.1 %)." in page.text
    record = copy.deepcopy(RECORD)
    record["results"]["kept_share_by_class"]["road"] = 0.85
    _, page = write(tmp_path, record)
    assert "Generated worst" not in page.text


def test_a_judge_that_is_the_filter_is_warned_of(tmp_path):
    record = copy.deepcopy(RECORD)
    assert "is no evidence" not in write(tmp_path, record)[1].text
    record["judge"]["weights_sha256"] = "sha256:aaaa"
    assert (
        "The judge is this very network: what it measures on these images is no evidence."
        in write(tmp_path, record)[1].text
    )


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        ({}, "No image was dropped for what it shows."),
        (dict.fromkeys((image.name for image in IMAGES), TOO_LITTLE_KEPT), "No image was kept."),
    ],
)
def test_groups_without_an_image_say_so(tmp_path, reasons, text):
    record = copy.deepcopy(RECORD)
    record["results"]["num_kept"] = len(IMAGES) - len(reasons)
    _, page = write(tmp_path, record, reasons)
    assert text in page.text
    assert ("No image is kept. Lower --minimum_kept" in page.text) == bool(reasons)


def test_what_is_not_known_is_left_out(tmp_path):
    record = copy.deepcopy(RECORD) | {"reference": None, "judge": None}
    record["segmenter"]["validation"] = None
    _, page = write(tmp_path, record)
    assert "no score of its own is known" in page.text
    assert "not given" in page.text
    assert "real photos the same rule" not in page.text
