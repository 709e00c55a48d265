"""The network and the noise schedule of the paper, parameter for parameter: 90,816,131 of them at the defaults.

Follows "Semantic Segmentation Mask-Guided Diffusion Models" (Bozsó et al., WINS 2024, section III-B) and the authors'
published network, whose state dict loads here by name. This file is self-contained (torch and diffusers only): it is
saved beside the weights and runs without this package.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


BETA_START, BETA_END = 1e-4, 0.02
NUM_ATTENTION_HEADS = 4


def paper_betas(num_train_timesteps: int = 1000) -> list[float]:
    """Return the paper's noise schedule: betas rise along half a cosine from 1e-4 to 0.02.

    Not the "cosine schedule" of Nichol and Dhariwal 2021. The authors sample with
    `DDPMScheduler(num_train_timesteps=..., trained_betas=paper_betas(...), variance_type="fixed_large",
    clip_sample=False)`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): Number of diffusion steps, 2 or more.

    Returns:
        `list[float]`: One beta a step, the least noisy first; floats, so that a scheduler can save them.

    Raises:
        ValueError: For fewer than 2 steps.

    Example:
    ```py
    >>> from semseg_diffusers.models.published.unet_paper import paper_betas
    >>> [round(beta, 4) for beta in paper_betas(3)]
    [0.0001, 0.01, 0.02]
    ```
    """
    if num_train_timesteps < 2:
        raise ValueError(f"`num_train_timesteps` must be 2 or more; got {num_train_timesteps}.")
    # In float32 as the authors: rounding adds up in the product of a thousand alphas.
    ramp = torch.arange(num_train_timesteps, dtype=torch.float32) / (num_train_timesteps - 1)
    betas = BETA_START + (BETA_END - BETA_START) * (1 + torch.cos(math.pi * (1 - ramp))) / 2
    return betas.tolist()


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


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with a norm over the full map, and a residual connection where `residual`."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None, residual: bool = False):
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, mid_channels),
            nn.GELU(),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return F.gelu(x + self.double_conv(x)) if self.residual else self.double_conv(x)


class Down(nn.Module):
    """Downsample the map, convolve, and add the time to every pixel."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2), DoubleConv(in_channels, in_channels, residual=True), DoubleConv(in_channels, out_channels)
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, H, W) and time (B, emb_dim) to (B, out_channels, H/2, W/2)."""
        return self.maxpool_conv(x) + self.emb_layer(emb)[:, :, None, None]


class Up(nn.Module):
    """Upsample the map, concatenate the skip connection, convolve, and add the time to every pixel."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int):
        super().__init__()
        self.conv = nn.Sequential(
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels, mid_channels=in_channels // 2),
        )
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))

    def forward(self, x: torch.Tensor, skip: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H/2, W/2), skip (B, in_channels - C, H, W) and time (B, emb_dim) to (B, out_channels, H, W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)  # (B, C, H, W)
        x = self.conv(torch.cat([skip, x], dim=1))  # (B, out_channels, H, W)
        return x + self.emb_layer(emb)[:, :, None, None]


class MultiHeadAttention(nn.Module):
    """`nn.MultiheadAttention`; PyTorch's own does not call `out_proj`, as layer-wise casting and offloading need."""

    def __init__(self, channels: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (B, N, channels) to the same shape."""
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3C)
        qkv = qkv.unflatten(-1, (3, NUM_ATTENTION_HEADS, -1))  # (B, N, 3, heads, C/heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, C/heads)
        tokens = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(tokens.transpose(1, 2).flatten(2))  # (B, N, C)


class SelfAttention(nn.Module):
    """Self-attention over all pixels and a two-layer network, each with a norm first and a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.mha = MultiHeadAttention(channels)
        self.ln = nn.LayerNorm(channels)
        self.ff_self = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to the same shape."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        tokens = tokens + self.mha(self.ln(tokens))
        tokens = tokens + self.ff_self(tokens)
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, C, H, W)


