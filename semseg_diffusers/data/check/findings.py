"""What a check can find (findings.yaml), and how the facts about single pairs become findings about the dataset.

An error is what `prepare` or training would refuse, or what makes results wrong; a warning is what a user should know.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from semseg_diffusers.data.check.inspection import PairFacts, color_distances, near_duplicates, same_images
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.merged_classes import OTHER_NUMBERS
from semseg_diffusers.pipelines.mask_inputs import change_ids, check_ids


EXAMPLES = 5  # files named in a finding
ERROR = "error"
COLUMNS = ("image_file_name", "mask_file_name")
# Kind, which does not change between versions -> severity, what, advice
CHECKS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("findings.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset."""

    severity: str  # "error" or "warning"
    kind: str  # a short name that does not change
    what: str
    count: int
    examples: tuple[str, ...]  # the first few
    advice: str
    details: dict[str, Any] = field(default_factory=dict)  # further JSON values
    more: int = 0  # number of examples left out


def find(kind: str, items: Sequence[object], /, **changes: Any) -> list[Finding]:
    """Return the finding of a kind in `CHECKS`, with some fields changed; none without items."""
    if not items:
        return []
    shown, more = tuple(map(str, items[:EXAMPLES])), max(len(items) - EXAMPLES, 0)
    return [replace(Finding(kind=kind, count=len(items), examples=shown, more=more, **CHECKS[kind]), **changes)]


def pair_findings(facts: Sequence[PairFacts], labels: LabelSet | None) -> list[Finding]:
    """Return all findings about the inspected pairs."""
    found = [*_unreadable(facts), *_sizes(facts)]
    found += find("JPEG mask", [entry.mask for entry in facts if entry.jpeg_mask])
    counted = [(entry.mask, entry.class_pixels) for entry in facts if entry.class_pixels is not None]
    unknown = [mask for mask, pixels in counted if pixels[-1] == pixels.sum()]
    stops = {"severity": ERROR} if len(unknown) == len(facts) else {}  # prepare fails where nothing is labelled
    found += find("unknown mask", unknown, **stops)
    found += find("mode of photo", [f"{entry.image} ({entry.image_mode})" for entry in facts if entry.image_mode])
    found += find("plain photo", [entry.image for entry in facts if entry.one_color])
    if labels is not None:
        found += [*_wrong_values(facts, labels), *_classes(facts, labels)]
    return [*found, *_duplicates(facts)]


def unreadable_findings(empty: Sequence[str], broken: Sequence[tuple[str, str]]) -> list[Finding]:
    """Return findings about empty files, and about files that cannot be read, with the reason of each."""
    reasons = {"reasons": dict(broken[: 10 * EXAMPLES])}
    return [*find("empty file", empty), *find("unreadable file", [path for path, _ in broken], details=reasons)]


def _unreadable(facts: Sequence[PairFacts]) -> list[Finding]:
    empty = [path for entry in facts for path in entry.empty]
    nothing = set(empty)
    masks = [(entry.mask, entry.mask_fault, entry.mask_size) for entry in facts if entry.mask_fault]
    broken = [(entry.image, entry.image_fault) for entry in facts if entry.image_fault]
    broken += [(mask, fault) for mask, fault, size in masks if size is None]
    wrong = {mask: fault for mask, fault, size in masks if size is not None}
    reasons = {"reasons": dict(list(wrong.items())[: 10 * EXAMPLES])}
    return [
        *unreadable_findings(empty, [(path, fault) for path, fault in broken if path not in nothing]),
        *find("no mask", list(wrong), advice=next(iter(wrong.values()), ""), details=reasons),
    ]


def _sizes(facts: Sequence[PairFacts]) -> list[Finding]:
    def text(size: tuple[int, int]) -> str:
        return f"{size[0]} x {size[1]}"

    differing = [
        f"{entry.image} is {text(entry.image_size)}, {Path(entry.mask).name} {text(entry.mask_size)}"
        for entry in facts
        if entry.image_size and entry.mask_size and entry.image_size != entry.mask_size
    ]
    sizes = Counter(entry.image_size for entry in facts if entry.image_size)
    named = [f"{text(size)} ({count} images)" for size, count in sizes.most_common()]
    return [*find("size of mask", differing), *(find("several sizes", named) if len(sizes) > 1 else [])]


