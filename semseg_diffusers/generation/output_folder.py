"""The folder that generation writes: what it may hold before, who may write to it, and its files, whole at any moment.
`images/`, `masks/` (class ids), `metadata.jsonl`, `labels.json`, `generation.json` and a contact sheet."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.jobs import Job
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.files import LOCK_FILE, exclusive_folder, write_text
from semseg_diffusers.utils.images import image_grid, save_png


ROW_KEY = "semseg_diffusers"  # the text in an image's PNG that is its row of the metadata,
NOT_IN_IMAGES = (
    "model",
    "guide_model",
    "source_mask",
    "source_photo",
)  # without what may be a path on this machine: images get published
RESULTS = ("skipped", "near_copies")  # in generation.json: what came of a run, beside what it depends on
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
        if output.is_dir() and all(is_passing(path) for path in output.iterdir()):
            return
        raise ValueError(f"output '{output}' is not empty and was not made by generate (no {GENERATION_FILE} in it)")
    if not _has_images(output):
        return  # ended before the first image: other settings may take it
    try:
        there = json.loads(settings_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as err:
        raise ValueError(f"'{settings_file}' is not valid JSON ({err}); choose another output") from err
    if not isinstance(there, dict):
        raise ValueError(f"'{settings_file}' holds a {type(there).__name__}, no settings; choose another output")
    there, now = _flat(there), _flat(json.loads(_to_json(record)))
    there["classes"], now["classes"] = LabelSet.from_json(output / LABELS_FILE).names, labels.names
    free = ("model", "guide_model", "versions", *RESULTS)  # where weights lie does not matter: revisions are compared
    keys = [key for key in sorted({*there, *now}) if key.split(".")[0] not in free]
    different = [key for key in keys if there.get(key) != now.get(key)]
    if different:
        # a value may be as long as a list of a thousand betas
        shown = "; ".join(f"{key}: {there.get(key)!s:.60} there, {now.get(key)!s:.60} now" for key in different)
        raise ValueError(f"output '{output}' holds images of other settings ({shown}). Choose another output folder.")


def is_passing(path: Path) -> bool:
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
def sole_run(output: Path, work: str = "generating into") -> Iterator[None]:
    """Keep a folder to the run of this process, and remove what an earlier one had not finished writing.

    Args:
        output: the folder.
        work: what is done to it, for the message.

    Raises:
        ValueError: another run writes to this folder.
    """
    with exclusive_folder(output, work):
        for folder in (output, output / "images", output / "masks"):
            for path in folder.glob("*"):
                if is_passing(path) and path.name != LOCK_FILE:
                    path.unlink(missing_ok=True)
        yield


def open_output(output: Path, record: dict[str, Any], labels: LabelSet) -> None:
    """Write the settings and the label set, unless images made with them are there."""
    if not _has_images(output):
        write_text(output / GENERATION_FILE, _to_json(record))  # first: it marks the folder as ours
        labels.save_json(output / LABELS_FILE)
    make_folders(output)


def update_record(output: Path, **results: Any) -> None:
    """Write what came of a run into generation.json, under names of `RESULTS`."""
    assert results.keys() <= set(RESULTS), f"{[*results]}: not in {RESULTS}"
    path = output / GENERATION_FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    if {**record, **results} != record:
        write_text(path, _to_json({**record, **results}))


def update_skipped(output: Path, skipped: dict[str, str], used: Iterable[str]) -> None:
    """Bring the masks that were left out, name -> reason, up to date; what is used now is no longer among them."""
    record = json.loads((output / GENERATION_FILE).read_text(encoding="utf-8"))
    used = set(used)
    kept = {name: reason for name, reason in record.get("skipped", {}).items() if name not in used}
    if skipped or kept != record.get("skipped", {}):
        update_record(output, skipped=dict(sorted({**kept, **skipped}.items())))


def make_folders(output: Path) -> None:
    for folder in (output / "images", output / "masks"):
        folder.mkdir(parents=True, exist_ok=True)


def is_complete(output: Path, job: Job, ids: np.ndarray, labels: LabelSet, row: dict[str, Any]) -> bool:
    """Tell whether an image and its mask are there and can be read to their end.

    Args:
        output: the folder.
        job: the image.
        ids: its mask.
        labels: the classes of that.
        row: as it is to stand in the metadata: an image carries its own, and of what both say nothing may differ.

    Raises:
        ValueError: they are there, for another mask of this name, another photo or other attributes.
    """
    image, mask = output / "images" / job.file_name, output / "masks" / job.file_name
    if not (image.is_file() and mask.is_file()):
        return False
    try:
        picture, saved = open_image(image, "image"), labels.encode(mask)
    except ValueError:  # cut off
        return False
    what = f"output '{output}' holds images of another"
    if not np.array_equal(saved, ids):
        raise ValueError(
            f"{what} mask called '{job.stem}' than '{job.mask_path}'. Rename the mask or choose another output folder."
        )
    there = json.loads(picture.info.get(ROW_KEY, "{}"))
    for name in sorted(there.keys() & row.keys()):
        if there[name] != row[name]:
            raise ValueError(
                f"{what} `{name}` for the mask '{job.mask_path}' ({there[name]} there, {row[name]} now). Choose "
                "another output folder."
            )
    return picture.size == ids.shape[::-1]


def save_pair(output: Path, job: Job, mask: Image.Image, image: Image.Image, row: dict[str, Any]) -> None:
    """Write a mask, then its image: an image that is there is complete, and carries its row of the metadata."""
    note = PngInfo()
    note.add_text(ROW_KEY, json.dumps({key: value for key, value in row.items() if key not in NOT_IN_IMAGES}))
    save_png(output / "masks" / job.file_name, mask)
    save_png(output / "images" / job.file_name, image, pnginfo=note)


def read_metadata(output: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a generated dataset's `metadata.jsonl`; an empty list where there is none."""
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
        write_metadata(output, there.values())


