"""Renders the HTML pages from `templates/`: numbers as text, images as data inside the file, marks on an axis."""

import base64
import functools
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from semseg_diffusers.utils.files import write_text


TEMPLATES = Path(__file__).with_name("templates")
DIGITS = 3  # significant digits of a measured number
NOTHING = "–"  # for a value that is missing
NOT_A_NUMBER = "n/a"  # NaN: was computed, has no value
IMAGE_SIDE = 320  # pixels; a larger image is reduced to this, so that a page of a hundred stays below 3 MB
SHEET_SIDE = 2000  # pixels, of an image that is a sheet of images
JPEG_QUALITY = 90


def number(value: float | int | None) -> str:
    """Write a measured number with its significant digits; whole numbers (`int`) are counts and stay exact."""
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
    rounded = float(f"{value:.{DIGITS - 1}e}")  # before the decimals are counted: 0.9996 is 1.00
    decimals = DIGITS - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(decimals, 0)}f}" if decimals <= 8 else f"{rounded:.{DIGITS - 1}e}"


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether there is a value that can be plotted or compared."""
    return value is not None and math.isfinite(value)


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage with its significant digits: `1.23 %`."""
    return f"{number(100 * float(share))} %" if is_finite(share) else number(share)


def exact(value: Any) -> str:
    """Write a setting as it was given."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(exact, value)) or NOTHING
    return str(value)


def rgb_hex(color: Sequence[int]) -> str:
    """Write a colour of three levels as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def class_legend(labels: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the classes of a label set with their colours, "unknown" last."""
    return [*zip(labels.names, labels.colors, strict=True), ("unknown", labels.ignore_color)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings, with dotted names; None for an empty mapping."""
    leaves = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves += flatten(value, f"{prefix}{name}.") or [(f"{prefix}{name}", None)]
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


class BarRow(NamedTuple):
    """A row of a bar table: its name, a value for each series (None if missing), cells of further columns."""

    name: str
    values: Sequence[float | None]
    more: Sequence[str | float | None] = ()
    color: tuple[int, int, int] | None = None  # of the class it names


class Column(NamedTuple):
    """The cells of a column as text, and as pads, in widths of a digit, that align the decimal points of numbers."""

    texts: list[str]
    pads: list[float]
    is_numeric: bool


def align_columns(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Column]:
    """Return the columns of a table: `float` with three significant digits, `int` exact, None as a dash."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"expected {len(headers)} cells in each row of a table, got {len(row)}: {list(row)}")
    columns = []
    for values in ([row[index] for row in rows] for index in range(len(headers))):
        known = [value for value in values if value is not None]
        if known and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
            texts = [number(value) for value in values]
            tails = [text.partition(".")[2] if "e" not in text else "" for text in texts]
            widths = [len(tail) + 0.5 if tail else 0.0 for tail in tails]  # a point is about half a digit wide
            pads = [0.0 if value is None else max(widths) - width for value, width in zip(values, widths, strict=True)]
            columns.append(Column(texts, pads, True))
        else:
            texts = [value if isinstance(value, str) else exact(value) for value in values]
            columns.append(Column(texts, [0.0] * len(values), False))
    return columns


def axis_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover a range."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return list(map(float, MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)))


def bar_axis(rows: Sequence[BarRow], maximum: float | None = None) -> list[float]:
    """Return the axis of bars: from 0 to `maximum`, or to the largest value."""
    values = [value for row in rows for value in row.values if is_finite(value)]
    return axis_ticks(0.0, maximum if maximum is not None else max(values, default=1.0) or 1.0)


def place(value: float, axis: Sequence[float]) -> float:
    """Return the place of a value on an axis, in percent; a value outside is put on the edge."""
    return round(100 * min(max((value - axis[0]) / (axis[-1] - axis[0]), 0.0), 1.0), 2)


class EmbeddedImage(NamedTuple):
    """An image as a data URI."""

    source: str
    width: int
    height: int
    is_sharp: bool  # keeps hard edges when it is enlarged


def embed(image: Image.Image, is_sheet: bool = False) -> EmbeddedImage:
    """Embed an image of at most `IMAGE_SIDE` pixels, or a sheet of images, as JPEG, of at most `SHEET_SIDE`.

    Palette images (masks) keep hard edges and are PNG; photos are JPEG if that takes less than half as much.
    """
    if is_sheet:
        image = image.convert("RGB")
    is_sharp = image.mode in ("P", "1")
    scale = (SHEET_SIDE if is_sheet else IMAGE_SIDE) / max(image.size)
    if scale < 1:
        width, height = (max(1, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST if is_sharp else Image.Resampling.LANCZOS)
    kind, data = "png", b"" if is_sheet else _encode(image, "png")
    if not is_sharp:
        jpeg = _encode(image.convert("RGB"), "jpeg", quality=JPEG_QUALITY)
        if is_sheet or 2 * len(jpeg) < len(data):
            kind, data = "jpeg", jpeg
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return EmbeddedImage(source, *image.size, is_sharp)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return buffer.getvalue()


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    extensions=["jinja2.ext.do"],
)
ENVIRONMENT.filters |= {
    "axis_text": lambda value: f"{value:,.10g}",
    "ends_and_middle": lambda axis: [axis[0], *([axis[len(axis) // 2]] if len(axis) % 2 else []), axis[-1]],
    "exact": exact,
    "hex": rgb_hex,
    "join_versions": lambda versions: ", ".join(" ".join(item) for item in (versions or {}).items()) or NOTHING,
    "number": number,
    "percent": percent,
    "place": place,
    "shell": lambda words: shlex.join(map(str, words)),
    "slug": lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"),
}
ENVIRONMENT.tests["finite"] = is_finite
ENVIRONMENT.globals |= {function.__name__: function for function in (align_columns, bar_axis, embed, flatten)}


compiled = functools.cache(ENVIRONMENT.from_string)  # which takes longer than most pages take to render


def render(template: str | Path, **context: Any) -> str:
    """Render a page by a template in `templates/`, or by one at an absolute path that extends `base.html.j2`."""
    source = (TEMPLATES / template).read_text(encoding="utf-8")
    return compiled(source).render(sections=[], **context)


def write_page(path: str | Path, template: str | Path, **context: Any) -> None:
    """Render a page into a file, atomically; its folder is created if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(template, **context))
