"""The layout of a toy street: positions of objects, drawn from far to near."""

from collections.abc import Callable, Iterator
from functools import partial

from semseg_diffusers.toy import objects as things
from semseg_diffusers.toy.painter import FAR, NEAR, Color, Painter, Point, Rng, face, ground, tint


ASPHALT, CONCRETE, GRASS, EARTH = (0.36, 0.36, 0.37), (0.63, 0.60, 0.57), (0.40, 0.47, 0.22), (0.55, 0.47, 0.32)
PAINT, YELLOW = (0.88, 0.88, 0.85), (0.86, 0.66, 0.16)  # lane markings
BARRIERS = {  # between street and lots; None for gaps
    "city street": ("wall", "railing", None, None),
    "residential": ("planks", "wall", "hedge", "railing", None),
    "highway": ("guard rail", "guard rail", "wall", "planks"),
}


def draw_street(p: Painter, rng: Rng) -> str:
    """Draw the ground, then everything on it from far to near; return the kind of street in BDD100K's words."""
    street = Street(p, rng)
    street.draw_horizon()
    street.draw_ground()
    street.draw_markings()
    for edge, outward in ((street.left, -1), (street.right, 1)):
        street.add_roadside(edge, outward)
    street.add_traffic()
    for _, draw in sorted(street.objects, key=lambda entry: -entry[0]):
        draw()
    return street.kind


