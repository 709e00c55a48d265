"""`semseg-diffusers check`: report what is wrong with a source or a prepared dataset, all findings at once.

Exits with code 1 if prepare or training would stop, or results would be wrong; with 0 if there are only warnings.
"""

import functools
import io
import itertools
import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from semseg_diffusers.data.check.findings import COLUMNS, ERROR, Finding, find, pair_findings, unreadable_findings
from semseg_diffusers.data.check.inspection import PairFacts, image_fault, inspect_pair
from semseg_diffusers.data.dataset import metadata_folders
from semseg_diffusers.data.dataset_format import GENERATION_FILE, LABELS_FILE, METADATA_FILE, SETTINGS_FILE, is_hidden
from semseg_diffusers.data.label_mapping import read_mapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import MaskEvidence
from semseg_diffusers.data.merged_classes import merge_classes, numbers
from semseg_diffusers.data.prepare import decide_source, inspect_values
from semseg_diffusers.data.readers import FORMATS, IMAGE_ENDINGS, Pair, Source, open_source, read_source
from semseg_diffusers.data.settings import SPLITS, CheckSettings
from semseg_diffusers.utils.archives import close_archives
from semseg_diffusers.utils.files import is_outside, package_version, parse_json, read_text, write_text
from semseg_diffusers.utils.progress import progress_bar


CHUNK = 256  # pairs that wait in memory
MAX_WIDTH = 160  # characters of a line
INDENT = " " * 17


@dataclass(frozen=True)
class Report:
    """Result of a check."""

    pairs: dict[str, int]  # split -> pairs that were inspected
    findings: tuple[Finding, ...]  # errors first

    @property
    def errors(self) -> int:
        """Return the number of findings that are errors."""
        return sum(finding.severity == ERROR for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Return the number of findings that are warnings."""
        return len(self.findings) - self.errors


def check_source(
    source: str | Path | Sequence[str | Path],
    data_format: str | None = None,
    labels: str | None = None,
    tolerance: float = 0.0,
    num_workers: int = 1,
    progress: bool = False,
    mask_values: str | None = None,
    mask_orientation: str | None = None,
    mapping: str | None = None,
    **options: Any,
) -> Report:
    """Check data as it was published.

    Args:
        source (`str`, `Path` or a list of them): what `prepare` takes.
        data_format (`str`, *optional*): one of `readers.FORMATS`; recognised by default.
        labels (`str`, *optional*): preset or JSON file, if the format does not bring its classes.
        tolerance (`float`, defaults to 0): see `LabelSet.encode`.
        num_workers (`int`, defaults to 1): threads; decoding runs outside Python's lock.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.
        mask_values (`str`, *optional*): what the numbers of masks are; decided from all masks by default.
        mask_orientation (`str`, *optional*): "stored" or "upright", where EXIF rotates the images.
        mapping (`str`, *optional*): file of classes to merge, see `read_mapping`.
        **options: other fields of `readers.ReadOptions`.

    Returns:
        the findings, errors first, with the number of pairs of each split.

    Raises:
        ValueError: the files of `labels` or `mapping` are broken.
        OSError: they cannot be read.
    """
    classes = None if mapping is None else read_mapping(mapping)
    if labels is not None:
        LabelSet.from_name(labels)  # before what is a fault of the data
    try:
        _, data_format = open_source(source, data_format)
        lenient = "skip_unmatched" in FORMATS[data_format].takes
        found = read_source(source, data_format, labels, lenient, ids=numbers(classes or {}), **options)
        if classes is not None:
            found, _ = merge_classes(found, classes)
        decisions: list[Finding] = []
        try:
            inspect = functools.partial(_inspect_in_threads, num_workers=num_workers, progress=progress)
            found, notes = decide_source(found, inspect, mask_values, mask_orientation)
            decisions = find("how masks are read", notes)
        except ValueError as err:
            decisions = find("meaning of masks", [err])
        work = functools.partial(inspect_pair, source=found, tolerance=tolerance)
        facts = _in_threads(work, found.pairs, found.count, num_workers, progress)
    except (ValueError, OSError) as err:
        roots = [Path(path) for path in ([source] if isinstance(source, (str, Path)) else source)]
        images = [path for root in roots for path in _images_below(root)]
        return Report({}, (*find("layout", [str(err)]), *_check_single_images(images, num_workers, progress)))
    finally:
        close_archives()
    return _report(facts, found.mask_labels, [*find("unpaired file", found.unmatched), *decisions])


def _inspect_in_threads(pairs: Sequence[Pair], source: Source, num_workers: int, progress: bool) -> list[MaskEvidence]:
    return _in_threads(functools.partial(inspect_values, source=source), pairs, len(pairs), num_workers, progress)


def check_prepared(folder: str | Path, num_workers: int = 1, progress: bool = False) -> Report:
    """Check a dataset that `prepare`, `toy` or `generate` made, or one in their layout.

    Args:
        folder (`str` or `Path`): the dataset.
        num_workers (`int`, defaults to 1): threads; decoding runs outside Python's lock.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        the findings, errors first, with the number of pairs of each split.

    Raises:
        ValueError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"--dataset '{root}' is not a local folder; expected a prepared dataset.")
    found: list[Finding] = []
    labels = None
    try:
        labels = LabelSet.from_json(root / LABELS_FILE)
    except (ValueError, OSError) as err:
        found += find("label set", [err])
    if not any((root / name).is_file() for name in (SETTINGS_FILE, GENERATION_FILE)):
        found += find("record", [root])
    try:
        metadata_folders(root)
    except ValueError as err:
        found += find("split twice", [err])
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in SPLITS]
    pairs: list[Pair] = []
    for split, part in [(SPLITS[path.name.lower()], path) for path in folders] or [("train", root)]:
        rows, findings = _read_rows(part, split)
        pairs += rows
        found += findings
    if not pairs:
        found += find("no pairs", [root])
    work = functools.partial(inspect_pair, source=None if labels is None else Source(labels))
    facts = _in_threads(work, pairs, len(pairs), num_workers, progress)
    return _report(facts, labels, found)


