"""The examples in docstrings run as printed, and public names are documented in full."""

import dataclasses
import doctest
import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest
from diffusers import UNet2DModel

import semseg_diffusers


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


# Public names

BASE_PARAMETERS = set(inspect.signature(UNet2DModel).parameters)  # "`UNet2DModel`'s own", as our networks say


@pytest.mark.parametrize("name", semseg_diffusers.__all__)
def test_a_public_docstring_names_every_parameter_result_and_example(name):
    public = getattr(semseg_diffusers, name)
    text, signature = inspect.getdoc(public) or "", inspect.signature(public)
    assert public.__doc__
    assert re.match(r"[A-Z].*\.$", text.splitlines()[0])
    if dataclasses.is_dataclass(public):  # fields are described by their help, a comment, or in the docstring
        lines = inspect.getsource(public)
        own = [field.name for field in dataclasses.fields(public) if field.name in public.__annotations__]
        described = [
            re.search(rf"^    {field}\b.*(# |option\()|^ +{field}[ :(]", lines, re.MULTILINE) for field in own
        ]
        assert [field for field, found in zip(own, described, strict=True) if not found] == []
        return
    own = set(signature.parameters) - (BASE_PARAMETERS if "`UNet2DModel`'s own" in text else set())
    arguments = text.partition("Args:")[2]
    assert [each for each in own if not re.search(rf"^ +\*{{0,2}}{each}\b.*: ", arguments, re.MULTILINE)] == []
    if inspect.isfunction(public):
        assert signature.return_annotation in (None, "None") or re.search("^(Returns|Yields):", text, re.MULTILINE)
        assert "Raises:" in text or not signature.parameters


@pytest.mark.parametrize("name", [name for name in semseg_diffusers.__all__ if "Pipeline" in name])
def test_a_call_of_a_pipeline_is_documented_in_full(name):
    call = getattr(semseg_diffusers, name).__call__
    text = inspect.getdoc(call)
    names = [parameter for parameter in inspect.signature(call).parameters if parameter != "self"]
    assert [each for each in names if not re.search(rf"^    {each}\b.*: ", text, re.MULTILINE)] == []
    assert "Returns:" in text
    assert "Raises:" in text


def test_help_of_the_package_lists_its_public_names():
    page = pydoc.render_doc(semseg_diffusers, renderer=pydoc.plaintext)
    assert [name for name in semseg_diffusers.__all__ if not re.search(rf"^    (class )?{name}\b", page, re.M)] == []


def test_every_name_on_the_pages_of_the_api_exists_and_every_public_name_is_on_one():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    linked = re.findall(r"\]\[(semseg_diffusers\.\S+?)\]", text)
    for path in [*listed, *linked]:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
    homes = {f"{getattr(semseg_diffusers, name).__module__}.{name}" for name in semseg_diffusers.__all__}
    assert homes <= set(listed)
    assert homes - {"semseg_diffusers.register"} <= set(linked)
