"""Near-copies: generated images that show a training image again, found by small grey copies of both.

Thumbnails find a copy whatever a network makes of it, plain or mirrored, since training mirrors images. On CamVid at
128 x 128, a training image saved as JPEG of quality 10, at a quarter of its size or with noise of 10 levels is at most
6.3 grey levels from itself; shifted by a pixel, cut by 2 % or made 10 % brighter, at most 12.8. The nearest training
image of a validation image is at least 29.7 levels away, in the median 32.3. So a threshold of 15 finds images of the
same frame and nothing else; frames of a video, a second apart while the car waits, are that near as well (5 to 9).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.generation.output_folder import read_metadata, update_record, write_metadata
from semseg_diffusers.generation.settings import NEAR_COPY_THRESHOLD
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.progress import progress_bar


THUMBNAIL = 32  # pixels a side
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R BT.601
RECORD_TEXT = (
    "{num_near_copies} of {num_images} images are near-copies of the {num_photos} photos of {training_set} (nearer "
    "than {threshold:g} grey levels); nearest: {nearest_image} to {nearest_photo}, {smallest_distance:.1f}"
)
CHUNK = 1024  # rows that are compared with all others at a time: 80 MB for 10,000 of them


def thumbnails(images: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return grey thumbnails (N, 1024) in [0, 255] of uint8 images (3, H, W), by the mean of each area."""
    weights = torch.tensor(LUMA).view(3, 1, 1)
    rows = []
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"expected uint8 images (3, H, W); got {image.dtype} {tuple(image.shape)}.")
        grey = (image.cpu().float() * weights).sum(0, keepdim=True)  # (1, H, W)
        rows.append(F.adaptive_avg_pool2d(grey, THUMBNAIL).flatten())
    if not rows:
        raise ValueError("thumbnails need at least one image; got none.")
    return torch.stack(rows)


def nearest_rows(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared Euclidean distance (N,) of each query to the nearest reference, and its index (N,)."""
    lengths = references.square().sum(1)  # (M,)
    distances, indices = [], []
    for chunk in queries.split(CHUNK):
        rows = chunk.to(references)
        index = (lengths - 2 * rows @ references.T).argmin(1)  # |b|^2 - 2ab: |a|^2 is the same for all references
        distances.append((rows - references[index]).square().sum(1))  # again: rounding of the product hides equality
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def nearest_thumbnails(
    images: torch.Tensor, references: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the nearest reference, plain or mirrored, of each thumbnail (N, 1024).

    Returns distances (root mean square, in grey levels of 255), indices, and whether the reference is mirrored.
    """
    references = references.cpu().double()
    mirrored = references.view(-1, THUMBNAIL, THUMBNAIL).flip(2).flatten(1)  # (M, 1024)
    squared, indices = nearest_rows(images, torch.cat([references, mirrored]))
    return squared.sqrt() / THUMBNAIL, indices % len(references), indices >= len(references)


def flag_near_copies(
    output: Path, training: PairDataset, name: str, threshold: float = NEAR_COPY_THRESHOLD, show_progress: bool = False
) -> dict[str, Any]:
    """Record the nearest training image of each generated image in the metadata, and flag near-copies.

    Rows get `nearest_training_photo` (its stem), `nearest_training_distance` (grey levels), and `near_copy`, true
    below the threshold; generation.json gets the record that is returned, `name` as that of the training images.
    """
    rows = read_metadata(output)
    if not rows or not len(training):
        raise ValueError(f"near-copies: {len(rows)} images in '{output}', {len(training)} photos in '{name}'.")
    files = [output / row["image_file_name"] for row in rows]
    width, height = open_image(files[0], "image").size

    def shown(items: Iterable, title: str) -> Iterable:
        return progress_bar(items, desc=title, unit="photo", disable=not show_progress)

    def at_output_size(index: int) -> torch.Tensor:
        image = training.photo(index)
        return to_tensor(crop_resize(image.height, image.width, (height, width)).resize_image(image))

    references = thumbnails(at_output_size(index) for index in shown(range(len(training)), "training photos"))
    images = thumbnails(to_tensor(open_image(file, "image")) for file in shown(files, "near-copies"))
    distances, indices, _ = nearest_thumbnails(images, references)
    for row, distance, index in zip(rows, distances.tolist(), indices.tolist(), strict=True):
        row["nearest_training_photo"] = training.stems[index]
        row["nearest_training_distance"] = round(distance, 3)
        row["near_copy"] = distance < threshold
    write_metadata(output, rows)
    nearest = min(rows, key=lambda row: (row["nearest_training_distance"], row["image_file_name"]))
    record = {
        "training_set": name,
        "num_photos": len(training),
        "threshold": threshold,  # grey levels of 255, root mean square over a thumbnail
        "num_images": len(rows),
        "num_near_copies": sum(row["near_copy"] for row in rows),
        "smallest_distance": nearest["nearest_training_distance"],
        "nearest_image": Path(nearest["image_file_name"]).name,
        "nearest_photo": nearest["nearest_training_photo"],
    }
    update_record(output, near_copies=record)
    return record


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an image as uint8 (3, H, W), RGB."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())  # (3, H, W)
