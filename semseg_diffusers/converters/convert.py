"""Converts a published checkpoint into a pipeline folder, complete or not at all."""

import sys

import diffusers
import torch

from semseg_diffusers.converters.settings import ConvertSettings
from semseg_diffusers.converters.sources import CONVERTERS
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.hub.cards import new_model_card
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.files import check_output, hash_file, new_folder, package_version, write_json, write_text


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
    digest = hash_file(conversion.weights_file)
    record = {
        "from": settings.source,
        "checkpoint": conversion.weights_file.name,
        "sha256": digest,
        **conversion.details,
        "versions": {
            "semseg_diffusers": package_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
    origin = (
        f"Converted by `semseg-diffusers convert --from {settings.source}` from `{conversion.weights_file.name}` "
        f"(SHA-256 {digest}): {conversion.work} Nothing was trained here. {conversion.sampling}"
    )
    with new_folder(output, CONVERSION_FILE, KIND, settings.overwrite) as folder:
        MaskGuidedDDPMPipeline(unet=unet, scheduler=conversion.scheduler).save_pretrained(folder)
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
