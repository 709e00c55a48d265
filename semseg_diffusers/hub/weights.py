"""Weights as `save_pretrained` of diffusers and transformers writes them: one file, or shards and their index."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file

from semseg_diffusers.utils.files import read_json
from semseg_diffusers.utils.hub_errors import hub_errors


logger = logging.getLogger(__name__)

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # how the names of their files start


def weight_files(
    find: Path | Callable[[str], Path | None], stem: str = DIFFUSERS, variant: str | None = None
) -> list[Path]:
    """Return the safetensors files of a network: one, or its shards; none if it has none.

    Args:
        find: its folder, or what returns the path of one of its files, None without.
        stem: `DIFFUSERS` or `TRANSFORMERS`.
        variant: of the weights; by default their own.

    Raises:
        ValueError: a shard is missing, or the index is damaged.
    """
    if isinstance(find, Path):
        folder = find
        return weight_files(lambda name: folder / name if (folder / name).is_file() else None, stem, variant)
    part = "" if variant is None else f".{variant}"
    whole = find(f"{stem}{part}.safetensors")
    if whole is not None:
        return [whole]
    index = find(f"{stem}.safetensors.index{part}.json")
    if index is None:
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and "/" not in name for name in shards.values()):
        raise ValueError(f"'{index}' names no shards of weights; expected the index that `save_pretrained` writes.")
    files = {name: find(name) for name in sorted({*shards.values()})}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} of the {len(files)} shards in '{index}' is missing. Copy or download it again."
        )
    return [file for file in files.values() if file is not None]


def read_weights(files: list[Path]) -> dict[str, torch.Tensor]:
    """Return the weights in the files of `weight_files`; a ValueError names a damaged one."""
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as err:
            raise ValueError(f"{file} cannot be read: {err}. Is it complete?") from err
    return weights


def stored_variants(name: str, subfolder: str = "", stem: str = DIFFUSERS, revision: str | None = None) -> list[str]:
    """Return the variants of a network's weights, in a local folder or on the Hub; "" are its own."""
    if Path(name).is_dir():
        files = [path.name for path in Path(name, subfolder).glob("*")]
    else:
        with hub_errors(f"listing the weights of '{name}'", name, revision=revision):
            paths = HfApi().list_repo_files(name, revision=revision)
        prefix = f"{subfolder}/" if subfolder else ""
        files = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    shard = r"(-\d{5}-of-\d{5})?"
    pattern = re.compile(rf"{stem}{shard}(\.(?P<variant>[^./]+?))?{shard}\.(safetensors|bin)")
    return sorted({match["variant"] or "" for match in map(pattern.fullmatch, files) if match})


def only_variant(name: str, subfolder: str = "", stem: str = DIFFUSERS, revision: str | None = None) -> str | None:
    """Return the variant to load if a network has no weights of its own, with a warning.

    Returns:
        its name; None if there are own weights, or none at all.

    Raises:
        ValueError: there are several variants.
    """
    variants = stored_variants(name, subfolder, stem, revision)
    if not variants or "" in variants:
        return None
    if len(variants) > 1:
        raise ValueError(
            f"'{name}' holds no weights but the variants {', '.join(variants)}: give one with --variant, or where "
            "there is no such option, save it without `variant`."
        )
    logger.warning(f"'{name}' holds no weights but the variant `{variants[0]}`, which is loaded.")
    return variants[0]
