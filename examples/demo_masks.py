"""Street scenes as masks, drawn by code for the demo: positions are in metres, seen by a camera.

A point is (metres to the right of the camera, metres ahead, metres above the road). Objects are drawn from far to
near, so that nearer ones occlude others. `draw_masks` needs a label set with CamVid's names, such as BDD100K's.
"""

import numpy as np

from semseg_diffusers import LabelSet
from semseg_diffusers.masks.editing import shapes as drawing


EYE = 1.5  # height of the camera in metres
FOCAL = 0.95  # size of a metre, a metre ahead, as a share of the frame's side
HORIZON = 0.5  # share of the frame's height
FAR = 120.0  # metres; end of the street


class Scene:
    """A mask that objects are drawn into.

    Args:
        labels: label set with CamVid's names.
        size: side in pixels; the frame is square.
        middle: vanishing point of the street, as a share of the width.
        seed: seed of the leaves.
    """

    def __init__(self, labels: LabelSet, size: int, middle: float, seed: int):
        self.labels, self.size, self.middle = labels, size, middle
        self.random = np.random.default_rng(seed)
        self.ids = np.full((size, size), labels.label2id["sky"], dtype=np.uint8)

    def seen(self, side: float, ahead: float, above: float = 0.0) -> tuple[float, float]:
        """Project a point: (x, y) in pixels."""
        metre = FOCAL / ahead
        return (self.middle + side * metre) * self.size, (HORIZON + (EYE - above) * metre) * self.size

    def fill(self, name: str, shape: np.ndarray) -> None:
        self.ids[shape] = self.labels.label2id[name]

    def area(self, name: str, *points: tuple[float, ...]) -> None:
        """Draw a polygon between points in metres."""
        self.fill(name, drawing.polygon(self.ids.shape, [self.seen(*point) for point in points]))

    def ground(self, name: str, left: float, right: float, near: float = 1.0, far: float = FAR) -> None:
        """Draw a strip along the street."""
        self.area(name, (left, near), (right, near), (right, far), (left, far))

    def front(self, name: str, side: float, near: float, far: float, height: float) -> None:
        """Draw a wall along the street: a facade, a fence."""
        self.area(name, (side, near), (side, near, height), (side, far, height), (side, far))

    def facades(self, side: float, near: float, *houses: tuple[float, float]) -> None:
        """Draw houses in a row, each (metres along the street, metres high), with the end walls facing the camera."""
        ends = np.cumsum([near, *(length for length, _ in houses)])
        for start, end, (_, height) in reversed([*zip(ends, ends[1:], houses, strict=False)]):
            outside = side + np.sign(side) * 12
            self.area("building", (side, start), (side, start, height), (outside, start, height), (outside, start))
            self.front("building", side, start, end, height)

    def box(self, name: str, side: float, ahead: float, width: float, low: float, high: float) -> None:
        """Draw an upright rectangle that faces the camera."""
        left, right = side - width / 2, side + width / 2
        self.area(name, (left, ahead, low), (left, ahead, high), (right, ahead, high), (right, ahead, low))

    def car(self, side: float, ahead: float, length: float = 4.0) -> None:
        """Draw a car along the street, seen from behind: its body and, above it, the shorter cabin."""
        for distance in np.linspace(ahead + length, ahead, 9):
            self.box("car", side, distance, 1.75, 0.0, 0.85)
        for distance in np.linspace(ahead + 0.7 * length, ahead + 0.1 * length, 6):
            self.area(
                "car",
                *((side + x, distance, above) for x, above in ((-0.8, 0.8), (-0.6, 1.45), (0.6, 1.45), (0.8, 0.8))),
            )

    def person(self, side: float, ahead: float, name: str = "person") -> None:
        """Draw a person, standing or walking; a "rider" is raised by the bicycle."""
        lift = 0.25 if name == "rider" else 0.0
        head = drawing.ellipse(self.ids.shape, self.seen(side, ahead, 1.62 + lift), self.radii(0.13, 0.16, ahead))
        self.fill(name, head)
        self.box(name, side, ahead, 0.52, 0.75 + lift, 1.48 + lift)
        self.box(name, side - 0.13, ahead, 0.2, 0.0, 0.9 + lift)
        self.box(name, side + 0.12, ahead, 0.2, 0.0, 0.9 + lift)

    def radii(self, across: float, up: float, ahead: float) -> tuple[float, float]:
        """Return the half axes of an ellipse in pixels; at least half a pixel."""
        return tuple(max(0.5, metres * FOCAL / ahead * self.size) for metres in (across, up))

    def pole(self, side: float, ahead: float, height: float, sign: bool = False) -> None:
        """Draw a lamp post, at least a pixel wide, or a post with a sign."""
        line = [self.seen(side, ahead), self.seen(side, ahead, height)]
        self.fill("pole", drawing.stroke(self.ids.shape, line, max(0.5, 0.06 * FOCAL / ahead * self.size)))
        if sign:
            self.box("traffic sign", side, ahead, 0.7, height - 1.0, height)

    def tree(self, side: float, ahead: float, height: float, width: float) -> None:
        """Draw a trunk and clumps of leaves, with the sky between them."""
        trunk = [self.seen(side, ahead), self.seen(side, ahead, 0.6 * height)]
        self.fill("vegetation", drawing.stroke(self.ids.shape, trunk, max(0.6, 0.16 * FOCAL / ahead * self.size)))
        for _ in range(110):
            angle, reach = self.random.uniform(0, 2 * np.pi), np.sqrt(self.random.uniform(0, 1))
            place = (side + 0.5 * width * reach * np.cos(angle), ahead, height * (0.66 + 0.32 * reach * np.sin(angle)))
            clump = self.radii(*(self.random.uniform(0.025, 0.085) * width for _ in range(2)), ahead)
            self.fill("vegetation", drawing.ellipse(self.ids.shape, self.seen(*place), clump))


