"""Build the network of a run from its settings and the label set, and check its size against the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
from semseg_diffusers.models.published.unet_sdm import NORM_NUM_GROUPS, SDMUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.training.dataset import AUGMENT_DIM
from semseg_diffusers.training.settings import TrainingSettings


def build_network(
    settings: TrainingSettings,
    labels: LabelSet,
    resolution: tuple[int, int],
    attributes: Mapping[str, Sequence[str]] | None = None,
    label_diffusion: Sequence[float] | None = None,
    base: UNet2DModel | None = None,
) -> MaskControlNetModel | MaskGuidedUNet2DModel | PaperUNet2DModel | SDMUNet2DModel:
    """Build an untrained network for a dataset.

    Args:
        settings: of the run.
        labels: label set of the data, saved in the network's config.
        resolution: (height, width) of what the network is trained on, in pixels.
        attributes: values of each of `settings.attributes` in the data.
        label_diffusion: rarity of each class (`class_rarity`), with `settings.label_diffusion`.
        base: the pretrained network of `settings.base_model`.

    Returns:
        the network; its initial weights depend on `settings.seed` only.

    Raises:
        ValueError: the network's depth does not divide the resolution, or widths and groups do not match.
    """
    torch.manual_seed(settings.seed)
    height, width = resolution
    config = {"num_classes": labels.num_classes, **labels.to_config()}
    config["sample_size"] = height if height == width else (height, width)
    if settings.network == "paper":
        unet = PaperUNet2DModel(hidden_dim=settings.hidden_dim, emb_dim=settings.emb_dim, **config)
    elif settings.network == "sdm":
        unet = _sdm(settings, config)
    elif settings.network == "control":
        unet = MaskControlNetModel.from_unet(base, base_class_label=settings.base_class_label, **config)
    else:
        config["attributes"] = dict(attributes or {}) or None
        if label_diffusion is not None:
            config |= {"label_diffusion": list(label_diffusion), "num_train_timesteps": settings.num_train_timesteps}
        unet = _mask_guided(settings, config)
    if height % unet.size_divisor or width % unet.size_divisor:
        change = "use another --base_model" if base is not None else "change --patch_size or --block_out_channels"
        nearest = "x".join(str(max(1, round(side / unet.size_divisor)) * unet.size_divisor) for side in resolution)
        raise ValueError(
            f"The data is {height} x {width} pixels; this network needs multiples of {unet.size_divisor}. Prepare "
            f"the data at another --resolution, or give --random_crop, e.g. {nearest}, or {change}."
        )
    return unet


def _mask_guided(settings: TrainingSettings, config: dict[str, Any]) -> MaskGuidedUNet2DModel:
    levels, attention = len(settings.block_out_channels), settings.attention_levels
    for width in settings.block_out_channels:
        if width % settings.norm_num_groups:
            raise ValueError(
                f"--block_out_channels {width} is not a multiple of --norm_num_groups {settings.norm_num_groups}."
            )
    return MaskGuidedUNet2DModel(
        down_block_types=("DownBlock2D",) * (levels - attention) + ("AttnDownBlock2D",) * attention,
        up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * (levels - attention),
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        dropout=settings.dropout,
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=settings.norm_num_groups,
        attn_norm_num_groups=settings.norm_num_groups,
        resnet_time_scale_shift="scale_shift",
        add_attention=attention > 0,
        mask_conditioning=settings.mask_conditioning,
        spade_channels=settings.spade_channels,
        patch_size=settings.patch_size,
        stem_channels=settings.stem_channels,
        mask_pyramid=settings.mask_pyramid,
        coordinate_channels=settings.coordinate_channels,
        augment_dim=0 if settings.augment_probability is None else AUGMENT_DIM,
        **config,
    )


def _sdm(settings: TrainingSettings, config: dict[str, Any]) -> SDMUNet2DModel:
    """Build SDM's network with our widths. It predicts no variance, which the mean squared error would not train."""
    widths, levels = settings.block_out_channels, len(settings.block_out_channels)
    attentive = widths[levels - max(1, settings.attention_levels) :]  # the lowest level always has attention
    for values, divisor, name in (
        (widths, NORM_NUM_GROUPS, "the groups of SDM's norms"),
        (attentive, settings.attention_head_dim, "--attention_head_dim"),
    ):
        for width in values:
            if width % divisor:
                raise ValueError(f"--block_out_channels {width} is not a multiple of {divisor}, {name}.")
    return SDMUNet2DModel(
        out_channels=3,
        model_channels=widths[0],
        channel_mult=tuple(width / widths[0] for width in widths),
        num_res_blocks=settings.layers_per_block,
        attention_resolutions=tuple(2**level for level in range(levels - settings.attention_levels, levels)),
        num_head_channels=settings.attention_head_dim,
        dropout=settings.dropout,
        **config,
    )


def trained_weights(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained: all except those of a frozen base."""
    return [weight for weight in network.parameters() if weight.requires_grad]
