"""Checkpoints of a run: written under another name and renamed, hashed, rotated, and loaded only if complete.

accelerate's `load_state` unpickles optimizer and RNG state, so a folder is loaded only if every file has the hash that
the run recorded.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import RNG_STATE_NAME
from safetensors import SafetensorError

from semseg_diffusers.reports.run_folder import CHECKPOINT_NAME, list_checkpoints
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.utils.files import hash_file


logger = get_logger(__name__)

HASHES, STATE = "hashes.json", "state.json"
LEFTOVERS = (
    ".checkpoint-*.writing", ".checkpoint-*.removing", ".pipeline.writing", "previews/*.tmp-*",
    "settings.json.tmp-*", "status.json.tmp-*", "log.jsonl.tmp-*", "README.md.tmp-*",
    "run.json.tmp-*", "run.html.tmp-*",
)  # fmt: skip
LISTING_TIMEOUT = 60  # seconds


@contextlib.contextmanager
def atomic_write(target: Path, staging: Path | None, run: Path) -> Iterator[None]:
    """If `target` cannot be written, as on a full disk, remove `staging` and report what is left.

    Raises:
        OSError: in place of the different errors of torch, safetensors and the system.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        before = (
            f"{list_checkpoints(run)[-1]} is complete" if list_checkpoints(run) else "there is no earlier checkpoint"
        )
        raise OSError(
            f"{target} could not be written: {error}; {before}. Free disk space, or check its file size "
            "limit, then resume with --resume_from_checkpoint latest."
        ) from error


def save_checkpoint(
    run: Path,
    step: int,
    accelerator: Accelerator,
    ema: EMA | None,
    state: dict,
    total_limit: int | None,
) -> Path:
    """Write `checkpoint-<step>`, then remove the oldest above `total_limit`. Called by every process.

    Args:
        run: run folder.
        step: optimizer steps done.
        accelerator: holds network, optimizer and scaler.
        ema: weight averages, if any.
        state: JSON values for the loop on resume.
        total_limit: how many checkpoints to keep; None keeps all.

    Returns:
        the checkpoint's folder.

    Raises:
        OSError: it could not be written, as on a full disk; earlier checkpoints are unchanged.
    """
    target, staging = run / f"checkpoint-{step}", run / f".checkpoint-{step}.writing"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    accelerator.wait_for_everyone()
    own = staging if accelerator.is_main_process else None  # only the main process removes shared files
    with atomic_write(target, own, run):
        accelerator.save_state(str(staging))
    accelerator.wait_for_everyone()  # every process writes its random state there
    if accelerator.is_main_process:
        with atomic_write(target, own, run):
            _wait_for_files([staging / f"{RNG_STATE_NAME}_{i}.pkl" for i in range(accelerator.num_processes)])
            if ema is not None:
                state = {**state, **ema.save(staging)}
            (staging / STATE).write_text(json.dumps({"step": step, **state}, indent=2))
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            hashes = {path.relative_to(staging).as_posix(): hash_file(path) for path in files}
            (staging / HASHES).write_text(json.dumps(hashes, indent=2))
            _remove(target)
            os.replace(staging, target)
    if accelerator.is_main_process and total_limit is not None:
        for old in list_checkpoints(run)[:-total_limit]:
            _remove(old)
    accelerator.wait_for_everyone()
    return target


def _remove(checkpoint: Path) -> None:
    """Rename a checkpoint before its files are removed, so that a kill in between leaves no incomplete one."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f".{checkpoint.name}.removing")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _wait_for_files(paths: list[Path]) -> None:
    """Wait until a network file system shows what other machines have written."""
    end = time.monotonic() + LISTING_TIMEOUT
    while missing := [path for path in paths if not path.is_file()]:
        if time.monotonic() > end:
            raise OSError(f"{missing[0]} was written by another process and is not visible here")
        time.sleep(0.1)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run was writing or removing; only the owner of the folder may call this."""
    for pattern in LEFTOVERS:
        for path in run.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def set_aside_later(run: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which do not belong to a run resumed there."""
    for path in list_checkpoints(run):
        if int(CHECKPOINT_NAME.fullmatch(path.name)[1]) > step:
            aside = path.with_name(f"{path.name}.set-aside")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            logger.warning(f"{path} is later than the resumed step: renamed to {aside.name}")


def verify(checkpoint: Path) -> None:
    """Raise ValueError, naming the file, unless every file is there with the hash that the run wrote."""
    try:
        hashes = dict(json.loads((checkpoint / HASHES).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{checkpoint} has no readable {HASHES}: it is not a checkpoint of this package, or it is "
            "incomplete. Only our own checkpoints are resumed, because optimizer state is a pickle."
        ) from error
    present = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} - {HASHES}
    for name in sorted(present ^ set(hashes)):
        raise ValueError(f"{checkpoint / name} is {'not in ' + HASHES if name in present else 'missing'}.")
    for name, digest in hashes.items():
        if hash_file(checkpoint / name) != digest:
            raise ValueError(f"{checkpoint / name} is not what the run wrote (its hash differs); it is not resumed.")


def find_checkpoint(run: Path, which: str) -> Path | None:
    """Return the checkpoint of `--resume_from_checkpoint`: `latest` is the newest complete one, or None.

    Raises:
        ValueError: a checkpoint given by its path is incomplete.
        FileNotFoundError: no such folder.
    """
    if which != "latest":
        for path in (Path(which), run / which):
            if path.is_dir():
                verify(path)
                return path
        raise FileNotFoundError(f"--resume_from_checkpoint {which}: no such folder; `latest` selects the newest.")
    for path in reversed(list_checkpoints(run)):
        try:
            verify(path)
        except ValueError as error:
            logger.warning(f"skipped: {error}")
        else:
            return path
    return None


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, ema: EMA | None) -> dict:
    """Restore network, optimizer, scaler and averages from a verified checkpoint; return its JSON state."""
    state = json.loads((checkpoint / STATE).read_text())
    accelerator.load_state(str(checkpoint))
    if ema is not None:
        ema.load(checkpoint, state)
    return state
