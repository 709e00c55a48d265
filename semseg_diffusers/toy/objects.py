"""The objects of a toy street scene, one function for each: houses, trees, signals, vehicles, people."""

import math
import random

from semseg_diffusers.toy.painter import Painter, between, jitter, pick, tint


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
SKINS = ((0.92, 0.74, 0.62), (0.72, 0.52, 0.40), (0.45, 0.31, 0.23))
TYRE = (0.06, 0.06, 0.07)
GLASS = (0.17, 0.22, 0.27)


# Objects along the road --------------------------------------------------------------------------------------------


def draw_building(p: Painter, rng: random.Random, x: float, z0: float, z1: float, height: float, gable: bool):
    """Draw a house whose facade runs along the road at x; its end wall faces the camera; windows shine at night."""
    wall = jitter(rng, pick(rng, FACADES), 0.14)
    window = jitter(rng, GLASS, 0.3)
    outward = 1 if x > 0 else -1
    side_light = 1 - 0.28 * p.look.sun * (outward > 0)
    depth = min(12.0, 4 + height)
    end = p.face(x, x + outward * depth, 0, height, z0)
    end_light = 0.9 - 0.1 * p.look.sun
    p.polygon(end, tint(wall, end_light), z0, BUILDING)
    floors, columns = max(int(height / 3.1), 1), max(int((z1 - z0) / 2.9), 1)
    step, rise = (z1 - z0) / columns, height / floors
    p.polygon(p.side(x, z0, z1, 0, height), tint(wall, side_light), (z0 + z1) / 2, BUILDING)
    roof = jitter(rng, (0.38, 0.24, 0.20) if rng.random() < 0.5 else (0.27, 0.27, 0.30), 0.15)
    if gable:  # a pitched roof over facade and end wall
        ridge, peak = x + outward * depth / 2, height + 0.3 * depth
        slope = [
            p.project(x, height, z0),
            p.project(ridge, peak, z0),
            p.project(ridge, peak, z1),
            p.project(x, height, z1),
        ]
        p.polygon(slope, tint(roof, side_light), z0, BUILDING)
        p.polygon([end[1], p.project(ridge, peak, z0), end[2]], tint(wall, 0.85), z0, BUILDING)
    else:  # a cornice
        p.polygon(p.side(x, z0, z1, height - 0.35, height), tint(wall, 0.7 * side_light), (z0 + z1) / 2)
    shop = not gable and rng.random() < 0.6
    shop_colour = jitter(rng, pick(rng, CLOTHES), 0.2)
    for column in range(columns):
        z = z0 + (column + 0.5) * step
        for floor in range(floors):
            shines = p.look.lamps and rng.random() < 0.3
            if z > 60 or not p.sees(x, z, step):
                continue
            colour = (0.98, 0.82, 0.48) if shines else tint(window, 0.8 + 0.4 * ((column * 7 + floor * 3) % 5) / 5)
            if floor == 0 and shop:
                p.polygon(p.side(x, z - 0.44 * step, z + 0.44 * step, 0.4, 0.72 * rise), colour, z, shines=shines)
                p.polygon(p.side(x, z - 0.5 * step, z + 0.5 * step, 0.74 * rise, 0.92 * rise), shop_colour, z)
            else:
                y = (floor + 0.3) * rise
                p.polygon(p.side(x, z - 0.24 * step, z + 0.24 * step, y, y + 0.5 * rise), colour, z, shines=shines)
    for column in range(3):
        for floor in range(floors):
            if z0 > 40 or not p.sees(x, z0, depth):
                continue
            left = x + outward * depth * (column + 0.3) / 3
            y = (floor + 0.3) * rise
            p.polygon(p.face(left, left + outward * depth * 0.13, y, y + 0.5 * rise, z0), window, z0)


