"""The check names every fault that was put into a source or a prepared set, at once, and raises on none of them."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import driving_sets
from PIL import Image

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.data.check.check import check_prepared, check_source
from semseg_diffusers.data.check.inspection import fingerprint, inspect_pair, near_duplicates, same_images
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.readers import Pair, Source
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset


BDD = LabelSet.from_preset("bdd100k")
SIZE = (48, 64)


def scene(number: int) -> tuple[Image.Image, np.ndarray]:
    photo, ids, _ = draw_scene(number, SIZE)
    return photo, ids


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A source in the folder format: six training pairs, three for validation."""
    root = tmp_path_factory.mktemp("clean") / "source"
    for split, numbers in (("train", range(6)), ("val", range(20, 23))):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for number in numbers:
            photo, ids = scene(number)
            photo.save(root / "images" / split / f"s{number}.png")
            BDD.decode(ids).save(root / "masks" / split / f"s{number}.png")
    BDD.save_json(root / "labels.json")
    return root


@pytest.fixture
def source(clean, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copytree(clean, tmp_path / "source")


@pytest.fixture
def prepared(tmp_path) -> Path:
    return write_toy_dataset(tmp_path / "toy", num_train=4, num_val=2, size=SIZE)


def kinds(report) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in report.findings}


def only(report, kind):
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, kinds(report)
    return found[0]


# Sources


def test_a_clean_source_has_no_errors(source):
    report = check_source(source, "folder")
    assert report.pairs == {"train": 6, "val": 3}
    assert report.errors == 0
    assert set(kinds(report)) <= {"class never seen", "class not in train"}


def test_every_fault_of_a_source_is_told_at_once(source):
    images, masks = source / "images" / "train", source / "masks" / "train"
    (images / "s0.png").write_bytes(b"")
    (masks / "s1.png").write_bytes((masks / "s1.png").read_bytes()[:200])
    Image.open(masks / "s2.png").resize((10, 10), Image.Resampling.NEAREST).save(masks / "s2.png")
    ids = np.asarray(Image.open(masks / "s3.png")).copy()
    ids[:2], ids[2:4] = 24, 33
    Image.fromarray(ids).save(masks / "s3.png")
    colored = Image.open(masks / "s4.png").convert("RGB")
    colored.paste((1, 2, 3), (0, 0, 5, 4))
    colored.save(masks / "s4.png")
    (masks / "s5.png").unlink()
    shutil.copy(images / "s4.png", source / "images" / "val" / "s20.png")
    Image.new("L", SIZE[::-1], 255).save(source / "masks" / "val" / "s21.png")
    Image.new("RGB", SIZE[::-1], (9, 9, 9)).save(source / "images" / "val" / "s22.png")

    report = check_source(source, "folder", num_workers=2)
    assert {kind: severity for kind, severity in kinds(report).items() if not kind.startswith("class")} == {
        "unpaired file": "error",
        "empty file": "error",
        "unreadable file": "error",
        "size of mask": "error",
        "ids out of range": "error",
        "unknown colours": "error",
        "same photo in two splits": "error",
        "unknown mask": "warning",
        "plain photo": "warning",
    }
    assert [finding.severity for finding in report.findings] == sorted(f.severity for f in report.findings)
    assert only(report, "unpaired file").examples == (str(images / "s5.png"),)
    ids = only(report, "ids out of range")
    assert ids.details["ids"] == {"24": {"files": 1, "pixels": 128}, "33": {"files": 1, "pixels": 128}}
    assert "Cityscapes labelIds" in ids.advice
    assert only(report, "unknown colours").details["colors"] == {"#010203": {"files": 1, "pixels": 20}}
    assert "s2.png is 48 x 64, s2.png 10 x 10" in only(report, "size of mask").examples[0]


def test_masks_saved_as_jpeg_are_told_and_their_colours_traced_to_it(source):
    for path in sorted((source / "masks" / "train").iterdir()):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    report = check_source(source, "folder")
    assert only(report, "JPEG mask").count == 6
    colors = only(report, "unknown colours")
    assert (colors.count, colors.severity) == (6, "error")
    assert "smoothing at edges, or from JPEG" in colors.advice
    assert "unknown colours" not in kinds(check_source(source, "folder", tolerance=442))


