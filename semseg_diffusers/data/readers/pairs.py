"""What readers find: pairs of image and mask, matched by their stems, never by their position in a sorted list.

A reader goes by names and decodes nothing. A file is in a folder (`Path`), in a zip archive (`ArchivePath`) or in a
row of a table (`Encoded`); a mask can also be given by regions that are rasterized on reading. CamVid's two releases
are read here: 11 classes of ids, or 32 colours, which are merged into the 11 (Badrinarayanan et al. 2017).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from semseg_diffusers.data.labels import CLASSES, LabelSet
from semseg_diffusers.data.mask_values import UNDECIDED, Decided, encode_decided
from semseg_diffusers.data.polygons import RegionMask
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.pipelines.mask_inputs import change_ids
from semseg_diffusers.utils.archives import ArchivePath
from semseg_diffusers.utils.files import composed


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
NAMED = 5  # files named in a message
LARGEST_IMAGE = 2**28  # bytes of a file


@dataclass(frozen=True)
class Encoded:
    """An image file in a row of a table."""

    data: bytes
    name: str  # in messages

    def __str__(self) -> str:
        return self.name


AnyPath: TypeAlias = Path | ArchivePath
ImageFile: TypeAlias = Path | ArchivePath | Encoded
MaskFile: TypeAlias = Path | ArchivePath | Encoded | RegionMask
Folders: TypeAlias = dict[str, tuple[AnyPath, AnyPath]]  # split -> (folder of images, folder of masks)


@dataclass(frozen=True)
class Pair:
    """One image with its mask."""

    stem: str
    image: ImageFile
    mask: MaskFile
    split: str  # train, val or test
    attributes: Mapping[str, str | None] = field(default_factory=dict)  # of the image; None: unknown


@dataclass(frozen=True)
class Source:
    """The pairs that a reader found, and how their masks are read."""

    labels: LabelSet
    pairs: Iterable[Pair] = ()  # a tuple, by split, then by stem; a table has `fingerprint()` and may be a stream
    unmatched: tuple[MaskFile, ...] = ()  # left out: images without a mask, masks without an image
    changed_ids: Mapping[int, int] = field(default_factory=dict)  # id in the files -> id in the label set
    file_labels: LabelSet | None = None  # label set of the files' colours, before `changed_ids`
    notes: tuple[str, ...] = ()  # what was read and what was left out, for the user
    data_format: str = ""
    mask_values: str | None = None  # what the numbers of masks are, if the format or an option says it
    decided: Decided = UNDECIDED  # the same, decided from the masks
    stored_masks: bool = False  # masks show the stored pixels of images, without their EXIF orientation

    @property
    def count(self) -> int | None:
        """Return the number of pairs; None for a stream."""
        try:
            return len(self.pairs)  # type: ignore[arg-type]
        except TypeError:
            return None

    def encode(self, mask: Image.Image, name: object, tolerance: float = 0.0) -> np.ndarray:
        """Return the class ids (H, W) uint8 of a mask as it is in the files, by `LabelSet.encode`."""
        if self.mask_values is None:
            ids = encode_decided(self.mask_labels, mask, name, tolerance, self.decided)
        else:
            ids = self.mask_labels.encode(mask, tolerance, name, self.mask_values)
        return ids if self.file_labels is None else change_ids(ids, tuple(self.changed_ids.items()))

    @property
    def mask_labels(self) -> LabelSet:
        """Return the label set that the files' numbers are of."""
        if self.file_labels is not None or not self.changed_ids:
            return self.file_labels or self.labels
        return replace(self.labels, changed_ids=tuple(self.changed_ids.items()))


@dataclass(frozen=True)
class ReadOptions:
    """How to read; each format takes some of these and refuses the others."""

    labels: str | None = None  # preset, or path of a `colormap.json` or `labels.json`
    skip_unmatched: bool = False  # leave out files without a partner instead of stopping
    annotations: str | None = None  # which of several kinds of masks
    image_column: str | None = None
    mask_column: str | None = None
    ignore_index: int | None = None  # id of unlabelled pixels in the masks
    streaming: bool = False  # read the rows of a table as they arrive, without downloading all
    ids: tuple[int, ...] = ()  # that a mapping names: the classes of a folder that lists none


