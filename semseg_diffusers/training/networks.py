"""Build the network to be trained from settings and a label set, and check its size against the data."""

from collections.abc import Mapping, Sequence

import numpy as np
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
    sample_size = height if height == width else (height, width)
    label_config = {"num_classes": labels.num_classes, **labels.to_config()}
    if settings.network == "paper":
        unet = PaperUNet2DModel(
            sample_size=sample_size, hidden_dim=settings.hidden_dim, emb_dim=settings.emb_dim, **label_config
        )
    elif settings.network == "sdm":
        unet = _sdm(settings, sample_size, label_config)
    elif settings.network == "control":
        unet = MaskControlNetModel.from_unet(
            base, base_class_label=settings.base_class_label, sample_size=sample_size, **label_config
        )
    else:
        data_config = {**label_config, "attributes": dict(attributes or {}) or None}
        if label_diffusion is not None:
            data_config |= {
                "label_diffusion": list(label_diffusion), "num_train_timesteps": settings.num_train_timesteps
            }  # fmt: skip
        unet = _mask_guided(settings, sample_size, data_config)
    if height % unet.size_divisor or width % unet.size_divisor:
        change = "use another --base_model" if base is not None else "change --patch_size or --block_out_channels"
        raise ValueError(
            f"The data is {height} x {width} pixels; this network needs multiples of {unet.size_divisor}. Prepare "
            f"the data at another --resolution, or give --random_crop, e.g. {_nearest(height, unet.size_divisor)}x"
            f"{_nearest(width, unet.size_divisor)}, or {change}."
        )
    return unet


def _nearest(side: int, divisor: int) -> int:
    return max(1, round(side / divisor)) * divisor


def _mask_guided(settings: TrainingSettings, sample_size: int | tuple[int, int], data_config: dict):
    levels, attention = len(settings.block_out_channels), settings.attention_levels
    for width in settings.block_out_channels:
        if width % settings.norm_num_groups:
            raise ValueError(
                f"--block_out_channels {width} is not a multiple of --norm_num_groups {settings.norm_num_groups}."
            )
    return MaskGuidedUNet2DModel(
        sample_size=sample_size,
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
        **data_config,
    )


def _sdm(settings: TrainingSettings, sample_size: int | tuple[int, int], label_config: dict) -> SDMUNet2DModel:
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
        sample_size=sample_size,
        out_channels=3,
        model_channels=widths[0],
        channel_mult=tuple(width / widths[0] for width in widths),
        num_res_blocks=settings.layers_per_block,
        attention_resolutions=tuple(2**level for level in range(levels - settings.attention_levels, levels)),
        num_head_channels=settings.attention_head_dim,
        dropout=settings.dropout,
        **label_config,
    )


def trained_weights(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained: all except those of a frozen base."""
    return [weight for weight in network.parameters() if weight.requires_grad]


# SCDM, Ko et al. 2024: psi grows with rarity, and is 1 for the class that fills most
def class_rarity(class_pixels: np.ndarray) -> list[float]:
    """Return how rare each class is, for label diffusion: pixels of the most frequent class over its own.

    Args:
        class_pixels: pixels of each class in each mask, unknown last, (N, C + 1).

    Returns:
        C numbers of 1 or more, to four digits; a class in no mask counts as the rarest one that occurs.

    Raises:
        ValueError: no mask has a labelled pixel.

    Example:
        >>> class_rarity(np.array([[90, 3, 0, 7], [90, 0, 0, 10]]))
        [1.0, 60.0, 60.0]
    """
    pixels = class_pixels[:, :-1].sum(axis=0)
    if not pixels.any():
        raise ValueError("--label_diffusion: no training mask has a labelled pixel; all are unknown everywhere.")
    rarest = pixels[pixels > 0].min()
    return [float(f"{pixels.max() / max(count, rarest):.4g}") for count in pixels]