class Street:
    """A street under construction. Lengths are in metres: z ahead of the camera, x to its right."""

    def __init__(self, p: Painter, rng: Rng):
        self.p, self.rng = p, rng
        self.kind = rng.pick(("city street", "city street", "city street", "residential", "residential", "highway"))
        self.highway = self.kind == "highway"
        self.lane = rng.uniform(2.8, 3.4)  # width
        right, left = (2, 2) if self.highway else (1 + int(rng.random() * 1.4), 1 + int(rng.random() * 1.4))  # lanes
        self.parking = 2.3 if not self.highway and rng.chance(0.4) else 0.5  # width at each edge
        self.left, self.right = -(0.5 + left) * self.lane - self.parking, (right - 0.5) * self.lane + self.parking
        self.walk = 0.0 if self.highway else rng.uniform(2.0, 4.5)  # width of the sidewalks
        self.crossing = rng.uniform(15, 30) if not self.highway and rng.chance(0.4) else None  # z of a crossing street
        self.objects: list[tuple[float, Callable[[], None]]] = []  # distance, drawing function

    def along(self, z: float, end: float, step: Callable[[], float]) -> Iterator[float]:
        """Yield distances up to an end; each step is sampled after the object there."""
        while z < end:
            yield z
            z += step()

    def add(self, z: float, draw: Callable[..., None], *args) -> None:
        """Add an object with its own random generator, so that culling it does not change the others."""
        self.objects.append((z, partial(draw, self.p, Rng(self.rng.getrandbits(32)), *args)))

    def is_free(self, z0: float, z1: float, before: float = 3.2) -> bool:
        """Return whether the crossing street is outside these distances."""
        return not self.crossing or z1 < self.crossing - before or z0 > self.crossing + 9

    def draw_horizon(self) -> None:
        """Draw distant houses and woods along the horizon."""
        rng, x = self.rng, -220.0
        while x < 220:
            width = rng.uniform(12, 40)
            if rng.chance({"city street": 0.75, "residential": 0.4, "highway": 0.2}[self.kind]):
                color = rng.jitter(rng.pick(things.FACADES), 0.2)
                house = self.p.at(x, FAR, things.BUILDING)
                house.polygon(face(0, width, 0, rng.uniform(8, 34), 10), color)
            else:
                color, top = rng.jitter((0.25, 0.36, 0.18), 0.2), rng.uniform(5, 14)
                wood = self.p.at(x, FAR, things.VEGETATION)
                wood.polygon(face(0, width, 0, 0.7 * top, 10), color)
                for i in range(4):
                    radius = 0.16 * width * (FAR + 10) / FAR
                    center = ((i + 0.5) * width / 4, 0.7 * top, 10)
                    wood.ellipse(center, 1.2 * radius, radius, tint(color, 0.9 + 0.1 * i))
            x += width

    def draw_ground(self) -> None:
        """Draw terrain, sidewalks with their curb, road, crossing street."""
        rng, left, right, walk = self.rng, self.left, self.right, self.walk
        terrain, sidewalk, road = (self.p.at(0, 0, label) for label in (things.TERRAIN, things.SIDEWALK, things.ROAD))
        grass = rng.jitter(GRASS if rng.chance(0.7) else EARTH, 0.16)
        for z0, z1 in ((80, FAR + 10), (35, 80), (14, 35), (NEAR, 14)):
            terrain.polygon(_quad(-400, 400, z0, z1), grass, z0)
        asphalt, concrete = rng.jitter(ASPHALT, 0.16), rng.jitter(CONCRETE, 0.12)
        # In pieces, so that the haze increases with distance.
        for z0, z1 in ((90, FAR), (50, 90), (26, 50), (12, 26), (NEAR, 12)):
            if walk:
                sidewalk.polygon(ground(left - walk, right + walk, z0, z1), concrete, z0)
                sidewalk.polygon(ground(left - 0.3, right + 0.3, z0, z1), tint(concrete, 1.22), z0)
            road.polygon(ground(left, right, z0, z1), asphalt, z0)
        if self.crossing:
            z0, z1 = self.crossing, self.crossing + 2.4 * self.lane
            for margin, color, surface in ((walk, concrete, sidewalk), (0.0, asphalt, road)):
                for x0, x1 in ((-120, left), (right, 120)):
                    surface.polygon(_quad(x0, x1, z0 - margin, z1 + margin), color, z0)
            # The road again, over the sidewalks of the crossing street.
            road.polygon(ground(left, right, z0 - walk, z1 + walk), asphalt, z0)
            for x in self.along(left + 0.4, right - 0.5, lambda: 1.15):
                road.polygon(ground(x, x + 0.55, z0 - 2.6, z0 - 0.3), PAINT, z0, detail=True)
            road.polygon(ground((left + right) / 2, right - 0.2, z0 - 3.6, z0 - 3.2), PAINT, z0, detail=True)

    def draw_markings(self) -> None:
        """Draw the lines between the lanes."""
        rng, left, right, lane = self.rng, self.left, self.right, self.lane
        center, solid, color = -lane / 2, rng.chance(0.5), YELLOW if rng.chance(0.5) else PAINT
        lines: list[tuple[float, bool, Color]] = [(center, solid, color)]
        lines += [(center - lane * i, False, PAINT) for i in range(1, 3) if center - lane * i > left + 0.8]
        lines += [(center + lane * i, False, PAINT) for i in range(1, 3) if center + lane * i < right - 0.8]
        if self.parking < 1:
            lines += [(left + 0.35, True, PAINT), (right - 0.35, True, PAINT)]
        shift, worn = rng.uniform(0, 6), rng.uniform(0.8, 1.0)
        for x, solid, color in lines:
            for z in range(-6, 78, 6):
                z0, z1 = z + shift, z + shift + (6.0 if solid else 2.6)
                hidden = self.crossing and z1 > self.crossing - 3.8 and z0 < self.crossing + 2.4 * lane + 2
                if z1 >= NEAR + 0.3 and not hidden:
                    strip = ground(x - 0.09, x + 0.09, max(z0, NEAR), z1)
                    self.p.polygon(strip, tint(color, worn), z1, detail=True)

    def add_roadside(self, edge: float, outward: int) -> None:
        """Add houses, fences, trees, poles and people of one side."""
        rng, kind, walk, crossing = self.rng, self.kind, self.walk, self.crossing
        city, highway = kind == "city street", self.highway
        lots = edge + outward * walk
        # All three are sampled, so that the kinds share their random numbers.
        setbacks = [rng.uniform(*limits) for limits in ((0.1, 1.5), (4, 9), (14, 26))]
        setback = setbacks[list(BARRIERS).index(kind)]
        # 1. Houses, lot by lot.
        z, storeys = rng.uniform(1.5, 8), rng.uniform(3.5, 9)
        while z < 125:
            end = z + (rng.uniform(8, 20) if city else rng.uniform(8, 13))
            built = rng.chance({"city street": 0.9, "residential": 0.8, "highway": 0.22}[kind])
            if built and self.is_free(z, end):
                gable = not city or rng.chance(0.15)
                height = 3.1 * (rng.uniform(1.9, 3.0) if gable else max(storeys * rng.uniform(0.6, 1.4), 1.5))
                self.add(end, things.draw_building, lots + outward * setback, z, end, height, gable)
            z = end + (0.0 if city and rng.chance(0.75) else rng.uniform(2, 7))
        # 2. Boundaries of the lots.
        z, x = 1.5, lots + outward * (rng.uniform(0.8, 5) if highway else 0.25)
        barrier = rng.pick(BARRIERS[kind])
        while z < 90:
            end = z + rng.uniform(9, 22)
            if barrier and self.is_free(z, end) and (not city or setback > 0.6):
                if barrier == "hedge":
                    self.add(end + 0.2, things.draw_hedge, x, z, end, rng.uniform(0.9, 1.5))
                else:
                    self.add(end + 0.2, things.draw_barrier, x, z, end, barrier)
            if rng.chance(0.4):
                barrier = rng.pick(BARRIERS[kind])
            z = end + (0.0 if highway else rng.uniform(0, 4))
        # 3. Trees: in gardens, or a row of street trees.
        row = city and rng.chance(0.45)
        spacing = rng.uniform(6, 16) if highway else rng.uniform(7, 12)
        for z in self.along(rng.uniform(6, 14), 100, lambda: spacing * rng.uniform(0.7, 1.3)):
            if self.is_free(z - 1, z + 1) and (row or (not city and rng.chance(0.75))):
                away = 0.7 if row else walk + rng.uniform(1.5, 6 if kind == "residential" else 14)
                self.add(z, things.draw_tree, edge + outward * away, z, rng.uniform(5, 11))
        # 4. Lamps, signs, signals.
        z, step, beside = rng.uniform(8, 24), rng.uniform(18, 28), edge + outward * 0.45
        for place in self.along(z, 100, lambda: step):
            self.objects.append((place, partial(things.draw_street_lamp, self.p, beside, place)))
        for _ in range(int(rng.random() * 4)):
            z = rng.uniform(6, 32)
            if self.is_free(z, z):
                self.add(z, things.draw_sign, beside, z)
        if crossing and rng.chance(0.85):
            for z in (crossing - 3.4, crossing + 10):
                self.add(z, things.draw_traffic_light, beside, z)
        # 5. People and parked bicycles on the sidewalk.
        if walk:
            for _ in range(int(rng.random() * (10 if city else 5))):
                z = rng.uniform(4.5, 22)
                self.add(z, things.draw_person, edge + outward * rng.uniform(0.4, walk - 0.2), z)
            if rng.chance(0.3):
                z, wheels = rng.uniform(5, 16), things.BICYCLE if rng.chance(0.65) else things.MOTORCYCLE
                self.add(z, things.draw_two_wheeler, edge + outward * 0.5, z, wheels, False, rng.uniform(0.5, 1.0))

    def add_traffic(self) -> None:
        """Add vehicles on the lanes, at the curb and on the crossing, riders, crossing pedestrians, the odd tram."""
        rng, highway, left, right, lane = self.rng, self.highway, self.left, self.right, self.lane
        parking, crossing, busy = self.parking, self.crossing, rng.uniform(0.1, 0.75)
        tram = not highway and rng.chance(0.1)
        lanes = [(-lane * (i + 1), True) for i in range(2) if -lane * (i + 1) > left]
        lanes += [(lane * i, False) for i in range(2) if lane * i < right - 0.8 * lane]
        for i, (x, oncoming) in enumerate(lanes):
            if tram and oncoming and i == 0:
                z = rng.uniform(6, 18)
                self.add(z, things.draw_box_vehicle, x, z, things.TRAIN, True)
                continue
            z = rng.uniform(5.5, 14) if x else rng.uniform(7, 16)  # none on our own bonnet
            while z < 95:
                if rng.chance(busy):
                    z += self.add_vehicle(x + rng.uniform(-0.25, 0.25), z, oncoming, 0.26 if highway else 0.15)
                z += rng.uniform(4, 16)
        if parking > 1:
            for x, oncoming in ((left + 1.1, True), (right - 1.1, False)):
                z, full = rng.uniform(3.5, 9), rng.uniform(0.2, 0.95)
                while z < 70:
                    if self.is_free(z, z + 5, before=4) and rng.chance(full):
                        z += self.add_vehicle(x, z, oncoming, 0.04)
                    else:
                        z += 4.5
                    z += rng.uniform(0.7, 1.6)
        if crossing:
            for way in (0.25, 0.75):
                for x in self.along(rng.uniform(-16, 4), 16, lambda: rng.uniform(5, 11)):
                    if rng.chance(0.3 * busy):
                        z = crossing + way * 2.4 * lane
                        self.add(z, things.draw_car_across, x, z)
            for _ in range(int(rng.random() * 3.4)):
                z = crossing - rng.uniform(0.4, 2.4)
                self.add(z, things.draw_person, rng.uniform(left, right), z)
        for _ in range(int(rng.random() * (1.8 if highway else 3.8))):
            wheels = things.MOTORCYCLE if highway or rng.chance(0.35) else things.BICYCLE
            z = rng.uniform(5, 20)
            x = rng.pick((right - parking - 0.2, left + parking + 0.2, 0.9 * lane)) + rng.uniform(-0.5, 0.3)
            self.add(z, things.draw_two_wheeler, x, z, wheels, True, rng.uniform(0.05, 0.7))

    def add_vehicle(self, x: float, z: float, oncoming: bool, heavy: float) -> float:
        """Add a vehicle, a bus or truck with the chance `heavy`; return its length."""
        if self.rng.chance(heavy):
            wheels = things.BUS if self.rng.chance(0.25 if self.highway else 0.55) else things.TRUCK
            self.add(z, things.draw_box_vehicle, x, z, wheels, oncoming)
            return 11.0
        self.add(z, things.draw_car, x, z, oncoming)
        return 4.5


def _quad(x0: float, x1: float, z0: float, z1: float) -> list[Point]:
    """Return a rectangle on the ground."""
    return [(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)]
