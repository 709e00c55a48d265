"""Pipelines of latents: encoding, decoding, scale, sizes with each autoencoder; edits that keep all other pixels."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    VQModel,
)
from helpers.autoencoders import AUTOENCODERS, FACTOR, tiny_autoencoder
from helpers.loading import REMOTE_CODE
from helpers.tiny_pipelines import SIZE, draw, random_ids, seeded, tiny_unet

from semseg_diffusers import (
    MaskGuidedDDPMPipeline,
    MaskGuidedImg2ImgPipeline,
    MaskGuidedInpaintPipeline,
    MaskGuidedUpscalePipeline,
)
from semseg_diffusers.hub.folders import check_model_folder, model_files
from semseg_diffusers.pipelines.latents import (
    decode_latents,
    encode_images,
    encode_moments,
    latent_channels,
    vae_factor,
)


CELLS = SIZE // FACTOR
STATISTICS = {"latents_mean": [0.5, -0.25, 0.0, 1.0], "latents_std": [1.5, 0.5, 1.0, 2.0]}
every_kind = pytest.mark.parametrize("kind", AUTOENCODERS)


def latent_unet(**settings):
    return tiny_unet(
        **{"sample_size": CELLS, "in_channels": 4, "out_channels": 4, "vae_scale_factor": FACTOR, **settings}
    )


def latent_pipeline(kind="kl", pipeline=MaskGuidedDDPMPipeline, scheduler=None, vae=None, **settings):
    pipe = pipeline(
        unet=latent_unet(**settings),
        scheduler=DDIMScheduler(clip_sample=False) if scheduler is None else scheduler,
        vae=tiny_autoencoder(kind) if vae is None else vae,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, mask, image, **settings):
    """Draw with a pipeline that takes an image first."""
    settings = {"num_inference_steps": 3, "output_type": "pt", **settings}
    return pipe(image, mask, generator=seeded(0), **settings).images


def photos(count: int = 1) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] of 8-bit pixels."""
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=seeded(5)) / 255


# --- latents of an autoencoder ---


@every_kind
@torch.no_grad()
def test_images_are_encoded_and_decoded_as_diffusers_pipelines_do(kind):
    vae, images = tiny_autoencoder(kind), photos(2) * 2 - 1
    latents = encode_images(vae, images, {})
    assert latents.shape == (2, 4, CELLS, CELLS)
    assert (vae_factor(vae), latent_channels(vae)) == (FACTOR, 4)
    config = vae.config
    output = vae.encode(images)
    raw = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
    shift = config.get("shift_factor") or 0.0
    torch.testing.assert_close(latents, (raw - shift) * config.scaling_factor)
    expected = vae.decode(latents / config.scaling_factor + shift).sample
    torch.testing.assert_close(decode_latents(vae, latents, {}), expected, rtol=1e-4, atol=1e-5)


