"""BDD100K in each of the forms in which it is published, and the attributes of its photos."""

import json
import re

import datasets
import numpy as np
import pytest
from helpers.driving_sets import (
    SIZE,
    bdd100k,
    bdd100k_polygons,
    detection_labels,
    ids_of,
    prepare,
    rectangle,
    save,
    save_json,
    save_photo,
    zip_folder,
)
from PIL import Image

from semseg_diffusers.data.readers import read_source
from semseg_diffusers.data.readers.bdd100k import iterate_frames


def test_masks_are_read_as_they_are(tmp_path):
    report, pairs = prepare(bdd100k(tmp_path / "source"), tmp_path / "out")
    assert (report.data_format, report.splits) == ("bdd100k", {"train": 2, "val": 1})
    assert "read the masks" in report.notes
    assert np.array_equal(pairs["train"][1]["mask"].numpy(), ids_of(1))


def test_polygons_are_drawn_in_their_order_and_other_categories_are_left_unknown_and_counted(tmp_path):
    source = bdd100k_polygons(bdd100k(tmp_path / "source", masks=False))
    report, pairs = prepare(source, tmp_path / "out")
    assert report.splits == {"train": 2, "val": 1}
    assert report.notes == (
        "read the polygons",
        "labels of no class, left unknown: parking sign (3)",
        "left out: 1 test images, which have no labels",
    )
    ids = pairs["val"][0]["mask"].numpy()
    expected = np.full(SIZE, 10)
    expected[20:] = 0
    expected[10:30, 10:30] = 13
    assert np.array_equal(ids, expected)


def test_polygons_at_a_resolution_are_the_whole_drawing_resized(tmp_path):
    source = bdd100k_polygons(bdd100k(tmp_path / "source", masks=False))
    _, whole = prepare(source, tmp_path / "whole")
    _, small = prepare(source, tmp_path / "small", resolution=(12, 12))
    middles = (2 * np.arange(12) + 1) * 36 // 24
    assert np.array_equal(small["val"][0]["mask"], whole["val"][0]["mask"][middles][:, 14 + middles])


def test_annotations_can_be_chosen_and_masks_come_first(tmp_path):
    source = bdd100k_polygons(bdd100k(tmp_path / "source"))
    assert "read the masks (there are also polygons: --annotations)" in read_source(source).notes
    assert (
        "read the polygons (there are also masks: --annotations)" in read_source(source, annotations="polygons").notes
    )
    with pytest.raises(ValueError, match="has no labels/sem_seg/rles. There is masks and polygons: give --a"):
        read_source(source, annotations="rles")
    with pytest.raises(ValueError, match="--format folder does not take --annotations 'rles'"):
        read_source(source, "folder", "bdd100k", annotations="rles")


def test_run_lengths_are_read_and_later_ones_win(tmp_path):
    source = bdd100k(tmp_path / "source", masks=False)
    everything = {"counts": [0, 36 * 64], "size": [36, 64]}
    left = {"counts": [0, 36 * 10, 36 * 54], "size": [36, 64]}
    labels = [{"category": "sky", "rle": everything}, {"category": "car", "rle": left}]
    for split, stems in (("train", "ab"), ("val", "c")):
        frames = [{"name": f"{stem}.jpg", "labels": labels} for stem in stems]
        save_json(source / "labels/sem_seg/rles" / f"sem_seg_{split}.json", {"frames": frames, "config": None})
    _, pairs = prepare(source, tmp_path / "out")
    ids = pairs["val"][0]["mask"].numpy()
    assert ((ids[:, :10] == 13).all(), (ids[:, 10:] == 10).all()) == (True, True)


def test_regions_of_another_frame_are_refused(tmp_path):
    source = bdd100k_polygons(bdd100k(tmp_path / "source", masks=False))
    save_photo(source / "images/10k/train/a.jpg", 0, (18, 32))
    with pytest.raises(
        ValueError, match=r"mask 'a of .*sem_seg_train.json' reaches to x = 64, y = 36; its image is 18 x"
    ):
        prepare(source, tmp_path / "out")
    label = {"category": "sky", "rle": {"counts": [0, 2304], "size": [64, 36]}}
    save_json(source / "labels/sem_seg/rles/sem_seg_train.json", [{"name": "b.jpg", "labels": [label]}])
    with pytest.raises(ValueError, match=r"region 0 is for 64 x 36 pixels; its image is 36 x 64"):
        prepare(source, tmp_path / "out", annotations="rles", skip_unmatched=True)


def test_the_layout_of_2018_is_read(tmp_path):
    for seed, (split, stem) in enumerate((("train", "a"), ("val", "b"))):
        save_photo(tmp_path / "source/seg/images" / split / f"{stem}.jpg", seed)
        save(tmp_path / "source/seg/labels" / split / f"{stem}_train_id.png", ids_of(seed))
        save(tmp_path / "source/seg/color_labels" / split / f"{stem}_train_color.png", ids_of(seed))
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("bdd100k", {"train": 1, "val": 1})
    assert np.array_equal(pairs["val"][0]["mask"].numpy(), ids_of(1))
    with pytest.raises(ValueError, match="has masks only; got --annotations polygons"):
        read_source(tmp_path / "source", annotations="polygons")


def test_photos_without_label_are_named(tmp_path):
    source = bdd100k_polygons(bdd100k(tmp_path / "source", masks=False))
    save_photo(source / "images/10k/train/lonely.jpg", 9)
    with pytest.raises(
        ValueError, match=r"1 images have no mask \(lonely.jpg\), 0 masks .*--skip_unmatched .* 3 pairs"
    ):
        read_source(source)
    (source / "images/10k/train/a.jpg").unlink()
    report, _ = prepare(source, tmp_path / "out", skip_unmatched=True)
    assert sorted(path.name.split(" ")[0] for path in report.unmatched) == ["a", "lonely.jpg"]


