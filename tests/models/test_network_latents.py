"""Networks of latents: masks of the images' size, class shares in each cell, and a strided branch beside them."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_networks import FORMS, TINY, inputs, tiny_mask_guided

from semseg_diffusers import LabelSet, change_classes
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel, mask_to_one_hot


FACTOR = 4
LATENT = {"in_channels": 4, "out_channels": 4, "vae_scale_factor": FACTOR}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def trained(**settings) -> MaskGuidedUNet2DModel:
    """A small network of latents whose weights that start from zeros are filled."""
    unet = tiny_mask_guided(**{**LATENT, **settings})
    generator = torch.Generator().manual_seed(2)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return unet


def given(factor: int = FACTOR) -> dict[str, torch.Tensor]:
    """Samples of 16 x 16 cells with masks of `factor` times that."""
    sample, timestep, _ = inputs(channels=4)
    mask = inputs(height=16 * factor, width=16 * factor)[2]
    return {"sample": sample, "timestep": timestep, "mask": mask}


@every_form
@torch.no_grad()
def test_masks_are_the_factor_larger_than_samples_and_move_the_output(form):
    unet, batch = trained(**form), given()
    output = unet(**batch).sample
    assert output.shape == (2, 4, 16, 16)
    assert not torch.allclose(output, unet(batch["sample"], batch["timestep"]).sample, atol=1e-3)
    one_hot = mask_to_one_hot(batch["mask"], 5, torch.float32)
    for same in (batch["mask"].to(torch.uint8), one_hot, one_hot.bool()):
        assert torch.equal(unet(**{**batch, "mask": same}).sample, output)


@every_form
@torch.no_grad()
def test_an_untrained_network_sees_the_shares_of_the_classes_alone(form):
    torch.manual_seed(0)
    latent = MaskGuidedUNet2DModel(**{**TINY, **LATENT, **form}).eval()
    torch.manual_seed(0)
    plain = MaskGuidedUNet2DModel(**{**TINY, **LATENT, **form, "vae_scale_factor": 1}).eval()
    batch = given()
    shares = F.avg_pool2d(mask_to_one_hot(batch["mask"], 5, torch.float32), FACTOR)
    assert torch.equal(latent(**batch).sample, plain(**{**batch, "mask": shares}).sample)
    weights = latent.state_dict()
    assert all(torch.equal(weights.pop(name), weight) for name, weight in plain.state_dict().items())
    assert all(name.startswith("strided_branch.") for name in weights)


@every_form
@torch.no_grad()
def test_a_trained_network_tells_masks_apart_that_have_the_same_shares(form):
    unet, batch = trained(**form), given()
    batch["mask"] = torch.zeros_like(batch["mask"])
    pole = batch["mask"].clone()
    pole[:, :, 4::FACTOR] = 3  # one pixel of each cell from the second column on
    moved = batch["mask"].clone()
    moved[:, :, 6::FACTOR] = 3
    outputs = [unet(**{**batch, "mask": mask}).sample for mask in (pole, moved)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    cells = [F.avg_pool2d(mask_to_one_hot(mask, 5, torch.float32), FACTOR) for mask in (pole, moved)]
    assert torch.equal(*cells)


@every_form
@torch.no_grad()
def test_unknown_masks_are_none_also_beside_known_ones_and_unknown_pixels_are_no_class(form):
    unet, batch = trained(mask_pyramid=True, **form), given()
    without = unet(batch["sample"], batch["timestep"]).sample
    mixed = batch["mask"].clone()
    mixed[1] = 255
    output = unet(**{**batch, "mask": mixed}).sample
    assert torch.equal(output[0], unet(**batch).sample[0])
    assert torch.equal(output[1], without[1])
    assert torch.equal(unet(**{**batch, "mask": torch.full_like(mixed, 255)}).sample, without)
    half = batch["mask"].clone()
    half[:, ::2] = 255
    shares = unet.encode_mask(half)[0] if form["mask_conditioning"] == "concat" else None
    if shares is not None:
        torch.testing.assert_close(shares.sum(1), torch.full_like(shares[:, 0], 0.5))
    assert not torch.allclose(unet(**{**batch, "mask": half}).sample, unet(**batch).sample, atol=1e-3)


@every_form
@torch.no_grad()
def test_masks_and_texts_are_encoded_once_for_all_steps(form):
    unet, batch = trained(mask_pyramid=True, text_embed_dim=6, **form), given()
    generator = torch.Generator().manual_seed(3)
    texts = {
        "region_embeds": torch.randn(2, 2, 6, generator=generator),
        "regions": torch.randint(-1, 2, batch["mask"].shape, generator=generator),
    }
    expected = unet(**batch, **texts).sample
    features, text_features = unet.encode_mask(batch.pop("mask")), unet.encode_text(**texts)
    assert torch.equal(unet(**batch, mask_features=features, text_features=text_features).sample, expected)
    assert not torch.allclose(unet(**batch, mask_features=features).sample, expected, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 8])
@pytest.mark.parametrize("form", ["add-1", "concat-2", "spade-1"])
def test_every_weight_learns_at_every_factor(form, factor):
    unet = trained(**{**FORMS[form], "vae_scale_factor": factor}).train()
    unet(**given(factor)).sample.square().mean().backward()
    weights = {name: weight for name, weight in unet.named_parameters() if name.startswith("strided_branch")}
    assert len(weights) == 2 * (factor.bit_length() - 1) + 1
    assert all(weight.grad.abs().sum() > 0 for weight in weights.values())


@pytest.mark.parametrize("form", ["add-1", "concat-1", "spade-2"])
@torch.no_grad()
def test_it_is_saved_exported_cast_and_taken_to_other_classes(form, tmp_path):
    statistics = {"latents_mean": [0.5, -1, 0, 2.25], "latents_std": [1, 2, 0.5, 3]}
    labels = LabelSet.from_names(["road", "car", "sky", "person", "pole"])
    unet, batch = trained(**FORMS[form], **statistics, **labels.to_config()), given()
    expected = unet(**batch).sample
    unet.save_pretrained(tmp_path)
    loaded = MaskGuidedUNet2DModel.from_pretrained(tmp_path)
    assert (loaded.config.vae_scale_factor, loaded.config.latents_std) == (FACTOR, [1, 2, 0.5, 3])
    assert torch.equal(loaded(**batch).sample, expected)
    program = torch.export.export(unet, (), batch)
    torch.testing.assert_close(program.module()(**batch).sample, expected)
    swapped = change_classes(unet, LabelSet.from_names(["car", "road", "sky", "person", "pole"]))
    other = torch.where(batch["mask"] < 2, 1 - batch["mask"], batch["mask"])
    torch.testing.assert_close(swapped(**{**batch, "mask": other}).sample, expected, rtol=0, atol=1e-4)
    unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    torch.testing.assert_close(unet(**batch).sample, expected, rtol=0, atol=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vae_scale_factor": 3}, "`vae_scale_factor` must be a power of 2, such as 8, or 1; got 3"),
        ({"vae_scale_factor": 0}, "must be a power of 2, such as 8, or 1; got 0"),
        ({"upscale_factor": 2}, "`upscale_factor` is for networks of pixels"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "must hold 4 finite numbers, one a channel; got"),
        ({"latents_mean": [0.0] * 4}, "`latents_mean` needs a `latents_std` above 0"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "a `latents_std` above 0"),
        ({"latents_mean": [0.0] * 4, "latents_std": [float("nan")] * 4}, "must hold 4 finite numbers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_mask_guided(**{**LATENT, **settings})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask": torch.zeros(2, 16, 16, dtype=torch.long)},
            r"2 of 64 x 64 4 times as large as `sample`; got",
        ),
        ({"mask": torch.zeros(2, 65, 64, dtype=torch.long)}, r"4 times as large as `sample`; got \(2, 65, 64\)"),
        ({"sample": torch.zeros(2, 4, 15, 16)}, "must be multiples of 2; got 15 x 16"),
        (
            {"region_embeds": torch.zeros(2, 1, 6), "regions": torch.zeros(2, 16, 16, dtype=torch.long)},
            r"`regions` must be 64 x 64 like masks; got \(2, 16, 16\)",
        ),
    ],
)
def test_conditions_of_another_size_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        trained(text_embed_dim=6)(**{**given(), **changes})