@every_kind
@torch.no_grad()
def test_statistics_of_the_network_scale_each_channel_on_top_of_the_autoencoders_own_factor(kind):
    vae, images = tiny_autoencoder(kind), photos(2) * 2 - 1
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in STATISTICS.values())
    plain, scaled = (encode_images(vae, images, config) for config in ({}, STATISTICS))
    torch.testing.assert_close(scaled, (plain - mean) / std)
    decoded = [decode_latents(vae, *each) for each in ((plain, {}), (scaled, STATISTICS))]
    torch.testing.assert_close(*decoded, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_kl_latents_are_sampled_with_noise_and_their_mode_without():
    vae, images, noise = tiny_autoencoder("kl"), photos() * 2 - 1, torch.randn(1, 4, CELLS, CELLS, generator=seeded(1))
    mean, std = encode_moments(vae, images)
    expected = (mean + std * noise - 0.25) * 0.5
    torch.testing.assert_close(encode_images(vae, images, {}, noise), expected)
    assert torch.equal(encode_images(vae, images, {}), encode_images(vae, images, {}, torch.zeros_like(noise)))
    assert encode_moments(tiny_autoencoder("vq"), images)[1] is None


@pytest.mark.parametrize(
    ("cls", "config", "factor", "channels", "scale"),
    [
        (
            AutoencoderKL,  # Stable Diffusion 1.5
            {
                "block_out_channels": (128, 256, 512, 512),
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "layers_per_block": 2,
                "latent_channels": 4,
                "scaling_factor": 0.18215,
            },
            8, 4, 0.18215,
        ),
        (AutoencoderTiny, {}, 8, 4, 1.0),  # TAESD, by its defaults
        (
            VQModel,  # VQ-f4 of latent diffusion
            {
                "block_out_channels": (128, 256, 512),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "layers_per_block": 2,
                "latent_channels": 3,
                "num_vq_embeddings": 8192,
            },
            4, 3, 0.18215,
        ),
        (
            AsymmetricAutoencoderKL,  # of inpainting in Stable Diffusion
            {
                "down_block_out_channels": (128, 256, 512, 512),
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_out_channels": (192, 384, 768, 768),
                "up_block_types": ("UpDecoderBlock2D",) * 4,
            },
            8, 4, 0.18215,
        ),
    ],
    ids=["sd", "taesd", "vq-f4", "asymmetric"],
)  # fmt: skip
@torch.no_grad()
def test_published_autoencoders_have_the_shapes_and_the_scale_that_their_configs_say(
    cls, config, factor, channels, scale
):
    with torch.device("meta"):
        vae = cls(**config)
        unet = latent_unet(sample_size=(8, 16), in_channels=channels, out_channels=channels, vae_scale_factor=factor)
        images = torch.zeros(1, 3, 8 * factor, 16 * factor)
    mean, std = encode_moments(vae, images)
    assert mean.shape == (1, channels, 8, 16)
    assert (std is not None) == (cls in (AutoencoderKL, AsymmetricAutoencoderKL))
    assert vae.decode(mean).sample.shape == images.shape
    pipe = MaskGuidedDDPMPipeline(unet=unet, scheduler=DDIMScheduler(), vae=vae)
    assert pipe.sample_size == (8 * factor, 16 * factor)
    assert pipe.vae.config.scaling_factor == scale


# --- sampling ---


@every_kind
def test_images_are_the_decoded_latents_and_have_the_size_of_the_masks(kind):
    pipe, ids = latent_pipeline(kind, **STATISTICS), random_ids(2)
    images = draw(pipe, ids, (0, 1))
    assert images.shape == (2, 3, SIZE, SIZE)
    latents = draw(pipe, ids, (0, 1), output_type="latent")
    assert latents.shape == (2, 4, CELLS, CELLS)
    decoded = decode_latents(pipe.vae, latents, pipe.unet.config)
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    assert draw(pipe, ids[:1], output_type="pil")[0].size == (SIZE, SIZE)
    assert draw(pipe, ids[:1], output_type="np").shape == (1, SIZE, SIZE, 3)


def test_given_latents_are_honoured_and_of_the_size_of_cells():
    pipe, ids = latent_pipeline(), random_ids()
    noise = torch.randn(1, 4, CELLS, CELLS, generator=seeded(0))
    assert torch.equal(draw(pipe, ids, latents=noise), draw(pipe, ids))
    with pytest.raises(ValueError, match=r"have the shape \(1, 4, 16, 16\); expected \(1, 4, 4, 4\)"):
        draw(pipe, ids, latents=torch.zeros(1, 4, SIZE, SIZE))


def test_sizes_are_in_pixels():
    pipe = latent_pipeline()
    assert draw(pipe, random_ids(height=64, width=64), height=24, width=40).shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="multiples of 8 for this network; got 20 x 24. The nearest is 16 x 24"):
        draw(pipe, random_ids(), height=20, width=24)
    unsized = latent_pipeline(sample_size=None)
    assert draw(unsized, random_ids(height=24, width=32)).shape == (1, 3, 24, 32)


def test_an_image_of_a_batch_is_that_of_a_call_of_its_own_and_fading_masks_are_of_pixels():
    fading = {"label_diffusion": [1.0] * 19, "num_train_timesteps": 1000}
    for settings in ({}, fading):
        pipe, ids = latent_pipeline(**settings), random_ids(2)
        batch = draw(pipe, ids, (0, 1))
        torch.testing.assert_close(batch[1:], draw(pipe, ids[1:], (1,)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDIMScheduler(thresholding=True, clip_sample=False),
        DPMSolverMultistepScheduler(thresholding=True),
    ],
    ids=["clip", "threshold", "dpm threshold"],
)
def test_schedulers_do_not_clip_latents_and_stay_as_they_are(scheduler):
    clips = {"clip_sample": False, "thresholding": False}
    plain = type(scheduler).from_config({**scheduler.config, **clips})
    pipe, before = latent_pipeline(scheduler=scheduler), dict(scheduler.config)
    assert torch.equal(draw(pipe, random_ids()), draw(latent_pipeline(scheduler=plain), random_ids()))
    assert dict(pipe.scheduler.config) == before


