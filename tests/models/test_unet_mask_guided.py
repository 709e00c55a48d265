"""The mask-guided network: its masks, patches and settings, and that it is still a `UNet2DModel`."""

import pytest
import torch
from diffusers import UNet2DModel
from helpers.tiny_networks import CLASS_LABELS, FORMS, PARENTS, TINY_PARENT, inputs
from helpers.tiny_networks import tiny_mask_guided as tiny
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel, mask_to_one_hot
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings


every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


# Masks


def test_one_hot_map_is_one_at_its_class_and_zero_where_unknown():
    mask = torch.tensor([[[0, 1], [4, 255]]])
    one_hot = mask_to_one_hot(mask, 5, torch.float32)
    assert one_hot.shape == (1, 5, 2, 2)
    assert one_hot[0, :, 0, 0].tolist() == [1, 0, 0, 0, 0]
    assert one_hot[0, :, 0, 1].tolist() == [0, 1, 0, 0, 0]
    assert one_hot[0, :, 1, 0].tolist() == [0, 0, 0, 0, 1]
    assert one_hot[0, :, 1, 1].tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("unknown", "dtype"), [(255, torch.uint8), (255, torch.int64), (-1, torch.int8), (5, torch.int32)]
)
def test_every_id_that_is_no_class_is_a_zero_vector(unknown, dtype):
    one_hot = mask_to_one_hot(torch.full((1, 2, 2), unknown, dtype=dtype), 5, torch.float32)
    assert one_hot.shape == (1, 5, 2, 2)
    assert not one_hot.any()


@every_form
@torch.no_grad()
def test_the_first_of_the_features_is_at_full_resolution(form):
    first = tiny(**form).encode_mask(inputs()[2])[0]
    assert first.shape == (2, 5 if form["mask_conditioning"] == "concat" else 8, 16, 16)


# Sizes, timesteps, dtypes


