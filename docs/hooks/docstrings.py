"""An extension of griffe: how docstrings of the package become pages of the API.

Fields of settings carry their unit and reason in a comment, or their help in `metadata`: here these become what a page
says of them. Types that a docstring repeats from the signature are taken from the signature. Each page says what to
import.
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
TOLD = "what the field says of itself"


class DocstringsOfThePackage(Extension):
    """Reads docstrings as this package writes them."""

    def on_attribute_instance(self, *, node: ast.AST | Any, attr: Attribute, **kwargs: Any) -> None:  # noqa: ARG002
        """Keep the comment, or the help, of a field."""
        if isinstance(node, ast.AnnAssign) and attr.parent.is_class:
            lines = attr.parent.filepath.read_text(encoding="utf-8").splitlines()
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            attr.extra[PACKAGE][TOLD] = _help_of(node) or rest.partition("#")[2].strip()

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
    """The help that a field's `metadata` holds."""
    for each in ast.walk(node):
        if isinstance(each, ast.Dict):
            for key, value in zip(each.keys, each.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    return ast.literal_eval(value)
    return None


def _without_known_type(obj: Object) -> Any:
    """What takes a parameter's type out of the docstring, where the signature has it."""
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
    """The docstring of a class of fields, with a section that says what each is, where it has none."""
    told = {name: member.extra[PACKAGE].get(TOLD) for name, member in cls.members.items() if member.is_attribute}
    told = {name: words for name, words in told.items() if words and not name.startswith("_")}
    if not told or "Args:" in text:
        return text
    section = "Args:\n" + "".join(f"    {name}: {words}\n" for name, words in told.items())
    found = SECTIONS.search(text)
    if found is None:
        return f"{text}\n\n{section}"
    return f"{text[: found.start()]}{section}\n{text[found.start() :]}"
