"""`MaskGuidedUpscalePipeline` on a tiny real network: what it reads, tiles, seeds, schedulers, refusals."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers.loading import REMOTE_CODE
from helpers.tiny_pipelines import SCHEDULERS, SIZE, new_scheduler, pipeline, seeded, tiny_unet, zero_at_the_end
from PIL import Image

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedUpscalePipeline, consistency_psnr
from semseg_diffusers.pipelines.upscaling import enlarge


pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SMALL = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def upscaler(**settings):
    """A tiny network whose weights that start from zeros are filled."""
    unet = tiny_unet(**{"upscale_factor": 2, "max_noise_level": 50, **settings})
    for weight in (unet.conv_low_res.weight, unet.noise_level_embedding.weight):
        torch.nn.init.normal_(weight, std=0.2, generator=seeded(1))
    return unet


def upscale_pipe(scheduler=None, **settings) -> MaskGuidedUpscalePipeline:
    return pipeline(upscaler(**settings), scheduler, MaskGuidedUpscalePipeline)


def large_ids(count: int = 1, height: int = 2 * SIZE, width: int = 2 * SIZE) -> torch.Tensor:
    return torch.randint(0, 19, (count, height, width), generator=seeded(0))


def enlarged(pipe, image=SMALL, mask=None, seeds=(0,), **settings) -> torch.Tensor:
    mask = large_ids() if mask is None else mask
    settings = {"num_inference_steps": 3, "output_type": "pt", **settings}
    return pipe(image, mask, generator=seeded(*seeds), **settings).images


@pytest.fixture(scope="module")
def pipe() -> MaskGuidedUpscalePipeline:
    return upscale_pipe()


# --- the schedule ---


def test_timesteps_and_sigmas_take_the_place_of_a_number_of_steps():
    pipe, scheduler, seen = upscale_pipe(diffusers.DDPMScheduler()), diffusers.DDPMScheduler(), []
    scheduler.set_timesteps(3)
    expected = enlarged(pipe)
    assert torch.equal(enlarged(pipe, timesteps=scheduler.timesteps), expected)
    chosen = [900, 500, 100, 0]
    enlarged(pipe, timesteps=chosen, callback_on_step_end=lambda _, __, t, ___: seen.append(int(t)))
    assert seen == chosen
    pipe.scheduler, seen, sigmas = diffusers.EulerDiscreteScheduler(), [], [14.0, 5.0, 2.0, 0.5, 0.0]
    keep = {"callback_on_step_end": lambda each, *_: seen.append(each.scheduler.sigmas.tolist())}
    enlarged(pipe, sigmas=sigmas, tile_size=16, tile_overlap=4, **keep)
    assert seen == [sigmas] * 4
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler takes no `sigmas`"):
        enlarged(pipe, sigmas=sigmas)


# --- what the network reads ---


def test_image_mask_and_noise_level_each_move_the_result(pipe):
    expected = enlarged(pipe, noise_level=5)
    assert expected.shape == (1, 3, 2 * SIZE, 2 * SIZE)
    others = (
        enlarged(pipe, SMALL[::-1].copy(), noise_level=5),
        enlarged(pipe, mask=18 - large_ids(), noise_level=5),
        enlarged(pipe, noise_level=0),
        enlarged(pipe, noise_level=50),
    )
    assert not any(torch.allclose(other, expected, atol=1e-3) for other in others)


def test_every_form_of_an_image_gives_the_same_result(pipe, tmp_path):
    Image.fromarray(SMALL).save(tmp_path / "small.png")
    tensor = torch.from_numpy(SMALL).permute(2, 0, 1)
    picture = Image.fromarray(SMALL)
    forms = [SMALL[None], [SMALL], SMALL / 255, picture, tmp_path / "small.png", tensor, tensor[None] / 255]
    expected = enlarged(pipe)
    for form in forms:
        assert torch.allclose(enlarged(pipe, form), expected, atol=1e-5)


def test_a_mask_of_the_low_resolution_is_enlarged_by_nearest_with_a_warning(pipe, caplog):
    small = large_ids(1, SIZE, SIZE)
    diffusers.utils.logging.enable_propagation()
    try:
        images = enlarged(pipe, mask=small)
    finally:
        diffusers.utils.logging.disable_propagation()
    assert "a mask of 16 x 16 is enlarged to 32 x 32 by nearest neighbour" in caplog.text
    repeated = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert torch.equal(images, enlarged(pipe, mask=repeated))


def test_without_a_mask_the_images_alone_decide():
    pipe, images = upscale_pipe(), [SMALL, SMALL[::-1].copy()]
    both = pipe(images, None, num_inference_steps=3, generator=seeded(0, 1), output_type="pt").images
    unknown = torch.full((1, 2 * SIZE, 2 * SIZE), 255)
    assert torch.allclose(both[1:], enlarged(pipe, images[1], unknown, seeds=(1,)), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 24), (4, 6)])
def test_frames_of_any_size_that_the_depth_divides(pipe, size):
    image = SMALL[: size[0]].repeat(2, axis=1)[:, : size[1]]
    mask = large_ids(1, 2 * size[0], 2 * size[1])
    assert enlarged(pipe, image, mask).shape == (1, 3, 2 * size[0], 2 * size[1])


@pytest.mark.parametrize("settings", [{}, {"tile_size": 16, "tile_overlap": 4}])
def test_a_network_with_a_residual_scale_generates_what_the_enlarged_image_lacks(settings):
    pipe = upscale_pipe(DDIMScheduler(prediction_type="sample", clip_sample=False), residual_scale=4.0)
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.constant_(pipe.unet.conv_out.bias, 0.4)
    settings = {"output_type": "latent", "noise_level": 0, "num_inference_steps": 2, "project": False, **settings}
    found = enlarged(pipe, **settings)
    low_res = torch.from_numpy(SMALL).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.allclose(found, enlarge(low_res, 2 * SIZE, 2 * SIZE) + 0.1, atol=1e-5)
    noisy = enlarged(pipe, **settings | {"noise_level": 30})  # the network sees and mends the noise
    assert not torch.allclose(noisy, found, atol=0.01)
    with pytest.raises(ValueError, match="`residual_scale` must be above 0, or None; got 0"):
        upscaler(residual_scale=0.0)


def test_a_batch_equals_its_images_one_by_one(pipe):
    images, masks = [SMALL, SMALL[::-1].copy()], large_ids(2)
    both = enlarged(pipe, images, masks, seeds=(3, 4, 5, 6), num_images_per_mask=2)
    for i in range(4):
        alone = enlarged(pipe, images[i // 2], masks[i // 2], seeds=(3 + i,))
        assert torch.allclose(both[i], alone[0], atol=1e-4)
    assert torch.equal(enlarged(pipe, SMALL, masks, seeds=(3, 4)), enlarged(pipe, [SMALL, SMALL], masks, seeds=(3, 4)))


def test_guidance_attributes_and_a_guide_go_with_upscaling():
    pipe = upscale_pipe(attributes={"weather": ["clear", "rainy"]})
    torch.nn.init.normal_(pipe.unet.attribute_embedding.weight, generator=seeded(1))
    images = [enlarged(pipe, attributes={"weather": name}, guidance_scale=2.0) for name in ("clear", "rainy")]
    assert not torch.allclose(*images, atol=1e-3)
    plain = enlarged(pipe, guidance_scale=1.0)
    assert torch.equal(enlarged(pipe, guide_unet=pipe.unet, guidance_scale=2.0), plain)


def test_fading_masks_go_with_upscaling_whole_and_in_tiles():
    pipe = upscale_pipe(num_train_timesteps=1000, label_diffusion=[3.0] * 19)
    both = enlarged(pipe, [SMALL, SMALL], large_ids(2), seeds=(3, 4))
    assert torch.allclose(both[1], enlarged(pipe, mask=large_ids(2)[1], seeds=(4,))[0], atol=1e-4)
    assert enlarged(pipe, tile_size=16, tile_overlap=4).isfinite().all()


# --- tiles ---


# Group norms see a tile where they saw the frame, and convolutions zeros beyond its border.
LARGEST_TILE_ERROR, MEAN_TILE_ERROR = 0.15, 0.02  # of the range of pixels, by random weights in tiles of 32


@pytest.mark.parametrize(("tile_size", "overlap"), [(32, 16), ((32, 48), 16)])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_tiles_equal_the_whole_within_the_stated_tolerance(tile_size, overlap, guidance_scale):
    pipe = upscale_pipe(DDIMScheduler(prediction_type="v_prediction"))
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    settings = {"mask": large_ids(1, 64, 96), "guidance_scale": guidance_scale, "noise_level": 0}
    whole = enlarged(pipe, image, **settings)
    tiled = enlarged(pipe, image, tile_size=tile_size, tile_overlap=overlap, **settings)
    error = (tiled - whole).abs()
    assert error.max() < LARGEST_TILE_ERROR
    assert error.mean() < MEAN_TILE_ERROR
    assert error.max() > 0


def test_the_network_sees_one_tile_at_a_time(pipe):
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
    enlarged(pipe, tile_size=16, tile_overlap=8, guidance_scale=1.0, num_inference_steps=2)
    handle.remove()
    assert sizes == [(16, 16)] * 2 * 9


def test_a_tile_of_the_whole_frame_is_the_whole(pipe):
    assert torch.equal(enlarged(pipe, tile_size=64), enlarged(pipe))


# --- outputs ---


def test_the_projected_result_agrees_with_the_image(pipe):
    low_res = np.asarray(Image.fromarray(SMALL).resize((4, 4)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    plain, projected = (enlarged(pipe, low_res, project=project) for project in (False, True))
    before, after = (consistency_psnr(images, low_res)[0] for images in (plain, projected))
    assert torch.equal(enlarged(pipe, low_res), projected)  # by default where no noise is added
    assert before < 30 < 40 < after


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples(name):
    scheduler = new_scheduler(name)
    if SCHEDULERS[name] == (None,):
        pytest.skip("has no prediction type of its own")
    assert enlarged(upscale_pipe(scheduler), num_inference_steps=5).isfinite().all()


def test_output_types_agree_and_a_tuple_is_the_same(pipe):
    pt, array, latent = (enlarged(pipe, output_type=kind) for kind in ("pt", "np", "latent"))
    (picture,) = enlarged(pipe, output_type="pil")
    assert np.allclose(array, pt.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert torch.allclose((latent / 2 + 0.5).clamp(0, 1), pt, atol=1e-6)
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() < 1 / 255
    settings = {"num_inference_steps": 3, "generator": seeded(0), "output_type": "pt", "return_dict": False}
    (images,) = pipe(SMALL, large_ids(), **settings)
    assert torch.equal(images, pt)


def test_latents_that_a_callback_returns_are_used(pipe):
    latent = enlarged(pipe, output_type="latent", callback_on_step_end=zero_at_the_end, project=False)
    assert (latent == 0).all()


def test_half_precision_works():
    assert enlarged(upscale_pipe().to(torch.bfloat16)).isfinite().all()


def test_steps_guidance_and_noise_level_are_what_the_checkpoint_recommends(tmp_path):
    saved = MaskGuidedUpscalePipeline(upscaler(), DDIMScheduler(), 2, 1.0, None, 7)
    saved.save_pretrained(tmp_path)
    loaded = MaskGuidedUpscalePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.resolve_sampling(), loaded.resolve_noise_level()) == ((2, 1.0), 7)
    images = loaded(SMALL, large_ids(), generator=seeded(0), output_type="pt").images
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "noise_level": 7}
    assert torch.allclose(images, enlarged(upscale_pipe(), **given), atol=1e-5)
    assert upscale_pipe().resolve_noise_level() == 0
    least = MaskGuidedUpscalePipeline(upscaler(max_noise_level=5), DDIMScheduler(), 2, 1.0, None, 7)
    assert least.resolve_noise_level() == 5


# --- loading ---


ENLARGE = """
pipe.set_progress_bar_config(disable=True)
image = torch.arange(3 * 16 * 16).reshape(3, 16, 16) % 256 / 255
ids = torch.arange(32 * 32).reshape(1, 32, 32) % 19
settings = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "pt"}
images = pipe(image, ids, tile_size=16, tile_overlap=8, **settings).images
"""


def test_a_saved_folder_loads_in_all_three_ways(tmp_path, clean_process):
    upscale_pipe().save_pretrained(tmp_path / "saved")
    ways = (MaskGuidedUpscalePipeline, diffusers.DiffusionPipeline)
    for pipe in (way.from_pretrained(tmp_path / "saved") for way in ways):
        assert type(pipe) is MaskGuidedUpscalePipeline
        names = {"pipe": pipe, "torch": torch}
        exec(ENLARGE, names)
    code = f"{REMOTE_CODE}{ENLARGE}torch.save(images, sys.argv[2])"
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(code, *paths, without_package=True)
    assert torch.allclose(torch.load(tmp_path / "images.pt"), names["images"], atol=1e-4)
    files = {path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*.py")}
    assert "upscaling.py" in {path.name for path in files}
    for name in files:
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "saved" / name).read_text()


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_level": 51}, "`noise_level` is 51; this network was trained with 0 to 50"),
        ({"noise_level": -1}, "`noise_level` is -1; expected a whole number of at least 0"),
        ({"tile_size": 15}, "`tile_size` is 15; expected multiples of 2"),
        ({"tile_size": (16, 16, 16)}, "expected a number of pixels, or height and width"),
        ({"tile_size": 16, "tile_overlap": 16}, "`tile_overlap` 16 must be smaller than `tile_size` 16"),
        ({"image": [SMALL, SMALL[:8]], "mask": large_ids(2), "seeds": (0, 1)}, "the images are 8 x 16 and 16 x 16"),
        ({"image": [SMALL] * 3}, "got 3 of `image` for 1 masks"),
        ({"image": SMALL[..., :2]}, "the image has shape"),
        ({"guidance_stop": 2.0}, "expected fractions of the steps"),
        ({"latents": torch.zeros(1, 3, SIZE, SIZE)}, "`latents` have the shape"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        enlarged(pipe, **settings)


def test_a_size_that_the_depth_does_not_divide_is_refused_with_the_divisor():
    pipe = upscale_pipe(patch_size=2, stem_channels=8)
    with pytest.raises(ValueError, match="must be multiples of 4 for this network; got 30 x 32"):
        enlarged(pipe, SMALL[:15])


def test_networks_and_pipelines_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="does not enlarge images; expected MaskGuidedDDPMPipeline"):
        enlarged(pipeline(kind=MaskGuidedUpscalePipeline), mask=large_ids(1, SIZE, SIZE))
    with pytest.raises(ValueError, match="enlarges images by a factor of 2; expected MaskGuidedUpscalePipeline"):
        pipeline(upscaler(), kind=MaskGuidedDDPMPipeline)(large_ids())
    with pytest.raises(ValueError, match="`guide_unet` has the upscale factor None, the network 2"):
        enlarged(upscale_pipe(), guide_unet=tiny_unet())
