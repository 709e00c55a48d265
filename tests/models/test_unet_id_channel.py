"""The network with an id channel: what it draws is what a plain `UNet2DModel` draws of image and id / 255."""

import pytest
import torch
from diffusers import UNet2DModel
from helpers.tiny_networks import ID_CHANNEL, inputs
from helpers.tiny_networks import tiny_id_channel as tiny

from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_output_is_that_of_a_plain_network_on_image_and_id_channel(channels, size):
    unet = tiny(in_channels=channels, out_channels=channels)
    plain = UNet2DModel(**{**ID_CHANNEL, "in_channels": channels + 1, "out_channels": channels}).eval()
    plain.load_state_dict(unet.state_dict())
    sample, timestep, mask = inputs(2, *size, channels)
    expected = plain(torch.cat([sample, mask[:, None] / 255], dim=1), timestep).sample
    assert torch.equal(unet(sample, timestep, mask=mask).sample, expected)
    assert torch.equal(unet(sample, timestep, mask_features=unet.encode_mask(mask)).sample, expected)
    one_hot = torch.nn.functional.one_hot(mask, 5).permute(0, 3, 1, 2)
    for form in (one_hot.bool(), one_hot.float()):
        assert torch.equal(unet(sample, timestep, mask=form).sample, expected)


@torch.no_grad()
def test_no_mask_unknown_mask_and_background_are_one():
    unet = tiny()
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep).sample
    for value in (0, 255):
        assert torch.equal(unet(sample, timestep, mask=torch.full_like(mask, value)).sample, expected)
    assert torch.equal(unet(sample, timestep, mask=torch.zeros(2, 5, 16, 16)).sample, expected)
    (output,) = unet(sample, timestep, mask=mask, return_dict=False)
    assert not torch.allclose(output, expected)


@torch.no_grad()
def test_half_precision_and_layerwise_casting_run():
    sample, timestep, mask = inputs()
    assert tiny().bfloat16()(sample.bfloat16(), timestep, mask=mask).sample.dtype == torch.bfloat16
    unet = tiny()
    expected = unet(sample, timestep, mask=mask).sample
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    torch.testing.assert_close(unet(sample, timestep, mask=mask).sample, expected, rtol=0, atol=0.5)


def test_gradient_checkpointing_changes_no_gradient():
    sample, timestep, mask = inputs()
    found = []
    for checkpointing in (False, True):
        unet = tiny().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(sample, timestep, mask=mask).sample.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=5e-5, msg=name)
        assert gradient.abs().sum() > 0, name


@torch.no_grad()
def test_saved_network_loads_equal(tmp_path):
    unet = tiny(id2label={i: f"class {i}" for i in range(5)})
    unet.save_pretrained(tmp_path)
    loaded = IdChannelUNet2DModel.from_pretrained(tmp_path)
    sample, timestep, mask = inputs()
    assert torch.equal(loaded(sample, timestep, mask=mask).sample, unet(sample, timestep, mask=mask).sample)
    assert (loaded.config.in_channels, loaded.config.num_classes) == (3, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.zeros(2, 16, 16)}, "Float ids: call"),
        ({"mask": torch.zeros(2, 4, 16, 16)}, r"\(B, 5, H, W\)"),
        ({"mask": torch.zeros(2, 8, 8, dtype=torch.long)}, "2 of 16 x 16"),
        ({"mask": torch.zeros(2, 16, 16, dtype=torch.long), "mask_features": ()}, "not both"),
    ],
)
def test_wrong_masks_are_refused(settings, message):
    sample, timestep, _ = inputs()
    with pytest.raises(ValueError, match=message):
        tiny()(sample, timestep, **settings)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="1 to 255"):
        tiny(num_classes=256)
    with pytest.raises(ValueError, match="Set `num_classes=1`"):
        tiny(id2label={"0": "road"})
    with pytest.raises(ValueError, match="multiples of 2; got 16 x 15"):
        tiny()(torch.zeros(1, 3, 16, 15), 1)
