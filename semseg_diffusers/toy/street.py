"""The layout of a toy street: positions of objects, drawn from far to near."""

import random

from semseg_diffusers.toy import objects as things
from semseg_diffusers.toy.painter import FAR, NEAR, Painter, between, jitter, pick, tint


ASPHALT, CONCRETE, GRASS, EARTH = (0.36, 0.36, 0.37), (0.63, 0.60, 0.57), (0.40, 0.47, 0.22), (0.55, 0.47, 0.32)
PAINT = (0.88, 0.88, 0.85)  # lane markings


def draw_street(p: Painter, rng: random.Random) -> str:
    """Draw the ground, then everything on it from far to near; return the kind of street in BDD100K's words."""
    scene = pick(rng, ("city street", "city street", "city street", "residential", "residential", "highway"))
    lane = between(rng, 2.8, 3.4)
    right_lanes, left_lanes = (
        (2, 2) if scene == "highway" else (1 + int(rng.random() * 1.4), 1 + int(rng.random() * 1.4))
    )
    parking = 2.3 if scene != "highway" and rng.random() < 0.4 else 0.5
    left, right = -(0.5 + left_lanes) * lane - parking, (right_lanes - 0.5) * lane + parking
    walk = 0.0 if scene == "highway" else between(rng, 2.0, 4.5)
    crossing = between(rng, 15, 30) if scene != "highway" and rng.random() < 0.4 else None

    _draw_horizon(p, rng, scene)
    _draw_ground(p, rng, left, right, walk, lane, parking, crossing)
    props: list[tuple[float, object]] = []  # (distance, drawing function)
    for edge, outward in ((left, -1), (right, 1)):
        props += _roadside(p, rng, scene, edge, outward, walk, crossing)
    props += _traffic(p, rng, scene, left, right, lane, parking, crossing)
    for _, draw in sorted(props, key=lambda prop: -prop[0]):
        draw()
    return scene


def _draw_horizon(p: Painter, rng: random.Random, scene: str) -> None:
    """Draw distant houses and woods along the horizon."""
    x = -220.0
    while x < 220:
        width = between(rng, 12, 40)
        built = rng.random() < {"city street": 0.75, "residential": 0.4, "highway": 0.2}[scene]
        if built:
            colour = jitter(rng, pick(rng, things.FACADES), 0.2)
            p.polygon(p.face(x, x + width, 0, between(rng, 8, 34), FAR + 10), colour, FAR, things.BUILDING)
        else:
            colour, top = jitter(rng, (0.25, 0.36, 0.18), 0.2), between(rng, 5, 14)
            p.polygon(p.face(x, x + width, 0, 0.7 * top, FAR + 10), colour, FAR, things.VEGETATION)
            for i in range(4):
                centre = p.project(x + (i + 0.5) * width / 4, 0.7 * top, FAR + 10)
                radius = 0.16 * width * p.metre(FAR)
                p.ellipse(centre, 1.2 * radius, radius, tint(colour, 0.9 + 0.1 * i), FAR, things.VEGETATION)
        x += width