def draw_barrier(p: Painter, rng: random.Random, x: float, z0: float, z1: float, kind: str):
    """Draw a wall, wooden fence, railing or guard rail along the road at x."""
    middle = (z0 + z1) / 2
    if kind == "wall":
        height, colour = between(rng, 1.1, 2.6), jitter(rng, (0.55, 0.51, 0.46), 0.15)
        for z in _pieces(z0, z1, 4.0):
            p.polygon(p.side(x, z, min(z + 4.0, z1), 0, height), tint(colour, between(rng, 0.92, 1.05)), z, WALL)
        p.polygon(p.side(x, z0, z1, height - 0.18, height), tint(colour, 1.2), middle, WALL)
    elif kind == "planks":
        height, colour = between(rng, 1.1, 1.9), jitter(rng, (0.46, 0.31, 0.19), 0.2)
        p.polygon(p.side(x, z0, z1, 0, height), tint(colour, 0.72), middle, FENCE)
        for z in _pieces(z0, min(z1, 45.0), 0.7):
            p.polygon(p.side(x, z, z + 0.48, 0, height), tint(colour, between(rng, 0.9, 1.15)), z)
    elif kind == "railing":
        height, colour = between(rng, 1.0, 1.5), jitter(rng, (0.62, 0.65, 0.67), 0.25)
        p.polygon(p.side(x, z0, z1, 0, height), tint(colour, 0.5), middle, FENCE)
        p.polygon(p.side(x, z0, z1, height - 0.14, height), colour, middle, FENCE)
        p.polygon(p.side(x, z0, z1, 0.06, 0.18), colour, middle)
        for z in _pieces(z0, min(z1, 40.0), 1.0):
            p.polygon(p.side(x, z, z + 0.22, 0, height), colour, z)
    else:  # guard rail
        colour = jitter(rng, (0.66, 0.68, 0.69), 0.1)
        for z in _pieces(z0, min(z1, 60.0), 4.0):
            p.line([p.project(x, 0, z), p.project(x, 0.75, z)], 0.1 * p.metre(z), tint(colour, 0.7), z, FENCE)
        p.polygon(p.side(x, z0, z1, 0.35, 0.78), colour, middle, FENCE)
        p.polygon(p.side(x, z0, z1, 0.52, 0.6), tint(colour, 0.6), middle)


def _pieces(z0: float, z1: float, step: float) -> list[float]:
    return [z0 + i * step for i in range(max(math.ceil((z1 - z0) / step), 0))]


def draw_tree(p: Painter, rng: random.Random, x: float, z: float, height: float):
    """Draw a trunk and a crown of shaded lumps; a conifer now and then. All of it is vegetation, as in Cityscapes."""
    leaf = jitter(rng, pick(rng, ((0.24, 0.38, 0.15), (0.31, 0.43, 0.17), (0.20, 0.33, 0.19))), 0.18)
    bark, m = jitter(rng, (0.30, 0.23, 0.17), 0.15), p.metre(z)
    p.shadow(x - 0.3 * height, x + 0.25 * height, z - 0.6, z + 0.8)
    p.line([p.project(x, 0, z), p.project(x, 0.5 * height, z)], 0.045 * height * m, bark, z, VEGETATION)
    if rng.random() < 0.22:
        for level in range(4):
            base, width = height * (0.15 + 0.2 * level), height * (0.26 - 0.05 * level)
            tier = [(-width, base), (0, base + 0.36 * height), (width, base)]
            p.polygon(p.upright(x, z, tier), tint(leaf, 0.7 + 0.09 * level), z, VEGETATION)
        return
    crown, spread = 0.66 * height, 0.27 * height
    for i in range(13):
        angle, reach = 2.4 * i + rng.random(), 0.62 * spread * math.sqrt((i + 0.5) / 13)
        dx, dy = 1.25 * reach * math.cos(angle), reach * math.sin(angle)
        radius = spread * between(rng, 0.42, 0.66) * m
        shade = 0.82 + 0.33 * dy / spread - 0.12 * p.look.sun * dx / spread + between(rng, -0.1, 0.1)
        p.ellipse(p.project(x + dx, crown + dy, z), radius, 0.9 * radius, tint(leaf, shade), z, VEGETATION)


