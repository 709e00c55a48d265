"""What an image is made from beside its mask: the photo that it changes, the mask that the photo had, its weather and
the like. All are found by name: the mask's own, or in what `enrich` made, that of the mask it began with."""

import csv
import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from semseg_diffusers.data.crop_resize import place_frame
from semseg_diffusers.data.dataset_format import METADATA_FILE, find_masks
from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.settings import check_attributes
from semseg_diffusers.pipelines.image_inputs import changed_region
from semseg_diffusers.pipelines.mask_inputs import open_image, resize_ids
from semseg_diffusers.utils.files import read_json_lines


MANIFEST_FILE = "manifest.jsonl"  # `enrich` says there which mask each of its own began with


class Names:
    """Finds files and rows for masks by name.

    Args:
        masks: mask file or folder, as given; a manifest of `enrich` is looked for there and in the folder above.
    """

    def __init__(self, masks: str | os.PathLike):
        folder = Path(masks) if Path(masks).is_dir() else Path(masks).parent
        places = [place / MANIFEST_FILE for place in (folder, folder.absolute().parent)]
        manifest = next((path for path in places if path.is_file()), None)
        rows = [] if manifest is None else read_json_lines(manifest)
        self._began_with = {
            Path(row["mask_file_name"]).stem: Path(row["base"]).name
            for row in rows
            if {"mask_file_name", "base"} <= {*row}
        }

    def of(self, stem: str) -> list[str]:
        """The names that belong to a mask: its own first."""
        return [stem, *([self._began_with[stem]] if stem in self._began_with else [])]

    def find(self, stem: str, among: Mapping[str, Any], what: str, where: str | os.PathLike) -> Any:
        """What stands under a mask's name.

        Raises:
            ValueError: nothing does.
        """
        names = self.of(stem)
        name = next((name for name in names if name in among), None)
        if name is None:
            raise ValueError(f"there is no {what} called '{names[-1]}' in '{os.fspath(where)}'")
        return among[name]


# Attributes --------------------------------------------------------------------------------------------------------


