"""BDD100K's 10k set (Yu et al. 2020) in its official layout, in the older one of 2018, unpacked or in its zip files.

Masks come as pictures of ids, as polygons or as run lengths. Weather, scene and time of day stand in the label files
of another task, under the name of the image, which may be of another split there: both files are looked through.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Drawing,
    Pair,
    ReadOptions,
    Source,
    by_stem,
    folders_by_split,
    match_folders,
    match_stems,
    split_folders,
)
from semseg_diffusers.data.readers.scalabel import read_attributes, read_regions
from semseg_diffusers.data.settings import ANNOTATIONS, SPLITS


IMAGES = "images/10k"
LABELS = "labels/sem_seg"
KINDS = {"polygons": "poly2d", "rles": "rle"}  # what Scalabel's JSON calls them
LEGACY_ENDING = "_train_id"
ATTRIBUTES = ("weather", "scene", "timeofday")
ATTRIBUTE_FILES = (
    "labels/det_20/det_train.json",
    "labels/det_20/det_val.json",
    "labels/bdd100k_labels_images_train.json",
    "labels/bdd100k_labels_images_val.json",
)


def read_bdd100k(root: AnyPath, options: ReadOptions) -> Source:
    """BDD100K's 10k set: `images/10k/{train,val}`, `labels/sem_seg/{masks,polygons,rles}`; or the older `seg/`."""
    images, legacy = _find(root, IMAGES), _find(root, "seg")
    there = {name: _find(root, f"{LABELS}/{name}") for name in ANNOTATIONS}
    there = {name: folder for name, folder in there.items() if folder is not None}
    if images is None and legacy is not None and _find(root, "seg/labels") is not None:
        source = _read_legacy(legacy, options)
    elif images is None or not there or (options.annotations or next(iter(there))) not in there:
        raise ValueError(_not_found(root, options.annotations, tuple(there)))
    else:
        annotations = options.annotations or next(iter(there))
        if annotations == "masks":
            pairs, unmatched = match_folders(folders_by_split(images, there["masks"]), options.skip_unmatched)
            source = Source(LabelSet.from_preset("bdd100k"), pairs, unmatched)
        else:
            source = _read_drawings(images, there[annotations], KINDS[annotations], options.skip_unmatched)
        others = ", ".join(name for name in there if name != annotations)
        note = f"read the {annotations}" + (f" (there are also {others}: --annotations)" if others else "")
        unlabelled = split_folders(images).get("test") if all(pair.split != "test" for pair in source.pairs) else None
        left_out = (f"left out: {len(by_stem(unlabelled))} test photos, which have no labels",) if unlabelled else ()
        source = replace(source, notes=(note, *source.notes, *left_out))
    return _with_attributes(root, source)


def is_bdd100k(root: AnyPath) -> bool:
    official = _find(root, IMAGES) is not None and _find(root, LABELS) is not None
    return official or (_find(root, "seg/images") is not None and _find(root, "seg/labels") is not None)


def _find(root: AnyPath, folder: str) -> AnyPath | None:
    """A folder of the set, which the archives call bdd100k and some users keep inside a folder of that name."""
    tops = (root, root / "bdd100k", root / "bdd100k" / "bdd100k")
    return next((top / folder for top in tops if (top / folder).is_dir()), None)


def _not_found(root: AnyPath, annotations: str | None, there: tuple[str, ...]) -> str:
    wanted = annotations or f"{{{','.join(ANNOTATIONS)}}}"
    hint = ""
    if there:
        hint = f" There is {' and '.join(there)}, but not {annotations}: give --annotations {there[0]}."
    if _find(root, IMAGES) is None:
        hint = f" There is no {IMAGES}."
    elif _find(root, f"{LABELS}/colormaps") is not None and not there:
        hint = " There is colormaps, but these are for viewing: unpack sem_seg/masks too."
    return (
        f"'{root}' is not laid out as BDD100K's 10k set; looked for {IMAGES}/{{train,val}}/*.jpg and {LABELS}/"
        f"{wanted} in it and in its folder bdd100k, and for seg/images and seg/labels.{hint}"
    )


def _read_legacy(top: AnyPath, options: ReadOptions) -> Source:
    """The release of 2018: `seg/images/{train,val}/<stem>.jpg`, `seg/labels/{train,val}/<stem>_train_id.png`."""
    if options.annotations not in (None, "masks"):
        raise ValueError(
            f"'{top}' is the release of 2018, which has masks only; got --annotations {options.annotations}."
        )
    folders = folders_by_split(top / "images", top / "labels")
    pairs, unmatched = match_folders(folders, options.skip_unmatched, LEGACY_ENDING)
    return Source(LabelSet.from_preset("bdd100k"), pairs, unmatched, notes=("read the layout of 2018",))


def _read_drawings(images: AnyPath, folder: AnyPath, kind: str, skip_unmatched: bool) -> Source:
    """Photos with the polygons or run lengths of `sem_seg_{train,val}.json`."""
    label_set = LabelSet.from_preset("bdd100k")
    found, others, files = {}, Counter(), []
    for split, photos in split_folders(images).items():
        names = [name for name, known in SPLITS.items() if known == split]
        file = next((f for name in names if (f := folder / f"sem_seg_{name}.json").is_file()), None)
        if file is None:
            continue
        regions, left_out = read_regions(file, kind, label_set.label2id)
        others += left_out
        files.append(str(file))
        masks = {stem: Drawing(shapes, f"{stem} of {file}") for stem, shapes in regions.items()}
        found[split] = (by_stem(photos), masks)
    if not found:
        raise ValueError(f"'{folder}' holds no sem_seg_train.json or sem_seg_val.json for the splits in '{images}'.")
    pairs, unmatched = match_stems(found, skip_unmatched, f"'{images}' and {', '.join(files)}")
    notes = ()
    if others:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
        notes = (f"labels of no class, left unknown: {named}",)
    return Source(label_set, pairs, unmatched, notes=notes)


def _with_attributes(root: AnyPath, source: Source) -> Source:
    """Add weather, scene and time of day where the label files that hold them are there; None for what they lack."""
    files = []
    for name in ATTRIBUTE_FILES:
        folder = _find(root, str(PurePosixPath(name).parent))
        if folder is not None and (folder / PurePosixPath(name).name).is_file():
            files.append(folder / PurePosixPath(name).name)
    if not files:
        return source
    pairs: Iterable[Pair] = source.pairs
    known = read_attributes(files, {pair.stem for pair in pairs}, ATTRIBUTES)
    nothing = dict.fromkeys(ATTRIBUTES)
    joined = tuple(replace(pair, attributes=known.get(pair.stem, nothing)) for pair in pairs)
    note = f"{', '.join(ATTRIBUTES)}: known for {len(known)} of {len(joined)} photos"
    return replace(source, pairs=joined, notes=(*source.notes, note))
