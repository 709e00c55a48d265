"""The readers find pairs by stem in each layout, and name what does not fit."""

import json
from pathlib import Path

import pytest

from semseg_diffusers.data.labels import PAPER, LabelSet
from semseg_diffusers.data.readers import open_source, read_source


COLORMAP = {"road": [128, 64, 128], "car": [0, 0, 142]}


def make_files(root: Path, *names: str) -> Path:
    """Empty files: a reader goes by names and decodes nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(source) -> list[tuple[str, str, str, str]]:
    return [(pair.split, pair.stem, pair.image.name, pair.mask.name) for pair in source.pairs]


def test_folder_without_splits_is_all_train_and_pairs_by_stem(tmp_path):
    make_files(tmp_path, "images/b.JPG", "images/a.png", "masks/a.png", "masks/b.png")
    make_files(tmp_path, "images/.DS_Store", "images/._a.png")
    source = read_source(tmp_path, "folder", labels="bdd100k")
    assert found(source) == [("train", "a", "a.png", "a.png"), ("train", "b", "b.JPG", "b.png")]
    assert source.labels == LabelSet.from_preset("bdd100k")
    assert source.unmatched == ()


@pytest.mark.parametrize("layout", ["{part}/{split}", "{split}/{part}"])
def test_folder_takes_split_folders_inside_or_outside(tmp_path, layout):
    for split, stem in (("training", "a"), ("validation", "b")):
        for part in ("images", "masks"):
            make_files(tmp_path, f"{layout.format(part=part, split=split)}/{stem}.png")
    assert found(read_source(tmp_path, "folder", "camvid")) == [
        ("train", "a", "a.png", "a.png"),
        ("val", "b", "b.png", "b.png"),
    ]


def test_folder_reads_its_own_colormap_and_labels_take_precedence(tmp_path):
    make_files(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "colormap.json").write_text(json.dumps(COLORMAP))
    assert read_source(tmp_path, "folder").labels.names == ("road", "car")
    LabelSet(("sky",), ((1, 2, 3),)).save_json(tmp_path / "labels.json")
    assert read_source(tmp_path, "folder").labels.names == ("sky",)
    assert read_source(tmp_path, "folder", labels=str(tmp_path / "colormap.json")).labels.names == ("road", "car")


def test_folder_without_classes_says_where_they_come_from(tmp_path):
    make_files(tmp_path, "images/a.png", "masks/a.png")
    with pytest.raises(
        ValueError,
        match=r"looked for labels.json, colormap.json, id2label.json, classes.txt .* --labels: one",
    ):
        read_source(tmp_path, "folder")
    with pytest.raises(ValueError, match=r"label set 'ade20k' is no file and none of the presets"):
        read_source(tmp_path, "folder", labels="ade20k")


def test_unmatched_files_are_counted_and_the_first_five_named(tmp_path):
    make_files(tmp_path, "images/pair.jpg", "masks/pair.png", "masks/lonely.png")
    make_files(tmp_path, *(f"images/p{i}.jpg" for i in range(7)))
    message = (
        r"7 images have no mask \(p0.jpg, p1.jpg, p2.jpg, p3.jpg, p4.jpg, \.\.\.\), 1 masks have no image \(lonely"
    )
    with pytest.raises(ValueError, match=message + r".*--skip_unmatched to continue with the 1 pairs"):
        read_source(tmp_path, "folder", "bdd100k")
    source = read_source(tmp_path, "folder", "bdd100k", skip_unmatched=True)
    assert [pair.stem for pair in source.pairs] == ["pair"]
    assert [path.name for path in source.unmatched] == [*(f"p{i}.jpg" for i in range(7)), "lonely.png"]


def test_no_pair_at_all_is_refused_even_with_skip_unmatched(tmp_path):
    make_files(tmp_path, "images/a.jpg", "masks/a_mask.png")
    with pytest.raises(ValueError, match="same name up to the ending"):
        read_source(tmp_path, "folder", "bdd100k", skip_unmatched=True)


def test_empty_folders_say_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"layout of --format folder; expected images/ .or photos/. and masks/"):
        read_source(tmp_path, "folder", "bdd100k")
    make_files(tmp_path, "images/readme.txt", "masks/.keep")
    with pytest.raises(ValueError, match=r"found no images \(\.jpg, .* in '.*images' and '.*masks'"):
        read_source(tmp_path, "folder", "bdd100k")


def test_source_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist; expected a folder"):
        read_source(tmp_path / "nowhere", "camvid")
    make_files(tmp_path, "file.tar")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        read_source(tmp_path / "file.tar", "camvid")
    with pytest.raises(ValueError, match="no format 'ade20k'; expected one of folder, camvid, bdd100k, paper"):
        read_source(tmp_path, "ade20k")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("images/train/a.png", "masks/val/a.png"), "split folders differ: .* has train, .* has val"),
        (("images/train/a.png", "masks/a.png"), "split folders differ: .* has train, .* has none"),
        (("images/train/a.png", "images/b.png", "masks/train/a.png"), "both split folders and images"),
        (
            ("images/berlin/a.png", "images/train/b.png", "masks/train/b.png"),
            "holds the folders berlin; expected",
        ),
        (("images/val/a.png", "images/valid/a.png", "masks/val/a.png"), "are both the split val"),
        (("images/a.png", "images/a.jpg", "masks/a.png"), "have the same stem"),
    ],
)
def test_ambiguous_layouts_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        read_source(make_files(tmp_path, *files), "folder", "bdd100k")


@pytest.mark.parametrize("top", ["", "bdd100k/"])
def test_bdd100k_layout_is_found_from_its_folder_or_the_parent_without_the_test_photos(tmp_path, top):
    for split in ("train", "val"):
        make_files(
            tmp_path, f"{top}images/10k/{split}/{split}1.jpg", f"{top}labels/sem_seg/masks/{split}/{split}1.png"
        )
    make_files(tmp_path, f"{top}images/10k/test/t.jpg", f"{top}images/100k/train/x.jpg")
    source = read_source(tmp_path, "bdd100k")
    assert found(source) == [("train", "train1", "train1.jpg", "train1.png"), ("val", "val1", "val1.jpg", "val1.png")]
    assert source.labels.names[0] == "road"


def test_bdd100k_without_masks_says_what_is_there_instead(tmp_path):
    make_files(tmp_path, "images/10k/train/a.jpg", "labels/sem_seg/colormaps/train/a.png")
    with pytest.raises(ValueError, match="has no labels/sem_seg/.*There is colormaps, but these are for viewing"):
        read_source(tmp_path, "bdd100k")


@pytest.mark.parametrize("data_format", ["camvid", "bdd100k", "cityscapes", "acdc", "kitti"])
def test_formats_with_classes_of_their_own_refuse_labels(tmp_path, data_format):
    with pytest.raises(ValueError, match=f"--format {data_format} brings its own classes"):
        read_source(tmp_path, data_format, labels="paper")


@pytest.mark.parametrize(
    ("files", "data_format"),
    [
        (("images/a.jpg", "masks/a.png", "labels.json"), "folder"),
        (("train/images/a.jpg", "train/masks/a.png"), "folder"),
        (("images/train/a.jpg", "labels/train/a.png"), "camvid"),
        (("train/a.png", "trainannot/a.png"), "camvid"),
        (("images/10k/train/a.jpg", "labels/sem_seg/masks/train/a.png"), "bdd100k"),
        (("bdd100k/images/10k/train/a.jpg", "bdd100k/labels/sem_seg/polygons/sem_seg_train.json"), "bdd100k"),
        (("seg/images/train/a.jpg", "seg/labels/train/a_train_id.png"), "bdd100k"),
        (("leftImg8bit/train/ulm/a_leftImg8bit.png", "gtFine/train/ulm/a_gtFine_labelIds.png"), "cityscapes"),
        (("rgb_anon/fog/train/s/a_rgb_anon.png", "gt/fog/train/s/a_gt_labelIds.png"), "acdc"),
        (("training/image_2/a.png", "training/semantic/a.png"), "kitti"),
        (("data/train-00000-of-00001.parquet",), "datasets"),
    ],
)
def test_the_format_is_known_by_the_layout(tmp_path, files, data_format):
    assert open_source(make_files(tmp_path, *files))[1] == data_format


def test_the_papers_format_is_known_by_its_colormap(tmp_path):
    make_files(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "colormap.json").write_text(json.dumps(COLORMAP))
    assert read_source(tmp_path).data_format == "folder"
    (tmp_path / "colormap.json").write_text(json.dumps(PAPER))
    assert read_source(tmp_path).data_format == "paper"


def test_unknown_and_ambiguous_layouts_are_refused_with_what_was_looked_for(tmp_path):
    make_files(tmp_path, "photos/a.jpg")
    with pytest.raises(
        ValueError, match=r"is not known; expected images/ .or photos/. and masks/, .* \(folder\); .*--"
    ):
        read_source(tmp_path)
    make_files(tmp_path, "images/a.jpg", "masks/a.png", "labels/a.png")
    with pytest.raises(ValueError, match="could be folder or camvid; name it: --format"):
        read_source(tmp_path)


def test_options_that_a_format_does_not_take_are_refused(tmp_path):
    make_files(tmp_path, "images/a.jpg", "masks/a.png")
    for options, message in (
        ({"image_column": "image"}, "--format folder does not take --image_column 'image'"),
        ({"streaming": True}, "--format folder does not take --streaming"),
    ):
        with pytest.raises(ValueError, match=message):
            read_source(tmp_path, "folder", "bdd100k", **options)
    with pytest.raises(ValueError, match="--format datasets does not take --skip_unmatched"):
        read_source(tmp_path, "datasets", "bdd100k", skip_unmatched=True)


def test_several_sources_are_archives(tmp_path):
    make_files(tmp_path, "a/images/a.jpg", "b/x")
    with pytest.raises(ValueError, match="expected one folder alone, or several zip archives"):
        read_source([tmp_path / "a", tmp_path / "b"])


def test_paper_format_needs_its_colormap(tmp_path):
    make_files(tmp_path, "images/a.jpg", "masks/a.png")
    with pytest.raises(ValueError, match="looked for colormap.json"):
        read_source(tmp_path, "paper")
    assert read_source(tmp_path, "paper", labels="paper").labels.names[0] == "background"


def test_camvid_reads_eleven_as_unknown(tmp_path):
    make_files(tmp_path, "images/train/a.jpg", "labels/train/a.png")
    source = read_source(tmp_path, "camvid")
    assert source.changed_ids == {11: 255}
    assert source.labels.num_classes == 11


def test_real_data_is_found_whole(data_root):
    camvid = read_source(data_root / "camvid", "camvid")
    assert [sum(pair.split == split for pair in camvid.pairs) for split in ("train", "val")] == [367, 101]
    bdd = read_source(data_root / "bdd100k_samples", "paper")
    assert len(bdd.pairs) == 2
    assert bdd.labels == LabelSet.from_preset("paper")