def read_file(file: ImageFile) -> bytes:
    """Return the bytes of an image file, which must not be larger than an image can be."""
    if isinstance(file, Encoded):
        return file.data
    size = file.size if isinstance(file, ArchivePath) else file.stat().st_size
    if size > LARGEST_IMAGE:
        limit = LARGEST_IMAGE >> 20
        raise ValueError(f"'{file}' has {size / 2**20:.0f} MiB; expected an image of at most {limit} MiB.")
    return file.read_bytes()


def first_folder(root: AnyPath, *names: str) -> AnyPath | None:
    """Return the first of some folders that exists."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def list_folder(folder: AnyPath) -> list[AnyPath]:
    """Return the entries of a folder by name, without hidden files such as .DS_Store and ._a.jpg."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))  # type: ignore[type-var]


def list_images(folder: AnyPath) -> list[AnyPath]:
    """Return the image files of a folder by name."""
    return [path for path in list_folder(folder) if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]


def split_folders(folder: AnyPath) -> dict[str, AnyPath]:
    """Return the split folders inside a folder, under any name that `datasets` knows: train, val, validation, ..."""
    splits: dict[str, AnyPath] = {}
    for path in list_folder(folder):
        split = SPLITS.get(path.name.lower())
        if split is None or not path.is_dir():
            continue
        if split in splits:
            raise ValueError(f"'{splits[split]}' and '{path}' are both the split {split}; expected one of them.")
        splits[split] = path
    return splits


def folders_by_split(images: AnyPath, masks: AnyPath) -> Folders:
    """Return the folders of images and masks of each split; without split folders, all is `train`."""
    image_splits, mask_splits = _only_splits(images), _only_splits(masks)
    if not image_splits and not mask_splits:
        return {"train": (images, masks)}
    if "test" not in mask_splits:  # the images of a test split are often published without masks
        image_splits.pop("test", None)
    if image_splits.keys() != mask_splits.keys():
        named = [", ".join(sorted(splits)) or "none" for splits in (image_splits, mask_splits)]
        raise ValueError(
            f"the split folders differ: '{images}' has {named[0]}, '{masks}' has {named[1]}; expected the same."
        )
    return {split: (image_splits[split], mask_splits[split]) for split in mask_splits}


def _only_splits(folder: AnyPath) -> dict[str, AnyPath]:
    splits = split_folders(folder)
    others = [path.name for path in list_folder(folder) if path.is_dir() and path not in splits.values()]
    if others:
        raise ValueError(
            f"'{folder}' holds the folders {', '.join(others[:NAMED])}; expected images, or split folders (train, "
            "val, test) only."
        )
    if splits and list_images(folder):
        raise ValueError(f"'{folder}' holds both split folders and images; expected one or the other.")
    return splits


def by_stem(files: Iterable[AnyPath], ending: str = "") -> dict[str, AnyPath]:
    """Return files by stem, those only that end in `ending`, which is removed."""
    found: dict[str, AnyPath] = {}
    names: dict[str, AnyPath] = {}  # as they look
    for path in files:
        stem = path.stem.removesuffix(ending)
        if not path.stem.endswith(ending):
            continue
        other = names.setdefault(composed(stem), path)
        if other != path:
            forms = "" if other.stem == path.stem else ", in two Unicode forms (NFC and NFD)"
            raise ValueError(f"'{other}' and '{path.name}' have the same stem{forms}; expected one file for each.")
        found[stem] = path
    return found


def match_folders(
    folders: Folders, skip_unmatched: bool, mask_ending: str = ""
) -> tuple[tuple[Pair, ...], tuple[Any, ...]]:
    """Pair the files of each split by stem; see `match_stems`."""
    found = {
        split: (by_stem(list_images(images)), by_stem(list_images(masks), mask_ending))
        for split, (images, masks) in folders.items()
    }
    places = "; ".join(f"'{images}' and '{masks}'" for images, masks in folders.values())
    return match_stems(found, skip_unmatched, places)