def draw_hedge(p: Painter, rng: random.Random, x: float, z0: float, z1: float, height: float):
    """Draw a row of round bushes along the road."""
    leaf = jitter(rng, (0.25, 0.37, 0.16), 0.2)
    p.polygon(p.side(x, z0, z1, 0, 0.8 * height), tint(leaf, 0.75), (z0 + z1) / 2, VEGETATION)
    for z in reversed(_pieces(z0, min(z1, 60.0), 1.3)):
        radius = height * between(rng, 0.42, 0.55) * p.metre(z)
        shade = between(rng, 0.75, 1.15)
        p.ellipse(p.project(x, 0.62 * height, z), 1.2 * radius, radius, tint(leaf, shade), z, VEGETATION)


def draw_street_lamp(p: Painter, x: float, z: float):
    """Draw a pole with an arm over the road; it shines in the dark."""
    inward, grey, m = (-1 if x > 0 else 1), (0.32, 0.33, 0.34), p.metre(z)
    p.line([p.project(x, 0, z), p.project(x, 7.2, z)], 0.16 * m, grey, z, POLE)
    p.line([p.project(x, 7.2, z), p.project(x + inward * 1.6, 7.5, z)], 0.1 * m, grey, z, POLE)
    if p.look.lamps:
        p.lamp(p.project(x + inward * 1.6, 7.4, z), 0.22 * m, (1.0, 0.88, 0.62), z, POLE)


def draw_traffic_light(p: Painter, rng: random.Random, x: float, z: float):
    """Draw a signal on a pole beside the road, with a second one on an arm over it."""
    inward, grey, m = (-1 if x > 0 else 1), (0.26, 0.27, 0.28), p.metre(z)
    lit, reach, housing = (
        int(rng.random() * 3),
        between(rng, 2.2, 4.2),
        pick(rng, ((0.09, 0.10, 0.10), (0.62, 0.49, 0.10))),
    )
    p.line([p.project(x, 0, z), p.project(x, 5.6, z)], 0.2 * m, grey, z, POLE)
    p.line([p.project(x, 5.5, z), p.project(x + inward * reach, 5.5, z)], 0.14 * m, grey, z, POLE)
    for dx, bottom in ((0.0, 2.7), (inward * reach, 4.5)):
        p.polygon(p.face(x + dx - 0.27, x + dx + 0.27, bottom, bottom + 1.35, z), housing, z, TRAFFIC_LIGHT)
        for i, colour in enumerate(((0.20, 0.92, 0.45), (1.0, 0.78, 0.18), (0.98, 0.16, 0.12))):
            centre = p.project(x + dx, bottom + 0.24 + 0.43 * i, z)
            if i == lit:
                p.lamp(centre, 0.17 * m, colour, z, TRAFFIC_LIGHT)
            else:
                p.ellipse(centre, 0.14 * m, 0.14 * m, tint(colour, 0.25), z, TRAFFIC_LIGHT)


