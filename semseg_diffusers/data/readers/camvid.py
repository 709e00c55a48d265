"""CamVid: the SegNet release, 480 x 360 with ids of 11 classes, and the original one, 960 x 720 in 32 colours.

The 32 classes become the 11 that CamVid is reported on, merged as for SegNet (Badrinarayanan et al. 2017).
"""

from semseg_diffusers.data.labels import CLASSES, LabelSet
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Folders,
    ReadOptions,
    Source,
    first_folder,
    folders_by_split,
    list_folder,
    list_images,
    match_folders,
)


COLORS = CLASSES["camvid_original"]  # class -> classes of the original release that are merged into it -> colour
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
        return Source(labels, pairs, unmatched, changed_ids={labels.num_classes: labels.ignore_index})
    file_labels = LabelSet.from_colormap({name: color for group in COLORS.values() for name, color in group.items()})
    merged = [labels.label2id[name] for name, group in COLORS.items() for _ in group]
    notes = ("the 32 classes of the original release were merged into 11",)
    return Source(labels, pairs, unmatched, dict(enumerate(merged)), file_labels, notes)
