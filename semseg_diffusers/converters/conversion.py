"""A converted network with its scheduler and what its card says; it becomes a pipeline folder whole, or not at all."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import SchedulerMixin

from semseg_diffusers.converters.checkpoints import file_hash
from semseg_diffusers.data.labels import LabelSet, free_color
from semseg_diffusers.hub.cards import render_model_card
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.files import new_folder, package_version


CONVERSION_FILE = "conversion.json"  # marks a folder that `convert` made, and may replace
KIND = "converted pipeline"


@dataclass(frozen=True)
class Conversion:
    """A network read from a checkpoint of others."""

    unet: torch.nn.Module
    scheduler: SchedulerMixin
    labels: LabelSet
    source: str  # as --from names it
    weights_file: Path
    work: str  # whose network it is, as the card says it
    sampling: str  # how its authors draw with it, as the card says it
    details: dict = field(default_factory=dict)  # more for the record


def labels_for(labels: LabelSet | None, num_classes: int, hint: str = "") -> LabelSet:
    """The label set of a converted network: the one given, or numbers for names and colours that differ.

    Args:
        labels: given by the user, if any.
        num_classes: how many classes the weights read.
        hint: what else may explain another number.

    Raises:
        ValueError: it has another number of classes, or ids of 8 bits cannot count them.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(f"masks hold 8-bit ids, so 1 to 255 classes; the weights read {num_classes}.")
    if labels is not None:
        if labels.num_classes != num_classes:
            raise ValueError(
                f"--colormap names {labels.num_classes} classes ({', '.join(labels.names[:3])}, ...), the weights "
                f"read {num_classes}. Give that of the training data.{hint}"
            )
        return labels
    # 123, 181 and 59 are odd, so no level of a channel comes twice within 256 classes.
    colors = tuple(((123 * i + 7) % 256, (181 * i + 8) % 256, (59 * i + 9) % 256) for i in range(num_classes))
    return LabelSet(tuple(f"class {i}" for i in range(num_classes)), colors, ignore_color=free_color(colors))


def save_conversion(conversion: Conversion, output: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write a pipeline folder with its card and `conversion.json`; after an error nothing is left of it.

    Args:
        conversion: what was read.
        output: the folder; it must not exist, or be empty.
        overwrite: replace a folder that `convert` made, and only such a one.

    Returns:
        the folder.

    Raises:
        ValueError: something else stands there, or the network cannot draw images of its sample size.
    """
    output = Path(os.path.abspath(output))
    unet = conversion.unet
    size = unet.config.sample_size
    if any(side % unet.size_divisor for side in ((size,) if isinstance(size, int) else size or ())):
        raise ValueError(f"sample_size is {size}; this network draws multiples of {unet.size_divisor} pixels.")
    digest = file_hash(conversion.weights_file)
    pipeline = MaskGuidedDDPMPipeline(unet=unet, scheduler=conversion.scheduler)
    record = {
        "from": conversion.source,
        "checkpoint": conversion.weights_file.name,
        "sha256": digest,
        **conversion.details,
        "versions": {
            "semseg_diffusers": package_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
    card = render_model_card(
        conversion.labels,
        title=output.name,
        source=output.name,
        license_name=None,
        network=type(unet).__name__,
        parameters=sum(weight.numel() for weight in unet.parameters()),
        scheduler_config=dict(conversion.scheduler.config),
        origin=(
            f"Converted by `semseg-diffusers convert --from {conversion.source}` from "
            f"`{conversion.weights_file.name}` (SHA-256 {digest}): {conversion.work} Nothing was trained here. "
            f"{conversion.sampling}"
        ),
    )
    with new_folder(output, CONVERSION_FILE, KIND, overwrite) as folder:
        pipeline.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / CONVERSION_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return output
