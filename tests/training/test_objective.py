"""The objective: zero terminal SNR, Min-SNR at its limits, pixels weighted by class, the perceptual loss."""

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.training_utils import compute_snr
from helpers.training_runs import losses, tiny_settings, train_here, weights

from semseg_diffusers import ImageBackbone, MaskGuidedDDPMPipeline
from semseg_diffusers.generation.model import new_scheduler
from semseg_diffusers.training.objective import (
    ClassWeighting,
    PerceptualLoss,
    build_noise_scheduler,
    diffusion_loss,
    loss_weight,
    predicted_sample,
    prediction_target,
)
from semseg_diffusers.training.settings import TrainingSettings


SCHEDULES = ("linear", "squaredcos_cap_v2", "paper")
SAMPLERS = (
    "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def settings(**changes):
    return TrainingSettings(**{"dataset": "d", "output_dir": "o", **changes})


# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rescaled_schedule_ends_in_noise_alone_and_begins_as_before(schedule):
    plain = build_noise_scheduler(settings(noise_schedule=schedule))
    rescaled = build_noise_scheduler(settings(noise_schedule=schedule, rescale_betas_zero_snr=True))
    assert rescaled.alphas_cumprod[-1] == 0
    assert plain.alphas_cumprod[-1] > 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (rescaled.alphas_cumprod.diff() < 0).all()
    image, noise = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(rescaled.add_noise(image, noise, torch.tensor([999])), noise)


def test_rescaled_schedule_is_refused_with_epsilon():
    with pytest.raises(
        ValueError, match="--rescale_betas_zero_snr cannot be used with --prediction_type epsilon: .*Use v"
    ):
        settings(prediction_type="epsilon", rescale_betas_zero_snr=True)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samplers_of_a_rescaled_run_start_at_the_last_timestep_and_find_the_image(schedule, sampler, prediction_type):
    trained = build_noise_scheduler(
        settings(noise_schedule=schedule, prediction_type=prediction_type, rescale_betas_zero_snr=True)
    )
    saved = DPMSolverMultistepScheduler.from_config(trained.config)
    scheduler = new_scheduler(sampler, saved.config)
    assert scheduler.config.rescale_betas_zero_snr is True
    assert scheduler.config.timestep_spacing == "trailing"
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == trained.config.num_train_timesteps - 1
    image = torch.rand(1, 3, 4, 4) * 2 - 1
    sample = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:  # with a network that knows the only image there is
        given, at = scheduler.scale_model_input(sample, t), t.long().reshape(1)
        alpha, sigma = trained.alphas_cumprod[at].sqrt(), (1 - trained.alphas_cumprod[at]).sqrt()
        answer = prediction_target(trained, image, (given - alpha * image) / sigma, at)
        sample = scheduler.step(answer, t, sample).prev_sample
    torch.testing.assert_close(sample, image, rtol=0, atol=1e-3)


def test_sampler_that_cannot_end_in_noise_alone_is_refused_for_such_a_model():
    trained = build_noise_scheduler(settings(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="HeunDiscreteScheduler does not know rescale_betas_zero_snr.* DDIMScheduler"):
        new_scheduler("HeunDiscreteScheduler", trained.config)
    assert new_scheduler("HeunDiscreteScheduler", build_noise_scheduler(settings()).config)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_min_snr_goes_to_its_limit_where_the_image_is_noise_alone(prediction_type):
    scheduler = build_noise_scheduler(settings(prediction_type=prediction_type, rescale_betas_zero_snr=True))
    timestep = torch.tensor([999, 998, 990])
    weight = loss_weight(scheduler, timestep, 5.0)
    assert weight[0] == 0
    assert weight.isfinite().all()
    alphas = scheduler.alphas_cumprod[timestep]  # min(SNR, gamma) / (SNR + 1) is alpha^2 for v, and SNR for x0
    limit = alphas if prediction_type == "v_prediction" else alphas / (1 - alphas)
    torch.testing.assert_close(weight, limit, rtol=1e-5, atol=0)
    assert torch.equal(loss_weight(scheduler, timestep, None), torch.ones(3))


def test_velocity_of_noise_alone_is_the_image_negated():
    scheduler = build_noise_scheduler(settings(rescale_betas_zero_snr=True))
    image, noise = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(prediction_target(scheduler, image, noise, torch.tensor([999])), -image)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_run_with_zero_terminal_snr_is_saved_and_samples(toy, tmp_path, schedule):
    run = train_here(
        tiny_settings(toy, tmp_path / "run", max_train_steps=1, noise_schedule=schedule, rescale_betas_zero_snr=True)
    )
    pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
    assert type(pipe.scheduler) is getattr(
        diffusers, "DDPMScheduler" if schedule == "paper" else "DPMSolverMultistepScheduler"
    )
    assert (pipe.scheduler.config.rescale_betas_zero_snr, pipe.scheduler.config.timestep_spacing) == (True, "trailing")
    assert (pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale) == (20, 2.0)
    image = pipe(torch.zeros(16, 32, dtype=torch.uint8), num_inference_steps=3, output_type="pt").images
    assert image.isfinite().all()
    assert int(pipe.scheduler.timesteps[0]) == 999
    assert "rescaled to end in noise alone" in (run / "README.md").read_text()


# Pixels weighted by class


def test_weights_of_classes_are_oasis_formula_by_hand():
    mask = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1]]])  # 8 pixels, 2 classes: 8 / (2 * 6) = 2/3, 8 / (2 * 2) = 2
    weights = ClassWeighting(num_classes=3, maximum=4.0, min_snr=0.01).pixel_weights(mask)
    torch.testing.assert_close(weights, torch.tensor([[[2 / 3] * 6 + [2.0] * 2]]))