def draw_sign(p: Painter, rng: random.Random, x: float, z: float):
    """Draw a disc, triangle, diamond or plate on a pole."""
    kind, m, y, r = int(rng.random() * 4), p.metre(z), between(rng, 2.3, 2.8), between(rng, 0.36, 0.48)
    p.line([p.project(x, 0, z), p.project(x, y, z)], 0.09 * m, (0.45, 0.46, 0.47), z, POLE)
    if kind == 0:
        p.ellipse(p.project(x, y, z), r * m, r * m, (0.80, 0.10, 0.12), z, TRAFFIC_SIGN)
        p.ellipse(p.project(x, y, z), 0.66 * r * m, 0.66 * r * m, (0.93, 0.93, 0.93), z)
    elif kind == 1:
        p.polygon(p.upright(x, z, [(-r, y - r), (0, y + r), (r, y - r)]), (0.82, 0.12, 0.12), z, TRAFFIC_SIGN)
        p.polygon(
            p.upright(x, z, [(-0.5 * r, y - 0.7 * r), (0, y + 0.4 * r), (0.5 * r, y - 0.7 * r)]), (0.94, 0.94, 0.92), z
        )
    elif kind == 2:
        p.polygon(p.upright(x, z, [(0, y - r), (r, y), (0, y + r), (-r, y)]), (0.93, 0.76, 0.14), z, TRAFFIC_SIGN)
        p.polygon(
            p.upright(x, z, [(-0.1, y - 0.4 * r), (-0.1, y + 0.4 * r), (0.1, y + 0.4 * r), (0.1, y - 0.4 * r)]),
            (0.1, 0.1, 0.1),
            z,
        )
    else:
        p.polygon(p.face(x - 1.3 * r, x + 1.3 * r, y - 0.7 * r, y + 0.8 * r, z), (0.10, 0.30, 0.62), z, TRAFFIC_SIGN)
        p.polygon(p.face(x - 1.0 * r, x + 1.0 * r, y, y + 0.3 * r, z), (0.90, 0.92, 0.94), z)


# Moving objects ----------------------------------------------------------------------------------------------------


def draw_car(p: Painter, rng: random.Random, x: float, z: float, oncoming: bool):
    """Draw a car along the road: its end faces the camera and one flank shows, more of it the farther to the side."""
    paint, m = jitter(rng, pick(rng, CAR_PAINTS), 0.12), p.metre(z)
    half, roof, length = between(rng, 0.86, 0.96), between(rng, 1.42, 1.72), between(rng, 3.9, 4.6)
    waist, flank = 0.58 * roof, x - half if x > 0 else x + half
    p.shadow(x - half - 0.1, x + half + 0.1, z - 0.25, z + length)
    top = [p.project(x - 0.78 * half, roof, z + 0.2 * length), p.project(x + 0.78 * half, roof, z + 0.2 * length)]
    for wheel in (0.18, 0.8):  # flank
        tyre = p.project(flank, 0.32, z + wheel * length)
        p.ellipse(tyre, 0.16 * p.metre(z + wheel * length), 0.33 * p.metre(z + wheel * length), TYRE, z, CAR)
    if abs(x) > half:
        p.polygon(p.side(flank, z, z + length, 0.3, waist), tint(paint, 0.72), z, CAR)
        cabin = [(0.0, waist), (0.2, roof), (0.62, roof), (0.82, waist)]
        inset = 0.78 * half if x < 0 else -0.78 * half
        cabin = [p.project(flank if y == waist else x + inset, y, z + s * length) for s, y in cabin]
        p.polygon(cabin, tint(GLASS, 0.8), z, CAR)
    for dx in (-0.72, 0.72):
        p.polygon(p.face(x + dx * half - 0.13, x + dx * half + 0.13, 0.0, 0.4, z), TYRE, z, CAR)
    p.polygon(p.face(x - half, x + half, 0.28, waist, z), paint, z, CAR)
    cabin = [p.project(x - 0.95 * half, waist, z), *top, p.project(x + 0.95 * half, waist, z)]
    p.polygon(cabin, tint(paint, 0.9), z, CAR)
    pane = [
        p.project(x - 0.8 * half, waist + 0.06, z),
        p.project(x - 0.66 * half, roof - 0.1, z + 0.18 * length),
        p.project(x + 0.66 * half, roof - 0.1, z + 0.18 * length),
        p.project(x + 0.8 * half, waist + 0.06, z),
    ]
    p.polygon(pane, jitter(rng, GLASS, 0.3), z)
    p.polygon(p.face(x - half, x + half, 0.28, 0.46, z), tint(paint, 0.5), z)
    p.polygon(p.face(x - 0.26, x + 0.26, 0.46, 0.6, z), (0.88, 0.88, 0.84), z)
    for dx in (-0.76, 0.76):
        centre = p.project(x + dx * half, 0.5 * (0.46 + waist), z)
        colour = (1.0, 0.97, 0.86) if oncoming else (0.86, 0.08, 0.07)
        if p.look.lamps:
            p.lamp(centre, 0.13 * m, colour, z, CAR)
        else:
            p.ellipse(centre, 0.15 * m, 0.09 * m, colour, z, CAR)


