"""Generates a labelled data set: masks in, images that carry those masks out, resumable, one seed per image.
Writes `images/`, `masks/` (class ids), `metadata.jsonl`, `labels.json`, `generation.json` and a contact sheet."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from tqdm.auto import tqdm

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.pictures import image_grid
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import open_image, resize_ids


MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")
SETTINGS_FILE = "generation.json"
CONTACT_SHEET_COLUMNS = 8  # samples of one mask on the contact sheet, at most


@dataclass(frozen=True)
class GenerationSettings:
    """What an image depends on, beside the model, its scheduler and its mask."""

    num_inference_steps: int = 50
    guidance_scale: float = 3.0  # 1: plain conditional sampling, one forward a step instead of two
    guidance_start: float = 0.0  # share of the steps, from the noise on, where guidance begins
    guidance_stop: float = 1.0  # and where it ends
    height: int | None = None  # pixels; None: the model's sample_size
    width: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One image to make."""

    mask_path: Path
    index: int  # which of the images of its mask

    @property
    def stem(self) -> str:
        return self.mask_path.stem

    @property
    def file_name(self) -> str:
        return f"{self.stem}_{self.index}.png"


@dataclass(frozen=True)
class GenerationReport:
    """What a call of `generate_dataset` did."""

    output: Path
    num_made: int
    num_kept: int  # complete images of an earlier run with the same settings
    contact_sheet: Path | None


