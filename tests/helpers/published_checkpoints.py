"""Tiny checkpoints in the layouts of the published codebases, with weights from the golden formula."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel

from helpers.golden_weights import golden_shapes, golden_weights


def paper_weights() -> dict[str, torch.Tensor]:
    """The state dict that the golden outputs of the paper's network belong to."""
    return golden_weights(golden_shapes("paper_unet_tiny"))


def sdm_weights() -> dict[str, torch.Tensor]:
    """The state dict that the golden outputs of SDM's network belong to."""
    return golden_weights(golden_shapes("sdm_unet_tiny"))


def lightning(ema: dict[str, torch.Tensor] | None, raw: dict[str, torch.Tensor] | None) -> dict:
    """What Lightning's `save_checkpoint` writes, as far as the restricted unpickler lets it through."""
    state = {f"model.{key}": value for key, value in (raw or {}).items()}
    state |= {f"ema_model.{key}": value for key, value in (ema or {}).items()}
    return {"epoch": 550, "global_step": 77000, "pytorch-lightning_version": "2.1.0", "state_dict": state}


def konz_folder(folder: Path, channels: int = 3, safe: bool = True) -> UNet2DModel:
    """Write a pipeline folder as Konz et al.'s training leaves it; returns its network."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=channels + 1,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    unet.save_pretrained(folder / "unet", safe_serialization=safe)
    DDIMScheduler(num_train_timesteps=1000).save_pretrained(folder / "scheduler")
    return unet
