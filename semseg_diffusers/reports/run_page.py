"""Write the page of a training run: run.html in its folder, whether the run is active, has ended, or was killed.

A run writes its page itself at previews and checkpoints, at most twice a minute, and when it ends; the command
`report` writes it in between and afterwards. Only the run folder is read: neither dataset nor network is needed.
"""

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image

from semseg_diffusers.reports.plots import Plot, line_plot
from semseg_diffusers.reports.render import BarRow, exact, is_finite, write_page
from semseg_diffusers.reports.run_folder import FOLDER, OVER_TIME, RunFolder, previews_over_time, read_run
from semseg_diffusers.utils.images import grid_cells, save_png


PAGE_FILE = "run.html"
MAX_POINTS = 400  # of a line; more than the page has pixels for would only make it large
RUNNING_MEAN = 20  # log lines in the running mean of the loss, if there are more than twice as many
LOGGED = ("step", "loss", "learning_rate", "images_per_second", "data_wait_share", "trained_seconds")  # by every run
RECENT = 20  # log lines that the current speed is measured on
LOGARITHMIC_RATIO = 4.0  # of the largest to the smallest loss, above which the axis is logarithmic

logger = get_logger(__name__)

Points = Sequence[tuple[int, float | None]]


def write_run_page(run: Path, output: Path | None = None, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a run, and its image of samples over time.

    Args:
        run: run folder.
        output: the HTML file; by default `run.html` in the folder, and then `previews/over_time.png` is written too.
        defaults: default of each setting, of a run that did not record them; the others are shown first.

    Returns:
        the page's path.

    Raises:
        ValueError: it is not the folder of a run.
        OSError: the page cannot be written.
    """
    folder = read_run(run)
    beside = ("photo", "difference") if folder.record.get("command") == "autoencoder" else ("mask", "image")
    over_time = previews_over_time(folder.previews, beside)
    if over_time is not None and output is None:
        save_png(run / FOLDER / OVER_TIME, over_time)
    preview = None
    if folder.previews:
        step, path = folder.previews[-1]
        with Image.open(path) as image:
            preview = {"step": step, **_sheet(image.copy())}
    target = output or run / PAGE_FILE
    defaults = folder.record.get("defaults") or defaults or {}
    write_page(
        target,
        "run.html.j2",
        name=run.resolve().name,
        run=folder,
        settings=folder.settings,
        record=folder.record,
        progress=_progress(folder),
        now=datetime.now(timezone.utc).isoformat(timespec="seconds"),  # shows the age of the page of a killed run
        over_time=None if over_time is None else _sheet(over_time),
        preview=preview,
        plots=_plots(folder.log),
        classes=_classes(folder.record),
        changed=[
            [name, exact(value), exact(defaults.get(name))]
            for name, value in folder.settings.items()
            if defaults.get(name) != value
        ],
    )
    return target


def update_run_page(run: Path, defaults: Mapping[str, Any]) -> None:
    """Write the page of an active run; a page that cannot be written does not end the training."""
    try:
        write_run_page(run, defaults=defaults)
    except OSError as err:
        logger.warning(f"warning: {run / PAGE_FILE} could not be written: {err}")


@contextlib.contextmanager
def page_at_end(run: Path, accelerator: Accelerator, defaults: Mapping[str, Any]) -> Iterator[None]:
    """However the block ends, write the page once more; entered before the status is kept, to show its last value."""
    try:
        yield
    finally:
        if accelerator.is_main_process and (run / "settings.json").is_file():  # otherwise the run never started
            update_run_page(run, defaults)


def _progress(folder: RunFolder) -> dict[str, Any]:
    """Return what the log says of loss, speed and time."""
    log = folder.log
    if not log:
        return {}
    losses = [(line["loss"], line["step"]) for line in log if is_finite(line["loss"])]
    # the median, because a preview slows one interval
    speed = statistics.median(line["images_per_second"] for line in log[-RECENT:])
    left = None
    if folder.state == "running" and folder.num_steps and folder.record:
        left = duration((folder.num_steps - folder.step) * folder.record["samples_per_step"] / speed)
    trained = duration(log[-1]["trained_seconds"])
    return {"last": log[-1]["loss"], "least": min(losses, default=None), "speed": speed, "time": trained, "left": left}


def duration(seconds: float) -> str:
    """Write a time in the units that a person would use: `2 h 30 min`."""
    seconds = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // part} {part_name}"
    return f"{seconds // 60} min" if seconds >= 100 else f"{seconds} s"


def _sheet(image: Image.Image) -> dict[str, Any]:
    cells = grid_cells(image)
    return {"image": image, "columns": len(cells[0]) if cells else 4}


def _plots(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Plot]]:
    """Return loss, learning rate and speed over the steps, each with a caption."""
    names = ("loss", "learning_rate", "images_per_second")
    loss, rate, speed = ([(line["step"], line[name]) for line in log] for name in names)
    values = [value for _, value in loss if is_finite(value)]
    if not values:
        return []
    lines = {"each interval": thin(loss)}
    if len(loss) > 2 * RUNNING_MEAN:
        means = [_mean(loss[end - RUNNING_MEAN : end]) for end in range(RUNNING_MEAN, len(loss) + 1)]
        lines[f"mean of {RUNNING_MEAN} intervals"] = thin(means)
    logarithmic = min(values) > 0 and max(values) / min(values) > LOGARITHMIC_RATIO
    y_name = "training loss (the axis is logarithmic)" if logarithmic else "training loss"
    others = {name: thin([(line["step"], line[name]) for line in log if name in line]) for name in _other_terms(log)}
    return [
        ("", line_plot(lines, "optimizer step", y_name, logarithmic)),
        *(
            [("Parts of the loss, without their weights.", line_plot(others, "optimizer step", "loss"))]
            if others
            else []
        ),
        ("", line_plot({"learning rate": thin(rate)}, "optimizer step", "learning rate")),
        (
            "A preview or a checkpoint slows the interval after it.",
            line_plot({"images per second": thin(speed)}, "optimizer step", "images per second"),
        ),
    ]


def _other_terms(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the losses that a distillation or an autoencoder adds up."""
    return [name for name in log[-1] if name not in LOGGED]


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """Return the means of neighbouring points, at most `most`; values that are not finite are skipped."""
    size = math.ceil(len(points) / most) if points else 1
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def _mean(points: Points) -> tuple[int, float | None]:
    values = [value for _, value in points if is_finite(value)]
    return points[-1][0], sum(values) / len(values) if values else None


def _classes(record: Mapping[str, Any]) -> list[BarRow]:
    """Return the share of each class in the labelled pixels, in percent, and its number of masks."""
    classes = sorted(record.get("classes", ()), key=lambda entry: -entry["pixels"])
    labelled = max(sum(entry["pixels"] for entry in classes), 1)
    return [
        BarRow(entry["name"], [100 * entry["pixels"] / labelled], [entry["masks"]], entry["color"])
        for entry in classes
    ]
