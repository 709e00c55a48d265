"""How trainings use synthetic pairs: share of batches, phases."""

import json
from itertools import islice

import pytest
import torch
from helpers.study_place import study, write_scenes_as_generated

from semseg_diffusers.evaluation.segmentation.synthetic import SyntheticPairs, mixed_batches, shuffled_batches
from semseg_diffusers.evaluation.settings import StudySettings, Training
from semseg_diffusers.evaluation.study.phases import training_phases
from semseg_diffusers.evaluation.study.pools import load_data
from semseg_diffusers.toy.scenes import write_toy_dataset


SIZE = 32
FLAGS = torch.tensor([False] * 6 + [True] * 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `toy` (4 training and 3 validation images) and `generated` (8), and `out`, their study."""
    folder = tmp_path_factory.mktemp("use")
    write_toy_dataset(folder / "toy", num_train=4, num_val=3, size=(SIZE, SIZE), seed=0)
    write_scenes_as_generated(folder / "generated", 8, SIZE)
    study(*words(folder, folder / "out"))
    return folder


def words(place, output, *more) -> tuple:
    data = ("--dataset", place / "toy", "--generated", place / "generated", "--output", output, "--jobs", 1)
    return (*data, "--architecture", "segformer-mini", "--max_train_steps", 4, "--train_batch_size", 2,
            "--device", "cpu", "--seeds", 0, *more)  # fmt: skip


def settings_of(place, **changes) -> StudySettings:
    values = {"max_train_steps": 8, "train_batch_size": 4, **changes}
    return StudySettings(dataset=str(place / "toy"), generated=str(place / "generated"), **values)


def trained(output) -> dict[str, dict]:
    """Return what each training of a study gave, by its name, without its time."""
    results = {path.stem: json.loads(path.read_text()) for path in (output / "trainings").iterdir()}
    return {name: {key: value for key, value in each.items() if key != "seconds"} for name, each in results.items()}


# Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_batch_has_the_share_of_synthetic_pairs_and_each_kind_its_own_epochs(share):
    batches = list(islice(mixed_batches(SyntheticPairs(FLAGS, share), 8, torch.Generator().manual_seed(0)), 6))
    assert {int(FLAGS[batch].sum()) for batch in batches} == {8 * share}
    assert all(len(batch) == 8 for batch in batches)
    flat = torch.tensor(batches).flatten()
    for flags in (FLAGS, ~FLAGS):
        indices, seen = flags.nonzero()[:, 0].tolist(), flat[flags[flat]].tolist()
        for start in range(0, len(seen) - len(indices) + 1, len(indices)):
            assert sorted(seen[start : start + len(indices)]) == indices
        assert seen[: len(indices)] != seen[len(indices) : 2 * len(indices)]


def test_without_a_share_pairs_come_as_in_the_pool():
    ours = mixed_batches(SyntheticPairs(FLAGS), 4, torch.Generator().manual_seed(1))
    theirs = shuffled_batches(len(FLAGS), 4, torch.Generator().manual_seed(1))
    assert list(islice(ours, 10)) == list(islice(theirs, 10))


# Phases -----------------------------------------------------------------------------------------------


def test_synthetic_pairs_come_first_then_real_ones_in_as_many_steps_as_all_arms_have(place):
    settings = settings_of(place, synthetic_first=0.25, amounts=(1.5,))
    data = load_data(settings)
    first, then = training_phases(Training("real_synthetic", 1.5, 0), settings, data)
    assert (first.steps, then.steps) == (2, 6)
    assert (len(first.pairs), len(then.pairs)) == (6, 4)
    known = {name: {pair["image"].numpy().tobytes() for pair in data[name]} for name in ("generated", "real")}
    for phase, name in ((first, "generated"), (then, "real")):
        images, _ = phase.pairs.batch(range(len(phase.pairs)))
        assert {image.numpy().tobytes() for image in images} <= known[name]
    assert first.synthetic.is_synthetic.all()
    assert then.synthetic is None
    assert torch.equal(first.pairs.class_weights(), then.pairs.class_weights())


def test_phases_are_only_for_arms_with_both_kinds_of_pairs(place):
    settings = settings_of(place, synthetic_first=0.5)
    data = load_data(settings)
    for arm in ("real", "real_duplicated", "synthetic"):
        (phase,) = training_phases(Training(arm, None if arm == "real" else 1.0, 0), settings, data)
        assert phase.steps == 8
        assert (phase.synthetic is None) == (arm != "synthetic")


def test_each_phase_has_at_least_one_step(place):
    for share, steps in ((0.01, 1), (0.99, 7)):
        assert settings_of(place, synthetic_first=share).synthetic_steps == steps
    assert settings_of(place).synthetic_steps == 0


# The command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "says", "changed"),
    [
        (("--synthetic_share", 0.5), "50 % of each batch are synthetic", ("real_synthetic",)),
        (("--synthetic_first", 0.5), "2 steps on the synthetic pairs, then 2 on the real ones", ("real_synthetic",)),
    ],
    ids=lambda value: str(value[0]).lstrip("-"),
)
def test_a_use_changes_its_arms_only_and_is_on_the_page(place, tmp_path, option, says, changed):
    out = tmp_path / "out"
    study(*words(place, out, *option))
    before, after = trained(place / "out"), trained(out)
    different = {name for name, result in after.items() if before[name] != result}
    assert different == {f"{arm}-x1-seed0" for arm in changed}
    assert says in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["settings"][option[0][2:]] == option[1]
    study(*words(place, tmp_path / "again", *option))
    assert trained(tmp_path / "again") == after


def test_a_folder_of_another_use_is_refused_and_one_from_before_the_options_resumes(place, tmp_path):
    said = study(*words(place, place / "out", "--synthetic_share", 0.5), expect=2)
    assert "holds trainings with other settings (synthetic_share: None there, 0.5 now)" in said
    record = json.loads((place / "out" / "study.json").read_text())
    assert set(record["settings"]) == {"max_train_steps", "train_batch_size", "mixed_precision"}
    study(*words(place, tmp_path / "out", "--synthetic_first", 0.5, "--arms", "real", "real_synthetic"))
    said = study(*words(place, tmp_path / "out"), expect=2)
    assert "(synthetic_first: 0.5 there, None now)" in said


def test_passes_are_those_of_the_kind_that_is_seen_less(place, tmp_path):
    study(
        *words(place, tmp_path / "out", "--synthetic_share", 0.5, "--amounts", 2, "--arms", "real", "real_synthetic")
    )
    (real, mixed) = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert (real["passes"], mixed["passes"]) == (8 / 4, 4 / 8)