def test_weights_of_classes_are_clipped_before_their_mean_is_made_one():
    mask = torch.zeros(1, 10, 10, dtype=torch.long)
    mask[0, 0, 0] = 2  # 100 / (2 * 99) = 0.505, 100 / (2 * 1) = 50
    clipped = ClassWeighting(3, 4.0, 0.01).pixel_weights(mask)
    mean = (99 * 100 / 198 + 4.0) / 100
    torch.testing.assert_close(clipped[0, 0, 0], torch.tensor(4.0 / mean))
    torch.testing.assert_close(clipped[0, 5, 5], torch.tensor(100 / 198 / mean))
    for index in range(1, 9):
        mask[0, 1, index] = 2 + index  # ten classes: 100 / (10 * 91) = 0.11, below a half
    clipped = ClassWeighting(11, 4.0, 0.01).pixel_weights(mask)
    torch.testing.assert_close(clipped[0, 0, 0] / clipped[0, 5, 5], torch.tensor(4.0 / 0.5))


def test_unknown_pixels_weigh_one_and_count_for_no_class():
    mask = torch.tensor([[[0, 0, 0, 1, 255, 255, 255, 254]]])  # 4 labelled: 4 / (2 * 3) = 2/3, 4 / (2 * 1) = 2
    weights = ClassWeighting(3, 4.0, 0.01).pixel_weights(mask)
    torch.testing.assert_close(weights, torch.tensor([[[2 / 3] * 3 + [2.0] + [1.0] * 4]]))
    assert torch.equal(ClassWeighting(3, 4.0, 0.01).pixel_weights(torch.full((2, 4, 4), 255)), torch.ones(2, 4, 4))


def test_weights_have_mean_one_in_each_sample_and_know_nothing_of_the_others():
    masks = torch.randint(0, 7, (8, 16, 16), generator=torch.Generator().manual_seed(0)).clamp(max=5)
    masks[:, :3], masks[:, 3:5], masks[2, 8:] = 0, 255, 4
    weighting = ClassWeighting(6, 4.0, 0.01)
    weights = weighting.pixel_weights(masks)
    torch.testing.assert_close(weights.mean(dim=(1, 2)), torch.ones(8))
    assert all(torch.equal(weights[i], weighting.pixel_weights(masks[i : i + 1])[0]) for i in range(8))


