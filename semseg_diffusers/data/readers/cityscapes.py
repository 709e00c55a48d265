"""Cityscapes (Cordts et al. 2016) and the sets that follow its classes: ACDC and KITTI's semantic part.

Their masks hold label ids (0 to 33) or train ids (0 to 18); the file's name says which, except in KITTI, whose are
label ids.
"""

import hashlib
from collections.abc import Iterator

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Pair,
    ReadOptions,
    Source,
    by_stem,
    match_stems,
    pictures,
    split_folders,
    stems_of,
    visible,
)


# Label id -> train id; all others, and the licence plate (-1, in 8 bits 255), are unknown.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
LABEL_IDS = {i: TRAIN_IDS.get(i, 255) for i in range(34)}
MASK_ENDINGS = ("labelTrainIds", "labelIds")  # in the order of preference
KITTI_VALIDATION = 5  # one frame in so many is for validation


def read_cityscapes(root: AnyPath, options: ReadOptions) -> Source:
    """Cityscapes: `leftImg8bit/{split}/{city}`, `gtFine/{split}/{city}` with `_labelIds` or `_labelTrainIds`."""
    images, masks = _find_cityscapes(root)
    if images is None or masks is None:
        raise ValueError(
            f"'{root}' is not laid out as Cityscapes; looked for leftImg8bit/{{split}}/{{city}}/*_leftImg8bit.png and "
            "gtFine/{split}/{city}/*_gtFine_labelIds.png in it."
        )
    return _read_cities({"": (images, masks)}, "_leftImg8bit", "_gtFine_", options)


def read_acdc(root: AnyPath, options: ReadOptions) -> Source:
    """ACDC: `rgb_anon/{condition}/{split}/{sequence}`, `gt/{condition}/{split}/{sequence}`; the condition is kept."""
    images, masks = _find_acdc(root)
    if images is None or masks is None:
        raise ValueError(
            f"'{root}' is not laid out as ACDC; looked for rgb_anon/{{condition}}/{{split}}/{{sequence}}/"
            "*_rgb_anon.png and gt/{condition}/{split}/{sequence}/*_gt_labelTrainIds.png in it."
        )
    conditions = {
        path.name: (images / path.name, path)
        for path in visible(masks)
        if path.is_dir() and (images / path.name).is_dir()
    }
    return _read_cities(conditions, "_rgb_anon", "_gt_", options)


def read_kitti(root: AnyPath, options: ReadOptions) -> Source:
    """KITTI semantics: `training/image_2`, `training/semantic` with label ids; a fifth, by stem, becomes `val`."""
    top = _find_kitti(root)
    if top is None:
        raise ValueError(
            f"'{root}' is not laid out as KITTI's semantic set; looked for training/image_2 and training/semantic."
        )
    photos, masks = by_stem(top / "image_2"), by_stem(top / "semantic")
    pairs, unmatched = match_stems(
        {"train": (photos, masks)}, options.skip_unmatched, f"'{top / 'image_2'}' and '{top / 'semantic'}'"
    )
    pairs = tuple(sorted((_kitti_split(pair) for pair in pairs), key=lambda pair: (pair.split, pair.stem)))
    count = sum(pair.split == "val" for pair in pairs)
    notes = (f"KITTI has no split for validation: {count} of {len(pairs)} frames were taken for it, by their names",)
    return Source(LabelSet.from_preset("cityscapes"), pairs, unmatched, LABEL_IDS, notes=notes)


def _kitti_split(pair: Pair) -> Pair:
    digest = hashlib.sha256(pair.stem.encode()).digest()
    split = "val" if int.from_bytes(digest[:8], "big") % KITTI_VALIDATION == 0 else "train"
    return Pair(pair.stem, pair.photo, pair.mask, split)


def is_cityscapes(root: AnyPath) -> bool:
    return None not in _find_cityscapes(root)


def is_acdc(root: AnyPath) -> bool:
    return None not in _find_acdc(root)


def is_kitti(root: AnyPath) -> bool:
    return _find_kitti(root) is not None


def _find_cityscapes(root: AnyPath) -> tuple[AnyPath | None, AnyPath | None]:
    return _find(root, ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit")), _find(
        root, ("gtFine", "gtFine_trainvaltest/gtFine")
    )


def _find_acdc(root: AnyPath) -> tuple[AnyPath | None, AnyPath | None]:
    return _find(root, ("rgb_anon", "rgb_anon_trainvaltest/rgb_anon")), _find(root, ("gt", "gt_trainval/gt"))


def _find_kitti(root: AnyPath) -> AnyPath | None:
    tops = (root / "training", root / "data_semantics" / "training", root)
    return next((top for top in tops if (top / "image_2").is_dir() and (top / "semantic").is_dir()), None)


def _find(root: AnyPath, folders: tuple[str, ...]) -> AnyPath | None:
    return next((root / folder for folder in folders if (root / folder).is_dir()), None)


def _read_cities(
    parts: dict[str, tuple[AnyPath, AnyPath]], photo_ending: str, mask_ending: str, options: ReadOptions
) -> Source:
    """Pairs of `{split}/{city}` folders; `parts` are several such trees, by the name of their condition."""
    masks_of, photos_of, kinds = {}, {}, set()
    blank = False
    for condition, (images, masks) in parts.items():
        splits = split_folders(masks)
        blank |= splits.pop("test", None) is not None  # so that nobody tests on them in secret
        photo_splits = split_folders(images)
        for split, folder in splits.items():
            files = list(_files_below(folder))
            kind = next((k for k in MASK_ENDINGS if any(f.stem.endswith(mask_ending + k) for f in files)), None)
            if kind is not None:
                kinds.add(kind)
                named = [file for file in files if file.stem.endswith(mask_ending + kind)]
                masks_of.setdefault(split, []).extend(named)
            if split in photo_splits:
                files = [file for file in _files_below(photo_splits[split]) if file.stem.endswith(photo_ending)]
                for stem, file in stems_of(files, photo_ending).items():
                    photos_of.setdefault(split, {})[stem] = (file, condition)
    looked = "; ".join(f"'{images}' and '{masks}'" for images, masks in parts.values())
    if len(kinds) != 1:
        what = "both kinds of masks" if kinds else "no masks"
        raise ValueError(
            f"found {what} in {looked}; wanted files called *{mask_ending}{MASK_ENDINGS[0]}.png in all splits, or "
            f"*{mask_ending}{MASK_ENDINGS[1]}.png in all."
        )
    kind = kinds.pop()
    found = {
        split: (
            {stem: file for stem, (file, _) in photos_of.get(split, {}).items()},
            stems_of(masks, mask_ending + kind),
        )
        for split, masks in masks_of.items()
    }
    pairs, unmatched = match_stems(found, options.skip_unmatched, looked)
    if len(parts) > 1 or "" not in parts:
        pairs = tuple(
            Pair(pair.stem, pair.photo, pair.mask, pair.split, {"condition": photos_of[pair.split][pair.stem][1]})
            for pair in pairs
        )
    notes = (f"read the masks *{mask_ending}{kind}.png",)
    if blank:
        notes += ("left out: the test split, whose masks are blank",)
    changed = LABEL_IDS if kind == "labelIds" else {}
    return Source(LabelSet.from_preset("cityscapes"), pairs, unmatched, changed, notes=notes)


def _files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """Pictures of a split: in its city folders, or in it."""
    yield from pictures(folder)
    for path in visible(folder):
        if path.is_dir():
            yield from pictures(path)
