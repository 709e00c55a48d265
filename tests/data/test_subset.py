"""`semseg-diffusers subset`: a share of the training pairs, nested, in a dataset that is like the whole one."""

import filecmp
import json

import pytest

from semseg_diffusers.cli import main
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.subset import subset_indices


NAMES = [f"scene{index}" for index in range(40)]


def subset(toy, share, output, *words) -> int:
    return main(["subset", "--dataset", str(toy), "--share", str(share), "--output", str(output), *words])


def test_a_larger_share_contains_a_smaller_one_and_seeds_choose_others():
    shares = [subset_indices(NAMES, share, seed=3) for share in (0.125, 0.25, 0.5, 1)]
    assert [len(share) for share in shares] == [5, 10, 20, 40]
    assert all({*small} < {*large} for small, large in zip(shares, shares[1:], strict=False))
    assert all(share == sorted(share) for share in shares)
    assert subset_indices(NAMES, 0.25, seed=4) != shares[1]
    assert len(subset_indices(NAMES, 1e-9, seed=0)) == 1


def test_the_copy_has_the_chosen_pairs_and_all_others_and_loads_as_any_dataset(toy, tmp_path, capsys):
    assert subset(toy, 0.5, tmp_path / "half") == 0
    assert "3 of 6 training pairs" in capsys.readouterr().out
    whole, half = load_pairs(toy, "train"), load_pairs(tmp_path / "half", "train")
    assert half.stems == [whole.stems[index] for index in subset_indices(whole.stems, 0.5, seed=0)]
    for name in ("images", "masks"):
        assert len(list((tmp_path / "half" / "train" / name).iterdir())) == 3
        for path in (tmp_path / "half" / "train" / name).iterdir():
            assert filecmp.cmp(path, toy / "train" / name / path.name, shallow=False)
    assert load_pairs(tmp_path / "half", "val").stems == load_pairs(toy, "val").stems
    record = json.loads((tmp_path / "half" / "prepare.json").read_text())
    assert record["splits"] == {"train": 3, "val": 2}
    assert record["subset"] == {"share": 0.5, "seed": 0, "num_pairs": 6}


@pytest.mark.parametrize(
    ("share", "words", "message"),
    [
        (0, (), "--share must be more than 0"),
        (1.5, (), "--share must be more than 0 and at most 1; got 1.5"),
        (0.5, ("--dataset", "nowhere"), "'nowhere' is no prepared dataset"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left_behind(toy, tmp_path, capsys, share, words, message):
    assert subset(toy, share, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(toy, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert subset(toy, 0.5, tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
