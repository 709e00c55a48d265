"""Write the page of a training run: run.html in its folder, whether the run goes on, has ended, or was killed.

A run writes its page itself at each preview and checkpoint; this makes it anew in between and afterwards. Only the
run folder is read: neither the dataset nor the network is needed.
"""

import contextlib
import json
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from markupsafe import Markup
from PIL import Image

from semseg_diffusers.reports.charts import Bars, bar_table, line_chart
from semseg_diffusers.reports.figures import named_color, wide_picture
from semseg_diffusers.reports.html import (
    Section,
    commands,
    exact,
    facts,
    folded,
    is_finite,
    number,
    page,
    paragraph,
    percent,
    section,
    settings_table,
    subheading,
    table,
    warning,
    write_page,
)
from semseg_diffusers.reports.run_folder import (
    FOLDER,
    OVER_TIME,
    STATUS_FILE,
    list_checkpoints,
    list_previews,
    previews_over_time,
    read_log,
    read_record_of,
)
from semseg_diffusers.utils.files import is_locked
from semseg_diffusers.utils.images import grid_cells, save_png


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
    if state == "running" and not is_locked(path):
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


MOST_POINTS = 400  # of a line; more than the page has pixels for would only make it large
RUNNING_MEAN = 20  # log lines that the smooth line of the loss is the mean of, where there are more
RECENT = 20  # log lines that tell the present speed
STEEP = 4.0  # ratio of the largest to the least loss from which on the axis is logarithmic


# State ---------------------------------------------------------------------------------------------------------------


def state_text(folder: RunFolder) -> str:
    """How the run is, in a sentence or two."""
    of = f" of {folder.num_steps:,}" if folder.num_steps else ""
    at, reason = f"step {folder.step:,}{of}", folder.status.get("reason")
    return {
        "running": f"Running, at {at}. The page is written anew at each preview and checkpoint: reload it.",
        "finished": f"Finished after {at}.",
        "stopped": f"Stopped by {reason} after {at}; a checkpoint was saved.",
        "failed": f"Failed after {at}: {reason}.",
        "killed": f"Ended without a word after {at}, as when it is killed or the machine goes down.",
        "unknown": f"At {at}; how the run is, its folder does not say.",
    }[folder.state]


def state_section(folder: RunFolder) -> Section:
    """Figures that a person asks for first."""
    last = folder.log[-1] if folder.log else {}
    record, samples_per_step = folder.record, folder.record.get("samples_per_step")
    about = {"Step": f"{folder.step:,}"}
    if folder.num_steps:
        about["Step"] += f" of {folder.num_steps:,} ({folder.step / folder.num_steps:.0%})"
    if last:
        losses = [(line["loss"], line["step"]) for line in folder.log if is_finite(line["loss"])]
        least = f"; the least was {number(min(losses)[0])} at step {min(losses)[1]:,}" if losses else ""
        about["Loss"] = f"{number(last['loss'])}, mean of the last interval{least}"
        about["Speed"] = f"{number(_speed(folder))} images/s"
        about["Trained for"] = duration(last["trained_seconds"])
    if folder.state == "running" and last and folder.num_steps and samples_per_step:
        left = (folder.num_steps - folder.step) * samples_per_step / _speed(folder)
        about["Time left"] = f"about {duration(left)}"
    if record:
        seen = folder.step * samples_per_step
        passes = seen / record["num_pairs"]
        about["Images seen"] = f"{seen:,}: each of {record['num_pairs']:,} pairs {passes:.3g} times on average"
        about["Network"] = f"{record['network']}, {record['num_weights']:,} weights, {_by(record['size'])} pixels"
        about["Machine"] = (
            f"{record['num_processes']} process(es) on {record['device']}, {samples_per_step} images a step, "
            f"mixed precision {record['mixed_precision']}"
        )
    if folder.state in ("finished", "stopped", "failed"):
        about["Ended"] = exact(folder.status.get("time"))
    about["Page written"] = datetime.now(timezone.utc).isoformat(timespec="seconds")  # a killed run cannot say so here
    return section("State", facts(about))


def _speed(folder: RunFolder) -> float:
    """Images per second of late; the median, because a preview slows one interval."""
    return statistics.median(line["images_per_second"] for line in folder.log[-RECENT:])


