"""The weights that the golden values in tests/golden were made with, from a formula: none are stored.

tests/golden/README.md states the formula and says where the values come from.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file


GOLDEN = Path(__file__).parents[1] / "golden"


def golden_config(name: str) -> dict:
    """Return the constructor settings of a golden network, such as "paper_unet_tiny", under its authors' names."""
    return json.loads((GOLDEN / "configs.json").read_text())[name]


def golden_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return every key of a golden network's state dict with its shape."""
    shapes = json.loads((GOLDEN / "configs.json").read_text())["state_dict_shapes"][name]
    return {key: tuple(shape) for key, shape in shapes.items()}


def golden_values(name: str) -> dict[str, torch.Tensor]:
    """Return the stored inputs and outputs of a golden network."""
    return load_file(GOLDEN / f"{name}_io.safetensors")


def golden_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Build the state dict of a golden network.

    Args:
        shapes: every key of the authors' state dict with its shape; keys count in sorted order.

    Returns:
        float32 tensors under the same keys.
    """
    weights = {}
    for k, key in enumerate(sorted(shapes)):
        shape = shapes[key]
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        v = torch.sin(i * 12.9898 + k * 78.233) * 43758.5453
        u = (v - v.floor()) * 2 - 1
        if len(shape) == 1:
            values = 0.1 * u + (1 if key.endswith("weight") else 0)
        else:
            values = u * math.sqrt(3 / math.prod(shape[1:]))
        weights[key] = values.to(torch.float32).reshape(shape)
    return weights
