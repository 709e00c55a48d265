"""The images of an evaluation, loaded and checked before any work, and networks run on them, shared by processes.

They come from a split of a dataset, a folder written by `generate`, or a folder of another program. A chunk of cached
results is named by a hash of the network and the pixels, so a stale result is never used.
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from semseg_diffusers.data.dataset import MissingSplitError, PairDataset, column_options, load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE, MASK_SUFFIXES, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import SPLITS
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.near_copies import to_tensor
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.pipelines.image_inputs import to_rgb
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.utils.distributed import Processes
from semseg_diffusers.utils.files import composed, written_beside
from semseg_diffusers.utils.progress import progress_bar


MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images kept in memory, per split and process
ReadMask = Callable[[int], torch.Tensor]  # index -> uint8 ids (H, W)


@dataclass(frozen=True)
class ImageSet:
    """Images with masks, loaded on access, sorted by name: the order of a directory listing changes no result."""

    labels: LabelSet  # the classes of the masks
    names: tuple[str, ...]  # all different: "scene_0"
    stems: tuple[str, ...]  # the scene of each image; samples of the same mask share it
    image: Callable[[int], torch.Tensor]  # index -> uint8 (3, H, W)
    mask: ReadMask

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, index: int) -> dict[str, torch.Tensor]:
        """Return an image and its mask, as datasets do."""
        return {"image": self.image(index), "mask": self.mask(index)}

    def masks(self) -> torch.Tensor:
        """Return all masks, (N, H, W)."""
        return torch.stack([self.mask(index) for index in range(len(self))])

    def subset(self, indices: list[int]) -> "ImageSet":
        """Return the images at these indices, in this order."""
        return ImageSet(
            self.labels,
            tuple(self.names[index] for index in indices),
            tuple(self.stems[index] for index in indices),
            lambda position: self.image(indices[position]),
            lambda position: self.mask(indices[position]),
        )

    def sorted(self) -> "ImageSet":
        """Return the images in the order of their stems, then names."""
        return self.subset(sorted(range(len(self)), key=lambda index: (self.stems[index], self.names[index])))


def check_one_size(first: PairDataset, second: PairDataset) -> None:
    """Raise for two splits whose images differ in size."""
    if first.resolution != second.resolution:
        raise ValueError(
            f"expected images of one size; {first.name} has {first.resolution}, {second.name} {second.resolution} "
            "(height, width). Prepare them at one --resolution."
        )


def check_same_classes(first: PairDataset, second: PairDataset) -> None:
    """Raise for two splits whose masks have different classes, or another id of unknown pixels."""
    classes, others = (pairs.labels.names for pairs in (first, second))
    if classes != others or first.labels.ignore_index != second.labels.ignore_index:
        different = sorted({*classes} ^ {*others}) or ["their order or the id of unknown pixels"]
        raise ValueError(
            f"{second.name} has other classes than {first.name} ({', '.join(different[:5])} differ). Prepare it with "
            f"the classes of the first: prepare --map_to {LABELS_FILE} of that dataset."
        )


def real_images(pairs: PairDataset) -> ImageSet:
    """Return the real images of a split, which must have one size and distinct stems, with their masks."""
    _ = pairs.resolution  # raises for different sizes
    repeated = [stem for stem, count in Counter(pairs.stems).items() if count > 1]
    if repeated:
        raise ValueError(f"expected distinct stems; {len(repeated)} occur more than once, such as '{repeated[0]}'.")
    stems = tuple(composed(stem) for stem in pairs.stems)
    return ImageSet(
        pairs.labels,
        stems,
        stems,
        lambda index: pairs[index]["image"],
        lambda index: torch.from_numpy(pairs.mask(index)),
    ).sorted()


def generated_images(folder: str | os.PathLike, real: PairDataset) -> ImageSet:
    """Return generated images, of the classes and size of the real ones, with the masks they were generated from.

    The folder is one of `generate` (or has `metadata.jsonl` as `prepare` writes it), with its own masks; or it holds
    images, or `images/`, named `<stem>.png` or `<stem>_<number>.png` after the masks of the split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; --generated takes one written by `generate`.")
    if (folder / LABELS_FILE).is_file():
        labels = LabelSet.from_json(folder / LABELS_FILE)
        if labels != real.labels:
            raise ValueError(
                f"'{folder}' and the dataset have different label sets ({', '.join(labels.names)} / "
                f"{', '.join(real.labels.names)}): evaluate with the dataset that the model was trained on."
            )
    source = _from_metadata if (folder / METADATA_FILE).is_file() else _from_names
    files, stems, read_mask = source(folder, real)
    _check_files(files, real.resolution)
    names = tuple(path.stem for path in files)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"'{folder}' holds two images called '{repeated[0]}'; expected distinct names.")

    return ImageSet(
        real.labels,
        names,
        stems,
        lambda index: to_tensor(to_rgb(open_image(files[index], "image"), f"image '{files[index]}'")),
        read_mask,
    ).sorted()


