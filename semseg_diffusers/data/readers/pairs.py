"""Finds the pairs of photo and mask in the layouts of public driving sets; decodes no picture.

Photo and mask belong together by their stem, never by their place in a sorted list.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.layout import LABELS_FILE, SPLITS


IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COLORMAP_FILE = "colormap.json"
NAMED = 5  # files named in a message

Folders = dict[str, tuple[Path, Path]]  # split -> (folder of photos, folder of masks)


@dataclass(frozen=True)
class Pair:
    """One photo with its mask."""

    stem: str
    photo: Path
    mask: Path
    split: str  # train, val or test


@dataclass(frozen=True)
class Source:
    """What a reader found."""

    labels: LabelSet
    pairs: tuple[Pair, ...]  # by split, then by stem
    unmatched: tuple[Path, ...] = ()  # left out: photos without a mask, masks without a photo
    changed_ids: Mapping[int, int] = field(default_factory=dict)  # id in the files -> id in the label set


def read_source(
    source: str | Path, data_format: str, labels: str | None = None, skip_unmatched: bool = False
) -> Source:
    """Find the pairs under a folder.

    Args:
        source (`str` or `Path`): the folder.
        data_format (`str`): one of `FORMATS`.
        labels (`str`, *optional*): preset, or path of a `colormap.json` or `labels.json`; for "folder" and "paper".
        skip_unmatched (`bool`, defaults to `False`): leave out what has no partner instead of stopping.

    Returns:
        `Source`, with one pair at least.

    Raises:
        ValueError: the folder does not have the format's layout, files have no partner, the classes are not known.
    """
    root = Path(source)
    if data_format not in FORMATS:
        raise ValueError(f"there is no format '{data_format}'; there are {', '.join(FORMATS)}.")
    if not root.is_dir():
        raise ValueError(f"--source '{root}' is {'a file' if root.exists() else 'not there'}; wanted a folder.")
    return FORMATS[data_format](root, labels, skip_unmatched)


# One function per format -------------------------------------------------------------------------------------------


def read_folder(root: Path, labels: str | None, skip_unmatched: bool) -> Source:
    """`images/` and `masks/`, with the same split folders inside each or none; or both inside each split folder."""
    label_set = _labels_of(root, labels, (LABELS_FILE, COLORMAP_FILE))
    splits = {} if (root / "images").is_dir() else _split_folders(root)
    if splits:
        folders = {split: (part / "images", part / "masks") for split, part in splits.items()}
    else:
        folders = _folders_by_split(root / "images", root / "masks")
    return Source(label_set, *_match(folders, skip_unmatched))


def read_paper(root: Path, labels: str | None, skip_unmatched: bool) -> Source:
    """The format of the paper's authors: `images/*.jpg`, `masks/*.png` in the colours of `colormap.json`."""
    label_set = _labels_of(root, labels, (COLORMAP_FILE,))
    return Source(label_set, *_match(_folders_by_split(root / "images", root / "masks"), skip_unmatched))


def read_camvid(root: Path, labels: str | None, skip_unmatched: bool) -> Source:
    """CamVid in the SegNet form: `images/{split}`, `labels/{split}` with ids 0 to 10, and 11 for unlabelled."""
    _refuse_labels("camvid", labels)
    folders = _folders_by_split(root / "images", root / "labels")
    label_set = LabelSet.from_preset("camvid")
    unlabelled = {label_set.num_classes: label_set.ignore_index}
    return Source(label_set, *_match(folders, skip_unmatched), changed_ids=unlabelled)


def read_bdd100k(root: Path, labels: str | None, skip_unmatched: bool) -> Source:
    """BDD100K's official layout: `images/10k/{train,val}/*.jpg`, `labels/sem_seg/masks/{train,val}/*.png`."""
    _refuse_labels("bdd100k", labels)
    images, masks = Path("images", "10k"), Path("labels", "sem_seg", "masks")
    top = next((top for top in (root, root / "bdd100k") if (top / images).is_dir() and (top / masks).is_dir()), None)
    if top is None:
        hint = ""
        for part in (root, root / "bdd100k"):
            others = [name for name in ("colormaps", "polygons", "rles") if (part / masks.parent / name).is_dir()]
            if others and not (part / masks).is_dir():
                hint = f" There is {' and '.join(others)}, but this format reads masks: unpack sem_seg/masks too."
        raise ValueError(
            f"'{root}' is not laid out as BDD100K's 10k set; looked for {images}/{{train,val}}/*.jpg and "
            f"{masks}/{{train,val}}/*.png in it and in its folder bdd100k.{hint}"
        )
    return Source(
        LabelSet.from_preset("bdd100k"), *_match(_folders_by_split(top / images, top / masks), skip_unmatched)
    )


