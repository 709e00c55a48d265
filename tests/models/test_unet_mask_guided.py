"""The mask-guided network: what it says of masks, that it is still a `UNet2DModel`, and what diffusers asks of it."""

import accelerate
import pytest
import torch
from diffusers import UNet2DModel
from helpers.tiny_networks import CLASS_LABELS, PARENTS, TINY, TINY_PARENT, inputs
from helpers.tiny_networks import tiny_mask_guided as tiny
from torch.utils.flop_counter import FlopCounterMode

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.unet_mask_guided import (
    MaskBranch,
    MaskGuidedUNet2DModel,
    MaskModulation,
    PatchHead,
    mask_to_one_hot,
)
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.settings import TrainingSettings


FORMS = {
    f"{conditioning}-{patch_size}": {"mask_conditioning": conditioning, "patch_size": patch_size}
    for conditioning in ("add", "concat", "spade")
    for patch_size in (1, 2)
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


# Masks


@every_form
@torch.no_grad()
def test_mask_moves_the_output(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    output = unet(sample, timestep, mask=mask).sample
    assert output.shape == sample.shape
    assert not torch.allclose(output, unet(sample, timestep).sample, atol=1e-3)
    assert not torch.allclose(output, unet(sample, timestep, mask=4 - mask).sample, atol=1e-3)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64], ids=str
)
@every_form
@torch.no_grad()
def test_ids_of_every_integer_dtype_give_the_same_numbers(form, dtype):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=mask.to(dtype)).sample, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool], ids=str)
@every_form
@torch.no_grad()
def test_one_hot_maps_give_the_numbers_of_their_ids(form, dtype):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    mask[0, :3] = 255
    one_hot = torch.stack([mask == class_id for class_id in range(5)], dim=1).to(dtype)
    expected = unet(sample, timestep, mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=one_hot).sample, expected)


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
def test_all_unknown_mask_equals_no_mask(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep).sample
    unknown = torch.full_like(mask, 255)
    assert torch.equal(unet(sample, timestep, mask=unknown).sample, expected)
    assert torch.equal(unet(sample, timestep, mask=unknown.to(torch.uint8)).sample, expected)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(unknown)).sample, expected)
    assert torch.equal(unet(sample, timestep, mask=torch.zeros(2, 5, 16, 16)).sample, expected)


@every_form
@torch.no_grad()
def test_unknown_and_known_masks_mix_in_one_batch(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    mixed = mask.clone()
    mixed[1] = 255
    output = unet(sample, timestep, mask=mixed).sample
    assert torch.equal(output[0], unet(sample, timestep, mask=mask).sample[0])
    assert torch.equal(output[1], unet(sample, timestep).sample[1])


@every_form
@torch.no_grad()
def test_partly_unknown_mask_is_neither_masked_nor_unmasked(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    partial = mask.clone()
    partial[:, :8] = 255
    output = unet(sample, timestep, mask=partial).sample
    assert not torch.allclose(output, unet(sample, timestep, mask=mask).sample, atol=1e-3)
    assert not torch.allclose(output, unet(sample, timestep).sample, atol=1e-3)


@every_form
@torch.no_grad()
def test_encoded_mask_gives_the_same_numbers(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    features = unet.encode_mask(mask)
    assert features[0].shape == (2, 5 if form["mask_conditioning"] == "concat" else 8, 16, 16)
    assert all(feature.shape[0] == 2 for feature in features)
    assert torch.equal(unet(sample, timestep, mask_features=features).sample, unet(sample, timestep, mask=mask).sample)


@every_form
@torch.no_grad()
def test_encoded_masks_can_be_repeated_and_joined(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    unknown = unet.encode_mask(torch.full_like(mask[:1], 255))
    features = tuple(torch.cat(pair) for pair in zip(unknown, unet.encode_mask(mask[:1]), strict=True))
    mixed = torch.cat([torch.full_like(mask[:1], 255), mask[:1]])
    expected = unet(sample, timestep, mask=mixed).sample
    torch.testing.assert_close(unet(sample, timestep, mask_features=features).sample, expected, rtol=0, atol=1e-5)


@every_form
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.zeros(2, 16, 16)}, r"got torch.float32 of shape \(2, 16, 16\). Float ids: call .long\(\)"),
        ({"mask": torch.zeros(2, 4, 16, 16)}, r"shape \(B, 5, H, W\); got torch.float32 of shape \(2, 4, 16, 16\)"),
        ({"mask": torch.zeros(2, 5, 16, 16, dtype=torch.long)}, r"one-hot map of shape"),
        ({"mask": torch.zeros(2, 16, 16, dtype=torch.bool)}, r"got torch.bool of shape"),
        ({"mask": torch.zeros(2, 8, 12, dtype=torch.long)}, r"2 of 16 x 16 like `sample`; got \(2, 8, 12\)"),
        ({"mask": torch.zeros(1, 16, 16, dtype=torch.long)}, r"2 of 16 x 16 like `sample`; got \(1, 16, 16\)"),
        ({"mask": torch.zeros(16, 16, dtype=torch.long)}, r"2 of 16 x 16 like `sample`; got \(16, 16\)"),
        ({"mask": torch.zeros(2, 16, 16, dtype=torch.long), "mask_features": ()}, "not both"),
        ({"class_labels": torch.zeros(2, dtype=torch.long)}, "no class embedding"),
    ],
)
def test_wrong_conditions_are_refused(form, settings, message):
    sample, timestep, _ = inputs()
    with pytest.raises(ValueError, match=message):
        tiny(**form)(sample, timestep, **settings)


