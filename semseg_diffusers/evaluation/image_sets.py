"""The images that an evaluation reads, each with a name, the scene it belongs to, and the mask it is scored against.
They come from a split of a data set, from a folder that `generate` wrote, or from a folder of another program."""

import os
import re
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import LABELS_FILE, METADATA_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_files import MASK_SUFFIXES
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.pipelines.mask_inputs import open_image


@dataclass(frozen=True)
class ImageSet:
    """Images with masks, read when asked for, in the order of their names: no listing's order changes a figure.

    Args:
        labels: the classes of the masks.
        names: one per image, all different: "scene_0".
        stems: the scene of each image; the samples of one mask share it.
        image: index -> uint8 (3, H, W).
        mask: index -> uint8 ids (H, W).
    """

    labels: LabelSet
    names: tuple[str, ...]
    stems: tuple[str, ...]
    image: Callable[[int], torch.Tensor]
    mask: Callable[[int], torch.Tensor]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: list[int]) -> "ImageSet":
        """The images at these places, in this order."""
        return ImageSet(
            self.labels,
            tuple(self.names[index] for index in indices),
            tuple(self.stems[index] for index in indices),
            lambda place: self.image(indices[place]),
            lambda place: self.mask(indices[place]),
        )


def photos(pairs: PairDataset) -> ImageSet:
    """The photos of a split with their masks.

    Raises:
        ValueError: the photos differ in size, or two have one stem.
    """
    _ = pairs.resolution  # refuses photos of several sizes
    repeated = [stem for stem, count in Counter(pairs.stems).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} stems occur more than once, such as '{repeated[0]}'; give each photo its own."
        )
    stems = tuple(pairs.stems)
    return _sorted(
        ImageSet(
            pairs.labels,
            stems,
            stems,
            lambda index: pairs[index]["image"],
            lambda index: torch.from_numpy(pairs.mask(index)),
        )
    )


def _sorted(images: ImageSet) -> ImageSet:
    order = sorted(range(len(images)), key=lambda index: (images.stems[index], images.names[index]))
    return images.subset(order)


def generated_images(folder: str | os.PathLike, real: PairDataset) -> ImageSet:
    """Images that were made from masks, with those masks.

    Args:
        folder: what `generate` wrote (or any folder with `metadata.jsonl` as `prepare` writes it), which brings its
            masks; or a folder of pictures, or with pictures in `images/`, named `<stem>.png` or `<stem>_<number>.png`
            after the masks of the split, as other programs write them.
        real: the split.

    Returns:
        the images, those of one mask beside each other.

    Raises:
        ValueError: no images; other classes; images of another size than the photos; names of no mask of the split,
            or of two.
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; --generated takes one that `generate` wrote.")
    if (folder / LABELS_FILE).is_file():
        labels = LabelSet.from_json(folder / LABELS_FILE)
        if labels != real.labels:
            raise ValueError(
                f"'{folder}' and the data set have other label sets ({', '.join(labels.names)} / "
                f"{', '.join(real.labels.names)}): score images against the data set their model was trained on."
            )
    if (folder / METADATA_FILE).is_file():
        files, stems, read_mask = _listed(folder, real)
    else:
        files, stems, read_mask = _named_after_masks(folder, real)
    _check_sizes(files, real.resolution)
    names = tuple(path.stem for path in files)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"'{folder}' holds two images called '{repeated[0]}'; give each its own name.")
    return _sorted(ImageSet(real.labels, names, stems, lambda index: _read_image(files[index]), read_mask))


def _listed(folder: Path, real: PairDataset) -> tuple[list[Path], tuple[str, ...], Callable[[int], torch.Tensor]]:
    """Images and masks of `metadata.jsonl`."""
    rows = read_metadata(folder)
    keys = ("image_file_name", "mask_file_name")
    if not rows or any(key not in row for row in rows for key in keys):
        raise ValueError(
            f"'{folder / METADATA_FILE}' names no images with masks; wanted rows with {' and '.join(keys)}."
        )
    files, masks = ([folder / row[key] for row in rows] for key in keys)
    missing = [path for path in (*files, *masks) if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} files of '{folder / METADATA_FILE}' are missing, such as '{missing[0]}'.")
    stems = tuple(str(row.get("stem", path.stem)) for row, path in zip(rows, files, strict=True))

    def read_mask(index: int) -> torch.Tensor:
        ids = real.labels.encode(masks[index])  # (H, W)
        height, width = real.resolution  # the size of every image, see `_check_sizes`
        if ids.shape != (height, width):
            raise ValueError(
                f"mask '{masks[index]}' is {ids.shape[0]} x {ids.shape[1]}, its image {height} x {width} (height x "
                "width); wanted one size."
            )
        return torch.from_numpy(ids)

    return files, stems, read_mask


def _named_after_masks(
    folder: Path, real: PairDataset
) -> tuple[list[Path], tuple[str, ...], Callable[[int], torch.Tensor]]:
    """Pictures that are paired with the masks of a split by their names."""
    place = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in MASK_SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"'{place}' holds no picture ({', '.join(MASK_SUFFIXES)}).")
    index_of = {stem: index for index, stem in enumerate(real.stems)}
    chosen = _stems_of([path.stem for path in files], index_of.keys(), place)
    unknown = [path.name for path, stem in zip(files, chosen, strict=True) if stem not in index_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(files)} pictures in '{place}' are named after no mask of the split, such as "
            f"'{unknown[0]}'. Wanted STEM.png or STEM_NUMBER.png with stems such as '{real.stems[0]}'."
        )
    return files, chosen, lambda index: torch.from_numpy(real.mask(index_of[chosen[index]]))


def _stems_of(names: list[str], known: Set[str], place: Path) -> tuple[str, ...]:
    """The mask of each name: all are masks' own names, or all are STEM_NUMBER, or each is clearly one of the two."""
    numbered = [re.sub(r"_\d+$", "", name) for name in names]
    if known >= set(names):
        return tuple(names)
    if known >= set(numbered) and all(name != stem for name, stem in zip(names, numbered, strict=True)):
        return tuple(numbered)
    for name, stem in zip(names, numbered, strict=True):
        if name != stem and {name, stem} <= known:
            raise ValueError(
                f"'{name}' in '{place}' may be of the mask '{name}', or a sample of '{stem}'. Name all pictures "
                "STEM_NUMBER, or bring the folder that `generate` wrote, with its metadata.jsonl."
            )
    return tuple(name if name in known else stem for name, stem in zip(names, numbered, strict=True))


def _check_sizes(files: list[Path], resolution: tuple[int, int]) -> None:
    """Refuse images of another size than the photos: every figure would speak of the resizing."""
    for path in files:
        try:
            with Image.open(path) as picture:
                (width, height), mode = picture.size, picture.mode
        except OSError as err:
            raise ValueError(f"image '{path}' cannot be read ({err}). Is it truncated, or not an image?") from err
        if mode.startswith(("I", "F")):  # Pillow would cut it off at 255: a white image
            raise ValueError(f"image '{path}' has 16 bits a pixel or more ({mode}); wanted 8. Save it as RGB.")
        if (height, width) != resolution:
            raise ValueError(
                f"image '{path}' is {height} x {width}, the photos are {resolution[0]} x {resolution[1]} (height x "
                f"width); wanted one size. Prepare the data set again with --resolution {height}x{width}."
            )


def _read_image(path: Path) -> torch.Tensor:
    pixels = np.asarray(open_image(path, "image").convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # (3, H, W)
