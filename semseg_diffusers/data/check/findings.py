"""Turns what was seen in single files into findings about a whole set: what is wrong, how often, where, what to do.
An error is what `prepare` or training would refuse, or what makes results wrong; a warning is what a user should know.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from semseg_diffusers.data.check.inspection import PairFacts, color_distances, near_duplicates, same_pictures
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet


EXAMPLES = 5  # files named in a finding
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a set."""

    severity: str  # "error" or "warning"
    kind: str  # a short name that does not change
    what: str
    count: int
    examples: tuple[str, ...]  # the first few
    advice: str
    details: dict = field(default_factory=dict)  # further JSON values
    more: int = 0  # what `examples` leaves out


def files_finding(severity: str, kind: str, what: str, files: Sequence, advice: str, **details) -> list[Finding]:
    """A finding about files; none where there are no files."""
    if not files:
        return []
    more = max(len(files) - EXAMPLES, 0)
    return [Finding(severity, kind, what, len(files), tuple(map(str, files[:EXAMPLES])), advice, details, more)]


def pair_findings(facts: Sequence[PairFacts], labels: LabelSet | None) -> list[Finding]:
    """All findings about pairs that were inspected."""
    found = [*_unreadable(facts), *_sizes(facts), *_masks(facts), *_photos(facts)]
    if labels is not None:
        found += [*_wrong_ids(facts, labels), *_wrong_colors(facts, labels), *_classes(facts, labels)]
    return found + _duplicates(facts)


# Files -------------------------------------------------------------------------------------------------------------


def unreadable_findings(empty: Sequence[str], broken: Sequence[tuple[str, str]]) -> list[Finding]:
    """Findings about pictures that cannot be read.

    Args:
        empty: files of 0 bytes.
        broken: other files, and why.
    """
    again = "copy or download them again, or take the pairs out"
    return [
        *files_finding(ERROR, "empty file", "files of 0 bytes", empty, again),
        *files_finding(
            ERROR,
            "unreadable file",
            "files that cannot be read",
            [path for path, _ in broken],
            again,
            reasons=dict(broken[: 10 * EXAMPLES]),
        ),
    ]


def _unreadable(facts: Sequence[PairFacts]) -> list[Finding]:
    empty = [path for entry in facts for path in entry.empty]
    faults = [(entry.photo, entry.photo_fault) for entry in facts if entry.photo_fault]
    faulty = [entry for entry in facts if entry.mask_fault]
    faults += [(entry.mask, entry.mask_fault) for entry in faulty if entry.mask_size is None]
    wrong = {entry.mask: entry.mask_fault for entry in faulty if entry.mask_size is not None}
    first = next(iter(wrong.values()), "")
    return [
        *unreadable_findings(empty, [fault for fault in faults if fault[0] not in set(empty)]),
        *files_finding(
            ERROR,
            "no mask",
            "pictures that are no masks",
            list(wrong),
            first,
            reasons=dict(list(wrong.items())[: 10 * EXAMPLES]),
        ),
    ]


def _sizes(facts: Sequence[PairFacts]) -> list[Finding]:
    both = [entry for entry in facts if entry.photo_size and entry.mask_size]
    differing = [
        f"{entry.photo} is {_size(entry.photo_size)}, {Path(entry.mask).name} {_size(entry.mask_size)}"
        for entry in both
        if entry.photo_size != entry.mask_size
    ]
    sizes = Counter(entry.photo_size for entry in facts if entry.photo_size)
    found = files_finding(
        ERROR,
        "size of mask",
        "masks of another size than their photo (height x width)",
        differing,
        "was one of the two resized, cropped or turned? Export the masks at the size of the photos",
    )
    if len(sizes) > 1:
        named = [f"{_size(size)} ({count} photos)" for size, count in sizes.most_common()]
        advice = "training wants one size: prepare with --resolution N or HxW, not native"
        found += files_finding(WARNING, "several sizes", "sizes of photos (height x width)", named, advice)
    return found


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _photos(facts: Sequence[PairFacts]) -> list[Finding]:
    modes = [f"{entry.photo} ({entry.photo_mode})" for entry in facts if entry.photo_mode]
    plain = [entry.photo for entry in facts if entry.one_color]
    return [
        *files_finding(
            ERROR,
            "mode of photo",
            "photos without 8 bits a channel",
            modes,
            "convert them to RGB with 8 bits a channel",
        ),
        *files_finding(
            WARNING,
            "plain photo",
            "photos of a single colour",
            plain,
            "look at them: are they lens caps, or failures?",
        ),
    ]


# Masks -------------------------------------------------------------------------------------------------------------


def _masks(facts: Sequence[PairFacts]) -> list[Finding]:
    lossy = [entry.mask for entry in facts if entry.jpeg_mask]
    unknown = [
        entry.mask
        for entry in facts
        if entry.class_pixels is not None and entry.class_pixels[-1] == entry.class_pixels.sum()
    ]
    return [
        *files_finding(
            ERROR,
            "JPEG mask",
            "masks saved as JPEG, which changes ids and colours",
            lossy,
            "export the masks again as PNG; what compression has changed cannot be told from classes",
        ),
        *files_finding(
            WARNING,
            "unknown mask",
            "masks that are unknown everywhere",
            unknown,
            "a model learns nothing of classes from them; label them or take the pairs out",
        ),
    ]


