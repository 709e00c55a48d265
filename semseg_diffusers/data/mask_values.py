"""What the numbers of a dataset's masks are: decided once, from all masks and their whole palettes, and said.

Each mask says how it can be read (`mask_values` of the pipelines' Hub file). All of one channel, and all in RGB, are
read in the way that suits each of them. Where EXIF rotates images, it is also decided whether masks are rotated.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.pipelines.mask_inputs import open_image


MEANINGS = {"ids": "class ids", "colors": "colours of the classes", "red": "class ids in the red channel"}
Decided: TypeAlias = tuple[str | None, str | None]  # of masks of one channel (or a palette), and in RGB; None: open
UNDECIDED: Decided = (None, None)
Item = TypeVar("Item")


@dataclass(frozen=True)
class MaskEvidence:
    """What one mask, and the EXIF orientation of its image, say about how the dataset is to be read."""

    name: str
    values: str | None = None  # how it is read alone
    possible: tuple[str, ...] = ()  # all that suit
    in_color: bool = False  # RGB
    fits_stored: bool = False  # it has the size of the stored pixels of an image that EXIF rotates
    fits_upright: bool = False  # it has the size of that image rotated


def in_color(mask: Image.Image) -> bool:
    """Return whether a mask is RGB, with or without alpha."""
    return mask.mode.startswith("RGB")


def read_evidence(labels: LabelSet, mask: Image.Image, name: object) -> MaskEvidence:
    """Return what one mask says about how it is read."""
    return MaskEvidence(str(name), *labels.mask_values(mask), in_color(mask))


def decide_masks(
    labels: LabelSet, read: Callable[[Item], tuple[Image.Image, object]], items: Iterable[Item]
) -> Decided:
    """Return how all masks are read, decoded in threads by `read`, which returns a mask and its name.

    Raises:
        ValueError: see `decide_values`.
    """

    def inspect(item: Item) -> MaskEvidence:
        try:
            return read_evidence(labels, *read(item))
        except (ValueError, OSError):  # reported when it is used
            return MaskEvidence(str(item))

    with ThreadPoolExecutor() as pool:
        return decide_values(pool.map(inspect, items), "prepare --mask_values")[0]


def encode_decided(
    labels: LabelSet, mask: Image.Image, name: object, tolerance: float, decided: Decided
) -> np.ndarray:
    """Return the class ids of a mask as the dataset's masks are read, if that suits it, by `LabelSet.encode`."""
    values = decided[in_color(mask)]
    if values is not None:
        own, possible = labels.mask_values(mask)
        if possible and values not in possible:
            raise ValueError(
                f"mask '{name}' holds {MEANINGS[own or possible[0]]}, and those of its dataset are read as "
                f"{MEANINGS[values]}. Convert it, or prepare the masks separately."
            )
        values = values if possible else None  # refused in its own words
    return labels.encode(mask, tolerance, name, values)


class MaskReader:
    """Reads the files of a folder of masks as class ids, (H, W) uint8, in one way that suits all of them.

    Raises:
        ValueError: on construction if the masks disagree, see `decide_values`.
    """

    def __init__(self, labels: LabelSet, paths: Sequence[Path], tolerance: float = 0.0):
        self.labels, self.tolerance = labels, tolerance
        alone = len(paths) < 2  # nothing to compare
        self._decided = UNDECIDED if alone else decide_masks(labels, lambda path: (open_image(path), path), paths)

    def read(self, path: Path) -> np.ndarray:
        """Return the class ids of one of the masks."""
        return encode_decided(self.labels, open_image(path), path, self.tolerance, self._decided)


def decide_values(evidence: Iterable[MaskEvidence], option: str = "--mask_values") -> tuple[Decided, tuple[str, ...]]:
    """Return how all masks are read, and sentences about those that alone would leave it open.

    Raises:
        ValueError: no way suits all masks, or several do and nothing says which.
    """
    known = [each for each in evidence if each.possible]
    grey, color = (_decide([each for each in known if each.in_color == rgb], option) for rgb in (False, True))
    return (grey[0], color[0]), (*grey[1], *color[1])


def _decide(known: Sequence[MaskEvidence], option: str) -> tuple[str | None, tuple[str, ...]]:
    if not known:
        return None, ()
    shared = [way for way in MEANINGS if all(way in each.possible for each in known)]
    if not shared:
        only = {way: [each.name for each in known if each.possible == (way,)] for way in MEANINGS}
        ways = "; ".join(f"{MEANINGS[way]} in {_some(names)}" for way, names in only.items() if names)
        raise ValueError(
            f"masks disagree in what their numbers are: {ways}. Convert them to one form, prepare them separately, or "
            f"name it: {option} {' or '.join(way for way, names in only.items() if names)}."
        )
    alone = {each.values for each in known}
    chosen: str | None = next((way for way in ("colors", "ids") if way in shared and way in alone), None)
    if len(shared) == 1:
        chosen = shared[0]
        if chosen not in alone:  # black images in RGB, of which none shows ids: refused when they are read
            return None, ()
    if chosen is None:
        raise ValueError(
            "masks of one channel hold values that are class ids as well as grey colours of classes, in all "
            f"{_some([each.name for each in known])}. Name it: {option} ids or {option} colors."
        )
    others = sum(each.values != chosen for each in known)
    if others:
        sure = len(known) - others
        return chosen, (f"masks are read as {MEANINGS[chosen]}: {sure} of {len(known)} are, the others could be both",)
    if chosen == "red":
        return chosen, (f"masks are read as {MEANINGS[chosen]}: green and blue are 0 in all",)
    if chosen == "colors" and not known[0].in_color and any("ids" in each.possible for each in known):
        return chosen, ("masks of one channel are read as grey colours of the classes, 255 as a class",)
    return chosen, ()


def decide_orientation(evidence: Iterable[MaskEvidence]) -> tuple[bool, tuple[str, ...]]:
    """Return whether masks show the stored pixels of images that EXIF rotates, and what to say about it.

    Raises:
        ValueError: some do and others do not, or their sizes do not tell.
    """
    rotated = [each for each in evidence if each.fits_stored or each.fits_upright]
    if not rotated:
        return False, ()
    count = f"{len(rotated)} images are rotated by their EXIF orientation"
    stored = [each.name for each in rotated if each.fits_stored and not each.fits_upright]
    upright = [each.name for each in rotated if each.fits_upright and not each.fits_stored]
    if stored and upright:
        raise ValueError(
            f"{count}, and their masks disagree: the stored size have {_some(stored)}, the rotated size "
            f"{_some(upright)}. Prepare them separately."
        )
    if not stored and not upright:
        raise ValueError(
            f"{count}, and the size of their masks does not tell whether these show the stored or the rotated pixels "
            f"({_some([each.name for each in rotated])}). Look at one, and give --mask_orientation stored or upright."
        )
    return bool(stored), (f"{count}; their masks were {'rotated alike' if stored else 'upright already'}",)


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
