"""Prepare a public dataset, or a folder of pairs, as a folder that `datasets.load_dataset` loads.

Each pair is read, its mask mapped to the label set, both cropped and resized, and written. Nothing is left behind
after an error; an interrupted run is resumed by the same command.
"""

import functools
import hashlib
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from semseg_diffusers.data.crop_resize import CropResize, crop_resize
from semseg_diffusers.data.dataset_format import (
    SETTINGS_FILE,
    finish_dataset,
    make_split,
    pair_row,
    plain_load_note,
    save_pair,
)
from semseg_diffusers.data.label_mapping import LabelMapping, count_pixels, read_mapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import (
    MEANINGS,
    MaskEvidence,
    decide_orientation,
    decide_values,
    read_evidence,
)
from semseg_diffusers.data.merged_classes import merge_classes, numbers
from semseg_diffusers.data.polygons import RegionMask
from semseg_diffusers.data.readers import NAMED, Pair, Source, read_file, read_source
from semseg_diffusers.data.readers.pairs import ImageFile
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.pipelines.image_inputs import to_rgb
from semseg_diffusers.pipelines.mask_inputs import image_errors, open_image, orientation, rotate
from semseg_diffusers.utils.archives import ArchivePath, close_archives
from semseg_diffusers.utils.files import Staging, package_version, resumable_folder, staging_folder
from semseg_diffusers.utils.parallel import map_in_order
from semseg_diffusers.utils.progress import progress_bar