def duration(seconds: float) -> str:
    """Time in the units a person would say it in.

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


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def warnings_section(folder: RunFolder) -> Section | None:
    """What the run was warned of when it began."""
    texts = folder.record.get("warnings", [])
    return section("Warnings", *map(warning, texts)) if texts else None


# Samples -------------------------------------------------------------------------------------------------------------


def preview_section(folder: RunFolder, over_time: Image.Image | None) -> Section | None:
    """The samples over the steps, and the last preview."""
    if not folder.previews:
        return None
    step, path = folder.previews[-1]
    settings = folder.settings
    how = (
        f"From the same masks and the same noise at each step, {exact(settings.get('preview_inference_steps'))} "
        f"sampling steps, guidance {exact(settings.get('preview_guidance_scale'))}"
        f"{', averaged weights' if settings.get('use_ema') else ''}. The mask is all that the network sees; the photo "
        "is the one the mask was drawn on, and a good sample need not look like it."
    )
    blocks = [paragraph(how)]
    if over_time is not None:
        alt = f"samples of each mask at steps up to {step:,}, with mask and photo"
        blocks += [subheading("Over time"), _sheet(over_time, alt)]
    with Image.open(path) as picture:
        picture.load()
    blocks += [subheading(f"Step {step:,}"), _sheet(picture, f"masks, samples and photos at step {step:,}")]
    return section("Samples", *blocks)


def _sheet(picture: Image.Image, alt: str) -> Markup:
    cells = grid_cells(picture)
    return wide_picture(picture, alt, columns=len(cells[0]) if cells else 4)


# Curves --------------------------------------------------------------------------------------------------------------


def thinned(points: Sequence[tuple[int, float | None]], most: int = MOST_POINTS) -> list[tuple[int, float | None]]:
    """Means of neighbouring points, so that at most `most` are left; what is not finite counts for nothing.

    Example:
        >>> thinned([(1, 4.0), (2, 2.0), (3, 1.0)], most=2)
        [(2, 3.0), (3, 1.0)]
    """
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    result = []
    for group in groups:
        values = [value for _, value in group if is_finite(value)]
        result.append((group[-1][0], sum(values) / len(values) if values else None))
    return result


def running_mean(points: Sequence[tuple[int, float | None]], length: int) -> list[tuple[int, float | None]]:
    """The mean of each point and those before it, `length` in all, from the first full one on."""
    result = []
    for end in range(length, len(points) + 1):
        values = [value for _, value in points[end - length : end] if is_finite(value)]
        result.append((points[end - 1][0], sum(values) / len(values) if values else None))
    return result


def curves_section(folder: RunFolder) -> Section | None:
    """Loss, learning rate and speed over the steps."""

    def points(name: str) -> list[tuple[int, float | None]]:
        return [(line["step"], line[name]) for line in folder.log]

    loss = points("loss")
    values = [value for _, value in loss if is_finite(value)]
    if not values:
        return None
    lines = {"each interval": thinned(loss)}
    if len(loss) > 2 * RUNNING_MEAN:
        lines[f"mean of {RUNNING_MEAN} intervals"] = thinned(running_mean(loss, RUNNING_MEAN))
    steep = min(values) > 0 and max(values) / min(values) > STEEP
    scale = " (the axis is logarithmic)" if steep else ""
    explained = paragraph(
        "The loss of a diffusion network is noisy and soon almost flat, while the samples still get better: judge by "
        "the samples, and compare losses only of runs with the same objective and weighting."
    )
    charts = [line_chart(lines, "optimizer step", f"loss{scale}", "Training loss", logarithmic=steep)]
    slowed = "Images per second; a preview or a checkpoint slows the interval after it"
    for name, title in (("learning_rate", "Learning rate"), ("images_per_second", slowed)):
        text = name.replace("_", " ")
        charts.append(line_chart({text: thinned(points(name))}, "optimizer step", text, title))
    return section("Curves", explained, *charts)


# Data ----------------------------------------------------------------------------------------------------------------


def data_section(folder: RunFolder) -> Section:
    """What the run is trained on."""
    settings, record = folder.settings, folder.record
    about = {"Dataset": exact(settings.get("dataset")), "Split": exact(settings.get("train_split"))}
    if not record:
        return section("Data", facts(about), paragraph("The run began before pairs and classes were recorded."))
    counted, pairs = record["masks_counted"], record["num_pairs"]
    labelled = sum(entry["pixels"] for entry in record["classes"])
    seen = sum(1 for entry in record["classes"] if entry["masks"])
    about |= {
        "Pairs": f"{pairs:,}",
        "Prepared from": exact(record["source_format"]),
        "Classes": f"{len(record['classes'])}, of which the masks hold {seen}",
        "Unknown pixels": percent(record["unknown_pixels"] / max(labelled + record["unknown_pixels"], 1)),
    }
    rows = [
        Bars(
            named_color(entry["name"], tuple(entry["color"])),
            [100 * entry["pixels"] / max(labelled, 1)],
            [entry["masks"]],
        )
        for entry in sorted(record["classes"], key=lambda entry: -entry["pixels"])
    ]
    of = "" if counted == pairs else f" Counted in {counted:,} masks at even distances."
    caption = f"Share of the labelled pixels, and the masks that hold the class.{of}"
    chart = bar_table(rows, ["pixels, %"], caption, more=["masks"])
    return section("Data", facts(about), chart)


# What next -----------------------------------------------------------------------------------------------------------


def next_section(folder: RunFolder) -> Section:
    """Commands to go on with."""
    run, settings, blocks = str(folder.path), folder.settings, []

    def command(*words: Any) -> str:
        return shlex.join(map(str, words))

    config = ("--config", f"{run}/settings.json", "--resume_from_checkpoint", "latest")
    processes = folder.record.get("num_processes", 1)
    launch = ("semseg-diffusers", "train")
    if processes > 1:
        launch = ("accelerate", "launch", "--num_processes", processes, "-m", "semseg_diffusers.training")
    if folder.state in ("stopped", "failed", "killed", "unknown") and folder.checkpoint:
        blocks += [
            paragraph(f"Go on from {folder.checkpoint}, as if the run had never ended:"),
            commands([command(*launch, *config)]),
        ]
    elif folder.state in ("stopped", "failed", "killed"):
        blocks.append(paragraph("There is no checkpoint yet to go on from: give the command again."))
    if folder.is_saved:
        data = ("--dataset", settings["dataset"], "--split", settings["validation_split"])
        generate = ("generate", "--model", run, "--masks", "MASKS", "--output", "IMAGES")
        evaluate = ("evaluate", "--model", run, *data, "--output", "EVALUATION")
        blocks += [
            paragraph("Turn masks into labelled images:"),
            commands([command("semseg-diffusers", *generate)]),
            paragraph("Measure how well images follow their masks, and whether they are copies:"),
            commands([command("semseg-diffusers", *evaluate)]),
            paragraph("Train longer:"),
            commands([command(*launch, *config, "--max_train_steps", 2 * (folder.num_steps or folder.step))]),
        ]
    else:
        blocks.append(paragraph("The pipeline for `generate` and `evaluate` is saved at the end of the run."))
    blocks += [paragraph("Write this page anew:"), commands([command("semseg-diffusers", "report", run)])]
    return section("How to go on", *blocks)


# Settings ------------------------------------------------------------------------------------------------------------


def settings_section(folder: RunFolder, defaults: Mapping[str, Any]) -> Section:
    """The settings that are not the defaults, and all of them folded."""
    changed = [
        [name, exact(value), exact(defaults.get(name))]
        for name, value in folder.settings.items()
        if defaults.get(name) != value
    ]
    versions = ", ".join(f"{name} {version}" for name, version in folder.record.get("versions", {}).items())
    return section(
        "Settings",
        table(["name", "value", "default"], changed, "Those that are not the defaults."),
        folded(f"All {len(folder.settings)} settings", settings_table(folder.settings)),
        facts({"Begun": exact(folder.record.get("begun")), "Versions": versions or exact(None)}),
    )


logger = get_logger(__name__)

PAGE_FILE = "run.html"


def write_run_page(run: Path, output: Path | None = None, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a run, and its picture of samples over time.

    Args:
        run: run folder.
        output: the HTML file; `run.html` in the folder by default. Only there is `previews/over_time.png` written too.
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
    write_page(target, run_page(folder, over_time, defaults or {}))
    return target


def update_run_page(run: Path, defaults: Mapping[str, Any]) -> None:
    """Write the page of a run that goes on: a page that cannot be written ends no training."""
    try:
        write_run_page(run, defaults=defaults)
    except OSError as err:
        logger.warning(f"warning: {run / PAGE_FILE} could not be written: {err}")


@contextlib.contextmanager
def page_at_end(run: Path, accelerator: Accelerator, defaults: Mapping[str, Any]) -> Iterator[None]:
    """However the block ends, write the page once more; entered before `run_status`, whose last word it shows."""
    try:
        yield
    finally:
        if accelerator.is_main_process and (run / "settings.json").is_file():  # else the run never began
            update_run_page(run, defaults)


def run_page(folder: RunFolder, over_time: Image.Image | None, defaults: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        folder: what was read from the run folder.
        over_time: samples over the steps, where there are any.
    """
    version = folder.record.get("versions", {}).get("semseg_diffusers")
    sections = [
        state_section(folder),
        warnings_section(folder),
        preview_section(folder, over_time),
        curves_section(folder),
        data_section(folder),
        next_section(folder),
        settings_section(folder, defaults),
    ]
    return page(
        f"Training run {folder.path.resolve().name}",
        [part for part in sections if part is not None],
        lead=state_text(folder),
        footer=f"Written by semseg-diffusers{f' {version}' if version else ''}. All numbers in full: log.jsonl, "
        "settings.json, run.json and status.json beside this page.",
    )
