"""What users of diffusers' pipelines expect: interrupting, lists of timesteps or sigmas, refusals before any work."""

import diffusers
import numpy as np
import pytest
import torch
from helpers.tiny_pipelines import SIZE, draw, pipeline, random_ids, seeded, tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
from semseg_diffusers.generation.model import new_scheduler


pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
PHOTO = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
KINDS = {
    MaskGuidedDDPMPipeline: {},
    MaskGuidedImg2ImgPipeline: {"image": PHOTO, "strength": 1.0},
    MaskGuidedInpaintPipeline: {"image": PHOTO, "edit_region": np.ones((SIZE, SIZE), dtype=bool)},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def sample(pipe, mask=None, **settings) -> torch.Tensor:
    settings = {"generator": seeded(0), "output_type": "latent", **KINDS[type(pipe)], **settings}
    return pipe(mask=random_ids() if mask is None else mask, **settings).images


# --- interrupting ---


@every_kind
def test_a_callback_interrupts_after_its_step_and_the_next_call_runs_whole(kind, batches):
    pipe = pipeline(kind=kind)
    kept = []

    def stop_after_two(running, step, _, tensors):
        kept.append(tensors["latents"])
        running._interrupt = step == 1
        return {}

    calls = batches(pipe.unet)
    interrupted = sample(pipe, num_inference_steps=6, callback_on_step_end=stop_after_two)
    assert len(calls) == len(kept) == 2
    assert torch.equal(interrupted, kept[-1])
    sample(pipe, num_inference_steps=6)
    assert len(calls) == 2 + 6


# --- timesteps and sigmas ---


@every_kind
@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_timesteps_of_the_schedule_give_what_their_number_gives(kind, form):
    pipe = pipeline(scheduler=diffusers.DDPMScheduler(), kind=kind)
    scheduler = diffusers.DDPMScheduler()
    scheduler.set_timesteps(5)
    given = sample(pipe, timesteps=form(scheduler.timesteps.tolist()))
    assert torch.equal(given, sample(pipe, num_inference_steps=5))
    assert not torch.equal(given, sample(pipe, timesteps=[900, 500, 300, 100, 0]))


def test_timesteps_are_those_at_which_the_network_is_called():
    pipe = pipeline(scheduler=diffusers.DPMSolverMultistepScheduler())
    seen = []
    chosen = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]  # those of "Align Your Steps", Sabour et al. 2024
    sample(pipe, timesteps=chosen, callback_on_step_end=lambda _, __, t, ___: seen.append(int(t)))
    assert seen == chosen


def test_a_strength_leaves_a_part_of_the_timesteps():
    pipe = pipeline(scheduler=diffusers.DDPMScheduler(), kind=MaskGuidedImg2ImgPipeline)
    seen = []
    sample(pipe, strength=0.5, timesteps=[900, 600, 300, 0], callback_on_step_end=lambda *s: seen.append(int(s[2])))
    assert seen == [300, 0]


@every_kind
def test_sigmas_are_those_that_the_scheduler_steps_with(kind):
    pipe = pipeline(scheduler=diffusers.EulerDiscreteScheduler(), kind=kind)
    seen, chosen = [], [14.0, 5.0, 2.0, 0.5, 0.0]
    sample(pipe, sigmas=chosen, callback_on_step_end=lambda each, *_: seen.append(each.scheduler.sigmas.tolist()))
    assert seen == [chosen] * 4


