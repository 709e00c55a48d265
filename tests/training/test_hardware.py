"""Options that make training faster change nothing but its speed: losses, saved weights, and how a run resumes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.training_runs import (
    ROOT,
    SCRIPT,
    finished,
    launch,
    log_lines,
    losses,
    start,
    tiny_settings,
    train_here,
    weights,
)
from safetensors.torch import load_file

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.training import monitor as waiting
from semseg_diffusers.training.hardware import to_device
from semseg_diffusers.training.monitor import DataTimer
from semseg_diffusers.training.run import Run


FAST = {"channels_last": True, "fused_optimizer": True}
PREVIEWS = {"preview_steps": 2, "preview_masks": 1, "preview_samples": 1, "preview_inference_steps": 1}


def settings(toy, run, **changes):
    return tiny_settings(toy, run, **{"dropout": 0.0, "max_train_steps": 4, **changes})


@pytest.fixture(scope="module")
def plain(toy, tmp_path_factory):
    return train_here(settings(toy, tmp_path_factory.mktemp("runs") / "plain", **PREVIEWS))


def check_same_run(run, plain, tolerance=1e-4):
    """The losses, the weights and their names, and the checkpoint, are those of the plain run."""
    assert losses(run) == pytest.approx(losses(plain), rel=tolerance)
    for file in ("unet/diffusion_pytorch_model.safetensors", "checkpoint-4/model.safetensors"):
        first, second = load_file(run / file), load_file(plain / file)
        assert list(first) == list(second)
        assert all(torch.allclose(first[name], second[name], atol=20 * tolerance) for name in first)


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"fused_optimizer": True}, {"torch_compile": "eager"}],
    ids=lambda options: next(iter(options)),
)
def test_faster_run_has_the_losses_and_weights_of_the_plain_one(toy, plain, tmp_path, options):
    run = train_here(settings(toy, tmp_path / "run", **PREVIEWS, **options))
    check_same_run(run, plain)
    assert (run / "previews" / "step-0000004.png").is_file()
    image = MaskGuidedDDPMPipeline.from_pretrained(run)(torch.zeros(16, 32, dtype=torch.uint8), num_inference_steps=1)
    assert image.images[0].size == (32, 16)


@pytest.mark.parametrize(
    ("before", "after"), [({}, {**FAST, "torch_compile": "eager"}), ({**FAST, "torch_compile": "eager"}, {})]
)
@pytest.mark.slow
def test_checkpoint_goes_on_with_every_option_switched(toy, plain, tmp_path, before, after):
    run = train_here(settings(toy, tmp_path / "run", **before))
    shutil.rmtree(run / "checkpoint-4")
    train_here(settings(toy, run, resume_from_checkpoint="latest", **after))
    check_same_run(run, plain)
    state = torch.load(run / "checkpoint-4" / "optimizer.bin", weights_only=True)
    assert bool(state["param_groups"][0]["fused"]) == bool(after)


def test_resumed_fast_run_equals_the_straight_one_bit_for_bit(toy, tmp_path):
    straight = train_here(settings(toy, tmp_path / "straight", **FAST))
    pieces = train_here(settings(toy, tmp_path / "pieces", **FAST))
    shutil.rmtree(pieces / "checkpoint-4")
    train_here(settings(toy, pieces, resume_from_checkpoint="latest", **FAST))
    first, second = weights(straight), weights(pieces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(straight) == losses(pieces)


def test_images_stay_contiguous_on_the_cpu():
    batch = {"image": torch.zeros(2, 3, 8, 8), "mask": torch.zeros(2, 8, 8, dtype=torch.long), "stem": ["a", "b"]}
    moved = to_device(batch, torch.device("cpu"), channels_last=True)
    assert moved["image"].is_contiguous()
    assert moved["stem"] == ["a", "b"]
    on_device = to_device(batch, torch.device("meta"), channels_last=True)  # a device that is not the CPU
    assert on_device["image"].is_contiguous(memory_format=torch.channels_last)
    assert on_device["mask"].dtype == torch.long


def test_bfloat16_stays_near_the_plain_run(toy, plain, tmp_path):
    run = train_here(settings(toy, tmp_path / "run", mixed_precision="bf16", channels_last=True))
    assert losses(run)[:2] == pytest.approx(losses(plain)[:2], rel=0.02)  # the same weights, before they part
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}


# Refusals


def test_tf32_is_refused_where_there_is_none(toy, tmp_path):
    with pytest.raises(ValueError, match=r"--allow_tf32 needs an NVIDIA GPU .* on cpu\. Leave it out"):
        train_here(settings(toy, tmp_path / "run", allow_tf32=True))


def test_float16_is_refused_on_a_cpu(toy, tmp_path):
    with pytest.raises(ValueError, match=r"--mixed_precision fp16 needs a GPU; this run is on cpu\. Use bf16"):
        train_here(settings(toy, tmp_path / "run", mixed_precision="fp16"))


def test_float16_is_refused_for_two_optimizers():
    run = SimpleNamespace(
        settings=None, accelerator=SimpleNamespace(mixed_precision="fp16"), networks=lambda: ["student", "critic"]
    )
    with pytest.raises(ValueError, match="--mixed_precision fp16 is not for a run with a discriminator"):
        Run.__enter__(run)


def test_compiling_without_a_compiler_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and none is .* leave out --torch_compile"):
        train_here(settings(toy, tmp_path / "run", torch_compile="inductor"))


def test_compiler_backend_is_refused_by_name(toy, tmp_path):
    with pytest.raises(ValueError, match="--torch_compile must be one of no, inductor, .*; got 'tvm'"):
        settings(toy, tmp_path / "run", torch_compile="tvm")


# Waiting for data


def test_waiting_time_is_that_of_the_batches_and_starts_anew(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 20.5, 30.0])
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(clock))
    batches = DataTimer(["a", "b", "c"])
    seen = []
    for batch in batches:
        seen.append(batch)
        if batch == "b":
            assert batches.share_of(12.0) == pytest.approx(3.0 / 12.0)
    assert seen == ["a", "b", "c"]
    assert batches.share_of(10.0) == pytest.approx(0.05)


def test_network_that_waits_is_told_of_once_and_not_in_the_first_interval(monkeypatch):
    said = []
    monkeypatch.setattr(waiting.logger, "warning", said.append)
    batches = DataTimer([])
    for seconds in (9.0, 0.5, 5.0, 6.0):
        batches._seconds = seconds
        batches.share_of(10.0)
    assert len(said) == 1
    assert "waited for data 50% of the last interval. Raise --dataloader_num_workers" in said[0]


def test_log_says_how_much_of_the_time_was_spent_waiting_for_data(plain):
    assert all(0 < line["data_wait_share"] < 1 for line in log_lines(plain))


# Longer runs


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_compiled_processes_of_a_launch_have_the_losses_of_the_plain_one(toy, plain, tmp_path):
    # unwrapping a compiled network as accelerate does by default would part the processes
    run = tmp_path / "run"
    options = settings(toy, run, train_batch_size=1, **FAST, **PREVIEWS).to_arguments()
    output = finished(launch("--dynamo_backend", "eager", SCRIPT, *options), timeout=600)
    assert "2 process(es) on cpu, 2 samples a step" in output
    assert "torch_compile" not in (run / "settings.json").read_text().replace('"torch_compile": null', "")
    check_same_run(run, plain)


@pytest.mark.slow
def test_compiled_with_gradient_checkpointing_has_the_losses_and_names_of_the_plain_run(toy, plain, tmp_path):
    options = {"torch_compile": "aot_eager", "gradient_checkpointing": True}
    check_same_run(train_here(settings(toy, tmp_path / "run", **PREVIEWS, **options)), plain)


ATTENTION = {"attention_levels": 1, "attention_head_dim": 4}


@pytest.mark.slow
def test_compiled_block_by_block_has_the_losses_and_names_of_the_plain_run(toy, tmp_path, monkeypatch):
    plain = train_here(settings(toy, tmp_path / "plain", **PREVIEWS, **ATTENTION))
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    options = {**PREVIEWS, **ATTENTION, "torch_compile": "eager"}
    check_same_run(train_here(settings(toy, tmp_path / "run", **options)), plain)


def test_compiling_block_by_block_without_attention_in_the_middle_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    with pytest.raises(ValueError, match="middle block has no attention. Turn regional compilation off"):
        train_here(settings(toy, tmp_path / "run", attention_levels=0, torch_compile="eager"))


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_benchmark_of_training_compares_all_arms_and_writes_json(tmp_path):
    options = ["--device", "cpu", "--turns", "1", "--seconds", "0", "--batch", "1", "--pairs", "4", "--size", "64"]
    script = ROOT / "benchmarks" / "training.py"
    output = finished(start(script, *options, "--output", tmp_path / "training.json"), timeout=1200)
    assert "| authors (batch 1, float32) |" in output
    record = json.loads((tmp_path / "training.json").read_text())
    arms = record["cpu"]["arms"]
    assert list(arms) == ["authors", "same_network", "default", "default_fast"]
    assert arms["authors"]["ratio"] == 1
    assert arms["default"]["ratio"] > 5  # a busy machine; the promise is 20
    assert arms["authors"]["gflop_an_image"] == arms["same_network"]["gflop_an_image"]
    assert arms["authors"]["gflop_an_image"] == pytest.approx(637 / 4, rel=0.1)  # 637 at 128 x 128
    assert all(0 < arm["share_of_ceiling"] < 1 and arm["peak_gigabytes"] > 0 for arm in arms.values())
