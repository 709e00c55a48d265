"""What a reader hands over: pairs of photo and mask, matched by their stems, never by their place in a sorted list.

A reader goes by names and decodes no picture. A file may lie in a folder (`Path`), in a zip archive (`ArchivePath`) or
in a row of a table (`Encoded`); a mask may also be a drawing that is made when it is asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.labels import PAPER_NAMES, PRESET_NAMES, LabelSet
from semseg_diffusers.data.polygons import Polygon, RunLengths, draw_polygons, draw_runs
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.utils.archives import ArchivePath


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
NAMED = 5  # files named in a message
LARGEST_PICTURE = 2**28  # bytes of a file
FARTHEST = 1.25  # frames; polygons may reach a little out of theirs, and further out of one that was made smaller

AnyPath: TypeAlias = Path | ArchivePath
Folders = dict[str, tuple[AnyPath, AnyPath]]  # split -> (folder of photos, folder of masks)


@dataclass(frozen=True)
class Encoded:
    """An image file that stands in a row of a table."""

    data: bytes
    name: str  # what messages call it

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Drawing:
    """A mask that a label file describes: regions that are drawn in their order, later ones over earlier ones."""

    regions: tuple[Polygon, ...] | tuple[RunLengths, ...]
    source: str  # the label file, named in messages

    def __str__(self) -> str:
        return self.source

    @property
    def name(self) -> str:
        return self.source

    def fingerprint(self) -> str:
        """Changes when a region does."""
        digest = hashlib.sha256()
        for region in self.regions:
            content = (
                (region.vertices.tobytes(), region.types)
                if isinstance(region, Polygon)
                else (region.counts, region.size)
            )
            digest.update(repr((region.class_id, content)).encode())
        return digest.hexdigest()

    def draw(self, height: int, width: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Class ids (len(rows), len(columns)) uint8 of a frame of height x width, 255 where no region is.

        Raises:
            ValueError: the regions are not of this frame.
        """
        if not self.regions or isinstance(self.regions[0], Polygon):
            reach = np.max([polygon.vertices.max(axis=0, initial=0) for polygon in self.regions], axis=0, initial=0)
            if (reach > FARTHEST * np.array([width, height])).any():
                raise ValueError(
                    f"mask '{self}' reaches to x = {reach[0]:.0f}, y = {reach[1]:.0f}; its photo is {height} x "
                    f"{width} (height x width). Was the photo resized?"
                )
            return draw_polygons(self.regions, rows, columns)
        try:
            return draw_runs(self.regions, height, width)[rows[:, None], columns]
        except ValueError as err:
            raise ValueError(f"mask '{self}': {err}; its photo is {height} x {width} (height x width).") from err


@dataclass(frozen=True)
class Pair:
    """One photo with its mask."""

    stem: str
    photo: AnyPath | Encoded
    mask: AnyPath | Encoded | Drawing
    split: str  # train, val or test
    attributes: Mapping[str, str | None] = field(default_factory=dict)  # what is known of the photo; None: not known


@dataclass(frozen=True)
class Source:
    """What a reader found."""

    labels: LabelSet
    pairs: Iterable[Pair]  # a tuple, by split, then by stem; a stream where the source is one
    unmatched: tuple[AnyPath, ...] = ()  # left out: photos without a mask, masks without a photo
    changed_ids: Mapping[int, int] = field(default_factory=dict)  # id in the files -> id in the label set
    file_labels: LabelSet | None = None  # the classes that the files are coloured in, where `changed_ids` leads on
    notes: tuple[str, ...] = ()  # what the user should know: what was found, what was left out
    data_format: str = ""  # the one it was read as


@dataclass(frozen=True)
class ReadOptions:
    """How to read; each format takes some of these and refuses the others."""

    labels: str | None = None  # preset, or path of a `colormap.json` or `labels.json`
    skip_unmatched: bool = False  # leave out what has no partner instead of stopping
    annotations: str | None = None  # of several forms of the masks, which to read
    image_column: str | None = None  # name of the column of photos
    mask_column: str | None = None  # name of the column of masks
    streaming: bool = False  # read the rows of a table as they come, without downloading all