def read_table(path: str | os.PathLike, known: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Read rows by the stem of the mask that they are about.

    Args:
        path: CSV with a column `stem`; JSON lines with `stem` or `mask_file_name`; or a folder with such a
            `metadata.jsonl`, as a split of a prepared dataset is.
        known: the network's attributes; other columns are not read.

    Raises:
        ValueError: no such file, rows without a stem, or none of the attributes in them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METADATA_FILE
    if not path.is_file():
        raise ValueError(
            f"--attributes_from: there is no file '{path}'; wanted a CSV, JSON lines, or a split's folder."
        )
    if path.suffix.lower() == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as err:
            raise ValueError(f"'{path}' is not valid CSV in UTF-8: {err}.") from err
    else:
        rows = read_json_lines(path)
    table = {}
    for row in rows:
        stem = str(row.get("stem") or row.get("mask_file_name") or "")
        if not stem:
            raise ValueError(
                f"--attributes_from: a row of '{path}' has neither `stem` nor `mask_file_name`: {row!s:.80}"
            )
        table[Path(stem).name if row.get("stem") else Path(stem).stem] = row
    columns = {name for row in rows for name in row if name is not None}  # None: cells beyond the head of a CSV
    if columns.isdisjoint(known):
        raise ValueError(
            f"--attributes_from: '{path}' holds none of the model's attributes ({', '.join(known)}); it has "
            f"{', '.join(sorted(columns)) or 'no rows'}."
        )
    return table


# Photos ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """Photos to be changed, and the masks that they have.

    Args:
        photos: folder of photos, or one that holds `images/` and `masks/`, as a split of a prepared dataset does.
        old_masks: folder of the masks that the photos have; None: `masks/` beside `images/`.
    """

    photos: Path
    old_masks: Path | None = None

    @functools.cached_property
    def photo_files(self) -> dict[str, Path]:
        folder = self.photos / "images" if (self.photos / "images").is_dir() else self.photos
        return {path.stem: path for path in find_masks(folder, "photo")}

    @functools.cached_property
    def old_mask_files(self) -> dict[str, Path]:
        folder = self.old_masks or self.photos / "masks"
        if self.old_masks is None and not folder.is_dir():
            raise ValueError(
                f"--edit compares each mask with the one that its photo has, and '{self.photos}' holds no masks/. "
                "Give their folder: --old_masks."
            )
        return {path.stem: path for path in find_masks(folder)}


def photo_hash(photo: Image.Image) -> str:
    """Tells whether an image that is there was made from this very photo."""
    return hashlib.sha256(np.asarray(photo).tobytes()).hexdigest()[:16]


# What an image is made from ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GenerationInput:
    """What the images of one mask are made from."""

    ids: np.ndarray  # (H, W) class ids of the model: what is drawn, and the label
    columns: dict[str, Any]  # what is known of this mask: attributes, and of the photo what goes into the metadata
    photo: Image.Image | None = None  # (H, W) too: what is changed
    region: np.ndarray | None = None  # (H, W) bool: what is made anew
    lost: int | np.ndarray = 0  # pixels by class of the masks' own label set, where that is mapped

    @property
    def is_unchanged(self) -> bool:
        """Its mask is the one that the photo has already."""
        return self.region is not None and not self.region.any()


@dataclass(frozen=True)
class InputReader:
    """Reads masks with what belongs to them.

    Args:
        labels: of the model.
        mapping: from the masks' label set, where that is another.
        tolerance: RGB distance within which the nearest class colour is taken.
        size: (height, width) that all is brought to; None leaves each at its own.
        known: the network's attributes and their values.
        names: what belongs to which mask.
        table: rows with attributes by name of the mask.
        table_from: where they are from.
        photos: photos to be changed.
        edit_margin: pixels around what differs between old and new mask; None: the old one does not matter.
    """

    labels: LabelSet
    mapping: LabelMapping | None
    tolerance: float
    size: tuple[int, int] | None
    known: Mapping[str, list[str]]
    names: Names
    table: Mapping[str, Mapping[str, Any]] | None = None
    table_from: str | os.PathLike = ""
    photos: Photos | None = None
    edit_margin: int | None = None

    def read(self, path: Path) -> GenerationInput:
        """Read a mask and what belongs to it.

        Raises:
            ValueError: naming the mask that cannot be used, and why.
        """
        own_ids, own_size = self._own_ids(path)
        ids = own_ids if self.mapping is None else self.mapping.map(own_ids)
        lost = 0 if self.mapping is None else self.mapping.count(own_ids)
        try:
            columns = {} if self.table is None else self._attributes(path)
            if self.photos is None:
                return GenerationInput(ids, columns, lost=lost)
            file = self.names.find(path.stem, self.photos.photo_files, "photo", self.photos.photos)
            photo = ImageOps.exif_transpose(open_image(file, "photo")).convert("RGB")
            sizes = {"the mask is": own_size, "its photo": photo.size[::-1]}
            region = None
            if self.edit_margin is not None:
                where = self.photos.old_masks or self.photos.photos / "masks"
                old_file = self.names.find(path.stem, self.photos.old_mask_files, "old mask", where)
                old_ids, sizes["the old mask"] = self._own_ids(old_file)
            if len(set(sizes.values())) > 1:
                told = ", ".join(f"{what} {size[0]} x {size[1]}" for what, size in sizes.items())
                raise ValueError(f"{told} (height x width); wanted one size, since they show the same pixels")
        except ValueError as err:
            raise ValueError(f"mask '{path}': {err}") from err
        photo = photo if self.size is None else place_frame(*photo.size[::-1], self.size).place_photo(photo)
        columns |= {"source_photo": str(file), "source_photo_hash": photo_hash(photo)}
        if self.edit_margin is not None:
            region = changed_region(old_ids, own_ids, self.edit_margin)
            columns["edited_share"] = round(float(region.mean()), 6)
        return GenerationInput(ids, columns, photo, region, lost)

    def _own_ids(self, path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        """A mask in its own classes at the size of the images (H, W), and its own size."""
        labels = self.labels if self.mapping is None else self.mapping.source
        ids = labels.encode(path, tolerance=self.tolerance)
        return (ids if self.size is None else resize_ids(ids, *self.size)), ids.shape

    def _attributes(self, path: Path) -> dict[str, Any]:
        row = self.names.find(path.stem, self.table, "row", self.table_from)
        found = {name: str(row[name]) for name in self.known if row.get(name) not in (None, "")}
        check_attributes({name: [value] for name, value in found.items()}, self.known, f"'{self.table_from}'")
        return found
