"""The paper's network against the authors' own outputs, and against what diffusers asks of a network."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.golden_weights import golden_config, golden_shapes, golden_values, golden_weights
from helpers.tiny_networks import inputs
from helpers.tiny_networks import tiny_paper as tiny

from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel, paper_betas


NAME = "paper_unet_tiny"


@pytest.fixture(scope="module")
def golden() -> tuple[PaperUNet2DModel, dict[str, torch.Tensor]]:
    config = golden_config(NAME)
    unet = PaperUNet2DModel(
        sample_size=32,
        num_classes=config["num_classes"],
        hidden_dim=config["hidden_dim"],
        emb_dim=config["emb_dim"],
    ).eval()
    unet.load_state_dict(golden_weights(golden_shapes(NAME)), strict=True)
    return unet, golden_values(NAME)


# The authors' values


def test_parameter_names_and_shapes_are_the_authors(golden):
    unet, _ = golden
    assert {key: tuple(value.shape) for key, value in unet.state_dict().items()} == golden_shapes(NAME)


def test_default_network_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        unet = PaperUNet2DModel()
    assert unet.num_parameters() == 90_816_131


@torch.no_grad()
def test_masked_output_equals_the_authors(golden):
    unet, values = golden
    output = unet(values["sample"], values["timestep"], mask=values["label_map"]).sample
    torch.testing.assert_close(output, values["output_masked"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_unmasked_output_equals_the_authors(golden):
    unet, values = golden
    output = unet(values["sample"], values["timestep"]).sample
    torch.testing.assert_close(output, values["output_unmasked"], rtol=0, atol=1e-4)
    assert (
        output - values["output_masked"]
    ).abs().max() > 0.01  # the two references differ, so each test says something


def test_noise_schedule_equals_the_authors(golden):
    _, values = golden
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, trained_betas=paper_betas(), variance_type="fixed_large", clip_sample=False
    )
    torch.testing.assert_close(scheduler.betas, values["betas_1000"], rtol=0, atol=1e-8)
    torch.testing.assert_close(scheduler.alphas_cumprod, values["alphas_cumprod_1000"], rtol=0, atol=2e-7)
    torch.testing.assert_close(torch.tensor(paper_betas(20)), values["betas_20"], rtol=0, atol=1e-8)


def test_noise_schedule_refuses_one_step():
    with pytest.raises(ValueError, match="2 or more"):
        paper_betas(1)


def test_noise_schedule_can_be_saved_as_json():
    assert json.loads(json.dumps(paper_betas(5))) == paper_betas(5)


# The mask


def test_encoded_mask_is_one_map_at_full_resolution():
    assert [tuple(feature.shape) for feature in tiny().encode_mask(inputs()[2])] == [(2, 8, 16, 16)]


# Sizes, timesteps, dtypes


@torch.no_grad()
def test_attention_on_a_wide_map_equals_that_on_its_tall_twin():
    attention = tiny().sa4
    x = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(attention(x.mT), attention(x).mT)


@torch.no_grad()
def test_layerwise_casting_stores_low_and_leaves_the_norms():
    unet = tiny()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert unet.sa3.mha.out_proj.weight.dtype == torch.float8_e4m3fn
    assert unet.inc.double_conv[1].weight.dtype == torch.float32


# Training


def test_mask_stem_learns_nothing_from_unknown_masks():
    unet = tiny().train()
    sample, timestep, mask = inputs()
    unet(sample, timestep, mask=torch.full_like(mask, 255)).sample.square().mean().backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in unet.mask_conv.parameters())
    assert unet.inc.double_conv[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_dim": 7}, "`hidden_dim` must be even"),
        ({"emb_dim": 33}, "`emb_dim` must be even"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
