"""Merge classes as a mapping file says, for every reader: names of the source's classes, or numbers in its masks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from semseg_diffusers.data.label_mapping import LabelMapping, all_kinds, normalize
from semseg_diffusers.data.labels import CLASSES, LabelSet, distinct_colors, free_color, ids_in_files


VEHICLES = {"car", "truck", "bus", "vehicle"}
OTHER_NUMBERS = "other numbers"  # the class of all that a mapping of numbers omits
OBJECTS = {kind for kind, entry in CLASSES["kinds"].items() if "metres" in entry}


def numbers(mapping: Mapping[str, Sequence[str | int]]) -> tuple[int, ...]:
    """Return the numbers of masks that a mapping names, if it names nothing else."""
    entries = [entry for entries in mapping.values() for entry in entries]
    found = sorted(entry for entry in entries if isinstance(entry, int))
    return tuple(found) if len(found) == len(entries) else ()


def labels_of_ids(ids: Sequence[int], ignore_index: int | None = None) -> LabelSet:
    """Return a label set in which numbers of masks are classes, all others one more, and 255 is unknown.

    A mapping omits the class of the others, so that their pixels are counted as lost.
    """
    if ignore_index in ids:
        raise ValueError(f"--ignore_index is {ignore_index}; expected a number that --mapping does not name.")
    others = {i: len(ids) for i in range(255) if i not in ids}
    unknown = {} if ignore_index is None else {ignore_index: 255}
    labels = LabelSet.from_names([*(f"id {i}" for i in ids), OTHER_NUMBERS])
    return replace(labels, changed_ids=ids_in_files(ids, others | unknown))


def merge_classes(
    source: Any, mapping: Mapping[str, Sequence[str | int]], target: LabelSet | None = None
) -> tuple[Any, LabelMapping]:
    """Return how the classes of a source become those of a mapping, which decides alone: what it omits is unknown.

    Args:
        source (`Source`): as a reader found it.
        mapping: new class -> names of the source's classes, or numbers in its masks.
        target: the new classes; by default those of the mapping, in its order, with colours of the source.

    Returns:
        the source, in which numbers that the mapping names are classes, and the mapping of its classes.

    Raises:
        ValueError: there is no such class, or no such number can be in the masks.
    """
    named = [entry for entries in mapping.values() for entry in entries if isinstance(entry, int)]
    if outside := [i for i in named if not 0 <= i <= 255]:
        raise ValueError(f"--mapping names the number {outside[0]}; masks hold 0 to 255.")
    source, groups = _split_merged(source)
    source = _split_numbers(source, named)
    labels = source.labels
    if target is not None and (strange := [name for name in mapping if name not in target.label2id]):
        raise ValueError(f"--mapping names '{strange[0]}', and --map_to has the classes {', '.join(target.names)}.")
    names = {normalize(name): [i] for i, name in enumerate(labels.names)}
    found: dict[str, list[int]] = {}
    for name, entries in mapping.items():
        found[name] = []
        for entry in entries:
            key = f"id {entry}" if isinstance(entry, int) else normalize(entry)
            ids = names.get(key) or groups.get(key)
            if ids is None:
                known = ", ".join(name for name in labels.names if not name.startswith("id "))
                raise ValueError(f"--mapping names '{entry}' for '{name}', and the classes are {known}.")
            found[name] += ids
    taken = [i for ids in found.values() for i in ids]
    if repeated := [i for i in taken if taken.count(i) > 1]:
        raise ValueError(f"--mapping has '{labels.names[repeated[0]]}' in two classes; expected it in one.")
    target = target or _new_labels(found, labels)
    new_ids: list[int | None] = [None] * labels.num_classes
    for name, ids in found.items():
        for i in ids:
            new_ids[i] = target.label2id[name]
    return source, LabelMapping(labels, target, tuple(new_ids))


def _split_merged(source: Any) -> tuple[Any, dict[str, list[int]]]:
    """Return a source with the classes of its files, which a reader had merged, and what was merged, by name."""
    if source.file_labels is None:
        return source, {}
    groups: dict[str, list[int]] = {}
    for old, new in source.changed_ids.items():
        groups.setdefault(normalize(source.labels.names[new]), []).append(old)
    return replace(source, labels=source.file_labels, file_labels=None, changed_ids={}), groups


def _split_numbers(source: Any, named: Sequence[int]) -> Any:
    """Return a source in which some numbers of its masks are classes of their own, called "id NUMBER"."""
    labels = source.labels
    new = [i for i in named if f"id {i}" not in labels.names]
    if not new:
        return source
    regions = isinstance(source.pairs, tuple) and any(hasattr(pair.mask, "rasterize") for pair in source.pairs)
    if regions or source.mask_values in ("colors", "red"):
        what = "regions" if regions else "colours"
        raise ValueError(f"--mapping names the number {new[0]}, and the masks are {what}; expected names of classes.")
    count = labels.num_classes
    table = {**dict(labels.changed_ids), **source.changed_ids}
    if labels.ignore_index != 255:
        table.setdefault(labels.ignore_index, 255)
    table |= {i: -1 for i in range(count, count + len(new)) if i not in table}
    table = {old: 255 if id_ == labels.ignore_index else id_ for old, id_ in table.items()}
    table |= {number: count + k for k, number in enumerate(new)}
    names = (*labels.names, *(f"id {i}" for i in new))
    colors = list(labels.colors)
    colors += [color for color in distinct_colors(256) if color not in colors][: len(new)]
    kinds = (*labels.kinds, *(None for _ in new)) if labels.kinds else ()
    extended = LabelSet(
        names, tuple(colors), ignore_color=free_color(colors), reads_colors=labels.reads_colors, kinds=kinds
    )
    return replace(source, labels=extended, changed_ids=table, mask_values="ids")


def _new_labels(found: Mapping[str, Sequence[int]], labels: LabelSet) -> LabelSet:
    """Return the classes of a mapping: their colours and kinds are those of what becomes them, where these agree."""
    colors: list[tuple[int, int, int]] = []
    kinds, known = [], all_kinds(labels)
    spare = [color for color in distinct_colors(256) if color not in labels.colors]
    for ids in found.values():
        named = [i for i in ids if not labels.names[i].startswith("id ")]
        colors.append(labels.colors[named[0]] if named else spare[len(colors)])
        parts = {known[i] for i in named}
        mixed = "vehicle" if parts <= VEHICLES else "object" if parts <= OBJECTS else None
        kinds.append((parts.pop() if len(parts) == 1 else mixed) if parts else None)
    return LabelSet(tuple(found), tuple(colors), ignore_color=free_color(colors), kinds=tuple(kinds))
