"""Join datasets into one, with an attribute that says which of them a pair is from: the command `join`."""

import sys
from pathlib import Path
from typing import Any

from semseg_diffusers.data.dataset import PairDataset, columns_for, load_pairs, read_record, split_names
from semseg_diffusers.data.dataset_format import (
    JOINED,
    PSEUDO_LABELS,
    finish_dataset,
    make_split,
    new_dataset,
    plain_load_note,
)
from semseg_diffusers.evaluation.inputs import check_one_size, check_same_classes
from semseg_diffusers.growth.merge import copy_pair, read_real_record
from semseg_diffusers.growth.settings import JoinSettings
from semseg_diffusers.utils.files import composed
from semseg_diffusers.utils.progress import progress_bar


def predicted(record: dict[str, Any]) -> dict[str, Any]:
    """Return the mark of labels that a network predicted, of a dataset or of a part of it, by its record."""
    marks = (each[PSEUDO_LABELS] for each in (record, *record.get("joined", ())) if PSEUDO_LABELS in each)
    mark = next(marks, None)
    return {} if mark is None else {PSEUDO_LABELS: mark}


def run(settings: JoinSettings) -> None:
    """Join, and print the number of pairs of each split."""
    record = join(settings)
    splits = ", ".join(f"{split} {count}" for split, count in record["splits"].items())
    parts = ", ".join(f"{part['pairs']} {part['value']}" for part in record["joined"])
    sys.stdout.write(f"{settings.output}: {splits} ({record['attribute']}: {parts})\n")
    sys.stdout.write(plain_load_note(settings.output))


def join(settings: JoinSettings) -> dict[str, Any]:
    """Write the joined dataset; return its record.

    Raises:
        ValueError: classes or image sizes differ, a dataset holds generated pairs or has the attribute already, or
            names collide although the value of their dataset is in front.
    """
    name, values = settings.named_values
    sources = [read_real_record(dataset, "--datasets") for dataset in settings.datasets]
    all_pairs = [load_pairs(dataset, "train", **columns_for(settings, dataset)) for dataset in settings.datasets]
    first = all_pairs[0]
    for pairs in all_pairs:
        if name in pairs.attributes:
            raise ValueError(f"--attribute {name}: {pairs.name} has such a column already. Choose another name.")
        check_same_classes(first, pairs)
        check_one_size(first, pairs)
    taken: set[str] = set()
    names = []  # of the pairs of each dataset
    for pairs, value in zip(all_pairs, values, strict=True):
        stems = [composed(stem) for stem in pairs.stems]
        names.append([f"{value}_{stem}" if stem in taken else stem for stem in stems])
        taken |= {*names[-1]}
        if len(taken) < sum(map(len, names)):
            raise ValueError(f"{pairs.name} holds names that are taken even with '{value}_' in front. Rename them.")
    source, splits = settings.datasets[0], split_names(settings.datasets[0])
    others = {
        split: load_pairs(source, split, **columns_for(settings, source)) for split in splits if split != "train"
    }
    attributes = list(dict.fromkeys(column for pairs in all_pairs for column in pairs.attributes))
    rows: dict[str, list[dict[str, Any]]] = {}
    total = sum(map(len, [*all_pairs, *others.values()]))
    with new_dataset(settings.output, settings.overwrite) as folder, progress_bar(total=total, desc="joining") as bar:

        def copy(split: str, pairs: PairDataset, value: str, new_names: list[str]) -> None:
            place: Path = make_split(folder, split)
            for index, new_name in enumerate(new_names):
                row = {
                    **dict.fromkeys(attributes),
                    **copy_pair(place, pairs, index, first.labels, new_name),
                    name: value,
                }
                rows.setdefault(split, []).append(row)
                bar.update()

        for pairs, value, new_names in zip(all_pairs, values, names, strict=True):
            copy("train", pairs, value, new_names)
        for split, pairs in others.items():
            copy(split, pairs, values[0], pairs.stems)
        formats = [str(source.get("format")) for source in sources]
        record = {
            "format": JOINED.join(dict.fromkeys(formats)),
            "source": list(settings.datasets),
            "resolution": list(first.resolution),
            "attribute": name,
            "joined": [
                {
                    "dataset": dataset, "value": value, "pairs": len(pairs), "format": source.get("format"),
                    **predicted(source),
                }
                for dataset, value, pairs, source in zip(settings.datasets, values, all_pairs, sources, strict=True)
            ],
        }  # fmt: skip
        finish_dataset(folder, rows, first.labels, record)
    return read_record(settings.output)
