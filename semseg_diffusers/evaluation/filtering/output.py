"""The folder that the filter writes: a generated data set with filtered masks, and a record of what was thrown away.

`images/`, `masks/`, `metadata.jsonl`, `labels.json` and `generation.json` as `generate` writes them; `dropped.jsonl`,
`filter.json`, `filter.html`. Each filtered mask carries what was found, so a run that was killed goes on from there.
"""

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.PngImagePlugin import PngInfo

from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, read_filter
from semseg_diffusers.generation.output_folder import in_order, is_passing, read_metadata, sole_run, write_metadata
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.utils.images import save_png, written_beside


DROPPED_FILE = "dropped.jsonl"
PAGE_FILE = "filter.html"
READ = ".read"  # filtered masks of images that are not, or not yet, part of the data set; `datasets` passes it over
NOTE_KEY = "semseg_diffusers_filter"  # the text in a filtered mask's PNG that says what was found
CARD = "README.md"
COLUMNS = ("segmenter_loss", "kept_share", "kept_share_by_class", "mask_hardness", "mask_rank")  # ours in the metadata
MOVES = ("model", "guide_model", "versions", "skipped", "near_copies")  # of generation.json: no image depends on it


def read_generated(generated: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the record of a folder that `generate` wrote.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is no such folder, or was filtered.
    """
    if not generated.is_dir():
        raise FileNotFoundError(f"there is no folder '{generated}'; --generated takes one that `generate` wrote.")
    missing = [name for name in (GENERATION_FILE, METADATA_FILE, LABELS_FILE) if not (generated / name).is_file()]
    if missing:
        raise ValueError(
            f"--generated '{generated}' holds no {' and no '.join(missing)}; wanted a folder that `generate` wrote."
        )
    if (generated / FILTER_FILE).is_file():
        raise ValueError(
            f"--generated '{generated}' is filtered already ({FILTER_FILE}). Filter the folder that it was made from: "
            "there the labels are whole."
        )
    rows = read_metadata(generated)
    taken = sorted({column for row in rows for column in row} & {*COLUMNS, "reason"})
    if taken:
        raise ValueError(
            f"the metadata of '{generated}' have columns called {', '.join(taken)}, which the filter writes itself. "
            "Rename them in the data set that the model was trained on."
        )
    wanted = ("image_file_name", "mask_file_name", "stem", "index")
    bad = next((row for row in rows if any(name not in row for name in wanted)), None)
    if bad is not None:
        raise ValueError(f"a row of '{generated / METADATA_FILE}' lacks one of {', '.join(wanted)}: {bad!s:.80}.")
    other = next((row for row in rows if (row[wanted[0]], row[wanted[1]]) != _files(row)), None)
    if other is not None:
        raise ValueError(
            f"'{generated / METADATA_FILE}' names {other[wanted[0]]} with {other[wanted[1]]}; wanted images/NAME.png "
            "with masks/NAME.png, as `generate` writes them."
        )
    try:
        return rows, dict(json.loads((generated / GENERATION_FILE).read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, ValueError) as err:
        raise ValueError(f"'{generated / GENERATION_FILE}' is no record of generate ({err}).") from err


def _files(row: Mapping[str, Any]) -> tuple[str, str]:
    """The names that a row's files have in our layout."""
    name = Path(row["image_file_name"]).stem
    return f"images/{name}.png", f"masks/{name}.png"


def generation_hash(record: Mapping[str, Any]) -> str:
    """Tells whether images were made with the same settings, wherever their model lies."""
    told = {name: value for name, value in record.items() if name not in MOVES}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def check_output(output: Path, generated: Path, settings: Mapping[str, Any]) -> None:
    """Refuse an output folder that holds anything but images filtered with these very settings.

    Args:
        output: the folder.
        generated: which is filtered; the output may lie beside it only.
        settings: JSON of all that the filtered masks and the choice of images depend on.

    Raises:
        ValueError: naming the settings that differ, or the folder that is not ours.
    """
    ours, theirs = (Path(os.path.realpath(path)) for path in (output, generated))
    if ours == theirs or theirs in ours.parents or ours in theirs.parents:
        raise ValueError(
            f"--output '{output}' and --generated '{generated}' lie in each other; wanted a folder of its own, since "
            "the generated images stay as they are."
        )
    if not output.exists():
        return
    record = read_filter(output) if output.is_dir() else None
    if record is None:
        if output.is_dir() and all(is_passing(path) for path in output.iterdir()):
            return
        raise ValueError(f"--output '{output}' is not empty and was not made by filter (no {FILTER_FILE} in it).")
    if not any((*output.glob("masks/*.png"), *output.glob(f"{READ}/*.png"))):
        return  # ended before the first image: other settings may take it
    there, now = record.get("settings") or {}, json.loads(json.dumps(settings))
    different = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"{name}: {there.get(name)!s:.60} there, {now.get(name)!s:.60} now" for name in different)
        raise ValueError(f"--output '{output}' was filtered with other settings ({shown}). Choose another folder.")


