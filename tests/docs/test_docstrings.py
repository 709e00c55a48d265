"""The examples in docstrings run as printed."""

import doctest
import importlib
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in (ROOT / "semseg_diffusers").rglob("*.py") if ">>> " in path.read_text())
# These stand for a checkpoint or a file of the reader's own.
NOT_RUN = re.compile(r"path/to/|\.png\"\)")


class WithoutFences(doctest.DocTestParser):
    """Read ```py blocks in docstrings as diffusers writes them: a closing fence is no output."""

    def parse(self, string: str, name: str = "<string>") -> list:
        return super().parse(re.sub(r"^\s*```.*$", "", string, flags=re.MULTILINE), name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstring_examples_run_as_printed(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = doctest.DocTestFinder(parser=WithoutFences(), exclude_empty=True).find(module)
    examples = [test for test in found if test.examples]
    assert examples, f"no example of {path.name} was found, though it holds one"
    report = []
    for test in examples:
        if NOT_RUN.search(test.docstring):
            continue
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert report == [], "".join(report)
