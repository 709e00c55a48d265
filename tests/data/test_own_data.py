"""Data of one's own: label files of every form, layouts of folders, drives, and classes merged by a mapping file."""

import json

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.label_mapping import all_kinds
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.merged_classes import merge_classes
from semseg_diffusers.data.prepare import choose_validation, prepare_dataset
from semseg_diffusers.data.readers import Pair, Source, read_source
from semseg_diffusers.data.settings import PrepareSettings


OWN = {
    "drivable": {"color": "#804080", "kind": "road"},
    "structure": {"color": "#464646"},
    "sky": {"color": "#4682b4"},
}
SIZE = 16


def write_pair(image, mask, ids=(0, 1)) -> None:
    """Write an image, and a mask whose left half has one id and whose right half another."""
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), "gray").save(image)
    array = np.full((SIZE, SIZE), ids[0], dtype=np.uint8)
    array[:, SIZE // 2 :] = ids[1]
    Image.fromarray(array).save(mask)


def folder(root, stems=("a b", "c"), labels=OWN, ids=(0, 1), images="images"):
    for stem in stems:
        write_pair(root / images / f"{stem}.png", root / "masks" / f"{stem}.png", ids)
    if labels is not None:
        (root / "labels.json").write_text(json.dumps(labels))
    return root


def prepared(source, output, **options):
    settings = PrepareSettings(source=(str(source),), output=str(output), resolution=(SIZE, SIZE), **options)
    report = prepare_dataset(settings)
    return report, {split: load_pairs(output, split) for split in report.splits}


# Label files


def read(tmp_path, content, name="labels.json") -> LabelSet:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return LabelSet.from_json(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "# mine\nroad\n\n sky \n"),
        ("list.json", ["road", "sky"]),
        ("names.json", {"0": "road", "1": "sky"}),
        ("colors.json", {"road": "#804080", "sky": [70, 130, 180]}),
        ("kinds.json", {"road": {"kind": "road"}, "sky": {}}),
        (
            "cvat.json",
            [{"name": "road", "id": 3141592, "color": "#804080", "attributes": []}, {"name": "sky", "id": 7}],
        ),
        ("coco.json", {"images": [], "categories": [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}]}),
    ],
)
def test_label_files_of_every_form_are_read(tmp_path, name, content):
    assert read(tmp_path, content, name).names == ("road", "sky")


def test_colours_and_kinds_of_label_files_are_read(tmp_path):
    labels = read(tmp_path, OWN)
    assert labels.colors == ((128, 64, 128), (70, 70, 70), (70, 130, 180))
    assert labels.kinds == ("road", None, None)
    cvat = read(tmp_path, [{"name": "road", "color": "#804080"}, {"name": "sky", "color": "#4682b4"}])
    assert cvat.colors == ((128, 64, 128), (70, 130, 180))
    made_up = read(tmp_path, {"flat": {"kind": "road"}, "rest": {}})
    assert (made_up.kinds, made_up.reads_colors) == (("road", None), False)


def test_masks_hold_the_ids_of_coco_categories(tmp_path):
    labels = read(tmp_path, {"categories": [{"id": 3, "name": "sky"}, {"id": 7, "name": "road"}]})
    ids = labels.encode(np.array([[3, 7, 0, 255]], dtype=np.uint8))
    assert ids.tolist() == [[0, 1, 255, 255]]
    with pytest.raises(ValueError, match="holds class 5"):
        labels.encode(np.array([[5]], dtype=np.uint8))


@pytest.mark.parametrize(("ignored", "ids"), [(255, [1, 3, 0, 255]), (9, [1, 3, 0, 9]), (1, [2, 4, 0, 1])])
def test_what_a_label_file_leaves_unknown_stays_unknown_with_an_ignored_id(tmp_path, ignored, ids):
    labels = read(tmp_path, {"categories": [{"id": 1, "name": "sky"}, {"id": 3, "name": "road"}]})
    found = labels.with_ignored_id(ignored).encode(np.array([ids], dtype=np.uint8))
    assert found.tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"car": [1, 2, 3], "car": [4, 5, 6]}', "'car' occurs twice"),
        ('{"id2label": {"0": "a", "0": "b"}}', "'0' occurs twice"),
        ('["car", "car"]', "the class name 'car' occurs twice"),
        ('[{"name": "car", "color": "#000001"}, {"name": "car", "color": "#000002"}]', "'car' occurs twice"),
        ('{"categories": []}', "expected {.name"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "expected different ones from 0 to 254"),
        ('{"car": "#12345"}', r"expected three whole numbers from 0 to 255: \[r, g, b\], or .#rrggbb"),
    ],
)
def test_label_files_that_contradict_themselves_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"label file '.*labels.json': .*{message}"):
        read(tmp_path, content)


