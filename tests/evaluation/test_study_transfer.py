"""Studies of a transfer: networks with labels of one dataset, scored on photos of another, the target."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.page_reading import PageReader
from helpers.study_place import change_rows, study, write_scenes_as_generated

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.recolor import (
    SHARE,
    ColorTransfer,
    color_statistics,
    l_alpha_beta_to_rgb,
    rgb_to_l_alpha_beta,
    stronger_jitter,
    transfer_colors,
)
from semseg_diffusers.evaluation.settings import ARMS, TARGET_ARMS, Recipe, StudySettings, Training, variants
from semseg_diffusers.evaluation.study.leaks import find_leaks
from semseg_diffusers.evaluation.study.pools import image_digests, load_data, pool_members
from semseg_diffusers.evaluation.study.results import compared
from semseg_diffusers.toy.scenes import write_toy_dataset


SIZE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `toy` (4 + 3 scenes), `target` (5 + 2), `labelled` (its 5), `generated` and `filtered`."""
    folder = tmp_path_factory.mktemp("transfer")
    write_toy_dataset(folder / "toy", num_train=4, num_val=3, size=(SIZE, SIZE), seed=0)
    write_toy_dataset(folder / "target", num_train=5, num_val=2, size=(SIZE, SIZE), seed=7)
    labelled = shutil.copytree(folder / "target", folder / "labelled")
    shutil.rmtree(labelled / "val")
    mark_labelled(labelled, trained_on={"dataset": str(folder / "toy"), "split": "train", "num_pairs": 4})
    write_scenes_as_generated(folder / "generated", 4, SIZE)
    write_scenes_as_generated(folder / "filtered", 4, SIZE)
    return folder


def mark_labelled(folder, **changes):
    """Record that the masks of a dataset are predictions."""
    record = json.loads((folder / "prepare.json").read_text())
    labelled = {"segmenter": "runs/s", "weights_sha256": "sha256:0", "min_confidence": 0.5, "unknown_share": 0.125}
    labelled |= {"trained_on": None, **changes}
    splits = {"train": record["splits"]["train"]}
    (folder / "prepare.json").write_text(json.dumps({**record, "splits": splits, "pseudo_labels": labelled}))
    return folder


def settings_of(place, **changes) -> StudySettings:
    folders = {
        "dataset": "toy",
        "generated": "generated",
        "validation_dataset": "target",
        "pseudo_labelled": "labelled",
    }
    return StudySettings(**{**{name: str(place / folder) for name, folder in folders.items()}, **changes})


# Settings and pools --------------------------------------------------------------------------------------------------


def test_arms_of_the_target_need_its_photos_and_the_synthetic_images_they_name():
    without = StudySettings(dataset="d", generated="g", filtered="f").arms
    assert not {*TARGET_ARMS} & {*without}
    assert StudySettings(dataset="d", generated="g", filtered="f", pseudo_labelled="p").arms == tuple(ARMS)
    controls = ("real", "real_duplicated", "real_recolored", "real_pseudo")
    assert StudySettings(dataset="d", pseudo_labelled="p").arms == controls
    with pytest.raises(ValueError, match="--arms real_pseudo needs --pseudo_labelled, which is missing"):
        StudySettings(dataset="d", generated="g", arms=("real", "real_pseudo"))
    with pytest.raises(ValueError, match="--arms real_pseudo_filtered needs --filtered, which is missing"):
        StudySettings(dataset="d", generated="g", pseudo_labelled="p", arms=("real", "real_pseudo_filtered"))
    with pytest.raises(ValueError, match="--pseudo_labelled is used by the arms real_recolored and real_pseudo"):
        StudySettings(dataset="d", generated="g", pseudo_labelled="p", arms=("real", "real_synthetic"))
    with pytest.raises(ValueError, match="--pseudo_labelled 'p' would be the same for all of --real_share"):
        StudySettings(dataset="d", generated="g_{share}", pseudo_labelled="p", real_share=(0.5, 1.0))


