"""The page of a run, `run.html`: how far it is, what it was warned of, its samples, curves, data, settings.

Made by the run itself at each preview and checkpoint, and by `semseg-diffusers report` from the folder of any run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image

from semseg_diffusers.data.pages.frame import page, write_page
from semseg_diffusers.data.pictures import save_png
from semseg_diffusers.training.page.reading import RunFolder, read_run
from semseg_diffusers.training.page.sections import (
    curves_section,
    data_section,
    next_section,
    preview_section,
    settings_section,
    state_section,
    state_text,
    warnings_section,
)
from semseg_diffusers.training.previews import FOLDER, OVER_TIME, draw_over_time


logger = get_logger(__name__)

PAGE_FILE = "run.html"


def write_run_page(run: Path, output: Path | None = None) -> Path:
    """Write the page of a run, and its picture of samples over time.

    Args:
        run: run folder.
        output: the HTML file; `run.html` in the folder by default. Only there is `previews/over_time.png` written too.

    Returns:
        the page's path.

    Raises:
        ValueError: it is not the folder of a run.
        OSError: the page cannot be written.
    """
    folder = read_run(run)
    over_time = draw_over_time(folder.previews)
    if over_time is not None and output is None:
        save_png(run / FOLDER / OVER_TIME, over_time)
    target = output or run / PAGE_FILE
    write_page(target, run_page(folder, over_time))
    return target


def update_run_page(run: Path) -> None:
    """Write the page of a run that goes on: a page that cannot be written ends no training."""
    try:
        write_run_page(run)
    except OSError as err:
        logger.warning(f"warning: {run / PAGE_FILE} could not be written: {err}")


@contextlib.contextmanager
def page_at_end(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """However the block ends, write the page once more; entered before `run_status`, whose last word it shows."""
    try:
        yield
    finally:
        if accelerator.is_main_process and (run / "settings.json").is_file():  # else the run never began
            update_run_page(run)


def run_page(folder: RunFolder, over_time: Image.Image | None) -> str:
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
        settings_section(folder),
    ]
    return page(
        f"Training run {folder.path.resolve().name}",
        [part for part in sections if part is not None],
        lead=state_text(folder),
        footer=f"Written by semseg-diffusers{f' {version}' if version else ''}. All numbers in full: log.jsonl, "
        "settings.json, run.json and status.json beside this page.",
    )
