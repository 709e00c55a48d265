"""docs/results/conditioning.md: its tables are those of the results; the benchmark behind them runs."""

import importlib.util
import json
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results" / "conditioning.md").read_text(encoding="utf-8")


@pytest.fixture
def benchmark(monkeypatch):
    """The module of the benchmark, which imports the studies' own from beside it."""
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("conditioning", folder / "conditioning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_page_are_those_of_the_results(benchmark):
    record = json.loads((ROOT / "docs" / "results" / "conditioning.json").read_text(encoding="utf-8"))
    assert benchmark.cost_table(record["costs"]) in PAGE
    assert benchmark.arms_table(record) in PAGE


def test_every_way_is_trained_by_its_own_arm(benchmark):
    assert set(benchmark.WAYS) == {"add", "concat", "spade", "sdm", "plain", "control"}
    assert all(way in benchmark.WAYS for _, way, _ in benchmark.AS_MANY_IMAGES.values())


def test_a_folder_of_arms_refuses_other_options(benchmark, tmp_path, monkeypatch):
    words = ["--dataset", "data", "--segmenter", "judge", "--features", "lite0", "--output", str(tmp_path)]
    parser, ended = benchmark.study_parser("", required=False), []
    args = parser.parse_args([*words, "--seeds", "0"])
    benchmark.run_arms(args, lambda arm, seed: ended.append((arm, seed)), lambda: None, [("add", 0)])
    more_seeds = parser.parse_args([*words, "--seeds", "0", "1", "--jobs", "1"])
    benchmark.run_arms(more_seeds, lambda arm, seed: ended.append((arm, seed)), lambda: None, [("add", 1)])
    assert ended == [("add", 0), ("add", 1)]
    with pytest.raises(ValueError, match="gflop: 16000 there, 10.0 now"):
        benchmark.run_arms(parser.parse_args([*words, "--gflop", "10"]), pytest.fail, pytest.fail, [("add", 0)])


@pytest.mark.slow
def test_costs_of_two_ways_are_measured(benchmark):
    costs = benchmark.measure_costs(["add", "control"], turns=1, steps=2)
    assert costs["control"]["trained_parameters"] < costs["control"]["parameters"]
    assert costs["add"]["trained_parameters"] == costs["add"]["parameters"]
    assert all(cost["gflop_cached"] < cost["gflop"] for cost in costs.values())
    assert all(cost["times_faster_cached"] > 0 for cost in costs.values())
