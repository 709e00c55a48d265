"""How trainings use synthetic pairs: share of batches, phases, hard masks, labels that are read again."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.study_place import study, write_scenes_as_generated

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, compute_logits, new_network
from semseg_diffusers.evaluation.segmentation.synthetic import (
    SyntheticPairs,
    Teacher,
    mixed_batches,
    shuffled_batches,
)
from semseg_diffusers.evaluation.segmentation.training import LabelledImages, train_segmenter
from semseg_diffusers.evaluation.settings import ARCHITECTURES, StudySettings, Training
from semseg_diffusers.evaluation.study.leaks import find_leaks
from semseg_diffusers.evaluation.study.phases import hardness_weights, training_phases
from semseg_diffusers.evaluation.study.pools import image_digests, load_data
from semseg_diffusers.toy.scenes import write_toy_dataset


SIZE = 32
LABELS = LabelSet(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
PROCESSOR = ARCHITECTURES["segformer-mini"].processor
MINI = Preprocessing.from_processor({**PROCESSOR, "size": {"height": 16, "width": 16}})
BIG = Preprocessing.from_processor({**PROCESSOR, "size": {"height": 32, "width": 32}})
FLAGS = torch.tensor([False] * 6 + [True] * 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `toy` (4 training and 3 validation images), `generated` and `filtered` (8), and a study."""
    folder = tmp_path_factory.mktemp("use")
    write_toy_dataset(folder / "toy", num_train=4, num_val=3, size=(SIZE, SIZE), seed=0)
    write_scenes_as_generated(folder / "generated", 8, SIZE)
    shutil.copytree(folder / "generated", folder / "filtered")
    names = LabelSet.from_json(folder / "toy" / "labels.json").names
    losses = {"key": "sha256:1", "names": names, "mean": [0.1 * n for n in range(len(names))]}
    losses |= {"pixels": [1] * len(names), "num_photos": 4}
    record = {"segmenter_sha256": "sha256:0", "real": f"{folder / 'toy'} (train)", "class_losses": losses}
    (folder / "filtered" / "filter.json").write_text(json.dumps(record))
    study(*words(folder, folder / "out"))
    return folder


def words(place, output, *more) -> tuple:
    data = ("--dataset", place / "toy", "--generated", place / "generated", "--filtered", place / "filtered")
    return (*data, "--output", output, "--architecture", "segformer-mini", "--max_train_steps", 4,
            "--train_batch_size", 2, "--device", "cpu", "--seeds", 0, "--jobs", 1, *more)  # fmt: skip


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


# Hard masks -----------------------------------------------------------------------------------------------


def test_the_hardest_mask_weighs_that_many_times_more_than_the_easiest_and_real_pairs_once():
    counts = torch.tensor([[9, 0, 0], [0, 0, 9], [9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 9], [0, 0, 0]])
    flags = torch.tensor([False, False, True, True, True, True, True])
    weights = hardness_weights(counts, flags, np.array([0.1, 0.2, 0.9]), 3.0)
    assert weights[:2].tolist() == [1, 1]
    assert weights[2:].mean() == pytest.approx(1)
    unlabelled, *others = (weights[index] for index in (6, 2, 3, 4, 5))
    assert [float(value / unlabelled) for value in others] == pytest.approx([2, 3, 4, 4])


@pytest.mark.parametrize("share", [None, 0.5])
def test_hard_masks_are_seen_more_often_in_proportion_to_their_weights(share):
    weights = torch.tensor([1.0] * 6 + [0.4, 0.8, 1.2, 1.6], dtype=torch.float64)
    order = mixed_batches(SyntheticPairs(FLAGS, share, weights), 10, torch.Generator().manual_seed(0))
    batches = torch.tensor(list(islice(order, 240)))
    seen = torch.bincount(batches.flatten(), minlength=10).double()
    assert (seen[6:] / seen[6:].mean()).tolist() == pytest.approx(weights[6:].tolist(), abs=0.1)
    if share is None:  # a batch is an epoch
        assert all((batch.sort().values[:6] == torch.arange(6)).all() for batch in batches)
        assert all((batches == index).sum(1).max() <= weights[index].ceil() for index in range(10))


def test_masks_are_as_hard_as_their_classes_in_the_record_of_the_filter(place):
    settings = settings_of(place, filtered=str(place / "filtered"), hard_masks=4.0, arms=("real", "real_synthetic"))
    data = load_data(settings)
    (phase,) = training_phases(Training("real_synthetic", 2.0, 0), settings, data)
    weights, counts = phase.synthetic.weights[4:], phase.pairs.counts[4:].double()
    hardness = counts @ (0.1 * torch.arange(counts.shape[1]).double()) / counts.sum(1)
    assert weights.argsort().tolist() == hardness.argsort().tolist()
    assert weights.max() / weights.min() == pytest.approx(5)


