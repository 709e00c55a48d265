"""Writes the page of a training run: run.html in its folder, whether the run is going on, has ended, or was killed.

A run writes its page itself at each preview and checkpoint; the command `report` writes it in between and afterwards.
Only the run folder is read: neither the dataset nor the network is needed.
"""

import contextlib
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image

from semseg_diffusers.reports.plots import Plot, line_plot
from semseg_diffusers.reports.render import BarRow, exact, is_finite, number, percent, write_page
from semseg_diffusers.reports.run_folder import FOLDER, OVER_TIME, RunFolder, previews_over_time, read_run
from semseg_diffusers.utils.images import grid_cells, save_png


PAGE_FILE = "run.html"
MAX_POINTS = 400  # of a line; more than the page has pixels for would only make it large
RUNNING_MEAN = 20  # log lines in the running mean of the loss, if there are more than twice as many
RECENT = 20  # log lines that the current speed is measured on
LOGARITHMIC_RATIO = 4.0  # of the largest to the smallest loss, above which the axis is logarithmic

logger = get_logger(__name__)

Points = Sequence[tuple[int, float | None]]


def write_run_page(run: Path, output: Path | None = None, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a run, and its image of samples over time.

    Args:
        run: run folder.
        output: the HTML file; by default `run.html` in the folder, and then `previews/over_time.png` is written too.
        defaults: default of each setting; the others are shown first.

    Returns:
        the page's path.

    Raises:
        ValueError: it is not the folder of a run.
        OSError: the page cannot be written.
    """
    folder = read_run(run)
    over_time = previews_over_time(folder.previews)
    if over_time is not None and output is None:
        save_png(run / FOLDER / OVER_TIME, over_time)
    target = output or run / PAGE_FILE
    defaults = defaults or {}
    write_page(
        target,
        "run.html.j2",
        name=run.resolve().name,
        lead=_state_text(folder),
        settings=folder.settings,
        record=folder.record,
        state=_state(folder),
        preview=_preview(folder),
        over_time=over_time,
        over_time_columns=0 if over_time is None else _columns(over_time),
        plots=_plots(folder.log),
        steps=_next_steps(folder),
        changed=[
            [name, exact(value), exact(defaults.get(name))]
            for name, value in folder.settings.items()
            if defaults.get(name) != value
        ],
        started=folder.record.get("begun"),
        **_data(folder),
    )
    return target


def update_run_page(run: Path, defaults: Mapping[str, Any]) -> None:
    """Write the page of a run that is going on; a page that cannot be written does not end the training."""
    try:
        write_run_page(run, defaults=defaults)
    except OSError as err:
        logger.warning(f"warning: {run / PAGE_FILE} could not be written: {err}")


@contextlib.contextmanager
def page_at_end(run: Path, accelerator: Accelerator, defaults: Mapping[str, Any]) -> Iterator[None]:
    """However the block ends, write the page once more; entered before `run_status`, whose last status it shows."""
    try:
        yield
    finally:
        if accelerator.is_main_process and (run / "settings.json").is_file():  # otherwise the run never started
            update_run_page(run, defaults)


# State ---------------------------------------------------------------------------------------------------------------


def _state_text(folder: RunFolder) -> str:
    of = f" of {folder.num_steps:,}" if folder.num_steps else ""
    at, reason = f"step {folder.step:,}{of}", folder.status.get("reason")
    return {
        "running": f"Running, at {at}. The page is written again at each preview and checkpoint: reload it.",
        "finished": f"Finished after {at}.",
        "stopped": f"Stopped by {reason} after {at}; a checkpoint was saved.",
        "failed": f"Failed after {at}: {reason}.",
        "killed": f"Ended without a message after {at}, as when it is killed or the machine goes down.",
        "unknown": f"At {at}; the folder does not record the state of the run.",
    }[folder.state]


def _state(folder: RunFolder) -> dict[str, str]:
    """Return the facts that a person asks for first."""
    log, record, num_steps = folder.log, folder.record, folder.num_steps
    facts = {"Step": f"{folder.step:,}"}
    if num_steps:
        facts["Step"] += f" of {num_steps:,} ({folder.step / num_steps:.0%})"
    if log:
        losses = [(line["loss"], line["step"]) for line in log if is_finite(line["loss"])]
        least = f"; the least was {number(min(losses)[0])} at step {min(losses)[1]:,}" if losses else ""
        # the median, because a preview slows one interval
        speed = statistics.median(line["images_per_second"] for line in log[-RECENT:])
        facts["Loss"] = f"{number(log[-1]['loss'])}, mean of the last interval{least}"
        facts["Speed"] = f"{number(speed)} images/s"
        facts["Trained for"] = duration(log[-1]["trained_seconds"])
        if folder.state == "running" and num_steps and record:
            left = (num_steps - folder.step) * record["samples_per_step"] / speed
            facts["Time left"] = f"about {duration(left)}"
    if record:
        seen, pairs = folder.step * record["samples_per_step"], record["num_pairs"]
        height, width = record["size"]
        facts["Images seen"] = f"{seen:,}: each of {pairs:,} pairs {seen / pairs:.3g} times on average"
        facts["Network"] = f"{record['network']}, {record['num_weights']:,} weights, {height} x {width} pixels"
        facts["Machine"] = (
            f"{record['num_processes']} process(es) on {record['device']}, "
            f"{record['samples_per_step']} images a step, mixed precision {record['mixed_precision']}"
        )
    if folder.state in ("finished", "stopped", "failed"):
        facts["Ended"] = exact(folder.status.get("time"))
    facts["Page written"] = datetime.now(timezone.utc).isoformat(timespec="seconds")  # shows the age of a killed run
    return facts


def duration(seconds: float) -> str:
    """Write a time in the units that a person would use.

    Example:
        >>> duration(42), duration(600), duration(9000), duration(200000)
        ('42 s', '10 min', '2 h 30 min', '2 d 7 h')
    """
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    for larger, smaller, names in ((86400, 3600, "d h"), (3600, 60, "h min")):
        if seconds >= larger:
            large, small = names.split()
            whole, rest = divmod(seconds, larger)
            return f"{whole} {large} {rest // smaller} {small}"
    return f"{seconds // 60} min"


# Samples and curves --------------------------------------------------------------------------------------------------


def _preview(folder: RunFolder) -> dict[str, Any] | None:
    """Return the last preview."""
    if not folder.previews:
        return None
    step, path = folder.previews[-1]
    with Image.open(path) as image:
        image.load()
    return {"step": f"{step:,}", "image": image, "columns": _columns(image)}


def _columns(sheet: Image.Image) -> int:
    cells = grid_cells(sheet)
    return len(cells[0]) if cells else 4


def _plots(log: Sequence[Mapping[str, Any]]) -> dict[str, Plot]:
    """Return loss, learning rate and speed over the steps, by caption."""

    def points(name: str) -> Points:
        return [(line["step"], line[name]) for line in log]

    loss = points("loss")
    values = [value for _, value in loss if is_finite(value)]
    if not values:
        return {}
    lines = {"each interval": thin(loss)}
    if len(loss) > 2 * RUNNING_MEAN:
        lines[f"mean of {RUNNING_MEAN} intervals"] = thin(_running_mean(loss, RUNNING_MEAN))
    logarithmic = min(values) > 0 and max(values) / min(values) > LOGARITHMIC_RATIO
    scale = " (the axis is logarithmic)" if logarithmic else ""
    plots = {"Training loss": line_plot(lines, "optimizer step", f"loss{scale}", logarithmic)}
    slowed = "Images per second; a preview or a checkpoint slows the interval after it"
    for name, caption in (("learning_rate", "Learning rate"), ("images_per_second", slowed)):
        text = name.replace("_", " ")
        plots[caption] = line_plot({text: thin(points(name))}, "optimizer step", text)
    return plots


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """Return the means of neighbouring points, at most `most`; values that are not finite are skipped.

    Example:
        >>> thin([(1, 4.0), (2, 2.0), (3, 1.0)], most=2)
        [(2, 3.0), (3, 1.0)]
    """
    size = math.ceil(len(points) / most) if points else 1
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def _running_mean(points: Points, length: int) -> Points:
    return [_mean(points[end - length : end]) for end in range(length, len(points) + 1)]


def _mean(points: Points) -> tuple[int, float | None]:
    values = [value for _, value in points if value is not None and math.isfinite(value)]
    return points[-1][0], sum(values) / len(values) if values else None


# Data and commands ---------------------------------------------------------------------------------------------------


def _data(folder: RunFolder) -> dict[str, Any]:
    """Return facts on the training data and a bar for each class."""
    settings, record = folder.settings, folder.record
    facts = {"Dataset": exact(settings.get("dataset")), "Split": exact(settings.get("train_split"))}
    if not record:
        return {"data": facts, "classes": [], "counted": ""}
    classes, counted = record["classes"], record["masks_counted"]
    labelled = sum(entry["pixels"] for entry in classes)
    facts |= {
        "Pairs": f"{record['num_pairs']:,}",
        "Prepared from": exact(record["source_format"]),
        "Classes": f"{len(classes)}, of which the masks hold {sum(entry['masks'] > 0 for entry in classes)}",
        "Unknown pixels": percent(record["unknown_pixels"] / max(labelled + record["unknown_pixels"], 1)),
    }
    rows = [
        BarRow(entry["name"], [100 * entry["pixels"] / max(labelled, 1)], [entry["masks"]], entry["color"])
        for entry in sorted(classes, key=lambda entry: -entry["pixels"])
    ]
    text = "" if counted == record["num_pairs"] else f" Counted in {counted:,} masks at even distances."
    return {"data": facts, "classes": rows, "counted": text}


def _next_steps(folder: RunFolder) -> list[tuple[str, str | None]]:
    """Return what can be done with the run, and the command for it."""
    run, settings = str(folder.path), folder.settings
    processes = folder.record.get("num_processes", 1)
    train = ["semseg-diffusers", "train"]
    if processes > 1:
        train = ["accelerate", "launch", "--num_processes", str(processes), "-m", "semseg_diffusers.training"]
    train += ["--config", f"{run}/settings.json", "--resume_from_checkpoint", "latest"]
    steps: list[tuple[str, str | None]] = []
    if folder.state in ("stopped", "failed", "killed", "unknown") and folder.checkpoint:
        steps.append((f"Resume from {folder.checkpoint}, as if the run had never ended:", shlex.join(train)))
    elif folder.state in ("stopped", "failed", "killed"):
        steps.append(("There is no checkpoint to resume from yet: give the command again.", None))
    if folder.is_saved:
        generate = ["generate", "--model", run, "--masks", "MASKS", "--output", "IMAGES"]
        data = ["--dataset", settings["dataset"], "--split", settings["validation_split"]]
        evaluate = ["evaluate", "--model", run, *data, "--output", "EVALUATION"]
        longer = ["--max_train_steps", str(2 * (folder.num_steps or folder.step))]
        steps += [
            ("Turn masks into labelled images:", shlex.join(["semseg-diffusers", *generate])),
            (
                "Measure how well images follow their masks, and whether they are copies:",
                shlex.join(["semseg-diffusers", *evaluate]),
            ),
            ("Train longer:", shlex.join([*train, *longer])),
        ]
    else:
        steps.append(("The pipeline for `generate` and `evaluate` is saved at the end of the run.", None))
    return [*steps, ("Write this page again:", shlex.join(["semseg-diffusers", "report", run]))]
