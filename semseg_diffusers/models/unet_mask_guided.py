"""A `UNet2DModel` that draws what a segmentation mask says: the mask enters beside the noisy image, in the stem.

Follows "Semantic Segmentation Mask-Guided Diffusion Models" (Bozsó et al., WINS 2024, section III-B): a convolutional
mask branch whose output is added to that of the image's first convolution. This file is self-contained (torch and
diffusers only), so that it can lie beside the weights on the Hub and be run by someone without this package.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in this module's namespace
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import nn


MASK_CONDITIONINGS = ("add", "concat")


def mask_to_one_hot(mask: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Turn a mask into the one-hot map that the network reads.

    Args:
        mask: class ids (B, H, W) of any integer dtype, or one-hot (B, num_classes, H, W), float or bool.
        num_classes: number of classes; an id outside 0..num_classes-1 (255 is "unknown") gives an all-zero vector.
            No value is checked here: that would be a data-dependent branch inside a compiled `forward`.
        dtype: dtype of the result, that of the noisy sample.

    Returns:
        one-hot map (B, num_classes, H, W).

    Raises:
        ValueError: for float ids, another number of dimensions, or another number of channels.
    """
    integer_ids = not (mask.is_floating_point() or mask.dtype == torch.bool)
    if integer_ids and mask.ndim == 3:
        classes = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
        return (mask.long().unsqueeze(1) == classes).to(dtype)  # (B, num_classes, H, W)
    if not integer_ids and mask.ndim == 4 and mask.shape[1] == num_classes:
        return mask.to(dtype)
    raise ValueError(
        f"`mask` must hold integer class ids of shape (B, H, W), or a float or bool one-hot map of shape "
        f"(B, {num_classes}, H, W); got {mask.dtype} of shape {tuple(mask.shape)}. Float ids: call .long()."
    )


