"""docs/how_to/filtering.md: its columns are those that the filter writes."""

import re
from pathlib import Path

from semseg_diffusers.evaluation.filtering.output import COLUMNS
from semseg_diffusers.evaluation.filtering.rules import REASONS


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how_to" / "filtering.md").read_text(encoding="utf-8")


def test_columns_of_the_page_are_those_that_the_filter_writes():
    rows = re.findall(r"^\| (`.*?`) \|", PAGE, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", ", ".join(rows)) == [*COLUMNS, "reason"]
    assert all(f"`{reason}`" in PAGE for reason in REASONS)
