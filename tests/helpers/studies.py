"""The scripts in benchmarks/studies as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from semseg_diffusers.cli import main as command


STUDIES = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"


def load_study(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module of a study, which imports others from beside it, for the time of a test."""
    monkeypatch.syspath_prepend(STUDIES)
    spec = importlib.util.spec_from_file_location(f"{name}_study", STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def train_judge(data: Path, output: Path) -> Path:
    """Train the segmentation network of a study for two steps, and return its folder."""
    words = ["segmenter", "--dataset", str(data), "--output", str(output), "--architecture", "segformer-mini"]
    assert command([*words, "--max_train_steps", "2", "--validation_steps", "2"]) == 0
    return output
