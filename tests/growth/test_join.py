"""`semseg-diffusers join`: pairs of several datasets in one, with an attribute that says which is which."""

import json
import shutil

import pytest
from helpers.generation_places import LABELS

from semseg_diffusers.cli import main
from semseg_diffusers.data.dataset import attribute_values, load_pairs, split_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.cards import dataset_content
from semseg_diffusers.toy.scenes import write_toy_dataset


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Return other scenes of the same classes and size, four to train on; two have names of the fixture `toy`."""
    folder = tmp_path_factory.mktemp("target") / "toy"
    write_toy_dataset(folder, num_train=4, num_val=2, size=(16, 32), seed=1)
    names = {"toy_1_0000000": "toy_0_0000000", "toy_1_0000001": "toy_0_0000001"}
    metadata = folder / "train" / "metadata.jsonl"
    text = metadata.read_text()
    for old, new in names.items():
        text = text.replace(old, new)
        for part in ("images", "masks"):
            shutil.move(folder / "train" / part / f"{old}.png", folder / "train" / part / f"{new}.png")
    rows = [{**json.loads(line), "season": "winter"} for line in text.splitlines()]
    metadata.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    record = json.loads((folder / "prepare.json").read_text())
    labelled = {"segmenter": "runs/s", "weights_sha256": "sha256:0", "min_confidence": 0.5}
    (folder / "prepare.json").write_text(json.dumps({**record, "format": "kitti", "pseudo_labels": labelled}))
    return folder


def join(output, *datasets, attribute="dataset=camvid,kitti") -> int:
    return main(["join", "--datasets", *map(str, datasets), "--attribute", attribute, "--output", str(output)])


def test_a_joined_set_has_all_training_pairs_and_the_other_splits_of_the_first(toy, target, tmp_path, capsys):
    assert join(tmp_path / "both", toy, target) == 0
    assert "train 10, val 2 (dataset: 6 camvid, 4 kitti)" in capsys.readouterr().out
    source, other = load_pairs(toy, "train"), load_pairs(target, "train")
    pairs = load_pairs(tmp_path / "both", "train")
    assert pairs.attributes["dataset"] == ["camvid"] * 6 + ["kitti"] * 4
    assert attribute_values(pairs, ["dataset"]) == {"dataset": ["camvid", "kitti"]}
    assert pairs.stems[:6] == source.stems
    for index in range(10):
        theirs, position = (source, index) if index < 6 else (other, index - 6)
        assert pairs.photo_file(index) == theirs.photo_file(position)
        assert (pairs.mask(index) == theirs.mask(position)).all()
    assert split_names(tmp_path / "both") == ["train", "val"]
    assert load_pairs(tmp_path / "both", "val").stems == load_pairs(toy, "val").stems
    assert set(load_pairs(tmp_path / "both", "val").attributes["dataset"]) == {"camvid"}


def test_names_that_collide_get_the_value_of_their_dataset_in_front(toy, target, tmp_path):
    assert join(tmp_path / "both", toy, target) == 0
    stems = load_pairs(tmp_path / "both", "train").stems
    other = load_pairs(target, "train").stems
    assert stems[6:] == [f"kitti_{stem}" if stem in stems[:6] else stem for stem in other]
    assert sum(stem.startswith("kitti_") for stem in stems) == 2


def test_attributes_of_one_dataset_stay_and_are_unknown_for_the_others(toy, target, tmp_path):
    assert join(tmp_path / "both", toy, target) == 0
    pairs = load_pairs(tmp_path / "both", "train")
    assert pairs.attributes["season"] == [None] * 6 + ["winter"] * 4
    assert pairs.attributes["weather"][:6] == load_pairs(toy, "train").attributes["weather"]


def test_captions_stay(toy, target, tmp_path):
    rows = [json.loads(line) for line in (toy / "train" / "metadata.jsonl").read_text().splitlines()]
    said = [{"captions": [f"street {i}", "a street"], "region_captions": [{"class": "sky"}]} for i in range(len(rows))]
    source = shutil.copytree(toy, tmp_path / "toy")
    lines = [json.dumps(row | new) for row, new in zip(rows, said, strict=True)]
    (source / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    assert join(tmp_path / "both", source, target) == 0
    pairs = load_pairs(tmp_path / "both", "train")
    assert pairs.column("captions") == [new["captions"] for new in said] + [None] * 4
    assert load_pairs(tmp_path / "both", "val").column("captions") == [[]] * 2


def test_predicted_labels_are_known_as_such_in_a_part_of_a_part(toy, target, tmp_path):
    assert join(tmp_path / "both", toy, target) == 0
    assert join(tmp_path / "all", tmp_path / "both", toy, attribute="source=old,new") == 0
    record = json.loads((tmp_path / "all" / "prepare.json").read_text())
    assert ["pseudo_labels" in part for part in record["joined"]] == [True, False]


def test_the_record_names_each_part_its_labels_and_the_stricter_licence(toy, target, tmp_path):
    assert join(tmp_path / "both", toy, target) == 0
    record = json.loads((tmp_path / "both" / "prepare.json").read_text())
    assert record["format"] == "toy+kitti"
    assert [(part["value"], part["pairs"], "pseudo_labels" in part) for part in record["joined"]] == [
        ("camvid", 6, False),
        ("kitti", 4, True),
    ]
    text = dataset_content(LabelSet.from_json(toy / "labels.json"), record, record["splits"])
    assert "(`dataset`: kitti, whose masks are predictions of `runs/s`)" in text


def test_what_cannot_be_joined_is_refused_in_a_line(toy, target, tmp_path, capsys):
    def refused(*datasets, **changes) -> str:
        assert join(tmp_path / "out", *datasets, **changes) == 2
        assert not (tmp_path / "out").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--datasets: expected two or more" in refused(toy, attribute="dataset=a")
    for attribute in ("dataset", "dataset=a", "dataset=a,a", "dataset=a,", "=a,b"):
        assert "expected a name and 2 different values" in refused(toy, target, attribute=attribute)
    assert "has such a column already" in refused(target, toy, attribute="weather=a,b")
    wide = tmp_path / "wide"
    write_toy_dataset(wide, num_train=1, num_val=1, size=(16, 16), seed=0)
    assert "expected images of one size" in refused(toy, wide)
    other = shutil.copytree(target, tmp_path / "other")
    LABELS.save_json(other / "labels.json")
    assert "has other classes than" in (line := refused(toy, other))
    assert "prepare --map_to" in line
    again = shutil.copytree(toy, tmp_path / "again")
    record = json.loads((again / "prepare.json").read_text())
    (again / "prepare.json").write_text(json.dumps({**record, "synthetic": {"count": 3}}))
    assert "holds 3 synthetic pairs already" in refused(toy, again)


def test_names_that_are_taken_even_with_the_value_in_front_are_refused(toy, target, tmp_path, capsys):
    metadata = tmp_path / "toy" / "train" / "metadata.jsonl"
    shutil.copytree(toy, tmp_path / "toy")
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[-1]["stem"] = f"kitti_{rows[0]['stem']}"
    metadata.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert join(tmp_path / "out", tmp_path / "toy", target) == 2
    assert "taken even with 'kitti_' in front" in capsys.readouterr().err
