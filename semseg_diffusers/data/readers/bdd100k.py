"""BDD100K's 10k set (Yu et al. 2020) in its official layout, in the older one of 2018, unpacked or in its zip files.

Masks are images of ids, polygons or run lengths. Weather, scene and time of day are in the label files of another
task, under the name of the image, which can be in another split there: both files are searched.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.polygons import Polygon, RegionMask, RunLengths, read_counts
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    ReadOptions,
    Source,
    by_stem,
    first_folder,
    folders_by_split,
    list_images,
    match_folders,
    match_stems,
    split_folders,
)
from semseg_diffusers.data.settings import ANNOTATIONS, SPLITS


IMAGES = "images/10k"
LABELS = "labels/sem_seg"
KINDS = {"polygons": "poly2d", "rles": "rle"}  # what Scalabel's JSON calls them
LEGACY_ENDING = "_train_id"
ATTRIBUTES = ("weather", "scene", "timeofday")
ATTRIBUTE_FILES = (
    ("labels/det_20", "det_train.json"),
    ("labels/det_20", "det_val.json"),
    ("labels", "bdd100k_labels_images_train.json"),
    ("labels", "bdd100k_labels_images_val.json"),
)
START = re.compile(r'\s*(?:\[|\{.*?"frames"\s*:\s*\[)\s*(\]?)', re.DOTALL)  # of the list, which may be empty
SEPARATOR = re.compile(r"\s*([,\]])\s*")


def _find(root: AnyPath, folder: str) -> AnyPath | None:
    """Return a folder of the dataset, which the archives, and some users, have inside a folder bdd100k."""
    return first_folder(root, folder, f"bdd100k/{folder}", f"bdd100k/bdd100k/{folder}")


def find_bdd100k(root: AnyPath) -> AnyPath | None:
    """Return the folder if it, or its folder bdd100k, has the official layout or that of 2018."""
    layouts = ((IMAGES, LABELS), ("seg/images", "seg/labels"))
    return root if any(all(_find(root, folder) for folder in layout) for layout in layouts) else None


def read_bdd100k(root: AnyPath, options: ReadOptions) -> Source:
    """Read `images/10k/{train,val}` and `labels/sem_seg/{masks,polygons,rles}`, or the older `seg/`."""
    images, legacy = _find(root, IMAGES), _find(root, "seg")
    if images is None and legacy is not None:
        if options.annotations not in (None, "masks"):
            raise ValueError(
                f"'{root}' is the release of 2018, which has masks only; got --annotations {options.annotations}."
            )
        folders = folders_by_split(legacy / "images", legacy / "labels")
        pairs, unmatched = match_folders(folders, options.skip_unmatched, LEGACY_ENDING)
        source = Source(
            LabelSet.from_preset("bdd100k"), pairs, unmatched, notes=("read the layout of 2018",), mask_values="ids"
        )
        return _with_attributes(root, source)
    assert images is not None, "find_bdd100k found a layout"
    kinds = {name: folder for name in ANNOTATIONS if (folder := _find(root, f"{LABELS}/{name}")) is not None}
    chosen = options.annotations or next(iter(kinds), "masks")
    if chosen not in kinds:
        hint = f"There is {' and '.join(kinds)}: give --annotations {next(iter(kinds))}." if kinds else ""
        if not kinds and _find(root, f"{LABELS}/colormaps") is not None:
            hint = "There is colormaps, but these are for viewing: unpack sem_seg/masks too."
        raise ValueError(f"'{root}' has no {LABELS}/{options.annotations or '{masks,polygons,rles}'}. {hint}")
    if chosen == "masks":
        pairs, unmatched = match_folders(folders_by_split(images, kinds["masks"]), options.skip_unmatched)
        source = Source(LabelSet.from_preset("bdd100k"), pairs, unmatched, mask_values="ids")
    else:
        source = _read_regions(images, kinds[chosen], KINDS[chosen], options.skip_unmatched)
    others = ", ".join(name for name in kinds if name != chosen)
    notes = [f"read the {chosen}" + (f" (there are also {others}: --annotations)" if others else ""), *source.notes]
    test = split_folders(images).get("test")
    if test is not None and all(pair.split != "test" for pair in source.pairs):
        notes.append(f"left out: {len(by_stem(list_images(test)))} test images, which have no labels")
    return _with_attributes(root, replace(source, notes=tuple(notes)))


def _read_regions(images: AnyPath, folder: AnyPath, kind: str, skip_unmatched: bool) -> Source:
    """Read images with the polygons or run lengths of `sem_seg_{train,val}.json`."""
    labels = LabelSet.from_preset("bdd100k")
    found, files = {}, []
    others: Counter[str] = Counter()
    for split, image_folder in split_folders(images).items():
        names = [f"sem_seg_{name}.json" for name, known in SPLITS.items() if known == split]
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            continue
        regions, left_out = read_regions(file, kind, labels.label2id)
        others += left_out
        files.append(str(file))
        masks = {stem: RegionMask(shapes, f"{stem} of {file}") for stem, shapes in regions.items()}
        found[split] = (by_stem(list_images(image_folder)), masks)
    if not found:
        raise ValueError(f"'{folder}' has no sem_seg_train.json or sem_seg_val.json for the splits in '{images}'.")
    pairs, unmatched = match_stems(found, skip_unmatched, f"'{images}' and {', '.join(files)}")
    named = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
    return Source(labels, pairs, unmatched, notes=(f"labels of no class, left unknown: {named}",) if others else ())


def _with_attributes(root: AnyPath, source: Source) -> Source:
    """Add weather, scene and time of day if their label files exist; None where they are unknown."""
    folders = [(_find(root, folder), name) for folder, name in ATTRIBUTE_FILES]
    files = [folder / name for folder, name in folders if folder is not None and (folder / name).is_file()]
    if not files:
        return source
    known: dict[str, dict[str, str | None]] = dict.fromkeys((pair.stem for pair in source.pairs), {})
    for frame in (frame for file in files for frame in iterate_frames(file)):
        stem, attributes = _stem_of(frame.get("name")), frame.get("attributes")
        if known.get(stem) == {} and isinstance(attributes, dict):  # the first file counts
            texts = {name: value for name, value in attributes.items() if isinstance(value, str)}
            known[stem] = {name: None if texts.get(name) == "undefined" else texts.get(name) for name in ATTRIBUTES}
    unknown = dict.fromkeys(ATTRIBUTES)
    pairs = tuple(replace(pair, attributes=known[pair.stem] or unknown) for pair in source.pairs)
    note = f"{', '.join(ATTRIBUTES)}: known for {sum(map(bool, known.values()))} of {len(pairs)} images"
    return replace(source, pairs=pairs, notes=(*source.notes, note))


# Label files in Scalabel's JSON, the largest of 1.5 GB: a list of frames, or an object whose "frames" is that list. A
# frame has a `name`, `attributes` and `labels`; a label has a `category` and its region as `poly2d` (polygons with
# Bezier curves) or `rle` (COCO's run lengths).


def iterate_frames(file: AnyPath) -> Iterator[dict[str, Any]]:
    """Yield the frames of a label file, one after the other: decoded at once, the largest would take many GB."""
    try:
        text, decoder = file.read_text(encoding="utf-8-sig"), json.JSONDecoder()
        found = START.match(text)
        if found is None:
            raise ValueError('expected a list, or an object with the key "frames"')
        while found[1] != "]":
            frame, end = decoder.raw_decode(text, found.end())
            if not isinstance(frame, dict):
                raise ValueError(f"a frame is {frame!r:.40}")
            yield frame
            found = SEPARATOR.match(text, end)
            if found is None:
                raise ValueError(f"expected , or ] after a frame, got '{text[end : end + 20].strip()}'")
    except ValueError as err:
        raise ValueError(f"label file '{file}' is not a list of frames in Scalabel's JSON: {err}.") from err


def _stem_of(name: object) -> str:
    return str(name).rsplit("/", 1)[-1].rsplit(".", 1)[0]


def read_regions(
    file: AnyPath, kind: str, class_ids: Mapping[str, int]
) -> tuple[dict[str, tuple[Polygon | RunLengths, ...]], Counter[str]]:
    """Read the regions of every frame in their drawing order, by the stem of the image.

    Labels of categories without an id are left out, so unknown, and counted in the second result.
    """
    found: dict[str, tuple[Polygon | RunLengths, ...]] = {}
    others: Counter[str] = Counter()
    for frame in iterate_frames(file):
        name = frame.get("name")
        if not isinstance(name, str):
            raise ValueError(f"label file '{file}': frame {len(found)} has the name {name!r}; expected a file name.")
        stem = _stem_of(name)
        if stem in found:
            raise ValueError(f"label file '{file}' has two frames '{name}'.")
        regions: list[Polygon | RunLengths] = []
        for number, label in enumerate(frame.get("labels") or ()):
            category = str(label.get("category")) if isinstance(label, dict) else "None"
            if category not in class_ids:
                others[category] += 1
                continue
            try:
                regions += _read_label(label.get(kind), kind, class_ids[category])
            except (ValueError, TypeError, KeyError, OverflowError) as err:
                raise ValueError(f"label file '{file}', image '{name}', label {number}: {err!r}.") from err
        found[stem] = tuple(regions)
    return found, others


def _read_label(region: Any, kind: str, class_id: int) -> Iterator[Polygon | RunLengths]:
    """Yield the polygons of one label, or its run lengths."""
    if not region:
        return
    if kind == "rle":
        counts, (height, width) = region["counts"], region["size"]
        read_counts(counts)
        counts = counts if isinstance(counts, str) else tuple(counts)
        yield RunLengths(class_id, counts, (int(height), int(width)))
        return
    for outline in region:
        vertices, types = np.asarray(outline["vertices"], dtype=np.float32), outline["types"]
        if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
            raise ValueError(f"vertices of shape {vertices.shape}; expected (N, 2) finite numbers")
        if len(types) != len(vertices) or set(types) - {"L", "C"}:
            raise ValueError(f"types {types!r:.40} for {len(vertices)} vertices; expected L or C for each")
        if np.abs(vertices).max(initial=0) > 1e6:
            raise ValueError(f"a vertex at {np.abs(vertices).max():.0f} pixels; expected vertices near the frame")
        yield Polygon(class_id, vertices, types)
