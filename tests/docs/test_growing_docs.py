"""docs/how_to/growing.md: its table names the stages that there are."""

import re
from pathlib import Path

from semseg_diffusers.growth.settings import STAGES


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how_to" / "growing.md").read_text(encoding="utf-8")


def test_every_stage_is_on_the_page_with_its_command():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert dict(rows) == STAGES