def test_pools_of_the_target_hold_all_its_photos_beside_the_real_pairs(place):
    data = load_data(settings_of(place, filtered=str(place / "filtered")))
    sizes = {}
    for arm, amount in variants(settings_of(place, filtered=str(place / "filtered"), arms=("real", *TARGET_ARMS))):
        pool = pool_members(Training(arm, amount, 0), data)
        sizes[arm] = {name: sum(entry[0] == name for entry in pool) for name in {entry[0] for entry in pool}}
    assert sizes == {
        "real": {"real": 4},
        "real_recolored": {"real": 4},
        "real_pseudo": {"real": 4, "pseudo_labelled": 5},
        "real_pseudo_synthetic": {"real": 4, "pseudo_labelled": 5, "generated": 4},
        "real_pseudo_filtered": {"real": 4, "pseudo_labelled": 5, "filtered": 4},
    }


def test_synthetic_arms_are_compared_with_self_training_on_the_same_photos():
    settings = StudySettings(dataset="d", generated="g", pseudo_labelled="p", amounts=(1.0, 2.0))
    pairs = [(ours, other) for ours, other in compared(settings) if ours[1] != 1.0]
    assert (("real_pseudo", None), ("real", None)) in pairs
    assert (("real_recolored", None), ("real", None)) in pairs
    assert (("real_synthetic", 2.0), ("real_pseudo", None)) in pairs
    against = [other for ours, other in pairs if ours == ("real_pseudo_synthetic", 2.0)]
    assert against == [("real", None), ("real_recolored", None), ("real_pseudo", None)]


def test_all_arms_are_scored_on_the_validation_photos_of_the_other_dataset(place):
    data = load_data(settings_of(place))
    assert {*data["validation"].names} == {path.stem for path in (place / "target" / "val" / "images").iterdir()}


# Colours ------------------------------------------------------------------------------------------------------------


def photos_of(place) -> torch.Tensor:
    data = load_data(settings_of(place))["real"]
    return torch.stack([data[index]["image"] for index in range(4)])


def test_colours_go_to_lab_and_back(place):
    photos = photos_of(place).clamp(min=1)
    assert (l_alpha_beta_to_rgb(rgb_to_l_alpha_beta(photos)).int() - photos.int()).abs().max() <= 1


def test_transferred_colours_have_mean_and_deviation_of_the_target(place):
    photos = photos_of(place)
    mean, deviation = color_statistics(rgb_to_l_alpha_beta(photos[1:2]))
    changed = transfer_colors(photos[:1], mean, deviation)
    found, spread = color_statistics(rgb_to_l_alpha_beta(changed))
    before = color_statistics(rgb_to_l_alpha_beta(photos[:1]))
    assert (found - mean).abs().mean() < 0.3 * (before[0] - mean).abs().mean()  # but for rounding and clipping
    assert (spread - deviation).abs().mean() < 0.5 * (before[1] - deviation).abs().mean()
    unchanged = transfer_colors(photos[1:2].clamp(min=1), mean, deviation)
    assert (unchanged.int() - photos[1:2].int()).abs().float().mean() < 1


def test_an_image_gets_colours_by_seed_and_position_whatever_the_batch(place):
    target = load_data(settings_of(place))["pseudo_labelled"]
    photos = photos_of(place).repeat(10, 1, 1, 1)
    transfer = ColorTransfer(target, seed=3)
    whole = transfer(photos, 5)
    assert torch.equal(whole, torch.cat([transfer(photos[:7], 5), transfer(photos[7:], 12)]))
    assert torch.equal(whole, ColorTransfer(target, seed=3)(photos, 5))
    assert not torch.equal(whole, ColorTransfer(target, seed=4)(photos, 5))
    changed = (whole != photos).flatten(1).any(1).float().mean()
    assert abs(changed - SHARE) < 0.25


def test_jitter_is_stronger_and_never_weaker_than_given():
    assert stronger_jitter(Recipe())[-4:] == (50.0, 0.4, 0.4, 0.0)
    assert stronger_jitter(Recipe(brightness=80.0, contrast=0.1)).brightness == 80.0


# Leaks and refusals -------------------------------------------------------------------------------------------------


def leaks(settings: StudySettings) -> list[str]:
    data = load_data(settings)
    return find_leaks(settings, data, {name: image_digests(pairs) for name, pairs in data.items()})


