"""docs/painting.md: its operations are read, its sketch comes out clean."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.data.editing.script import read_operations


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "painting.md").read_text(encoding="utf-8")
SHELL = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_operations_file_of_the_page_is_one(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "operations.yaml").write_text(block)
    assert [operation.name for operation in read_operations(tmp_path / "operations.yaml")] == [
        "remove",
        "paste",
        "polygon",
    ]


def test_the_sketch_is_painted_cleaned_and_holds_its_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sketch = next(line for line in SHELL if line.startswith("python "))
    assert sketch == "python examples/sketch.py painted"
    monkeypatch.setattr(sys, "argv", sketch.split()[1:])
    runpy.run_path(str(ROOT / "examples" / "sketch.py"), run_name="__main__")
    line = next(line for line in SHELL if line.startswith("semseg-diffusers clean"))
    assert cli.main(shlex.split(line)[1:]) == 0
    labels = LabelSet.from_preset("camvid")
    ids = labels.encode(tmp_path / "cleaned" / "masks" / "street.png")
    assert set(np.unique(ids)) == set(range(labels.num_classes))  # every class was painted, and nothing is unknown
