"""SDM's network against the authors' own outputs, and against what diffusers asks of a network."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMScheduler
from helpers.golden_weights import golden_config, golden_shapes, golden_values, golden_weights
from helpers.tiny_networks import inputs
from helpers.tiny_networks import tiny_sdm as tiny
from PIL import Image

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel, instance_edges


NAME = "sdm_unet_tiny"


@pytest.fixture(scope="module")
def golden() -> tuple[SDMUNet2DModel, dict[str, torch.Tensor]]:
    config = golden_config(NAME)
    unet = SDMUNet2DModel(
        sample_size=config["image_size"],
        num_classes=config["num_classes"],
        model_channels=config["model_channels"],
        channel_mult=config["channel_mult"],
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=config["attention_resolutions"],
        num_head_channels=config["num_head_channels"],
    ).eval()
    unet.load_state_dict(golden_weights(golden_shapes(NAME)), strict=True)
    return unet, golden_values(NAME)


# The authors' values


def test_parameter_names_and_shapes_are_the_authors(golden):
    unet, _ = golden
    assert {key: tuple(value.shape) for key, value in unet.state_dict().items()} == golden_shapes(NAME)


@torch.no_grad()
@pytest.mark.parametrize("path", ["mask", "features", "one-hot features"])
def test_masked_output_equals_the_authors(golden, path):
    unet, values = golden
    mask = {"mask": values["label_map"]}
    if path != "mask":
        unet.modulation_cache = path == "features"
        mask = {"mask_features": unet.encode_mask(values["label_map"])}
        unet.enable_modulation_cache()
    output = unet(values["sample"], values["timestep"], **mask).sample
    torch.testing.assert_close(output, values["output_masked"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["none", "unknown", "zeros"])
def test_null_mask_output_equals_the_authors(golden, mask):
    unet, values = golden
    unknown = torch.full_like(values["label_map"], 255)
    mask = {"none": None, "unknown": unknown, "zeros": torch.zeros(2, 12, 32, 32)}[mask]
    output = unet(values["sample"], values["timestep"], mask=mask).sample
    torch.testing.assert_close(output, values["output_null_mask"], rtol=0, atol=1e-4)
    assert (
        output - values["output_masked"]
    ).abs().max() > 0.01  # the two references differ, so each test says something


def test_default_network_is_the_released_one_in_size():
    with torch.device("meta"):
        unet = SDMUNet2DModel(num_classes=151)
        modulation = unet.encode_mask(torch.zeros(1, 256, 256, dtype=torch.long))
    assert unet.num_parameters() == 660_608_518
    assert sum(4 * feature.numel() for feature in modulation) == 2_038_431_744  # bytes; the docstring rounds them
    assert unet.size_divisor == 32


@torch.no_grad()
def test_untrained_network_says_nothing():
    unet = SDMUNet2DModel(model_channels=32, channel_mult=(1,), num_res_blocks=1, num_head_channels=32)
    sample, timestep, mask = inputs()
    assert not unet(sample, timestep, mask=mask).sample.any()


# The mask


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_encoded_mask_gives_the_same_numbers(height, width):
    unet = tiny()
    sample, timestep, mask = inputs(2, height, width)
    expected = unet(sample, timestep, mask=mask).sample
    features = unet.encode_mask(mask)
    full, half = (height, width), (height // 2, width // 2)
    assert [tuple(feature.shape[2:]) for feature in features] == [half] * 9 + [full] * 5
    assert all(feature.shape[0] == 2 for feature in features)
    assert torch.equal(unet(sample, timestep, mask_features=features).sample, expected)
    unet.disable_modulation_cache()
    features = unet.encode_mask(mask)
    assert [tuple(feature.shape) for feature in features] == [(2, 5, height, width)]
    assert torch.equal(unet(sample, timestep, mask_features=features).sample, expected)


@torch.no_grad()
def test_encoder_does_not_see_the_mask():
    unet = tiny()
    seen = []
    handle = unet.input_blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    sample, timestep, mask = inputs()
    unet(sample, timestep, mask=mask)
    unet(sample, timestep)
    handle.remove()
    assert torch.equal(*seen)


# Instances


def test_edges_are_the_pixels_that_differ_from_a_neighbour():
    instances = torch.zeros(1, 4, 5, dtype=torch.long)
    instances[0, 1:3, 2] = 7
    expected = torch.tensor([[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()
    assert torch.equal(instance_edges(instances)[0, 0], expected)
    one_hot = torch.nn.functional.one_hot(instances, 8).permute(0, 3, 1, 2)
    assert torch.equal(instance_edges(one_hot)[0, 0], expected)


@torch.no_grad()
def test_borders_of_classes_are_the_edges_where_no_instances_are_given():
    unet = tiny(instance_edges=True)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=unet.with_instances(mask, mask)).sample, expected)
    one_hot = torch.nn.functional.one_hot(mask, 5).permute(0, 3, 1, 2).float()
    assert torch.equal(unet(sample, timestep, mask=one_hot).sample, expected)


@torch.no_grad()
def test_instances_split_what_is_one_class():
    unet = tiny(instance_edges=True)
    sample, timestep, mask = inputs()
    mask[:] = 2
    instances = torch.zeros_like(mask)
    instances[:, :, 8:] = 1
    joined = unet.with_instances(mask, instances)
    assert joined[:, 5, :, 7:9].all()
    assert joined[:, 5].sum() == 2 * 16 * 2
    assert not torch.allclose(unet(sample, timestep, mask=joined).sample, unet(sample, timestep, mask=mask).sample)


@torch.no_grad()
def test_unknown_mask_has_no_edges_whatever_the_instances():
    unet = tiny(instance_edges=True)
    sample, timestep, mask = inputs()
    joined = unet.with_instances(torch.full_like(mask, 255), mask)
    assert not joined.any()
    assert torch.equal(unet(sample, timestep, mask=joined).sample, unet(sample, timestep).sample)


def test_instances_that_do_not_fit_are_refused():
    _, _, mask = inputs()
    with pytest.raises(ValueError, match="no channel for their edges"):
        tiny().with_instances(mask, mask)
    with pytest.raises(ValueError, match=r"integer ids of shape \(2, 16, 16\)"):
        tiny(instance_edges=True).with_instances(mask, mask[:, :8])
    with pytest.raises(ValueError, match="got torch.float32"):
        tiny(instance_edges=True).with_instances(mask, mask.float())


# Dtypes and settings


def test_layerwise_casting_stores_low_and_leaves_the_norms():
    unet = tiny()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert unet.output_blocks[0][1].qkv.weight.dtype == torch.float8_e4m3fn
    assert unet.output_blocks[0][0].in_norm.mlp_gamma.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_channels": 48}, "multiple of 32, the groups of the norms"),
        ({"channel_mult": ()}, r"and the widths \[\]"),
        ({"num_res_blocks": 0}, "`num_res_blocks` must be 1 or more"),
        ({"num_head_channels": 48}, r"that have attention, \[64, 64\]; got 48"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


# Compilation


@torch.no_grad()
@pytest.mark.slow
def test_compiles_whole_with_encoded_masks():
    unet = tiny()
    sample, timestep, mask = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ids in (mask, torch.full_like(mask, 255)):
            features = unet.encode_mask(ids)
            expected = unet(sample, timestep, mask=ids).sample
            torch.testing.assert_close(compiled(sample, timestep, mask_features=features).sample, expected)


# In the pipeline


def draw(pipe, mask, **settings) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(mask, num_inference_steps=2, generator=generator, output_type="latent", **settings).images


def test_pipeline_samples_with_the_learned_variance():
    scheduler = DDPMScheduler(variance_type="learned_range")
    unet = tiny()
    pipe = MaskGuidedDDPMPipeline(unet=unet, scheduler=scheduler)
    _, _, mask = inputs(1)
    image = draw(pipe, mask)

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 3, 16, 16, generator=generator)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        with torch.no_grad():
            uncond, cond = unet(latents, t).sample, unet(latents, t, mask=mask).sample
        output = torch.cat([uncond[:, :3] + 2.0 * (cond[:, :3] - uncond[:, :3]), cond[:, 3:]], dim=1)
        latents = scheduler.step(output, t, latents, generator=generator).prev_sample
    torch.testing.assert_close(image, latents, rtol=0, atol=1e-4)


def test_pipeline_computes_the_modulation_once_unless_the_cache_is_disabled():
    unet = tiny()
    calls = []
    unet.middle_block[0].in_norm.mlp_gamma.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))
    pipe = MaskGuidedDDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    _, _, mask = inputs(1)
    cached = draw(pipe, mask)
    assert calls == [1, 1]  # the mask, and "unknown"
    calls.clear()
    unet.disable_modulation_cache()
    torch.testing.assert_close(draw(pipe, mask), cached, rtol=0, atol=1e-4)
    assert calls == [2, 2]  # both, at each step


def test_pipeline_takes_instances_in_every_form_and_of_another_size(tmp_path):
    pipe = MaskGuidedDDPMPipeline(unet=tiny(instance_edges=True), scheduler=DDPMScheduler())
    _, _, masks = inputs(2)
    masks[:] = 1
    instances = torch.zeros_like(masks)
    instances[:, 4:9, 3:8] = 24_001
    expected = draw(pipe, masks, instances=instances)
    Image.fromarray(instances[0].numpy().astype(np.uint16)).save(tmp_path / "instances.png")
    double = instances[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    for form in (list(instances), [tmp_path / "instances.png", instances[1].numpy()], [double, instances[1].int()]):
        assert torch.equal(draw(pipe, masks, instances=form), expected)
    assert not torch.allclose(draw(pipe, masks), expected, atol=1e-4)
    assert torch.equal(draw(pipe, masks, instances=masks), draw(pipe, masks))
    pipe.unet.disable_modulation_cache()
    torch.testing.assert_close(draw(pipe, masks, instances=instances), expected, rtol=0, atol=1e-4)


def test_instances_reach_an_offloaded_network():
    _, _, mask = inputs(1)
    pipe = MaskGuidedDDPMPipeline(unet=tiny(instance_edges=True), scheduler=DDPMScheduler())
    expected = draw(pipe, mask, instances=mask)
    cpu_offload(pipe.unet, torch.device("cpu"))
    torch.testing.assert_close(draw(pipe, mask, instances=mask), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("edges", "instances", "message"),
    [
        (False, torch.zeros(16, 16, dtype=torch.long), "no channel for instance edges"),
        (True, torch.zeros(2, 16, 16, dtype=torch.long), "got 2 `instances` for 1 masks"),
        (True, np.zeros((16, 16), dtype=np.float32), r"type float32; expected integer ids of shape \(H, W\)"),
        (True, Image.new("RGB", (16, 16)), r"shape \(16, 16, 3\)"),
    ],
)
def test_instances_that_no_pipeline_can_use_are_refused(edges, instances, message):
    pipe = MaskGuidedDDPMPipeline(unet=tiny(instance_edges=edges), scheduler=DDPMScheduler())
    with pytest.raises(ValueError, match=message):
        draw(pipe, inputs(1)[2], instances=instances)
