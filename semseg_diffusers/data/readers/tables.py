"""Any dataset that `datasets` loads and that has a column of photos and one of masks: from the Hub, or local."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semseg_diffusers.data.dataset import find_on_hub
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import Encoded, Pair, ReadOptions, Source
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


IMAGE_COLUMNS = ("image", "pixel_values", "img", "photo")  # looked for where none is named
MASK_COLUMNS = ("mask", "label", "annotation", "segmentation", "semantic_segmentation", "labels", "seg")
TABLE_FILES = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
TABLE_ENDINGS = (".parquet", ".arrow")


def read_table(root: Path | str, options: ReadOptions) -> Source:
    """Any dataset of `datasets`, a folder or a Hub id, with --image_column, --mask_column and --labels."""
    name = str(root)
    check_name(name, "dataset")
    labels, revision = _labels(name, options.labels)
    tables = _load(name, revision, options.streaming)
    columns = _columns(name, next(iter(tables.values())), options)
    rows = _Rows(name, {split: _undecoded(table, columns) for split, table in tables.items()}, columns)
    how = "as a stream" if options.streaming else "whole"
    return Source(labels, rows, notes=(f"read the columns {columns[0]} and {columns[1]}, {how}",))


def is_table(root: Path | str) -> bool:
    if not isinstance(root, Path) or not root.is_dir():
        return False
    if any((root / name).is_file() for name in TABLE_FILES):
        return True
    folders = [folder for folder in (root, root / "data") if folder.is_dir()]
    return any(path.suffix in TABLE_ENDINGS for folder in folders for path in folder.iterdir())


@dataclass(frozen=True)
class _Rows(Iterable):
    """The pairs of all splits, one after the other; each time they are read anew."""

    name: str
    tables: dict  # split as `datasets` calls it -> table
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
                photo, mask = (
                    _encoded(row[column], f"{what} of row {index} ({key}) of {self.name}")
                    for column, what in zip(self.columns, ("photo", "mask"), strict=True)
                )
                yield Pair(stem, photo, mask, split)

    def fingerprint(self) -> str:
        """Changes when the tables do, as far as `datasets` knows."""
        prints = {key: getattr(table, "_fingerprint", None) for key, table in self.tables.items()}
        return f"{self.name} {self.columns} {prints}"

    def __len__(self) -> int:
        """How many there are; a stream does not know."""
        return sum(len(table) for table in self.tables.values())


def _stem(row: dict, column: str, index: int) -> str:
    """A name for a row: that of its file, where it had one that a file may have again; else its number."""
    path = (row.get(column) or {}).get("path")
    stem = str(row["stem"]) if row.get("stem") else PurePosixPath(path.replace("\\", "/")).stem if path else ""
    usable = stem and not stem.startswith(".") and not set(stem) & set('/\\:*?"<>|') and stem.isprintable()
    return stem if usable else f"{index:06}"


def _encoded(entry: dict | None, name: str) -> Encoded:
    if not entry:
        return Encoded(b"", name)  # refused when it is opened, with its name
    data = entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()
    return Encoded(data, name)


def _load(name: str, revision: str | None, streaming: bool) -> dict:
    """The tables by split, pictures not decoded."""
    import datasets  # here: importing it takes longer than everything else in this file

    folder = Path(name)
    if folder.is_dir() and any((folder / file).is_file() for file in TABLE_FILES):
        loaded = datasets.load_from_disk(name)
        if streaming:
            raise ValueError(f"'{name}' was saved with save_to_disk and lies here whole; leave out --streaming.")
    else:
        with hub_errors(f"loading the dataset '{name}'", name, "dataset"):
            loaded = datasets.load_dataset(name, revision=revision, streaming=streaming)
    tables = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    strange = [split for split in tables if split not in SPLITS]
    if strange:
        raise ValueError(
            f"'{name}' has the splits {', '.join(tables)}; wanted train, validation and test only, not "
            f"{', '.join(strange)}."
        )
    return tables


def _undecoded(table, columns: tuple[str, str]):
    """The columns that are read, pictures left as they are encoded."""
    import datasets

    for column in columns:
        table = table.cast_column(column, datasets.Image(decode=False))
    return table.select_columns([column for column in table.column_names if column in (*columns, "stem")])


def _columns(name: str, table, options: ReadOptions) -> tuple[str, str]:
    """The two columns: as named, or the only ones that are called as such columns are."""
    import datasets

    features = table.features or {}
    pictures = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    chosen = []
    for option, given, known in (
        ("image_column", options.image_column, IMAGE_COLUMNS),
        ("mask_column", options.mask_column, MASK_COLUMNS),
    ):
        column = given or next((column for column in known if column in pictures and column not in chosen), None)
        if column not in pictures:
            what = f"column '{column}' of '{name}' holds no pictures" if column else f"no column of '{name}' is named"
            raise ValueError(f"{what}; give --{option}: {', '.join(pictures) or 'none of its columns'} hold pictures.")
        chosen.append(column)
    if chosen[0] == chosen[1]:
        raise ValueError(f"--image_column and --mask_column are both '{chosen[0]}'; wanted two columns.")
    return chosen[0], chosen[1]


def _labels(name: str, labels: str | None) -> tuple[LabelSet, str | None]:
    """The classes of the masks; and, of a dataset on the Hub, the commit that they are of."""
    given = None if labels is None else LabelSet.from_name(labels)
    if not Path(name).is_dir():
        return find_on_hub(name, given, None)
    file = Path(name) / LABELS_FILE
    if given is None and not file.is_file():
        raise ValueError(
            f"the classes of '{name}' are not known; say which ids or colours its masks hold: --labels with a preset "
            "or a JSON file."
        )
    return given or LabelSet.from_json(file), None
