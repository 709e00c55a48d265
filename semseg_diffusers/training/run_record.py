"""What is known of a run when it begins, beside its settings: data, network, length, warnings, in `run.json`.
The page of the run (`page/`) reads it, so that the page can be made again without the data set."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from accelerate import Accelerator

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import package_version
from semseg_diffusers.pipelines.saved_files import write_text
from semseg_diffusers.training.class_counts import ClassCounts


RECORD_FILE = "run.json"


def write_record(
    run: Path,
    accelerator: Accelerator,
    labels: LabelSet,
    counts: ClassCounts,
    *,
    unet: torch.nn.Module,
    source_format: str | None,
    num_steps: int,
    samples_per_step: int,
    warnings: Sequence[str],
) -> None:
    """Write `run.json`; a run that is resumed writes it anew.

    Args:
        run: run folder.
        accelerator: of the run.
        labels: of the masks.
        counts: what the training masks hold.
        unet: the network.
        source_format: what the data was prepared from (`camvid`, `toy`, ...), where known.
        num_steps: optimizer steps of the whole run.
        samples_per_step: images an optimizer step.
        warnings: what `find_cautions` says.
    """
    size = unet.config.sample_size
    record = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "num_steps": num_steps,
        "samples_per_step": samples_per_step,
        "num_pairs": counts.num_masks,
        "source_format": source_format,
        "network": type(unet).__name__,
        "num_weights": sum(weight.numel() for weight in unet.parameters()),
        "size": [size, size] if isinstance(size, int) else list(size),
        "masks_counted": len(counts.pixels),
        "unknown_pixels": int(counts.pixels[:, -1].sum()),
        "classes": [
            {"name": name, "color": list(color), "pixels": pixels, "masks": masks}
            for name, color, pixels, masks in zip(
                labels.names,
                labels.colors,
                counts.class_pixels.tolist(),
                counts.masks_of_class.tolist(),
                strict=True,
            )
        ],
        "warnings": list(warnings),
        "num_processes": accelerator.num_processes,
        "device": _device_name(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": {
            "semseg_diffusers": package_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
    }
    write_text(run / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_record_of(run: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None in the folder of a run that began before there was such a file."""
    path = run / RECORD_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {os.cpu_count()} cores" if device.type == "cpu" else device.type
