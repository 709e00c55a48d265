"""Turns a public data set, or a folder of pairs, into a prepared folder that `datasets.load_dataset` reads.

Photos are cropped around the centre to the aspect and resized with an antialiased filter, masks to the nearest pixel.
Pairs smaller than the resolution are enlarged, and counted. Nothing is left behind after an error.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.layout import finish_dataset, make_split, new_dataset, parse_resolution, save_pair
from semseg_diffusers.data.readers import FORMATS, NAMED, Pair, read_source
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import center_crop_box, open_image, resize_ids


PHOTO_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits; others lose what they hold


@dataclass(frozen=True)
class PrepareSettings:
    """What to prepare, and how."""

    source: str  # folder
    output: str  # folder to make
    data_format: str  # one of readers.FORMATS
    resolution: tuple[int, int] | None = (128, 128)  # pixels, height and width; None keeps each picture as it is
    labels: str | None = None  # preset or JSON file, where the format does not bring its classes
    tolerance: float = 0.0  # RGB distance over which an unknown colour still takes the nearest class
    val_fraction: float = 0.0  # share of a source without splits that becomes `val`
    seed: int = 0  # which pairs those are
    skip_unmatched: bool = False  # leave out files without a partner
    overwrite: bool = False  # replace a prepared data set at `output`
    num_workers: int = 1  # threads; decoding, resizing and encoding run outside Python's lock


@dataclass(frozen=True)
class PrepareReport:
    """What came of it."""

    splits: dict[str, int]  # pairs in each split
    enlarged: int  # pairs that were smaller than the resolution
    unmatched: tuple[Path, ...]  # files left out


def prepare_dataset(settings: PrepareSettings, progress: bool = False) -> PrepareReport:
    """Prepare a data set.

    Args:
        settings (`PrepareSettings`)
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        `PrepareReport`

    Raises:
        ValueError: a setting is out of range, the source does not have the format's layout, or files cannot be used
            (the first five are named).
    """
    if not 0 <= settings.val_fraction < 1:
        raise ValueError(f"val_fraction={settings.val_fraction}; wanted 0 or more, below 1.")
    if settings.num_workers < 1 or settings.tolerance < 0:
        raise ValueError(
            f"num_workers={settings.num_workers}, tolerance={settings.tolerance}; wanted at least 1 and at least 0."
        )
    root, target = Path(settings.source).resolve(), Path(settings.output).resolve()
    if root == target or root in target.parents or target in root.parents:
        raise ValueError(f"--output '{target}' and --source '{root}' lie in one another; wanted separate folders.")
    source = read_source(settings.source, settings.data_format, settings.labels, settings.skip_unmatched)
    pairs = _assign_validation(source.pairs, settings.val_fraction, settings.seed)

    with new_dataset(settings.output, settings.overwrite) as folder:
        folders = {split: make_split(folder, split) for split in sorted({pair.split for pair in pairs})}

        def prepare_pair(pair: Pair) -> tuple[dict, bool]:
            photo, ids = read_pair(pair, source.labels, source.changed_ids, settings.tolerance)
            small = settings.resolution is not None and _is_smaller(ids, settings.resolution)
            photo, ids = fit_pair(photo, ids, settings.resolution)
            return save_pair(folders[pair.split], pair.stem, photo, ids, source.labels), small

        results = _run_all(prepare_pair, pairs, settings.num_workers, progress)
        rows: dict[str, list[dict]] = {split: [] for split in folders}
        for pair, (row, _) in zip(pairs, results, strict=True):
            rows[pair.split].append(row)
        report = PrepareReport(
            {split: len(lines) for split, lines in rows.items()},
            enlarged=sum(small for _, small in results),
            unmatched=source.unmatched,
        )
        finish_dataset(folder, rows, source.labels, _record(settings, report))
    return report


def _record(settings: PrepareSettings, report: PrepareReport) -> dict:
    """What `prepare.json` says of the settings; the number of workers changes nothing, so it is not in it."""
    return {
        "format": settings.data_format,
        "source": str(settings.source),
        "resolution": "native" if settings.resolution is None else list(settings.resolution),
        "labels": settings.labels,
        "tolerance": settings.tolerance,
        "val_fraction": settings.val_fraction,
        "seed": settings.seed,
        "enlarged": report.enlarged,
        "unmatched": [path.name for path in report.unmatched],
    }


def _assign_validation(pairs: tuple[Pair, ...], fraction: float, seed: int) -> list[Pair]:
    """Move a share of the training pairs to `val`; which ones hangs on their stems and the seed alone."""
    if fraction == 0:
        return list(pairs)
    if any(pair.split != "train" for pair in pairs):
        raise ValueError("the source has splits of its own; --val_fraction is for sources without.")
    order = sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed}:{pair.stem}".encode()).digest())
    count = max(round(fraction * len(pairs)), 1)
    if count == len(pairs):
        raise ValueError(f"--val_fraction {fraction} leaves none of the {len(pairs)} pairs for training.")
    chosen = {pair.stem for pair in order[:count]}
    return [replace(pair, split="val") if pair.stem in chosen else pair for pair in pairs]


def _run_all(work, pairs: list[Pair], num_workers: int, progress: bool) -> list:
    """Results in the order of the pairs; the first five files that cannot be used are named in one error."""
    results, failures = [], []
    with (
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=len(pairs), desc="preparing", unit="pair", disable=not progress) as bar,
    ):
        futures = [pool.submit(work, pair) for pair in pairs]
        try:
            for future in futures:
                error = future.exception()
                if error is None:
                    results.append(future.result())
                elif isinstance(error, ValueError):
                    failures.append(str(error))
                else:
                    raise error  # a full disk, say: no fault of the file
                if len(failures) == NAMED:
                    break
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    if failures:
        count = f"{NAMED} files or more" if len(failures) == NAMED else f"{len(failures)} of {len(pairs)} pairs"
        raise ValueError(f"{count} cannot be used, and nothing was written:\n- " + "\n- ".join(failures))
    return results


def read_pair(
    pair: Pair, labels: LabelSet, changed_ids: Mapping[int, int], tolerance: float = 0.0
) -> tuple[Image.Image, np.ndarray]:
    """Read one pair as it is: RGB photo, upright as its EXIF says, and class ids (H, W) uint8.

    Args:
        pair (`Pair`)
        labels (`LabelSet`): the classes of the mask.
        changed_ids (`Mapping[int, int]`): id in the file -> id in the label set.
        tolerance (`float`, defaults to 0): see `LabelSet.encode`.

    Raises:
        ValueError: a file cannot be read, the mask does not fit the label set, or the sizes differ.
    """
    photo = open_image(pair.photo, "photo")
    if photo.mode not in PHOTO_MODES:
        raise ValueError(f"photo '{pair.photo}' has the image mode {photo.mode}; wanted 8 bits a channel. Convert it.")
    photo = ImageOps.exif_transpose(photo).convert("RGB")
    picture = ImageOps.exif_transpose(open_image(pair.mask))
    if changed_ids and picture.mode in ("L", "P"):
        ids = np.asarray(picture)
        changed = ids.copy()
        for old, new in changed_ids.items():
            changed[ids == old] = new
        picture = changed
    ids = labels.encode(picture, tolerance=tolerance, source=pair.mask)  # (H, W)
    if photo.size != (ids.shape[1], ids.shape[0]):
        raise ValueError(
            f"photo '{pair.photo}' is {photo.height} x {photo.width}, its mask '{pair.mask}' {ids.shape[0]} x "
            f"{ids.shape[1]} (height x width); wanted one size. Was one of them resized, cropped or turned?"
        )
    return photo, ids


def _is_smaller(ids: np.ndarray, resolution: tuple[int, int]) -> bool:
    left, top, right, bottom = center_crop_box(*ids.shape, *resolution)
    return bottom - top < resolution[0] or right - left < resolution[1]


def fit_pair(
    photo: Image.Image, ids: np.ndarray, resolution: tuple[int, int] | None
) -> tuple[Image.Image, np.ndarray]:
    """Crop photo and ids around the centre to the aspect and resize: Lanczos for the photo, nearest for the ids."""
    if resolution is None:
        return photo, ids
    height, width = resolution
    if photo.size != (width, height):
        box = center_crop_box(*ids.shape, height, width)
        photo = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return photo, resize_ids(ids, height, width)


# The command -------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="DIR", help="the data as it was published")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="; ".join(_layouts()))
    parser.add_argument("--output", required=True, metavar="DIR", help="the prepared data set to make")
    parser.add_argument(
        "--resolution",
        default="128",
        metavar="N|HxW|native",
        help="a number is a square centre crop, HxW height first, native keeps the frame (default 128)",
    )
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"classes, where the format does not bring them: {', '.join(PRESET_NAMES)}, or a JSON file",
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
    first_lines = {name: (reader.__doc__ or "").splitlines()[0] for name, reader in FORMATS.items()}
    return [f"{name}: {line.replace('`', '').rstrip('.')}" for name, line in first_lines.items()]


def run(args: argparse.Namespace) -> None:
    report = prepare_dataset(
        PrepareSettings(
            source=args.source,
            output=args.output,
            data_format=args.format,
            resolution=parse_resolution(args.resolution),
            labels=args.labels,
            tolerance=args.tolerance,
            val_fraction=args.val_fraction,
            seed=args.seed,
            skip_unmatched=args.skip_unmatched,
            overwrite=args.overwrite,
            num_workers=args.num_workers,
        ),
        progress=True,
    )
    counts = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    sys.stdout.write(f"{counts} pairs in {args.output}\n")
    if report.unmatched:
        names = ", ".join(path.name for path in report.unmatched[:NAMED])
        sys.stdout.write(f"left out, without partner: {len(report.unmatched)} files ({names})\n")
    if report.enlarged:
        sys.stdout.write(f"warning: {report.enlarged} pairs were smaller than {args.resolution} and were enlarged\n")
