"""Which class of one label set stands for a class of another, and masks taken from one to the other.

First by name, then by the tables below: the same thing under another name, else a wider class that holds it, as data
sets are commonly merged (CamVid's 32 classes into 11, Mapillary's and IDD's into Cityscapes' 19).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from semseg_diffusers.data.labels import LabelSet


# Names of one and the same thing, normalized.
SYNONYMS = (
    ("person", "pedestrian", "people", "human", "individual"),
    ("rider", "bicyclist", "cyclist", "motorcyclist", "other rider"),
    ("vegetation", "tree", "trees", "vegetation misc", "plant", "bush", "plant life"),
    ("terrain", "grass", "earth", "field", "ground vegetation", "non drivable fallback"),
    ("sidewalk", "pavement", "footpath", "pedestrian area"),
    ("traffic sign", "sign symbol", "traffic sign front", "sign", "signboard"),
    ("traffic light", "traffic signal", "stoplight"),
    ("pole", "column pole", "utility pole", "street light", "streetlight", "poles", "pole group"),
    ("car", "automobile", "suv pickup truck", "suvpickup truck", "passenger car"),
    ("truck", "lorry"),
    ("bus", "coach"),
    ("motorcycle", "motorbike", "minibike", "motorcycle scooter", "scooter"),
    ("bicycle", "bike"),
    ("train", "on rails", "tram", "streetcar"),
    ("building", "edifice", "house", "skyscraper"),
    ("fence", "fencing", "railing"),
    ("wall", "retaining wall"),
    ("road", "street", "route", "lane", "carriageway"),
    ("lane marking", "lane mkgs driv", "lane marking general", "road marking", "lane mkgs non driv"),
    ("unknown", "void", "unlabelled", "unlabeled", "ignore"),
)
# A thing -> the wider classes that hold it, the nearest first.
WIDER = {
    "truck": ("truck bus", "car"),
    "bus": ("truck bus", "car"),
    "train": ("car",),
    "truck bus": ("truck", "car"),
    "other moving": ("car",),
    "caravan": ("truck", "car"),
    "trailer": ("truck", "car"),
    "autorickshaw": ("car",),
    "bicycle": ("rider",),
    "motorcycle": ("bicycle", "rider"),
    "child": ("person",),
    "rider": ("person",),
    "terrain": ("vegetation",),
    "wall": ("building",),
    "bridge": ("building",),
    "tunnel": ("building",),
    "archway": ("building",),
    "guard rail": ("fence",),
    "barrier": ("fence", "wall"),
    "traffic light": ("traffic sign",),
    "traffic sign back": ("traffic sign",),
    "traffic sign frame": ("traffic sign",),
    "misc text": ("traffic sign",),
    "traffic cone": ("pole",),
    "lane marking": ("road",),
    "crosswalk plain": ("road",),
    "lane marking crosswalk": ("road",),
    "bike lane": ("road",),
    "service lane": ("road",),
    "parking": ("road",),
    "road shoulder": ("sidewalk",),
    "parking block": ("sidewalk",),
    "curb": ("sidewalk",),
    "curb cut": ("sidewalk",),
    "road": ("background",),  # the paper's set has no road: it lies in the background
}


def normalize(name: str) -> str:
    """Return a class name in one spelling: small letters, single blanks, no signs.

    Example:
        >>> normalize("Traffic_Sign"), normalize("Column-Pole "), normalize("Sign (Front)")
        ('traffic sign', 'column pole', 'sign front')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # SignSymbol
    return " ".join(re.sub(r"[^a-z0-9]+", " ", spaced.lower()).split())


def match_classes(names: Sequence[str], target: LabelSet) -> tuple[int | None, ...]:
    """Find for each class of one set the id that it has in another.

    A class that the target knows by name takes that one; another name of the same thing comes next, a wider class
    last. So what the target tells apart is never merged, and several classes may come to one.

    Args:
        names: class names in the order of their ids; of several names in one, split by commas as in ADE20K, the first
            that is known counts.
        target: the set to find them in.

    Returns:
        one id a name; None where the target has nothing for it.

    Example:
        >>> camvid = LabelSet.from_preset("camvid")
        >>> [None if i is None else camvid.names[i] for i in match_classes(["pedestrian", "Bus", "animal"], camvid)]
        ['person', 'car', None]
    """
    ids: dict[str, int] = {}
    for index, name in enumerate(target.names):
        ids.setdefault(normalize(name), index)
    return tuple(_find([normalize(part) for part in name.split(",")], ids) for name in names)


def _find(names: list[str], ids: dict[str, int]) -> int | None:
    """Return the id of the first thing that is known: the names, then the same things, then ever wider ones."""
    candidates = list(names)
    for name in names:
        candidates += _same_things(name)
    for name in candidates:  # grows while it is read
        for wider in WIDER.get(name, ()):
            candidates += [other for other in _same_things(wider) if other not in candidates]
    return next((ids[name] for name in candidates if name in ids), None)


