"""Store generated pairs in a zip file or in a growing dataset folder, both in the format of `generate`."""

import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semseg_diffusers.app.sampler import Sample
from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.output_folder import (
    is_temporary,
    open_output,
    save_pair,
    sole_run,
    update_metadata,
)


PAINTED = "painted"  # in generation.json: settings differ between images


def record_of(samples: Sample) -> dict[str, Any]:
    """Return the generation.json of painted masks: the settings of the first image, and that others may differ."""
    return {**samples.record, PAINTED: True}


class Collection:
    """A dataset folder of painted pairs.

    Args:
        folder (`Path`): to create, or to continue if it has the classes and the size of this model.
        labels (`LabelSet`): of the model.
        size (`tuple[int, int]`): height and width of its images.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: Path, labels: LabelSet, size: tuple[int, int]):
        self.folder, self.labels, self.size = folder, labels, size
        self._lock = threading.Lock()
        self.check()

    def check(self) -> None:
        """Refuse a folder that these pairs cannot be added to."""
        if self.folder.is_file():
            raise ValueError(f"--output '{self.folder}' is a file; expected a folder.")
        if not self.folder.is_dir() or all(is_temporary(path) for path in self.folder.iterdir()):
            return
        file = self.folder / GENERATION_FILE
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if not isinstance(there, dict) or not there.get(PAINTED):
            raise ValueError(f"--output '{self.folder}' was not made by the painter. Name another folder.")
        if len(self) == 0:
            return  # stopped before the first image: `open_output` rewrites settings and labels
        labels, size = LabelSet.from_json(self.folder / LABELS_FILE), (there.get("height"), there.get("width"))
        if labels != self.labels or size != self.size:
            raise ValueError(
                f"--output '{self.folder}' holds images of other classes or of another size ({size[0]} x {size[1]}; "
                f"this model generates {self.size[0]} x {self.size[1]}). Name another folder."
            )

    def __len__(self) -> int:
        return sum(1 for _ in (self.folder / "images").glob("*.png"))

    def add(self, samples: Sequence[Sample]) -> int:
        """Write the pairs that are missing, and return their number.

        Raises:
            ValueError: the folder holds something else by now, or another process writes to it.
        """
        with self._lock, sole_run(self.folder, "adding to"):
            self.check()
            open_output(self.folder, record_of(samples[0]), self.labels)
            new = [entry for entry in samples if not (self.folder / "images" / entry.job.file_name).exists()]
            for entry in new:
                save_pair(self.folder, entry.job, self.labels.decode(entry.ids), entry.image, entry.row)
            update_metadata(self.folder, [entry.row for entry in new])
            return len(new)


def strip_local_paths(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row or record for publication: with the folder name only of a local model."""
    model = row["model"]
    return {**row, "model": Path(model).name if Path(model).is_dir() else model}


def zip_of(samples: Sequence[Sample], labels: LabelSet) -> bytes:
    """Return a zip file that unpacks into a folder in the format of `generate`."""
    with tempfile.TemporaryDirectory(prefix="semseg-painter-") as folder:
        root = Path(folder)
        open_output(root, strip_local_paths(record_of(samples[0])), labels)
        for entry in samples:
            save_pair(root, entry.job, labels.decode(entry.ids), entry.image, entry.row)
        update_metadata(root, [strip_local_paths(entry.row) for entry in samples])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in sorted(root.rglob("*.*")):
                archive.write(path, path.relative_to(root), zipfile.ZIP_STORED)
        assert (root / METADATA_FILE).is_file(), "a folder of pairs has its metadata"
        return buffer.getvalue()
