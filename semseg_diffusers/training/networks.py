"""The network of a run, built from its settings and the label set, and exponential moving averages of its weights.

The averages are diffusers' `EMAModel`, whose decay warms up with power 3/4: it reaches 0.999 at 10,000 steps. A short
average follows the network closely; a long one is smoother and needs a longer run.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
from semseg_diffusers.models.published.unet_sdm import NORM_NUM_GROUPS, SDMUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_upscale import MaskGuidedUpscalePipeline
from semseg_diffusers.training.dataset import AUGMENT_DIM
from semseg_diffusers.training.latents import Latents
from semseg_diffusers.training.settings import LoopSettings, TrainingSettings


RAW = "raw"  # variant of the weights without averaging


def build_network(
    settings: TrainingSettings,
    labels: LabelSet,
    resolution: tuple[int, int],
    attributes: Mapping[str, Sequence[str]] | None = None,
    label_diffusion: Sequence[float] | None = None,
    base: UNet2DModel | None = None,
    text_embed_dim: int = 0,
    latents: Latents | None = None,
) -> MaskControlNetModel | MaskGuidedUNet2DModel | PaperUNet2DModel | SDMUNet2DModel:
    """Build an untrained network for a dataset.

    Args:
        settings: of the run.
        labels: label set of the data, saved in the network's config.
        resolution: (height, width) of what the network is trained on, in pixels.
        attributes: values of each of `settings.attributes` in the data.
        label_diffusion: rarity of each class (`class_rarity`), with `settings.label_diffusion`.
        base: the pretrained network of `settings.base_model`.
        text_embed_dim: length of the embeddings of `settings.text_encoder`.
        latents: those of `settings.vae`.

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
        if latents is not None:
            channels, *sides = latents.size(height, width)
            config |= {"in_channels": channels, "out_channels": channels, "vae_scale_factor": latents.factor}
            config["sample_size"] = sides[0] if height == width else tuple(sides)
        unet = _mask_guided(settings, {**config, "text_embed_dim": text_embed_dim})
    if settings.upscale_factor and any(side % settings.upscale_factor for side in resolution):
        raise ValueError(
            f"The data is {height} x {width} pixels, which --upscale_factor {settings.upscale_factor} does not "
            "divide. Prepare it at another --resolution, or give --random_crop."
        )
    change = "use another --base_model" if base is not None else "change --patch_size or --block_out_channels"
    check_resolution(unet, resolution, "The data", "this network", f", or {change}")
    return unet


def build_pipeline(unet: Any, scheduler: Any, **others: Any) -> Any:
    """Return the pipeline of a network, with other components and recommendations: for upscalers, or from noise."""
    is_upscaler = getattr(unet.config, "upscale_factor", None) is not None
    pipeline = MaskGuidedUpscalePipeline if is_upscaler else MaskGuidedDDPMPipeline
    return pipeline(unet=unet, scheduler=scheduler, **others)


def check_resolution(unet: Any, resolution: tuple[int, int], data: str, network: str, or_else: str = "") -> None:
    """Raise a ValueError, which names data and network as given, unless the network's depth divides the resolution."""
    divisor, (height, width) = unet.size_divisor * unet.config.get("vae_scale_factor", 1), resolution
    if height % divisor or width % divisor:
        nearest = "x".join(str(max(1, round(side / divisor)) * divisor) for side in resolution)
        raise ValueError(
            f"{data} is {height} x {width} pixels; {network} needs multiples of {divisor}. Prepare the data at "
            f"another --resolution, or give --random_crop, e.g. {nearest}{or_else}."
        )


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
        upscale_factor=settings.upscale_factor,
        max_noise_level=0 if settings.upscale_factor is None else settings.max_noise_level,
        residual_scale=None if settings.upscale_factor is None else settings.residual_scale,
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


def variant_name(decay: float) -> str:
    """Return the diffusers `variant` of an average, which may not contain a dot: "ema_0_9999"."""
    return f"ema_{decay:.10f}".rstrip("0").rstrip(".").replace(".", "_")


class EMA:
    """Averages of the trained weights of an unwrapped network; the first is for previews and the saved pipeline."""

    def __init__(self, network: torch.nn.Module, settings: LoopSettings):
        self.averages = {
            variant_name(decay): EMAModel(
                trained_weights(network),
                decay=decay,
                min_decay=0.0 if settings.ema_warmup else decay,
                update_after_step=settings.ema_start_step,
                use_ema_warmup=settings.ema_warmup,
                power=3 / 4,
                foreach=True,
            )
            for decay in settings.ema_lengths
        }
        self.first = next(iter(self.averages.values()))

    def step(self, network: torch.nn.Module) -> None:
        """Update each average after an optimizer step."""
        weights = trained_weights(network)
        for average in self.averages.values():
            average.step(weights)

    @contextlib.contextmanager
    def swapped_in(self, network: torch.nn.Module) -> Iterator[None]:
        """Put the first average into the network inside the block, and its own weights back afterwards."""
        weights = trained_weights(network)
        self.first.store(weights)
        self.first.copy_to(weights)
        try:
            yield
        finally:
            self.first.restore(weights)

    def variants(self, network: torch.nn.Module) -> Iterator[str]:
        """Put `raw`, each further average and at last the first into the network; yield the names, not the last's."""
        yield RAW
        for name, average in list(self.averages.items())[1:]:
            average.copy_to(trained_weights(network))
            yield name
        self.first.copy_to(trained_weights(network))

    def save(self, folder: Path) -> dict:
        """Write the averages into a checkpoint's folder; return what else `load` needs, as JSON values."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = {f"{index:05d}": weight.contiguous() for index, weight in enumerate(average.shadow_params)}
            save_file(weights, file)
        return {"ema_step": self.first.optimization_step}

    def load(self, folder: Path, state: dict) -> None:
        """Restore what `save` wrote."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = [weight for _, weight in sorted(load_file(file).items())]
            for shadow, weight in zip(average.shadow_params, weights, strict=True):
                shadow.copy_(weight)
            average.optimization_step = state["ema_step"]

    def _files(self, folder: Path) -> list[Path]:
        """Return the files of the averages; the first is `ema.safetensors`, also in runs with a single one."""
        return [folder / f"{name}.safetensors" for name in ("ema", *list(self.averages)[1:])]
