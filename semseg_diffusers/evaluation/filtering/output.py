"""The output folder of the filter: a generated dataset with filtered masks, and a record of what was removed.

`images/`, `masks/`, `metadata.jsonl`, `labels.json` and `generation.json` as `generate` writes them; `dropped.jsonl`,
`filter.json`, `filter.html`. Each filtered mask stores its scores, from which an interrupted run resumes.
"""

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.PngImagePlugin import PngInfo

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, LossReader, Scored, read_filter, real_pixels
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.generation.output_folder import in_order, list_images, read_metadata, write_metadata
from semseg_diffusers.generation.settings import IMAGE_FORMATS
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.files import hash_file, is_temporary, read_json, write_json, write_text, written_beside
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.settings import differences


DROPPED_FILE = "dropped.jsonl"
PAGE_FILE = "filter.html"
READ = ".read"  # filtered masks of images that are not, or not yet, in the dataset; ignored by `datasets`
NOTE_KEY = "semseg_diffusers_filter"  # text in a filtered mask's PNG with its scores
CARD = "README.md"
COLUMNS = ("segmenter_loss", "kept_share", "kept_share_by_class", "mask_hardness", "mask_rank")  # ours in the metadata


def read_generated(generated: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the record of a folder written by `generate`."""
    if not generated.is_dir():
        raise FileNotFoundError(f"there is no folder '{generated}'; --generated takes one written by `generate`.")
    missing = [name for name in (GENERATION_FILE, METADATA_FILE, LABELS_FILE) if not (generated / name).is_file()]
    if missing:
        raise ValueError(
            f"--generated '{generated}' holds no {' and no '.join(missing)}; expected a folder written by `generate`."
        )
    if (generated / FILTER_FILE).is_file():
        raise ValueError(
            f"--generated '{generated}' is filtered already ({FILTER_FILE}). Filter the folder it was made from: "
            "there the labels are complete."
        )
    rows = read_metadata(generated)
    taken = sorted({column for row in rows for column in row} & {*COLUMNS, "reason"})
    if taken:
        raise ValueError(
            f"the metadata of '{generated}' have columns called {', '.join(taken)}, which the filter writes itself. "
            "Rename them in the dataset that the model was trained on."
        )
    keys = ("image_file_name", "mask_file_name", "stem", "index")
    for row in rows:
        if any(name not in row for name in keys):
            raise ValueError(f"a row of '{generated / METADATA_FILE}' lacks one of {', '.join(keys)}: {row!s:.80}.")
        image, mask = row["image_file_name"], row["mask_file_name"]
        name = Path(image).stem
        if image not in [f"images/{name}.{suffix}" for suffix in IMAGE_FORMATS] or mask != f"masks/{name}.png":
            raise ValueError(
                f"'{generated / METADATA_FILE}' lists {image} with {mask}; expected images/NAME.png, or .jpg, with "
                "masks/NAME.png, as `generate` writes them."
            )
    return rows, read_json(generated / GENERATION_FILE)


def check_output(output: Path, generated: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Raise for a folder that holds anything but filtered images, of these settings if given, or in `generated`."""
    ours, theirs = (Path(os.path.realpath(path)) for path in (output, generated))
    if ours == theirs or theirs in ours.parents or ours in theirs.parents:
        raise ValueError(
            f"--output '{output}' and --generated '{generated}' contain each other; expected separate folders, since "
            "the generated images are not modified."
        )
    if not output.exists():
        return
    record = read_filter(output) if output.is_dir() else None
    if record is None:
        if output.is_dir() and all(is_temporary(path) for path in output.iterdir()):
            return
        raise ValueError(f"--output '{output}' is not empty and was not made by filter (no {FILTER_FILE} in it).")
    if settings is None or not any((*output.glob("masks/*.png"), *output.glob(f"{READ}/*.png"))):
        return  # ended before the first image: other settings may use it
    saved, current = record.get("settings") or {}, json.loads(json.dumps(settings))
    if different := differences(saved, current):
        raise ValueError(f"--output '{output}' was filtered with other settings ({different}). Choose another folder.")


def filter_masks(
    reader: LossReader,
    images: ImageSet,
    rows: list[dict[str, Any]],
    generated: Path,
    output: Path,
    thresholds: np.ndarray,
    real: PairDataset,
) -> list[Scored]:
    """Filter the mask of each image, except those that an earlier run finished; `publish` moves them to `masks/`."""
    digests, notes = [], []
    row_of = {Path(row["image_file_name"]).stem: row for row in rows}
    for name in images.names:
        # what a filtered mask depends on besides the network: thresholds and files
        digest = hashlib.sha256(thresholds.tobytes())
        for key in ("image_file_name", "mask_file_name"):
            digest.update(bytes.fromhex(hash_file(generated / row_of[name][key])))
        digest.update(b"real pixels stay" if "edited_share" in row_of[name] else b"")
        digests.append(digest.hexdigest()[:32])
        notes.append(_stored_note(output, name, digests[-1]))
    missing = [index for index, note in enumerate(notes) if note is None]

    def is_real(index: int) -> np.ndarray | None:
        return real_pixels(row_of[images.names[index]], images.pair, index, real)

    found = reader.filter(images.pair, missing, thresholds, "filtering", is_real)
    for index, (filtered, scores) in zip(missing, found, strict=True):
        notes[index], text = {"digest": digests[index], **scores}, PngInfo()
        text.add_text(NOTE_KEY, json.dumps(notes[index]))
        save_png(output / READ / f"{images.names[index]}.png", images.labels.decode(filtered), pnginfo=text)
    return [
        Scored(name, stem, tuple(note["pixels"]), tuple(note["kept"]), note["loss"])
        for name, stem, note in zip(images.names, images.stems, notes, strict=True)
        if note is not None
    ]


def _stored_note(output: Path, name: str, digest: str) -> dict[str, Any] | None:
    """Return the scores of an image, if its filtered mask exists, is intact and has this digest; else None."""
    for folder in (output / "masks", output / READ):
        path = folder / f"{name}.png"
        if path.is_file():
            try:
                note = json.loads(open_image(path).info.get(NOTE_KEY, "{}"))
            except ValueError:  # truncated
                continue
            if note.get("digest") == digest:
                return note
    return None


def publish(
    output: Path,
    generated: Path,
    labels: LabelSet,
    generation: Mapping[str, Any],
    kept: list[dict[str, Any]],
    dropped: list[dict[str, Any]],
) -> None:
    """Write the dataset from filtered masks and copies of the images; its metadata never list a missing file."""
    for row in kept:
        for key in ("image_file_name", "mask_file_name"):
            (output / row[key]).parent.mkdir(parents=True, exist_ok=True)
        _copy(generated / row["image_file_name"], output / row["image_file_name"])
        read = output / READ / Path(row["mask_file_name"]).name
        if read.is_file():
            os.replace(read, output / row["mask_file_name"])
    labels.save_json(output / LABELS_FILE)
    write_json(output / GENERATION_FILE, generation)
    if (generated / CARD).is_file():  # may name a license
        _copy(generated / CARD, output / CARD)
    write_text(output / DROPPED_FILE, "".join(json.dumps(row) + "\n" for row in in_order(dropped)))
    write_metadata(output, kept)
    listed = {row[key] for row in kept for key in ("image_file_name", "mask_file_name")}
    for path in [*list_images(output), *output.glob("masks/*.png")]:
        if path.relative_to(output).as_posix() not in listed:
            if path.parent.name == "masks":
                os.replace(path, output / READ / path.name)
            else:
                path.unlink()


def _copy(source: Path, target: Path) -> None:
    if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
        with written_beside(target) as temporary:
            shutil.copyfile(source, temporary)
