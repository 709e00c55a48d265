"""`semseg-diffusers check`: what is wrong with a source or a prepared data set, all findings at once.

Ends with code 1 if there are errors (prepare or training would stop, or results would be wrong), 0 with warnings only.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from semseg_diffusers.data.checking.check import Report, check_prepared, check_source
from semseg_diffusers.data.checking.findings import Finding
from semseg_diffusers.data.labels import PRESET_NAMES
from semseg_diffusers.data.layout import package_version
from semseg_diffusers.data.readers import ANNOTATIONS, FORMATS
from semseg_diffusers.pipelines.saved_files import write_text


WIDEST = 160  # letters of a line
INDENT = " " * 17


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--source", nargs="+", metavar="DIR|ZIP", help="the data as it was published")
    which.add_argument("--dataset", metavar="DIR", help="a prepared data set")
    parser.add_argument(
        "--format", choices=list(FORMATS), help="layout of --source, as for prepare (default: the one that it shows)"
    )
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"classes, where the format does not bring them: {', '.join(PRESET_NAMES)}, or a JSON file",
    )
    parser.add_argument(
        "--annotations", choices=ANNOTATIONS, help="of bdd100k, which form of the masks (default: the first there)"
    )
    parser.add_argument("--image_column", metavar="NAME", help="of datasets, the column of photos")
    parser.add_argument("--mask_column", metavar="NAME", help="of datasets, the column of masks")
    parser.add_argument("--streaming", action="store_true", help="of datasets, take rows as they come")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="as for prepare: mask colours this near to a class are right"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the findings there too")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="threads (default: one per core)")


def run(args: argparse.Namespace) -> int:
    if args.num_workers < 1 or args.tolerance < 0:
        raise ValueError(
            f"--num_workers {args.num_workers}, --tolerance {args.tolerance}; wanted at least 1 and at least 0."
        )
    options = {name: getattr(args, name) for name in ("annotations", "image_column", "mask_column", "streaming")}
    if args.source is None:
        if args.format or args.labels or args.tolerance or any(options.values()):
            raise ValueError("only --output and --num_workers go with --dataset: a prepared set brings its classes.")
        report = check_prepared(args.dataset, args.num_workers, progress=True)
    else:
        report = check_source(
            args.source, args.format, args.labels, args.tolerance, args.num_workers, progress=True, **options
        )
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.output, json.dumps(_record(args, report), indent=2, ensure_ascii=False) + "\n")
    counts = ", ".join(f"{count} {split}" for split, count in report.pairs.items()) or "no"
    sys.stdout.write(f"{counts} pairs in {_checked(args)}\n\n")
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


def _checked(args: argparse.Namespace) -> str:
    return args.dataset if args.source is None else ", ".join(args.source)


def _record(args: argparse.Namespace, report: Report) -> dict:
    """The report as JSON values."""
    return {
        "checked": _checked(args),
        "format": args.format,
        "labels": args.labels,
        "tolerance": args.tolerance,
        "pairs": report.pairs,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "versions": {"semseg_diffusers": package_version()},
    }
