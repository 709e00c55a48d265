"""Reads checkpoint files without running code from them, and checks that they fit a network key by key.

A pickle can hold code that runs when it is opened; here pickles are opened with `weights_only=True` only.
"""

import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


SHOWN = 5  # keys that a message names; the rest are counted
# What torch's restricted unpickler raises for files that are no pickles, truncated, or damaged.
BROKEN = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error,
)  # fmt: skip


def read_checkpoint(path: str | os.PathLike, other_file: str = "") -> Any:
    """Open a checkpoint file on the CPU.

    Args:
        path: a file of `torch.save`, or a .safetensors file.
        other_file: a sentence on what to use instead, where the file holds code.

    Returns:
        what was saved: tensors, and containers, numbers and text around them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is a folder, holds code, or is no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; expected the checkpoint file itself.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint '{path}'.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (*BROKEN, SafetensorError) as err:
        code = _code_in(path, str(err))
        if code:
            raise ValueError(
                f"'{path}' holds more than weights: {code}. Opening that can run code of its author, so it was not "
                f"opened. {other_file}If you trust it, extract the weights with the code that made it: "
                "`torch.save(torch.load(PATH, weights_only=False)['state_dict'], 'weights.pt')`, and convert that."
            ) from err
        # Before these words torch advises to load it with weights_only=False.
        reason = str(err).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0][:200]
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint ({type(err).__name__}: {reason}). Is it truncated, or no file "
            "of torch.save? Copy it again."
        ) from err


def _code_in(path: Path, message: str) -> str:
    """Return what the restricted unpickler refused in a file; empty where the file is merely damaged."""
    if "TorchScript" in message:
        return "a TorchScript program"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # reads the opcodes only
    except BROKEN:
        names = []  # a file from before torch 1.6: the message has the first name
    return shorten(sorted(names) or re.findall(r"(?:GLOBAL|unrecognized function) ([\w.]+)", message))


def shorten(names: Iterable[str]) -> str:
    """Join the first few names, and count the rest."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def state_dict_of(content: Any, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the content of a checkpoint, if it is a state dict of weights; else raise a `ValueError`."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"'{path}' holds a {type(content).__name__}; expected a state dict, names with their tensors."
        )
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_sparse
    ]
    if others:
        raise ValueError(f"'{path}' is no state dict of weights: {shorten(others)}.")
    return dict(content)


def shape_of(weights: Mapping[str, torch.Tensor], key: str, num_dims: int, source: str, path) -> tuple[int, ...]:
    """Return the shape of a weight that settings of the network are read from, else raise a `ValueError`."""
    if key not in weights:
        prefixes = {"inc.": "paper", "ema_model.": "paper", "model.": "paper", "input_blocks.": "sdm"}
        others = (name for start, name in prefixes.items() if any(found.startswith(start) for found in weights))
        other = next((name for name in others if name != source), None)
        if any(found.startswith("down_blocks.") for found in weights):
            hint = " It looks like a network of diffusers: --from segmentation-guided-diffusion takes its folder."
        else:
            hint = f" It looks like --from {other}." if other else ""
        raise ValueError(
            f"'{path}' is not in the layout of --from {source}: {key} is missing. It holds {shorten(weights)}.{hint}"
        )
    shape = tuple(weights[key].shape)
    if len(shape) != num_dims or 0 in shape:
        raise ValueError(f"'{path}': {key} has the shape {shape}; expected {num_dims} dimensions for --from {source}.")
    return shape


def load_weights(unet: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Load weights into a network built on the meta device; keys, shapes and finite numbers are checked."""
    expected = unet.state_dict()
    found = {
        "keys are missing": [key for key in expected if key not in weights],
        "keys are unexpected": [key for key in weights if key not in expected],
        "shapes differ": [
            f"{key} {tuple(weights[key].shape)}, expected {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in weights and weights[key].shape != tensor.shape
        ],
    }
    problems = [f"{len(keys)} {what} ({shorten(keys)})" for what, keys in found.items() if keys]
    if problems:
        raise ValueError(f"'{path}' does not fit a {type(unet).__name__}: {'; '.join(problems)}.")
    broken = [key for key, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"'{path}' holds weights that are not finite: {shorten(broken)}. Use an earlier checkpoint.")
    unet.load_state_dict({key: tensor.float().contiguous() for key, tensor in weights.items()}, assign=True)
    unet.requires_grad_(True).eval()
