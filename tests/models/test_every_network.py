"""What every network owes diffusers and this package, whatever is inside it."""

import re

import accelerate
import pytest
import torch
from helpers.tiny_networks import FORMS, LABELS, NETWORKS, inputs


# Modules that gradient checkpointing runs twice, the first of diffusers' blocks and all of ours; how many each has.
RECOMPUTED = re.compile(
    r"(control\.)?down_blocks\.0\.resnets\.0|(mask_branch|patch_head)\.norm|mask_norms\.convs\.\d"
    r"|control\.mask_branch\.conv_1|down1|output_blocks\.1"
)
NUM_RECOMPUTED = {"add-1": 2, "add-2": 3, "concat-1": 1, "concat-2": 2, "spade-1": 4, "spade-2": 5, "control": 2}


@pytest.fixture(params=NETWORKS)
def tiny(request):
    return NETWORKS[request.param]


def one_hot(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask == class_id for class_id in range(5)], dim=1)  # (B, 5, H, W) bool


# Masks


@torch.no_grad()
def test_mask_moves_the_output(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    output = unet(sample, timestep, mask=mask).sample
    assert output.shape == (2, unet.config.out_channels, 16, 16)
    assert not torch.allclose(output, unet(sample, timestep).sample, atol=1e-3)
    assert not torch.allclose(output, unet(sample, timestep, mask=4 - mask).sample, atol=1e-3)


@torch.no_grad()
def test_ids_of_every_integer_dtype_and_one_hot_maps_give_the_same_numbers(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    mask[0, :3] = 255
    expected = unet(sample, timestep, mask=mask).sample
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64):
        assert torch.equal(unet(sample, timestep, mask=mask.to(dtype)).sample, expected), dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bool):
        assert torch.equal(unet(sample, timestep, mask=one_hot(mask).to(dtype)).sample, expected), dtype
    mask[0, :3] = -1  # an unknown id that int8 holds
    assert torch.equal(unet(sample, timestep, mask=mask.to(torch.int8)).sample, expected)


@torch.no_grad()
def test_all_unknown_mask_equals_no_mask(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep).sample
    unknown = torch.full_like(mask, 255)
    for given in (unknown, unknown.to(torch.uint8), torch.zeros(2, 5, 16, 16)):
        assert torch.equal(unet(sample, timestep, mask=given).sample, expected)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(unknown)).sample, expected)


