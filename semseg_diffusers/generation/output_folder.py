"""The folder that generation writes: what it may hold before, who may write to it, and its files, whole at any moment.
`images/`, `masks/` (class ids), `metadata.jsonl`, `labels.json`, `generation.json` and a contact sheet."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.pictures import image_grid, save_png
from semseg_diffusers.generation.jobs import Job
from semseg_diffusers.launch import LOCK_FILE, sole_owner
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.saved_files import write_text


ROW_KEY = "semseg_diffusers"  # the text in an image's PNG that is its row of the metadata,
NOT_IN_IMAGES = ("model", "source_mask")  # without what may be a path on this machine: images get published
CONTACT_SHEET_COLUMNS = 8  # samples of one mask on the contact sheet, at most
LISTING_PATIENCE = 60  # seconds until a network file system shows what another machine has written


def check_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Refuse an output folder that holds anything but images of these very settings.

    Raises:
        ValueError: naming the settings that differ, or the folder that is not ours.
    """
    if not output.exists():
        return
    settings_file = output / GENERATION_FILE
    if not settings_file.is_file():
        if output.is_dir() and all(_is_passing(path) for path in output.iterdir()):
            return
        raise ValueError(f"output '{output}' is not empty and was not made by generate (no {GENERATION_FILE} in it)")
    if not _has_images(output):
        return  # ended before the first image: other settings may take it
    try:
        there = json.loads(settings_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as err:
        raise ValueError(f"'{settings_file}' is not valid JSON ({err}); choose another output") from err
    there, now = _flat(there), _flat(json.loads(_to_json(record)))
    there["classes"], now["classes"] = LabelSet.from_json(output / LABELS_FILE).names, labels.names
    free = ("model", "versions")  # where the weights lie does not matter: their revision is compared
    keys = [key for key in sorted({*there, *now}) if key.split(".")[0] not in free]
    different = [key for key in keys if there.get(key) != now.get(key)]
    if different:
        # a value may be as long as a list of a thousand betas
        shown = "; ".join(f"{key}: {there.get(key)!s:.60} there, {now.get(key)!s:.60} now" for key in different)
        raise ValueError(f"output '{output}' holds images of other settings ({shown}). Choose another output folder.")


def _is_passing(path: Path) -> bool:
    """Tell whether a file is the lock, or one that was being written when a run was killed."""
    return path.name == LOCK_FILE or path.name.endswith(".tmp") or ".tmp-" in path.name


def _has_images(output: Path) -> bool:
    return any((output / "images").glob("*.png"))


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, default=str) + "\n"


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Bring the entries of nested dictionaries up: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat = {}
    for key, value in record.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


@contextlib.contextmanager
def sole_run(output: Path) -> Iterator[None]:
    """Keep a folder to the run of this process, and remove what an earlier one had not finished writing.

    Raises:
        ValueError: another run writes to this folder.
    """
    with sole_owner(output, "generating into"):
        for folder in (output, output / "images", output / "masks"):
            for path in folder.glob("*"):
                if _is_passing(path) and path.name != LOCK_FILE:
                    path.unlink(missing_ok=True)
        yield


