"""Plain folders of pairs: one's own, with a label set beside them, and those of the paper's authors."""

import json

from semseg_diffusers.data.labels import PAPER_NAMES
from semseg_diffusers.data.layout import LABELS_FILE
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    ReadOptions,
    Source,
    folders_by_split,
    labels_of,
    match_folders,
    split_folders,
)


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
