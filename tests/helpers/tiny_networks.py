"""Small networks of each kind, and inputs for them."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet2DModel

from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel


TINY = {
    "sample_size": 16,
    "num_classes": 5,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "stem_channels": 8,
}
TINY_PARENT = {name: value for name, value in TINY.items() if name not in ("num_classes", "stem_channels")}
# The three families of networks that diffusers tests `UNet2DModel` with, and what else it can be.
PARENTS = {
    "unconditional": {},
    "latent": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "ncsnpp": {
        "block_out_channels": (32, 32),
        "time_embedding_type": "fourier",
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 2**0.5,
        "norm_num_groups": None,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
    "class embedding": {"num_class_embeds": 3},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "wide time": {"time_embedding_dim": 24, "resnet_time_scale_shift": "scale_shift"},
    "no middle": {"mid_block_type": None},
    "centred": {"center_input_sample": True, "downsample_type": "resnet", "upsample_type": "resnet"},
    "learned variance": {"out_channels": 6},
}
CLASS_LABELS = {
    "class embedding": torch.tensor([0, 2]),
    "class timestep": torch.tensor([3, 700]),
    "class identity": torch.linspace(-1, 1, 64).view(2, 32),
}

ID_CHANNEL = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


def tiny_mask_guided(**settings) -> MaskGuidedUNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskGuidedUNet2DModel(**{**TINY, **settings}).eval()
        for name, weight in unet.named_parameters():
            if name.startswith("mask_norms.projections"):  # they start from zeros
                torch.nn.init.normal_(weight, std=0.1)
    return unet


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


FORMS = {
    f"{conditioning}-{patch_size}": {"mask_conditioning": conditioning, "patch_size": patch_size}
    for conditioning in ("add", "concat", "spade")
    for patch_size in (1, 2)
}
NETWORKS: dict[str, Callable] = {
    **{name: partial(tiny_mask_guided, **form) for name, form in FORMS.items()},
    "control": tiny_control,
    "paper": tiny_paper,
    "sdm": tiny_sdm,
    "id channel": tiny_id_channel,
}
LABELS = {
    "id2color": {str(i): [i, 10 * i, 255] for i in range(5)},
    "ignore_index": 255,
    "ignore_color": [1, 2, 3],
}
