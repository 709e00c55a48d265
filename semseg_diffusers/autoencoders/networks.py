"""Autoencoders of diffusers by the kind of their latents: built, trained through one forward pass, and read alike.

`AutoencoderKL` and `VQModel` follow Rombach et al. 2022 (latent diffusion), `AutoencoderTiny` is TAESD's network.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, VQModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from semseg_diffusers.autoencoders.settings import AutoencoderSettings


CLASSES = {"kl": AutoencoderKL, "vq": VQModel, "tiny": AutoencoderTiny}
PHOTO_DEVIATION = 0.5  # about that of photos in [-1, 1], which the decoder's last norm divides by
FIRST_LOGVAR = -6.0  # of the latents of kl: a standard deviation of 0.05


def build_autoencoder(settings: AutoencoderSettings, size: tuple[int, int]) -> ModelMixin:
    """Return an untrained autoencoder for photos of a size (height, width), whose latents are averages of colours."""
    network = _new_autoencoder(settings, size)
    average_colors(network)
    return network


def _new_autoencoder(settings: AutoencoderSettings, size: tuple[int, int]) -> ModelMixin:
    widths, layers, levels = settings.block_out_channels, settings.layers_per_block, len(settings.block_out_channels)
    if settings.kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(1,) + (layers,) * (levels - 1),
            num_decoder_blocks=(layers,) * (levels - 1) + (1,),
            latent_channels=settings.latent_channels,
        )
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": settings.norm_num_groups,
        "sample_size": max(size),
        "mid_block_add_attention": False,  # whose cost grows with the square of the latents
    }
    if settings.kind == "vq":
        return VQModel(num_vq_embeddings=settings.codebook_size, **config)
    return AutoencoderKL(**config)


def _carry(layer: Any, matrix: torch.Tensor, side: int = 1) -> None:
    """Let a convolution map its first channels by a matrix to its first channels, averaged over side x side pixels.

    The square starts at the kernel's centre, or at the first pixel of a convolution without padding.
    """
    outputs, inputs = matrix.shape
    start = layer.padding[0] if layer.kernel_size[0] > 1 else 0
    pixels = slice(start, start + side)
    layer.weight[:outputs] = 0
    layer.weight[:outputs, :inputs, pixels, pixels] = matrix[:, :, None, None] / side**2
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def average_colors(network: Any) -> None:
    """Set weights so that latents are the average colours of the cells of a photo, and images these cells.

    From random weights, a small autoencoder learns brightness first, and colours thousands of steps later or never.
    A colour x passes through activations as the pair (x, -x), since f(x) - f(-x) = x for SiLU and for ReLU; residual
    branches start at zero. All other weights are left random.

    Args:
        network: `AutoencoderKL`, `VQModel` or `AutoencoderTiny`, changed in place. Of its colours as many are kept as
            its latents and its smallest width, two channels each, have room for.
    """
    tiny, config = isinstance(network, AutoencoderTiny), network.config
    widths = config.encoder_block_out_channels if tiny else config.block_out_channels
    colors = min(3, config.latent_channels, min(widths) // 2)
    split = torch.stack([torch.eye(3), -torch.eye(3)], 1).flatten(0, 1)[: 2 * colors, :colors]  # x to (x, -x)
    merge, keep = split.T, torch.eye(2 * colors)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, keep)
        elif isinstance(module, AutoencoderTinyBlock):
            module.conv[-1].weight.zero_()
            module.conv[-1].bias.zero_()
        elif isinstance(module, Downsample2D):
            _carry(module.conv, keep, 2)
        elif isinstance(module, Upsample2D):
            _carry(module.conv, keep)
    encoder, decoder = network.encoder, network.decoder
    if tiny:  # which maps photos to [0, 1] first, and images back
        ends = [encoder.layers[0], encoder.layers[-1], decoder.layers[0], decoder.layers[-1]]
        for layer in (*encoder.layers[1:-1], *decoder.layers[1:-1]):
            if isinstance(layer, torch.nn.Conv2d):
                _carry(layer, keep, layer.stride[0])
    else:
        ends = [encoder.conv_in, encoder.conv_out, decoder.conv_in, decoder.conv_out]
        for layer in (network.quant_conv, network.post_quant_conv):
            _carry(layer, torch.eye(layer.out_channels, layer.in_channels))
    scales = (1, 2, 1, 0.5) if tiny else (1, 1, 1, PHOTO_DEVIATION)
    for layer, matrix, scale in zip(ends, (split, merge, split, merge), scales, strict=True):
        _carry(layer, matrix * scale)
    ends[-1].weight[:, 2 * colors :] = 0
    if tiny:
        ends[0].bias[: 2 * colors] = -split.sum(1) / 2
        ends[-1].bias.fill_(0.5)
    elif isinstance(network, AutoencoderKL):
        network.quant_conv.bias[config.latent_channels :] = FIRST_LOGVAR


class Outputs(NamedTuple):
    """A forward pass in training."""

    image: torch.Tensor  # (B, 3, H, W), the reconstruction
    regularization: torch.Tensor  # what the latents add to the loss, a scalar
    latents: torch.Tensor  # (B, C, h, w), of vq before they are replaced by codes
    indices: torch.Tensor | None  # (B, h, w), the codes of vq


class TrainedAutoencoder(torch.nn.Module):
    """An autoencoder with what its training adds: one forward pass for all that is trained, and the age of codes.

    Several processes and compilation see this module, since a call of `encode` and `decode` would go past them.
    """

    age: torch.Tensor

    def __init__(self, network: ModelMixin, settings: AutoencoderSettings):
        super().__init__()
        self.network: Any = network
        self.kind, self.kl_weight = settings.kind, settings.kl_weight
        self.commitment_weight = settings.commitment_weight
        if self.kind == "vq":
            # steps since each code was chosen; new ones count as dead, so that the first batch places them
            self.register_buffer("age", torch.full((settings.codebook_size,), settings.codebook_revival_steps))

    @property
    def last_layer(self) -> torch.nn.Parameter:
        """Return the weights of the decoder's last layer."""
        decoder = self.network.decoder
        return (decoder.layers[-1] if self.kind == "tiny" else decoder.conv_out).weight

    def forward(self, image: torch.Tensor, noise: torch.Tensor) -> Outputs:
        """Reconstruct images (B, 3, H, W) in [-1, 1]; `noise` (B, C, h, w) samples the latents of kl."""
        network, indices = self.network, None
        if self.kind == "kl":
            distribution = network.encode(image).latent_dist
            mean, std = distribution.mean.float(), distribution.std.float()
            latents = mean + std * noise  # (B, C, h, w)
            # over all latents of a photo, divided by its numbers: in Rombach et al. 2022, both losses are sums
            logvar = distribution.logvar.float()
            divergence = (mean.square() + logvar.exp() - 1 - logvar).sum() / 2
            regularization = self.kl_weight * divergence / image.numel()
            decoded = network.decode(latents).sample
        elif self.kind == "tiny":
            latents = network.encode(image).latents.float()
            regularization = self.kl_weight * latents.square().sum() / 2 / image.numel()
            decoded = network.decode(latents).sample
        else:
            latents = network.encode(image).latents.float()
            quantized, _, (_, _, chosen) = network.quantize(latents)  # (B, D, h, w), gradients to the latents
            indices = chosen.view(len(image), *latents.shape[-2:])
            codes = network.quantize.embedding(indices).permute(0, 3, 1, 2)  # gradients to the codes
            # van den Oord et al. 2017, eq. 3
            regularization = F.mse_loss(codes, latents.detach())
            regularization = regularization + self.commitment_weight * F.mse_loss(latents, codes.detach())
            decoded = network.decode(quantized, force_not_quantize=True).sample
        return Outputs(decoded.float(), regularization, latents, indices)


def encode(network: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of the latents (B, C, h, w) of images in [-1, 1]; 0 without a distribution."""
    encoded = network.encode(image)
    if isinstance(network, AutoencoderKL):
        return encoded.latent_dist.mean, encoded.latent_dist.var
    return encoded.latents, torch.zeros_like(encoded.latents)


@torch.no_grad()
def reconstruct(network: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return reconstructions, uint8 (B, 3, H, W), of uint8 images, from the means of their latents; and these."""
    weight = next(network.parameters())
    latents, _ = encode(network, (images.to(weight) / 127.5 - 1).contiguous())
    decoded = network.decode(latents).sample  # VQModel replaces latents by codes
    pixels = ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return pixels, latents
