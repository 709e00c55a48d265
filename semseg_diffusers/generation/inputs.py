"""What an image is generated from: the mask, and by its name the image to change, its old mask and its attributes.

For masks of `enrich`, these are found by the name of the mask that each was made from.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.data.dataset_format import METADATA_FILE, find_masks, label_file_near
from semseg_diffusers.data.label_mapping import some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import MaskReader
from semseg_diffusers.generation.plan import NUM_THINGS, Plan
from semseg_diffusers.generation.settings import Inputs, check_attributes
from semseg_diffusers.pipelines.image_inputs import changed_region, crop_resize_region, to_rgb
from semseg_diffusers.pipelines.mask_inputs import open_image, resize_ids
from semseg_diffusers.utils.files import composed, read_json_lines


MANIFEST_FILE = "manifest.jsonl"  # of `enrich`: which mask each of its own was made from


class Names:
    """Finds files and rows by the names of masks, and of those that masks of `enrich` were made from."""

    def __init__(self, masks: str | os.PathLike):
        folder = Path(masks) if Path(masks).is_dir() else Path(masks).parent
        candidates = [parent / MANIFEST_FILE for parent in (folder, folder.absolute().parent)]
        manifest = next((path for path in candidates if path.is_file()), None)
        rows = [] if manifest is None else read_json_lines(manifest)
        self._base = {
            composed(Path(row["mask_file_name"]).stem): composed(Path(row["base"]).name)
            for row in rows
            if {"mask_file_name", "base"} <= {*row}
        }

    def of(self, stem: str) -> list[str]:
        """Return the names that belong to a mask, in Unicode form NFC: its own first."""
        stem = composed(stem)
        return [stem, self._base[stem]] if stem in self._base else [stem]

    def find(self, stem: str, among: Mapping[str, Any], what: str, where: Any) -> Any:
        """Return the entry under a mask's name."""
        names = self.of(stem)
        found = [among[name] for name in names if name in among]
        if not found:
            raise ValueError(f"there is no {what} called '{names[-1]}' in '{os.fspath(where)}'")
        return found[0]


