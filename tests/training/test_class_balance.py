"""Class-balanced sampling: what is drawn how often, by whom, and after a resume."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.training_runs import ROOT, finished, launch_two, losses, tiny_settings, train_here, weights
from PIL import Image

from semseg_diffusers import LabelSet
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.masks.statistics.counts import class_pixels_of_each
from semseg_diffusers.training.class_balance import ClassBalance
from semseg_diffusers.training.dataset import ResumableBatchSampler


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
# Pixels of three classes and of "unknown" in five masks: the first class is everywhere, the last in one mask.
COUNTS = np.array([[90, 10, 0, 0], [100, 0, 0, 0], [60, 20, 20, 0], [80, 0, 0, 20], [98, 2, 0, 0]])


def order(balance, **changes):
    options = {
        "num_pairs": 5,
        "batch_size": 3,
        "num_batches": 14,
        "seed": 0,
        "sample_pair": balance.sample_pair,
        **changes,
    }
    return list(ResumableBatchSampler(**options))


# What is drawn


def pair_probabilities(balance: ClassBalance) -> np.ndarray:
    """The probability of each pair at one position."""
    result = np.zeros(len(COUNTS))
    for probability, pairs in zip(balance.class_probabilities, balance.pairs_of_class, strict=True):
        result[pairs] += probability / max(len(pairs), 1)
    return result


def test_class_probabilities_are_the_published_formula():
    frequencies = COUNTS[:, :3].sum(axis=0) / COUNTS[:, :3].sum()
    for temperature in (0.05, 0.5, 3.0):
        expected = np.exp((1 - frequencies) / temperature)
        balance = ClassBalance(COUNTS, temperature)
        assert balance.class_probabilities == pytest.approx(expected / expected.sum())


@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_pairs_come_up_as_often_as_their_probabilities_say(temperature):
    balance, draws = ClassBalance(COUNTS, temperature), 20_000
    expected = np.zeros(5)
    for probability, pairs in zip(balance.class_probabilities, ([0, 1, 2, 3, 4], [0, 2, 4], [2]), strict=True):
        expected[pairs] += probability / len(pairs)
    assert pair_probabilities(balance) == pytest.approx(expected)
    seen = np.bincount([balance.sample_pair(7, position) for position in range(draws)], minlength=5) / draws
    assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / draws)  # four standard deviations


def test_rare_classes_come_up_more_the_lower_the_temperature():
    shares = [pair_probabilities(ClassBalance(COUNTS, temperature))[2] for temperature in (10.0, 1.0, 0.1, 0.001)]
    assert shares == sorted(shares)
    assert shares[0] > 1 / 5
    assert shares[-1] == pytest.approx(1)


def test_classes_that_no_mask_holds_are_never_drawn():
    counts = np.insert(COUNTS, 1, 0, axis=1)
    balance = ClassBalance(counts, 0.5)
    assert balance.class_probabilities[1] == 0
    assert balance.class_probabilities.sum() == pytest.approx(1)
    assert [balance.sample_pair(0, k) for k in range(50)] == [
        ClassBalance(COUNTS, 0.5).sample_pair(0, k) for k in range(50)
    ]


def test_a_few_pixels_of_a_class_do_not_count_where_others_have_more():
    assert [pairs.tolist() for pairs in ClassBalance(COUNTS, 0.1, min_share=0.05).pairs_of_class][1] == [0, 2]
    assert [pairs.tolist() for pairs in ClassBalance(COUNTS, 0.1, min_share=0.5).pairs_of_class][1] == [0, 2, 4]


def test_the_smallest_temperature_gives_numbers():
    balance = ClassBalance(COUNTS, 1e-12)
    assert balance.class_probabilities.tolist() == [0, 0, 1]


def test_masks_without_any_class_are_refused():
    with pytest.raises(ValueError, match="no training mask has a labelled pixel"):
        ClassBalance(np.array([[0, 0, 9]]), 0.1)


# A pure function of seed and position


def test_two_processes_share_what_one_process_sees():
    balance = ClassBalance(COUNTS, 0.5)
    one = order(balance, batch_size=6, num_batches=7)
    first, second = (order(balance, num_batches=7, num_processes=2, process_index=i) for i in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == one
    assert [position for batch in one for position, _ in batch] == list(range(42))


def test_resumed_sequence_is_the_rest_of_the_whole_one():
    balance = ClassBalance(COUNTS, 0.5)
    assert order(balance, start_batch=5) == order(balance)[5:]


def test_another_seed_draws_other_pairs():
    balance = ClassBalance(COUNTS, 0.5)
    assert order(balance, seed=1) != order(balance)


def test_without_it_every_pair_comes_in_turn():
    plain = list(ResumableBatchSampler(num_pairs=5, batch_size=5, num_batches=4, seed=0))
    assert all(sorted(index for _, index in batch) == list(range(5)) for batch in plain)


# Whole runs


def balanced(toy, run, **changes):
    changes = {"class_balanced_sampling": True, "class_balance_temperature": 0.05, "dropout": 0.0, **changes}
    return tiny_settings(toy, run, **changes)


def test_a_run_draws_what_the_masks_say_and_learns_from_it(toy, tmp_path):
    plain = train_here(balanced(toy, tmp_path / "plain", class_balanced_sampling=False, max_train_steps=2))
    run = train_here(balanced(toy, tmp_path / "balanced", max_train_steps=2))
    assert losses(run) != losses(plain)
    pairs = load_pairs(toy)
    counts = class_pixels_of_each(pairs.mask, len(pairs), 19)
    state = json.loads((run / "checkpoint-2" / "state.json").read_text())
    assert state["class_pixels"] == ClassBalance(counts, 0.05).digest
    assert state["settings"]["class_balanced_sampling"] is True


def test_resumed_run_equals_the_straight_run_bit_for_bit(toy, tmp_path):
    straight = train_here(balanced(toy, tmp_path / "straight"))
    pieces = train_here(balanced(toy, tmp_path / "pieces"))
    shutil.rmtree(pieces / "checkpoint-4")  # as after a kill between step 2 and step 4
    train_here(balanced(toy, pieces, resume_from_checkpoint="latest"))
    first, second = weights(straight), weights(pieces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(straight) == losses(pieces)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_batch(toy, tmp_path):
    one = train_here(balanced(toy, tmp_path / "one", train_batch_size=4))
    two = tmp_path / "two"
    output = finished(launch_two(ROOT / "train_accelerate.py", balanced(toy, two, train_batch_size=2)))
    assert "2 process(es) on cpu, 4 samples a step" in output
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_checkpoint_of_other_masks_is_refused(toy, tmp_path):
    run = train_here(balanced(toy, tmp_path / "run", max_train_steps=2))
    other = shutil.copytree(toy, tmp_path / "other")
    mask = next((other / "train" / "masks").iterdir())
    LabelSet.from_preset("bdd100k").decode(np.zeros((16, 32), dtype=np.uint8)).save(mask)
    with pytest.raises(ValueError, match="sampled its pairs by the classes of other masks"):
        train_here(balanced(other, run, resume_from_checkpoint="latest", max_train_steps=4))


def test_a_checkpoint_from_before_the_option_goes_on_without_it_and_not_with_it(toy, tmp_path):
    plain = {"class_balanced_sampling": False, "class_balance_temperature": 0.01}
    run = train_here(balanced(toy, tmp_path / "run", max_train_steps=2, **plain))
    state_file, hashes_file = (run / "checkpoint-2" / name for name in ("state.json", "hashes.json"))
    state = json.loads(state_file.read_text())
    state["settings"] = {k: v for k, v in state["settings"].items() if not k.startswith("class_balance")}
    del state["class_pixels"]
    state_file.write_text(json.dumps(state))
    hashes = json.loads(hashes_file.read_text())
    hashes["state.json"] = hashlib.sha256(state_file.read_bytes()).hexdigest()
    hashes_file.write_text(json.dumps(hashes))
    with pytest.raises(ValueError, match=r"--class_balanced_sampling False \(now True\)"):
        train_here(balanced(toy, run, resume_from_checkpoint="latest", max_train_steps=4))
    train_here(balanced(toy, run, resume_from_checkpoint="latest", max_train_steps=4, **plain))
    assert len(losses(run)) == 4


def test_unknown_masks_end_the_run_before_its_folder_is_made(toy, tmp_path):
    other = shutil.copytree(toy, tmp_path / "other")
    for mask in (other / "train" / "masks").iterdir():
        Image.new("L", (32, 16), 255).save(mask)
    with pytest.raises(ValueError, match="all are unknown everywhere"):
        train_here(balanced(other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_balance_temperature": 0.0}, "--class_balance_temperature must be more than 0; got 0.0"),
        ({"class_balance_min_share": 1.5}, "--class_balance_min_share must be between 0 and 1; got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        balanced("d", "o", **changes)
