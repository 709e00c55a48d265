"""Griffe extension: turn docstrings of the package into API pages.

Fields of settings are described by their comment, or by the help of their option. Types that a docstring repeats from
the signature are taken from the signature. Each entry shows its import.
"""

import ast
import inspect
import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function, Object


PACKAGE = "semseg_diffusers"
SECTIONS = re.compile(r"^(Args|Returns|Raises|Yields|Examples?):", flags=re.MULTILINE)
TYPED = re.compile(r"^(?P<start> +\*{0,2}(?P<name>\w+)) \((?P<type>[^\n]*)\): ", flags=re.MULTILINE)
RETURNED = re.compile(r"^((?:Returns|Yields):\n +)`([^`\n]+)`: ", flags=re.MULTILINE)
EXAMPLE = re.compile(r"^Example:(\n +>>> )", flags=re.MULTILINE)
DESCRIPTION = "description of the field"


class DocstringsOfThePackage(Extension):
    """Read docstrings as this package writes them."""

    def on_attribute_instance(self, *, node: ast.AST | Any, attr: Attribute, **kwargs: Any) -> None:  # noqa: ARG002
        """Keep the comment, or the help, of a field."""
        if isinstance(node, ast.AnnAssign) and attr.parent.is_class:
            lines = attr.parent.filepath.read_text(encoding="utf-8").splitlines()
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            attr.extra[PACKAGE][DESCRIPTION] = _help_of(node) or rest.partition("#")[2].strip()

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:  # noqa: ARG002
        """Rewrite the docstring of a class or a function."""
        if not (obj.is_class or obj.is_function) or not obj.docstring:
            return
        text = TYPED.sub(_without_known_type(obj), inspect.cleandoc(obj.docstring.value))
        text = EXAMPLE.sub(r"Examples:\1", RETURNED.sub(r"\1\2: ", text))
        if isinstance(obj, Class):
            text = _with_fields(obj, text)
        if obj.parent.is_module:
            module = PACKAGE if obj.name in obj.package.exports else obj.parent.path
            text = f"`from {module} import {obj.name}`\n\n{text}"
        obj.docstring = Docstring(text, lineno=obj.docstring.lineno, endlineno=obj.docstring.endlineno, parent=obj)


def _help_of(node: ast.AnnAssign) -> str | None:
    """Return the help of a field made by `option(..., help=...)`, if it is a plain text."""
    for each in ast.walk(node):
        if isinstance(each, ast.keyword) and each.arg == "help":
            try:
                return ast.literal_eval(each.value)
            except ValueError:  # an f-string
                return ast.unparse(each.value)[2:-1]
    return None


def _without_known_type(obj: Object) -> Any:
    """Return a replacement that removes a parameter's type if the signature has it."""
    function = obj if isinstance(obj, Function) else obj.members.get("__init__")
    parameters = function.parameters if isinstance(function, Function) else ()
    known = {parameter.name for parameter in parameters if parameter.annotation is not None}
    known |= {name for name, member in obj.members.items() if getattr(member, "annotation", None) is not None}

    def plain(match: re.Match) -> str:
        if match["name"] in known:
            return f"{match['start']}: "
        return f"{match['start']} ({match['type'].replace('`', '')}): "

    return plain


def _with_fields(cls: Class, text: str) -> str:
    """Return the docstring of a class of fields, with a section that describes them, if it has none."""
    described = {
        name: member.extra[PACKAGE].get(DESCRIPTION) for name, member in cls.members.items() if member.is_attribute
    }
    described = {name: words for name, words in described.items() if words and not name.startswith("_")}
    if not described or "Args:" in text:
        return text
    section = "Args:\n" + "".join(f"    {name}: {words}\n" for name, words in described.items())
    found = SECTIONS.search(text)
    if found is None:
        return f"{text}\n\n{section}"
    return f"{text[: found.start()]}{section}\n{text[found.start() :]}"
