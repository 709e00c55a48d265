"""The pipeline on tiny real networks: schedulers, guidance, batches, masks, outputs, callbacks, refusals."""

import contextlib
import io
import warnings

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from diffusers.callbacks import PipelineCallback
from helpers.tiny_pipelines import BDD, SCHEDULERS, SIZE, draw, pipeline, random_ids, seeded, tiny_unet
from PIL import Image

from semseg_diffusers import (
    MaskGuidedDDPMPipeline,
    MaskGuidedImg2ImgPipeline,
    MaskGuidedInpaintPipeline,
    PaperUNet2DModel,
)


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates, thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture(scope="module")
def pipe() -> MaskGuidedDDPMPipeline:
    return pipeline()


# --- schedulers ---


@pytest.mark.parametrize(
    ("name", "prediction_type"), [(name, kind) for name, kinds in SCHEDULERS.items() for kind in kinds]
)
def test_scheduler_gives_finite_images_and_the_same_ones_again(name, prediction_type):
    settings = {} if prediction_type is None else {"prediction_type": prediction_type}
    if name == "DPMSolverSinglestepScheduler":
        settings["lower_order_final"] = True
    pipe = pipeline(scheduler=getattr(diffusers, name)(**settings))
    first = draw(pipe, random_ids(), num_inference_steps=5, output_type="latent")
    draw(pipe, random_ids(seed=1), num_inference_steps=4, guidance_scale=1.0)  # another run in between leaves nothing
    second = draw(pipe, random_ids(), num_inference_steps=5, output_type="latent")
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_stochastic_schedulers_use_the_given_generator_alone(name):
    pipe = pipeline(scheduler=getattr(diffusers, name)())
    state = torch.random.get_rng_state()
    first = draw(pipe, random_ids())
    torch.manual_seed(99)
    assert torch.equal(first, draw(pipe, random_ids()))
    torch.random.set_rng_state(state)
    draw(pipe, random_ids())
    assert torch.equal(torch.random.get_rng_state(), state)


# --- guidance ---


def test_guidance_scale_one_equals_plain_conditional(pipe, batches):
    calls = batches(pipe.unet)
    mask = random_ids()
    plain = draw(pipe, mask, guidance_scale=1.0)
    assert calls == [1, 1, 1]
    none_guided = draw(pipe, mask, guidance_scale=3.0, guidance_start=0.0, guidance_stop=0.0)
    almost = draw(pipe, mask, guidance_scale=1 + 1e-6)
    assert torch.equal(plain, none_guided)
    assert torch.allclose(plain, almost, atol=1e-4)
    assert not torch.allclose(plain, draw(pipe, mask, guidance_scale=3.0), atol=1e-4)


def test_guidance_scale_zero_equals_unconditional(pipe):
    assert torch.allclose(draw(pipe, random_ids(), guidance_scale=0.0), draw(pipe, None), atol=1e-5)


def test_guidance_follows_its_equation(pipe):
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    guided = draw(pipe, mask, num_inference_steps=1, guidance_scale=2.5, latents=latents, output_type="latent")
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        uncond, cond = pipe.unet(latents, t).sample, pipe.unet(latents, t, mask=mask).sample
    expected = scheduler.step(uncond + 2.5 * (cond - uncond), t, latents).prev_sample
    assert torch.allclose(guided, expected, atol=1e-5)


def test_guidance_costs_one_batched_forward_a_step_and_none_outside_its_interval(pipe, batches):
    calls = batches(pipe.unet)
    draw(pipe, random_ids(2), seeds=(0, 1), num_inference_steps=10, guidance_start=0.25, guidance_stop=0.75)
    assert calls == [2] * 2 + [4] * 5 + [2] * 3  # int(0.25 * 10) <= i < int(0.75 * 10)


def test_mask_features_are_computed_once_for_each_mask(pipe):
    seen = []
    handle = pipe.unet.mask_branch.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    draw(pipe, random_ids(2), seeds=range(6), num_images_per_mask=3, num_inference_steps=4)
    handle.remove()
    assert sorted(seen) == [1, 2]  # "unknown" once, the two masks once


