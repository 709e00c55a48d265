"""Regions as LabelMe, COCO's JSON and Label Studio export them, with the odds and ends of real exports."""

import base64
import io
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.driving_sets import prepare, save, save_json, save_photo, zip_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semseg_diffusers.data.check.check import check_source
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.polygons import Polygon, RegionMask, RunLengths, draw_polygons
from semseg_diffusers.data.readers import open_source, read_source


SIZE = (12, 16)
HEIGHT, WIDTH = SIZE


def blocks(*parts: tuple[int, int, int, int, int], background: int = 255) -> np.ndarray:
    """Ids of rectangles: id, left, top, right, bottom; later ones on top."""
    ids = np.full(SIZE, background, np.uint8)
    for class_id, left, top, right, bottom in parts:
        ids[top:bottom, left:right] = class_id
    return ids


def corners(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def masks_of(pairs, split: str = "train") -> dict[str, np.ndarray]:
    return {pair["stem"]: pair["mask"].numpy() for pair in pairs[split]}


def errors_of(source, **options) -> list[str]:
    report = check_source(source, **options)
    return [finding.kind for finding in report.findings if finding.severity == "error"]


def png(array: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


# LabelMe ------------------------------------------------------------------------------------------------------------


def shape(label: str, points, kind: str | None = "polygon", **more) -> dict:
    entry = {"label": label, "points": points, "group_id": None, "flags": {}, **more}
    return entry if kind is None else {**entry, "shape_type": kind}


def labelme(file: Path, shapes: list[dict], image: str | None = None, photo: bool = True, **more) -> Path:
    """A JSON file of LabelMe, and its image beside it."""
    image = image or f"{file.stem}.jpg"
    if photo:
        save_photo((file.parent / image.replace("\\", "/")).resolve(), sum(file.stem.encode()), SIZE)
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    return save_json(file, {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more})


ROAD, CAR = shape("road", corners(0, 6, 16, 12)), shape("car", corners(3, 5, 9, 10))


def test_labelme_draws_shapes_in_their_order_and_leaves_the_rest_unknown(tmp_path):
    labelme(tmp_path / "source/a.json", [ROAD, CAR])
    labelme(tmp_path / "source/b.json", [CAR, ROAD])
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("labelme", {"train": 2})
    assert pairs["train"].labels.names == ("car", "road")
    assert np.array_equal(masks_of(pairs)["a"], blocks((1, 0, 6, 16, 12), (0, 3, 5, 9, 10)))
    assert np.array_equal(masks_of(pairs)["b"], blocks((0, 3, 5, 9, 10), (1, 0, 6, 16, 12)))
    assert errors_of(tmp_path / "source") == []


def test_labelme_background_takes_pixels_without_a_shape_and_ignored_shapes_are_unknown(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    ignored, tree = shape("__ignore__", corners(4, 7, 6, 9)), shape("tree", corners(0, 0, 2, 2))
    labelme(tmp_path / "source/a.json", [ROAD, CAR, ignored, tree])
    labelme(tmp_path / "source/b.json", [])
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert pairs["train"].labels.names == ("_background_", "road", "car")
    expected = blocks((1, 0, 6, 16, 12), (2, 3, 5, 9, 10), (255, 4, 7, 6, 9), background=0)
    assert np.array_equal(masks_of(pairs)["a"], expected)
    assert (masks_of(pairs)["b"] == 0).all()
    assert report.notes == (
        "pixels without a region are '_background_', which is a class here",
        "1 of 2 images have no region: they are '_background_' everywhere",
        "labels of no class, left unknown: tree (1)",
    )


def test_labelme_draws_all_kinds_of_shapes(tmp_path):
    stencil = np.array([[1, 1, 0], [1, 1, 1]], np.uint8)
    shapes = [
        shape("a_rectangle", [[4, 3], [0, 0]], "rectangle"),
        shape("b_circle", [[12, 4], [12, 6]], "circle"),
        shape("c_mask", [[1, 8], [3, 9]], "mask", mask=png(stencil)),
        shape("d_old", corners(5, 10, 7, 12), None),
        shape("e_line", [[13, 7], [13, 13]], "line"),
        shape("f_points", [[1, 1]], "points"),
        shape("g_two", [[1, 1], [2, 2]]),
        shape("h_mask", [[-1, 11], [1, 12]], "mask", mask=png(stencil)),
    ]
    labelme(tmp_path / "source/a.json", shapes)
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    ids = masks_of(pairs)["a"]
    names = np.array([*pairs["train"].labels.names, *[""] * 250])[ids]
    assert (names[:3, :4] == "a_rectangle").all()
    assert (names == "b_circle")[3:5, 11:13].all()
    assert (names[:2] != "b_circle").all()
    assert (names[8:10, 1:4] == "c_mask").tolist() == [[True, True, False], [True, True, True]]
    assert (names[10:12, 5:7] == "d_old").all()
    assert (names[7:12, 9:16] == "e_line")[:, 1:].all()
    assert (names == "h_mask").sum() == 1
    assert names[11, 0] == "h_mask"
    assert report.notes[-1] == "left out: polygons of fewer than three points (1), shapes of the type points (1)"


def test_labelme_finds_images_in_other_folders_by_the_paths_of_windows_and_inside_its_files(tmp_path):
    source = tmp_path / "source"
    labelme(source / "labels/a.json", [ROAD], "..\\images\\a.jpg")
    data = save_photo(tmp_path / "elsewhere.jpg", 7, SIZE).read_bytes()
    embedded = base64.b64encode(data).decode()
    labelme(source / "labels/b.json", [CAR], "C:\\photos\\b.jpg", photo=False, imageData=embedded)
    _, pairs = prepare(source, tmp_path / "out", labels=None)
    assert np.array_equal(masks_of(pairs)["a"], blocks((1, 0, 6, 16, 12)))
    assert np.array_equal(masks_of(pairs)["labels_b"], blocks((0, 3, 5, 9, 10)))
    expected = np.asarray(Image.open(tmp_path / "elsewhere.jpg"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/train/images/labels_b.png")), expected)
    _, zipped = prepare(zip_folder(source, tmp_path / "a.zip"), tmp_path / "again")
    assert masks_of(zipped).keys() == {"a", "labels_b"}


def test_labelme_takes_split_folders_and_one_list_of_classes(tmp_path):
    labelme(tmp_path / "source/train/a.json", [ROAD])
    labelme(tmp_path / "source/val/b.json", [CAR])
    (tmp_path / "source/labels.txt").write_text("road\ncar\n")
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert report.splits == {"train": 1, "val": 1}
    assert np.array_equal(masks_of(pairs, "val")["b"], blocks((1, 3, 5, 9, 10)))


def test_labels_of_the_user_take_precedence(tmp_path):
    labelme(tmp_path / "source/a.json", [ROAD, CAR, shape("sea", corners(0, 0, 4, 4))])
    LabelSet(("car", "road"), ((0, 0, 142), (128, 64, 128)), 7, (9, 9, 9)).save_json(tmp_path / "labels.json")
    report, _ = prepare(tmp_path / "source", tmp_path / "out", labels=str(tmp_path / "labels.json"))
    ids = np.asarray(Image.open(tmp_path / "out/train/masks/a.png"))
    assert np.array_equal(ids, blocks((1, 0, 6, 16, 12), (0, 3, 5, 9, 10), background=7))
    assert report.notes == ("labels of no class, left unknown: sea (1)",)


def test_labelme_files_that_do_not_fit_are_named(tmp_path):
    source = tmp_path / "source"
    labelme(source / "a.json", [ROAD], imageHeight=24, imageWidth=32)
    with pytest.raises(ValueError, match=r"a.json' is of an image of 24 x 32; its image is 12 x 16"):
        prepare(source, tmp_path / "out")
    assert errors_of(source) == ["no mask"]
    labelme(source / "a.json", [ROAD])
    labelme(source / "b.json", [ROAD], "gone.jpg", photo=False)
    save_photo(source / "c.jpg", 3, SIZE)
    with pytest.raises(ValueError, match=r"1 images have no mask \(c.jpg\), 1 masks have no image \(.*b.json\)"):
        read_source(source)
    report, _ = prepare(source, tmp_path / "out", skip_unmatched=True)
    assert len(report.unmatched) == 2
    labelme(source / "b.json", [ROAD], "a.jpg")
    with pytest.raises(ValueError, match="a.json' and '.*b.json' are of one image"):
        read_source(source)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("car", [[0, 0], [1, float("nan")], [2, 2]]), "has a vertex that is not near the frame"),
        (shape("car", [[0, 0], [1, 1e9], [2, 2]]), "has a vertex that is not near the frame"),
        (shape("car", [[0, 0], [1]]), "ValueError"),
        (shape("car", [[0, 0]], "circle"), "IndexError"),
        ({"label": "car"}, "KeyError"),
        (shape("car", [[0, 0]], "mask", mask=""), "shape 1 of .*a.json' is empty"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_named(tmp_path, wrong, message):
    labelme(tmp_path / "source/a.json", [ROAD, wrong])
    with pytest.raises(ValueError, match=rf"a.json.*{message}"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_images_without_a_shape_are_unknown_and_counted(tmp_path):
    labelme(tmp_path / "source/a.json", [ROAD])
    labelme(tmp_path / "source/b.json", [])
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (masks_of(pairs)["b"] == 255).all()
    assert report.notes == ("1 of 2 images have no region: they are unknown everywhere",)


# COCO ---------------------------------------------------------------------------------------------------------------


CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}]


def annotation(category: int, image: int, segmentation, **more) -> dict:
    """An annotation; its area is that of the box around it."""
    area = 0.0
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list):
        area = float(np.prod([np.ptp(segmentation[0][axis::2]) for axis in (0, 1)]))
    more = {"area": area, "bbox": [0, 0, 1, area], "iscrowd": 0, **more}
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def flat(*box: float) -> list[list[float]]:
    return [[value for point in corners(*box) for value in point]]


def coco(file: Path, images: list[str], annotations: list[dict], categories=CATEGORIES, photos=None, **size) -> Path:
    """A JSON file with images 0, 1, ..., and the images in `photos` (by default beside the file)."""
    listed = []
    for number, name in enumerate(images):
        folder = file.parent if photos is None else photos
        save_photo(folder / name, sum(str(folder / name).encode()), SIZE)
        listed.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **size})
    content = {"info": {}, "licenses": [], "categories": categories, "images": listed, "annotations": annotations}
    return save_json(file, content)


ROAD_BELOW, CAR_ABOVE = flat(0, 6, 16, 12), flat(3, 5, 9, 10)


def test_coco_draws_small_objects_over_large_ones_and_ids_follow_the_categories(tmp_path):
    source = tmp_path / "source"
    annotations = [annotation(7, 0, CAR_ABOVE), annotation(3, 0, ROAD_BELOW)]
    coco(source / "annotations/instances_train2017.json", ["a.jpg"], annotations, photos=source / "train2017")
    coco(source / "annotations/instances_val2017.json", ["a.jpg", "b.jpg"], [], photos=source / "val2017")
    save_json(source / "annotations/captions_val2017.json", {"info": {}, "images": [], "annotations": []})
    report, pairs = prepare(source, tmp_path / "out")
    assert (report.data_format, report.splits) == ("coco", {"train": 1, "val": 2})
    assert pairs["train"].labels.names == ("road", "car")
    assert np.array_equal(masks_of(pairs)["a"], blocks((0, 0, 6, 16, 12), (1, 3, 5, 9, 10)))
    assert (masks_of(pairs, "val")["b"] == 255).all()
    assert report.notes == (
        "where objects overlap, the smaller covers the larger",
        "2 of 3 images have no region: they are unknown everywhere",
    )
    assert errors_of(source) == []


def test_coco_of_roboflow_leaves_out_the_category_of_all_categories(tmp_path):
    source = tmp_path / "source"
    categories = [
        {"id": 0, "name": "car", "supercategory": "none"},  # named as the project, here also a class
        {"id": 1, "name": "car", "supercategory": "car"},
        {"id": 2, "name": "road", "supercategory": "car"},
    ]
    annotations = [annotation(2, 0, ROAD_BELOW), annotation(1, 0, CAR_ABOVE)]
    for split in ("train", "valid"):
        coco(source / split / "_annotations.coco.json", [f"{split}_jpg.rf.0a.jpg"], annotations, categories)
    report, pairs = prepare(source, tmp_path / "out")
    assert (report.data_format, report.splits) == ("coco", {"train": 1, "val": 1})
    assert pairs["train"].labels.names == ("car", "road")
    expected = blocks((1, 0, 6, 16, 12), (0, 3, 5, 9, 10))
    assert np.array_equal(masks_of(pairs, "val")["valid_jpg.rf.0a"], expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_coco_reads_run_lengths_crowds_and_several_polygons(tmp_path, compressed):
    car = blocks((1, 3, 5, 9, 10), background=0)
    counts = runs_of(car)
    run_lengths = {"counts": compress(counts) if compressed else counts, "size": list(SIZE)}
    parts = [*flat(0, 6, 8, 12), *flat(8, 6, 16, 12), [1, 1, 2, 2]]
    annotations = [annotation(3, 0, parts, area=96), annotation(7, 0, run_lengths, area=30, iscrowd=1)]
    coco(tmp_path / "source/result.json", ["images/a.jpg"], annotations)
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert np.array_equal(masks_of(pairs)["a"], blocks((0, 0, 6, 16, 12), (1, 3, 5, 9, 10)))
    assert report.notes[-1] == "left out: polygons of fewer than three points (1)"
    run_lengths["size"] = [16, 12]
    coco(tmp_path / "source/result.json", ["images/a.jpg"], annotations)
    with pytest.raises(ValueError, match=r"region 0 is for 16 x 12 pixels; its image is 12 x 16"):
        prepare(tmp_path / "source", tmp_path / "again")


def runs_of(ids: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and of other ids in turn, down the columns."""
    flat = np.concatenate([[0], ids.T.reshape(-1) != 0]).astype(int)
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)), [ids.size]])).tolist()


def compress(counts: list[int]) -> str:
    """COCO's text of run lengths: from the fourth on, differences to the number two places before."""
    text = ""
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_coco_images_in_folders_and_archives_are_found(tmp_path):
    names = ["drive1/0.jpg", "drive2/0.jpg"]
    annotations = [annotation(3, 0, ROAD_BELOW), annotation(7, 1, CAR_ABOVE)]
    source = tmp_path / "source"
    coco(source / "annotations/instances_default.json", names, annotations, photos=source / "images/default")
    for number, root in enumerate((source, zip_folder(source, tmp_path / "a.zip"))):
        _, pairs = prepare(root, tmp_path / f"out{number}")
        assert np.array_equal(masks_of(pairs)["drive1_0"], blocks((0, 0, 6, 16, 12)))
        assert np.array_equal(masks_of(pairs)["drive2_0"], blocks((1, 3, 5, 9, 10)))


@pytest.mark.parametrize("first", [{}, {"version": "1.0"}, {"info": {"description": "d" * 4000}, "licenses": []}])
def test_coco_files_are_recognised_whatever_they_start_with(tmp_path, first):
    save_photo(tmp_path / "images/a.jpg", 0, SIZE)
    images = [{"id": 1, "file_name": "a.jpg"}]
    content = {"categories": CATEGORIES, "images": images, "annotations": [annotation(3, 1, ROAD_BELOW)]}
    save_json(tmp_path / "export.json", first | content)
    assert read_source(tmp_path).data_format == "coco"


def test_coco_images_that_no_file_lists_are_counted(tmp_path):
    source = tmp_path / "source"
    coco(source / "annotations/instances_default.json", ["a.jpg"], [], photos=source / "images")
    save_photo(source / "images/b.jpg", 1, SIZE)
    assert "left out: 1 images that no annotation file lists" in read_source(source).notes


def test_coco_polygons_beyond_the_frame_are_cut(tmp_path):
    annotations = [annotation(3, 0, flat(-40, 6, 160, 120)[0], area=1e4), annotation(7, 0, flat(-3, 5, 2, 10))]
    coco(tmp_path / "source/_annotations.coco.json", ["a.jpg"], annotations)
    _, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert np.array_equal(masks_of(pairs)["a"], blocks((0, 0, 6, 16, 12), (1, 0, 5, 2, 10)))


@pytest.mark.parametrize(
    ("annotations", "images", "message"),
    [
        ([annotation(3, 5, ROAD_BELOW)], ["a.jpg"], "names an image or category that is not listed"),
        ([annotation(4, 0, ROAD_BELOW)], ["a.jpg"], "names an image or category that is not listed"),
        ([annotation(3, 0, [])], ["a.jpg"], "none of its 1 annotations has a region; export them with polygons"),
        ([], ["a.jpg", "a.jpg"], "lists an image twice"),
        ([], ["a.jpg", "a.png"], "would both be called a"),
        ([{"segments_info": [], "image_id": 0}], ["a.jpg"], "is of panoptic segmentation; expected instances_"),
        ([{"image_id": 0}], ["a.jpg"], "instances_default.json'.*category_id"),
        ([annotation(3, 0, [[0, 0, 1]])], ["a.jpg"], "instances_default.json'.*cannot reshape"),
        (
            [annotation(3, 0, [[0, 0, 9, float("inf"), 9, 9]])],
            ["a.jpg"],
            "'road' has a vertex that is not near the fr",
        ),
    ],
)
def test_a_coco_file_that_cannot_be_read_is_named(tmp_path, annotations, images, message):
    coco(tmp_path / "annotations/instances_default.json", images, annotations, photos=tmp_path / "images")
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path)
    assert "layout" in errors_of(tmp_path)


def test_coco_images_that_are_missing_resized_or_of_other_classes_are_refused(tmp_path):
    source = tmp_path / "source"
    coco(source / "train/_annotations.coco.json", ["a.jpg", "b.jpg"], [annotation(3, 0, ROAD_BELOW)])
    (source / "train/b.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 masks have no image \(b.jpg of .*_annotations.coco.json\)"):
        read_source(source)
    assert len(read_source(source, skip_unmatched=True).pairs) == 1
    coco(source / "train/_annotations.coco.json", ["a.jpg"], [annotation(3, 0, ROAD_BELOW)], height=640)
    with pytest.raises(ValueError, match="is of an image of 640 x 16; its image is 12 x 16"):
        prepare(source, tmp_path / "out")
    coco(source / "valid/_annotations.coco.json", ["c.jpg"], [], CATEGORIES[:1])
    with pytest.raises(ValueError, match="its classes car are not road, car, as before"):
        read_source(source)


# Label Studio -------------------------------------------------------------------------------------------------------


def brush(label: str, **more) -> dict:
    value = {"format": "rle", "rle": [0, 0, 0, 1], "brushlabels": [label]}
    return result("brushlabels", value, **more)


def result(kind: str, value: dict, tag: str = "tag", **more) -> dict:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"id": "x1", "type": kind, "from_name": tag, "to_name": "image", "value": value, **size, **more}


def task(number: int, image: str, *annotations: dict) -> dict:
    return {"id": number, "data": {"image": image}, "annotations": list(annotations), "predictions": []}


def annotated(number: int, *results: dict, **more) -> dict:
    return {"id": number, "result": list(results), "was_cancelled": False, "created_at": f"2024-01-0{number}", **more}


def brush_png(root: Path, name: str, ids: np.ndarray) -> Path:
    return save(root / f"{name}.png", (ids != 255).astype(np.uint8) * 255)


def label_studio(root: Path, tasks: list[dict], name: str = "project-1-at-2024-01-01.json") -> Path:
    save_json(root / name, tasks)
    return root


ROAD_IDS, CAR_IDS = blocks((0, 0, 6, 16, 12)), blocks((0, 3, 5, 9, 10))


def test_label_studio_puts_the_brush_pngs_of_a_task_together_in_the_order_of_its_results(tmp_path):
    source = tmp_path / "source"
    save_photo(source / "images/photo 1.jpg", 0, SIZE)
    save_photo(source / "images/b.png", 1, SIZE)
    label_studio(source, [
        task(14, "/data/upload/1/0a1b2c3d-photo%201.jpg", annotated(3, brush("road"), brush("car-park/lot"))),
        task(15, "/data/local-files/?d=images/b.png", annotated(4, brush("road"))),
    ])  # fmt: skip
    brush_png(source, "task-14-annotation-3-by-1-tag-road-0", ROAD_IDS)
    brush_png(source, "task-14-annotation-3-by-1-tag-car-park-lot-0", CAR_IDS)
    brush_png(source, "task-15-annotation-4-by-me@x.org-tag-road-0", ROAD_IDS)
    report, pairs = prepare(source, tmp_path / "out")
    assert (report.data_format, report.splits) == ("label_studio", {"train": 2})
    assert pairs["train"].labels.names == ("car-park/lot", "road")
    assert np.array_equal(masks_of(pairs)["photo 1"], blocks((1, 0, 6, 16, 12), (0, 3, 5, 9, 10)))
    assert np.array_equal(masks_of(pairs)["b"], blocks((1, 0, 6, 16, 12)))
    assert report.notes == ()
    assert errors_of(source) == []
    _, zipped = prepare(zip_folder(source, tmp_path / "a.zip"), tmp_path / "again")
    assert np.array_equal(masks_of(zipped)["photo 1"], masks_of(pairs)["photo 1"])


def test_label_studio_reads_json_min_polygons_and_rectangles_in_percent(tmp_path):
    source = tmp_path / "source"
    save_photo(source / "a.jpg", 0, SIZE)
    points = [[0, 50], [100, 50], [100, 100], [0, 100]]
    box = {"x": 25, "y": 25, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["car"]}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    choice = {"choices": ["day"]}
    record = {"id": 1, "image": "s3://bucket/a.jpg", "annotation_id": 9, "annotator": 1, "when": [choice],
              "tag": [{"points": points, "polygonlabels": ["road"], **size}, {**box, **size}]}  # fmt: skip
    label_studio(source, [record])
    _, pairs = prepare(source, tmp_path / "out")
    assert np.array_equal(masks_of(pairs)["a"], blocks((1, 0, 6, 16, 12), (0, 4, 3, 12, 6)))
    record["tag"] = [{**box, "x": 75, "rotation": 90, **size}]  # turned about its corner: 3 wide, 8 high
    label_studio(source, [record])
    _, turned = prepare(source, tmp_path / "turned")
    assert np.array_equal(masks_of(turned)["a"], blocks((0, 9, 3, 12, 11)))


def test_label_studio_takes_the_ground_truth_or_the_last_annotation_and_leaves_out_tasks_without(tmp_path):
    source = tmp_path / "source"
    for seed, name in enumerate("abc"):
        save_photo(source / f"{name}.jpg", seed, SIZE)
    road = result("polygonlabels", {"points": corners(0, 50, 100, 100), "polygonlabels": ["road"]})
    car = result("polygonlabels", {"points": corners(25, 0, 75, 50), "polygonlabels": ["car"]})
    skipped = annotated(5, car, was_cancelled=True)
    label_studio(source, [
        task(1, "a.jpg", annotated(1, car), annotated(2, road), skipped),
        task(2, "b.jpg", annotated(3, car, ground_truth=True), annotated(4, road)),
        task(3, "c.jpg", skipped),
    ])  # fmt: skip
    report, pairs = prepare(source, tmp_path / "out")
    assert np.array_equal(masks_of(pairs)["a"], blocks((1, 0, 6, 16, 12)))
    assert np.array_equal(masks_of(pairs)["b"], blocks((0, 4, 0, 12, 6)))
    assert report.notes == (
        "left out: 1 tasks without annotation",
        "2 tasks have several annotations: the ground truth, or the last, was read",
    )


def test_label_studio_takes_labels_from_the_names_of_pngs_where_the_json_file_names_images_only(tmp_path):
    source = tmp_path / "source"
    save_photo(source / "a.jpg", 0, SIZE)
    save_photo(source / "b.jpg", 1, SIZE)
    label_studio(
        source, [{"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}}, {"id": 2, "data": {"i": "b.jpg"}}]
    )
    brush_png(source / "brush", "task-1-annotation-7-by-1-tag-car-0", CAR_IDS)
    brush_png(source / "brush", "task-1-annotation-7-by-1-tag-traffic-light-1", ROAD_IDS)
    brush_png(source / "brush", "task-9-annotation-8-by-1-tag-car-0", CAR_IDS)
    report, pairs = prepare(source, tmp_path / "out")
    assert pairs["train"].labels.names == ("car", "traffic-light")
    assert np.array_equal(masks_of(pairs)["a"], blocks((0, 3, 5, 9, 10), (1, 0, 6, 16, 12)))
    assert report.notes == (
        "left out: 1 tasks without annotation",
        "left out: the brush PNGs of 1 other annotations",
    )
    brush_png(source / "brush", "task-1-annotation-10-by-1-tag-car-0", ROAD_IDS)  # later than 7
    _, pairs = prepare(source, tmp_path / "again")
    assert np.array_equal(masks_of(pairs)["a"], ROAD_IDS)


def test_label_studio_says_which_files_are_missing_or_do_not_fit(tmp_path):
    source = tmp_path / "source"
    save_photo(source / "a.jpg", 0, SIZE)
    label_studio(source, [task(14, "/data/upload/1/a.jpg", annotated(3, brush("road")))])
    with pytest.raises(
        ValueError, match=r"no file task-14-annotation-3-by-USER-tag-road-0.png .* Export .Brush labels to PNG"
    ):
        read_source(source)
    brush_png(source, "task-14-annotation-3-by-1-tag-road-0", ROAD_IDS[:6])
    with pytest.raises(ValueError, match=r"tag-road-0.png' has 6 x 16 pixels; its image is 12 x 16"):
        prepare(source, tmp_path / "out")
    label_studio(source, [task(14, "/data/upload/1/b.jpg", annotated(3, brush("road")))])
    with pytest.raises(
        ValueError, match=r"1 images have no mask \(a.jpg\), 1 masks have no image \(task 14 of .*b.jpg"
    ):
        read_source(source)
    label_studio(source, [task(1, "x", annotated(3))])
    with pytest.raises(ValueError, match="task 1 names no image"):
        read_source(source)
    assert errors_of(source) == ["layout"]


def test_label_studio_tells_images_of_one_name_apart_by_their_folders(tmp_path):
    source = tmp_path / "source"
    road = result("polygonlabels", {"points": corners(0, 50, 100, 100), "polygonlabels": ["road"]})
    for seed, folder in enumerate(("drive1", "drive2")):
        save_photo(source / folder / "0.jpg", seed, SIZE)
    url = "/data/local-files/?d=data/drive{}/0.jpg"
    label_studio(source, [task(1, url.format(2), annotated(1, road)), task(2, url.format(1), annotated(2))])
    _, pairs = prepare(source, tmp_path / "out")
    assert np.array_equal(masks_of(pairs)["drive2_0"], ROAD_IDS)
    assert (masks_of(pairs)["drive1_0"] == 255).all()
    label_studio(source, [task(1, "s3://x/0.jpg", annotated(1, road))])
    with pytest.raises(ValueError, match="there are several images '0.jpg'"):
        read_source(source)


# What they have in common -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["labelme", "coco", "label_studio"])
def test_names_that_macos_decomposed_are_found_by_their_composed_form(tmp_path, tool):
    on_disk, in_file = unicodedata.normalize("NFD", "Zürich"), unicodedata.normalize("NFC", "Zürich")
    save_photo(tmp_path / "source" / f"{on_disk}.jpg", 0, SIZE)
    road = result("polygonlabels", {"points": corners(0, 50, 100, 100), "polygonlabels": ["road"]})
    if tool == "labelme":
        labelme(tmp_path / "source/a.json", [ROAD], f"{in_file}.jpg", photo=False)
    elif tool == "coco":
        content = {"images": [{"id": 1, "file_name": f"{in_file}.jpg"}], "categories": CATEGORIES}
        save_json(tmp_path / "source/a.json", {**content, "annotations": [annotation(3, 1, ROAD_BELOW)]})
    else:
        label_studio(tmp_path / "source", [task(1, f"/data/upload/1/{in_file}.jpg", annotated(1, road))])
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert report.data_format == tool
    assert list(masks_of(pairs)) == [in_file]


def test_other_json_files_are_not_taken_for_exports(tmp_path):
    save_photo(tmp_path / "a.jpg", 0, SIZE)
    for name, content in (("a.json", {"version": 1}), ("b.json", [1, 2]), ("c.json", []), ("d.json", [{"name": "a"}])):
        save_json(tmp_path / name, content)
    with pytest.raises(ValueError, match="is not known"):
        open_source(tmp_path)
    (tmp_path / "broken.json").write_text('{"shapes": [')
    with pytest.raises(ValueError, match="broken.json' is not valid JSON"):
        read_source(tmp_path, "labelme")


def test_polygons_have_the_pixels_of_cocos_own_tools_but_for_single_ones_at_the_edges():
    coco_masks = pytest.importorskip("pycocotools.mask")
    random, rows, columns = np.random.default_rng(0), np.arange(180), np.arange(200)
    for _ in range(50):
        angles = np.sort(random.uniform(0, 2 * np.pi, 20))
        radii = random.uniform(40, 60, 20)
        points = np.stack([100 + radii * np.cos(angles), 90 + radii * np.sin(angles)], axis=1).astype(np.float32)
        theirs = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([points.reshape(-1).tolist()], 180, 200)))
        mask = RegionMask((Polygon(1, points, "L" * 20),), "a", touched=False)
        ours = mask.rasterize(180, 200, rows, columns) == 1
        assert (ours & (theirs == 1)).sum() > 0.97 * (ours | (theirs == 1)).sum()
        assert abs(int(ours.sum()) - int(theirs.sum())) < 0.01 * theirs.sum()
        counts = coco_masks.encode(np.asfortranarray(theirs))["counts"].decode()
        runs = RegionMask((RunLengths(1, counts, theirs.shape),), "a").rasterize(180, 200, rows, columns)
        assert np.array_equal(runs == 1, theirs == 1)


def test_regions_of_several_kinds_are_drawn_in_their_order_at_chosen_rows_and_columns():
    first, last = Polygon(1, np.array(corners(0, 0, 6, 6), np.float32), "LLLL"), blocks((9, 2, 2, 9, 9), background=0)
    regions = (first, RunLengths(2, runs_of(last), SIZE), replace(first, class_id=255, vertices=first.vertices / 2))
    mask = RegionMask(regions, "a", SIZE, background=7, touched=False)
    expected = blocks((1, 0, 0, 6, 6), (2, 2, 2, 9, 9), (255, 0, 0, 3, 3), background=7)
    assert np.array_equal(mask.rasterize(*SIZE, np.arange(12), np.arange(16)), expected)
    rows, columns = np.array([1, 5, 8]), np.array([0, 2, 3, 15])
    assert np.array_equal(mask.rasterize(*SIZE, rows, columns), expected[rows[:, None], columns])


@pytest.mark.parametrize("change", [{"size": (1, 2)}, {"background": 0}, {"touched": False}, {"regions": ()}])
def test_the_fingerprint_of_regions_changes_with_all_that_their_pixels_depend_on(change):
    mask = RegionMask((Polygon(1, np.zeros((3, 2), np.float32), "LLL"),), "a")
    assert replace(mask, **change).fingerprint() != mask.fingerprint()
    assert replace(mask, source="b").fingerprint() == mask.fingerprint()


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=8), st.integers(0, 2**32 - 1))
def test_a_polygon_has_the_pixels_whose_middle_it_holds(points, seed):
    """The winding number of each middle, computed from the turns of its vertices."""
    vertices = (np.round(np.array(points) * 8) / 8 + 1 / 16).astype(np.float32)  # no middle is on an edge's corner
    ids = draw_polygons([Polygon(1, vertices, "L" * len(vertices))], np.arange(20), np.arange(20), touched=False)
    row, column = np.random.default_rng(seed).integers(0, 20, 2)
    x, y = vertices.astype(float).T - np.array([[column + 0.5], [row + 0.5]])
    following = np.roll(x, -1), np.roll(y, -1)
    cross, dot = x * following[1] - y * following[0], x * following[0] + y * following[1]
    if (np.abs(cross) > 1e-9).all():
        winding = np.arctan2(cross, dot).sum() / (2 * np.pi)
        assert (ids[row, column] == 1) == (round(winding) != 0)
