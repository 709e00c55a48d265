"""`semseg-diffusers check`: what is wrong with a source or a prepared dataset, all findings at once.

Ends with code 1 if there are errors (prepare or training would stop, or results would be wrong), 0 with warnings only.
"""

import dataclasses
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semseg_diffusers.data.check.findings import (
    ERROR,
    WARNING,
    Finding,
    files_finding,
    pair_findings,
    unreadable_findings,
)
from semseg_diffusers.data.check.inspection import PairFacts, inspect_pair, picture_fault
from semseg_diffusers.data.dataset_format import (
    GENERATION_FILE,
    LABELS_FILE,
    METADATA_FILE,
    SETTINGS_FILE,
)
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.readers import FORMATS, IMAGE_ENDINGS, Pair, Source, read_source
from semseg_diffusers.data.settings import SPLITS, CheckSettings
from semseg_diffusers.utils.archives import close_archives
from semseg_diffusers.utils.files import package_version, write_text
from semseg_diffusers.utils.progress import progress_bar


CHUNK = 256  # pairs that wait in memory
LAYOUT_ADVICE = "name the right --format, or put the files where it looks for them; their pictures are checked alone"
COLUMNS = ("image_file_name", "mask_file_name")


@dataclass(frozen=True)
class Report:
    """What a check found."""

    pairs: dict[str, int]  # split -> pairs that were looked at
    findings: tuple[Finding, ...]  # errors first

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors


def check_source(
    source: str | Path | Sequence[str | Path],
    data_format: str | None = None,
    labels: str | None = None,
    tolerance: float = 0.0,
    num_workers: int = 1,
    progress: bool = False,
    **options,
) -> Report:
    """Check data as it was published.

    Args:
        source (`str`, `Path` or a list of them): what `prepare` takes.
        data_format (`str`, *optional*): one of `readers.FORMATS`; by default the one that the layout shows.
        labels (`str`, *optional*): preset or JSON file, where the format does not bring its classes.
        tolerance (`float`, defaults to 0): see `LabelSet.encode`.
        num_workers (`int`, defaults to 1): threads; decoding runs outside Python's lock.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.
        **options: further fields of `readers.ReadOptions`.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    try:
        found = read_source(sources, data_format, labels, _takes_unmatched(sources, data_format), **options)
        unmatched = files_finding(
            ERROR,
            "unpaired file",
            "photos without a mask, or masks without a photo",
            found.unmatched,
            "give photo and mask the same name up to the ending, or leave them out: prepare --skip_unmatched",
        )
        facts = _in_threads(lambda pair: inspect_pair(pair, found, tolerance), found.pairs, num_workers, progress)
    except (ValueError, OSError) as err:
        layout = Finding(ERROR, "layout", "the source cannot be read in this format", 1, (str(err),), LAYOUT_ADVICE)
        files = [path for one in sources for path in _files_below(Path(one))]
        pictures = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]
        return Report({}, (layout, *_of_loose_pictures(pictures, num_workers, progress)))
    finally:
        close_archives()
    return _report(facts, found.labels, unmatched)


def _takes_unmatched(sources: list, data_format: str | None) -> bool:
    """Whether the format knows files without a partner; the rows of a table always have both."""
    if data_format is not None:
        return data_format not in FORMATS or "skip_unmatched" in FORMATS[data_format].takes
    return not (len(sources) == 1 and Path(sources[0]).is_dir() and FORMATS["datasets"].is_one(Path(sources[0])))


def check_prepared(folder: str | Path, num_workers: int = 1, progress: bool = False) -> Report:
    """Check a dataset that `prepare`, `toy` or `generate` made, or one in their layout.

    Args:
        folder (`str` or `Path`): the dataset.
        num_workers (`int`, defaults to 1): threads; decoding runs outside Python's lock.
        progress (`bool`, defaults to `False`): show a progress bar on stderr.

    Returns:
        the findings, errors first, with the number of pairs of each split.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"--dataset '{root}' is no folder here; wanted a prepared dataset.")
    found: list[Finding] = []
    labels = None
    try:
        labels = LabelSet.from_json(root / LABELS_FILE)
    except (ValueError, OSError) as err:
        advice = "masks are not checked against classes without it; prepare the set again"
        found.append(Finding(ERROR, "label set", f"no usable {LABELS_FILE}", 1, (str(err),), advice))
    if not any((root / name).is_file() for name in (SETTINGS_FILE, GENERATION_FILE)):
        advice = "it was not made by prepare, toy or generate: nothing says how, and prepare does not overwrite it"
        found.append(Finding(WARNING, "record", f"no {SETTINGS_FILE}", 1, (str(root),), advice))
    pairs: list[Pair] = []
    for split, part in _parts(root).items():
        of_part, findings = _read_rows(part, split)
        pairs += of_part
        found += findings
    if not pairs:
        advice = f"wanted {METADATA_FILE} with the keys {' and '.join(COLUMNS)} in each split's folder"
        found.append(Finding(ERROR, "no pairs", "no pairs to look at", 1, (str(root),), advice))
    source = None if labels is None else Source(labels, tuple(pairs))
    facts = _in_threads(lambda pair: inspect_pair(pair, source), pairs, num_workers, progress)
    return _report(facts, labels, found)


