"""Cityscapes, the sets that follow it, and CamVid: their ids and colours become those of the label set."""

import datasets
import numpy as np
import pytest
from helpers.driving_sets import SIZE, cityscapes, ids_of, prepare, save, save_photo
from PIL import Image

from semseg_diffusers.data.labels import CAMVID, LabelSet
from semseg_diffusers.data.readers import read_source
from semseg_diffusers.data.readers.pairs import CAMVID_COLORS


# labels.py of cityscapesScripts: id -> trainId.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip


def as_train_ids(label_ids: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: TRAIN_IDS.get(value, 255))(label_ids)


# Cityscapes --------------------------------------------------------------------------------------------------------


def test_label_ids_become_train_ids_and_the_blank_test_masks_are_left_out(tmp_path):
    report, pairs = prepare(cityscapes(tmp_path / "source"), tmp_path / "out")
    assert (report.data_format, report.splits) == ("cityscapes", {"train": 2, "val": 1})
    assert "read the masks *_gtFine_labelIds.png" in report.notes
    assert pairs["train"].stems == ["aachen_000000_000019", "zurich_000001_000019"]
    assert np.array_equal(pairs["train"][1]["mask"], as_train_ids(ids_of(1, 34)))


def test_train_ids_are_taken_as_they_are_and_first(tmp_path):
    cityscapes(tmp_path / "source")
    cityscapes(tmp_path / "source", "labelTrainIds")
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert "read the masks *_gtFine_labelTrainIds.png" in report.notes
    assert np.array_equal(pairs["val"][0]["mask"], ids_of(2))


