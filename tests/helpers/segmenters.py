"""Segmentation networks in folders, as `semseg-diffusers segmenter` writes them."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def save_network(folder: Path, network: PreTrainedModel, processor: dict[str, Any]) -> Path:
    """Save a network with the settings of its image processor."""
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
