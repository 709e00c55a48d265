"""Pipelines of Konz et al. (segmentation-guided-diffusion): diffusers folders whose network reads class id / 255.

Follows their published code: a `UNet2DModel` with one input channel more than the image has, saved as `unet/` beside
`scheduler/`; only its segmentation channel mode "single" was ever built there.
"""

import os
from pathlib import Path

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel

from semseg_diffusers.converters.checkpoints import load_weights, read_checkpoint, state_dict_of
from semseg_diffusers.converters.conversion import Conversion, labels_for
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.folders import read_json
from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel


SOURCE = "segmentation-guided-diffusion"
WORK = (
    "the network of Konz et al., *Anatomically-Controllable Medical Image Generation with Segmentation-Guided "
    "Diffusion Models* (MICCAI 2024), as their code trains it."
)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")  # those that their code samples with


def convert_id_channel(
    folder: str | os.PathLike, *, labels: LabelSet | None = None, num_classes: int | None = None
) -> Conversion:
    """Read a pipeline folder, or the `unet` folder in it, of their code.

    Args:
        folder: the output folder of their training.
        labels: the classes, background first; "class 0", ... if None.
        num_classes: how many classes masks hold, background counted, where no `labels` tell: no weight does.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no such network, or nothing says how many classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "a file" if folder.is_file() else "not there"
        raise FileNotFoundError(f"'{folder}' is {kind}; wanted the folder that training wrote, with unet/ in it.")
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet_folder / "config.json").is_file():
        raise ValueError(f"'{unet_folder}' holds no config.json, so it is no network that diffusers saved.")
    config = read_json(unet_folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"'{unet_folder}' holds a {config.get('_class_name')}; wanted the UNet2DModel of --from {SOURCE}."
        )
    in_channels, out_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if in_channels != out_channels + 1:
        raise ValueError(
            f"'{unet_folder}' takes {in_channels} channels and gives {out_channels}; wanted one more taken than "
            "given, the mask's. Was it trained without --segmentation_guided?"
        )
    weights_file = next((unet_folder / name for name in WEIGHTS if (unet_folder / name).is_file()), None)
    if weights_file is None:
        raise ValueError(f"'{unet_folder}' holds no weights: wanted {' or '.join(WEIGHTS)}.")
    if labels is None and num_classes is None:
        raise ValueError("nothing in the folder says how many classes masks hold: give --num_classes or --colormap.")
    if labels is not None and num_classes not in (None, labels.num_classes):
        raise ValueError(
            f"--num_classes is {num_classes}, and --colormap names {labels.num_classes}: give one of them."
        )
    labels = labels_for(labels, num_classes or labels.num_classes)
    scheduler = _scheduler(folder)

    weights = state_dict_of(read_checkpoint(weights_file), weights_file)
    with torch.device("meta"):
        UNet2DModel.from_config(config)._fix_state_dict_keys_on_load(weights)  # names of attention before 2023
        unet = IdChannelUNet2DModel.from_config(
            {**config, "in_channels": out_channels}, num_classes=labels.num_classes, **labels.to_config()
        )
    load_weights(unet, weights, weights_file)
    return Conversion(
        unet=unet,
        scheduler=scheduler,
        labels=labels,
        source=SOURCE,
        weights_file=weights_file,
        work=WORK,
        sampling="Its authors sample without guidance: `guidance_scale=1`. The blank mask that guidance compares with "
        "means something only where it was trained on masks with classes removed.",
        details={"num_classes": labels.num_classes},
    )


def _scheduler(folder: Path) -> SchedulerMixin:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return DDPMScheduler()  # 1000 steps, linear: what their code makes
    config = read_json(path)
    if config.get("_class_name") not in SCHEDULERS:
        raise ValueError(f"'{path}' names a {config.get('_class_name')}; wanted {' or '.join(SCHEDULERS)}.")
    return getattr(diffusers, config["_class_name"]).from_config(config)