def write_metadata(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows, `in_order`."""
    write_text(output / METADATA_FILE, "".join(json.dumps(row) + "\n" for row in in_order(rows)))


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by mask, variation and number."""
    return sorted(rows, key=lambda row: (row["stem"], row.get("variation", ""), row["index"]))


def _row_of(path: Path, model: str) -> dict[str, Any]:
    """Read the row that an image carries; an empty one for a picture of something else, or one that is cut off."""
    try:
        note = open_image(path, "image").info.get(ROW_KEY)
    except ValueError:
        return {}
    row = {} if note is None else {**json.loads(note), "model": model, "source_mask": None}
    return row | ({"source_photo": None} if "source_photo_hash" in row else {})


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


def save_contact_sheet(
    output: Path, jobs: list[list[Job]], titles: list[str], photo_of: Callable[[Job], Image.Image] | None
) -> Path:
    """Lay out mask | photo that was changed | images for some masks, read from the output folder.

    Args:
        output: the folder; the sheet is its `contact_sheet.png`.
        jobs: images of each mask, as many of each; those beyond the sheet's columns are left out.
        titles: one for each image of a mask.
        photo_of: the photo that an image was made from, where it was made from one.
    """
    titles, rows = titles[:CONTACT_SHEET_COLUMNS], []
    for images in jobs:
        names = [job.file_name for job in images[:CONTACT_SHEET_COLUMNS]]
        photo = [] if photo_of is None else [photo_of(images[0])]
        samples = [open_image(output / "images" / name, "image") for name in names]
        rows.append([open_image(output / "masks" / names[0]), *photo, *samples])
    titles = ["mask", *([] if photo_of is None else ["photo"]), *titles]
    sheet = output / "contact_sheet.png"
    save_png(sheet, image_grid(rows, titles, [images[0].stem for images in jobs]))
    return sheet
