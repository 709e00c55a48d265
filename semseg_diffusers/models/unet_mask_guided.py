"""A `UNet2DModel` conditioned on a segmentation mask, which enters beside the noisy image, in the stem.

Follows "Semantic Segmentation Mask-Guided Diffusion Models" (Bozsó et al., WINS 2024, section III-B): a convolutional
mask branch whose output is added to that of the image's first convolution; `"spade"` also lets the mask modulate the
norms of the decoder. This file is self-contained (torch and diffusers only): it is saved beside the weights and runs
without this package.
"""

import inspect
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in this module's namespace
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import nn


MASK_CONDITIONINGS = ("add", "concat", "spade")
PARENT_ARGUMENTS = tuple(inspect.signature(UNet2DModel.__init__).parameters)[1:]
STRIDED_CHANNELS = 32  # of `StridedMaskBranch`, at each resolution


def check_label_set(num_classes: int, id2label: dict | None, id2color: dict | None) -> None:
    """Raise a `ValueError` for a number of classes that 8-bit ids cannot hold, or a label set of another size."""
    if not 1 <= num_classes <= 255:
        raise ValueError(f"`num_classes` must be 1 to 255 (255 itself means unknown); got {num_classes}.")
    for name, table in (("id2label", id2label), ("id2color", id2color)):
        if table is not None and sorted(map(str, table)) != sorted(map(str, range(num_classes))):
            raise ValueError(
                f"`{name}` must name each class 0 to {num_classes - 1} once; got {list(table)}. "
                f"Set `num_classes={len(table)}`, or pass the label set of the data."
            )


def check_sample(sample: torch.Tensor, mask, mask_features, size_divisor: int, config) -> None:
    """Raise a `ValueError` for a size that `size_divisor` does not divide, or a mask that does not fit.

    The ids of a mask are checked where that is free: on the CPU, and not in code that is compiled.
    """
    batch_size, _, height, width = sample.shape
    if height % size_divisor or width % size_divisor:
        raise ValueError(f"Height and width of `sample` must be multiples of {size_divisor}; got {height} x {width}.")
    if mask is not None and mask_features is not None:
        raise ValueError("Pass `mask` or `mask_features`, not both: the second is `encode_mask` of the first.")
    factor = config.get("vae_scale_factor", 1)
    size = height * factor, width * factor
    if mask is not None and (mask.shape[0] != batch_size or tuple(mask.shape[-2:]) != size):
        like = "like" if factor == 1 else f"{factor} times as large as"
        raise ValueError(
            f"`mask` must be {batch_size} of {size[0]} x {size[1]} {like} `sample`; got {tuple(mask.shape)}. "
            f"Resize it (nearest), and repeat it for each sample."
        )
    if mask is None or mask.ndim != 3 or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return
    ids, num_classes = mask.long(), config.num_classes  # not all integer dtypes can be compared
    wrong = ids[(ids < -1) | ((ids >= num_classes) & (ids != 255) & (ids != config.ignore_index))]
    if len(wrong):
        raise ValueError(
            f"`mask` holds class {', '.join(map(str, wrong.unique()[:5].tolist()))}; this network knows "
            f"0-{num_classes - 1}, and 255 as unknown. Set other ids to 255, or map them to its classes first."
        )


