"""The folder that `generate` writes: what it may hold before, who may write to it, and its files.

`images/`, `masks/` (class ids), `metadata.jsonl`, `labels.json`, `generation.json` and a contact sheet: each file is
complete at any moment.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.plan import Job, Plan
from semseg_diffusers.generation.settings import IMAGE_FORMATS
from semseg_diffusers.hub.folders import PATH_COLUMNS
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.files import (
    LOCK_FILE,
    exclusive_folder,
    is_outside,
    is_temporary,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from semseg_diffusers.utils.images import image_grid, save_jpeg, save_png
from semseg_diffusers.utils.settings import describe_value, differences


# Name of a PNG's text, or start of a JPEG's comment, that holds its row of the metadata
ROW_KEY = "semseg_diffusers"
# What no image depends on in generation.json: places of weights, whose revisions matter, and results of the run
NO_SETTINGS = ("model", "guide_model", "upscaler", "versions", "skipped", "near_copies")
CONTACT_SHEET_COLUMNS = 8  # samples of one mask on the contact sheet, at most
LISTING_TIMEOUT = 60  # seconds until a network file system shows what another machine has written


def check_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Refuse an output folder that holds anything but images of the same settings."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"output '{output}' is a file; expected a folder, or one that does not exist yet.")
    file = output / GENERATION_FILE
    if not file.is_file():
        if all(is_temporary(path) for path in output.iterdir()):
            return
        raise ValueError(f"output '{output}' is not empty and was not made by generate (no {GENERATION_FILE} in it).")
    if not _has_images(output):
        return  # ended before the first image: other settings may take it
    try:
        before = _flat(read_json(file))
    except ValueError as err:
        raise ValueError(f"{err} Choose another output folder.") from err
    now = _flat(record)
    before["classes"], now["classes"] = LabelSet.from_json(output / LABELS_FILE).names, labels.names
    if different := differences(before, now):
        raise ValueError(
            f"output '{output}' holds images of other settings ({different}). Choose another output folder."
        )


def _has_images(output: Path) -> bool:
    return any(list_images(output))


def list_images(output: Path) -> list[Path]:
    """Return the files of generated images, except those being written."""
    return [path for path in (output / "images").glob("*") if path.suffix.removeprefix(".") in IMAGE_FORMATS]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return what images depend on, nested entries moved up: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {"image_format": IMAGE_FORMATS[0]}  # of records written before there were others
    for key, value in record.items():
        if key in NO_SETTINGS:
            continue
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


@contextlib.contextmanager
def sole_run(output: Path, work: str = "generating into") -> Iterator[None]:
    """Lock a folder for this process, and remove the incomplete files of earlier ones."""
    with exclusive_folder(output, work):
        for folder in (output, output / "images", output / "masks"):
            for path in folder.glob("*"):
                if is_temporary(path) and path.name != LOCK_FILE:
                    path.unlink(missing_ok=True)
        yield


def open_output(
    output: Path, record: dict[str, Any], labels: LabelSet, skipped: dict | None = None, used: Iterable[str] = ()
) -> None:
    """Write the settings and the label set, unless the folder has images.

    `skipped` are masks that cannot be used, with the reasons: recorded until they are among those `used`.
    """
    if not _has_images(output):
        write_json(output / GENERATION_FILE, record)  # first: it marks the folder as ours
        labels.save_json(output / LABELS_FILE)
    before, used = read_json(output / GENERATION_FILE).get("skipped", {}), {*used}
    now = {name: reason for name, reason in before.items() if name not in used}
    for name, reason in (skipped or {}).items():
        now[name] = re.sub(r"'[^']*/([^'/]+)'", r"'\1'", reason)  # no paths: it may be published
    if now != before:
        update_record(output, skipped=dict(sorted(now.items())))


def update_record(output: Path, **results: Any) -> None:
    """Write results of a run into generation.json, under names of `NO_SETTINGS`."""
    assert results.keys() <= set(NO_SETTINGS), f"{[*results]}: not in {NO_SETTINGS}"
    record = read_json(output / GENERATION_FILE)
    if {**record, **results} != record:
        write_json(output / GENERATION_FILE, {**record, **results})


def is_complete(output: Path, job: Job, ids: np.ndarray, labels: LabelSet, row: dict[str, Any]) -> bool:
    """Return whether an image and its mask can be read to their end; refuse those of another mask or other values."""
    image_file, mask_file = output / row["image_file_name"], output / row["mask_file_name"]
    if not (image_file.is_file() and mask_file.is_file()):
        return False
    try:
        image, saved_ids = open_image(image_file, "image"), labels.encode(mask_file)
    except ValueError:  # truncated
        return False
    if not np.array_equal(saved_ids, ids):
        raise ValueError(
            f"output '{output}' holds images of another mask called '{job.stem}' than '{job.mask_path}'. Rename the "
            "mask or choose another output folder."
        )
    saved_row = _saved_row(image)
    for name in sorted(saved_row.keys() & row.keys()):
        if saved_row[name] != row[name]:
            raise ValueError(
                f"output '{output}' holds images of another `{name}` for the mask '{job.mask_path}' "
                f"({saved_row[name]} there, {row[name]} now). Choose another output folder."
            )
    return image.size == ids.shape[::-1]


def save_pair(output: Path, row: dict[str, Any], mask: Image.Image, image: Image.Image) -> None:
    """Write a mask, then its image with its row of the metadata: an image that exists is complete."""
    for folder in ("images", "masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    note = json.dumps({key: value for key, value in row.items() if key not in PATH_COLUMNS})
    save_png(output / row["mask_file_name"], mask)
    file = output / row["image_file_name"]
    if file.suffix == ".png":
        text = PngInfo()
        text.add_text(ROW_KEY, note)
        save_png(file, image, pnginfo=text)
    else:
        save_jpeg(file, image, comment=f"{ROW_KEY} {note}")


def read_metadata(output: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a generated dataset's `metadata.jsonl`; none without that file."""
    path = Path(output) / METADATA_FILE
    try:
        rows = read_json_lines(path) if path.is_file() else []
    except ValueError as err:
        raise ValueError(f"{err} Delete it: `generate` restores it from its images.") from err
    for row in rows:
        for name in (row.get("image_file_name"), row.get("mask_file_name")):
            if name is not None and is_outside(name):
                raise ValueError(f"'{path}' names the file {name!r}; expected files in its folder.")
    return rows


