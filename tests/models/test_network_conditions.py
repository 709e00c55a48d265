"""What the network reads beside the plain mask: attributes, a pyramid, coordinates, augmentation, fading labels.

Each of them starts from zero weights, so a network with them starts as the one without.
"""

import pytest
import torch
from helpers.tiny_networks import FORMS

from semseg_diffusers.models.unet_mask_guided import (
    MaskGuidedUNet2DModel,
    label_keep_probability,
    pixel_coordinates,
)


TINY = {
    "sample_size": 32,
    "num_classes": 5,
    "block_out_channels": (8, 12, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "stem_channels": 8,
}
ATTRIBUTES = {"weather": ["clear", "rainy", "snowy"], "timeofday": ["daytime", "night"]}
PSI = [1.0, 3.0, 10.0, 100.0, 5752.0]
EVERYTHING = {
    "attributes": ATTRIBUTES,
    "mask_pyramid": True,
    "coordinate_channels": True,
    "augment_dim": 3,
    "label_diffusion": PSI,
    "num_train_timesteps": 1000,
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def tiny(trained: bool = True, **settings) -> MaskGuidedUNet2DModel:
    """A small network; `trained` fills the weights that start from zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskGuidedUNet2DModel(**{**TINY, **settings}).eval()
        if trained:
            for parameter in unet.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2)
    return unet


def inputs(batch_size: int = 2, height: int = 32, width: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch_size, 3, height, width, generator=generator),
        "timestep": torch.randint(1, 1000, (batch_size,), generator=generator),
        "mask": torch.randint(0, 5, (batch_size, height, width), generator=generator),
        "attributes": torch.tensor([[1, 0], [-1, 2]][:batch_size]),
        "augmentation": torch.randn(batch_size, 3, generator=generator),
    }


def plain(given: dict) -> dict:
    return {name: given[name] for name in ("sample", "timestep", "mask")}


# All of them at once


@every_form
@torch.no_grad()
def test_untrained_network_with_everything_predicts_what_the_plain_one_predicts(form):
    given = inputs()
    with_all, without = tiny(trained=False, **form, **EVERYTHING), tiny(trained=False, **form)
    assert torch.equal(with_all(**given).sample, without(**plain(given)).sample)
    weights = with_all.state_dict()
    assert all(torch.equal(weights.pop(name), weight) for name, weight in without.state_dict().items())
    assert all(not weight.any() for weight in weights.values())  # what is left is new, and zero


@every_form
@pytest.mark.parametrize("name", ["attributes", "mask_pyramid", "coordinate_channels", "augment_dim"])
@torch.no_grad()
def test_each_of_them_moves_the_output_once_its_weights_are_not_zero(form, name):
    given = inputs()
    names = {"attributes": ("attributes",), "augment_dim": ("augmentation",)}.get(name, ())
    unet = tiny(**form, **{name: EVERYTHING[name]})
    conditions = {**plain(given), **{key: given[key] for key in names}}
    output = unet(**conditions).sample
    assert output.shape == given["sample"].shape
    assert not torch.allclose(output, tiny(**form)(**plain(given)).sample, atol=1e-3)


@every_form
def test_every_new_weight_learns_from_the_first_step(form):
    unet, given = tiny(trained=False, **form, **EVERYTHING).train(), inputs(4)
    given["attributes"] = torch.tensor([[0, 0], [1, 1], [0, 2], [1, -1]])
    unet(**given).sample.square().mean().backward()
    without = [name for name, parameter in unet.named_parameters() if not parameter.grad.abs().sum() > 0]
    # What comes before a weight of zeros learns from the second step.
    assert all(name.startswith("mask_norms.convs") for name in without)


@every_form
def test_gradient_checkpointing_changes_no_gradient(form):
    found = []
    for checkpointing in (False, True):
        unet, given = tiny(**form, **EVERYTHING).train(), inputs()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**given).sample.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize("storage_dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
@torch.no_grad()
def test_layerwise_casting_stores_low_and_computes_high(storage_dtype):
    unet, given = tiny(**EVERYTHING), inputs()
    expected = unet(**given).sample
    unet.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    output = unet(**given).sample
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.5)
    stored = {parameter.dtype for name, parameter in unet.named_parameters() if "norm" not in name}
    assert stored == {storage_dtype}


@torch.no_grad()
def test_half_precision_stays_close_to_float32():
    unet, given = tiny(patch_size=2, **EVERYTHING), inputs()
    expected = unet(**given).sample
    output = unet.to(torch.bfloat16)(**{**given, "sample": given["sample"].bfloat16()}).sample
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.15)


@torch.no_grad()
def test_saved_network_loads_equal_and_keeps_the_order_of_attributes(tmp_path):
    unet, given = tiny(**EVERYTHING), inputs()
    assert list(unet.config.attributes) == ["timeofday", "weather"]
    unet.save_pretrained(tmp_path)
    loaded = MaskGuidedUNet2DModel.from_pretrained(tmp_path)
    assert list(loaded.config.attributes.items()) == list(unet.config.attributes.items())
    assert loaded.config.label_diffusion == PSI
    assert torch.equal(loaded(**given).sample, unet(**given).sample)
    twin = MaskGuidedUNet2DModel.from_config(unet.config)
    assert {name: value.shape for name, value in twin.state_dict().items()} == {
        name: value.shape for name, value in unet.state_dict().items()
    }


@pytest.mark.parametrize("form", ["add-2", "concat-1"])
@torch.no_grad()
def test_exports_with_everything_as_keywords(form):
    unet, given = tiny(**FORMS[form], **EVERYTHING), inputs()
    program = torch.export.export(unet, (), given)
    given["mask"], given["attributes"] = 4 - given["mask"], given["attributes"].flip(0)
    torch.testing.assert_close(program.module()(**given).sample, unet(**given).sample)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_whole_and_once_for_all_values_and_sizes():
    shallow = {
        "block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False,
    }  # fmt: skip
    unet = tiny(**{**FORMS["add-2"], **EVERYTHING, **shallow})
    torch.compiler.reset()
    compiled = torch.compile(unet, fullgraph=True, dynamic=True, backend="eager")
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        for height, width in ((16, 16), (16, 24), (32, 16)):
            given = inputs(2, height, width)
            torch.testing.assert_close(compiled(**given).sample, unet(**given).sample)
            given["attributes"] = torch.full_like(given["attributes"], -1)
            torch.testing.assert_close(compiled(**given).sample, unet(**given).sample)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attributes": {"weather": []}}, r"different values, as text, for 'weather'; got \[\]"),
        ({"attributes": {"weather": ["clear", "clear"]}}, "different values, as text, for 'weather'"),
        ({"attributes": {"weather": [1, 2]}}, r"as text, for 'weather'; got \[1, 2\]"),
        ({"augment_dim": -1}, "`augment_dim` must be 0 or more; got -1"),
        ({"label_diffusion": [1.0], "num_train_timesteps": 10}, "above 0 for each of 5 classes; got"),
        ({"label_diffusion": [0.0] * 5, "num_train_timesteps": 10}, "finite number above 0"),
        ({"label_diffusion": PSI}, "needs `num_train_timesteps`"),
        (
            {
                "mask_pyramid": True, "block_out_channels": (8,), "down_block_types": ("DownBlock2D",),
                "up_block_types": ("UpBlock2D",),
            },
            r"two `block_out_channels` or more; got \(8,\)",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({}, {"attributes": torch.zeros(2, 2, dtype=torch.long)}, "but this network has none"),
        ({}, {"augmentation": torch.zeros(2, 3)}, "this network has no `augment_dim`"),
        (EVERYTHING, {"attributes": torch.zeros(2, 3, dtype=torch.long)}, r"2 x 2, .* timeofday, weather .* \(2, 3\)"),
        (EVERYTHING, {"attributes": torch.zeros(2, 2)}, "must be integers 2 x 2.*got torch.float32"),
        (EVERYTHING, {"augmentation": torch.zeros(2, 9)}, r"must be 2 x 3; got \(2, 9\)"),
    ],
)
def test_conditions_that_the_network_cannot_take_are_refused(settings, given, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)(**{**plain(inputs()), **given})


# Attributes


@every_form
@torch.no_grad()
def test_unknown_attributes_equal_none_and_each_can_be_known_alone(form):
    unet, given = tiny(**form, attributes=ATTRIBUTES), plain(inputs())
    none = unet(**given).sample
    unknown = torch.full((2, 2), -1)
    assert torch.equal(unet(**given, attributes=unknown).sample, none)
    outputs = [none]
    for row in ([0, -1], [1, -1], [-1, 0], [-1, 2], [1, 2]):
        outputs.append(unet(**given, attributes=torch.tensor([row, row])).sample)
    for i, first in enumerate(outputs):
        assert all(not torch.allclose(first, second, atol=1e-3) for second in outputs[i + 1 :])


@every_form
@torch.no_grad()
def test_unknown_mask_and_unknown_attributes_are_unconditional(form):
    unet, given = tiny(**form, **EVERYTHING), inputs()
    sample, timestep = given["sample"], given["timestep"]
    unconditional = unet(sample, timestep).sample
    unknown = torch.full_like(given["mask"], 255)
    nothing = {"attributes": torch.full((2, 2), -1), "augmentation": torch.zeros(2, 3)}
    assert torch.equal(unet(sample, timestep, mask=unknown, **nothing).sample, unconditional)
    night = torch.tensor([[1, -1], [1, -1]])
    attributes_alone = unet(sample, timestep, attributes=night).sample
    assert torch.equal(unet(sample, timestep, mask=unknown, attributes=night).sample, attributes_alone)
    assert not torch.allclose(attributes_alone, unconditional, atol=1e-3)


@torch.no_grad()
def test_attributes_of_a_batch_are_those_of_its_samples():
    unet, given = tiny(**EVERYTHING), inputs()
    whole = unet(**given).sample
    for i in range(2):
        single = unet(**{name: value[i : i + 1] for name, value in given.items()}).sample
        torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-5)


# The pyramid


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_pyramid_has_one_map_a_lower_level(form):
    unet, mask = tiny(**FORMS[form], mask_pyramid=True), inputs()["mask"]
    features, side = unet.encode_mask(mask), 32 // FORMS[form]["patch_size"]
    assert [tuple(feature.shape[1:]) for feature in features[1:3]] == [
        (8, side // 2, side // 2),
        (12, side // 4, side // 4),
    ]
    modulations = len(unet.mask_norms.factors) if FORMS[form]["mask_conditioning"] == "spade" else 0
    assert len(features) == 3 + modulations
    given = plain(inputs())
    expected = unet(**given).sample
    del given["mask"]
    assert torch.equal(unet(**given, mask_features=features).sample, expected)


@torch.no_grad()
def test_thin_pole_reaches_the_lowest_map_where_nearest_ids_lose_it():
    unet = tiny(mask_pyramid=True)
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[:, 4:29, 13] = 3  # one pixel wide
    nearest = torch.nn.functional.interpolate(mask[None].float(), scale_factor=1 / 4, mode="nearest")
    assert not (nearest == 3).any()
    convolution = unet.pyramid_convs[-1].weight
    convolution.zero_()
    convolution[:, 3] = 1
    lowest = unet.encode_mask(mask)[-1][0, 0]  # (8, 8): the share of class 3
    expected = torch.zeros(8, 8)
    expected[1:7, 3], expected[7, 3] = 1 / 4, 1 / 16
    torch.testing.assert_close(lowest, expected)


@torch.no_grad()
def test_unknown_pixels_count_for_no_class_in_the_pyramid():
    unet, mask = tiny(mask_pyramid=True), inputs()["mask"]
    assert all(not feature.any() for feature in unet.encode_mask(torch.full_like(mask, 255)))


# Coordinates


def test_coordinates_are_centres_of_pixels():
    coordinates = pixel_coordinates(torch.zeros(2, 8, 2, 4))
    assert coordinates.shape == (1, 2, 2, 4)
    assert coordinates[0, 0].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
    assert coordinates[0, 1].tolist() == [[-0.5] * 4, [0.5] * 4]


@torch.no_grad()
def test_network_with_coordinates_depends_on_the_position():
    flat = {"sample": torch.zeros(1, 3, 32, 32), "timestep": 10}
    inside = (slice(None), slice(None), slice(14, 18), slice(14, 18))  # away from the padding of the borders
    shallow = {
        "block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
        "add_attention": False, "mid_block_type": None,
    }  # fmt: skip
    without = tiny(**shallow)(**flat).sample[inside]
    known = tiny(**shallow, coordinate_channels=True)(**flat).sample[inside]
    assert without.std(dim=(2, 3)).max() < 1e-6
    assert known.std(dim=(2, 3)).min() > 1e-4


# Label diffusion


def test_keep_probability_starts_whole_ends_gone_and_is_higher_for_rare_classes():
    psi = torch.tensor([0.5, *PSI])
    tau = torch.linspace(0, 1, 21)[:, None]
    keep = label_keep_probability(tau, psi)  # (21, 6)
    assert torch.equal(keep[0], torch.ones(6))
    torch.testing.assert_close(keep[-1], torch.zeros(6))
    assert (keep.diff(dim=0) < 1e-6).all()
    assert (keep[1:-1].diff(dim=1) > -1e-6).all()
    torch.testing.assert_close(keep[:, :2], (1 - tau).expand(21, 2))  # a class at or below 1 goes linearly
    expected = 1 - (100**0.25 - 1) / 99
    torch.testing.assert_close(label_keep_probability(torch.tensor(0.25), torch.tensor(100.0)).item(), expected)


def test_diffused_mask_keeps_each_class_with_its_probability():
    unet = tiny(label_diffusion=PSI, num_train_timesteps=1000)
    mask = torch.arange(5).view(1, 1, 5).expand(3, 20000, 5)
    timestep = torch.tensor([0, 400, 900])
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    diffused = unet.diffuse_mask(mask.to(torch.uint8), timestep, noise)
    assert diffused.dtype == torch.long
    assert torch.equal(diffused[0], mask[0])
    kept = (diffused == mask).float().mean(dim=1)  # (3, 5)
    torch.testing.assert_close(
        kept, label_keep_probability(timestep[:, None] / 1000, torch.tensor(PSI)), rtol=0, atol=0.015
    )
    assert set(diffused[diffused != mask].tolist()) == {255}


def test_pixels_once_gone_stay_gone_and_unknown_stays_unknown():
    unet = tiny(label_diffusion=PSI, num_train_timesteps=1000)
    mask = inputs()["mask"]
    mask[:, :4] = 255
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    masks = [unet.diffuse_mask(mask, timestep, noise) for timestep in (0, 100, 500.0, torch.tensor(900), 1000)]
    assert torch.equal(masks[0], mask)
    for earlier, later in zip(masks, masks[1:], strict=False):
        assert (later[earlier == 255] == 255).all()
        assert (later == 255).sum() > (earlier == 255).sum()
    assert (masks[-1] == 255).all()


def test_label_diffusion_refuses_what_it_cannot_diffuse():
    mask, noise = inputs()["mask"], torch.rand(2, 32, 32)
    with pytest.raises(ValueError, match="made without `label_diffusion`"):
        tiny().diffuse_mask(mask, 10, noise)
    unet = tiny(label_diffusion=PSI, num_train_timesteps=1000)
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(2, 32, 32\)"):
        unet.diffuse_mask(mask.float(), 10, noise)
    with pytest.raises(ValueError, match=r"noise of shape \(1, 32, 32\)"):
        unet.diffuse_mask(mask, 10, noise[:1])
