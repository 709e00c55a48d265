"""Small networks of each published kind, and inputs for them."""

import torch
from diffusers import UNet2DModel

from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel


ID_CHANNEL = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


def tiny_paper(**settings) -> PaperUNet2DModel:
    torch.manual_seed(0)
    return PaperUNet2DModel(**{"sample_size": 16, "num_classes": 5, "hidden_dim": 8, "emb_dim": 32, **settings}).eval()


def tiny_sdm(**settings) -> SDMUNet2DModel:
    """Two levels with attention on the lower one; what starts at zero is made to say something."""
    torch.manual_seed(0)
    defaults = {
        "sample_size": 16,
        "num_classes": 5,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "num_head_channels": 16,
    }
    unet = SDMUNet2DModel(**{**defaults, **settings})
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet.eval()


def tiny_id_channel(**settings) -> IdChannelUNet2DModel:
    torch.manual_seed(0)
    return IdChannelUNet2DModel(**{**ID_CHANNEL, "num_classes": 5, **settings}).eval()


def tiny_base(**settings) -> UNet2DModel:
    """A plain network, as a control branch is put beside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**{**ID_CHANNEL, **settings}).eval()


def tiny_control(trained: bool = True, base: UNet2DModel | None = None, **settings) -> MaskControlNetModel:
    """A network with a control branch; `trained` fills the weights that start from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskControlNetModel.from_unet(tiny_base() if base is None else base, **{"num_classes": 5, **settings})
        for parameter in unet.control.parameters():
            if trained and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return unet.eval()


def inputs(
    batch_size: int = 2, height: int = 16, width: int = 16, channels: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy samples, timesteps, and masks of five classes."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch_size, channels, height, width, generator=generator)
    timestep = torch.randint(0, 1000, (batch_size,), generator=generator)
    return sample, timestep, torch.randint(0, 5, (batch_size, height, width), generator=generator)