# Sizes, timesteps, dtypes


@every_form
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 32), (96, 160)])
@torch.no_grad()
def test_any_size_that_the_divisor_divides_is_drawn(form, height, width):
    unet = tiny(**form)
    sample, timestep, mask = inputs(1, height, width)
    assert unet(sample, timestep, mask=mask).sample.shape == (1, 3, height, width)


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


@pytest.mark.parametrize(
    "timestep", [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7]), torch.tensor([7, 7])], ids=repr
)
@torch.no_grad()
def test_every_form_of_timestep_gives_the_same_numbers(timestep):
    unet = tiny(patch_size=2)
    sample, _, mask = inputs()
    expected = unet(sample, torch.tensor([7, 7]), mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)


@pytest.mark.parametrize("timestep", [7.5, torch.tensor(7.5), torch.tensor([7.5, 7.5])], ids=repr)
@torch.no_grad()
def test_float_timestep_is_not_rounded(timestep):
    unet = tiny()
    sample, _, _ = inputs()
    assert not torch.equal(unet(sample, timestep).sample, unet(sample, 7).sample)


@every_form
@torch.no_grad()
def test_tuple_equals_output_object(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    (output,) = unet(sample, timestep, mask=mask, return_dict=False)
    assert torch.equal(output, unet(sample, timestep, mask=mask).sample)


@every_form
@torch.no_grad()
def test_batch_of_two_equals_two_singles(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    output = unet(sample, timestep, mask=mask).sample
    for i in range(2):
        single = unet(sample[i : i + 1], timestep[i : i + 1], mask=mask[i : i + 1]).sample
        torch.testing.assert_close(output[i : i + 1], single, rtol=1e-4, atol=1e-5)


@every_form
@torch.no_grad()
def test_half_precision_stays_close_to_float32(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    output = unet.to(torch.bfloat16)(sample.bfloat16(), timestep, mask=mask).sample
    assert output.dtype == torch.bfloat16
    assert unet.encode_mask(mask)[0].dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("storage_dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
@every_form
@torch.no_grad()
def test_layerwise_casting_stores_low_and_computes_high(form, storage_dtype):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    unet.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    output = unet(sample, timestep, mask=mask).sample
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.5)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(mask)).sample, output)
    stored = {name: parameter.dtype for name, parameter in unet.named_parameters()}
    assert {dtype for name, dtype in stored.items() if "norm" in name} == {torch.float32}
    assert {dtype for name, dtype in stored.items() if "norm" not in name} == {storage_dtype}


# Offloading, tried with the CPU as both places


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
@every_form
@torch.no_grad()
def test_group_offloading_changes_no_number(form, offload_type):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    unet.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **blocks)
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)


@every_form
@torch.no_grad()
def test_weights_that_come_layer_by_layer_change_no_number(form):
    unet = tiny(**form)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    assert unet.conv_in.weight.device.type == "meta"
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(mask)).sample, expected)


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
def test_class_labels_move_the_output_and_are_asked_for(family):
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
def test_every_pixel_inside_lies_in_as_many_patches_as_the_next(patch_size):
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


def gradients(unet: MaskGuidedUNet2DModel) -> dict[str, torch.Tensor]:
    sample, timestep, mask = inputs()
    unet.train().zero_grad()
    unet(sample, timestep, mask=mask).sample.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


@every_form
def test_every_parameter_learns(form):
    without = [name for name, gradient in gradients(tiny(**form)).items() if not gradient.abs().sum() > 0]
    assert without == []


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


@every_form
def test_gradient_checkpointing_changes_no_gradient(form):
    unet = tiny(**form)
    expected = gradients(unet)
    own = [module.norm for module in unet.modules() if isinstance(module, (MaskBranch, PatchHead))]
    own += [conv for module in unet.modules() if isinstance(module, MaskModulation) for conv in module.convs]
    branches = {"add": 1, "concat": 0, "spade": 3}[form["mask_conditioning"]]  # two levels to modulate
    assert len(own) == branches + (form["patch_size"] == 2)
    unet.enable_gradient_checkpointing()
    runs = []
    for inner in [unet.down_blocks[0].resnets[0], *own]:
        inner.register_forward_pre_hook(lambda module, _: runs.append(module))
    found = gradients(unet)
    assert len(runs) == 2 * (1 + len(own))  # each once forward, and once again for its gradient
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=5e-5, msg=name)


