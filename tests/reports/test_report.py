"""The evaluation's page: every number is on it, its sentences follow from the numbers, missing parts are named."""

import copy
import re

import numpy as np
import pytest
import torch
from helpers.page_reading import PageReader, assert_self_contained, drawings, numbers_in
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluation_page import (
    NO_CLASS,
    RIGHT,
    UNKNOWN,
    ReportImages,
    error_map,
    write_report,
)
from semseg_diffusers.reports.evaluation_text import results_commands, results_table
from semseg_diffusers.reports.findings import evaluation_findings, fraction_of_ceiling
from semseg_diffusers.reports.render import exact, flatten, number, percent


LABELS = LabelSet(("road", "sky", "car", "rider"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (255, 0, 0)))


def scores(mean_iou, accuracy, values, images, pixels, **more):
    iou = dict(zip(LABELS.names, values, strict=False))
    counts = {"num_images": images, "num_pixels": pixels}
    return {"mean_iou": mean_iou, "pixel_accuracy": accuracy, "iou": iou, "absent": ["rider"], **counts, **more}


def features(name, num_features):
    shape = {"num_features": num_features, "input_size": [98, 99]}
    return {"name": name, "revision": "sha256:ab", "architecture": "Dinov2Model", **shape}


def distances(reference, num_reference, of, fid, floor):
    kid, other = fid / 811, floor / 911
    return {
        "reference": reference,
        "num_reference": num_reference,
        "n": 61,
        "generated": {"fid": fid, "kid": kid, "kid_std": kid / 17, "kid_subset_size": 53},
        "floor": {"of": of, "fid": floor, "kid": other, "kid_std": other / 13},
    }


# Numbers are all different, so that each one found on the page is its own.
RESULTS = {
    "kind": "evaluation",
    "settings": {
        "model": "runs/street",
        "generated": None,
        "dataset": "data/street",
        "split": "val",
        "segmenter": "runs/judge",
        "features": ["org/dino", "file.pt"],
        "num_images_per_mask": 2,
        "seed": 7,
        "batch_size": 16,
        "guidance_scale": 3.25,
    },
    "seed": 7,
    "commit": "e1a6b80f",
    "versions": {"semseg_diffusers": "0.1.0", "torch": "2.13.0"},
    "started": "2026-11-24T07:00:00+00:00",
    "seconds": {"generation": 301.7, "total": 388.2},
    "resolution": [120, 136],
    "data": {
        "num_real": 103,
        "num_train": 369,
        "num_generated": 206,
        "num_masks": 101,
        "masks_without_labels": ["empty_mask"],
    },
    "generation": {"scheduler": "DPM", "num_inference_steps": 21, "seed": 5, "size": {"h": 120}},
    "segmenter": {
        "name": "runs/judge",
        "architecture": "Segformer",
        "num_parameters": 3716427,
        "input_size": [250, 252],
        "not_judged": ["wagon"],
        "validation": {"mean_iou": 0.4713, "step": 3200},
    },
    "agreement": {
        "real": scores(0.4523, 0.8441, [0.871, 0.932, 0.413], 103, 1625788),
        "generated": scores(
            0.3917, 0.8112, [0.762, 0.853, 0.0234], 206, 3251576, pixel_share={"road": 0.61, "sky": 0.37, "car": 0.02}
        ),
        "shuffled": scores(0.1231, 0.4319, [0.354, 0.265, 0.00176], 206, 3251000),
        "paper": scores(0.4411, 0.8637, [0.783, 0.874, 0.0445], 204, 3309568),
    },
    "fidelity": [
        {
            "features": features("org/dino", 386),
            "references": [
                {**distances("val", 103, "train", 40.04, 12.31), "note": "fewer images than features"},
                distances("train", 369, "val", 44.2, 12.9),
            ],
        },
        {
            "features": features("file.pt", 31),
            "references": [distances("val", 103, "train", 1.07, 0.62)],
        },
    ],
    "paper_metrics": {
        "fid_64": 1.063, "fid_64_floor": 0.218, "fid_64_missing": None, "ssim_paired": 0.3142, "ssim_unrelated": 0.2871
    },
    "diversity": [
        {
            "features": "org/dino",
            "within_masks": 0.2142,
            "between_masks": 0.6017,
            "real_between": 0.6631,
            "ratio": 0.356,
            "num_masks": 101,
            "samples_per_mask": 2,
        }
    ],
    "neighbours": [
        {
            "features": "org/dino",
            "reference": "train",
            "generated_median": 0.2013,
            "real_median": 0.1812,
            "threshold": 0.0511,
            "threshold_is": "1st percentile of real photos' distance to train",
            "num_closer": 3,
            "share_closer": 0.0146,
            "closest": [
                {"image": "a_0", "train_stem": "t1", "distance": 0.0307, "mirrored": True},
                {"image": "b_1", "train_stem": "t2", "distance": 0.0408, "mirrored": False},
            ],
        },
    ],
    "examples": {
        "rule": "mean IoU over the classes that the mask holds",
        "best": [{"image": "a_0", "stem": "a", "mean_iou": 0.713}],
        "worst": [{"image": "b_1", "stem": "b", "mean_iou": 0.0915}],
    },
    "notes": ["The Inception features were left out."],
}  # fmt: skip
MEMORIZED = "Memorized photos, by org/dino"
MISSING = {
    **RESULTS,
    "generation": None,
    "segmenter": None,
    "agreement": None,
    "fidelity": [],
    "paper_metrics": None,
    "diversity": None,
    "neighbours": None,
    "examples": None,
    "commit": None,
    "notes": [],
}


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


