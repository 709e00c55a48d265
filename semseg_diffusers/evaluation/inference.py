"""Runs a network on many images, shared between processes, with results cached in chunks.

A chunk's file name is a hash of everything it depends on, network and pixels, so a stale result is never used.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.utils.distributed import Processes
from semseg_diffusers.utils.files import written_beside
from semseg_diffusers.utils.progress import progress_bar


CHUNK = 64  # images per file: at most this many are recomputed after an interruption
LISTING_PATIENCE = 60  # seconds until a network file system shows files of another machine


def cached_inference(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: ImageSet,
    *,
    identity: dict[str, Any],
    folder: Path,
    batch_size: int = 16,
    processes: Processes | None = None,
    title: str | None = None,
) -> torch.Tensor | None:
    """Run a network, uint8 (B, 3, H, W) -> (B, ...), on all images, of one size. Called by every process.

    `identity` is JSON that identifies the network; `folder`, shared by all processes, holds the cache. Without a
    `title` there is no progress bar. Returns (N, ...) on the CPU in the main process; None in the others.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [range(len(images))[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    share = processes.share(chunks)
    files: dict[int, str] = {}  # name of each chunk's file, by its first index
    total = sum(map(len, share))
    with progress_bar(total=total, desc=title, unit="image", disable=title is None or not processes.is_main) as bar:
        for chunk in share:
            pixels = torch.stack([images.image(index) for index in chunk])  # (n, 3, H, W)
            digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
            digest.update(str(tuple(pixels.shape)).encode())
            digest.update(pixels.numpy().tobytes())
            path = folder / f"{digest.hexdigest()[:32]}.safetensors"
            files[chunk.start] = path.name
            if _load(path) is not None:
                bar.update(len(chunk))
                continue
            results = []
            for batch in pixels.split(batch_size):
                processes.end_with_launcher()
                results.append(network(batch).cpu())
                bar.update(len(batch))
            _save(path, torch.cat(results))
    for part in processes.gather(files):
        files |= part
    if not processes.is_main:
        return None
    return torch.cat([_load_patiently(folder / files[chunk.start]) for chunk in chunks])  # (N, ...)


def _save(path: Path, results: torch.Tensor) -> None:
    try:
        with written_beside(path) as temporary:
            save_file({"results": results.contiguous()}, temporary)
    except SafetensorError as err:  # also raised for a full disk
        raise OSError(f"'{path}' cannot be written: {err}") from err


def _load(path: Path) -> torch.Tensor | None:
    """Return the results of a chunk; None if the file is missing or damaged."""
    try:
        return load_file(path)["results"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _load_patiently(path: Path) -> torch.Tensor:
    """Return the results of a chunk that another machine may have written just now."""
    deadline = time.monotonic() + LISTING_PATIENCE
    while (results := _load(path)) is None:
        if time.monotonic() > deadline:
            raise OSError(
                f"'{path}', written by another process, is not visible here. Machines that evaluate together need "
                "one file system: use an --output that all of them share."
            )
        time.sleep(1)
    return results
