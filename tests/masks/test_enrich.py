"""`semseg-diffusers enrich`: target shares are reached by added objects, from a seed, complete or not at all."""

import json

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.dataset_format import find_masks
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.masks.editing.scene_prior import fit_scene_prior
from semseg_diffusers.masks.enrich import ENOUGH_ADDED, enrich_masks, parse_targets
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset


LABELS = LabelSet.from_preset("bdd100k")
ID = LABELS.label2id
STREET = Street.of(LABELS)


@pytest.fixture(scope="module")
def masks():
    return [draw_scene(seed, (96, 128))[1] for seed in range(40)]


@pytest.fixture(scope="module")
def prior(masks):
    return fit_scene_prior([(f"scene{i}", ids) for i, ids in enumerate(masks)], STREET)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enrich") / "toy"
    write_toy_dataset(folder, num_train=40, num_val=1, size=(96, 128), seed=0)
    return folder


def share(masks, name) -> float:
    """Share of the labelled pixels, counted here by hand."""
    return sum(int((ids == ID[name]).sum()) for ids in masks) / sum(int((ids != 255).sum()) for ids in masks)


def make(masks, prior, factors, num_masks=30, **more):
    targets = {ID[name]: times * share(masks, name) for name, times in factors.items()}
    return list(enrich_masks(lambda i: masks[i], len(masks), prior, targets, num_masks, **more))


def test_shares_approach_the_targets(masks, prior):
    new = make(masks, prior, {"person": 3, "rider": 3}, num_masks=40)
    assert share([mask.ids for mask in new], "person") / share(masks, "person") == pytest.approx(3, rel=0.1)
    assert share([mask.ids for mask in new], "rider") / share(masks, "rider") == pytest.approx(3, rel=0.15)


def test_each_mask_is_a_dataset_mask_with_the_recorded_objects(masks, prior):
    new = make(masks, prior, {"person": 3}, num_masks=50)
    assert sorted(mask.base for mask in new[:40]) == list(range(40))  # each once before one comes again
    for mask in new:
        changed = mask.ids != masks[mask.base]
        inside = np.zeros_like(changed)
        for entry in mask.added:
            left, top, right, bottom = entry["box"]
            inside[max(0, top) : bottom + 1, max(0, left) : right + 1] = True
            assert entry["class"] == "person"
            assert 0 <= int(entry["from"].removeprefix("scene")) < 40
            x0, y0, x1, y1 = entry["from_box"]
            assert (masks[int(entry["from"].removeprefix("scene"))][y0 : y1 + 1, x0 : x1 + 1] == ID["person"]).any()
        assert not changed[~inside].any()
        assert set(np.unique(mask.ids[changed])) <= {ID["person"]}


def test_the_seed_determines_the_masks(masks, prior):
    def run(seed):
        return np.stack([mask.ids for mask in make(masks, prior, {"person": 3}, num_masks=8, seed=seed)])

    assert (run(1) == run(1)).all()
    assert (run(1) != run(2)).any()


def test_max_added_holds_and_the_reason_is_recorded(masks, prior):
    new = make(masks, prior, {"person": 30}, num_masks=6, max_added=2)
    assert {len(mask.added) for mask in new} == {2}
    assert all(mask.refused["person"] == {ENOUGH_ADDED: 1} for mask in new)


def test_targets_that_are_met_already_change_nothing(masks, prior):
    new = list(enrich_masks(lambda i: masks[i], len(masks), prior, {ID["car"]: 1e-6}, 5))
    assert all(
        (mask.ids == masks[mask.base]).all() and not mask.added for mask in new if (mask.ids == ID["car"]).any()
    )


# The command -------------------------------------------------------------------------------------------------------


def enrich(dataset, output, *targets, more=(), option="--target"):
    words = ("--dataset", str(dataset), "--output", str(output), "--num_masks", "20", *more, option, *targets)
    return cli.main(["enrich", *words])


def test_command_writes_masks_manifest_and_pages(dataset, tmp_path, capsys):
    assert enrich(dataset, tmp_path / "new", "person=2", "truck=1.5") == 0
    line = capsys.readouterr().out
    assert "person target 2x, reached" in line
    folder = tmp_path / "new"
    paths = find_masks(folder / "masks")  # what `generate --masks` reads
    assert len(paths) == 20
    labels = LabelSet.from_json(folder / "labels.json")
    ids = [labels.encode(path) for path in paths]
    assert all(mask.shape == (96, 128) for mask in ids)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["mask_file_name"] for row in rows] == [f"masks/{path.name}" for path in paths]
    record = json.loads((folder / "enrich.json").read_text())
    person, truck = record["wishes"]  # codespell:ignore wishes
    assert person["reached"] == pytest.approx(2, rel=0.2)
    assert person["share_after"] == pytest.approx(share(ids, "person"))
    assert person["added"] == sum(entry["class"] == "person" for row in rows for entry in row["added"])
    assert truck["name"] == "truck"
    html = (folder / "statistics.html").read_text()
    assert "Enriched masks" in html
    assert f"{person['added']}" in html
    for name in ("statistics.png", "contact_sheet.png"):
        Image.open(folder / name).verify()


def test_command_is_deterministic_and_accepts_the_old_option_name(dataset, tmp_path):
    for name, option in (("a", "--target"), ("b", "--wish")):
        assert enrich(dataset, tmp_path / name, "person=2", more=["--seed", "3"], option=option) == 0
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


@pytest.mark.parametrize(
    ("targets", "more", "message"),
    [
        (["person"], [], "expected --target CLASS=FACTOR with a factor above 1, such as person=4; got 'person'"),
        (["person=0.5"], [], "with a factor above 1"),
        (["cow=3"], [], "there is no class 'cow'"),
        (["person=2", "person=3"], [], "--target names 'person' twice"),
        (["sky=2"], [], "'sky' cannot be placed: only objects that stand on the ground"),
        (["train=2"], [], "'train' cannot be placed"),
        (["car=90"], [], "--target asks for"),
        (["person=2"], ["--num_masks", "0"], "--num_masks must be 1 or more; got 0"),
        (["person=2"], ["--split", "test"], "has no split 'test'"),
    ],
)
def test_impossible_targets_are_refused_and_leave_nothing(dataset, tmp_path, capsys, targets, more, message):
    assert enrich(dataset, tmp_path / "new", *targets, more=more) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_is_never_seen_is_refused(masks):
    labels = LabelSet.from_colormap({**dict(zip(LABELS.names, LABELS.colors, strict=True)), "van": (9, 9, 9)})
    targets = parse_targets(["van=2"], labels)
    assert targets == {19: 2.0}
    prior = fit_scene_prior([(str(i), ids) for i, ids in enumerate(masks)], Street.of(labels))
    with pytest.raises(ValueError, match="'van' never occurs in the masks"):
        next(enrich_masks(lambda i: masks[i], len(masks), prior, {19: 0.1}, 2))


def test_a_folder_that_is_not_empty_is_refused(dataset, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    assert enrich(dataset, tmp_path / "new", "person=2") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "new" / "mine.txt").read_text() == "mine"