def test_no_guidance_is_paid_for_where_no_mask_says_anything(pipe, batches):
    calls = batches(pipe.unet)
    draw(pipe, [None, torch.full((SIZE, SIZE), 255)], seeds=(0, 1))
    assert calls == [2, 2, 2]


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("mask_conditioning", ["add", "concat", "spade"])
def test_all_unknown_mask_equals_no_mask(mask_conditioning, patch_size):
    unet = tiny_unet(mask_conditioning=mask_conditioning, patch_size=patch_size)
    for name, weight in unet.named_parameters():
        if name.startswith(("mask_branch.conv_2", "mask_norms.projections")):
            torch.nn.init.normal_(weight)
    pipe = pipeline(unet)
    without = draw(pipe, None)
    assert torch.equal(without, draw(pipe, torch.full((1, SIZE, SIZE), 255)))
    mixed = draw(pipe, [random_ids()[0], None], seeds=(5, 0))
    assert torch.allclose(mixed[1], without[0], atol=1e-5)
    assert not torch.allclose(draw(pipe, random_ids()), without, atol=1e-3)


def test_partial_mask_is_between_full_and_none(pipe):
    whole = random_ids()
    partial = whole.clone()
    partial[:, :, SIZE // 2 :] = 255
    images = [draw(pipe, mask) for mask in (whole, partial, None)]
    assert all(image.isfinite().all() for image in images)
    assert not any(torch.allclose(images[1], image, atol=1e-4) for image in (images[0], images[2]))


# --- batches ---


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_batch_of_two_equals_two_singles(scheduler):
    pipe = pipeline(scheduler=scheduler())
    masks = random_ids(2)
    both = draw(pipe, masks, seeds=(3, 4))
    for i in range(2):
        assert torch.allclose(both[i], draw(pipe, masks[i], seeds=(3 + i,))[0], atol=1e-4)


def test_images_of_a_mask_follow_each_other(pipe):
    masks = list(random_ids(2))
    images = draw(pipe, masks, seeds=(0, 1, 2, 3), num_images_per_mask=2)
    assert images.shape == (4, 3, SIZE, SIZE)
    for i, mask in enumerate([masks[0], masks[0], masks[1], masks[1]]):
        assert torch.allclose(images[i], draw(pipe, mask, seeds=(i,))[0], atol=1e-4)


def test_single_generator_serves_a_whole_batch(pipe):
    assert torch.equal(draw(pipe, random_ids(2)), draw(pipe, random_ids(2)))


@pytest.mark.parametrize("form", ["ids", "one_hot", "picture", "list"])
def test_masks_in_a_list_may_keep_a_batch_axis_of_one(pipe, form):
    ids = random_ids(2)
    one_hot = torch.nn.functional.one_hot(ids, 19).permute(0, 3, 1, 2).float()
    pictures = np.stack([np.asarray(BDD.decode(mask).convert("RGB")) for mask in ids])
    masks = {"ids": ids.split(1), "one_hot": one_hot.split(1), "picture": np.split(pictures, 2)}
    masks["list"] = [[mask] for mask in ids]
    assert torch.equal(draw(pipe, list(masks[form]), seeds=(3, 4)), draw(pipe, ids, seeds=(3, 4)))


def test_a_whole_batch_inside_a_list_is_refused(pipe):
    with pytest.raises(ValueError, match=r"mask 'number 1' has shape \(2, 16, 16\)"):
        pipe([random_ids()[0], random_ids(2)])


def test_latents_take_the_place_of_the_first_noise(pipe):
    noise = torch.randn(1, 3, SIZE, SIZE, generator=seeded(0))
    assert torch.equal(draw(pipe, random_ids(), latents=noise), draw(pipe, random_ids()))
    euler = pipeline(scheduler=diffusers.EulerDiscreteScheduler())  # whose noise has another scale
    assert torch.equal(draw(euler, random_ids(), latents=noise), draw(euler, random_ids()))


# --- mask forms and sizes ---


def test_every_form_of_a_mask_gives_the_same_image(pipe, tmp_path):
    ids = random_ids()[0]
    ids[0, :5] = 255
    picture = BDD.decode(ids)
    picture.save(tmp_path / "mask.png")
    one_hot = torch.nn.functional.one_hot(torch.where(ids == 255, 19, ids), 20)[..., :19].permute(2, 0, 1)
    forms = [
        ids.to(torch.uint8),
        ids[None],
        ids.int().numpy(),
        picture,
        picture.convert("RGB"),
        np.asarray(picture.convert("RGB")),
        np.asarray(picture.convert("RGB"))[None],
        Image.fromarray(ids.to(torch.uint8).numpy()),
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        [tmp_path / "mask.png"],
        one_hot.float(),
        one_hot.bool()[None],
        one_hot.float().numpy()[None],
    ]
    expected = draw(pipe, ids)
    for form in forms:
        assert torch.equal(draw(pipe, form), expected)


@pytest.mark.parametrize(
    "unet",
    [
        pytest.param(lambda: tiny_unet(sample_size=(96, 160)), id="mask_guided"),
        pytest.param(lambda: PaperUNet2DModel(hidden_dim=8, num_classes=19, sample_size=(96, 160)), id="paper"),
    ],
)
def test_non_square_images(unet):
    pipe = pipeline(unet())
    images = draw(pipe, random_ids(1, 96, 160), num_inference_steps=2)
    assert images.shape == (1, 3, 96, 160)
    assert pipe(random_ids(1, 96, 160), num_inference_steps=1).images[0].size == (160, 96)


def test_mask_of_another_size_is_cropped_and_resized_unless_a_size_is_given(pipe):
    ids = random_ids()[0]
    large = torch.full((2 * SIZE, 4 * SIZE), 3)
    large[:, SIZE : 3 * SIZE] = ids.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(draw(pipe, large), draw(pipe, ids))
    assert draw(pipe, ids, height=8, width=24).shape == (1, 3, 8, 24)
    assert draw(pipe, ids, width=24).shape == (1, 3, SIZE, 24)


def test_network_without_a_sample_size_takes_the_masks_own():
    pipe = pipeline(tiny_unet(sample_size=None))
    assert draw(pipe, random_ids(1, 8, 12)).shape == (1, 3, 8, 12)
    with pytest.raises(ValueError, match="this network has no `sample_size`"):
        draw(pipe, None)
    with pytest.raises(ValueError, match="this network has no `sample_size`"):
        draw(pipe, [random_ids()[0], random_ids(1, 8, 8)[0]], seeds=(0, 1))


# --- networks of other kinds ---


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range", "learned"])
def test_learned_variance_reaches_the_scheduler_that_reads_it(variance_type):
    unet = tiny_unet(out_channels=6)
    unet.conv_out.bias.data[3:] += 2.0  # "learned" takes a variance, which no random network keeps above 0
    pipe = pipeline(unet, DDPMScheduler(variance_type=variance_type, clip_sample=False))
    mask, latents = random_ids(), torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    image = draw(pipe, mask, num_inference_steps=2, guidance_scale=3.0, latents=latents, output_type="latent")

    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=False)
    scheduler.set_timesteps(2)
    generator = seeded(0)
    for t in scheduler.timesteps:
        with torch.no_grad():
            uncond, cond = unet(latents, t).sample, unet(latents, t, mask=mask).sample
        output = uncond[:, :3] + 3.0 * (cond[:, :3] - uncond[:, :3])
        if variance_type != "fixed_small":
            output = torch.cat([output, cond[:, 3:]], dim=1)
        latents = scheduler.step(output, t, latents, generator=generator).prev_sample
    assert image.shape == (1, 3, SIZE, SIZE)
    assert torch.allclose(image, latents, atol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_learned_variance_is_dropped_where_nothing_reads_it(name):
    pipe = pipeline(tiny_unet(out_channels=6), getattr(diffusers, name)())
    assert draw(pipe, random_ids()).shape == (1, 3, SIZE, SIZE)


def test_class_conditional_network_takes_one_label_a_mask():
    pipe = pipeline(tiny_unet(num_class_embeds=4))
    masks = random_ids(2)
    images = draw(pipe, masks, seeds=(0, 1, 2, 3), num_images_per_mask=2, class_labels=[1, 3])
    for i, (mask, label) in enumerate([(0, 1), (0, 1), (1, 3), (1, 3)]):
        alone = draw(pipe, masks[mask], seeds=(i,), class_labels=label)
        assert torch.allclose(images[i], alone[0], atol=1e-4)
    assert not torch.allclose(draw(pipe, masks[0], class_labels=1), draw(pipe, masks[0], class_labels=2), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    pipe = pipeline().to(dtype)
    image = draw(pipe, random_ids())
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert (image - draw(pipeline(), random_ids())).abs().mean() < 0.1
    assert pipe(random_ids(), num_inference_steps=2).images[0].size == (SIZE, SIZE)


@pytest.mark.parametrize("kind", [MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline])
def test_latents_stay_float32_so_that_many_steps_in_half_precision_do_not_add_up(kind):
    seen = []
    photo = np.full((SIZE, SIZE, 3), 90, np.uint8)
    extra = {
        MaskGuidedDDPMPipeline: {},
        MaskGuidedImg2ImgPipeline: {"image": photo},
        MaskGuidedInpaintPipeline: {"image": photo, "edit_region": np.eye(SIZE, dtype=bool)},
    }[kind]

    def watch(*step) -> dict:
        seen.append(step[-1]["latents"].dtype)
        return {}

    pipe = pipeline(tiny_unet().to(torch.bfloat16), kind=kind)
    latent = pipe(mask=random_ids(), num_inference_steps=4, output_type="latent", callback_on_step_end=watch, **extra)
    assert {*seen, latent.images.dtype} == {torch.float32}


def test_network_in_training_mode_samples_without_dropout_and_is_left_in_its_mode():
    pipe = pipeline(tiny_unet(dropout=0.5))
    expected = draw(pipe, random_ids())
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    modes = {name: module.training for name, module in pipe.unet.named_modules()}
    assert torch.equal(draw(pipe, random_ids()), expected)
    with pytest.raises(RuntimeError, match="stop here"):
        draw(pipe, random_ids(), callback_on_step_end=stop_here)
    assert {name: module.training for name, module in pipe.unet.named_modules()} == modes
    assert len(set(modes.values())) == 2


def stop_here(*_):
    raise RuntimeError("stop here")


# --- outputs, callbacks, progress ---


def test_output_types_agree(pipe):
    pt = draw(pipe, random_ids())
    array = draw(pipe, random_ids(), output_type="np")
    picture = draw(pipe, random_ids(), output_type="pil")[0]
    latent = draw(pipe, random_ids(), output_type="latent")
    assert array.shape == (1, SIZE, SIZE, 3)
    assert np.allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() < 1 / 255
    assert torch.equal((latent / 2 + 0.5).clamp(0, 1), pt)
    assert 0 <= pt.min() <= pt.max() <= 1


def test_tuple_equals_dict(pipe):
    images = draw(pipe, random_ids())
    (again,) = pipe(random_ids(), num_inference_steps=3, generator=seeded(0), output_type="pt", return_dict=False)
    assert torch.equal(images, again)


def test_callback_sees_every_step_and_its_latents_are_used(pipe):
    steps = []

    def zero_at_the_end(pipe, i, t, tensors):
        steps.append((i, int(t)))
        assert int(t) == pipe.scheduler.timesteps[i]
        assert list(tensors) == ["latents"]
        return {"latents": torch.zeros_like(tensors["latents"])} if i == pipe.num_timesteps - 1 else tensors

    latent = draw(pipe, random_ids(), output_type="latent", callback_on_step_end=zero_at_the_end)
    assert [i for i, _ in steps] == [0, 1, 2]
    assert (latent == 0).all()


def test_callback_may_change_the_guidance_scale(pipe):
    def guide_from_the_second_step(pipe, i, t, tensors):
        pipe._guidance_scale = 3.0
        return tensors

    changed = draw(pipe, random_ids(), guidance_scale=1.0, callback_on_step_end=guide_from_the_second_step)
    assert pipe.guidance_scale == 3.0
    later = draw(pipe, random_ids(), guidance_scale=3.0, guidance_start=1 / 3)
    assert torch.equal(changed, later)


def test_callback_that_returns_nothing_changes_nothing(pipe):
    expected = draw(pipe, random_ids())
    inputs = []
    seen = draw(
        pipe,
        random_ids(),
        callback_on_step_end=lambda *args: inputs.append(args[3]),
        callback_on_step_end_tensor_inputs=[],
    )
    assert torch.equal(seen, expected)
    assert inputs == [{}, {}, {}]


def test_diffusers_callback_objects_are_taken(pipe):
    class GuidanceCutoff(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):  # noqa: ARG002  diffusers' signature
            if step_index == 0:
                pipeline._guidance_scale = 1.0
            return callback_kwargs

    cut = draw(pipe, random_ids(), callback_on_step_end=GuidanceCutoff(cutoff_step_ratio=0.5))
    assert torch.equal(cut, draw(pipe, random_ids(), guidance_stop=0.34))


def test_progress_bar_counts_the_steps_and_can_be_silent():
    pipe = pipeline()
    for disable, shown in ((False, True), (True, False)):
        pipe.set_progress_bar_config(disable=disable)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            draw(pipe, random_ids())
        assert ("3/3" in stderr.getvalue()) == shown


# --- what diffusers' own pipeline suite asks ---


def test_components_make_a_second_pipeline(pipe):
    assert set(pipe.components) == {"unet", "scheduler", "text_encoder", "tokenizer", "vae"}
    again = MaskGuidedDDPMPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, random_ids()), draw(pipe, random_ids()))