def _draw_ground(p, rng, left, right, walk, lane, parking, crossing) -> None:
    """Draw terrain, sidewalks with their curb, road, crossing street, lane markings."""
    near = NEAR
    grass = jitter(rng, GRASS if rng.random() < 0.7 else EARTH, 0.16)
    for z0, z1 in ((80, FAR + 10), (35, 80), (14, 35), (near, 14)):
        p.polygon(
            p.face(-400, 400, 0, 0, z1)[:1] + [p.project(400, 0, z1), p.project(400, 0, z0), p.project(-400, 0, z0)],
            grass,
            z0,
            things.TERRAIN,
        )
    asphalt, concrete = jitter(rng, ASPHALT, 0.16), jitter(rng, CONCRETE, 0.12)
    # In pieces, so that the haze increases with distance.
    for z0, z1 in ((90, FAR), (50, 90), (26, 50), (12, 26), (near, 12)):
        if walk:
            p.polygon(p.ground(left - walk, right + walk, z0, z1), concrete, z0, things.SIDEWALK)
            p.polygon(p.ground(left - 0.3, right + 0.3, z0, z1), tint(concrete, 1.22), z0, things.SIDEWALK)
        p.polygon(p.ground(left, right, z0, z1), asphalt, z0, things.ROAD)
    if crossing:
        z0, z1 = crossing, crossing + 2.4 * lane
        middle = (left + right) / 2
        for margin, colour, label in ((walk, concrete, things.SIDEWALK), (0.0, asphalt, things.ROAD)):
            for x0, x1 in ((-120, left), (right, 120)):
                quad = [
                    p.project(x, 0, z)
                    for x, z in ((x0, z0 - margin), (x1, z0 - margin), (x1, z1 + margin), (x0, z1 + margin))
                ]
                p.polygon(quad, colour, z0, label)
        # The road again, over the sidewalks of the crossing street.
        p.polygon(p.ground(left, right, z0 - walk, z1 + walk), asphalt, z0, things.ROAD)
        stripe = left + 0.4
        while stripe < right - 0.5:
            p.polygon(p.ground(stripe, stripe + 0.55, z0 - 2.6, z0 - 0.3), PAINT, z0)
            stripe += 1.15
        p.polygon(p.ground(middle, right - 0.2, z0 - 3.6, z0 - 3.2), PAINT, z0)

    centre, solid = -lane / 2, rng.random() < 0.5
    yellow = (0.86, 0.66, 0.16) if rng.random() < 0.5 else PAINT
    lines = [(centre, solid, yellow)]
    lines += [(centre - lane * i, False, PAINT) for i in range(1, 3) if centre - lane * i > left + 0.8]
    lines += [(centre + lane * i, False, PAINT) for i in range(1, 3) if centre + lane * i < right - 0.8]
    if parking < 1:
        lines += [(left + 0.35, True, PAINT), (right - 0.35, True, PAINT)]
    shift, worn = between(rng, 0, 6), between(rng, 0.8, 1.0)
    for x, whole, colour in lines:
        for z in range(-6, 78, 6):
            z0, z1 = z + shift, z + shift + (6.0 if whole else 2.6)
            if z1 < near + 0.3 or (crossing and z1 > crossing - 3.8 and z0 < crossing + 2.4 * lane + 2):
                continue
            p.polygon(p.ground(x - 0.09, x + 0.09, max(z0, near), z1), tint(colour, worn), z1)


def _roadside(p, rng, scene, edge, outward, walk, crossing) -> list[tuple[float, object]]:
    """Return houses, fences, trees, poles and people of one side, as (distance, drawing function)."""
    props: list[tuple[float, object]] = []

    def free(z0: float, z1: float) -> bool:
        return not crossing or z1 < crossing - 3.2 or z0 > crossing + 9

    def add(z: float, draw, *args) -> None:
        """Add an object with its own random generator, so that culling it does not change the others."""
        own = random.Random(rng.getrandbits(32))
        props.append((z, lambda: draw(p, own, *args)))

    at = edge + outward * walk
    setback = {
        "city street": between(rng, 0.1, 1.5),
        "residential": between(rng, 4, 9),
        "highway": between(rng, 14, 26),
    }[scene]
    # 1. Houses, lot by lot.
    z = between(rng, 1.5, 8)
    storeys = between(rng, 3.5, 9)
    while z < 125:
        long = between(rng, 8, 20) if scene == "city street" else between(rng, 8, 13)
        built = rng.random() < {"city street": 0.9, "residential": 0.8, "highway": 0.22}[scene]
        if built and free(z, z + long):
            gable = scene != "city street" or rng.random() < 0.15
            height = 3.1 * (between(rng, 1.9, 3.0) if gable else max(storeys * between(rng, 0.6, 1.4), 1.5))
            add(z + long, things.draw_building, at + outward * setback, z, z + long, height, gable)
        z += long + (0.0 if scene == "city street" and rng.random() < 0.75 else between(rng, 2, 7))
    # 2. Boundaries of the lots.
    kinds = {
        "city street": ("wall", "railing", None, None),
        "residential": ("planks", "wall", "hedge", "railing", None),
        "highway": ("guard rail", "guard rail", "wall", "planks"),
    }[scene]
    z, where = 1.5, at + outward * (0.25 if scene != "highway" else between(rng, 0.8, 5))
    kind = pick(rng, kinds)
    while z < 90:
        long = between(rng, 9, 22)
        if kind and free(z, z + long) and (scene != "city street" or setback > 0.6):
            if kind == "hedge":
                add(z + long + 0.2, things.draw_hedge, where, z, z + long, between(rng, 0.9, 1.5))
            else:
                add(z + long + 0.2, things.draw_barrier, where, z, z + long, kind)
        if rng.random() < 0.4:
            kind = pick(rng, kinds)
        z += long + (0.0 if scene == "highway" else between(rng, 0, 4))
    # 3. Trees: in gardens, or a row of street trees.
    row = scene == "city street" and rng.random() < 0.45
    spacing = between(rng, 7, 12) if scene != "highway" else between(rng, 6, 16)
    z = between(rng, 6, 14)
    while z < 100:
        if free(z - 1, z + 1) and (row or (scene != "city street" and rng.random() < 0.75)):
            x = edge + outward * 0.7 if row else at + outward * between(rng, 1.5, 6 if scene == "residential" else 14)
            add(z, things.draw_tree, x, z, between(rng, 5, 11))
        z += spacing * between(rng, 0.7, 1.3)
    # 4. Lamps, signs, signals.
    z, step = between(rng, 8, 24), between(rng, 18, 28)
    beside = edge + outward * 0.45
    while z < 100:
        props.append((z, lambda z=z: things.draw_street_lamp(p, beside, z)))
        z += step
    for _ in range(int(rng.random() * 4)):
        z = between(rng, 6, 32)
        if free(z, z):
            add(z, things.draw_sign, beside, z)
    if crossing and rng.random() < 0.85:
        add(crossing - 3.4, things.draw_traffic_light, beside, crossing - 3.4)
        add(crossing + 10, things.draw_traffic_light, beside, crossing + 10)
    # 5. People and parked bicycles on the sidewalk.
    if walk:
        for _ in range(int(rng.random() * (10 if scene == "city street" else 5))):
            z = between(rng, 4.5, 22)
            add(z, things.draw_person, edge + outward * between(rng, 0.4, walk - 0.2), z)
        if rng.random() < 0.3:
            z = between(rng, 5, 16)
            kind = things.BICYCLE if rng.random() < 0.65 else things.MOTORCYCLE
            add(z, things.draw_two_wheeler, edge + outward * 0.5, z, kind, False, between(rng, 0.5, 1.0))
    return props


