"""What every network of a publication owes diffusers and this package, whatever is inside it."""

import pytest
import torch
from helpers.tiny_networks import inputs, tiny_control, tiny_id_channel, tiny_paper, tiny_sdm


@pytest.fixture(params=[tiny_control, tiny_paper, tiny_sdm], ids=["control", "paper", "sdm"])
def tiny(request):
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ids_of_any_integer_dtype_equal_one_hot(tiny, dtype):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=torch.nn.functional.one_hot(mask, 5).permute(0, 3, 1, 2).float()).sample
    assert torch.equal(unet(sample, timestep, mask=mask.to(dtype)).sample, expected)


@torch.no_grad()
def test_bool_one_hot_equals_ids(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    one_hot = torch.nn.functional.one_hot(mask, 5).permute(0, 3, 1, 2).bool()
    assert torch.equal(unet(sample, timestep, mask=one_hot).sample, unet(sample, timestep, mask=mask).sample)


@torch.no_grad()
def test_mask_unknown_everywhere_equals_no_mask(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    assert torch.equal(unet(sample, timestep, mask=torch.full_like(mask, 255)).sample, unet(sample, timestep).sample)


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
    assert not torch.allclose(output, unet(sample, timestep, mask=mask).sample)
    assert not torch.allclose(output, unet(sample, timestep).sample)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.zeros(2, 16, 16)}, "Float ids: call"),
        ({"mask": torch.zeros(2, 4, 16, 16)}, r"\(B, 5, H, W\)"),
        ({"mask": torch.zeros(2, 8, 8, dtype=torch.long)}, "2 of 16 x 16"),
        ({"mask": torch.zeros(1, 16, 16, dtype=torch.long)}, "2 of 16 x 16"),
        ({"mask": torch.zeros(2, 16, 16, dtype=torch.long), "mask_features": ()}, "not both"),
        ({"class_labels": torch.zeros(2, dtype=torch.long)}, "no class embedding"),
    ],
)
def test_wrong_conditions_are_refused(tiny, settings, message):
    sample, timestep, _ = inputs()
    with pytest.raises(ValueError, match=message):
        tiny()(sample, timestep, **settings)


@torch.no_grad()
@pytest.mark.parametrize(
    "timestep", [7, 7.0, torch.tensor(7), torch.tensor(7.0), torch.tensor([7]), torch.tensor([7, 7])]
)
def test_every_form_of_timestep_gives_the_same_numbers(tiny, timestep):
    unet = tiny()
    sample, _, mask = inputs()
    expected = unet(sample, torch.tensor([7, 7]), mask=mask).sample
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)


@torch.no_grad()
def test_float_timestep_is_not_rounded(tiny):
    unet = tiny()
    sample, _, _ = inputs()
    assert not torch.allclose(unet(sample, 7.5).sample, unet(sample, 7).sample)


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
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


@torch.no_grad()
def test_exports_with_the_mask_as_keyword(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    program = torch.export.export(unet, (sample, timestep), {"mask": mask, "return_dict": False})
    (output,) = program.module()(sample, timestep, mask=mask, return_dict=False)
    torch.testing.assert_close(output, unet(sample, timestep, mask=mask).sample)


@pytest.mark.slow
def test_compiled_code_gives_the_same_numbers(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(unet, fullgraph=True)(sample, timestep, mask=mask).sample
        torch.testing.assert_close(output, unet(sample, timestep, mask=mask).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tiny", [tiny_control, tiny_paper, tiny_id_channel])
@torch.no_grad()
def test_compiles_whole_without_a_second_trace(tiny):
    unet = tiny()
    sample, timestep, mask = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(
            compiled(sample, timestep, mask=mask).sample, unet(sample, timestep, mask=mask).sample
        )
        compiled(sample, timestep - 1, mask=torch.full_like(mask, 255))


@pytest.mark.parametrize("tiny", [tiny_control, tiny_sdm, tiny_id_channel])
@torch.no_grad()
@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading_changes_no_number(tiny, offload_type):
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    unet.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **blocks)
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)
