"""Puts pictures into the pages of `frame.py` as data inside the HTML: one, a table of them, or small groups.
Masks stay sharp and are PNG, photos become JPEG where that is much smaller; no equation stands behind it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from PIL import Image

from semseg_diffusers.reports.html import pieces


PICTURE_SIDE = 320  # pixels; a larger picture is reduced to this, so that a page of a hundred stays below 3 MB
SHEET_SIDE = 2000  # pixels, of a picture that is a sheet of pictures
JPEG_QUALITY = 90
CELL_REM = 13.5  # widest that a picture is shown, in rem (16 pixels at the usual setting)


def picture(image: Image.Image, alt: str) -> Markup:
    """An `<img>` with the picture inside.

    Palette pictures (masks) keep hard edges and are PNG; photos are JPEG where that takes less than half as much.

    Args:
        image: any mode; a side above `PICTURE_SIDE` pixels is reduced to it.
        alt: what a reader who cannot see the picture should know.
    """
    sharp = image.mode in ("P", "1")
    image = _reduced(image, PICTURE_SIDE, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)
    kind, data = "png", _encode(image, "png", optimize=True)
    if not sharp:
        photo = _jpeg(image)
        if 2 * len(photo) < len(data):
            kind, data = "jpeg", photo
    return _img(kind, data, image.size, alt, Markup(' class="sharp"') if sharp else "")


def _reduced(image: Image.Image, most: int, method: Image.Resampling) -> Image.Image:
    """The picture with no side above `most` pixels."""
    scale = most / max(image.size)
    return image if scale >= 1 else image.resize([max(1, round(side * scale)) for side in image.size], method)


def _img(kind: str, data: bytes, size: tuple[int, int], alt: str, style: str = "") -> Markup:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return Markup('<img{} src="{}" width="{}" height="{}" alt="{}">').format(style, source, *size, alt)


def _jpeg(image: Image.Image) -> bytes:
    return _encode(image.convert("RGB"), "jpeg", quality=JPEG_QUALITY, optimize=True)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def picture_table(
    headers: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]], caption: str = ""
) -> Markup:
    """Rows of pictures under column headers.

    Args:
        headers: what each column shows.
        rows: a text that stands above the row, and its pictures; None leaves a place empty.
        caption: what the whole shows.

    Raises:
        ValueError: where a row has more or fewer pictures than there are headers.
    """
    filled = []
    for title, images in rows:
        if len(images) != len(headers):
            raise ValueError(f"a table of {len(headers)} pictures a row got {len(images)} in the row '{title}'")
        alts = [f"{header}: {title}" if title else header for header in headers]
        cells = ["" if image is None else picture(image, alt) for image, alt in zip(images, alts, strict=True)]
        filled.append((title, cells))
    return pieces().pictures(headers, filled, caption, len(headers) * CELL_REM)


def wide_picture(image: Image.Image, alt: str, columns: int, caption: str = "") -> Markup:
    """A sheet of pictures as one picture, at most at its own size; where the page is narrow it is scrolled.

    Args:
        image: as `pictures.image_grid` makes it.
        alt: what a reader who cannot see the picture should know.
        columns: how many pictures stand beside each other.
        caption: what the sheet shows.
    """
    sheet = _reduced(image, SHEET_SIDE, Image.Resampling.LANCZOS)
    shown = _img("jpeg", _jpeg(sheet), sheet.size, alt)  # most of it is photos
    return pieces().wide(shown, caption, columns * 4.5, image.width)


def picture_cards(cards: Sequence[tuple[str, Mapping[str, Image.Image]]]) -> Markup:
    """A few small groups of pictures, side by side as the width allows.

    Args:
        cards: what stands below each group, and its pictures by what they show.
    """
    filled = [(text, [picture(image, f"{name}: {text}") for name, image in images.items()]) for text, images in cards]
    return pieces().cards(filled)


def color_list(names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> Markup:
    """Class names, each behind its colour."""
    entries = [named_color(name, color) for name, color in zip(names, colors, strict=True)]
    items = Markup("").join(Markup("<li>{}</li>").format(entry) for entry in entries)
    return Markup('<ul class="classes">{}</ul>\n').format(items)


def named_color(name: str, color: tuple[int, int, int] | None) -> Markup:
    """A name behind a square of its RGB colour; the name alone where there is none."""
    if color is None:
        return Markup("{}").format(name)
    return Markup('<span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>{}').format(*color, name)
