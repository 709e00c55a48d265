"""benchmarks/sampling.py runs as a program, and the figures of benchmarks/studies/sampling.py are what they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.training_runs import finished, start

from semseg_diffusers.evaluation.metrics import (
    new_confusion_matrix,
    scores_from_confusion_matrix,
    update_confusion_matrix,
)
from semseg_diffusers.generation.model import new_scheduler


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    """The module of the study, which imports its page from beside it."""
    folder = str(BENCHMARKS / "studies")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("sampling_study", Path(folder) / "sampling.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # its dataclasses look for it there
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(folder)


def matrices_of(predictions: torch.Tensor, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    counts = []
    for prediction, mask in zip(predictions, masks, strict=True):
        matrix = new_confusion_matrix(num_classes)
        update_confusion_matrix(matrix, prediction, mask)
        counts.append(matrix.compute()[:-1])
    return torch.stack(counts)  # (N, C, C + 1)


def read(study, predictions: torch.Tensor, masks: torch.Tensor):
    stems = tuple(f"scene{index}" for index in range(len(masks)))
    images = torch.zeros(len(masks), 3, 8, 8, dtype=torch.uint8)
    return study.Read(stems, matrices_of(predictions, masks, 4), torch.zeros(len(masks), 2), images)


def some_readings(seed: int, right: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (12, 8, 8) that are right in a share of the pixels, and masks; unknown pixels among both."""
    random = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 4, (12, 8, 8), generator=random)
    others = torch.randint(0, 4, masks.shape, generator=random)
    predictions = torch.where(torch.rand(masks.shape, generator=random) < right, masks, others)
    masks[:, 0, 0] = predictions[:, 1, 1] = 255
    return predictions, masks


def test_the_table_of_formats_is_that_of_the_results():
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "how_to" / "generating.md").read_text(encoding="utf-8")
    rows = json.loads((docs / "results" / "inference.json").read_text(encoding="utf-8"))["rows"]
    of_arms = {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}
    for arm, (one, eight) in of_arms.items():
        times = [f"{1000 * row['seconds']:.0f} | {row['times_faster']:.2f}" for row in (one, eight)]
        last = f"{eight['first_seconds']:.1f} | {eight['largest_difference']:.0e}"
        assert f"| {arm} | {times[0]} | {times[1]} | {last} |" in page


def test_mean_iou_and_accuracy_of_counts_are_those_of_evaluate(study):
    predictions, masks = some_readings(0, 0.6)
    counts = matrices_of(predictions, masks, 4)
    expected = scores_from_confusion_matrix(counts.sum(0), ["a", "b", "c", "d"], 12)
    assert study.mean_iou(counts.sum(0)).item() == pytest.approx(expected.mean_iou)
    assert study.accuracy(counts.sum(0)).item() == pytest.approx(expected.pixel_accuracy)
    assert study.mean_iou(counts).shape == (12,)


def test_an_arm_does_not_differ_from_itself_and_a_better_one_does(study):
    predictions, masks = some_readings(0, 0.5)
    arm = read(study, predictions, masks)
    itself = study.difference(arm, arm, seed=0)
    figures = ("mean_iou", "mask_mean_iou", "mask_accuracy")
    assert all(itself[name] == {"difference": 0, "low": 0, "high": 0} for name in figures)
    better = read(study, torch.where(torch.eye(8, dtype=torch.bool), masks, predictions), masks)
    gain = study.difference(better, arm, seed=0)
    for name in figures:
        assert 0 < gain[name]["low"] < gain[name]["difference"] < gain[name]["high"]
    assert study.difference(better, arm, seed=0) == gain


def test_interval_of_a_mean_is_that_of_its_standard_error(study):
    predictions, masks = some_readings(0, 0.5)
    arm, other = read(study, predictions, masks), read(study, some_readings(1, 0.5)[0], masks)
    found = study.difference(arm, other, seed=0)["mask_accuracy"]
    differences = study.accuracy(arm.matrices) - study.accuracy(other.matrices)
    error = differences.std(correction=0).item() / len(differences) ** 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_arms_cost_what_their_guidance_costs(study):
    arms = study.ARMS
    assert (arms["dpm_20"].passes, arms["scale_1"].passes, arms["interval_0.1_0.8_2"].passes) == (40, 20, 34)
    assert all(name in arms for name in study.REFERENCES)


def test_options_of_arms_reach_their_schedulers(study):
    saved = DDPMScheduler(prediction_type="v_prediction", timestep_spacing="linspace")
    for arm in study.ARMS.values():
        options = {**study.SAMPLERS[arm.sampler][2], **arm.options}
        scheduler = new_scheduler(study.scheduler_name(arm.sampler, **arm.options), saved.config)
        assert {name: scheduler.config[name] for name in options} == options


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_benchmark_of_sampling_compares_all_arms_and_writes_json(tmp_path):
    options = ["--steps", "2", "--batches", "1", "--timed_steps", "1", "--repeats", "1", "--masks", "32"]
    output = tmp_path / "sampling.json"
    said = finished(start(BENCHMARKS / "sampling.py", *options, "--output", output), timeout=1200)
    assert "| default, 2 steps | 1 |" in said
    record = json.loads(output.read_text())
    arms = {arm["name"]: arm for arm in record["arms"]}
    plain, interval = arms["default, 2 steps"], arms["default, 2 steps, guided from 0.1 to 0.8"]
    assert plain["times_less_compute"] > 10_000
    assert interval["gflop"] < plain["gflop"]
    for name in ("default, 2 steps", "sdm, 2 steps"):
        assert arms[f"{name}, mask encoded at each step"]["gflop"] >= arms[name]["gflop"]
    assert all(arm["seconds"] > 0 and arm["peak_bytes"] >= 0 for arm in record["arms"])
    assert record["processes"]["times_one_process"] > 1