@torch.no_grad()
def test_only_samples_above_the_snr_floor_are_weighted_by_class(tiny_unet):
    scheduler = build_noise_scheduler(settings())
    generator = torch.Generator().manual_seed(0)
    timestep = torch.tensor([10, 300, 600, 700, 999])
    mask = torch.zeros(5, 16, 16, dtype=torch.long)
    mask[:, 0, :4] = 1
    batch = {"timestep": timestep, "mask": mask}
    batch |= {name: torch.randn(5, 3, 16, 16, generator=generator) for name in ("image", "noise")}
    weighting = ClassWeighting(2, 4.0, 0.01)
    plain, weighted = (diffusion_loss(tiny_unet, scheduler, batch, 5.0, how) for how in (None, weighting))
    above = compute_snr(scheduler, timestep) >= 0.01
    assert above.tolist() == [True, True, True, False, False]
    assert torch.equal(weighted[~above], plain[~above])
    target = prediction_target(scheduler, batch["image"], batch["noise"], timestep)
    answer = tiny_unet(scheduler.add_noise(batch["image"], batch["noise"], timestep), timestep, mask=mask).sample
    expected = ((answer - target).pow(2) * weighting.pixel_weights(mask)[:, None]).mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted[above], (expected * loss_weight(scheduler, timestep, 5.0))[above])
    assert (weighted[above] != plain[above]).all()


@torch.no_grad()
def test_an_upscaler_with_a_residual_scale_learns_what_the_enlarged_image_lacks():
    scheduler = build_noise_scheduler(settings(prediction_type="sample"))
    batch = {name: torch.rand(2, 3, 16, 16) for name in ("image", "noise", "low_res")}
    batch |= {"timestep": torch.tensor([10, 900]), "mask": torch.zeros(2, 16, 16, dtype=torch.long)}
    lacking = 4.0 * (batch["image"] - batch["low_res"])
    seen = []

    def network(noisy, timestep, **conditions):
        seen.append(noisy)
        return UNet2DOutput(sample=lacking)

    assert diffusion_loss(network, scheduler, batch, None, residual_scale=4.0).abs().max() < 1e-10
    torch.testing.assert_close(seen[0], scheduler.add_noise(lacking, batch["noise"], batch["timestep"]))
    assert (diffusion_loss(network, scheduler, batch, None) > 0.1).all()


def test_class_weights_change_the_run_and_how_a_step_is_shared_out_does_not(toy, tmp_path):
    changes = {"class_loss_weighting": True, "dropout": 0.0, "max_train_steps": 3}
    whole = train_here(tiny_settings(toy, tmp_path / "whole", train_batch_size=4, **changes))
    shared = train_here(
        tiny_settings(toy, tmp_path / "shared", train_batch_size=1, gradient_accumulation_steps=4, **changes)
    )
    assert losses(shared) == pytest.approx(losses(whole), rel=1e-5)
    changes["class_loss_weighting"] = False
    plain = train_here(tiny_settings(toy, tmp_path / "plain", train_batch_size=4, **changes))
    assert losses(plain)[0] != pytest.approx(losses(whole)[0], rel=1e-3)
    first, other = weights(whole), weights(plain)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert "pixels weighted by class up to 4 from SNR 0.01 on" in (whole / "README.md").read_text()
    assert "by class" not in (plain / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_loss_weight_max": 0.9}, "--class_loss_weight_max must be 1 or more; got 0.9"),
        ({"class_loss_min_snr": 0.0}, "--class_loss_min_snr must be more than 0"),
    ],
)
def test_class_weights_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(class_loss_weighting=True, **changes)


