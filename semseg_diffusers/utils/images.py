"""Grids of images with labels, and image files that are written completely or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from semseg_diffusers.utils.files import written_beside


GAP = 4  # pixels between two cells
FONT_SIZE = 14  # pixels
GRID_NOTE = "grid"  # key under which `image_grid` records its layout; `save_png` keeps it
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)


def to_image(cell: Any, labels: Any = None) -> Image.Image:
    """Return a PIL image, (3, H, W) uint8 or float in [0, 1], or (H, W) class ids of `labels`, as a PIL image."""
    if isinstance(cell, Image.Image):
        return cell
    array = cell.detach().cpu().numpy() if isinstance(cell, torch.Tensor) else np.asarray(cell)
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        if labels is None:
            raise ValueError("a cell of class ids needs labels=LabelSet for its colours; got none")
        return labels.decode(array)
    if array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(
            f"expected a PIL image, a (3, H, W) array or (H, W) integer ids; got shape {array.shape}, {array.dtype}"
        )
    if array.dtype != np.uint8:
        array = (np.clip(array.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))  # (H, W, 3)


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Break text into lines of at most `width` pixels, between words if possible."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def image_grid(
    rows: Sequence[Sequence[Any]],
    headers: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    cell_size: int = 128,
) -> Image.Image:
    """Return an RGB grid of images with column headers on top and row labels on the left.

    Args:
        rows: one sequence of cells per row (see `to_image`); `None` leaves a cell empty, rows may differ in length.
        headers, row_labels: one text per column, wrapped to it, and one per row.
        cell_size: cells are enlarged until the short side of the first, whose size all have, has this many pixels, or
            the long side of a wide one twice as many.
    """
    cells = [[None if cell is None else to_image(cell) for cell in row] for row in rows]
    first = next((cell for row in cells for cell in row if cell is not None), None)
    if first is None:
        raise ValueError("a grid needs at least one image; got none")
    columns = max(len(row) for row in cells)
    if headers is not None and len(headers) != columns:
        raise ValueError(f"a grid of {columns} columns needs {columns} headers; got {len(headers)}: {list(headers)}")
    if row_labels is not None and len(row_labels) != len(cells):
        raise ValueError(f"a grid of {len(cells)} rows needs {len(cells)} row labels; got {len(row_labels)}")

    scale = max(1.0, min(cell_size / min(first.size), 2 * cell_size / max(first.size)))
    width, height = round(first.width * scale), round(first.height * scale)
    font = ImageFont.load_default(size=FONT_SIZE)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    header_texts = [_wrap(text, width, font) for text in headers or ()]
    label_width = min(2 * cell_size, max((int(font.getlength(text)) + 1 for text in row_labels or ()), default=0))
    label_texts = [_wrap(text, label_width, font) for text in row_labels or ()]
    header_height = max(
        (int(measure.multiline_textbbox((0, 0), text, font)[3]) + 1 for text in header_texts), default=0
    )
    left = GAP + (label_width + GAP if label_texts else 0)
    top = GAP + (header_height + GAP if header_texts else 0)

    sheet = Image.new("RGB", (left + columns * (width + GAP), top + len(cells) * (height + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(header_texts):
        draw.multiline_text((left + column * (width + GAP), GAP), text, fill=INK, font=font)
    for index, row in enumerate(cells):
        y = top + index * (height + GAP)
        if label_texts:
            draw.multiline_text((GAP, y), label_texts[index], fill=INK, font=font)
        for column, cell in enumerate(row):
            if cell is None:
                continue
            if cell.mode == "P":  # hard edges
                cell = cell.resize((width, height), Image.Resampling.NEAREST).convert("RGB")
            cell = cell.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(cell, (left + column * (width + GAP), y))
    sheet.info[GRID_NOTE] = json.dumps([left, top, width, height, columns, len(cells)])
    return sheet


def grid_cells(sheet: Image.Image) -> list[list[Image.Image]] | None:
    """Return the cells of an `image_grid`, row by row, including empty ones; None for another image."""
    if GRID_NOTE not in sheet.info:
        return None
    left, top, width, height, columns, rows = json.loads(sheet.info[GRID_NOTE])
    corners = [[(left + i * (width + GAP), top + j * (height + GAP)) for i in range(columns)] for j in range(rows)]
    return [[sheet.crop((x, y, x + width, y + height)) for x, y in row] for row in corners]


def save_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Write an image completely or not at all; the layout of an `image_grid` is kept in it."""
    if GRID_NOTE in image.info and "pnginfo" not in options:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(GRID_NOTE, image.info[GRID_NOTE])
    with written_beside(path) as temporary:
        image.save(temporary, format="png", **options)


def save_jpeg(path: Path, image: Image.Image, comment: str = "") -> None:
    """Write an image as JPEG, completely or not at all; thin objects keep their colours, which are not subsampled."""
    with written_beside(path) as temporary:
        image.save(temporary, format="jpeg", quality=95, subsampling="4:4:4", comment=comment)