def _report(facts: list[PairFacts], labels: LabelSet | None, found: list[Finding]) -> Report:
    findings = [*found, *pair_findings(facts, labels)]
    pairs = dict(Counter(entry.split for entry in facts))
    return Report(pairs, tuple(sorted(findings, key=lambda finding: finding.severity != ERROR)))


def _in_threads(
    work: Callable[[Any], Any], items: Iterable[Any], count: int | None, num_workers: int, progress: bool
) -> list[Any]:
    """Return results in order; items are taken as they are needed."""

    def results() -> Iterator[Any]:
        stream = iter(items)
        with ThreadPoolExecutor(num_workers) as pool:
            while chunk := list(itertools.islice(stream, CHUNK)):
                yield from pool.map(work, chunk)

    return list(progress_bar(results(), total=count, desc="checking", disable=not progress))


def _images_below(root: Path) -> list[Path]:
    files = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    return sorted(path for path in files if not is_hidden(path, root))


def _check_single_images(images: list[Path], num_workers: int, progress: bool) -> list[Finding]:
    """Check images of a source that no reader can read, so that their partners are not known."""
    stems: dict[tuple[Path, str], list[str]] = {}
    for path in images:
        stems.setdefault((path.parent, path.stem), []).append(str(path))
    found = find("one stem", [" = ".join(names) for names in stems.values() if len(names) > 1])
    empty = [str(path) for path in images if not path.stat().st_size]
    rest = [path for path in images if path.stat().st_size]
    faults = _in_threads(image_fault, rest, len(rest), num_workers, progress)
    broken = [(str(path), fault) for path, fault in zip(rest, faults, strict=True) if fault]
    return [*found, *unreadable_findings(empty, broken)]