def _wrong_ids(facts: Sequence[PairFacts], labels: LabelSet) -> list[Finding]:
    known = {*range(labels.num_classes), labels.ignore_index}
    pixels, files = Counter(), Counter()
    for entry in facts:
        pixels.update(entry.ids)
        files.update(entry.ids.keys())
    if not pixels:
        return []
    wrong = sorted(pixels.keys() - known, key=lambda value: -pixels[value])
    try:
        labels.check_ids(np.array(list(pixels)))
    except ValueError as err:
        hint = str(err).rpartition("(ignore). ")[2]
    else:
        raise AssertionError("ids that are no class have passed the check of ids")
    values = {str(value): {"files": files[value], "pixels": pixels[value]} for value in wrong}
    named = [f"id {v} in {files[v]} files, {pixels[v]} pixels" for v in wrong]
    masks = [entry.mask for entry in facts if entry.ids]
    what = f"masks with ids that are no class of 0-{labels.num_classes - 1} or {labels.ignore_index} (unknown)"
    examples = (*named[:EXAMPLES], *masks[:EXAMPLES])
    more = max(len(masks) - EXAMPLES, 0)
    return [Finding(ERROR, "ids out of range", what, len(masks), examples, hint, {"ids": values}, more)]


def _wrong_colors(facts: Sequence[PairFacts], labels: LabelSet) -> list[Finding]:
    pixels, files = Counter(), Counter()
    for entry in facts:
        pixels.update(entry.colors)
        files.update(entry.colors.keys())
    if not pixels:
        return []
    order = [color for color, _ in pixels.most_common()]
    named = [f"{color} in {files[color]} files, {pixels[color]} pixels" for color in order]
    details = {
        "#{:02x}{:02x}{:02x}".format(*color): {"files": files[color], "pixels": pixels[color]}
        for color in order[: 20 * EXAMPLES]
    }
    masks = [entry.mask for entry in facts if entry.colors]
    advice = _colors_advice(order, labels)
    examples = (*named[:EXAMPLES], *masks[:EXAMPLES])
    what = f"masks with colours that no class has ({len(order)} colours)"
    more = max(len(masks) - EXAMPLES, 0)
    return [Finding(ERROR, "unknown colours", what, len(masks), examples, advice, {"colors": details}, more)]


def _colors_advice(colors: list[tuple[int, int, int]], labels: LabelSet) -> str:
    """The likely cause of colours that no class has, the most frequent first."""
    for name in PRESET_NAMES:
        preset = LabelSet.from_preset(name)
        if len(set(colors) & {*preset.colors, preset.ignore_color}) > len(colors) / 2:
            return f"these are colours of the label set {name}: use --labels {name}, or the format that brings it"
    if all(red == green == blue for red, green, blue in colors):
        return "all are grey: if they are class ids, save the masks with one channel"
    distances = color_distances(np.array(colors), labels)
    if len(colors) > 10:
        return (
            "so many colours come from smoothing at edges, or from JPEG: export without either, or take the nearest "
            f"class with --tolerance (half of them lie within {math.ceil(np.median(distances))})"
        )
    return "use the label set that the masks were painted with, or --tolerance to take the nearest class"


def _classes(facts: Sequence[PairFacts], labels: LabelSet) -> list[Finding]:
    """Classes that the training masks never show, and those that only other splits show."""
    of_split: dict[str, np.ndarray] = {}
    for entry in facts:
        if entry.class_pixels is not None:
            of_split[entry.split] = of_split.get(entry.split, 0) + entry.class_pixels[:-1]
    if not of_split:
        return []
    anywhere = sum(of_split.values())
    train = of_split.get("train", anywhere)
    never = [name for name, count in zip(labels.names, anywhere, strict=True) if not count]
    elsewhere = [name for name, a, t in zip(labels.names, anywhere, train, strict=True) if a and not t]
    advice = "a model cannot learn them here; add images that show them, or leave them out of masks to generate from"
    kinds = (
        ("class never seen", "classes that no mask shows", never),
        ("class not in train", "classes that other splits show and train does not", elsewhere),
    )
    return [
        Finding(WARNING, kind, what, len(names), (", ".join(names),), advice) for kind, what, names in kinds if names
    ]


# Duplicates --------------------------------------------------------------------------------------------------------


def _duplicates(facts: Sequence[PairFacts]) -> list[Finding]:
    seen = [entry for entry in facts if entry.fingerprint is not None]
    within, between, copies = [], [], set()
    for group in same_pictures([entry.fingerprint for entry in seen]):
        text = " = ".join(seen[index].photo for index in group)
        leaks = len({seen[index].split for index in group}) > 1
        (between if leaks else within).append(text)
        copies.update(group if leaks else ())
    found = files_finding(
        ERROR,
        "same photo in two splits",
        "photos that stand in several splits, equal in every pixel",
        between,
        "results on the other split say nothing: take the photos out of one of them",
    )
    found += files_finding(
        WARNING, "same photo twice", "photos that stand in a split more than once", within, "keep one of each"
    )
    splits = sorted({entry.split for entry in seen}, key=lambda split: ("train", "val", "test").index(split))
    for index, other in enumerate(splits[1:], start=1):
        for one in splits[:index]:
            found += _near(seen, copies, one, other)
    return found


def _near(seen: list[PairFacts], copies: set[int], one: str, other: str) -> list[Finding]:
    """Photos of a split that nearly are in another one; copies of each other are told already."""

    def members(split: str) -> list[PairFacts]:
        return [entry for i, entry in enumerate(seen) if entry.split == split and i not in copies]

    ones, others = members(one), members(other)
    near = near_duplicates([entry.fingerprint for entry in others], [entry.fingerprint for entry in ones])
    named = [f"{others[i].photo} ~ {ones[j].photo}" for i, j, _ in sorted(near, key=lambda row: row[2])]
    advice = f"neighbours of one video? Then {other} is easier than new scenes: split by drives, not by frames"
    what = f"photos of {other} that show nearly the same as one of {one} ({len(near)} of {len(others)})"
    return files_finding(WARNING, f"near-duplicates {one}/{other}", what, named, advice)
