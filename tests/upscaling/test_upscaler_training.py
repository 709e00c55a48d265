"""Training and distillation of an upscaler: its samples, its first weights, whole tiny runs."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import LCMScheduler
from helpers.training_runs import TINY, log_lines, parse_training, tiny_settings, train_here, weights
from PIL import Image

from semseg_diffusers import MaskGuidedUpscalePipeline, generate_dataset
from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.distillation.distill import distill
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.generation.settings import GenerationSettings, Inputs
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.pipelines.upscaling import enlarge
from semseg_diffusers.training.base_model import load_first_weights
from semseg_diffusers.training.dataset import TrainingDataset
from semseg_diffusers.training.low_res import LowRes, blur
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings


UPSCALER = {"upscale_factor": 2, "random_crop": "8x16", "attention_levels": 0}
LARGE = (16, 32)  # of the toy scenes


@pytest.fixture(scope="module")
def pairs(toy):
    return load_pairs(toy)


def samples(pairs, low_res: LowRes, **changes) -> TrainingDataset:
    settings = {"dataset": "d", "output_dir": "o", "mask_dropout": 0.0, **UPSCALER, **changes}
    return TrainingDataset(pairs, TrainingSettings(**settings), low_res=low_res)


def plain(**changes) -> LowRes:
    """Images to enlarge without noise and blur."""
    return LowRes(**{"factor": 2, "max_noise_level": 0, "blur": 0.0, "share": 0.5, **changes})


def reduced(image: torch.Tensor) -> torch.Tensor:
    """A whole photo (3, H, W) uint8 as `prepare` reduces it."""
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = crop_resize(*LARGE, (LARGE[0] // 2, LARGE[1] // 2)).resize_image(photo)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


# Settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upscale_factor", "3"], "--upscale_factor must be one of 2, 4; got 3"),
        (["--low_res_blur", "1"], "--low_res_blur is for upscalers: give --upscale_factor"),
        (["--max_noise_level", "50"], "--max_noise_level is for upscalers"),
        (["--residual_scale", "2"], "--residual_scale is for upscalers"),
        (
            ["--upscale_factor", "4", "--random_crop", "126"],
            "--random_crop 126 is not a multiple of --upscale_factor 4",
        ),
        (["--upscale_factor", "4", "--augment_scale", "0.2"], "--augment_scale is not for upscalers"),
        (["--upscale_factor", "4", "--coordinate_channels"], "--coordinate_channels is not for upscalers"),
        (["--upscale_factor", "4", "--low_res_share", "0.2"], "--low_res_share needs --low_res_from"),
        (["--upscale_factor", "4", "--network", "sdm"], "--upscale_factor is not for --network sdm"),
    ],
)
def test_bad_setting_is_refused_by_name(words, message):
    with pytest.raises(ValueError, match=message):
        parse_training("--dataset", "d", "--output_dir", "o", *words)


def test_an_upscaler_has_no_attention_and_weighs_all_noise_levels_alike_by_default():
    given = parse_training("--dataset", "d", "--output_dir", "o", "--upscale_factor", "4", "--resolution", "128")
    assert (given.attention_levels, given.preview_guidance_scale, given.random_crop_size) == (0, 1.0, (128, 128))
    given = parse_training("--dataset", "d", "--output_dir", "o", "--upscale_factor", "4", "--attention_levels", "1")
    assert (given.attention_levels, given.snr_gamma) == (1, None)


# Samples


@pytest.mark.parametrize("cached", [False, True])
def test_a_crop_is_given_the_same_part_of_the_photo_reduced_as_prepare_does(toy, cached):
    pairs = load_pairs(toy)
    if cached:
        pairs.keep_decoded(10**6)
    dataset = samples(pairs, plain(), horizontal_flip=False)
    places = set()
    for position in range(12):
        index = position % len(pairs)
        sample, whole = dataset[position, index], load_pairs(toy)[index]
        crops = {
            (top, left): whole["image"][:, top : top + 8, left : left + 16]
            for top in range(0, 9, 2)
            for left in range(0, 17, 2)
        }
        image = ((sample["image"] + 1) * 127.5).round().to(torch.uint8)
        top, left = next(place for place, crop in crops.items() if torch.equal(crop, image))
        places.add((top, left))
        small = reduced(whole["image"])[:, top // 2 : top // 2 + 4, left // 2 : left // 2 + 8]
        assert torch.equal(sample["low_res"], enlarge(small[None] / 127.5 - 1, 8, 16)[0])
        assert torch.equal(sample["mask"], whole["mask"][top : top + 8, left : left + 16].long())
        assert sample["noise_level"] == 0
    assert len(places) > 6


def test_image_and_image_to_enlarge_are_flipped_together(pairs):
    flipped = 0
    for position in range(20):
        one, other = (samples(pairs, plain(), horizontal_flip=flip)[position, 0] for flip in (False, True))
        if not torch.equal(one["image"], other["image"]):
            flipped += 1
            assert torch.allclose(one["low_res"].flip(-1), other["low_res"], atol=1e-6)
    assert 3 < flipped < 17


def test_degradation_is_a_function_of_seed_and_position_and_stays_in_its_range(pairs):
    low_res = plain(max_noise_level=40, blur=1.0)
    first, again = (samples(pairs, low_res)[3, 1] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in ("low_res", "noise_level", "image"))
    levels = [int(samples(pairs, low_res)[position, 0]["noise_level"]) for position in range(60)]
    assert (min(levels), max(levels)) >= (0, 20)
    assert max(levels) <= 40
    assert np.median(levels) < 20


def test_blur_keeps_what_is_flat_and_spreads_what_is_not():
    flat = torch.full((3, 8, 8), 0.3)
    assert torch.allclose(blur(flat, 0.8), flat)
    point = torch.zeros(3, 9, 9)
    point[:, 4, 4] = 1
    assert blur(point, 0.8)[:, 4, 4].max() < 0.5
    assert torch.allclose(blur(point, 0.8).sum((1, 2)), torch.ones(3))


def test_without_a_crop_whole_photos_are_enlarged(pairs):
    sample = samples(pairs, plain(), random_crop=None, horizontal_flip=False)[0, 2]
    small = reduced(pairs[2]["image"])
    assert torch.equal(sample["low_res"], enlarge(small[None] / 127.5 - 1, *LARGE)[0])


# Images of the base


@pytest.fixture(scope="module")
def base(toy, tmp_path_factory):
    """A model of 8 x 16 images."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    settings = tiny_settings(toy, folder, max_train_steps=1, checkpointing_steps=1, random_crop="8x16")
    return train_here(settings)


