"""Draws how a training went: loss and validation mean IoU over the steps, in one picture.
Drawn with Pillow, so that the package needs no plotting library."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from semseg_diffusers.utils.images import BACKGROUND, FONT_SIZE, INK


SIZE = (760, 360)  # pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 56, 56, 44  # margins in pixels
GRID = (225, 225, 225)
LOSS_COLOR = (31, 119, 180)
SCORE_COLOR = (214, 84, 20)
TICKS = 4  # lines of the grid above zero


def round_up(value: float) -> float:
    """Return the next of 1, 2, 2.5, 5, 10 times a power of ten: a scale whose quarters read well.

    Example:
        >>> round_up(0.43), round_up(2.1), round_up(1.0)
        (0.5, 2.5, 1.0)
    """
    power = 1.0
    while power < value:
        power *= 10
    while power / 10 >= value:
        power /= 10
    return next(factor * power for factor in (0.1, 0.2, 0.25, 0.5, 1.0) if factor * power >= value * (1 - 1e-9))


def draw_curve(log: Sequence[dict[str, Any]], best_step: int | None = None, title: str = "") -> Image.Image:
    """Draw the lines of a training's log.

    Args:
        log: lines with `step` and `loss`, and lines with `step` and `mean_iou` (0 to 1).
        best_step: the step whose weights were kept; marked.
        title: one line on top.

    Returns:
        RGB picture; loss on the left axis, mean IoU on the right one where there is any.
    """
    losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
    scores = [(line["step"], line["mean_iou"]) for line in log if "mean_iou" in line]
    last_step = max((line["step"] for line in log), default=1)
    picture = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=FONT_SIZE)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    bottom = TOP + height

    def place(step: int, share: float) -> tuple[float, float]:
        return LEFT + width * step / last_step, bottom - height * share

    def axis(values: list[tuple[int, float]], color: tuple[int, int, int], is_left: bool) -> float:
        top = round_up(max((value for _, value in values), default=1.0) or 1.0)
        for tick in range(TICKS + 1):
            y = bottom - height * tick / TICKS
            x, anchor = (LEFT - 8, "rm") if is_left else (LEFT + width + 8, "lm")
            draw.text((x, y), f"{top * tick / TICKS:.3g}", fill=color, font=font, anchor=anchor)
        return top

    draw.text((LEFT, 8), title, fill=INK, font=font)
    for tick in range(TICKS + 1):
        y = bottom - height * tick / TICKS
        draw.line((LEFT, y, LEFT + width, y), fill=GRID)
        x = LEFT + width * tick / TICKS
        draw.text((x, bottom + 8), f"{last_step * tick / TICKS:g}", fill=INK, font=font, anchor="mt")
    draw.text((LEFT + width / 2, SIZE[1] - 4), "steps", fill=INK, font=font, anchor="mb")

    top = axis(losses, LOSS_COLOR, is_left=True)
    draw.line([place(step, loss / top) for step, loss in losses], fill=LOSS_COLOR, width=2)
    draw.text((LEFT, TOP - 20), "training loss", fill=LOSS_COLOR, font=font)
    if scores:
        top = axis(scores, SCORE_COLOR, is_left=False)
        points = [place(step, score / top) for step, score in scores]
        draw.line(points, fill=SCORE_COLOR, width=2)
        for (step, score), (x, y) in zip(scores, points, strict=True):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=SCORE_COLOR)
            if step == best_step:
                draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=SCORE_COLOR, width=2)
                side = "r" if x > LEFT + width / 2 else "l"
                at, edge = (y + 12, "t") if y < TOP + 30 else (y - 10, "b")  # below, where the title stands above
                draw.text((x, at), f"kept: {score:.3f}", fill=SCORE_COLOR, font=font, anchor=side + edge)
        text = "validation mean IoU"
        draw.text((LEFT + width - font.getlength(text), TOP - 20), text, fill=SCORE_COLOR, font=font)
    return picture