def _traffic(p, rng, scene, left, right, lane, parking, crossing) -> list[tuple[float, object]]:
    """Return vehicles on the lanes, at the curb and on the crossing, riders, crossing pedestrians, the odd tram."""
    props: list[tuple[float, object]] = []
    busy = between(rng, 0.1, 0.75)

    def add(z: float, draw, *args) -> None:
        own = random.Random(rng.getrandbits(32))
        props.append((z, lambda: draw(p, own, *args)))

    def vehicle(x: float, z: float, oncoming: bool, heavy: float) -> float:
        """Add a vehicle at (x, z); return its length."""
        if rng.random() < heavy:
            kind = things.BUS if rng.random() < (0.25 if scene == "highway" else 0.55) else things.TRUCK
            add(z, things.draw_box_vehicle, x, z, kind, oncoming)
            return 11.0
        add(z, things.draw_car, x, z, oncoming)
        return 4.5

    tram = scene != "highway" and rng.random() < 0.1
    lanes = [(-lane * (i + 1), True) for i in range(2) if -lane * (i + 1) > left]
    lanes += [(lane * i, False) for i in range(2) if lane * i < right - 0.8 * lane]
    for x, oncoming in lanes:
        if tram and oncoming and x == lanes[0][0]:
            z = between(rng, 6, 18)
            add(z, things.draw_box_vehicle, x, z, things.TRAIN, True)
            continue
        z = between(rng, 5.5, 14) if x else between(rng, 7, 16)  # none on our own bonnet
        while z < 95:
            long = 0.0
            if rng.random() < busy:
                long = vehicle(x + between(rng, -0.25, 0.25), z, oncoming, 0.26 if scene == "highway" else 0.15)
            z += long + between(rng, 4, 16)
    if parking > 1:
        for x, oncoming in ((left + 1.1, True), (right - 1.1, False)):
            z, full = between(rng, 3.5, 9), between(rng, 0.2, 0.95)
            while z < 70:
                clear = not crossing or z + 5 < crossing - 4 or z > crossing + 9
                if clear and rng.random() < full:
                    z += vehicle(x, z, oncoming, 0.04)
                else:
                    z += 4.5
                z += between(rng, 0.7, 1.6)
    if crossing:
        for way in (0.25, 0.75):
            x = between(rng, -16, 4)
            while x < 16:
                if rng.random() < 0.3 * busy:
                    z = crossing + way * 2.4 * lane
                    add(z, things.draw_car_across, x, z)
                x += between(rng, 5, 11)
        for _ in range(int(rng.random() * 3.4)):
            z = crossing - between(rng, 0.4, 2.4)
            add(z, things.draw_person, between(rng, left, right), z)
    for _ in range(int(rng.random() * (3.8 if scene != "highway" else 1.8))):
        kind = things.MOTORCYCLE if scene == "highway" or rng.random() < 0.35 else things.BICYCLE
        z = between(rng, 5, 20)
        x = pick(rng, (right - parking - 0.2, left + parking + 0.2, 0.9 * lane)) + between(rng, -0.5, 0.3)
        add(z, things.draw_two_wheeler, x, z, kind, True, between(rng, 0.05, 0.7))
    return props
