"""The objects of a toy street scene, one function for each: houses, trees, signals, vehicles, people."""

import math
from collections.abc import Sequence

from semseg_diffusers.toy.painter import Color, Painter, Point, Rng, face, side, tint


# Class ids of the BDD100K label set; tests compare them with `LabelSet.from_preset("bdd100k")`.
(
    ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN,
    SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE,
) = range(19)  # fmt: skip

CAR_PAINTS = (
    (0.86, 0.87, 0.88), (0.15, 0.16, 0.18), (0.55, 0.57, 0.60),
    (0.62, 0.11, 0.12), (0.14, 0.24, 0.52), (0.30, 0.33, 0.36),
)  # fmt: skip
CLOTHES = (
    (0.75, 0.18, 0.18), (0.16, 0.25, 0.55), (0.82, 0.78, 0.70),
    (0.16, 0.16, 0.18), (0.85, 0.62, 0.15), (0.25, 0.48, 0.34),
)  # fmt: skip
FACADES = (
    (0.60, 0.36, 0.29), (0.74, 0.66, 0.54), (0.58, 0.57, 0.56),
    (0.80, 0.77, 0.71), (0.52, 0.42, 0.36), (0.66, 0.55, 0.42),
)  # fmt: skip
LEAVES = ((0.24, 0.38, 0.15), (0.31, 0.43, 0.17), (0.20, 0.33, 0.19))
SKINS = ((0.92, 0.74, 0.62), (0.72, 0.52, 0.40), (0.45, 0.31, 0.23))
SIGNALS = ((0.20, 0.92, 0.45), (1.0, 0.78, 0.18), (0.98, 0.16, 0.12))
TYRE = (0.06, 0.06, 0.07)
GLASS = (0.17, 0.22, 0.27)

# Outlines, as metres from the middle and above the ground.
CAR_SIDE = (
    (-2.15, 0.35), (-2.15, 0.8), (-1.75, 0.92), (-0.95, 1.45), (0.75, 1.45), (1.35, 0.95), (2.1, 0.78), (2.15, 0.35),
)  # fmt: skip
CAR_WINDOWS = (
    ((-1.45, 0.93), (-0.85, 1.36), (-0.15, 1.36), (-0.15, 0.93)),
    ((0.0, 0.93), (0.0, 1.36), (0.66, 1.36), (1.1, 0.95)),
)
TORSO = ((-0.21, 0.8), (-0.26, 1.36), (-0.12, 1.48), (0.12, 1.48), (0.26, 1.36), (0.21, 0.8))
# class -> half the width, height, length, paints
BOX_VEHICLES: dict[int, tuple[float, float, float, Sequence[Color]]] = {
    BUS: (1.25, 3.1, 11.0, ((0.80, 0.22, 0.16), (0.90, 0.66, 0.14), (0.18, 0.42, 0.62), (0.86, 0.87, 0.85))),
    TRUCK: (1.22, 3.3, 8.0, ((0.86, 0.86, 0.84), (0.72, 0.71, 0.66), (0.55, 0.30, 0.20), (0.28, 0.40, 0.56))),
    TRAIN: (1.32, 3.5, 26.0, ((0.20, 0.45, 0.36), (0.86, 0.80, 0.62), (0.30, 0.36, 0.56))),
}


