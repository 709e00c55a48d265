"""The noise schedule and the loss: what the network is asked for, and how much each timestep counts.

Follows Ho et al. 2020 (epsilon), Salimans and Ho 2022 (v), Hang et al. 2023 (Min-SNR), in diffusers' terms.
"""

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from semseg_diffusers.models.unet_paper import paper_betas
from semseg_diffusers.training.settings import TrainingSettings


def build_noise_scheduler(settings: TrainingSettings) -> DDPMScheduler:
    """The training schedule as a diffusers scheduler; every sampler is made from its config.

    `clip_sample` is off, and samplers made from the config inherit it: guidance carries x0 out of [-1, 1] on the way,
    and DDIM, which clips x0 but keeps the noise that belonged to the unclipped one, then draws speckles.
    """
    common = {
        "num_train_timesteps": settings.num_train_timesteps,
        "prediction_type": settings.prediction_type,
        "clip_sample": False,
    }
    if settings.noise_schedule == "paper":
        betas = paper_betas(settings.num_train_timesteps)
        return DDPMScheduler(trained_betas=betas, variance_type="fixed_large", **common)
    return DDPMScheduler(beta_schedule=settings.noise_schedule, **common)


def prediction_target(
    noise_scheduler: DDPMScheduler, image: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """What the network should say (B, 3, H, W), by the scheduler's `prediction_type`."""
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(image, noise, timestep)
    return image


# Min-SNR, Hang et al. 2023, section 3.4: min(SNR, gamma) on the error of x0, divided by what turns the error of the
# predicted quantity into it: SNR for epsilon, SNR + 1 for v, 1 for x0.
def loss_weight(noise_scheduler: DDPMScheduler, timestep: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
    """Weight of each sample's mean squared error.

    Args:
        noise_scheduler: the training schedule.
        timestep: timesteps (B,).
        snr_gamma: gamma, more than 0; None gives ones.

    Returns:
        weights (B,), float32.
    """
    if snr_gamma is None:
        return torch.ones(timestep.shape, device=timestep.device)
    snr = compute_snr(noise_scheduler, timestep)  # (B,)
    clipped = snr.clamp(max=snr_gamma)
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return clipped / snr
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped


def largest_loss_weight(settings: TrainingSettings) -> float:
    """The largest value of `loss_weight`: gamma where the image is predicted, 1 otherwise."""
    return settings.snr_gamma if settings.snr_gamma is not None and settings.prediction_type == "sample" else 1.0


def diffusion_loss(
    unet: torch.nn.Module, noise_scheduler: DDPMScheduler, batch: dict, snr_gamma: float | None
) -> torch.Tensor:
    """Loss of each sample (B,) of a batch of `TrainingSamples`, in float32."""
    noisy = noise_scheduler.add_noise(batch["image"], batch["noise"], batch["timestep"])  # (B, 3, H, W)
    prediction = unet(noisy, batch["timestep"], mask=batch["mask"]).sample
    target = prediction_target(noise_scheduler, batch["image"], batch["noise"], batch["timestep"])
    error = (prediction.float() - target.float()).pow(2).mean(dim=(1, 2, 3))  # (B,)
    return error * loss_weight(noise_scheduler, batch["timestep"], snr_gamma)
