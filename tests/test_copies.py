"""Code that Hub files repeat, because each must run alone, stays equal to its original.

`# Copied from semseg_diffusers.module.name` above a function, class or method marks a copy of the same object; inside
a function, it marks a copy of lines of the original up to `# End of copy`. ` with a->b` names what is replaced.
"""

import ast
import re
import textwrap
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"^ *# Copied from semseg_diffusers\.([\w.]+?)(?: with (.+))?$")
END = "# End of copy"


def source_of(lines: list[str], names: list[str]) -> str:
    """Return the source of a nested definition, such as ["MaskGuidedDDPMPipeline", "__call__"]."""
    node = ast.parse("\n".join(lines))
    for name in names:
        (node,) = [child for child in node.body if getattr(child, "name", None) == name]
    return textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


def definition_at(lines: list[str], number: int) -> str | None:
    """Return the source of the definition that starts at a line (from 0), if one does."""
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.lineno == number + 1:
            return textwrap.dedent("\n".join(lines[number : node.end_lineno]))
    return None


def contains(text: str, block: str) -> bool:
    """Return whether lines of a text are those of a block, whatever their indentation."""
    lines, count = text.splitlines(), len(block.splitlines())
    return any(textwrap.dedent("\n".join(lines[i : i + count])) == block for i in range(len(lines) - count + 1))


def find_differences(text: str) -> list[str]:
    """Return the copies of a file that differ from their originals, and markers that mark nothing."""
    differences, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        match = MARK.match(line)
        if match is None:
            continue
        parts = match[1].split(".")
        path = next(path for i in range(len(parts), 0, -1) if (path := package(*parts[:i])).is_file())
        original = source_of(path.read_text().splitlines(), parts[len(path.relative_to(ROOT).parts) - 1 :])
        for replacement in (match[2] or "").split(", "):
            old, _, new = replacement.partition("->")
            original = original.replace(old, new) if old else original
        copy = definition_at(lines, number + 1)
        if copy is None:
            end = next(i for i in range(number, len(lines)) if lines[i].strip() == END)
            copy = textwrap.dedent("\n".join(lines[number + 1 : end]))
            same = contains(original, copy)
        else:
            same = copy == original
        if not same:
            differences.append(f"line {number + 1}: differs from {match[1]}")
    return differences


def package(*parts: str) -> Path:
    return ROOT.joinpath("semseg_diffusers", *parts).with_suffix(".py")


MARKED = [path for path in (ROOT / "semseg_diffusers").rglob("*.py") if "# Copied from" in path.read_text()]


@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.stem)
def test_copies_equal_their_originals(path):
    assert "# Copied from semseg_diffusers." in path.read_text()
    assert find_differences(path.read_text()) == []


@pytest.mark.parametrize("pipeline", ["img2img", "inpaint", "upscale"])
def test_a_changed_line_of_the_denoising_step_is_found(pipeline):
    text = (ROOT / "semseg_diffusers" / "pipelines" / f"pipeline_mask_guided_{pipeline}.py").read_text()
    changed = text.replace("[:, : self.prediction_channels]", "[:, :1]")
    assert changed != text
    (difference,) = find_differences(changed)
    assert difference.endswith("MaskGuidedDDPMPipeline.__call__")
