"""Puts pictures into the pages of `frame.py` as data inside the HTML: one, a table of them, or small groups.
Masks stay sharp and are PNG, photos become JPEG where that is much smaller; no equation stands behind it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from PIL import Image

from semseg_diffusers.data.pages.frame import pieces


PICTURE_SIDE = 320  # pixels; a larger picture is reduced to this, so that a page of a hundred stays below 3 MB
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
    size = image.size
    if max(size) > PICTURE_SIDE:
        scale = PICTURE_SIDE / max(size)
        method = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
        image = image.resize([max(1, round(side * scale)) for side in size], method)
    kind, data = "png", _encode(image, "png", optimize=True)
    if not sharp:
        photo = _encode(image.convert("RGB"), "jpeg", quality=JPEG_QUALITY, optimize=True)
        if 2 * len(photo) < len(data):
            kind, data = "jpeg", photo
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    style = Markup(' class="sharp"') if sharp else ""
    return Markup('<img{} src="{}" width="{}" height="{}" alt="{}">').format(style, source, *image.size, alt)


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