def test_save_load_local_keeps_images_and_warns_of_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = MaskGuidedDDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, random_ids()), draw(pipe, random_ids()))


@pytest.mark.parametrize(
    "unet",
    [
        pytest.param(tiny_unet, id="mask_guided"),
        pytest.param(lambda: PaperUNet2DModel(hidden_dim=8, num_classes=19, sample_size=SIZE), id="paper"),
    ],
)
def test_from_pipe_takes_the_network_over(unet):
    pipe = pipeline(unet())
    again = MaskGuidedDDPMPipeline.from_pipe(pipe)
    assert again.unet is pipe.unet
    assert torch.equal(draw(again, random_ids()), draw(pipe, random_ids()))
    other = MaskGuidedDDPMPipeline.from_pipe(pipe, unet=tiny_unet(), scheduler=DDPMScheduler())
    assert other.unet is not pipe.unet
    assert isinstance(other.scheduler, DDPMScheduler)


def test_from_pipe_refuses_a_network_that_reads_no_masks():
    plain = diffusers.DDPMPipeline(diffusers.UNet2DModel(block_out_channels=(32,) * 4), DDPMScheduler())
    with pytest.raises(ValueError, match="expected .*unet"):
        MaskGuidedDDPMPipeline.from_pipe(plain)
    assert MaskGuidedDDPMPipeline.from_pipe(plain, unet=tiny_unet()).scheduler is plain.scheduler


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_networks_stored_in_eight_bits_give_finite_images(dtype):
    pipe = pipeline().to(dtype)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    images = draw(pipe, random_ids())
    assert images.isfinite().all()