def draw_building(p: Painter, rng: Rng, x: float, z0: float, z1: float, height: float, gable: bool) -> None:
    """Draw a house whose facade runs along the road at x; its end wall faces the camera; windows shine at night."""
    p, middle = p.at(x, 0.0, BUILDING), (z0 + z1) / 2
    wall, window = rng.jitter(rng.pick(FACADES), 0.14), rng.jitter(GLASS, 0.3)
    p.tag_as(wall)
    side_light = 1 - 0.28 * p.look.sun * (x > 0)
    depth = math.copysign(min(12.0, 4 + height), x)  # away from the road
    p.polygon(face(0, depth, 0, height, z0), tint(wall, 0.9 - 0.1 * p.look.sun), z0)
    p.polygon(side(0, z0, z1, 0, height), tint(wall, side_light), middle)
    roof = rng.jitter((0.38, 0.24, 0.20) if rng.chance(0.5) else (0.27, 0.27, 0.30), 0.15)
    if gable:  # a pitched roof over facade and end wall
        ridge, peak = depth / 2, height + 0.3 * abs(depth)
        slope = [(0, height, z0), (ridge, peak, z0), (ridge, peak, z1), (0, height, z1)]
        p.polygon(slope, tint(roof, side_light), z0)
        p.polygon([(0, height, z0), (ridge, peak, z0), (depth, height, z0)], tint(wall, 0.85), z0)
    else:  # a cornice
        p.polygon(side(0, z0, z1, height - 0.35, height), tint(wall, 0.7 * side_light), middle, detail=True)
    shop = not gable and rng.chance(0.6)
    shop_color = rng.jitter(rng.pick(CLOTHES), 0.2)
    floors, columns = max(int(height / 3.1), 1), max(int((z1 - z0) / 2.9), 1)
    step, rise = (z1 - z0) / columns, height / floors
    for column in range(columns):
        z = z0 + (column + 0.5) * step
        for floor in range(floors):
            shines = p.look.lamps and rng.chance(0.3)
            if z > 60 or not p.sees(z, step):
                continue
            color = (0.98, 0.82, 0.48) if shines else tint(window, 0.8 + 0.4 * ((column * 7 + floor * 3) % 5) / 5)
            y, in_shop = (floor + 0.3) * rise, shop and floor == 0
            half, low, high = (0.44 * step, 0.4, 0.72 * rise) if in_shop else (0.24 * step, y, y + 0.5 * rise)
            p.polygon(side(0, z - half, z + half, low, high), color, z, detail=True, shines=shines)
            if in_shop:
                sign = side(0, z - 0.5 * step, z + 0.5 * step, 0.74 * rise, 0.92 * rise)
                p.polygon(sign, shop_color, z, detail=True)
    if z0 <= 40 and p.sees(z0, abs(depth)):
        for left in (depth * (column + 0.3) / 3 for column in range(3)):
            for y in ((floor + 0.3) * rise for floor in range(floors)):
                p.polygon(face(left, left + depth * 0.13, y, y + 0.5 * rise, z0), window, z0, detail=True)


def draw_barrier(p: Painter, rng: Rng, x: float, z0: float, z1: float, kind: str) -> None:
    """Draw a wall, wooden fence, railing or guard rail along the road at x."""
    p, middle = p.at(x, 0.0, WALL if kind == "wall" else FENCE), (z0 + z1) / 2
    if kind == "wall":
        height, color = rng.uniform(1.1, 2.6), rng.jitter((0.55, 0.51, 0.46), 0.15)
        for z in _steps(z0, z1, 4.0):
            p.polygon(side(0, z, min(z + 4.0, z1), 0, height), tint(color, rng.uniform(0.92, 1.05)), z)
        p.polygon(side(0, z0, z1, height - 0.18, height), tint(color, 1.2), middle)
    elif kind == "planks":
        height, color = rng.uniform(1.1, 1.9), rng.jitter((0.46, 0.31, 0.19), 0.2)
        p.polygon(side(0, z0, z1, 0, height), tint(color, 0.72), middle)
        for z in _steps(z0, min(z1, 45.0), 0.7):
            p.polygon(side(0, z, z + 0.48, 0, height), tint(color, rng.uniform(0.9, 1.15)), z, detail=True)
    elif kind == "railing":
        height, color = rng.uniform(1.0, 1.5), rng.jitter((0.62, 0.65, 0.67), 0.25)
        p.polygon(side(0, z0, z1, 0, height), tint(color, 0.5), middle)
        p.polygon(side(0, z0, z1, height - 0.14, height), color, middle)
        p.polygon(side(0, z0, z1, 0.06, 0.18), color, middle, detail=True)
        for z in _steps(z0, min(z1, 40.0), 1.0):
            p.polygon(side(0, z, z + 0.22, 0, height), color, z, detail=True)
    else:  # guard rail
        color = rng.jitter((0.66, 0.68, 0.69), 0.1)
        for z in _steps(z0, min(z1, 60.0), 4.0):
            p.line([(0, 0, z), (0, 0.75, z)], 0.1, tint(color, 0.7), z)
        p.polygon(side(0, z0, z1, 0.35, 0.78), color, middle)
        p.polygon(side(0, z0, z1, 0.52, 0.6), tint(color, 0.6), middle, detail=True)


