"""Local editing on tiny real networks: what is outside the region stays to the last bit, whatever the settings."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from helpers.tiny_pipelines import (
    BDD,
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

from semseg_diffusers import MaskGuidedInpaintPipeline
from semseg_diffusers.pipelines.image_inputs import changed_region, crop_window, paste


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates, thousands of times.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PHOTO = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
REGION = np.zeros((SIZE, SIZE), dtype=bool)
REGION[4:9, 5:12] = True


def inpaint(scheduler=None, unet=None) -> MaskGuidedInpaintPipeline:
    return pipeline(unet, scheduler, MaskGuidedInpaintPipeline)


def edit(pipe, image, mask, region=REGION, seeds=(0,), **settings):
    settings = {"num_inference_steps": 4, "output_type": "pt", **settings}
    return pipe(image, mask, region, generator=seeded(*seeds), **settings).images


def changed(image, photo=PHOTO) -> np.ndarray:
    """Where an image differs from the photo in any bit, (H, W)."""
    return (np.asarray(image) != photo).any(axis=-1)


@pytest.fixture(scope="module")
def pipe() -> MaskGuidedInpaintPipeline:
    return inpaint()


# --- the region ---


@pytest.mark.parametrize("name", NOISING)
def test_outside_the_region_the_image_stays_to_the_last_bit(name):
    pipe = inpaint(new_scheduler(name))
    (image,) = edit(pipe, PHOTO, random_ids(), output_type="pil")
    assert not (changed(image) & ~REGION).any()
    assert changed(image)[REGION].mean() > 0.9
    assert edit(pipe, PHOTO, random_ids(), output_type="latent").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_image_too(dtype):
    pipe = inpaint().to(dtype)
    (image,) = edit(pipe, PHOTO, random_ids(), output_type="pil")
    assert not (changed(image) & ~REGION).any()
    array = edit(pipe, PHOTO, random_ids(), output_type="np")[0]
    assert np.array_equal(array[~REGION], PHOTO[~REGION].astype(np.float32) / 255)


def test_an_empty_region_returns_the_image_and_samples_nothing(pipe, batches):
    calls = batches(pipe.unet)
    (image,) = edit(pipe, PHOTO, random_ids(), np.zeros_like(REGION), output_type="pil")
    assert not changed(image).any()
    (image,) = pipe(PHOTO, random_ids(), old_mask=random_ids()).images
    assert not changed(image).any()
    latent = edit(pipe, PHOTO, random_ids(), np.zeros_like(REGION), output_type="latent")
    assert torch.allclose(latent[0].permute(1, 2, 0), torch.from_numpy(PHOTO / 127.5 - 1).float(), atol=1e-6)
    assert (calls, pipe.num_timesteps) == ([], 0)


def test_a_region_of_all_pixels_is_an_image_of_the_mask(pipe):
    everything = np.ones_like(REGION)
    expected = pipeline()(random_ids(), num_inference_steps=4, generator=seeded(0), output_type="pt").images
    assert torch.allclose(edit(pipe, PHOTO, random_ids(), everything), expected, atol=1e-6)


def test_the_region_is_where_the_masks_differ_and_a_margin_around(pipe):
    old, new = random_ids()[0].numpy(), random_ids()[0].numpy()
    new[6, 6] = (new[6, 6] + 1) % 19
    for margin in (0, 1, 3):
        (image,) = pipe(PHOTO, new, old_mask=old, margin=margin, num_inference_steps=2).images
        expected = np.zeros_like(REGION)
        expected[6 - margin : 7 + margin, 6 - margin : 7 + margin] = True
        assert np.array_equal(changed_region(old, new, margin), expected)
        assert not (changed(image) & ~expected).any()
        assert changed(image).any()
    erased = pipe(PHOTO, None, old_mask=old, num_inference_steps=2).images[0]  # no mask: all is unknown
    assert changed(erased).mean() > 0.9


def test_every_form_of_a_region_gives_the_same_image(pipe, tmp_path):
    picture = Image.fromarray(REGION)
    picture.save(tmp_path / "region.png")
    Image.fromarray(REGION * np.uint8(255)).convert("RGB").save(tmp_path / "rgb.png")
    picture.convert("LA").save(tmp_path / "alpha.png")
    forms = [
        REGION[None],
        [REGION],
        REGION.astype(np.uint8) * 255,
        torch.from_numpy(REGION),
        torch.from_numpy(REGION)[None].long(),
        picture,
        tmp_path / "region.png",
        str(tmp_path / "rgb.png"),
        tmp_path / "alpha.png",
    ]
    expected = edit(pipe, PHOTO, random_ids())
    for form in forms:
        assert torch.equal(edit(pipe, PHOTO, random_ids(), form), expected)


def test_masks_of_every_form_may_say_what_changed(pipe, tmp_path):
    old, new = random_ids()[0], random_ids()[0].clone()
    new[3:6, 3:6] = 11
    for name, ids in (("old", old), ("new", new)):
        BDD.decode(ids).save(tmp_path / f"{name}.png")
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    settings = {"generator": seeded(0), "num_inference_steps": 2, "output_type": "pt"}
    paths = [str(tmp_path / f"{name}.png") for name in ("photo", "new", "old")]
    images = pipe(paths[0], paths[1], old_mask=paths[2], **settings).images
    settings["generator"] = seeded(0)
    assert torch.equal(images, pipe(PHOTO, new, old_mask=old, **settings).images)


# --- drawing ---


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_at_each_step_the_outside_is_the_image_at_the_noise_of_the_next(kind):
    noise = torch.randn(1, 3, SIZE, SIZE, generator=seeded(0))
    photo = torch.from_numpy(PHOTO).permute(2, 0, 1)[None].float() / 127.5 - 1
    seen = []
    edit(inpaint(kind()), PHOTO, random_ids(), callback_on_step_end=lambda *args: seen.append(args[3]["latents"]))
    scheduler = kind()
    scheduler.set_timesteps(4)
    expected = [scheduler.add_noise(photo, noise, t[None]) for t in scheduler.timesteps[1:]] + [photo]
    for ours, theirs in zip(seen, expected, strict=True):
        assert torch.allclose(ours[:, :, ~REGION], theirs[:, :, ~REGION], atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_batch_of_two_equals_two_singles(scheduler):
    pipe = inpaint(scheduler())
    photos, masks, regions = [PHOTO, PHOTO[::-1].copy()], random_ids(2), [REGION, ~REGION]
    both = edit(pipe, photos, masks, regions, seeds=(3, 4, 5, 6), num_images_per_mask=2)
    for i in range(4):
        alone = edit(pipe, photos[i // 2], masks[i // 2], regions[i // 2], seeds=(3 + i,))
        assert torch.allclose(both[i], alone[0], atol=1e-4)
    assert torch.equal(
        edit(pipe, PHOTO, masks, REGION, seeds=(3, 4)),
        edit(pipe, [PHOTO] * 2, masks, [REGION] * 2, seeds=(3, 4)),
    )


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_resampling_does_blocks_of_steps_again(scheduler, batches):
    pipe = inpaint(scheduler())
    calls, seen, timesteps = batches(pipe.unet), [], []

    def record(running, i, t, tensors):
        seen.append((i, int(t)))
        timesteps[:] = running.scheduler.timesteps.tolist()
        return tensors

    settings = {"jump_length": 2, "jump_n_sample": 3, "callback_on_step_end": record}
    image = edit(pipe, PHOTO, random_ids(), **settings)
    first, second, third, fourth = timesteps
    assert [t for _, t in seen] == [first, second] * 3 + [third, fourth] * 3
    assert (len(calls), pipe.num_timesteps) == (12, 12)
    assert image.isfinite().all()
    assert not (changed((image[0].permute(1, 2, 0) * 255).round().byte()) & ~REGION).any()
    again = edit(pipe, PHOTO, random_ids(2), seeds=(1, 0), **settings)
    assert torch.allclose(again[1], edit(pipe, PHOTO, random_ids(2)[1], **settings)[0], atol=1e-4)
    once = edit(pipe, PHOTO, random_ids())
    assert not torch.allclose(image, once, atol=1e-3)


def test_going_back_gives_the_noise_of_the_earlier_step():
    pipe = inpaint(DDPMScheduler())
    pipe.scheduler.set_timesteps(4)
    levels = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
    clean = torch.ones(1, 3, 100, 100)
    for step, kept in ((4, 1.0), (3, levels[3])):  # after the last step, and at the last timestep
        latents = kept**0.5 * clean + (1 - kept) ** 0.5 * torch.randn(clean.shape, generator=seeded(1))
        back = pipe.go_back(latents, step, 1, seeded(0))
        assert abs(back.mean() - levels[1] ** 0.5) < 0.02
        assert abs(back.var() - (1 - levels[1])) < 0.03


def test_attributes_a_guide_and_fading_masks_go_with_regions():
    unet = tiny_unet(attributes={"weather": ["clear", "rainy"]}, num_train_timesteps=1000, label_diffusion=[3.0] * 19)
    torch.nn.init.normal_(unet.attribute_embedding.weight, generator=seeded(1))
    pipe = inpaint(unet=unet)
    images = [edit(pipe, PHOTO, random_ids(), attributes={"weather": name}) for name in ("clear", "rainy")]
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    plain = edit(pipe, PHOTO, random_ids(), guidance_scale=1.0)
    assert torch.equal(edit(pipe, PHOTO, random_ids(), guide_unet=unet), plain)
    both = edit(pipe, PHOTO, random_ids(2), seeds=(3, 4))
    assert torch.allclose(both[1], edit(pipe, PHOTO, random_ids(2)[1], seeds=(4,))[0], atol=1e-4)


def test_guidance_acts_inside_its_interval_only(pipe, batches):
    calls = batches(pipe.unet)
    edit(pipe, PHOTO, random_ids(), guidance_start=0.25, guidance_stop=0.75)
    assert calls == [1, 2, 2, 1]


def test_output_types_agree_and_latents_of_callbacks_are_used(pipe):
    pt, array, latent = (edit(pipe, PHOTO, random_ids(), output_type=kind) for kind in ("pt", "np", "latent"))
    (picture,) = edit(pipe, PHOTO, random_ids(), output_type="pil")
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert torch.allclose((latent / 2 + 0.5).clamp(0, 1), pt, atol=1e-6)
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() < 1 / 255
    zeros = edit(pipe, PHOTO, random_ids(), callback_on_step_end=zero_at_the_end)
    assert (zeros[0][:, REGION] == 0.5).all()


# --- photos that are larger than what is drawn ---


@pytest.mark.parametrize("padding", [0, 4, 40])
def test_a_large_image_is_edited_in_a_window_and_stays_outside_the_region(pipe, padding, batches):
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    region = np.zeros((50, 70), dtype=bool)
    region[30:37, 50:61] = True
    calls = batches(pipe.unet)
    ids = rng.integers(0, 19, (50, 70)).astype(np.uint8)
    (image,) = edit(pipe, photo, ids, region, padding_mask_crop=padding, output_type="pil", feather=1)
    assert image.size == (70, 50)
    assert not (changed(image, photo) & ~region).any()
    assert changed(image, photo)[region].mean() > 0.9
    assert calls == [2] * 4  # guided, at the network's own size


def test_a_window_of_the_generated_size_is_not_resized(pipe):
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ids = rng.integers(0, 19, (40, 60)).astype(np.uint8)
    region = np.zeros((40, 60), dtype=bool)
    region[20:24, 30:40] = True
    assert crop_window(region, SIZE, SIZE, 0) == (27, 14, 43, 30)
    whole = edit(pipe, photo, ids, region, padding_mask_crop=0)[0]
    part = edit(pipe, photo[14:30, 27:43], ids[14:30, 27:43], region[14:30, 27:43])[0]
    assert torch.equal(whole[:, 14:30, 27:43], part)


@pytest.mark.parametrize(
    ("rows", "columns", "padding", "window"),
    [
        ((0, 4), (0, 4), 0, (0, 0, 16, 16)),  # at the corner, no smaller than what is drawn
        ((20, 24), (30, 34), 10, (20, 10, 44, 34)),  # 10 pixels around 4 x 4
        ((10, 40), (30, 34), 0, (17, 10, 47, 40)),  # 30 high, so 30 wide
        ((0, 50), (0, 50), 90, (0, 0, 50, 50)),  # as much as there is
        ((0, 50), (0, 51), 0, None),  # too wide for a square of this frame
    ],
)
def test_the_window_has_the_aspect_and_holds_the_region(rows, columns, padding, window):
    region = np.zeros((50, 70), dtype=bool)
    region[slice(*rows), slice(*columns)] = True
    assert crop_window(region, 16, 16, padding) == window


def test_images_of_several_sizes_come_back_as_images(pipe):
    photos = [np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((40, 60, 3), np.uint8)]
    masks = [np.zeros((SIZE, SIZE), np.uint8), np.zeros((40, 60), np.uint8)]
    regions = [np.ones((SIZE, SIZE), bool), np.zeros((40, 60), bool)]
    images = edit(pipe, photos, masks, regions, seeds=(0, 1), padding_mask_crop=0, output_type="pil")
    assert [image.size for image in images] == [(SIZE, SIZE), (60, 40)]
    assert not np.asarray(images[1]).any()
    with pytest.raises(ValueError, match="several sizes need output_type='pil'; got 'pt'"):
        edit(pipe, photos, masks, regions, seeds=(0, 1), padding_mask_crop=0)


def test_feathering_fades_inside_the_region_only():
    photo, drawn = np.zeros((9, 9, 3), np.float32), np.ones((9, 9, 3), np.float32)
    region = np.zeros((9, 9), dtype=bool)
    region[2:7, 2:9] = True  # up to the frame, which is no border
    box = (0, 0, 9, 9)
    hard = paste(photo, drawn, region, box, feather=0)[..., 0]
    soft = paste(photo, drawn, region, box, feather=2)[..., 0]
    assert np.array_equal(hard, region)
    assert np.allclose(soft[4], [0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1])
    assert np.allclose(soft[:, 8], [0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0])
    assert (photo == 0).all()


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `edit_region`, or `old_mask` .*; got neither"),
        ({"edit_region": REGION, "old_mask": random_ids()}, "; got both"),
        ({"edit_region": REGION[:8]}, "`image` is 16 x 16, its `edit_region` 8 x 16"),
        ({"edit_region": REGION.astype(float)}, "and type float64; expected an image, or booleans or integers"),
        ({"edit_region": [REGION] * 3}, "got 3 of `edit_region` for 1 masks"),
        ({"edit_region": 3}, "has <class 'int'>; expected an image"),
        ({"old_mask": random_ids(1, 8, 8)}, "`image` is 16 x 16, its `old_mask` 8 x 8"),
        ({"old_mask": [None]}, "`old_mask` is None, so what changed cannot be found"),
        ({"old_mask": torch.full((SIZE, SIZE), 30)}, "the mask holds class 30"),
        ({"mask": random_ids(1, 8, 8), "edit_region": REGION}, "its `mask` 8 x 8"),
        ({"old_mask": random_ids(), "margin": -1}, "`margin` is -1; expected a whole number of at least 0"),
        ({"edit_region": REGION, "feather": 0.5}, "`feather` is 0.5; expected a whole number"),
        ({"edit_region": REGION, "jump_length": 0}, "`jump_length` is 0; expected a whole number of at least 1"),
        ({"edit_region": REGION, "padding_mask_crop": -1}, "`padding_mask_crop` is -1; expected"),
        ({"edit_region": REGION, "padding_mask_crop": 0, "output_type": "latent"}, "omit one"),
        ({"edit_region": REGION, "height": 8, "width": 8}, "`image` is 16 x 16, and 8 x 8 is generated"),
        ({"edit_region": REGION, "output_type": "jpg"}, "`output_type` is 'jpg'"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, batches, settings, message):
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": PHOTO, "mask": random_ids(), **settings})
    assert calls == []


def test_a_region_that_no_window_holds_is_refused(pipe):
    photo, region = np.zeros((SIZE, 4 * SIZE, 3), np.uint8), np.ones((SIZE, 4 * SIZE), bool)
    with pytest.raises(ValueError, match="spans 16 x 64 pixels of an image of 16 x 64: no window inside"):
        edit(pipe, photo, np.zeros((SIZE, 4 * SIZE), np.uint8), region, padding_mask_crop=0)


def test_schedulers_are_refused_by_name():
    with pytest.raises(ValueError, match="EDMEulerScheduler cannot add the noise of a step"):
        edit(inpaint(new_scheduler("EDMEulerScheduler")), PHOTO, random_ids())
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler cannot go back in time"):
        edit(inpaint(DPMSolverMultistepScheduler()), PHOTO, random_ids(), jump_n_sample=2)