def _from_metadata(folder: Path, real: PairDataset) -> tuple[list[Path], tuple[str, ...], ReadMask]:
    """Return images, stems and masks listed in `metadata.jsonl`."""
    rows = read_metadata(folder)
    keys = ("image_file_name", "mask_file_name")
    if not rows or any(key not in row for row in rows for key in keys):
        raise ValueError(
            f"'{folder / METADATA_FILE}' lists no images with masks; expected rows with {' and '.join(keys)}."
        )
    files, masks = ([folder / row[key] for row in rows] for key in keys)
    missing = [path for path in (*files, *masks) if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files of '{folder / METADATA_FILE}' are missing, such as '{missing[0]}'.")
    stems = tuple(composed(str(row.get("stem", path.stem))) for row, path in zip(rows, files, strict=True))

    def read_mask(index: int) -> torch.Tensor:
        ids = real.labels.encode(masks[index])  # (H, W)
        height, width = real.resolution  # of every image, see `_check_files`
        if ids.shape != (height, width):
            raise ValueError(
                f"expected one size; mask '{masks[index]}' is {ids.shape[0]} x {ids.shape[1]}, its image {height} x "
                f"{width} (height x width)."
            )
        return torch.from_numpy(ids)

    return files, stems, read_mask


def _from_names(folder: Path, real: PairDataset) -> tuple[list[Path], tuple[str, ...], ReadMask]:
    """Return images, with stems and masks matched by file name."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in MASK_SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"'{folder}' holds no image ({', '.join(MASK_SUFFIXES)}).")
    index_of = {composed(stem): index for index, stem in enumerate(real.stems)}
    stems = _match_stems([composed(path.stem) for path in files], index_of.keys(), folder)
    unknown = [path.name for path, stem in zip(files, stems, strict=True) if stem not in index_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(files)} images in '{folder}' are named after no mask of the split, such as "
            f"'{unknown[0]}'. Expected STEM.png or STEM_NUMBER.png with stems such as '{real.stems[0]}'."
        )
    return files, stems, lambda index: torch.from_numpy(real.mask(index_of[stems[index]]))


def _match_stems(names: list[str], known: Set[str], folder: Path) -> tuple[str, ...]:
    """Return the stem of each name: all are stems, or all are STEM_NUMBER, or each is unambiguously one of the two."""
    numbered = [re.sub(r"_\d+$", "", name) for name in names]
    if known >= set(names):
        return tuple(names)
    if known >= set(numbered) and all(name != stem for name, stem in zip(names, numbered, strict=True)):
        return tuple(numbered)
    for name, stem in zip(names, numbered, strict=True):
        if name != stem and {name, stem} <= known:
            raise ValueError(
                f"'{name}' in '{folder}' may belong to the mask '{name}', or be a sample of '{stem}'. Name all images "
                "STEM_NUMBER, or use the folder written by `generate`, with its metadata.jsonl."
            )
    return tuple(name if name in known else stem for name, stem in zip(names, numbered, strict=True))


def _check_files(files: list[Path], resolution: tuple[int, int]) -> None:
    """Raise for images of another size than the real ones: every metric would measure the resizing."""
    for path in files:
        try:
            with Image.open(path) as image:
                (width, height), mode = image.size, image.mode
        except OSError as err:
            raise ValueError(f"image '{path}' cannot be read ({err}). Is it truncated or not an image?") from err
        if mode.startswith(("I", "F")):  # Pillow would clip at 255: a white image
            raise ValueError(f"image '{path}' has 16 or more bits per pixel ({mode}); expected 8. Save it as RGB.")
        if (height, width) != resolution:
            raise ValueError(
                f"image '{path}' is {height} x {width}, the real images are {resolution[0]} x {resolution[1]} (height "
                f"x width); expected one size. Prepare the dataset again with --resolution {height}x{width}."
            )


@dataclass(frozen=True)
class RealData:
    """Real images: the split that is evaluated, and the images the model may have been trained on."""

    pairs: PairDataset
    real: ImageSet  # of the pairs
    train: ImageSet | None
    train_missing: str | None  # reason


def load_real_data(settings: EvaluationSettings, processes: Processes) -> RealData:
    """Load the real images. Called by every process."""

    def load() -> RealData:
        columns = column_options(settings)
        pairs = load_pairs(settings.dataset, settings.split, **columns)
        real = real_images(pairs)
        pairs.keep_decoded(MEMORY_LIMIT)  # each network reads them all
        split, train_split = (SPLITS.get(name, name) for name in (settings.split, settings.train_split))
        if split == train_split:
            return RealData(pairs, real, None, f"'{settings.train_split}' is the split that is evaluated.")
        try:
            train = load_pairs(settings.dataset, settings.train_split, **columns)
        except MissingSplitError as err:
            return RealData(pairs, real, None, str(err))
        check_one_size(pairs, train)
        train.keep_decoded(MEMORY_LIMIT)
        return RealData(pairs, real, real_images(train), None)

    # one process builds the table of `datasets`, then the others find it
    mine = processes.run_in_main(load)
    return processes.run_on_all_ranks(lambda: mine or load())


CHUNK = 64  # images per file: at most this many are recomputed after an interruption
LISTING_PATIENCE = 60  # seconds until a network file system shows files of another machine


def cached_inference(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: ImageSet,
    *,
    identity: dict[str, Any],
    folder: Path,
    batch_size: int = 16,
    processes: Processes | None = None,
    title: str | None = None,
) -> torch.Tensor | None:
    """Run a network, uint8 (B, 3, H, W) -> (B, ...), on all images, of one size. Called by every process.

    `identity` is JSON that identifies the network; `folder`, shared by all processes, holds the cache. Without a
    `title` there is no progress bar. Returns (N, ...) on the CPU in the main process; None in the others.
    """
    processes = processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [range(len(images))[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    share = processes.share(chunks)
    files: dict[int, str] = {}  # name of each chunk's file, by its first index
    total = sum(map(len, share))
    with progress_bar(total=total, desc=title, unit="image", disable=title is None or not processes.is_main) as bar:
        for chunk in share:
            pixels = torch.stack([images.image(index) for index in chunk])  # (n, 3, H, W)
            digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
            digest.update(str(tuple(pixels.shape)).encode())
            digest.update(pixels.numpy().tobytes())
            path = folder / f"{digest.hexdigest()[:32]}.safetensors"
            files[chunk.start] = path.name
            if _load(path) is not None:
                bar.update(len(chunk))
                continue
            results = []
            for batch in pixels.split(batch_size):
                processes.end_with_launcher()
                results.append(network(batch).cpu())
                bar.update(len(batch))
            _save(path, torch.cat(results))
    for part in processes.gather(files):
        files |= part
    if not processes.is_main:
        return None
    return torch.cat([_load_patiently(folder / files[chunk.start]) for chunk in chunks])  # (N, ...)


def _save(path: Path, results: torch.Tensor) -> None:
    try:
        with written_beside(path) as temporary:
            save_file({"results": results.contiguous()}, temporary)
    except SafetensorError as err:  # also raised for a full disk
        raise OSError(f"'{path}' cannot be written: {err}") from err


def _load(path: Path) -> torch.Tensor | None:
    """Return the results of a chunk; None if the file is missing or damaged."""
    try:
        return load_file(path)["results"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _load_patiently(path: Path) -> torch.Tensor:
    """Return the results of a chunk that another machine may have written just now."""
    deadline = time.monotonic() + LISTING_PATIENCE
    while (results := _load(path)) is None:
        if time.monotonic() > deadline:
            raise OSError(
                f"'{path}', written by another process, is not visible here. Machines that evaluate together need "
                "one file system: use an --output that all of them share."
            )
        time.sleep(1)
    return results