# Layouts


@pytest.mark.parametrize("images", ["images", "photos"])
def test_pairs_with_blanks_in_their_names_are_prepared(tmp_path, images):
    report, splits = prepared(folder(tmp_path / "my streets", images=images), tmp_path / "out")
    assert report.splits == {"train": 2}
    assert splits["train"].stems == ["a b", "c"]
    assert splits["train"].labels.kinds == ("road", None, None)
    assert np.unique(splits["train"].mask(0)).tolist() == [0, 1]


def test_masks_beside_their_images_are_found_by_their_ending(tmp_path):
    for split in ("train", "val"):
        for stem in ("a", "b"):
            write_pair(tmp_path / "in" / split / f"{stem}.jpg", tmp_path / "in" / split / f"{stem}_mask.png")
    (tmp_path / "in" / "classes.txt").write_text("road\nsky\n")
    report, splits = prepared(tmp_path / "in", tmp_path / "out")
    assert (report.data_format, report.splits) == ("folder", {"train": 2, "val": 2})
    assert splits["val"].stems == ["a", "b"]


def test_masks_beside_their_images_are_found_in_a_folder_without_splits(tmp_path):
    for stem in ("a", "b"):
        write_pair(tmp_path / "in" / f"{stem}.jpg", tmp_path / "in" / f"{stem}_mask.png")
    (tmp_path / "in" / "classes.txt").write_text("road\nsky\n")
    report, splits = prepared(tmp_path / "in", tmp_path / "out")
    assert (report.data_format, report.splits) == ("folder", {"train": 2})
    assert splits["train"].stems == ["a", "b"]


def test_categories_of_coco_are_the_classes_of_masks_beside_them(tmp_path):
    categories = {"images": [], "categories": [{"id": 0, "name": "road"}, {"id": 1, "name": "sky"}]}
    report, splits = prepared(folder(tmp_path / "in", labels=categories), tmp_path / "out")
    assert (report.data_format, splits["train"].labels.names) == ("folder", ("road", "sky"))


def test_whole_drives_are_taken_for_validation(tmp_path):
    stems = [f"drive {drive}/{frame:04}" for drive in range(5) for frame in range(4)]
    report, splits = prepared(folder(tmp_path / "in", stems), tmp_path / "out", val_fraction=0.2)
    assert report.splits == {"train": 16, "val": 4}
    drives = {split: {stem.rpartition("_")[0] for stem in pairs.stems} for split, pairs in splits.items()}
    assert len(drives["val"]) == 1
    assert not drives["val"] & drives["train"]


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ({"a": 2, "b": 18}, 0.2, 2),  # the share is 4 pairs: the large drive is further from it than none
        ({"a": 9, "b": 11}, 0.2, 9),  # none is nearer to 4: the smallest
        ({"a": 8, "b": 8}, 0.9, 8),  # the share is 14, but one drive is for training
        ({"a": 4, "b": 4, "c": 12}, 0.2, 4),
    ],
)
def test_the_share_of_drives_is_near_to_that_of_the_option_for_every_seed(tmp_path, sizes, fraction, expected):
    pairs = [
        Pair(f"{drive}_{i}", tmp_path, tmp_path, "train", {"drive": drive})
        for drive, size in sizes.items()
        for i in range(size)
    ]
    source = Source(LabelSet.from_preset("camvid"), tuple(pairs))
    for seed in range(8):
        settings = PrepareSettings(source=("in",), output="out", val_fraction=fraction, seed=seed)
        assert len(choose_validation(source, settings)[0]) == expected