def update_metadata(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Bring `metadata.jsonl` up to date: a row for each complete pair, from `rows`, the file or the image itself.

    Several processes may do this at once. Each looks again after it has written, so the last one has seen all.
    """
    ours = {row["image_file_name"]: row for row in rows}
    model = read_json(output / GENERATION_FILE)["model"]
    while True:
        listed = {row["image_file_name"]: row for row in read_metadata(output)}
        masks = {path.stem for path in (output / "masks").glob("*.png")}
        complete = {}
        for path in list_images(output):
            name = f"images/{path.name}"
            row = listed.get(name, {}) | ours.get(name, {}) or _row_in_image(path, model)
            if row and path.stem in masks:
                complete[name] = row
        if complete == listed:
            return
        write_metadata(output, complete.values())


def write_metadata(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows, `in_order`."""
    write_text(output / METADATA_FILE, "".join(json.dumps(row) + "\n" for row in in_order(rows)))


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows sorted by mask, variation and number."""
    return sorted(rows, key=lambda row: (row["stem"], row.get("variation", ""), row["index"]))


def _row_in_image(path: Path, model: str) -> dict[str, Any]:
    """Return the row that an image carries; an empty one for other images, and for truncated ones."""
    try:
        row = _saved_row(open_image(path, "image"))
    except ValueError:
        return {}
    row = row and {**row, "model": model, "source_mask": None}
    return row | ({"source_photo": None} if "source_photo_hash" in row else {})


def _saved_row(image: Image.Image) -> dict[str, Any]:
    """Return the row that `save_pair` wrote into an image, without paths; an empty one for other images."""
    key, _, comment = image.info.get("comment", b"").partition(b" ") if image.format == "JPEG" else (b"", b"", b"")
    return json.loads(comment if key == ROW_KEY.encode() else image.info.get(ROW_KEY, "{}"))


def wait_for_images(output: Path, files: list[str]) -> None:
    """Wait until the images of all processes, by their names, are visible here, a minute at most."""
    deadline = time.monotonic() + LISTING_TIMEOUT
    while True:
        names = {path.name for path in (output / "images").glob("*")}
        unseen = [name for name in files if name not in names]
        if not unseen:
            return
        if time.monotonic() > deadline:
            raise ValueError(
                f"{len(unseen)} images of other processes are not in '{output}', such as {unseen[0]}. Machines that "
                "generate together need one file system: give an --output that all of them share."
            )
        time.sleep(1)


def save_contact_sheet(
    output: Path, plan: Plan, masks: list[Path], num_images: int, sources: list[Image.Image | None]
) -> Path:
    """Write `contact_sheet.png` with a row for each mask: the mask, its source image if any, its first samples."""
    rows, titles = [], ["mask", *(["photo"] if sources[0] else [])]
    for path, source in zip(masks, sources, strict=True):
        jobs = plan.jobs(path, num_images)[:CONTACT_SHEET_COLUMNS]
        samples = [open_image(output / "images" / plan.image_file(job), "image") for job in jobs]
        mask = open_image(output / "masks" / jobs[0].file_name)
        rows.append([mask, *([source] if source else []), *samples])
    for job in plan.jobs(masks[0], num_images)[:CONTACT_SHEET_COLUMNS]:
        varied = plan.variations[job.variation]
        changes = ", ".join(f"{name} {describe_value(value)}" for name, value in varied.items())
        sample = f"sample {job.index}" if num_images > 1 or not changes else ""
        titles.append(" ".join(part for part in (changes, sample) if part))
    sheet = output / "contact_sheet.png"
    save_png(sheet, image_grid(rows, titles, [path.stem for path in masks]))
    return sheet
