"""The filter's rules: thresholds are per class, harder masks keep more images."""

import dataclasses
import json

import numpy as np
import pytest

from semseg_diffusers.evaluation.filtering.filter_page import LEGEND, NOT_CHECKED, choose_examples, loss_map
from semseg_diffusers.evaluation.filtering.rules import (
    EASY_MASK,
    NOTHING_LABELLED,
    TOO_LITTLE_KEPT,
    ClassLosses,
    Scored,
    filter_ids,
    images_to_keep,
    mask_hardness,
    ranks_of,
    read_filter,
    reasons_to_drop,
)
from semseg_diffusers.evaluation.settings import FilterSettings


# Pixels --------------------------------------------------------------------------------------------------------------


def test_pixels_above_the_threshold_of_their_own_class_become_unknown():
    ids = np.array([[0, 0, 1, 1, 255]])
    losses = np.array([[0.5, 0.6, 0.6, 2.0, np.nan]])
    assert filter_ids(ids, losses, np.array([0.5, 1.0]), 255).tolist() == [[0, 255, 1, 255, 255]]


def test_a_class_without_threshold_becomes_unknown_or_is_kept():
    losses = ClassLosses("", ("sky", "car"), (0.4, None), (10, 0), 1)
    ids, measured = np.array([[0, 1, 1]]), np.array([[0.1, np.nan, 9.0]])
    assert losses.unchecked == ("car",)
    assert filter_ids(ids, measured, losses.thresholds(1.25, keep_unchecked=False), 255).tolist() == [[0, 255, 255]]
    assert filter_ids(ids, measured, losses.thresholds(1.25, keep_unchecked=True), 255).tolist() == [[0, 1, 1]]
    assert losses.thresholds(1.25, keep_unchecked=True).tolist() == [0.5, np.inf]


def test_a_class_predicted_no_better_than_chance_is_named():
    assert ClassLosses("", ("sky", "car", "bus"), (0.4, 1.2, None), (10, 9, 0), 1).unread == ("car",)
    assert ClassLosses("", ("sky", "car"), (0.4, 0.7), (10, 9), 1).unread == ("car",)


def test_class_losses_are_equal_after_saving_and_loading():
    losses = ClassLosses("key", ("sky", "car"), (1 / 3, None), (10, 0), 7)
    assert ClassLosses.from_record(json.loads(json.dumps(dataclasses.asdict(losses)))) == losses


def test_the_loss_map_shows_steps_of_the_tolerance():
    ids, losses = np.array([[0, 0, 0, 0, 0, 1, 255]]), np.array([[0.1, 0.9, 1.1, 3.0, 99.0, 5.0, np.nan]])
    shown = loss_map(ids, losses, np.array([1.0, np.inf])).convert("RGB")
    colors = [shown.getpixel((x, 0)) for x in range(7)]
    steps = [color for text, color in LEGEND.items() if text != NOT_CHECKED]
    assert colors[:5] == steps
    assert set(colors[5:]).isdisjoint(steps)


# Masks and images ----------------------------------------------------------------------------------------------------


def test_hardness_is_the_mean_of_class_losses_over_the_pixels():
    assert mask_hardness(np.array([30, 10, 5]), np.array([0.1, 0.5, np.nan])) == pytest.approx(0.2)
    assert mask_hardness(np.array([0, 0, 5]), np.array([0.1, 0.5, np.nan])) is None


def test_masks_are_ranked_from_easy_to_hard():
    assert ranks_of({"b": 0.2, "a": 0.2, "hard": 0.9, "none": None}) == {"none": 0, "a": 1, "b": 2, "hard": 3}


def test_each_mask_keeps_one_image_at_least_and_the_hardest_all():
    counts = [images_to_keep(rank, 10, 20) for rank in range(10)]
    assert counts == [min(1 + round(rank / 10 * 20), 20) for rank in range(10)]
    assert (counts[0], counts[-1]) == (1, 19)
    assert counts == sorted(counts)
    assert [images_to_keep(rank, 10, 1) for rank in range(10)] == [1] * 10
    assert images_to_keep(99, 100, 20) == 20


def scored(name, kept, loss=0.1, total=100):
    return Scored(name, name.split("_")[0], (total, 0), (kept, 0), loss)


def test_images_that_keep_too_little_are_dropped_and_those_at_the_minimum_stay():
    images = [scored("a_0", 49), scored("a_1", 50), scored("b_0", 0, None, total=0)]
    assert reasons_to_drop(images, 0.5) == {"a_0": TOO_LITTLE_KEPT, "b_0": NOTHING_LABELLED}
    assert images[2].kept_share is None
    assert reasons_to_drop(images[:2], 0.0) == {}


def test_easy_masks_keep_the_best_of_their_images():
    images = [scored(f"{stem}_{i}", kept) for stem in ("easy", "hard") for i, kept in enumerate((60, 90, 80, 20))]
    reasons = reasons_to_drop(images, 0.5, {"easy": 0, "hard": 1})
    assert [name for name, reason in reasons.items() if reason == TOO_LITTLE_KEPT] == ["easy_3", "hard_3"]
    assert [name for name, reason in reasons.items() if reason == EASY_MASK] == ["easy_2", "easy_0"]


def test_of_images_that_keep_equal_shares_those_with_the_lowest_loss_are_best():
    images = [scored("easy_0", 90, 0.3), scored("easy_1", 90, 0.2), scored("easy_2", 90, None), scored("hard_0", 90)]
    assert set(reasons_to_drop(images, 0.5, {"easy": 0, "hard": 1})) == {"easy_0", "easy_2"}


def test_examples_are_chosen_by_rule_and_seed():
    images = [scored(f"a_{i}", 50 + i) for i in range(20)] + [scored("b_0", 3), scored("b_1", 80)]
    reasons = {"b_0": TOO_LITTLE_KEPT, "b_1": EASY_MASK}
    chosen = choose_examples(images, reasons, seed=0)
    assert chosen.dropped == ("b_0",)
    assert chosen.strongly_filtered == tuple(f"a_{i}" for i in range(8))
    assert len(chosen.kept) == 8
    assert chosen == choose_examples(images[::-1], reasons, seed=0)
    assert chosen.kept != choose_examples(images, reasons, seed=1).kept


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tolerance_margin", 0.0, "--tolerance_margin must be more than 0; got 0.0"),
        ("tolerance_margin", float("nan"), "--tolerance_margin .* got nan"),
        ("tolerance_margin", float("inf"), "--tolerance_margin .* got inf"),
        ("minimum_kept", -0.1, "--minimum_kept must be between 0 and 1; got -0.1"),
        ("minimum_kept", 1.5, "--minimum_kept .* got 1.5"),
        ("minimum_kept", float("nan"), "--minimum_kept .* got nan"),
    ],
)
def test_settings_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        FilterSettings(**{field: value})


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_missing_record_is_none_and_a_damaged_one_is_named(tmp_path, text):
    assert read_filter(tmp_path) is None
    (tmp_path / "filter.json").write_text(text)
    with pytest.raises(ValueError, match="is not a record of `semseg-diffusers filter`"):
        read_filter(tmp_path)
