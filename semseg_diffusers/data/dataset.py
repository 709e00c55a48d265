"""Load image-mask pairs through `datasets`, from a prepared folder or from any dataset of the Hub.

Whatever form a mask column has (ids, palette, colours), masks are returned as class ids, checked against the label
set.
"""

import functools
import hashlib
import io
import mmap
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.data.dataset_format import (
    LABELS_FILE,
    METADATA_FILE,
    NAMES_FILE,
    SETTINGS_FILE,
    pattern_characters,
)
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import UNDECIDED, decide_masks, encode_decided
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.pipelines.image_inputs import to_rgb
from semseg_diffusers.pipelines.mask_inputs import image_errors, open_image, orientation
from semseg_diffusers.utils.files import is_outside, read_json, read_json_lines
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


FILES_OF_DATASETS = (LABELS_FILE, NAMES_FILE)  # that may hold the label set


class MissingSplitError(ValueError):
    """The dataset has no split of that name."""


class DecodedPairs:
    """A cache of decoded images and masks in memory that forked processes share: what one has decoded, all have.

    It holds as many of the first pairs of a dataset as fit, and is filled as they are read; two processes that decode
    the same pair write the same bytes.
    """

    def __init__(self, sizes: list[tuple[int, int]], most_bytes: int):
        pixels = np.array([height * width for height, width in sizes], dtype=np.int64)
        ends = np.cumsum(4 * pixels + 1)  # three channels, the id, and whether the pair is there
        self.count = int(np.searchsorted(ends, most_bytes, side="right"))
        self._sizes, self._ends = sizes, ends
        memory = mmap.mmap(-1, int(ends[self.count - 1])) if self.count else b""
        self._memory = np.frombuffer(memory, dtype=np.uint8)

    def get(
        self, index: int, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return copies of a window of an image (3, H, W) and its mask (H, W), uint8; None if they are not there."""
        if index >= self.count or not self._memory[self._ends[index] - 1]:
            return None
        image, mask = self._views(index)
        return image[:, rows, columns].copy(), mask[rows, columns].copy()

    def put(self, index: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Store an image (3, H, W) and its mask (H, W), if there is room."""
        if index < self.count:
            own_image, own_mask = self._views(index)
            own_image[:], own_mask[:] = image, mask
            self._memory[self._ends[index] - 1] = 1  # last, when all is there

    def _views(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        (height, width), end = self._sizes[index], self._ends[index] - 1
        part = self._memory[end - 4 * height * width : end].reshape(4, height, width)
        return part[:3], part[3]


class PairDataset(torch.utils.data.Dataset):
    """Images and masks of one split, read on access.

    Args:
        table (`datasets.Dataset`): its image and mask columns hold encoded files.
        labels (`LabelSet`): classes of the masks.
        image_column (`str`): name of the image column.
        mask_column (`str`): name of the mask column.
        name (`str`): name of the dataset in messages.
    """

    def __init__(self, table: Any, labels: LabelSet, image_column: str, mask_column: str, name: str):
        self.labels = replace(labels, changed_ids=())
        self._mask_labels = labels
        self._decided = UNDECIDED
        self._table, self.name = table, name
        self._columns = {"image": image_column, "mask": mask_column}
        self._tables = {what: table.select_columns([column]) for what, column in self._columns.items()}
        self._decoded: DecodedPairs | None = None
        if "stem" in table.column_names:
            self.stems = [str(stem) for stem in table["stem"]]
        else:
            paths = [(entry or {}).get("path") for entry in table[image_column]]
            self.stems = [PurePosixPath(path).stem if path else f"{i:06}" for i, path in enumerate(paths)]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one pair: `image` uint8 (3, H, W), `mask` uint8 ids (H, W), `stem`.

        Raises:
            ValueError: a file cannot be read, or the mask does not match the label set or the image's size.
        """
        return self.read(index)

    def read(self, index: int, rows: slice = slice(None), columns: slice = slice(None)) -> dict[str, Any]:
        """Return a window of one pair; of a decoded one, the rest is not copied."""
        index = range(len(self))[index]  # an IndexError past the end, negative numbers from the end
        pair = None if self._decoded is None else self._decoded.get(index, rows, columns)
        if pair is None:
            image, ids = np.asarray(self.photo(index)), self.mask(index)  # (H, W, 3), (H, W)
            if image.shape[:2] != ids.shape:
                (h, w), (mask_h, mask_w) = image.shape[:2], ids.shape
                raise ValueError(
                    f"pair '{self.stems[index]}' of {self.name}: the image is {h} x {w}, its mask {mask_h} x {mask_w} "
                    "(height x width); expected one size. Prepare the dataset again."
                )
            pair = image.transpose(2, 0, 1).copy(), ids
            if self._decoded is not None:
                self._decoded.put(index, *pair)
            pair = pair[0][:, rows, columns], pair[1][rows, columns]
        return {"image": torch.from_numpy(pair[0]), "mask": torch.from_numpy(pair[1]), "stem": self.stems[index]}

    def keep_decoded(self, most_bytes: int) -> int:
        """Keep decoded pairs from now on, in memory shared with processes forked from this one.

        Args:
            most_bytes (`int`): limit of the memory; 0 keeps none.

        Returns:
            `int`: how many pairs fit.
        """
        self._decoded = DecodedPairs(self.sizes, most_bytes)
        return self._decoded.count

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a process that is not forked, which decodes for itself."""
        return {**self.__dict__, "_decoded": None}

    def mask(self, index: int) -> np.ndarray:
        """Return the class ids of one mask, (H, W) uint8, without reading its image.

        Raises:
            ValueError: the mask cannot be read, or does not match the label set.
        """
        mask, source = self._decode(index, "mask")
        return encode_decided(self._mask_labels, mask, source, 0.0, self._decided)

    def decide_mask_values(self) -> None:
        """Decide from all masks what their numbers are, see `data.mask_values`.

        Raises:
            ValueError: no meaning suits all masks, or several do.
        """
        decode = functools.partial(self._decode, what="mask")
        self._decided = decide_masks(self._mask_labels, decode, range(len(self)))

    def photo_file(self, index: int) -> bytes:
        """Return the bytes of an image file as they are stored."""
        index = range(len(self))[index]
        entry = self._given(self._tables["image"][index][self._columns["image"]], index, "image")
        return entry["bytes"] or Path(entry["path"]).read_bytes()

    def photo(self, index: int) -> Image.Image:
        """Return one image, in its EXIF orientation, RGB, without reading its mask.

        Raises:
            ValueError: the image cannot be read.
        """
        image, source = self._decode(index, "image")
        return to_rgb(image, f"image '{source}'")

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of the stems, the mask files and the sizes of the image files, which changes with them.

        Reading images as well would take minutes where they are large: one that is changed without another size is
        not noticed.
        """
        digest = hashlib.sha256()
        column = self._columns["image"]
        first = next((row[column] for row in self._tables["image"] if row[column]), {"bytes": b""})
        # None: those in a table are not read
        images = [{column: None}] * len(self) if first["bytes"] is not None else self._tables["image"]
        for stem, mask, image in zip(self.stems, self._tables["mask"], images, strict=True):
            entry = mask[self._columns["mask"]] or {"bytes": b""}
            data = Path(entry["path"]).read_bytes() if entry["bytes"] is None else entry["bytes"]
            size = None if image[column] is None else os.stat(image[column]["path"]).st_size
            digest.update(repr((stem, size, len(data))).encode() + data)
        return digest.hexdigest()

    @property
    def num_synthetic(self) -> int:
        """Return the number of generated pairs, by the column `synthetic` of merged and generated datasets."""
        return sum(map(bool, self._table["synthetic"])) if "synthetic" in self._table.column_names else 0

    @functools.cached_property
    def attributes(self) -> dict[str, list[str | None]]:
        """Return the text columns beside image, mask and stem, such as weather: by name, one value per pair."""
        return {name: list(self._table[name]) for name in _text_columns(self._table)}

    def column(self, name: str) -> list[Any] | None:
        """Return a column of texts, or of lists, with one value per pair; None where the split has none."""
        return list(self._table[name]) if name in _further_columns(self._table) else None

    def texts_of(self, index: int) -> dict[str, Any]:
        """Return what the columns of texts, and of lists, say of a pair, by their names."""
        return {name: self._table[name][index] for name in _further_columns(self._table)}

    def _decode(self, index: int, what: str) -> tuple[Image.Image, str]:
        """Return image or mask of a pair, and its name in messages."""
        index = range(len(self))[index]
        entry = self._given(self._tables[what][index][self._columns[what]], index, what)
        if entry["bytes"] is None:
            return open_image(entry["path"], what), entry["path"]
        source = self._source(entry, index)
        return open_image(entry["bytes"], what, source), source

    def _given(self, entry: dict[str, Any] | None, index: int, what: str) -> dict[str, Any]:
        """Return an entry of a pair's column, which may be null."""
        if entry is None:
            raise ValueError(
                f"pair '{self.stems[index]}' of {self.name} has no {what} in column '{self._columns[what]}'."
            )
        return entry

    def _source(self, entry: dict[str, Any], index: int) -> str:
        return entry["path"] or f"{self.stems[index]} of {self.name}"

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Return height and width of each image, read from the files' headers."""
        sizes = []
        for index, row in enumerate(self._tables["image"]):  # without the masks' bytes
            entry = self._given(row[self._columns["image"]], index, "image")
            file = io.BytesIO(entry["bytes"]) if entry["bytes"] else entry["path"]
            with image_errors(self._source(entry, index), "image"), Image.open(file) as image:
                width, height = image.size[::-1] if orientation(image) > 4 else image.size
            sizes.append((height, width))
        return sizes

    @property
    def resolution(self) -> tuple[int, int]:
        """Return the common height and width of the images.

        Raises:
            ValueError: the images differ in size, or there are none.
        """
        if not self.sizes:
            raise ValueError(f"{self.name} holds no pairs.")
        first = self.sizes[0]
        other = next((index for index, size in enumerate(self.sizes) if size != first), None)
        if other is not None:
            raise ValueError(
                f"the images of {self.name} differ in size: '{self.stems[0]}' is {first[0]} x {first[1]}, "
                f"'{self.stems[other]}' is {self.sizes[other][0]} x {self.sizes[other][1]}. Prepare them at one size: "
                "--resolution HxW."
            )
        return first

    def check_holds(self, height: int, width: int) -> None:
        """Refuse images that are too small for a crop.

        Raises:
            ValueError: naming the first.
        """
        small = next((i for i, size in enumerate(self.sizes) if size[0] < height or size[1] < width), None)
        if small is None and self.sizes:
            return
        found = "there are none" if small is None else "'{}' is {} x {}".format(self.stems[small], *self.sizes[small])
        raise ValueError(
            f"--random_crop expects images of {height} x {width} or more (height x width), and of {self.name} "
            f"{found}. Prepare them larger: --resolution HxW or native."
        )


def _text_columns(table: Any) -> list[str]:
    """Return the text columns of a table, except the stem."""
    of_text = [name for name, feature in table.features.items() if getattr(feature, "dtype", None) == "string"]
    return [name for name in of_text if name != "stem"]


def _further_columns(table: Any) -> list[str]:
    """Return the text columns of a table, except the stem, and those of lists, such as captions."""
    of_lists = [name for name, feature in table.features.items() if type(feature).__name__ in ("List", "LargeList")]
    return [*_text_columns(table), *of_lists]


def column_options(given: Any) -> dict[str, Any]:
    """Return `ColumnOptions` as arguments of `load_pairs`."""
    labels = None if given.labels is None else LabelSet.from_name(given.labels)
    return {"image_column": given.image_column, "mask_column": given.mask_column, "labels": labels}


def columns_for(given: Any, dataset: str) -> dict[str, Any]:
    """Return `column_options` for one of several datasets: a prepared folder has columns and classes of its own."""
    return {} if (Path(dataset) / SETTINGS_FILE).is_file() else column_options(given)


def load_pairs(
    dataset: str | os.PathLike,
    split: str = "train",
    *,
    image_column: str = "image",
    mask_column: str = "mask",
    labels: LabelSet | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> PairDataset:
    """Load one split of a prepared folder, or of a dataset on the Hub.

    Args:
        dataset (`str` or `os.PathLike`): folder or Hub id.
        split (`str`, defaults to `"train"`): "val" and "validation" mean the same.
        image_column (`str`, defaults to `"image"`): name of the image column.
        mask_column (`str`, defaults to `"mask"`): name of the mask column.
        labels (`LabelSet`, *optional*): classes of the masks; by default those in the dataset's `labels.json`.
        revision (`str`, *optional*): branch, tag or commit of a dataset on the Hub.
        cache_dir (`str` or `os.PathLike`, *optional*): where `datasets` keeps its tables.

    Returns:
        `PairDataset`

    Raises:
        ValueError: no such folder, split or column, or no label set.
        HubError: the Hub has no such dataset or revision, or denies access.
    """
    name = os.fspath(dataset)
    check_name(name, "dataset")
    if is_unprepared(Path(name)):
        raise ValueError(
            f"'{name}' holds images and masks as they are, not a prepared dataset. {_how_to_prepare(name)}"
        )
    labels, revision = find_labels(name, labels, revision)
    cache_dir = None if cache_dir is None else os.fspath(cache_dir)
    table, key = _image_table(name, split, (image_column, mask_column), revision, cache_dir)
    pairs = PairDataset(table, labels, image_column, mask_column, f"'{name}' ({key})")
    if not read_record(name, revision):  # masks that this package did not write
        pairs.decide_mask_values()
    return pairs


def load_photos(dataset: str, split: str, image_column: str, labels: LabelSet) -> PairDataset:
    """Load the images of one split of a prepared folder, or of a dataset on the Hub, which needs no masks.

    The label set is that of masks to come; `mask` of the dataset that is returned must not be called.
    """
    check_name(dataset, "dataset")
    table, key = _image_table(dataset, split, (image_column,))
    return PairDataset(table, labels, image_column, image_column, f"'{dataset}' ({key})")


def _image_table(
    name: str, split: str, columns: Sequence[str], revision: str | None = None, cache_dir: str | None = None
) -> tuple[Any, str]:
    """Return the table of a split, with encoded images in these columns, and the split as the dataset calls it."""
    import datasets  # here: importing it takes longer than everything else in this file

    tables = load_tables(name, revision, cache_dir=cache_dir)
    key = split if split in tables else next((s for s in tables if SPLITS.get(s, s) == SPLITS.get(split, split)), None)
    if key is None:
        raise MissingSplitError(f"'{name}' has no split '{split}'; it has {', '.join(tables)}.")
    table = tables[key]
    for column in columns:
        if column not in table.column_names:
            raise ValueError(
                f"'{name}' has no column '{column}'; it has {', '.join(table.column_names)}. Name the columns of "
                "images and masks: --image_column, --mask_column."
            )
        if not isinstance(table.features[column], datasets.Image):
            raise ValueError(f"column '{column}' of '{name}' is {table.features[column]}; expected images.")
        table = table.cast_column(column, datasets.Image(decode=False))
    kept = {*columns, *_further_columns(table)} | ({"stem", "synthetic"} & set(table.column_names))
    return table.select_columns(sorted(kept)), key


def is_unprepared(folder: Path) -> bool:
    """Return whether a folder holds images and masks that `prepare` reads, without a table of the pairs."""
    both = any((folder / name).is_dir() for name in ("images", "photos")) and (folder / "masks").is_dir()
    return both and not metadata_folders(folder.resolve())


def _how_to_prepare(name: str) -> str:
    source, output = shlex.quote(name), shlex.quote(f"{name.rstrip('/')}_prepared")
    return f"Prepare it: semseg-diffusers prepare --source {source} --output {output}"


def load_tables(name: str, revision: str | None = None, **options: Any) -> dict[str, Any]:
    """Return the tables of a dataset by split, those of a local folder with `metadata.jsonl` without `load_dataset`.

    That takes characters of paths for patterns, words in file names for splits, and stems such as 2024-05-01 for
    timestamps; everything else is loaded by it, with its `options`.
    """
    import datasets

    folder = Path(name).resolve()
    if folders := metadata_folders(folder):
        return {split: _read_split(path) for split, path in folders.items()}
    if folder.is_dir() and (characters := pattern_characters(folder)):
        raise ValueError(
            f"'{name}' holds no {METADATA_FILE}, so `datasets` has to find its files, and takes {characters} in the "
            "path for a pattern. Rename the folder."
        )
    with hub_errors(f"loading the dataset '{name}'", name, "dataset", revision=revision):
        loaded = datasets.load_dataset(name, revision=revision, **options)
    return dict(loaded)


def metadata_folders(folder: Path) -> dict[str, Path]:
    """Return the local folders that hold `metadata.jsonl`, by split as `datasets` calls it; without splits, all is
    `train`.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in SPLITS and (path / METADATA_FILE).is_file():
            split = {"val": "validation"}.get(SPLITS[path.name], SPLITS[path.name])
            if split in found:
                raise ValueError(f"'{found[split]}' and '{path}' are both the split {split}; expected one of them.")
            found[split] = path
    if not found and (folder / METADATA_FILE).is_file():
        return {"train": folder}
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _read_split(folder: Path) -> Any:
    """Return the table of `metadata.jsonl`: as in `load_dataset`, `image_file_name` becomes the column `image`."""
    import datasets

    file = folder / METADATA_FILE
    rows = read_json_lines(file)
    columns: dict[str, list[Any]] = {}
    images = []
    for key in dict.fromkeys(key for row in rows for key in row):
        name, values = key, [row.get(key) for row in rows]
        if key == "file_name" or key.endswith("_file_name"):
            name = key.removesuffix("file_name").removesuffix("_") or "image"
            outside = next((value for value in values if value and is_outside(value)), None)
            if outside is not None:
                raise ValueError(f"'{file}' names the file {outside!r}; expected files in its folder.")
            images.append(name)
            values = [value and str(folder / os.path.normpath(value)) for value in values]
        columns[name] = values
    try:
        table = datasets.Dataset.from_dict(columns)
    except (ValueError, TypeError, OverflowError) as err:
        raise ValueError(f"'{file}' holds a column of several types: {err}.") from err
    for name in images:
        table = table.cast_column(name, datasets.Image())
    return table


def split_names(dataset: str | os.PathLike) -> list[str]:
    """Return the splits of a prepared folder, or of a dataset on the Hub, by the names of our folders.

    Raises:
        ValueError: no such folder, or it is not a dataset.
        HubError: the Hub has no such dataset, or denies access.
    """
    import datasets

    name = os.fspath(dataset)
    check_name(name, "dataset")
    known = read_record(name).get("splits") or metadata_folders(Path(name))
    if not known:
        with hub_errors(f"loading the dataset '{name}'", name, "dataset"):
            known = datasets.get_dataset_split_names(name)
    return [SPLITS.get(split, split) for split in known]


def find_labels(name: str, labels: LabelSet | None, revision: str | None = None) -> tuple[LabelSet, str | None]:
    """Return the label set of a dataset, and its commit on the Hub, so that the pairs come from the same one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing = f"'{name}' has no {LABELS_FILE}: give its label set: --labels with a preset or a JSON file."
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"'{name}' is a local folder and has no revision '{revision}'; datasets of the Hub do.")
        found = next((Path(name) / file for file in FILES_OF_DATASETS if (Path(name) / file).is_file()), None)
        if labels is None and found is None:
            raise ValueError(f"{missing} {_how_to_prepare(name)}")
        return labels or LabelSet.from_json(found), None
    with hub_errors(f"loading the dataset '{name}'", name, "dataset", revision=revision):
        for file in FILES_OF_DATASETS:
            try:
                path = Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
            except LocalEntryNotFoundError as err:
                if labels is None:
                    missing = f"'{name}' is not a local folder, and the Hub cannot be reached to look for it."
                    raise ValueError(missing) from err
                return labels, revision  # `datasets` may still have the pairs in its cache
            except EntryNotFoundError as err:
                if labels is not None:
                    return labels, err.response.headers.get("X-Repo-Commit", revision)  # type: ignore[attr-defined]
                if file == FILES_OF_DATASETS[-1]:
                    raise ValueError(missing) from err
            else:
                break
    return labels or LabelSet.from_json(path), path.parent.name


def read_record(dataset: str | os.PathLike, revision: str | None = None) -> dict[str, Any]:
    """Return the `prepare.json` of a dataset, from its folder or the Hub; an empty dict if there is none."""
    name = os.fspath(dataset)
    path = Path(name) / SETTINGS_FILE
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with hub_errors(f"reading {SETTINGS_FILE} of the dataset '{name}'", name, "dataset", revision=revision):
            try:
                path = Path(hf_hub_download(name, SETTINGS_FILE, repo_type="dataset", revision=revision))
            except EntryNotFoundError:  # not there, or neither in the cache
                return {}
    return read_json(path) if path.is_file() else {}


UNDEFINED = "undefined"  # what BDD100K writes for unknown, beside null and ""
MOST_VALUES = 256  # a column with more distinct values identifies pairs rather than conditions


def attribute_values(pairs: PairDataset, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the values of text columns in a split, sorted, without unknown ones."""
    found = {}
    for name in sorted(set(names)):
        if name not in pairs.attributes:
            known = ", ".join(sorted(pairs.attributes)) or "none"
            raise ValueError(
                f"{pairs.name} has no column of text '{name}' for an attribute; it has {known}. Numbers, and nulls "
                "throughout, are no text."
            )
        values = sorted({value for value in pairs.attributes[name] if value and value != UNDEFINED})
        if not values:
            raise ValueError(f"column '{name}' of {pairs.name} says nothing: every pair is {UNDEFINED}. Leave it out.")
        if len(values) > MOST_VALUES:
            raise ValueError(
                f"column '{name}' of {pairs.name} has {len(values)} different values in {len(pairs)} pairs; an "
                f"attribute has {MOST_VALUES} at most. Name a column of conditions, such as weather."
            )
        found[name] = values
    return found


def attribute_numbers(pairs: PairDataset, values: Mapping[str, Sequence[str]]) -> torch.Tensor:
    """Return the index of each pair's value in the list of each attribute: (N, A) int64, -1 if it is not there."""
    numbers = torch.full((len(pairs), len(values)), -1)
    for column, (name, known) in enumerate(values.items()):
        for row, value in enumerate(pairs.attributes.get(name, ())):
            if value in known:
                numbers[row, column] = known.index(value)
    return numbers
