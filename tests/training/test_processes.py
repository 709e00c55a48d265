"""Training in two processes under `accelerate launch`: the same samples and losses as in one, and no hanging."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from helpers.training_runs import (
    finished,
    launch_two,
    log_lines,
    losses,
    status,
    tiny_settings,
    train_here,
    wait_until,
    weights,
    workers,
)
from safetensors.torch import load_file

from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.checkpoints import list_checkpoints, verify


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
# Each process writes down which samples it saw; where FAIL names a position, who is to read that sample fails there.
SCRIPT = """
import os
from semseg_diffusers.training import dataset as samples
from semseg_diffusers.training.loop import main

read = samples.TrainingDataset.__getitem__

def recorded(self, key):
    with open(os.path.join(os.environ["SEEN"], os.environ["RANK"]), "a") as file:
        file.write(f"{key[0]} {key[1]}\\n")
    if str(key[0]) == os.environ.get("FAIL"):
        raise ValueError("photo 'x' cannot be read")
    return read(self, key)

samples.TrainingDataset.__getitem__ = recorded
if __name__ == "__main__":
    main()
"""
STEPS, PAIRS = 6, 6


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    write_toy_dataset(folder, num_train=PAIRS, num_val=2, size=(16, 32), seed=0)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "recorded.py"
    path.write_text(SCRIPT)
    return path


def settings(toy, run, **changes):
    # network dropout is drawn by each process, so it is the one thing that the number of processes changes
    changes = {"class_loss_weighting": True, "ema_decays": (0.9995, 0.2), **changes}
    return tiny_settings(toy, run, **{"dropout": 0.0, "max_train_steps": STEPS, **changes})


@pytest.fixture(scope="module")
def of_two(toy, script, tmp_path_factory) -> Path:
    run, seen = tmp_path_factory.mktemp("runs") / "two", tmp_path_factory.mktemp("seen")
    output = finished(launch_two(script, settings(toy, run, train_batch_size=2), SEEN=str(seen)))
    assert "2 process(es) on cpu, 4 samples a step" in output
    shutil.copytree(seen, run.parent / "seen")
    return run


@pytest.fixture(scope="module")
def of_one(toy, tmp_path_factory) -> Path:
    return train_here(settings(toy, tmp_path_factory.mktemp("runs") / "one", train_batch_size=4))


def test_two_processes_see_every_pair_once_an_epoch(of_two):
    files = sorted((of_two.parent / "seen").iterdir())
    seen = [[tuple(map(int, line.split())) for line in file.read_text().splitlines()] for file in files]
    assert [len(share) for share in seen] == [2 * STEPS, 2 * STEPS]
    order = [index for _, index in sorted(seen[0] + seen[1])]
    assert [position for position, _ in sorted(seen[0] + seen[1])] == list(range(4 * STEPS))
    epochs = [order[first : first + PAIRS] for first in range(0, len(order), PAIRS)]
    assert all(sorted(epoch) == list(range(PAIRS)) for epoch in epochs)


def test_two_processes_have_the_losses_and_weights_of_one_with_the_same_batch(of_one, of_two):
    assert losses(of_two) == pytest.approx(losses(of_one), rel=1e-4)
    for variant in ("", ".raw", ".ema_0_2"):
        file = f"unet/diffusion_pytorch_model{variant}.safetensors"
        first, second = load_file(of_one / file), load_file(of_two / file)
        assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_two_processes_write_log_and_checkpoints_once(of_two):
    assert [line["step"] for line in log_lines(of_two)] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in of_two.glob("*checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not [path.name for path in of_two.rglob(".*") if path.name != ".lock"]
    assert status(of_two)["status"] == "finished"


@pytest.mark.slow
def test_one_process_that_fails_ends_both_and_the_rest_is_trained_later(toy, script, of_two, tmp_path):
    run, seen = tmp_path / "run", tmp_path / "seen"
    seen.mkdir()
    position = 4 * 4 + 2  # of step 5, and of the second process
    failing = launch_two(script, settings(toy, run), SEEN=str(seen), FAIL=str(position))
    output, _ = failing.communicate(timeout=240)
    assert failing.returncode != 0
    assert "error in process 1: photo 'x' cannot be read" in output
    assert status(run)["status"] == "failed"
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-4"]

    finished(launch_two(script, settings(toy, run, resume_from_checkpoint="latest"), SEEN=str(seen)))
    first, second = weights(of_two), weights(run)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(run) == losses(of_two)


@pytest.mark.slow
def test_one_process_that_is_killed_ends_both_and_leaves_whole_checkpoints(toy, script, tmp_path):
    run = tmp_path / "run"
    endless = settings(toy, run, max_train_steps=100_000, lr_scheduler="constant")
    launcher = launch_two(script, endless, SEEN=str(tmp_path))
    wait_until(lambda: len(log_lines(run)) > 5, launcher)
    ranks = workers(launcher)
    ranks[1].kill()
    launcher.communicate(timeout=240)
    assert launcher.returncode != 0
    assert not any(child.is_running() for child in ranks)
    assert status(run)["status"] == "failed"
    newest = list_checkpoints(run)[-1]
    verify(newest)
    last_step = int(newest.name.split("-")[1]) + 1
    resume = settings(toy, run, max_train_steps=last_step, lr_scheduler="constant", resume_from_checkpoint="latest")
    finished(launch_two(script, resume, SEEN=str(tmp_path)))
    assert [line["step"] for line in log_lines(run)] == list(range(1, last_step + 1))


def test_run_of_two_processes_goes_on_in_one(toy, of_two, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(of_two, run)
    shutil.rmtree(run / "checkpoint-6")
    train_here(settings(toy, run, train_batch_size=4, resume_from_checkpoint="latest"))
    assert losses(run) == pytest.approx(losses(of_two), rel=1e-4)


def test_run_goes_on_only_with_as_many_samples_a_step(toy, of_two):
    with pytest.raises(ValueError, match="saw 4 samples per step, this run would see 2"):
        train_here(settings(toy, of_two, train_batch_size=2, resume_from_checkpoint="latest"))


def test_terminated_launcher_of_two_processes_leaves_one_checkpoint_and_the_reason(toy, script, tmp_path):
    run = tmp_path / "run"
    endless = settings(toy, run, max_train_steps=100_000, checkpointing_steps=100_000)
    process = launch_two(script, endless, SEEN=str(tmp_path))
    wait_until(lambda: len(log_lines(run)) > 3, process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    ended = status(run)
    assert (ended["status"], ended["reason"]) == ("stopped", "SIGTERM")
    assert [path.name for path in run.glob("*checkpoint-*")] == [f"checkpoint-{ended['step']}"]
    assert log_lines(run)[-1]["step"] == ended["step"]


def test_processes_without_a_common_group_are_refused(toy, tmp_path, monkeypatch):
    PartialState(cpu=True)  # a process alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="2 processes were launched, but this one is in a group of 1"):
        train_here(settings(toy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
