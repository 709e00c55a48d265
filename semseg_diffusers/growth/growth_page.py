"""The page of a grown dataset: what each stage found, and its command, in one self-contained file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, REASONS
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.reports.render import write_page
from semseg_diffusers.utils.files import read_json


def write_growth_page(
    path: Path, dataset: str, model: str | None, done: Mapping[str, tuple[Path, str]], remaining: Sequence[str]
) -> None:
    """Write the page of the stages done so far (stage -> its folder and command); no `model` means a trained one."""
    stages = {
        "study": ("results.json", "report.html"),
        "statistics": ("stats.json", "index.html"),
        "enrich": ("enrich.json", "statistics.html"),
        "generate": ("generation.json", None),
        "filter": (FILTER_FILE, "filter.html"),
        "merge": ("prepare.json", None),
    }
    records: dict[str, dict[str, Any] | None] = dict.fromkeys(stages)
    for name, (record_file, page) in stages.items():
        if name in done:
            folder = done[name][0]
            record = {**read_json(folder / record_file), "folder": folder, "page": f"{folder.name}/{page}"}
            if name == "generate":
                with Image.open(folder / "contact_sheet.png") as sheet:
                    record |= {"sheet": sheet.convert("RGB"), "num_images": len(read_metadata(folder))}
            records[name] = record
    commands = [command for _, command in done.values()]
    context = {"dataset": dataset, "model": model, "remaining": remaining, "commands": commands}
    write_page(path, "growth.html.j2", reasons=REASONS, **context, **records)