@pytest.mark.parametrize(("levels", "patch_size", "divisor"), [(1, 1, 1), (2, 1, 2), (2, 2, 4), (3, 1, 4), (3, 4, 16)])
@torch.no_grad()
def test_size_divisor_is_the_smallest_size_step(levels, patch_size, divisor):
    unet = tiny(
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        patch_size=patch_size,
    )
    assert unet.size_divisor == divisor
    sample, timestep, mask = inputs(1, divisor, 3 * divisor)
    assert unet(sample, timestep, mask=mask).sample.shape == sample.shape
    if divisor > 1:
        sample, timestep, mask = inputs(1, 2 * divisor, 3 * divisor // 2)
        with pytest.raises(ValueError, match=rf"multiples of {divisor}; got {2 * divisor} x {3 * divisor // 2}"):
            unet(sample, timestep, mask=mask)


# Offloading, tried with the CPU as both places


# What the parent can


@pytest.mark.parametrize("family", PARENTS)
@torch.no_grad()
def test_without_a_mask_it_is_its_parent(family):
    unet = tiny(**PARENTS[family])
    parent = UNet2DModel(**{**TINY_PARENT, **PARENTS[family]}).eval()
    missing, unexpected = parent.load_state_dict(unet.state_dict(), strict=False)
    assert missing == []
    assert all(name.startswith("mask_branch.") for name in unexpected)
    sample, timestep, _ = inputs(channels=unet.config.in_channels)
    class_labels = CLASS_LABELS.get(family)
    expected = parent(sample, timestep, class_labels).sample
    assert torch.equal(unet(sample, timestep, class_labels).sample, expected)
    assert not torch.equal(unet(sample + 1, timestep, class_labels).sample, expected)


# Skip blocks with patches are refused: see test_settings_that_cannot_be_built_are_refused.
@pytest.mark.parametrize(
    ("form", "family"),
    [(form, family) for form in FORMS for family in PARENTS if family != "ncsnpp" or form.endswith("1")],
)
@torch.no_grad()
def test_every_kind_of_parent_takes_a_mask(form, family):
    unet = tiny(**FORMS[form], **PARENTS[family])
    sample, timestep, mask = inputs(channels=unet.config.in_channels)
    class_labels = CLASS_LABELS.get(family)
    output = unet(sample, timestep, class_labels, mask=mask).sample
    assert output.shape == (2, unet.config.out_channels, 16, 16)
    assert output.isfinite().all()
    assert not torch.allclose(output, unet(sample, timestep, class_labels).sample, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", CLASS_LABELS)
@torch.no_grad()
def test_class_labels_move_the_output_and_are_required(family):
    unet = tiny(**PARENTS[family])
    sample, timestep, mask = inputs()
    labels = CLASS_LABELS[family]
    output = unet(sample, timestep, labels, mask=mask).sample
    assert not torch.allclose(output, unet(sample, timestep, labels.flip(0), mask=mask).sample, atol=1e-4)
    with pytest.raises(ValueError, match="`class_labels` must be given"):
        unet(sample, timestep, mask=mask)


@torch.no_grad()
def test_a_plain_networks_config_makes_a_mask_guided_one():
    plain = UNet2DModel(**TINY_PARENT)
    unet = MaskGuidedUNet2DModel.from_config(plain.config, num_classes=5).eval()
    assert unet.config.block_out_channels == (8, 16)
    assert unet.config.num_classes == 5
    unet.load_state_dict(plain.state_dict(), strict=False)
    sample, timestep, _ = inputs()
    assert torch.equal(unet(sample, timestep).sample, plain.eval()(sample, timestep).sample)


# Patches


@pytest.mark.parametrize("patch_size", [2, 4])
def test_every_pixel_inside_is_in_as_many_patches_as_the_next(patch_size):
    # A kernel that its stride divides overlaps evenly, so no grid comes from it (Odena et al. 2016, Deconvolution and
    # Checkerboard Artifacts); with a kernel as wide as its stride, patches would not overlap, and every sum be 1.
    unet = tiny(patch_size=patch_size)
    for convolution in (unet.conv_patch, unet.patch_head.conv_unpatch):
        torch.nn.init.ones_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    pixels = torch.zeros(1, 8, 32, 32, requires_grad=True)
    unet.conv_patch(pixels)[:, 0].sum().backward()
    patches = torch.ones(1, 8, 32 // patch_size, 32 // patch_size)
    spread = unet.patch_head.conv_unpatch(patches)[:, 0] / 8
    inside = slice(patch_size, -patch_size)
    assert pixels.grad[..., inside, inside].unique().tolist() == [4]
    assert spread[..., inside, inside].unique().tolist() == [4]


@torch.no_grad()
def test_each_pixels_own_noise_reaches_the_output_beside_the_patches():
    unet = tiny(patch_size=2)
    unet.conv_patch.weight.zero_()
    sample, timestep, mask = inputs()
    output = unet(sample, timestep, mask=mask).sample
    for row, column in ((8, 8), (8, 9), (9, 8), (9, 9)):
        moved = sample.clone()
        moved[:, :, row, column] += 1
        change = (unet(moved, timestep, mask=mask).sample - output).abs().amax(dim=(0, 1))
        assert change[row, column] > 10 * change[:4, :4].max()


# Training


@every_form
def test_mask_weights_learn_nothing_from_unknown_masks(form):
    unet = tiny(**form).train()
    sample, timestep, mask = inputs()
    unet(sample, timestep, mask=torch.full_like(mask, 255)).sample.square().mean().backward()
    if form["mask_conditioning"] != "concat":
        own = [weight for name, weight in unet.named_parameters() if name.startswith(("mask_branch", "mask_norms"))]
        assert own
        assert all(weight.grad.abs().sum() == 0 for weight in own)
    else:
        assert unet.conv_in.weight.grad[:, 3:].abs().sum() == 0
    assert unet.conv_in.weight.grad[:, :3].abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_conditioning": "film"}, r"one of \('add', 'concat', 'spade'\); got 'film'"),
        ({"mask_conditioning": "spade", "spade_channels": 0}, "`spade_channels` must be 1 or more; got 0"),
        ({"patch_size": 0}, "1 or more; got 0"),
        ({"patch_size": 3}, "1 or even.*got 3"),
        ({"patch_size": 2, **PARENTS["ncsnpp"]}, "need `patch_size=1`"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@torch.no_grad()
def test_compiles_whole_and_once_for_all_masks_timesteps_and_sizes():  # quick; all forms: test_every_network.py
    unet = tiny(
        patch_size=2, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        add_attention=False,
    )  # fmt: skip
    torch.compiler.reset()
    compiled = torch.compile(unet, fullgraph=True, dynamic=True, backend="eager")
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        for height, width in ((16, 16), (16, 24), (32, 16)):
            sample, timestep, mask = inputs(2, height, width)
            for ids in (mask, torch.full_like(mask, 255)):
                output = compiled(sample, timestep - 1, mask=ids).sample
                torch.testing.assert_close(output, unet(sample, timestep - 1, mask=ids).sample)


# The default network of training


@torch.no_grad()
def test_default_network_keeps_its_size_and_work():
    settings = TrainingSettings(dataset="data", output_dir="run")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        unet = build_network(settings, LabelSet.from_preset("bdd100k"), (128, 128))
        assert unet.config.num_classes == 19
        assert unet.num_parameters() <= 12_500_000
        sample, mask = torch.empty(2, 3, 128, 128), torch.empty(2, 128, 128, dtype=torch.uint8)
        with FlopCounterMode(display=False) as once:
            features = unet.encode_mask(mask)
        with FlopCounterMode(display=False) as step:
            unet(sample, torch.empty(2), mask_features=features)
    one_forward = (once.get_total_flops() + step.get_total_flops()) / 2
    assert 1e9 < one_forward <= 10e9
    # Guidance in one batched forward, 20 steps; what depends on the mask alone is computed once.
    assert once.get_total_flops() + 20 * step.get_total_flops() <= 421e9
