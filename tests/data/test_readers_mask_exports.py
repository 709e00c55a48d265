"""Masks as CVAT, Pascal VOC's and Roboflow export them, with the names and the odds and ends of real exports."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers.driving_sets import prepare, save, save_photo, zip_folder
from PIL import Image

from semseg_diffusers.data.check.check import check_source
from semseg_diffusers.data.readers import open_source, read_source
from semseg_diffusers.data.readers.mask_exports import VOC_BOUNDARY, voc_color


SIZE = (12, 16)
ROAD, CAR = (128, 64, 128), (0, 0, 142)
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar:0,0,142::wheel,door\n\n"


def ids_of(*blocks: tuple[int, slice, slice]) -> np.ndarray:
    """Background with blocks of class ids."""
    ids = np.zeros(SIZE, np.uint8)
    for class_id, rows, columns in blocks:
        ids[rows, columns] = class_id
    return ids


SCENE = ids_of((1, slice(6, 12), slice(0, 16)), (2, slice(7, 10), slice(3, 9)))
EMPTY_ROAD = ids_of((1, slice(6, 12), slice(0, 16)))


def paint(ids: np.ndarray, colors=((0, 0, 0), ROAD, CAR)) -> np.ndarray:
    return np.array(colors, np.uint8)[ids]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def cvat(root: Path, frames: dict[str, np.ndarray], labelmap: str = LABELMAP, images: bool = True, **lists) -> Path:
    """An export "Segmentation mask 1.1"."""
    write(root / "labelmap.txt", labelmap)
    for seed, (name, ids) in enumerate(frames.items()):
        save(root / "SegmentationClass" / f"{name}.png", paint(ids))
        save(root / "SegmentationObject" / f"{name}.png", paint(ids))
        if images:
            save_photo(root / "JPEGImages" / f"{name}.jpg", seed, SIZE)
    for subset, names in (lists or {"default": list(frames)}).items():
        write(root / "ImageSets/Segmentation" / f"{subset}.txt", "".join(f"{name}\n" for name in names))
    return root


def masks_of(pairs, split: str) -> dict[str, np.ndarray]:
    return {pair["stem"]: pair["mask"].numpy() for pair in pairs[split]}


def errors_of(source, **options) -> list[str]:
    report = check_source(source, **options)
    return [finding.kind for finding in report.findings if finding.severity == "error"]


def named_ids(source) -> set[str]:
    """Return the ids that are said to be no class, as they are in the files."""
    (finding,) = (each for each in check_source(source).findings if each.kind == "ids out of range")
    return {*finding.details["ids"]}


# CVAT ---------------------------------------------------------------------------------------------------------------


def test_cvat_reads_the_classes_of_its_label_map_and_says_that_background_is_one(tmp_path):
    source = cvat(tmp_path / "source", {"f0": SCENE, "f1": EMPTY_ROAD})
    report, pairs = prepare(source, tmp_path / "out")
    assert (report.data_format, report.splits) == ("cvat", {"train": 2})
    assert pairs["train"].labels.names == ("background", "road", "car")
    assert np.array_equal(masks_of(pairs, "train")["f0"], SCENE)
    assert np.array_equal(masks_of(pairs, "train")["f1"], EMPTY_ROAD)
    assert report.notes == (
        "'background' (black) is a class, as in the label map; without its line there it is unknown",
    )
    assert errors_of(source) == []


def test_cvat_without_background_in_the_label_map_has_black_as_unknown(tmp_path):
    source = cvat(tmp_path / "source", {"f0": SCENE}, LABELMAP.replace("background:0,0,0::\n", ""))
    _, pairs = prepare(source, tmp_path / "out")
    expected = np.array([255, 0, 1])[SCENE]
    assert np.array_equal(masks_of(pairs, "train")["f0"], expected)


@pytest.mark.parametrize(
    ("lists", "expected", "note"),
    [
        ({"Train": ["a"], "Validation": ["b"]}, {"train": ["a"], "val": ["b"]}, None),
        ({"train": ["a"], "val": ["b"], "trainval": ["a", "b"]}, {"train": ["a"], "val": ["b"]}, None),
        ({"default": ["a"], "holdout": ["b"]}, {"train": ["a", "b"]}, "subsets read as train: holdout"),
        ({"default": ["a"]}, {"train": ["a"]}, "left out: 1 images and 1 masks that no list in ImageSets/Seg"),
        ({"default": []}, {"train": ["a", "b"]}, None),
    ],
)
def test_cvat_takes_its_splits_from_the_lists(tmp_path, lists, expected, note):
    source = read_source(cvat(tmp_path, {"a": SCENE, "b": SCENE}, **lists))
    found: dict[str, list[str]] = {}
    for pair in source.pairs:
        found.setdefault(pair.split, []).append(pair.stem)
    assert found == expected
    assert (note is None and len(source.notes) == 1) or any(said.startswith(note) for said in source.notes)


def test_cvat_frames_in_folders_are_named_by_their_folders(tmp_path):
    source = cvat(tmp_path / "source", {"drive 1/frame_000000": SCENE, "drive 2/frame_000000": EMPTY_ROAD})
    _, pairs = prepare(source, tmp_path / "out")
    masks = masks_of(pairs, "train")
    assert np.array_equal(masks["drive 1_frame_000000"], SCENE)
    assert np.array_equal(masks["drive 2_frame_000000"], EMPTY_ROAD)
    assert errors_of(source) == []
    cvat(source, {"drive 1_frame_000000": SCENE})
    with pytest.raises(ValueError, match="would both be called drive 1_frame_000000"):
        read_source(source)


def test_cvat_finds_names_that_macos_decomposed_and_colours_of_its_own_where_the_label_map_has_none(tmp_path):
    on_disk, in_list = unicodedata.normalize("NFD", "Zürich"), unicodedata.normalize("NFC", "Zürich")
    source = cvat(tmp_path / "source", {}, "background:::\nroad:::\ncar:::\n", default=[in_list])
    save_photo(source / "JPEGImages" / f"{on_disk}.jpg", 0, SIZE)
    save(source / "SegmentationClass" / f"{in_list}.png", paint(SCENE, list(map(voc_color, range(3)))))
    _, pairs = prepare(source, tmp_path / "out")
    assert np.array_equal(masks_of(pairs, "train")[in_list], SCENE)


def test_cvat_is_read_from_its_archive(tmp_path):
    archive = zip_folder(cvat(tmp_path / "source", {"f/0": SCENE}), tmp_path / "task.zip")
    report, pairs = prepare(archive, tmp_path / "out")
    assert report.data_format == "cvat"
    assert np.array_equal(masks_of(pairs, "train")["f_0"], SCENE)


def test_cvat_exported_without_images_says_how_to_export_it(tmp_path):
    source = cvat(tmp_path, {"f0": SCENE}, images=False)
    with pytest.raises(ValueError, match='has masks and no images: .* Export it again with "Save images"'):
        read_source(source)
    assert errors_of(source) == ["layout"]


@pytest.mark.parametrize(
    ("labelmap", "message"),
    [
        (
            "road,128,64,128\n",
            "has the line 'road,128,64,128'; expected a line NAME:R,G,B:PARTS:ACTIONS for each class",
        ),
        ("road:1,2,3::\nroad:4,5,6::\n", "has the class 'road' twice"),
        ("road:1,2,3::\ncar:1,2,3::\n", "'road' and 'car' share the colour"),
        ("road:1,2,3::\ncar:::\n", r"the colour of 'car' is \[\]; expected three"),
        ("road:1,2,300::\n", r"expected three whole numbers from 0 to 255"),
        ("# nothing\n", "1 to 255 classes; got 0"),
    ],
)
def test_a_label_map_that_cannot_be_read_is_named(tmp_path, labelmap, message):
    with pytest.raises(ValueError, match=f"labelmap.txt'.*{message}"):
        read_source(cvat(tmp_path, {"f0": SCENE}, labelmap))


def test_cvat_colours_without_a_class_and_missing_files_are_refused(tmp_path):
    source = cvat(tmp_path / "source", {"f0": SCENE, "f1": SCENE}, LABELMAP.replace("car:0,0,142::wheel,door\n", ""))
    with pytest.raises(ValueError, match=r"f0.png' holds .*\(0, 0, 142\)"):
        prepare(source, tmp_path / "out")
    assert errors_of(source) == ["unknown colours"]
    (source / "JPEGImages/f1.jpg").unlink()
    with pytest.raises(ValueError, match=r"0 images have no mask, 1 masks have no image \(f1.png\)"):
        read_source(source)
    write(source / "ImageSets/Segmentation/default.txt", "f0\nf2\n")
    with pytest.raises(
        ValueError, match="default.txt' names f2, of which there is neither image nor mask in .* \\(1 such names"
    ):
        read_source(source)


def test_cvats_camvid_export_is_not_taken_for_camvid(tmp_path):
    root = tmp_path / "source"
    write(root / "label_colors.txt", "0 0 0 background\n0 0 142 car\n128 64 128 road surface\n")
    for seed, subset in enumerate(("default", "val")):
        save_photo(root / subset / "f0.jpg", seed, SIZE)
        save(root / f"{subset}annot" / "f0.png", paint(SCENE))
    report, pairs = prepare(root, tmp_path / "out")
    assert (report.data_format, report.splits) == ("cvat", {"train": 1, "val": 1})
    assert pairs["val"].labels.names == ("background", "car", "road surface")
    assert np.array_equal(masks_of(pairs, "val")["f0"], np.array([0, 2, 1])[SCENE])
    assert errors_of(root) == []


@pytest.mark.parametrize("photos", ["imgsFine/leftImg8bit", "leftImg8bit"])
def test_cvats_cityscapes_export_takes_its_own_classes(tmp_path, photos):
    root = tmp_path / "source"
    write(root / "label_colors.txt", "0 0 142 car\n128 64 128 road\n")  # black, the background, has no class
    save_photo(root / photos / "default/f0_leftImg8bit.png", 0, SIZE)
    for ending, mask in (("color", paint(SCENE)), ("labelIds", SCENE), ("instanceIds", SCENE)):
        save(root / "gtFine/default" / f"f0_gtFine_{ending}.png", mask)
    report, pairs = prepare(root, tmp_path / "out")
    assert report.data_format == "cvat"
    assert "black is unknown: the label map has no class of this colour" in report.notes
    assert np.array_equal(masks_of(pairs, "train")["f0"], np.array([255, 1, 0])[SCENE])


# Pascal VOC ---------------------------------------------------------------------------------------------------------


def voc_palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(np.array([voc_color(i) for i in range(256)], np.uint8).tobytes())
    return image


def test_vocs_colours_are_those_of_the_devkit():
    assert [voc_color(i) for i in (0, 1, 2, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip
    assert len({voc_color(i) for i in range(256)}) == 256


@pytest.mark.parametrize("top", ["", "VOCdevkit/VOC2012"])
def test_voc_reads_the_21_classes_and_its_boundaries_as_unknown(tmp_path, top):
    root = tmp_path / "source" / top
    ids = SCENE.copy()
    ids[SCENE == 2] = 7
    ids[6] = 255
    for seed, name in enumerate(("2007_000032", "2007_000033", "2007_000034")):
        save_photo(root / "JPEGImages" / f"{name}.jpg", seed, SIZE)
    for name in ("2007_000032", "2007_000033"):
        (root / "SegmentationClass").mkdir(parents=True, exist_ok=True)
        voc_palette(ids).save(root / "SegmentationClass" / f"{name}.png")
    write(root / "ImageSets/Segmentation/train.txt", "2007_000032\n")
    write(root / "ImageSets/Segmentation/val.txt", "2007_000033\n")
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("voc", {"train": 1, "val": 1})
    assert pairs["train"].labels.names[7] == "car"
    assert pairs["train"].labels.ignore_color == VOC_BOUNDARY
    assert np.array_equal(masks_of(pairs, "train")["2007_000032"], ids)
    assert report.notes == ("left out: 1 images and 0 masks that no list in ImageSets/Segmentation names",)
    assert errors_of(tmp_path / "source") == []


def test_voc_of_labelme_takes_its_class_names_and_labels_take_precedence(tmp_path):
    save_photo(tmp_path / "source/JPEGImages/a.jpg", 0, SIZE)
    (tmp_path / "source/SegmentationClassPNG").mkdir()
    voc_palette(SCENE).save(tmp_path / "source/SegmentationClassPNG/a.png")
    write(tmp_path / "source/class_names.txt", "_background_\nroad\ncar\n")
    _, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert pairs["train"].labels.names == ("_background_", "road", "car")
    assert np.array_equal(masks_of(pairs, "train")["a"], SCENE)
    assert read_source(tmp_path / "source", "voc", labels="camvid").labels.num_classes == 11


# Roboflow -----------------------------------------------------------------------------------------------------------


def roboflow(root: Path, splits: dict[str, dict[str, np.ndarray]], classes: str) -> Path:
    for split, frames in splits.items():
        write(root / split / "_classes.csv", classes)
        for name, values in frames.items():
            save_photo(root / split / f"{name}.jpg", sum(name.encode()), SIZE)
            save(root / split / f"{name}_mask.png", values)
    write(root / "README.roboflow.txt", "Exported\n")
    return root


CLASSES = "Pixel Value, Class\n0, background\n1, road\n2, car"


def test_roboflow_reads_classes_and_splits(tmp_path):
    splits = {
        "train": {"f0_jpg.rf.0a1b": SCENE},
        "valid": {"f1_jpg.rf.9c": EMPTY_ROAD},
        "test": {"f2_jpg.rf.d": SCENE},
    }
    source = roboflow(tmp_path / "source", splits, CLASSES)
    report, pairs = prepare(source, tmp_path / "out")
    assert (report.data_format, report.splits) == ("roboflow", {"train": 1, "val": 1, "test": 1})
    assert pairs["train"].labels.names == ("background", "road", "car")
    assert len(set(pairs["train"].labels.colors)) == 3
    assert np.array_equal(masks_of(pairs, "train")["f0_jpg.rf.0a1b"], SCENE)
    assert np.array_equal(masks_of(pairs, "val")["f1_jpg.rf.9c"], EMPTY_ROAD)
    assert errors_of(source) == []


def test_roboflow_values_with_gaps_become_ids_without_and_others_are_refused(tmp_path):
    values = np.array([0, 3, 7], np.uint8)[SCENE]
    source = roboflow(tmp_path / "source", {"train": {"f0": values}}, "Pixel Value, Class\n0, sky\n3, road\n7, car\n")
    report, pairs = prepare(source, tmp_path / "out")
    assert "the pixel values 0, 3, 7 became the ids 0 to 2" in report.notes
    assert np.array_equal(masks_of(pairs, "train")["f0"], SCENE)
    values[0, 0] = 2  # no class, although there is an id 2
    save(source / "train/f0_mask.png", values)
    with pytest.raises(ValueError, match="f0_mask.png' holds class 2; this model knows 0, 3, 7 and 255"):
        prepare(source, tmp_path / "again")
    assert errors_of(source) == ["ids out of range"]
    assert named_ids(source) == {"2"}
    values[:], values[0, 0] = 0, 2  # ids of classes all
    save(source / "train/f0_mask.png", values)
    assert named_ids(source) == {"2"}


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 3, 7)])
def test_roboflows_background_becomes_unknown_by_its_pixel_value(tmp_path, values):
    classes = "Pixel Value, Class\n" + "".join(
        f"{v}, {name}\n" for v, name in zip(values, ("background", "road", "car"), strict=True)
    )
    source = roboflow(tmp_path / "source", {"train": {"f0": np.array(values, np.uint8)[SCENE]}}, classes)
    report, _ = prepare(source, tmp_path / "out")
    assert "'background' (pixel value 0) is a class; unknown with --ignore_index 0" in report.notes
    report, pairs = prepare(source, tmp_path / "again", ignore_index=0)
    assert pairs["train"].labels.names == ("road", "car")
    assert np.array_equal(masks_of(pairs, "train")["f0"], np.array([255, 0, 1])[SCENE])
    assert not any("background" in note for note in report.notes)


def test_roboflow_without_split_folders_in_an_archive_is_all_train(tmp_path):
    source = roboflow(tmp_path / "source", {"": {"a": SCENE, "b": SCENE}}, "\ufeff" + CLASSES + "\n\n")
    report, pairs = prepare(zip_folder(source, tmp_path / "a.zip"), tmp_path / "out", val_fraction=0.5)
    assert (report.data_format, report.splits) == ("roboflow", {"train": 1, "val": 1})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("Pixel Value, Class\n0, sky\n1, road\n", "have other classes; expected the same in all splits"),
        ("Pixel Value, Class\n", r"holds \[\]; expected lines of a pixel value"),
        ("Pixel Value, Class\nsky, 0\n", "expected lines of a pixel value from 0 to 255 and a class"),
        ("Pixel Value, Class\n0, sky\n0, road\n", "has a pixel value twice"),
        ("Pixel Value, Class\n0, car\n1, car\n2, x\n", "the class name 'car' occurs twice"),
    ],
)
def test_roboflow_classes_that_differ_or_cannot_be_read_are_refused(tmp_path, classes, message):
    both = "car' occurs" in message
    source = roboflow(tmp_path, {"train": {"a": SCENE}, "valid": {"b": SCENE}}, classes if both else CLASSES)
    write(source / "valid/_classes.csv", classes)
    with pytest.raises(ValueError, match=message):
        read_source(source)


def test_roboflow_names_what_has_no_partner_and_leaves_out_classifications(tmp_path):
    source = roboflow(tmp_path / "source", {"train": {"a": SCENE, "b": SCENE}}, CLASSES)
    (source / "train/b_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 images have no mask \(b.jpg\)"):
        read_source(source)
    assert [pair.stem for pair in read_source(source, skip_unmatched=True).pairs] == ["a"]
    write(source / "train/_classes.csv", "filename, car, road\na.jpg, 0, 1\n")
    with pytest.raises(ValueError, match="is not known"):
        open_source(source)
