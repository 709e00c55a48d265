"""The three ways to load a saved pipeline in a process of its own, and a tiny pipeline of each kind to save."""

import torch
from diffusers import DDIMScheduler, UNet2DModel

from semseg_diffusers import (
    IdChannelUNet2DModel,
    LabelSet,
    MaskControlNetModel,
    MaskGuidedDDPMPipeline,
    MaskGuidedUNet2DModel,
    PaperUNet2DModel,
    SDMUNet2DModel,
)


NETWORKS = {
    "unet_id_channel": "IdChannelUNet2DModel",
    "unet_mask_control": "MaskControlNetModel",
    "unet_mask_guided": "MaskGuidedUNet2DModel",
    "unet_paper": "PaperUNet2DModel",
    "unet_sdm": "SDMUNet2DModel",
}
OUR_CLASS = """
import sys, torch
from semseg_diffusers import MaskGuidedDDPMPipeline
pipe = MaskGuidedDDPMPipeline.from_pretrained(sys.argv[1])
"""
DIFFUSERS_CLASS = """
import sys, torch
import semseg_diffusers
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
"""
# Each kind of pipeline: its network's file, and settings of the network. What is written of a kind loads everywhere.
KINDS = {name: (name, {}) for name in NETWORKS} | {
    "spade": ("unet_mask_guided", {"mask_conditioning": "spade", "patch_size": 2})
}

REMOTE_CODE = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True, custom_pipeline=sys.argv[1])
assert type(pipe).__module__.startswith("diffusers_modules"), type(pipe).__module__
assert type(pipe.unet).__module__.startswith("diffusers_modules"), type(pipe.unet).__module__
pipe.save_pretrained(sys.argv[3])
"""
DRAW = """
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
images = pipe(ids, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, sys.argv[2])
"""


def tiny_pipeline(kind: str) -> MaskGuidedDDPMPipeline:
    network, settings = KINDS[kind]
    torch.manual_seed(0)
    labels = LabelSet.from_preset("bdd100k").to_config()
    if network == "unet_paper":
        unet = PaperUNet2DModel(sample_size=16, hidden_dim=8, **labels)
    elif network == "unet_sdm":
        unet = SDMUNet2DModel(
            sample_size=16, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, num_head_channels=16, **labels
        )
        torch.nn.init.normal_(unet.out[-1].weight)  # it starts at zero
    elif network == "unet_mask_control":
        base = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
        unet = MaskControlNetModel.from_unet(base, num_classes=19, **labels)
        for parameter in unet.control.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # some start at zero
    else:
        classes = {"unet_mask_guided": MaskGuidedUNet2DModel, "unet_id_channel": IdChannelUNet2DModel}
        unet = classes[network](
            sample_size=16,
            num_classes=19,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            **labels,
            **settings,
        )
        for name, weight in unet.named_parameters():
            if name.startswith("mask_norms.projections"):  # they start at zero
                torch.nn.init.normal_(weight, std=0.1)
    return MaskGuidedDDPMPipeline(unet=unet.eval(), scheduler=DDIMScheduler())


def draw(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
    return pipe(ids, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
