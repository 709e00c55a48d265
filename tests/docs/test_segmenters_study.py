"""benchmarks/studies/segmenters.py trains and scores each arm once, and resumes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.utils.files import read_json


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "segmenters.py"


@pytest.fixture
def study(monkeypatch):
    """The module of the study, of which one arm is a network for toys."""
    spec = importlib.util.spec_from_file_location("segmenters_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ARMS", {"mini, random": {"architecture": "segformer-mini"}})
    return module


def test_each_training_is_a_file_that_a_second_run_keeps(study, tmp_path, monkeypatch, capsys):
    data = write_toy_dataset(tmp_path / "toy", num_train=4, num_val=2, size=(16, 32))
    words = ["--dataset", data, "--output", tmp_path / "out", "--seeds", 0, 1, "--max_train_steps", 2]
    words += ["--cost_arms", "mini, random", "--set", 'input_size="native"']
    monkeypatch.setattr(sys, "argv", ["segmenters.py", *map(str, words)])
    study.main()
    results = read_json(tmp_path / "out.json")
    assert [(each["arm"], each["seed"]) for each in results["results"]] == [("mini, random", 0), ("mini, random", 1)]
    assert results["results"][0]["mean_iou"] != results["results"][1]["mean_iou"]
    assert results["costs"]["mini, random"]["gflop_per_image"] > 0
    assert "| mini, random | " in capsys.readouterr().out
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(written) == 3
    study.main()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == written
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--max_train_steps", "3"])
    with pytest.raises(ValueError, match="max_train_steps: 2 there, 3 now"):
        study.main()
