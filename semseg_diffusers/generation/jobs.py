"""What there is to generate: the images wanted of each mask, and the seed that is an image's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Job:
    """One image to make."""

    mask_path: Path
    index: int  # which of the images of its mask; those of one index share their noise over all variations
    variation: str = ""  # its name in the grid

    @property
    def stem(self) -> str:
        return self.mask_path.stem

    @property
    def file_name(self) -> str:
        return "_".join(part for part in (self.stem, self.variation, str(self.index)) if part) + ".png"


def image_seed(seed: int, stem: str, index: int) -> int:
    """Return the seed of one image: a stable hash, so that no other image, order or batch size changes it.

    Example:
        >>> image_seed(0, "scene", 0)
        5781559387006414368
    """
    digest = hashlib.sha256(f"{seed}/{stem}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: torch and JSON readers both take it
