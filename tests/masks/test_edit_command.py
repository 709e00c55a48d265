"""`semseg-diffusers edit`: operations from the command line and from files, their effects, refusals."""

import inspect
import json
import re

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.edit import OPERATION_TYPES, parse_operation, read_operations
from semseg_diffusers.masks.settings import EditSettings
from semseg_diffusers.toy.scenes import write_toy_dataset


LABELS = LabelSet.from_preset("bdd100k")
ID = LABELS.label2id


def scene() -> np.ndarray:
    ids = np.full((40, 60), ID["sky"], dtype=np.uint8)
    ids[20:] = ID["road"]
    ids[18:26, 10:22] = ID["car"]
    ids[14:24, 40:44] = ID["person"]
    return ids


@pytest.fixture
def masks(tmp_path):
    """A folder of two masks with their label set: one of `scene`, one empty street."""
    folder = tmp_path / "masks"
    folder.mkdir()
    LABELS.decode(scene()).save(folder / "a.png")
    street = scene()
    street[:20], street[20:] = ID["sky"], ID["road"]
    LABELS.decode(street).save(folder / "b.png")
    LABELS.save_json(folder / "labels.json")
    return folder


def edit(masks, output, *operations, more=()):
    options = [word for text in operations for word in ("--operation", text)]
    return cli.main(["edit", "--masks", str(masks), "--output", str(output), *options, *more])


def edited(output, name="a"):
    picture = Image.open(output / "masks" / f"{name}.png")
    assert picture.mode == "P"
    return LABELS.encode(picture)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("remove class=car", lambda ids: (ids != ID["car"]).all() and (ids[20:26, 10:22] == ID["road"]).all()),
        ("remove at=42,20", lambda ids: (ids != ID["person"]).all()),
        ("move class=car by=3,4", lambda ids: (ids[22:30, 13:25] == ID["car"]).all() and ids[18, 10] == ID["sky"]),
        ("move class=car to=30.5,35", lambda ids: (ids[28:36, 25:37] == ID["car"]).all()),
        ("scale at=11,19 factor=0.5", lambda ids: (ids == ID["car"]).sum() == 24),
        ("flip class=car", lambda ids: (ids == scene()).all()),
        ("relabel class=car to=truck", lambda ids: (ids == ID["truck"]).sum() == 96),
        ("relabel at=0,39 to=terrain", lambda ids: ids[39, 59] == ID["terrain"] and ids[0, 0] == ID["sky"]),
        ("relabel class=person to=unknown", lambda ids: (ids == 255).sum() == 40),
        ("polygon class=sidewalk points=0,30;9,30;9,39;0,39", lambda ids: (ids[30:, :10] == ID["sidewalk"]).all()),
        ("stroke class=pole points=50,5;50,30 radius=0.5", lambda ids: (ids == ID["pole"]).sum() == 26),
        ("stroke class=pole points=50,5 radius=1", lambda ids: (ids == ID["pole"]).sum() == 5),
        ("rectangle class=bus first=30,22 last=39,29", lambda ids: (ids == ID["bus"]).sum() == 80),
        ("ellipse class=vegetation center=30,5 radii=4,2", lambda ids: ids[5, 34] == ID["vegetation"]),
        ("paste from={mask} class=person to=30,35 flip", lambda ids: (ids == ID["person"]).sum() == 80),
        ("paste from={mask} at=15,20 scale=2 to=30,39", lambda ids: (ids[24:, 18:42] == ID["car"]).all()),
    ],
)
def test_each_operation_changes_the_mask_as_described(masks, tmp_path, text, holds):
    output = tmp_path / "out"
    assert edit(masks / "a.png", output, text.format(mask=masks / "a.png")) == 0
    assert holds(edited(output))
    record = json.loads((output / "edits.json").read_text())
    (note,) = record["masks"][0]["operations"]
    assert note["operation"] == text.split()[0]
    assert note["changed_pixels"] == (edited(output) != scene()).sum()
    Image.open(output / "before_after.png").verify()
    assert LabelSet.from_json(output / "labels.json") == LABELS


def test_help_lists_all_operations_with_their_parameters():
    lines = {line.split()[0]: line for line in inspect.getdoc(EditSettings).splitlines() if line.startswith("  ")}
    for name, kind in OPERATION_TYPES.items():
        assert {*kind.needs, *kind.may} <= set(re.findall(r"\w+", lines[name])), name


def test_all_masks_of_a_folder_are_edited_and_files_precede_options(masks, tmp_path):
    (tmp_path / "ops").mkdir()
    LABELS.decode(scene()).save(tmp_path / "ops" / "other.png")
    (tmp_path / "ops" / "ops.yaml").write_text(
        "- remove: {class: car, number: all}\n"
        "- paste: {from: other.png, class: car, to: [30.5, 35]}\n"
        "- rectangle: {class: wall, first: [0, 0], last: [3, 3]}\n"
    )
    more = ["--operations", str(tmp_path / "ops" / "ops.yaml")]
    assert edit(masks, tmp_path / "out", "relabel class=wall to=fence", more=more) == 0
    for name in ("a", "b"):
        ids = edited(tmp_path / "out", name)
        assert (ids == ID["car"]).sum() == 96
        assert (ids[28:36, 25:37] == ID["car"]).all()
        assert (ids == ID["fence"]).sum() == 16
    notes = json.loads((tmp_path / "out" / "edits.json").read_text())["masks"]
    assert [note["output"] for note in notes] == ["masks/a.png", "masks/b.png"]
    assert notes[0]["operations"][1]["put"] == {"class": "car", "box": [25, 28, 36, 35]}