def test_a_clean_transfer_has_no_leaks(place):
    assert leaks(settings_of(place, filtered=str(place / "filtered"))) == []


def test_pseudo_labelled_photos_of_the_validation_split_are_found_by_pixels_and_by_names(place, tmp_path):
    labelled = shutil.copytree(place / "labelled", tmp_path / "labelled")
    photo = sorted((place / "target" / "val" / "images").iterdir())[0]
    ours = sorted((labelled / "train" / "images").iterdir())[0]
    shutil.copy(photo, ours)
    (found,) = leaks(settings_of(place, pseudo_labelled=str(labelled)))
    assert found.startswith("1 validation image(s) are also in --pseudo_labelled, pixel by pixel")
    shutil.copy(place / "labelled" / "train" / "images" / ours.name, ours)
    change_rows(labelled / "train", stem=photo.stem)
    (found,) = leaks(settings_of(place, pseudo_labelled=str(labelled)))
    assert f"holds 1 photo(s) with the names of validation photos, such as '{photo.stem}'" in found


@pytest.mark.parametrize("by_name", [False, True])
def test_a_generator_that_was_trained_on_validation_photos_of_the_target_is_found(place, tmp_path, by_name):
    joined = shutil.copytree(place / "labelled", tmp_path / "joined")
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"dataset": str(joined), "train_split": "train"}))
    generated = shutil.copytree(place / "generated", tmp_path / "generated")
    change_rows(generated, model=str(run))
    assert leaks(settings_of(place, generated=str(generated))) == []
    photo = sorted((place / "target" / "val" / "images").iterdir())[0]
    if by_name:  # at another size, or as JPEG: by the name, with the value of the attribute in front
        record = json.loads((joined / "prepare.json").read_text())
        (joined / "prepare.json").write_text(json.dumps({**record, "joined": [{"value": "kitti"}]}))
        change_rows(joined / "train", stem=f"kitti_{photo.stem}")
    else:
        shutil.copy(photo, sorted((joined / "train" / "images").iterdir())[0])
    (found,) = leaks(settings_of(place, generated=str(generated)))
    assert f"'{run}', which was trained on 1 validation photo(s), such as '{photo.stem}'" in found


def test_a_labeller_that_was_trained_on_validation_photos_is_found(place, tmp_path):
    labelled = shutil.copytree(place / "labelled", tmp_path / "labelled")
    mark_labelled(labelled, trained_on={"dataset": str(place / "target"), "split": "validation", "num_pairs": 2})
    (found,) = leaks(settings_of(place, pseudo_labelled=str(labelled)))
    assert "was labelled by 'runs/s', which was trained on the validation split" in found
    mixed = shutil.copytree(place / "toy", tmp_path / "mixed")
    photo = sorted((place / "target" / "val" / "images").iterdir())[0]
    shutil.copy(photo, sorted((mixed / "train" / "images").iterdir())[0])
    mark_labelled(labelled, trained_on={"dataset": str(mixed), "split": "train", "num_pairs": 4})
    (found,) = leaks(settings_of(place, pseudo_labelled=str(labelled)))
    assert f"which was trained on 1 validation photo(s), such as '{photo.stem}'" in found


def test_a_labeller_that_saw_photos_which_the_share_leaves_out_is_found(place):
    (found,) = leaks(settings_of(place, real_share=(0.5,)))
    assert "was labelled by 'runs/s', which was trained on images that --real_share leaves out (2 of them" in found


def test_predicted_labels_never_count_as_true_ones(place, tmp_path):
    with pytest.raises(ValueError, match="holds labels that a network predicted, which would count as true ones"):
        load_data(settings_of(place, dataset=str(place / "labelled"), validation_dataset=None))
    joined = shutil.copytree(place / "target", tmp_path / "joined")
    record = json.loads((joined / "prepare.json").read_text())
    (joined / "prepare.json").write_text(json.dumps({**record, "joined": [{}, {"pseudo_labels": {}}]}))
    with pytest.raises(ValueError, match="holds labels that a network predicted"):
        load_data(settings_of(place, validation_dataset=str(joined)))
    with pytest.raises(
        ValueError, match=r"--pseudo_labelled '.*target': expected a folder that `semseg-diffusers lab"
    ):
        load_data(settings_of(place, pseudo_labelled=str(place / "target")))


