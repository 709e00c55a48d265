"""What a person looks at while a run goes on: a grid mask | samples | photo, from fixed masks and noise."""

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.training_utils import EMAModel
from PIL import Image

from semseg_diffusers.data.loading import PairDataset
from semseg_diffusers.data.pictures import image_grid
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.training.samples import central_part
from semseg_diffusers.training.settings import TrainingSettings


def draw_preview(
    settings: TrainingSettings,
    unet: torch.nn.Module,
    noise_scheduler: SchedulerMixin,
    ema: EMAModel | None,
    pairs: PairDataset,
) -> Image.Image:
    """Sample from evenly spaced masks of a split, with the averaged weights where they are kept.

    Args:
        settings: how many masks and samples, how many steps, which guidance and seed.
        unet: its own weights are back in place afterwards.
        noise_scheduler: the training schedule; the sampler is DPM-Solver++ made from its config.
        ema: average of the weights.
        pairs: where masks and photos come from.

    Returns:
        a picture: mask | samples | photo.
    """
    num_masks, num_samples = min(settings.preview_masks, len(pairs)), settings.preview_samples
    chosen = [pairs[row * len(pairs) // num_masks] for row in range(num_masks)]
    if settings.random_crop_size is not None:  # at the scale that the network knows
        chosen = [central_part(pair, settings.random_crop_size) for pair in chosen]
    pipeline = MaskGuidedDDPMPipeline(
        unet=unet, scheduler=DPMSolverMultistepScheduler.from_config(noise_scheduler.config)
    )
    pipeline.set_progress_bar_config(disable=True)
    if ema is not None:
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
    try:
        images = pipeline(
            torch.stack([pair["mask"] for pair in chosen]),
            num_images_per_mask=num_samples,
            num_inference_steps=settings.preview_inference_steps,
            guidance_scale=settings.preview_guidance_scale,
            generator=[
                torch.Generator().manual_seed(settings.seed + index) for index in range(num_masks * num_samples)
            ],
        ).images
    finally:
        if ema is not None:
            ema.restore(unet.parameters())
    rows = [
        [
            pairs.labels.decode(pair["mask"].numpy()),
            *images[row * num_samples : (row + 1) * num_samples],
            Image.fromarray(pair["image"].permute(1, 2, 0).numpy()),
        ]
        for row, pair in enumerate(chosen)
    ]
    return image_grid(rows, headers=["mask", *["sample"] * num_samples, "photo"])
