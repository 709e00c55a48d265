"""Map the classes of one label set, and its masks, to another.

First by name, then by the tables of classes.yaml: another name of the same class, otherwise a superclass, as datasets
are commonly merged (CamVid's 32 classes into 11, Mapillary's and IDD's into Cityscapes' 19).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from semseg_diffusers.data.labels import CLASSES, LabelSet
from semseg_diffusers.utils.files import read_text
from semseg_diffusers.utils.settings import parse_yaml


SYNONYMS = tuple(map(tuple, CLASSES["synonyms"]))
SUPERCLASSES = {name: tuple(entry["superclasses"]) for entry in CLASSES["superclasses"] for name in entry["classes"]}

KIND_OF_NAME = {name.replace(" ", ""): kind for kind, entry in CLASSES["kinds"].items() for name in entry["names"]}


def normalize(name: str) -> str:
    """Return a class name in one spelling: lower case, single spaces, no punctuation."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # SignSymbol
    return " ".join(re.sub(r"[^a-z0-9]+", " ", spaced.lower()).split())


def match_classes(names: Sequence[str], target: LabelSet) -> tuple[int | None, ...]:
    """Return for each class of one label set the id of its counterpart in another.

    The same name comes first, another name of the same class next, a superclass last. So classes that the target
    distinguishes are never merged, and several classes may have one counterpart.

    Args:
        names: class names in the order of their ids; of several names in one, split by commas as in ADE20K, the first
            that is known counts.
        target: the other label set.

    Returns:
        one id a name; None where the target has no counterpart.

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
    """Return the id of the first known name: as given, then other names of the same classes, then superclasses."""
    candidates = [*names, *(other for name in names for other in synonyms(name))]
    for name in candidates:  # grows while it is read
        for superclass in SUPERCLASSES.get(name, ()):
            candidates += [other for other in synonyms(superclass) if other not in candidates]
    return next((ids[name] for name in candidates if name in ids), None)


def synonyms(name: str) -> tuple[str, ...]:
    """Return all names of a class, normalized, with this one among them."""
    return next((group for group in SYNONYMS if name in group), (name,))


def kind_of(name: str) -> str | None:
    """Return what a class of this name is in a street, if the name or a synonym says so.

    Example:
        >>> kind_of("Pedestrian"), kind_of("SUVPickupTruck"), kind_of("sky")
        ('person', 'car', None)
    """
    joined = normalize(name).replace(" ", "")
    groups = ([other.replace(" ", "") for other in group] for group in SYNONYMS)
    names = (joined, *next((group for group in groups if joined in group), ()))
    return next((KIND_OF_NAME[each] for each in names if each in KIND_OF_NAME), None)


def all_kinds(labels: LabelSet) -> list[str | None]:
    """Return what each class is in a street: the kind in the label set, otherwise that of its name."""
    given = labels.kinds or (None,) * labels.num_classes
    return [kind or kind_of(name) for kind, name in zip(given, labels.names, strict=True)]


def read_mapping(path: str | os.PathLike) -> dict[str, list[str | int]]:
    """Read a mapping file, JSON or YAML: {class: names or ids of the classes that become it}.

    Raises:
        ValueError: it is no such mapping, or a class occurs twice.
    """
    expected = 'expected {"class": ["name", 26, ...], ...}, names or ids of the classes that become it'
    try:
        content = parse_yaml(read_text(path))
    except yaml.YAMLError as err:
        raise ValueError(f"mapping file '{path}': {' '.join(str(err).split())}; {expected}.") from err
    if not isinstance(content, dict) or not content:
        raise ValueError(f"mapping file '{path}' holds {content!r:.60}; {expected}.")
    mapping = {str(name): entries if isinstance(entries, list) else [entries] for name, entries in content.items()}
    for name, entries in mapping.items():
        if wrong := [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, (str, int))]:
            raise ValueError(f"mapping file '{path}': '{name}' has {wrong[0]!r}; {expected}.")
    all_entries = [entry for entries in mapping.values() for entry in entries]
    if repeated := [entry for entry in all_entries if all_entries.count(entry) > 1]:
        raise ValueError(f"mapping file '{path}' has {repeated[0]!r} twice; expected it in one class.")
    return mapping


def map_ids(ids: np.ndarray, mapping: Sequence[int | None], ignore_index: int = 255) -> np.ndarray:
    """Map class ids of any shape by the result of `match_classes`, to uint8; ids of no class become unknown."""
    return lookup_table(mapping, ignore_index)[np.clip(np.asarray(ids).astype(np.int64), -1, len(mapping))]


def lookup_table(mapping: Sequence[int | None], ignore_index: int = 255) -> np.ndarray:
    """Return uint8 (len(mapping) + 1,): the new id of each class, and unknown at its end, which -1 reaches too."""
    return np.array([ignore_index if new is None else new for new in (*mapping, None)], np.uint8)


def count_pixels(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pixels of each class in a mask of unsigned integers, and of "unknown" at the end: (C + 1,) int64."""
    return np.bincount(np.minimum(ids, num_classes).reshape(-1), minlength=num_classes + 1)


