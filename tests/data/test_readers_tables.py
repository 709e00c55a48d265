"""Data sets of `datasets` with a column of photos and one of masks, whole or as a stream."""

import datasets
import numpy as np
import pytest
from helpers import driving_sets
from helpers.driving_sets import ids_of
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers import read_source


FEATURES = datasets.Features(
    {"photo": datasets.Image(), "seg": datasets.Image(), "depth": datasets.Image(), "id": datasets.Value("int64")}
)


def table(first: int, count: int) -> datasets.Dataset:
    masks = [Image.fromarray(ids_of(i)) for i in range(first, first + count)]
    photos = [mask.convert("RGB") for mask in masks]
    columns = {"photo": photos, "seg": masks, "depth": masks, "id": list(range(count))}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """A local dataset as the Hub holds it: parquet files by split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "source"
    for split, first, count in (("train", 0, 3), ("validation", 3, 2)):
        table(first, count).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def prepare(source, output, **settings):
    return driving_sets.prepare(source, output, **{"labels": "bdd100k", **settings})


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_become_pairs_with_numbers_for_names(parquet, tmp_path, streaming):
    settings = {"format": "datasets", "image_column": "photo", "mask_column": "seg", "streaming": streaming}
    report, pairs = prepare(parquet, tmp_path / "out", **settings)
    assert report.splits == {"train": 3, "val": 2}
    assert pairs["train"].stems == ["000000", "000001", "000002"]
    assert np.array_equal(pairs["val"][1]["mask"], ids_of(4))
    assert f"read the columns photo and seg, {'as a stream' if streaming else 'whole'}" in report.notes


def test_a_folder_of_parquet_files_is_detected_and_columns_are_found_by_their_names(parquet):
    source = read_source(parquet, labels="cityscapes")
    assert source.data_format == "datasets"
    assert [pair.split for pair in source.pairs] == ["train"] * 3 + ["val"] * 2
    assert len(source.pairs) == 5
    assert source.labels == LabelSet.from_preset("cityscapes")


def test_what_save_to_disk_left_is_read(tmp_path):
    datasets.DatasetDict({"train": table(0, 2), "test": table(2, 1)}).save_to_disk(tmp_path / "source")
    report, pairs = prepare(tmp_path / "source", tmp_path / "out")
    assert (report.data_format, report.splits) == ("datasets", {"train": 2, "test": 1})
    assert np.array_equal(pairs["test"][0]["mask"], ids_of(2))
    with pytest.raises(ValueError, match="saved with save_to_disk and is local; leave out --streaming"):
        read_source(tmp_path / "source", labels="bdd100k", streaming=True)


def test_a_share_for_validation_is_taken_from_a_table_but_not_from_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table(0, 10).to_parquet(tmp_path / "source" / "train.parquet")
    report, _ = prepare(tmp_path / "source", tmp_path / "out", val_fraction=0.3)
    assert report.splits == {"train": 7, "val": 3}
    with pytest.raises(ValueError, match="needs all names before the first pair; leave out --streaming"):
        prepare(tmp_path / "source", tmp_path / "out2", val_fraction=0.3, streaming=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "'.*' has no labels.json: give its label set: --labels"),
        (
            {"image_column": "picture"},
            "column 'picture' of '.*' holds no images; give --image_column: photo, seg, depth",
        ),
        ({"mask_column": "id"}, "column 'id' of '.*' holds no images; give --mask_column"),
        ({"mask_column": "photo"}, "are both 'photo'; expected two columns"),
    ],
)
def test_columns_and_classes_that_are_not_there_are_named(parquet, options, message):
    with pytest.raises(ValueError, match=message):
        read_source(parquet, "datasets", **{"labels": "bdd100k", **options})


def test_splits_that_a_prepared_folder_cannot_have_are_refused(tmp_path):
    datasets.DatasetDict({"train": table(0, 1), "extra": table(1, 1)}).save_to_disk(tmp_path / "source")
    with pytest.raises(
        ValueError, match="has the splits train, extra; expected train, validation and test only, got extra"
    ):
        read_source(tmp_path / "source", labels="bdd100k")


def test_columns_without_telling_names_must_be_named(tmp_path):
    renamed = table(0, 1).rename_columns({"seg": "classes"})
    renamed.save_to_disk(tmp_path / "source")
    with pytest.raises(ValueError, match="no column of '.*' is named; give --mask_column: photo, classes, depth hold"):
        read_source(tmp_path / "source", labels="bdd100k")


def test_a_row_without_mask_is_named(tmp_path):
    columns = {
        "photo": [Image.new("RGB", (4, 4))] * 2,
        "seg": [Image.new("L", (4, 4)), None],
        "depth": [None] * 2,
        "id": [0, 1],
    }
    datasets.Dataset.from_dict(columns, features=FEATURES).save_to_disk(tmp_path / "source")
    with pytest.raises(ValueError, match=r"(?s)1 of 2 pairs .*mask 'mask of row 1 \(train\) of .*' is empty"):
        prepare(tmp_path / "source", tmp_path / "out")


def test_names_of_files_are_kept_where_they_can_be_names_again(tmp_path):
    for name, value in (("a b.png", 1), ("x.png", 2)):
        Image.new("L", (4, 4), value).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a b.png", "x.png")]
    rows = {"image": paths, "mask": paths}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "source")
    assert [pair.stem for pair in read_source(tmp_path / "source", labels="bdd100k").pairs] == ["a b", "x"]


def test_a_name_that_is_no_data_set_is_refused():
    with pytest.raises(ValueError, match="there is no folder 'a/b/c', and it is not a dataset id of the Hub"):
        read_source("a/b/c", "datasets", labels="bdd100k")


def test_what_save_to_disk_left_under_two_colons_is_refused_by_them(tmp_path):
    datasets.DatasetDict({"train": table(0, 2)}).save_to_disk(tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / "a::b")
    with pytest.raises(ValueError, match=r"'.*a::b': `datasets` takes :: in the path"):
        read_source(tmp_path / "a::b", labels="bdd100k")