@pytest.mark.parametrize("name", ["validation_dataset", "pseudo_labelled"])
def test_other_classes_and_sizes_are_refused_with_what_to_do(place, tmp_path, name):
    folder = shutil.copytree(place / ("target" if name == "validation_dataset" else "labelled"), tmp_path / "other")
    labels = LabelSet.from_json(folder / "labels.json")
    fewer = LabelSet(labels.names[:-1], labels.colors[:-1], labels.ignore_index)
    fewer.save_json(folder / "labels.json")
    with pytest.raises(ValueError, match=f"has other classes than .*{labels.names[-1]} differ.*prepare --map_to"):
        load_data(settings_of(place, **{name: str(folder)}))
    wide = tmp_path / "wide"
    write_toy_dataset(wide, num_train=2, num_val=1, size=(SIZE, 2 * SIZE), seed=9)
    with pytest.raises(ValueError, match=r"one size; .* \(32, 32\), .* \(32, 64\)"):
        load_data(settings_of(place, **{name: str(mark_labelled(wide) if name == "pseudo_labelled" else wide)}))


# The command --------------------------------------------------------------------------------------------------------


def test_an_old_study_is_extended_by_the_arms_of_a_target_and_its_page_shows_them(place, tmp_path):
    words = ("--dataset", place / "toy", "--generated", place / "generated", "--output", tmp_path / "out")
    words += ("--validation_dataset", place / "target", "--architecture", "segformer-mini", "--max_train_steps", 2)
    words += ("--train_batch_size", 2, "--device", "cpu", "--jobs", 1, "--seeds", 0, 1)
    study(*words, "--arms", "real", "real_synthetic")
    stamp = (tmp_path / "out" / "trainings" / "real-seed0.json").stat().st_mtime_ns
    arms = ("real", "real_recolored", "real_pseudo", "real_synthetic", "real_pseudo_synthetic")
    said = study(*words, "--pseudo_labelled", place / "labelled", "--arms", *arms)
    assert (tmp_path / "out" / "trainings" / "real-seed0.json").stat().st_mtime_ns == stamp
    assert "over real + pseudo-labelled photos" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {arm["arm"]: arm for arm in results["arms"]}
    assert list(found) == list(arms)
    assert found["real_pseudo"]["num_pairs"] == 9
    assert (found["real_pseudo_synthetic"]["num_pairs"], found["real_pseudo_synthetic"]["num_synthetic"]) == (13, 4)
    assert found["real_pseudo"]["num_synthetic"] == 0
    assert found["real_recolored"]["mean_iou"]["values"] != found["real"]["mean_iou"]["values"]
    assert results["data"]["pseudo_labelled"]["num_images"] == 5
    page = PageReader((tmp_path / "out" / "report.html").read_text())
    for arm in arms:
        assert ARMS[arm] in page.text
    assert f"2 real photos of the validation split of {place / 'target'}" in page.text
    assert "have predictions of 'runs/s' (sha256:0) as labels, 12.5 % of the pixels unknown" in page.text
    assert "50 % of the images get the colour statistics of a random photo of the target" in page.text
    assert "pseudo-labelled photos: " in page.text
    # another validation set is another study
    at = words.index("--validation_dataset")
    said = study(*words[:at], *words[at + 2 :], "--arms", "real", "real_synthetic", expect=2)
    assert "validation images: sha256:" in said


def test_a_study_of_controls_needs_no_synthetic_images(place, tmp_path):
    words = ("--dataset", place / "toy", "--pseudo_labelled", place / "labelled", "--output", tmp_path / "out")
    words += ("--architecture", "segformer-mini", "--max_train_steps", 1, "--train_batch_size", 2, "--device", "cpu")
    study(*words, "--arms", "real", "real_pseudo", "--seeds", 0, "--jobs", 1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [each["against"]["arm"] for each in results["comparisons"]] == ["real"]
    assert np.isfinite(results["comparisons"][0]["mean_iou"]["mean"])
