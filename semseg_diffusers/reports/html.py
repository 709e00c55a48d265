"""Builds self-contained HTML pages: frame, prose and tables of numbers, all inside one file without scripts.
Pictures stand in `pictures.py`, charts in `charts.py`, HTML and style in `page.html`; no equation is behind it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from semseg_diffusers.utils.files import write_text


TEMPLATE = Path(__file__).with_name("page.html")

DIGITS = 3  # significant digits of a measured number
NOTHING = "–"  # what stands where there is no value
NOT_A_NUMBER = "n/a"  # NaN: was computed, has no value


@cache
def pieces() -> Any:
    """The macros of `page.html`, which escape what they are given; text that may hold HTML is `Markup`."""
    return Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8")).module


# Numbers and text ----------------------------------------------------------------------------------------------------


def number(value: float | int | None, digits: int = DIGITS) -> str:
    """Write a measured number with its significant digits; whole numbers (`int`) are counts and stay exact.

    Example:
        >>> [number(value) for value in (0.45321, 12.0, 0.00999, 61234.5, 202, 1625788, None, float("nan"))]
        ['0.453', '12.0', '0.00999', '61,200', '202', '1,625,788', '–', 'n/a']
    """
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return NOT_A_NUMBER
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # before the decimals are counted: 0.9996 is 1.00
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}" if decimals <= 8 else f"{rounded:.{digits - 1}e}"


def is_finite(value: float | None) -> bool:
    """Whether there is a value that can be drawn or compared."""
    return value is not None and math.isfinite(value)


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage with its significant digits.

    Example:
        >>> percent(0.0123), percent(1.0), percent(0)
        ('1.23 %', '100 %', '0 %')
    """
    if share is None or math.isnan(share):
        return NOTHING if share is None else NOT_A_NUMBER
    return f"{number(float(share) * 100)} %"


def exact(value: Any) -> str:
    """Write a setting as it was given.

    Example:
        >>> exact(3.0), exact(True), exact(["a", 1]), exact(None), exact(1000000)
        ('3', 'yes', 'a, 1', '–', '1000000')
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(exact, value)) or NOTHING
    return str(value)


def paragraph(text: str) -> Markup:
    """One paragraph; text is escaped, `Markup` is not."""
    return Markup("<p>{}</p>\n").format(text)


def warning(text: str) -> Markup:
    """A paragraph that stands out."""
    return Markup('<p class="warning">{}</p>\n').format(text)


def subheading(text: str) -> Markup:
    return Markup("<h3>{}</h3>\n").format(text)


def bullets(texts: Iterable[str]) -> Markup:
    items = Markup("").join(Markup("<li>{}</li>\n").format(text) for text in texts)
    return Markup("<ul>\n{}</ul>\n").format(items)


def commands(lines: Sequence[str]) -> Markup:
    """Commands as they are typed."""
    return Markup("<pre><code>{}</code></pre>\n").format("\n".join(lines))


def folded(summary: str, content: Markup) -> Markup:
    """What a reader may open: one line, and the rest below it once it is asked for."""
    return Markup("<details>\n<summary>{}</summary>\n{}</details>\n").format(summary, content)


def facts(values: Mapping[str, str]) -> Markup:
    """A short list of names and what they are."""
    items = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>\n").format(*item) for item in values.items())
    return Markup("<dl>\n{}</dl>\n").format(items)


# Tables --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell as the template prints it; `pad` in widths of a digit sets decimal points below each other."""

    text: str
    pad: float = 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _column(values: Sequence[Any]) -> tuple[list[Cell], str]:
    """The cells of a column and its class: numbers are right-aligned on the decimal point."""
    if not any(map(_is_number, values)) or not all(value is None or _is_number(value) for value in values):
        return [Cell(value if isinstance(value, str) else exact(value)) for value in values], ""
    texts = [number(value) for value in values]
    tails = [text.partition(".")[2] if "e" not in text else "" for text in texts]
    widths = [len(tail) + 0.5 if tail else 0.0 for tail in tails]  # a point is about half a digit wide
    pads = [0.0 if value is None else max(widths) - width for value, width in zip(values, widths, strict=True)]
    return [Cell(text, pad) for text, pad in zip(texts, pads, strict=True)], "number"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", drawing: int | None = None
) -> Markup:
    """A table whose first column names the rows.

    Args:
        headers: one text per column.
        rows: cells: text or `Markup`; `float` (three significant digits), `int` (exact), None (a dash). A column of
            numbers is aligned on the decimal point.
        caption: what the table shows; stands above it.
        drawing: the column that holds drawings of `charts.py`; takes the width that the others leave.

    Raises:
        ValueError: where a row has more or fewer cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a table of {len(headers)} columns got a row of {len(row)} cells: {list(row)}")
    columns = [_column([row[index] for row in rows]) for index in range(len(headers))]
    cells = [[column[0][index] for column in columns] for index in range(len(rows))]
    kinds = ["drawing" if index == drawing else column[1] for index, column in enumerate(columns)]
    return pieces().table(headers, cells, caption, kinds, "" if drawing is None else "charted")


def settings_table(values: Mapping[str, Any], caption: str = "") -> Markup:
    """A table of names and values as they were given; mappings inside are written `outer.inner`."""
    return table(["name", "value"], [[name, exact(value)] for name, value in flatten(values)], caption)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings.

    Example:
        >>> flatten({"a": 1, "b": {"c": 2, "d": {}}})
        [('a', 1), ('b.c', 2), ('b.d', None)]
    """
    leaves = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves += flatten(value, f"{prefix}{name}.") or [(f"{prefix}{name}", None)]
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


# The page ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """One heading and what stands below it."""

    title: str
    content: Markup

    @property
    def ident(self) -> str:
        """What a link to the section ends in."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def section(title: str, *blocks: Markup) -> Section:
    """A section of pieces that the functions of the three page modules make; plain text is escaped."""
    return Section(title, Markup("").join(blocks))


def page(title: str, sections: Sequence[Section], lead: str = "", footer: str = "") -> str:
    """The whole page.

    Args:
        title: heading and title of the window.
        sections: in reading order, titles all different; from three on links to them stand at the top.
        lead: what the page is about, in a sentence or two.
        footer: last line.

    Raises:
        ValueError: where two sections would answer to the same link.

    Example:
        >>> "<h2>Numbers</h2>" in page("A page", [section("Numbers", paragraph("1 < 2"))])
        True
    """
    idents = [part.ident for part in sections]
    if len(set(idents)) != len(idents):
        raise ValueError(f"the sections of a page need different titles; got {', '.join(idents)}")
    return str(pieces().page(title, lead, sections, footer))


def write_page(path: str | Path, html: str) -> None:
    """Write a page beside and rename, its folder made where missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