def mask_to_one_hot(mask: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Convert class ids (B, H, W) of any integer dtype, or a float or bool one-hot map, to (B, num_classes, H, W)."""
    integer_ids = not (mask.is_floating_point() or mask.dtype == torch.bool)
    if integer_ids and mask.ndim == 3:  # other ids become zeros: checking values would break compiled code
        classes = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
        return (mask.long().unsqueeze(1) == classes).to(dtype)  # (B, num_classes, H, W)
    if not integer_ids and mask.ndim == 4 and mask.shape[1] == num_classes:
        return mask.to(dtype)
    raise ValueError(
        f"`mask` must hold integer class ids of shape (B, H, W), or a float or bool one-hot map of shape "
        f"(B, {num_classes}, H, W); got {mask.dtype} of shape {tuple(mask.shape)}. Float ids: call .long()."
    )


def known_samples(one_hot: torch.Tensor) -> torch.Tensor:
    """Return which samples (B, C, H, W) have a known pixel: (B, 1, 1, 1) bool."""
    return (one_hot != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1)


def pixel_coordinates(maps: torch.Tensor) -> torch.Tensor:
    """Return the centre of each pixel, x and y from -1 to 1, (1, 2, H, W), for maps (B, C, H, W)."""
    height, width = maps.shape[-2:]
    x = (torch.arange(width, device=maps.device, dtype=torch.float32) + 0.5) * 2 / width - 1
    y = (torch.arange(height, device=maps.device, dtype=torch.float32) + 0.5) * 2 / height - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None].to(maps.dtype)


def label_keep_probability(tau: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    """Return the probability that label diffusion keeps a pixel of a class, 1 at `tau` 0 and 0 at `tau` 1, float32.

    `tau` is the fraction of the diffusion, 0 (image) to 1 (noise); `psi` the rarity of the class, more than 0: 1 for
    the most frequent; larger ones keep more pixels.

    Example:
        >>> keep = label_keep_probability(torch.tensor(0.5), torch.tensor([1.0, 100.0]))
        >>> [round(float(probability), 3) for probability in keep]
        [0.5, 0.909]
    """
    tau, psi = tau.float().clamp(0, 1), psi.float()
    # SCDM, Ko et al. 2024: gamma(tau) = 1 - min(tau, (psi^tau - 1) / (psi - 1)); at psi = 1 its limit, tau
    rising = torch.expm1(tau * psi.log()) / torch.where(psi == 1, torch.ones_like(psi), psi - 1)
    return 1 - torch.minimum(tau, torch.where(psi == 1, tau, rising))


def diffuse_labels(mask: torch.Tensor, tau: torch.Tensor, noise: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    """Set pixels of a mask (B, H, W) to unknown (255), each by its class' `label_keep_probability`.

    `tau` is a scalar or (B,), `noise` uniform in [0, 1), (B, H, W), `psi` (num_classes,). With the same noise, what
    is unknown once stays so as `tau` grows.
    """
    mask = mask.long()
    psi, noise = psi.to(mask.device), noise.to(mask.device)
    tau = torch.as_tensor(tau, dtype=torch.float32, device=mask.device).expand(mask.shape[0]).unsqueeze(1)  # (B, 1)
    keep = label_keep_probability(tau, psi)  # (B, num_classes)
    is_class = (mask >= 0) & (mask < len(psi))
    ids = torch.where(is_class, mask, torch.zeros_like(mask))
    keep = keep.gather(1, ids.flatten(1)).view_as(noise)  # (B, H, W)
    return torch.where(is_class & (noise >= keep), torch.full_like(mask, 255), mask)


class MaskBranch(nn.Module):
    """The paper's second stem: two 3x3 convolutions from the one-hot mask to the width of the image stem (III-B)."""

    def __init__(self, num_classes: int, out_channels: int, norm_num_groups: int, norm_eps: float):
        super().__init__()
        self.conv_1 = nn.Conv2d(num_classes, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(norm_num_groups, out_channels, eps=norm_eps)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, one_hot: torch.Tensor) -> torch.Tensor:
        """Map (B, num_classes, H, W) to (B, out_channels, H, W); zeros for a sample that is unknown everywhere."""
        features = self.conv_2(F.silu(self.norm(self.conv_1(one_hot))))
        # Offloading hooks may bring the features, not the mask, to another device.
        return torch.where(known_samples(one_hot).to(features.device), features, torch.zeros_like(features))


class StridedMaskBranch(nn.Module):
    """Strided convolutions from the one-hot mask down to latents: where in its cell a thin class is.

    The last convolution starts from zeros.
    """

    def __init__(self, num_classes: int, out_channels: int, factor: int):
        super().__init__()
        channels = [num_classes] + [STRIDED_CHANNELS] * (factor.bit_length() - 1)  # each halves the resolution
        self.convs = nn.ModuleList(
            nn.Conv2d(*both, kernel_size=3, stride=2, padding=1)
            for both in zip(channels[:-1], channels[1:], strict=True)
        )
        self.conv_out = nn.Conv2d(channels[-1], out_channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, one_hot: torch.Tensor) -> torch.Tensor:
        """Map (B, num_classes, H, W) to (B, out_channels, H/factor, W/factor); zeros for an unknown sample."""
        features = one_hot
        for conv in self.convs:
            features = F.silu(conv(features))  # (B, STRIDED_CHANNELS, H/2, W/2), and so on
        features = self.conv_out(features)
        # Offloading hooks may bring the features, not the mask, to another device.
        return torch.where(known_samples(one_hot).to(features.device), features, torch.zeros_like(features))


class ModulatedEmbedding(NamedTuple):
    """Time embedding and the maps of `MaskModulation`; diffusers' blocks pass it on to their residual blocks."""

    temb: torch.Tensor
    maps: tuple[torch.Tensor, ...]


class ModulatedResnetBlock2D(ResnetBlock2D):
    """A residual block of diffusers, its weights too, whose norms are modulated by a `ModulatedEmbedding`."""

    slots: tuple[tuple[int, int], ...]  # of each norm: the index of its map, and of its first channel in the map

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | ModulatedEmbedding) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), or twice H and W in an up-sampling block."""
        if not isinstance(temb, ModulatedEmbedding):
            return super().forward(input_tensor, temb)
        maps, (first, second) = temb.maps, self.slots
        hidden_states = self.nonlinearity(modulate(self.norm1(input_tensor), maps, first))
        if self.upsample is not None:
            input_tensor, hidden_states = self.upsample(input_tensor), self.upsample(hidden_states)
        hidden_states = self.conv1(hidden_states)  # (B, out_channels, H, W)

        time = self.time_emb_proj(self.nonlinearity(temb.temb))[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            scale, shift = time.chunk(2, dim=1)  # (B, out_channels, 1, 1) each
            hidden_states = modulate(self.norm2(hidden_states), maps, second) * (1 + scale) + shift
        else:
            hidden_states = modulate(self.norm2(hidden_states + time), maps, second)

        hidden_states = self.conv2(self.dropout(self.nonlinearity(hidden_states)))
        if self.conv_shortcut is not None:
            # As in the parent: other strides of the gradients make DistributedDataParallel warn.
            input_tensor = self.conv_shortcut(input_tensor.contiguous() if self.training else input_tensor)
        return (input_tensor + hidden_states) / self.output_scale_factor


# "Semantic Image Synthesis with Spatially-Adaptive Normalization", Park et al. 2019, eq. 1; a map's scale is 1 + gamma
def modulate(normed: torch.Tensor, maps: tuple[torch.Tensor, ...], slot: tuple[int, int]) -> torch.Tensor:
    """Scale and shift normed maps (B, C, H, W) by those at a slot (index of the map, first channel) of `maps`."""
    number, start = slot
    own = slice(start, start + normed.shape[1])
    scales, shifts = maps[number].chunk(2, dim=1)  # of all norms at this resolution
    return normed * scales[:, own] + shifts[:, own]


def modulate_norms(blocks: list[tuple[nn.Module, int]]) -> dict[int, int]:
    """Convert residual blocks of diffusers to `ModulatedResnetBlock2D`; returns what `MaskModulation` takes.

    Each block comes with the factor by which its input is smaller than the image: factor -> channels of all norms.
    """
    found: list[tuple[ResnetBlock2D, tuple[int, int]]] = []
    for block, factor in blocks:
        resnets = [module for module in block.modules() if isinstance(module, ResnetBlock2D)]
        if not resnets or any(isinstance(module, ResnetBlockCondNorm2D) for module in block.modules()):
            raise ValueError(
                f"`mask_conditioning='spade'` modulates the norms of `ResnetBlock2D`, and {type(block).__name__} has "
                "others. Use other `up_block_types`, such as UpBlock2D, or `mask_conditioning='add'`."
            )
        # An up-sampling block does so between its norms.
        found += [(resnet, (factor, factor // 2 if resnet.up else factor)) for resnet in resnets]
    factors = sorted({factor for _, both in found for factor in both})
    norm_channels = dict.fromkeys(factors, 0)
    for resnet, both in found:
        slots = []
        for norm, factor in zip((resnet.norm1, resnet.norm2), both, strict=True):
            slots.append((factors.index(factor), norm_channels[factor]))
            norm_channels[factor] += norm.num_channels
        # Layers, weights of the seed, and their names stay; only the class changes.
        resnet.__class__ = ModulatedResnetBlock2D
        resnet.slots = tuple(slots)
    return norm_channels


class MaskModulation(nn.Module):
    """Computes scales and shifts of all modulated norms from the mask: one convolution a resolution, then 1 x 1.

    A light SPADE: the norms of a resolution share one hidden map, and each cell reads the share of each class in it
    (PLACE, Lv et al. 2024). The 1 x 1 convolutions start from zeros: at first scales are 1 and shifts 0.
    """

    def __init__(self, num_classes: int, hidden_channels: int, norm_channels: dict[int, int]):
        super().__init__()
        self.factors, self.channels = tuple(norm_channels), tuple(norm_channels.values())
        self.convs = nn.ModuleList(
            nn.Conv2d(num_classes, hidden_channels, kernel_size=3, padding=1) for _ in self.factors
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(hidden_channels, 2 * channels, kernel_size=1) for channels in self.channels
        )
        for parameter in self.projections.parameters():
            nn.init.zeros_(parameter)

    def forward(self, one_hot: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map (B, num_classes, H, W) to scales, then shifts (B, 2C, H/factor, W/factor); neutral where not `known`."""
        maps, layers = [], zip(self.factors, self.channels, self.convs, self.projections, strict=True)
        for factor, channels, conv, projection in layers:
            shares = F.avg_pool2d(one_hot, factor) if factor > 1 else one_hot  # (B, num_classes, h, w)
            values = projection(F.silu(conv(shares)))  # (B, 2C, h, w)
            neutral = torch.cat([values.new_ones(channels), values.new_zeros(channels)]).view(1, -1, 1, 1)
            # Offloading hooks may bring the values, not the mask, to another device.
            maps.append(torch.where(known.to(values.device), values, torch.zeros_like(values)) + neutral)
        return tuple(maps)