FORMATS: dict[str, Callable[[Path, str | None, bool], Source]] = {
    "folder": read_folder,
    "camvid": read_camvid,
    "bdd100k": read_bdd100k,
    "paper": read_paper,
}


# What they share ---------------------------------------------------------------------------------------------------


def _labels_of(root: Path, labels: str | None, files: tuple[str, ...]) -> LabelSet:
    """The label set that was asked for, else the one in the source."""
    if labels in PRESET_NAMES:
        return LabelSet.from_preset(labels)
    if labels is not None:
        if not Path(labels).is_file():
            raise ValueError(f"--labels '{labels}' is no file and none of the presets {', '.join(PRESET_NAMES)}.")
        return LabelSet.from_json(labels)
    found = next((root / name for name in files if (root / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"the classes of '{root}' are not known: looked for {' and '.join(files)} in it. Say which they are: "
            f"--labels with one of {', '.join(PRESET_NAMES)}, or with a JSON file."
        )
    return LabelSet.from_json(found)


def _refuse_labels(data_format: str, labels: str | None) -> None:
    if labels is not None:
        raise ValueError(f"--format {data_format} brings its own classes; leave out --labels '{labels}'.")


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files such as .DS_Store and ._a.jpg."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _split_folders(folder: Path) -> dict[str, Path]:
    """The split folders inside a folder, named as `datasets` knows splits: train, val or validation, test, ..."""
    splits: dict[str, Path] = {}
    for path in _visible(folder):
        split = SPLITS.get(path.name.lower())
        if split is None or not path.is_dir():
            continue
        if split in splits:
            raise ValueError(f"'{splits[split]}' and '{path}' are both the split {split}; wanted one of them.")
        splits[split] = path
    return splits


def _folders_by_split(images: Path, masks: Path) -> Folders:
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


def _splits_or_pictures(folder: Path, what: str) -> dict[str, Path]:
    """The split folders of a folder, none where it holds its pictures itself."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'; looked there for the {what}.")
    splits = _split_folders(folder)
    others = [path.name for path in _visible(folder) if path.is_dir() and path not in splits.values()]
    if others:
        raise ValueError(
            f"'{folder}' holds the folders {', '.join(others[:NAMED])}; wanted pictures, or split folders (train, "
            "val, test) only."
        )
    if splits and _pictures(folder):
        raise ValueError(f"'{folder}' holds both split folders and pictures; wanted one or the other.")
    return splits


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]


def _match(folders: Folders, skip_unmatched: bool) -> tuple[tuple[Pair, ...], tuple[Path, ...]]:
    """Pair the files of each split by stem; returns the pairs and what has no partner."""
    pairs: list[Pair] = []
    alone: tuple[list[Path], list[Path]] = ([], [])  # photos, masks
    for split, both in sorted(folders.items()):
        photos, masks = (_by_stem(folder) for folder in both)
        pairs += [Pair(stem, photos[stem], masks[stem], split) for stem in sorted(photos.keys() & masks.keys())]
        alone[0].extend(photos[stem] for stem in sorted(photos.keys() - masks.keys()))
        alone[1].extend(masks[stem] for stem in sorted(masks.keys() - photos.keys()))
    looked = "; ".join(f"'{photos}' and '{masks}'" for photos, masks in folders.values())
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


def _named(files: list[Path]) -> str:
    if not files:
        return ""
    return f" ({', '.join(path.name for path in files[:NAMED])}{', ...' if len(files) > NAMED else ''})"


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder '{folder}'.")
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        if path.stem in found:
            raise ValueError(f"'{found[path.stem]}' and '{path.name}' have one stem; wanted one file for each.")
        found[path.stem] = path
    return found
