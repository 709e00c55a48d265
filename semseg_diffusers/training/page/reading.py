"""Reads what a run folder says of its run: settings, log, status, previews, checkpoints. No data set is needed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semseg_diffusers.launch import is_owned
from semseg_diffusers.training.checkpoints import list_checkpoints
from semseg_diffusers.training.previews import list_previews
from semseg_diffusers.training.run_folder import STATUS_FILE, read_log
from semseg_diffusers.training.run_record import read_record_of


@dataclass(frozen=True)
class RunFolder:
    """What lies in the folder of a run."""

    path: Path
    settings: dict[str, Any]
    log: list[dict[str, Any]]  # lines of log.jsonl
    status: dict[str, Any]  # status.json; empty where there is none
    record: dict[str, Any]  # run.json; empty where the run began before there was such a file
    previews: list[tuple[int, Path]]  # step and picture, the first step first
    checkpoint: str | None  # name of the newest
    is_saved: bool  # whether the pipeline is at the root
    state: str  # "running", "finished", "stopped", "failed", "killed", "unknown"

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as the folder knows."""
        return max(self.log[-1]["step"] if self.log else 0, self.status.get("step", 0))

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run, where known."""
        return self.record.get("num_steps") or self.settings.get("max_train_steps")


def read_run(path: Path) -> RunFolder:
    """Read a run folder, whether its run goes on, has ended, or was killed.

    Raises:
        ValueError: it is not the folder of a run, or a file in it is no JSON.
    """
    if not (path / "settings.json").is_file():
        raise ValueError(
            f"'{path}' holds no settings.json: it is not the folder of a run. Wanted the --output_dir of "
            "`semseg-diffusers train`."
        )
    status = _json(path / STATUS_FILE) if (path / STATUS_FILE).is_file() else {}
    checkpoints = list_checkpoints(path)
    state = status.get("status", "unknown")
    if state == "running" and not is_owned(path):
        state = "killed"  # it could not say so itself
    return RunFolder(
        path=path,
        settings=_json(path / "settings.json"),
        log=read_log(path / "log.jsonl"),
        status=status,
        record=read_record_of(path) or {},
        previews=list_previews(path),
        checkpoint=checkpoints[-1].name if checkpoints else None,
        is_saved=(path / "model_index.json").is_file(),
        state=state,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as err:
        raise ValueError(f"'{path}' is not the JSON that a run writes: {err}") from err