@pytest.fixture(scope="module")
def base_images(toy, base, tmp_path_factory):
    """Images that the base made of the training photos, by `generate --strength`."""
    output = tmp_path_factory.mktemp("generated") / "small"
    pipe = load_pipeline(base)
    pipe.set_progress_bar_config(disable=True)
    settings = GenerationSettings(num_inference_steps=4, strength=0.5)
    generate_dataset(pipe, toy / "train" / "masks", output, settings, inputs=Inputs(photos=toy / "train"))
    return output


def test_images_of_the_base_are_among_those_that_are_enlarged(pairs, base_images):
    unet = type("Network", (), {"config": {"upscale_factor": 2, "max_noise_level": 0}})
    given = TrainingSettings(
        dataset="d", output_dir="o", **UPSCALER, low_res_from=str(base_images), low_res_blur=0.0, low_res_share=0.5
    )
    low_res = LowRes.of(unet, given, pairs)
    assert set(low_res.files) == set(pairs.stems)
    dataset, of_photos = samples(pairs, low_res, random_crop=None), samples(pairs, plain(), random_crop=None)
    changed = [
        not torch.equal(dataset[position, 0]["low_res"], of_photos[position, 0]["low_res"]) for position in range(40)
    ]
    assert 10 < sum(changed) < 30
    image = np.array(Image.open(low_res.files[pairs.stems[0]][0]))
    position = changed.index(True)
    sample = samples(pairs, low_res, random_crop=None, horizontal_flip=False)[position, 0]
    expected = enlarge(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, *LARGE)[0]
    assert torch.equal(sample["low_res"], expected)


def test_images_that_do_not_show_the_photos_are_refused(toy, pairs, base, base_images, tmp_path):
    unet = type("Network", (), {"config": {"upscale_factor": 4, "max_noise_level": 0}})
    given = TrainingSettings(dataset="d", output_dir="o", **UPSCALER, low_res_from=str(base_images))
    with pytest.raises(ValueError, match="images are 8 x 16, and .* is 16 x 32 .* not 4 times as large"):
        LowRes.of(unet, given, pairs)
    given = dataclasses.replace(given, low_res_from=str(tmp_path))
    with pytest.raises(ValueError, match="it has no generation.json; expected the output of `generate --strength`"):
        LowRes.of(unet, given, pairs)
    pipe = load_pipeline(base)
    pipe.set_progress_bar_config(disable=True)
    generate_dataset(
        pipe,
        toy / "train" / "masks",
        tmp_path / "new",
        GenerationSettings(num_inference_steps=1),
        contact_sheet_rows=0,
    )
    given = dataclasses.replace(given, low_res_from=str(tmp_path / "new"))
    with pytest.raises(ValueError, match="generated from noise and show other scenes"):
        LowRes.of(unet, given, pairs)


# The network