def read_attribute_table(path: str | os.PathLike, known: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Return the rows of a CSV file, JSON lines or the folder of a split by the stem of their mask."""
    path = Path(path) / METADATA_FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(
            f"--attributes_from: there is no file '{path}'; expected CSV, JSON lines, or the folder of a split."
        )
    if path.suffix.lower() == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
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
        table[composed(Path(stem).name if row.get("stem") else Path(stem).stem)] = row
    columns = {name for row in rows for name in row if name is not None}  # None: more cells than a CSV has columns
    if columns.isdisjoint(known):
        raise ValueError(
            f"--attributes_from: '{path}' holds none of the model's attributes ({', '.join(known)}); it has "
            f"{', '.join(sorted(columns)) or 'no rows'}."
        )
    return table


@dataclass(frozen=True, eq=False)
class GenerationInput:
    """What the images of one mask are generated from."""

    ids: np.ndarray  # (H, W) class ids of the model: the condition, and the label
    # Attributes of the mask, how many things texts can be about, and what the metadata keep of the image to change.
    columns: dict[str, Any]
    image: Image.Image | None = None  # (H, W): the real image to change
    region: np.ndarray | None = None  # (H, W) bool: what is regenerated
    lost: int | np.ndarray = 0  # pixels by class of the masks' own label set, where that is mapped
    large_ids: np.ndarray | None = None  # class ids at the size to which an upscaler enlarges the image
    large_image: Image.Image | None = None  # the real image at that size

    @property
    def label(self) -> np.ndarray:
        """Class ids at the size of the image that is saved."""
        return self.ids if self.large_ids is None else self.large_ids

    @property
    def is_unchanged(self) -> bool:
        """Whether the mask equals the old one of its image, so that there is nothing to edit."""
        return self.region is not None and not self.region.any()


def source_columns(image: Image.Image, file: str, region: np.ndarray | None) -> dict[str, Any]:
    """Return what the metadata keep of a real image from a file, and of the region (H, W) that is regenerated."""
    digest = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:16]
    columns: dict[str, Any] = {"source_photo": file, "source_photo_hash": digest}
    if region is not None:
        region_digest = hashlib.sha256(np.packbits(region).tobytes()).hexdigest()[:16]
        columns |= {"edited_share": round(float(region.mean()), 6), "edited_region_hash": region_digest}
    return columns


def resize_photo(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image center-cropped and resized to (height, width), as `prepare` does."""
    return crop_resize(image.height, image.width, size).resize_image(image)


def edited_region(old_ids: np.ndarray, new_ids: np.ndarray, size: tuple[int, int], margin: int) -> np.ndarray:
    """Return what is regenerated of an image where its masks differ: (H, W) bool of a size.

    Masks may be larger than the image: a pixel counts where any pixel that it covers differs.
    """
    changed = crop_resize_region(old_ids != new_ids, (0, 0, *old_ids.shape[::-1]), *size)
    return changed_region(np.zeros_like(changed), changed, margin)


class InputReader:
    """Reads masks with what belongs to them; the nearest class colour within the RGB distance `tolerance` is taken."""

    def __init__(self, masks: str | os.PathLike, plan: Plan, inputs: Inputs, tolerance: float):
        self.mask_paths, self._folder = find_masks(masks), Path(masks)
        self._plan, self._edit = plan, plan.settings.edit
        labels = plan.labels if plan.mapping is None else plan.mapping.source
        self._masks = MaskReader(labels, self.mask_paths, tolerance)
        keeps_size = self._edit is not None and self._edit.padding_mask_crop is not None
        self._size = None if keeps_size else plan.size
        self._names, self._table_file = Names(masks), inputs.attributes_from
        self._table = None if self._table_file is None else read_attribute_table(self._table_file, plan.known)
        self._image_files: dict[str, Path] = {}
        self._old_mask_files: dict[str, Path] = {}
        if inputs.photos is None:
            return
        self._image_folder = Path(inputs.photos)
        self._old_mask_folder = self._image_folder / "masks" if inputs.old_masks is None else Path(inputs.old_masks)
        images = self._image_folder / "images"
        images = images if images.is_dir() else self._image_folder
        self._image_files = {composed(path.stem): path for path in find_masks(images, "photo")}
        if self._edit is not None:
            if inputs.old_masks is None and not self._old_mask_folder.is_dir():
                raise ValueError(
                    f"--edit compares each mask with the old mask of its image, and '{inputs.photos}' holds no "
                    "masks/. Give their folder: --old_masks."
                )
            self._old_mask_files = {composed(path.stem): path for path in find_masks(self._old_mask_folder)}
            self._old_masks = MaskReader(labels, list(self._old_mask_files.values()), tolerance)

    def name(self, path: Path) -> str:
        """Return a mask's name in reports: its path below the folder that was given."""
        return path.relative_to(self._folder).as_posix() if self._folder.is_dir() else path.name

    def read(self, path: Path) -> GenerationInput:
        """Read a mask and what belongs to it; a `ValueError` says why it cannot be used."""
        original = self._masks.read(path)
        own_ids, own_size = self._resize_ids(original), original.shape
        mapping, large_size = self._plan.mapping, self._plan.large_size
        ids, lost = (own_ids, 0) if mapping is None else (mapping.map(own_ids), mapping.count(own_ids))
        own_large_ids = None if large_size is None else resize_ids(original, *large_size)
        large_ids = own_large_ids if mapping is None or own_large_ids is None else mapping.map(own_large_ids)
        try:
            columns: dict[str, Any] = {}
            if self._plan.described_classes:
                columns[NUM_THINGS] = self._plan.num_things(ids)
            if self._table is not None:
                row, known = self._names.find(path.stem, self._table, "row", self._table_file), self._plan.known
                values = {name: str(row[name]) for name in known if row.get(name) not in (None, "")}
                check_attributes({name: [value] for name, value in values.items()}, known, f"'{self._table_file}'")
                columns |= values
            if not self._image_files:
                return GenerationInput(ids, columns, lost=lost, large_ids=large_ids)
            file = self._names.find(path.stem, self._image_files, "photo", self._image_folder)
            image = to_rgb(open_image(file, "photo"), f"photo '{file}'")
            sizes = {"the mask": own_size, "its photo": image.size[::-1]}
            region = large_image = None
            if self._edit is not None:
                old_file = self._names.find(path.stem, self._old_mask_files, "old mask", self._old_mask_folder)
                old_mask = self._old_masks.read(old_file)
                sizes["the old mask"] = old_mask.shape
            if len(set(sizes.values())) > 1:
                got = ", ".join(f"{what} {size[0]} x {size[1]}" for what, size in sizes.items())
                raise ValueError(f"expected one size, since they show the same pixels; got {got} (height x width)")
        except ValueError as err:
            raise ValueError(f"mask '{path}': {err}") from err
        frame, image = image, image if self._size is None else resize_photo(image, self._size)
        if self._edit is not None:
            new_ids = own_ids if own_large_ids is None else own_large_ids
            old_ids = resize_ids(old_mask, *new_ids.shape)
            region = edited_region(old_ids, new_ids, own_ids.shape, self._edit.margin)
            large_image = None if large_size is None else resize_photo(frame, large_size)
        columns |= source_columns(large_image or image, str(file), region)
        return GenerationInput(ids, columns, image, region, lost, large_ids, large_image)

    def _resize_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return a mask at the size of the images (H, W)."""
        return ids if self._size is None else resize_ids(ids, *self._size)


def check_labels_near(mask_paths: list[Path], masks: str | os.PathLike, labels: LabelSet) -> None:
    """Refuse masks whose label file names other classes than the model's; they are mapped on request only."""
    for folder in dict.fromkeys(path.parent for path in mask_paths):
        file = label_file_near(folder, masks)
        near = labels if file is None else LabelSet.from_json(file)
        if near != labels:
            what = "colours" if near.names == labels.names else "classes"
            raise ValueError(
                f"the masks in '{folder}' are of the label set in '{file}' ({some_names(near)}), and the model has "
                f"other {what} ({some_names(labels)}). To map them by name, give --mask_labels '{file}'. If they have "
                "the model's classes all the same, name these: a preset, or the model's unet/config.json."
            )
