"""benchmarks/studies/distilling.py trains its arms at equal operations, once each."""

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers.training_runs import tiny_settings, train_here

from semseg_diffusers.utils.files import read_json


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "distilling.py"


@pytest.mark.slow
def test_a_cheaper_arm_takes_more_steps_and_a_second_run_keeps_each(toy, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("distilling_study", SCRIPT)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    teacher = train_here(tiny_settings(toy, tmp_path / "teacher", max_train_steps=1, checkpointing_steps=1))
    words = ["--model", teacher, "--dataset", toy, "--output", tmp_path / "out", "--seeds", 0, "--gflop", 6]
    words += ["--arms", "projected", "no_discriminator"]
    monkeypatch.setattr(sys, "argv", ["distilling.py", *map(str, words)])
    study.main()
    arms = {name: read_json(tmp_path / "out" / f"{name}-0" / "arm.json") for name in ("projected", "no_discriminator")}
    assert arms["no_discriminator"]["steps"] > arms["projected"]["steps"] >= 1
    for arm in arms.values():
        assert arm["steps"] * arm["gflop_per_step"] == pytest.approx(6, abs=arm["gflop_per_step"])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/unet/*.safetensors")}
    assert len(written) == 4  # averaged and raw weights of each
    study.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/unet/*.safetensors")} == written