def _steps(z0: float, z1: float, step: float) -> list[float]:
    return [z0 + i * step for i in range(max(math.ceil((z1 - z0) / step), 0))]


def draw_tree(p: Painter, rng: Rng, x: float, z: float, height: float) -> None:
    """Draw a trunk and a crown of shaded lumps; a conifer now and then. All of it is vegetation, as in Cityscapes."""
    p = p.at(x, z, VEGETATION)
    leaf, bark = rng.jitter(rng.pick(LEAVES), 0.18), rng.jitter((0.30, 0.23, 0.17), 0.15)
    p.shadow(-0.3 * height, 0.25 * height, -0.6, 0.8)
    p.line([(0, 0), (0, 0.5 * height)], 0.045 * height, bark)
    if rng.chance(0.22):
        for level in range(4):
            base, width = height * (0.15 + 0.2 * level), height * (0.26 - 0.05 * level)
            p.polygon([(-width, base), (0, base + 0.36 * height), (width, base)], tint(leaf, 0.7 + 0.09 * level))
        return
    crown, spread = 0.66 * height, 0.27 * height
    for i in range(13):
        angle, reach = 2.4 * i + rng.random(), 0.62 * spread * math.sqrt((i + 0.5) / 13)
        dx, dy = 1.25 * reach * math.cos(angle), reach * math.sin(angle)
        radius = spread * rng.uniform(0.42, 0.66)
        shade = 0.82 + 0.33 * dy / spread - 0.12 * p.look.sun * dx / spread + rng.uniform(-0.1, 0.1)
        p.ellipse((dx, crown + dy), radius, 0.9 * radius, tint(leaf, shade))


def draw_hedge(p: Painter, rng: Rng, x: float, z0: float, z1: float, height: float) -> None:
    """Draw a row of round bushes along the road."""
    leaf = rng.jitter((0.25, 0.37, 0.16), 0.2)
    p.at(x, 0, VEGETATION).polygon(side(0, z0, z1, 0, 0.8 * height), tint(leaf, 0.75), (z0 + z1) / 2)
    for z in reversed(_steps(z0, min(z1, 60.0), 1.3)):
        radius = height * rng.uniform(0.42, 0.55)
        bush = tint(leaf, rng.uniform(0.75, 1.15))
        p.at(x, z, VEGETATION).ellipse((0, 0.62 * height), 1.2 * radius, radius, bush)


def draw_street_lamp(p: Painter, x: float, z: float) -> None:
    """Draw a pole with an arm over the road; it shines in the dark."""
    p, arm, grey = p.at(x, z, POLE), (-1.6 if x > 0 else 1.6), (0.32, 0.33, 0.34)
    p.line([(0, 0), (0, 7.2)], 0.16, grey)
    p.line([(0, 7.2), (arm, 7.5)], 0.1, grey)
    if p.look.lamps:
        p.lamp((arm, 7.4), 0.22, (1.0, 0.88, 0.62))


def draw_traffic_light(p: Painter, rng: Rng, x: float, z: float) -> None:
    """Draw a signal on a pole beside the road, with a second one on an arm over it."""
    pole, light, grey = p.at(x, z, POLE), p.at(x, z, TRAFFIC_LIGHT), (0.26, 0.27, 0.28)
    lit, arm = int(rng.random() * 3), rng.uniform(2.2, 4.2) * (-1 if x > 0 else 1)
    housing = rng.pick(((0.09, 0.10, 0.10), (0.62, 0.49, 0.10)))
    pole.line([(0, 0), (0, 5.6)], 0.2, grey)
    pole.line([(0, 5.5), (arm, 5.5)], 0.14, grey)
    for dx, bottom in ((0.0, 2.7), (arm, 4.5)):
        light.polygon(face(dx - 0.27, dx + 0.27, bottom, bottom + 1.35), housing)
        for i, color in enumerate(SIGNALS):
            center = (dx, bottom + 0.24 + 0.43 * i)
            if i == lit:
                light.lamp(center, 0.17, color)
            else:
                light.ellipse(center, 0.14, 0.14, tint(color, 0.25))


