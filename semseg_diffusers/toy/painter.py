"""The camera of the toy scenes, which draws on image and mask at once, so that masks are exact.

The camera is on the road: x metres to the right, y up, z ahead; objects are positioned in metres and projected.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw


SKY = 10  # class id of the background, as in the BDD100K label set
NEAR = 0.9  # metres; nothing nearer to the camera is drawn
FAR = 160.0  # metres; the road ends here

Colour = tuple[float, float, float]  # red, green, blue in 0..1
Point = tuple[float, float]  # x, y in pixels of the drawing


@dataclass(frozen=True)
class Look:
    """Light and weather of a scene; `weather` and `timeofday` use the words of BDD100K."""

    weather: str
    timeofday: str
    light: Colour  # multiplies the colour of everything that is not a light source
    sky_top: Colour
    sky_bottom: Colour
    haze: Colour  # colour that distant objects fade to
    visibility: float  # metres over which a colour fades to 1/e
    sun: float  # 0..1, strength of shadows and of the difference between sunny and shaded sides
    clouds: float  # 0..1
    lamps: bool  # street lamps, headlights and windows shine
    wet: float  # 0..1, mirroring of the road


class Painter:
    """Image and mask under one camera; colours get the light, the shade and the haze of the look.

    Args:
        size: height and width of the drawing in pixels.
        look: light and weather.
        horizon: height of the horizon, 0 at the top to 1 at the bottom.
        focal: focal length over the image height.
        eye: height of the camera in metres.
        bend: sideways shift of the world in metres per square metre ahead: the road's curve.
        line: the thinnest line in pixels of the drawing.
    """

    def __init__(self, size, look: Look, *, horizon: float, focal: float, eye: float, bend: float, line: float):
        self.height, self.width = size
        self.look, self.eye, self.bend, self.line_width = look, eye, bend, line
        self.horizon = horizon * self.height
        self.focal = focal * max(self.height, 0.72 * self.width)
        self.image = Image.new("RGB", (self.width, self.height))
        self.mask = Image.new("L", (self.width, self.height), SKY)
        self._image_draw = ImageDraw.Draw(self.image, "RGBA")  # RGBA: fills with an alpha blend
        self._mask_draw = ImageDraw.Draw(self.mask)
        self.lamps: list[tuple[float, float, float, Colour]] = []  # x, y, radius, colour of light sources

    def project(self, x: float, y: float, z: float) -> Point:
        """Return the pixel of the point x metres right, y metres above the ground, z metres ahead."""
        z = max(z, NEAR)
        scale = self.focal / z
        return self.width / 2 + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale

    def metre(self, z: float) -> float:
        """Return the pixels of one metre at the distance z."""
        return self.focal / max(z, NEAR)

    def sees(self, x: float, z: float, margin: float) -> bool:
        """Return whether an object at (x, z) that extends `margin` metres to the sides can be in the image."""
        centre = self.project(x, 0, z)[0]
        return z > NEAR and -margin * self.metre(z) < centre < self.width + margin * self.metre(z)

    def paint(self, colour: Colour, depth: float, shines: bool = False) -> tuple[int, int, int]:
        """Return the colour as the camera sees it at that depth."""
        fade = math.exp(-depth / (self.look.visibility * (3 if shines else 1)))
        light = (1.0, 1.0, 1.0) if shines else self.look.light
        return tuple(
            int(255 * min(max(c * m * fade + h * (1 - fade), 0.0), 1.0))
            for c, m, h in zip(colour, light, self.look.haze, strict=True)
        )

    def polygon(self, points: list[Point], colour: Colour, depth: float, label: int | None = None, shines=False):
        """Draw a filled polygon; without a label the mask does not change (a window, a lane marking)."""
        self._image_draw.polygon(points, fill=self.paint(colour, depth, shines))
        if label is not None:
            self._mask_draw.polygon(points, fill=label)

    def ellipse(self, centre: Point, radius_x: float, radius_y: float, colour, depth, label=None, shines=False):
        x, y = centre
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._image_draw.ellipse(box, fill=self.paint(colour, depth, shines))
        if label is not None:
            self._mask_draw.ellipse(box, fill=label)

    def line(self, points: list[Point], width: float, colour: Colour, depth: float, label: int | None = None):
        """Draw a line of at least the thinnest width, so that a pole never vanishes from image or mask."""
        width = max(round(max(width, self.line_width)), 1)
        self._image_draw.line(points, fill=self.paint(colour, depth), width=width)
        if label is not None:
            self._mask_draw.line(points, fill=label, width=width)

    def ring(self, centre: Point, radius_x: float, radius_y: float, width: float, colour, depth, label: int):
        """Draw a spoked wheel: the image shows through, the mask is filled, as annotators do."""
        x, y = centre
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        width = max(round(max(width, 0.6 * self.line_width)), 1)
        self._image_draw.ellipse(box, outline=self.paint(colour, depth), width=width)
        self._mask_draw.ellipse(box, fill=label)

    def shadow(self, x0: float, x1: float, z0: float, z1: float):
        """Draw a dark patch on the ground under an object; the mask does not change."""
        points = [self.project(x, 0, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
        alpha = int(70 + 90 * self.look.sun)
        self._image_draw.polygon(points, fill=(0, 0, 0, alpha))

    def lamp(self, centre: Point, radius: float, colour: Colour, depth: float, label: int | None = None):
        """Draw a light source; it glows afterwards unless something nearer covers it."""
        radius = max(radius, 0.5 * self.line_width)
        self.ellipse(centre, radius, radius, colour, depth, label, shines=True)
        self.lamps.append((*centre, radius, self.paint(colour, depth, shines=True)))

    def upright(self, x: float, z: float, outline: list[Point]) -> list[Point]:
        """Return an outline (metres right of x, metres above the ground) that faces the camera at the distance z."""
        return [self.project(x + dx, y, z) for dx, y in outline]

    def ground(self, x0: float, x1: float, z0: float, z1: float) -> list[Point]:
        """Return a strip of ground between two lines along the road, following its curve."""
        steps = [z0 + (z1 - z0) * (i / 10) ** 2.2 for i in range(11)] if z1 - z0 > 12 else [z0, z1]
        return [self.project(x0, 0, z) for z in steps] + [self.project(x1, 0, z) for z in reversed(steps)]

    def side(self, x: float, z0: float, z1: float, y0: float, y1: float) -> list[Point]:
        """Return an upright rectangle along the road."""
        return [self.project(x, y0, z0), self.project(x, y1, z0), self.project(x, y1, z1), self.project(x, y0, z1)]

    def face(self, x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
        """Return an upright rectangle that faces the camera."""
        return [self.project(x0, y0, z), self.project(x0, y1, z), self.project(x1, y1, z), self.project(x1, y0, z)]


def tint(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def jitter(rng: random.Random, colour: Colour, amount: float) -> Colour:
    """Return the colour with its brightness changed by up to `amount` and each channel by an eighth of it."""
    factor = 1 + amount * (2 * rng.random() - 1)
    return tuple(min(max(c * factor + amount / 8 * (2 * rng.random() - 1), 0.02), 0.98) for c in colour)


def pick(rng: random.Random, choices):
    return choices[int(rng.random() * len(choices))]


def between(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