def _report(facts: list[PairFacts], labels: LabelSet | None, found: list[Finding]) -> Report:
    pairs: dict[str, int] = {}
    for entry in facts:
        pairs[entry.split] = pairs.get(entry.split, 0) + 1
    findings = [*found, *pair_findings(facts, labels)]
    return Report(pairs, tuple(sorted(findings, key=lambda finding: finding.severity != ERROR)))


def _in_threads(work, items: Iterable, num_workers: int, progress: bool) -> list:
    """Results in order; items are taken as they are needed."""
    total = len(items) if isinstance(items, Sized) else None
    items, results = iter(items), []
    with (
        ThreadPoolExecutor(num_workers) as pool,
        progress_bar(total=total, desc="checking", disable=not progress) as bar,
    ):
        while chunk := list(itertools.islice(items, CHUNK)):
            for result in pool.map(work, chunk):
                results.append(result)
                bar.update()
    return results


# A source that no reader can read ------------------------------------------------------------------------------------


def _files_below(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def _of_loose_pictures(pictures: list[Path], num_workers: int, progress: bool) -> list[Finding]:
    """What can be said of pictures whose partners are not known."""
    stems: dict[tuple[Path, str], list[Path]] = {}
    for path in pictures:
        stems.setdefault((path.parent, path.stem), []).append(path)
    twice = [" = ".join(str(path) for path in paths) for paths in stems.values() if len(paths) > 1]
    empty = [str(path) for path in pictures if path.stat().st_size == 0]
    rest = [path for path in pictures if path.stat().st_size]
    faults = _in_threads(picture_fault, rest, num_workers, progress)
    return [
        *files_finding(
            ERROR, "one stem", "names that several files share up to the ending", twice, "keep one of each"
        ),
        *unreadable_findings(empty, [(str(path), why) for path, why in zip(rest, faults, strict=True) if why]),
    ]


# A prepared set ------------------------------------------------------------------------------------------------------


def _parts(root: Path) -> dict[str, Path]:
    """The folders that hold metadata, by split; a set without split folders is all `train`."""
    splits = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name.lower() in SPLITS:
            splits.setdefault(SPLITS[path.name.lower()], path)
    return splits or {"train": root}


def _read_rows(part: Path, split: str) -> tuple[list[Pair], list[Finding]]:
    """The pairs of one split whose files are there, and what is wrong with its metadata."""
    metadata = part / METADATA_FILE
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        advice = "load_dataset cannot read the split without it; prepare the set again"
        return [], [Finding(ERROR, "metadata", f"no usable {METADATA_FILE}", 1, (str(err),), advice)]
    pairs, broken, missing, repeated = [], [], [], []
    used: set[PurePosixPath] = set()
    for number, line in enumerate(lines, start=1):
        row = _row_of(line)
        if row is None:
            broken.append(f"{metadata}:{number}")
            continue
        names = [PurePosixPath(row[column]) for column in COLUMNS]
        known = [name for name in names if name in used]
        repeated += [f"{metadata}:{number} ({name})" for name in known]
        used.update(names)
        absent = [part / name for name in names if not (part / name).is_file()]
        missing += absent
        if not absent and not known:
            pairs.append(Pair(str(row.get("stem", names[0].stem)), part / names[0], part / names[1], split))
    files = [path for path in _files_below(part) if path.suffix.lower() in IMAGE_ENDINGS]
    folders = {name.parent for name in used}
    loose = [
        path
        for path in files
        if (name := PurePosixPath(path.relative_to(part).as_posix())) not in used and name.parent in folders
    ]
    again = "prepare the set again, or write the row anew"
    return pairs, [
        *files_finding(ERROR, "metadata", f"lines without {' and '.join(COLUMNS)}, or no JSON", broken, again),
        *files_finding(ERROR, "row without file", "files that a row names and that are not there", missing, again),
        *files_finding(
            WARNING, "file without row", "pictures that no row names, so nothing reads them", loose, "take them out"
        ),
        *files_finding(WARNING, "row twice", "files that several rows name", repeated, "keep one of the rows"),
    ]


def _row_of(line: str) -> dict | None:
    """The row of a line, if it is one."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = isinstance(row, dict) and all(isinstance(row.get(column), str) for column in COLUMNS)
    return row if whole else None


WIDEST = 160  # letters of a line
INDENT = " " * 17


def run(settings: CheckSettings) -> int:
    """Check a source or a dataset and print the findings; returns 1 if there are errors."""
    if settings.dataset is not None:
        report = check_prepared(settings.dataset, settings.num_workers, progress=True)
    else:
        report = check_source(
            list(settings.source), settings.format, settings.labels, settings.tolerance, settings.num_workers,
            progress=True, **settings.reader_options(),
        )  # fmt: skip
    if settings.output is not None:
        output = Path(settings.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(_record(settings, report), indent=2, ensure_ascii=False) + "\n")
    counts = ", ".join(f"{count} {split}" for split, count in report.pairs.items()) or "no"
    sys.stdout.write(f"{counts} pairs in {_checked(settings)}\n\n")
    if report.findings:
        sys.stdout.write(f"{format_findings(report.findings)}\n\n")
    sys.stdout.write(f"kinds of error: {report.errors}, of warning: {report.warnings}\n")
    return 1 if report.errors else 0


def format_findings(findings: Sequence[Finding]) -> str:
    """The findings for the terminal: severity, how many, what; below, the first files and what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<8} {finding.count:>6}  {finding.what}")
        lines += [_wrap(example) for example in finding.examples]
        if finding.more:
            lines.append(_wrap(f"and {finding.more} more"))
        lines.append(_wrap(f"-> {finding.advice}"))
    return "\n".join(lines)


def _wrap(text: str) -> str:
    """Break a text into lines that stand under the first column."""
    width = max(60, min(shutil.get_terminal_size(fallback=(WIDEST, 24)).columns, WIDEST))
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, width, initial_indent=INDENT, subsequent_indent=INDENT, **options)


def _checked(settings: CheckSettings) -> str:
    return settings.dataset or ", ".join(settings.source)


def _record(settings: CheckSettings, report: Report) -> dict:
    """Return the report as JSON values."""
    return {
        "checked": _checked(settings),
        "format": settings.format,
        "labels": settings.labels,
        "tolerance": settings.tolerance,
        "pairs": report.pairs,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "versions": {"semseg_diffusers": package_version()},
    }
