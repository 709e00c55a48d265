"""The roles of a label set's classes in a street, derived from their names: things on the ground, ground, furniture.

Where a dataset shows too few things, their sizes and positions follow from here (`scene_prior.py`).
"""

from dataclasses import dataclass, field

import numpy as np

from semseg_diffusers.data.label_mapping import normalize
from semseg_diffusers.data.labels import LabelSet


@dataclass(frozen=True)
class Thing:
    """A kind of object on the ground."""

    metres: float  # usual height; relates sizes of rare classes to those of others
    ground: dict[str, float]  # kind of ground -> pseudo-count, before any data
    aspect: tuple[float, float]  # width / height of a single complete one; wider are several in a row
    fill: float = 0.33  # smallest share of its box that a complete one fills
    vehicle: bool = False  # a solid body that extends back over the ground


THINGS = {
    "person": Thing(1.7, {"sidewalk": 4, "road": 1}, (0.15, 0.9)),
    "rider": Thing(1.75, {"road": 4, "sidewalk": 1}, (0.2, 1.3)),
    "car": Thing(1.5, {"road": 1}, (0.7, 2.8), fill=0.6, vehicle=True),
    "truck": Thing(3.2, {"road": 1}, (0.5, 3.5), fill=0.6, vehicle=True),
    "bus": Thing(3.1, {"road": 1}, (0.5, 3.8), fill=0.6, vehicle=True),
    "motorcycle": Thing(1.2, {"road": 3, "sidewalk": 1}, (0.35, 2.2)),
    "bicycle": Thing(1.1, {"sidewalk": 3, "road": 1}, (0.3, 2.2)),
}
# Class names of things and of ground, letters and digits only; includes the 32 classes of CamVid.
THING_NAMES = {name: name for name in THINGS} | {
    "pedestrian": "person", "child": "person",
    "bicyclist": "rider", "cyclist": "rider", "motorcyclist": "rider",
    "suvpickuptruck": "car", "van": "car",
    "truckbus": "truck", "motorcyclescooter": "motorcycle", "motorbike": "motorcycle", "bike": "bicycle",
}  # fmt: skip
GROUND_NAMES = {
    "road": "road", "lanemkgsdriv": "road", "lanemarking": "road", "roadmarking": "road", "parking": "road",
    "sidewalk": "sidewalk", "pavement": "sidewalk", "lanemkgsnondriv": "sidewalk", "roadshoulder": "sidewalk",
}  # fmt: skip
BACKGROUND = "background"  # road and everything unlabelled in label sets without road (the paper's)
# Upright objects that occlude what is behind them but are not placed; their foot is their lowest pixel.
FURNITURE_NAMES = (
    "pole", "polegroup", "columnpole", "trafficlight", "trafficsign", "signsymbol", "trafficcone", "fence", "wall",
    "train",
)  # fmt: skip
# Classes that form one object where they touch, such as a rider and the bicycle; the first one present names it.
ONE_OBJECT = (("rider", "motorcycle", "bicycle"), ("pole", "polegroup", "columnpole", "trafficlight", "trafficsign",
              "signsymbol"))  # fmt: skip


@dataclass(frozen=True)
class Street:
    """The roles of a label set's classes in a street. Create it with `Street.of(labels)`."""

    labels: LabelSet
    things: dict[int, Thing]  # by class id
    ground: dict[int, str]  # class id -> "road" or "sidewalk"
    furniture: tuple[int, ...]
    group: np.ndarray = field(repr=False)  # (256,) uint8: id -> id of the object class it is part of

    @classmethod
    def of(cls, labels: LabelSet) -> "Street":
        """Derive the roles from the names of the classes."""
        names = [normalize(name).replace(" ", "") for name in labels.names]
        things = {i: THINGS[THING_NAMES[name]] for i, name in enumerate(names) if name in THING_NAMES}
        ground = {i: GROUND_NAMES[name] for i, name in enumerate(names) if name in GROUND_NAMES}
        if "road" not in ground.values() and BACKGROUND in names:
            ground[names.index(BACKGROUND)] = "road"
        group = np.arange(256, dtype=np.uint8)
        for members in ONE_OBJECT:
            found = [i for member in members for i, name in enumerate(names) if THING_NAMES.get(name, name) == member]
            if found:
                group[found] = found[0]
        furniture = tuple(i for i, name in enumerate(names) if name in FURNITURE_NAMES)
        return cls(labels, things, ground, furniture, group)

    @property
    def standing(self) -> tuple[int, ...]:
        """Ids of all upright classes: things and furniture."""
        return (*self.things, *self.furniture)

    def is_ground(self, kinds) -> np.ndarray:
        """Return which ids are ground of these kinds ("road", "sidewalk"): (256,) bool, to index with a mask."""
        table = np.zeros(256, dtype=bool)
        table[[i for i, kind in self.ground.items() if kind in kinds]] = True
        return table

    def class_id(self, name: str) -> int:
        """Return the id of a class.

        Raises:
            ValueError: If there is no such class.
        """
        if name not in self.labels.label2id:
            raise ValueError(f"there is no class '{name}'; there are {', '.join(self.labels.names)}.")
        return self.labels.label2id[name]