@torch.no_grad()
def test_unknown_and_known_masks_mix_in_one_batch(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    mixed = mask.clone()
    mixed[1] = 255
    output = unet(sample, timestep, mask=mixed).sample
    assert torch.equal(output[0], unet(sample, timestep, mask=mask).sample[0])
    assert torch.equal(output[1], unet(sample, timestep).sample[1])


@torch.no_grad()
def test_partly_unknown_mask_is_neither_masked_nor_unmasked(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    partial = mask.clone()
    partial[:, :8] = 255
    output = unet(sample, timestep, mask=partial).sample
    assert not torch.allclose(output, unet(sample, timestep, mask=mask).sample, atol=1e-3)
    assert not torch.allclose(output, unet(sample, timestep).sample, atol=1e-3)


@torch.no_grad()
def test_encoded_masks_give_the_same_numbers_and_can_be_repeated_and_joined(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    features = unet.encode_mask(mask)
    assert all(feature.shape[0] == 2 for feature in features)
    assert torch.equal(unet(sample, timestep, mask_features=features).sample, unet(sample, timestep, mask=mask).sample)
    unknown = torch.full_like(mask[:1], 255)
    parts = unet.encode_mask(unknown), unet.encode_mask(mask[:1])
    joined = tuple(torch.cat(pair) for pair in zip(*parts, strict=True))
    expected = unet(sample, timestep, mask=torch.cat([unknown, mask[:1]])).sample
    torch.testing.assert_close(unet(sample, timestep, mask_features=joined).sample, expected, rtol=0, atol=1e-5)


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
        ({"class_labels": torch.zeros(2, dtype=torch.long)}, "no class embedding|class_embedding needs"),
        ({"mask": torch.full((2, 16, 16), 7)}, "`mask` holds class 7; this network knows 0-4, and 255 as unknown"),
        ({"mask": torch.full((2, 16, 16), -2, dtype=torch.int8)}, "`mask` holds class -2; this network knows 0-4"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(tiny, settings, message):
    sample, timestep, _ = inputs()
    with pytest.raises(ValueError, match=message):
        tiny()(sample, timestep, **settings)


# Sizes, timesteps, dtypes


@torch.no_grad()
def test_every_size_that_the_divisor_divides_is_generated_and_no_other(tiny):
    unet = tiny()
    divisor = unet.size_divisor
    for height, width in ((divisor, 3 * divisor), (8, 8), (16, 32), (24, 40), (96, 160)):
        sample, timestep, mask = inputs(1, height, width)
        assert unet(sample, timestep, mask=mask).sample.shape == (1, unet.config.out_channels, height, width)
    sample, timestep, mask = inputs(1, 16, 16 + divisor // 2)
    with pytest.raises(ValueError, match=f"multiples of {divisor}; got 16 x {16 + divisor // 2}"):
        unet(sample, timestep, mask=mask)


@torch.no_grad()
def test_every_form_of_timestep_gives_the_same_numbers_and_floats_are_not_rounded(tiny):
    unet = tiny()
    sample, _, mask = inputs()
    expected = unet(sample, torch.tensor([7, 7]), mask=mask).sample
    for timestep in (7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7]), torch.tensor([7.0, 7.0])):
        assert torch.equal(unet(sample, timestep, mask=mask).sample, expected), timestep
    floats = [torch.tensor(7.5), torch.tensor([7.5, 7.5])]
    if type(unet).__name__ != "IdChannelUNet2DModel":  # `UNet2DModel.forward`, which it calls, truncates a number
        floats.append(7.5)
    for timestep in floats:
        assert not torch.allclose(unet(sample, timestep, mask=mask).sample, expected), timestep


@torch.no_grad()
def test_tuple_equals_output_object(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    (output,) = unet(sample, timestep, mask=mask, return_dict=False)
    assert torch.equal(output, unet(sample, timestep, mask=mask).sample)


@torch.no_grad()
def test_batch_of_two_equals_two_singles(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    output = unet(sample, timestep, mask=mask).sample
    for i in range(2):
        single = unet(sample[i : i + 1], timestep[i : i + 1], mask=mask[i : i + 1]).sample
        torch.testing.assert_close(output[i : i + 1], single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_stays_close_to_float32(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    output = unet.to(torch.bfloat16)(sample.bfloat16(), timestep, mask=mask).sample
    assert output.dtype == torch.bfloat16
    assert unet.encode_mask(mask)[0].dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("storage_dtype", [torch.float8_e4m3fn, torch.bfloat16], ids=str)
@torch.no_grad()
def test_layerwise_casting_stores_low_and_computes_high(tiny, storage_dtype):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    unet.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    output = unet(sample, timestep, mask=mask).sample
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.5)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(mask)).sample, output)
    if hasattr(unet, "down_blocks"):  # norms of published networks have other names: see their own tests
        stored = {name: parameter.dtype for name, parameter in unet.named_parameters()}
        assert {dtype for name, dtype in stored.items() if "norm" in name} == {torch.float32}
        assert {dtype for name, dtype in stored.items() if "norm" not in name} == {storage_dtype}


# Offloading, tried with the CPU as both places


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
@torch.no_grad()
def test_group_offloading_changes_no_number(tiny, offload_type):
    unet = tiny()
    assert unet._supports_group_offloading
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    unet.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **blocks)
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)


@torch.no_grad()
def test_weights_that_come_layer_by_layer_change_no_number(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in unet.parameters()} == {"meta"}
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(mask)).sample, expected)


# Training and saving


def gradients(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    sample, timestep, mask = inputs()
    unet.train().zero_grad()
    unet(sample, timestep, mask=mask).sample.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in unet.named_parameters() if weight.requires_grad}