def test_a_filter_that_knows_the_validation_photos_is_found(place, tmp_path):
    filtered = shutil.copytree(place / "filtered", tmp_path / "filtered")
    settings = settings_of(place, filtered=str(filtered))
    data = load_data(settings)
    digests = {name: image_digests(pairs) for name, pairs in data.items()}
    assert find_leaks(settings, data, digests) == []
    record = json.loads((filtered / "filter.json").read_text())
    record["segmenter"] = {"name": "net", "trained_on": {"dataset": str(place / "toy"), "split": "val"}}
    record["real"] = f"{place / 'toy'} (validation)"
    (filtered / "filter.json").write_text(json.dumps(record))
    by_network, by_losses = find_leaks(settings, data, digests)
    assert "was filtered by 'net', which was trained on the validation split. Use the training split." in by_network
    assert "was filtered by class losses on the validation split" in by_losses


def test_hard_masks_need_class_losses_of_the_same_classes(place, tmp_path):
    with pytest.raises(ValueError, match="--hard_masks 2 needs --filtered, whose filter.json"):
        settings_of(place, hard_masks=2.0)
    more = ("--hard_masks", 2, "--filtered", place / "generated")
    said = study(*words(place, tmp_path / "out", *more), expect=2)
    assert f"--filtered '{place / 'generated'}' has none for the classes of the dataset. Filter the images" in said


# Labels that are read again --------------------------------------------------------------------------------


def pairs_of_colors(count: int = 8) -> LabelledImages:
    """Return pairs of which the first half is red road, the second blue sky, all of them labelled as cars."""
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    images[: count // 2, 0], images[count // 2 :, 2] = 255, 255
    masks = torch.full((count, 16, 16), 2, dtype=torch.uint8)

    class Pairs:
        labels, resolution = LABELS, (16, 16)

        def __len__(self):
            return count

        def __getitem__(self, index):
            return {"image": images[index], "mask": masks[index]}

    return LabelledImages(Pairs())


def test_labels_change_only_at_synthetic_pixels_of_which_the_teacher_is_confident():
    pairs, flags = pairs_of_colors(), torch.tensor([True, False] * 4)
    images, masks = pairs.batch(range(8))
    masks[:, :4] = 255
    network = new_network("segformer-mini", LABELS).eval()
    with torch.no_grad():
        network.decode_head.classifier.weight *= 20  # more confident at some pixels than at others
        logits = compute_logits(network, MINI(images), (16, 16))
    confidence, classes = logits.softmax(1).max(1)
    threshold = confidence[flags].median().item()
    teacher = Teacher(network, MINI, SyntheticPairs(flags, relabel=threshold), 8)
    found = teacher.relabel(range(8), images, masks)
    changes = flags[:, None, None] & (confidence >= threshold)
    assert torch.equal(found, torch.where(changes, classes, masks))
    assert 0.3 < changes[flags].float().mean() < 0.7
    assert (teacher.num_read, teacher.num_changed) == (4 * 256, int((found != masks).sum()))
    assert torch.equal(teacher.relabel([1, 3], images[[1, 3]], masks[[1, 3]]), masks[[1, 3]])


def test_a_teacher_is_the_mean_of_its_network_then_follows_its_last_steps():
    network = new_network("mobilevit-deeplabv3-xxs", LABELS)  # with batch norms
    teacher = Teacher(network, MINI, SyntheticPairs(FLAGS, relabel=0.9), 40)  # averages over two steps
    values = iter([2.0, 4.0, 8.0])
    for expected in (2.0, 3.0, 5.5):
        value = next(values)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.fill_(value)
        teacher.update(network)
        means = {round(float(tensor.float().mean()), 4) for tensor in teacher.network.state_dict().values()}
        assert means <= {expected, float(int(expected))}  # whole numbers, of counted batches, are cut
    assert not teacher.network.training


def test_a_network_whose_labels_are_read_again_learns_less_of_wrong_ones():
    flags = torch.tensor([False, True] * 16)
    images, masks = torch.zeros(32, 3, 16, 16, dtype=torch.uint8), torch.zeros(32, 16, 16, dtype=torch.uint8)
    masks[:, :, 8:] = 1
    images[:, 0], images[:, 2, :, 8:] = 200, 250
    shown = masks.clone()
    shown[flags] = torch.where(
        torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.3, 2, masks[flags]
    )

    class Pairs:
        labels, resolution = LABELS, (16, 16)

        def __len__(self):
            return 32

        def __getitem__(self, index):
            return {"image": images[index], "mask": shown[index]}

    pairs = LabelledImages(Pairs())

    def train(relabel) -> tuple[float, float | None]:
        network, synthetic = new_network("segformer-mini", LABELS), SyntheticPairs(flags, relabel=relabel)
        history = train_segmenter(network, MINI, pairs, max_train_steps=80, learning_rate=3e-3, synthetic=synthetic)
        with torch.no_grad():
            found = compute_logits(network, MINI(images), (16, 16)).softmax(1)
        return found.gather(1, masks[:, None].long()).mean().item(), history.relabelled

    (plain, none), (corrected, relabelled) = train(None), train(0.6)
    assert none is None
    assert 0.05 < relabelled < 0.4  # 30 % of the labels are wrong
    assert corrected > plain + 0.03  # probability of the true class


def test_the_use_of_synthetic_pairs_leaves_a_training_without_options_as_it_was():
    pairs = pairs_of_colors()

    def train(synthetic):
        network = new_network("segformer-b0", LABELS)  # with dropout
        train_segmenter(network, BIG, pairs, max_train_steps=3, train_batch_size=2, synthetic=synthetic)
        return network.state_dict()

    flags = torch.tensor([False] * 4 + [True] * 4)
    plain, same = train(None), train(SyntheticPairs(flags))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    first, second = (train(SyntheticPairs(flags, 0.5, torch.ones(8).double(), 0.4)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], plain[name]) for name in plain)


