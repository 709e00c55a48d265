"""Runs that end early: killed, asked to stop, diverged, out of disk; and what resumes from there, bit for bit."""

import functools
import os
import random
import resource
import shutil
import signal
import time

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from filelock import FileLock
from helpers.training_runs import (
    SCRIPT,
    finished,
    log_lines,
    losses,
    start,
    status,
    tiny_settings,
    train_here,
    wait_until,
    weights,
    workers,
)
from safetensors.torch import load_file

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.training import run as run_module
from semseg_diffusers.training.checkpoints import list_checkpoints
from semseg_diffusers.training.dataset import ResumableBatchSampler
from semseg_diffusers.training.monitor import LossMonitor, TrainingDivergedError
from semseg_diffusers.utils.files import exclusive_folder


pytestmark = pytest.mark.usefixtures("nothing_stays_running")


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_same_run(first, second):
    """Losses, averaged weights, and all of the last checkpoint but times are equal bit for bit."""
    assert losses(first) == losses(second)
    last = [list_checkpoints(run)[-1] for run in (first, second)]
    assert last[0].name == last[1].name
    pairs = [(weights(first), weights(second))]
    pairs += [tuple(load_file(path / name) for path in last) for name in ("ema.safetensors", "model.safetensors")]
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# Asked to stop


def test_sigterm_saves_says_why_and_the_run_goes_on_bit_for_bit(toy, tmp_path):
    changes = {"checkpointing_steps": 100_000, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    changes |= {"lr_scheduler": "constant_with_warmup"}
    settings = tiny_settings(toy, tmp_path / "run", max_train_steps=100_000, **changes)
    process = start(SCRIPT, *settings.to_arguments())
    wait_until(lambda: len(log_lines(tmp_path / "run")) > 3, process)
    for _ in range(2):  # as `timeout` and clusters do: to the reading process too, and more than once
        os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    ended = status(tmp_path / "run")
    assert (ended["status"], ended["reason"]) == ("stopped", "SIGTERM")
    assert f"stopped by SIGTERM after step {ended['step']}" in output
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"checkpoint-{ended['step']}"]
    assert not (tmp_path / "run" / "model_index.json").exists()

    changes["max_train_steps"] = ended["step"] + 5
    train_here(tiny_settings(toy, tmp_path / "run", **changes, resume_from_checkpoint="latest"))
    assert status(tmp_path / "run")["status"] == "finished"
    assert_same_run(tmp_path / "run", train_here(tiny_settings(toy, tmp_path / "straight", **changes)))


@pytest.mark.slow
def test_terminated_accelerate_launch_of_one_process_saves_and_says_why(toy, tmp_path):
    settings = tiny_settings(toy, tmp_path / "run", max_train_steps=100_000, checkpointing_steps=100_000)
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    options = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    process = start(*launcher, *options, SCRIPT, *settings.to_arguments())
    wait_until(lambda: len(log_lines(tmp_path / "run")) > 3, process)
    trainings = workers(process)
    process.terminate()  # the launcher dies of it and hands nothing on
    process.communicate(timeout=120)
    psutil.wait_procs(trainings, timeout=120)
    ended = status(tmp_path / "run")
    assert (ended["status"], ended["reason"]) == ("stopped", "the end of the process that launched it")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"checkpoint-{ended['step']}"]


# Killed


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(toy, tmp_path):
    steps = 120
    changes = {
        "max_train_steps": steps,
        "checkpointing_steps": 5,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 1,
        "resume_from_checkpoint": "latest",
    }
    run = tmp_path / "run"
    words = tiny_settings(toy, run, **changes).to_arguments()
    moments = random.Random(0)
    killed_at = []
    for _ in range(10):
        process = start(SCRIPT, *words)
        whole = list_checkpoints(run)
        first = int(whole[-1].name.split("-")[1]) if whole else 0
        target = first + moments.randint(3, 9)
        wait_until(lambda target=target: _last_line(run)["step"] >= target, process)
        seconds_a_step = 4 / _last_line(run)["images_per_second"]
        time.sleep(moments.random() * 2 * seconds_a_step)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at.append(_last_line(run)["step"])
    assert killed_at[-1] < steps, "the run was over before the tenth kill"
    assert status(run)["status"] == "running"
    finished(start(SCRIPT, *words))
    assert_same_run(run, train_here(tiny_settings(toy, tmp_path / "straight", **changes)))
    assert not [path.name for path in run.rglob(".*") if path.name != ".lock"]
    assert [line["step"] for line in log_lines(run)] == list(range(1, steps + 1))


def _last_line(run) -> dict:
    """The last line of a log, or a line of step 0."""
    return (log_lines(run) or [{"step": 0, "images_per_second": 1.0}])[-1]


