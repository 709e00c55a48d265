"""The camera of the toy scenes, which draws on image and mask at once, so that masks are exact.

It also keeps which pixels belong to what was painted in one colour, so that the colours of things are known.

The camera is on the road: x metres to the right, y up, z ahead; objects are positioned in metres and projected.
"""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageDraw


SKY = 10  # class id of the background, as in the BDD100K label set
NEAR = 0.9  # metres; nothing nearer to the camera is drawn
FAR = 160.0  # metres; the road ends here

Color = tuple[float, float, float]  # red, green, blue in 0..1
Point = tuple[float, ...]  # x, y and optionally z, in metres
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """Light and weather of a scene; `weather` and `timeofday` use the words of BDD100K."""

    weather: str
    timeofday: str
    light: Color  # multiplies the colour of everything that is not a light source
    sky_top: Color
    sky_bottom: Color
    haze: Color  # colour that distant objects fade to
    visibility: float  # metres over which a colour fades to 1/e
    sun: float  # 0..1, strength of shadows and of the difference between sunny and shaded sides
    clouds: float  # 0..1
    lamps: bool  # street lamps, headlights and windows shine
    wet: float  # 0..1, mirroring of the road


class Painter:
    """Image and mask under one camera; colours get the light, the shade and the haze of the look.

    Points are relative to the origin of `at`, which also gives the class. Each shape takes the haze of its `depth`, by
    default that of the origin. A `detail` (a window, a lane marking) does not change the mask. `horizon` is from 0 at
    the top to 1, `focal` a length over the image height, `eye` the camera's height in metres, `bend` the world's shift
    to the side in metres per square metre ahead (the road's curve), `line` the thinnest line in pixels.
    """

    def __init__(
        self, size: tuple[int, int], look: Look, *, horizon: float, focal: float, eye: float, bend: float, line: float
    ):
        self.height, self.width = size
        self.look, self.eye, self.bend, self.line_width = look, eye, bend, line
        self.horizon = horizon * self.height
        self.focal = focal * max(self.height, 0.72 * self.width)
        self.image = Image.new("RGB", (self.width, self.height))
        self.mask = Image.new("L", (self.width, self.height), SKY)
        self.tags = Image.new("I", (self.width, self.height))  # number of the colour in `colors` from 1 on; 0: none
        self.colors: list[Color] = []
        self._image_draw = ImageDraw.Draw(self.image, "RGBA")  # RGBA: fills with an alpha blend
        self._mask_draw, self._tags_draw = ImageDraw.Draw(self.mask), ImageDraw.Draw(self.tags)
        # x, y, radius and colour of light sources
        self.lamps: list[tuple[float, float, float, tuple[int, int, int]]] = []
        self.x, self.z, self.label, self.tag = 0.0, 0.0, SKY, 0

    def at(self, x: float, z: float, label: int) -> "Painter":
        """Return a painter of the same image and mask with the origin x metres right, z ahead, for a class id."""
        moved = copy.copy(self)
        moved.x, moved.z, moved.label, moved.tag = self.x + x, self.z + z, label, 0
        return moved

    def tag_as(self, color: Color) -> None:
        """Remember the colour of all that is drawn from here on, until the next `at`."""
        self.colors.append(color)
        self.tag = len(self.colors)

    def project(self, x: float, y: float, z: float = 0.0) -> tuple[float, float]:
        """Return the pixel of the point x metres right of the origin, y above the ground, z ahead of the origin."""
        x, z = self.x + x, max(self.z + z, NEAR)
        scale = self.focal / z
        return self.width / 2 + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale

    def metre(self, z: float) -> float:
        """Return the pixels of one metre at the distance z from the camera."""
        return self.focal / max(z, NEAR)

    def sees(self, z: float, margin: float) -> bool:
        """Return whether an object that extends `margin` metres to both sides of the origin can be in the image."""
        x, reach = self.project(0, 0, z)[0], margin * self.metre(self.z + z)
        return self.z + z > NEAR and -reach < x < self.width + reach

    def paint(self, color: Color, depth: float | None = None, shines: bool = False) -> tuple[int, int, int]:
        """Return the colour, in 0..255, as the camera sees it at that depth."""
        fade = math.exp(-(self.z if depth is None else depth) / (self.look.visibility * (3 if shines else 1)))
        light = (1.0, 1.0, 1.0) if shines else self.look.light
        red, green, blue = (
            int(255 * min(max(c * m * fade + h * (1 - fade), 0.0), 1.0))
            for c, m, h in zip(color, light, self.look.haze, strict=True)
        )
        return red, green, blue

    def polygon(
        self, points: Sequence[Point], color: Color, depth: float | None = None, detail: bool = False, shines=False
    ) -> None:
        """Draw a filled polygon."""
        corners = [self.project(*point) for point in points]
        self._image_draw.polygon(corners, fill=self.paint(color, depth, shines))
        if not detail:
            self._mask_draw.polygon(corners, fill=self.label)
            self._tags_draw.polygon(corners, fill=self.tag)

    def ellipse(
        self, center: Point, radius_x: float, radius_y: float, color: Color, detail=False, shines=False, outline=0.0
    ) -> None:
        """Draw an ellipse; radii are in metres. One with an outline is empty in the image and filled in the mask."""
        (x, y), metre = self.project(*center), self.metre(self.z + sum(center[2:]))
        box = (x - radius_x * metre, y - radius_y * metre, x + radius_x * metre, y + radius_y * metre)
        seen = self.paint(color, shines=shines)
        if outline:
            width = max(round(max(outline * metre, 0.6 * self.line_width)), 1)
            self._image_draw.ellipse(box, outline=seen, width=width)
        else:
            self._image_draw.ellipse(box, fill=seen)
        if not detail:
            self._mask_draw.ellipse(box, fill=self.label)
            self._tags_draw.ellipse(box, fill=self.tag)

    def lamp(self, center: Point, radius: float, color: Color) -> None:
        """Draw a light source; it glows afterwards unless something nearer covers it."""
        metre = self.metre(self.z)
        radius = max(radius, 0.5 * self.line_width / metre)
        self.ellipse(center, radius, radius, color, shines=True)
        self.lamps.append((*self.project(*center), radius * metre, self.paint(color, shines=True)))

    def line(self, points: Sequence[Point], width: float, color: Color, depth: float | None = None) -> None:
        """Draw a line of at least the thinnest width, so that a pole never vanishes from image or mask."""
        pixels = max(round(max(width * self.metre(self.z if depth is None else depth), self.line_width)), 1)
        corners = [self.project(*point) for point in points]
        self._image_draw.line(corners, fill=self.paint(color, depth), width=pixels)
        self._mask_draw.line(corners, fill=self.label, width=pixels)
        self._tags_draw.line(corners, fill=self.tag, width=pixels)

    def shadow(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """Draw a dark patch on the ground under an object; the mask does not change."""
        points = [self.project(x, 0, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
        self._image_draw.polygon(points, fill=(0, 0, 0, int(70 + 90 * self.look.sun)))


def ground(x0: float, x1: float, z0: float, z1: float) -> list[Point]:
    """Return a strip of ground between two lines along the road, following its curve."""
    steps = [z0 + (z1 - z0) * (i / 10) ** 2.2 for i in range(11)] if z1 - z0 > 12 else [z0, z1]
    return [(x0, 0, z) for z in steps] + [(x1, 0, z) for z in reversed(steps)]


def side(x: float, z0: float, z1: float, y0: float, y1: float) -> list[Point]:
    """Return an upright rectangle along the road."""
    return [(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)]


def face(x0: float, x1: float, y0: float, y1: float, z: float = 0.0) -> list[Point]:
    """Return an upright rectangle that faces the camera."""
    return [(x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)]


def tint(color: Color, factor: float) -> Color:
    """Return a colour with its brightness multiplied."""
    return color[0] * factor, color[1] * factor, color[2] * factor


class Rng(random.Random):
    """Random numbers as scenes need them."""

    def chance(self, share: float) -> bool:
        """Return True with a probability."""
        return self.random() < share

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[int(self.random() * len(choices))]

    def jitter(self, color: Color, amount: float) -> Color:
        """Return the colour with its brightness changed by up to `amount` and each channel by an eighth of it."""
        factor = 1 + amount * (2 * self.random() - 1)
        red, green, blue = (min(max(c * factor + amount / 8 * (2 * self.random() - 1), 0.02), 0.98) for c in color)
        return red, green, blue
