"""Which images are near-copies of training photos: their metadata name the nearest photo, and how near it is.

Pictures are compared as grey thumbnails, as they are and mirrored (`data/thumbnails.py`). On CamVid at 128 x 128 a
training photo stored as JPEG of quality 10, at a quarter of its size or with noise of 10 levels is at most 6.3 grey
levels from itself; shifted by a pixel, cut by 2 % or made 10 % brighter at most 12.8. The training photo nearest to a
photo of the validation split is 29.7 levels away or more, 32.3 in the middle. So 15 finds what shows the same frame,
and nothing else; frames of one video, a second apart while the car waits, are as near as that too (5 to 9).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from semseg_diffusers.data.crop_resize import place_frame
from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.thumbnails import nearest_photos, thumbnails
from semseg_diffusers.generation.output_folder import read_metadata, update_record, write_metadata
from semseg_diffusers.generation.settings import NEAR_COPY_THRESHOLD
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.progress import progress_bar


CHUNK = 4096  # images at a time; bounds the memory


@dataclass(frozen=True)
class NearCopies:
    """What came of it, as generation.json keeps it."""

    training_set: str
    num_photos: int
    threshold: float  # grey levels of 255, root mean square over a thumbnail of 32 x 32
    num_images: int
    num_near_copies: int
    smallest_distance: float
    nearest_image: str  # the image that this is of
    nearest_photo: str

    def in_words(self) -> str:
        return (
            f"{self.num_near_copies} of {self.num_images} images are near-copies of the {self.num_photos} training "
            f"photos (nearer than {self.threshold:g} grey levels); nearest: {self.nearest_image} to "
            f"{self.nearest_photo}, {self.smallest_distance:.1f}"
        )


def flag_near_copies(
    output: Path, training: PairDataset, name: str, threshold: float = NEAR_COPY_THRESHOLD, show_progress: bool = False
) -> NearCopies:
    """Write the nearest training photo of each image of a folder into its metadata, and which are too near.

    Rows get `nearest_training_photo` (its stem), `nearest_training_distance` (grey levels), and `near_copy`; the
    record keeps the counts.

    Args:
        output: folder that `generate_dataset` has made.
        training: the photos that the model was trained on.
        name: what the record calls them.
        threshold: grey levels, above 0, below which an image is a near-copy.
        show_progress: show bars on stderr.

    Raises:
        ValueError: no images or photos, or one cannot be read.
    """
    rows = read_metadata(output)
    if not rows or not len(training):
        raise ValueError(f"near-copies: {len(rows)} images in '{output}', {len(training)} photos in '{name}'.")

    def bar(items: range, title: str) -> Iterator[int]:
        return progress_bar(items, desc=title, unit="photo", disable=not show_progress)

    size = _read(output / rows[0]["image_file_name"]).shape[1:]

    def photo(index: int) -> torch.Tensor:
        whole = training.photo(index)
        return _to_tensor(place_frame(*whole.size[::-1], tuple(size)).place_photo(whole))

    photos = thumbnails(photo(index) for index in bar(range(len(training)), "training photos"))  # (M, 1024)
    found = []
    for start in bar(range(0, len(rows), CHUNK), "near-copies"):
        chunk = rows[start : start + CHUNK]
        found += nearest_photos(thumbnails(_read(output / row["image_file_name"]) for row in chunk), photos)
    for row, nearest in zip(rows, found, strict=True):
        row["nearest_training_photo"] = training.stems[nearest.index]
        row["nearest_training_distance"] = round(nearest.distance, 3)
        row["near_copy"] = nearest.distance < threshold
    write_metadata(output, rows)
    nearest = min(rows, key=lambda row: (row["nearest_training_distance"], row["image_file_name"]))
    copies = NearCopies(
        training_set=name,
        num_photos=len(training),
        threshold=threshold,
        num_images=len(rows),
        num_near_copies=sum(row["near_copy"] for row in rows),
        smallest_distance=nearest["nearest_training_distance"],
        nearest_image=Path(nearest["image_file_name"]).name,
        nearest_photo=nearest["nearest_training_photo"],
    )
    update_record(output, near_copies=asdict(copies))
    return copies


def _to_tensor(picture) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())  # (3, H, W)


def _read(path: Path) -> torch.Tensor:
    return _to_tensor(open_image(path, "image"))
