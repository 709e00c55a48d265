"""Prepare a public dataset, or a folder of pairs, as a folder that `datasets.load_dataset` loads.

Images are centre-cropped to the aspect ratio and resized with an antialiased filter, masks by nearest neighbour. Pairs
smaller than the resolution are enlarged, and counted. Nothing is left behind after an error; an interrupted run is
resumed by the same command.
"""

import functools
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from semseg_diffusers.data.crop_resize import Placement, place_frame
from semseg_diffusers.data.dataset_format import (
    SETTINGS_FILE,
    finish_dataset,
    make_split,
    pair_row,
    save_pair,
)
from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers import (
    NAMED,
    Drawing,
    Pair,
    Source,
    read_file,
    read_source,
)
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.utils.archives import ArchivePath, close_archives
from semseg_diffusers.utils.files import Staging, package_version, resumable_folder, staging_folder
from semseg_diffusers.utils.images import decode_picture
from semseg_diffusers.utils.parallel import map_in_order
from semseg_diffusers.utils.progress import progress_bar


def assign_validation(pairs: Iterable[Pair], fraction: float, seed: int, streaming: bool) -> Iterable[Pair]:
    """Move a share of the training pairs to `val`, selected by their stems and the seed only.

    Args:
        pairs (`Iterable[Pair]`): All pairs.
        fraction (`float`): The share, 0 or more, below 1.
        seed (`int`): Selects the pairs.
        streaming (`bool`): Whether the pairs are a stream, whose names are not known in advance.

    Raises:
        ValueError: The source has splits, nothing is left for training, or it is a stream.
    """
    if fraction == 0:
        return pairs
    if streaming:
        raise ValueError("--val_fraction needs all names before the first pair; leave out --streaming.")
    names = [(pair.split, pair.stem) for pair in pairs]
    if any(split != "train" for split, _ in names):
        raise ValueError("the source has its own splits; --val_fraction is for sources without.")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name[1]}".encode()).digest())
    count = max(round(fraction * len(names)), 1)
    if count == len(names):
        raise ValueError(f"--val_fraction {fraction} leaves none of the {len(names)} pairs for training.")
    return _Divided(pairs, frozenset(stem for _, stem in order[:count]))


@dataclass(frozen=True)
class _Divided(Iterable):
    """Pairs some of which, by stem, are for validation."""

    pairs: Iterable[Pair]
    validation: frozenset[str]

    def __iter__(self) -> Iterator[Pair]:
        for pair in self.pairs:
            yield replace(pair, split="val") if pair.stem in self.validation else pair

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        return fingerprint_of(self.pairs)


def fingerprint_of(pairs: Iterable[Pair]) -> str:
    """Return a fingerprint of the pairs and their files: names, sizes and times, or checksums."""
    if not isinstance(pairs, tuple):
        return pairs.fingerprint()
    digest = hashlib.sha256()
    for pair in pairs:
        facts = (pair.split, pair.stem, dict(pair.attributes), *(_facts(file) for file in (pair.photo, pair.mask)))
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _facts(file: object) -> tuple:
    if isinstance(file, ArchivePath):
        return (str(file), *file.fingerprint())
    if isinstance(file, Drawing):
        return (file.source, file.fingerprint())
    status = os.stat(file)
    return (str(file), status.st_size, status.st_mtime_ns)


PHOTO_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits; others would lose precision
ID_MODES = ("L", "P", "I", "I;16", "I;16B", "I;16L")  # masks of one channel
SPARE = 2  # an image is decoded at this many times its new size, or more


@dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare_dataset`."""

    splits: dict[str, int]  # pairs in each split
    enlarged: int  # pairs that were smaller than the resolution
    unmatched: tuple[Path, ...]  # files left out
    data_format: str = ""  # format of the source
    notes: tuple[str, ...] = ()  # what the reader found and left out
    resumed: int = 0  # pairs of an earlier run


def prepare_dataset(settings: PrepareSettings, progress: bool = False) -> PrepareReport:
    """Prepare a dataset.

    Args:
        settings (`PrepareSettings`): source, output and options.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        `PrepareReport`: counts, and what was left out.

    Raises:
        ValueError: the source does not have the format's layout, its classes have nothing in common with those of
            `map_to`, or files cannot be used (the first five are named).
        OSError: for example, the disk is full; nothing of the dataset is left.
    """
    _check_separate(settings)
    target = None if settings.map_to is None else LabelSet.from_name(settings.map_to)
    try:
        source = read_source(
            _source(settings),
            settings.format,
            settings.labels,
            settings.skip_unmatched,
            annotations=settings.annotations,
            image_column=settings.image_column,
            mask_column=settings.mask_column,
            streaming=settings.streaming,
        )
        source = replace(
            source, pairs=assign_validation(source.pairs, settings.val_fraction, settings.seed, settings.streaming)
        )
        mapping = None if target is None else LabelMapping(source.labels, target)
        with resumable_folder(
            settings.output, _recipe(settings, source, mapping), SETTINGS_FILE, "prepared dataset", settings.overwrite
        ) as staging:
            rows, enlarged, pixels, resumed = _make_pairs(settings, source, mapping, staging, progress)
            notes = source.notes
            if mapping is not None:
                notes += (f"masks mapped to the label set {settings.map_to}: {mapping.describe(pixels)}",)
            report = PrepareReport(
                {split: len(lines) for split, lines in rows.items()},
                enlarged,
                source.unmatched,
                source.data_format,
                notes,
                resumed,
            )
            finish_dataset(staging.folder, rows, target or source.labels, _record(settings, report, mapping))
    finally:
        close_archives()
    return report


def _check_separate(settings: PrepareSettings) -> None:
    target = Path(settings.output).resolve()
    for source in settings.source:
        root = Path(source).resolve()
        if Path(source).exists() and (root == target or root in target.parents or target in root.parents):
            raise ValueError(f"--output '{target}' and --source '{root}' overlap; expected separate folders.")


def _source(settings: PrepareSettings) -> str | tuple[str, ...]:
    return settings.source[0] if len(settings.source) == 1 else settings.source


def _record(settings: PrepareSettings, report: PrepareReport, mapping: LabelMapping | None) -> dict:
    """Return the content of `prepare.json`, without the number of workers, which changes nothing."""
    return {
        "format": report.data_format,
        "source": settings.source[0] if len(settings.source) == 1 else list(settings.source),
        "resolution": "native" if settings.resolution is None else list(settings.resolution),
        "fit": settings.fit,
        "labels": settings.labels,
        "map_to": settings.map_to,
        "mapped_classes": None if mapping is None else [list(names) for names in mapping.names],
        "annotations": settings.annotations,
        "tolerance": settings.tolerance,
        "val_fraction": settings.val_fraction,
        "seed": settings.seed,
        "enlarged": report.enlarged,
        "unmatched": [path.name for path in report.unmatched],
        "notes": list(report.notes),
    }


def _recipe(settings: PrepareSettings, source: Source, mapping: LabelMapping | None) -> dict:
    """Return everything the prepared dataset depends on: an interrupted run is resumed only if it is the same."""
    kept = {
        name: value for name, value in asdict(settings).items() if name not in ("output", "overwrite", "num_workers")
    }
    return {
        **kept,
        "source": [os.path.abspath(path) if os.path.exists(path) else path for path in settings.source],
        "format": source.data_format,
        "labels": source.labels.to_config(),
        "map_to": None if mapping is None else [mapping.ids, mapping.target.to_config()],
        "pairs": fingerprint_of(source.pairs),
        "versions": [package_version(), PIL.__version__, np.__version__],
    }


# The work ----------------------------------------------------------------------------------------------------------


def _make_pairs(
    settings: PrepareSettings, source: Source, mapping: LabelMapping | None, staging: Staging, progress: bool
) -> tuple[dict[str, list[dict]], int, int | np.ndarray, int]:
    """Prepare the missing pairs.

    Returns:
        rows by split, number of enlarged pairs, pixels of each class before the mapping (0 without one), number of
        pairs of an earlier run.
    """
    try:
        count = len(source.pairs)
    except TypeError:  # a stream
        count = None
    work = functools.partial(
        make_pair,
        folder=staging.folder,
        source=replace(source, pairs=(), unmatched=(), notes=()),
        resolution=settings.resolution,
        fit=settings.fit,
        tolerance=settings.tolerance,
        mapping=mapping,
    )
    rows: dict[str, list[dict]] = {}
    failures: list[str] = []
    enlarged = pixels = resumed = 0

    def add(facts: dict) -> None:
        nonlocal enlarged, pixels
        enlarged += facts["enlarged"]
        if mapping is not None:
            pixels = pixels + np.array(facts["pixels"])

    with progress_bar(total=count, desc="preparing", unit="pair", disable=not progress) as bar:

        def missing() -> Iterator[Pair]:
            """Yield the pairs to prepare; finished ones get their rows on the way."""
            nonlocal resumed
            for pair in source.pairs:
                lines = rows.setdefault(pair.split, [])
                if not lines:
                    make_split(staging.folder, pair.split)
                lines.append({**pair_row(pair.stem), **pair.attributes})
                done = staging.done.get((pair.split, pair.stem))
                if done is None:
                    yield pair
                else:
                    add(done)
                    resumed += 1
                    bar.update()

        left = None if count is None else count - len(staging.done)
        for pair, result in map_in_order(work, missing(), settings.num_workers, left):
            if isinstance(result, ValueError):
                failures.append(str(result))
                if len(failures) == NAMED:
                    break
            else:
                row = pair_row(pair.stem)
                staging.note(pair.split, pair.stem, (row["image_file_name"], row["mask_file_name"]), **result)
                add(result)
            bar.update()
    if failures:
        if len(failures) == NAMED or count is None:
            shown = f"{len(failures)} files or more"
        else:
            shown = f"{len(failures)} of {count} pairs"
        raise ValueError(f"{shown} cannot be used, and nothing was written:\n- " + "\n- ".join(failures))
    if not rows:
        raise ValueError(f"'{_source(settings)}' has no pairs.")
    return rows, enlarged, pixels, resumed


def make_pair(
    pair: Pair,
    folder: Path,
    source: Source,
    resolution: tuple[int, int] | None,
    fit: str,
    tolerance: float,
    mapping: LabelMapping | None = None,
) -> dict:
    """Read a pair, crop and resize it, map it to another label set if asked to, and write it.

    Returns:
        `enlarged`, whether it was smaller than the resolution; with a mapping `pixels` of each class before it.

    Raises:
        ValueError: a file cannot be used.
    """
    placement: list[Placement] = []

    def choose(height: int, width: int) -> Placement:
        try:
            placement.append(place_frame(height, width, resolution, fit))
        except ValueError as err:
            raise ValueError(f"photo '{pair.photo}': {err}") from err
        return placement[0]

    photo = read_photo(pair.photo, choose)
    rows, columns = placement[0].rows, placement[0].columns
    ids = read_ids(
        pair, source.labels, placement[0].frame, source.changed_ids, source.file_labels, tolerance, rows, columns
    )
    facts = {"enlarged": resolution is not None and placement[0].scale < 1}
    labels = source.labels
    if mapping is not None:
        facts["pixels"] = mapping.count(ids).tolist()
        ids, labels = mapping.map(ids), mapping.target
    save_pair(
        folder / pair.split,
        pair.stem,
        placement[0].place_photo(photo),
        placement[0].pad_ids(ids, labels.ignore_index),
        labels,
    )
    return facts


def read_photo(place, choose: Callable[[int, int], Placement]) -> Image.Image:
    """Read an image as RGB in its EXIF orientation; a JPEG that will be much reduced is decoded at a smaller size.

    Args:
        place: a path, a file in an archive, or an encoded image.
        choose: called with the height and width of the frame; returns its crop.

    Raises:
        ValueError: it cannot be read, or has more than 8 bits per channel.
    """

    def smallest(height: int, width: int) -> tuple[int, int]:
        scale = max(1.0, choose(height, width).scale / SPARE)
        return int(height / scale), int(width / scale)

    photo = decode_picture(read_file(place), "photo", place, smallest)
    if photo.mode not in PHOTO_MODES:
        raise ValueError(f"photo '{place}' has the image mode {photo.mode}; expected 8 bits per channel. Convert it.")
    return photo.convert("RGB")


def read_ids(
    pair: Pair,
    labels: LabelSet,
    frame: tuple[int, int],
    changed_ids: Mapping[int, int],
    file_labels: LabelSet | None,
    tolerance: float,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Read the mask of a pair as class ids at some rows and columns of its frame.

    Args:
        pair (`Pair`)
        labels (`LabelSet`): The resulting classes.
        frame (`tuple[int, int]`): Height and width of the image, which the mask must have too.
        changed_ids (`Mapping[int, int]`): Id in the file -> id in `labels`.
        file_labels (`LabelSet`, *optional*): The label set of the file's colours, if it is another.
        tolerance (`float`): See `LabelSet.encode`.
        rows, columns (`np.ndarray`): Pixel numbers.

    Returns:
        `np.ndarray`: (len(rows), len(columns)) uint8.

    Raises:
        ValueError: The file cannot be read, has values that are not classes, or has another size.
    """
    if isinstance(pair.mask, Drawing):
        return pair.mask.draw(*frame, rows, columns)
    picture = decode_picture(read_file(pair.mask), "mask", pair.mask)
    if file_labels is not None:
        ids = change_ids(file_labels.encode(picture, tolerance=tolerance, source=pair.mask), changed_ids)
    else:
        if changed_ids and picture.mode in ID_MODES:
            picture = change_ids(np.asarray(picture), changed_ids)
        ids = labels.encode(picture, tolerance=tolerance, source=pair.mask)  # (H, W)
    if ids.shape != frame:
        raise ValueError(
            f"photo '{pair.photo}' is {frame[0]} x {frame[1]}, its mask '{pair.mask}' {ids.shape[0]} x "
            f"{ids.shape[1]} (height x width); expected the same size. Was one of them resized, cropped or rotated?"
        )
    return ids[rows[:, None], columns]


def change_ids(ids: np.ndarray, changed_ids: Mapping[int, int]) -> np.ndarray:
    """Return ids with some replaced by others."""
    if ids.dtype == np.uint8:
        table = np.arange(256, dtype=np.uint8)
        table[list(changed_ids)] = list(changed_ids.values())
        return table[ids]
    changed = ids.copy()
    for old, new in changed_ids.items():
        changed[ids == old] = new
    return changed


def run(settings: PrepareSettings) -> int:
    """Prepare a dataset and print what was read and left out; returns the exit code."""
    try:
        report = prepare_dataset(settings, progress=True)
    except (KeyboardInterrupt, SystemExit) as stop:
        folder = staging_folder(settings.output)
        kept = f"; finished pairs are kept in {folder}, and the same command resumes" if folder.is_dir() else ""
        sys.stderr.write(f"\nstopped{kept}\n")
        return 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.code
    counts = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    sys.stdout.write(f"{counts} pairs in {settings.output}, read as {report.data_format}\n")
    for note in report.notes:
        sys.stdout.write(f"{note}\n")
    if report.resumed:
        sys.stdout.write(f"{report.resumed} of them were there from a run that was stopped\n")
    if report.unmatched:
        names = ", ".join(path.name for path in report.unmatched[:NAMED])
        sys.stdout.write(f"left out, without partner: {len(report.unmatched)} files ({names})\n")
    if report.enlarged:
        sys.stdout.write(f"warning: {report.enlarged} pairs were smaller than --resolution and were enlarged\n")
    return 0
