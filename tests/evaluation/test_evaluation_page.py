"""The page of an evaluation: every number is on it, missing parts are named, mistakes are mapped."""

import copy
import re

import numpy as np
import pytest
import torch
from helpers.evaluation_results import LABELS, MISSING, RESULTS, changed, distances
from helpers.page_reading import PageReader, assert_self_contained, drawings, numbers_in
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluation_page import NO_CLASS, RIGHT, UNKNOWN, ReportImages, error_map, write_report
from semseg_diffusers.reports.render import exact, flatten, number, percent


def images(labels=LABELS):
    ids = np.random.default_rng(0).integers(0, labels.num_classes, (16, 16)).astype(np.uint8)
    mask, photo = labels.decode(ids), Image.fromarray(np.stack([ids * 20] * 3, axis=-1))
    example = [mask, photo, mask, error_map(ids, ids[::-1], labels), photo]
    return ReportImages(
        labels=labels,
        grid=[("a", [mask, photo, photo, photo]), ("b", [mask, None, photo])],
        examples={"a_0": example, "b_1": example},
        closest={("a_0", "t1"): (photo, photo)},
    )


def report(tmp_path, results, shown=None):
    write_report(tmp_path / "report.html", results, shown or ReportImages())
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def leaves(value):
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    if isinstance(value, list):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def test_every_number_and_text_of_the_results_is_on_the_page(tmp_path):
    text = PageReader(report(tmp_path, RESULTS, images())).text
    shown = numbers_in(text)
    for value in leaves({name: part for name, part in RESULTS.items() if name != "kind"}):
        if isinstance(value, str):
            assert value in text
        elif value is not None and value is not True and value is not False:
            assert {number(value), exact(value), percent(value).removesuffix(" %")} & shown, f"{value} is missing"


def test_every_setting_is_on_the_page_as_it_was_given(tmp_path):
    text = PageReader(report(tmp_path, RESULTS)).text
    for part in ("settings", "generation", "segmenter"):
        for name, value in flatten(RESULTS[part]):
            assert f"{name} {exact(value)}" in text


def test_pictures_are_inside_and_say_what_they_show(tmp_path):
    html = report(tmp_path, RESULTS, images())
    assert_self_contained(html)
    alts = PageReader(html).values("alt")
    assert len(alts) == 6 + 2 + 10
    assert "sample 2: a" in alts
    assert "mistakes: b_1, mean IoU 0.0915" in alts
    assert "b_1 (generated), t2 (training photo): 0.0408" in PageReader(html).text  # a pair without pictures


def test_the_legend_names_what_the_masks_show_and_unknown(tmp_path):
    mask = LABELS.decode(np.array([[2, 2], [0, 255]], dtype=np.uint8))
    html = report(tmp_path, RESULTS, ReportImages(labels=LABELS, grid=[("a", [mask, None, mask])]))
    (legend,) = re.findall(r'<ul class="classes">(.*?)</ul>', html)
    assert PageReader(legend).text == "road car unknown"


def test_the_same_results_give_the_same_page(tmp_path):
    assert report(tmp_path, RESULTS, images()) == report(tmp_path, copy.deepcopy(RESULTS), images())


def test_missing_parts_are_named(tmp_path):
    html = report(tmp_path, MISSING)
    assert_self_contained(html)
    text = PageReader(html).text
    assert text.count("Not measured.") == 5  # what it says, agreement, fidelity, diversity, neighbours
    assert "None" not in text
    assert "FID with 64 features was not measured: see the notes." in text
    assert "The paper's IoU was not measured" in text


def test_one_image_a_mask_is_the_reason_for_no_diversity(tmp_path):
    results = changed(diversity=None, settings__num_images_per_mask=1, paper_metrics__fid_64=None)
    results["paper_metrics"]["fid_64_missing"] = "no torch-fidelity"
    text = PageReader(report(tmp_path, results)).text
    assert "one image a mask was made, and seeds are compared from two on" in text
    assert "FID with 64 features was not measured: no torch-fidelity." in text


