"""The noise schedule and the loss: prediction target, and weights of timesteps and pixels.

Follows Ho et al. 2020 (epsilon), Salimans and Ho 2022 (v), Hang et al. 2023 (Min-SNR), Lin et al. 2024 (zero terminal
SNR), in diffusers' terms, OASIS (Sushko et al. 2021) for class weights of pixels, and LPIPS (Zhang et al. 2018) for
the perceptual loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.training_utils import compute_snr

from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.models.published.unet_paper import paper_betas
from semseg_diffusers.pipelines.upscaling import image_to_sample, sample_to_image
from semseg_diffusers.training.settings import TrainingSettings


def build_noise_scheduler(settings: TrainingSettings) -> DDPMScheduler:
    """Return the training schedule as a diffusers scheduler; every sampler is built from its config.

    `clip_sample` is off, and samplers built from the config inherit it: guidance moves x0 out of [-1, 1] on the way,
    and DDIM, which clips x0 but keeps the noise of the unclipped one, then produces speckles. A schedule that ends in
    pure noise is sampled from its very last timestep, so its spacing is "trailing" (Lin et al. 2024, section 3.3).
    """
    common = {
        "num_train_timesteps": settings.num_train_timesteps,
        "prediction_type": settings.prediction_type,
        "clip_sample": False,
    }
    if settings.rescale_betas_zero_snr:
        common |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if settings.noise_schedule == "paper":
        betas = paper_betas(settings.num_train_timesteps)
        # the paper's large variance needs timestep 0 as the last: with trailing spacing, noise would remain
        variance_type = "fixed_small" if settings.rescale_betas_zero_snr else "fixed_large"
        return DDPMScheduler(trained_betas=betas, variance_type=variance_type, **common)
    return DDPMScheduler(beta_schedule=settings.noise_schedule, **common)


def build_sampler(noise_scheduler: DDPMScheduler) -> DPMSolverMultistepScheduler:
    """Return the scheduler of previews and saved runs, built from the training schedule.

    SDE-DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095) adds new noise at each step, which corrects errors of
    earlier steps. Its images follow their masks after 20 steps as well as after 250 ancestral ones; solvers without
    new noise do not (docs/results/sampling.md).
    """
    return DPMSolverMultistepScheduler.from_config(noise_scheduler.config, algorithm_type="sde-dpmsolver++")


def prediction_target(
    noise_scheduler: DDPMScheduler, image: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return the prediction target (B, 3, H, W) of the scheduler's `prediction_type`."""
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(image, noise, timestep)
    return image


# Min-SNR, Hang et al. 2023, section 3.4: min(SNR, gamma) on the error of x0, divided by what turns the error of the
# predicted quantity into it: SNR for epsilon, SNR + 1 for v, 1 for x0.
def loss_weight(noise_scheduler: DDPMScheduler, timestep: torch.Tensor, snr_gamma: float | None) -> torch.Tensor:
    """Return the weight of each sample's mean squared error (B,), float32; ones without gamma.

    At an SNR of 0 it is 0 for v and x0; epsilon has no such timestep.
    """
    if snr_gamma is None:
        return torch.ones(timestep.shape, device=timestep.device)
    snr = compute_snr(noise_scheduler, timestep)  # (B,)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}
    return snr.clamp(max=snr_gamma) / divisors[noise_scheduler.config.prediction_type]


def largest_loss_weight(settings: TrainingSettings) -> float:
    """Return the largest value of `loss_weight`, gamma if the image is predicted, 1 otherwise, with all losses."""
    gamma = settings.snr_gamma if settings.prediction_type == "sample" else None
    return (1.0 if gamma is None else gamma) * (1 + settings.perceptual_weight)


SMALLEST_CLASS_WEIGHT = 0.5
ID_VALUES = 256  # a mask's ids fit 8 bits


