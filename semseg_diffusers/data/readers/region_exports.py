"""Regions as labelling tools export them: LabelMe's JSON, COCO's JSON, and Label Studio's JSON with brush PNGs.

Checked against what writes and reads them: labelme 6.3 (utils/shape.py, examples/*/labelme2voc.py), pycocotools 2.0,
exports of Roboflow, and label_studio_sdk 2.1 (converter/brush.py, converter.py).
"""

import base64
import hashlib
import itertools
import json
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np

from semseg_diffusers.data.dataset_format import LABEL_FILES
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.polygons import Polygon, RegionMask, RunLengths
from semseg_diffusers.data.readers.mask_exports import (
    IGNORED,
    files_below,
    is_image,
    label_set,
    name_stems,
    read_class_names,
    split_of,
)
from semseg_diffusers.data.readers.pairs import (
    AnyPath,
    Encoded,
    ImageFile,
    ReadOptions,
    Source,
    list_folder,
    match_stems,
    read_file,
    split_folders,
)
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.archives import ArchivePath
from semseg_diffusers.utils.files import composed, parse_json, read_text


BACKGROUND = "_background_"  # the label of LabelMe for what has no region
CLASS_FILES = ("labels.txt", "class_names.txt")  # of LabelMe
LINE_WIDTH, POINT_RADIUS = 10, 5  # pixels, as LabelMe's own converters draw lines and points
CORNERS = 64  # of a circle
FURTHEST = 1e6  # pixels; no vertex is further away
HEAD = 2**14  # bytes of a JSON file that are looked at to recognise it
LABELME_START = re.compile(r'\s*\{\s*"(version|flags|shapes|lineColor|fillColor|image(Path|Data|Height|Width))"\s*:')
COCO_START = re.compile(r'\s*\{.*?"(images|categories|annotations)"\s*:\s*\[', re.DOTALL)
TASKS_START = re.compile(r"\s*\[\s*\{")
BRUSH_FILE = re.compile(r"task-(\d+)-annotation-(\d+)-by-[^-]*-(.+)\.png")
PREFIX = re.compile(r"^[0-9a-f]{8}-")  # that Label Studio adds to the name of an uploaded image
REGION_LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "keypointlabels")
Names: TypeAlias = tuple[str, ...]  # a path: its folders and its name