def read_file(place: AnyPath | Encoded) -> bytes:
    """The bytes of the file of a picture, wherever it lies.

    Raises:
        ValueError: it is larger than a picture can be.
    """
    if isinstance(place, Encoded):
        return place.data
    size = place.size if isinstance(place, ArchivePath) else place.stat().st_size
    if size > LARGEST_PICTURE:
        raise ValueError(
            f"'{place}' has {size / 2**20:.0f} MiB; wanted a picture of {LARGEST_PICTURE >> 20} MiB at most."
        )
    return place.read_bytes()


# Classes -----------------------------------------------------------------------------------------------------------


def labels_of(root: AnyPath, labels: str | None, files: tuple[str, ...]) -> LabelSet:
    """The label set that was asked for, else the one in the source."""
    if labels is not None:
        return LabelSet.from_name(labels)
    found = next((root / name for name in files if (root / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"the classes of '{root}' are not known: looked for {' and '.join(files)} in it. Say which they are: "
            f"--labels with one of {', '.join(PRESET_NAMES)}, or with a JSON file."
        )
    return LabelSet.from_json(found)


# Folders -----------------------------------------------------------------------------------------------------------


def visible(folder: AnyPath) -> list[AnyPath]:
    """What lies in a folder, by name, without hidden files such as .DS_Store and ._a.jpg."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def split_folders(folder: AnyPath) -> dict[str, AnyPath]:
    """The split folders inside a folder, named as `datasets` knows splits: train, val or validation, test, ..."""
    splits: dict[str, AnyPath] = {}
    for path in visible(folder):
        split = SPLITS.get(path.name.lower())
        if split is None or not path.is_dir():
            continue
        if split in splits:
            raise ValueError(f"'{splits[split]}' and '{path}' are both the split {split}; wanted one of them.")
        splits[split] = path
    return splits


def folders_by_split(images: AnyPath, masks: AnyPath) -> Folders:
    """Photos and masks of each split; a source without split folders is all `train`."""
    of_images, of_masks = _splits_or_pictures(images, "photos"), _splits_or_pictures(masks, "masks")
    if not of_images and not of_masks:
        return {"train": (images, masks)}
    if "test" not in of_masks:  # the photos of a test split are often published without masks
        of_images.pop("test", None)
    if of_images.keys() != of_masks.keys():
        named = [", ".join(sorted(splits)) or "none" for splits in (of_images, of_masks)]
        raise ValueError(
            f"the split folders differ: '{images}' has {named[0]}, '{masks}' has {named[1]}; wanted the same in both."
        )
    return {split: (of_images[split], of_masks[split]) for split in of_masks}


def _splits_or_pictures(folder: AnyPath, what: str) -> dict[str, AnyPath]:
    """The split folders of a folder, none where it holds its pictures itself."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'; looked there for the {what}.")
    splits = split_folders(folder)
    others = [path.name for path in visible(folder) if path.is_dir() and path not in splits.values()]
    if others:
        raise ValueError(
            f"'{folder}' holds the folders {', '.join(others[:NAMED])}; wanted pictures, or split folders (train, "
            "val, test) only."
        )
    if splits and pictures(folder):
        raise ValueError(f"'{folder}' holds both split folders and pictures; wanted one or the other.")
    return splits


def pictures(folder: AnyPath) -> list[AnyPath]:
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]


