"""Cityscapes (Cordts et al. 2016) and datasets with its classes: ACDC and KITTI's semantic part.

Masks hold label ids (0 to 33) or train ids (0 to 18); the file's name says which; KITTI has label ids.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Folders,
    ReadOptions,
    Source,
    by_stem,
    first_folder,
    list_folder,
    list_images,
    match_folders,
    match_stems,
    split_folders,
)


# Label id -> train id; all others, and the licence plate (-1, in 8 bits 255), are unknown.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
LABEL_IDS = {i: TRAIN_IDS.get(i, 255) for i in range(34)}
MASK_ENDINGS = ("labelTrainIds", "labelIds")  # in the order of preference
KITTI_VALIDATION = 5  # one frame in so many is for validation


def find_cityscapes(root: AnyPath) -> Folders | None:
    """Return the folders of images and masks of Cityscapes."""
    images = first_folder(root, "leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit")
    masks = first_folder(root, "gtFine", "gtFine_trainvaltest/gtFine")
    return None if images is None or masks is None else {"": (images, masks)}


def find_acdc(root: AnyPath) -> Folders | None:
    """Return the folders of images and masks of ACDC, by condition."""
    images = first_folder(root, "rgb_anon", "rgb_anon_trainvaltest/rgb_anon")
    masks = first_folder(root, "gt", "gt_trainval/gt")
    if images is None or masks is None:
        return None
    names = [path.name for path in list_folder(masks) if path.is_dir() and (images / path.name).is_dir()]
    return {name: (images / name, masks / name) for name in names}


def find_kitti(root: AnyPath) -> Folders | None:
    """Return the folders of images and masks of KITTI's semantic part."""
    for top in (root / "training", root / "data_semantics" / "training", root):
        if (top / "image_2").is_dir() and (top / "semantic").is_dir():
            return {"train": (top / "image_2", top / "semantic")}
    return None


def read_kitti(folders: Folders, options: ReadOptions) -> Source:
    """Read `image_2` and `semantic` with label ids; about one frame in five becomes `val`, by its stem."""
    pairs, unmatched = match_folders(folders, options.skip_unmatched)
    digests = {pair.stem: int.from_bytes(hashlib.sha256(pair.stem.encode()).digest()[:8], "big") for pair in pairs}
    validation = {stem for stem, number in digests.items() if number % KITTI_VALIDATION == 0}
    pairs = tuple(replace(pair, split="val" if pair.stem in validation else "train") for pair in pairs)
    pairs = tuple(sorted(pairs, key=lambda pair: (pair.split, pair.stem)))
    notes = (f"KITTI has no validation split: {len(validation)} of {len(pairs)} frames were taken, by their names",)
    return Source(LabelSet.from_preset("cityscapes"), pairs, unmatched, LABEL_IDS, notes=notes, mask_values="ids")


def read_trees(trees: Folders, options: ReadOptions, image_ending: str, mask_ending: str) -> Source:
    """Read the pairs of `{split}/{city}` folders; several such trees have a condition, which becomes an attribute."""
    images: dict[str, dict[str, AnyPath]] = {}  # split -> stem -> file
    masks: dict[str, list[AnyPath]] = {}
    conditions: dict[tuple[str, str], str] = {}  # (split, stem) -> condition
    kinds: set[str] = set()
    has_test = False
    for condition, (image_folder, mask_folder) in trees.items():
        mask_splits, image_splits = split_folders(mask_folder), split_folders(image_folder)
        has_test |= mask_splits.pop("test", None) is not None
        for split, folder in mask_splits.items():
            files = list(_files_below(folder))
            kind = next((k for k in MASK_ENDINGS if any(file.stem.endswith(mask_ending + k) for file in files)), None)
            if kind is None:
                continue
            kinds.add(kind)
            masks.setdefault(split, []).extend(files)
            own = by_stem(_files_below(image_splits[split]), image_ending) if split in image_splits else {}
            images.setdefault(split, {}).update(own)
            conditions.update(((split, stem), condition) for stem in own)
    places = "; ".join(f"'{images}' and '{masks}'" for images, masks in trees.values())
    if len(kinds) != 1:
        raise ValueError(
            f"found {'both kinds of masks' if kinds else 'no masks'} in {places}; expected files called "
            f"*{mask_ending}{MASK_ENDINGS[0]}.png in all splits, or *{mask_ending}{MASK_ENDINGS[1]}.png in all."
        )
    kind = kinds.pop()
    found = {split: (images[split], by_stem(files, f"{mask_ending}{kind}")) for split, files in masks.items()}
    pairs, unmatched = match_stems(found, options.skip_unmatched, places)
    if trees.keys() != {""}:
        pairs = tuple(replace(p, attributes={"condition": conditions[p.split, p.stem]}) for p in pairs)
    notes: tuple[str, ...] = (f"read the masks *{mask_ending}{kind}.png",)
    if has_test:
        notes += ("left out: the test split, whose masks are blank",)
    labels = LabelSet.from_preset("cityscapes")
    changed = LABEL_IDS if kind == "labelIds" else {}
    return Source(labels, pairs, unmatched, changed, notes=notes, mask_values="ids")


def _files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """Yield the images of a split: in its city folders, or in it."""
    for path in (folder, *list_folder(folder)):
        if path.is_dir():
            yield from list_images(path)
