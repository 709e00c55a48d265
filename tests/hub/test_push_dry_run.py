"""`push --dry_run`: what would be sent, and the card, without a connection; names of classes in cards."""

import socket

import pytest
from helpers.loading import tiny_pipeline

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.hub import cards
from semseg_diffusers.toy.scenes import write_toy_dataset


@pytest.fixture
def no_connection(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_dry_run_lists_the_files_of_a_model_and_its_card(tmp_path, capsys, no_connection):
    tiny_pipeline("unet_mask_guided").save_pretrained(tmp_path / "run")
    assert cli.main(["push", "--model", str(tmp_path / "run"), "--repo_id", "alice/streets", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("would push the model alice/streets, bytes and files:\n")
    for name in ("README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        assert f"  {name}\n" in shown
    assert 'from_pretrained("alice/streets")' in shown
    assert not (tmp_path / "run" / "README.md").exists()


def test_a_dry_run_lists_the_pairs_of_a_dataset_and_its_card(tmp_path, capsys, no_connection):
    write_toy_dataset(tmp_path / "toy", num_train=3, num_val=2, size=(16, 16))
    assert cli.main(["push", "--dataset", str(tmp_path / "toy"), "--repo_id", "alice/toy", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("would push the dataset alice/toy, bytes and files:\n")
    assert "  labels.json\n" in shown
    assert "3  pairs of train, as Parquet\n" in shown
    assert 'load_pairs("alice/toy", "train")' in shown


def test_names_of_classes_do_not_break_the_tables_of_a_card():
    labels = LabelSet(("a|b", "<i>", "lane_marking", "traffic light"), tuple((i, i, i) for i in range(1, 5)))
    table = cards.dataset_content(labels, {}, {"train": 1})
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert r"| 0 | a\|b | 1, 1, 1 |" in lines
    assert r"| 1 | \<i\> | 2, 2, 2 |" in lines
    assert r"| 2 | lane\_marking | 3, 3, 3 |" in lines
    assert "| 3 | traffic light | 4, 4, 4 |" in lines
