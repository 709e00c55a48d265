"""Toy scenes: pure functions of a seed, exact masks in BDD100K's classes, learnable."""

import json

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers.captions.caption import known_colors, word_regions
from semseg_diffusers.captions.colors import rgb_to_lab
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.pipelines.text_inputs import number_things
from semseg_diffusers.toy import objects as toy_things
from semseg_diffusers.toy import painter as toy_painter
from semseg_diffusers.toy import scenes as toy
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset


@pytest.fixture(scope="module")
def scenes():
    """Eighty small scenes: (photo as floats in 0..1, ids, attributes)."""
    drawn = [draw_scene(seed, (32, 32)) for seed in range(80)]
    return [(np.asarray(photo, np.float32) / 255, ids, attributes) for photo, ids, attributes in drawn]


def test_class_numbers_are_those_of_the_bdd100k_label_set():
    names = LabelSet.from_preset("bdd100k").names
    assert [getattr(toy_things, name.upper().replace(" ", "_")) for name in names] == list(range(19))
    assert toy_painter.SKY == toy_things.SKY


def test_a_scene_is_a_pure_function_of_its_seed():
    (photo, ids, attributes), (photo_again, ids_again, attributes_again) = (draw_scene(5, (64, 64)) for _ in range(2))
    assert photo.tobytes() == photo_again.tobytes()
    assert np.array_equal(ids, ids_again)
    assert attributes == attributes_again
    assert photo.tobytes() != draw_scene(6, (64, 64))[0].tobytes()


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 50), (200, 40)])
def test_shapes_types_and_range_hold_for_any_size(size):
    photo, ids, attributes = draw_scene(3, size)
    assert (photo.mode, photo.size) == ("RGB", (size[1], size[0]))
    assert (ids.dtype, ids.shape) == (np.uint8, size)
    assert ids.max() < 19
    assert attributes.keys() == {"weather", "scene", "timeofday"}


def test_golden_scene():
    """Percent of each class in one scene; a change of the drawing shows here and should be meant."""
    _, ids, attributes = draw_scene(0, (64, 64))
    percent = 100 * np.bincount(ids.ravel(), minlength=19) / ids.size
    golden = [34.45, 0, 2.37, 0.42, 0.63, 2.71, 0, 0.02, 2.51, 2.44, 41.19, 0, 0, 0.98, 12.28, 0, 0, 0, 0]
    assert attributes == {"weather": "rainy", "scene": "highway", "timeofday": "daytime"}
    np.testing.assert_allclose(percent, golden, atol=0.3)


def test_a_seed_shows_the_same_street_at_every_size():
    small, large = draw_scene(11, (64, 64))[1], draw_scene(11, (128, 128))[1]
    assert (small == large[::2, ::2]).mean() > 0.9


def test_all_classes_and_looks_occur(scenes):
    counts = np.bincount(np.concatenate([ids.ravel() for _, ids, _ in scenes]), minlength=19)
    assert (counts > 0).all(), np.flatnonzero(counts == 0)
    looks = {(attributes["weather"], attributes["timeofday"]) for _, _, attributes in scenes}
    assert looks == {(look.weather, look.timeofday) for _, look in toy.LOOKS}


def test_masks_contain_only_drawn_classes():
    drawing = np.array([[3, 3, 3, 8], [3, 3, 8, 8], [0, 5, 9, 9], [5, 5, 9, 9]], np.uint8)
    assert toy._majority(Image.fromarray(drawing), 2).tolist() == [[3, 8], [5, 9]]


def test_edges_of_image_and_mask_coincide(scenes):
    """Across a class boundary the photo changes several times as much as within a class."""
    across, within = [], []
    for photo, ids, _ in scenes:
        change = np.abs(np.diff(photo, axis=1)).sum(axis=-1)  # (H, W - 1)
        boundary = np.diff(ids.astype(int), axis=1) != 0
        across.append(change[boundary].mean())
        within.append(change[~boundary].mean())
    assert np.mean(across) > 3 * np.mean(within)


