"""Keeps generated pairs in a growing dataset folder or in a zip file, both in the format of `generate`."""

import io
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from semseg_diffusers.app.sampler import Sample
from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.output_folder import open_output, save_pair, sole_run, update_metadata
from semseg_diffusers.utils.files import is_temporary, read_json


PAINTED = "painted"  # in generation.json: its settings are those of the first image, and others may differ


class Collection:
    """A dataset folder of painted pairs, to create, or to continue if it has these classes and this size."""

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
        try:
            record = read_json(self.folder / GENERATION_FILE)
        except (OSError, ValueError):
            record = {}
        if not record.get(PAINTED):
            raise ValueError(f"--output '{self.folder}' was not made by the painter. Name another folder.")
        if len(self) == 0:
            return  # stopped before the first image: `open_output` rewrites settings and labels
        labels = LabelSet.from_json(self.folder / LABELS_FILE)
        with Image.open(next((self.folder / "images").glob("*.png"))) as image:  # the record has the size before it
            size = image.size[::-1]
        if labels != self.labels or size != self.size:
            raise ValueError(
                f"--output '{self.folder}' holds images of other classes or of another size ({size[0]} x {size[1]}; "
                f"what is kept now is {self.size[0]} x {self.size[1]}). Name another folder, or another --upscaler."
            )

    def __len__(self) -> int:
        return sum(1 for _ in (self.folder / "images").glob("*.png"))

    def add(self, samples: Sequence[Sample]) -> int:
        """Write the pairs that are missing, and return their number."""
        with self._lock, sole_run(self.folder, "adding to"):
            self.check()
            open_output(self.folder, {**samples[0].record, PAINTED: True}, self.labels)
            new = [sample for sample in samples if not (self.folder / "images" / sample.job.file_name).exists()]
            for sample in new:
                save_pair(self.folder, sample.row, self.labels.decode(sample.ids), sample.image)
            update_metadata(self.folder, [sample.row for sample in new])
            return len(new)


def short_name(name: str) -> str:
    """Return the name of a model without the path of a folder."""
    return Path(name).name if Path(name).is_dir() else name


def zip_of(samples: Sequence[Sample], labels: LabelSet) -> bytes:
    """Return a zip file that unpacks into such a folder, without paths of this machine."""
    names = {key: samples[0].record[key] for key in ("model", "upscaler")}
    names = {key: short_name(name) for key, name in names.items() if name is not None}
    published = [replace(each, row={**each.row, **names}, record={**each.record, **names}) for each in samples]
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="semseg-painter-") as folder, zipfile.ZipFile(buffer, "w") as archive:
        Collection(Path(folder) / PAINTED, labels, published[0].ids.shape).add(published)
        for path in sorted((Path(folder) / PAINTED).rglob("*.*")):
            if not is_temporary(path):
                archive.write(path, path.relative_to(Path(folder) / PAINTED), zipfile.ZIP_STORED)
    return buffer.getvalue()