@every_form
def test_every_flag_of_gradient_checkpointing_is_switched(form):
    unet = tiny(**form)
    assert MaskGuidedUNet2DModel._supports_gradient_checkpointing
    flagged = [module for module in unet.modules() if hasattr(module, "gradient_checkpointing")]
    assert not unet.is_gradient_checkpointing
    unet.enable_gradient_checkpointing()
    assert all(module.gradient_checkpointing for module in flagged)
    unet.disable_gradient_checkpointing()
    assert not any(module.gradient_checkpointing for module in flagged)


def test_what_diffusers_reads_from_the_class_is_inherited():
    assert MaskGuidedUNet2DModel._supports_group_offloading
    assert "norm" in MaskGuidedUNet2DModel._skip_layerwise_casting_patterns


# Saving


LABELS = {
    "id2label": {str(i): f"class {i}" for i in range(5)},
    "id2color": {str(i): [i, 10 * i, 255] for i in range(5)},
    "ignore_index": 255,
    "ignore_color": [1, 2, 3],
}


@every_form
@torch.no_grad()
def test_saved_network_loads_equal(form, tmp_path):
    unet = tiny(**form, **LABELS)
    unet.save_pretrained(tmp_path)
    loaded, report = MaskGuidedUNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    sample, timestep, mask = inputs()
    assert torch.equal(loaded(sample, timestep, mask=mask).sample, unet(sample, timestep, mask=mask).sample)
    for name, value in {**TINY, **form, **LABELS}.items():
        read = loaded.config[name]
        assert (list(read) if isinstance(read, (list, tuple)) else read) == (
            list(value) if isinstance(value, tuple) else value
        ), name


@every_form
def test_config_makes_the_same_network(form, tmp_path):
    unet = tiny(**form, **LABELS)
    twin = MaskGuidedUNet2DModel.from_config(unet.config)
    unet.save_config(tmp_path)
    read = MaskGuidedUNet2DModel.from_config(MaskGuidedUNet2DModel.load_config(tmp_path))
    shapes = {name: value.shape for name, value in unet.state_dict().items()}
    for other in (twin, read):
        assert {name: value.shape for name, value in other.state_dict().items()} == shapes
        assert other.config.id2color == LABELS["id2color"]


def test_label_set_with_whole_number_keys_is_saved_with_text_keys(tmp_path):
    unet = tiny(id2label={i: f"class {i}" for i in range(5)})
    unet.save_pretrained(tmp_path)
    assert MaskGuidedUNet2DModel.from_pretrained(tmp_path).config.id2label == LABELS["id2label"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_conditioning": "film"}, r"one of \('add', 'concat', 'spade'\); got 'film'"),
        ({"mask_conditioning": "spade", "spade_channels": 0}, "`spade_channels` must be 1 or more; got 0"),
        ({"num_classes": 0}, "1 to 255"),
        ({"num_classes": 256}, "1 to 255"),
        ({"id2label": {"0": "road"}}, r"got \['0'\]. Set `num_classes=1`"),
        ({"id2label": {str(i): "road" for i in range(1, 6)}}, "each class 0 to 4 once; got"),
        ({"id2label": {"road": 0}}, r"each class 0 to 4 once; got \['road'\]"),
        ({"id2color": {i: [0, 0, 0] for i in range(6)}}, "Set `num_classes=6`"),
        ({"patch_size": 0}, "1 or more; got 0"),
        ({"patch_size": 3}, "1 or even.*got 3"),
        ({"patch_size": 2, **PARENTS["ncsnpp"]}, "need `patch_size=1`"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


# Compilation


SHALLOW = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({**FORMS["add-2"], **SHALLOW}, id="add-2-shallow"),
        *(pytest.param(form, id=name, marks=pytest.mark.slow) for name, form in FORMS.items()),
    ],
)
@torch.no_grad()
def test_compiles_whole_and_once_for_all_masks_timesteps_and_sizes(settings):
    unet = tiny(**settings)
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


@pytest.mark.parametrize("form", ["add-2", "concat-1", "spade-2"])
@torch.no_grad()
def test_exports_with_the_mask_as_keyword(form):
    unet = tiny(**FORMS[form])
    sample, timestep, mask = inputs()
    program = torch.export.export(unet, (), {"sample": sample, "timestep": timestep, "mask": mask})
    other = 4 - mask
    exported = program.module()(sample=sample, timestep=timestep, mask=other).sample
    torch.testing.assert_close(exported, unet(sample, timestep, mask=other).sample)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["add-2", "concat-1", "spade-2"])
@torch.no_grad()
def test_compiled_code_gives_the_same_numbers(form):
    unet = tiny(**FORMS[form])
    sample, timestep, mask = inputs()
    torch.compiler.reset()
    compiled = torch.compile(unet, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ids in (mask, torch.full_like(mask, 255)):
            output = compiled(sample, timestep, mask=ids).sample
            torch.testing.assert_close(output, unet(sample, timestep, mask=ids).sample, rtol=1e-4, atol=1e-4)


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