def _same_things(name: str) -> tuple[str, ...]:
    return next((group for group in SYNONYMS if name in group), (name,))


def map_ids(ids: np.ndarray, mapping: Sequence[int | None], ignore_index: int = 255) -> np.ndarray:
    """Take class ids from one set to another.

    Args:
        ids: integers of any shape; what is no class of the mapping, such as an unknown pixel, becomes unknown.
        mapping: what `match_classes` returns.
        ignore_index: the id of unknown pixels in the result.

    Returns:
        uint8 of the same shape.

    Example:
        >>> map_ids(np.array([0, 1, 2, 255]), (4, None, 4))
        array([  4, 255,   4, 255], dtype=uint8)
    """
    return lookup_table(mapping, ignore_index)[np.clip(np.asarray(ids).astype(np.int64), -1, len(mapping))]


def lookup_table(mapping: Sequence[int | None], ignore_index: int = 255) -> np.ndarray:
    """Return uint8 (len(mapping) + 1,): the new id of each class, and unknown at its end, which -1 reaches too."""
    return np.array([ignore_index if new is None else new for new in (*mapping, None)], np.uint8)


def count_pixels(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pixels of each class in a mask, and of "unknown" at the end.

    Args:
        ids (`np.ndarray`): class ids, (H, W) unsigned integers; other values are unknown.
        num_classes (`int`): C.

    Returns:
        `np.ndarray`: (C + 1,) int64.

    Example:
        >>> count_pixels(np.array([[0, 0, 2], [1, 0, 255]], dtype=np.uint8), num_classes=3).tolist()
        [3, 1, 1, 1]
    """
    return np.bincount(np.minimum(ids, num_classes).reshape(-1), minlength=num_classes + 1)


@dataclass(frozen=True)
class LabelMapping:
    """How masks of one label set become masks of another: by the names of their classes (`match_classes`).

    What has no counterpart becomes unknown, and what is unknown stays so.

    Args:
        source (`LabelSet`): the classes that the masks are in.
        target (`LabelSet`): the classes that they come to.

    Raises:
        ValueError: the two sets have nothing in common.

    Example:
        >>> to_paper = LabelMapping(LabelSet.from_preset("bdd100k"), LabelSet.from_preset("paper"))
        >>> to_paper.names[:2]
        (('road', 'background'), ('sidewalk', 'sidewalk'))
    """

    source: LabelSet
    target: LabelSet
    ids: tuple[int | None, ...] = field(init=False)  # of the target, one for each class of the source

    def __post_init__(self):
        object.__setattr__(self, "ids", match_classes(self.source.names, self.target))
        if set(self.ids) == {None}:
            raise ValueError(
                f"the label sets have nothing in common: none of {some_names(self.source)} has a counterpart among "
                f"{some_names(self.target)}. Is one of them another than you meant? Else name the classes alike in a "
                "JSON file."
            )

    @property
    def names(self) -> tuple[tuple[str, str | None], ...]:
        """Each class of the source with its counterpart, in the order of the ids."""
        counterparts = (None if i is None else self.target.names[i] for i in self.ids)
        return tuple(zip(self.source.names, counterparts, strict=True))

    def map(self, ids: np.ndarray) -> np.ndarray:
        """Take ids of the source to ids of the target: uint8 of the same shape."""
        return map_ids(ids, self.ids, self.target.ignore_index)

    def count(self, ids: np.ndarray) -> np.ndarray:
        """The pixels of each class of the source, int64 (num_classes,); unknown ones are not counted."""
        return np.bincount(np.ravel(ids), minlength=256)[: self.source.num_classes]

    def describe(self, pixels: np.ndarray) -> str:
        """One line on what became unknown, of masks with so many pixels of each class (the sum of `count`).

        Example:
            >>> camvid = LabelSet.from_preset("camvid")
            >>> zoo = LabelSet(("Car", "lion", "zebra"), ((1, 0, 0), (2, 0, 0), (3, 0, 0)))
            >>> LabelMapping(zoo, camvid).describe(np.array([9000, 1, 999]))
            '1,000 of 10,000 labelled pixels (10 %) became unknown, having no counterpart: zebra 9.99 %, lion 0.01 %'
        """
        total = int(pixels.sum())
        lost = {i: int(pixels[i]) for i, new in enumerate(self.ids) if new is None and pixels[i]}
        if not lost:
            return f"all {total:,} labelled pixels have a counterpart"
        shares = ", ".join(
            f"{self.source.names[i]} {_percent(lost[i], total)}" for i in sorted(lost, key=lost.get, reverse=True)
        )
        lost_in_all = sum(lost.values())
        return (
            f"{lost_in_all:,} of {total:,} labelled pixels ({_percent(lost_in_all, total)}) became unknown, having no "
            f"counterpart: {shares}"
        )


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.3g} %"


def some_names(labels: LabelSet) -> str:
    """The first classes of a label set, for a message."""
    return ", ".join(labels.names[:4]) + (", ..." if labels.num_classes > 4 else "")
