"""ControlNet for `UNet2DModel`: a frozen pretrained network and a trainable copy of its encoder that reads the mask.

Follows "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al. 2023, arXiv 2302.05543, section
3.1): zero convolutions add the copy's output to the frozen decoder's inputs. This file is self-contained (torch and
diffusers only): it is saved beside the weights and runs without this package.
"""

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up in this module's namespace
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import nn


PARENT_ARGUMENTS = tuple(inspect.signature(UNet2DModel.__init__).parameters)[1:]
# Parts of the base that the control branch holds a trainable copy of.
COPIED = ("conv_in", "time_embedding", "class_embedding", "down_blocks", "mid_block")


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


# Copied from semseg_diffusers.models.unet_mask_guided.mask_to_one_hot
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


def zero_convolution(in_channels: int, out_channels: int, kernel_size: int = 1) -> nn.Conv2d:
    """Return a convolution whose output is zero before training (Zhang et al. 2023, section 3.1)."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


class MaskBranch(nn.Module):
    """Three convolutions from the one-hot mask to the width of the image stem; the last one starts from zero."""

    def __init__(self, num_classes: int, out_channels: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(num_classes, out_channels, kernel_size=3, padding=1)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_out = zero_convolution(out_channels, out_channels, kernel_size=3)

    def forward(self, one_hot: torch.Tensor) -> torch.Tensor:
        """Map (B, num_classes, H, W) to (B, out_channels, H, W)."""
        hidden_states = F.silu(self.conv_1(one_hot))  # (B, C, H, W)
        return self.conv_out(F.silu(self.conv_2(hidden_states)))


class ControlBranch(nn.Module):
    """A copy of a network's encoder and middle that reads the mask, with zero convolutions behind each output."""

    conv_in: nn.Module
    time_embedding: nn.Module
    class_embedding: nn.Module | None
    down_blocks: Any
    mid_block: nn.Module | None

    def __init__(self, unet: UNet2DModel, num_classes: int):
        super().__init__()
        for name in COPIED:
            setattr(self, name, copy.deepcopy(getattr(unet, name)))
        widths = unet.config.block_out_channels
        self.mask_branch = MaskBranch(num_classes, widths[0])
        skips = [widths[0]]  # channels of each map that the encoder hands to the decoder
        for block, width in zip(self.down_blocks, widths, strict=True):
            skips += [width] * (len(block.resnets) + (block.downsamplers is not None))
        self.zero_convs = nn.ModuleList(zero_convolution(channels, channels) for channels in skips)
        self.zero_conv_mid = zero_convolution(widths[-1], widths[-1])

    def forward(
        self, sample: torch.Tensor, t_emb: torch.Tensor, class_labels: torch.Tensor | None, hint: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Compute what is added to the base's skip connections, the stem's first, and to its middle (B, C, h, w).

        `t_emb` are projected timesteps (B, time channels), `hint` is the mask at the width of the stem (B, C, H, W).
        """
        emb = self.time_embedding(t_emb)  # (B, time_embed_dim)
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels).to(emb)
        skip_sample = sample
        sample = self.conv_in(sample)
        sample = sample + hint.to(sample)  # (B, C, H, W)
        skips, sample = encode(self.down_blocks, sample, emb, skip_sample)
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb)
        residuals = tuple(conv(skip) for conv, skip in zip(self.zero_convs, skips, strict=True))
        return residuals, self.zero_conv_mid(sample)


def encode(
    down_blocks: nn.ModuleList, sample: torch.Tensor, emb: torch.Tensor, skip_sample: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Run the encoder of the base or of the copy; returns the maps for the decoder, the stem's first, and the last."""
    skips: tuple[torch.Tensor, ...] = (sample,)
    for block in down_blocks:
        if hasattr(block, "skip_conv"):
            sample, maps, skip_sample = block(hidden_states=sample, temb=emb, skip_sample=skip_sample)
        else:
            sample, maps = block(hidden_states=sample, temb=emb)
        skips += maps
    return skips, sample


class MaskControlNetModel(UNet2DModel):
    r"""A frozen `UNet2DModel` and a trainable copy of its encoder that makes it follow a segmentation mask.

    The first arguments are `UNet2DModel`'s own, in its order and with its meaning, and describe the base. Its weights
    keep their names, are saved with the rest, take no gradient, and its dropout stays off. `from_unet` makes a network
    from a pretrained one.

    Without a mask, or where a sample's is unknown everywhere, the output equals the base's: guidance needs nothing
    more, and training without masks changes nothing.

    Args:
        num_classes (`int`, defaults to 19): Number of classes of masks, ids 0..num_classes-1; 255 is unknown.
        id2label (`dict`, *optional*): Class id -> name, e.g. `{"0": "road"}`; with the next three, the label set.
        id2color (`dict`, *optional*): Class id -> `[red, green, blue]`, 0..255.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
        base_class_label (`int`, *optional*): Where the base is class-conditional, the label that it gets when
            `forward` gets none.
        id2kind (`dict`, *optional*): Class id -> what it is in a street, e.g. `"car"`, where its name does not say.

    Raises:
        ValueError: For settings that do not fit each other.

    Example:
    ```py
    >>> import torch
    >>> from diffusers import UNet2DModel
    >>> from semseg_diffusers import MaskControlNetModel
    >>> base = UNet2DModel(
    ...     sample_size=32, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
    ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ... )
    >>> unet = MaskControlNetModel.from_unet(base, num_classes=19)
    >>> sample, mask = torch.randn(1, 3, 32, 32), torch.randint(0, 19, (1, 32, 32))
    >>> bool((unet(sample, 10, mask=mask).sample == base(sample, 10).sample).all())
    True
    ```
    """

    takes_conditioning_scale = True

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
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        base_class_label: int | None = None,
        id2kind: dict | None = None,
    ):
        check_label_set(num_classes, id2label, id2color)
        if base_class_label is not None:
            if class_embed_type == "identity" or (class_embed_type is None and num_class_embeds is None):
                raise ValueError(
                    f"`base_class_label` is {base_class_label}, but the base has no class embedding by index: omit it."
                )
            if class_embed_type is None and base_class_label not in range(num_labels := num_class_embeds or 0):
                raise ValueError(
                    f"`base_class_label` is {base_class_label}; the base has classes 0 to {num_labels - 1}."
                )
        super().__init__(**{name: value for name, value in locals().items() if name in PARENT_ARGUMENTS})
        self.control = ControlBranch(self, num_classes)
        self.gradient_checkpointing = False
        self.requires_grad_(False)
        self.control.requires_grad_(True)
        self.train()  # puts the base into evaluation mode

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

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DModel,
        num_classes: int = 19,
        id2label: dict | None = None,
        id2color: dict | None = None,
        ignore_index: int = 255,
        ignore_color: tuple[int, int, int] = (0, 0, 0),
        base_class_label: int | None = None,
        sample_size: int | tuple[int, int] | None = None,
        id2kind: dict | None = None,
    ) -> "MaskControlNetModel":
        """Make a network from a pretrained one; until it is trained, its output is that one's, whatever the mask.

        Args:
            unet (`UNet2DModel`): The base; its weights are copied.
            num_classes (`int`, defaults to 19): See the class, as for the next five.
            id2label (`dict`, *optional*): Names of the classes.
            id2color (`dict`, *optional*): Their colours.
            ignore_index (`int`, defaults to 255): The id of unknown pixels.
            ignore_color (`tuple[int, int, int]`, defaults to `(0, 0, 0)`): Their colour.
            base_class_label (`int`, *optional*): Label of a class-conditional base.
            sample_size (`int` or `tuple[int, int]`, *optional*): Height and width of the images in pixels; the base's
                own if None.
            id2kind (`dict`, *optional*): See the class.

        Returns:
            `MaskControlNetModel`: In training mode, with the base's dtype and device.

        Raises:
            ValueError: The base is no plain `UNet2DModel`, or see the class.
        """
        if type(unet) is not UNet2DModel:
            raise ValueError(
                f"`unet` is a {type(unet).__name__}; expected a `diffusers.UNet2DModel` itself. A network that reads "
                "masks already can be trained further as it is."
            )
        network = cls.from_config(
            unet.config,
            num_classes=num_classes,
            id2label=id2label,
            id2color=id2color,
            ignore_index=ignore_index,
            ignore_color=ignore_color,
            base_class_label=base_class_label,
            id2kind=id2kind,
            sample_size=unet.config.sample_size if sample_size is None else sample_size,
        )
        weights = unet.state_dict()
        copied = {f"control.{name}": value for name, value in weights.items() if name.split(".")[0] in COPIED}
        _, unexpected = network.load_state_dict({**weights, **copied}, strict=False)
        assert not unexpected, unexpected
        network.to(unet.device)
        return network if network.dtype == unet.dtype else network.to(unet.dtype)

    @property
    def size_divisor(self) -> int:
        """Height and width of a sample must be multiples of this many pixels."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def train(self, mode: bool = True) -> "MaskControlNetModel":
        """Set the mode of the control branch; the frozen base stays in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.children():
            if module is not self.control:
                module.eval()
        return self

    def encode_mask(self, mask: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        """Compute what depends on the mask alone, once for all steps and all images of it.

        Args:
            mask (`torch.Tensor`): Class ids (B, H, W) of any integer dtype (255 is unknown), or a one-hot map
                (B, num_classes, H, W), float or bool, at the sample's resolution.
            dtype (`torch.dtype`, *optional*): Dtype of the sample; that of the weights if None.

        Returns:
            `tuple[torch.Tensor, ...]`: The `mask_features` of `forward`: what is added in the stem of the control
            branch (B, C, H, W), and 1 for each sample with a known pixel, else 0 (B, 1, 1, 1).

        Raises:
            ValueError: See `mask_to_one_hot`.
        """
        branch = self.control.mask_branch
        device = branch.conv_1.weight.device
        if device.type != "meta":  # where offloaded layer by layer, weights have no device between calls
            mask = mask.to(device)
        one_hot = mask_to_one_hot(mask, self.config.num_classes, dtype or self.dtype)
        known = (one_hot != 0).flatten(1).any(dim=1).view(-1, 1, 1, 1)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(branch, one_hot), known.to(one_hot.dtype)
        return branch(one_hot), known.to(one_hot.dtype)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        mask_features: tuple[torch.Tensor, ...] | None = None,
        conditioning_scale: float = 1.0,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict noise, velocity or image from a noisy sample and its mask.

        Args:
            sample (`torch.Tensor`): Noisy images (B, in_channels, H, W); H and W are multiples of `size_divisor`.
            timestep (`int`, `float` or `torch.Tensor`): A scalar or (B,).
            class_labels (`torch.Tensor`, *optional*): Class labels (B,), where the base is class-conditional;
                `base_class_label` if None.
            mask (`torch.Tensor`, *optional*): See `encode_mask`. None, or 255 everywhere in a sample, gives the
                base's own prediction.
            mask_features (`tuple[torch.Tensor, ...]`, *optional*): The result of `encode_mask`, in place of `mask`.
            conditioning_scale (`float`, defaults to 1.0): Scale of the control branch's output; 0 is the base alone.
            return_dict (`bool`, defaults to `True`): Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` or `tuple`: The prediction (B, out_channels, H, W).

        Raises:
            ValueError: For a size that `size_divisor` does not divide, a mask of another shape, of other ids or given
                twice, class labels that do not fit the network.
        """
        check_sample(sample, mask, mask_features, self.size_divisor, self.config)
        batch_size = sample.shape[0]
        if mask is not None:
            mask_features = self.encode_mask(mask, dtype=sample.dtype)
        if self.class_embedding is not None and class_labels is None and self.config.base_class_label is not None:
            class_labels = torch.full((batch_size,), self.config.base_class_label, device=sample.device)

        # 0. centre the input if necessary
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        # 1. time and class
        # Copied from semseg_diffusers.models.unet_mask_guided.MaskGuidedUNet2DModel.forward
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
        # End of copy

        # 2. the base's stem, encoder and middle
        skips, hidden_states = encode(self.down_blocks, self.conv_in(sample), emb, sample)
        if self.mid_block is not None:
            hidden_states = self.mid_block(hidden_states, emb)  # (B, C, h, w)

        # 3. the control branch's output, added to all inputs of the decoder
        if mask_features is not None and conditioning_scale != 0:
            hint, known = mask_features
            residuals, middle = self.control(sample, t_emb, class_labels, hint)

            def add(base: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
                scaled = conditioning_scale * residual.to(base)
                return base + torch.where(known.to(base.device) != 0, scaled, torch.zeros_like(scaled))

            skips = tuple(add(*pair) for pair in zip(skips, residuals, strict=True))
            hidden_states = add(hidden_states, middle)

        # 4. the base's decoder
        skip_sample = None
        for block in self.up_blocks:
            num_skips = len(block.resnets)
            skips, own = skips[:-num_skips], skips[-num_skips:]
            if hasattr(block, "skip_conv"):
                hidden_states, skip_sample = block(hidden_states, own, emb, skip_sample)
            else:
                hidden_states = block(hidden_states, own, emb)

        # 5. head
        hidden_states = self.conv_act(self.conv_norm_out(hidden_states))
        prediction = self.conv_out(hidden_states)  # (B, out_channels, H, W)
        if skip_sample is not None:
            prediction = prediction + skip_sample
        if self.config.time_embedding_type == "fourier":
            prediction = prediction / timesteps.reshape(batch_size, 1, 1, 1)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)
