"""Add generated images to the dataset that they were made for: the command `merge`."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from semseg_diffusers.data.dataset import PairDataset, column_options, load_pairs, read_record, split_names
from semseg_diffusers.data.dataset_format import (
    GENERATION_FILE,
    LABELS_FILE,
    METADATA_FILE,
    SYNTHETIC_FILE,
    data_license,
    finish_dataset,
    make_split,
    new_dataset,
    pair_row,
    plain_load_note,
    save_pair,
)
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.growth.settings import MergeSettings
from semseg_diffusers.hub.cards import metadata
from semseg_diffusers.hub.folders import CARD
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.files import read_json, read_text, write_text
from semseg_diffusers.utils.progress import progress_bar


PNG = b"\x89PNG\r\n\x1a\n"


def run(settings: MergeSettings) -> None:
    """Merge, and print the number of pairs of each split."""
    columns = column_options(settings)
    counts = merge(
        settings.dataset, settings.generated, settings.output, settings.split, settings.overwrite, **columns
    )
    splits = ", ".join(f"{split} {count}" for split, count in counts.items() if split != "synthetic")
    sys.stdout.write(f"{settings.output}: {splits}; {counts['synthetic']} of them synthetic\n")
    sys.stdout.write(plain_load_note(settings.output))


def merge(
    dataset: str, generated: str, output: str, split: str = "train", overwrite: bool = False, **columns: Any
) -> dict[str, int]:
    """Write a prepared folder with the pairs of a dataset and generated ones.

    Args:
        dataset: prepared folder or Hub id.
        generated: folder written by `generate` or `filter`, with the classes and the image size of the dataset.
        output: folder to create.
        split: the split that the generated pairs join.
        overwrite: replace a prepared dataset at `output`.
        **columns: options of `load_pairs`.

    Returns:
        number of pairs of each split, and of the `synthetic` ones.

    Raises:
        ValueError: the generated folder is not one, one of its files is damaged, or its classes or image size differ
            from those of the dataset; or the dataset was grown already, or has pairs with the names of generated ones.
    """
    source = read_real_record(dataset)
    splits = {name: load_pairs(dataset, name, **columns) for name in split_names(dataset)}
    if split not in splits:
        raise ValueError(f"--split {split}: '{dataset}' has {', '.join(splits)}.")
    real = splits[split]
    labels, synthetic_rows, record = read_generated(Path(generated))
    if labels.names != real.labels.names:
        other = sorted({*labels.names} ^ {*real.labels.names}) or ["their order"]
        raise ValueError(
            f"--generated '{generated}' has other classes than {real.name} ({', '.join(other[:5])} differ). Generate "
            "with a model of this dataset, or map the dataset to the model's classes: prepare --map_to."
        )
    if len(set(real.sizes)) == 1:
        width, height = open_image(Path(generated, synthetic_rows[0]["image_file_name"]), "image").size
        if (height, width) != real.sizes[0]:
            raise ValueError(
                f"--generated '{generated}' has images of {height} x {width}, {real.name} images of "
                f"{real.sizes[0][0]} x {real.sizes[0][1]} (height x width). Generate with --height and --width."
            )
    names = [f"synthetic_{Path(row['image_file_name']).stem}" for row in synthetic_rows]
    taken = sorted({*names} & {*real.stems})
    if taken:
        raise ValueError(f"{real.name} holds a pair '{taken[0]}' already, the name of a generated pair. Rename it.")
    rows: dict[str, list[dict]] = {}
    total = sum(map(len, splits.values())) + len(synthetic_rows)
    with new_dataset(output, overwrite) as folder, progress_bar(total=total, desc="merging", unit="pair") as bar:
        for name, pairs in splits.items():
            place, rows[name] = make_split(folder, name), []
            for index in range(len(pairs)):
                rows[name].append({**copy_pair(place, pairs, index, real.labels), "synthetic": False})
                bar.update()
        notes = []
        for row, name in zip(synthetic_rows, names, strict=True):
            copied = _copy_synthetic(folder / split, Path(generated), row, labels, name)
            shared = {column: row.get(column) for column in real.attributes}
            rows[split].append({**copied, **shared, "synthetic": True})
            notes.append({**row, **copied, "split": split})
            bar.update()
        write_text(folder / SYNTHETIC_FILE, "".join(json.dumps(note, ensure_ascii=False) + "\n" for note in notes))
        card = Path(str(record.get("model"))) / CARD  # if it names no licence, that of the dataset applies
        license_name = metadata(read_text(card)).get("license") if card.is_file() else None
        license_name = license_name or data_license(source.get("format"))[0]
        model = {"model": str(record.get("model")), "revision": record.get("revision")}
        synthetic = {"count": len(synthetic_rows), "split": split, **model, "license": license_name}
        finish_dataset(folder, rows, real.labels, {**source, "source": dataset, "synthetic": synthetic})
    return {**{name: len(lines) for name, lines in rows.items()}, "synthetic": len(synthetic_rows)}


def read_real_record(dataset: str, option: str = "--dataset") -> dict[str, Any]:
    """Return the record that `prepare` wrote, unless the dataset was grown: generated pairs would count as real."""
    record = read_record(dataset)
    if "synthetic" in record:
        raise ValueError(
            f"{option} '{dataset}' holds {record['synthetic']['count']} synthetic pairs already, which would "
            "count as real. Use the dataset that it was grown from, with all images in one generated folder."
        )
    return record


def read_generated(folder: Path) -> tuple[LabelSet, list[dict[str, Any]], dict[str, Any]]:
    """Return the classes, metadata rows and record of a complete folder written by `generate` or `filter`."""
    for name in (GENERATION_FILE, METADATA_FILE, LABELS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"--generated '{folder}' holds no {name}; expected a folder written by `generate` or `filter`."
            )
    rows = read_metadata(folder)
    if not rows:
        raise ValueError(f"--generated '{folder}' holds no images.")
    files = (folder / row[key] for row in rows for key in ("image_file_name", "mask_file_name"))
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files of '{folder / METADATA_FILE}' are missing, such as '{missing[0]}'.")
    return LabelSet.from_json(folder / LABELS_FILE), rows, read_json(folder / GENERATION_FILE)


def copy_pair(
    folder: Path, pairs: PairDataset, index: int, labels: LabelSet, name: str | None = None
) -> dict[str, Any]:
    """Write a pair into the folder of a split, PNG images byte for byte, and return its row; `name` is a new stem."""
    stem, ids, file = name or pairs.stems[index], pairs.mask(index), pairs.photo_file(index)
    row: dict[str, Any] = pair_row(stem)
    for path in row["image_file_name"], row["mask_file_name"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)  # a stem may hold folders
    if file.startswith(PNG):
        (folder / row["image_file_name"]).write_bytes(file)
        labels.decode(ids).save(folder / row["mask_file_name"])
    else:
        save_pair(folder, stem, pairs.photo(index), ids, labels)
    return row | pairs.texts_of(index)


def _copy_synthetic(folder: Path, generated: Path, row: dict[str, Any], labels: LabelSet, name: str) -> dict[str, str]:
    """Copy a generated pair into the folder of a split, and return its row; both files are read to their end."""
    image, mask = generated / row["image_file_name"], generated / row["mask_file_name"]
    size = open_image(image, "image").size
    height, width = labels.encode(mask).shape  # checks the ids
    if size != (width, height):
        raise ValueError(f"image '{image}' is {size[1]} x {size[0]}, its mask {height} x {width} (height x width).")
    copied = pair_row(name) | {"image_file_name": f"images/{name}{image.suffix}"}
    shutil.copyfile(image, folder / copied["image_file_name"])
    shutil.copyfile(mask, folder / copied["mask_file_name"])
    return copied
