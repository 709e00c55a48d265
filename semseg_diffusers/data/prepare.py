"""Turns a public data set, or a folder of pairs, into a prepared folder that `datasets.load_dataset` reads.

Photos are cropped around the centre to the aspect and resized with an antialiased filter, masks to the nearest pixel.
Pairs smaller than the resolution are enlarged, and counted. After an error nothing is left behind; a run that was
stopped or killed goes on when the same command is given again.
"""

import argparse
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

from semseg_diffusers.data.crop_resize import FITS, Placement, place_frame
from semseg_diffusers.data.dataset_format import (
    finish_dataset,
    make_split,
    package_version,
    pair_row,
    save_pair,
)
from semseg_diffusers.data.label_mapping import LabelMapping
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.options import parse_resolution
from semseg_diffusers.data.readers import (
    ANNOTATIONS,
    FORMATS,
    NAMED,
    Drawing,
    Pair,
    Source,
    read_file,
    read_source,
)
from semseg_diffusers.utils.archives import ArchivePath, close_archives
from semseg_diffusers.utils.files import Staging, resumable_dataset, staging_folder
from semseg_diffusers.utils.images import decode_picture
from semseg_diffusers.utils.parallel import map_in_order
from semseg_diffusers.utils.progress import progress_bar


def assign_validation(pairs: Iterable[Pair], fraction: float, seed: int, streaming: bool) -> Iterable[Pair]:
    """Move a share of the training pairs to `val`; which ones hangs on their stems and the seed alone.

    Args:
        pairs (`Iterable[Pair]`): They are gone through once, or for their names first.
        fraction (`float`): The share, 0 or more, below 1.
        seed (`int`): Which pairs those are.
        streaming (`bool`): Whether they come as a stream, whose names are not known before.

    Raises:
        ValueError: The source has splits of its own, nothing is left for training, or it is a stream.
    """
    if fraction == 0:
        return pairs
    if streaming:
        raise ValueError("--val_fraction needs all names before the first pair; leave out --streaming.")
    names = [(pair.split, pair.stem) for pair in pairs]
    if any(split != "train" for split, _ in names):
        raise ValueError("the source has splits of its own; --val_fraction is for sources without.")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name[1]}".encode()).digest())
    count = max(round(fraction * len(names)), 1)
    if count == len(names):
        raise ValueError(f"--val_fraction {fraction} leaves none of the {len(names)} pairs for training.")
    return _Divided(pairs, frozenset(stem for _, stem in order[:count]))


@dataclass(frozen=True)
class _Divided(Iterable):
    """Pairs of which some, by stem, are for validation."""

    pairs: Iterable[Pair]
    validation: frozenset[str]

    def __iter__(self) -> Iterator[Pair]:
        for pair in self.pairs:
            yield replace(pair, split="val") if pair.stem in self.validation else pair

    def __len__(self) -> int:
        return len(self.pairs)

    def identity(self) -> str:
        return identity_of(self.pairs)


def identity_of(pairs: Iterable[Pair]) -> str:
    """A fingerprint of the pairs and their files: names, sizes and times, or checksums."""
    if not isinstance(pairs, tuple):
        return pairs.identity()
    digest = hashlib.sha256()
    for pair in pairs:
        facts = (pair.split, pair.stem, dict(pair.attributes), *(_facts(place) for place in (pair.photo, pair.mask)))
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def _facts(place: object) -> tuple:
    if isinstance(place, ArchivePath):
        return (str(place), *place.fingerprint())
    if isinstance(place, Drawing):
        return (place.source, place.fingerprint())
    status = os.stat(place)
    return (str(place), status.st_size, status.st_mtime_ns)


PHOTO_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits; others lose what they hold
ID_MODES = ("L", "P", "I", "I;16", "I;16B", "I;16L")  # masks of one channel
SPARE = 2  # a photo is decoded at this many times its new size, or more


@dataclass(frozen=True)
class PrepareSettings:
    """What to prepare, and how."""

    source: str | tuple[str, ...]  # folder, zip archives, or a data set of the Hub
    output: str  # folder to make
    data_format: str | None = None  # one of readers.FORMATS; None: the one that the layout shows
    resolution: tuple[int, int] | None = (128, 128)  # pixels, height and width; None keeps each picture as it is
    fit: str = "crop"  # one of fitting.FITS
    labels: str | None = None  # preset or JSON file, where the format does not bring its classes
    map_to: str | None = None  # preset or JSON file: the label set that the masks come to; None: the source's own
    annotations: str | None = None  # of several forms of the masks, which to read
    image_column: str | None = None  # of a data set of `datasets`
    mask_column: str | None = None
    streaming: bool = False  # read it as it comes, without downloading all
    tolerance: float = 0.0  # RGB distance over which an unknown colour still takes the nearest class
    val_fraction: float = 0.0  # share of a source without splits that becomes `val`
    seed: int = 0  # which pairs those are
    skip_unmatched: bool = False  # leave out files without a partner
    overwrite: bool = False  # replace a prepared data set at `output`
    num_workers: int = 1  # processes