# The command -----------------------------------------------------------------------------------------------


BOTH = {"real_synthetic-x1-seed0", "real_filtered-x1-seed0"}
ALL = BOTH | {"synthetic-x1-seed0", "filtered-x1-seed0"}


@pytest.mark.parametrize(
    ("options", "says", "changed"),
    [
        ({"synthetic_share": 0.5}, "50 % of each batch are synthetic", BOTH),
        ({"synthetic_first": 0.5}, "2 steps on the synthetic pairs, then 2 on the real ones", BOTH),
        ({"relabel": 0.2, "hard_masks": 4.0}, "the hardest mask was seen 5 times as often", ALL),
    ],
    ids=["share", "first", "relabel and hard masks"],
)
def test_a_use_changes_its_arms_only_and_is_on_the_page(place, tmp_path, options, says, changed):
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    out = tmp_path / "out"
    study(*words(place, out, *given))
    before, after = trained(place / "out"), trained(out)
    assert {name for name, result in after.items() if before[name] != result} == changed
    assert says in (out / "report.html").read_text()
    results = json.loads((out / "results.json").read_text())
    assert {name: results["settings"][name] for name in options} == options
    if "relabel" in options:
        assert {name for name, result in after.items() if "relabelled" in result} == changed
        assert "confidence was 0.2 or more: " in " ".join(results["notes"])


@pytest.mark.slow
def test_a_use_gives_the_same_networks_in_several_processes(place, tmp_path):
    given = ("--synthetic_share", 0.5, "--relabel", 0.2, "--hard_masks", 4)
    for jobs in (1, 2):
        study(*words(place, tmp_path / f"{jobs}", *given), "--jobs", jobs)
    assert trained(tmp_path / "1") == trained(tmp_path / "2")


def test_a_folder_of_another_use_is_refused_and_one_from_before_the_options_resumes(place, tmp_path):
    out = shutil.copytree(place / "out", tmp_path / "out")
    for option in (("--synthetic_share", 0.5), ("--synthetic_first", 0.5), ("--relabel", 0.5), ("--hard_masks", 2.0)):
        said = study(*words(place, out, *option), expect=2)
        assert "holds trainings with other settings (" in said
        assert f"{option[0][2:]}: None there, {option[1]} now" in said
    record = json.loads((out / "study.json").read_text())
    assert set(record["settings"]) == {"max_train_steps", "train_batch_size", "mixed_precision"}
    (out / "study.json").write_text(json.dumps({**record, "settings": {**record["settings"], "relabel": 0.5}}))
    assert "(relabel: 0.5 there, None now)" in study(*words(place, out), expect=2)


def test_passes_are_those_of_the_kind_that_is_seen_less(place, tmp_path):
    more = ("--synthetic_share", 0.5, "--amounts", 2, "--arms", "real", "real_synthetic", "filtered")
    study(*words(place, tmp_path / "out", *more))
    real, mixed, alone = (arm["passes"] for arm in json.loads((tmp_path / "out" / "results.json").read_text())["arms"])
    assert (real, mixed, alone) == (8 / 4, 4 / 8, 8 / 8)