def draw_sign(p: Painter, rng: Rng, x: float, z: float) -> None:
    """Draw a disc, triangle, diamond or plate on a pole."""
    kind, y, r = int(rng.random() * 4), rng.uniform(2.3, 2.8), rng.uniform(0.36, 0.48)
    p.at(x, z, POLE).line([(0, 0), (0, y)], 0.09, (0.45, 0.46, 0.47))
    p = p.at(x, z, TRAFFIC_SIGN)
    if kind == 0:
        p.ellipse((0, y), r, r, (0.80, 0.10, 0.12))
        p.ellipse((0, y), 0.66 * r, 0.66 * r, (0.93, 0.93, 0.93), detail=True)
    elif kind == 1:
        p.polygon([(-r, y - r), (0, y + r), (r, y - r)], (0.82, 0.12, 0.12))
        inner = [(-0.5 * r, y - 0.7 * r), (0, y + 0.4 * r), (0.5 * r, y - 0.7 * r)]
        p.polygon(inner, (0.94, 0.94, 0.92), detail=True)
    elif kind == 2:
        p.polygon([(0, y - r), (r, y), (0, y + r), (-r, y)], (0.93, 0.76, 0.14))
        p.polygon(face(-0.1, 0.1, y - 0.4 * r, y + 0.4 * r), (0.1, 0.1, 0.1), detail=True)
    else:
        p.polygon(face(-1.3 * r, 1.3 * r, y - 0.7 * r, y + 0.8 * r), (0.10, 0.30, 0.62))
        p.polygon(face(-1.0 * r, 1.0 * r, y, y + 0.3 * r), (0.90, 0.92, 0.94), detail=True)


def _lights(p: Painter, half: float, y: float, radius: float, size: tuple[float, float], color: Color) -> None:
    """Draw two lights, `half` from the middle: lamps in the dark, else ellipses of a size."""
    for dx in (-half, half):
        if p.look.lamps:
            p.lamp((dx, y), radius, color)
        else:
            p.ellipse((dx, y), *size, color)


def _pane(low_half: float, high_half: float, low: float, high: float, lean: float) -> list[Point]:
    """Return a window or its frame that leans away from the camera: half widths and heights of its edges."""
    return [(-low_half, low, 0), (-high_half, high, lean), (high_half, high, lean), (low_half, low, 0)]


def draw_car(p: Painter, rng: Rng, x: float, z: float, oncoming: bool) -> None:
    """Draw a car along the road: its end faces the camera and one flank shows, more of it the farther to the side."""
    p, paint = p.at(x, z, CAR), rng.jitter(rng.pick(CAR_PAINTS), 0.12)
    p.tag_as(paint)
    half, roof, length = rng.uniform(0.86, 0.96), rng.uniform(1.42, 1.72), rng.uniform(3.9, 4.6)
    waist, flank = 0.58 * roof, -half if x > 0 else half
    p.shadow(-half - 0.1, half + 0.1, -0.25, length)
    for place in (0.18, 0.8):
        p.ellipse((flank, 0.32, place * length), 0.16, 0.33, TYRE)
    if abs(x) > half:
        p.polygon(side(flank, 0, length, 0.3, waist), tint(paint, 0.72))
        low, high = flank, 0.78 * flank
        cabin = [(low, waist, 0), (high, roof, 0.2 * length), (high, roof, 0.62 * length), (low, waist, 0.82 * length)]
        p.polygon(cabin, tint(GLASS, 0.8))
    for dx in (-0.72 * half, 0.72 * half):
        p.polygon(face(dx - 0.13, dx + 0.13, 0.0, 0.4), TYRE)
    p.polygon(face(-half, half, 0.28, waist), paint)
    p.polygon(_pane(0.95 * half, 0.78 * half, waist, roof, 0.2 * length), tint(paint, 0.9))
    pane = _pane(0.8 * half, 0.66 * half, waist + 0.06, roof - 0.1, 0.18 * length)
    p.polygon(pane, rng.jitter(GLASS, 0.3), detail=True)
    p.polygon(face(-half, half, 0.28, 0.46), tint(paint, 0.5), detail=True)
    p.polygon(face(-0.26, 0.26, 0.46, 0.6), (0.88, 0.88, 0.84), detail=True)
    color = (1.0, 0.97, 0.86) if oncoming else (0.86, 0.08, 0.07)
    _lights(p, 0.76 * half, 0.5 * (0.46 + waist), 0.13, (0.15, 0.09), color)


