"""Names and paths that libraries interpret: patterns, words for splits, dates, Unicode forms, byte-order marks."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from semseg_diffusers.cli import main
from semseg_diffusers.data.check.check import check_prepared
from semseg_diffusers.data.dataset import load_pairs, load_tables, split_names
from semseg_diffusers.data.dataset_format import METADATA_FILE, find_masks, plain_load_note
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers import read_source
from semseg_diffusers.toy.scenes import write_toy_dataset


CAMVID = LabelSet.from_preset("camvid")
FOLDERS = (
    "drive [2024-05]", "bdd::night", "what?", "all*", "[!a]", "{x,y}", "test", "val-1", "100%25 #3", " ~ ", "-x",
    "é" * 80,
)  # fmt: skip
STEMS = ("a[1]", "b::c", "d*?", "test_1", "2024-05-01", "2024-05-01T10:20:30", "e{}f", "g%20#h", "-i", "j\u2028k", "ü")


def write_source(folder: Path, stems, ending: str = ".png", mask_form: str = "NFC") -> Path:
    """Images and masks of ids; each mask is filled with the number of its stem."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, stem in enumerate(stems):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / "images" / f"{stem}{ending}")
        name = unicodedata.normalize(mask_form, stem)
        Image.fromarray(np.full((16, 16), i % 11, np.uint8)).save(folder / "masks" / f"{name}{ending}")
    CAMVID.save_json(folder / "labels.json")
    return folder


def prepare(source: Path, output: Path) -> None:
    words = ("--source", source, "--output", output, "--resolution", "16", "--num_workers", "1")
    assert main(["prepare", *map(str, words)]) in (0, None)


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("plain") / "toy", num_train=3, num_val=2, size=(16, 32))


def test_a_local_folder_gives_the_tables_of_load_dataset(toy_folder, tmp_path):
    ours, theirs = load_tables(str(toy_folder)), datasets.load_dataset(str(toy_folder), cache_dir=str(tmp_path))
    assert list(ours) == list(theirs) == ["train", "validation"]
    for split in ours:
        assert ours[split].features == theirs[split].features
        encoded = [
            table.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
            for table in (ours[split], theirs[split])
        ]
        assert encoded[0].to_list() == encoded[1].to_list()
        assert [np.asarray(row["mask"]).tobytes() for row in ours[split]] == [
            np.asarray(row["mask"]).tobytes() for row in theirs[split]
        ]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_dataset_is_written_and_read_in_a_folder_of_any_name(name, toy_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_source(tmp_path / name / "source", ("a", "b", "c"))
    prepare(source, tmp_path / name / "out")
    note = "note: plain load_dataset" in capsys.readouterr().out
    assert [int(load_pairs(f"./{name}/out").mask(i)[0, 0]) for i in range(3)] == [0, 1, 2]
    if not note:  # then the plain call finds the same pairs
        assert datasets.load_dataset(str(tmp_path / name / "out"))["train"]["stem"][:] == ["a", "b", "c"]


def test_a_neighbour_that_a_pattern_would_match_is_not_read(toy_folder, tmp_path):
    shutil.copytree(toy_folder, tmp_path / "day1")
    other = write_toy_dataset(tmp_path / "day?", num_train=1, num_val=1, size=(16, 32), seed=5)
    assert len(load_pairs(other)) == 1
    assert plain_load_note(other).startswith("note: plain load_dataset takes ?")


@pytest.mark.parametrize("stem", STEMS)
def test_stems_of_any_form_keep_their_name_and_mask(stem, tmp_path):
    source = write_source(tmp_path / "source", (f"{stem}0", stem, f"{stem}1"), ending=".PNG")
    prepare(source, tmp_path / "out")
    pairs = load_pairs(tmp_path / "out")
    number = {f"{stem}0": 0, stem: 1, f"{stem}1": 2}
    assert {name: int(pairs.mask(i)[0, 0]) for i, name in enumerate(pairs.stems)} == number


def test_stems_that_are_all_dates_stay_text(tmp_path):
    stems = [f"2024-05-0{day}" for day in range(1, 4)]
    prepare(write_source(tmp_path / "source", stems), tmp_path / "out")
    assert load_pairs(tmp_path / "out").stems == stems


def test_words_for_splits_in_a_folder_without_splits_split_nothing(tmp_path):
    folder = write_source(tmp_path / "generated", ("test_0", "my-val-2", "c"))
    rows = [
        {"image_file_name": f"images/{stem}.png", "mask_file_name": f"masks/{stem}.png", "stem": stem}
        for stem in ("test_0", "my-val-2", "c")
    ]
    (folder / METADATA_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_pairs(folder).stems == ["test_0", "my-val-2", "c"]
    assert split_names(folder) == ["train"]
    assert "a word in names such as" in plain_load_note(folder)
    plain = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), data_files={"train": "**"}, cache_dir=str(tmp_path / "cache")
    )
    assert plain["train"]["stem"][:] == ["test_0", "my-val-2", "c"]  # what the note says


