"""The pages on sampling: their tables are those of the results, their defaults are the code's."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from semseg_diffusers.pipelines.mask_guided_mixin import GUIDANCE_SCALE, NUM_INFERENCE_STEPS


ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how_to" / "sampling.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results" / "sampling.md").read_text(encoding="utf-8")


@pytest.fixture
def study(monkeypatch):
    """The module of the study, which imports its page from beside it."""
    folder = ROOT / "benchmarks" / "studies"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("study_of_sampling", folder / "sampling.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_page_are_those_of_the_results(study):
    record = json.loads((ROOT / "docs" / "results" / "sampling.json").read_text(encoding="utf-8"))
    measured = [line for line in study.tables(record).splitlines() if line.startswith("|")]
    shown = [
        line for line in RESULTS.splitlines() if line.startswith("|") and line.count("|") == measured[0].count("|")
    ]
    assert len(shown) > 20
    assert set(shown) <= set(measured)


def test_defaults_of_the_page_are_those_of_the_code():
    said = re.search(r"\*\*(\d+) steps of SDE-DPM-Solver\+\+ at guidance scale ([\d.]+)\*\*", GUIDE)
    assert (int(said[1]), float(said[2])) == (NUM_INFERENCE_STEPS, GUIDANCE_SCALE)
