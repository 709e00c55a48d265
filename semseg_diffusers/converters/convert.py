"""Convert checkpoints of published codebases into pipeline folders, with the weights checked key by key.

- `paper`: Bozsó et al., WINS 2024. Lightning's `.ckpt` holds `model.*` as trained and its average `ema_model.*`, which
  their training also saves alone as `ema_model_epoch_N.ckpt`.
- `sdm`: Semantic Diffusion Model, Wang et al. 2022 (arXiv 2207.00050). State dicts (`ema_0.9999_N.pt`, `modelN.pt`),
  from which all of the network can be read but its attention heads, the size of its images and the meaning of the last
  mask channel.
- `segmentation-guided-diffusion`: Konz et al., MICCAI 2024. diffusers folders of a `UNet2DModel` with an input channel
  more than the image has, class id / 255; only their segmentation channel mode "single" was ever built there.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel

from semseg_diffusers.converters.checkpoints import load_weights, read_checkpoint, shape_of, shorten, state_dict_of
from semseg_diffusers.converters.settings import ConvertSettings
from semseg_diffusers.data.labels import LabelSet, distinct_colors, free_color
from semseg_diffusers.hub.cards import new_model_card
from semseg_diffusers.hub.weights import only_variant, weight_files
from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel, paper_betas
from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.files import (
    check_output,
    follow_umask,
    hash_file,
    new_folder,
    read_json,
    versions,
    write_json,
    write_text,
)


PAPER_PREFIXES = {"ema": "ema_model.", "raw": "model."}
# SDM's command line derives the widths from the size of the images.
SDM_SAMPLE_SIZES = {(0.5, 1, 1, 2, 2, 4, 4): 512, (1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # or shards of the first
KONZ_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")  # those that their code samples with


@dataclass(frozen=True)
class Conversion:
    """A network read from a published checkpoint, with its scheduler and what its card says."""

    unet: Any  # the network, with its weights
    scheduler: SchedulerMixin
    labels: LabelSet
    weights_file: Path  # the first, if there are shards
    work: str  # whose network it is, for the card
    sampling: str  # how its authors sample, for the card
    guidance_scale: float  # as they do
    num_inference_steps: int | None = None  # likewise; None where they name none
    details: dict = field(default_factory=dict)  # more for the record
    other_files: tuple[Path, ...] = ()  # the other shards


def labels_for(labels: LabelSet | None, num_classes: int, hint: str = "") -> LabelSet:
    """Return the label set of a converted network: the given one, or numbers as names and distinct colours."""
    if not 1 <= num_classes <= 255:
        raise ValueError(f"masks hold 8-bit ids, so 1 to 255 classes; the weights read {num_classes}.")
    if labels is not None:
        if labels.num_classes != num_classes:
            raise ValueError(
                f"--colormap names {labels.num_classes} classes ({', '.join(labels.names[:3])}, ...), the weights "
                f"read {num_classes}. Use that of the training data.{hint}"
            )
        return labels
    colors = distinct_colors(num_classes)
    return LabelSet(tuple(f"class {i}" for i in range(num_classes)), colors, ignore_color=free_color(colors))


def convert_paper(settings: ConvertSettings, labels: LabelSet | None) -> Conversion:
    """Read a checkpoint of the paper's code; widths and the number of classes come from the weights."""
    path = settings.checkpoint
    # Their Lightning files hold the run's settings as objects of their code, beside the weights.
    other_file = "The `ema_model_epoch_N.ckpt` that the paper's training saves beside it holds weights alone. "
    chosen, which = _choose_weights(read_checkpoint(path, other_file), settings.weights, path)
    shape = partial(shape_of, chosen, source="paper", path=path)
    hidden_dim, in_channels = shape("inc.double_conv.0.weight", 4)[:2]
    labels = labels_for(labels, shape("mask_conv.double_conv.0.weight", 4)[1])
    with torch.device("meta"):
        unet = PaperUNet2DModel(
            sample_size=settings.sample_size or 128,
            in_channels=in_channels,
            out_channels=shape("outc.weight", 4)[0],
            num_classes=labels.num_classes,
            hidden_dim=hidden_dim,
            emb_dim=shape("down1.emb_layer.1.weight", 2)[1],
            **labels.to_config(),
        )
    load_weights(unet, chosen, path)
    num_train_timesteps = settings.num_train_timesteps or 1000
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
        weights_file=Path(path),
        work="the network of Bozsó et al., *Semantic Segmentation Mask-Guided Diffusion Models* (WINS 2024), in its "
        f"authors' layout. Weights taken: {which}.",
        sampling=f"Its authors sample all {num_train_timesteps} steps with guidance scale 3.",
        guidance_scale=3.0,
        num_inference_steps=num_train_timesteps,
        details={"weights": which},
    )