def test_metadata_with_a_byte_order_mark_and_other_separators_is_no_fault(tmp_path):
    prepare(write_source(tmp_path / "source", ("a\u2028b", "c\x85d", "e")), tmp_path / "out")
    file = tmp_path / "out" / "train" / METADATA_FILE
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_pairs(tmp_path / "out").stems == ["a\u2028b", "c\x85d", "e"]
    report = check_prepared(tmp_path / "out")
    assert "metadata" not in [finding.kind for finding in report.findings]


def test_metadata_that_leaves_its_folder_is_refused(toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    file = folder / "train" / METADATA_FILE
    for outside in ("../../secret.png", "/etc/secret.png", "images/../../../x.png"):
        row = {"image_file_name": outside, "mask_file_name": "masks/a.png", "stem": "a"}
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match="expected files in its folder"):
            load_pairs(folder)


def test_tables_in_a_folder_that_is_a_pattern_are_refused_by_its_characters(tmp_path):
    folder = tmp_path / "a [1]"
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"takes \[ \] in the path for a pattern. Rename the folder"):
        load_pairs(folder, labels=CAMVID)


# --- Unicode ---


@pytest.mark.parametrize("names", [("Zürich_1", "Malmö_2"), ("Łódź", "Győr"), ("가나", "が", "ṩ")])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_image_and_mask_in_two_unicode_forms_are_a_pair(names, form, tmp_path):
    stems = [unicodedata.normalize("NFD" if form == "NFC" else "NFC", name) for name in names]
    prepare(write_source(tmp_path / "source", stems, mask_form=form), tmp_path / "out")
    pairs = load_pairs(tmp_path / "out")
    found = {unicodedata.normalize("NFC", stem): int(pairs.mask(i)[0, 0]) for i, stem in enumerate(pairs.stems)}
    assert found == {unicodedata.normalize("NFC", name): i for i, name in enumerate(names)}


def test_names_of_one_form_are_kept(tmp_path):
    stem = unicodedata.normalize("NFD", "Zürich")
    source = read_source(write_source(tmp_path / "source", (stem,), mask_form="NFD"))
    assert [pair.stem for pair in source.pairs] == [stem]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_that_look_alike_are_both_named(part, tmp_path):
    source = write_source(tmp_path / "source", ("ü",))
    shutil.copy(source / part / "ü.png", source / part / unicodedata.normalize("NFD", "ü.png"))
    with pytest.raises(ValueError, match=r"two Unicode forms \(NFC and NFD\)"):
        read_source(source)
    with pytest.raises(ValueError, match="have the same stem"):
        find_masks(source / part)


def test_masks_in_hidden_folders_are_none(tmp_path):
    root = tmp_path / ".given"
    masks = write_source(root, ("a",)) / "masks"
    (masks / ".checkpoints" / "old").mkdir(parents=True)
    shutil.copy(masks / "a.png", masks / ".checkpoints" / "old" / "b.png")
    shutil.copy(masks / "a.png", masks / "._a.png")
    assert find_masks(masks) == [masks / "a.png"]


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    source = write_source(tmp_path / "source", ("a",))
    for part in ("images", "masks"):
        shutil.copy(source / part / "a.png", os.fsencode(source / part) + b"/\xff.png")
    with pytest.raises(ValueError, match=r"'\\udcff' is not in UTF-8; rename"):
        read_source(source)