def image_seed(seed: int, stem: str, index: int) -> int:
    """Return the seed of one image: a stable hash, so that no other image, order or batch size changes it.

    Example:
        >>> image_seed(0, "scene", 0)
        5781559387006414368
    """
    digest = hashlib.sha256(f"{seed}/{stem}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch and JSON readers both take it


def new_scheduler(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """Build a diffusers scheduler by its class name from the configuration of another.

    Raises:
        ValueError: for a name that is no scheduler of diffusers; the message lists those there are.
    """
    scheduler_class = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        known = sorted(entry for entry in dir(diffusers) if re.fullmatch(r"(?!Flax|[a-z_]).+Scheduler", entry))
        raise ValueError(
            f"no scheduler of diffusers {diffusers.__version__} is called {name!r}; known: {', '.join(known)}"
        )
    return scheduler_class.from_config(config)


def find_masks(masks: str | os.PathLike) -> list[Path]:
    """Return the mask files of a folder and its sub-folders in order of their path, or the one file given.

    Raises:
        FileNotFoundError: where nothing is there.
        ValueError: for a folder without pictures, or two masks of one stem, which would give images of one name.
    """
    masks = Path(masks)
    if masks.is_file():
        return [masks]
    if not masks.is_dir():
        raise FileNotFoundError(f"no mask file and no folder of masks at '{masks}'")
    paths = sorted(
        path
        for path in masks.rglob("*")
        if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ValueError(f"folder '{masks}' holds no mask; wanted pictures ({', '.join(MASK_SUFFIXES)})")
    first_with: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_with:
            raise ValueError(
                f"masks '{first_with[path.stem]}' and '{path}' have the same stem, so their images would have the "
                "same name. Rename one, or generate from each folder into an output of its own."
            )
        first_with[path.stem] = path
    return paths


def target_size(pipeline: Any, settings: GenerationSettings) -> tuple[int, int]:
    """Return (height, width) of the images: as set, else the model's sample size."""
    if (settings.height is None) != (settings.width is None):
        raise ValueError(
            f"height and width go together, give both or none; got {settings.height} and {settings.width}"
        )
    if settings.height is not None:
        return settings.height, settings.width
    sample_size = pipeline.unet.config.sample_size
    if sample_size is None:
        raise ValueError("this model has no sample_size of its own; give height and width")
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)


def model_revision(unet: torch.nn.Module) -> str:
    """Return the commit of weights that came from the Hub, else a hash of the weights themselves."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})", str(unet.config.get("_name_or_path", "")))
    if commit:
        return commit.group(1)
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def _write_beside(path: Path, write: Any) -> None:
    """Let `write(temporary_path)` make a file and give it its name once it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    _write_beside(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _save_png(path: Path, image: Image.Image) -> None:
    _write_beside(path, lambda temporary: image.save(temporary, format="png"))


def check_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Refuse an output folder that holds anything but images of these very settings.

    Raises:
        ValueError: naming the settings that differ, or the folder that is not ours.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    settings_file = output / SETTINGS_FILE
    if not settings_file.is_file():
        raise ValueError(f"output '{output}' is not empty and was not made by generate (no {SETTINGS_FILE} in it)")
    try:
        there = json.loads(settings_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as err:
        raise ValueError(f"'{settings_file}' is not valid JSON ({err}); choose another output") from err
    there, now = _flat(there), _flat(json.loads(_to_json(record)))
    there["classes"], now["classes"] = LabelSet.from_json(output / "labels.json").names, labels.names
    free = ("model", "versions")  # where the weights lie does not matter: their revision is compared
    keys = [key for key in sorted({*there, *now}) if key.split(".")[0] not in free]
    different = [key for key in keys if there.get(key) != now.get(key)]
    if different:
        # a value may be as long as a list of a thousand betas
        shown = "; ".join(f"{key}: {there.get(key)!s:.60} there, {now.get(key)!s:.60} now" for key in different)
        raise ValueError(f"output '{output}' holds images of other settings ({shown}). Choose another output folder.")


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, default=str) + "\n"


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Bring the entries of nested dictionaries up: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat = {}
    for key, value in record.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def _is_complete(path: Path, size: tuple[int, int]) -> bool:
    """Tell whether an image of (height, width) is there and can be read to its end."""
    try:
        return path.is_file() and open_image(path, "image").size == size[::-1]
    except ValueError:  # cut off
        return False


def _batches(jobs: list[Job], batch_size: int) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), batch_size):
        yield jobs[start : start + batch_size]


def generate_dataset(
    pipeline: Any,
    masks: str | os.PathLike,
    output: str | os.PathLike,
    settings: GenerationSettings | None = None,
    *,
    num_images_per_mask: int = 1,
    batch_size: int = 8,
    tolerance: float = 0.0,
    contact_sheet_rows: int = 8,
    show_progress: bool = False,
) -> GenerationReport:
    """Generate images for every mask of a folder and write a data set that `load_dataset("imagefolder")` reads.

    Every mask is read and checked before the first image is made. An output of the same settings is continued:
    complete images stay, missing ones are made, so more masks or more images per mask can be asked for later.

    Args:
        pipeline: mask-guided pipeline; its device, dtype and scheduler are used.
        masks: mask file, or folder searched with its sub-folders; class ids, palettes or the label set's colours.
        output: folder to make or to continue.
        settings: what the images depend on.
        num_images_per_mask: at least 1; image i of a mask is the same whatever this number.
        batch_size: images a forward; changes an image by float rounding at most (1 of 255 levels).
        tolerance: take the nearest class colour up to this Euclidean RGB distance; 0 refuses unknown colours.
        contact_sheet_rows: masks on `contact_sheet.png`, the first ones; 0 leaves it away.
        show_progress: show a bar of images on stderr.

    Raises:
        FileNotFoundError: no masks there.
        ValueError: a mask that cannot be read or does not fit the model's classes, sizes the network cannot take,
            or an output folder of other settings.
    """
    settings = settings or GenerationSettings()
    if num_images_per_mask < 1 or batch_size < 1:
        raise ValueError(
            f"num_images_per_mask and batch_size must be at least 1; got {num_images_per_mask}, {batch_size}"
        )
    output = Path(output)
    unet = pipeline.unet
    labels = LabelSet.from_config(unet.config)
    size = target_size(pipeline, settings)
    divisor = getattr(unet, "size_divisor", 1)
    if size[0] % divisor or size[1] % divisor:
        raise ValueError(f"this network needs a height and width that {divisor} divides; got {size[0]} x {size[1]}")

    def read_ids(path: Path) -> np.ndarray:
        return resize_ids(labels.encode(path, tolerance=tolerance), *size)  # (H, W)

    # 1. What is to be done, all of it checked before any work is lost
    revision = model_revision(unet)
    scheduler = type(pipeline.scheduler).__name__
    model = str(pipeline.config.get("_name_or_path") or "unsaved")
    record = {
        "model": model,
        "revision": revision,
        "scheduler": scheduler,
        "scheduler_config": {
            key: str(value) if value in (math.inf, -math.inf) else value  # JSON has no infinity
            for key, value in pipeline.scheduler.config.items()
            if not key.startswith("_")
        },
        **asdict(settings),
        "height": size[0],
        "width": size[1],
        "dtype": str(unet.dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    paths = find_masks(masks)
    check_output(output, record, labels)
    jobs = [Job(path, index) for path in paths for index in range(num_images_per_mask)]
    missing = []
    for path in tqdm(paths, desc="reading masks", unit="mask", disable=not show_progress):
        ids = read_ids(path)
        for job in (Job(path, index) for index in range(num_images_per_mask)):
            saved = output / "masks" / job.file_name
            if not (saved.is_file() and _is_complete(output / "images" / job.file_name, size)):
                missing.append(job)
            elif not np.array_equal(labels.encode(saved), ids):
                raise ValueError(
                    f"output '{output}' holds images of another mask called '{job.stem}' than '{path}'. "
                    "Rename the mask or choose another output folder."
                )

    # 2. Images
    for leftover in (*output.glob("images/.*.tmp"), *output.glob("masks/.*.tmp")):  # of a run that was killed
        leftover.unlink()
    to_make = set(missing)
    done = [job for job in jobs if job not in to_make]
    progress_settings = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        with tqdm(total=len(missing), desc="generating", unit="image", disable=not show_progress) as bar:
            for batch in _batches(missing, batch_size):
                ids = [read_ids(job.mask_path) for job in batch]
                images = pipeline(
                    ids,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                    guidance_start=settings.guidance_start,
                    guidance_stop=settings.guidance_stop,
                    height=size[0],
                    width=size[1],
                    generator=[
                        torch.Generator().manual_seed(image_seed(settings.seed, job.stem, job.index)) for job in batch
                    ],
                ).images
                _open_output(output, record, labels)  # only now: refused settings leave nothing behind
                for job, mask, image in zip(batch, ids, images, strict=True):
                    _save_png(output / "masks" / job.file_name, labels.decode(mask))
                    _save_png(output / "images" / job.file_name, image)  # last: an image that is there is complete
                    done.append(job)
                bar.update(len(batch))
    finally:
        pipeline._progress_bar_config = progress_settings
        if done:
            _write_metadata(output, done, record)

    # 3. Contact sheet
    sheet = None
    if contact_sheet_rows > 0:
        sheet = output / "contact_sheet.png"
        _save_png(sheet, _contact_sheet(output, paths[:contact_sheet_rows], num_images_per_mask))
    return GenerationReport(output, len(missing), len(jobs) - len(missing), sheet)


def _open_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Make the folder with its settings and label set, unless an earlier batch or run did."""
    if (output / SETTINGS_FILE).is_file():
        return
    for folder in (output / "images", output / "masks"):
        folder.mkdir(parents=True, exist_ok=True)
    labels.save_json(output / "labels.json")
    _write_text(output / SETTINGS_FILE, _to_json(record))


def read_metadata(output: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a generated data set's `metadata.jsonl`; an empty list where there is none."""
    path = Path(output) / "metadata.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write_metadata(output: Path, jobs: list[Job], record: dict[str, Any]) -> None:
    """Write a row per image: those of earlier runs whose masks are not asked for now stay."""
    rows = {row["image_file_name"]: row for row in read_metadata(output)}
    for job in jobs:
        rows[f"images/{job.file_name}"] = {
            "image_file_name": f"images/{job.file_name}",
            "mask_file_name": f"masks/{job.file_name}",
            "stem": job.stem,
            "index": job.index,
            "source_mask": str(job.mask_path),
            "model": record["model"],
            "revision": record["revision"],
            "seed": image_seed(record["seed"], job.stem, job.index),
            "scheduler": record["scheduler"],
            "num_inference_steps": record["num_inference_steps"],
            "guidance_scale": record["guidance_scale"],
            "guidance_start": record["guidance_start"],
            "guidance_stop": record["guidance_stop"],
            "synthetic": True,
        }
    ordered = sorted(rows.values(), key=lambda row: (row["stem"], row["index"]))
    _write_text(output / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in ordered))


def _contact_sheet(output: Path, paths: list[Path], num_images_per_mask: int) -> Image.Image:
    """Lay out mask | samples for some masks, read from the output folder."""
    columns = min(num_images_per_mask, CONTACT_SHEET_COLUMNS)
    rows = []
    for path in paths:
        names = [Job(path, index).file_name for index in range(columns)]
        samples = [open_image(output / "images" / name, "image") for name in names]
        rows.append([open_image(output / "masks" / names[0]), *samples])
    return image_grid(rows, ["mask", *(f"sample {index}" for index in range(columns))], [path.stem for path in paths])
