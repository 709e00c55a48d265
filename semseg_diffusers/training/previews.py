"""What a person looks at while a run goes on: a grid mask | samples | photo, from fixed masks and noise."""

import os
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from semseg_diffusers.data.loading import PairDataset
from semseg_diffusers.data.pictures import image_grid
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


def draw_preview(
    pipeline: MaskGuidedDDPMPipeline,
    pairs: PairDataset,
    num_masks: int,
    num_samples: int,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
) -> Image.Image:
    """Sample from evenly spaced masks of a split.

    Args:
        pipeline: with the training scheduler; the sampler is DPM-Solver++ made from its config.
        pairs: where masks and photos come from.
        num_masks: rows.
        num_samples: samples a row.
        num_inference_steps: sampling steps.
        guidance_scale: 1 is plain conditional sampling.
        seed: of the start noise.

    Returns:
        a picture: mask | samples | photo.
    """
    indices = [row * len(pairs) // num_masks for row in range(min(num_masks, len(pairs)))]
    chosen = [pairs[index] for index in indices]
    sampler = MaskGuidedDDPMPipeline(
        unet=pipeline.unet, scheduler=DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    )
    sampler.set_progress_bar_config(disable=True)
    images = sampler(
        torch.stack([pair["mask"] for pair in chosen]),
        num_images_per_mask=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed + index) for index in range(len(chosen) * num_samples)],
    ).images
    rows = [
        [
            pairs.labels.decode(pair["mask"].numpy()),
            *images[row * num_samples : (row + 1) * num_samples],
            Image.fromarray(pair["image"].permute(1, 2, 0).numpy()),
        ]
        for row, pair in enumerate(chosen)
    ]
    return image_grid(rows, headers=["mask", *["sample"] * num_samples, "photo"])


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG beside its place and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.writing")
    picture.save(staging, format="PNG")
    os.replace(staging, path)