def by_stem(folder: AnyPath, ending: str = "") -> dict[str, AnyPath]:
    """The pictures of a folder by what their names have in common: all before `ending` and the file's own ending."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'.")
    return stems_of([path for path in pictures(folder) if path.stem.endswith(ending)], ending)


def stems_of(files: Iterable[AnyPath], ending: str = "") -> dict[str, AnyPath]:
    """Files by stem, `ending` taken off it."""
    found: dict[str, AnyPath] = {}
    for path in files:
        stem = path.stem.removesuffix(ending)
        if stem in found:
            raise ValueError(f"'{found[stem]}' and '{path.name}' have one stem; wanted one file for each.")
        found[stem] = path
    return found


# Pairs -------------------------------------------------------------------------------------------------------------


def match_folders(
    folders: Folders, skip_unmatched: bool, mask_ending: str = ""
) -> tuple[tuple[Pair, ...], tuple[AnyPath, ...]]:
    """Pair the files of each split by stem; returns the pairs and what has no partner."""
    found = {split: (by_stem(both[0]), by_stem(both[1], mask_ending)) for split, both in folders.items()}
    looked = "; ".join(f"'{photos}' and '{masks}'" for photos, masks in folders.values())
    return match_stems(found, skip_unmatched, looked)


def match_stems(
    found: Mapping[str, tuple[Mapping[str, AnyPath], Mapping]], skip_unmatched: bool, looked: str
) -> tuple[tuple[Pair, ...], tuple[AnyPath, ...]]:
    """Pair photos and masks of each split by stem.

    Args:
        found: split -> (stem -> photo, stem -> mask).
        skip_unmatched: leave out what has no partner.
        looked: where they were looked for, named in messages.

    Returns:
        the pairs, and what has no partner.

    Raises:
        ValueError: nothing matches, or something does not and is not to be left out.
    """
    pairs: list[Pair] = []
    alone: tuple[list, list] = ([], [])  # photos, masks
    for split, (photos, masks) in sorted(found.items()):
        pairs += [Pair(stem, photos[stem], masks[stem], split) for stem in sorted(photos.keys() & masks.keys())]
        alone[0].extend(photos[stem] for stem in sorted(photos.keys() - masks.keys()))
        alone[1].extend(masks[stem] for stem in sorted(masks.keys() - photos.keys()))
    if not pairs and not any(alone):
        raise ValueError(f"found no pictures ({', '.join(IMAGE_ENDINGS)}) in {looked}.")
    if not pairs or (any(alone) and not skip_unmatched):
        advice = "A photo and its mask have the same name up to the ending."
        if pairs:
            advice = f"Use --skip_unmatched to go on with the {len(pairs)} pairs."
        raise ValueError(
            f"{len(alone[0])} photos have no mask{_named(alone[0])}, {len(alone[1])} masks have no photo"
            f"{_named(alone[1])}, in {looked}. {advice}"
        )
    return tuple(pairs), (*alone[0], *alone[1])


def _named(files: list) -> str:
    if not files:
        return ""
    names = [file.name for file in files[:NAMED]]
    return f" ({', '.join(names)}{', ...' if len(files) > NAMED else ''})"


COLORMAP_FILE = "colormap.json"


def read_folder(root: AnyPath, options: ReadOptions) -> Source:
    """`images/` and `masks/`, with the same split folders inside each or none; or both inside each split folder."""
    label_set = labels_of(root, options.labels, (LABELS_FILE, COLORMAP_FILE))
    splits = {} if (root / "images").is_dir() else split_folders(root)
    if splits:
        folders = {split: (part / "images", part / "masks") for split, part in splits.items()}
    else:
        folders = folders_by_split(root / "images", root / "masks")
    return Source(label_set, *match_folders(folders, options.skip_unmatched))


def read_paper(root: AnyPath, options: ReadOptions) -> Source:
    """The format of the paper's authors: `images/*.jpg`, `masks/*.png` in the colours of `colormap.json`."""
    label_set = labels_of(root, options.labels, (COLORMAP_FILE,))
    folders = folders_by_split(root / "images", root / "masks")
    return Source(label_set, *match_folders(folders, options.skip_unmatched))


def is_paper(root: AnyPath) -> bool:
    """Whether a folder of pairs has the paper's classes, in the file that the authors' script writes."""
    file = root / COLORMAP_FILE
    if not (file.is_file() and (root / "images").is_dir() and (root / "masks").is_dir()):
        return False
    try:
        return tuple(json.loads(file.read_text(encoding="utf-8"))) == PAPER_NAMES
    except (ValueError, TypeError):
        return False


def is_folder(root: AnyPath) -> bool:
    if is_paper(root):
        return False
    parts = [root] if (root / "images").is_dir() else split_folders(root).values()
    return bool(parts) and all((part / "images").is_dir() and (part / "masks").is_dir() for part in parts)
