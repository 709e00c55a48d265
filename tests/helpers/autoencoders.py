"""Tiny real autoencoders of diffusers, each of RGB images, with latents of 1/4 the size."""

from collections.abc import Callable

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel


FACTOR = 4
LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}
WIDTHS = (8, 8, 8)  # an AutoencoderTiny has one width


def _kl() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=WIDTHS, latent_channels=4, scaling_factor=0.5, shift_factor=0.25, **LEVELS)


def _tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )


def _vq() -> VQModel:
    return VQModel(block_out_channels=WIDTHS, latent_channels=3, vq_embed_dim=4, num_vq_embeddings=16, **LEVELS)


def _asymmetric() -> AsymmetricAutoencoderKL:
    return AsymmetricAutoencoderKL(
        down_block_out_channels=WIDTHS, up_block_out_channels=(8, 8, 8), latent_channels=4, **LEVELS
    )


AUTOENCODERS: dict[str, Callable] = {"kl": _kl, "tiny": _tiny, "vq": _vq, "asymmetric": _asymmetric}


def tiny_autoencoder(kind: str = "kl"):
    """An autoencoder of a kind, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AUTOENCODERS[kind]().eval()
