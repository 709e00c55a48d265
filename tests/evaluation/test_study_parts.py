"""The parts of a study: settings, pools, statistics, findings, and leaks."""

import json
import re
import shutil

import pytest
import torch
from helpers.segmenters import save_network
from helpers.study_place import change_rows, write_scenes_as_generated
from scipy.stats import ttest_rel

from semseg_diffusers.cli import main
from semseg_diffusers.data.subset import shuffled_order, subset_indices
from semseg_diffusers.evaluation.segmentation.networks import new_network
from semseg_diffusers.evaluation.settings import ARCHITECTURES, StudySettings, Training, trainings, variants
from semseg_diffusers.evaluation.study.leaks import base_weights, filter_weights, find_filter_as_judge, find_leaks
from semseg_diffusers.evaluation.study.pools import (
    check_amounts,
    image_digests,
    load_data,
    pool_members,
    training_pairs,
)
from semseg_diffusers.evaluation.study.results import (
    arms_and_comparisons,
    compared,
    difference_text,
    findings,
    num_beyond,
    paired_difference,
    spread,
)
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.toy.scenes import write_toy_dataset


SIZE = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `toy` (6 training and 3 validation images), `generated` (12 images) and `filtered` (9)."""
    folder = tmp_path_factory.mktemp("study")
    write_toy_dataset(folder / "toy", num_train=6, num_val=3, size=(SIZE, SIZE), seed=0)
    write_scenes_as_generated(folder / "generated", 12, SIZE)
    write_scenes_as_generated(folder / "filtered", 9, SIZE)
    return folder


def settings_of(place, **changes) -> StudySettings:
    values = {"dataset": str(place / "toy"), "generated": str(place / "generated"), **changes}
    return StudySettings(**values)


# Settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generated": None}, "give --generated, --filtered, or both"),
        ({"arms": ("real", "fake")}, "--arms must be one of real, real_duplicated, .*got 'fake'"),
        ({"arms": ("real", "filtered")}, "--arms filtered needs --filtered, which is missing"),
        (
            {"arms": ("real", "filtered"), "filtered": "f"},
            "--generated is used by the arms real_synthetic and",
        ),
        ({"arms": ("synthetic",)}, "--arms lacks real"),
        ({"arms": ("real", "real", "synthetic")}, "--arms: expected one or more distinct values"),
        ({"seeds": ()}, "--seeds: expected one or more"),
        ({"seeds": (0, 0)}, "--seeds: expected one or more distinct values; got 0 0"),
        ({"seeds": (-1,)}, "--seeds must be 0 or more"),
        ({"amounts": (1.0, 0.0)}, "--amounts must be more than 0; got 0.0"),
        ({"amounts": (float("nan"),)}, "--amounts must be more than 0"),
        ({"max_train_steps": 0}, "--max_train_steps must be 1 or more; got 0"),
        ({"train_batch_size": 1}, "--train_batch_size must be 2 or more; got 1"),
        ({"learning_rate": -1.0}, "--learning_rate must be more than 0"),
        ({"validation_split": "training"}, "are both 'train'"),
        ({"real_share": (0.5, 1.5)}, "--real_share must be more than 0 and at most 1; got 1.5"),
        ({"real_share": (0.5, 0.5)}, "--real_share: expected one or more distinct values"),
        ({"synthetic_share": 1.0}, "--synthetic_share must be more than 0 and less than 1; got 1.0"),
        ({"synthetic_share": 0.3}, r"--synthetic_share 0\.3 of --train_batch_size 8 is 2\.4 pairs; .* such as 0\.25"),
        ({"synthetic_share": 0.01}, r"is 0\.08 pairs; expected a whole number, such as 0\.125"),
        ({"synthetic_share": 0.5, "synthetic_first": 0.5}, "keeps them apart: give one of them"),
        ({"synthetic_first": 0.5, "arms": ("real", "synthetic")}, "Add real_synthetic or real_filtered, or omit it"),
        ({"synthetic_first": 0.5, "max_train_steps": 1}, "--max_train_steps 2 or more; got 1"),
        ({"real_share": (0.5, 1.0)}, "--generated 'g' would be the same for all of --real_share 0.5 1.0"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        StudySettings(**{"dataset": "d", "generated": "g", **changes})


def test_default_arms_are_all_that_have_data():
    assert StudySettings(dataset="d", generated="g").arms == ("real", "real_duplicated", "real_synthetic", "synthetic")
    assert StudySettings(dataset="d", filtered="f").arms == ("real", "real_duplicated", "real_filtered", "filtered")
    assert len(StudySettings(dataset="d", generated="g", filtered="f").arms) == 6


def test_every_arm_is_trained_with_every_seed_and_amount_and_real_images_once_a_seed():
    settings = StudySettings(dataset="d", generated="g", seeds=(3, 5), amounts=(2.0, 0.5))
    assert variants(settings)[:3] == [("real", None), ("real_duplicated", 0.5), ("real_duplicated", 2.0)]
    names = [training.name for training in trainings(settings)]
    assert len(names) == len(set(names)) == 2 * (1 + 3 * 2)
    assert names[:2] == ["real-seed3", "real_duplicated-x0.5-seed3"]


# Pools -----------------------------------------------------------------------------------------------


def test_pools_hold_the_pairs_of_their_arms(place):
    data = load_data(settings_of(place, filtered=str(place / "filtered")))
    sizes = {}
    for arm in ("real", "real_duplicated", "real_synthetic", "real_filtered", "synthetic", "filtered"):
        pool = pool_members(Training(arm, None if arm == "real" else 1.5, 0), data)
        sizes[arm] = {name: sum(entry[0] == name for entry in pool) for name in {entry[0] for entry in pool}}
    assert sizes == {
        "real": {"real": 6},
        "real_duplicated": {"real": 15},
        "real_synthetic": {"real": 6, "generated": 9},
        "real_filtered": {"real": 6, "filtered": 9},
        "synthetic": {"generated": 9},
        "filtered": {"filtered": 9},
    }
    duplicated = pool_members(Training("real_duplicated", 2.0, 0), data)
    assert [duplicated.count(("real", index)) for index in range(6)] == [3] * 6


def test_a_larger_amount_contains_the_smaller_one_and_seeds_choose_others(place):
    data = load_data(settings_of(place))
    small, large = (pool_members(Training("synthetic", amount, 0), data) for amount in (0.5, 1.5))
    assert (len(small), len(large)) == (3, 9)
    assert large[:3] == small
    assert pool_members(Training("synthetic", 0.5, 1), data) != small


def test_a_share_of_the_real_images_is_that_of_the_command_and_amounts_are_multiples_of_it(place):
    data = load_data(settings_of(place, real_share=(0.5,)))
    whole = load_data(settings_of(place))["real"].names
    assert data["real"].names == tuple(whole[index] for index in subset_indices(whole, 0.5, seed=0))
    assert len(pool_members(Training("synthetic", 2.0, 0), data)) == 6
    assert load_data(settings_of(place, real_share=(0.5,), subset_seed=2))["real"].names != data["real"].names


def test_folders_of_a_share_are_named_after_it():
    settings = StudySettings(dataset="d", generated="new_{share}", filtered="kept/{share}/x", real_share=(0.125, 1.0))
    assert settings.of_share(0.125).synthetic == {"generated": "new_0.125", "filtered": "kept/0.125/x"}
    assert settings.of_share(1.0).synthetic == {"generated": "new_1", "filtered": "kept/1/x"}


def test_a_filtered_set_has_the_order_of_the_full_one():
    names = tuple(f"scene{index}" for index in range(20))
    order = [names[index] for index in shuffled_order(names, 3)]
    kept = names[::3]
    assert [kept[index] for index in shuffled_order(kept, 3)] == [name for name in order if name in kept]


def test_all_arms_share_the_class_weights(place):
    data = load_data(settings_of(place))
    members = [pool_members(Training(*variant, 0), data) for variant in (("real", None), ("synthetic", 2.0))]
    real, synthetic = (training_pairs(each, data) for each in members)
    assert torch.equal(real.class_weights(), synthetic.class_weights())
    assert len(synthetic) == 12
    item = data["generated"][shuffled_order(data["generated"].names, 0)[0]]
    image, mask = synthetic.batch([0])
    assert torch.equal(image[0], item["image"])
    assert torch.equal(mask[0], item["mask"].long())


def test_more_synthetic_images_than_available_are_refused_with_their_number(place):
    settings = settings_of(place, filtered=str(place / "filtered"), amounts=(1.0, 2.0))
    message = "--amounts 2 needs 12 images for 6 real ones, and --filtered holds 9. .*use at most 1.5"
    with pytest.raises(ValueError, match=message):
        check_amounts(settings, load_data(settings))


def test_images_of_two_sizes_are_refused(place, tmp_path):
    dataset = shutil.copytree(place / "toy", tmp_path / "toy")
    write_toy_dataset(tmp_path / "other", num_train=1, num_val=2, size=(SIZE, 2 * SIZE), seed=0)
    shutil.rmtree(dataset / "val")
    shutil.move(tmp_path / "other" / "val", dataset / "val")
    with pytest.raises(
        ValueError, match=r"one size; .* \(train\) has \(32, 32\), .* \(validation\) \(32, 64\) \(height, width\)"
    ):
        load_data(settings_of(place, dataset=str(dataset)))
    generated = write_scenes_as_generated(tmp_path / "generated", 6, 2 * SIZE)
    with pytest.raises(ValueError, match="is 64 x 64, the real images are 32 x 32"):
        load_data(settings_of(place, generated=str(generated)))


# Statistics -----------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_paired_t_test():
    values, others = [0.51, 0.48, 0.55, 0.52], [0.50, 0.47, 0.49, 0.53]
    found = paired_difference(values, others)
    expected = ttest_rel(values, others).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx(0.0175)
    assert found["reading"] == "within noise"
    wider = paired_difference(values, others, 0.99)
    assert wider["low"] < found["low"] < found["high"] < wider["high"]


@pytest.mark.parametrize(("shift", "reading"), [(0.1, "better"), (-0.1, "worse"), (0.0, "within noise")])
def test_a_difference_counts_if_its_interval_excludes_zero(shift, reading):
    others = [0.4, 0.5, 0.6]
    values = [other + shift + 0.001 * n for n, other in enumerate(others, -1)]
    assert paired_difference(values, others)["reading"] == reading


def test_one_seed_has_no_interval():
    found = paired_difference([0.5], [0.4])
    assert (found["low"], found["high"], found["reading"]) == (None, None, "unknown")
    assert (spread([0.5])["std"], spread([0.5, 0.7])["std"]) == (None, pytest.approx(0.02**0.5))


# Findings ---------------------------------------------------------------------------------------------------


def results_of(scores: dict[str, list[float]], **changes) -> dict:
    """Return `results.json` for given mean IoUs by arm; two classes follow the mean, a third is never predicted."""
    settings = StudySettings(
        dataset="d", generated="g", arms=tuple(scores), seeds=tuple(range(len(scores["real"]))), **changes
    )

    def result_of(training: Training) -> dict:
        value = scores[training.arm][training.seed]
        iou = {"road": value + 0.1, "car": value - 0.1, "train": 0.0}
        return {"num_pairs": 4, "num_synthetic": 2, "scores": {"mean_iou": value, "pixel_accuracy": 0.5, "iou": iou}}

    arms, comparisons = arms_and_comparisons(settings, result_of)
    return {"arms": arms, "comparisons": comparisons, "seeds": list(settings.seeds)}


REAL = [0.40, 0.42, 0.41]


@pytest.mark.parametrize(
    ("synthetic", "text"),
    [
        (
            [0.50, 0.52, 0.515],
            r"^\+0\.102 mIoU \(0\.094 to 0\.109\) over real photos: beyond the noise between seeds\.$",
        ),
        (
            [0.45, 0.42, 0.40],
            r"^\+0\.013 mIoU \(-0\.067 to 0\.093\) over real photos: within the noise between seeds\.$",
        ),
        ([0.30, 0.32, 0.315], r"^-0\.098 mIoU \(-0\.106 to -0\.091\) over real photos: worse, beyond the noise betw"),
    ],
)
def test_a_difference_is_described_with_its_interval(synthetic, text):
    (comparison,) = results_of({"real": REAL, "real_synthetic": synthetic})["comparisons"]
    assert re.search(text, difference_text(comparison))


def test_findings_say_how_many_differences_chance_alone_would_give():
    scores = {"real": REAL, "real_duplicated": REAL, "real_synthetic": [0.44, 0.452, 0.47], "synthetic": REAL}
    results = results_of(scores)
    against_real = next(each for each in results["comparisons"] if each["arm"] == "real_synthetic")
    assert against_real["mean_iou"]["reading"] == "better"
    assert against_real["mean_iou"]["all_counted"] == "within noise"
    assert difference_text(against_real).endswith("Not so after correction for all comparisons of this study.")
    found = findings(results)
    assert found["Comparisons"].startswith("4 of mean IoU")
    assert num_beyond(results["comparisons"]) == (4, 4)  # equal ones and trains, which are never found, are none
    assert list(found)[-3] == "Duplicated real photos, 1x"  # the control comes last


def test_findings_call_one_and_two_seeds_too_few():
    one, two = (findings(results_of({"real": REAL[:n], "synthetic": REAL[:n]})) for n in (1, 2))
    assert "one seed, so chance cannot be estimated" in one["Synthetic only, 1x"]
    assert "differences cannot be distinguished from chance" in one["Seeds"]
    assert "By class" not in one["Comparisons"]
    assert "use at least three" in two["Seeds"]


def test_arms_are_compared_with_real_images_and_baselines():
    settings = StudySettings(dataset="d", generated="g", filtered="f")
    pairs = [(ours[0], other[0]) for ours, other in compared(settings)]
    assert pairs == [
        ("real_duplicated", "real"),
        ("real_synthetic", "real"),
        ("real_synthetic", "real_duplicated"),
        ("real_filtered", "real"),
        ("real_filtered", "real_duplicated"),
        ("real_filtered", "real_synthetic"),
        ("synthetic", "real"),
        ("filtered", "real"),
        ("filtered", "synthetic"),
    ]


# Leaks -----------------------------------------------------------------------------------------------


def leaks(settings: StudySettings) -> list[str]:
    data = load_data(settings)
    return find_leaks(settings, data, {name: image_digests(pairs) for name, pairs in data.items()})


def test_a_clean_study_has_no_leaks(place):
    assert leaks(settings_of(place, filtered=str(place / "filtered"))) == []


@pytest.mark.parametrize("column", ["stem", "source_mask", "source_photo", "base"])
def test_images_of_validation_masks_are_found_by_their_names(place, tmp_path, column):
    stem = "toy_0_5000000"
    assert (place / "toy" / "val" / "images" / f"{stem}.png").is_file()
    generated = write_scenes_as_generated(tmp_path / "generated", 6, SIZE)
    if column == "base":  # a mask that `enrich` made from that of a validation photo
        (tmp_path / "masks").mkdir()
        row = {"mask_file_name": "masks/00000_new.png", "base": stem}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        change_rows(generated, source_mask=str(tmp_path / "masks" / "00000_new.png"))
    else:
        change_rows(generated, **{column: stem if column == "stem" else f"somewhere/{stem}.png"})
    (found,) = leaks(settings_of(place, generated=str(generated)))
    assert f"from masks or images of the validation split (1 of them, such as '{stem}')" in found


def test_images_of_both_splits_are_found_by_their_pixels(place, tmp_path):
    generated = write_scenes_as_generated(tmp_path / "generated", 6, SIZE)
    photo = (place / "toy" / "val" / "images" / "toy_0_5000000.png").read_bytes()
    sorted((generated / "images").iterdir())[0].write_bytes(photo)
    (found,) = leaks(settings_of(place, generated=str(generated)))
    assert found.startswith("1 validation image(s) are also in --generated, pixel by pixel")


@pytest.mark.parametrize(("split", "number"), [("validation", 1), ("train", 0)])
def test_a_model_trained_on_the_validation_split_is_found(place, tmp_path, split, number):
    generated = write_scenes_as_generated(tmp_path / "generated", 6, SIZE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"dataset": str(place / "toy"), "train_split": split}))
    change_rows(generated, model=str(run))
    found = leaks(settings_of(place, generated=str(generated)))
    assert len(found) == number
    assert all("which was trained on the validation split" in text for text in found)


def test_images_of_masks_that_the_share_leaves_out_are_found(place, tmp_path):
    settings = settings_of(place, generated=str(write_scenes_as_generated(tmp_path / "generated", 6, SIZE)))
    whole = load_data(settings)["real"].names
    kept = [whole[index] for index in subset_indices(whole, 0.5, seed=0)]
    other = next(name for name in whole if name not in kept)
    change_rows(tmp_path / "generated", stem=kept[0])
    assert leaks(settings.of_share(0.5)) == []
    change_rows(tmp_path / "generated", stem=other)
    (found,) = leaks(settings.of_share(0.5))
    assert f"masks or images that --real_share leaves out (1 of them, such as '{other}')." in found
    assert "Make them with `subset` of the same share and seed" in found
    assert leaks(settings) == []


def test_a_model_trained_on_photos_that_the_share_leaves_out_is_found(place, tmp_path):
    generated, run = write_scenes_as_generated(tmp_path / "generated", 6, SIZE), tmp_path / "run"
    run.mkdir()
    change_rows(generated, model=str(run))
    settings = settings_of(place, generated=str(generated), real_share=(0.5,))
    for share, number in (("1", 1), ("0.5", 0)):
        dataset = tmp_path / f"share_{share}"
        words = ["subset", "--dataset", str(place / "toy"), "--share", share, "--output", str(dataset)]
        assert main(words) == 0
        (run / "settings.json").write_text(json.dumps({"dataset": str(dataset), "train_split": "train"}))
        found = leaks(settings)
        assert len(found) == number
        assert all("trained on images that --real_share leaves out (3 of them" in text for text in found)


def test_without_shares_the_dataset_of_a_model_is_not_read(place, tmp_path):
    generated, run = write_scenes_as_generated(tmp_path / "generated", 6, SIZE), tmp_path / "run"
    shutil.copytree(place / "toy", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "train")
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"dataset": str(tmp_path / "moved"), "train_split": "train"}))
    change_rows(generated, model=str(run))
    assert leaks(settings_of(place, generated=str(generated))) == []


def refused(settings: StudySettings) -> list[str]:
    return find_filter_as_judge(settings, base_weights(settings))


def test_the_network_that_filtered_cannot_be_the_base_model(place, tmp_path):
    data = load_data(settings_of(place))
    network = new_network("segformer-mini", data["real"].labels, seed=1)
    save_network(tmp_path / "segmenter", network, ARCHITECTURES["segformer-mini"].processor)
    filtered = write_scenes_as_generated(tmp_path / "filtered", 6, SIZE)
    (filtered / "filter.json").write_text(json.dumps({"segmenter_sha256": weights_hash(network.state_dict())}))
    settings = {"filtered": str(filtered), "base_model": str(tmp_path / "segmenter")}
    (found,) = refused(settings_of(place, **settings))
    assert f"is the network that filtered --filtered '{filtered}'" in found
    (filtered / "filter.json").write_text(json.dumps({"segmenter_sha256": "sha256:0123456789abcdef"}))
    assert refused(settings_of(place, **settings)) == []
    assert refused(settings_of(place, filtered=str(filtered))) == []
    (filtered / "filter.json").write_text("{")
    with pytest.raises(ValueError, match="is not a record of `semseg-diffusers filter`"):
        filter_weights(settings_of(place, filtered=str(filtered)))
