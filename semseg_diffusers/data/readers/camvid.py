"""CamVid: the SegNet release, 480 x 360 with ids of 11 classes, and the original one, 960 x 720 in 32 colours.

The 32 classes become the 11 that CamVid is reported on, merged as for SegNet (Badrinarayanan et al. 2017).
"""

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Folders,
    ReadOptions,
    Source,
    folders_by_split,
    match_folders,
    pictures,
    visible,
)


# The classes of the original release: colour, and the one of the 11 that it goes into.
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
COLOR_ENDING = "_L"  # a mask in colours is called <stem of its photo>_L.png
SPLIT_NAMES = {"train": "train", "val": "val", "test": "test"}


def read_camvid(root: AnyPath, options: ReadOptions) -> Source:
    """CamVid: SegNet's release (ids 0 to 11) in `images/`, `labels/` or `train/`, `trainannot/`; or the 32 colours."""
    folders = _folders(root)
    label_set = LabelSet.from_preset("camvid")
    in_colors = [_is_colored(masks) for _, masks in folders.values()]
    if any(in_colors) != all(in_colors):
        raise ValueError(
            f"'{root}' holds masks in colours ({COLOR_ENDING}.png) for some splits only. Prepare them apart."
        )
    ending = COLOR_ENDING if all(in_colors) else ""
    pairs, unmatched = match_folders(folders, options.skip_unmatched, ending)
    if not ending:
        return Source(label_set, pairs, unmatched, changed_ids={label_set.num_classes: label_set.ignore_index})
    file_labels = LabelSet.from_colormap({name: color for name, (color, _) in COLORS.items()})
    classes = [name for _, name in COLORS.values()]
    changed = {i: label_set.label2id[name] for i, name in enumerate(classes)}
    notes = ("the 32 classes of the original release were merged into 11",)
    return Source(label_set, pairs, unmatched, changed, file_labels, notes)


def is_camvid(root: AnyPath) -> bool:
    try:
        folders = _folders(root)
    except ValueError:
        return False
    return all(photos.is_dir() and masks.is_dir() for photos, masks in folders.values())


def _folders(root: AnyPath) -> Folders:
    """Photos and masks of each split, in one of the ways in which CamVid is passed on."""
    top = root / "CamVid" if (root / "CamVid").is_dir() else root
    if (top / "images").is_dir() and (top / "labels").is_dir():
        return folders_by_split(top / "images", top / "labels")
    for ending in ("annot", "_labels"):
        splits = {
            split: (top / name, top / f"{name}{ending}")
            for name, split in SPLIT_NAMES.items()
            if (top / name).is_dir() and (top / f"{name}{ending}").is_dir()
        }
        if splits:
            return splits
    if top.is_dir():
        photos = next((path for path in visible(top) if path.name.startswith("701_StillsRaw_full")), None)
        masks = next((path for path in visible(top) if path.name.startswith("LabeledApproved_full")), None)
        if photos is not None and masks is not None:
            return {"train": (photos, masks)}
    raise ValueError(
        f"'{root}' is not laid out as CamVid; looked in it, and in its folder CamVid, for images and labels, for "
        "train and trainannot (or train_labels), and for 701_StillsRaw_full and LabeledApproved_full."
    )


def _is_colored(masks: AnyPath) -> bool:
    if not masks.is_dir():
        return False
    files = pictures(masks)
    return bool(files) and all(path.stem.endswith(COLOR_ENDING) for path in files)