@pytest.mark.parametrize(
    "names",
    [
        [f"2011_09_26_drive_{drive:04}_{frame:06}" for drive in (5, 11, 70, 71) for frame in range(5)],
        [f"{drive}_f{frame:05}" for drive in ("0006R0", "0016E5", "Seq05VD", "0001TP") for frame in range(5)],
        [f"day {drive}_{frame}" for drive in "1234" for frame in range(5)],
    ],
)
def test_whole_drives_that_the_names_show_are_taken_for_validation(tmp_path, capsys, names):
    source, output = folder(tmp_path / "in", names), str(tmp_path / "out")
    words = ("--source", str(source), "--output", output, "--resolution", "native", "--val_fraction", "0.25")
    assert cli.main(["prepare", *words]) == 0
    said = capsys.readouterr().out
    splits = {split: load_pairs(output, split).stems for split in ("train", "val")}
    drives = {split: {stem.rpartition("_")[0] for stem in stems} for split, stems in splits.items()}
    assert (len(drives["train"]), len(drives["val"])) == (3, 1)
    assert f"val is 1 of 4 drives, by the names of the files: {[*drives['val']][0]}; neighbouring" in said


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:06}_10" for number in range(20)],  # KITTI's: one image a scene
        [f"street_{number:03}" for number in range(20)],  # one prefix
        [f"{kind}_{number}" for kind in ("city", "rural", "highway", "night") for number in range(5)],  # no drives
        [f"drive1_{number}" for number in range(12)] + [f"drive2_{number}" for number in range(8)],  # only two
        [f"drive{drive}_{number}" for drive in range(3) for number in range(6)] + ["extra", "another"],  # not all
        [f"drive{drive}_{number}" for drive in range(3) for number in range(20)],  # each is far from the share
        [f"a1{drive}-{number}c{number}" for drive in range(3) for number in range(10)],  # no numbers of frames
    ],
)
def test_names_that_show_no_drives_are_split_by_images(tmp_path, names):
    pairs = tuple(Pair(name, tmp_path, tmp_path, "train") for name in names)
    settings = PrepareSettings(source=("in",), output="out", val_fraction=0.1)
    chosen, notes = choose_validation(Source(LabelSet.from_preset("camvid"), pairs), settings)
    assert len(chosen) == round(0.1 * len(names))
    assert notes == ()


def test_a_single_drive_is_split_by_its_frames(tmp_path):
    report, _ = prepared(folder(tmp_path / "in", [f"day/{i}" for i in range(5)]), tmp_path / "out", val_fraction=0.2)
    assert report.splits == {"train": 4, "val": 1}


def test_commands_that_need_a_prepared_dataset_name_the_command(tmp_path, capsys):
    source = folder(tmp_path / "my streets")
    assert cli.main(["train", "--dataset", str(source), "--output_dir", str(tmp_path / "run")]) == 2
    expected = f"semseg-diffusers prepare --source '{source}' --output '{source}_prepared'"
    assert expected in capsys.readouterr().err
    with pytest.raises(ValueError, match="not a prepared dataset. Prepare it"):
        load_pairs(source)


# Merged classes


