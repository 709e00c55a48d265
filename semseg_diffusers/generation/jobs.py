"""What there is to generate: the masks, the images wanted of each, and the seed that is an image's own."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")


@dataclass(frozen=True, order=True)
class Job:
    """One image to make."""

    mask_path: Path
    index: int  # which of the images of its mask

    @property
    def stem(self) -> str:
        return self.mask_path.stem

    @property
    def file_name(self) -> str:
        return f"{self.stem}_{self.index}.png"


def image_seed(seed: int, stem: str, index: int) -> int:
    """Return the seed of one image: a stable hash, so that no other image, order or batch size changes it.

    Example:
        >>> image_seed(0, "scene", 0)
        5781559387006414368
    """
    digest = hashlib.sha256(f"{seed}/{stem}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch and JSON readers both take it


def find_masks(masks: str | os.PathLike) -> list[Path]:
    """Return the mask files of a folder and its sub-folders in order of their path, or the one file given.

    Raises:
        FileNotFoundError: where nothing is there.
        ValueError: for a folder without pictures, or two masks of one stem, which would give images of one name.
    """
    masks = Path(masks)
    if masks.is_file():
        return [masks]
    if not masks.is_dir():
        raise FileNotFoundError(f"no mask file and no folder of masks at '{masks}'")
    paths = sorted(
        path
        for path in masks.rglob("*")
        if path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ValueError(f"folder '{masks}' holds no mask; wanted pictures ({', '.join(MASK_SUFFIXES)})")
    first_with: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_with:
            raise ValueError(
                f"masks '{first_with[path.stem]}' and '{path}' have the same stem, so their images would have the "
                "same name. Rename one, or generate from each folder into an output of its own."
            )
        first_with[path.stem] = path
    return paths