class PatchHead(nn.Module):
    """From patches to pixels: overlapping patches, joined with the full-resolution stem, so that no grid remains."""

    def __init__(
        self, in_channels: int, stem_channels: int, patch_size: int, temb_channels: int, dropout: float, **norm: Any
    ):
        super().__init__()
        self.conv_unpatch = nn.ConvTranspose2d(
            in_channels, stem_channels, kernel_size=2 * patch_size, stride=patch_size, padding=patch_size // 2
        )
        temb = {"temb_channels": temb_channels, "dropout": dropout}
        self.resnet = ResnetBlock2D(in_channels=2 * stem_channels, out_channels=stem_channels, **temb, **norm)
        self.norm = nn.GroupNorm(norm["groups"], stem_channels, eps=norm["eps"])

    def forward(self, hidden_states: torch.Tensor, stem: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H/p, W/p) and the stem (B, S, H, W) to (B, S, H, W)."""
        hidden_states = self.conv_unpatch(hidden_states)  # (B, S, H, W)
        hidden_states = self.resnet(torch.cat([hidden_states, stem], dim=1), temb)  # (B, S, H, W)
        return F.silu(self.norm(hidden_states))


class TextBranch(nn.Module):
    """Maps embeddings of texts to what is added to the time embedding, to the stem and to each lower level.

    What nothing was said about has an embedding of zeros, and adds zeros. The last layers start from zeros.
    """

    def __init__(self, text_embed_dim: int, time_embed_dim: int, map_channels: tuple[int, ...]):
        super().__init__()
        self.norm = nn.LayerNorm(text_embed_dim, elementwise_affine=False)  # encoders differ in scale
        self.hidden = nn.Linear(text_embed_dim, time_embed_dim)
        self.to_time = nn.Linear(time_embed_dim, time_embed_dim, bias=False)
        self.to_maps = nn.ModuleList(nn.Linear(time_embed_dim, width, bias=False) for width in map_channels)
        for layer in (self.to_time, *self.to_maps):
            nn.init.zeros_(layer.weight)

    def embed(self, embeds: torch.Tensor) -> torch.Tensor:
        """Map embeddings of texts (..., text_embed_dim) to (..., time_embed_dim), zeros to zeros."""
        said = (embeds != 0).any(dim=-1, keepdim=True)
        hidden = F.silu(self.hidden(self.norm(embeds)))
        # Offloading hooks may bring the values, not the texts, to another device.
        return torch.where(said.to(hidden.device), hidden, torch.zeros_like(hidden))

    def forward(
        self, text_embeds: torch.Tensor, region_embeds: torch.Tensor | None, shares: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Map texts of images (B, E), and of K regions (B, K, E), of which `shares` (B, K, h, w) are in each cell.

        Returns what is added to the time embedding (B, time_embed_dim), and a map (B, C_i, h, w) for each of `shares`.
        """
        features = [self.to_time(self.embed(text_embeds))]
        if region_embeds is not None:
            hidden = self.embed(region_embeds)  # (B, K, time_embed_dim)
            for project, share in zip(self.to_maps, shares, strict=True):
                values = project(hidden)  # (B, K, C_i)
                features.append(torch.einsum("bkc,bkhw->bchw", values, share.to(values.device)))
        return tuple(features)


