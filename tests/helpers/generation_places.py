"""Tiny pipelines, masks and photos that the tests of generation share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from helpers.text_encoders import LENGTH
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_upscale import MaskGuidedUpscalePipeline


LABELS = LabelSet(
    ("road", "sky", "car", "person", "pole"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60), (9, 9, 9))
)
ATTRIBUTES = {"weather": ["clear", "rainy"], "timeofday": ["daytime", "night"]}


def tiny_pipeline(
    seed: int = 0, attributes: Mapping[str, list[str]] | None = None, encoder: tuple[Any, Any] | None = None
) -> MaskGuidedDDPMPipeline:
    """A pipeline for 16 x 16 images of five classes, no weight of which is zero; with an encoder it reads texts."""
    text_encoder, tokenizer = encoder or (None, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = MaskGuidedUNet2DModel(
            sample_size=16,
            num_classes=5,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            attributes=attributes,
            text_embed_dim=LENGTH if encoder else 0,
            **LABELS.to_config(),
        )
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return MaskGuidedDDPMPipeline(unet.eval(), DDIMScheduler(), text_encoder=text_encoder, tokenizer=tokenizer)


def tiny_upscaler(labels: LabelSet = LABELS, **settings) -> MaskGuidedUpscalePipeline:
    """An upscaler of such images to 32 x 32, which recommends three steps and noise of level 7."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = MaskGuidedUNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
            upscale_factor=2,
            max_noise_level=50,
            **{"num_classes": 5, **labels.to_config(), **settings},
        )
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return MaskGuidedUpscalePipeline(unet.eval(), DDIMScheduler(), 3, 1.0, None, 7)


def draw_ids(seed: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, size, dtype=np.uint8)


def save_masks(folder: Path, names: str = "abc", size: tuple[int, int] = (16, 16)) -> Path:
    """Write one mask for each letter; returns the folder."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        LABELS.decode(draw_ids(seed, size)).save(folder / f"{name}.png")
    return folder


def save_photos(folder: Path, names: str = "abc", size: tuple[int, int] = (16, 16)) -> Path:
    """Write one photo of noise for each letter; returns the folder."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        array = np.random.default_rng([7, seed]).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{name}.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