@pytest.mark.parametrize(
    ("scheduler", "lists", "message"),
    [
        (diffusers.DDIMScheduler, {"timesteps": [9, 5]}, "DDIMScheduler takes no `timesteps`: .*EulerDiscrete"),
        (diffusers.DDPMScheduler, {"sigmas": [9.0, 5.0]}, "DDPMScheduler takes no `sigmas`"),
        (diffusers.EulerDiscreteScheduler, {"timesteps": [9], "sigmas": [5.0]}, "pass one of them"),
        (diffusers.DDPMScheduler, {"timesteps": []}, r"`timesteps` are \[\]; expected one or more"),
        (diffusers.DDPMScheduler, {"timesteps": [1, 2]}, "each less than the one before"),
        (diffusers.DDPMScheduler, {"timesteps": [9.5]}, "`timesteps` is 9.5; expected a whole number"),
        (diffusers.DDPMScheduler, {"timesteps": [1000, 0]}, "cannot sample this model in 2 steps: .*1000"),
        (diffusers.EulerDiscreteScheduler, {"sigmas": [float("nan")]}, "`sigmas` is nan"),
        (diffusers.EulerDiscreteScheduler, {"sigmas": [14.0, 0.5]}, r"at the sigmas \[14.0, 0.5\]; .*down to 0"),
        (diffusers.UniPCMultistepScheduler, {"sigmas": [14.0, 0.5, 0.0]}, "UniPCMultistepScheduler "),
    ],
)
def test_lists_that_do_not_fit_are_refused_before_any_work(scheduler, lists, message, batches):
    pipe = pipeline(scheduler=scheduler())
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=message):
        sample(pipe, **lists)
    assert calls == []


# --- schedulers ---


@every_kind
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler:skip_prk_steps=true"])
def test_more_steps_than_the_schedule_has_are_refused_before_any_work(kind, name, batches):
    saved = diffusers.DDPMScheduler(num_train_timesteps=100)
    pipe = pipeline(scheduler=saved, kind=kind)
    pipe.scheduler = new_scheduler(name, saved.config)
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match="in at most 100 steps, its `num_train_timesteps`; got 101"):
        sample(pipe, num_inference_steps=101)
    assert calls == []


def test_ddim_with_the_spacing_of_another_scheduler_is_mended_in_python_as_on_the_command_line():
    saved = diffusers.DPMSolverMultistepScheduler(timestep_spacing="linspace")
    pipe = pipeline(scheduler=saved)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(saved.config)
    images = draw(pipe, random_ids())
    pipe.scheduler = new_scheduler("DDIMScheduler", saved.config)
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert torch.equal(images, draw(pipe, random_ids()))
    pipe.scheduler = new_scheduler("DDIMScheduler:timestep_spacing=linspace", saved.config)  # in spite of all
    with pytest.raises(ValueError, match="the image holds .* times the noise of its timestep"):
        draw(pipe, random_ids())
    own = pipeline(scheduler=diffusers.DDIMScheduler(timestep_spacing="linspace"))  # as its author saved it
    assert not torch.equal(images, draw(own, random_ids()))


# --- networks and masks ---


@every_kind
def test_a_network_that_reads_no_masks_is_refused_in_plain_words(kind):
    network = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="`unet` is a UNet2DModel, which reads no masks; expected a mask-guided"):
        kind(unet=network, scheduler=diffusers.DDIMScheduler())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_mask_may_keep_a_channel_of_one(dtype):
    pipe, ids = pipeline(tiny_unet()), random_ids(2)
    expected = draw(pipe, ids, seeds=(3, 4))
    array = ids.numpy().astype(dtype)[..., None]
    for form in (array, torch.from_numpy(array), list(array), [torch.from_numpy(each) for each in array]):
        assert torch.equal(draw(pipe, form, seeds=(3, 4)), expected)
    assert torch.equal(draw(pipe, array[0], seeds=(3,)), draw(pipe, ids[0], seeds=(3,)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((SIZE, SIZE, 2), np.uint8), r"16 masks of 16 x 2; expected class ids \(H, W\)"),
        (np.zeros((SIZE, SIZE, 3), np.int64), "16 masks of 16 x 3"),
        (torch.zeros(SIZE, 2 * SIZE, 5, dtype=torch.long), "16 masks of 32 x 5"),
        (torch.nn.functional.one_hot(random_ids()[0], 19), r"one-hot along axis 2; .*mask.argmax\(2\)"),
        (torch.nn.functional.one_hot(random_ids()[0], 19).permute(2, 0, 1), r"axis 0; .*mask.argmax\(0\)"),
    ],
)
def test_arrays_that_would_be_many_odd_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline(), mask)