# The perceptual loss


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    return PerceptualLoss(ImageBackbone.from_name("efficientnet-lite0"), weight=0.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_amounts_to_the_image(prediction_type):
    scheduler = build_noise_scheduler(settings(prediction_type=prediction_type))
    image, noise, timestep = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 3, 8, 8), torch.tensor([0, 200, 600])
    noisy = scheduler.add_noise(image, noise, timestep)
    target = prediction_target(scheduler, image, noise, timestep)
    torch.testing.assert_close(predicted_sample(scheduler, noisy, target, timestep), image, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_perceptual_distance_is_zero_for_equal_images_and_grows_with_blur(perceptual):
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 32, 32) * 2 - 1, scale_factor=2)  # (2, 3, 64, 64)
    windows = torch.rand(2, 3)
    blurred = [
        torch.nn.functional.avg_pool2d(image, size, 1, size // 2, count_include_pad=False) for size in (1, 3, 7)
    ]
    found = torch.stack([perceptual.distances(image, each, windows) for each in blurred])  # (3, 2)
    assert (found[0] == 0).all()
    assert (found[1] > 0.01).all()
    assert (found[2] > found[1]).all()


@torch.no_grad()
def test_a_window_shows_a_part_of_both_images(perceptual):
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    changed = image.clone()
    changed[:, :, :, :20] = 0  # outside the window at the right
    right, whole = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert perceptual.distances(image, changed, right).item() == 0
    assert perceptual.distances(image, changed, whole).item() > 0.01


def test_perceptual_loss_is_added_at_the_size_of_the_main_loss_where_there_is_little_noise(tiny_unet, perceptual):
    scheduler = build_noise_scheduler(settings())
    timestep = torch.tensor([10, 200, 500, 999])
    batch = {
        "image": torch.rand(4, 3, 16, 16) * 2 - 1, "noise": torch.randn(4, 3, 16, 16), "timestep": timestep,
        "mask": torch.zeros(4, 16, 16, dtype=torch.long), "window": torch.rand(4, 3),
    }  # fmt: skip
    plain = diffusion_loss(tiny_unet, scheduler, batch, 5.0)
    found = diffusion_loss(tiny_unet, scheduler, batch, 5.0, perceptual=perceptual)
    alpha_bar = scheduler.alphas_cumprod[timestep]
    noise_share = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())
    near = noise_share < 0.7
    assert near.tolist() == [True, True, False, False]
    torch.testing.assert_close(found[near], 1.5 * plain[near])
    assert torch.equal(found[~near], plain[~near])
    gradients = [
        torch.autograd.grad(loss[:1].sum(), tiny_unet.parameters(), allow_unused=True) for loss in (plain, found)
    ]
    assert any(g is not None and not torch.allclose(g, f) for g, f in zip(*gradients, strict=True))
    alone = {name: value[:1] for name, value in batch.items()}
    torch.testing.assert_close(diffusion_loss(tiny_unet, scheduler, alone, 5.0, perceptual=perceptual), found[:1])


def test_perceptual_loss_changes_the_run_and_how_a_step_is_shared_out_does_not(toy, tmp_path):
    changes = {"perceptual_weight": 0.5, "dropout": 0.0, "max_train_steps": 3}
    whole = train_here(tiny_settings(toy, tmp_path / "whole", train_batch_size=4, **changes))
    shared = train_here(
        tiny_settings(toy, tmp_path / "shared", train_batch_size=1, gradient_accumulation_steps=4, **changes)
    )
    assert losses(shared) == pytest.approx(losses(whole), rel=1e-4)
    changes["perceptual_weight"] = 0.0
    plain = train_here(tiny_settings(toy, tmp_path / "plain", train_batch_size=4, **changes))
    first, other = weights(whole), weights(plain)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert "perceptual loss of weight 0.5 in features of efficientnet-lite0" in (whole / "README.md").read_text()
    assert "perceptual" not in (plain / "README.md").read_text()