def test_every_trainable_parameter_learns(tiny):
    assert [name for name, gradient in gradients(tiny()).items() if not gradient.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_checkpointing_changes_no_gradient_and_switches_every_flag(name):
    unet = NETWORKS[name]()
    assert unet._supports_gradient_checkpointing
    flagged = [module for module in unet.modules() if hasattr(module, "gradient_checkpointing")]
    expected = gradients(unet)
    assert not unet.is_gradient_checkpointing
    unet.enable_gradient_checkpointing()
    assert all(module.gradient_checkpointing for module in flagged)
    runs = []
    for path, module in unet.named_modules():
        if RECOMPUTED.fullmatch(path) and path.startswith("control." if name == "control" else ""):
            module.register_forward_pre_hook(lambda module, _: runs.append(module))
    for weight, gradient in gradients(unet).items():
        torch.testing.assert_close(gradient, expected[weight], rtol=0, atol=5e-5, msg=weight)
    assert len(runs) == 2 * NUM_RECOMPUTED.get(name, 1)  # each once forward, and once again for its gradient
    unet.disable_gradient_checkpointing()
    assert not any(module.gradient_checkpointing for module in flagged)


@torch.no_grad()
def test_saved_network_loads_equal_with_its_config(tiny, tmp_path):
    unet = tiny(**LABELS, id2label={i: f"class {i}" for i in range(5)})  # whole numbers become text, as in JSON
    unet.save_pretrained(tmp_path)
    loaded, report = type(unet).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    sample, timestep, mask = inputs()
    assert torch.equal(loaded(sample, timestep, mask=mask).sample, unet(sample, timestep, mask=mask).sample)
    assert loaded.config.id2label == {str(i): f"class {i}" for i in range(5)}

    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    saved = {name: plain(value) for name, value in unet.config.items() if name != "id2label" and name[0] != "_"}
    assert saved == {name: plain(loaded.config[name]) for name in saved}
    assert saved.items() >= LABELS.items()
    twin = type(unet).from_config(type(unet).load_config(tmp_path))
    shapes = {name: value.shape for name, value in unet.state_dict().items()}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "1 to 255"),
        ({"num_classes": 256}, "1 to 255"),
        ({"id2label": {"0": "road"}}, r"got \['0'\]. Set `num_classes=1`"),
        ({"id2label": {str(i): "road" for i in range(1, 6)}}, "each class 0 to 4 once; got"),
        ({"id2label": {"road": 0}}, r"each class 0 to 4 once; got \['road'\]"),
        ({"id2color": {i: [0, 0, 0] for i in range(6)}}, "Set `num_classes=6`"),
    ],
)
def test_label_sets_that_do_not_fit_are_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


# Compilation


@torch.no_grad()
def test_exports_with_the_mask_as_keyword(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    program = torch.export.export(unet, (), {"sample": sample, "timestep": timestep, "mask": mask})
    other = 4 - mask
    exported = program.module()(sample=sample, timestep=timestep, mask=other).sample
    torch.testing.assert_close(exported, unet(sample, timestep, mask=other).sample)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FORMS else name for name in NETWORKS]
)
@torch.no_grad()
@pytest.mark.slow
def test_compiles_whole_and_once_for_all_masks_timesteps_and_sizes(name):
    unet = NETWORKS[name]()
    close = {"rtol": 1e-4, "atol": 1e-4} if name == "sdm" else {}
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
                torch.testing.assert_close(output, unet(sample, timestep - 1, mask=ids).sample, **close)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add-2", "concat-1", "spade-2", "control", "paper", "sdm"])
@torch.no_grad()
def test_compiled_code_gives_the_same_numbers(name):
    unet = NETWORKS[name]()
    sample, timestep, mask = inputs()
    torch.compiler.reset()
    compiled = torch.compile(unet, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ids in (mask, torch.full_like(mask, 255)):
            output = compiled(sample, timestep, mask=ids).sample
            torch.testing.assert_close(output, unet(sample, timestep, mask=ids).sample, rtol=1e-4, atol=1e-4)
