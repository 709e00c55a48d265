"""Schedulers that would sample noise are refused before work; calls in two threads give what they give one by one."""

import threading

import diffusers
import numpy as np
import pytest
import torch
from helpers.tiny_pipelines import SIZE, draw, pipeline, random_ids, seeded, tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
from semseg_diffusers.generation.model import new_scheduler
from semseg_diffusers.models.published.unet_paper import paper_betas
from semseg_diffusers.pipelines.scheduler_trial import check_scheduler


pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
PHOTO = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SAVED = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **COSINE)


# --- what is sampled, and what is refused ---


@pytest.mark.parametrize("levels", [{"beta_schedule": "linear"}, {"beta_schedule": "scaled_linear"}, COSINE])
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
     "EulerDiscreteScheduler", "PNDMScheduler:skip_prk_steps=true", "LCMScheduler", "UniPCMultistepScheduler"],
)  # fmt: skip
def test_schedulers_of_the_saved_noise_levels_are_accepted(name, levels, steps):
    saved = diffusers.DDPMScheduler(clip_sample=False, **levels)
    check_scheduler(new_scheduler(name, saved.config), steps, saved)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DPMSolverMultistepScheduler:use_karras_sigmas=true", "IndexError at step"),
        ("UniPCMultistepScheduler:use_exponential_sigmas=true", "AssertionError at step"),
        ("DEISMultistepScheduler:use_beta_sigmas=true", "IndexError at step"),
        ("EulerDiscreteScheduler:interpolation_type=log_linear", "times the noise of its timestep"),
        ("DDIMInverseScheduler:timestep_spacing=trailing", "times the noise of its timestep"),
        ("DPMSolverMultistepInverseScheduler", "times the noise|not finite"),
        ("DDIMScheduler:prediction_type=epsilon", "'epsilon', that of the training 'v_prediction'"),
        ("DDIMScheduler:beta_schedule=linear", "its noise at timestep"),
        ("CogVideoXDDIMScheduler", "its noise at timestep"),
        (
            "HeunDiscreteScheduler",
            "times as much|times the noise|times as large",
        ),  # sampled as noise by checkpoints/toy
        ("KDPM2DiscreteScheduler", "times as large"),
        ("UniPCMultistepScheduler:predict_x0=false", "not finite"),
        ("DDPMScheduler:variance_type=fixed_large", "times the noise of its timestep"),
    ],
)
def test_schedulers_that_would_sample_noise_are_refused_with_their_reason(name, reason):
    with pytest.raises(
        ValueError, match=rf"{name.partition(':')[0]} .*cannot sample this model in 20 steps: .*{reason}"
    ):
        check_scheduler(new_scheduler(name, SAVED.config), 20, SAVED)


def test_a_saved_scheduler_that_was_replaced_tells_the_noise_levels_of_the_training(batches):
    pipe = pipeline(scheduler=SAVED)
    calls = batches(pipe.unet)
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler .*prediction_type"):
        draw(pipe, random_ids())
    pipe.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    for other in (pipe, MaskGuidedDDPMPipeline.from_pipe(pipe)):
        with pytest.raises(ValueError, match="its noise at timestep"):
            draw(other, random_ids())
    assert calls == []
    pipe.scheduler = diffusers.DDIMScheduler(**COSINE)
    assert draw(pipe, random_ids()).isfinite().all()


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"])
def test_values_that_the_saved_scheduler_has_by_default_stay(name):
    pytest.importorskip("scipy")
    saved = diffusers.DDPMScheduler()  # never saved, so its config names defaults that another class does not share
    scheduler = new_scheduler(name, saved.config)
    assert torch.allclose(scheduler.alphas_cumprod, saved.alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 20, 1000])
def test_the_saved_scheduler_of_the_paper_is_accepted_at_any_steps(steps):
    betas = [float(beta) for beta in paper_betas(1000)]
    check_scheduler(diffusers.DDPMScheduler(trained_betas=betas, variance_type="fixed_large"), steps)


class OwnSteps(diffusers.DDIMScheduler):
    """A scheduler of a user, which does what it likes."""

    def step(self, model_output, timestep, sample, return_dict=True):  # noqa: ARG002  diffusers' signature
        return (sample * 0,)


def test_schedulers_of_users_are_left_to_them():
    assert (draw(pipeline(scheduler=OwnSteps()), random_ids(), num_inference_steps=20) == 0.5).all()