def test_what_a_kill_cut_off_is_tidied_up_on_resume(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    expected = losses(run)
    shutil.copytree(run / "checkpoint-4", run / ".checkpoint-4.writing")
    shutil.move(run / "checkpoint-4", run / ".checkpoint-3.removing")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert losses(run) == expected
    assert not [path.name for path in run.rglob(".*") if path.name != ".lock"]


def test_later_checkpoints_are_set_aside_where_an_earlier_one_is_resumed(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    changes = {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    train_here(tiny_settings(toy, run, resume_from_checkpoint="checkpoint-2", **changes))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4.set-aside"]


@pytest.mark.parametrize("change", ["mask", "size of an image"])
def test_a_run_is_not_resumed_on_files_that_changed_in_place(toy, tmp_path, change):
    data = shutil.copytree(toy, tmp_path / "data")
    run = train_here(tiny_settings(data, tmp_path / "run"))
    moved = data.rename(tmp_path / "moved")  # a copy elsewhere is the same data
    train_here(tiny_settings(moved, run, resume_from_checkpoint="checkpoint-2"))
    file = min((moved / "train" / ("masks" if change == "mask" else "images")).iterdir())
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + b"\0" if change == "mask" else content + b"\0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="was trained on other files: masks, or sizes of image files, have changed"):
        train_here(tiny_settings(moved, run, resume_from_checkpoint="latest"))


def test_run_without_a_whole_checkpoint_is_not_begun_again(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    before = (run / "log.jsonl").read_text()
    for checkpoint in list_checkpoints(run):
        (checkpoint / "hashes.json").write_text("null")
    with pytest.raises(ValueError, match="holds a run, but no complete checkpoint"):
        train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert (run / "log.jsonl").read_text() == before
    assert status(run)["status"] == "finished"


def test_how_a_step_is_shared_out_may_change_on_resume(toy, tmp_path):
    changes = {"checkpointing_steps": 1, "dropout": 0.0}
    whole = train_here(tiny_settings(toy, tmp_path / "run", train_batch_size=4, **changes))
    expected = losses(whole)
    shutil.rmtree(whole / "checkpoint-4")  # the one left has an odd step
    changes |= {"train_batch_size": 2, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"}
    assert losses(train_here(tiny_settings(toy, whole, **changes))) == pytest.approx(expected, rel=1e-4)


def test_second_process_in_the_same_run_folder_is_refused(toy, tmp_path, monkeypatch):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    monkeypatch.setattr(run_module, "exclusive_folder", functools.partial(exclusive_folder, patience=0))
    with FileLock(run / ".lock"), pytest.raises(ValueError, match="another process is training into"):
        train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert status(run)["status"] == "finished"


# Diverged


def test_loss_that_is_not_finite_names_the_step_its_pairs_and_the_last_good_checkpoint(toy, tmp_path):
    run = tmp_path / "run"
    changes = {"lr_scheduler": "constant", "learning_rate": 1e30, "max_grad_norm": None, "lr_warmup_steps": 0}
    settings = tiny_settings(toy, run, max_train_steps=20, logging_steps=10, checkpointing_steps=20, **changes)
    with pytest.raises(TrainingDivergedError) as caught:
        train_here(settings)
    order = list(ResumableBatchSampler(num_pairs=6, batch_size=2, num_batches=20, seed=0))
    stems = load_pairs(toy).stems
    batch = ", ".join(sorted({stems[index] for _, index in order[1]}))
    assert f"at step 2, whose batch held {batch}." in str(caught.value)  # step 1 made the leap
    assert "There is no checkpoint yet" in str(caught.value)
    assert status(run)["status"] == "failed"
    assert status(run)["reason"].startswith("TrainingDivergedError: The loss is")
    assert not (run / "model_index.json").exists()


def test_exploded_loss_is_found_in_its_interval(accelerator, tmp_path):
    (tmp_path / "checkpoint-8").mkdir()
    interval = LossMonitor(accelerator, tmp_path, accumulation=2)
    for turn, loss in enumerate((0.4, 0.5, 0.3, 0.4), start=16):
        interval.add(turn, torch.tensor(loss), ["a"])
    assert interval.mean() == pytest.approx(0.4)
    for turn, loss in enumerate((0.4, 0.5, 300.0, 4000.0), start=20):
        interval.add(turn, torch.tensor(loss), [f"pair{turn}"])
    with pytest.raises(
        TrainingDivergedError, match=r"loss is 300 at step 12, whose batch held pair22, pair23\..*checkpoint-8"
    ):
        interval.mean()


def test_weights_that_are_not_finite_are_never_saved(accelerator, tmp_path):
    network = torch.nn.Linear(2, 2)
    interval = LossMonitor(accelerator, tmp_path, accumulation=1)
    interval.add(2, torch.tensor(0.5), ["a"])
    interval.mean()
    interval.check_weights(network, 3)
    network.bias.data[1] = float("nan")
    with pytest.raises(TrainingDivergedError, match="Weights are not finite at step 3, whose batch held a"):
        interval.check_weights(network, 3)


# Out of disk


def test_full_disk_leaves_the_checkpoint_before_it_whole(toy, tmp_path):
    expected = train_here(tiny_settings(toy, tmp_path / "straight"))
    run = train_here(tiny_settings(toy, tmp_path / "run", max_train_steps=4))
    for path in (run / "checkpoint-4", run / "unet", run / "model_index.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # log and settings fit, weights do not
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written: .*checkpoint-2 is complete"):
            train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in run.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert status(run)["status"] == "failed"
    train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert_same_run(run, expected)


def test_full_disk_at_the_end_leaves_no_half_pipeline(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    for path in (run / "unet", run / "model_index.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="unet could not be written: .*checkpoint-4 is complete"):
            train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (run / "model_index.json").exists()
    assert not list(run.rglob("*.writing"))
    train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert weights(run)
