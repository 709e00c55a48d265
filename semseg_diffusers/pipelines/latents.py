"""Latents: how an autoencoder of diffusers encodes and decodes images, and at which scale a network generates them.

Latent diffusion, Rombach et al. 2022, section 3; a scale of each channel as in EDM2 (Karras et al. 2024, appendix A).
This file is saved beside the weights and runs without the package: it imports torch and diffusers only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)
WIDTHS = ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels")  # of levels, by class
EXAMPLES = "AutoencoderKL, AutoencoderTiny or VQModel"
OF_PIXELS = ("clip_sample", "thresholding")  # settings of schedulers that clip predictions to the range of pixels


def vae_factor(vae: Any) -> int:
    """Return the pixels of an image to a side of a cell of its latents."""
    widths = next((vae.config[name] for name in WIDTHS if vae.config.get(name)), ())
    return 2 ** max(len(widths) - 1, 0)


def latent_channels(vae: Any) -> int:
    """Return the channels of the latents; of a `VQModel`, those of its codebook."""
    return vae.config.get("vq_embed_dim") or vae.config["latent_channels"]


def check_vae(vae: Any, name: str = "`vae`") -> None:
    """Raise a `ValueError` for what is no autoencoder of RGB images that diffusers encodes and decodes."""
    config = getattr(vae, "config", {})
    if not (hasattr(vae, "encode") and hasattr(vae, "decode") and "latent_channels" in config):
        raise ValueError(f"{name} is a {type(vae).__name__}; expected an autoencoder of diffusers: {EXAMPLES}.")
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels != (3, 3):
        raise ValueError(
            f"{name} reads {channels[0]} and writes {channels[1]} channels; expected RGB images, 3 and 3."
        )


def check_vae_of_network(vae: Any, config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for an autoencoder whose latents are not what a network with this config generates."""
    check_vae(vae)
    expected = config.get("vae_scale_factor") or 1, config["in_channels"]
    found = vae_factor(vae), latent_channels(vae)
    if found != expected:
        texts = [f"latents of {channels} channels, 1/{factor} the size" for factor, channels in (found, expected)]
        of_network = "pixels" if expected == (1, 3) else texts[1]
        raise ValueError(
            f"`vae` is a {type(vae).__name__} with {texts[0]}, and the network generates {of_network}: use the "
            "autoencoder that the network was trained with."
        )


def latent_statistics(vae: Any, config: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is subtracted from the latents of an autoencoder and what they are divided by, (1, C, 1, 1) each.

    `scaling_factor` and `shift_factor` are of the autoencoder's config; on top of them, the network's config may hold
    statistics of the latents of its training images.
    """
    scale, shift = vae.config.get("scaling_factor") or 1.0, vae.config.get("shift_factor") or 0.0
    channels = latent_channels(vae)
    mean = torch.tensor(config.get("latents_mean") or [0.0] * channels, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(config.get("latents_std") or [1.0] * channels, dtype=torch.float32).view(1, -1, 1, 1)
    return shift + mean / scale, std / scale


def encode_moments(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Encode images (B, 3, H, W) in [-1, 1]; returns the latents (B, C, h, w) and their standard deviation.

    Autoencoders other than KL have none. A `VQModel` gives latents before quantization, which decoding does.
    """
    output = vae.encode(images.to(vae.dtype))
    if hasattr(output, "latent_dist"):
        return output.latent_dist.mean, output.latent_dist.std
    return (output.latents if hasattr(output, "latents") else output.latent), None


def encode_images(
    vae: Any, images: torch.Tensor, config: Mapping[str, Any], noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] as what a network with this config generates, (B, C, h, w) float32.

    With unit noise (B, C, h, w), KL latents are sampled; else they are the mode of their distribution.
    """
    latents, std = encode_moments(vae, images)
    if noise is not None and std is not None:
        latents = latents + std * noise.to(latents)
    mean, scale = (each.to(latents.device) for each in latent_statistics(vae, config))
    return (latents.float() - mean) / scale


def decode_latents(vae: Any, latents: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Decode what a network with this config generates, (B, C, h, w), to images (B, 3, H, W), near [-1, 1]."""
    mean, scale = (each.to(latents.device) for each in latent_statistics(vae, config))
    latents = latents.float() * scale + mean
    return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


def switch_off_clipping(scheduler: Any) -> None:
    """Switch off what clips predictions to the range of pixels, as diffusers' pipelines of latents do."""
    names = [name for name in OF_PIXELS if scheduler.config.get(name)]
    if names:
        scheduler.register_to_config(**dict.fromkeys(names, False))
        logger.info(f"{type(scheduler).__name__} samples without {' and '.join(names)}: latents have no bounds.")
