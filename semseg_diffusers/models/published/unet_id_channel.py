"""A `UNet2DModel` that reads the mask as one more input channel, class id / 255, as Konz et al. train it.

Follows "Anatomically-Controllable Medical Image Generation with Segmentation-Guided Diffusion Models" (Konz et al.,
MICCAI 2024) and the authors' published code, so that their checkpoints run here. For new networks use
`MaskGuidedUNet2DModel`: ids are no quantities, and here class 3 is between 2 and 4. This file is self-contained (torch
and diffusers only): it is saved beside the weights and runs without this package.
"""

import inspect

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in this module's namespace
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import nn


PARENT_ARGUMENTS = tuple(inspect.signature(UNet2DModel.__init__).parameters)[1:]


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


class IdChannelUNet2DModel(UNet2DModel):
    r"""A `UNet2DModel` whose input is the noisy image and one channel that holds the mask's class ids over 255.

    The first arguments are `UNet2DModel`'s own, in its order and with its meaning; `in_channels` counts the image's
    channels, without the mask's. Unknown pixels read 0, as class 0 ("background") does: the authors blank a mask that
    way, so a mask of class 0 everywhere is the same as none.

    Args:
        num_classes (`int`, defaults to 2): Number of classes of masks, ids 0..num_classes-1; 255 is unknown.
        id2label (`dict`, *optional*): Class id -> name, e.g. `{"0": "liver"}`; with the next three, the label set.
        id2color (`dict`, *optional*): Class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
        id2kind (`dict`, *optional*): Class id -> what it is in a street, e.g. `"car"`, where its name does not say.

    Raises:
        ValueError: For a number of classes that 8-bit ids cannot hold, or a label set of another size.

    Example:
    ```py
    >>> import torch
    >>> from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
    >>> unet = IdChannelUNet2DModel(
    ...     sample_size=32, num_classes=4, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ... )
    >>> mask = torch.randint(0, 4, (1, 32, 32))
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
        num_classes: int = 2,
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        id2kind: dict | None = None,
    ):
        check_label_set(num_classes, id2label, id2color)
        super().__init__(**{name: value for name, value in locals().items() if name in PARENT_ARGUMENTS})
        # The parent's conv_in reads the image alone.
        self.conv_in = nn.Conv2d(in_channels + 1, block_out_channels[0], kernel_size=3, padding=1)

    @property
    def size_divisor(self) -> int:
        """Height and width of a sample must be multiples of this many pixels."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Convert a mask to the channel that the network reads.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, at the sample's resolution.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor]`: The `mask_features` of `forward`: class ids / 255 (B, 1, H, W), 0 where unknown.

        Raises:
            ValueError: For float ids, another number of dimensions, or another number of channels.
        """
        num_classes = self.config.num_classes
        integer_ids = not (mask.is_floating_point() or mask.dtype == torch.bool)
        if integer_ids and mask.ndim == 3:
            ids = mask.long()
        elif not integer_ids and mask.ndim == 4 and mask.shape[1] == num_classes:
            ids = mask.to(torch.uint8).argmax(dim=1)  # 0 where nothing is marked
        else:
            raise ValueError(
                f"`mask` must hold integer class ids of shape (B, H, W), or a float or bool one-hot map of shape "
                f"(B, {num_classes}, H, W); got {mask.dtype} of shape {tuple(mask.shape)}. Float ids: call .long()."
            )
        ids = torch.where((ids >= 0) & (ids < num_classes), ids, torch.zeros_like(ids))
        return ((ids.float() / 255).to(dtype or self.dtype).unsqueeze(1),)

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
            sample (`torch.Tensor`): Noisy images (B, in_channels, H, W); H and W are multiples of `size_divisor`.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,).
            class_labels (`torch.Tensor`, *optional*): Class labels (B,), where the network is class-conditional.
            mask (`torch.Tensor`, *optional*): See `encode_mask`. None, or 255 everywhere in a sample, is the
                blank mask.
            mask_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_mask`, in place of `mask`.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The prediction (B, out_channels, H, W).

        Raises:
            ValueError: For a size that `size_divisor` does not divide, or a mask of another shape or given twice.
        """
        check_sample(sample, mask, mask_features, self.size_divisor, self.config)
        if mask is not None:
            mask_features = self.encode_mask(mask, dtype=sample.dtype)
        channel = torch.zeros_like(sample[:, :1]) if mask_features is None else mask_features[0].to(sample)
        joined = torch.cat([sample, channel], dim=1)  # (B, in_channels + 1, H, W)
        return super().forward(joined, timestep, class_labels=class_labels, return_dict=return_dict)
