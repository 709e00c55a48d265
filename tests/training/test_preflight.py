"""What a run is warned of before its first step: each warning exactly where its condition holds, with its numbers."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers.training_runs import tiny_settings, train_here
from PIL import Image
from torch import nn

from semseg_diffusers.data.dataset import attribute_values, load_pairs
from semseg_diffusers.masks.statistics.counts import class_pixels_of_each
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training import class_balance as class_counts
from semseg_diffusers.training.class_balance import ClassCounts, count_classes, evenly
from semseg_diffusers.training.inputs import Inputs
from semseg_diffusers.training.objective import build_noise_scheduler
from semseg_diffusers.training.preflight import collect_warnings, first_weights_share, shared_pairs


NUM_CLASSES = 19


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    return write_toy_dataset(folder, num_train=12, num_val=3, size=(16, 32), seed=0)


@pytest.fixture(scope="module")
def pairs(toy):
    return load_pairs(toy)


@pytest.fixture(scope="module")
def validation(toy):
    return load_pairs(toy, "val")


def counts_of(masks=12, **changes):
    """Every class in every mask, and broad, but for what is changed: class index -> masks that hold it."""
    pixels = np.full((masks, NUM_CLASSES + 1), 20)
    for index, holding in changes.get("held", {}).items():
        pixels[holding:, index] = 0
    shares = np.full(NUM_CLASSES, 0.2)
    for index, share in changes.get("edges", {}).items():
        shares[index] = share
    return ClassCounts(pixels=pixels, edge_shares=shares, num_masks=changes.get("num_masks", masks))


def cautions(pairs, validation, counts=None, *, num_steps=1000, num_weights=1000, **changes):
    """The warnings of a run that deserves none, but for what is changed."""
    preview_pairs, reason = changes.pop("preview_pairs", validation), changes.pop("preview_reason", None)
    settings = tiny_settings("d", "o", **changes)
    inputs = Inputs(
        pairs, preview_pairs, reason, source_format=None, attributes=attribute_values(pairs, settings.attributes),
        counts=None, balance=None, rarity=None, base=None, unet=nn.ParameterList([torch.empty(num_weights)]),
        noise_scheduler=build_noise_scheduler(settings),
    )  # fmt: skip
    return collect_warnings(settings, inputs, counts or counts_of(), num_steps, samples_per_step=1)


def test_a_run_that_deserves_none_gets_none(pairs, validation):
    assert cautions(pairs, validation) == []


def test_few_photos_for_a_large_network_seen_often(pairs, validation):
    weights = 12 * 2 * 16 * 32  # as many as the photos and their mirror images have pixels
    assert cautions(pairs, validation, num_weights=weights, num_steps=1200) == []
    assert cautions(pairs, validation, num_weights=weights + 1, num_steps=1199) == []
    (text,) = cautions(pairs, validation, num_weights=weights + 1, num_steps=1200)
    assert "Few images for this network: 12 of 16 x 32 have with their mirror images 0.0123 million pixels" in text
    assert "sees each image 100 times" in text
    assert "--horizontal_flip" not in text
    assert "memorization" in text
    unmirrored = cautions(pairs, validation, num_weights=weights // 2 + 1, num_steps=1200, horizontal_flip=False)
    assert "otherwise --horizontal_flip, --random_crop" in unmirrored[0]


def test_classes_never_seen_are_named(pairs, validation):
    names = pairs.labels.names
    (text,) = cautions(pairs, validation, counts_of(held={3: 0, 7: 0}))
    assert f"No pixel in the 12 training masks: {names[3]}, {names[7]} (2 of 19 classes)" in text


def test_classes_seldom_seen_are_named_with_their_number(pairs, validation):
    names = pairs.labels.names
    (text,) = cautions(pairs, validation, counts_of(held={3: 9, 7: 10, 8: 1}))
    assert f"In fewer than 10 of the 12 training masks: {names[3]} (9), {names[8]} (1)." in text
    assert names[7] not in text
    assert "--class_balanced_sampling" in text
    (text,) = cautions(pairs, validation, counts_of(held={3: 9}), class_balanced_sampling=True)
    assert "--class_balanced_sampling" not in text


def test_of_a_sample_of_masks_the_warning_says_so(pairs, validation):
    counts = counts_of(held={3: 0, 8: 5}, num_masks=1000)
    (text,) = cautions(pairs, validation, counts)  # what 5 of 12 masks hold, hundreds of 1000 do
    assert "No pixel in 12 of the 1,000 training masks, evenly spaced" in text


def test_thin_classes_are_named_with_their_share(pairs, validation):
    names = pairs.labels.names
    (text,) = cautions(pairs, validation, counts_of(edges={5: 0.6, 6: 0.59, 7: float("nan")}))
    assert f"Thin at this resolution: {names[5]} (60%); at least 60% of the pixels" in text
    assert "--patch_size 1 (now 2)" in text
    (text,) = cautions(pairs, validation, counts_of(edges={5: 0.6}), patch_size=1)
    assert "--patch_size" not in text


def test_previews_of_the_training_split_carry_the_reason(pairs, validation):
    (text,) = cautions(pairs, validation, preview_pairs=pairs, preview_reason="'d' has no split 'val'")
    assert "Previews use masks of the training split: 'd' has no split 'val'. They show" in text


def test_fewer_samples_than_timesteps(pairs, validation):
    assert cautions(pairs, validation, num_steps=999, min_timestep=1) == []
    (text,) = cautions(pairs, validation, num_steps=999)
    assert "sees 999 samples in total, fewer than the 1,000 timesteps" in text


def test_an_attribute_of_one_value(pairs, validation, monkeypatch):
    columns = {"weather": ["rainy", None] * 6, "scene": ["street", "highway"] * 6}
    assert len(pairs) == 12
    monkeypatch.setattr(pairs, "attributes", columns)
    asked = {"snr_gamma": None, "preview_pairs": pairs}
    assert cautions(pairs, validation, attributes=("scene",), **asked) == []
    (text,) = cautions(pairs, validation, attributes=("scene", "weather"), **asked)
    assert text.startswith("Attributes with a single value: weather (rainy). ")


def test_noise_that_a_run_needs_and_its_weights_leave_out(pairs, validation, monkeypatch):
    monkeypatch.setattr(pairs, "attributes", {"scene": ["street", "highway"] * 6})
    for needed in ({"rescale_betas_zero_snr": True}, {"attributes": ("scene",)}):
        assert cautions(pairs, validation, snr_gamma=None, **needed) == []
        (text,) = cautions(pairs, validation, snr_gamma=5.0, **needed)
        assert f"this run has --{[*needed][0]}, which" in text
    assert cautions(pairs, validation, attributes=("scene",), prediction_type="epsilon") == []


def test_a_warmup_longer_than_the_run(pairs, validation):
    assert cautions(pairs, validation, lr_warmup_steps=999) == []
    assert cautions(pairs, validation, lr_warmup_steps=4000, lr_scheduler="constant") == []
    (text,) = cautions(pairs, validation, lr_warmup_steps=4000)
    assert "warms up over 4,000 steps, and the run has 1,000: it ends at 0.0025 and never reaches" in text


def test_an_average_longer_than_the_run(pairs, validation):
    assert cautions(pairs, validation, ema_decay=0.9999) == []  # its warm-up makes it shorter at first
    assert cautions(pairs, validation, ema_decay=0.9999, ema_warmup=False, use_ema=False) == []
    (text,) = cautions(pairs, validation, ema_decay=0.9999, ema_warmup=False)
    assert "after 1,000 steps 90% of it are still the initial weights" in text
    several = {"ema_decays": (0.9, 0.9999), "ema_warmup": False}
    (text,) = cautions(pairs, validation, **several)
    assert "(--ema_decays 0.9999) is longer than the run: after 1,000 steps 90% of it" in text
    assert cautions(pairs, validation, **{**several, "ema_decays": (0.9,), "ema_decay": 0.9999}) == []
    (text,) = cautions(pairs, validation, ema_start_step=1000)
    assert "starts at step 1,000, and the run has 1,000" in text


@pytest.mark.parametrize(("decay", "warmup", "start"), [(0.9, False, 0), (0.99, True, 0), (0.95, False, 7)])
def test_the_share_of_the_first_weights_is_that_of_the_average(decay, warmup, start):
    """The weights are 1 at the first step of the average, and 0 from then on: what is left of the 1 is their share."""
    layer = nn.Linear(1, 1, bias=False)
    low = 0.0 if warmup else decay
    ema = EMAModel(layer.parameters(), decay, low, start, use_ema_warmup=warmup, power=3 / 4)
    for step in range(1, 31):
        nn.init.constant_(layer.weight, 1.0 if step <= start + 1 else 0.0)
        ema.step(layer.parameters())
    assert float(ema.shadow_params[0]) == pytest.approx(first_weights_share(decay, warmup, 30 - start), rel=1e-4)


# What is counted


def test_counts_are_those_of_the_masks(pairs):
    counts = count_classes(pairs, every_mask=False, num_workers=2)
    assert np.array_equal(counts.pixels, class_pixels_of_each(pairs.mask, len(pairs), NUM_CLASSES))
    assert counts.is_complete
    assert counts.class_pixels.sum() + counts.pixels[:, -1].sum() == 12 * 16 * 32
    seen = counts.masks_of_class > 0
    assert np.array_equal(~np.isnan(counts.edge_shares), seen)
    assert ((counts.edge_shares[seen] >= 0) & (counts.edge_shares[seen] <= 1)).all()


def test_of_very_large_sets_a_sample_is_counted_unless_all_is_asked_for(pairs, monkeypatch):
    monkeypatch.setattr(class_counts, "MOST_PIXELS", 4 * 16 * 32)
    sample, every = count_classes(pairs, every_mask=False), count_classes(pairs, every_mask=True)
    assert (len(sample.pixels), sample.num_masks, sample.is_complete) == (4, 12, False)
    assert np.array_equal(sample.pixels, every.pixels[evenly(12, 4)])
    assert every.is_complete


def test_pairs_in_both_splits_are_found_by_stem_and_photo(toy, pairs, validation, tmp_path):
    assert shared_pairs(pairs, validation) == []
    other = shutil.copytree(toy, tmp_path / "other")
    ours, theirs = [sorted((other / split / "images").iterdir()) for split in ("train", "val")]
    shutil.copy(ours[0], theirs[0])  # another stem: not looked for
    assert shared_pairs(load_pairs(other), load_pairs(other, "val")) == []


def test_a_pair_that_stands_in_both_splits_is_named(pairs, toy):
    assert shared_pairs(pairs, load_pairs(toy)) == pairs.stems
    (text,) = cautions(pairs, load_pairs(toy))
    assert f"12 pairs of the split val are in train as well: {pairs.stems[0]}, {pairs.stems[1]}," in text


# In a run


def test_a_run_says_its_warnings_once_and_keeps_them(toy, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="semseg_diffusers"):
        run = train_here(tiny_settings(toy, tmp_path / "run", max_train_steps=2))
    record = json.loads((run / "run.json").read_text())
    said = [entry.message for entry in caplog.records if "warning: " in entry.message]
    assert [text.partition("warning: ")[2] for text in said] == record["warnings"]
    assert any("sees 4 samples in total" in text for text in record["warnings"])
    assert any("No pixel in the 12 training masks" in text for text in record["warnings"])
    assert record["num_pairs"] == 12
    pixels = class_pixels_of_each(load_pairs(toy).mask, 12, NUM_CLASSES).sum(axis=0)
    assert [entry["pixels"] for entry in record["classes"]] == pixels[:-1].tolist()


def test_a_mask_that_does_not_fit_the_classes_ends_the_run_before_it_begins(toy, tmp_path):
    other = shutil.copytree(toy, tmp_path / "other")
    mask = sorted((other / "train" / "masks").iterdir())[5]
    Image.new("L", (32, 16), 77).save(mask)
    with pytest.raises(ValueError, match="77"):
        train_here(tiny_settings(other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