@dataclass(frozen=True)
class ClassWeighting:
    """Weights of pixels by class, so that small objects are learned beside large areas.

    OASIS weights classes by their pixels in a batch. Here each sample is weighted by its own mask only, so processes
    and accumulation change nothing, and no sample's loss depends on its neighbours.
    """

    num_classes: int  # ids from here on are unknown
    maximum: float  # weight before the mean is normalised to 1, at least 1; the smallest is `SMALLEST_CLASS_WEIGHT`
    # Noisier samples are not weighted: they determine colour and layout of the whole image, which weights would
    # distort. Choi et al. 2022 (P2 weighting) set this limit to 0.01.
    min_snr: float

    # OASIS, Sushko et al. 2021, as in the losses.py of its code: weights in inverse proportion to the pixels of a
    # class, with mean 1 over the labelled ones. Unknown pixels weigh 0 there, since they have no class; here the image
    # is learned in them too.
    def pixel_weights(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the weight of each pixel of a mask of ids (B, H, W), long, with mean 1 over each sample."""
        ids = mask.flatten(1)  # (B, H * W)
        known = (ids < self.num_classes).float()
        counts = known.new_zeros(len(ids), ID_VALUES).scatter_add_(1, ids, known)  # (B, 256), 0 for unknown
        present = (counts > 0).sum(dim=1, keepdim=True)  # (B, 1)
        weights = counts.sum(dim=1, keepdim=True) / (present * counts)  # (B, 256)
        weights = weights.clamp(SMALLEST_CLASS_WEIGHT, self.maximum).where(counts > 0, 1.0)
        pixels = weights.gather(1, ids)  # (B, H * W)
        return (pixels / pixels.mean(dim=1, keepdim=True)).view_as(mask)


def predicted_sample(
    noise_scheduler: DDPMScheduler, noisy: torch.Tensor, prediction: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return the clean sample (B, 3, H, W) that a prediction of the scheduler's `prediction_type` amounts to."""
    if noise_scheduler.config.prediction_type == "sample":
        return prediction
    alpha_bar = noise_scheduler.alphas_cumprod.to(noisy)[timestep][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if noise_scheduler.config.prediction_type == "epsilon":
        return (noisy - sigma * prediction) / alpha
    return alpha * noisy - sigma * prediction  # Salimans and Ho 2022, appendix D


# Only where less than 70 % of what the network sees is noise, as PixelGen does: above it, the predicted image is a
# mean over many images, which a perceptual loss would sharpen at random.
PERCEPTUAL_NOISE = 0.7  # sigma / (alpha + sigma)
PERCEPTUAL_MIN_SNR = ((1 - PERCEPTUAL_NOISE) / PERCEPTUAL_NOISE) ** 2
SMALLEST_WINDOW = 0.5  # of a side
SMALLEST_DISTANCE = 1e-6  # that is scaled to the size of the main loss


class Window:
    """A random window of each image of a batch, for images and what is laid on them alike.

    Differentiable augmentation (Zhao et al. 2020) without its colours: a discriminator that does not see them change
    would let them drift.
    """

    def __init__(self, shape: Sequence[int], numbers: torch.Tensor, smallest: float):
        """Take the shape (B, C, H, W) of images, and uniform numbers: size and place (B, 3), flip in a fourth column.

        `smallest` is the smallest side of a window, as a share of the image's.
        """
        scale = smallest + (1 - smallest) * numbers[:, 0]  # (B,), of a side
        theta = numbers.new_zeros(len(numbers), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        if numbers.shape[1] > 3:
            theta[:, 0, 0] *= 1 - 2 * (numbers[:, 3] < 0.5).float()
        theta[:, :, 2] = (2 * numbers[:, 1:3] - 1) * (1 - scale[:, None])  # centres, so that windows stay inside
        self.grid = F.affine_grid(theta, list(shape), align_corners=False)  # (B, H, W, 2)

    def cut(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the window of maps (B, C, H, W), at their size."""
        return F.grid_sample(
            maps, self.grid.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )


class PerceptualLoss:
    """Distance between predicted and real images in the features of a frozen backbone."""

    def __init__(self, backbone: ImageBackbone, weight: float):
        self.backbone, self.weight = backbone, weight

    # LPIPS, Zhang et al. 2018, eq. 1, without its learned weights of channels
    def distances(self, image: torch.Tensor, predicted: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Return the distance (B,) of images (B, 3, H, W) in [-1, 1], both in the window of each sample (B, 3)."""
        seen = Window(image.shape, window, SMALLEST_WINDOW)
        with torch.no_grad():
            expected = self._features(seen.cut(image))
        found = self._features(seen.cut(predicted))
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(found, expected, strict=True)]).mean(
            0
        )  # (B,)

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [F.normalize(each.float(), dim=1) for each in self.backbone((image + 1) / 2)]


# entries of a batch, beside the mask, that are arguments of the network
TEXT_CONDITIONS = ("text_embeds", "region_embeds", "regions")
CONDITIONS = ("attributes", "augmentation", "low_res", "noise_level", *TEXT_CONDITIONS)


def diffusion_loss(
    unet: torch.nn.Module,
    noise_scheduler: DDPMScheduler,
    batch: dict,
    snr_gamma: float | None,
    class_weighting: ClassWeighting | None = None,
    perceptual: PerceptualLoss | None = None,
    residual_scale: float | None = None,
) -> torch.Tensor:
    """Return the loss of each sample (B,) of a batch of `TrainingDataset`, in float32."""
    timestep, low_res = batch["timestep"], batch.get("low_res")
    sample = batch.get("latents")  # (B, C, h, w)
    if sample is None:
        sample = image_to_sample(batch["image"], low_res, residual_scale)  # (B, 3, H, W), like the next
    noisy = noise_scheduler.add_noise(sample, batch["noise"], timestep)
    conditions = {name: batch[name] for name in CONDITIONS if name in batch}
    prediction = unet(noisy, timestep, mask=batch["mask"], **conditions).sample
    target = prediction_target(noise_scheduler, sample, batch["noise"], timestep)
    error = (prediction.float() - target.float()).pow(2)  # (B, 3, H, W)
    if class_weighting is not None:
        weighted = compute_snr(noise_scheduler, timestep) >= class_weighting.min_snr  # (B,)
        pixels = class_weighting.pixel_weights(batch["mask"]).where(weighted[:, None, None], 1.0)  # (B, H, W)
        weights = pixels[:, None]  # (B, 1, H, W)
        if weights.shape[-2:] != error.shape[-2:]:
            weights = F.adaptive_avg_pool2d(weights, error.shape[-2:])  # (B, 1, h, w) of latents
        error = error * weights
    losses = error.mean(dim=(1, 2, 3)) * loss_weight(noise_scheduler, timestep, snr_gamma)  # (B,)
    if perceptual is None:
        return losses
    (near,) = (compute_snr(noise_scheduler, timestep) > PERCEPTUAL_MIN_SNR).nonzero(as_tuple=True)
    if not len(near):
        return losses
    predicted = predicted_sample(noise_scheduler, noisy, prediction.float(), timestep)
    predicted = sample_to_image(predicted, low_res, residual_scale)
    distances = perceptual.distances(batch["image"][near], predicted[near], batch["window"][near])
    # divided by its own size and multiplied by that of the main loss, whose gradients it neither drowns nor misses
    relative = distances / distances.detach().clamp(min=SMALLEST_DISTANCE)
    return losses.index_add(0, near, perceptual.weight * losses.detach()[near] * relative)
