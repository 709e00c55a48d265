"""Checkpoints of the Semantic Diffusion Model (Wang et al. 2022, arXiv 2207.00050) and of what is trained by its code.

Its files (`ema_0.9999_N.pt`, `modelN.pt`) are state dicts; all of the network but its attention heads, the size of its
images and the meaning of its last mask channel can be read from them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from semseg_diffusers.converters.checkpoints import load_weights, read_checkpoint, shape_of, state_dict_of
from semseg_diffusers.converters.conversion import Conversion, labels_for
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel


SOURCE = "sdm"
WORK = (
    "the network of Wang et al., *Semantic Image Synthesis via Diffusion Models* (arXiv 2207.00050), in its authors' "
    "layout."
)
# The authors' command line takes the widths from the size of the images, and so back.
SAMPLE_SIZES = {(0.5, 1, 1, 2, 2, 4, 4): 512, (1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}


def convert_sdm(
    path: str | os.PathLike,
    *,
    labels: LabelSet | None = None,
    instance_edges: bool = False,
    num_head_channels: int = 64,
    sample_size: int | tuple[int, int] | None = None,
    num_train_timesteps: int = 1000,
) -> Conversion:
    """Read a checkpoint of SDM's code; depth, widths, attention and classes come from the weights.

    Args:
        path: the file.
        labels: the classes; "class 0", ... if None.
        instance_edges: the last channel of the mask holds the edges between instances (`--no_instance False` of
            theirs), and is no class.
        num_head_channels: `--num_head_channels` that it was trained with; their scripts give 64.
        sample_size: height and width that it was trained on; told by the widths if None, as in their code.
        num_train_timesteps: diffusion steps that it was trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds code, another network, or one with settings that none of their scripts has.
    """
    weights = state_dict_of(read_checkpoint(path), path)
    config = _read_config(weights, path)
    mask_channels = shape_of(weights, "middle_block.0.in_norm.mlp_shared.0.weight", 4, SOURCE, path)[1]
    hint = ""
    if labels is not None and mask_channels == labels.num_classes + 1:
        hint = " Is the last channel that of the instance edges? Then give --instance_edges."
    labels = labels_for(labels, mask_channels - int(instance_edges), hint)
    if sample_size is None:
        sample_size = SAMPLE_SIZES.get(config["channel_mult"])
    if sample_size is None:
        raise ValueError(
            f"the widths {config['channel_mult']} x {config['model_channels']} of '{path}' do not tell the size of "
            "its images: give --sample_size."
        )
    with torch.device("meta"):
        unet = SDMUNet2DModel(
            sample_size=sample_size,
            num_classes=labels.num_classes,
            num_head_channels=num_head_channels,
            instance_edges=instance_edges,
            **config,
            **labels.to_config(),
        )
    load_weights(unet, weights, path)
    learned = unet.config.out_channels == 2 * unet.config.in_channels
    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=0.1 / num_train_timesteps,  # guided-diffusion's linear schedule, 1e-4 to 0.02 at 1000 steps
        beta_end=20 / num_train_timesteps,
        beta_schedule="linear",
        variance_type="learned_range" if learned else "fixed_large",
        clip_sample=True,
    )
    return Conversion(
        unet=unet,
        scheduler=scheduler,
        labels=labels,
        source=SOURCE,
        weights_file=Path(path),
        work=WORK,
        sampling=f"Its authors sample all {num_train_timesteps} steps with guidance scale 1.5.",
        details={"num_head_channels": num_head_channels, "instance_edges": instance_edges},
    )


def _read_config(weights: Mapping[str, torch.Tensor], path) -> dict:
    """Depth, widths and attention of the network that a state dict belongs to."""
    in_channels = shape_of(weights, "input_blocks.0.0.weight", 4, SOURCE, path)[1]
    model_channels = shape_of(weights, "time_embed.0.weight", 2, SOURCE, path)[1]
    out_channels = shape_of(weights, "out.2.weight", 4, SOURCE, path)[0]
    middle_width = shape_of(weights, "middle_block.0.in_layers.1.weight", 4, SOURCE, path)[0]
    if shape_of(weights, "middle_block.0.emb_layers.1.weight", 2, SOURCE, path)[0] != 2 * middle_width:
        raise ValueError(f"'{path}' was trained with --use_scale_shift_norm False, which SDM's own scripts never do.")
    if any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight|output_blocks\.\d+\.\d\.conv\.weight", k) for k in weights):
        raise ValueError(f"'{path}' was trained with --resblock_updown False, which SDM's own scripts never do.")
    # An up-sampling block stands last in its entry, behind another of its kind; one down-sampling block matches each.
    blocks = {match.groups() for key in weights if (match := re.match(r"output_blocks\.(\d+)\.(\d+)\.in_norm\.", key))}
    num_levels = 1 + sum(position != "0" for _, position in blocks)
    num_entries = 1 + max(int(match[1]) for key in weights if (match := re.match(r"input_blocks\.(\d+)\.", key)))
    num_res_blocks, rest = num_entries // num_levels - 1, num_entries % num_levels
    if rest or num_res_blocks < 1:
        raise ValueError(
            f"'{path}' is not in the layout of --from {SOURCE}: {num_entries} input_blocks do not make {num_levels} "
            "levels, which is how many up-sampling blocks its output_blocks have, and one more."
        )
    firsts = [1 + level * (num_res_blocks + 1) for level in range(num_levels)]
    widths = [shape_of(weights, f"input_blocks.{first}.0.out_layers.3.weight", 4, SOURCE, path)[0] for first in firsts]
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "model_channels": model_channels,
        "channel_mult": tuple(
            width // model_channels if width % model_channels == 0 else width / model_channels for width in widths
        ),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(
            2**level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in weights
        ),
    }
