"""What lies in a run folder and what may go on there: settings, log, the saved pipeline, the checkpoint to resume."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from accelerate.logging import get_logger
from filelock import FileLock, Timeout

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.loading import PairDataset
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline, write_text
from semseg_diffusers.training.checkpoints import (
    STATE,
    find_checkpoint,
    list_checkpoints,
    remove_leftovers,
    written_whole,
)
from semseg_diffusers.training.interruption import TrainingStoppedError
from semseg_diffusers.training.settings import TrainingSettings


logger = get_logger(__name__)

STATUS_FILE, LOCK_FILE = "status.json", ".lock"

# Settings that may differ between a checkpoint and the run that resumes it; any other would make it another run. Of
# the batch only the samples a step count: how processes and accumulation share them may change.
CHANGEABLE_ON_RESUME = frozenset(
    (
        "dataset", "output_dir", "validation_split", "dataloader_num_workers", "max_train_steps", "num_train_epochs",
        "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "logging_steps", "preview_steps",
        "preview_masks", "preview_samples", "preview_inference_steps", "preview_guidance_scale", "report_to", "device",
        "gradient_checkpointing", "train_batch_size", "gradient_accumulation_steps", "push_to_hub", "hub_model_id",
        "hub_private_repo",
    )
)  # fmt: skip


class RunLog:
    """`log.jsonl` of a run: one JSON line an interval; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path = path
        self.enabled = enabled
        self.last: dict = {}
        if enabled:
            kept = [line for line in _read_log(path) if line["step"] <= step]
            self.last = kept[-1] if kept else {}
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict) -> None:
        self.last = values
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def _read_log(path: Path) -> list[dict]:
    """The lines of a log; the last one may be cut off, where a run was killed while it wrote."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


@contextlib.contextmanager
def run_status(run: Path, enabled: bool) -> Iterator[dict]:
    """Own a run folder, and keep `status.json` in it true: "running", then "finished", "stopped" or "failed".

    A killed run leaves "running" behind. What the caller puts into the dictionary (`step`) is written as well.

    Args:
        run: run folder.
        enabled: true in the main process; the others write only why they failed.

    Raises:
        ValueError: another process trains into this folder.
    """
    status: dict = {"step": 0}

    def write(state: str, reason: str | None) -> None:
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"status": state, "reason": reason, **status, "time": stamp, "pid": os.getpid()}
        write_text(run / STATUS_FILE, json.dumps(record, indent=2) + "\n")

    def fail(reason: str) -> None:
        with contextlib.suppress(OSError):  # the disk may be what failed
            path = run / STATUS_FILE
            before = json.loads(path.read_text(encoding="utf-8"))["status"] if path.is_file() else None
            if before != "failed":  # else another process said why, and this is what came of it
                write("failed", reason)

    lock = FileLock(run / LOCK_FILE)
    if enabled:
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"another process is training into {run}. Wait for it or stop it, or name another --output_dir."
            ) from error
    try:
        if enabled:
            remove_leftovers(run)
            write("running", None)
        yield status
        if enabled:
            write("finished", None)
    except TrainingStoppedError as stopped:
        if enabled:
            write("stopped", stopped.reason)
        raise
    except BaseException as error:
        fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.release()


def save_pipeline(pipeline: MaskGuidedDDPMPipeline, folder: Path) -> None:
    """Save a pipeline beside its place and move it there, file by file, so that no file is ever half-written."""
    staging = folder / ".pipeline.writing"
    shutil.rmtree(staging, ignore_errors=True)
    with written_whole(folder / "unet", staging, folder):
        pipeline.save_pretrained(staging)
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(staging, ignore_errors=True)


def folder_to_resume(settings: TrainingSettings, pairs: PairDataset, run: Path, samples_per_step: int) -> Path | None:
    """The checkpoint to go on from, or None; a run folder in use is not overwritten without a word."""
    if settings.resume_from_checkpoint is None:
        if list_checkpoints(run) or (run / "model_index.json").exists():
            raise ValueError(
                f"--output_dir {run} already holds a run. Go on with it by --resume_from_checkpoint latest, or name "
                "another folder."
            )
        return None
    checkpoint = find_checkpoint(run, settings.resume_from_checkpoint)
    if checkpoint is None:
        logger.warning(f"{run} holds no whole checkpoint: the run starts at step 0")
        return None
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    trained, given = LabelSet.from_config(state["labels"]), pairs.labels
    if trained != given:
        raise ValueError(
            f"{checkpoint} draws {trained.num_classes} classes ({', '.join(trained.names[:3])}, ...), the data has "
            f"{given.num_classes} ({', '.join(given.names[:3])}, ...). Resume with the data set of the run, or start "
            "a new run in another folder."
        )
    if state["num_pairs"] != len(pairs):
        raise ValueError(
            f"{checkpoint} was trained on {state['num_pairs']} pairs, the data set now has {len(pairs)}. Resume with "
            "the data set of the run, or start a new run in another folder."
        )
    if state["samples_per_step"] != samples_per_step:
        raise ValueError(
            f"{checkpoint} saw {state['samples_per_step']} samples a step, this run would see {samples_per_step} "
            "(--train_batch_size x --gradient_accumulation_steps x processes). Choose them so that the product is the "
            "same."
        )
    saved, now = state["settings"], json.loads(settings.to_json())
    differing = [name for name in now if name not in CHANGEABLE_ON_RESUME and saved.get(name) != now[name]]
    if differing:
        was = ", ".join(f"--{name} {saved.get(name)} (now {now[name]})" for name in differing)
        raise ValueError(f"{checkpoint} is of a run with other settings: {was}. Give the same, or start a new run.")
    return checkpoint
