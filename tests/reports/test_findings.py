"""Findings follow from the numbers of an evaluation; its table and commands repeat them as text."""

import pytest
from helpers.evaluation_results import MISSING, RESULTS, changed, distances, features

from semseg_diffusers.reports.findings import (
    distance_keys,
    evaluation_findings,
    fraction_of_ceiling,
    read_distances,
    results_commands,
    results_table,
)


MEMORIZED = "Memorized photos, by org/dino"


def says(topic, results):
    return next((text for name, text in evaluation_findings(results) if name == topic), None)


@pytest.mark.parametrize(
    ("floor", "value", "ceiling", "words"),
    [
        (0.1, 0.5, 0.4, "easier to segment, as simple, typical images are, which does not make them better"),
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
        (float("nan"), 10.0, "Fréchet distance could not be computed"),
    ],
)
def test_fidelity_is_read_against_its_floor(fid, floor, words):
    results = changed(fidelity__0__references=[distances("val", 103, "train", fid, floor)])
    assert words in says("Likeness to real photos", results)


def test_features_of_the_segmenter_itself_are_said_to_know_little_of_looks():
    assert "most of the appearance" not in says("Likeness to real photos", RESULTS)
    assert "most of the appearance" in says("Likeness to real photos", changed(segmenter__name="org/dino"))


def test_close_pairs_and_close_medians_are_said():
    assert "3 generated images are closer" in says(MEMORIZED, RESULTS)
    assert "no closer to the training photos than unseen real photos are (median 0.201" in says(MEMORIZED, RESULTS)
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
    assert fraction_of_ceiling(0.3, 0.4, 0.31) is None
    assert fraction_of_ceiling(0.1, 0.4, 0.5) == 0.75


# Table and commands --------------------------------------------------------------------------------------------------


def test_the_table_puts_floor_and_ceiling_beside_each_number():
    assert results_table(RESULTS).splitlines()[2:6] == [
        "| mean IoU | higher | 0.123 | 0.392 | 0.452 |",
        "| pixel accuracy | higher | 0.432 | 0.811 | 0.844 |",
        "| Fréchet distance to val (org/dino) | lower | 12.3 | 40.0 | – |",
        "| kernel distance to val (org/dino) | lower | 0.0135 | 0.0494 | – |",
    ]
    piped = changed(fidelity__0__features=features("a|b", 3))
    assert "Fréchet distance to val (a\\|b)" in results_table(piped)


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("inception", ("FID", "KID")),
        ("inception:/weights/fidelity.pth", ("FID", "KID")),
        ("/weights/inception-2015-12-05.pt", ("FID", "KID")),
        ("inception-64.pt", ("Fréchet distance", "kernel distance")),
        ("facebook/dinov2-large", ("FD-DINOv2", "kernel distance")),
        ("efficientnet-lite2", ("Fréchet distance", "kernel distance")),
    ],
)
def test_fid_and_kid_are_distances_in_the_features_of_inception_only(features, names):
    frechet, kernel = distance_keys(features)
    for old in (False, True):  # files of earlier versions have one set of keys for all networks
        keys = ("fid", "kid") if old else (frechet, kernel)
        row = dict(zip(keys, (2.0, 0.25), strict=True)) | {f"{keys[1]}_std": 0.125}
        entry = {"features": {"name": features}, "references": [{"generated": row, "floor": {**row, "of": "train"}}]}
        found = read_distances(entry)
        assert tuple(found["names"].values()) == names
        for part in ("generated", "floor"):
            values = found["references"][0][part]
            assert (values["frechet"], values["kernel"], values["kernel_std"]) == (2.0, 0.25, 0.125)


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