def changed(**parts):
    """The results with values at paths, `agreement__real__mean_iou=0.4`."""
    results = copy.deepcopy(RESULTS)
    for path, value in parts.items():
        *outer, last = path.split("__")
        at = results
        for key in outer:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value
    return results


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


# What the numbers say ------------------------------------------------------------------------------------------------


def says(topic, results):
    return next((text for name, text in evaluation_findings(results) if name == topic), None)


@pytest.mark.parametrize(
    ("floor", "value", "ceiling", "words"),
    [
        (0.1, 0.5, 0.4, "easier to read, which does not make them better"),
        (0.1, 0.4, 0.4, "100 % of the way from floor to ceiling: almost as well as real photos"),
        (0.1, 0.3, 0.4, "66.7 % of the way from floor to ceiling: the images follow their masks for the most part"),
        (0.1, 0.2, 0.4, "33.3 % of the way from floor to ceiling: the images follow their masks in part"),
        (0.1, 0.12, 0.4, "6.67 % of the way from floor to ceiling: the images hardly follow their masks"),
        (0.1, 0.1, 0.4, "no better than masks of other images"),
        (0.1, 0.05, 0.4, "no better than masks of other images"),
        (0.39, 0.4, 0.4, "too close for a conclusion"),
        (0.1, 0.2, None, "without floor and ceiling this says little"),
    ],
)
def test_agreement_is_read_between_floor_and_ceiling(floor, value, ceiling, words):
    results = changed(
        agreement__shuffled__mean_iou=floor, agreement__generated__mean_iou=value, agreement__real__mean_iou=ceiling
    )
    assert words in says("Agreement with the masks", results)


@pytest.mark.parametrize(
    ("fid", "floor", "words"),
    [
        (40.0, 10.0, "4.00 times the floor, so the set can be distinguished from real photos"),
        (12.0, 10.0, "1.20 times the floor, close to what real photos reach"),
        (9.0, 10.0, "no farther away than real photos"),
        (9.0, 0.0, "without a floor this says little"),
        (float("nan"), 10.0, "FID could not be computed"),
    ],
)
def test_fidelity_is_read_against_its_floor(fid, floor, words):
    results = changed(fidelity__0__references=[distances("val", 103, "train", fid, floor)])
    assert words in says("Likeness to real photos", results)


def test_features_of_the_segmenter_itself_are_said_to_know_little_of_looks():
    assert "most of the appearance" not in says("Likeness to real photos", RESULTS)
    assert "most of the appearance" in says("Likeness to real photos", changed(settings__segmenter="org/dino"))


def test_close_pairs_and_close_medians_are_said():
    assert "3 generated images are closer" in says(MEMORIZED, RESULTS)
    assert "no closer to the training photos than unseen real photos do (median 0.201" in says(MEMORIZED, RESULTS)
    one = says(MEMORIZED, changed(neighbours__0__num_closer=1, neighbours__0__generated_median=0.1))
    assert "1 generated image is closer" in one
    assert "a sign of copying" in one
    assert says(MEMORIZED, changed(neighbours__0__num_closer=0)).startswith("No generated image is closer")


def test_diversity_says_where_the_seed_or_the_set_changes_little():
    assert says("Diversity", RESULTS) == (
        "Images of one mask differ 0.356 times as much as images of different masks. "
        "Images of different masks differ 0.907 times as much as different real photos."
    )
    dull = says(
        "Diversity",
        RESULTS | {"diversity": [{"ratio": 0.05, "between_masks": 0.3, "real_between": 0.6}]},
    )
    assert "the seed hardly changes the image" in dull
    assert "less varied than real photos" in dull
    assert "could not be compared" in says("Diversity", RESULTS | {"diversity": [{"ratio": None}]})


def test_few_masks_are_said():
    assert says("Size", RESULTS) is None
    assert "Only 12 masks" in says("Size", changed(data__num_masks=12))


def test_nothing_measured_says_nothing():
    assert evaluation_findings(MISSING) == []
    assert fraction_of_ceiling(None, 0.5, 1.0) is None


# Table, command, error map -------------------------------------------------------------------------------------------


def test_the_table_puts_floor_and_ceiling_beside_each_number():
    assert results_table(RESULTS).splitlines()[2:6] == [
        "| mean IoU | higher | 0.123 | 0.392 | 0.452 |",
        "| pixel accuracy | higher | 0.432 | 0.811 | 0.844 |",
        "| FID to val (org/dino) | lower | 12.3 | 40.0 | – |",
        "| KID to val (org/dino) | lower | 0.0135 | 0.0494 | – |",
    ]
    piped = changed(fidelity__0__features=features("a|b", 3))
    assert "FID to val (a\\|b)" in results_table(piped)


def test_the_commands_are_quoted_and_leave_out_what_was_not_given():
    settings = {
        "model": "runs/a",
        "dataset": "my data",
        "segmenter_size": [96, 160],
        "num_masks": None,
        "features": [],
    }
    (command,) = results_commands({"settings": settings}, "my runs/a", separator=" \\\n  ")
    assert command == (
        "semseg-diffusers evaluate \\\n  --model 'my runs/a' \\\n  --dataset 'my data' \\\n  --segmenter_size 96x160 "
        "\\\n  --features none"
    )


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