def draw_car_across(p: Painter, rng: random.Random, x: float, z: float):
    """Draw a car that crosses the road, seen from the side."""
    paint, m, way = jitter(rng, pick(rng, CAR_PAINTS), 0.12), p.metre(z), pick(rng, (-1, 1))
    p.shadow(x - 2.2, x + 2.2, z - 0.3, z + 1.4)
    body = [
        (-2.15, 0.35),
        (-2.15, 0.8),
        (-1.75, 0.92),
        (-0.95, 1.45),
        (0.75, 1.45),
        (1.35, 0.95),
        (2.1, 0.78),
        (2.15, 0.35),
    ]
    p.polygon(p.upright(x, z, [(way * dx, y) for dx, y in body]), paint, z, CAR)
    for window in (
        [(-1.45, 0.93), (-0.85, 1.36), (-0.15, 1.36), (-0.15, 0.93)],
        [(0.0, 0.93), (0.0, 1.36), (0.66, 1.36), (1.1, 0.95)],
    ):
        p.polygon(p.upright(x, z, [(way * dx, y) for dx, y in window]), GLASS, z)
    p.polygon(p.upright(x, z, [(-2.1, 0.35), (-2.1, 0.45), (2.1, 0.45), (2.1, 0.35)]), tint(paint, 0.5), z)
    for dx in (-1.35, 1.3):
        p.ellipse(p.project(x + way * dx, 0.33, z), 0.33 * m, 0.33 * m, TYRE, z, CAR)
        p.ellipse(p.project(x + way * dx, 0.33, z), 0.16 * m, 0.16 * m, (0.6, 0.6, 0.62), z)


