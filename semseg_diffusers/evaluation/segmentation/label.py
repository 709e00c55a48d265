"""Labels photos with a segmentation network: a prepared dataset whose masks are predictions, for self-training.

The masks are pseudo-labels (Lee 2013): pixels whose prediction is less certain than a confidence are unknown.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.data.crop_resize import CropResize, crop_resize
from semseg_diffusers.data.dataset import is_unprepared, load_photos, metadata_folders, read_record
from semseg_diffusers.data.dataset_format import (
    LABELS_FILE,
    PSEUDO_LABELS,
    find_masks,
    finish_dataset,
    make_split,
    new_dataset,
    plain_load_note,
    save_pair,
)
from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import read_image
from semseg_diffusers.data.settings import LABEL_PRESETS, SPLITS
from semseg_diffusers.evaluation.segmentation.judge import OPTION, Judge, load_judge
from semseg_diffusers.evaluation.segmentation.networks import PretrainedSource
from semseg_diffusers.evaluation.settings import LabelSettings
from semseg_diffusers.generation.model import DTYPES
from semseg_diffusers.generation.near_copies import to_tensor
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import composed
from semseg_diffusers.utils.progress import progress_bar


VERY_UNSURE = 0.5  # confidence below which a prediction is reported as very unsure
LISTED = 5  # photos that are named, those with most unsure pixels


class Photos(NamedTuple):
    """Photos to label, loaded on access."""

    names: list[str]
    read: Callable[[int], tuple[Image.Image, CropResize]]  # the photo at its new size, and how it came to it
    attributes: Mapping[str, list[str | None]]  # text columns of their dataset
    record: dict[str, Any]  # of their dataset


def find_photos(settings: LabelSettings, labels: LabelSet) -> Photos:
    """Find the photos of a folder with its sub-folders, or of a split of a dataset, whose masks are not read."""
    folder, size = Path(settings.images), (settings.resolution, settings.fit)
    if is_unprepared(folder):
        raise ValueError(f"--images '{folder}' holds masks beside its photos; give the folder of the photos alone.")
    if folder.exists() and not metadata_folders(folder):
        files = find_masks(folder, "photo")

        def read_file(index: int) -> tuple[Image.Image, CropResize]:
            image, crop = read_image(files[index], *size)
            return crop.resize_image(image), crop

        return Photos([composed(file.stem) for file in files], read_file, {}, {})
    pairs = load_photos(settings.images, settings.split, settings.image_column, labels)
    names = [composed(stem) for stem in pairs.stems]
    if len({*names}) < len(names):
        raise ValueError(f"{pairs.name} holds photos of the same name; expected distinct ones.")

    def read_row(index: int) -> tuple[Image.Image, CropResize]:
        image = pairs.photo(index)
        crop = crop_resize(image.height, image.width, *size)
        return crop.resize_image(image), crop

    return Photos(names, read_row, pairs.attributes, read_record(settings.images))


def classes_of(settings: LabelSettings) -> LabelSet:
    """Return the label set of the masks: the given one, or that of the network."""
    if settings.labels is not None:
        return LabelSet.from_name(settings.labels)
    file = Path(settings.segmenter) / LABELS_FILE
    if file.is_file():
        return LabelSet.from_json(file)
    config = PretrainedSource(settings.segmenter, settings.segmenter_revision, OPTION).config()
    label_set = getattr(config, "label_set", None)
    if label_set is None:
        raise ValueError(
            f"{OPTION} '{settings.segmenter}' carries no label set, as networks of `segmenter` do. Give --labels: "
            f"{', '.join(LABEL_PRESETS)}, or the {LABELS_FILE} of a dataset."
        )
    return LabelSet.from_config(label_set)


def predict(
    judge: Judge, photos: Photos, batch_size: int
) -> Iterator[tuple[int, Image.Image, np.ndarray, np.ndarray]]:
    """Yield index, photo, class ids and confidences (H, W) of each photo, in their order."""
    with progress_bar(total=len(photos.names), desc="labelling", unit="photo") as bar:
        for start in range(0, len(photos.names), batch_size):
            chunk = range(start, min(start + batch_size, len(photos.names)))
            read = [(index, *photos.read(index)) for index in chunk]
            for _, group in itertools.groupby(read, key=lambda entry: entry[1].size):  # a batch has one size
                batch = list(group)
                ids, confidences = judge.read_with_confidence(torch.stack([to_tensor(image) for _, image, _ in batch]))
                for (index, image, crop), of_photo, confidence in zip(batch, ids, confidences, strict=True):
                    left, top, right, bottom = crop.inset
                    padded = torch.full_like(of_photo, judge.labels.ignore_index)  # unknown outside of the frame
                    padded[top:bottom, left:right] = of_photo[top:bottom, left:right]
                    yield index, image, padded.numpy(), confidence.numpy()
            bar.update(len(chunk))


def label_photos(settings: LabelSettings, device: str) -> dict[str, Any]:
    """Write the dataset; return its record.

    Raises:
        ValueError: no photos, or no network for semantic segmentation; no prediction reaches the confidence.
    """
    output, images = Path(settings.output).resolve(), Path(settings.images).resolve()
    if images.exists() and (output == images or output in images.parents or images in output.parents):
        raise ValueError(f"--output '{output}' and --images '{images}' overlap; expected separate folders.")
    labels = classes_of(settings)
    photos = find_photos(settings, labels)
    judge = load_judge(
        settings.segmenter, labels, revision=settings.segmenter_revision, input_size=settings.segmenter_size,
        device=device, dtype=DTYPES[settings.dtype],
    )  # fmt: skip
    split = SPLITS.get(settings.split, settings.split)
    rows: list[dict[str, Any]] = []
    pixels, num_unsure = np.zeros(labels.num_classes + 1, np.int64), 0
    with new_dataset(settings.output, settings.overwrite) as folder:
        place = make_split(folder, split)
        for index, image, ids, confidence in predict(judge, photos, settings.batch_size):
            name, known = photos.names[index], ids != labels.ignore_index
            unsure = known & (confidence < VERY_UNSURE)
            ids[known & (confidence < settings.min_confidence)] = labels.ignore_index
            pixels += count_pixels(ids, labels.num_classes)
            num_unsure += int(unsure.sum())
            for part in ("images", "masks"):
                (place / part / name).parent.mkdir(parents=True, exist_ok=True)  # a name may hold folders
            row = save_pair(place, name, image, ids, labels)
            row |= {column: values[index] for column, values in photos.attributes.items()}
            rows.append({**row, "unsure_share": round(float(unsure.mean()), 6)})
        if pixels[:-1].sum() == 0:
            raise ValueError(
                f"no prediction of {OPTION} '{judge.name}' reaches --min_confidence {settings.min_confidence:g}: "
                "nothing would be labelled. Lower it, or use another network."
            )
        record = {
            "format": photos.record.get("format"),
            "source": settings.images,
            "resolution": list(settings.resolution or ()) or photos.record.get("resolution", "native"),
            "fit": settings.fit,
            PSEUDO_LABELS: {
                "segmenter": judge.name,
                "weights_sha256": judge.weights_sha256,
                "trained_on": judge.trained_on,
                "preprocessing_size": dict(judge.preprocessing.size),
                "min_confidence": settings.min_confidence,
                "very_unsure": VERY_UNSURE,
                "unsure_share": round(num_unsure / int(pixels.sum()), 6),
                "unknown_share": round(int(pixels[-1]) / int(pixels.sum()), 6),
                "pixels": dict(zip(labels.names, pixels[:-1].tolist(), strict=True)),
            },
        }
        finish_dataset(folder, {split: rows}, labels, record)
    return {**record, "rows": rows}


def run(settings: LabelSettings) -> None:
    """Label the photos, and print how unsure the network was."""
    device = choose_device(settings.device)
    record = label_photos(settings, device)
    found, rows = record[PSEUDO_LABELS], record["rows"]
    lines = [
        f"{settings.output}: {len(rows)} photos labelled by '{found['segmenter']}' ({found['weights_sha256']})",
        f"very unsure (confidence below {VERY_UNSURE:g}): {found['unsure_share']:.1%} of the pixels; by photo:",
    ]
    worst = sorted(rows, key=lambda row: -row["unsure_share"])
    lines += [f"  {row['stem']}: {row['unsure_share']:.1%}" for row in worst[:LISTED]]
    if len(worst) > LISTED:
        lines.append(f"  {len(worst) - LISTED} more with less, in the column unsure_share of the metadata")
    lines.append(f"unknown in the masks: {found['unknown_share']:.1%} (--min_confidence {found['min_confidence']:g})")
    if absent := [name for name, count in found["pixels"].items() if not count]:
        lines.append(f"predicted in no photo: {', '.join(absent)}")
    sys.stdout.write("\n".join(lines) + "\n" + plain_load_note(settings.output))