@pytest.mark.parametrize(
    ("colors", "advice"),
    [
        ([(128, 0, 0), (0, 128, 192), (64, 0, 128)], "colours of the label set camvid"),
        ([(9, 9, 9), (8, 8, 8)], "all are grey: if they are class ids"),
        ([(250, 1, 250)], "the label set that the masks were painted with"),
    ],
)
def test_cause_of_unknown_colours_is_guessed(source, colors, advice):
    picture = Image.new("RGB", SIZE[::-1], colors[0])
    for index, color in enumerate(colors[1:]):
        picture.paste(color, (0, index, 5, index + 1))
    picture.save(source / "masks" / "train" / "s0.png")
    assert advice in only(check_source(source, "folder"), "unknown colours").advice


def test_ids_of_files_that_the_format_changes_are_right(tmp_path):
    root = tmp_path / "camvid"
    for part in ("images", "labels"):
        (root / part / "train").mkdir(parents=True)
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(root / "labels" / "train" / "a.png")
    scene(0)[0].resize((4, 3)).save(root / "images" / "train" / "a.png")
    assert check_source(root, "camvid").findings == ()
    Image.fromarray(np.full((3, 4), 12, dtype=np.uint8)).save(root / "labels" / "train" / "a.png")
    assert only(check_source(root, "camvid"), "ids out of range").count == 1


def test_a_mask_with_transparency_is_no_mask(source):
    path = source / "masks" / "train" / "s0.png"
    Image.open(path).convert("RGBA").save(path)
    assert check_source(source, "folder").errors == 0
    Image.new("RGBA", SIZE[::-1], (128, 64, 128, 7)).save(path)
    found = only(check_source(source, "folder"), "no mask")
    assert "transparent pixels" in found.advice


def test_photos_of_sixteen_bits_and_of_several_sizes_are_told(source):
    Image.fromarray(np.zeros(SIZE, dtype=np.uint16)).save(source / "images" / "train" / "s0.png")
    for part in ("images", "masks"):
        path = source / part / "train" / "s1.png"
        Image.open(path).resize((32, 24), Image.Resampling.NEAREST).save(path)
    report = check_source(source, "folder")
    assert only(report, "mode of photo").severity == "error"
    assert only(report, "several sizes").examples == ("48 x 64 (8 images)", "24 x 32 (1 images)")


def test_where_the_layout_is_wrong_its_pictures_are_still_read(source):
    shutil.move(source / "masks", source / "labels")
    (source / "images" / "train" / "s1.png").write_bytes(b"")
    shutil.copy(source / "images" / "train" / "s2.png", source / "images" / "train" / "s2.bmp")
    report = check_source(source, "folder")
    assert kinds(report) == {"layout": "error", "one stem": "error", "empty file": "error"}
    assert "masks" in only(report, "layout").examples[0]
    shutil.copytree(source / "images", source / ".images")
    assert check_source(source, "folder") == report
    assert "s2.bmp = " in only(report, "one stem").examples[0]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")  # what Pillow says of broken TIFF files
