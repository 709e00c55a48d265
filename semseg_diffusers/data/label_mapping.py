"""Which class of one label set stands for a class of another, and masks taken from one to the other.

First by name, then by the tables below: the same thing under another name, else a wider class that holds it, as data
sets are commonly merged (CamVid's 32 classes into 11, Mapillary's and IDD's into Cityscapes' 19).
"""

import re
from collections.abc import Sequence

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