def test_each_component_may_have_a_dtype_of_its_own(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    dtypes = {"unet": torch.bfloat16, "default": torch.float16}
    loaded = MaskGuidedDDPMPipeline.from_pretrained(tmp_path, dtype=dtypes)
    assert loaded.unet.dtype == torch.bfloat16


def test_variants_are_saved_and_asked_for_by_name(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "fp16", variant="fp16", safe_serialization=False)
    assert (tmp_path / "fp16" / "unet" / "diffusion_pytorch_model.fp16.bin").is_file()
    loaded = MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "fp16", variant="fp16")
    for ours, theirs in zip(pipe.unet.parameters(), loaded.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    pipe.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="trying to load the model files of the `variant=fp16`"):
        MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "plain", variant="fp16")


def test_to_dtype_moves_the_network():
    pipe = pipeline()
    assert pipe.dtype == torch.float32
    assert pipe.to(torch.float16).unet.dtype == torch.float16


def test_scheduler_may_be_exchanged(pipe):
    changed = pipeline(pipe.unet, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config))
    assert draw(changed, random_ids()).isfinite().all()


@pytest.mark.parametrize(
    "hook",
    [
        lambda unet: cpu_offload(unet, torch.device("cpu")),
        lambda unet: add_hook_to_module(unet, CpuOffload(torch.device("cpu"))),
        lambda unet: unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
        lambda unet: unet.enable_group_offload(
            torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        ),
    ],
    ids=["sequential", "model", "group_leaf", "group_block"],
)
def test_hooks_that_move_weights_change_nothing(hook, pipe):
    hooked = pipeline()
    hook(hooked.unet)
    assert torch.equal(draw(hooked, random_ids(2), seeds=(0, 1)), draw(pipe, random_ids(2), seeds=(0, 1)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "offload",
    [
        lambda pipe: pipe.enable_model_cpu_offload(),
        lambda pipe: pipe.enable_sequential_cpu_offload(),
        lambda pipe: pipe.unet.enable_group_offload("cuda", offload_type="leaf_level"),
        lambda pipe: pipe.unet.enable_group_offload("cuda", offload_type="block_level", num_blocks_per_group=1),
    ],
    ids=["model", "sequential", "group_leaf", "group_block"],
)
def test_offloading_changes_nothing(offload):
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    expected = draw(pipeline().to("cuda"), random_ids(2), seeds=(0, 1)).cpu()
    pipe = pipeline()
    offload(pipe)
    for _ in range(2):
        assert torch.allclose(draw(pipe, random_ids(2), seeds=(0, 1)).cpu(), expected, atol=1e-4)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": []}, "empty list"),
        ({"mask": torch.zeros(SIZE, SIZE)}, "float32; expected integer class ids"),
        ({"mask": torch.full((SIZE, SIZE), 19)}, "the mask holds class 19; this model knows 0-18"),
        ({"mask": [torch.zeros(4, 4).long(), torch.full((4, 4), 30)]}, "mask 'number 1' holds class 30"),
        ({"mask": "empty.png"}, "mask 'empty.png' is empty"),
        ({"mask": "labelids.png"}, r"mask 'labelids.png' holds class 26.*labelIds"),
        ({"mask": "odd.png"}, r"mask 'odd.png' holds 1 colour .*\(1, 2, 3\) in 16 pixels"),
        ({"num_images_per_mask": 0}, "`num_images_per_mask` is 0; expected"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; expected"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5; expected"),
        ({"guidance_scale": "3"}, "`guidance_scale` is '3'; expected a finite number"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` is nan; expected a finite number"),
        ({"guidance_scale": float("inf")}, "`guidance_scale` is inf; expected a finite number"),
        ({"guidance_start": 0.8, "guidance_stop": 0.2}, "0 <= `guidance_start` <= `guidance_stop` <= 1"),
        ({"guidance_stop": 1.5}, "0 <= `guidance_start` <= `guidance_stop` <= 1"),
        ({"output_type": "jpg"}, "`output_type` is 'jpg'; expected one of pil, np, pt, latent"),
        ({"height": 17}, "multiples of 2 for this network; got 17 x 16. The nearest is 16 x 16"),
        ({"height": 0}, "at least 1; got 0 x 16"),
        ({"generator": [torch.Generator()] * 3}, "got 3 generators for 1 images"),
        ({"latents": torch.zeros(2, 3, SIZE, SIZE)}, r"shape \(2, 3, 16, 16\); expected \(1, 3, 16, 16\)"),
        ({"callback_on_step_end_tensor_inputs": ["mask"]}, r"holds \['mask'\]; expected names of \['latents'\]"),
        ({"class_labels": 1}, "not class-conditional"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, batches, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((4, 4), 26, dtype=np.uint8)).save("labelids.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save("odd.png")
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe(**{"mask": torch.zeros(SIZE, SIZE).long(), **settings})
    assert calls == []


def test_too_few_steps_for_runge_kutta_are_refused_and_the_least_that_are_enough_work(pipe):
    pipe = MaskGuidedDDPMPipeline(pipe.unet, PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=False))
    mask = torch.zeros(SIZE, SIZE).long()
    with pytest.raises(
        ValueError, match="PNDMScheduler starts with Runge-Kutta steps, which need `num_inference_steps` of at least 4"
    ):
        pipe(mask, num_inference_steps=3)
    assert len(pipe(mask, num_inference_steps=4).images) == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "pass `class_labels`"),
        ([1, 2], "got 2 `class_labels` for 1 masks"),
        (4, r"`class_labels` are \[4\]; expected 0 to 3"),
    ],
)
def test_bad_class_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline(tiny_unet(num_class_embeds=4)), random_ids(), class_labels=labels)


def test_network_with_odd_output_channels_is_refused():
    with pytest.raises(ValueError, match="expected a network with 3 output channels, .*; got 4"):
        draw(pipeline(tiny_unet(out_channels=4)), random_ids())


def test_network_without_a_label_set_takes_ids_and_refuses_colours():
    pipe = pipeline(tiny_unet(id2label=None, id2color=None))
    assert draw(pipe, BDD.decode(random_ids()[0])).isfinite().all()
    with pytest.raises(ValueError, match="has no colours"):
        draw(pipe, BDD.decode(random_ids()[0]).convert("RGB"))