# --- byte-order marks and label files ---

NAMES = ["road", "sky", "car"]
LABEL_CONTENTS = {
    "id2label": {str(i): name for i, name in enumerate(NAMES)},
    "any order": {"2": "car", "0": "road", "1": "sky"},
    "list": NAMES,
    "colormap": {name: [i, 1, 2] for i, name in enumerate(NAMES)},
    "labels": LabelSet(tuple(NAMES), ((1, 1, 1), (2, 2, 2), (3, 3, 3))).to_config(),
}


@pytest.mark.parametrize("content", LABEL_CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_label_files_are_read_with_and_without_a_byte_order_mark(content, encoding, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(LABEL_CONTENTS[content]), encoding=encoding)
    labels = LabelSet.from_json(tmp_path / "labels.json")
    assert labels.names == tuple(NAMES)
    assert len(set(labels.colors)) == 3
    assert LabelSet.from_config(labels.to_config()) == labels


def test_files_in_utf_16_are_refused_by_name(tmp_path):
    (tmp_path / "labels.json").write_text('{"road": [1, 2, 3]}', encoding="utf-16")
    with pytest.raises(ValueError, match="'.*labels.json' is in UTF-16; expected UTF-8"):
        LabelSet.from_json(tmp_path / "labels.json")


@pytest.mark.parametrize("content", ['{"0": "road", "2": "car"}', '{"0": "road", "1": "road"}', '["road", 1]'])
def test_names_with_gaps_or_twice_are_refused(content, tmp_path):
    (tmp_path / "id2label.json").write_text(content)
    with pytest.raises(ValueError, match="label file '.*id2label.json': "):
        LabelSet.from_json(tmp_path / "id2label.json")


def test_colours_are_made_up_for_every_number_of_classes_and_read_no_colour_masks(tmp_path):
    (tmp_path / "id2label.json").write_text(json.dumps({str(i): f"c{i}" for i in range(255)}))
    labels = LabelSet.from_json(tmp_path / "id2label.json")
    assert len({*labels.colors, labels.ignore_color}) == 256
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (labels.encode(ids) == ids).all()
    assert (labels.encode(labels.decode(ids)) == ids).all()
    foreign = Image.fromarray(ids)
    foreign.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    assert (labels.encode(foreign) == ids).all()  # as the palettes of ADE20K and Pascal VOC are
    with pytest.raises(ValueError, match="is a colour image, .* has no colours"):
        labels.encode(Image.new("RGB", (4, 4)), source="a.png")


@pytest.mark.parametrize("by_option", [True, False])
def test_id2label_is_a_label_set_beside_the_data_and_as_an_option(by_option, tmp_path):
    source = write_source(tmp_path / "source", ("a", "b", "c"))
    (source / "labels.json").unlink()
    file = (tmp_path if by_option else source) / "id2label.json"
    file.write_text(json.dumps({str(i): f"c{i}" for i in range(11)}))
    labels = ["--labels", str(file)] if by_option else []
    words = ["prepare", "--source", str(source), "--output", str(tmp_path / "out"), "--resolution", "16", *labels]
    assert main([*words, "--num_workers", "1"]) in (0, None)
    pairs = load_pairs(tmp_path / "out")
    assert (pairs.labels.num_classes, [int(pairs.mask(i)[0, 0]) for i in range(3)]) == (11, [0, 1, 2])
    (tmp_path / "out" / "labels.json").rename(tmp_path / "out" / "ours.json")
    shutil.copy(file, tmp_path / "out" / "id2label.json")
    assert [int(load_pairs(tmp_path / "out").mask(i)[0, 0]) for i in range(3)] == [0, 1, 2]