def test_slicing_and_tiling_are_the_autoencoders_own():
    pipe = latent_pipeline()
    expected = draw(pipe, random_ids(2), (0, 1))
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (True, True)
    torch.testing.assert_close(draw(pipe, random_ids(2), (0, 1)), expected, rtol=0, atol=1e-4)
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (False, False)
    with pytest.raises(
        ValueError, match="`enable_vae_slicing`: this network generates pixels, without an autoencoder"
    ):
        MaskGuidedDDPMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler()).enable_vae_slicing()


def test_sampling_leaves_the_mode_of_the_autoencoder_and_works_in_half_precision():
    pipe = latent_pipeline().to(dtype=torch.bfloat16)
    pipe.vae.train()
    assert draw(pipe, random_ids()).dtype == torch.float32
    assert pipe.vae.training


# --- loading ---


@every_kind
def test_the_autoencoder_is_saved_loaded_published_and_handed_on(kind, tmp_path):
    pipe = latent_pipeline(kind, **STATISTICS)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", type(pipe.vae).__name__]
    loaded = MaskGuidedDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = draw(pipe, random_ids())
    torch.testing.assert_close(draw(loaded, random_ids()), expected, rtol=0, atol=1e-5)
    published = model_files(tmp_path, check_model_folder(tmp_path))
    assert {"latents.py", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"} <= {*published}
    other = MaskGuidedImg2ImgPipeline.from_pipe(loaded)
    assert other.vae is loaded.vae
    assert MaskGuidedDDPMPipeline.from_pipe(other).vae is loaded.vae


def test_a_folder_without_the_autoencoder_generates_latents_alone(tmp_path):
    pipe = latent_pipeline()
    pipe.save_pretrained(tmp_path)
    without = MaskGuidedDDPMPipeline.from_pretrained(tmp_path, vae=None)
    without.set_progress_bar_config(disable=True)
    without.save_pretrained(tmp_path / "without")
    assert "vae" not in json.loads((tmp_path / "without" / "model_index.json").read_text())
    latents = draw(without, random_ids(), output_type="latent")
    torch.testing.assert_close(latents, draw(pipe, random_ids(), output_type="latent"), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="this network generates latents, and the pipeline has no `vae`"):
        draw(without, random_ids())
    for kind in (MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline):
        with pytest.raises(ValueError, match="edits latents, and the pipeline has no `vae` to encode images"):
            edit(kind.from_pipe(without), random_ids(), photos(), output_type="latent")


DRAW = """
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
images = pipe(ids, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MaskGuidedDDPMPipeline, MaskGuidedInpaintPipeline])
def test_a_folder_with_an_autoencoder_loads_without_the_package(kind, tmp_path, clean_process):
    latent_pipeline("vq", kind, **STATISTICS).save_pretrained(tmp_path / "saved")
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(REMOTE_CODE + (DRAW if kind is MaskGuidedDDPMPipeline else ""), *paths, without_package=True)
    again = MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    ids = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) % 19
    if kind is MaskGuidedDDPMPipeline:
        assert torch.allclose(torch.load(tmp_path / "images.pt"), draw(again, ids), atol=1e-4)


# --- edits ---


@every_kind
def test_outside_of_the_region_every_pixel_stays_to_the_last_bit(kind):
    pipe, image = latent_pipeline(kind, MaskGuidedInpaintPipeline), photos()
    region = np.zeros((SIZE, SIZE), dtype=bool)
    region[5:9, 6:11] = True
    result = edit(pipe, random_ids(), image, edit_region=region)
    outside = torch.from_numpy(~region)
    assert torch.equal(result[0][:, outside], image[0][:, outside])
    assert not torch.allclose(result[0][:, ~outside], image[0][:, ~outside], atol=1e-2)
    (pil,) = edit(pipe, random_ids(), image, edit_region=region, output_type="pil")
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(np.asarray(pil)[~region], pixels[~region])


def test_the_cells_that_the_region_does_not_reach_are_the_images_own():
    pipe, image = latent_pipeline(pipeline=MaskGuidedInpaintPipeline), photos()
    region = np.zeros((SIZE, SIZE), dtype=bool)
    region[4:9, 4] = True  # the cells (1, 1) and (2, 1)
    latents = edit(pipe, random_ids(), image, edit_region=region, output_type="latent")
    known = encode_images(pipe.vae, image * 2 - 1, pipe.unet.config)
    changed = (latents != known).any(dim=1)[0]
    expected = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    expected[1:3, 1] = True
    assert torch.equal(changed, expected)
    untouched = edit(pipe, random_ids(), image, edit_region=np.zeros_like(region))
    assert torch.equal(untouched, image)


def test_a_window_around_the_region_is_encoded_and_pasted_back():
    pipe = latent_pipeline(pipeline=MaskGuidedInpaintPipeline)
    image = torch.rand(1, 3, 40, 48, generator=seeded(2))
    region = np.zeros((40, 48), dtype=bool)
    region[20:26, 30:36] = True
    result = edit(pipe, random_ids(height=40, width=48), image, edit_region=region, padding_mask_crop=2)
    outside = torch.from_numpy(~region)
    assert torch.equal(result[0][:, outside], image[0][:, outside])


def test_strength_moves_from_the_encoded_image_to_what_noise_alone_gives():
    pipe, image = latent_pipeline(pipeline=MaskGuidedImg2ImgPipeline), photos()
    known = encode_images(pipe.vae, image * 2 - 1, pipe.unet.config)
    still = edit(pipe, random_ids(), image, strength=0, output_type="latent")
    torch.testing.assert_close(still, known)
    assert torch.equal(edit(pipe, random_ids(), image, strength=0), image)
    near, far = (
        edit(pipe, random_ids(), image, strength=strength, output_type="latent", num_inference_steps=10)
        for strength in (0.2, 0.9)
    )
    assert (near - known).square().mean() < (far - known).square().mean()
    whole = edit(pipe, random_ids(), image, strength=1)
    assert torch.equal(whole, draw(latent_pipeline(), random_ids()))


# --- refusals ---


def test_autoencoders_that_do_not_fit_are_refused_when_the_pipeline_is_made():
    vae = tiny_autoencoder("kl")
    with pytest.raises(ValueError, match="`vae` is a Linear; expected an autoencoder of diffusers: AutoencoderKL"):
        latent_pipeline(vae=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="of 4 channels, 1/4 the size, and the network generates pixels"):
        MaskGuidedDDPMPipeline(unet=tiny_unet(), scheduler=DDIMScheduler(), vae=vae)
    with pytest.raises(ValueError, match="generates latents of 4 channels, 1/8 the size: use the autoencoder that"):
        latent_pipeline(vae=vae, vae_scale_factor=8)
    with pytest.raises(ValueError, match="with latents of 4 channels, .* generates latents of 3 channels, 1/4"):
        latent_pipeline(vae=vae, in_channels=3, out_channels=3)
    with pytest.raises(ValueError, match="`vae` reads 1 and writes 1 channels; expected RGB images"):
        latent_pipeline(vae=AutoencoderKL(in_channels=1, out_channels=1, norm_num_groups=4, block_out_channels=(4,)))
    pipe = MaskGuidedUpscalePipeline(unet=latent_unet(), scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="expected a network of images with 3 channels; got 4"):
        edit(pipe, random_ids(), photos())


@torch.no_grad()
def test_values_of_the_autoencoder_that_are_not_finite_are_refused():
    pipe = latent_pipeline()
    pipe.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(
        ValueError, match="the autoencoder decoded images to values that are not finite, in torch.float32"
    ):
        draw(pipe, random_ids())
    editing = MaskGuidedImg2ImgPipeline.from_pipe(pipe)
    editing.vae.quant_conv.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="the autoencoder encoded images to values that are not finite"):
        edit(editing, random_ids(), photos())


def test_a_guide_generates_the_same_latents():
    pipe, other = latent_pipeline(), latent_unet(**STATISTICS)
    with pytest.raises(ValueError, match="`guide_unet` has the latents"):
        draw(pipe, random_ids(), guide_unet=other)
    assert draw(pipe, random_ids(), guide_unet=latent_unet()).shape == (1, 3, SIZE, SIZE)