def test_classes_are_learnable_from_colour_and_position(scenes):
    """A nearest-mean classifier, fitted on 60 scenes, beats the commonest class by far on 20 others."""

    def features(photo):
        height, width, _ = photo.shape
        y, x = np.meshgrid(np.linspace(0, 2, height), np.abs(np.linspace(-0.5, 0.5, width)), indexing="ij")
        return np.concatenate([photo / photo.mean(), y[..., None], x[..., None]], axis=-1).reshape(-1, 5)

    known = np.concatenate([features(photo) for photo, _, _ in scenes[:60]])
    ids = np.concatenate([mask.ravel() for _, mask, _ in scenes[:60]])
    means = np.stack([known[ids == label].mean(axis=0) for label in range(19)])  # (19, 5)
    unseen = np.concatenate([features(photo) for photo, _, _ in scenes[60:]])
    truth = np.concatenate([mask.ravel() for _, mask, _ in scenes[60:]])
    guess = ((unseen[:, None] - means[None]) ** 2).sum(axis=-1).argmin(axis=1)
    recalls = [(guess[truth == label] == label).mean() for label in np.unique(truth)]
    assert np.mean(recalls) > 0.25  # the commonest class everywhere: 1 / 19


def test_a_scene_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 16 x 16 pixels for a toy scene; got 8 x 64"):
        draw_scene(0, (8, 64))


def test_dataset_of_toy_scenes_has_the_prepared_layout(tmp_path):
    folder = write_toy_dataset(tmp_path / "toy", num_train=3, num_val=2, size=(32, 48), seed=4)
    lines = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["stem"] for line in lines] == ["toy_4_0000000", "toy_4_0000001", "toy_4_0000002"]
    assert lines[0].keys() == {"image_file_name", "mask_file_name", "stem", "weather", "scene", "timeofday"}
    pictures = []
    for name in ("val/masks/toy_4_5000001.png", f"train/{lines[0]['image_file_name']}"):
        with Image.open(folder / name) as picture:
            pictures.append((picture.mode, picture.size))
    assert pictures == [("P", (48, 32)), ("RGB", (48, 32))]
    record = json.loads((folder / "prepare.json").read_text())
    assert (record["format"], record["splits"], record["resolution"]) == ("toy", {"train": 3, "val": 2}, [32, 48])
    assert LabelSet.from_json(folder / "labels.json") == LabelSet.from_preset("bdd100k")


def test_a_larger_dataset_starts_with_the_same_scenes(tmp_path):
    small = write_toy_dataset(tmp_path / "small", num_train=2, num_val=1, size=(32, 32))
    large = write_toy_dataset(tmp_path / "large", num_train=4, num_val=2, size=(32, 32))
    for path in small.rglob("*.png"):
        assert path.read_bytes() == (large / path.relative_to(small)).read_bytes()


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_val": -1}, {"seed": -1}, {"size": (8, 8)}])
def test_wrong_counts_leave_no_output(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected|needs"):
        write_toy_dataset(tmp_path / "toy", **{"num_train": 1, "num_val": 0, "size": (32, 32), **wrong})
    assert list(tmp_path.iterdir()) == []


def test_colors_are_those_that_vehicles_and_houses_were_painted_in(tmp_path):
    folder = write_toy_dataset(tmp_path / "toy", num_train=12, num_val=0, size=(64, 64), colors=True)
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    labels, seen = LabelSet.from_preset("bdd100k"), 0
    for row in rows:
        photo = np.asarray(Image.open(folder / "train" / row["image_file_name"]), np.int64)
        ids = labels.encode(folder / "train" / row["mask_file_name"])
        for region in row["colors"]:
            label = labels.label2id[region["class"]]
            assert label in (toy_things.BUILDING, *toy.VEHICLES)
            inside = ids == label
            if label == toy_things.BUILDING:
                assert region["thing"] == -1
            else:
                inside = number_things(inside) == region["thing"]
            counts = [count for *_, count in region["colors"]]
            assert 0 < sum(counts) <= inside.sum()
            red, _, blue, most = max(region["colors"], key=lambda color: color[3])
            if row["timeofday"] == "daytime" and most > 100 and most > 0.9 * sum(counts) and abs(red - blue) > 60:
                difference = (photo[inside][:, 0] - photo[inside][:, 2]).mean()
                assert np.sign(difference) == np.sign(red - blue)
                seen += 1
    assert seen > 2
    plain = write_toy_dataset(tmp_path / "plain", num_train=1, num_val=0, size=(64, 64))
    assert '"colors"' not in (plain / "train" / "metadata.jsonl").read_text()


def test_captions_find_the_painted_colors_of_a_tram():
    painter, photo, ids, _ = toy._draw_scene(47, (64, 64))
    street = Street.of(LabelSet.from_preset("bdd100k"))
    known = known_colors(toy._painted_regions(painter, ids, street.labels), "scene 47")
    rng = np.random.default_rng(0)
    found = word_regions(rgb_to_lab(np.asarray(photo)), ids, street, rng, min_area=1, known=known)
    assert known["train"].keys() == {-1}
    assert ("train", -1) in {(region["class"], region["thing"]) for region in found}