def test_json_files_are_read_like_yaml(tmp_path):
    (tmp_path / "ops.json").write_text('[{"paste": {"from": "x.png", "at": [1, 2], "flip": true}}]')
    (operation,) = read_operations(tmp_path / "ops.json")
    assert operation.values == {"from": str(tmp_path / "x.png"), "at": (1, 2), "flip": True}
    assert parse_operation("paste from=x.png at=1,2 flip").values == {"from": "x.png", "at": (1, 2), "flip": True}


def test_place_copies_objects_and_sizes_from_a_dataset(masks, tmp_path, capsys):
    write_toy_dataset(tmp_path / "toy", num_train=30, num_val=1, size=(96, 144), seed=3)
    street = np.full((96, 144), ID["sky"], dtype=np.uint8)
    street[45:] = ID["road"]
    LABELS.decode(street).save(tmp_path / "street.png")
    more = ["--dataset", str(tmp_path / "toy"), "--labels", "bdd100k"]
    for name in ("one", "two"):
        assert edit(tmp_path / "street.png", tmp_path / name, "place class=person count=2", more=more) == 0
    ids = edited(tmp_path / "one", "street")
    assert 10 < (ids == ID["person"]).sum() < 1000
    assert (ids == edited(tmp_path / "two", "street")).all()
    note = json.loads((tmp_path / "one" / "edits.json").read_text())["masks"][0]["operations"][0]
    assert len(note["put"]) == 2
    assert note["put"][0]["ground"] == "road"
    # where there is no ground there is no place, and where there is no dataset nothing to take
    LABELS.decode(np.full((96, 144), ID["sky"], dtype=np.uint8)).save(tmp_path / "sky.png")
    assert edit(tmp_path / "sky.png", tmp_path / "none", "place class=person", more=more) == 2
    assert "no place for number 1 of 'person': no " in capsys.readouterr().err
    assert edit(masks, tmp_path / "none", "place class=person") == 2
    assert "objects and their sizes come from a dataset: give --dataset" in capsys.readouterr().err
    LABELS.decode(street).save(tmp_path / "camvid.png")
    more = ["--dataset", str(tmp_path / "toy"), "--labels", "camvid"]
    assert edit(tmp_path / "camvid.png", tmp_path / "none", "place class=person", more=more) == 2
    assert "different classes" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("erase class=car", "there is no 'erase'; there are paste, place, move"),
        ("remove class=car colour=red", "remove knows no 'colour'; remove takes at, class, number"),
        ("remove", "remove needs exactly one of at and class"),
        ("remove class=car at=1,2", "remove needs exactly one of at and class"),
        ("move class=car", "move needs exactly one of to and by"),
        ("move class=car to=4", "to is 4; expected two numbers, x and y"),
        ("scale class=car", "scale lacks 'factor'; scale takes factor, at, class, number"),
        ("scale class=car factor=0", "factor is 0; expected a number above 0"),
        ("flip at=1,2 number=2", "number counts the objects of a class, and at names one"),
        ("remove class=car number=0", "number is 0; expected a whole number from 1"),
        ("paste from=x.png class=car flip=3", "flip is 3; expected true or false"),
        ("polygon class=car points=here", "points is 'here'; expected points x,y"),
        ("relabel at=1,1 to=5", "to is 5; expected text"),
        ("remove class=car class=bus", "gives class twice"),
        ("", "an operation is empty; expected one of paste"),
    ],
)
def test_a_wrong_operation_is_named_before_any_work(text, message):
    with pytest.raises(ValueError, match=message):
        parse_operation(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("remove: {class: car}", "contains no list"),
        ("- remove: {class: car}\n- [1]", r"operation 2 of '.*' is \[1\]; expected `name:"),
        ("- remove: car", "operation 1 of '.*': remove has 'car'; expected values by name"),
        ("- {remove: {class: [", "is not valid YAML or JSON"),
        ("- stroke: {class: car, points: [[1]], radius: 1}", "points is .*; expected points x,y"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    (tmp_path / "ops.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_operations(tmp_path / "ops.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remove class=cow", r"operation 1 \(remove class=cow\) on '.*a.png': there is no class 'cow'"),
        ("remove class=car number=2", "holds 1 object.s. of 'car'; number 2 by size does not exist"),
        ("paste from=missing.png class=car", "No such file or directory: 'missing.png'"),
        ("move class=car to=300,300", "no pixel of the object would be visible"),
        ("rectangle class=car first=100,0 last=120,3", "the shape has no pixel inside the mask"),
    ],
)
def test_an_impossible_operation_leaves_no_output(masks, tmp_path, capsys, text, message):
    assert edit(masks / "a.png", tmp_path / "out", text) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"masks"}


def test_command_refuses_wrong_inputs(masks, tmp_path, capsys):
    assert edit(masks, tmp_path / "out") == 2
    assert "expected --operation or --operations" in capsys.readouterr().err
    assert edit(masks, tmp_path / "out", "remove class=car", more=["--seed", "-1"]) == 2
    assert "--seed must be 0 or more; got -1" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert edit(masks, tmp_path / "full", "remove class=car number=all") == 2
    assert "is not empty" in capsys.readouterr().err
    (masks / "labels.json").unlink()
    assert edit(masks, tmp_path / "out", "remove class=car number=all") == 2
    assert "there is no labels.json, colormap.json, id2label.json or classes.txt in it" in capsys.readouterr().err
    assert edit(masks, tmp_path / "out", "remove class=car", more=["--labels", "mine"]) == 2
    assert "is no file and none of the presets" in capsys.readouterr().err