@contextlib.contextmanager
def sole_filter(output: Path) -> Iterator[None]:
    """Keep a folder to the run of this process, and remove what an earlier one had not finished writing.

    Raises:
        ValueError: another run writes to this folder.
    """
    with sole_run(output, "filtering into"):
        for path in (output / READ).glob("*"):
            if is_passing(path):
                path.unlink(missing_ok=True)
        yield


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Write filter.json, which marks the folder as the filter's, and make room for what is read."""
    (output / READ).mkdir(exist_ok=True)
    write_text(output / FILTER_FILE, json.dumps(record, indent=2) + "\n")


# Filtered masks ------------------------------------------------------------------------------------------------------


def image_digest(image: Path, mask: Path, thresholds: np.ndarray) -> str:
    """Hash what a filtered mask depends on beside the network: the files, and the thresholds."""
    digest = hashlib.sha256(thresholds.tobytes())
    for path in (image, mask):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def stored_note(output: Path, name: str, digest: str) -> dict[str, Any] | None:
    """What was found of an image, where its filtered mask is there, whole, and of this digest; else None."""
    for place in (output / "masks", output / READ):
        path = place / f"{name}.png"
        if path.is_file():
            try:
                note = json.loads(open_image(path).info.get(NOTE_KEY, "{}"))
            except ValueError:  # cut off
                continue
            if note.get("digest") == digest:
                return note
    return None


def store_mask(output: Path, name: str, labels: LabelSet, ids: np.ndarray, note: Mapping[str, Any]) -> None:
    """Write a filtered mask with what was found; an older one of its name goes once all are chosen."""
    text = PngInfo()
    text.add_text(NOTE_KEY, json.dumps(note))
    save_png(output / READ / f"{name}.png", labels.decode(ids), pnginfo=text)


# The data set --------------------------------------------------------------------------------------------------------


def publish(
    output: Path,
    generated: Path,
    labels: LabelSet,
    generation: Mapping[str, Any],
    kept: list[dict[str, Any]],
    dropped: list[dict[str, Any]],
) -> None:
    """Bring the folder into line with what was chosen; at each moment its metadata name files that are there.

    Args:
        output: the folder, which holds all filtered masks.
        generated: where the images are copied from.
        labels: the classes.
        generation: what generation.json is to hold.
        kept, dropped: rows of the metadata.
    """
    for row in kept:
        for key in ("image_file_name", "mask_file_name"):
            (output / row[key]).parent.mkdir(parents=True, exist_ok=True)
        _copy(generated / row["image_file_name"], output / row["image_file_name"])
        read = output / READ / Path(row["mask_file_name"]).name
        if read.is_file():
            os.replace(read, output / row["mask_file_name"])
    labels.save_json(output / LABELS_FILE)
    write_text(output / GENERATION_FILE, json.dumps(generation, indent=2) + "\n")
    if (generated / CARD).is_file():  # which may name a licence
        _copy(generated / CARD, output / CARD)
    write_text(output / DROPPED_FILE, "".join(json.dumps(row) + "\n" for row in in_order(dropped)))
    write_metadata(output, kept)
    stay = {row[key] for row in kept for key in ("image_file_name", "mask_file_name")}
    for path in _pictures(output):
        if path.relative_to(output).as_posix() not in stay:
            if path.parent.name == "masks":
                os.replace(path, output / READ / path.name)
            else:
                path.unlink()


def _copy(source: Path, target: Path) -> None:
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with written_beside(target) as temporary:
            shutil.copyfile(source, temporary)


def _pictures(output: Path) -> Iterable[Path]:
    return [*output.glob("images/*.png"), *output.glob("masks/*.png")]