def draw_box_vehicle(p: Painter, rng: random.Random, x: float, z: float, kind: int, oncoming: bool):
    """Draw a bus, truck or tram along the road."""
    half, height, length = {BUS: (1.25, 3.1, 11.0), TRUCK: (1.22, 3.3, 8.0), TRAIN: (1.32, 3.5, 26.0)}[kind]
    paints = {
        BUS: ((0.80, 0.22, 0.16), (0.90, 0.66, 0.14), (0.18, 0.42, 0.62), (0.86, 0.87, 0.85)),
        TRUCK: ((0.86, 0.86, 0.84), (0.72, 0.71, 0.66), (0.55, 0.30, 0.20), (0.28, 0.40, 0.56)),
        TRAIN: ((0.20, 0.45, 0.36), (0.86, 0.80, 0.62), (0.30, 0.36, 0.56)),
    }[kind]
    paint, m, flank = jitter(rng, pick(rng, paints), 0.1), p.metre(z), x - half if x > 0 else x + half
    far, stripe = z + length, jitter(rng, (0.9, 0.9, 0.88), 0.05)
    p.shadow(x - half - 0.1, x + half + 0.1, z - 0.3, far)
    if abs(x) > half:
        p.polygon(p.side(flank, z, far, 0.42, height), tint(paint, 0.72), z, kind)
        for wheel in (0.12, 0.3, 0.82):
            at = z + wheel * length
            p.ellipse(p.project(flank, 0.46, at), 0.2 * p.metre(at), 0.46 * p.metre(at), TYRE, z, kind)
        if kind != TRUCK:
            p.polygon(p.side(flank, z + 0.2, far, 1.5, 2.5), tint(GLASS, 0.85), z)
            for at in _pieces(z + 1.4, far, 1.9):
                p.polygon(p.side(flank, at, at + 0.22, 1.5, 2.5), tint(paint, 0.72), at)
            p.polygon(p.side(flank, z, far, 1.1, 1.3), tint(stripe, 0.72), z)
    for dx in (-0.7, 0.7):
        p.polygon(p.face(x + dx * half - 0.2, x + dx * half + 0.2, 0.0, 0.5, z), TYRE, z, kind)
    p.polygon(p.face(x - half, x + half, 0.4, height, z), paint, z, kind)
    pane = jitter(rng, GLASS, 0.25)
    if kind == TRUCK and not oncoming:  # the doors of the box
        p.polygon(p.face(x - 0.02, x + 0.02, 0.7, height - 0.15, z), tint(paint, 0.55), z)
        p.polygon(p.face(x - half, x + half, 0.4, 0.75, z), (0.16, 0.16, 0.17), z)
        p.polygon(p.face(x - 0.7 * half, x - 0.2 * half, 1.7, 2.3, z), tint(paint, 0.8), z)
    elif kind == TRUCK:
        p.polygon(p.face(x - 0.86 * half, x + 0.86 * half, 1.45, 2.3, z), pane, z)
        p.polygon(p.face(x - half, x + half, 0.4, 0.72, z), (0.2, 0.2, 0.2), z)
        p.polygon(p.face(x - 0.6 * half, x + 0.6 * half, 0.85, 1.2, z), tint(paint, 0.5), z)
    else:
        p.polygon(p.face(x - 0.9 * half, x + 0.9 * half, 1.3, 2.55, z), pane, z)
        p.polygon(p.face(x - 0.6 * half, x + 0.6 * half, 2.68, 2.95, z), (0.95, 0.72, 0.2), z, shines=p.look.lamps)
        p.polygon(p.face(x - half, x + half, 1.0, 1.18, z), stripe, z)
    for dx in (-0.8, 0.8):
        colour = (1.0, 0.96, 0.84) if oncoming else (0.85, 0.08, 0.07)
        centre = p.project(x + dx * half, 0.85, z)
        if p.look.lamps:
            p.lamp(centre, 0.15 * m, colour, z, kind)
        else:
            p.ellipse(centre, 0.15 * m, 0.12 * m, colour, z, kind)


def draw_person(p: Painter, rng: random.Random, x: float, z: float):
    """Draw a walking person."""
    size, m, step = between(rng, 0.88, 1.06), p.metre(z), between(rng, -0.2, 0.2)
    coat, trousers, skin = (
        jitter(rng, pick(rng, CLOTHES), 0.15),
        jitter(rng, (0.20, 0.22, 0.30), 0.3),
        pick(rng, SKINS),
    )
    hair = jitter(rng, (0.20, 0.14, 0.10), 0.4)
    p.shadow(x - 0.3, x + 0.3, z - 0.15, z + 0.25)
    for way in (-1, 1):
        leg = [p.project(x + way * 0.09, 0.85 * size, z), p.project(x + way * (0.1 + step), 0.03, z)]
        p.line(leg, 0.19 * m * size, trousers, z, PERSON)
        arm = [p.project(x + way * 0.24, 1.38 * size, z), p.project(x + way * (0.3 - 0.8 * step), 0.88 * size, z)]
        p.line(arm, 0.12 * m * size, tint(coat, 0.8), z, PERSON)
    torso = [(-0.21, 0.8), (-0.26, 1.36), (-0.12, 1.48), (0.12, 1.48), (0.26, 1.36), (0.21, 0.8)]
    p.polygon(p.upright(x, z, [(dx, y * size) for dx, y in torso]), coat, z, PERSON)
    p.ellipse(p.project(x, 1.63 * size, z), 0.125 * m, 0.155 * m, skin, z, PERSON)
    p.ellipse(p.project(x, 1.71 * size, z), 0.13 * m, 0.09 * m, hair, z, PERSON)


