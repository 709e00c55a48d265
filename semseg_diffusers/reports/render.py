"""Renders the HTML pages from `templates/`: numbers as text, images as data inside the file, marks on an axis."""

import base64
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
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


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether there is a value that can be plotted or compared."""
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


def rgb_hex(color: Sequence[int]) -> str:
    """Write a colour of three levels as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings.

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


# Tables --------------------------------------------------------------------------------------------------------------


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
    """Return the columns of a table: `float` with three significant digits, `int` exact, None as a dash.

    Raises:
        ValueError: a row has more or fewer cells than there are headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"expected {len(headers)} cells in each row of a table, got {len(row)}: {list(row)}")
    return [_align([row[index] for row in rows]) for index in range(len(headers))]


def _align(values: Sequence[Any]) -> Column:
    kinds = {type(value) for value in values if value is not None}
    if not kinds or not all(issubclass(kind, (int, float)) and kind is not bool for kind in kinds):
        return Column(
            [value if isinstance(value, str) else exact(value) for value in values], [0.0] * len(values), False
        )
    texts = [number(value) for value in values]
    tails = [text.partition(".")[2] if "e" not in text else "" for text in texts]
    widths = [len(tail) + 0.5 if tail else 0.0 for tail in tails]  # a point is about half a digit wide
    pads = [0.0 if value is None else max(widths) - width for value, width in zip(values, widths, strict=True)]
    return Column(texts, pads, True)


def axis_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover a range.

    Example:
        >>> axis_ticks(0, 0.93), axis_ticks(0, 5000)
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 2000.0, 4000.0, 6000.0])
    """
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


# Images --------------------------------------------------------------------------------------------------------------


class EmbeddedImage(NamedTuple):
    """An image as a data URI."""

    source: str
    width: int
    height: int
    is_sharp: bool  # keeps hard edges when it is enlarged


def embed(image: Image.Image) -> EmbeddedImage:
    """Embed an image of at most `IMAGE_SIDE` pixels.

    Palette images (masks) keep hard edges and are PNG; photos are JPEG if that takes less than half as much.
    """
    is_sharp = image.mode in ("P", "1")
    image = _reduce(image, IMAGE_SIDE, Image.Resampling.NEAREST if is_sharp else Image.Resampling.LANCZOS)
    kind, data = "png", _encode(image, "png")
    if not is_sharp and 2 * len(photo := _encode(image.convert("RGB"), "jpeg", quality=JPEG_QUALITY)) < len(data):
        kind, data = "jpeg", photo
    return EmbeddedImage(_data_uri(kind, data), *image.size, is_sharp)


def embed_sheet(image: Image.Image) -> EmbeddedImage:
    """Embed a sheet of images as a JPEG of at most `SHEET_SIDE` pixels."""
    image = _reduce(image.convert("RGB"), SHEET_SIDE, Image.Resampling.LANCZOS)
    return EmbeddedImage(_data_uri("jpeg", _encode(image, "jpeg", quality=JPEG_QUALITY)), *image.size, False)


def _reduce(image: Image.Image, side: int, method: Image.Resampling) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image if scale >= 1 else image.resize((width, height), method)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True, **options)
    return buffer.getvalue()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


# Pages ---------------------------------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {
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
    environment.tests["finite"] = is_finite
    for function in (align_columns, axis_ticks, bar_axis, embed, embed_sheet, flatten):
        environment.globals[function.__name__] = function
    return environment


def render(template: str | Path, **context: Any) -> str:
    """Render a page.

    Args:
        template: name in `templates/`, or the path of a template elsewhere that extends `base.html.j2`.
        **context: what the template shows.
    """
    environment = _environment()
    found = (
        environment.from_string(template.read_text(encoding="utf-8"))
        if isinstance(template, Path)
        else environment.get_template(template)
    )
    return found.render(sections=[], **context)


def write_page(path: str | Path, template: str | Path, **context: Any) -> None:
    """Render a page into a file, atomically; its folder is created if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(template, **context))
