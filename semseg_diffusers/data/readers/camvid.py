"""CamVid: the SegNet release, 480 x 360 with ids of 11 classes, and the original one, 960 x 720 in 32 colours.

The 32 classes become the 11 that CamVid is reported on, merged as for SegNet (Badrinarayanan et al. 2017).
"""

from semseg_diffusers.data.labels import LabelSet
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


# The classes of the original release: colour, and the one of the 11 into which it is merged.
COLORS = {
    "Animal": ((64, 128, 64), "person"),
    "Archway": ((192, 0, 128), "building"),
    "Bicyclist": ((0, 128, 192), "rider"),
    "Bridge": ((0, 128, 64), "building"),
    "Building": ((128, 0, 0), "building"),
    "Car": ((64, 0, 128), "car"),
    "CartLuggagePram": ((64, 0, 192), "person"),
    "Child": ((192, 128, 64), "person"),
    "Column_Pole": ((192, 192, 128), "pole"),
    "Fence": ((64, 64, 128), "fence"),
    "LaneMkgsDriv": ((128, 0, 192), "road"),
    "LaneMkgsNonDriv": ((192, 0, 64), "road"),
    "Misc_Text": ((128, 128, 64), "traffic sign"),
    "MotorcycleScooter": ((192, 0, 192), "rider"),
    "OtherMoving": ((128, 64, 64), "car"),
    "ParkingBlock": ((64, 192, 128), "sidewalk"),
    "Pedestrian": ((64, 64, 0), "person"),
    "Road": ((128, 64, 128), "road"),
    "RoadShoulder": ((128, 128, 192), "sidewalk"),
    "Sidewalk": ((0, 0, 192), "sidewalk"),
    "SignSymbol": ((192, 128, 128), "traffic sign"),
    "Sky": ((128, 128, 128), "sky"),
    "SUVPickupTruck": ((64, 128, 192), "car"),
    "TrafficCone": ((0, 0, 64), "pole"),
    "TrafficLight": ((0, 64, 64), "traffic sign"),
    "Train": ((192, 64, 128), "car"),
    "Tree": ((128, 128, 0), "vegetation"),
    "Truck_Bus": ((192, 128, 192), "car"),
    "Tunnel": ((64, 0, 64), "building"),
    "VegetationMisc": ((192, 192, 0), "vegetation"),
    "Wall": ((64, 192, 0), "building"),
}  # and Void in black
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
    changed = {i: labels.label2id[name] for i, (_, name) in enumerate(COLORS.values())}
    file_labels = LabelSet.from_colormap({name: color for name, (color, _) in COLORS.items()})
    notes = ("the 32 classes of the original release were merged into 11",)
    return Source(labels, pairs, unmatched, changed, file_labels, notes)
