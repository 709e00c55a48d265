"""Growing for a target: photos of other streets are labelled, joined, and what is generated looks like them."""

import json
import shutil

import pytest
from helpers.training_runs import TINY

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.growth.settings import TRANSFER_ORDER, GrowSettings
from semseg_diffusers.toy.scenes import write_toy_dataset


def grow(*words: object) -> int:
    return cli.main(["grow", *map(str, words)])


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Return other scenes of the classes and size of the fixture `toy`, four to train on and two to validate by."""
    folder = tmp_path_factory.mktemp("target") / "city"
    return write_toy_dataset(folder, num_train=4, num_val=2, size=(16, 32), seed=1)


def commands(capsys, *words: object) -> dict[str, str]:
    """Return the commands of a dry run, by name, and what was printed before them."""
    assert grow(*words, "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[1] if line.startswith("semseg-diffusers") else "note": line for line in lines}


def test_photos_of_a_target_add_the_stages_that_label_and_join_them(toy, target, tmp_path, capsys):
    grown = tmp_path / "grown"
    found = commands(capsys, "--dataset", toy, "--target", target, "--output", grown)
    assert list(found) == ["stats", *(name for name in TRANSFER_ORDER if name not in ("statistics", "enrich"))]
    assert f"--images {target} --segmenter {grown / 'segmenter'}" in found["label"]
    assert f"--datasets {toy} {grown / 'label'} --attribute dataset=source,target" in found["join"]
    assert f"--dataset {grown / 'join'} " in found["train"]
    assert "--attributes dataset" in found["train"]
    assert f"--masks {toy / 'train' / 'masks'}" in found["generate"]  # of the source
    assert "--attributes dataset=target" in found["generate"]
    assert f"--validation_dataset {target} --pseudo_labelled {grown / 'label'}" in found["study"]
    assert f"--dataset {toy} " in found["study"]
    assert f"--dataset {grown / 'join'} --generated {grown / 'filter'}" in found["merge"]
    assert not grown.exists()


def test_class_targets_or_a_number_of_masks_make_new_masks_for_the_target_too(toy, target, tmp_path, capsys):
    words = ("--dataset", toy, "--output", tmp_path / "grown")
    for more in (("--target", target, "car=2"), ("--target", "car=2", target)):
        found = commands(capsys, *words, *more)
        assert "--target car=2" in found["enrich"]
        assert f"--masks {tmp_path / 'grown' / 'enrich' / 'masks'}" in found["generate"]
    found = commands(capsys, *words, "--target", target, "--masks", "painted")
    assert "--masks painted" in found["generate"]
    assert "enrich" not in found


def test_what_exists_is_no_stage_and_the_style_can_be_named_otherwise(toy, target, tmp_path, capsys):
    words = ("--dataset", toy, "--output", tmp_path / "grown", "--target", target, "--model", "runs/both")
    changes = ("--set", "generate.attributes=dataset=kitti", "label.min_confidence=0.7")
    found = commands(capsys, *words, "--filter_segmenter", "user/network", *changes)
    assert list(found) == ["stats", "label", "join", "generate", "filter", "study", "merge"]
    assert "--segmenter user/network" in found["label"]
    assert "--min_confidence 0.7" in found["label"]
    assert "--attributes dataset=kitti" in found["generate"]


def test_a_model_of_the_dataset_is_trained_on_the_photos_of_the_target_alone(toy, target, tmp_path, capsys):
    grown = tmp_path / "grown"
    words = ("--dataset", toy, "--target", target, "--output", grown, "--init_from", "runs/source")
    found = commands(capsys, *words, "--set", "train.max_train_steps=300")
    assert f"--dataset {grown / 'label'} " in found["train"]
    assert "--init_from runs/source" in found["train"]
    assert "--max_train_steps 300" in found["train"]
    assert "--attributes" not in found["train"] + found["generate"]
    assert f"--dataset {grown / 'join'} --generated {grown / 'filter'}" in found["merge"]
    for other in (words[:2] + words[4:], (*words, "--model", "runs/both")):
        assert grow(*other) == 2
        assert "--init_from is the start of the model that `grow` trains for photos" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert grow(*words[:-1], tmp_path / "empty") == 2  # before the stages that come before the training
    assert "it has neither unet/config.json nor config.json" in capsys.readouterr().err
    assert not grown.exists()


def test_photos_without_labels_are_brought_to_the_size_of_the_dataset_and_the_study_says_what_it_cannot(
    toy, target, tmp_path, capsys
):
    photos = shutil.copytree(target / "train" / "images", tmp_path / "photos")
    found = commands(capsys, "--dataset", toy, "--target", photos, "--output", tmp_path / "grown")
    assert "--resolution 16x32" in found["label"]
    assert "validation_dataset" not in found["study"]
    assert f"'{photos}' has no validation split with labels of people" in found["note"]
    labelled = shutil.copytree(target, tmp_path / "labelled")
    record = json.loads((labelled / "prepare.json").read_text())
    (labelled / "prepare.json").write_text(json.dumps({**record, "pseudo_labels": {}}))
    found = commands(capsys, "--dataset", toy, "--target", labelled, "--output", tmp_path / "grown")
    assert "validation_dataset" not in found["study"]


def test_a_target_is_a_folder_or_an_id_and_given_once(toy, target, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert grow("--dataset", toy, "--output", tmp_path / "grown", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--target 'car': expected CLASS=FACTOR, or photos" in refused("--target", "car")
    assert f"--target '{toy / 'labels.json'}': expected CLASS=FACTOR" in refused("--target", toy / "labels.json")
    assert "names photos twice" in refused("--target", target, toy)
    assert "with --masks none are made" in refused("--target", target, "car=2", "--masks", "m")
    assert "--until label: there is no such stage, as it is for photos of a target" in refused("--until", "label")
    assert "--set join.overwrite: there is no such stage" in refused("--set", "join.overwrite=true")
    words = ("--target", target, "--until", "enrich")
    assert f"--until enrich: there is no such stage, as '{toy / 'train' / 'masks'}' was given" in refused(*words)
    assert "holds no photo" in refused("--target", tmp_path)
    wide = write_toy_dataset(tmp_path / "wide", num_train=1, num_val=1, size=(16, 16), seed=2)
    assert "expected images of one size" in refused("--target", wide)
    other = shutil.copytree(target, tmp_path / "other")
    labels = json.loads((toy / "labels.json").read_text())
    labels["id2label"]["0"] = "something"
    (other / "labels.json").write_text(json.dumps(labels))
    assert "prepare --map_to" in refused("--target", other)
    assert GrowSettings(dataset="d", output=tmp_path, target=("owner/photos",)).photos == "owner/photos"
    assert not (tmp_path / "grown").exists()


@pytest.mark.slow
def test_a_loop_for_a_target_ends_with_a_study_on_its_photos_and_resumes(toy, target, tmp_path, capsys):
    output = tmp_path / "grown"
    text = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in TINY.items()}
    changes = [f"train.{name}={value}" for name, value in text.items() if name != "device"]
    small = ("architecture=segformer-mini", "max_train_steps=2", "train_batch_size=2")
    changes += [f"{stage}.{change}" for stage in ("segmenter", "study") for change in small]
    changes += ["generate.num_inference_steps=2", "filter.minimum_kept=0", "study.jobs=1", "label.min_confidence=0"]
    changes += ["study.arms=real,real_recolored,real_pseudo,real_synthetic,real_pseudo_filtered"]
    words = ("--dataset", toy, "--target", target, "--output", output, "--seeds", 0, 1, "--device", "cpu")
    assert grow(*words, "--until", "join", "--set", *changes) == 0
    assert "Still to be done: train, generate, filter, study, merge" in (output / "index.html").read_text()
    assert grow(*words, "--set", *changes) == 0
    said = capsys.readouterr().out
    assert said.count("[segmenter]") == said.count("[label]") == said.count("[join]") == said.count("[study]") == 1
    assert {row["dataset"] for row in read_metadata(output / "generate")} == {"target"}
    results = json.loads((output / "study" / "results.json").read_text())
    assert results["settings"]["validation_dataset"] == str(target)
    assert results["forced"] == []
    pairs = load_pairs(output / "merge", "train")
    counts = {value: pairs.attributes["dataset"].count(value) for value in ("source", "target")}
    assert counts == {"source": 6, "target": 4 + pairs.num_synthetic}
    page = (output / "index.html").read_text()
    for section in ("What it brings", "Photos of the target", "Images", "Filter", "The dataset"):
        assert section in page
    assert "6 pairs with dataset=source, 4 pairs with dataset=target" in page
