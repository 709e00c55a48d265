"""The losses of an autoencoder: absolute error, perceptual distance, what its latents cost, and a discriminator.

VQGAN (Esser et al. 2021) and latent diffusion (Rombach et al. 2022, section 3.1), with the perceptual loss and the
discriminator of this package.
"""

from typing import Any

import torch

from semseg_diffusers.autoencoders.codebook import count_codes, revive
from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.distillation.discriminator import FrozenFeatures, discriminator_loss, frozen, generator_loss
from semseg_diffusers.training.dataset import CODEBOOK, make_generator
from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.training.objective import PerceptualLoss, Window


SMALLEST_GRADIENT = 1e-4  # of the verdict, in VQGAN's code, and the largest weight there
LARGEST_WEIGHT = 1e4


# Esser et al. 2021, eq. 7
def adaptive_weight(others: torch.Tensor, verdict: torch.Tensor) -> torch.Tensor:
    """Return the ratio of the gradients of the other losses and of the verdict at the last layer, a scalar."""
    return (others.norm() / (verdict.norm() + SMALLEST_GRADIENT)).clamp(max=LARGEST_WEIGHT)


class Objective:
    """The losses of an autoencoder and its discriminator on a batch of `PhotoCrops`."""

    def __init__(self, run: Any, backbones: dict[str, ImageBackbone], features: FrozenFeatures | None):
        self.run, self.settings, self.features = run, run.settings, features
        self.perceptual = None
        if self.settings.perceptual_weight:
            backbone = backbones[self.settings.perceptual_backbone]
            self.perceptual = PerceptualLoss(backbone, self.settings.perceptual_weight)

    def step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Train the autoencoder and the discriminator on a batch; returns the losses."""
        run, settings, accelerator = self.run, self.settings, self.run.accelerator
        image, numbers = batch["image"], batch["window"]
        with accelerator.autocast():
            outputs = run.unet(image, batch["noise"])
        # losses of the image end there: two gradients at it make one pass through the autoencoder
        seen = outputs.image.detach().requires_grad_()
        values = {"reconstruction": (seen - image).abs().mean()}
        loss = values["reconstruction"]
        if self.perceptual is not None:
            values["perceptual"] = self.perceptual.distances(image, seen, numbers[:, :3]).mean()
            loss = loss + settings.perceptual_weight * values["perceptual"]
        (gradient,) = torch.autograd.grad(loss, seen)
        found = None
        if self.features is not None and run.step >= settings.discriminator_start:
            window = Window(image.shape, numbers, settings.discriminator_window)
            fake = self.features(seen, window)
            with torch.no_grad():
                real = self.features(image, window)
            with frozen(accelerator.unwrap_model(run.models[1])) as discriminator:
                values["adversarial"] = generator_loss(discriminator(fake))
            (verdict,) = torch.autograd.grad(values["adversarial"], seen)
            weight = torch.tensor(settings.adversarial_weight)
            if settings.adversarial_weighting == "adaptive":
                values["adaptive_weight"] = self._adaptive_weight(outputs.image, gradient, verdict)
                weight = weight * values["adaptive_weight"]
            gradient = gradient + weight * verdict
            both = [torch.cat([a, b.detach()]) for a, b in zip(real, fake, strict=True)]
            found = run.models[1](both)
            values["discriminator"] = discriminator_loss(found)
        name = "commitment" if settings.kind == "vq" else "kl"
        values[name] = outputs.regularization.detach()
        accelerator.backward((outputs.image * gradient).sum() + outputs.regularization)
        if found is not None:
            accelerator.backward(values["discriminator"])
        if self.features is not None:
            run.update(1)  # also before it joins, as its learning rate is scheduled from the start
            if accelerator.sync_gradients:
                accelerator.unwrap_model(run.models[1]).update_norms()
        run.update()
        if outputs.indices is not None:
            values["codes_used"] = self._revive_codes(outputs.indices, outputs.latents.detach())
        return {"loss": loss.detach() + values[name], **values}

    def _adaptive_weight(self, image: torch.Tensor, gradient: torch.Tensor, verdict: torch.Tensor) -> torch.Tensor:
        """Return `adaptive_weight`, the same in all processes, of two gradients at the reconstruction."""
        layer = self.run.network.last_layer
        at_layer = [
            self.run.accelerator.reduce(torch.autograd.grad(image, layer, each, retain_graph=True)[0], "mean")
            for each in (gradient, verdict)
        ]
        return adaptive_weight(*at_layer)

    def _revive_codes(self, indices: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Move codes that no latent chose for long; return the share of codes that this pass chose, a scalar.

        The choices of all forward passes of a step count; latents are those of its last one.
        """
        run, settings, accelerator = self.run, self.settings, self.run.accelerator
        network = run.network
        age, codebook = network.age, network.network.quantize.embedding.weight
        counts = accelerator.reduce(count_codes(indices, len(age)), "sum")
        age[counts > 0] = -1  # until the end of the step
        if accelerator.sync_gradients:
            age += 1
            dead = age >= settings.codebook_revival_steps
            if settings.codebook_revival_steps and dead.any():
                candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (M, D)
                place = next(i for i, weight in enumerate(trained_weights(network)) if weight is codebook)
                averages = [] if run.ema is None else [each.shadow_params[place] for each in run.ema.averages.values()]
                generator = make_generator(settings.seed, CODEBOOK, run.step)
                gathered = accelerator.gather(candidates)
                moved = revive(codebook, dead, gathered, run.optimizers[0], averages, generator)
                age[dead.nonzero()[:moved, 0]] = 0
        return (counts > 0).float().mean()