@dataclass(frozen=True)
class LabelMapping:
    """How masks of one label set become masks of another: by the names of classes (`match_classes`), or as given.

    Classes without a counterpart become unknown; unknown pixels stay unknown.

    Args:
        source (`LabelSet`): the classes of the masks.
        target (`LabelSet`): the classes that they become.
        ids (`tuple[int | None, ...]`, *optional*): id of the target for each class of the source, None for unknown.

    Raises:
        ValueError: the label sets have nothing in common.

    Example:
        >>> to_paper = LabelMapping(LabelSet.from_preset("bdd100k"), LabelSet.from_preset("paper"))
        >>> to_paper.names[:2]
        (('road', 'background'), ('sidewalk', 'sidewalk'))
    """

    source: LabelSet
    target: LabelSet
    ids: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", match_classes(self.source.names, self.target))
        if set(self.ids) == {None}:
            raise ValueError(
                f"the label sets have nothing in common: none of {some_names(self.source)} has a counterpart among "
                f"{some_names(self.target)}. Is one of them another than you meant? Otherwise name the classes alike "
                "in a JSON file."
            )

    @property
    def names(self) -> tuple[tuple[str, str | None], ...]:
        """Return each class of the source with its counterpart, in the order of the ids."""
        counterparts = (None if i is None else self.target.names[i] for i in self.ids)
        return tuple(zip(self.source.names, counterparts, strict=True))

    def map(self, ids: np.ndarray) -> np.ndarray:
        """Map ids of the source to ids of the target: uint8 of the same shape."""
        return map_ids(ids, self.ids, self.target.ignore_index)

    def count(self, ids: np.ndarray) -> np.ndarray:
        """Return the pixels of each class of the source, int64 (num_classes,); unknown ones are not counted."""
        return np.bincount(np.ravel(ids), minlength=256)[: self.source.num_classes]

    def lost_share(self, pixels: np.ndarray) -> float:
        """Return the share of labelled pixels that become unknown."""
        lost = sum(int(pixels[i]) for i, new in enumerate(self.ids) if new is None)
        return lost / max(1, int(pixels.sum()))

    def describe(self, pixels: np.ndarray) -> str:
        """Return one line on what became unknown, of masks with so many pixels of each class (the sum of `count`).

        Example:
            >>> camvid = LabelSet.from_preset("camvid")
            >>> zoo = LabelSet(("Car", "lion", "zebra"), ((1, 0, 0), (2, 0, 0), (3, 0, 0)))
            >>> LabelMapping(zoo, camvid).describe(np.array([9000, 1, 999]))
            '1,000 of 10,000 labelled pixels (10 %) became unknown, having no counterpart: zebra 9.99 %, lion 0.01 %'
        """
        total = int(pixels.sum())
        lost = [(int(pixels[i]), self.source.names[i]) for i, new in enumerate(self.ids) if new is None and pixels[i]]
        if not lost:
            return f"all {total:,} labelled pixels have a counterpart"
        shares = [f"{name} {100 * n / total:.3g} %" for n, name in sorted(lost, key=lambda entry: -entry[0])]
        all_lost = sum(n for n, _ in lost)
        return (
            f"{all_lost:,} of {total:,} labelled pixels ({100 * all_lost / total:.3g} %) became unknown, having no "
            f"counterpart: {', '.join(shares)}"
        )


def some_names(labels: LabelSet) -> str:
    """Return the first classes of a label set, for a message."""
    return ", ".join(labels.names[:4]) + (", ..." if labels.num_classes > 4 else "")
