"""From settings and a label set to the network that will be trained; sizes are checked against the data here.

Its first weights are random, or those of another model where name and shape agree.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from semseg_diffusers.data.hub_errors import check_name, hub_errors
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.models.unet_paper import PaperUNet2DModel
from semseg_diffusers.training.augmentation import AUGMENT_DIM
from semseg_diffusers.training.settings import TrainingSettings


WEIGHTS_FILE, CONFIG_FILE = "diffusion_pytorch_model.safetensors", "config.json"


def build_network(
    settings: TrainingSettings,
    labels: LabelSet,
    resolution: tuple[int, int],
    attributes: Mapping[str, Sequence[str]] | None = None,
    label_diffusion: Sequence[float] | None = None,
) -> MaskGuidedUNet2DModel | PaperUNet2DModel:
    """Make an untrained network for a data set.

    Args:
        settings: of the run.
        labels: label set of the data, saved in the network's config.
        resolution: (height, width) of what the network is trained on, in pixels.
        attributes: values that the data knows of each of `settings.attributes`.
        label_diffusion: rarity of each class (`class_rarity`), where `settings.label_diffusion` asks for it.

    Returns:
        the network; its first weights depend on `settings.seed` alone.

    Raises:
        ValueError: the resolution is not one that the network's depth divides, or widths and groups do not fit.
    """
    torch.manual_seed(settings.seed)
    height, width = resolution
    sample_size = height if height == width else (height, width)
    label_config = {"num_classes": labels.num_classes, **labels.to_config()}
    if settings.network == "paper":
        unet = PaperUNet2DModel(
            sample_size=sample_size, hidden_dim=settings.hidden_dim, emb_dim=settings.emb_dim, **label_config
        )
    else:
        data_config = {**label_config, "attributes": dict(attributes or {}) or None}
        if label_diffusion is not None:
            data_config |= {
                "label_diffusion": list(label_diffusion), "num_train_timesteps": settings.num_train_timesteps
            }  # fmt: skip
        unet = _mask_guided(settings, sample_size, data_config)
    if height % unet.size_divisor or width % unet.size_divisor:
        raise ValueError(
            f"The data is {height} x {width} pixels; this network takes multiples of {unet.size_divisor}. Prepare the "
            f"data at another --resolution, or give --random_crop, e.g. {_nearest(height, unet.size_divisor)}x"
            f"{_nearest(width, unet.size_divisor)}, or change --patch_size or --block_out_channels."
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
        patch_size=settings.patch_size,
        stem_channels=settings.stem_channels,
        mask_pyramid=settings.mask_pyramid,
        coordinate_channels=settings.coordinate_channels,
        augment_dim=0 if settings.augment_probability is None else AUGMENT_DIM,
        **data_config,
    )


# SCDM, Ko et al. 2024: psi grows with rarity, and is 1 for the class that fills most
def class_rarity(class_pixels: np.ndarray) -> list[float]:
    """How rare each class is, for label diffusion: pixels of the most frequent class over its own.

    Args:
        class_pixels: pixels of each class in each mask, unknown last, (N, C + 1).

    Returns:
        C numbers of 1 or more, to four digits; a class that no mask holds is as rare as the rarest that one does.

    Raises:
        ValueError: no mask holds any class.

    Example:
        >>> class_rarity(np.array([[90, 3, 0, 7], [90, 0, 0, 10]]))
        [1.0, 60.0, 60.0]
    """
    pixels = class_pixels[:, :-1].sum(axis=0)
    if not pixels.any():
        raise ValueError("--label_diffusion: no training mask holds a class, all of them are unknown everywhere.")
    rarest = pixels[pixels > 0].min()
    return [float(f"{pixels.max() / max(count, rarest):.4g}") for count in pixels]


def load_first_weights(unet: torch.nn.Module, source: str) -> tuple[list[str], list[str]]:
    """Take over the weights of another model that have the name and the shape of the network's own.

    Args:
        unet: the network, changed in place.
        source: a folder that holds a pipeline or a network, or a Hub id of one.

    Returns:
        names of what the network keeps of its own, with the reason, and of what it has no place for.

    Raises:
        ValueError: there is no such model, its weights are no safetensors, or nothing agrees.
        HubError: the Hub has no such model, or does not let one in.
    """
    weights_file, config = _find_weights(source)
    theirs = load_file(weights_file)
    if config.get("attributes") != json.loads(json.dumps(getattr(unet.config, "attributes", None))):
        theirs.pop("attribute_embedding.weight", None)  # its columns mean other values
    own, kept, taken = unet.state_dict(), [], {}
    for name, weight in own.items():
        if name not in theirs:
            kept.append(f"{name} (not there)")
        elif theirs[name].shape != weight.shape:
            kept.append(f"{name} ({tuple(theirs[name].shape)} there, {tuple(weight.shape)} here)")
        else:
            taken[name] = theirs[name]
    if not taken:
        raise ValueError(
            f"--init_from {source}: none of its {len(theirs)} weights has the name and the shape of one of this "
            f"network's, a {type(unet).__name__}; it is a {config.get('_class_name', 'model of an unknown kind')}. "
            "Give a model of the same kind and widths."
        )
    unet.load_state_dict(taken, strict=False)
    return kept, sorted(set(theirs) - set(own))


def _find_weights(source: str) -> tuple[Path, dict]:
    """The weights of a pipeline's or a network's folder, here or on the Hub, and the config beside them."""
    check_name(source)
    for folder in ("unet", "."):
        if Path(source).is_dir():
            found = [Path(source) / folder / name for name in (WEIGHTS_FILE, CONFIG_FILE)]
        else:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

            subfolder = None if folder == "." else folder
            with hub_errors(f"--init_from: loading the model '{source}'", source):
                try:
                    found = [
                        Path(hf_hub_download(source, name, subfolder=subfolder))
                        for name in (WEIGHTS_FILE, CONFIG_FILE)
                    ]
                except LocalEntryNotFoundError:
                    raise  # the Hub cannot be reached
                except EntryNotFoundError:
                    continue
        if all(path.is_file() for path in found):
            return found[0], json.loads(found[1].read_text(encoding="utf-8"))
    raise ValueError(
        f"--init_from {source}: it holds neither unet/{WEIGHTS_FILE} nor {WEIGHTS_FILE}, with its {CONFIG_FILE}. Give "
        "a run folder, or what `save_pretrained` of a pipeline or a network wrote."
    )
