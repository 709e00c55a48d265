"""Reads the folder of a training run: settings, log, status, record, checkpoints and previews."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from semseg_diffusers.utils.files import is_locked, read_json
from semseg_diffusers.utils.images import grid_cells, image_grid


STATUS_FILE, RECORD_FILE = "status.json", "run.json"
SAVED = ("model_index.json", "config.json")  # of which a finished run has one: of a pipeline, or of an autoencoder
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
FOLDER, OVER_TIME = "previews", "over_time.png"
MOST_STEPS = 8  # columns of samples in the image over time
CELL_SIDE = 128  # pixels of the shorter side there


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to count - 1, evenly spaced, including the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(most - 1, 1)) for index in range(most)]


def read_log(path: Path) -> list[dict]:
    """Return the lines of a log; the last one may be incomplete if a run was killed while writing it."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    found = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in run.glob("checkpoint-*") if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def preview_path(run: Path, step: int) -> Path:
    """Return the file of a step's preview."""
    return run / FOLDER / f"step-{step:07d}.png"


def list_previews(run: Path) -> list[tuple[int, Path]]:
    """Return the previews of a run with their steps, in order."""
    found = [(re.fullmatch(r"step-(\d+)\.png", path.name), path) for path in (run / FOLDER).glob("step-*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)


def previews_over_time(
    previews: list[tuple[int, Path]], beside: tuple[str, str] = ("mask", "image")
) -> Image.Image | None:
    """Return a grid of the first sample of each mask at evenly spaced steps: mask | sample at each step | image.

    Its rows are the masks of the last preview; a step without one leaves its cell empty. None if no preview records
    its cells. `beside` names the columns around the samples.
    """
    sheets = []
    for index in evenly(len(previews), MOST_STEPS):
        step, path = previews[index]
        with Image.open(path) as sheet:
            cells = grid_cells(sheet)
        if cells is not None:
            # first samples by their masks, which settings changed on resume may have replaced
            sheets.append((step, {row[0].tobytes(): row[1] for row in cells}, cells))
    if not sheets:
        return None
    last = {row[0].tobytes(): (row[0], row[-1]) for row in sheets[-1][2]}
    shown = [(step, samples) for step, samples, _ in sheets if samples.keys() & last.keys()]
    rows = [[mask, *[samples.get(key) for _, samples in shown], photo] for key, (mask, photo) in last.items()]
    for row in rows:
        for column, cell in enumerate(row):
            if cell is not None and (scale := CELL_SIDE / min(cell.size)) < 1:
                row[column] = cell.resize([round(side * scale) for side in cell.size], Image.Resampling.LANCZOS)
    return image_grid(
        rows, headers=[beside[0], *[f"step {step:,}" for step, _ in shown], beside[1]], cell_size=CELL_SIDE
    )


@dataclass(frozen=True)
class RunFolder:
    """The content of a run folder."""

    path: Path
    settings: dict[str, Any]
    log: list[dict[str, Any]]  # lines of log.jsonl
    status: dict[str, Any]  # status.json; empty if it is missing
    record: dict[str, Any]  # run.json; empty in a folder of a run that started before there was such a file
    previews: list[tuple[int, Path]]  # steps and files, in order
    checkpoint: str | None  # name of the newest
    is_saved: bool  # whether the pipeline, or the autoencoder, is at the root
    state: str  # "running", "finished", "stopped", "failed", "killed", "unknown"

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as the folder shows."""
        return max(self.log[-1]["step"] if self.log else 0, self.status.get("step", 0))

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the whole run, if known."""
        return self.record.get("num_steps") or self.settings.get("max_train_steps")


def read_run(path: Path) -> RunFolder:
    """Read a run folder, whether its run is active, has ended, or was killed."""
    if not (path / "settings.json").is_file():
        raise ValueError(
            f"'{path}' holds no settings.json: it is not the folder of a run. Expected the --output_dir of "
            "`semseg-diffusers train`."
        )
    status, record = (read_json(path / name) if (path / name).is_file() else {} for name in (STATUS_FILE, RECORD_FILE))
    checkpoints = list_checkpoints(path)
    state = status.get("status", "unknown")
    if state == "running" and not is_locked(path):
        state = "killed"  # it could not write this itself
    return RunFolder(
        path=path,
        settings=read_json(path / "settings.json"),
        log=read_log(path / "log.jsonl"),
        status=status,
        record=record,
        previews=list_previews(path),
        checkpoint=checkpoints[-1].name if checkpoints else None,
        is_saved=any((path / name).is_file() for name in SAVED),
        state=state,
    )