class PaperUNet2DModel(ModelMixin, ConfigMixin):
    r"""The paper's network: a U-Net with two attention blocks, and the mask in a second stem whose output is added.

    Args:
        sample_size (`int` or `tuple[int, int]`, defaults to 128): Height and width of the training images; any
            multiples of 8 can be generated.
        in_channels (`int`, defaults to 3): Channels of the noisy sample.
        out_channels (`int`, defaults to 3): Channels of the prediction.
        num_classes (`int`, defaults to 19): Number of classes of masks, ids 0..num_classes-1; 255 is unknown.
        hidden_dim (`int`, defaults to 128): Width at full resolution, even; the bottom is 8 times as wide.
        emb_dim (`int`, defaults to 256): Width of the time embedding, even.
        id2label (`dict`, *optional*): Class id -> name, e.g. `{"0": "road"}`; with the next three, the label set.
        id2color (`dict`, *optional*): Class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
        id2kind (`dict`, *optional*): Class id -> what it is in a street, e.g. `"car"`, where its name does not say.

    Raises:
        ValueError: For odd widths, or a label set of another size.

    Example:
    ```py
    >>> import torch
    >>> from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
    >>> unet = PaperUNet2DModel(sample_size=32, num_classes=19, hidden_dim=8)
    >>> mask = torch.randint(0, 19, (1, 32, 32))
    >>> unet(torch.randn(1, 3, 32, 32), 10, mask=mask).sample.shape
    torch.Size([1, 3, 32, 32])
    ```
    """

    _supports_gradient_checkpointing = True
    # Casting changes convolutions and linear layers only; the norms inside `double_conv` are neither.
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 128,
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int = 19,
        hidden_dim: int = 128,
        emb_dim: int = 256,
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        id2kind: dict | None = None,
    ):
        super().__init__()
        if hidden_dim < 2 or hidden_dim % 2:
            raise ValueError(
                f"`hidden_dim` must be even, for {NUM_ATTENTION_HEADS} attention heads; got {hidden_dim}."
            )
        if emb_dim < 2 or emb_dim % 2:
            raise ValueError(f"`emb_dim` must be even, half sines and half cosines; got {emb_dim}.")
        check_label_set(num_classes, id2label, id2color)
        width = hidden_dim

        # The names are those of the authors' state dict.
        self.inc = DoubleConv(in_channels, width)
        self.mask_conv = DoubleConv(num_classes, width)
        self.down1 = Down(width, 2 * width, emb_dim)
        self.down2 = Down(2 * width, 4 * width, emb_dim)
        self.down3 = Down(4 * width, 4 * width, emb_dim)
        self.sa3 = SelfAttention(4 * width)
        self.bot1 = DoubleConv(4 * width, 8 * width)
        self.bot2 = DoubleConv(8 * width, 8 * width)
        self.bot3 = DoubleConv(8 * width, 4 * width)
        self.up1 = Up(8 * width, 2 * width, emb_dim)
        self.sa4 = SelfAttention(2 * width)
        self.up2 = Up(4 * width, width, emb_dim)
        self.up3 = Up(2 * width, width, emb_dim)
        self.outc = nn.Conv2d(width, out_channels, kernel_size=1)
        self.gradient_checkpointing = False

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
        """Height and width of a sample must be multiples of this many pixels: three halvings."""
        return 8

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the mask alone, once for all steps and all images of it.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, at the sample's resolution.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor]`: The `mask_features` of `forward`: the output of the mask's stem
            (B, hidden_dim, H, W), zeros for a sample whose mask is unknown everywhere.

        Raises:
            ValueError: See `mask_to_one_hot`.
        """
        if self.device.type != "meta":  # where offloaded layer by layer, weights have no device between calls
            mask = mask.to(self.device)
        one_hot = mask_to_one_hot(mask, self.config.num_classes, dtype or self.dtype)  # (B, num_classes, H, W)
        features = self._run(self.mask_conv, one_hot)  # (B, hidden_dim, H, W)
        known = (one_hot != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1)
        return (torch.where(known, features, torch.zeros_like(features)),)

    def _time_embedding(self, timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
        """Return sines, then cosines, of the timestep at falling frequencies (Vaswani et al. 2017, section 3.5)."""
        even = torch.arange(0, self.config.emb_dim, 2, dtype=torch.float32, device=sample.device)
        # In the authors' order: at timestep 1000 another order of the powers changes the sines by 6e-5.
        inverse_frequencies = 1.0 / (10000.0 ** (even / self.config.emb_dim))  # (emb_dim/2,)
        timesteps = torch.as_tensor(timestep, device=sample.device).to(torch.float32).reshape(-1, 1)
        angles = timesteps.expand(sample.shape[0], 1) * inverse_frequencies  # (B, emb_dim/2)
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(sample.dtype)  # (B, emb_dim)

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
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
        """Predict the noise in a sample from the sample, its timestep and its mask.

        Args:
            sample (`torch.Tensor`): Noisy images (B, in_channels, H, W); H and W are multiples of 8.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,).
            class_labels (`torch.Tensor`, *optional*): Refused; the argument is where `UNet2DModel` has it.
            mask (`torch.Tensor`, *optional*): See `encode_mask`. None, or 255 everywhere in a sample, is
                unconditional.
            mask_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_mask`, in place of `mask`.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The prediction (B, out_channels, H, W).

        Raises:
            ValueError: For a size that 8 does not divide, a mask of another shape or given twice, or class labels.
        """
        check_sample(sample, mask, mask_features, self.size_divisor, self.config)
        if class_labels is not None:
            raise ValueError("`class_labels` were given, but the paper's network has no class embedding.")
        if mask is not None:
            mask_features = self.encode_mask(mask, dtype=sample.dtype)

        # 1. time
        emb = self._time_embedding(timestep, sample)  # (B, emb_dim)

        # 2. stem: joins image and mask at full resolution
        x1 = self._run(self.inc, sample)  # (B, h, H, W)
        if mask_features is not None:
            x1 = x1 + mask_features[0].to(x1.dtype)

        # 3. down
        x2 = self._run(self.down1, x1, emb)  # (B, 2h, H/2, W/2)
        x3 = self._run(self.down2, x2, emb)  # (B, 4h, H/4, W/4)
        x4 = self._run(self.down3, x3, emb)  # (B, 4h, H/8, W/8)
        x4 = self._run(self.sa3, x4)

        # 4. bottom
        x4 = self._run(self.bot1, x4)  # (B, 8h, H/8, W/8)
        x4 = self._run(self.bot2, x4)
        x4 = self._run(self.bot3, x4)  # (B, 4h, H/8, W/8)

        # 5. up
        x = self._run(self.up1, x4, x3, emb)  # (B, 2h, H/4, W/4)
        x = self._run(self.sa4, x)
        x = self._run(self.up2, x, x2, emb)  # (B, h, H/2, W/2)
        x = self._run(self.up3, x, x1, emb)  # (B, h, H, W)

        # 6. head
        x = self.outc(x)  # (B, out_channels, H, W)
        return UNet2DOutput(sample=x) if return_dict else (x,)
