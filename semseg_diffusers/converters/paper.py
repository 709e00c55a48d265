"""Checkpoints of the paper's authors: Lightning's `.ckpt` with two sets of weights, or the averaged weights alone.

Follows the published code of Bozsó et al., WINS 2024: `model.*` is what was trained, `ema_model.*` its average, which
its training script also saves by itself as `ema_model_epoch_N.ckpt`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from semseg_diffusers.converters.checkpoints import load_weights, read_checkpoint, shape_of, shorten, state_dict_of
from semseg_diffusers.converters.conversion import Conversion, labels_for
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel, paper_betas


SOURCE = "paper"
PREFIXES = {"ema": "ema_model.", "raw": "model."}
WORK = (
    "the network of Bozsó et al., *Semantic Segmentation Mask-Guided Diffusion Models* (WINS 2024), in its authors' "
    "layout."
)
# Their Lightning files hold the settings of the run as objects of its code, beside the weights.
OTHER_FILE = "The `ema_model_epoch_N.ckpt` that the paper's training saves beside it holds weights alone. "


def convert_paper(
    path: str | os.PathLike,
    *,
    labels: LabelSet | None = None,
    weights: str | None = None,
    sample_size: int | tuple[int, int] | None = None,
    num_train_timesteps: int = 1000,
) -> Conversion:
    """Read a checkpoint of the paper's code; widths and the number of classes come from the weights.

    Args:
        path: the file.
        labels: the classes, from `colormap.json`; "class 0", ... if None.
        weights: "ema" or "raw", where the file holds both; by default the averaged ones where they are there.
        sample_size: height and width that it was trained on, 128 if None.
        num_train_timesteps: diffusion steps that it was trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds code, another network, or other weights than asked for.
    """
    chosen, which = _choose(read_checkpoint(path, OTHER_FILE), weights, path)
    hidden_dim, in_channels = shape_of(chosen, "inc.double_conv.0.weight", 4, SOURCE, path)[:2]
    num_classes = shape_of(chosen, "mask_conv.double_conv.0.weight", 4, SOURCE, path)[1]
    emb_dim = shape_of(chosen, "down1.emb_layer.1.weight", 2, SOURCE, path)[1]
    out_channels = shape_of(chosen, "outc.weight", 4, SOURCE, path)[0]
    labels = labels_for(labels, num_classes)
    with torch.device("meta"):
        unet = PaperUNet2DModel(
            sample_size=sample_size or 128,
            in_channels=in_channels,
            out_channels=out_channels,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            emb_dim=emb_dim,
            **labels.to_config(),
        )
    load_weights(unet, chosen, path)
    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        trained_betas=paper_betas(num_train_timesteps),
        variance_type="fixed_large",
        clip_sample=False,
    )
    return Conversion(
        unet=unet,
        scheduler=scheduler,
        labels=labels,
        source=SOURCE,
        weights_file=Path(path),
        work=f"{WORK} Weights taken: {which}.",
        sampling=f"Its authors sample all {num_train_timesteps} steps with guidance scale 3.",
        details={"weights": which},
    )


def _choose(content, wanted: str | None, path) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict to take, without its prefix, and what to call it."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = state_dict_of(content, path)
    sets = {
        name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for name, prefix in PREFIXES.items()
    }
    if not any(sets.values()):
        if wanted is not None:
            raise ValueError(
                f"'{path}' holds one set of weights, without the prefixes {' and '.join(PREFIXES.values())} of a "
                "Lightning checkpoint: leave --weights out."
            )
        return state, "the only ones in the file"
    others = [key for key in state if not key.startswith(tuple(PREFIXES.values()))]
    if others:
        raise ValueError(f"'{path}' holds keys of neither {' nor '.join(PREFIXES.values())}: {shorten(others)}.")
    name = wanted or ("ema" if sets["ema"] else "raw")
    if not sets[name]:
        raise ValueError(f"'{path}' holds no keys of {PREFIXES[name]}, so it has no {name} weights to take.")
    return sets[name], {"ema": "the exponential average (ema_model)", "raw": "as trained (model)"}[name]