def _wrong_values(facts: Sequence[PairFacts], labels: LabelSet) -> list[Finding]:
    """Return findings about masks with ids, or with colours, that are no class."""
    class_ids, known = {*range(labels.num_classes), labels.ignore_index}, set[Any]()
    found: list[Finding] = []
    for kind, key in (("ids out of range", "ids"), ("unknown colours", "colors")):
        masks: list[str] = []
        pixels, files = Counter[Any](), Counter[Any]()
        for entry in facts:
            if values := getattr(entry, key):
                masks.append(entry.mask)
                pixels.update(values)
                files.update(values.keys())
        if not masks:
            continue
        if key == "ids":
            found_ids = np.array([*pixels], dtype=np.int64)  # as in the files
            changed = change_ids(found_ids, labels.changed_ids)
            known = {int(value) for value, new in zip(found_ids, changed, strict=True) if int(new) in class_ids}
        else:
            known = set()
        wrong = [value for value, _ in pixels.most_common() if value not in known]
        if key == "ids":
            expected = f"class of 0-{labels.num_classes - 1} or {labels.ignore_index}"
            expected = "class of the label set, whose ids in masks have gaps, or" if labels.changed_ids else expected
            what = f"masks with ids that are no {expected} (unknown)"
            advice, names = _ids_advice(list(pixels), labels), {value: (f"id {value}", str(value)) for value in wrong}
        else:
            what = f"masks with colours that no class has ({len(wrong)} colours)"
            advice = _colors_advice(wrong, labels)
            names = {color: (str(color), "#{:02x}{:02x}{:02x}".format(*color)) for color in wrong}
        texts = [f"{text} in {files[v]} files, {pixels[v]} pixels" for v, (text, _) in names.items()]
        details = {name: {"files": files[v], "pixels": pixels[v]} for v, (_, name) in names.items()}
        examples = (*texts[:EXAMPLES], *masks[:EXAMPLES])
        shown = {key: dict(list(details.items())[: 20 * EXAMPLES])}
        found += find(kind, masks, what=what, examples=examples, advice=advice, details=shown)
    return found


def _ids_advice(ids: list[int], labels: LabelSet) -> str:
    """Return the likely cause of ids that are no class, all ids of the masks given."""
    try:
        check_ids(np.array(ids), labels.num_classes, labels.ignore_index, changed_ids=labels.changed_ids)
    except ValueError as err:
        return str(err).rpartition("(ignore). ")[2]
    raise AssertionError("ids that are no class have passed the check of ids")


def _colors_advice(colors: list[tuple[int, int, int]], labels: LabelSet) -> str:
    """Return the likely cause of colours that no class has, the most frequent first."""
    for name in PRESET_NAMES:
        preset = LabelSet.from_preset(name)
        if len(set(colors) & {*preset.colors, preset.ignore_color}) > len(colors) / 2:
            return f"these are colours of the label set {name}: use --labels {name}, or the format that brings it"
    if all(red == green == blue for red, green, blue in colors):
        return "all are grey: if they are class ids, save the masks with one channel"
    if len(colors) > 10:
        distance = math.ceil(np.median(color_distances(np.array(colors), labels)))
        return (
            "so many colours come from smoothing at edges, or from JPEG: export without either, or take the nearest "
            f"class with --tolerance (half of them are within {distance})"
        )
    return "use the label set that the masks were painted with, or --tolerance to take the nearest class"


def _classes(facts: Sequence[PairFacts], labels: LabelSet) -> list[Finding]:
    """Return findings about classes that no mask shows, and those that only other splits show."""
    pixels: dict[str, np.ndarray] = {}  # split -> pixels of each class
    for entry in facts:
        if entry.class_pixels is not None:
            pixels[entry.split] = pixels.get(entry.split, np.zeros(1, np.int64)) + entry.class_pixels[:-1]
    if not pixels:
        return []
    anywhere = np.sum(list(pixels.values()), axis=0)
    train = pixels.get("train", anywhere)
    counts = [row for row in zip(labels.names, anywhere, train, strict=True) if row[0] != OTHER_NUMBERS]
    never = [name for name, count, _ in counts if not count]
    elsewhere = [name for name, count, in_train in counts if count and not in_train]
    return [
        *find("class never seen", never, examples=(", ".join(never),), more=0),
        *find("class not in train", elsewhere, examples=(", ".join(elsewhere),), more=0),
    ]


def _duplicates(facts: Sequence[PairFacts]) -> list[Finding]:
    seen = [(entry, entry.fingerprint) for entry in facts if entry.fingerprint is not None]
    within: list[str] = []
    between: list[str] = []
    copies: set[int] = set()  # of images in another split
    for group in same_images([own for _, own in seen]):
        text = " = ".join(seen[index][0].image for index in group)
        leaks = len({seen[index][0].split for index in group}) > 1
        (between if leaks else within).append(text)
        copies.update(group if leaks else ())
    found = [*find("same photo in two splits", between), *find("same photo twice", within)]
    rest = [(entry, own) for index, (entry, own) in enumerate(seen) if index not in copies]
    splits = {split: [row for row in rest if row[0].split == split] for split in ("train", "val", "test")}
    for one, other in itertools.combinations(splits, 2):
        ones, others = splits[one], splits[other]
        near = sorted(near_duplicates([own for _, own in others], [own for _, own in ones]), key=lambda row: row[2])
        named = [f"{others[i][0].image} ~ {ones[j][0].image}" for i, j, _ in near]
        values = {"one": one, "other": other, "near": len(near), "all": len(others)}
        texts = {key: text.format(**values) for key, text in CHECKS["near-duplicates"].items()}
        found += find("near-duplicates", named, kind=f"near-duplicates {one}/{other}", **texts)
    return found