# Attributes --------------------------------------------------------------------------------------------------------

RAIN = {"weather": "rainy", "scene": "city street", "timeofday": "night"}
UNSURE = {"weather": "undefined", "scene": "highway", "timeofday": "dawn/dusk"}


@pytest.mark.parametrize("top", ["labels/bdd100k_labels_images_{}.json", "labels/det_20/det_{}.json"])
def test_attributes_are_looked_up_in_both_files_and_none_where_they_are_not_known(tmp_path, top):
    source = bdd100k(tmp_path / "source")
    detection_labels(
        source, {top.format("train"): {"c.jpg": RAIN, "x.jpg": RAIN}, top.format("val"): {"a.jpg": UNSURE}}
    )
    report, _ = prepare(source, tmp_path / "out")
    assert "weather, scene, timeofday: known for 2 of 3 images" in report.notes
    tables = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert tables["validation"].remove_columns(["image", "mask"])[:] == {
        "stem": ["c"], "weather": ["rainy"], "scene": ["city street"], "timeofday": ["night"]
    }  # fmt: skip
    assert tables["train"]["weather"][:] == ["", ""]  # a column of nulls only would have another type
    assert tables["train"]["timeofday"][:] == ["dawn/dusk", None]


def test_without_label_files_there_are_no_columns_of_attributes(tmp_path):
    prepare(bdd100k(tmp_path / "source"), tmp_path / "out")
    line = json.loads((tmp_path / "out/val/metadata.jsonl").read_text())
    assert line.keys() == {"image_file_name", "mask_file_name", "stem"}


def test_attributes_come_from_archives_too(tmp_path):
    source = detection_labels(bdd100k(tmp_path / "source"), {"labels/det_20/det_train.json": {"c.jpg": RAIN}})
    archive = zip_folder(source, tmp_path / "bdd100k.zip", "bdd100k/")
    pairs = {pair.stem: pair for pair in read_source(archive).pairs}
    assert pairs["c"].attributes == RAIN
    assert pairs["a"].attributes == dict.fromkeys(RAIN)


# Scalabel's JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_frames_are_read_one_by_one(tmp_path, indent, wrapped):
    frames = [{"name": "é€😀.jpg", "n": [1.5e3, -2, None, "]}"]}, {"name": 'quote " and \\', "labels": []}]
    content = {"config": {"a": [1]}, "n": 12, "frames": frames, "groups": []} if wrapped else frames
    file = tmp_path / "labels.json"
    for start in ("", "\n ", "\ufeff"):
        file.write_text(start + json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert list(iterate_frames(file)) == frames
    file.write_text(json.dumps({"frames": []} if wrapped else [], indent=indent))
    assert list(iterate_frames(file)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'expected a list, or an object with the key "frames"'),
        ('[{"name": "a"}', "expected , or ] after a frame, got ''"),
        ('[{"name": "a"},', "Expecting value"),
        ('[{"name": "a}', "Unterminated string"),
        ('[{"name": "a"} {"name"', "expected , or ] after a frame, got '{\"name\"'"),
        ("<html>", 'expected a list, or an object with the key "frames"'),
        ('{"config": {}}', 'expected a list, or an object with the key "frames"'),
        ("[1, 2]", "a frame is 1"),
    ],
)
def test_a_file_that_is_not_a_list_of_frames_is_refused(tmp_path, text, message):
    file = tmp_path / "labels.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"labels.json' is not a list of frames .*{re.escape(message)}"):
        list(iterate_frames(file))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"poly2d": [{"vertices": [[0, 0], [1, 1]], "types": "L"}]}, "types 'L' for 2 vertices"),
        ({"poly2d": [{"vertices": [[0, 0, 1]], "types": "L"}]}, r"vertices of shape \(1, 3\)"),
        ({"poly2d": [{"vertices": [[0, float("nan")]], "types": "L"}]}, "finite numbers"),
        ({"poly2d": [{"vertices": [[0, 1e9]], "types": "L"}]}, "a vertex at 1000000000 pixels"),
        ({"poly2d": [{"types": "L"}]}, "KeyError"),
    ],
)
def test_a_label_that_is_not_as_scalabel_writes_it_is_named(tmp_path, label, message):
    source = bdd100k(tmp_path, masks=False)
    labels = [rectangle("sky", 0, 0, 9, 9), {"category": "road", **label}]
    save_json(source / "labels/sem_seg/polygons/sem_seg_train.json", [{"name": "a.jpg", "labels": labels}])
    with pytest.raises(ValueError, match=rf"sem_seg_train.json', image 'a.jpg', label 1: .*{message}"):
        read_source(source)


def test_a_frame_that_comes_twice_is_refused(tmp_path):
    source = bdd100k(tmp_path, masks=False)
    save_json(source / "labels/sem_seg/polygons/sem_seg_train.json", [{"name": "a.jpg"}, {"name": "a.jpg"}])
    with pytest.raises(ValueError, match="has two frames 'a.jpg'"):
        read_source(source)


def test_a_photo_whose_labels_are_empty_is_unknown_everywhere(tmp_path):
    source = bdd100k(tmp_path / "source", masks=False)
    sky = {"name": "c.jpg", "labels": [rectangle("sky", 0, 0, 9, 9)]}
    for split, frames in (("train", [{"name": "a.jpg", "labels": None}, {"name": "b.jpg"}]), ("val", [sky])):
        save_json(source / f"labels/sem_seg/polygons/sem_seg_{split}.json", frames)
    _, pairs = prepare(source, tmp_path / "out")
    assert (pairs["train"][0]["mask"] == 255).all()
    assert Image.open(tmp_path / "out/train/masks/b.png").getextrema() == (255, 255)
