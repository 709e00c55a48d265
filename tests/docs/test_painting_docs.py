"""docs/how_to/painting.md: its file of operations is one."""

import re
from pathlib import Path

from semseg_diffusers.masks.editing.edit import read_operations


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how_to" / "painting.md").read_text(encoding="utf-8")


def test_operations_file_of_the_page_is_one(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "operations.yaml").write_text(block)
    names = [operation.name for operation in read_operations(tmp_path / "operations.yaml")]
    assert names == ["remove", "paste", "polygon"]
