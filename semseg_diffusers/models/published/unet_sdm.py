"""The network of the Semantic Diffusion Model: the mask modulates every norm of the decoder, at every resolution.

Follows "Semantic Image Synthesis via Diffusion Models" (Wang et al. 2022, arXiv 2207.00050, section 3.2) and the
authors' published network, whose state dict loads here by name; its parts are those of guided-diffusion (Dhariwal and
Nichol 2021) and SPADE (Park et al. 2019). This file is self-contained (torch and diffusers only): it is saved beside
the weights and runs without this package.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


NORM_NUM_GROUPS = 32
MODULATION_HIDDEN_CHANNELS = 128


# Copied from semseg_diffusers.models.unet_mask_guided.check_label_set
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


# Copied from semseg_diffusers.models.unet_mask_guided.check_sample
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


# Copied from semseg_diffusers.models.unet_mask_guided.mask_to_one_hot with mask.to(dtype)->mask.to(dtype).contiguous()
def mask_to_one_hot(mask: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Convert class ids (B, H, W) of any integer dtype, or a float or bool one-hot map, to (B, num_classes, H, W)."""
    integer_ids = not (mask.is_floating_point() or mask.dtype == torch.bool)
    if integer_ids and mask.ndim == 3:  # other ids become zeros: checking values would break compiled code
        classes = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
        return (mask.long().unsqueeze(1) == classes).to(dtype)  # (B, num_classes, H, W)
    if not integer_ids and mask.ndim == 4 and mask.shape[1] == num_classes:
        return mask.to(dtype).contiguous()
    raise ValueError(
        f"`mask` must hold integer class ids of shape (B, H, W), or a float or bool one-hot map of shape "
        f"(B, {num_classes}, H, W); got {mask.dtype} of shape {tuple(mask.shape)}. Float ids: call .long()."
    )


def instance_edges(instances: torch.Tensor) -> torch.Tensor:
    """Mark pixels of ids (B, H, W), or one-hot (B, C, H, W), unlike one of 4 neighbours; returns (B, 1, H, W) bool."""
    ids = instances.unsqueeze(1) if instances.ndim == 3 else instances  # (B, C, H, W)
    across = (ids[..., :, 1:] != ids[..., :, :-1]).any(dim=1, keepdim=True)  # (B, 1, H, W-1)
    down = (ids[..., 1:, :] != ids[..., :-1, :]).any(dim=1, keepdim=True)  # (B, 1, H-1, W)
    return F.pad(across, (1, 0)) | F.pad(across, (0, 1)) | F.pad(down, (0, 0, 1, 0)) | F.pad(down, (0, 0, 0, 1))


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """Return cosines, then sines, of timesteps (B,) at falling frequencies, (B, dim)."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    frequencies = torch.exp(-math.log(10000) * exponents)  # (dim/2,)
    angles = timesteps[:, None].float() * frequencies  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ModulatedNorm(nn.Module):
    """A group norm whose scale and shift of every pixel come from the mask (SPADE, eq. 1)."""

    def __init__(self, channels: int, mask_channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(NORM_NUM_GROUPS, channels, affine=False)
        self.mlp_shared = nn.Sequential(
            nn.Conv2d(mask_channels, MODULATION_HIDDEN_CHANNELS, kernel_size=3, padding=1), nn.ReLU()
        )
        self.mlp_gamma = nn.Conv2d(MODULATION_HIDDEN_CHANNELS, channels, kernel_size=3, padding=1)
        self.mlp_beta = nn.Conv2d(MODULATION_HIDDEN_CHANNELS, channels, kernel_size=3, padding=1)

    def modulation(self, one_hot: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Map a mask (B, mask_channels, H, W) to gamma and beta (B, 2 * channels, height, width)."""
        one_hot = F.interpolate(one_hot, size=(height, width), mode="nearest")
        shared = self.mlp_shared(one_hot)  # (B, 128, height, width)
        return torch.cat([self.mlp_gamma(shared), self.mlp_beta(shared)], dim=1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, encoded: bool) -> torch.Tensor:
        """Map (B, channels, H, W) to the same shape, by the modulation if `encoded`, else by the one-hot mask."""
        if not encoded:
            condition = self.modulation(condition, *x.shape[-2:])
        gamma, beta = condition.chunk(2, dim=1)  # (B, channels, H, W) each
        return self.norm(x) * (1 + gamma) + beta