def draw_two_wheeler(p: Painter, rng: random.Random, x: float, z: float, kind: int, ridden: bool, turn: float):
    """Draw a bicycle or motorcycle, with a rider if `ridden`; `turn` is 0 seen from behind, 1 from the side."""
    m, frame = p.metre(z), jitter(rng, pick(rng, CLOTHES), 0.2)
    coat, skin, helmet = jitter(rng, pick(rng, CLOTHES), 0.15), pick(rng, SKINS), jitter(rng, pick(rng, CLOTHES), 0.2)
    wide, way = max(turn, 0.22), pick(rng, (-1, 1))
    reach = 0.52 * wide * way
    p.shadow(x - 0.3 - abs(reach), x + 0.3 + abs(reach), z - 0.15, z + 0.3)
    thick = 0.16 if kind == MOTORCYCLE else 0.06
    for end in (-1, 1):
        p.ring(p.project(x + end * reach, 0.34, z), 0.33 * wide * m, 0.34 * m, thick * m, TYRE, z, kind)
    crank, saddle, bars = (x, 0.35), (x - 0.4 * reach, 0.86), (x + 0.75 * reach, 1.02)
    if kind == MOTORCYCLE:
        body = [(-1.0 * reach, 0.42), (-1.1 * reach - 0.06, 0.82), (0.8 * reach, 0.98), (1.0 * reach + 0.06, 0.5)]
        body = [p.project(x + dx + (0.12 if i in (2, 3) else -0.12) * way, y, z) for i, (dx, y) in enumerate(body)]
        p.polygon(body, frame, z, kind)
        p.ellipse(p.project(x + 0.9 * reach, 0.9, z), 0.12 * m, 0.12 * m, (0.85, 0.82, 0.7), z, kind)
    for a, b in (
        (crank, saddle),
        (crank, bars),
        (saddle, bars),
        (crank, (x - reach, 0.34)),
        (bars, (x + reach, 0.34)),
    ):
        p.line([p.project(*a, z), p.project(*b, z)], 0.05 * m, frame, z, kind)
    p.line(
        [p.project(bars[0] - 0.2, bars[1] + 0.05, z), p.project(bars[0] + 0.2, bars[1] + 0.05, z)],
        0.05 * m,
        TYRE,
        z,
        kind,
    )
    if not ridden:
        return
    hip, shoulder = (saddle[0], 0.95), (x + 0.2 * reach, 1.48)
    for way_leg in (-1, 1):
        knee = (x + 0.35 * reach + way_leg * 0.09, 0.66 + 0.08 * way_leg)
        foot = (x + way_leg * 0.08, 0.32 - 0.08 * way_leg)
        p.line([p.project(*q, z) for q in (hip, knee, foot)], 0.16 * m, (0.16, 0.17, 0.22), z, RIDER)
        p.line(
            [p.project(*shoulder, z), p.project(bars[0] + way_leg * 0.18, bars[1] + 0.08, z)],
            0.1 * m,
            tint(coat, 0.85),
            z,
            RIDER,
        )
    torso = [
        (hip[0] - 0.17, 0.9),
        (shoulder[0] - 0.23, 1.42),
        (shoulder[0], 1.56),
        (shoulder[0] + 0.23, 1.42),
        (hip[0] + 0.17, 0.9),
    ]
    p.polygon([p.project(*q, z) for q in torso], coat, z, RIDER)
    head = (shoulder[0] + 0.12 * reach, 1.7)
    p.ellipse(p.project(*head, z), 0.125 * m, 0.15 * m, skin, z, RIDER)
    p.ellipse(p.project(head[0], head[1] + 0.06, z), 0.14 * m, 0.11 * m, helmet, z, RIDER)