def draw_car_across(p: Painter, rng: Rng, x: float, z: float) -> None:
    """Draw a car that crosses the road, seen from the side."""
    p, paint, way = p.at(x, z, CAR), rng.jitter(rng.pick(CAR_PAINTS), 0.12), rng.pick((-1, 1))
    p.tag_as(paint)
    p.shadow(-2.2, 2.2, -0.3, 1.4)
    p.polygon([(way * dx, y) for dx, y in CAR_SIDE], paint)
    for window in CAR_WINDOWS:
        p.polygon([(way * dx, y) for dx, y in window], GLASS, detail=True)
    p.polygon(face(-2.1, 2.1, 0.35, 0.45), tint(paint, 0.5), detail=True)
    for dx in (-1.35, 1.3):
        p.ellipse((way * dx, 0.33), 0.33, 0.33, TYRE)
        p.ellipse((way * dx, 0.33), 0.16, 0.16, (0.6, 0.6, 0.62), detail=True)


def draw_box_vehicle(p: Painter, rng: Rng, x: float, z: float, kind: int, oncoming: bool) -> None:
    """Draw a bus, truck or tram along the road."""
    half, height, length, paints = BOX_VEHICLES[kind]
    p, paint, stripe = p.at(x, z, kind), rng.jitter(rng.pick(paints), 0.1), rng.jitter((0.9, 0.9, 0.88), 0.05)
    p.tag_as(paint)
    flank = -half if x > 0 else half
    p.shadow(-half - 0.1, half + 0.1, -0.3, length)
    if abs(x) > half:
        p.polygon(side(flank, 0, length, 0.42, height), tint(paint, 0.72))
        for place in (0.12, 0.3, 0.82):
            p.ellipse((flank, 0.46, place * length), 0.2, 0.46, TYRE)
        if kind != TRUCK:
            p.polygon(side(flank, 0.2, length, 1.5, 2.5), tint(GLASS, 0.85), detail=True)
            for at in _steps(1.4, length, 1.9):
                p.polygon(side(flank, at, at + 0.22, 1.5, 2.5), tint(paint, 0.72), z + at, detail=True)
            p.polygon(side(flank, 0, length, 1.1, 1.3), tint(stripe, 0.72), detail=True)
    for dx in (-0.7 * half, 0.7 * half):
        p.polygon(face(dx - 0.2, dx + 0.2, 0.0, 0.5), TYRE)
    p.polygon(face(-half, half, 0.4, height), paint)
    pane = rng.jitter(GLASS, 0.25)
    if kind == TRUCK and not oncoming:  # the doors of the box
        p.polygon(face(-0.02, 0.02, 0.7, height - 0.15), tint(paint, 0.55), detail=True)
        p.polygon(face(-half, half, 0.4, 0.75), (0.16, 0.16, 0.17), detail=True)
        p.polygon(face(-0.7 * half, -0.2 * half, 1.7, 2.3), tint(paint, 0.8), detail=True)
    elif kind == TRUCK:
        p.polygon(face(-0.86 * half, 0.86 * half, 1.45, 2.3), pane, detail=True)
        p.polygon(face(-half, half, 0.4, 0.72), (0.2, 0.2, 0.2), detail=True)
        p.polygon(face(-0.6 * half, 0.6 * half, 0.85, 1.2), tint(paint, 0.5), detail=True)
    else:
        p.polygon(face(-0.9 * half, 0.9 * half, 1.3, 2.55), pane, detail=True)
        sign = face(-0.6 * half, 0.6 * half, 2.68, 2.95)
        p.polygon(sign, (0.95, 0.72, 0.2), detail=True, shines=p.look.lamps)
        p.polygon(face(-half, half, 1.0, 1.18), stripe, detail=True)
    color = (1.0, 0.96, 0.84) if oncoming else (0.85, 0.08, 0.07)
    _lights(p, 0.8 * half, 0.85, 0.15, (0.15, 0.12), color)


