"""Where the numbers of a run go besides its folder: TensorBoard, Weights & Biases and others, through accelerate."""

import dataclasses
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from semseg_diffusers.training.settings import TrainingSettings


PROJECT = "semseg_diffusers"
PIP = {"tensorboard": "'semseg-diffusers[train]'", "comet_ml": "comet-ml"}  # where it is not the tracker's own name
ONE_PICTURE = ("aim", "clearml")  # trackers that take a picture where the others take a list of them


def trackers_of(report_to: str) -> list[str]:
    """The names of the trackers that `--report_to` asks for.

    Args:
        report_to: names with commas between them, `all` for those installed, or `none`.

    Raises:
        ValueError: a name that accelerate does not know (its own or one registered there), or whose library is not
            installed.

    Example:
        >>> trackers_of("none"), trackers_of("tensorboard")
        ([], ['tensorboard'])
    """
    names = [name.strip() for name in report_to.split(",")]
    installed = [str(tracker) for tracker in get_available_trackers()]
    if names == ["none"]:
        return []
    if names == ["all"]:
        if not installed:
            raise ValueError("--report_to all: no tracker is installed. pip install tensorboard, or wandb.")
        return installed
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"--report_to {name!r} is no tracker; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, several "
                "with commas between them, `all` for those installed, and `none`."
            )
        if name in LoggerType.list() and name not in installed:
            raise ValueError(
                f"--report_to {name} needs a library that is not installed: pip install {PIP.get(name, name)}"
            )
    return names


def begin_tracking(accelerator: Accelerator, settings: TrainingSettings, run: Path) -> None:
    """Open the trackers and hand them the settings; what Weights & Biases keeps on this machine goes into the run."""
    if accelerator.is_main_process:
        (run / "logs").mkdir(exist_ok=True)
    values = dataclasses.asdict(settings)
    config = {name: value if isinstance(value, (int, float, str)) else str(value) for name, value in values.items()}
    options = {"wandb": {"name": run.resolve().name, "dir": str(run / "logs")}}
    accelerator.init_trackers(PROJECT, config, init_kwargs=options)


def track_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Hand a preview to the trackers that take pictures."""
    pixels = np.asarray(picture)  # (H, W, 3)
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(
                {"preview": pixels if tracker.name in ONE_PICTURE else pixels[None]}, step=step, **layout
            )