class ResBlock(nn.Module):
    """Two convolutions with plain norms, the second scaled and shifted by the time. `down` halves the map between."""

    num_modulations = 0

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, dropout: float, down: bool = False):
        super().__init__()
        self.down = down
        self.in_layers = nn.Sequential(
            nn.GroupNorm(NORM_NUM_GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(NORM_NUM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = skip_connection(in_channels, out_channels)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) and time (B, emb_dim) to (B, out_channels, H, W), or half of H and W."""
        norm, activation, convolution = self.in_layers
        hidden = activation(norm(x))
        if self.down:
            hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)  # (B, in_channels, H/2, W/2)
        hidden = convolution(hidden)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        norm, activation, dropout, convolution = self.out_layers
        hidden = activation(norm(hidden) * (1 + scale) + shift)
        return self.skip_connection(x) + convolution(dropout(hidden))


class ModulatedResBlock(nn.Module):
    """A `ResBlock` whose two norms are modulated by the mask. `up` doubles the map between."""

    num_modulations = 2

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, dropout: float, mask_channels: int, up: bool = False
    ):
        super().__init__()
        self.up = up
        self.in_norm = ModulatedNorm(in_channels, mask_channels)
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, 2 * out_channels))
        self.out_norm = ModulatedNorm(out_channels, mask_channels)
        self.out_layers = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = skip_connection(in_channels, out_channels)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, in_condition, out_condition, encoded: bool) -> torch.Tensor:
        """Map (B, in_channels, H, W) and time (B, emb_dim) to (B, out_channels, H, W), or twice H and W."""
        activation, convolution = self.in_layers
        hidden = activation(self.in_norm(x, in_condition, encoded))
        if self.up:
            hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")  # (B, in_channels, 2H, 2W)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        hidden = convolution(hidden)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)  # (B, out_channels, 1, 1) each
        hidden = self.out_norm(hidden, out_condition, encoded) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers(hidden)


def skip_connection(in_channels: int, out_channels: int) -> nn.Module:
    """Return an identity, or a 1x1 convolution where the number of channels changes."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, kernel_size=1)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels; query, key and value are adjacent within each head."""

    num_modulations = 0

    def __init__(self, channels: int, num_head_channels: int):
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.norm = nn.GroupNorm(NORM_NUM_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, kernel_size=1)
        self.proj_out = nn.Conv1d(channels, channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to the same shape."""
        tokens = x.flatten(2)  # (B, C, H*W)
        qkv = self.qkv(self.norm(tokens)).unflatten(1, (self.num_heads, -1))  # (B, heads, 3C/heads, H*W)
        query, key, value = qkv.transpose(-1, -2).chunk(3, dim=-1)  # (B, heads, H*W, C/heads) each
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.proj_out(attended.transpose(-1, -2).flatten(1, 2))
        return tokens.unflatten(2, x.shape[-2:])  # (B, C, H, W)


class Stage(nn.Sequential):
    """One entry of the authors' lists of blocks: residual blocks and attention, each called with its own inputs."""

    @property
    def num_modulations(self) -> int:
        """Number of norms that the mask modulates."""
        return sum(getattr(layer, "num_modulations", 0) for layer in self)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, emb: torch.Tensor, encoded: bool, *conditions: torch.Tensor
    ) -> torch.Tensor:
        """Apply all layers to (B, C, H, W), with time (B, emb_dim) and a condition for each modulated norm."""
        rest = list(conditions)
        for layer in self:
            if isinstance(layer, ModulatedResBlock):
                x = layer(x, emb, rest.pop(0), rest.pop(0), encoded)
            elif isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x)
        return x


class SDMUNet2DModel(ModelMixin, ConfigMixin):
    r"""The Semantic Diffusion Model's network: the image enters the encoder, the mask every norm of the decoder.

    Args:
        sample_size (`int` or `tuple[int, int]`, defaults to 256): Height and width of the training images; any
            multiples of `size_divisor` can be generated.
        in_channels (`int`, defaults to 3): Channels of the noisy sample.
        out_channels (`int`, defaults to 6): Channels of the prediction; twice `in_channels` where the variance is
            learned too (`variance_type="learned_range"` of diffusers' `DDPMScheduler`).
        num_classes (`int`, defaults to 19): Number of classes of masks, ids 0..num_classes-1; 255 is unknown.
        model_channels (`int`, defaults to 256): Base width, even; the time embedding is four times as wide.
        channel_mult (`tuple[float, ...]`, defaults to `(1, 1, 2, 2, 4, 4)`): Width of each level over
            `model_channels`; every width is a multiple of 32.
        num_res_blocks (`int`, defaults to 2): Residual blocks of a level in the encoder; one more in the decoder.
        attention_resolutions (`tuple[int, ...]`, defaults to `(8, 16, 32)`): Maps reduced by these factors have
            attention. (The authors' command line takes sides of maps instead: 32, 16, 8 of 256.)
        num_head_channels (`int`, defaults to 64): Width of an attention head; divides the widths that have attention.
        dropout (`float`, defaults to 0.0): Dropout inside the residual blocks, 0 to 1.
        instance_edges (`bool`, defaults to `False`): Whether one more channel of the mask holds the edges between
            instances; see `with_instances`. Without instances, the borders of the classes are the edges.
        id2label (`dict`, *optional*): Class id -> name, e.g. `{"0": "road"}`; with the next three, the label set.
        id2color (`dict`, *optional*): Class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
        id2kind (`dict`, *optional*): Class id -> what it is in a street, e.g. `"car"`, where its name does not say.

    Raises:
        ValueError: For widths that groups or heads do not divide, or a label set of another size.

    Example:
    ```py
    >>> import torch
    >>> from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
    >>> unet = SDMUNet2DModel(
    ...     sample_size=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,),
    ...     num_head_channels=16,
    ... )
    >>> mask = torch.randint(0, 19, (1, 32, 32))
    >>> unet(torch.randn(1, 3, 32, 32), 10, mask=mask).sample.shape
    torch.Size([1, 6, 32, 32])
    ```
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 256,
        in_channels: int = 3,
        out_channels: int = 6,
        num_classes: int = 19,
        model_channels: int = 256,
        channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (8, 16, 32),
        num_head_channels: int = 64,
        dropout: float = 0.0,
        instance_edges: bool = False,
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        id2kind: dict | None = None,
    ):
        super().__init__()
        widths = [round(factor * model_channels) for factor in channel_mult]
        if not widths or model_channels % 2 or any(width < 1 or width % NORM_NUM_GROUPS for width in widths):
            raise ValueError(
                f"every width must be a multiple of {NORM_NUM_GROUPS}, the groups of the norms, and `model_channels` "
                f"even; got `model_channels` {model_channels} and the widths {widths}."
            )
        if num_res_blocks < 1:
            raise ValueError(f"`num_res_blocks` must be 1 or more; got {num_res_blocks}.")
        # The middle block has attention whatever `attention_resolutions` says.
        attentive = [width for level, width in enumerate(widths) if 2**level in attention_resolutions] + widths[-1:]
        if num_head_channels < 1 or any(width % num_head_channels for width in attentive):
            raise ValueError(
                f"`num_head_channels` must divide the widths that have attention, {attentive}; got "
                f"{num_head_channels}."
            )
        check_label_set(num_classes, id2label, id2color)
        emb_dim = 4 * model_channels
        mask_channels = num_classes + int(instance_edges)

        # The names are those of the authors' state dict.
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        channels = widths[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))])
        skip_channels = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [ResBlock(channels, width, emb_dim, dropout)]
                if 2**level in attention_resolutions:
                    layers.append(AttentionBlock(width, num_head_channels))
                self.input_blocks.append(Stage(*layers))
                channels = width
                skip_channels.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(ResBlock(channels, channels, emb_dim, dropout, down=True)))
                skip_channels.append(channels)
        self.middle_block = Stage(
            ModulatedResBlock(channels, channels, emb_dim, dropout, mask_channels),
            AttentionBlock(channels, num_head_channels),
            ModulatedResBlock(channels, channels, emb_dim, dropout, mask_channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [ModulatedResBlock(channels + skip_channels.pop(), width, emb_dim, dropout, mask_channels)]
                if 2**level in attention_resolutions:
                    layers.append(AttentionBlock(width, num_head_channels))
                if level > 0 and i == num_res_blocks:
                    layers.append(ModulatedResBlock(width, width, emb_dim, dropout, mask_channels, up=True))
                self.output_blocks.append(Stage(*layers))
                channels = width
        self.out = nn.Sequential(
            nn.GroupNorm(NORM_NUM_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
        )
        # The output of every residual branch starts as zero, as the authors train it.
        last = [self.out[-1]]
        last += [part.out_layers[-1] for part in self.modules() if isinstance(part, (ResBlock, ModulatedResBlock))]
        last += [part.proj_out for part in self.modules() if isinstance(part, AttentionBlock)]
        for layer in last:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.gradient_checkpointing = False
        self.modulation_cache = True

    @classmethod
    # Copied from semseg_diffusers.models.unet_mask_guided.MaskGuidedUNet2DModel.from_pretrained
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
        """Height and width of a sample must be multiples of this many pixels: one halving between two levels."""
        return 2 ** (len(self.config.channel_mult) - 1)

    def enable_modulation_cache(self) -> None:
        """Make `encode_mask` compute the modulation of every norm, once for all steps: the default."""
        self.modulation_cache = True

    def disable_modulation_cache(self) -> None:
        """Make `encode_mask` return the one-hot map alone, so that each step computes its modulation.

        Slower, like the authors' own code, but it saves memory: at the default widths the modulation of one mask of
        256 x 256 pixels takes 2.0 GB in float32.
        """
        self.modulation_cache = False

    def with_instances(self, mask: torch.Tensor, instances: torch.Tensor) -> torch.Tensor:
        """Add the edges between instances to a mask, for a network with `instance_edges`.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype, or one-hot (B, num_classes, H, W).
            instances (`torch.Tensor`): Instance ids (B, H, W) of any integer dtype, such as Cityscapes' `instanceIds`;
                neighbouring objects have different ids, pixels of no instance may have any common one.

        Returns:
            `torch.Tensor`: Float map (B, num_classes + 1, H, W), to be passed as `mask`.

        Raises:
            ValueError: For a network without `instance_edges`, or instances of another shape.
        """
        if not self.config.instance_edges:
            raise ValueError(
                "`instances` were given, but this network has no channel for their edges (instance_edges)."
            )
        one_hot = mask_to_one_hot(mask, self.config.num_classes, self.dtype)  # (B, num_classes, H, W)
        if instances.shape != one_hot[:, 0].shape or instances.is_floating_point() or instances.dtype == torch.bool:
            raise ValueError(
                f"`instances` must hold integer ids of shape {tuple(one_hot[:, 0].shape)} like `mask`; got "
                f"{instances.dtype} of shape {tuple(instances.shape)}."
            )
        return self._join_edges(one_hot, instance_edges(instances.to(one_hot.device)))

    def _join_edges(self, one_hot: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Join (B, num_classes, H, W) and (B, 1, H, W); a sample that is unknown everywhere gets no edges."""
        known = (one_hot != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1)
        return torch.cat([one_hot, (edges & known).to(one_hot.dtype)], dim=1)  # (B, num_classes + 1, H, W)

    def _mask_map(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the one-hot map, with edges where the network takes them, (B, mask channels, H, W)."""
        num_classes = self.config.num_classes
        if not self.config.instance_edges:
            return mask_to_one_hot(mask, num_classes, dtype)
        if mask.ndim == 4 and mask.shape[1] == num_classes + 1:
            return mask.to(dtype).contiguous()  # from `with_instances`
        one_hot = mask_to_one_hot(mask, num_classes, dtype)
        return self._join_edges(one_hot, instance_edges(one_hot))

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the mask alone, once for all steps and all images of it.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, or the result of `with_instances`, at the sample's
                resolution.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor, ...]`: The `mask_features` of `forward`: scale and shift (B, 2 * channels, h, w) of
            every modulated norm; after `disable_modulation_cache` the one-hot map alone.

        Raises:
            ValueError: See `mask_to_one_hot`.
        """
        if self.device.type != "meta":  # where offloaded layer by layer, weights have no device between calls
            mask = mask.to(self.device)
        mask_map = self._mask_map(mask, dtype or self.dtype)  # (B, mask channels, H, W)
        if not self.modulation_cache:
            return (mask_map,)
        features, (height, width) = [], (side // self.size_divisor for side in mask_map.shape[-2:])
        layers = (layer for stage in (self.middle_block, *self.output_blocks) for layer in stage)
        for layer in layers:
            if isinstance(layer, ModulatedResBlock):
                features.append(layer.in_norm.modulation(mask_map, height, width))
                height, width = (2 * height, 2 * width) if layer.up else (height, width)
                features.append(layer.out_norm.modulation(mask_map, height, width))
        return tuple(features)

    def _run(self, block: nn.Module, *inputs) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_features: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict the noise in a sample, and its variance where that is learned.

        Args:
            sample (`torch.Tensor`): Noisy images (B, in_channels, H, W); H and W are multiples of `size_divisor`.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,).
            class_labels (`torch.Tensor`, *optional*): Refused; the argument is where `UNet2DModel` has it.
            mask (`torch.Tensor`, *optional*): See `encode_mask`. None, or 255 everywhere in a sample, is
                unconditional: the all-zero map.
            mask_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_mask`, in place of `mask`.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The prediction (B, out_channels, H, W): noise, then where it is learned the
            variance, interpolated between the smallest and the largest, -1 to 1.

        Raises:
            ValueError: For a size that `size_divisor` does not divide, a mask of another shape or given twice, or
                class labels.
        """
        check_sample(sample, mask, mask_features, self.size_divisor, self.config)
        if class_labels is not None:
            raise ValueError("`class_labels` were given, but SDM's network has no class embedding.")
        batch_size, _, height, width = sample.shape
        if mask is None and mask_features is None:
            mask = torch.full((batch_size, height, width), 255, device=sample.device)
        if mask is not None:  # not `encode_mask`: gradient checkpointing computes each norm's modulation again
            mask_features = (self._mask_map(mask.to(sample.device), sample.dtype),)
        assert mask_features is not None
        encoded = len(mask_features) > 1
        conditions = [feature.to(sample.dtype) for feature in mask_features]

        # 1. time
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(batch_size)  # (B,)
        emb = timestep_embedding(timesteps, self.config.model_channels).to(sample.dtype)
        emb = self.time_embed(emb)  # (B, 4 * model_channels)

        # 2. down: the sample alone
        skips = []
        for stage in self.input_blocks:
            sample = self._run(stage, sample, emb, encoded)  # (B, widths[level], H / 2^level, W / 2^level)
            skips.append(sample)

        # 3. middle and up: the mask modulates every norm
        for stage in (self.middle_block, *self.output_blocks):
            if stage is not self.middle_block:
                sample = torch.cat([sample, skips.pop()], dim=1)
            count = stage.num_modulations
            own = conditions[:count] if encoded else conditions * count
            conditions = conditions[count:] if encoded else conditions
            sample = self._run(stage, sample, emb, encoded, *own)

        # 4. head
        sample = self.out(sample)  # (B, out_channels, H, W)
        return UNet2DOutput(sample=sample) if return_dict else (sample,)