@dataclass(frozen=True, eq=False)
class Stencil:
    """The pixels that are not 0 in an image file, which shows the frame or a part of it."""

    class_id: int
    file: ImageFile
    corner: tuple[int, int] | None = None  # left and top in the frame; None: it is the whole frame

    @property
    def content(self) -> tuple[Any, ...]:
        """Return what is hashed."""
        return hashlib.sha256(read_file(self.file)).hexdigest(), self.corner

    def covered(self, height: int, width: int) -> np.ndarray:
        """Return where the region is, (height, width) bool."""
        shown = np.asarray(open_image(read_file(self.file), "mask", self.file).convert("L")) > 0
        if self.corner is None and shown.shape != (height, width):
            raise ValueError(f"'{self.file}' has {shown.shape[0]} x {shown.shape[1]} pixels")
        left, top = self.corner or (0, 0)
        covered = np.zeros((height, width), dtype=bool)
        part = shown[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        covered[max(top, 0) :, max(left, 0) :][: part.shape[0], : part.shape[1]] = part
        return covered


class Embedded(Encoded):
    """The image inside a LabelMe file, which is decoded when it is read."""

    def __init__(self, file: AnyPath) -> None:
        vars(self).update(file=file, name=str(file))

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Return the bytes of the image."""
        return base64.b64decode(_load(vars(self)["file"])["imageData"])


@dataclass
class Drawing:
    """The regions of one image with the names of their classes, and what cannot be drawn."""

    source: str
    size: tuple[int, int] | None  # height and width of the image, if they are known
    regions: list[tuple[str, Any]] = field(default_factory=list)  # name of the class, region of class 0
    left_out: Counter[str] = field(default_factory=Counter)

    def outline(self, name: str, vertices: Any) -> None:
        """Add a polygon; one of fewer than three points is left out."""
        points = np.asarray(vertices, dtype=np.float32).reshape(-1, 2)
        if not (np.abs(points) <= FURTHEST).all():
            raise ValueError(f"'{name}' has a vertex that is not near the frame: {points.tolist()!r:.80}")
        if len(points) < 3:
            self.left_out["polygons of fewer than three points"] += 1
        else:
            self.regions.append((name, Polygon(0, points, "L" * len(points))))


def _load(file: AnyPath) -> Any:
    try:
        return parse_json(read_text(file))
    except json.JSONDecodeError as err:
        raise ValueError(f"label file '{file}' is not valid JSON: {err}.") from err


def _starts(file: AnyPath, start: re.Pattern[str]) -> bool:
    """Return whether a JSON file starts as a tool's do, without reading a large one."""
    if file.suffix.lower() != ".json":
        return False
    if isinstance(file, ArchivePath):
        head = file.read_bytes()[:HEAD]
    else:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    return start.match(head.decode("utf-8-sig", errors="ignore")) is not None


def _stems_below(names: Sequence[Names]) -> dict[Names, str]:
    """Return stems by the folders below those that all names have in common."""
    return name_stems(names, len(os.path.commonprefix([name[:-1] for name in names])))


def _finish(
    found: Mapping[str, tuple[dict[str, Any], dict[str, Drawing]]],
    names: Sequence[str],
    options: ReadOptions,
    place: object,
    notes: Sequence[str] = (),
) -> Source:
    """Match images and drawings; classes are those of `--labels`, or `names`, and all others unknown."""
    labels = label_set(names, place) if options.labels is None else LabelSet.from_name(options.labels)
    ids = labels.label2id | {IGNORED: labels.ignore_index}
    background = labels.label2id.get(BACKGROUND, labels.ignore_index)
    drawings = [drawing for _, masks in found.values() for drawing in masks.values()]
    others = Counter(name for drawing in drawings for name, _ in drawing.regions if name not in ids)
    left_out = sum((drawing.left_out for drawing in drawings), Counter[str]())
    empty = sum(not drawing.regions for drawing in drawings)

    def mask(drawing: Drawing) -> RegionMask:
        regions = [replace(region, class_id=ids[name]) for name, region in drawing.regions if name in ids]
        return RegionMask(tuple(regions), drawing.source, drawing.size, background, touched=False)

    parts = {
        split: (images, {stem: mask(drawing) for stem, drawing in masks.items()})
        for split, (images, masks) in found.items()
    }
    pairs, unmatched = match_stems(parts, options.skip_unmatched, f"'{place}'")
    said, meaning = list(notes), "unknown"
    if BACKGROUND in labels.label2id:
        meaning = f"'{BACKGROUND}'"
        said.append(f"pixels without a region are {meaning}, which is a class here")
    if empty:
        said.append(f"{empty} of {len(drawings)} images have no region: they are {meaning} everywhere")
    for what, counter in (("labels of no class, left unknown", others), ("left out", left_out)):
        if counter:
            said.append(f"{what}: " + ", ".join(f"{name} ({count})" for name, count in sorted(counter.items())))
    return Source(labels, pairs, unmatched, notes=tuple(said))


# LabelMe: one JSON file for each image -----------------------------------------------------------------------------


def find_labelme(root: AnyPath) -> AnyPath | None:
    """Return the folder if it, its split folders, or folders in them hold LabelMe's files."""
    for folder in split_folders(root).values() or [root]:
        for place in (folder, *(path for path in list_folder(folder) if path.is_dir())):
            files = (path for path in list_folder(place) if _starts(path, LABELME_START))
            if any('"shapes"' in read_text(path) for path in files):
                return root
    return None


def read_labelme(root: AnyPath, options: ReadOptions) -> Source:
    """Read shapes in their order in the file; a class `_background_` takes the pixels without one, as in the tool."""
    found: dict[str, tuple[dict[str, Any], dict[str, Drawing]]] = {}
    for split, folder in (split_folders(root) or {"train": root}).items():
        files = dict(files_below(folder))
        stems = _stems_below([parts for parts in files if is_image(parts[-1])])
        images: dict[str, Any] = {stem: files[parts] for parts, stem in stems.items()}
        drawings: dict[str, Drawing] = {}
        for parts, file in files.items():
            content = _load(file) if _starts(file, LABELME_START) else {}
            if "shapes" not in content:
                continue
            named = PureWindowsPath(str(content.get("imagePath"))).as_posix()
            inside = posixpath.normpath(posixpath.join(*parts[:-1], named))
            places = (tuple(composed(inside).split("/")), (*parts[:-1], PurePosixPath(composed(named)).name))
            stem = next((stems[place] for place in places if place in stems), "_".join([*parts[:-1], file.stem]))
            if stem not in images and (folder / inside).is_file():
                images[stem] = folder / inside
            elif stem not in images and content.get("imageData"):
                images[stem] = Embedded(file)
            if stem in drawings:
                raise ValueError(f"'{drawings[stem].source}' and '{file}' are of one image; expected one file for it.")
            drawings[stem] = _draw_labelme(content, file)
        found[split] = (images, drawings)
    class_file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if class_file is not None:
        names = read_class_names(class_file)
    else:
        used = {name for _, drawings in found.values() for drawing in drawings.values() for name, _ in drawing.regions}
        names = sorted(used - {IGNORED}, key=lambda name: (name != BACKGROUND, name))
    return _finish(found, names, options, class_file or root)


def _draw_labelme(content: dict[str, Any], file: AnyPath) -> Drawing:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    drawing = Drawing(str(file), (height, width) if height and width else None)
    for number, shape in enumerate(content["shapes"]):
        try:
            name, points = str(shape["label"]), np.asarray(shape["points"], dtype=np.float64)
            kind = shape.get("shape_type") or "polygon"
            if kind in ("polygon", "oriented_rectangle", "rotation"):
                drawing.outline(name, points)
            elif kind == "rectangle":
                (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
                drawing.outline(name, [[left, top], [right, top], [right, bottom], [left, bottom]])
            elif kind in ("circle", "point"):
                radius = math.dist(points[0], points[1]) if kind == "circle" else POINT_RADIUS
                turns = np.arange(CORNERS) * (2 * math.pi / CORNERS)
                drawing.outline(name, points[0] + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1))
            elif kind in ("line", "linestrip"):
                for start, end in itertools.pairwise(points):
                    across = (end - start)[::-1] * (-1, 1) * (LINE_WIDTH / 2 / max(math.dist(start, end), 1e-6))
                    drawing.outline(name, [start + across, end + across, end - across, start - across])
            elif kind == "mask":
                picture = Encoded(base64.b64decode(shape["mask"]), f"shape {number} of {file}")
                drawing.regions.append((name, Stencil(0, picture, (int(points[0, 0]), int(points[0, 1])))))
            else:
                drawing.left_out[f"shapes of the type {kind}"] += 1
        except (KeyError, TypeError, ValueError, IndexError) as err:
            raise ValueError(f"label file '{file}', shape {number}: {err!r}.") from err
    return drawing


# COCO: one JSON file for each split --------------------------------------------------------------------------------


def find_coco(root: AnyPath) -> AnyPath | None:
    """Return the folder if there is a COCO file in it, in annotations/ or in its split folders."""
    return root if _coco_files(root) else None


def _coco_files(root: AnyPath) -> list[tuple[str, AnyPath, Names]]:
    """Return of each file its subset, its path and its folder; where there are instances_*.json, only these."""
    found: list[tuple[str, AnyPath, Names]] = []
    folders = {folder.name: split for split, folder in split_folders(root).items()}
    for name, split in {"": "", "annotations": "", **folders}.items():
        paths = list_folder(root / name) if (root / name).is_dir() else []
        files = [path for path in paths if _starts(path, COCO_START) and not _lists_classes(path)]
        instances = [path for path in files if path.name.startswith("instances_")]
        parts = (name,) if name else ()
        found += [(split or path.stem.removeprefix("instances_"), path, parts) for path in instances or files]
    return found


def _lists_classes(file: AnyPath) -> bool:
    """Return whether a COCO file is the label file of masks: categories without annotations."""
    return file.name in LABEL_FILES and '"annotations"' not in read_text(file)


def read_coco(root: AnyPath, options: ReadOptions) -> Source:
    """Read polygons and run lengths, crowds too; where objects overlap, the smaller covers the larger."""
    found: dict[str, tuple[dict[str, Any], dict[str, Drawing]]] = {}
    names: list[str] = []
    files = {parts: path for parts, path in files_below(root) if is_image(parts[-1])}
    for subset, file, folder in _coco_files(root):
        content = _load(file)
        try:
            categories = _read_categories(content)
            if names and sorted(categories.values()) != sorted(names):
                raise ValueError(f"its classes {', '.join(categories.values())} are not {', '.join(names)}, as before")
            names = names or list(categories.values())
            drawings = _draw_coco(content, categories, file)
            stems = _stems_below(list(drawings))
        except (KeyError, TypeError, ValueError, IndexError) as err:
            raise ValueError(f"label file '{file}': {err if isinstance(err, ValueError) else repr(err)}.") from err
        split = split_of(next((word for word in re.split(r"[^a-z]+", subset.lower()) if word in SPLITS), subset))
        images, masks = found.setdefault(split, ({}, {}))
        if repeated := masks.keys() & set(stems.values()):
            raise ValueError(f"'{file}' lists '{min(repeated)}', as another file of the split {split}; expected one.")
        inside = (subset, f"images/{subset}", split, f"images/{split}", "images", "data", "JPEGImages")
        folders = [folder, (*folder, "images"), *(tuple(path.split("/")) for path in inside), ()]
        for parts, drawing in drawings.items():
            masks[stems[parts]] = drawing
            places = ((*place, *name) for name in (parts, parts[-1:]) for place in folders)
            image = next((files[place] for place in places if place in files), None)
            if image is not None:
                images[stems[parts]] = image
        if len(set(images.values())) < len(images):
            raise ValueError(f"'{file}' names images of several folders, and one is there; put all where it says.")
    notes = ["where objects overlap, the smaller covers the larger"]
    if unlisted := len(files) - sum(len(images) for images, _ in found.values()):
        notes.append(f"left out: {unlisted} images that no annotation file lists")
    return _finish(found, names, options, root, notes)


def _read_categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Return names by id, without the one that Roboflow adds for all of them: a supercategory with no annotation."""
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    groups = {category.get("supercategory") for category in content["categories"]}
    return {
        category["id"]: str(category["name"])
        for category in sorted(content["categories"], key=lambda category: category["id"])
        if category["id"] in used or category.get("supercategory") != "none" or category["name"] not in groups
    }


def _draw_coco(content: Mapping[str, Any], categories: Mapping[int, str], file: AnyPath) -> dict[Names, Drawing]:
    """Return the drawing of each listed image, by the folders and the name in its `file_name`."""
    drawings: dict[Any, Drawing] = {}
    parts: dict[Any, Names] = {}
    for image in content["images"]:
        name = composed(PureWindowsPath(image["file_name"]).as_posix())
        parts[image["id"]] = tuple(part for part in name.split("/") if part not in ("", ".", ".."))
        height, width = image.get("height"), image.get("width")
        drawings[image["id"]] = Drawing(f"{name} of {file}", (height, width) if height and width else None)
    if len(set(parts.values())) < len(content["images"]):
        raise ValueError("it lists an image twice; expected each once")
    for annotation in sorted(content["annotations"], key=_area, reverse=True):
        if "segments_info" in annotation:
            raise ValueError("it is of panoptic segmentation; expected instances_*.json, with polygons")
        if annotation["image_id"] not in drawings or annotation["category_id"] not in categories:
            raise ValueError(f"an annotation names an image or category that is not listed: {annotation!r:.120}")
        drawing, name = drawings[annotation["image_id"]], categories[annotation["category_id"]]
        region = annotation.get("segmentation")
        if isinstance(region, dict):
            counts, (height, width) = region["counts"], region["size"]
            runs = RunLengths(0, counts if isinstance(counts, str) else tuple(counts), (height, width))
            drawing.regions.append((name, runs))
        elif region:
            for outline in region if isinstance(region[0], list) else [region]:
                drawing.outline(name, outline)
        else:
            drawing.left_out["annotations that are boxes only"] += 1
    if content["annotations"] and not any(drawing.regions for drawing in drawings.values()):
        count = len(content["annotations"])
        raise ValueError(f"none of its {count} annotations has a region; export them with polygons")
    return {parts[number]: drawing for number, drawing in drawings.items()}


def _area(annotation: Mapping[str, Any]) -> float:
    """Return the area of an object in pixels, as the file says it, or that of its box."""
    return float(annotation.get("area") or math.prod(annotation.get("bbox", (0, 0, 0, 0))[2:]))


# Label Studio: one JSON file of tasks, and a PNG file for each brush label -----------------------------------------


def find_label_studio(root: AnyPath) -> tuple[AnyPath, AnyPath] | None:
    """Return the folder and the JSON or JSON-MIN export in it."""
    for file in (path for path in list_folder(root) if _starts(path, TASKS_START)):
        keys = set(re.findall(r'"(annotation_id|annotations|data)"\s*:', read_text(file)))
        if keys >= {"annotations", "data"} or "annotation_id" in keys or _brush_files(dict(files_below(root))):
            return root, file
    return None


def _brush_files(files: Mapping[Names, AnyPath]) -> dict[tuple[str, str], dict[str, AnyPath]]:
    """Return brush PNGs by the ids of their task and annotation and by what their names end in: TAG-LABEL-N."""
    found: dict[tuple[str, str], dict[str, AnyPath]] = {}
    for parts, path in files.items():
        if match := BRUSH_FILE.fullmatch(parts[-1]):
            found.setdefault((match[1], match[2]), {})[match[3]] = path
    return found


def read_label_studio(found: tuple[AnyPath, AnyPath], options: ReadOptions) -> Source:
    """Read the ground truth or last annotation of each task: brush labels from PNGs, polygons, rectangles."""
    root, file = found
    files = dict(files_below(root))
    brushes = _brush_files(files)
    stems = _stems_below([parts for parts in files if is_image(parts[-1]) and not BRUSH_FILE.match(parts[-1])])
    images: dict[str, Any] = {stem: files[parts] for parts, stem in stems.items()}
    drawings: dict[str, Drawing] = {}
    unlabelled = several = 0
    try:
        for task, (name, annotations) in _read_tasks(_load(file)).items():
            stem = stems.get(_find_image(tuple(composed(name).split("/")), list(stems)), f"task {task}")
            if not annotations:  # of tasks that were exported without
                annotations = [((False, int(number)), number, ()) for of, number in brushes if of == str(task)]
            if not annotations:
                images.pop(stem, None)
                unlabelled += 1
                continue
            if stem in drawings:
                raise ValueError(f"task {task} and another are of '{name}'; expected one for each image")
            several += len(annotations) > 1
            _, annotation, results = max(annotations, key=lambda entry: entry[0])
            pictures = brushes.pop((str(task), str(annotation)), {})
            drawings[stem] = Drawing(f"task {task} of {file} ({name})", None)
            _draw_results(drawings[stem], f"task-{task}-annotation-{annotation}-by-USER", results, pictures)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        text = str(err) if isinstance(err, ValueError) else repr(err)
        raise ValueError(f"'{file}' cannot be read as an export of Label Studio: {text}.") from err
    notes = {
        f"left out: {unlabelled} tasks without annotation": unlabelled,
        f"{several} tasks have several annotations: the ground truth, or the last, was read": several,
        f"left out: the brush PNGs of {len(brushes)} other annotations": len(brushes),
    }
    said = [note for note, count in notes.items() if count]
    labels = sorted({name for drawing in drawings.values() for name, _ in drawing.regions})
    return _finish({"train": (images, drawings)}, labels, options, root, said)


def _read_tasks(content: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, list[Any]]]:
    """Return of each task the path of its image, and its annotations: rank, id, results with the name of their tag."""
    tasks: dict[int, tuple[str, list[Any]]] = {}
    for task in content:
        data = task.get("data", task)
        names = [unquote(value.split("?d=")[-1].split("?")[0]) for value in data.values() if isinstance(value, str)]
        name = next((name for name in names if is_image(name)), None)
        if name is None:
            raise ValueError(f"task {task.get('id')} names no image: {dict(data)!r:.80}")
        annotations = tasks.setdefault(task["id"], (name, []))[1]
        if "annotation_id" in task:  # JSON-MIN has a record for each annotation
            results = [(tag, value) for tag, of_tag in task.items() if isinstance(of_tag, list) for value in of_tag]
            annotations.append(((False, str(task.get("created_at"))), task["annotation_id"], results))
            continue
        for annotation in task.get("annotations") or ():
            if not annotation.get("was_cancelled"):
                results = [(r.get("from_name"), r | r.get("value", {})) for r in annotation.get("result") or ()]
                rank = (bool(annotation.get("ground_truth")), str(annotation.get("created_at")))
                annotations.append((rank, annotation["id"], results))
    return tasks


def _find_image(target: Names, names: Sequence[Names]) -> Names:
    """Return the image of a task by its name, without the prefix of uploads if need be, and by folders if several."""
    for last in (target[-1], PREFIX.sub("", target[-1])):
        same = [name for name in names if name[-1] == last]
        ranks = [len(os.path.commonprefix([name[-2::-1], target[-2::-1]])) for name in same]
        if ranks.count(max(ranks, default=0)) > 1:
            raise ValueError(f"there are several images '{last}'; expected one, or those of '{'/'.join(target)}'")
        if same:
            return same[ranks.index(max(ranks))]
    return ()


def _draw_results(
    drawing: Drawing, start: str, results: Sequence[tuple[str, Any]], pictures: dict[str, AnyPath]
) -> None:
    """Draw the results of an annotation in their order, then the PNGs of it that they do not name."""
    counts = Counter[str]()
    for tag, value in results:
        kind = next((key for key in REGION_LABELS if isinstance(value, dict) and key in value), None)
        if kind is None:
            continue  # an answer to another question
        name = "-".join(value[kind])
        drawing.size = (value["original_height"], value["original_width"])
        scale = np.array(drawing.size[::-1]) / 100  # of percent
        if kind == "brushlabels":
            ending = composed(re.sub(r"[/\\]", "-", f"{tag}-{name}-{counts[f'{tag}-{name}']}"))
            counts[f"{tag}-{name}"] += 1
            if ending not in pictures:
                raise ValueError(
                    f"there is no file {start}-{ending}.png for a brush label. "
                    'Export "Brush labels to PNG" too, and put its files into the folder'
                )
            drawing.regions.append((name, Stencil(0, pictures.pop(ending))))
        elif kind == "polygonlabels":
            drawing.outline(name, np.asarray(value["points"]) * scale)
        elif kind == "rectanglelabels":
            turn = math.radians(value.get("rotation") or 0)
            axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
            sides = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (value["width"], value["height"]) * scale
            drawing.outline(name, np.array([value["x"], value["y"]]) * scale + sides @ axes)
        else:
            drawing.left_out[f"regions of the type {kind}"] += 1
    for ending, picture in sorted(pictures.items()):
        drawing.regions.append((ending.partition("-")[2].rpartition("-")[0], Stencil(0, picture)))
