"""The figure of `stats`: bars and a heat map of positions for each class.

The bars correspond to figure 9 of the paper, on a logarithmic scale, so that rare classes are visible.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.statistics.counts import ClassFigures, MaskStatistics, class_figures, heat_maps
from semseg_diffusers.masks.statistics.underrepresented import RARE_SHARE
from semseg_diffusers.reports.html import percent


INK, GREY, RULE, RED = (28, 28, 30), (110, 110, 116), (214, 214, 220), (200, 30, 30)
MARGIN, ROW, BAR = 32, 30, 16  # pixels
NAME_WIDTH, PIXELS_WIDTH, IMAGES_WIDTH, FIGURE_WIDTH = 160, 430, 250, 84  # of the columns
WIDTH = 2 * MARGIN + NAME_WIDTH + PIXELS_WIDTH + IMAGES_WIDTH + 5 * FIGURE_WIDTH
LOWEST = 1e-5  # left end of the logarithmic scale: a share of the labelled pixels
HEAT_COLUMNS, HEAT_GAP = 6, 18
# Light to dark in one hue, so that it also reads in grey.
HEAT_COLORS = ((247, 249, 252), (190, 212, 238), (107, 163, 214), (37, 101, 170), (8, 40, 90))


def draw_statistics(statistics: MaskStatistics, title: str) -> Image.Image:
    """Draw bars of pixel and image shares, numbers of objects, and a heat map of each class.

    Args:
        statistics: from `collect_statistics`.
        title: headline.

    Returns:
        RGB image, `WIDTH` pixels wide.
    """
    labels = statistics.labels
    figures = class_figures(statistics)
    order = sorted(range(labels.num_classes), key=lambda index: -figures[index].pixel_share)
    tiles = [_heat_tile(labels, index, figures, heat) for index, heat in enumerate(heat_maps(statistics))]
    rows = -(-len(order) // HEAT_COLUMNS)
    bars_top = MARGIN + 100
    heat_top = bars_top + ROW * len(order) + 84
    height = heat_top + rows * (tiles[0].height + HEAT_GAP) + MARGIN - HEAT_GAP
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=_font(24), anchor="la")
    _draw_bars(draw, labels, [figures[index] for index in order], order, bars_top)
    draw.text((MARGIN, heat_top - 44), "Where in the frame", fill=INK, font=_font(18), anchor="la")
    note = "share of the class in each cell, from 0 (light) to the number above the map (dark)"
    draw.text((MARGIN + 190, heat_top - 40), note, fill=GREY, font=_font(13), anchor="la")
    for position, index in enumerate(order):
        down, across = divmod(position, HEAT_COLUMNS)
        at = (MARGIN + across * (tiles[0].width + HEAT_GAP), heat_top + down * (tiles[0].height + HEAT_GAP))
        image.paste(tiles[index], at)
    return image


def log_position(share: float) -> float:
    """Return the position of a share on the logarithmic scale of the bars: 0 up to `LOWEST`, 1 for all.

    Example:
        >>> log_position(1.0), log_position(1e-5), log_position(0.0), round(log_position(0.1), 3)
        (1.0, 0.0, 0.0, 0.8)
    """
    return 1 - math.log(max(share, LOWEST)) / math.log(LOWEST)


def heat_image(heat: np.ndarray) -> Image.Image:
    """Return a heat map (rows, columns) as a P-mode image, one pixel per cell, the largest value the darkest."""
    stops = np.linspace(0, 255, len(HEAT_COLORS))
    table = np.array(HEAT_COLORS)
    palette = np.stack([np.interp(np.arange(256), stops, table[:, channel]) for channel in range(3)], axis=-1)
    image = Image.fromarray((255 * heat / max(heat.max(), 1e-12)).round().astype(np.uint8))
    image.putpalette(palette.round().astype(np.uint8).tobytes())
    return image


def _draw_bars(
    draw: ImageDraw.ImageDraw, labels: LabelSet, figures: list[ClassFigures], order: list[int], top: int
) -> None:
    pixels_left = MARGIN + NAME_WIDTH
    images_left = pixels_left + PIXELS_WIDTH
    figures_left = images_left + IMAGES_WIDTH
    bottom = top + ROW * len(figures)

    def across(share: float) -> float:
        """Return the x position of a share of pixels; the numbers are right of it."""
        return pixels_left + log_position(share) * (PIXELS_WIDTH - 84)

    small, normal = _font(13), _font(14)
    draw.text((pixels_left, top - 48), "share of the labelled pixels", fill=INK, font=normal, anchor="la")
    draw.text((images_left, top - 48), "share of the images", fill=INK, font=normal, anchor="la")
    titles = ("images", "objects", "objects\nan image", "median\nobject", "typical\nobject")
    for column, text in enumerate(titles):
        right = figures_left + (column + 1) * FIGURE_WIDTH
        draw.multiline_text((right, top - 10), text, fill=INK, font=small, anchor="rd", align="right")
    for exponent in range(-5, 1):
        x = across(10.0**exponent)
        draw.line((x, top, x, bottom), fill=RULE)
        draw.text((x, top - 6), f"{100 * 10.0**exponent:g} %", fill=GREY, font=_font(11), anchor="md")
    for share in (0, 0.5, 1):
        x = images_left + share * (IMAGES_WIDTH - 66)
        draw.line((x, top, x, bottom), fill=RULE)
        draw.text((x, top - 6), f"{share:.0%}".replace("%", " %"), fill=GREY, font=_font(11), anchor="md")
    x = across(RARE_SHARE)
    for y in range(top, bottom, 8):
        draw.line((x, y, x, y + 4), fill=RED)
    text = f"rare: below {percent(RARE_SHARE)}"
    draw.text((x, bottom + 4), text, fill=RED, font=_font(12), anchor="ma")

    for row, (index, of_class) in enumerate(zip(order, figures, strict=True)):
        middle = top + row * ROW + ROW // 2
        box = (middle - BAR // 2, middle + BAR // 2)
        name = _shortened(of_class.name, NAME_WIDTH - 12, normal)
        draw.text((pixels_left - 10, middle), name, fill=INK, font=normal, anchor="rm")
        if of_class.pixels:
            ends = (across(of_class.pixel_share), images_left + of_class.image_share * (IMAGES_WIDTH - 66))
            for left, right in ((pixels_left, ends[0]), (images_left, ends[1])):
                draw.rectangle((left, box[0], max(right, left + 1), box[1]), fill=labels.colors[index], outline=GREY)
        else:
            ends = (pixels_left, images_left)
        for end, share in zip(ends, (of_class.pixel_share, of_class.image_share), strict=True):
            at = (end + 6, middle)
            draw.rectangle(draw.textbbox(at, percent(share), font=small, anchor="lm"), fill="white")
            draw.text(at, percent(share), fill=INK, font=small, anchor="lm")
        values = (f"{of_class.images}", f"{of_class.objects}", f"{of_class.objects_per_image:.1f}")
        values += (f"{of_class.median_object:.0f} px", f"{of_class.typical_object:.0f} px")
        for column, text in enumerate(values):
            right = figures_left + (column + 1) * FIGURE_WIDTH
            draw.text((right, middle), text, fill=INK, font=small, anchor="rm")
    text = "typical object: half of the pixels of the class are in objects at least this large"
    draw.text((WIDTH - MARGIN, bottom + 4), text, fill=GREY, font=_font(12), anchor="ra")


def _heat_tile(labels: LabelSet, index: int, figures: list[ClassFigures], heat: np.ndarray) -> Image.Image:
    """Return the heat map of one class under its name and its largest value."""
    width = (WIDTH - 2 * MARGIN - (HEAT_COLUMNS - 1) * HEAT_GAP) // HEAT_COLUMNS
    size = (width, round(width * heat.shape[0] / heat.shape[1]))
    tile = Image.new("RGB", (width, size[1] + 24), "white")
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 3, 13, 16), fill=labels.colors[index], outline=GREY)
    largest = percent(float(heat.max())) if figures[index].pixels else "never seen"
    draw.text((width - 1, 10), largest, fill=GREY, font=_font(13), anchor="rm")
    room = width - 26 - _font(13).getlength(largest)
    draw.text((20, 10), _shortened(labels.names[index], room, _font(14)), fill=INK, font=_font(14), anchor="lm")
    tile.paste(heat_image(heat).resize(size, Image.Resampling.NEAREST), (0, 24))
    draw.rectangle((0, 24, width - 1, size[1] + 23), outline=RULE)
    return tile


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, or as much of it as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