def match_stems(
    found: Mapping[str, tuple[Mapping[str, AnyPath], Mapping[str, Any]]], skip_unmatched: bool, places: str
) -> tuple[tuple[Pair, ...], tuple[Any, ...]]:
    """Pair images and masks by stem, from split -> (stem -> image, stem -> mask); return the rest too."""
    pairs: list[Pair] = []
    alone: tuple[list, list] = ([], [])  # images, masks
    for split, (images, masks) in sorted(found.items()):
        images, masks = _compose(images, masks), _compose(masks, images)
        pairs += [Pair(stem, images[stem], masks[stem], split) for stem in sorted(images.keys() & masks.keys())]
        alone[0].extend(images[stem] for stem in sorted(images.keys() - masks.keys()))
        alone[1].extend(masks[stem] for stem in sorted(masks.keys() - images.keys()))
    if not pairs and not any(alone):
        raise ValueError(f"found no images ({', '.join(IMAGE_ENDINGS)}) in {places}.")
    if not pairs or (any(alone) and not skip_unmatched):
        advice = "Image and mask have the same name up to the ending."
        if pairs:
            advice = f"Use --skip_unmatched to continue with the {len(pairs)} pairs."
        raise ValueError(
            f"{len(alone[0])} images have no mask{_some_names(alone[0])}, {len(alone[1])} masks have no image"
            f"{_some_names(alone[1])}, in {places}. {advice}"
        )
    return tuple(pairs), (*alone[0], *alone[1])


def _compose(files: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return files by stem, where the others have no such stem in the Unicode form NFC."""
    return {stem if stem in others else composed(stem): file for stem, file in files.items()}


def _some_names(files: Sequence[Any]) -> str:
    names = [*(file.name for file in files[:NAMED]), *(["..."] if len(files) > NAMED else [])]
    return f" ({', '.join(names)})" if names else ""


CAMVID_COLORS = CLASSES["camvid_original"]  # class -> the original classes merged into it -> colour
COLOR_ENDING = "_L"  # a mask in colours is called <stem of its image>_L.png


def find_camvid(root: AnyPath) -> Folders | None:
    """Return the folders of images and masks of each split, in one of the layouts in which CamVid is published."""
    top = first_folder(root, "CamVid") or root
    if (top / "images").is_dir() and (top / "labels").is_dir():
        return folders_by_split(top / "images", top / "labels")
    for ending in ("annot", "_labels"):
        folders = {split: (top / split, top / f"{split}{ending}") for split in ("train", "val", "test")}
        folders = {split: both for split, both in folders.items() if both[0].is_dir() and both[1].is_dir()}
        if folders:
            return folders
    starts = ("701_StillsRaw_full", "LabeledApproved_full")
    images, masks = (next((p for p in list_folder(top) if p.name.startswith(start)), None) for start in starts)
    return None if images is None or masks is None else {"train": (images, masks)}


def read_camvid(folders: Folders, options: ReadOptions) -> Source:
    """Read the SegNet release with ids 0 to 11, of which 11 is unknown, or the original one with 32 colours."""
    labels = LabelSet.from_preset("camvid")
    files = {split: list_images(masks) for split, (_, masks) in folders.items()}
    colored = [bool(masks) and all(path.stem.endswith(COLOR_ENDING) for path in masks) for masks in files.values()]
    if any(colored) != all(colored):
        raise ValueError(
            f"masks in colours ({COLOR_ENDING}.png) in some splits only: {', '.join(files)}. Prepare them separately."
        )
    pairs, unmatched = match_folders(folders, options.skip_unmatched, COLOR_ENDING if all(colored) else "")
    if not all(colored):
        return Source(labels, pairs, unmatched, {labels.num_classes: labels.ignore_index}, mask_values="ids")
    file_labels = LabelSet.from_colormap(dict(pair for group in CAMVID_COLORS.values() for pair in group.items()))
    merged = [labels.label2id[name] for name, group in CAMVID_COLORS.items() for _ in group]
    notes = ("the 32 classes of the original release were merged into 11",)
    return Source(labels, pairs, unmatched, dict(enumerate(merged)), file_labels, notes, mask_values="colors")