def test_names_from_users_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    labels = LabelSet((evil, "sky"), ((1, 2, 3), (4, 5, 6)))

    def poisoned(value):
        if isinstance(value, dict):
            return {key if key != "road" else evil: poisoned(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [poisoned(entry) for entry in value]
        return value + evil if isinstance(value, str) else value

    html = report(tmp_path, poisoned(RESULTS), ReportImages(labels=labels, grid=images(labels).grid))
    assert_self_contained(html)
    assert "<script" not in html


def class_bars(html):
    """Bar lengths by class."""
    rows = re.findall(
        r'<tr><th scope="row">(?:<span[^>]*></span>)?([^<]*)</th><td class="drawing">(<svg.*?</svg>)', html
    )
    return {name: [float(bar.get("width")[:-1]) for bar in drawings(svg)[0].iter("rect")] for name, svg in rows}


def test_class_bars_are_as_long_as_the_ious_and_in_the_order_of_the_labels(tmp_path):
    bars = class_bars(report(tmp_path, RESULTS, images()))
    assert list(bars) == ["mean IoU", "pixel accuracy", "road", "sky", "car"]
    assert bars["road"] == [87.1, 76.2, 35.4]
    assert bars["car"] == [41.3, 2.34, 0.18]


def test_one_class_and_a_hundred_and_fifty(tmp_path):
    one = {"iou": {"road": 0.5}, "mean_iou": 0.5, "pixel_accuracy": 0.9, "num_images": 1, "num_pixels": 4}
    html = report(tmp_path, changed(agreement={"real": one, "generated": one, "shuffled": None, "paper": None}))
    assert class_bars(html)["road"] == [50.0, 50.0]
    assert "without floor and ceiling this says little" in html

    names = tuple(f"class {index} {'long' * 40}" for index in range(150))
    labels = LabelSet(names, tuple((index, 2, 3) for index in range(150)))
    many = {**one, "iou": {name: index / 150 for index, name in enumerate(names)}}
    html = report(
        tmp_path,
        changed(agreement={"real": many, "generated": many, "shuffled": many, "paper": many}),
        images(labels),
    )
    assert_self_contained(html)
    assert len(class_bars(html)) == 152
    assert class_bars(html)[names[75]] == [50.0] * 3


def test_values_that_are_not_finite_stand_as_such(tmp_path):
    results = changed(
        agreement__generated__mean_iou=float("nan"),
        fidelity__0__references=[distances("val", 103, "train", float("nan"), 0.0)],
        diversity=[{**RESULTS["diversity"][0], "ratio": None}],
        neighbours__0__share_closer=None,
    )
    results["agreement"]["generated"]["iou"]["car"] = None
    results["agreement"]["real"]["iou"]["car"] = float("nan")
    html = report(tmp_path, results, images())
    assert_self_contained(html)
    text = PageReader(html).text
    assert "n/a" in text
    assert not {"nan", "None"} & set(re.findall(r"\w+", text))
    assert class_bars(html)["car"] == [0.18]


def test_distances_are_drawn_where_they_are_given(tmp_path):
    given = {"generated": [0.1, 0.2], "real": [0.1, 0.3, 0.4]}
    html = report(tmp_path, changed(neighbours__0__distances=given))
    strips = [svg for svg in drawings(html) if any(line.get("class") == "mark" for line in svg.iter("line"))]
    assert [sum(line.get("stroke-width") == "2" for line in svg.iter("line")) for svg in strips] == [3, 2]


def test_few_images_for_many_features_bring_a_warning(tmp_path):
    html = report(tmp_path, RESULTS)
    assert html.count('<p class="warning">') == 1
    assert "fewer images than features" in html


# Error map -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_the_error_map_shows_what_wrong_pixels_were_taken_for(kind):
    mask = np.array([[0, 0, 0, 255]], dtype=np.uint8)
    prediction = np.array([[0, 2, 255, 1]], dtype=np.uint8)
    picture = error_map(kind(prediction), kind(mask), LABELS)
    assert picture.mode == "P"
    right, wrong, no_class, unknown = np.asarray(picture.convert("RGB"))[0].tolist()
    assert right == list(RIGHT)
    assert wrong == list(LABELS.colors[2])
    assert no_class == list(NO_CLASS)
    assert tuple(unknown) in UNKNOWN


def test_the_error_map_refuses_what_does_not_fit():
    ids = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"must both be \(H, W\); got \(2, 3\) and \(2, 2\)"):
        error_map(np.zeros((2, 3), dtype=np.uint8), ids, LABELS)
    with pytest.raises(ValueError, match="the prediction.*holds class 9"):
        error_map(ids + 9, ids, LABELS)