def mapping_file(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_numbers_of_masks_are_classes_without_a_label_set(tmp_path):
    source = folder(tmp_path / "in", labels=None, ids=(26, 7))
    given = mapping_file(tmp_path, {"flat": [7], "mover": [26, 27]})
    report, splits = prepared(source, tmp_path / "out", mapping=given)
    pairs = splits["train"]
    assert pairs.labels.names == ("flat", "mover")
    assert np.unique(pairs.mask(0)[:, : SIZE // 2]).tolist() == [1]
    assert "all 512 labelled pixels have a counterpart" in report.notes[-1]
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["mapping"] == given
    assert record["mapped_classes"] == [
        ["id 7", "flat"],
        ["id 26", "mover"],
        ["id 27", "mover"],
        ["other numbers", None],
    ]


def test_numbers_that_a_mapping_omits_count_as_lost_without_a_label_set(tmp_path):
    folder(tmp_path / "in", ("a",), labels=None, ids=(7, 11))
    folder(tmp_path / "in", ("b",), labels=None, ids=(11, 255))
    given = mapping_file(tmp_path, {"flat": [7]})
    with pytest.raises(ValueError, match=r"most pixels would be lost: 256 of 384 .*other numbers 66.7 %"):
        prepared(tmp_path / "in", tmp_path / "out", mapping=given)
    _, splits = prepared(tmp_path / "in", tmp_path / "out", mapping=given, ignore_index=11)
    assert [np.unique(splits["train"].mask(i)).tolist() for i in range(2)] == [[0, 255], [255]]
    with pytest.raises(ValueError, match="--ignore_index is 7; expected a number that --mapping does not name"):
        prepared(tmp_path / "in", tmp_path / "out2", mapping=given, ignore_index=7)


@pytest.mark.parametrize(("numbers", "strange"), [([26, 300], 300), ([-1], -1), ([1, -1], -1)])
def test_numbers_that_no_mask_can_hold_are_refused_without_a_label_set(tmp_path, numbers, strange):
    given = mapping_file(tmp_path, {"a": numbers})
    with pytest.raises(ValueError, match=f"--mapping names the number {strange}; masks hold 0 to 255"):
        prepared(folder(tmp_path / "in", labels=None), tmp_path / "out", mapping=given)


def kitti(root, ids=(26, 9)):
    for stem in ("000000_10", "000001_10"):
        write_pair(root / "training/image_2" / f"{stem}.png", root / "training/semantic" / f"{stem}.png", ids)
    return root


def test_names_and_raw_ids_of_cityscapes_are_merged_into_a_label_set_of_ones_own(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({**OWN, "mover": {"color": "#00008e", "kind": "vehicle"}}))
    given = mapping_file(tmp_path, {"mover": ["Car", "truck", 29], "drivable": ["road", 9]})
    options = {"mapping": given, "map_to": str(tmp_path / "own.json")}
    _, splits = prepared(kitti(tmp_path / "in"), tmp_path / "out", **options)
    pairs = next(iter(splits.values()))
    assert pairs.labels.names == ("drivable", "structure", "sky", "mover")
    assert pairs.labels.kinds == ("road", None, None, "vehicle")
    ids = pairs.mask(0)
    assert (ids[0, 0], ids[0, -1]) == (3, 0)  # 26 is car, 9 is parking


def test_colours_and_kinds_of_merged_classes_are_those_of_their_parts(tmp_path):
    source = read_source(kitti(tmp_path))
    _, mapping = merge_classes(source, {"a": ["car", "truck"], "b": ["road"], "c": ["person", "bicycle"], "d": [3]})
    assert mapping.target.kinds == ("vehicle", "road", "object", None)
    assert mapping.target.colors[:2] == ((0, 0, 142), (128, 64, 128))


def test_classes_that_a_reader_merges_can_be_named_one_by_one(tmp_path):
    images, masks = tmp_path / "train", tmp_path / "train_labels"
    for folder_ in (images, masks):
        folder_.mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(images / "a.png")
    mask = Image.new("RGB", (SIZE, SIZE), (128, 0, 192))  # LaneMkgsDriv
    mask.paste((0, 128, 192), (0, 0, SIZE, SIZE // 2))  # Bicyclist
    mask.save(masks / "a_L.png")
    given = mapping_file(tmp_path, {"marking": ["LaneMkgsDriv"], "rider": ["rider"]})
    _, splits = prepared(tmp_path, tmp_path.parent / f"{tmp_path.name}_out", mapping=given, format="camvid")
    assert np.unique(splits["train"].mask(0), return_counts=True)[1].tolist() == [SIZE * SIZE // 2] * 2


def test_prepare_stops_where_most_pixels_become_unknown_unless_it_is_allowed(tmp_path):
    for stem, ids in (("a", (0, 1)), ("b", (1, 1))):
        write_pair(tmp_path / "in/images" / f"{stem}.png", tmp_path / "in/masks" / f"{stem}.png", ids)
    (tmp_path / "in/labels.json").write_text(json.dumps(OWN))
    given = mapping_file(tmp_path, {"road": ["drivable"]})
    with pytest.raises(ValueError, match=r"most pixels would be lost: 384 of 512 .*structure 75 %.*--max_unknown 1"):
        prepared(tmp_path / "in", tmp_path / "out", mapping=given)
    assert not (tmp_path / "out").exists()
    prepared(tmp_path / "in", tmp_path / "out", mapping=given, max_unknown=0.75)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ["lorry"]}, "--mapping names 'lorry' for 'a', and the classes are drivable, structure, sky"),
        ({"a": ["drivable"], "b": ["Drivable"]}, "--mapping has 'drivable' in two classes"),
        ({"a": [256]}, "--mapping names the number 256; masks hold 0 to 255"),
    ],
)
def test_mappings_that_do_not_fit_the_source_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        prepared(folder(tmp_path / "in"), tmp_path / "out", mapping=mapping_file(tmp_path, content))


def test_an_id_that_neither_source_nor_mapping_names_stays_an_error(tmp_path):
    source = folder(tmp_path / "in", ids=(0, 3))  # the first id beyond the classes, where those of the mapping come
    with pytest.raises(ValueError, match="holds class 3"):
        prepared(source, tmp_path / "out", mapping=mapping_file(tmp_path, {"a": ["drivable"], "b": [9]}))


def test_check_reads_masks_as_the_mapping_says(tmp_path, capsys):
    source = folder(tmp_path / "in", labels=None, ids=(26, 7))
    given = mapping_file(tmp_path, {"flat": [7], "mover": [26]})
    assert cli.main(["check", "--source", str(source), "--mapping", given]) == 0
    assert "other numbers" not in capsys.readouterr().out  # there are none, and they are no class to learn
    (source / "labels.json").write_text(json.dumps(OWN))
    given = mapping_file(tmp_path, {"flat": ["lorry"]})
    assert cli.main(["check", "--source", str(source), "--mapping", given]) == 1
    assert "--mapping names 'lorry' for 'flat'" in " ".join(capsys.readouterr().out.split())


def test_kinds_of_merged_classes_reach_the_dataset(tmp_path):
    given = mapping_file(tmp_path, {"mover": ["car", "truck"], "flat": ["road", 9]})
    _, splits = prepared(kitti(tmp_path / "in"), tmp_path / "out", mapping=given)
    assert all_kinds(next(iter(splits.values())).labels) == ["vehicle", "road"]