def high_street(labels: LabelSet, size: int) -> np.ndarray:
    """Houses on both sides, a car ahead, others parked."""
    scene = Scene(labels, size, middle=0.48, seed=1)
    scene.ground("road", -40, 40)
    scene.box("building", 0.0, FAR, 60, 0, 7)
    scene.tree(-3.0, 75, 12, 10)
    scene.ground("sidewalk", -9.0, -4.2)
    scene.ground("sidewalk", 4.6, 9.0)
    scene.facades(-7.5, 7, (9, 10.5), (10, 8), (14, 11), (20, 8.5), (40, 10))
    scene.facades(8.0, 8, (8, 8.5), (9, 11), (12, 9), (20, 10.5), (40, 9))
    scene.pole(-5.0, 26, 8)
    scene.pole(5.4, 20, 7.5)
    for ahead in (42, 34, 26):
        scene.car(3.6, ahead)
    scene.car(-0.6, 24)
    scene.person(-5.6, 17)
    scene.person(-6.2, 16)
    scene.car(3.7, 9.5)
    scene.pole(-4.3, 11, 3.4, sign=True)
    return scene.ids


def avenue(labels: LabelSet, size: int) -> np.ndarray:
    """Trees and a fence on the left, houses on the right, somebody who rides a bicycle."""
    scene = Scene(labels, size, middle=0.55, seed=2)
    scene.ground("road", -40, 40)
    scene.box("vegetation", -6.0, FAR, 40, 0, 9)
    scene.box("building", 9.0, 80, 22, 0, 9)
    scene.ground("sidewalk", -12.0, -4.0)
    scene.ground("sidewalk", 4.4, 8.0)
    scene.front("fence", -7.5, 6, 70, 1.7)
    for ahead in (60, 44, 32, 23, 15):
        scene.tree(-8.5, ahead, 10.5, 9)
    scene.facades(7.0, 9, (9, 9.5), (12, 12), (16, 9), (30, 11))
    scene.pole(5.0, 30, 8)
    scene.pole(5.0, 15, 8)
    scene.car(0.8, 38)
    scene.car(3.4, 22)
    scene.person(5.6, 14)
    scene.person(-1.6, 11, "rider")
    return scene.ids


def crossroads(labels: LabelSet, size: int) -> np.ndarray:
    """A wide road under much sky, low houses and trees behind it, cars across."""
    scene = Scene(labels, size, middle=0.42, seed=3)
    scene.ground("road", -60, 60)
    scene.box("building", 22.0, 60, 36, 0, 8)
    scene.box("building", -28.0, 55, 34, 0, 11)
    scene.box("vegetation", 0.0, 70, 30, 0, 4.5)
    scene.ground("sidewalk", -60, 60, near=34, far=44)
    for side, ahead, height in ((-7, 50, 11), (4, 52, 9), (11, 46, 10), (30, 45, 12)):
        scene.tree(side, ahead, height, 8)
    scene.ground("sidewalk", -30.0, -5.5, near=1, far=30)
    scene.facades(-9.5, 9, (10, 9), (12, 7.5))
    for side, ahead in ((-2, 33), (2.6, 31), (9, 32), (13.5, 30)):
        scene.car(side, ahead, 2.5)
    scene.pole(8.5, 22, 9)
    scene.pole(-5.9, 12, 3.0, sign=True)
    scene.person(-6.6, 15)
    scene.car(2.4, 13)
    return scene.ids


SCENES = {"a high street": high_street, "an avenue": avenue, "a crossroads": crossroads}


def draw_masks(labels: LabelSet, size: int) -> dict[str, np.ndarray]:
    """Return the scenes by title: class ids (size, size) uint8."""
    return {title: draw(labels, size) for title, draw in SCENES.items()}