class MaskBranch(nn.Module):
    """The paper's second stem: two 3x3 convolutions from the one-hot mask to the width of the image stem (III-B)."""

    def __init__(self, num_classes: int, out_channels: int, norm_num_groups: int, norm_eps: float):
        super().__init__()
        self.conv_1 = nn.Conv2d(num_classes, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(norm_num_groups, out_channels, eps=norm_eps)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.gradient_checkpointing = False

    def _branch(self, one_hot: torch.Tensor) -> torch.Tensor:
        return self.conv_2(F.silu(self.norm(self.conv_1(one_hot))))

    def forward(self, one_hot: torch.Tensor) -> torch.Tensor:
        """(B, num_classes, H, W) -> (B, out_channels, H, W); a sample that is unknown everywhere gives zeros."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            features = self._gradient_checkpointing_func(self._branch, one_hot)
        else:
            features = self._branch(one_hot)
        # Offloading hooks may bring the features, not the mask, to another device.
        known = (one_hot != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1).to(features.device)
        return torch.where(known, features, torch.zeros_like(features))


class PatchHead(nn.Module):
    """The way back from patches to pixels: upsampled maps meet the full-resolution stem in one time-conditioned block.

    A plain pixel-shuffle leaves a patch-sized grid in the pictures; here patches overlap on the way back too, the last
    convolutions see every pixel's own stem features, and the noise itself passes at full resolution.
    """

    def __init__(
        self,
        in_channels: int,
        stem_channels: int,
        patch_size: int,
        temb_channels: int,
        norm_num_groups: int,
        norm_eps: float,
        dropout: float,
    ):
        super().__init__()
        self.conv_unpatch = nn.ConvTranspose2d(
            in_channels, stem_channels, kernel_size=2 * patch_size, stride=patch_size, padding=patch_size // 2
        )
        self.resnet = ResnetBlock2D(
            in_channels=2 * stem_channels,
            out_channels=stem_channels,
            temb_channels=temb_channels,
            groups=norm_num_groups,
            eps=norm_eps,
            dropout=dropout,
        )
        self.norm = nn.GroupNorm(norm_num_groups, stem_channels, eps=norm_eps)
        self.gradient_checkpointing = False

    def _head(self, hidden_states: torch.Tensor, stem: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_unpatch(hidden_states)  # (B, S, H, W)
        hidden_states = self.resnet(torch.cat([hidden_states, stem], dim=1), temb)  # (B, S, H, W)
        return F.silu(self.norm(hidden_states))

    def forward(self, hidden_states: torch.Tensor, stem: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, C, H/p, W/p) and stem (B, S, H, W) -> (B, S, H, W)."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self._head, hidden_states, stem, temb)
        return self._head(hidden_states, stem, temb)


class MaskGuidedUNet2DModel(UNet2DModel):
    r"""A `UNet2DModel` with a mask input: all that its parent can, plus a segmentation mask.

    The first arguments are `UNet2DModel`'s own, in its order and with its meaning. Ours follow.

    Args:
        num_classes (`int`, defaults to 19): classes a mask may hold, ids 0..num_classes-1; 255 means unknown.
        mask_conditioning (`str`, defaults to `"add"`): `"add"` runs the one-hot mask through a convolutional branch
            and adds it to the image stem (the paper's way); `"concat"` joins it to the noisy image's channels.
        patch_size (`int`, defaults to 1): the U-Net works on maps of (H / patch_size, W / patch_size); overlapping
            strided convolution in, full-resolution block out. 2 lets 128 x 128 images cost what 64 x 64 maps cost.
        stem_channels (`int`, defaults to 16): width of the full-resolution stem and head; read where patch_size > 1.
        id2label (`dict`, *optional*): class id -> name, e.g. `{"0": "road"}`; with the next three, the label set.
        id2color (`dict`, *optional*): class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): the id that means unknown.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): the colour that masks show it in.

    Raises:
        ValueError: where the mask settings are not built, or cannot go together.

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
    ):
        if mask_conditioning not in MASK_CONDITIONINGS:
            raise ValueError(f"`mask_conditioning` must be one of {MASK_CONDITIONINGS}; got {mask_conditioning!r}.")
        if not 1 <= num_classes <= 255:
            raise ValueError(f"`num_classes` must be 1 to 255 (255 itself means unknown); got {num_classes}.")
        for name, table in (("id2label", id2label), ("id2color", id2color)):
            if table is not None and sorted(map(str, table)) != sorted(map(str, range(num_classes))):
                raise ValueError(
                    f"`{name}` must name each class 0 to {num_classes - 1} once; got {list(table)}. "
                    f"Set `num_classes={len(table)}`, or give the label set of the data."
                )
        if patch_size < 1:
            raise ValueError(f"`patch_size` must be 1 or more; got {patch_size}.")
        if patch_size > 1 and patch_size % 2:
            raise ValueError(f"`patch_size` must be 1 or even, so that patches overlap evenly; got {patch_size}.")
        if patch_size > 1 and any("Skip" in block for block in (*down_block_types, *up_block_types)):
            raise ValueError("Skip blocks (NCSN++) carry the raw image beside the maps and need `patch_size=1`.")
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=down_block_types,
            mid_block_type=mid_block_type,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        base_channels = block_out_channels[0]
        stem_width = stem_channels if patch_size > 1 else base_channels
        num_groups = math.gcd(norm_num_groups or 32, stem_width)

        # The parent has built its own conv_in and conv_out; they are replaced where ours take other channels.
        stem_inputs = in_channels + (num_classes if mask_conditioning == "concat" else 0)
        if stem_inputs != in_channels or patch_size > 1:
            self.conv_in = nn.Conv2d(stem_inputs, stem_width, kernel_size=3, padding=1)
        if mask_conditioning == "add":
            self.mask_branch = MaskBranch(num_classes, stem_width, num_groups, norm_eps)
        if patch_size > 1:
            self.conv_patch = nn.Conv2d(
                stem_width, base_channels, kernel_size=2 * patch_size, stride=patch_size, padding=patch_size // 2
            )
            self.patch_head = PatchHead(
                in_channels=base_channels,
                stem_channels=stem_width,
                patch_size=patch_size,
                temb_channels=time_embedding_dim or base_channels * 4,
                norm_num_groups=num_groups,
                norm_eps=norm_eps,
                dropout=dropout,
            )
            self.conv_out = nn.Conv2d(stem_width, out_channels, kernel_size=3, padding=1)

    @property
    def size_divisor(self) -> int:
        """Height and width of a sample must be multiples of this many pixels."""
        return self.config.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the mask alone, once for all steps and all images of it.

        Args:
            mask: class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, at the resolution of the sample.
            dtype: dtype of the sample; by default that of the weights.

        Returns:
            tensors with the batch first, to be given to `forward` as `mask_features`.

        Raises:
            ValueError: see `mask_to_one_hot`.
        """
        device = self.conv_in.weight.device
        if device.type != "meta":  # offloaded layer by layer, the weights are nowhere until they are called
            mask = mask.to(device)
        one_hot = mask_to_one_hot(mask, self.config.num_classes, dtype or self.dtype)
        if self.config.mask_conditioning == "concat":
            return (one_hot,)  # (B, num_classes, H, W)
        return (self.mask_branch(one_hot),)  # (B, S, H, W)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_features: tuple[torch.Tensor, ...] | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict noise, velocity or image from a noisy sample and its mask.

        Args:
            sample: noisy images (B, in_channels, H, W); H and W are multiples of `size_divisor`.
            timestep: an int, a float, a 0-d tensor, or a tensor (B,).
            class_labels: class labels (B,), where the network is class-conditional.
            mask: see `encode_mask`. None, or 255 everywhere in a sample, is unconditional.
            mask_features: the result of `encode_mask`, in place of `mask`.
            return_dict: an `UNet2DOutput` if true, else a tuple.

        Returns:
            prediction (B, out_channels, H, W).

        Raises:
            ValueError: for a size that `size_divisor` does not divide, both or badly shaped masks, or class labels
                where they are not wanted or missing.
        """
        batch_size, _, height, width = sample.shape
        if height % self.size_divisor or width % self.size_divisor:
            raise ValueError(
                f"Height and width of `sample` must be multiples of {self.size_divisor}; got {height} x {width}."
            )
        if mask is not None and mask_features is not None:
            raise ValueError("Give `mask` or `mask_features`, not both: the second is `encode_mask` of the first.")
        if mask is not None:
            if mask.shape[0] != batch_size or mask.shape[-2:] != sample.shape[-2:]:
                raise ValueError(
                    f"`mask` must be {batch_size} of {height} x {width} like `sample`; got {tuple(mask.shape)}. "
                    f"Resize it (nearest), and repeat it for each sample."
                )
            mask_features = self.encode_mask(mask, dtype=sample.dtype)

        # 0. centre input if necessary
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        # 1. time and class
        timesteps = timestep
        if not torch.is_tensor(timesteps):
            dtype = torch.float32 if isinstance(timesteps, float) else torch.long
            timesteps = torch.tensor([timesteps], dtype=dtype, device=sample.device)
        elif timesteps.ndim == 0:
            timesteps = timesteps[None].to(sample.device)
        timesteps = timesteps * torch.ones(batch_size, dtype=timesteps.dtype, device=timesteps.device)  # (B,)
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype=self.dtype))  # (B, time_embed_dim)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("This network is class-conditional: `class_labels` must be given.")
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype=self.dtype)
            emb = emb + self.class_embedding(class_labels).to(dtype=self.dtype)
        elif class_labels is not None:
            raise ValueError("`class_labels` were given, but this network has no class embedding.")

        # 2. stem: image and mask meet at full resolution
        skip_sample = sample
        if self.config.mask_conditioning == "concat":
            if mask_features is None:
                one_hot = sample.new_zeros((batch_size, self.config.num_classes, height, width))
            else:
                one_hot = mask_features[0].to(sample)
            sample = torch.cat([sample, one_hot], dim=1)  # (B, in_channels + num_classes, H, W)
        sample = self.conv_in(sample)  # (B, S, H, W)
        if self.config.mask_conditioning == "add" and mask_features is not None:
            sample = sample + mask_features[0].to(sample)
        stem = sample
        if self.config.patch_size > 1:
            sample = self.conv_patch(F.silu(sample))  # (B, C, H/p, W/p)

        # 3. down
        down_block_res_samples = (sample,)
        for downsample_block in self.down_blocks:
            if hasattr(downsample_block, "skip_conv"):
                sample, res_samples, skip_sample = downsample_block(
                    hidden_states=sample, temb=emb, skip_sample=skip_sample
                )
            else:
                sample, res_samples = downsample_block(hidden_states=sample, temb=emb)
            down_block_res_samples += res_samples

        # 4. mid
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb)

        # 5. up
        skip_sample = None
        for upsample_block in self.up_blocks:
            res_samples = down_block_res_samples[-len(upsample_block.resnets) :]
            down_block_res_samples = down_block_res_samples[: -len(upsample_block.resnets)]
            if hasattr(upsample_block, "skip_conv"):
                sample, skip_sample = upsample_block(sample, res_samples, emb, skip_sample)
            else:
                sample = upsample_block(sample, res_samples, emb)

        # 6. head
        sample = self.conv_act(self.conv_norm_out(sample))
        if self.config.patch_size > 1:
            sample = self.patch_head(sample, stem, emb)  # (B, S, H, W)
        sample = self.conv_out(sample)  # (B, out_channels, H, W)
        if skip_sample is not None:
            sample = sample + skip_sample
        if self.config.time_embedding_type == "fourier":
            sample = sample / timesteps.reshape(batch_size, 1, 1, 1)

        if not return_dict:
            return (sample,)
        return UNet2DOutput(sample=sample)