def test_a_trial_leaves_the_scheduler_and_the_random_state_as_they_were():
    scheduler = diffusers.DDPMScheduler()
    before, state = dict(vars(scheduler)), torch.get_rng_state()
    check_scheduler(scheduler, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(scheduler) == before


# --- threads ---

KINDS = {
    MaskGuidedDDPMPipeline: {},
    MaskGuidedImg2ImgPipeline: {"image": PHOTO, "strength": 0.8},
    MaskGuidedInpaintPipeline: {"image": PHOTO, "edit_region": np.eye(SIZE, dtype=bool)},
}


def together(*calls) -> list:
    """Run functions in threads that start at once; return what they return, or raise."""
    results, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(i):
        barrier.wait()
        results[i] = calls[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"],
)
def test_two_threads_give_the_images_of_one_after_the_other(kind, name):
    pipe = pipeline(tiny_unet(dropout=0.2).train(), getattr(diffusers, name)(), kind)

    def sample(i: int, seen: list | None = None):
        def watch(running, *_):
            if seen is not None:
                seen.append((running.guidance_scale, running.num_timesteps))

        return pipe(
            mask=random_ids(seed=i), num_inference_steps=(5, 8)[i], guidance_scale=(1.5, 4.0)[i], generator=seeded(i),
            output_type="pt", callback_on_step_end=watch, **KINDS[kind],
        ).images  # fmt: skip

    alone = [sample(0), sample(1)]
    seen: tuple[list, list] = ([], [])
    both = together(lambda: sample(0, seen[0]), lambda: sample(1, seen[1]))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(both, alone, strict=True))
    assert [len(set(each)) for each in seen] == [1, 1]
    assert all(module.training for module in pipe.unet.modules())


def test_a_callback_may_call_the_pipeline_again():
    pipe = pipeline(scheduler=diffusers.DPMSolverMultistepScheduler())
    expected = draw(pipe, random_ids(), num_inference_steps=4)

    def again(running, *_):
        draw(running, random_ids(seed=1), guidance_scale=5.0)

    assert torch.equal(draw(pipe, random_ids(), num_inference_steps=4, callback_on_step_end=again), expected)
    assert pipe.guidance_scale == 2.0


def test_a_call_leaves_the_scheduler_as_it_was():
    pipe = pipeline(scheduler=diffusers.DPMSolverMultistepScheduler())
    scheduler, before = pipe.scheduler, dict(vars(pipe.scheduler))
    draw(pipe, random_ids())
    assert pipe.scheduler is scheduler
    assert vars(scheduler) == before


# --- values that are not finite, and numbers ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_values_that_are_not_finite_are_an_error_for_each_output(kind, output_type):
    pipe = pipeline(kind=kind)
    torch.nn.init.constant_(pipe.unet.conv_out.weight, torch.nan)
    with pytest.raises(ValueError, match=r"DDIMScheduler gave values that are not finite at step 1 of \d+"):
        pipe(mask=random_ids(), num_inference_steps=3, output_type=output_type, **KINDS[kind])


def test_a_callback_may_mend_values_that_are_not_finite():
    pipe = pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.weight, torch.nan)

    def mend(_, __, ___, tensors):
        return {"latents": tensors["latents"].nan_to_num()}

    assert draw(pipe, random_ids(), callback_on_step_end=mend).isfinite().all()


@pytest.mark.parametrize("generator", [42, np.random.default_rng(0), [torch.Generator(), 3], "0", True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_generator_is_refused_with_what_to_pass(kind, generator, batches):
    pipe = pipeline(kind=kind)
    calls = batches(pipe.unet)
    with pytest.raises(TypeError, match=r"expected a torch.Generator, .*=torch.Generator\(\).manual_seed\("):
        pipe(mask=random_ids(2), generator=generator, **KINDS[kind])
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [np.int64, np.uint8, torch.tensor, np.array])
@pytest.mark.parametrize("real", [np.float32, np.float64, torch.tensor, np.array])
def test_scalars_of_numpy_and_torch_are_numbers(kind, whole, real):
    settings = {"num_inference_steps": 3, "num_images_per_mask": 1, "height": SIZE, "width": SIZE}
    scales = {"guidance_scale": 2.0, "guidance_start": 0.5, "guidance_stop": 1.0}
    extra = {name: real(value) if name == "strength" else value for name, value in KINDS[kind].items()}
    pipe = pipeline(kind=kind)
    given = {name: whole(value) for name, value in settings.items()} | {name: real(v) for name, v in scales.items()}
    images = pipe(mask=random_ids(), generator=seeded(0), output_type="pt", **given, **extra).images
    expected = pipe(mask=random_ids(), generator=seeded(0), output_type="pt", **settings, **scales, **KINDS[kind])
    assert torch.allclose(images, expected.images, atol=1e-6)


@pytest.mark.parametrize("value", [np.float32("nan"), np.bool_(True), torch.tensor(torch.inf), np.str_("2")])
def test_scalars_that_are_no_finite_numbers_are_refused(value):
    with pytest.raises(ValueError, match="`guidance_scale` is .*; expected a finite number"):
        draw(pipeline(), random_ids(), guidance_scale=value)
