"""SDEdit on tiny real networks: the laws of its strength, photos of all forms, batches, refusals."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from helpers.tiny_pipelines import (
    NOISING,
    SIZE,
    new_scheduler,
    pipeline,
    random_ids,
    seeded,
    tiny_unet,
    zero_at_the_end,
)
from PIL import Image

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
from semseg_diffusers.data.crop_resize import crop_resize


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates, thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PHOTO = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def img2img(scheduler=None, unet=None) -> MaskGuidedImg2ImgPipeline:
    return pipeline(unet, scheduler, MaskGuidedImg2ImgPipeline)


def redraw(pipe, image, mask, seeds=(0,), **settings) -> torch.Tensor:
    settings = {"num_inference_steps": 5, "output_type": "pt", **settings}
    return pipe(image, mask, generator=seeded(*seeds), **settings).images


@pytest.fixture(scope="module")
def pipe() -> MaskGuidedImg2ImgPipeline:
    return img2img()


# --- strength ---


@pytest.mark.parametrize("name", NOISING)
def test_strength_one_equals_sampling_from_noise(name):
    from_noise = pipeline(scheduler=new_scheduler(name))
    images = from_noise(random_ids(), num_inference_steps=5, generator=seeded(0), output_type="pt").images
    assert torch.equal(redraw(img2img(new_scheduler(name)), PHOTO, random_ids(), strength=1.0), images)


@pytest.mark.parametrize("name", NOISING)
def test_strength_zero_returns_the_image_to_the_last_bit(name, batches):
    pipe = img2img(DDPMScheduler() if name == "PNDMScheduler" else new_scheduler(name))
    calls = batches(pipe.unet)
    (image,) = pipe(PHOTO, random_ids(), strength=0.0, num_inference_steps=5).images
    assert np.array_equal(np.asarray(image), PHOTO)
    assert calls == []
    assert pipe.num_timesteps == 0


@pytest.mark.parametrize("name", [name for name in NOISING if name != "PNDMScheduler"])
def test_more_strength_leaves_less_of_the_image(name):
    pipe = img2img(new_scheduler(name))
    photo = torch.from_numpy(PHOTO / 127.5 - 1).permute(2, 0, 1)
    little, much = (
        redraw(pipe, PHOTO, random_ids(), strength=strength, output_type="latent")[0] for strength in (0.2, 0.8)
    )
    assert 0 < (little - photo).abs().mean() < 0.9 * (much - photo).abs().mean()
    assert much.isfinite().all()


def test_strength_is_the_part_of_the_steps_that_is_done(batches):
    for scheduler, steps in ((DDIMScheduler(), [1] * 4), (diffusers.HeunDiscreteScheduler(), [1] * 7)):
        pipe = img2img(scheduler)
        calls, seen, expected = batches(pipe.unet), [], []
        settings = {"num_inference_steps": 10, "strength": 0.45, "guidance_scale": 1.0}

        def record(running, i, t, tensors, seen=seen, expected=expected, steps=steps):
            seen.append((i, float(t), list(tensors)))
            expected[:] = running.scheduler.timesteps[-len(steps) :].tolist()

        redraw(pipe, PHOTO, random_ids(), callback_on_step_end=record, **settings)
        assert calls == steps
        assert pipe.num_timesteps == len(steps)
        assert seen == [(i, t, ["latents"]) for i, t in enumerate(expected)]


def test_sampling_starts_from_the_image_at_the_noise_of_the_first_step(pipe):
    noise = torch.randn(1, 3, SIZE, SIZE, generator=seeded(0))
    latents = redraw(
        pipe, PHOTO, random_ids(), strength=0.2, guidance_scale=1.0, num_inference_steps=5, output_type="latent"
    )
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[-1]
    photo = torch.from_numpy(PHOTO).permute(2, 0, 1)[None].float() / 127.5 - 1
    noised = scheduler.add_noise(photo, noise, t[None])
    with torch.no_grad():
        expected = scheduler.step(pipe.unet(noised, t, mask=random_ids()).sample, t, noised).prev_sample
    assert torch.allclose(latents, expected, atol=1e-5)
    assert torch.equal(latents, redraw(
        pipe, PHOTO, random_ids(), strength=0.2, guidance_scale=1.0, latents=noise, output_type="latent"
    ))  # fmt: skip


def test_guidance_interval_is_of_the_whole_schedule(pipe, batches):
    calls = batches(pipe.unet)
    settings = {"strength": 0.5, "num_inference_steps": 10, "guidance_start": 0.2, "guidance_stop": 0.8}
    redraw(pipe, PHOTO, random_ids(), **settings)
    assert calls == [2] * 3 + [1] * 2


# --- photos and batches ---


def test_every_form_of_an_image_gives_the_same_image(pipe, tmp_path):
    picture = Image.fromarray(PHOTO)
    picture.save(tmp_path / "photo.png")
    tensor = torch.from_numpy(PHOTO).permute(2, 0, 1)
    forms = [
        PHOTO,
        PHOTO[None],
        [PHOTO],
        PHOTO.astype(np.float32) / 255,
        picture,
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        tensor,
        tensor[None],
        tensor.float() / 255,
    ]
    expected = redraw(pipe, PHOTO, random_ids())
    for form in forms:
        assert torch.allclose(redraw(pipe, form, random_ids()), expected, atol=1e-5)


def test_an_image_is_turned_by_its_exif_orientation(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(PHOTO[::-1, ::-1]).save(tmp_path / "held.png", exif=exif)
    (image,) = pipe(tmp_path / "held.png", random_ids(), strength=0.0).images
    assert np.array_equal(np.asarray(image), PHOTO)


def test_a_larger_image_is_cropped_and_resized_as_the_images_of_the_training_are(pipe):
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (3 * SIZE, 5 * SIZE, 3), dtype=np.uint8))
    (image,) = pipe(large, random_ids(1, 3 * SIZE, 5 * SIZE), strength=0.0).images
    assert image == crop_resize(3 * SIZE, 5 * SIZE, (SIZE, SIZE)).resize_image(large)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_batch_of_two_equals_two_singles(scheduler):
    pipe = img2img(scheduler())
    photos, masks = [PHOTO, PHOTO[::-1].copy()], random_ids(2)
    both = redraw(pipe, photos, masks, seeds=(3, 4, 5, 6), num_images_per_mask=2)
    for i in range(4):
        alone = redraw(pipe, photos[i // 2], masks[i // 2], seeds=(3 + i,))
        assert torch.allclose(both[i], alone[0], atol=1e-4)
    one_for_both = redraw(pipe, PHOTO, masks, seeds=(3, 4))
    assert torch.equal(one_for_both, redraw(pipe, [PHOTO, PHOTO], masks, seeds=(3, 4)))


def test_attributes_and_a_guide_go_with_images():
    unet = tiny_unet(attributes={"weather": ["clear", "rainy"]})
    torch.nn.init.normal_(unet.attribute_embedding.weight, generator=seeded(1))
    pipe = img2img(unet=unet)
    images = [redraw(pipe, PHOTO, random_ids(), attributes={"weather": name}) for name in ("clear", "rainy", None)]
    assert not any(torch.allclose(images[i], images[i - 1], atol=1e-3) for i in range(3))
    plain = redraw(pipe, PHOTO, random_ids(), guidance_scale=1.0)
    assert torch.equal(redraw(pipe, PHOTO, random_ids(), guide_unet=unet), plain)


def test_fading_masks_go_with_images():
    pipe = img2img(unet=tiny_unet(num_train_timesteps=1000, label_diffusion=[3.0] * 19))
    both = redraw(pipe, PHOTO, random_ids(2), seeds=(3, 4))
    assert torch.allclose(both[1], redraw(pipe, PHOTO, random_ids(2)[1], seeds=(4,))[0], atol=1e-4)


# --- outputs ---


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_output_types_agree(pipe, strength):
    pt, array, latent = (
        redraw(pipe, PHOTO, random_ids(), strength=strength, output_type=kind) for kind in ("pt", "np", "latent")
    )
    (picture,) = redraw(pipe, PHOTO, random_ids(), strength=strength, output_type="pil")
    assert np.allclose(array, pt.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert torch.allclose((latent / 2 + 0.5).clamp(0, 1), pt, atol=1e-6)
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() < 1 / 255
    (images,) = pipe(PHOTO, random_ids(), strength, num_inference_steps=5, generator=seeded(0), output_type="pt",
                     return_dict=False)  # fmt: skip
    assert torch.equal(images, pt)


def test_latents_that_a_callback_returns_are_used(pipe):
    latent = redraw(pipe, PHOTO, random_ids(), output_type="latent", callback_on_step_end=zero_at_the_end)
    assert (latent == 0).all()


def test_half_precision_keeps_the_image_at_strength_zero():
    pipe = img2img().to(torch.bfloat16)
    (image,) = pipe(PHOTO, random_ids(), strength=0.0).images
    assert np.array_equal(np.asarray(image), PHOTO)
    assert redraw(pipe, PHOTO, random_ids()).isfinite().all()


def test_pipelines_are_made_from_one_another_and_share_the_network():
    kinds = (MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline)
    for one in kinds:
        first = pipeline(kind=one)
        for other in kinds:
            second = other.from_pipe(first)
            assert type(second) is other
            assert (second.unet, type(second.scheduler)) == (first.unet, DDIMScheduler)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "`strength` is 1.5; expected a number from 0"),
        ({"strength": "1"}, "`strength` is '1'; expected a number from 0"),
        ({"image": PHOTO.astype(np.float32)}, r"the image has values from 0 to 255; expected \[0, 1\]"),
        ({"image": PHOTO[..., :2]}, r"the image has shape \(16, 16, 2\) and type uint8; expected an array"),
        ({"image": PHOTO.astype(np.int64)}, "and type int64; expected an array"),
        ({"image": Image.new("RGBA", (4, 4))}, "the image has 16 transparent pixels"),
        ({"image": [PHOTO, PHOTO[:, :, 0]]}, "image number 1 has shape"),
        ({"image": [PHOTO, PHOTO]}, "got 2 of `image` for 1 masks"),
        ({"image": "empty.png"}, "image 'empty.png' is empty"),
        ({"guidance_scale": "3"}, "`guidance_scale` is '3'"),
        ({"strength": 0.0, "generator": [torch.Generator()] * 3}, "got 3 generators for 1 images"),
        ({"attributes": {"weather": "rainy"}}, "this network knows no attributes"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, batches, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.png").touch()
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": PHOTO, "mask": random_ids(), **settings})
    assert calls == []


def test_an_image_of_no_known_type_is_refused(pipe):
    with pytest.raises(TypeError, match="the image is of type int; expected a path"):
        pipe(3, random_ids())


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "IPNDMScheduler"])
def test_schedulers_that_cannot_noise_images_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} cannot add the noise of a step to an image"):
        redraw(img2img(new_scheduler(name)), PHOTO, random_ids())


def test_pndm_starts_below_the_top_only_without_its_runge_kutta_steps():
    with pytest.raises(ValueError, match="skip_prk_steps=True"):
        redraw(img2img(PNDMScheduler()), PHOTO, random_ids())
    assert redraw(img2img(PNDMScheduler(skip_prk_steps=True)), PHOTO, random_ids()).isfinite().all()


def test_a_network_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="with 3 channels; this one has 1"):
        redraw(img2img(unet=tiny_unet(in_channels=1, out_channels=1)), PHOTO, random_ids())