@torch.no_grad()
def test_an_upscaler_that_starts_from_a_network_without_predicts_what_that_one_does(toy, base, pairs):
    settings = tiny_settings(toy, "o", **UPSCALER)
    unet = build_network(settings, pairs.labels, (8, 16)).eval()
    assert (unet.config.upscale_factor, unet.config.max_noise_level, unet.config.residual_scale) == (2, 100, 4.0)
    other = build_network(dataclasses.replace(settings, residual_scale=None), pairs.labels, (8, 16))
    assert other.config.residual_scale is None
    kept, unused = load_first_weights(unet, str(base))
    assert kept == ["conv_low_res.weight (missing)", "noise_level_embedding.weight (missing)"]
    assert unused == []
    sample, mask = torch.randn(1, 3, 8, 16), torch.zeros(1, 8, 16, dtype=torch.long)
    expected = load_pipeline(base).unet(sample, 10, mask=mask).sample
    found = unet(sample, 10, mask=mask, low_res=torch.randn(1, 3, 8, 16), noise_level=30).sample
    assert torch.allclose(found, expected, atol=1e-5)
    for given, message in (
        ({}, r"`low_res` must be these at the size of `sample`, \(1, 3, 8, 16\); got None"),
        ({"low_res": torch.randn(1, 3, 4, 8)}, r"got \(1, 3, 4, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            unet(sample, 10, mask=mask, **given)
    with pytest.raises(ValueError, match="this network has no `upscale_factor`"):
        load_pipeline(base).unet(sample, 10, mask=mask, low_res=sample)


def test_a_size_that_the_factor_does_not_divide_is_refused(toy, pairs):
    settings = tiny_settings(toy, "o", upscale_factor=4, patch_size=1, block_out_channels=(8,))
    with pytest.raises(ValueError, match="The data is 18 x 32 pixels, which --upscale_factor 4 does not divide"):
        build_network(settings, pairs.labels, (18, 32))


# Runs


@pytest.fixture(scope="module")
def upscaler(toy, base, tmp_path_factory):
    """Four steps from the base, with previews."""
    changes = {"init_from": str(base), "preview_steps": 4, "preview_masks": 2, "preview_samples": 1, "dropout": 0.0}
    return train_here(tiny_settings(toy, tmp_path_factory.mktemp("runs") / "upscaler", **UPSCALER, **changes))


def small_photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)


def test_a_run_saves_the_pipeline_of_upscalers_and_a_preview(upscaler):
    pipe = MaskGuidedUpscalePipeline.from_pretrained(upscaler)
    assert (pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale) == (20, 1.0)
    (image,) = pipe(small_photo(), torch.zeros(16, 32, dtype=torch.long), num_inference_steps=2).images
    assert image.size == (32, 16)
    assert (upscaler / "previews" / "step-0000004.png").is_file()
    first = weights(upscaler)
    assert first["conv_low_res.weight"].abs().max() > 0
    assert first["noise_level_embedding.weight"].abs().max() > 0
    with pytest.raises(ValueError, match="is an upscaler; it enlarges the images of another model"):
        load_pipeline(upscaler)
    assert type(load_pipeline(upscaler, upscaler=True)) is MaskGuidedUpscalePipeline
    card = (upscaler / "README.md").read_text()
    assert "A mask-guided upscaler: it enlarges street images by 2" in card
    assert "in crops of 8 x 16 pixels" in card
    assert 'pipe("small.png", "large_mask.png")' in card


def test_a_resumed_upscaler_equals_the_straight_one_bit_for_bit(upscaler, toy, base, tmp_path):
    changes = {"init_from": str(base), "dropout": 0.0}
    settings = tiny_settings(toy, tmp_path / "run", **UPSCALER, **changes)
    run = train_here(settings)
    (run / "checkpoint-4").rename(run / "checkpoint-4.set-aside")
    resumed = train_here(dataclasses.replace(settings, resume_from_checkpoint="latest"))
    one, other = weights(resumed), weights(upscaler)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_upscaler_has_a_student_of_one_step(upscaler, toy, tmp_path):
    names = ("train_batch_size", "logging_steps", "lr_warmup_steps", "dataloader_num_workers", "device")
    small = {name: TINY[name] for name in names}
    settings = DistillationSettings(
        model=str(upscaler), dataset=str(toy), output_dir=str(tmp_path / "run"), steps=1, random_crop="8x16",
        max_train_steps=2, checkpointing_steps=2, preview_steps=2, reconstruction_weight=2.0, adversarial_weight=0.0,
        learning_rate=1e-3, **small,
    )  # fmt: skip
    try:
        run = distill(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert all(line["reconstruction"] > 0 for line in log_lines(run))  # from noise too: the image is known
    pipe = MaskGuidedUpscalePipeline.from_pretrained(run)
    assert type(pipe.scheduler) is LCMScheduler
    assert (pipe.config.default_num_inference_steps, list(pipe.config.trained_timesteps)) == (1, [999])
    assert pipe.unet.config.residual_scale
    assert not pipe.scheduler.config.clip_sample  # differences have no bounds
    assert len(pipe(small_photo(), torch.zeros(16, 32, dtype=torch.long)).images) == 1
    assert pipe.num_timesteps == 1


def test_options_of_upscalers_are_refused_for_students_of_other_models(base, toy, tmp_path):
    given = {"model": str(base), "dataset": str(toy), "output_dir": str(tmp_path), "random_crop": "8x16"}
    for settings, message in (
        (DistillationSettings(**given, low_res_blur=0.1, adversarial_weight=0.0), "--low_res_blur is for upscalers"),
        (
            DistillationSettings(**given, steps=1, reconstruction_weight=2.0, adversarial_weight=0.0),
            "--reconstruction_weight is for students of several steps",
        ),
    ):
        try:
            with pytest.raises(ValueError, match=message):
                distill(settings)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
