"""Any dataset that `datasets` loads and that has a column of images and one of masks: from the Hub, or local."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from semseg_diffusers.data.dataset import find_labels, load_tables
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import AnyPath, Encoded, Pair, ReadOptions, Source
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.utils.hub_errors import check_name


IMAGE_COLUMNS = ("image", "pixel_values", "img", "photo")  # if none is named
MASK_COLUMNS = ("mask", "label", "annotation", "segmentation", "semantic_segmentation", "labels", "seg")
TABLE_FILES = ("dataset_dict.json", "state.json")  # of `save_to_disk`
TABLE_ENDINGS = (".parquet", ".arrow")


def is_table(root: AnyPath) -> bool:
    """Return whether a folder holds tables of `datasets`."""
    if not isinstance(root, Path) or not root.is_dir():
        return False
    if any((root / name).is_file() for name in TABLE_FILES):
        return True
    folders = [folder for folder in (root, root / "data") if folder.is_dir()]
    return any(path.suffix in TABLE_ENDINGS for folder in folders for path in folder.iterdir())


def read_table(name: str, options: ReadOptions) -> Source:
    """Read a dataset of `datasets`, a folder or a Hub id, with --image_column, --mask_column and --labels."""
    import datasets  # here: importing it takes longer than everything else in this file

    check_name(name, "dataset")
    labels, revision = find_labels(name, None if options.labels is None else LabelSet.from_name(options.labels))
    labels = labels if options.ignore_index is None else labels.with_ignored_id(options.ignore_index)
    tables = _load(name, revision, options.streaming)
    columns = _columns(name, next(iter(tables.values())), options)
    for split, table in tables.items():
        for column in columns:
            table = table.cast_column(column, datasets.Image(decode=False))
        tables[split] = table.select_columns([c for c in table.column_names if c in (*columns, "stem")])
    how = "as a stream" if options.streaming else "whole"
    notes = (f"read the columns {columns[0]} and {columns[1]}, {how}",)
    return Source(labels, TablePairs(name, tables, columns), notes=notes)


@dataclass(frozen=True)
class TablePairs(Iterable[Pair]):
    """The pairs of all splits, one after the other, read again on each iteration."""

    name: str
    tables: dict[str, Any]  # split as `datasets` calls it -> table
    columns: tuple[str, str]

    def __iter__(self) -> Iterator[Pair]:
        seen: set[tuple[str, str]] = set()
        for key, table in self.tables.items():
            split = SPLITS[key]
            for index, row in enumerate(table):
                stem = _stem(row, self.columns[0], index)
                while (split, stem) in seen:
                    stem = f"{stem}_{index:06}"
                seen.add((split, stem))
                files = []
                for column, what in zip(self.columns, ("image", "mask"), strict=True):
                    entry = row[column] or {"bytes": b""}  # refused on reading, with its name
                    data = entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()
                    files.append(Encoded(data, f"{what} of row {index} ({key}) of {self.name}"))
                yield Pair(stem, files[0], files[1], split)

    def __len__(self) -> int:
        """Return the number of pairs; a stream raises a TypeError."""
        return sum(len(table) for table in self.tables.values())

    def fingerprint(self) -> str:
        """Return a text that changes with the tables, as far as `datasets` knows."""
        prints = {key: getattr(table, "_fingerprint", None) for key, table in self.tables.items()}
        return f"{self.name} {self.columns} {prints}"


def _stem(row: dict[str, Any], column: str, index: int) -> str:
    """Return the stem of a row's file, if it is usable as a file name; otherwise the row's number."""
    path = (row.get(column) or {}).get("path")
    stem = str(row["stem"]) if row.get("stem") else PurePosixPath(path.replace("\\", "/")).stem if path else ""
    usable = stem and not stem.startswith(".") and not set(stem) & set('/\\:*?"<>|') and stem.isprintable()
    return stem if usable else f"{index:06}"


def _load(name: str, revision: str | None, streaming: bool) -> dict[str, Any]:
    """Return the tables by split."""
    import datasets

    if any((Path(name) / file).is_file() for file in TABLE_FILES):
        if streaming:
            raise ValueError(f"'{name}' was saved with save_to_disk and is local; leave out --streaming.")
        if "::" in os.path.abspath(name):
            raise ValueError(f"'{name}': `datasets` takes :: in the path for two joined addresses. Rename the folder.")
        loaded = datasets.load_from_disk(name)
    else:
        loaded = load_tables(name, revision, streaming=streaming)
    tables = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    others = [split for split in tables if split not in SPLITS]
    if others:
        raise ValueError(
            f"'{name}' has the splits {', '.join(tables)}; expected train, validation and test only, got "
            f"{', '.join(others)}."
        )
    return tables


def _columns(name: str, table: Any, options: ReadOptions) -> tuple[str, str]:
    """Return the columns of images and masks: the given ones, or the first with a usual name."""
    import datasets

    usable = [column for column, kind in (table.features or {}).items() if isinstance(kind, datasets.Image)]
    chosen: list[str] = []
    for option, given, usual in (
        ("image_column", options.image_column, IMAGE_COLUMNS),
        ("mask_column", options.mask_column, MASK_COLUMNS),
    ):
        column = given or next((column for column in usual if column in usable and column not in chosen), None)
        if column is None or column not in usable:
            what = f"column '{column}' of '{name}' holds no images" if column else f"no column of '{name}' is named"
            raise ValueError(f"{what}; give --{option}: {', '.join(usable) or 'none of its columns'} hold images.")
        chosen.append(column)
    if chosen[0] == chosen[1]:
        raise ValueError(f"--image_column and --mask_column are both '{chosen[0]}'; expected two columns.")
    return chosen[0], chosen[1]