def _choose_weights(content, name: str | None, path) -> tuple[dict[str, torch.Tensor], str]:
    """Return the state dict to use, without its prefix, and its description."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = state_dict_of(content, path)
    sets = {
        name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for name, prefix in PAPER_PREFIXES.items()
    }
    if not any(sets.values()):
        if name is not None:
            raise ValueError(
                f"'{path}' holds one set of weights, without {' and '.join(PAPER_PREFIXES.values())} of a Lightning "
                "checkpoint: omit --weights."
            )
        return state, "the only ones in the file"
    others = [key for key in state if not key.startswith(tuple(PAPER_PREFIXES.values()))]
    if others:
        raise ValueError(f"'{path}' holds keys of neither {' nor '.join(PAPER_PREFIXES.values())}: {shorten(others)}.")
    name = name or ("ema" if sets["ema"] else "raw")
    if not sets[name]:
        raise ValueError(f"'{path}' holds no keys of {PAPER_PREFIXES[name]}, so it has no {name} weights.")
    return sets[name], {"ema": "the exponential average (ema_model)", "raw": "as trained (model)"}[name]


def convert_sdm(settings: ConvertSettings, labels: LabelSet | None) -> Conversion:
    """Read a checkpoint of SDM's code; depth, widths, attention and classes come from the weights."""
    path, instance_edges = settings.checkpoint, settings.instance_edges
    num_head_channels = settings.num_head_channels or 64  # as in their scripts
    weights = state_dict_of(read_checkpoint(path), path)
    config = _read_sdm_config(weights, path)
    mask_channels = shape_of(weights, "middle_block.0.in_norm.mlp_shared.0.weight", 4, "sdm", path)[1]
    hint = ""
    if labels is not None and mask_channels == labels.num_classes + 1:
        hint = " Does the last channel hold the instance edges? Then set --instance_edges."
    labels = labels_for(labels, mask_channels - int(instance_edges), hint)
    sample_size = settings.sample_size or SDM_SAMPLE_SIZES.get(config["channel_mult"])
    if sample_size is None:
        raise ValueError(
            f"the widths {config['channel_mult']} x {config['model_channels']} of '{path}' do not determine the size "
            "of its images: set --sample_size."
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
    learned = config["out_channels"] == 2 * config["in_channels"]
    num_train_timesteps = settings.num_train_timesteps or 1000
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
        weights_file=Path(path),
        work="the network of Wang et al., *Semantic Image Synthesis via Diffusion Models* (arXiv 2207.00050), in its "
        "authors' layout.",
        sampling=f"Its authors sample all {num_train_timesteps} steps with guidance scale 1.5.",
        guidance_scale=1.5,
        num_inference_steps=num_train_timesteps,
        details={"num_head_channels": num_head_channels, "instance_edges": instance_edges},
    )


