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


# The classes of the original release and their colours, by the one of the 11 into which they are merged.
COLORS = {
    "person": {
        "Animal": (64, 128, 64), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64), "Pedestrian": (64, 64, 0),
    },
    "building": {
        "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Building": (128, 0, 0), "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "rider": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "car": {
        "Car": (64, 0, 128), "OtherMoving": (128, 64, 64), "SUVPickupTruck": (64, 128, 192), "Train": (192, 64, 128),
        "Truck_Bus": (192, 128, 192),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "road": {"LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64), "Road": (128, 64, 128)},
    "traffic sign": {"Misc_Text": (128, 128, 64), "SignSymbol": (192, 128, 128), "TrafficLight": (0, 64, 64)},
    "sidewalk": {"ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192)},
    "sky": {"Sky": (128, 128, 128)},
    "vegetation": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
}  # fmt: skip
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
