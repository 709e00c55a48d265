"""Sensible positions for the objects of a street: on ground of their kind, as large as their row of the frame asks.

What is usual is fitted to a dataset's own masks (`scene_prior.py`). `find_place` samples objects and positions until
all rules hold:

- every pixel of its feet, and the one below, is road or sidewalk as its class requires (never in the sky, on top of
  another object, or floating);
- its height is usual for its contact row, and such objects occur at that row;
- at least `min_inside` of it is in the frame, and at least `min_seen` is not occluded by nearer objects;
- no object there loses more than `max_covered` of its pixels;
- there is mostly ground under the lower fifth of a vehicle.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from semseg_diffusers.masks.editing.objects import THINGS, MaskObject, Street
from semseg_diffusers.masks.editing.operations import Scene
from semseg_diffusers.masks.editing.scene_prior import MIN_HEIGHT, MIN_OBJECTS, ScenePrior, SourceObject


ROW_JITTER = 0.01  # of the frame's height, added to the rows of the dataset
ATTEMPTS = 60  # positions tried for one object


@dataclass(frozen=True)
class PlacementRules:
    """Limits of what counts as a sensible position."""

    min_inside: float = 0.8  # share of an object that must be in the frame
    min_seen: float = 0.6  # share of an object that nearer ones must leave visible
    max_covered: float = 0.3  # share of any other object that may be occluded
    max_scale: float = 2.0  # largest factor of scaling
    min_scale: float = 0.2

    def __post_init__(self):
        for name in ("min_inside", "min_seen", "max_covered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected a share from 0 to 1.")
        if not 0 < self.min_scale <= 1 <= self.max_scale:
            raise ValueError(
                f"min_scale={self.min_scale}, max_scale={self.max_scale}; expected above 0 to 1, and 1 or more."
            )


@dataclass(frozen=True, eq=False)
class Placement:
    """An object and the position found for it; insert it with `Scene.put(placement.entry, placement.seen)`."""

    source: SourceObject
    entry: MaskObject  # scaled, mirrored or not, at its new position
    seen: np.ndarray  # (H, W) bool: its visible pixels
    ground: str
    scale: float
    flipped: bool

    def describe(self, street: Street) -> dict:
        """Return class, source and position as JSON values."""
        return {
            "class": street.labels.names[self.source.entry.class_id],
            "from": self.source.source,
            "from_box": list(self.source.entry.box),
            "box": list(self.entry.box),
            "scale": round(self.scale, 4),
            "flipped": self.flipped,
            "ground": self.ground,
            "pixels": int(self.seen.sum()),
        }


def find_place(
    scene: Scene, prior: ScenePrior, class_id: int, generator: np.random.Generator, rules: PlacementRules | None = None
) -> tuple[Placement | None, Counter]:
    """Sample an object of a class and a position for it.

    Args:
        scene: where it should stand; not changed.
        prior: of a dataset with the same label set.
        class_id: its class.
        generator: source of all randomness.
        rules: limits of what counts as sensible.

    Returns:
        The placement, or None after `ATTEMPTS`, and how often each rule refused one.

    Raises:
        ValueError: If the dataset has no complete object of the class, or too few to fit heights to.
    """
    rules = rules or PlacementRules()
    check_placeable(prior, class_id)
    refused: Counter = Counter()
    for _ in range(ATTEMPTS):
        found = _try_place(scene, prior, class_id, generator, rules)
        if isinstance(found, Placement):
            return found, refused
        refused[found] += 1
    return None, refused


def check_placeable(prior: ScenePrior, class_id: int) -> None:
    """Refuse a class that is never on the ground, or that the dataset shows too little of."""
    street, name = prior.street, prior.street.labels.names[class_id]
    if class_id not in street.things:
        placed = ", ".join(street.labels.names[i] for i in street.things) or "none of this label set"
        raise ValueError(
            f"'{name}' cannot be placed: only objects that stand on the ground can ({placed}). If it is one, "
            f'labels.json may say so: "id2kind": {{"{class_id}": "car"}}; the kinds are {", ".join(THINGS)}.'
        )
    grounds = list(street.things[class_id].ground)
    if not street.is_ground(grounds).any():
        raise ValueError(
            f"'{name}' needs {' or '.join(grounds)} to stand on, and the label set has no such class. If one is, "
            f'labels.json may say so: "id2kind": {{"{0 if class_id else 1}": "{grounds[0]}"}}.'
        )
    if not prior.seen[class_id]:
        raise ValueError(f"'{name}' never occurs in the masks, so there is none to copy.")
    if not prior.height_models:
        counts = ", ".join(
            f"{street.labels.names[i]} {prior.complete[i]} of {prior.seen[i]}" for i in street.things if prior.seen[i]
        )
        ground = ", ".join(street.labels.names[i] for i in street.ground)
        raise ValueError(
            f"'{name}' cannot be placed: no class has {MIN_OBJECTS} complete objects on their ground to fit heights "
            f"to ({counts}; ground is {ground}). Use more masks, a higher resolution, or other kinds (id2kind)."
        )
    if not prior.sources[class_id]:
        raise ValueError(
            f"none of the {prior.seen[class_id]} objects of '{name}' is complete, alone, on its ground and of usual "
            f"size for the kind '{street.kinds[class_id]}', so there is none to copy. Use masks of a higher "
            "resolution, more of them, or another kind (id2kind in labels.json)."
        )


def _try_place(
    scene: Scene, prior: ScenePrior, class_id: int, generator: np.random.Generator, rules: PlacementRules
) -> Placement | str:
    """Try one object at one position; return the placement, or the rule that refused it."""
    street, model, thing = prior.street, prior.height_models[class_id], prior.street.things[class_id]
    height, width = scene.ids.shape

    # 1. a kind of ground, as often as the class is on it, and a row that has it and where such objects occur
    kinds = list(prior.ground[class_id])
    shares = np.array([prior.ground[class_id][kind] for kind in kinds])
    kind = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]
    ground = street.is_ground((kind,))[scene.ids]  # (H, W)
    shifted = model.rows + generator.normal(scale=ROW_JITTER)
    bottoms = np.round(shifted * height).astype(int) - 1
    bottoms = bottoms[(bottoms >= 0) & (bottoms < height)]
    bottoms = bottoms[ground[bottoms].any(axis=1)]
    if not len(bottoms):
        return f"no {kind} where such things stand"
    bottom = int(generator.choice(bottoms))
    foot = int(generator.choice(np.flatnonzero(ground[bottom])))

    # 2. the object, as tall relative to the row as in its own frame
    usual = float(model.height((bottom + 1) / height))
    sources = prior.sources[class_id]
    scales = np.array([usual * height * source.relative_height / source.entry.height for source in sources])
    if usual * height < MIN_HEIGHT:
        return "too small there"
    fitting = np.flatnonzero((scales >= rules.min_scale) & (scales <= rules.max_scale))
    if not len(fitting):
        return "would be scaled too much"
    chosen = int(generator.choice(fitting))
    source, scale = sources[chosen], float(scales[chosen])
    flipped = bool(generator.random() < 0.5)

    # 3. the rules
    entry = source.entry.flipped() if flipped else source.entry
    entry = entry.scaled(scale)
    if not model.spread[0] <= entry.height / height / usual <= model.spread[1]:
        return "not of usual size"
    feet = entry.at(bottom, 0).feet()[1]
    entry = entry.at(bottom, foot - int(feet[len(feet) // 2]))
    rows, columns = entry.feet()
    in_frame = (columns >= 0) & (columns < width)
    if not in_frame.all():
        return "outside the frame"
    allowed = street.is_ground(thing.ground)
    under = np.minimum(rows + 1, height - 1)
    if not (allowed[scene.ids[rows, columns]].all() and allowed[scene.ids[under, columns]].all()):
        return "not all feet on ground"
    seen = scene.visible(entry)
    inside = entry.pixels(scene.ids.shape).sum()
    if inside < rules.min_inside * entry.area:
        return "outside the frame"
    if seen.sum() < rules.min_seen * inside:
        return "hidden by nearer things"
    if thing.vehicle:  # its lower fifth is above ground
        lower = slice(bottom + 1 - max(1, round(0.2 * entry.height)), bottom + 1)
        behind = scene.ids[lower, max(0, entry.left) : max(0, entry.right + 1)]
        if street.is_ground(("road", "sidewalk"))[behind].mean() <= 0.5:
            return "no ground under a vehicle"
    if scene.covered(seen) > rules.max_covered:
        return "would cover other things"
    return Placement(source, entry, seen, kind, entry.height / source.entry.height, flipped)