def _read_sdm_config(weights: Mapping[str, torch.Tensor], path) -> dict:
    """Return depth, widths and attention of the network that a state dict belongs to."""
    shape = partial(shape_of, weights, source="sdm", path=path)
    shape("input_blocks.0.0.weight", 4)  # first, since another layout has not even this one
    model_channels = shape("time_embed.0.weight", 2)[1]
    middle_width = shape("middle_block.0.in_layers.1.weight", 4)[0]
    if shape("middle_block.0.emb_layers.1.weight", 2)[0] != 2 * middle_width:
        raise ValueError(f"'{path}' was trained with --use_scale_shift_norm False, which SDM's own scripts never do.")
    if any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight|output_blocks\.\d+\.\d\.conv\.weight", k) for k in weights):
        raise ValueError(f"'{path}' was trained with --resblock_updown False, which SDM's own scripts never do.")
    # An up-sampling block is last in its entry, after another of its kind; each matches one down-sampling block.
    blocks = {match.groups() for key in weights if (match := re.match(r"output_blocks\.(\d+)\.(\d+)\.in_norm\.", key))}
    num_levels = 1 + sum(position != "0" for _, position in blocks)
    num_entries = 1 + max(int(match[1]) for key in weights if (match := re.match(r"input_blocks\.(\d+)\.", key)))
    num_res_blocks, rest = num_entries // num_levels - 1, num_entries % num_levels
    if rest or num_res_blocks < 1:
        raise ValueError(
            f"'{path}' is not in the layout of --from sdm: {num_entries} input_blocks do not make {num_levels} "
            "levels, one more than its output_blocks have up-sampling blocks."
        )
    firsts = [1 + level * (num_res_blocks + 1) for level in range(num_levels)]
    widths = [shape(f"input_blocks.{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
    factors = (width / model_channels for width in widths)
    attentive = [f"input_blocks.{first}.1.qkv.weight" in weights for first in firsts]
    return {
        "in_channels": shape("input_blocks.0.0.weight", 4)[1],
        "out_channels": shape("out.2.weight", 4)[0],
        "model_channels": model_channels,
        "channel_mult": tuple(int(factor) if factor.is_integer() else factor for factor in factors),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(2**level for level, has_attention in enumerate(attentive) if has_attention),
    }


def convert_id_channel(settings: ConvertSettings, labels: LabelSet | None) -> Conversion:
    """Read a pipeline folder of segmentation-guided-diffusion, or the `unet` folder in it."""
    folder, num_classes = Path(settings.checkpoint), settings.num_classes
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "does not exist"
        raise FileNotFoundError(f"'{folder}' {found}; expected the folder that training wrote, with unet/ in it.")
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet_folder / "config.json").is_file():
        raise ValueError(f"'{unet_folder}' holds no config.json, so it is no network that diffusers saved.")
    config = read_json(unet_folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"'{unet_folder}' holds a {config.get('_class_name')}; expected a UNet2DModel.")
    in_channels, out_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if in_channels != out_channels + 1:
        raise ValueError(
            f"'{unet_folder}' has {in_channels} input channels and {out_channels} output channels; expected one more "
            "input channel, the mask's. Was it trained without --segmentation_guided?"
        )
    files = weight_files(unet_folder) or weight_files(unet_folder, variant=only_variant(str(unet_folder)))
    weights_file = files[0] if files else unet_folder / DIFFUSERS_WEIGHTS[1]
    if not weights_file.is_file():
        raise ValueError(f"'{unet_folder}' holds no weights: expected {' or '.join(DIFFUSERS_WEIGHTS)}.")
    if labels is not None and num_classes not in (None, labels.num_classes):
        raise ValueError(
            f"--num_classes is {num_classes}, and --colormap names {labels.num_classes}: set one of them."
        )
    num_classes = num_classes if labels is None else labels.num_classes
    if num_classes is None:
        raise ValueError("the folder does not tell how many classes masks hold: set --num_classes or --colormap.")
    labels = labels_for(labels, num_classes)
    scheduler_file, scheduler = folder / "scheduler" / "scheduler_config.json", DDPMScheduler()  # their code's default
    if scheduler_file.is_file():
        saved = read_json(scheduler_file)
        if saved.get("_class_name") not in KONZ_SCHEDULERS:
            raise ValueError(
                f"'{scheduler_file}' names a {saved.get('_class_name')}; expected {' or '.join(KONZ_SCHEDULERS)}."
            )
        scheduler = getattr(diffusers, saved["_class_name"]).from_config(saved)

    parts = [state_dict_of(read_checkpoint(file), file) for file in files or [weights_file]]
    weights = {name: weight for part in parts for name, weight in part.items()}
    with torch.device("meta"):
        UNet2DModel.from_config(config)._fix_state_dict_keys_on_load(weights)  # attention's names before 2023
        unet = IdChannelUNet2DModel.from_config(
            {**config, "in_channels": out_channels}, num_classes=labels.num_classes, **labels.to_config()
        )
    load_weights(unet, weights, weights_file)
    return Conversion(
        unet=unet,
        scheduler=scheduler,
        labels=labels,
        weights_file=weights_file,
        work="the network of Konz et al., *Anatomically-Controllable Medical Image Generation with "
        "Segmentation-Guided Diffusion Models* (MICCAI 2024), as their code trains it.",
        sampling="Its authors sample without guidance: `guidance_scale=1`. The blank mask that guidance compares with "
        "is only meaningful if it was trained on masks with classes removed.",
        guidance_scale=1.0,
        details={"num_classes": labels.num_classes},
        other_files=tuple(files[1:]),
    )


CONVERTERS = {"paper": convert_paper, "sdm": convert_sdm, "segmentation-guided-diffusion": convert_id_channel}


CONVERSION_FILE = "conversion.json"  # marks a folder that `convert` made, and may replace
KIND = "converted pipeline"


def convert(settings: ConvertSettings) -> None:
    """Convert a published checkpoint into a pipeline folder, and print what it holds.

    Args:
        settings: checkpoint, its source (`source="paper"`, ...) and output folder, with the options of `convert`.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it holds code or another network, options do not fit, or the output folder must not be replaced.
    """
    labels = None if settings.colormap is None else LabelSet.from_name(settings.colormap)
    output = check_output(settings.output, settings.overwrite, CONVERSION_FILE, KIND)  # before gigabytes are read
    conversion = CONVERTERS[settings.source](settings, labels)
    unet, size = conversion.unet, conversion.unet.config.sample_size
    if size is not None and any(side % unet.size_divisor for side in ((size,) if isinstance(size, int) else size)):
        raise ValueError(f"sample_size is {size}; this network generates multiples of {unet.size_divisor} pixels.")
    digest = hash_file(conversion.weights_file, *conversion.other_files)
    record = {
        "from": settings.source,
        "checkpoint": conversion.weights_file.name,
        "sha256": digest,
        **conversion.details,
        "versions": versions("torch", "diffusers"),
    }
    origin = (
        f"Converted by `semseg-diffusers convert --from {settings.source}` from `{conversion.weights_file.name}` "
        f"(SHA-256 {digest}): {conversion.work} Nothing was trained here. {conversion.sampling}"
    )
    with new_folder(output, CONVERSION_FILE, KIND, settings.overwrite) as folder:
        recommended = conversion.num_inference_steps, conversion.guidance_scale
        MaskGuidedDDPMPipeline(unet, conversion.scheduler, *recommended).save_pretrained(folder)
        follow_umask(folder)
        write_text(folder / "README.md", new_model_card(folder, output.name, title=output.name, origin=origin))
        write_json(folder / CONVERSION_FILE, record)

    lines = [
        f"{type(unet).__name__}, {unet.num_parameters():,} parameters, {conversion.labels.num_classes} classes, "
        f"sample_size {size}",
        *([f"weights taken: {conversion.details['weights']}"] if "weights" in conversion.details else []),
        *([] if labels else ["the classes have numbers as names: use --colormap, so that masks in colours are read"]),
        f"written: {output}",
        "its licence is not known here: find it out and set it at the head of README.md before you publish",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