@pytest.mark.parametrize("what", ["photo", "mask"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "webp"])
def test_nothing_that_a_file_holds_makes_it_raise(tmp_path, what, kind):
    rng = np.random.default_rng(0)
    photo, ids = scene(1)
    buffer = io.BytesIO()
    (photo if what == "photo" else BDD.decode(ids).convert("RGB")).save(buffer, format=kind)
    whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    photo.save(tmp_path / "photo.png")
    BDD.decode(ids).save(tmp_path / "mask.png")
    paths = {"photo": tmp_path / "photo.png", "mask": tmp_path / "mask.png"} | {what: tmp_path / f"broken.{kind}"}
    for trial in range(40):
        broken = whole.copy()
        places = rng.integers(0, min(len(whole), (60, len(whole))[trial % 2]), 4)
        broken[places] = rng.integers(0, 256, 4)
        paths[what].write_bytes(broken[: len(broken) // (1 + trial % 3)].tobytes())
        pair = Pair("a", paths["photo"], paths["mask"], "train")
        facts = inspect_pair(pair, Source(BDD, (pair,)))
        assert facts.image_fault or facts.image_size


@pytest.mark.parametrize("layout", ["folder", "zip", "polygons", "cityscapes", "table"])
def test_whatever_prepare_reads_is_checked_in_the_format_that_its_layout_shows(tmp_path, layout):
    root = tmp_path / "source"
    if layout == "cityscapes":
        driving_sets.cityscapes(root)
    elif layout == "table":
        rows = {name: [] for name in ("image", "mask")}
        for seed in range(3):
            rows["image"].append(Image.fromarray(driving_sets.ids_of(seed)).convert("RGB"))
            rows["mask"].append(Image.fromarray(driving_sets.ids_of(seed)))
        features = datasets.Features({name: datasets.Image() for name in rows})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train.parquet")
    else:
        driving_sets.bdd100k(root, masks=layout != "polygons")
    if layout == "polygons":
        driving_sets.bdd100k_polygons(root)
    if layout == "zip":
        root = driving_sets.zip_folder(root, tmp_path / "bdd100k.zip", "bdd100k/")
    report = check_source(root, labels="bdd100k" if layout == "table" else None)
    assert sum(report.pairs.values()) == 3
    assert report.errors == 0, report.findings


def test_faults_inside_an_archive_are_named_by_their_place_in_it(tmp_path):
    root = driving_sets.bdd100k(tmp_path / "bdd100k")
    (root / "images" / "10k" / "train" / "a.jpg").write_bytes(b"")
    mask = root / "labels" / "sem_seg" / "masks" / "train" / "b.png"
    mask.write_bytes(mask.read_bytes()[:100])
    report = check_source(driving_sets.zip_folder(root, tmp_path / "set.zip"), "bdd100k")
    assert only(report, "empty file").examples[0].endswith("set.zip/images/10k/train/a.jpg")
    assert only(report, "unreadable file").examples[0].endswith("masks/train/b.png")


# Duplicates


def test_copies_are_near_and_other_scenes_are_not():
    photo = scene(3)[0].resize((256, 192))
    buffer = io.BytesIO()
    photo.save(buffer, format="jpeg", quality=40)
    copies = [
        photo,
        Image.open(buffer).convert("RGB"),
        photo.resize((128, 96)),
        photo.point(lambda level: min(255, level * 1.15)),
        photo.crop((2, 0, 256, 192)),
    ]
    others = [fingerprint(scene(number)[0]) for number in range(4, 40)]
    prints = [fingerprint(copy) for copy in copies]
    found = near_duplicates(prints, [*others, fingerprint(photo)])
    assert [(i, j) for i, j, _ in found] == [(i, len(others)) for i in range(len(copies))]
    assert near_duplicates([prints[0]], others) == []
    assert near_duplicates(prints, []) == near_duplicates([], prints) == []
    assert same_images([prints[0], *others, prints[0], prints[1]]) == [[0, 37]]


def test_neighbours_between_splits_are_a_warning_with_examples(source):
    for number in (0, 1):
        photo = Image.open(source / "images" / "train" / f"s{number}.png")
        photo.point(lambda level: min(255, level + 3)).save(source / "images" / "val" / f"s2{number}.png")
    report = check_source(source, "folder")
    near = only(report, "near-duplicates train/val")
    assert (near.severity, near.count) == ("warning", 2)
    assert near.what == "images of val that show nearly the same as one of train (2 of 3)"
    assert near.examples[0].endswith((f"~ {source}/images/train/s0.png", f"~ {source}/images/train/s1.png"))


def test_a_photo_twice_in_one_split_is_a_warning(source):
    shutil.copy(source / "images" / "train" / "s0.png", source / "images" / "train" / "s1.png")
    assert only(check_source(source, "folder"), "same photo twice").severity == "warning"


def test_real_driving_frames_of_two_drives_are_no_duplicates(data_root):
    frames = {s: sorted((data_root / "camvid" / "images" / s).iterdir())[::6] for s in ("train", "val")}
    prints = {split: [fingerprint(Image.open(path).convert("RGB")) for path in p] for split, p in frames.items()}
    assert near_duplicates(prints["val"], prints["train"]) == []


# Prepared sets


def test_a_prepared_set_is_clean(prepared):
    report = check_prepared(prepared)
    assert (report.pairs, report.errors) == ({"train": 4, "val": 2}, 0)


def test_every_fault_of_a_prepared_set_is_told_at_once(prepared):
    train = prepared / "train"
    lines = (train / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (train / rows[0]["mask_file_name"]).unlink()
    shutil.copy(train / rows[1]["image_file_name"], train / "images" / "extra.png")
    mask = np.asarray(Image.open(train / rows[2]["mask_file_name"])).copy()
    mask[0, 0] = 19
    Image.fromarray(mask).save(train / rows[2]["mask_file_name"])
    lines += ["{", json.dumps({"image_file_name": "a.png"}), lines[1]]
    (train / "metadata.jsonl").write_text("\n".join(lines))
    (prepared / "prepare.json").unlink()
    report = check_prepared(prepared)
    found = {kind: severity for kind, severity in kinds(report).items() if not kind.startswith("class")}
    assert found == {
        "row without file": "error",
        "metadata": "error",
        "ids out of range": "error",
        "file without row": "warning",
        "row twice": "warning",
        "record": "warning",
    }
    assert only(report, "metadata").count == 2
    assert only(report, "row without file").examples == (str(train / rows[0]["mask_file_name"]),)
    assert only(report, "file without row").examples == (str(train / "images" / "extra.png"),)
    assert only(report, "ids out of range").details["ids"] == {"19": {"files": 1, "pixels": 1}}


def test_what_loading_skips_in_a_prepared_set_is_no_fault(prepared):
    metadata = prepared / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("\n", "\n \n"))
    hidden = prepared / "train" / "images" / ".cache"
    hidden.mkdir()
    (hidden / "a.png").write_bytes(b"")
    report = check_prepared(prepared)
    assert (report.pairs, report.errors) == ({"train": 4, "val": 2}, 0)
    assert "file without row" not in kinds(report)


def test_two_folders_of_one_split_are_told_and_both_are_checked(prepared):
    shutil.copytree(prepared / "val", prepared / "validation")
    (prepared / "validation" / "masks" / "toy_0_5000000.png").write_bytes(b"")
    report = check_prepared(prepared)
    assert "are both the split validation; expected one of them" in only(report, "split twice").examples[0]
    assert only(report, "empty file").count == 1
    with pytest.raises(ValueError, match="are both the split validation"):
        load_pairs(prepared)


def test_a_set_without_label_set_or_metadata_is_told_without_stopping(prepared):
    (prepared / "labels.json").write_text("no")
    (prepared / "val" / "metadata.jsonl").unlink()
    (prepared / "train" / "masks" / "toy_0_0000001.png").write_bytes(b"PNG")
    report = check_prepared(prepared)
    assert kinds(report) == {"label set": "error", "metadata": "error", "unreadable file": "error"}
    shutil.rmtree(prepared / "train")
    shutil.rmtree(prepared / "val")
    assert "no pairs" in kinds(check_prepared(prepared))


# The command


def test_exit_code_table_and_json_tell_errors(source, tmp_path, capsys):
    words = ["check", "--source", str(source), "--format", "folder", "--output", str(tmp_path / "new" / "found.json")]
    assert cli.main(words) == 0
    (source / "masks" / "train" / "s0.png").write_bytes(b"")
    (source / "masks" / "val" / "s20.png").unlink()
    assert cli.main(words) == 1
    printed = capsys.readouterr().out
    assert "error         1  files of 0 bytes" in printed
    assert "error         1  images without a mask, or masks without an image" in printed
    record = json.loads((tmp_path / "new" / "found.json").read_text())
    assert (record["errors"], record["pairs"]) == (2, {"train": 6, "val": 2})
    assert record["findings"][0]["kind"] == "unpaired file"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["found.json"]


def test_command_checks_a_prepared_set(prepared, capsys):
    assert cli.main(["check", "--dataset", str(prepared)]) == 0
    assert "4 train, 2 val pairs in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--mapping", None, "No such file or directory: 'given.json'"),
        ("--mapping", "[]", "mapping file 'given.json' holds []"),
        ("--labels", None, "label set 'given.json' is no file and none of the presets"),
        ("--labels", "{", "label file 'given.json' is not valid JSON"),
    ],
)
def test_a_file_of_options_that_cannot_be_read_is_no_fault_of_the_data(
    source, tmp_path, monkeypatch, capsys, option, content, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "given.json").write_text(content)
    assert cli.main(["check", "--source", str(source), option, "given.json"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "nowhere"], "--dataset 'nowhere' is not a local folder"),
        (
            ["--dataset", "a", "--format", "folder"],
            "--format: only with --source; a prepared dataset carries its classes",
        ),
        (["--dataset", "a", "--num_workers", "0"], "--num_workers must be 1 or more; got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, capsys):
    assert cli.main(["check", *words]) == 2
    assert message in capsys.readouterr().err