def test_label_ids_in_a_file_that_is_called_train_ids_are_refused(tmp_path):
    cityscapes(tmp_path / "source", "labelTrainIds")
    name = "val/munster/munster_000002_000019_gtFine_labelTrainIds.png"
    save(tmp_path / "source/gtFine" / name, np.where(ids_of(2, 34) < 20, 26, ids_of(2, 34)))
    with pytest.raises(ValueError, match="labelTrainIds.png' holds class.*Is it a Cityscapes labelIds file"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_a_mixture_of_both_kinds_and_a_set_without_masks_are_refused(tmp_path):
    cityscapes(tmp_path / "source")
    for path in (tmp_path / "source/gtFine/val").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(
        ValueError, match=r"found both kinds of masks .*expected files called \*_gtFine_labelTrainIds.png in"
    ):
        read_source(tmp_path / "source")
    for path in (tmp_path / "source/gtFine").rglob("*Ids.png"):
        path.unlink()
    with pytest.raises(ValueError, match="found no masks"):
        read_source(tmp_path / "source")
    with pytest.raises(ValueError, match="does not have the layout of --format cityscapes; expected leftImg8bit/"):
        read_source(tmp_path / "source/gtFine", "cityscapes")


# ACDC --------------------------------------------------------------------------------------------------------------


def test_acdc_keeps_the_condition_and_leaves_the_references_out(tmp_path):
    for seed, (condition, split) in enumerate(
        (("fog", "train"), ("night", "train"), ("fog", "val"), ("snow", "train_ref"))
    ):
        name = f"{condition}/{split}/GOPR0{seed}/GOPR0{seed}_frame_000{seed}"
        save_photo(tmp_path / f"source/rgb_anon_trainvaltest/rgb_anon/{name}_rgb_anon.png", seed)
        for kind, count in (("labelTrainIds", 19), ("labelIds", 34), ("labelColor", 19)):
            save(tmp_path / f"source/gt_trainval/gt/{name}_gt_{kind}.png", ids_of(seed, count))
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("acdc", {"train": 2, "val": 1})
    assert np.array_equal(pairs["val"][0]["mask"], ids_of(2))
    tables = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert tables["train"]["condition"][:] == ["fog", "night"]


# KITTI -------------------------------------------------------------------------------------------------------------


def test_kitti_maps_label_ids_takes_sizes_as_they_are_and_splits_by_name(tmp_path):
    for i in range(40):
        size = (37 + i % 3, 124)
        save_photo(tmp_path / f"source/training/image_2/{i:06}_10.png", i, size)
        save(tmp_path / f"source/training/semantic/{i:06}_10.png", np.full(size, (26, 7, 5)[i % 3], np.uint8))
        save(tmp_path / f"source/training/semantic_rgb/{i:06}_10.png", np.zeros(size, np.uint8))
    (tmp_path / "source/testing/image_2").mkdir(parents=True)
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert report.data_format == "kitti"
    assert sum(report.splits.values()) == 40
    assert 2 <= report.splits["val"] <= 14
    masks = {
        int(stem[:6]): pair["mask"] for part in pairs.values() for stem, pair in zip(part.stems, part, strict=True)
    }
    assert all((mask == (13, 0, 255)[i % 3]).all() and mask.shape == (37 + i % 3, 124) for i, mask in masks.items())
    again = {pair.stem: pair.split for pair in read_source(tmp_path / "source").pairs}
    assert all(again[stem] == split for split, part in pairs.items() for stem in part.stems)


# CamVid ------------------------------------------------------------------------------------------------------------


def test_segnets_own_layout_of_camvid_is_read(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        save_photo(tmp_path / "source/CamVid" / split / f"{split}1.png", seed)
        save(tmp_path / "source/CamVid" / f"{split}annot" / f"{split}1.png", ids_of(seed, 12) % 12)
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("camvid", {"test": 1, "train": 1, "val": 1})
    ids = ids_of(1, 12) % 12
    assert np.array_equal(pairs["val"][0]["mask"], np.where(ids == 11, 255, ids))


@pytest.mark.parametrize(
    "layout", [("train", "train_labels"), ("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")]
)
def test_the_32_colours_of_camvid_become_its_11_classes(tmp_path, layout):
    table = [(name, color, group) for group, members in CAMVID_COLORS.items() for name, color in members.items()]
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 32  # the last one is void
    colors = np.array([*(color for _, color, _ in table), (0, 0, 0)], dtype=np.uint8)[ids]
    save_photo(tmp_path / "source" / layout[0] / "0001TP_006690.png", 0)
    save(tmp_path / "source" / layout[1] / "0001TP_006690_L.png", colors)
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("camvid", {"train": 1})
    mask = pairs["train"][0]["mask"].numpy()
    classes = LabelSet.from_preset("camvid").names
    merged = {table[i][0] if i < 31 else "Void": mask[ids == i][0] for i in range(32)}
    assert merged["Void"] == 255
    assert {name: classes[i] for name, i in merged.items() if i != 255} == {n: group for n, _, group in table}
    assert (classes[merged["SUVPickupTruck"]], classes[merged["LaneMkgsDriv"]]) == ("car", "road")


def test_every_class_of_camvid_is_merged_from_some_colour():
    assert CAMVID_COLORS.keys() == CAMVID.keys()
    assert len({tuple(color) for members in CAMVID_COLORS.values() for color in members.values()}) == 31


def test_a_strange_colour_in_camvid_is_named(tmp_path):
    save_photo(tmp_path / "source/train/a.png", 0)
    save(tmp_path / "source/train_labels/a_L.png", np.full((*SIZE, 3), (1, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a_L.png' holds 1 colour that no class has: \(1, 2, 3\)"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_colours_in_some_splits_only_are_refused(tmp_path):
    for split, ending in (("train", "_L"), ("val", "")):
        save_photo(tmp_path / split / "a.png", 0)
        save(tmp_path / f"{split}_labels" / f"a{ending}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r"masks in colours \(_L.png\) in some splits only"):
        read_source(tmp_path, "camvid")


def test_real_camvid_is_detected(data_root):
    assert read_source(data_root / "camvid").data_format == "camvid"
    assert read_source(data_root / "bdd100k_samples").data_format == "paper"
    assert Image.open(next(iter(read_source(data_root / "camvid").pairs)).mask).size == (480, 360)