def _read_rows(part: Path, split: str) -> tuple[list[Pair], list[Finding]]:
    """Return the pairs of one split whose files exist, and what is wrong with its metadata."""
    metadata = part / METADATA_FILE
    try:
        lines = [*io.StringIO(read_text(metadata))]
    except (OSError, ValueError) as err:
        advice = "load_dataset cannot read the split without it; prepare the dataset again"
        return [], find("metadata", [err], what=f"no usable {METADATA_FILE}", advice=advice)
    pairs: list[Pair] = []
    broken: list[str] = []
    missing: list[Path] = []
    repeated: list[str] = []
    used: set[PurePosixPath] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():  # as `read_json_lines` does
            continue
        try:
            row = parse_json(line)
            outside = [row[column] for column in COLUMNS if is_outside(row[column])]
            names = [] if outside else [PurePosixPath(row[column]) for column in COLUMNS]
        except (json.JSONDecodeError, KeyError, TypeError):
            broken.append(f"{metadata}:{number}")
            continue
        if outside:  # never opened
            broken.append(f"{metadata}:{number} ({outside[0]!r} is no file in its folder)")
            continue
        known = [name for name in names if name in used]
        repeated += [f"{metadata}:{number} ({name})" for name in known]
        used.update(names)
        absent = [part / name for name in names if not (part / name).is_file()]
        missing += absent
        if not absent and not known:
            pairs.append(Pair(str(row.get("stem", names[0].stem)), part / names[0], part / names[1], split))
    files = [(path, PurePosixPath(path.relative_to(part).as_posix())) for path in _images_below(part)]
    folders = {name.parent for name in used}
    loose = [path for path, name in files if name not in used and name.parent in folders]
    return pairs, [
        *find("metadata", broken),
        *find("row without file", missing),
        *find("file without row", loose),
        *find("row twice", repeated),
    ]


def run(settings: CheckSettings) -> int:
    """Check a source or a dataset and print the findings; returns 1 if there are errors."""
    if settings.dataset is not None:
        report = check_prepared(settings.dataset, settings.num_workers, progress=True)
    else:
        report = check_source(
            settings.source, settings.format, settings.labels, settings.tolerance, settings.num_workers,
            progress=True, mask_values=settings.mask_values, mask_orientation=settings.mask_orientation,
            mapping=settings.mapping, **settings.reader_options(),
        )  # fmt: skip
    checked = settings.dataset or ", ".join(settings.source)
    if settings.output is not None:
        record = {
            "checked": checked,
            "format": settings.format,
            "labels": settings.labels,
            "tolerance": settings.tolerance,
            "pairs": report.pairs,
            "errors": report.errors,
            "warnings": report.warnings,
            "findings": [asdict(finding) for finding in report.findings],
            "versions": {"semseg_diffusers": package_version()},
        }
        Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(settings.output, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    counts = ", ".join(f"{count} {split}" for split, count in report.pairs.items()) or "no"
    parts = [f"{counts} pairs in {checked}", *(["\n".join(map(_format, report.findings))] if report.findings else [])]
    parts.append(f"kinds of error: {report.errors}, of warning: {report.warnings}")
    sys.stdout.write("\n\n".join(parts) + "\n")
    return 1 if report.errors else 0


def _format(finding: Finding) -> str:
    """Format a finding for the terminal: severity, count and what; below, the first files and what to do."""
    width = max(60, min(shutil.get_terminal_size(fallback=(MAX_WIDTH, 24)).columns, MAX_WIDTH))
    wrapper = textwrap.TextWrapper(width, INDENT, INDENT, break_long_words=False, break_on_hyphens=False)
    more = [f"and {finding.more} more"] if finding.more else []
    lines = [wrapper.fill(text) for text in (*finding.examples, *more, f"-> {finding.advice}")]
    return "\n".join([f"{finding.severity:<8} {finding.count:>6}  {finding.what}", *lines])