@dataclass(frozen=True)
class PrepareReport:
    """What came of it."""

    splits: dict[str, int]  # pairs in each split
    enlarged: int  # pairs that were smaller than the resolution
    unmatched: tuple[Path, ...]  # files left out
    data_format: str = ""  # what the source was read as
    notes: tuple[str, ...] = ()  # what its reader found and left out
    resumed: int = 0  # pairs that an earlier run had made


def prepare_dataset(settings: PrepareSettings, progress: bool = False) -> PrepareReport:
    """Prepare a data set.

    Args:
        settings (`PrepareSettings`): what is read, and what is written.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        `PrepareReport`: what was read, and what was left out.

    Raises:
        ValueError: a setting is out of range, the source does not have the format's layout, its classes have nothing
            in common with those of `map_to`, or files cannot be used (the first five are named).
        OSError: the disk is full, say; nothing is left of the data set.
    """
    if not 0 <= settings.val_fraction < 1:
        raise ValueError(f"val_fraction={settings.val_fraction}; wanted 0 or more, below 1.")
    if settings.num_workers < 1 or settings.tolerance < 0:
        raise ValueError(
            f"num_workers={settings.num_workers}, tolerance={settings.tolerance}; wanted at least 1 and at least 0."
        )
    if settings.fit not in FITS or (settings.resolution is None and settings.fit != "crop"):
        raise ValueError(
            f"fit={settings.fit!r}, resolution={_shown(settings.resolution)}; wanted one of {', '.join(FITS)}, and "
            "none with native, which keeps the frame."
        )
    _keep_apart(settings)
    target = None if settings.map_to is None else LabelSet.from_name(settings.map_to)
    try:
        source = read_source(
            settings.source,
            settings.data_format,
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
        with resumable_dataset(settings.output, _recipe(settings, source, mapping), settings.overwrite) as staging:
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


def _keep_apart(settings: PrepareSettings) -> None:
    target = Path(settings.output).resolve()
    for source in _sources(settings):
        root = Path(source).resolve()
        if Path(source).exists() and (root == target or root in target.parents or target in root.parents):
            raise ValueError(f"--output '{target}' and --source '{root}' lie in one another; wanted separate folders.")


def _sources(settings: PrepareSettings) -> tuple[str, ...]:
    return (settings.source,) if isinstance(settings.source, str) else tuple(settings.source)


def _shown(resolution: tuple[int, int] | None) -> str:
    return "native" if resolution is None else f"{resolution[0]}x{resolution[1]}"


def _record(settings: PrepareSettings, report: PrepareReport, mapping: LabelMapping | None) -> dict:
    """What `prepare.json` says of the settings; the number of workers changes nothing, so it is not in it."""
    return {
        "format": report.data_format,
        "source": settings.source if isinstance(settings.source, str) else list(settings.source),
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
    """All that the prepared data set hangs on: a run that was stopped goes on only where this is the same."""
    kept = {
        name: value for name, value in asdict(settings).items() if name not in ("output", "overwrite", "num_workers")
    }
    return {
        **kept,
        "source": [os.path.abspath(path) if os.path.exists(path) else path for path in _sources(settings)],
        "format": source.data_format,
        "labels": source.labels.to_config(),
        "map_to": None if mapping is None else [mapping.ids, mapping.target.to_config()],
        "pairs": identity_of(source.pairs),
        "versions": [package_version(), PIL.__version__, np.__version__],
    }


# The work ----------------------------------------------------------------------------------------------------------


def _make_pairs(
    settings: PrepareSettings, source: Source, mapping: LabelMapping | None, staging: Staging, progress: bool
) -> tuple[dict[str, list[dict]], int, int | np.ndarray, int]:
    """Make the pairs that are missing.

    Returns:
        the rows by split, how many pairs were enlarged, the pixels of each class before the mapping (0 without one),
        how many pairs were there.
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
            """The pairs to make; those that are there get their rows on the way."""
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
            named = f"{len(failures)} files or more"
        else:
            named = f"{len(failures)} of {count} pairs"
        raise ValueError(f"{named} cannot be used, and nothing was written:\n- " + "\n- ".join(failures))
    if not rows:
        raise ValueError(f"'{settings.source}' holds no pairs.")
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
    """Read a pair, bring it to the resolution and, where there is a mapping, to another label set, and write it.

    Returns:
        `enlarged`, whether it was smaller than the resolution; with a mapping `pixels`, those of each class before it.

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
    """Read a photo as RGB, upright as its EXIF says; a JPEG that will be made much smaller is decoded smaller.

    Args:
        place: a path, a file in an archive, or an encoded image.
        choose: called with the height and width of the frame; says where it goes.

    Raises:
        ValueError: it cannot be read, or has more than 8 bits a channel.
    """

    def smallest(height: int, width: int) -> tuple[int, int]:
        scale = max(1.0, choose(height, width).scale / SPARE)
        return int(height / scale), int(width / scale)

    photo = decode_picture(read_file(place), "photo", place, smallest)
    if photo.mode not in PHOTO_MODES:
        raise ValueError(f"photo '{place}' has the image mode {photo.mode}; wanted 8 bits a channel. Convert it.")
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
        labels (`LabelSet`): The classes that come out.
        frame (`tuple[int, int]`): Height and width of the photo, which the mask must have too.
        changed_ids (`Mapping[int, int]`): Id in the file -> id in `labels`.
        file_labels (`LabelSet`, *optional*): The classes in whose colours the file is, where these are others.
        tolerance (`float`): See `LabelSet.encode`.
        rows, columns (`np.ndarray`): Pixel numbers.

    Returns:
        `np.ndarray`: (len(rows), len(columns)) uint8.

    Raises:
        ValueError: The file cannot be read, holds what is no class, or is of another size.
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
            f"{ids.shape[1]} (height x width); wanted one size. Was one of them resized, cropped or turned?"
        )
    return ids[rows[:, None], columns]


def change_ids(ids: np.ndarray, changed_ids: Mapping[int, int]) -> np.ndarray:
    """Ids with some replaced by others."""
    if ids.dtype == np.uint8:
        table = np.arange(256, dtype=np.uint8)
        table[list(changed_ids)] = list(changed_ids.values())
        return table[ids]
    changed = ids.copy()
    for old, new in changed_ids.items():
        changed[ids == old] = new
    return changed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        required=True,
        nargs="+",
        metavar="DIR|ZIP",
        help="the data as it was published; nothing is unpacked",
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), help=f"{'; '.join(_layouts())} (default: the one that the layout shows)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the prepared data set to make")
    parser.add_argument(
        "--resolution",
        default="128",
        metavar="N|HxW|native",
        help="a number is a square centre crop, HxW height first, native keeps the frame (default 128)",
    )
    parser.add_argument(
        "--fit",
        default="crop",
        choices=FITS,
        help="crop: the largest centred part of the resolution's aspect; whole: the whole frame, where the aspects "
        "agree; pad: the whole frame, filled up with black and unknown (default crop)",
    )
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"classes, where the format does not bring them: {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    parser.add_argument(
        "--map_to",
        metavar="PRESET|FILE",
        help="label set that the masks come to: classes are mapped by name, what has no counterpart becomes unknown "
        "(default: the source's own)",
    )
    parser.add_argument(
        "--annotations", choices=ANNOTATIONS, help="of bdd100k, which form of the masks (default: the first there)"
    )
    parser.add_argument("--image_column", metavar="NAME", help="of datasets, the column of photos")
    parser.add_argument("--mask_column", metavar="NAME", help="of datasets, the column of masks")
    parser.add_argument(
        "--streaming", action="store_true", help="of datasets, take rows as they come, download no more"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="unknown mask colours take the class at most this far away in RGB (default 0: they are an error)",
    )
    parser.add_argument(
        "--val_fraction", type=float, default=0.0, help="share for val, where the source has no splits (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pairs --val_fraction takes (default 0)")
    parser.add_argument("--skip_unmatched", action="store_true", help="leave out photos and masks without partner")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared data set at --output")


