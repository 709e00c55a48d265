"""One pass of a network over many images, shared between processes, in pieces that a later run need not do again.
A piece is filed under the hash of what it depends on, network and pixels: whatever changes, it is never mistaken."""

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
from semseg_diffusers.utils.images import written_beside
from semseg_diffusers.utils.progress import progress_bar


CHUNK = 64  # images in a piece: what is lost when a run is killed
LISTING_PATIENCE = 60  # seconds until a network file system shows what another machine has written


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
    """Give all images to a network. Called by every process.

    Args:
        network: uint8 (B, 3, H, W) -> tensor (B, ...).
        images: all of one size.
        identity: JSON of what the network is (its weights' hash, its input size, ...).
        folder: where the pieces lie; all processes see it.
        batch_size: images a forward.
        processes: those that share the work; by default this one alone.
        title: of the progress bar; None shows none.

    Returns:
        (N, ...) on the CPU in the order of the images, in the main process; None in the others.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, len(images), CHUNK))
    share = processes.share(starts)
    files: dict[int, str] = {}
    total = sum(len(range(start, min(start + CHUNK, len(images)))) for start in share)
    with progress_bar(total=total, desc=title, unit="image", disable=title is None or not processes.is_main) as bar:
        for start in share:
            pixels = torch.stack([images.image(index) for index in range(start, min(start + CHUNK, len(images)))])
            path = folder / f"{_digest(identity, pixels)}.safetensors"
            if _load(path) is None:
                results = []
                for batch in pixels.split(batch_size):
                    processes.end_with_launcher()
                    results.append(network(batch).cpu())
                    bar.update(len(batch))
                _save(path, torch.cat(results))
            else:
                bar.update(len(pixels))
            files[start] = path.name
    everyone = {start: name for part in processes.gather(files) for start, name in part.items()}
    if not processes.is_main:
        return None
    return torch.cat([_load_patiently(folder / everyone[start]) for start in starts])  # (N, ...)


def _digest(identity: dict[str, Any], pixels: torch.Tensor) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(str(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy())
    return digest.hexdigest()[:32]


def _save(path: Path, results: torch.Tensor) -> None:
    try:
        with written_beside(path) as temporary:
            save_file({"results": results.contiguous()}, temporary)
    except SafetensorError as err:  # its own for a full disk, too
        raise OSError(f"'{path}' cannot be written: {err}") from err


def _load(path: Path) -> torch.Tensor | None:
    """The results of a piece; None where it is not there, or damaged."""
    try:
        return load_file(path)["results"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _load_patiently(path: Path) -> torch.Tensor:
    """The results of a piece that another machine may have written just now.

    Raises:
        OSError: it is not to be seen from here.
    """
    deadline = time.monotonic() + LISTING_PATIENCE
    while (results := _load(path)) is None:
        if time.monotonic() > deadline:
            raise OSError(
                f"'{path}', which another process wrote, is not to be seen here. Machines that evaluate together need "
                "one file system: give an --output that all of them share."
            )
        time.sleep(1)
    return results
