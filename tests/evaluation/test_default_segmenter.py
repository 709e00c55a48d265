"""The network that `evaluate` and `filter` train without --segmenter: on real pairs of one split, once."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import threading
import time

import pytest
from helpers.evaluation_place import LABELS, SIZE, Place
from helpers.filter_places import generated_folder, read_lines
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.evaluation.segmentation.segmenter import ensure_segmenter
from semseg_diffusers.evaluation.settings import (
    FILTER_SEED,
    EvaluationSettings,
    FilterCommandSettings,
    SegmenterSettings,
)
from semseg_diffusers.toy.scenes import write_toy_dataset


# A network that the tests can train, for the defaults of `segmenter`.
SHORT = {
    "architecture": "segformer-mini", "max_train_steps": 2, "train_batch_size": 4, "validation_split": "none",
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "scenes", num_train=6, num_val=3, size=(32, 48))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


def short(dataset, output, **changes):
    return SegmenterSettings(dataset=str(dataset), output=str(output), **{**SHORT, **changes})


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def record_of(folder):
    return json.loads((folder / "segmenter.json").read_text())


# Training once -------------------------------------------------------------------------------------------------------


def test_a_network_is_trained_once_and_a_line_says_on_what_and_how_to_use_it_again(toy, tmp_path, capsys):
    ensure_segmenter(short(toy, tmp_path / "out"))
    printed = capsys.readouterr()
    assert f"Training segformer-mini on the 6 pairs of '{toy}' (train), 2 steps." in printed.err
    assert f"give --segmenter {tmp_path / 'out'} to use it again" in printed.err
    assert printed.out == ""
    record = record_of(tmp_path / "out")
    assert (record["steps"], record["num_pairs"], record["validation"]) == (2, {"train": 6, "validation": 0}, None)
    before = times(tmp_path / "out")
    shutil.copytree(toy, tmp_path / "moved")
    for dataset in (toy, tmp_path / "moved"):  # the same pairs
        ensure_segmenter(short(dataset, tmp_path / "out"))
        assert capsys.readouterr().err == ""
    assert times(tmp_path / "out") == before


def test_a_network_of_other_settings_pairs_or_classes_is_neither_used_nor_replaced(toy, tmp_path):
    ensure_segmenter(short(toy, tmp_path / "out"))
    before = times(tmp_path / "out")
    for changes, difference in (
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"max_train_steps": 3}, "max_train_steps: 2 there, 3 now"),
        ({"learning_rate": 0.5}, "learning_rate: .* there, 0.5 now"),
        ({"architecture": "segformer-b0"}, "architecture: segformer-mini there, segformer-b0 now"),
    ):
        with pytest.raises(ValueError, match=rf"{difference}\)\. Give --filter_segmenter .*out to use what it holds"):
            ensure_segmenter(short(toy, tmp_path / "out", **changes), "--filter_segmenter")
    other = shutil.copytree(toy, tmp_path / "other")
    first, second, *_ = sorted((other / "train" / "masks").iterdir())
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=r"\(pairs: [0-9a-f]{16} there, [0-9a-f]{16} now\)"):
        ensure_segmenter(short(other, tmp_path / "out"))
    labels = LabelSet.from_json(other / "labels.json")
    dataclasses.replace(labels, names=("street", *labels.names[1:])).save_json(other / "labels.json")
    with pytest.raises(ValueError, match="classes: .*'street'.* now"):
        ensure_segmenter(short(other, tmp_path / "out"))
    assert times(tmp_path / "out") == before


def test_a_network_that_a_user_stopped_is_not_taken_for_a_finished_one(toy, tmp_path):
    ensure_segmenter(short(toy, tmp_path / "out"))
    (tmp_path / "out" / "segmenter.json").write_text(
        json.dumps({**record_of(tmp_path / "out"), "stopped_by": "SIGINT"})
    )
    with pytest.raises(ValueError, match=r"\(stopped_by: SIGINT there, None now\)"):
        ensure_segmenter(short(toy, tmp_path / "out"))


def test_a_folder_of_something_else_is_not_touched(toy, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="it has no segmenter.json.*or remove it"):
        ensure_segmenter(short(toy, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupted_training_leaves_nothing_and_is_repeated(number, toy, tmp_path):
    def interrupt_after_a_line():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(log.stat().st_size for log in tmp_path.glob(".out.tmp-*/log.jsonl")):
                os.kill(os.getpid(), number)
                return
            time.sleep(0.02)

    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}[number]
    before = signal.signal(number, own)  # a job in the background ignores Ctrl-C
    thread = threading.Thread(target=interrupt_after_a_line)
    thread.start()
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            ensure_segmenter(short(toy, tmp_path / "out", max_train_steps=100_000))
    finally:
        thread.join()
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []
    ensure_segmenter(short(toy, tmp_path / "out"))
    assert record_of(tmp_path / "out")["steps"] == 2


# Pairs that it is not trained on -------------------------------------------------------------------------------------


def test_unsuitable_pairs_are_refused_with_what_to_give_instead(toy, tmp_path):
    hub = "--segmenter with a folder of `segmenter`, or a Hub id such as facebook/mask2former-swin-large-cityscapes"
    with pytest.raises(ValueError, match=f"has no split 'test'; it has train, validation. Give a trained one: {hub}"):
        ensure_segmenter(short(toy, tmp_path / "out", train_split="test"))
    with pytest.raises(ValueError, match=rf"expected 7 or more pairs.*\(train\) holds 6\. Give a trained one: {hub}"):
        ensure_segmenter(short(toy, tmp_path / "out", train_batch_size=7))
    grown = shutil.copytree(toy, tmp_path / "grown")
    rows = read_lines(grown / "train" / "metadata.jsonl")
    lines = [json.dumps({**row, "synthetic": number >= 4}) + "\n" for number, row in enumerate(rows)]
    (grown / "train" / "metadata.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match=rf"expected real pairs; 2 of the 6 of .* are synthetic\. .*{hub}"):
        ensure_segmenter(short(grown, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_it_is_trained_by_the_defaults_of_segmenter_and_selected_on_no_other_images():
    by_default = SegmenterSettings(dataset="d", output="o/segmenter", validation_split="none", seed=FILTER_SEED)
    filtering = FilterCommandSettings(dataset="d", output="o/filtered", generated="g")
    assert filtering.default_segmenter("o/segmenter", "train", FILTER_SEED, None) == by_default
    evaluation = EvaluationSettings(dataset="d", output="o", generated="g", labels="camvid", segmenter_steps=9)
    settings = evaluation.default_segmenter(evaluation.segmenter_name, "train", 0, "cpu")
    changes = {"labels": "camvid", "max_train_steps": 9, "seed": 0, "device": "cpu"}
    assert settings == dataclasses.replace(by_default, **changes)


def test_contradicting_options_are_refused():
    given = {"dataset": "d", "output": "o", "generated": "g"}
    with pytest.raises(ValueError, match=r"--split and --train_split are both 'val'.*give --segmenter"):
        EvaluationSettings(**given, train_split="validation")
    with pytest.raises(ValueError, match="--segmenter_steps: 's' is trained already"):
        EvaluationSettings(**given, segmenter="s", segmenter_steps=9)
    with pytest.raises(ValueError, match="--segmenter_revision belongs to --segmenter"):
        FilterCommandSettings(**given, segmenter_revision="main")
    with pytest.raises(ValueError, match="--output 'o/segmenter': .*Choose another name"):
        FilterCommandSettings(**{**given, "output": "o/segmenter"})
    assert "segmenter_steps" not in EvaluationSettings(**given, segmenter="s").record()


def test_without_imagenet_the_fallback_says_what_to_install(toy, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "efficientnet" in name else find_spec(name))
    ensure_segmenter(short(toy, tmp_path / "out", architecture=None, input_size="native", max_train_steps=1))
    printed = capsys.readouterr().err
    assert "Training segformer-b0 on the 6 pairs" in printed
    assert "pip install 'semseg-diffusers[imagenet]'" in printed


# The commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(place, tmp_path_factory):
    """Return photos, and the folder of their evaluation by a network that was trained for one step."""
    folder = tmp_path_factory.mktemp("evaluated")
    photos, output = place.val_copy(folder / "photos"), folder / "out"
    place.evaluate(output, generated=photos, segmenter=None, segmenter_steps=1)  # its features are the place's
    return photos, output


@pytest.mark.slow
def test_evaluate_trains_its_segmenter_and_record_and_page_say_on_what(place, evaluated):
    _, output = evaluated
    results = json.loads((output / "results.json").read_text())
    segmenter = results["segmenter"]
    assert segmenter["name"] == str(output / "segmenter")
    assert segmenter["architecture"] == "DeepLabV3"
    assert segmenter["trained_on"] == {"dataset": str(place.dataset), "split": "train", "num_pairs": 24}
    assert (results["settings"]["segmenter"], results["settings"]["segmenter_steps"]) == (None, 1)
    assert f"trained on 24 pairs of {place.dataset} (train)" in (output / "report.html").read_text()
    assert record_of(output / "segmenter")["validation"] is None


@pytest.mark.slow
def test_the_same_command_uses_the_network_again_and_so_does_another_that_names_it(place, evaluated, tmp_path):
    photos, output = evaluated
    before = times(output / "segmenter")
    first = json.loads((output / "results.json").read_text())
    place.evaluate(output, generated=photos, segmenter=None, segmenter_steps=1)
    place.evaluate(tmp_path / "other", generated=photos, segmenter=output / "segmenter")
    assert times(output / "segmenter") == before
    for folder in (output, tmp_path / "other"):
        assert json.loads((folder / "results.json").read_text())["agreement"] == first["agreement"]
    error = place.evaluate(output, generated=photos, segmenter=None, segmenter_steps=2, expect=2)
    assert "segmenter_steps: 1 there, 2 now" in error


@pytest.mark.slow
def test_by_default_images_are_compared_in_the_features_of_the_trained_network_too(place, evaluated, tmp_path):
    photos, output = evaluated
    shutil.copytree(output / "segmenter", tmp_path / "out" / "segmenter")
    (tmp_path / "out" / ".lock").touch()  # as an interrupted run leaves it
    place.evaluate(tmp_path / "out", generated=photos, segmenter=None, segmenter_steps=1, features=None)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = ["efficientnet-lite2", str(tmp_path / "out" / "segmenter")]
    assert [entry["features"]["name"] for entry in results["fidelity"]] == names
    assert "of the segmentation network itself" in results["fidelity"][1]["references"][0]["note"]
    assert f"{names[1]} (the segmentation network itself)" in (tmp_path / "out" / "report.html").read_text()


def test_evaluate_trains_nothing_if_another_input_is_unsuitable(place, tmp_path):
    photos = place.val_copy(tmp_path / "photos")
    for changes, message in (
        ({"generated": tmp_path / "none"}, "there is no folder"),
        ({"generated": photos, "features": "facebook/dinov2-small"}, "dinov2-small"),
        ({"model": place.model, "num_masks": 1}, "expected two or more masks"),
        ({"generated": photos, "train_split": "test"}, "has no split 'test'.*--segmenter with a folder"),
    ):
        error = place.evaluate(tmp_path / "out", segmenter=None, expect=2, **changes)
        assert message.split(".*")[0] in error
        assert message.split(".*")[-1] in error
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_filter_trains_another_network_beside_its_output_and_uses_it_again(place, evaluated, tmp_path):
    generated = generated_folder(tmp_path / "new")
    words = ("filter", "--generated", generated, "--dataset", place.dataset, "--device", "cpu", "--segmenter_steps", 1)
    words = (*words, "--minimum_kept", 0, "--output")
    place.command(*words, tmp_path / "filtered")
    segmenter = tmp_path / "segmenter"
    before = times(segmenter)
    record = json.loads((tmp_path / "filtered" / "filter.json").read_text())
    assert record["segmenter"]["name"] == str(segmenter)
    assert record["segmenter"]["trained_on"]["num_pairs"] == 24
    page = (tmp_path / "filtered" / "filter.html").read_text()
    assert f"trained on 24 pairs of {place.dataset} (train), no score of its own" in page
    place.command(*words, tmp_path / "more", "--resample")
    assert times(segmenter) == before
    judge = load_judge(evaluated[1] / "segmenter", LABELS)
    assert judge.weights_sha256 != record["segmenter_sha256"]  # images are not judged by what selected them
    assert record_of(segmenter)["seed"] == FILTER_SEED


def test_filter_trains_nothing_if_another_input_is_unsuitable(place, tmp_path):
    generated = generated_folder(tmp_path / "new")
    words = ("filter", "--dataset", place.dataset, "--device", "cpu", "--generated")
    output = tmp_path / "out" / "filtered"
    small = generated_folder(tmp_path / "small")
    path = next((small / "images").iterdir())
    Image.open(path).resize((SIZE // 2, SIZE // 2)).save(path)
    for more, message in (
        ((tmp_path / "none", "--output", output), "there is no folder"),
        ((small, "--output", output), "is 16 x 16"),
        ((generated, "--output", output, "--judge", "no/folder/here"), "--judge"),
        ((generated, "--output", output, "--reference_split", "test"), "has no split 'test'"),
        ((generated, "--output", generated / "filtered"), "contain each other"),
    ):
        assert message in place.command(*words, *more, expect=2)
        assert not (tmp_path / "out").exists()
        assert not (generated / "segmenter").exists()
