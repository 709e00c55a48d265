"""Texts about the image and about regions of it: zero weights at the start, zero where nothing was said."""

import pytest
import torch
from helpers.tiny_networks import FORMS, TINY, inputs, tiny_mask_guided

from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel


LENGTH = 12
SETTINGS = {"text_embed_dim": LENGTH, "mask_pyramid": True, "attributes": {"weather": ["clear", "rainy"]}}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def trained(**settings) -> MaskGuidedUNet2DModel:
    """A small network whose weights that start from zeros are filled."""
    unet = tiny_mask_guided(**{**SETTINGS, **settings})
    generator = torch.Generator().manual_seed(2)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return unet


def texts(batch_size: int = 2, count: int = 3) -> dict[str, torch.Tensor]:
    """Texts about images, and about three regions of each: stripes, with nothing said below them."""
    generator = torch.Generator().manual_seed(3)
    regions = torch.full((batch_size, 16, 16), -1)
    for number in range(count):
        regions[:, 4 * number : 4 * number + 4] = number
    return {
        "text_embeds": torch.randn(batch_size, LENGTH, generator=generator),
        "region_embeds": torch.randn(batch_size, count, LENGTH, generator=generator),
        "regions": regions,
    }


def given() -> dict[str, torch.Tensor]:
    return dict(zip(("sample", "timestep", "mask"), inputs(), strict=True))


@every_form
@torch.no_grad()
def test_an_untrained_network_predicts_the_same_with_texts_as_one_that_reads_none(form):
    networks = []
    for settings in (form, {**form, "text_embed_dim": LENGTH}):
        torch.manual_seed(0)
        networks.append(MaskGuidedUNet2DModel(**{**TINY, **settings}).eval())
    plain, reading = networks
    assert torch.equal(reading(**given(), **texts()).sample, plain(**given()).sample)
    weights = reading.state_dict()
    assert all(torch.equal(weights.pop(name), weight) for name, weight in plain.state_dict().items())
    assert all(name.startswith("text_branch.") for name in weights)


@every_form
@torch.no_grad()
def test_each_kind_of_text_moves_the_output_and_zeros_are_nothing_said(form):
    unet, said = trained(**form), texts()
    outputs = [unet(**given()).sample]
    about_regions = {name: said[name] for name in ("region_embeds", "regions")}
    for some in ({"text_embeds": said["text_embeds"]}, about_regions, said):
        outputs.append(unet(**given(), **some).sample)
    for i, first in enumerate(outputs):
        assert all(not torch.allclose(first, second, atol=1e-3) for second in outputs[i + 1 :])
    nothing = {name: torch.zeros_like(said[name]) for name in ("text_embeds", "region_embeds")}
    for silent in (nothing, {"regions": torch.full_like(said["regions"], -1), "text_embeds": nothing["text_embeds"]}):
        assert torch.equal(unet(**given(), **{**said, **silent}).sample, outputs[0])


@every_form
@torch.no_grad()
def test_texts_encoded_once_give_the_numbers_of_texts_given_at_each_step(form):
    unet, said = trained(**form), texts()
    features = unet.encode_text(**said)
    width, side = (8, 8) if form["patch_size"] > 1 else (8, 16)
    assert [tuple(part.shape) for part in features] == [(2, 32), (2, width, 16, 16), (2, 8, side // 2, side // 2)]
    expected = unet(**given(), **said).sample
    assert torch.equal(unet(**given(), text_features=features).sample, expected)
    for i in range(2):
        single = {name: value[i : i + 1] for name, value in {**given(), **said}.items()}
        torch.testing.assert_close(unet(**single).sample, expected[i : i + 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_reaches_its_region_alone_in_the_stem_and_by_its_share_in_lower_cells():
    unet, said = trained(), texts()
    said["regions"][:, :4, 9:] = -1  # of the first region, columns 0 to 8 remain
    _, stem, lower = unet.encode_text(region_embeds=said["region_embeds"], regions=said["regions"])
    spoken = said["regions"] >= 0
    assert (stem != 0).all(dim=1).equal(spoken)
    assert stem[0, :, 0, 0].equal(stem[0, :, 3, 8])
    torch.testing.assert_close(lower[:, :, 0, 4], lower[:, :, 0, 0] / 2)  # columns 8 and 9: half of the cell
    assert not lower[:, :, 0, 5:].any()


def test_every_weight_learns_once_those_that_start_from_zeros_are_filled():
    unet = trained().train()
    unet(**given(), **texts()).sample.square().mean().backward()
    weights = {name: weight for name, weight in unet.named_parameters() if name.startswith("text_branch")}
    assert len(weights) == 5
    assert all(weight.grad.abs().sum() > 0 for weight in weights.values())


@pytest.mark.parametrize("form", ["add-2", "spade-1"])
@torch.no_grad()
def test_it_is_saved_exported_and_cast_with_its_texts(form, tmp_path):
    unet, everything = trained(**FORMS[form]), {**given(), **texts()}
    expected = unet(**everything).sample
    unet.save_pretrained(tmp_path)
    loaded = MaskGuidedUNet2DModel.from_pretrained(tmp_path)
    assert loaded.config.text_embed_dim == LENGTH
    assert torch.equal(loaded(**everything).sample, expected)
    program = torch.export.export(unet, (), everything)
    torch.testing.assert_close(program.module()(**everything).sample, expected)
    unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    torch.testing.assert_close(unet(**everything).sample, expected, rtol=0, atol=0.5)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"text_embed_dim": 0}, {}, "this network has no `text_embed_dim`"),
        ({"text_embed_dim": -1}, {}, "`text_embed_dim` must be 0 or more; got -1"),
        ({}, {"text_embeds": torch.zeros(2, 9)}, r"`text_embeds` must be 2 x 12; got \(2, 9\)"),
        ({}, {"region_embeds": torch.zeros(2, 3, 9)}, r"`region_embeds` must be 2 x K x 12; got \(2, 3, 9\)"),
        ({}, {"region_embeds": None}, "`region_embeds` with `regions`"),
        (
            {},
            {"regions": torch.zeros(2, 8, 16, dtype=torch.long)},
            "`regions` must be 16 x 16 like masks; got",
        ),
        ({}, {"regions": torch.zeros(2, 16, 16)}, r"must be integers \(2, H, W\).*got torch.float32"),
        ({}, {"text_features": ()}, "not both"),
    ],
)
def test_texts_that_the_network_cannot_take_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_mask_guided(**{"text_embed_dim": LENGTH, **settings})(**given(), **{**texts(), **changes})
