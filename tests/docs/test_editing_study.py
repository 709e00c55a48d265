"""benchmarks/studies/editing.py says which pairs or things are missing before it looks for edits."""

from argparse import Namespace

import pytest
from helpers.studies import load_study

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.toy.scenes import write_toy_dataset


@pytest.fixture
def study(monkeypatch):
    return load_study("editing", monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("data") / "toy", num_train=5, num_val=12, size=(32, 32))


def options(data, **changes) -> Namespace:
    given = {"dataset": data, "split": "val", "classes": ["car"], "least": [8], "num_edits": 3, "seed": 0}
    return Namespace(**{**given, **changes})


def test_edits_put_things_of_the_class_into_other_photos(study, data):
    labels = load_pairs(data, "val").labels
    edits = study.make_edits(options(data), labels)
    assert len(edits) == 3
    for edit in edits:
        assert edit.class_id == labels.label2id["car"]
        assert (edit.new[edit.added] == edit.class_id).all()
        assert (edit.old[edit.added] != edit.class_id).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "--split train has 5 pairs; expected more than 5"),
        ({"least": [2000]}, "--split val has no car of more than 2000 pixels"),
    ],
)
def test_too_few_pairs_or_things_are_named(study, data, changes, message):
    with pytest.raises(ValueError, match=message):
        study.make_edits(options(data, **changes), load_pairs(data, "val").labels)


def test_edits_that_no_photo_has_room_for_end_with_an_error(study, data, monkeypatch):
    monkeypatch.setattr(study, "TRIES", 0)
    with pytest.raises(ValueError, match="0 of 3 edits found; where things of the split could be put"):
        study.make_edits(options(data), load_pairs(data, "val").labels)