STREAMED = 32  # pairs of a stream from which the reading of all is decided
MOST_UNKNOWN = 0.25  # share of unknown pixels above which prepare warns
MIN_DRIVES, MIN_FRAMES = 3, 5  # from which names of files count as those of drives; frames of each on average
FRAME_NAME = re.compile(r"(?P<drive>.*\d.*?)[_.\- ]+[A-Za-z]*\d+")  # such as 0016E5_08029; a drive has a number
DECODED_SCALE = 2  # an image is decoded at this many times its new size, or more


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare_dataset`."""

    splits: dict[str, int]  # pairs in each split
    enlarged: int  # pairs that were smaller than the resolution
    unmatched: tuple[Any, ...]  # files left out
    data_format: str = ""  # format of the source
    notes: tuple[str, ...] = ()  # what the reader found and left out
    resumed: int = 0  # pairs of an earlier run
    mask_values: tuple[str, ...] = ()  # what the numbers of masks are
    said: tuple[str, ...] = ()  # what was decided about the masks, and warnings about what they hold


def prepare_dataset(settings: PrepareSettings, progress: bool = False) -> PrepareReport:
    """Prepare a dataset.

    Args:
        settings (`PrepareSettings`): source, output and options.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        `PrepareReport`: counts, and what was left out.

    Raises:
        ValueError: the source does not have the format's layout, its classes have nothing in common with those of
            `map_to`, more than `max_unknown` of the pixels would become unknown, or files cannot be used (the first
            five are named).
        OSError: for example, the disk is full; nothing of the dataset is left.
    """
    target_folder = Path(settings.output).resolve()
    for root in (Path(path).resolve() for path in settings.source if Path(path).exists()):
        if root == target_folder or root in target_folder.parents or target_folder in root.parents:
            raise ValueError(f"--output '{target_folder}' and --source '{root}' overlap; expected separate folders.")
    target = None if settings.map_to is None else LabelSet.from_name(settings.map_to)
    try:
        classes = None if settings.mapping is None else read_mapping(settings.mapping)
        source = read_source(
            settings.source, settings.format, settings.labels, settings.skip_unmatched,
            ids=numbers(classes or {}), **settings.reader_options(),
        )  # fmt: skip
        mapping = None
        if classes is not None:
            source, mapping = merge_classes(source, classes, target)
            target = mapping.target
        elif target is not None:
            mapping = LabelMapping(source.labels, target)
        inspect = functools.partial(_inspect_in_processes, num_workers=settings.num_workers, progress=progress)
        source, decided = decide_source(source, inspect, settings.mask_values, settings.mask_orientation)
        validation, split_notes = choose_validation(source, settings)
        with resumable_folder(
            settings.output,
            _recipe(settings, source, mapping, validation),
            SETTINGS_FILE,
            "prepared dataset",
            settings.overwrite,
        ) as staging:
            rows, results = _make_pairs(settings, source, validation, mapping, staging, progress)
            notes = source.notes + split_notes
            if mapping is not None:
                pixels = np.sum([result["pixels"] for result in results], axis=0)
                to = f"classes of {settings.mapping}" if settings.mapping else f"label set {settings.map_to}"
                if mapping.lost_share(pixels) > settings.max_unknown:
                    raise ValueError(
                        f"nothing was written, because mapped to the {to} most pixels would be lost: "
                        f"{mapping.describe(pixels)}. Name these classes in a file, --mapping, or allow it: "
                        "--max_unknown 1."
                    )
                notes += (f"masks mapped to the {to}: {mapping.describe(pixels)}",)
            report = PrepareReport(
                splits={split: len(of_split) for split, of_split in rows.items()},
                enlarged=sum(result["enlarged"] for result in results),
                mask_values=tuple(filter(None, (source.mask_values, *source.decided))),
                said=(*decided, *_describe_classes(results, target or source.labels)),
                unmatched=source.unmatched,
                data_format=source.data_format,
                notes=notes,
                resumed=len(staging.done),
            )
            finish_dataset(staging.folder, rows, target or source.labels, _record(settings, report, mapping))
    finally:
        close_archives()
    return report


def decide_source(
    source: Source,
    inspect: Callable[[Sequence[Pair], Source], Iterable[MaskEvidence]],
    mask_values: str | None = None,
    mask_orientation: str | None = None,
) -> tuple[Source, tuple[str, ...]]:
    """Return a source with what its masks, or options, say about all of them, and what to tell the user."""
    if mask_values is not None:
        source = replace(source, mask_values=mask_values)
    if mask_orientation is not None:
        source = replace(source, stored_masks=mask_orientation == "stored")
    pairs = tuple(itertools.islice(source.pairs, STREAMED)) if source.count is None else source.pairs
    evidence = list(inspect(pairs, replace(source, pairs=(), unmatched=(), notes=())))  # type: ignore[arg-type]
    notes: tuple[str, ...] = ()
    if source.mask_values is None:
        decided, notes = decide_values(evidence)
        source = replace(source, decided=decided)
    if mask_orientation is None:
        is_stored, more = decide_orientation(evidence)
        source, notes = replace(source, stored_masks=is_stored), (*notes, *more)
    return source, notes


def inspect_values(pair: Pair, source: Source) -> MaskEvidence:
    """Return what a pair says about how masks are read; nothing where a file is broken, which is reported later."""
    evidence = MaskEvidence(str(pair.mask))
    if isinstance(pair.mask, RegionMask):
        return evidence
    try:
        rotation, size = image_orientation(pair.image)
        if source.mask_values is not None and rotation == 1:
            return evidence
        mask = open_image(read_file(pair.mask), "mask", pair.mask)
        if source.mask_values is None:
            evidence = read_evidence(source.mask_labels, mask, pair.mask)
        if rotation == 1 or image_orientation(pair.mask)[0] != 1:  # of a mask that is rotated by its own
            return evidence
        upright_size = size[::-1] if rotation > 4 else size
        return replace(evidence, fits_stored=mask.size == size, fits_upright=mask.size == upright_size)
    except (OSError, ValueError):
        return evidence


def image_orientation(file: Any) -> tuple[int, tuple[int, int]]:
    """Return the EXIF orientation of an image file, and its stored width and height, without decoding it."""
    with (
        image_errors(file, "image"),
        Image.open(file if isinstance(file, Path) else io.BytesIO(read_file(file))) as image,
    ):
        return orientation(image), image.size


def _inspect_in_processes(
    pairs: Sequence[Pair], source: Source, num_workers: int, progress: bool
) -> Iterator[MaskEvidence]:
    work = functools.partial(inspect_values, source=source)
    inspected = map_in_order(work, pairs, num_workers, len(pairs))
    for _, evidence in progress_bar(inspected, total=len(pairs), desc="reading mask values", disable=not progress):
        if isinstance(evidence, ValueError):
            raise evidence
        yield evidence


def _describe_classes(results: Sequence[Mapping[str, Any]], labels: LabelSet) -> Iterator[str]:
    """Yield warnings about what no mask, or hardly any, labels; raise if nothing is labelled."""
    pixels = np.sum([result["classes"] for result in results], axis=0)  # (C + 1,)
    total, unknown = int(pixels.sum()), int(pixels[-1])
    if unknown == total:
        raise ValueError(
            f"all pixels of all {len(results)} masks are unknown, so nothing is labelled and nothing was written. "
            "Do --labels, --tolerance, --map_to and --mask_values suit the masks? `check` lists what they hold."
        )
    empty = sum(result["classes"][-1] == sum(result["classes"]) for result in results)
    if unknown > MOST_UNKNOWN * total or empty:
        some = f", {empty} of {len(results)} masks everywhere" if empty else ""
        yield f"warning: {100 * unknown / total:.3g} % of the pixels are unknown{some}"
    absent = [name for name, count in zip(labels.names, pixels, strict=False) if not count]
    if absent:
        yield f"{len(absent)} of {labels.num_classes} classes occur in no mask: {', '.join(absent)}"


def choose_validation(source: Source, settings: PrepareSettings) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the stems of the training pairs that become `val`, selected by their stems and the seed only, and notes.

    Of a source with drives, whole ones are taken, since neighbouring frames show the same street: each that brings the
    count nearer to the share, but not all; the smallest one if none does. Drives are the folders of the source, or
    what the names of its files say, if that is clear and drives come near to the share.
    """
    if settings.val_fraction == 0:
        return frozenset(), ()
    if settings.streaming:
        raise ValueError("--val_fraction needs all names before the first pair; leave out --streaming.")
    names = [(pair.split, pair.stem) for pair in source.pairs]
    if any(split != "train" for split, _ in names):
        raise ValueError("the source has its own splits; --val_fraction is for sources without.")
    stems = [stem for _, stem in names]
    count = max(round(settings.val_fraction * len(stems)), 1)
    if count == len(stems):
        raise ValueError(f"--val_fraction {settings.val_fraction} leaves none of the {len(stems)} pairs for training.")
    of_folders = {pair.stem: drive for pair in source.pairs if (drive := pair.attributes.get("drive"))}
    drives = of_folders or drives_in_names(stems)
    chosen = _choose_groups([drives.get(stem, stem) for stem in stems], stems, count, settings.seed)
    if not of_folders and not count / 2 <= len(chosen) <= 2 * count:
        drives, chosen = {}, _choose_groups(stems, stems, count, settings.seed)
    if not drives or of_folders:
        return frozenset(chosen), ()
    taken = sorted({drives[stem] for stem in chosen})
    shown = ", ".join(taken[:NAMED]) + (", ..." if len(taken) > NAMED else "")
    whole = f"{len(taken)} of {len(set(drives.values()))} drives, by the names of the files: {shown}"
    return frozenset(chosen), (f"val is {whole}; neighbouring frames show the same street",)


def drives_in_names(stems: Sequence[str]) -> dict[str, str]:
    """Return the drive of each frame, if all names show it: 2011_09_26_drive_0005 of 2011_09_26_drive_0005_000012."""
    matches = {stem: FRAME_NAME.fullmatch(stem) for stem in stems}
    drives = {stem: match["drive"] for stem, match in matches.items() if match}
    count = len(set(drives.values()))
    is_clear = len(drives) == len(stems) and count >= MIN_DRIVES and len(stems) >= MIN_FRAMES * count
    return drives if is_clear else {}


def _choose_groups(groups: Sequence[str], stems: Sequence[str], count: int, seed: int) -> list[str]:
    """Return the stems of whole groups, about `count` of them, in the order of the seed."""
    members: dict[str, list[str]] = {}
    for group, stem in zip(groups, stems, strict=True):
        members.setdefault(group, []).append(stem)
    if len(members) == 1:  # a single drive
        members = {stem: [stem] for stem in stems}
    order = sorted(members, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    chosen: list[str] = []
    taken = 0
    for name in order:
        size = len(members[name])
        if taken < len(members) - 1 and abs(len(chosen) + size - count) < abs(len(chosen) - count):
            chosen += members[name]
            taken += 1
    return chosen or members[min(order, key=lambda name: len(members[name]))]


def _recipe(
    settings: PrepareSettings, source: Source, mapping: LabelMapping | None, validation: frozenset[str]
) -> dict[str, Any]:
    """Return everything the prepared dataset depends on: an interrupted run is resumed only if it is the same."""
    unrelated = ("output", "overwrite", "num_workers")
    return {
        **{name: value for name, value in asdict(settings).items() if name not in unrelated},
        "source": [os.path.abspath(path) if os.path.exists(path) else path for path in settings.source],
        "format": source.data_format,
        "labels": [source.labels.to_config(), source.labels.changed_ids],
        "map_to": None if mapping is None else [mapping.ids, mapping.target.to_config()],
        "pairs": _fingerprint(source),
        "validation": sorted(validation),
        "versions": [package_version(), PIL.__version__, np.__version__],
    }


def _fingerprint(source: Source) -> str:
    """Return a hash of the pairs and their files: names, sizes and times, or checksums."""
    if not isinstance(source.pairs, tuple):
        return source.pairs.fingerprint()  # type: ignore[attr-defined]
    digest = hashlib.sha256()
    for pair in source.pairs:
        facts: list[Any] = [pair.split, pair.stem, dict(pair.attributes)]
        for file in (pair.image, pair.mask):
            if isinstance(file, (ArchivePath, RegionMask)):
                facts.append((str(file), *file.fingerprint()))
            elif isinstance(file, Path):
                facts.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
        digest.update(repr(tuple(facts)).encode())
    return digest.hexdigest()


def _content_hash(pair: Pair) -> str:
    """Return a hash of the files of a pair: sizes and times may stay when a file is changed in place."""
    digest = hashlib.sha256()
    for file in (pair.image, pair.mask):
        digest.update(repr(file.fingerprint()).encode() if isinstance(file, RegionMask) else read_file(file))
    return digest.hexdigest()


def _record(settings: PrepareSettings, report: PrepareReport, mapping: LabelMapping | None) -> dict[str, Any]:
    """Return the content of `prepare.json`, without the number of workers, which changes nothing."""
    names = (
        "fit", "labels", "map_to", "mapping", "annotations", "tolerance", "val_fraction", "seed", "mask_values",
        "ignore_index", "mask_orientation", "image_column", "mask_column", "skip_unmatched",
    )  # fmt: skip
    return {
        "format": report.data_format,
        "source": settings.source[0] if len(settings.source) == 1 else list(settings.source),
        "resolution": "native" if settings.resolution is None else list(settings.resolution),
        **{name: getattr(settings, name) for name in names},
        "mapped_classes": None if mapping is None else [list(names) for names in mapping.names],
        "enlarged": report.enlarged,
        "unmatched": [path.name for path in report.unmatched],
        "notes": list(report.notes),
    }


def _make_pairs(
    settings: PrepareSettings,
    source: Source,
    validation: frozenset[str],
    mapping: LabelMapping | None,
    staging: Staging,
    progress: bool,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Prepare the missing pairs; return the rows of each split, and the result of `make_pair` for all pairs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    alone = replace(source, pairs=(), unmatched=(), notes=())  # small, for other processes
    work = functools.partial(make_pair, folder=staging.folder, source=alone, settings=settings, mapping=mapping)
    with progress_bar(total=source.count, desc="preparing", unit="pair", disable=not progress) as bar:

        def missing() -> Iterator[Pair]:
            """Yield the pairs to prepare; finished ones are only counted."""
            for pair in source.pairs:
                if pair.stem in validation:
                    pair = replace(pair, split="val")
                if pair.split not in rows:
                    make_split(staging.folder, pair.split)
                rows.setdefault(pair.split, []).append({**pair_row(pair.stem), **pair.attributes})
                done = staging.done.get((pair.split, pair.stem))
                if done is not None and done.get("content") != _content_hash(pair):
                    done = None
                    del staging.done[pair.split, pair.stem]
                if done is None:
                    yield pair
                else:
                    results.append(done)
                    bar.update()

        left = None if source.count is None else source.count - len(staging.done)
        for pair, result in map_in_order(work, missing(), settings.num_workers, left):
            bar.update()
            if not isinstance(result, ValueError):
                row = pair_row(pair.stem)
                staging.note(pair.split, pair.stem, (row["image_file_name"], row["mask_file_name"]), **result)
                results.append(result)
                continue
            failures.append(str(result))
            if len(failures) == NAMED:
                break
    if failures:
        more = len(failures) == NAMED or source.count is None
        shown = f"{len(failures)} files or more" if more else f"{len(failures)} of {source.count} pairs"
        raise ValueError(f"{shown} cannot be used, and nothing was written:\n- " + "\n- ".join(failures))
    if not rows:
        raise ValueError(f"{', '.join(settings.source)} has no pairs.")
    return rows, results


def make_pair(
    pair: Pair, folder: Path, source: Source, settings: PrepareSettings, mapping: LabelMapping | None = None
) -> dict[str, Any]:
    """Read a pair, map its mask to another label set if asked to, crop and resize both, and write them.

    Returns `enlarged`, whether it was smaller than the resolution, and the hash of its `content`; with a mapping
    `pixels` of each class before it.
    """
    content = _content_hash(pair)  # first: what changes while it is read is read again after a stop
    image, crop = read_image(pair.image, settings.resolution, settings.fit)
    ids, labels = read_ids(pair, source, crop, settings.tolerance), source.labels
    enlarged = settings.resolution is not None and crop.scale < 1
    result: dict[str, Any] = {"enlarged": enlarged, "content": content}
    if mapping is not None:
        result["pixels"] = mapping.count(ids).tolist()
        ids, labels = mapping.map(ids), mapping.target
    result["classes"] = count_pixels(ids, labels.num_classes).tolist()
    ids = crop.pad_ids(ids, labels.ignore_index)
    save_pair(folder / pair.split, pair.stem, crop.resize_image(image), ids, labels)
    return result


def read_image(
    file: ImageFile, resolution: tuple[int, int] | None, fit: str = "crop"
) -> tuple[Image.Image, CropResize]:
    """Read an image as RGB in its EXIF orientation, and decide how it is brought to the resolution.

    A JPEG that will be much reduced is decoded at a smaller size.
    """
    crops: list[CropResize] = []

    def smallest(height: int, width: int) -> tuple[int, int]:
        try:
            crops.append(crop_resize(height, width, resolution, fit))
        except ValueError as err:
            raise ValueError(f"image '{file}': {err}") from err
        scale = max(1.0, crops[0].scale / DECODED_SCALE)
        return int(height / scale), int(width / scale)

    image = to_rgb(open_image(read_file(file), "image", file, smallest), f"image '{file}'")
    return image, crops[0]


def read_ids(pair: Pair, source: Source, crop: CropResize, tolerance: float = 0.0) -> np.ndarray:
    """Read the mask of a pair as class ids, uint8, at the rows and columns that the crop shows."""
    rows, columns = crop.rows, crop.columns
    if isinstance(pair.mask, RegionMask):
        return pair.mask.rasterize(*crop.frame, rows, columns)
    ids = source.encode(read_mask_file(pair, source), pair.mask, tolerance)
    if ids.shape != crop.frame:
        raise ValueError(
            f"image '{pair.image}' is {crop.frame[0]} x {crop.frame[1]}, its mask '{pair.mask}' {ids.shape[0]} x "
            f"{ids.shape[1]} (height x width); expected the same size. Was one of them resized, cropped or rotated?"
        )
    return ids[rows[:, None], columns]


def read_mask_file(pair: Pair, source: Source) -> Image.Image:
    """Return the image in which the mask of a pair is stored, rotated with the pair's image if the source says so."""
    mask = open_image(read_file(pair.mask), "mask", pair.mask)  # type: ignore[arg-type]
    if source.stored_masks and image_orientation(pair.mask)[0] == 1:
        return rotate(mask, image_orientation(pair.image)[0])
    return mask


def run(settings: PrepareSettings) -> int:
    """Prepare a dataset and print what was read and left out; returns the exit code."""
    try:
        report = prepare_dataset(settings, progress=True)
    except (KeyboardInterrupt, SystemExit) as stop:
        folder = staging_folder(settings.output)
        kept = f"; finished pairs are kept in {folder}, and the same command resumes" if folder.is_dir() else ""
        sys.stderr.write(f"\nstopped{kept}\n")
        return 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    counts = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    values = f", masks as {' and '.join(MEANINGS[way] for way in report.mask_values)}" if report.mask_values else ""
    lines = [f"{counts} pairs in {settings.output}, read as {report.data_format}{values}", *report.notes, *report.said]
    if report.resumed:
        lines.append(f"{report.resumed} of them are from a run that was stopped")
    if report.unmatched:
        names = ", ".join(path.name for path in report.unmatched[:NAMED])
        lines.append(f"left out, without partner: {len(report.unmatched)} files ({names})")
    if report.enlarged and settings.resolution is not None:
        height, width = settings.resolution
        size = height if height == width else f"{height}x{width}"
        lines.append(f"warning: {report.enlarged} pairs were smaller than {size} and were enlarged")
    sys.stdout.write("\n".join(lines) + "\n" + plain_load_note(settings.output))
    return 0