def draw_person(p: Painter, rng: Rng, x: float, z: float) -> None:
    """Draw a walking person."""
    p, size, step = p.at(x, z, PERSON), rng.uniform(0.88, 1.06), rng.uniform(-0.2, 0.2)
    coat, trousers = rng.jitter(rng.pick(CLOTHES), 0.15), rng.jitter((0.20, 0.22, 0.30), 0.3)
    skin, hair = rng.pick(SKINS), rng.jitter((0.20, 0.14, 0.10), 0.4)
    p.shadow(-0.3, 0.3, -0.15, 0.25)
    for way in (-1, 1):
        p.line([(way * 0.09, 0.85 * size), (way * (0.1 + step), 0.03)], 0.19 * size, trousers)
        arm = [(way * 0.24, 1.38 * size), (way * (0.3 - 0.8 * step), 0.88 * size)]
        p.line(arm, 0.12 * size, tint(coat, 0.8))
    p.polygon([(dx, y * size) for dx, y in TORSO], coat)
    p.ellipse((0, 1.63 * size), 0.125, 0.155, skin)
    p.ellipse((0, 1.71 * size), 0.13, 0.09, hair)


def draw_two_wheeler(p: Painter, rng: Rng, x: float, z: float, kind: int, ridden: bool, turn: float) -> None:
    """Draw a bicycle or motorcycle, with a rider if `ridden`; `turn` is 0 seen from behind, 1 from the side."""
    p, rider, frame = p.at(x, z, kind), p.at(x, z, RIDER), rng.jitter(rng.pick(CLOTHES), 0.2)
    coat, skin, helmet = rng.jitter(rng.pick(CLOTHES), 0.15), rng.pick(SKINS), rng.jitter(rng.pick(CLOTHES), 0.2)
    wide, way = max(turn, 0.22), rng.pick((-1, 1))
    reach = 0.52 * wide * way
    p.shadow(-0.3 - abs(reach), 0.3 + abs(reach), -0.15, 0.3)
    for end in (-reach, reach):
        p.ellipse((end, 0.34), 0.33 * wide, 0.34, TYRE, outline=0.16 if kind == MOTORCYCLE else 0.06)
    crank, saddle, bars = (0.0, 0.35), (-0.4 * reach, 0.86), (0.75 * reach, 1.02)
    if kind == MOTORCYCLE:
        back, front = -0.12 * way, 0.12 * way
        low, high = (-1.0 * reach + back, 0.42), (-1.1 * reach - 0.06 + back, 0.82)
        p.polygon([low, high, (0.8 * reach + front, 0.98), (reach + 0.06 + front, 0.5)], frame)
        p.ellipse((0.9 * reach, 0.9), 0.12, 0.12, (0.85, 0.82, 0.7))
    tubes = ((crank, saddle), (crank, bars), (saddle, bars), (crank, (-reach, 0.34)), (bars, (reach, 0.34)))
    for tube in tubes:
        p.line(tube, 0.05, frame)
    p.line([(bars[0] - 0.2, bars[1] + 0.05), (bars[0] + 0.2, bars[1] + 0.05)], 0.05, TYRE)
    if not ridden:
        return
    hip, shoulder = (saddle[0], 0.95), (0.2 * reach, 1.48)
    for way in (-1, 1):
        knee, foot = (0.35 * reach + way * 0.09, 0.66 + 0.08 * way), (way * 0.08, 0.32 - 0.08 * way)
        rider.line([hip, knee, foot], 0.16, (0.16, 0.17, 0.22))
        rider.line([shoulder, (bars[0] + way * 0.18, bars[1] + 0.08)], 0.1, tint(coat, 0.85))
    torso = [(hip[0] - 0.17, 0.9), (shoulder[0] - 0.23, 1.42), (shoulder[0], 1.56), (shoulder[0] + 0.23, 1.42)]
    rider.polygon([*torso, (hip[0] + 0.17, 0.9)], coat)
    head = shoulder[0] + 0.12 * reach
    rider.ellipse((head, 1.7), 0.125, 0.15, skin)
    rider.ellipse((head, 1.76), 0.14, 0.11, helmet)
