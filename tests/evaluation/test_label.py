"""`semseg-diffusers label`: photos become a prepared dataset whose masks are a network's predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluation_place import LABELS, SIZE, Place
from PIL import Image

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.hub.cards import dataset_content


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("label"))


def label(place: Place, output, *words, images=None, segmenter=None, expect: int = 0) -> str:
    given = ("--images", images or place.dataset, "--segmenter", segmenter or place.segmenter, "--output", output)
    return place.command("label", *given, "--device", "cpu", *words, expect=expect)


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]


def test_masks_are_the_predictions_of_the_network_and_photos_stay(place, tmp_path):
    said = label(place, tmp_path / "out", "--batch_size", 5, "--min_confidence", 0)
    pairs, real = load_pairs(tmp_path / "out", "train"), load_pairs(place.dataset, "train")
    assert pairs.stems == real.stems
    assert pairs.labels == LABELS
    judge = load_judge(place.segmenter, LABELS)
    for index in (0, 7, 23):
        assert torch.equal(pairs[index]["image"], real[index]["image"])
        assert torch.equal(pairs[index]["mask"], judge.read(real[index]["image"][None])[0])
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["pseudo_labels"]["weights_sha256"] == judge.weights_sha256
    assert record["pseudo_labels"]["trained_on"]["dataset"] == str(place.dataset)
    assert record["splits"] == {"train": 24}
    assert record["format"] == "test"  # that of the photos, for their licence
    assert judge.weights_sha256 in said
    assert "predicted in no photo: " in said


def test_predictions_below_the_confidence_are_unknown_and_very_unsure_ones_are_counted(place, tmp_path):
    said = label(place, tmp_path / "out", "--min_confidence", 0.9)
    pairs, judge = load_pairs(tmp_path / "out", "train"), load_judge(place.segmenter, LABELS)
    rows = rows_of(tmp_path / "out")
    unknown = 0
    for index in range(len(pairs)):
        ids, confidence = judge.read_with_confidence(pairs[index]["image"][None])
        expected = torch.where(confidence < 0.9, 255, ids)[0]
        unknown += (expected == 255).sum().item()
        assert torch.equal(pairs[index]["mask"], expected)
        assert rows[index]["unsure_share"] == pytest.approx((confidence < 0.5).float().mean().item(), abs=1e-6)
    assert 0 < unknown < 24 * SIZE * SIZE
    found = json.loads((tmp_path / "out" / "prepare.json").read_text())["pseudo_labels"]
    assert found["unknown_share"] == pytest.approx(unknown / (24 * SIZE * SIZE), abs=1e-6)
    assert f"unknown in the masks: {found['unknown_share']:.1%} (--min_confidence 0.9)" in said
    worst = max(rows, key=lambda row: row["unsure_share"])
    assert f"{worst['stem']}: {worst['unsure_share']:.1%}" in said


def test_the_confidence_of_a_class_is_that_of_all_classes_of_the_network_which_map_to_it(place):
    labels = LabelSet(("ground", "sky", "car"), LABELS.colors[:3])  # person and pole have no counterpart
    image = load_pairs(place.dataset, "train")[0]["image"][None]
    judge = load_judge(place.segmenter, labels)
    with torch.no_grad():
        logits = judge.network(pixel_values=judge.preprocessing(image)).logits
    probabilities = torch.nn.functional.interpolate(logits, (SIZE, SIZE), mode="bilinear").softmax(1)
    ids, confidence = judge.read_with_confidence(image)
    assert torch.equal(ids, judge.read(image))
    own = ids == 1
    torch.testing.assert_close(confidence[own], probabilities[:, 1][own])


def test_a_folder_of_photos_is_cropped_and_resized_as_prepare_does(place, tmp_path):
    photos, pairs = tmp_path / "photos", tmp_path / "pairs"
    for folder in (photos / "drive", pairs / "images", pairs / "masks"):
        folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (90, 200, 3)).astype(np.uint8)
    for name, photo in (("a.jpg", noise), ("drive/b.png", noise[:, :120])):
        Image.fromarray(photo).save(photos / name)
        shutil.copy(photos / name, pairs / "images")
        Image.new("L", (photo.shape[1], 90)).save(pairs / "masks" / f"{Path(name).stem}.png")
    LABELS.save_json(pairs / "labels.json")
    place.command("prepare", "--source", pairs, "--output", tmp_path / "prepared", "--resolution", SIZE)
    label(place, tmp_path / "out", "--resolution", SIZE, "--split", "training", images=photos)
    ours, theirs = load_pairs(tmp_path / "out", "train"), load_pairs(tmp_path / "prepared", "train")
    assert ours.stems == theirs.stems == ["a", "b"]
    assert all(torch.equal(ours[index]["image"], theirs[index]["image"]) for index in range(2))
    padding = ("--resolution", SIZE, "--fit", "pad", "--min_confidence", 0)
    label(place, tmp_path / "padded", *padding, images=photos)
    padded = load_pairs(tmp_path / "padded", "train")
    assert (padded[0]["mask"][:4] == 255).all()  # outside of the frame
    assert (padded[0]["mask"][12:20] != 255).all()
    label(place, tmp_path / "native", images=photos)
    assert load_pairs(tmp_path / "native", "train").sizes == [(90, 200), (90, 120)]


def test_masks_of_the_photos_are_never_read(place, tmp_path):
    data = place.data_copy(tmp_path / "data")
    for path in (data / "train" / "masks").iterdir():
        path.write_bytes(b"no mask")
    label(place, tmp_path / "out", images=data)
    assert len(load_pairs(tmp_path / "out", "train")) == 24


def test_a_card_says_that_masks_are_predictions(place, tmp_path):
    label(place, tmp_path / "out", "--min_confidence", 0.25)
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    text = dataset_content(LABELS, record, record["splits"])
    assert "Masks are predictions of `segmenter` (weights sha256:" in text
    assert "unknown below a confidence of 0.25" in text
    assert str(tmp_path) not in text


def test_the_licence_of_kitti_is_stricter_than_that_of_camvid():
    assert data_license("camvid+kitti")[0] == data_license("kitti+toy")[0] == "cc-by-nc-sa-3.0"
    assert all(name in data_license("camvid+kitti")[1] for name in ("CamVid", "KITTI"))
    assert "toy" not in data_license("kitti+toy")[1]
    assert data_license("toy+toy", "this")[0] == "apache-2.0"
    assert data_license("camvid+folder")[0] is None


def test_what_cannot_be_labelled_is_refused_in_a_line(place, tmp_path):
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()

    def refused(*words, **changes) -> str:
        said = label(place, out, *words, expect=2, **changes)
        assert not out.exists()
        (line,) = (line for line in said.splitlines() if line.startswith("error: "))
        return line

    assert "holds no photo" in refused(images=empty)
    assert "there is no folder" in refused(images=tmp_path / "nowhere")
    assert "has no split 'test'; it has train, validation" in refused("--split", "test")
    assert "--min_confidence must be 0 or more and less than 1; got 1" in refused("--min_confidence", 1)
    assert "no prediction" in refused("--min_confidence", 0.999999)
    assert "does not apply to --resolution native" in refused("--fit", "pad")
    assert "preprocessor_config.json" in refused(segmenter=place.dataset)
    assert "overlap; expected separate folders" in label(place, place.dataset / "new", expect=2)
    (empty / "images").mkdir()
    (empty / "masks").mkdir()
    assert "holds masks beside its photos" in refused(images=empty)
    (empty / "images" / "a.png").write_bytes(b"no image")
    assert "a.png" in refused(images=empty / "images")
    segmenter = shutil.copytree(place.segmenter, tmp_path / "segmenter")
    config = json.loads((segmenter / "config.json").read_text())
    del config["label_set"]
    (segmenter / "config.json").write_text(json.dumps(config))
    (segmenter / "labels.json").unlink()
    assert "carries no label set" in refused(segmenter=segmenter)
    label(place, out, "--labels", place.dataset / "labels.json", segmenter=segmenter)