class MaskGuidedUNet2DModel(UNet2DModel):
    r"""A `UNet2DModel` with a mask input.

    The first arguments are `UNet2DModel`'s own, in its order and with its meaning.

    Args:
        num_classes (`int`, defaults to 19): Number of classes of masks, ids 0..num_classes-1; 255 is unknown.
        mask_conditioning (`str`, defaults to `"add"`): `"add"` adds the one-hot mask, through a convolutional branch,
            to the image stem (as in the paper); `"concat"` concatenates it to the noisy image's channels; `"spade"`
            adds it, and lets it modulate every norm of the decoder's residual blocks, pixel by pixel.
        patch_size (`int`, defaults to 1): The U-Net works on maps of (H / patch_size, W / patch_size), with an
            overlapping strided convolution in and a full-resolution block out. With 2, 128 x 128 images cost what
            64 x 64 maps cost.
        stem_channels (`int`, defaults to 16): Width of the full-resolution stem and head; used where patch_size > 1.
        id2label (`dict`, *optional*): Class id -> name, e.g. `{"0": "road"}`; with the next three, the label set.
        id2color (`dict`, *optional*): Class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
        attributes (`dict[str, list[str]]`, *optional*): Conditions beside the mask, such as
            `{"timeofday": ["daytime", "night"], "weather": ["clear", "rainy"]}`: name -> values. The config holds the
            names sorted, as JSON does; `forward` takes indices of values in that order.
        mask_pyramid (`bool`, defaults to `False`): Gives each lower level the share of each class in its cells, so
            that a pole of one pixel still counts where a cell is 16 pixels wide.
        coordinate_channels (`bool`, defaults to `False`): Gives the stem each pixel's coordinates.
        augment_dim (`int`, defaults to 0): Length of the augmentation vector of `forward`.
        label_diffusion (`list[float]`, *optional*): Rarity of each class, more than 0; masks then lose pixels as the
            noise grows, in training and in sampling (`diffuse_mask`). Needs `num_train_timesteps`.
        spade_channels (`int`, defaults to 32): Width of the hidden maps of the modulation; used where
            mask_conditioning is `"spade"`.
        id2kind (`dict`, *optional*): Class id -> what it is in a street, e.g. `"car"`, where its name does not say.
        upscale_factor (`int`, *optional*): Makes the network an upscaler, which also reads the image that it enlarges
            by this factor, 2 or more (`low_res` of `forward`).
        max_noise_level (`int`, defaults to 0): The most noise that was added to the images to enlarge in training;
            used where `upscale_factor` is given.
        residual_scale (`float`, *optional*): The network of an upscaler generates what the enlarged image lacks,
            times this; None if it generates the image itself. `MaskGuidedUpscalePipeline` adds both.
        text_embed_dim (`int`, defaults to 0): Length of the embeddings of a text encoder, for networks that read texts
            about the image and about regions of it (`encode_text`); 0 for none.
        vae_scale_factor (`int`, defaults to 1): Pixels of an image to a side of a cell of its latents, a power of 2,
            for networks that generate the latents of an autoencoder: samples are latents, masks and `regions` are that
            many times as large. Cells get the share of each class in them, and a strided branch reads every pixel.
        latents_mean (`list[float]`, *optional*): Mean of each channel of the autoencoder's latents in the training
            images. The network generates latents less this mean, divided by `latents_std`; None if it generates them
            as the `scaling_factor` and the `shift_factor` of the autoencoder's config say.
        latents_std (`list[float]`, *optional*): Their standard deviation.

    What attributes, pyramid, coordinates, augmentation, modulation, the strided branch, the image to enlarge and texts
    add starts from zero weights: an untrained network predicts the same with and without them, and weights of a
    network without them load into one with them.

    Raises:
        ValueError: For mask settings that do not exist or exclude each other.

    Example:
    ```py
    >>> import torch
    >>> from semseg_diffusers import MaskGuidedUNet2DModel
    >>> unet = MaskGuidedUNet2DModel(
    ...     sample_size=32, num_classes=19, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ... )
    >>> mask = torch.randint(0, 19, (1, 32, 32))
    >>> unet(torch.randn(1, 3, 32, 32), 10, mask=mask).sample.shape
    torch.Size([1, 3, 32, 32])
    ```
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_classes: int = 19,
        mask_conditioning: str = "add",
        patch_size: int = 1,
        stem_channels: int = 16,
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        attributes: dict[str, list[str]] | None = None,
        mask_pyramid: bool = False,
        coordinate_channels: bool = False,
        augment_dim: int = 0,
        label_diffusion: list[float] | None = None,
        spade_channels: int = 32,
        id2kind: dict | None = None,
        upscale_factor: int | None = None,
        max_noise_level: int = 0,
        residual_scale: float | None = None,
        text_embed_dim: int = 0,
        vae_scale_factor: int = 1,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        if mask_conditioning not in MASK_CONDITIONINGS:
            raise ValueError(f"`mask_conditioning` must be one of {MASK_CONDITIONINGS}; got {mask_conditioning!r}.")
        check_label_set(num_classes, id2label, id2color)
        if patch_size < 1:
            raise ValueError(f"`patch_size` must be 1 or more; got {patch_size}.")
        if patch_size > 1 and patch_size % 2:
            raise ValueError(f"`patch_size` must be 1 or even, so that patches overlap evenly; got {patch_size}.")
        if patch_size > 1 and any("Skip" in block for block in (*down_block_types, *up_block_types)):
            raise ValueError("Skip blocks (NCSN++) carry the raw image beside the maps and need `patch_size=1`.")
        for name, values in (attributes or {}).items():
            if not values or len(set(values)) != len(values) or not all(isinstance(value, str) for value in values):
                raise ValueError(f"`attributes` must list different values, as text, for '{name}'; got {values!r}.")
        if mask_pyramid and len(block_out_channels) < 2:
            raise ValueError(
                f"`mask_pyramid` needs levels below the first: pass two `block_out_channels` or more; got "
                f"{block_out_channels}."
            )
        if spade_channels < 1:
            raise ValueError(f"`spade_channels` must be 1 or more; got {spade_channels}.")
        if augment_dim < 0:
            raise ValueError(f"`augment_dim` must be 0 or more; got {augment_dim}.")
        if label_diffusion is not None:
            if len(label_diffusion) != num_classes or not all(0 < psi < math.inf for psi in label_diffusion):
                raise ValueError(
                    f"`label_diffusion` must hold a finite number above 0 for each of {num_classes} classes; got "
                    f"{label_diffusion}."
                )
            if not num_train_timesteps:
                raise ValueError("`label_diffusion` needs `num_train_timesteps`, the length of the training schedule.")
        if upscale_factor is not None and upscale_factor < 2:
            raise ValueError(f"`upscale_factor` must be 2 or more, or None; got {upscale_factor}.")
        if residual_scale is not None and residual_scale <= 0:
            raise ValueError(f"`residual_scale` must be above 0, or None; got {residual_scale}.")
        if text_embed_dim < 0:
            raise ValueError(f"`text_embed_dim` must be 0 or more; got {text_embed_dim}.")
        if vae_scale_factor < 1 or vae_scale_factor & (vae_scale_factor - 1):
            raise ValueError(f"`vae_scale_factor` must be a power of 2, such as 8, or 1; got {vae_scale_factor}.")
        if vae_scale_factor > 1 and upscale_factor is not None:
            raise ValueError("`upscale_factor` is for networks of pixels, `vae_scale_factor` for those of latents.")
        for name, numbers in (("latents_mean", latents_mean), ("latents_std", latents_std)):
            if numbers is not None and not (len(numbers) == in_channels and all(map(math.isfinite, numbers))):
                raise ValueError(f"`{name}` must hold {in_channels} finite numbers, one a channel; got {numbers}.")
        if (latents_mean is None) != (latents_std is None) or not all(std > 0 for std in latents_std or ()):
            raise ValueError(f"`latents_mean` needs a `latents_std` above 0; got {latents_mean} and {latents_std}.")
        super().__init__(**{name: value for name, value in locals().items() if name in PARENT_ARGUMENTS})
        base_channels = block_out_channels[0]
        stem_width = stem_channels if patch_size > 1 else base_channels
        num_groups = math.gcd(norm_num_groups or 32, stem_width)
        time_embed_dim = time_embedding_dim or base_channels * 4

        # The parent's conv_in and conv_out are replaced where ours have other channels.
        stem_inputs = in_channels + (num_classes if mask_conditioning == "concat" else 0)
        if stem_inputs != in_channels or patch_size > 1:
            self.conv_in = nn.Conv2d(stem_inputs, stem_width, kernel_size=3, padding=1)
        if mask_conditioning != "concat":
            self.mask_branch = MaskBranch(num_classes, stem_width, num_groups, norm_eps)
        if patch_size > 1:
            self.conv_patch = nn.Conv2d(
                stem_width, base_channels, kernel_size=2 * patch_size, stride=patch_size, padding=patch_size // 2
            )
            self.patch_head = PatchHead(
                base_channels, stem_width, patch_size, time_embed_dim, dropout, groups=num_groups, eps=norm_eps
            )
            self.conv_out = nn.Conv2d(stem_width, out_channels, kernel_size=3, padding=1)

        if mask_conditioning == "spade":
            lowest = self.size_divisor  # the first up block works on the smallest maps
            blocks = [(block, lowest // 2**number) for number, block in enumerate(self.up_blocks)]
            # Not the patch head: it reads the stem, and so every pixel's own class.
            self.mask_norms = MaskModulation(num_classes, spade_channels, modulate_norms(blocks))

        self._rarities: torch.Tensor | None = None  # no buffer: half precision would change them
        self.gradient_checkpointing = False
        # Conditions beside the plain mask come last and start from zeros: a seed gives the same network with and
        # without them, and weights trained without them load.
        if coordinate_channels:
            self.conv_coordinates = nn.Conv2d(2, stem_width, kernel_size=3, padding=1, bias=False)
            nn.init.zeros_(self.conv_coordinates.weight)
        if mask_pyramid:  # added to a level's input, which has the width of the level above
            self.pyramid_convs = nn.ModuleList(
                nn.Conv2d(num_classes, width, kernel_size=1, bias=False) for width in block_out_channels[:-1]
            )
            for weight in self.pyramid_convs.parameters():
                nn.init.zeros_(weight)
        if attributes:
            self.register_to_config(attributes={name: list(attributes[name]) for name in sorted(attributes)})
            num_values = sum(len(values) for values in attributes.values())
            self.attribute_embedding = nn.Linear(num_values, time_embed_dim, bias=False)
            nn.init.zeros_(self.attribute_embedding.weight)
        if augment_dim:
            self.augment_embedding = nn.Linear(augment_dim, time_embed_dim, bias=False)
            nn.init.zeros_(self.augment_embedding.weight)
        if upscale_factor is not None:
            self.conv_low_res = nn.Conv2d(in_channels, stem_width, kernel_size=3, padding=1, bias=False)
            self.noise_level_embedding = nn.Linear(base_channels, time_embed_dim, bias=False)
            nn.init.zeros_(self.conv_low_res.weight)
            nn.init.zeros_(self.noise_level_embedding.weight)
        if text_embed_dim:  # maps are added to a level's input, which has the width of the level above
            widths = (stem_width, *block_out_channels[:-1])
            self.text_branch = TextBranch(text_embed_dim, time_embed_dim, widths)
        if vae_scale_factor > 1:
            self.strided_branch = StridedMaskBranch(num_classes, stem_width, vae_scale_factor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a network as diffusers does.

        With `ignore_mismatched_sizes=True` and another `num_classes`, weights that read masks are initialised as in a
        new network, and the classes have the names that are passed, or none. `semseg_diffusers.change_classes` keeps
        what the network knows of them.
        """
        if not kwargs.get("ignore_mismatched_sizes"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if "num_classes" in kwargs:
            kwargs = {"id2label": None, "id2color": None, "id2kind": None, **kwargs}
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"low_cpu_mem_usage": False, "output_loading_info": True}
        network, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        weights, initial = network.state_dict(), cls.from_config(network.config).state_dict()
        for name, *_ in info["mismatched_keys"]:  # diffusers leaves them without values
            weights[name].copy_(initial[name])
        return (network, info) if with_info else network

    @property
    def size_divisor(self) -> int:
        """Height and width of a sample must be multiples of this; those of a mask, `vae_scale_factor` times that."""
        return self.config.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the mask alone, once for all steps and all images of it.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, at the sample's resolution, or that times `vae_scale_factor`.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor, ...]`: The `mask_features` of `forward`, batch first: the stem's, then with
            `mask_pyramid` those of each lower level, then with `"spade"` the modulation at each resolution, the
            highest first; with `"concat"` and a `vae_scale_factor`, at last those of the strided branch.

        Raises:
            ValueError: See `mask_to_one_hot`.
        """
        device = self.conv_in.weight.device
        if device.type != "meta":  # where offloaded layer by layer, weights have no device between calls
            mask = mask.to(device)
        one_hot = mask_to_one_hot(mask, self.config.num_classes, dtype or self.dtype)
        factor, concatenates = self.config.vae_scale_factor, self.config.mask_conditioning == "concat"
        details = None
        if factor > 1:
            details = self._run(self.strided_branch, one_hot)  # (B, S, H/factor, W/factor)
            one_hot = F.avg_pool2d(one_hot, factor)  # shares of classes: (B, num_classes, H/factor, W/factor)
        # (B, num_classes, H, W) to concatenate, (B, S, H, W) to add
        features = [one_hot if concatenates else self._run(self.mask_branch, one_hot)]
        if details is not None and not concatenates:
            features = [features[0] + details]
        if self.config.mask_pyramid:
            # PLACE, Lv et al. 2024: the share of each class in a cell, not the id of one of its pixels
            shares = F.avg_pool2d(one_hot, self.config.patch_size) if self.config.patch_size > 1 else one_hot
            for convolution in self.pyramid_convs:
                shares = F.avg_pool2d(shares, 2)  # (B, num_classes, h, w)
                features.append(convolution(shares))  # (B, C_i, h, w)
        if self.config.mask_conditioning == "spade":
            features += self._run(self.mask_norms, one_hot, known_samples(one_hot))  # (B, 2C, h, w) each
        if details is not None and concatenates:
            features.append(details)
        return tuple(features)

    # Texts that reach their regions alone: FreestyleNet, Xue et al. 2023, section 3.2
    def encode_text(
        self,
        text_embeds: torch.Tensor | None = None,
        region_embeds: torch.Tensor | None = None,
        regions: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the texts alone, once for all steps.

        Args:
            text_embeds (`torch.Tensor`, *optional*): (B, text_embed_dim), the embedding of the text about each image;
                zeros where there is none, and None where no image has one.
            region_embeds (`torch.Tensor`, *optional*): (B, K, text_embed_dim), those of the texts about K regions of
                each image.
            regions (`torch.Tensor`, *optional*): (B, H, W) of any signed integer dtype, at the resolution of masks:
                the index of each pixel's text in `region_embeds`, -1 where there is none.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor, ...]`: The `text_features` of `forward`, batch first: what is added to the time
                embedding, then, where there are regions, maps for the stem and for each lower level.

        Raises:
            ValueError: The network reads no texts, or these are of another shape.
        """
        length, dtype = self.config.text_embed_dim, dtype or self.dtype
        if not length:
            raise ValueError("Embeddings of texts were given, but this network has no `text_embed_dim`.")
        given = next((part for part in (text_embeds, region_embeds, regions) if part is not None), None)
        if given is None or (region_embeds is None) != (regions is None):
            raise ValueError("Pass `text_embeds`, or `region_embeds` with `regions`, or all three.")
        batch_size = len(given)
        text_shape = None if text_embeds is None else tuple(text_embeds.shape)
        if text_shape not in (None, (batch_size, length)):
            raise ValueError(f"`text_embeds` must be {batch_size} x {length}; got {text_shape}.")
        device = self.conv_in.weight.device
        device = given.device if device.type == "meta" else device  # as in `encode_mask`
        if text_embeds is None:
            text_embeds = torch.zeros(batch_size, length, device=device)
        shares: list[torch.Tensor] = []
        if region_embeds is not None and regions is not None:
            if region_embeds.ndim != 3 or (region_embeds.shape[0], region_embeds.shape[2]) != (batch_size, length):
                raise ValueError(
                    f"`region_embeds` must be {batch_size} x K x {length}; got {tuple(region_embeds.shape)}."
                )
            if regions.is_floating_point() or regions.ndim != 3 or len(regions) != batch_size:
                raise ValueError(
                    f"`regions` must be integers ({batch_size}, H, W), the index of each pixel's text; got "
                    f"{regions.dtype} of shape {tuple(regions.shape)}."
                )
            numbers = torch.arange(region_embeds.shape[1], device=device).view(1, -1, 1, 1)
            share = (regions.to(device).unsqueeze(1) == numbers).to(dtype)  # (B, K, H, W)
            factor = self.config.vae_scale_factor
            share = F.avg_pool2d(share, factor) if factor > 1 else share
            shares.append(share)
            share = F.avg_pool2d(share, self.config.patch_size) if self.config.patch_size > 1 else share
            for _ in self.config.block_out_channels[1:]:
                share = F.avg_pool2d(share, 2)  # (B, K, h, w)
                shares.append(share)
            region_embeds = region_embeds.to(device, dtype)
        return self.text_branch(text_embeds.to(device, dtype), region_embeds, shares)

    def diffuse_mask(
        self, mask: torch.Tensor, timestep: torch.Tensor | float | int, noise: torch.Tensor
    ) -> torch.Tensor:
        """Return what label diffusion leaves of a mask at a timestep, as in training.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype, 255 is unknown.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,), in 0..num_train_timesteps.
            noise (`torch.Tensor`): (B, H, W), uniform in [0, 1); the same at all steps of an image.

        Returns:
            `torch.Tensor`: Class ids (B, H, W), int64, 255 where a pixel was removed.

        Raises:
            ValueError: The network has no `label_diffusion`, or the mask is no map of ids like the noise.
        """
        if self.config.label_diffusion is None:
            raise ValueError("This network was made without `label_diffusion`: its masks do not change.")
        if mask.is_floating_point() or mask.dtype == torch.bool or mask.ndim != 3 or mask.shape != noise.shape:
            raise ValueError(
                f"Label diffusion takes integer class ids (B, H, W) and noise of the same shape; got {mask.dtype} of "
                f"shape {tuple(mask.shape)} and noise of shape {tuple(noise.shape)}."
            )
        if self._rarities is None or self._rarities.device != mask.device:  # once for all steps of a run
            self._rarities = torch.tensor(self.config.label_diffusion, device=mask.device)  # (num_classes,)
        tau = torch.as_tensor(timestep, dtype=torch.float32) / self.config.num_train_timesteps
        return diffuse_labels(mask, tau, noise, self._rarities)

    def _embed_attributes(self, attributes: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Map indices of values (B, A) to (B, time_embed_dim); unknown ones add nothing."""
        names = list(self.config.attributes or ())
        if not names:
            raise ValueError("`attributes` were given, but this network has none.")
        if attributes.is_floating_point() or attributes.shape != (batch_size, len(names)):
            raise ValueError(
                f"`attributes` must be integers {batch_size} x {len(names)}, the indices of the values of "
                f"{', '.join(names)} (-1: unknown); got {attributes.dtype} of shape {tuple(attributes.shape)}."
            )
        chosen = [
            attributes[:, index : index + 1] == torch.arange(len(values), device=attributes.device)
            for index, values in enumerate(self.config.attributes.values())
        ]
        return self.attribute_embedding(torch.cat(chosen, dim=1).to(self.dtype))

    # EDM, Karras et al. 2022, appendix F.2
    def _embed_augmentation(self, augmentation: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Map augmentation vectors (B, augment_dim) to (B, time_embed_dim)."""
        length = self.config.augment_dim
        if not length:
            raise ValueError("`augmentation` was given, but this network has no `augment_dim`.")
        if augmentation.shape != (batch_size, length):
            raise ValueError(f"`augmentation` must be {batch_size} x {length}; got {tuple(augmentation.shape)}.")
        return self.augment_embedding(augmentation)

    # Cascaded diffusion models, Ho et al. 2022, section 4.2
    def _embed_noise_level(
        self, noise_level: torch.Tensor | int | None, low_res: torch.Tensor | None, sample: torch.Tensor
    ) -> torch.Tensor:
        """Map noise levels of the images to enlarge, a scalar or (B,), to (B, time_embed_dim); None is no noise."""
        if self.config.upscale_factor is None:
            raise ValueError("`low_res` or `noise_level` was given, but this network has no `upscale_factor`.")
        if low_res is None or low_res.shape != sample.shape:
            found = None if low_res is None else tuple(low_res.shape)
            raise ValueError(
                f"This network enlarges images: `low_res` must be these at the size of `sample`, "
                f"{tuple(sample.shape)}; got {found}."
            )
        levels = torch.as_tensor(0 if noise_level is None else noise_level, device=sample.device)
        levels = levels.reshape(-1).expand(len(sample))  # (B,)
        embedding = get_timestep_embedding(levels, self.noise_level_embedding.in_features)
        return self.noise_level_embedding(embedding.to(self.dtype))

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_features: tuple[torch.Tensor, ...] | None = None,
        attributes: torch.Tensor | None = None,
        augmentation: torch.Tensor | None = None,
        low_res: torch.Tensor | None = None,
        noise_level: torch.Tensor | int | None = None,
        text_embeds: torch.Tensor | None = None,
        region_embeds: torch.Tensor | None = None,
        regions: torch.Tensor | None = None,
        text_features: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict noise, velocity or image from a noisy sample and its mask.

        Args:
            sample (`torch.Tensor`): Noisy images (B, in_channels, H, W); H and W are multiples of `size_divisor`.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,).
            class_labels (`torch.Tensor`, *optional*): Class labels (B,), where the network is class-conditional.
            mask (`torch.Tensor`, *optional*): See `encode_mask`; None, or 255 everywhere in a sample: unconditional.
            mask_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_mask`, in place of `mask`.
            attributes (`torch.Tensor`, *optional*): int64 (B, number of attributes), the index of each value in the
                config's list, in the config's order; -1 is unknown. None is unknown throughout.
            augmentation (`torch.Tensor`, *optional*): (B, augment_dim), the augmentation of the images to predict;
                None is none, zeros.
            low_res (`torch.Tensor`, *optional*): (B, in_channels, H, W), the images to enlarge, at the size of the
                sample; required where the network has an `upscale_factor`.
            noise_level (`int` or `torch.Tensor`, *optional*): A scalar or (B,), how much noise was added to them, 0 to
                `max_noise_level`; None is 0.
            text_embeds (`torch.Tensor`, *optional*): See `encode_text`, like the next two; None is no text.
            region_embeds (`torch.Tensor`, *optional*): Embeddings of the texts about regions.
            regions (`torch.Tensor`, *optional*): Which pixels they are about.
            text_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_text`, in place of these.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The prediction (B, out_channels, H, W).

        Raises:
            ValueError: For a size that `size_divisor` does not divide, a mask of another shape, of other ids or given
                twice, class labels, attributes, augmentation, images to enlarge or texts that do not fit the network.
        """
        check_sample(sample, mask, mask_features, self.size_divisor, self.config)
        batch_size, _, height, width = sample.shape
        if mask is not None:
            mask_features = self.encode_mask(mask, dtype=sample.dtype)
        if text_embeds is not None or region_embeds is not None or regions is not None:
            if text_features is not None:
                raise ValueError("Pass embeddings or `text_features`, not both: these are `encode_text` of the first.")
            size = tuple(side * self.config.vae_scale_factor for side in (height, width))
            if regions is not None and tuple(regions.shape[-2:]) != size:
                raise ValueError(f"`regions` must be {size[0]} x {size[1]} like masks; got {tuple(regions.shape)}.")
            text_features = self.encode_text(text_embeds, region_embeds, regions, dtype=sample.dtype)

        # 0. centre the input if necessary
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        # 1. time, class, attributes, augmentation, noise level, text
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(batch_size)  # (B,)
        t_emb = self.time_proj(timesteps).to(dtype=self.dtype)  # (B, time channels)
        emb = self.time_embedding(t_emb)  # (B, time_embed_dim)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("This network is class-conditional: `class_labels` must be given.")
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype=self.dtype)
            emb = emb + self.class_embedding(class_labels).to(dtype=self.dtype)
        elif class_labels is not None:
            raise ValueError("`class_labels` were given, but this network has no class embedding.")
        if attributes is not None:
            emb = emb + self._embed_attributes(attributes, batch_size).to(emb)
        if augmentation is not None:
            emb = emb + self._embed_augmentation(augmentation.to(emb), batch_size)
        if self.config.upscale_factor is not None or low_res is not None or noise_level is not None:
            emb = emb + self._embed_noise_level(noise_level, low_res, sample).to(emb)
        text_maps: tuple[torch.Tensor, ...] = ()
        if text_features is not None:
            emb, text_maps = emb + text_features[0].to(emb), text_features[1:]

        # 2. stem: joins image and mask at full resolution
        skip_sample: torch.Tensor | None = sample
        if self.config.mask_conditioning == "concat":
            if mask_features is None:
                one_hot = sample.new_zeros((batch_size, self.config.num_classes, height, width))
            else:
                one_hot = mask_features[0].to(sample)
            sample = torch.cat([sample, one_hot], dim=1)  # (B, in_channels + num_classes, H, W)
        sample = self.conv_in(sample)  # (B, S, H, W)
        if mask_features is not None and self.config.mask_conditioning != "concat":
            sample = sample + mask_features[0].to(sample)
        elif mask_features is not None and self.config.vae_scale_factor > 1:
            sample = sample + mask_features[-1].to(sample)
        if self.config.coordinate_channels:
            sample = sample + self.conv_coordinates(pixel_coordinates(sample))
        if low_res is not None:
            sample = sample + self.conv_low_res(low_res.to(sample))
        if text_maps:
            sample = sample + text_maps[0].to(sample)
        stem = sample
        if self.config.patch_size > 1:
            sample = self.conv_patch(F.silu(sample))  # (B, C, H/p, W/p)

        # 3. down
        down_block_res_samples: tuple[torch.Tensor, ...] = (sample,)
        for level, block in enumerate(self.down_blocks, start=1):
            if hasattr(block, "skip_conv"):
                sample, res_samples, skip_sample = block(hidden_states=sample, temb=emb, skip_sample=skip_sample)
            else:
                sample, res_samples = block(hidden_states=sample, temb=emb)
            for maps in (mask_features if self.config.mask_pyramid else None, text_maps):
                if maps and level < len(self.down_blocks):
                    sample = sample + maps[level].to(sample)  # (B, C, H/p/2^level, W/p/2^level)
                    res_samples = (*res_samples[:-1], sample)  # the decoder reads it as well
            down_block_res_samples += res_samples

        # 4. mid
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb)

        # 5. up
        temb: torch.Tensor | ModulatedEmbedding = emb
        if self.config.mask_conditioning == "spade" and mask_features is not None:
            maps = mask_features[-len(self.mask_norms.factors) :]
            temb = ModulatedEmbedding(emb, tuple(modulation.to(sample) for modulation in maps))
        skip_sample = None
        for block in self.up_blocks:
            count = len(block.resnets)
            down_block_res_samples, own = down_block_res_samples[:-count], down_block_res_samples[-count:]
            if hasattr(block, "skip_conv"):
                sample, skip_sample = block(sample, own, temb, skip_sample)
            else:
                sample = block(sample, own, temb)

        # 6. head
        sample = self.conv_act(self.conv_norm_out(sample))
        if self.config.patch_size > 1:
            sample = self._run(self.patch_head, sample, stem, emb)  # (B, S, H, W)
        sample = self.conv_out(sample)  # (B, out_channels, H, W)
        if skip_sample is not None:
            sample = sample + skip_sample
        if self.config.time_embedding_type == "fourier":
            sample = sample / timesteps.reshape(batch_size, 1, 1, 1)
        return UNet2DOutput(sample=sample) if return_dict else (sample,)