def _layouts() -> list[str]:
    first_lines = {name: (entry.read.__doc__ or "").splitlines()[0] for name, entry in FORMATS.items()}
    return [f"{name}: {line.replace('`', '').rstrip('.')}" for name, line in first_lines.items()]


def run(args: argparse.Namespace) -> int:
    settings = PrepareSettings(
        source=args.source[0] if len(args.source) == 1 else tuple(args.source),
        output=args.output,
        data_format=args.format,
        resolution=parse_resolution(args.resolution),
        fit=args.fit,
        labels=args.labels,
        map_to=args.map_to,
        annotations=args.annotations,
        image_column=args.image_column,
        mask_column=args.mask_column,
        streaming=args.streaming,
        tolerance=args.tolerance,
        val_fraction=args.val_fraction,
        seed=args.seed,
        skip_unmatched=args.skip_unmatched,
        overwrite=args.overwrite,
        num_workers=args.num_workers,
    )
    try:
        report = prepare_dataset(settings, progress=True)
    except (KeyboardInterrupt, SystemExit) as stop:
        folder = staging_folder(args.output)
        left = f"; what is made stays in {folder}, and the same command goes on with it" if folder.is_dir() else ""
        sys.stderr.write(f"\nstopped{left}\n")
        return 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.code
    counts = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    sys.stdout.write(f"{counts} pairs in {args.output}, read as {report.data_format}\n")
    for note in report.notes:
        sys.stdout.write(f"{note}\n")
    if report.resumed:
        sys.stdout.write(f"{report.resumed} of them were there from a run that was stopped\n")
    if report.unmatched:
        names = ", ".join(path.name for path in report.unmatched[:NAMED])
        sys.stdout.write(f"left out, without partner: {len(report.unmatched)} files ({names})\n")
    if report.enlarged:
        sys.stdout.write(f"warning: {report.enlarged} pairs were smaller than {args.resolution} and were enlarged\n")
    return 0
