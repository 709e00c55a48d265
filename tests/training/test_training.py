"""Training: settings, the order of samples, the objective, and whole tiny runs: resumed, loaded, sampled."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from helpers.training_runs import (
    TINY,
    parse_training,
    tiny_settings,
    train_here,
    weights,
)
from PIL import Image
from safetensors.torch import load_file

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.training.checkpoints import list_checkpoints
from semseg_diffusers.training.dataset import ResumableBatchSampler, TrainingDataset
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import build_noise_scheduler, loss_weight, prediction_target
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(toy):
    return load_pairs(toy)


def parse(*words):
    return parse_training("--dataset", "d", "--output_dir", "o", *words)


# Settings


def test_paper_preset_is_the_published_recipe():
    paper = parse("--preset", "paper")
    assert (paper.learning_rate, paper.train_batch_size, paper.num_train_epochs) == (3e-4, 50, 1401)
    assert (paper.ema_decay, paper.ema_start_step, paper.ema_warmup) == (0.995, 2000, False)
    assert (paper.mask_dropout, paper.mask_dropout_unit, paper.min_timestep) == (0.1, "batch", 1)
    assert (paper.lr_scheduler, paper.mixed_precision, paper.snr_gamma, paper.max_grad_norm) == (
        "constant", "no", None, None,
    )  # fmt: skip


def test_command_line_wins_over_yaml_and_yaml_over_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: paper\nlearning_rate: 1e-4\nseed: 3\nblock_out_channels: [8, 16]\nsnr_gamma: null\n")
    merged = parse("--config", str(file), "--seed", "5", "--horizontal_flip", "false")
    assert (merged.learning_rate, merged.seed, merged.network) == (1e-4, 5, "paper")
    assert merged.block_out_channels == (8, 16)
    assert merged.horizontal_flip is False


@pytest.mark.parametrize("preset", TrainingSettings.PRESETS)
def test_settings_file_of_a_run_is_a_config_that_gives_the_same_run(tmp_path, preset):
    first = parse("--preset", preset)
    write_json(tmp_path / "settings.json", first.to_dict())
    assert parse("--config", str(tmp_path / "settings.json")) == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_batch_size", "0"], "--train_batch_size must be more than 0; got 0"),
        (["--learning_rate", "fast"], "--learning_rate: expected a number; got 'fast'"),
        (["--mask_dropout", "1.5"], "--mask_dropout must be between 0 and 1"),
        (["--mask_conditioning", "film"], "--mask_conditioning must be one of add, concat, spade; got 'film'"),
        (["--mask_conditioning", "spade", "--spade_channels", "0"], "--spade_channels must be more than 0; got 0"),
        (["--spade_channels", "64"], "--spade_channels needs --mask_conditioning spade; got add"),
        (["--network", "paper", "--mask_conditioning", "spade"], "--mask_conditioning is not for --network paper"),
        (["--min_timestep", "1000"], "--min_timestep must be in 0..999"),
        (["--random_crop", "big"], "--random_crop: resolution 'big': expected a number"),
        (["--random_crop", "native"], "--random_crop native is not a size; expected a number"),
        (["--attention_levels", "9"], "--attention_levels 9 is more than"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_bad_setting_is_refused_by_name(words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse(*words)


def test_unknown_option_in_yaml_is_refused_by_name(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="unknown option.* learning_rat"):
        parse("--config", str(tmp_path / "run.yaml"))


# The order of samples


def sequence(**changes):
    return list(ResumableBatchSampler(**{"num_pairs": 7, "batch_size": 3, "num_batches": 14, "seed": 0, **changes}))


def test_every_pair_is_seen_once_an_epoch():
    order = [index for batch in sequence() for _, index in batch]
    epochs = [order[start : start + 7] for start in range(0, len(order), 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_two_processes_share_what_one_process_sees():
    one = sequence(batch_size=6, num_batches=7)
    first = sequence(num_batches=7, num_processes=2, process_index=0)
    second = sequence(num_batches=7, num_processes=2, process_index=1)
    assert [a + b for a, b in zip(first, second, strict=True)] == one


def test_resumed_sequence_is_the_rest_of_the_whole_one():
    assert sequence(start_batch=5) == sequence()[5:]


def samples(pairs, samples_per_step=1, **changes):
    changed = {"mask_dropout": 0.0, "min_timestep": 1, "num_train_timesteps": 10, **changes}
    return TrainingDataset(pairs, TrainingSettings(dataset="d", output_dir="o", **changed), samples_per_step)


def test_sample_is_a_function_of_seed_and_position(pairs):
    first, again = samples(pairs)[5, 2], samples(pairs)[5, 2]
    assert all(torch.equal(first[name], again[name]) for name in ("image", "mask", "noise", "timestep"))
    assert not torch.equal(first["noise"], samples(pairs)[6, 2]["noise"])
    assert not torch.equal(first["noise"], samples(pairs, seed=1)[5, 2]["noise"])


def test_photo_and_mask_are_mirrored_together(pairs):
    plain = samples(pairs, horizontal_flip=False)[0, 0]
    mirrored = 0
    for position in range(40):
        sample = samples(pairs)[position, 0]
        if not torch.equal(sample["image"], plain["image"]):
            assert torch.equal(sample["image"].flip(-1), plain["image"])
            assert torch.equal(sample["mask"].flip(-1), plain["mask"])
            mirrored += 1
    assert 8 < mirrored < 32


def test_random_crop_cuts_photo_and_mask_alike_and_reaches_every_place(pairs):
    whole = samples(pairs, horizontal_flip=False)[0, 0]
    image, mask = (
        whole[name].unfold(-2, 12, 1).unfold(-2, 28, 1) for name in ("image", "mask")
    )  # (..., 5, 5, 12, 28)
    places = set()
    for position in range(200):
        sample = samples(pairs, horizontal_flip=False, random_crop="12x28")[position, 0]
        assert (sample["image"].shape, sample["mask"].shape, sample["noise"].shape) == (
            (3, 12, 28),
            (12, 28),
            (3, 12, 28),
        )
        same_image = (image == sample["image"][:, None, None]).all(dim=(0, -1, -2)).nonzero().tolist()
        same_mask = (mask == sample["mask"]).all(dim=(-1, -2)).nonzero().tolist()
        assert len(same_image) == 1
        assert same_image[0] in same_mask
        places.add(tuple(same_image[0]))
    assert places == {(top, left) for top in range(5) for left in range(5)}


def test_random_crop_is_a_function_of_seed_and_position_and_changes_nothing_else(pairs):
    cropped = samples(pairs, random_crop="16")
    first, again = cropped[5, 2], samples(pairs, random_crop="16")[5, 2]
    assert all(torch.equal(first[name], again[name]) for name in ("image", "mask", "noise", "timestep"))
    assert any(not torch.equal(cropped[position, 2]["image"], first["image"]) for position in range(6, 12))
    assert all(torch.equal(cropped[k, 2]["timestep"], samples(pairs)[k, 2]["timestep"]) for k in range(20))
    assert torch.equal(samples(pairs, random_crop="16x32")[5, 2]["image"], samples(pairs)[5, 2]["image"])


def test_images_lie_in_minus_one_to_one_and_timesteps_above_the_smallest(pairs):
    drawn = [samples(pairs)[position, 0] for position in range(60)]
    assert all(sample["image"].abs().max() <= 1 for sample in drawn)
    assert {int(sample["timestep"]) for sample in drawn} == set(range(1, 10))


def test_dropped_mask_is_unknown_everywhere_for_its_share_of_samples(pairs):
    dropping = samples(pairs, mask_dropout=0.25)
    dropped = [bool((dropping[position, 0]["mask"] == 255).all()) for position in range(200)]
    assert 30 <= sum(dropped) <= 70


def test_batch_wise_dropout_drops_whole_groups(pairs):
    dropping = samples(pairs, mask_dropout=0.5, mask_dropout_unit="batch", samples_per_step=4)
    dropped = [bool((dropping[position, 0]["mask"] == 255).all()) for position in range(80)]
    groups = [set(dropped[start : start + 4]) for start in range(0, 80, 4)]
    assert all(len(group) == 1 for group in groups)
    assert {True} in groups
    assert {False} in groups


# The objective


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_follow_the_paper(prediction_type):
    scheduler = build_noise_scheduler(TrainingSettings(dataset="d", output_dir="o", prediction_type=prediction_type))
    timestep = torch.tensor([0, 100, 500, 999])
    alphas = scheduler.alphas_cumprod[timestep].double()
    snr = alphas / (1 - alphas)
    expected = (
        torch.minimum(snr, torch.tensor(5.0)) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    )
    torch.testing.assert_close(loss_weight(scheduler, timestep, 5.0).double(), expected, rtol=1e-3, atol=0)
    assert torch.equal(loss_weight(scheduler, timestep, None), torch.ones(4))


def test_target_recovers_the_image_whatever_is_predicted():
    image, noise, timestep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([300, 600])
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        scheduler = build_noise_scheduler(
            TrainingSettings(dataset="d", output_dir="o", prediction_type=prediction_type)
        )
        noisy = scheduler.add_noise(image, noise, timestep)
        target = prediction_target(scheduler, image, noise, timestep)
        for index in range(2):
            step = scheduler.step(target[index], int(timestep[index]), noisy[index])
            torch.testing.assert_close(step.pred_original_sample, image[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["DDIMScheduler", "DDPMScheduler"])
def test_samplers_made_from_a_run_do_not_clip(sampler):
    trained = build_noise_scheduler(TrainingSettings(dataset="d", output_dir="o"))
    saved = DPMSolverMultistepScheduler.from_config(trained.config)
    assert getattr(diffusers, sampler).from_config(saved.config).config.clip_sample is False


# Networks


def test_resolution_that_the_depth_does_not_divide_is_refused_with_the_divisor():
    with pytest.raises(ValueError, match="60 x 64 pixels; this network needs multiples of 16"):
        build_network(TrainingSettings(dataset="d", output_dir="o"), LabelSet.from_preset("camvid"), (60, 64))


def test_network_carries_the_label_set():
    small = TrainingSettings(
        dataset="d",
        output_dir="o",
        **{k: TINY[k] for k in ("block_out_channels", "attention_levels", "norm_num_groups", "stem_channels")},
    )
    unet = build_network(small, LabelSet.from_preset("camvid"), (32, 64))
    assert LabelSet.from_config(unet.config) == LabelSet.from_preset("camvid")
    assert unet.config.sample_size == (32, 64)


# Whole runs


def test_accelerate_launch_trains_and_its_folder_loads_and_samples(toy, tmp_path):
    options = {"max_train_steps": 2, "preview_steps": 2, "preview_masks": 1, "preview_samples": 1}
    options |= {"preview_inference_steps": 2, "report_to": "tensorboard"}
    words = tiny_settings(toy, tmp_path / "run", **options).to_arguments()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines"]
    done = subprocess.run(
        [*launch, "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "train_accelerate.py"), *words],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
    image = pipe(torch.zeros(16, 32, dtype=torch.uint8), num_inference_steps=2).images[0]
    assert image.size == (32, 16)
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert Image.open(run / "previews" / "step-0000002.png").width > 90
    assert list((run / "logs").rglob("events*"))
    card = (run / "README.md").read_text()
    assert "6 pairs" in card
    assert "{{" not in card
    assert not [path.name for path in run.rglob("*") if "writing" in path.name]


def test_resumed_run_equals_the_straight_run_bit_for_bit(toy, tmp_path):
    options = {"gradient_accumulation_steps": 2}
    straight = train_here(tiny_settings(toy, tmp_path / "straight", **options))
    train_here(tiny_settings(toy, tmp_path / "pieces", **options))
    pieces = tmp_path / "pieces"
    shutil.rmtree(pieces / "checkpoint-4")  # as after a kill between step 2 and step 4
    train_here(tiny_settings(toy, pieces, resume_from_checkpoint="latest", **options))
    first, second = weights(straight), weights(pieces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [
        [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (straight, pieces)
    ]
    assert logs[0] == logs[1]


@pytest.fixture
def uneven(toy, tmp_path):
    """The toy data, two of whose training photos are larger than the others."""
    folder = shutil.copytree(toy, tmp_path / "uneven")
    for part in ("images", "masks"):
        for path in sorted((folder / "train" / part).iterdir())[:2]:
            picture = Image.open(path)
            picture.resize((48, 20), Image.Resampling.NEAREST).save(path)
    return folder


def test_a_run_on_random_crops_of_uneven_photos_is_resumed_bit_for_bit(uneven, tmp_path):
    options = {"random_crop": "16x24", "preview_steps": 4, "preview_masks": 1, "preview_samples": 1}
    options |= {"preview_inference_steps": 1, "validation_split": "train"}
    straight = train_here(tiny_settings(uneven, tmp_path / "straight", **options))
    pieces = train_here(tiny_settings(uneven, tmp_path / "pieces", **options))
    shutil.rmtree(pieces / "checkpoint-4")
    train_here(tiny_settings(uneven, pieces, resume_from_checkpoint="latest", **options))
    first, second = weights(straight), weights(pieces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    assert pipe.unet.config.sample_size == [16, 24]
    assert pipe(torch.zeros(16, 24, dtype=torch.uint8), num_inference_steps=1).images[0].size == (24, 16)


def test_photos_smaller_than_the_random_crop_are_refused_before_the_first_step(uneven, tmp_path):
    with pytest.raises(ValueError, match=r"--random_crop expects images of 20 x 32 or more .* 'toy_0_\d+' is 16 x 32"):
        train_here(tiny_settings(uneven, tmp_path / "run", random_crop="20x32"))
    with pytest.raises(ValueError, match="differ in size: .*--resolution HxW"):
        train_here(tiny_settings(uneven, tmp_path / "run"))


def test_saved_weights_are_the_average_and_differ_from_the_last_step(toy, tmp_path):
    averaged = weights(train_here(tiny_settings(toy, tmp_path / "ema", max_train_steps=2)))
    raw = weights(train_here(tiny_settings(toy, tmp_path / "raw", max_train_steps=2, use_ema=False)))
    assert any(not torch.equal(averaged[name], raw[name]) for name in raw)
    last = load_file(tmp_path / "ema" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(last[name], raw[name]) for name in raw)


def test_oldest_checkpoints_make_room(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run", checkpointing_steps=1, checkpoints_total_limit=2))
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-3", "checkpoint-4"]


def test_paper_network_trains_and_keeps_its_scheduler(toy, tmp_path):
    changes = {
        "network": "paper",
        "hidden_dim": 8,
        "emb_dim": 16,
        "noise_schedule": "paper",
        "prediction_type": "epsilon",
    }
    pipe = MaskGuidedDDPMPipeline.from_pretrained(
        train_here(tiny_settings(toy, tmp_path / "run", max_train_steps=1, **changes))
    )
    assert type(pipe.unet).__name__ == "PaperUNet2DModel"
    assert pipe.scheduler.config.variance_type == "fixed_large"
    assert pipe(torch.zeros(16, 32, dtype=torch.uint8), num_inference_steps=2).images[0].size == (32, 16)


@pytest.fixture
def finished(toy, tmp_path):
    return train_here(tiny_settings(toy, tmp_path / "run", max_train_steps=2))


def test_run_folder_in_use_is_not_overwritten(toy, finished):
    with pytest.raises(ValueError, match="already holds a run"):
        train_here(tiny_settings(toy, finished))


def test_checkpoint_of_other_settings_is_refused_by_their_names(toy, finished):
    with pytest.raises(ValueError, match=r"--learning_rate 0.01 \(now 0.5\)"):
        train_here(tiny_settings(toy, finished, resume_from_checkpoint="latest", learning_rate=0.5))


def test_checkpoint_of_other_classes_is_refused(toy, finished):
    labels = json.loads((finished / "checkpoint-2" / "state.json").read_text())["labels"]
    assert labels["id2label"]["0"] == "road"
    other = finished.parent / "camvid"
    shutil.copytree(toy, other)
    LabelSet(names=("a", "b"), colors=((1, 1, 1), (2, 2, 2))).save_json(other / "labels.json")
    with pytest.raises(ValueError, match=r"has 19 classes \(road, sidewalk, building, ...\), the data has 2"):
        train_here(tiny_settings(other, finished, resume_from_checkpoint="latest"))


def test_tampered_checkpoint_is_refused_by_file(toy, finished):
    optimizer = finished / "checkpoint-2" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes() + b"!")
    with pytest.raises(ValueError, match="optimizer.bin is not what the run wrote"):
        train_here(tiny_settings(toy, finished, resume_from_checkpoint="checkpoint-2"))


def test_foreign_checkpoint_is_refused(toy, finished):
    (finished / "checkpoint-2" / "hashes.json").unlink()
    with pytest.raises(ValueError, match="not a checkpoint of this package"):
        train_here(tiny_settings(toy, finished, resume_from_checkpoint="checkpoint-2"))


def test_latest_passes_over_a_broken_checkpoint(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run"))
    expected = weights(run)
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    train_here(tiny_settings(toy, run, resume_from_checkpoint="latest"))
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(run).items())


def test_a_temporary_folder_too_long_for_sockets_is_refused_before_the_training_waits_for_ever(
    monkeypatch, toy, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "long" * 20)
    settings = tiny_settings(toy, tmp_path / "run", dataloader_num_workers=1)
    with pytest.raises(ValueError, match=r"has 85 characters.*at most 75. Set TMPDIR to a shorter one"):
        train_here(settings)