def open_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Write the settings and the label set, unless images made with them are there."""
    if not _has_images(output):
        write_text(output / GENERATION_FILE, _to_json(record))  # first: it marks the folder as ours
        labels.save_json(output / LABELS_FILE)
    make_folders(output)


def make_folders(output: Path) -> None:
    for folder in (output / "images", output / "masks"):
        folder.mkdir(parents=True, exist_ok=True)


def is_complete(output: Path, job: Job, ids: np.ndarray, labels: LabelSet) -> bool:
    """Tell whether an image and its mask are there and can be read to their end.

    Raises:
        ValueError: they are there, for another mask of this name.
    """
    image, mask = output / "images" / job.file_name, output / "masks" / job.file_name
    if not (image.is_file() and mask.is_file()):
        return False
    try:
        size, saved = open_image(image, "image").size, labels.encode(mask)
    except ValueError:  # cut off
        return False
    if not np.array_equal(saved, ids):
        raise ValueError(
            f"output '{output}' holds images of another mask called '{job.stem}' than '{job.mask_path}'. "
            "Rename the mask or choose another output folder."
        )
    return size == ids.shape[::-1]


def save_pair(output: Path, job: Job, mask: Image.Image, image: Image.Image, row: dict[str, Any]) -> None:
    """Write a mask, then its image: an image that is there is complete, and carries its row of the metadata."""
    note = PngInfo()
    note.add_text(ROW_KEY, json.dumps({key: value for key, value in row.items() if key not in NOT_IN_IMAGES}))
    save_png(output / "masks" / job.file_name, mask)
    save_png(output / "images" / job.file_name, image, pnginfo=note)


def read_metadata(output: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a generated data set's `metadata.jsonl`; an empty list where there is none."""
    path = Path(output) / METADATA_FILE
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as err:
        raise ValueError(
            f"'{path}' is not valid JSON lines ({err}). Delete it: generate writes it anew from its images."
        ) from err


def update_metadata(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Bring `metadata.jsonl` into line with the pairs that are there: a row for each, also those of earlier runs.

    Several processes may do this at once. Who has replaced the file looks again, so the last one to do so has seen
    what all had written.

    Args:
        output: the folder.
        rows: of the images that this run is about, made or not; others keep their row, or carry it.
    """
    ours = {row["image_file_name"]: row for row in rows}
    model = json.loads((output / GENERATION_FILE).read_text(encoding="utf-8"))["model"]
    while True:
        listed = {row["image_file_name"]: row for row in read_metadata(output)}
        masks = {path.name for path in (output / "masks").glob("*.png")}
        there = {}
        for path in (output / "images").glob("*.png"):
            name = f"images/{path.name}"
            row = listed.get(name, {}) | ours.get(name, {}) or _row_of(path, model)
            if row and path.name in masks:
                there[name] = row
        if there == listed:
            return
        ordered = sorted(there.values(), key=lambda row: (row["stem"], row["index"]))
        write_text(output / METADATA_FILE, "".join(json.dumps(row) + "\n" for row in ordered))


def _row_of(path: Path, model: str) -> dict[str, Any]:
    """Read the row that an image carries; an empty one for a picture of something else, or one that is cut off."""
    try:
        note = open_image(path, "image").info.get(ROW_KEY)
    except ValueError:
        return {}
    return {} if note is None else {**json.loads(note), "model": model, "source_mask": None}


def wait_for_images(output: Path, jobs: list[Job]) -> None:
    """Wait until the images of all processes are to be seen from here.

    Raises:
        ValueError: some are not, after a minute.
    """
    deadline = time.monotonic() + LISTING_PATIENCE
    while True:
        there = {path.name for path in (output / "images").iterdir()}
        unseen = [job.file_name for job in jobs if job.file_name not in there]
        if not unseen:
            return
        if time.monotonic() > deadline:
            raise ValueError(
                f"{len(unseen)} images that other processes made are not in '{output}', such as {unseen[0]}. Machines "
                "that generate together need one file system: give an --output that all of them share."
            )
        time.sleep(1)


def save_contact_sheet(output: Path, mask_paths: list[Path], num_images_per_mask: int) -> Path:
    """Lay out mask | samples for some masks, read from the output folder, as `contact_sheet.png`."""
    columns = min(num_images_per_mask, CONTACT_SHEET_COLUMNS)
    rows = []
    for path in mask_paths:
        names = [Job(path, index).file_name for index in range(columns)]
        samples = [open_image(output / "images" / name, "image") for name in names]
        rows.append([open_image(output / "masks" / names[0]), *samples])
    titles = ["mask", *(f"sample {index}" for index in range(columns))]
    sheet = output / "contact_sheet.png"
    save_png(sheet, image_grid(rows, titles, [path.stem for path in mask_paths]))
    return sheet
