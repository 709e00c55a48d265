"""docs/how_to/converting.md: its table names the formats that there are."""

import re
from pathlib import Path

from semseg_diffusers.converters.settings import SOURCES


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how_to" / "converting.md").read_text(encoding="utf-8")


def test_formats_of_the_table_are_those_of_the_command():
    assert re.findall(r"^\| `([a-z][a-z-]+)` \|", PAGE, flags=re.MULTILINE) == list(SOURCES)
