"""Put generated images into the data set that they were made for: its training split, with them in it.

  semseg-diffusers merge --dataset data/camvid128 --generated filtered --output data/grown128

Splits, columns and classes stay those of the data set; a column `synthetic` says of each pair whether it was drawn.
Drawn pairs are called `synthetic_NAME`. `synthetic.jsonl` keeps all that the generated folder says of each (model,
revision, seed, scheduler, ...), `prepare.json` says how many there are, of which model, under which licence. The
folder loads, trains and is pushed as any prepared one: semseg-diffusers push --dataset data/grown128 --repo_id NAME
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from semseg_diffusers.data.dataset import (
    PairDataset,
    add_column_arguments,
    column_options,
    load_pairs,
    read_record,
    split_names,
)
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
    save_pair,
)
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.hub.cards import metadata
from semseg_diffusers.hub.folders import CARD
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.utils.progress import progress_bar


PREFIX = "synthetic_"  # of the names of drawn pairs
PNG = b"\x89PNG\r\n\x1a\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="DIR|ID", help="prepared folder, or a data set on the Hub")
    add_column_arguments(parser)
    parser.add_argument("--generated", required=True, metavar="DIR", help="what `generate` or `filter` made")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--split", default="train", help="the one that grows (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared data set that stands there")


def run(args: argparse.Namespace) -> None:
    counts = merge(args.dataset, args.generated, args.output, args.split, args.overwrite, **column_options(args))
    grown = ", ".join(f"{split} {count}" for split, count in counts.items() if split != "synthetic")
    sys.stdout.write(f"{args.output}: {grown}; {counts['synthetic']} of them synthetic\n")


def merge(
    dataset: str, generated: str, output: str, split: str = "train", overwrite: bool = False, **columns
) -> dict[str, int]:
    """Write a prepared folder with the pairs of a data set and generated ones.

    Args:
        dataset: prepared folder or Hub id.
        generated: folder that `generate` or `filter` made, with the classes and the size of the data set.
        output: folder to make.
        split: the split that the generated pairs join.
        overwrite: replace a prepared data set that stands there.
        **columns: options of `load_pairs`.

    Returns:
        pairs of each split, and of them `synthetic`.

    Raises:
        ValueError: the generated folder is none, one of its files is damaged, or its classes or its size differ from
            the data set's; or the data set was grown already, or holds pairs of the names that drawn ones get.
    """
    source = record_of_photos(dataset)
    splits = {name: load_pairs(dataset, name, **columns) for name in split_names(dataset)}
    if split not in splits:
        raise ValueError(f"--split {split}: '{dataset}' has {', '.join(splits)}.")
    real = splits[split]
    labels, drawn, record = read_generated(Path(generated))
    check_fits(real, labels, drawn, generated)
    taken = sorted({drawn_name(row) for row in drawn} & set(real.stems))
    if taken:
        raise ValueError(
            f"{real.name} holds a pair '{taken[0]}' already, which a drawn pair is to be called. Rename it."
        )
    rows: dict[str, list[dict]] = {}
    total = sum(map(len, splits.values())) + len(drawn)
    with new_dataset(output, overwrite) as folder, progress_bar(total=total, desc="merging", unit="pair") as bar:
        for name, pairs in splits.items():
            make_split(folder, name)
            rows[name] = []
            for index in range(len(pairs)):
                rows[name].append(copy_real(folder / name, pairs, index))
                bar.update()
        notes = []
        for row in drawn:
            copied = copy_drawn(folder / split, Path(generated), row, labels)
            shared = {column: row.get(column) for column in real.attributes}
            rows[split].append({**copied, **shared, "synthetic": True})
            notes.append({**row, **copied, "split": split})
            bar.update()
        write_text(folder / SYNTHETIC_FILE, "".join(json.dumps(note, ensure_ascii=False) + "\n" for note in notes))
        synthetic = {"count": len(drawn), "split": split, **provenance(record, source.get("format"))}
        finish_dataset(folder, rows, real.labels, {**source, "source": dataset, "synthetic": synthetic})
    return {**{name: len(lines) for name, lines in rows.items()}, "synthetic": len(drawn)}


def record_of_photos(dataset: str) -> dict:
    """What `prepare` wrote down of a data set that holds no drawn pairs.

    Raises:
        ValueError: it was grown already: drawn pairs would pass for photos, and what is known of them would be lost.
    """
    record = read_record(dataset)
    if "synthetic" in record:
        raise ValueError(
            f"--dataset '{dataset}' holds {record['synthetic']['count']} synthetic pairs already, which would pass "
            "for photos. Take the data set that it was grown from, with all images in one generated folder."
        )
    return record


def read_generated(folder: Path) -> tuple[LabelSet, list[dict], dict]:
    """The classes, the rows and the settings of a folder that `generate` or `filter` made.

    Raises:
        ValueError: it is none, holds no images, or lacks files of its metadata.
    """
    for name in (GENERATION_FILE, METADATA_FILE, LABELS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"--generated '{folder}' holds no {name}; wanted a folder that `generate` or `filter` made."
            )
    rows = read_metadata(folder)
    if not rows:
        raise ValueError(f"--generated '{folder}' holds no images.")
    files = [folder / row[key] for row in rows for key in ("image_file_name", "mask_file_name")]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files of '{folder / METADATA_FILE}' are missing, such as '{missing[0]}'.")
    record = json.loads((folder / GENERATION_FILE).read_text(encoding="utf-8"))
    return LabelSet.from_json(folder / LABELS_FILE), rows, record


def check_fits(real: PairDataset, labels: LabelSet, drawn: list[dict], generated: str) -> None:
    """Refuse generated images of other classes than the real ones, or of another size where those have one.

    Raises:
        ValueError: naming what differs.
    """
    if labels.names != real.labels.names:
        other = sorted({*labels.names} ^ {*real.labels.names}) or ["their order"]
        raise ValueError(
            f"--generated '{generated}' has other classes than {real.name} ({', '.join(other[:5])} differ). Generate "
            "with a model of this data set, or bring the data set to the model's classes: prepare --map_to."
        )
    if len(set(real.sizes)) == 1:
        with open_image(Path(generated) / drawn[0]["image_file_name"], "image") as image:
            width, height = image.size
        if (height, width) != real.sizes[0]:
            raise ValueError(
                f"--generated '{generated}' has images of {height} x {width}, {real.name} photos of "
                f"{real.sizes[0][0]} x {real.sizes[0][1]} (height x width). Generate with --height and --width."
            )


def copy_real(folder: Path, pairs: PairDataset, index: int) -> dict:
    """Write a pair of the data set into a split's folder, a PNG photo byte for byte; its row."""
    stem, ids, file = pairs.stems[index], pairs.mask(index), pairs.photo_file(index)
    attributes = {name: values[index] for name, values in pairs.attributes.items()}
    row = pair_row(stem)
    if file.startswith(PNG):
        (folder / row["image_file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["image_file_name"]).write_bytes(file)
        (folder / row["mask_file_name"]).parent.mkdir(parents=True, exist_ok=True)
        pairs.labels.decode(ids).save(folder / row["mask_file_name"])
    else:
        row = save_pair(folder, stem, pairs.photo(index), ids, pairs.labels)
    return {**row, **attributes, "synthetic": False}


def drawn_name(row: dict) -> str:
    """What a generated pair is called in the data set."""
    return PREFIX + Path(row["image_file_name"]).stem


def copy_drawn(folder: Path, generated: Path, row: dict, labels: LabelSet) -> dict:
    """Copy a generated pair into a split's folder under its new name; its row.

    Raises:
        ValueError: image or mask cannot be read, they differ in size, or the mask holds what is no class.
    """
    image, mask = generated / row["image_file_name"], generated / row["mask_file_name"]
    size = open_image(image, "image").size  # whole
    height, width = labels.encode(mask).shape  # whole, and of these classes
    if size != (width, height):
        raise ValueError(f"image '{image}' is {size[1]} x {size[0]}, its mask {height} x {width} (height x width).")
    copied = pair_row(drawn_name(row))
    shutil.copyfile(image, folder / copied["image_file_name"])
    shutil.copyfile(mask, folder / copied["mask_file_name"])
    return copied


def provenance(record: dict, source_format: str | None) -> dict:
    """Model and licence of generated images, from the settings they were made with.

    Args:
        record: what `generation.json` holds.
        source_format: what the data set was prepared from; its licence is taken where the model's card knows none.
    """
    model = str(record.get("model"))
    card = Path(model) / CARD
    license_name = metadata(card.read_text(encoding="utf-8")).get("license") if card.is_file() else None
    return {
        "model": model,
        "revision": record.get("revision"),
        "license": license_name or data_license(source_format)[0],
    }
