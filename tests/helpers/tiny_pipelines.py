"""Tiny real pipelines that several test files draw with: 8 channels, 16 x 16, the same weights each time."""

import diffusers
import torch
from diffusers import DDIMScheduler

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel


BDD = LabelSet.from_preset("bdd100k")
SIZE = 16
# Schedulers and the prediction types that each knows; those that need scipy or torchsde are left out,
# and UnCLIPScheduler, which has to be given the timestep that follows.
ALL_TYPES = ("epsilon", "v_prediction", "sample")
SCHEDULERS = {
    "DDIMScheduler": ALL_TYPES,
    "DDIMParallelScheduler": ALL_TYPES,
    "DDPMScheduler": ALL_TYPES,
    "DDPMParallelScheduler": ALL_TYPES,
    "DEISMultistepScheduler": ALL_TYPES,
    "DPMSolverMultistepScheduler": ALL_TYPES,
    "DPMSolverSinglestepScheduler": ALL_TYPES,
    "EDMDPMSolverMultistepScheduler": ("epsilon", "v_prediction"),
    "EDMEulerScheduler": ("epsilon", "v_prediction"),
    "EulerAncestralDiscreteScheduler": ("epsilon", "v_prediction"),
    "EulerDiscreteScheduler": ALL_TYPES,
    "HeunDiscreteScheduler": ALL_TYPES,
    "IPNDMScheduler": (None,),
    "KDPM2AncestralDiscreteScheduler": ("epsilon", "v_prediction"),
    "KDPM2DiscreteScheduler": ("epsilon", "v_prediction"),
    "LCMScheduler": ALL_TYPES,
    "PNDMScheduler": ("epsilon", "v_prediction"),
    "SASolverScheduler": ALL_TYPES,
    "TCDScheduler": ALL_TYPES,
    "UniPCMultistepScheduler": ALL_TYPES,
}

NOISING = [name for name in SCHEDULERS if not name.startswith(("EDM", "IPNDM"))]  # these can add noise to an image


def new_scheduler(name: str):
    settings = {"lower_order_final": True} if name == "DPMSolverSinglestepScheduler" else {}
    return getattr(diffusers, name)(**settings)


def tiny_unet(**settings) -> MaskGuidedUNet2DModel:
    torch.manual_seed(0)
    defaults = {
        "sample_size": SIZE,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return MaskGuidedUNet2DModel(**{**defaults, **BDD.to_config(), **settings}).eval()


def pipeline(unet=None, scheduler=None, kind=MaskGuidedDDPMPipeline):
    """A silent pipeline of a kind, by default from masks with DDIM."""
    pipe = kind(
        unet=tiny_unet() if unet is None else unet, scheduler=DDIMScheduler() if scheduler is None else scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return generators[0] if len(generators) == 1 else generators


def random_ids(count: int = 1, height: int = SIZE, width: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 19, (count, height, width), generator=seeded(seed))


def draw(pipe, mask, seeds=(0,), **settings) -> torch.Tensor:
    settings = {"num_inference_steps": 3, "output_type": "pt", **settings}
    return pipe(mask, generator=seeded(*seeds), **settings).images


def zero_at_the_end(pipe, i, _, tensors):
    """A callback that replaces the latents of the last step by zeros."""
    return {"latents": torch.zeros_like(tensors["latents"])} if i == pipe.num_timesteps - 1 else {}
