"""The network with an id channel: it predicts what a plain `UNet2DModel` predicts from image and id / 255."""

import pytest
import torch
from diffusers import UNet2DModel
from helpers.tiny_networks import ID_CHANNEL, inputs
from helpers.tiny_networks import tiny_id_channel as tiny


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
