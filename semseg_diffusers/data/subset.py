"""Nested parts of a dataset's training pairs, to measure what little data gives."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from semseg_diffusers.data.dataset import load_pairs, metadata_folders, read_record
from semseg_diffusers.data.dataset_format import (
    METADATA_FILE,
    SETTINGS_FILE,
    check_prepared,
    new_output,
    plain_load_note,
)
from semseg_diffusers.data.settings import SubsetSettings
from semseg_diffusers.utils.files import composed, read_json_lines, write_json, write_text


def shuffled_order(names: Sequence[str], seed: int) -> list[int]:
    """Return the indices of names, shuffled by a seed; the order of two names does not depend on the others."""
    return sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed}/{names[i]}".encode()).digest())


def subset_indices(names: Sequence[str], share: float, seed: int) -> list[int]:
    """Return the indices of a share of names, at least one, in their order; a larger share contains a smaller one.

    Example:
        >>> subset_indices(["a", "b", "c", "d"], 0.25, seed=0), subset_indices(["a", "b", "c", "d"], 0.5, seed=0)
        ([2], [1, 2])
    """
    return sorted(shuffled_order(names, seed)[: max(1, round(share * len(names)))])


def run(settings: SubsetSettings) -> None:
    """Run `semseg-diffusers subset`."""
    source = Path(settings.dataset)
    check_prepared(source)
    split = metadata_folders(source).get("train")
    if split is None or split == source:
        raise ValueError(f"'{source}' has no split 'train' to take pairs of.")
    pairs = load_pairs(source, "train")
    chosen = subset_indices([composed(stem) for stem in pairs.stems], settings.share, settings.seed)
    rows = read_json_lines(split / METADATA_FILE)
    kept = [rows[index] for index in chosen]
    files = {
        os.path.normpath(split / value) for row in kept for key, value in row.items() if key.endswith("file_name")
    }

    def left_out(folder: str, names: list[str]) -> list[str]:
        if Path(folder).parent != split:  # folders of images and masks
            return []
        paths = {name: os.path.normpath(os.path.join(folder, name)) for name in names}
        return [name for name, path in paths.items() if os.path.isfile(path) and path not in files]

    record = read_record(source)
    with new_output(settings.output) as folder:
        shutil.copytree(source, folder, ignore=left_out, dirs_exist_ok=True)
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in kept)
        write_text(folder / split.name / METADATA_FILE, lines)
        subset = {"share": settings.share, "seed": settings.seed, "num_pairs": len(rows)}
        splits = {**record.get("splits", {}), split.name: len(kept)}
        write_json(folder / SETTINGS_FILE, {**record, "splits": splits, "subset": subset})
    sys.stdout.write(f"{settings.output}: {len(kept)} of {len(rows)} training pairs, and all others\n")
    sys.stdout.write(plain_load_note(settings.output))
