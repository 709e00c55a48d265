"""Places that make sense for the things of a street: on ground of their kind, as large as the row of the frame asks.

What is usual is learned from a data set's own masks (`learning.py`). `find_place` then draws a thing and a place from
a generator until all rules hold:

- every pixel it stands on, and the one below, was road or sidewalk as its class wants (so: not in the sky, not on top
  of a thing, not floating);
- its height is usual for its contact row, and the row is one where such things were seen;
- at least `min_inside` of it lies in the frame, and at least `min_seen` is not hidden by nearer things;
- nothing that stands there loses more than `max_covered` of its pixels;
- under the lower fifth of a vehicle there is mostly ground.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from semseg_diffusers.masks.editing.objects import MaskObject
from semseg_diffusers.masks.editing.operations import Scene
from semseg_diffusers.masks.editing.scene_prior import ENOUGH, MIN_HEIGHT, ScenePrior, SourceObject
from semseg_diffusers.masks.editing.street import Street


ROW_JITTER = 0.01  # of the frame's height; rows are not copied exactly
ATTEMPTS = 60  # places that are tried for one thing


@dataclass(frozen=True)
class PlacementRules:
    """How strict placement is."""

    min_inside: float = 0.8  # share of a thing that must lie in the frame
    min_seen: float = 0.6  # share of a thing that nearer things must leave to be seen
    max_covered: float = 0.3  # share of any other thing that may be hidden
    max_scale: float = 2.0  # largest factor that an object is enlarged by
    min_scale: float = 0.2

    def __post_init__(self):
        for name in ("min_inside", "min_seen", "max_covered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}; wanted a share from 0 to 1.")
        if not 0 < self.min_scale <= 1 <= self.max_scale:
            raise ValueError(
                f"min_scale={self.min_scale}, max_scale={self.max_scale}; wanted above 0 to 1, and 1 or more."
            )


@dataclass(frozen=True, eq=False)
class Placement:
    """A thing and the place found for it; `Scene.put(placement.entry, placement.seen)` puts it in."""

    donor: SourceObject
    entry: MaskObject  # scaled, mirrored or not, where it goes
    seen: np.ndarray  # (H, W) bool, the pixels of it that are drawn
    ground: str
    scale: float
    flipped: bool

    def describe(self, street: Street) -> dict:
        """What was put where, in JSON types."""
        return {
            "class": street.labels.names[self.donor.entry.class_id],
            "from": self.donor.source,
            "from_box": list(self.donor.entry.box),
            "box": list(self.entry.box),
            "scale": round(self.scale, 4),
            "flipped": self.flipped,
            "ground": self.ground,
            "pixels": int(self.seen.sum()),
        }


def find_place(
    scene: Scene,
    knowledge: ScenePrior,
    class_id: int,
    generator: np.random.Generator,
    rules: PlacementRules | None = None,
) -> tuple[Placement | None, Counter]:
    """Look for a thing of a class and a place for it.

    Args:
        scene (`Scene`): where it is to stand; not changed.
        knowledge (`ScenePrior`): of a data set with the same label set.
        class_id (`int`): its class.
        generator (`np.random.Generator`): all that is drawn comes from it.
        rules (`PlacementRules`, *optional*): what makes a place sensible.

    Returns:
        `tuple[Placement | None, Counter]`: the place, or None after `ATTEMPTS`; and how often each rule said no.

    Raises:
        ValueError: the data set has no whole object of the class, or too few to learn sizes from.
    """
    rules = rules or PlacementRules()
    check_placeable(knowledge, class_id)
    refused: Counter = Counter()
    for _ in range(ATTEMPTS):
        found = _try_place(scene, knowledge, class_id, generator, rules)
        if isinstance(found, Placement):
            return found, refused
        refused[found] += 1
    return None, refused


def check_placeable(knowledge: ScenePrior, class_id: int) -> None:
    """Refuse a class that cannot be placed: it does not stand on the ground, or the data set shows too little of it.

    Raises:
        ValueError: with what is missing.
    """
    street = knowledge.street
    name = street.labels.names[class_id]
    if class_id not in street.things:
        placed = ", ".join(street.labels.names[i] for i in street.things) or "none of this label set"
        raise ValueError(f"'{name}' cannot be placed: only things that stand on the ground can ({placed}).")
    if not street.is_ground(street.things[class_id].ground).any():
        kinds = " or ".join(street.things[class_id].ground)
        raise ValueError(f"'{name}' needs {kinds} to stand on, and the label set has no such class.")
    if not knowledge.seen[class_id]:
        raise ValueError(f"'{name}' never occurs in the masks, so there is none to copy.")
    if not knowledge.laws:
        raise ValueError(
            f"'{name}' cannot be placed: no class has {ENOUGH} whole objects on their ground, which sizes could be "
            "learned from. Take more masks, or masks of a higher resolution."
        )
    if not knowledge.donors[class_id]:
        raise ValueError(
            f"none of the {knowledge.seen[class_id]} objects of '{name}' is whole, alone, on its ground and of usual "
            "size, so there is none to copy. Take masks of a higher resolution, or more of them."
        )


def _try_place(
    scene: Scene,
    knowledge: ScenePrior,
    class_id: int,
    generator: np.random.Generator,
    rules: PlacementRules,
) -> Placement | str:
    """One attempt: a placement, or the rule that refused it."""
    street, law, thing = knowledge.street, knowledge.laws[class_id], knowledge.street.things[class_id]
    height, width = scene.ids.shape

    # 1. the ground, drawn as often as the class stands on it, and a row where it is there and such things were seen
    kinds = list(knowledge.ground[class_id])
    shares = np.array([knowledge.ground[class_id][kind] for kind in kinds])
    kind = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]
    ground = street.is_ground((kind,))[scene.ids]  # (H, W)
    shifted = law.rows + generator.normal(scale=ROW_JITTER)
    bottoms = np.round(shifted * height).astype(int) - 1
    bottoms = bottoms[(bottoms >= 0) & (bottoms < height)]
    bottoms = bottoms[ground[bottoms].any(axis=1)]
    if not len(bottoms):
        return f"no {kind} where such things stand"
    bottom = int(generator.choice(bottoms))
    foot = int(generator.choice(np.flatnonzero(ground[bottom])))

    # 2. what is to stand there: of usual size against the row, as it was in its own frame
    usual = float(law.height((bottom + 1) / height))
    donors = knowledge.donors[class_id]
    scales = np.array([usual * height * donor.against_usual / donor.entry.height for donor in donors])
    if usual * height < MIN_HEIGHT:
        return "too small there"
    fitting = np.flatnonzero((scales >= rules.min_scale) & (scales <= rules.max_scale))
    if not len(fitting):
        return "would be scaled too much"
    chosen = int(generator.choice(fitting))
    donor, scale = donors[chosen], float(scales[chosen])
    flipped = bool(generator.random() < 0.5)

    # 3. the rules
    entry = donor.entry.flipped() if flipped else donor.entry
    entry = entry.scaled(scale)
    if not law.spread[0] <= entry.height / height / usual <= law.spread[1]:
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
    inside = _area_inside(entry, width)
    if inside < rules.min_inside * entry.area:
        return "outside the frame"
    if seen.sum() < rules.min_seen * inside:
        return "hidden by nearer things"
    if thing.vehicle and not _stands_back(scene, entry):
        return "no ground under a vehicle"
    if scene.covered(seen) > rules.max_covered:
        return "would cover other things"
    return Placement(donor, entry, seen, kind, entry.height / donor.entry.height, flipped)


def _area_inside(entry: MaskObject, width: int) -> int:
    """Pixels of an object between the left and the right edge, and below the upper edge, of the frame."""
    return int(entry.shape[max(0, -entry.top) :, max(0, -entry.left) : width - entry.left].sum())


def _stands_back(scene: Scene, entry: MaskObject) -> bool:
    """Whether the lower fifth of a vehicle lies over ground by more than half."""
    lower = entry.bottom - max(1, round(0.2 * entry.height)) + 1
    piece = scene.ids[lower : entry.bottom + 1, max(0, entry.left) : max(0, entry.right + 1)]
    return bool(scene.street.is_ground(("road", "sidewalk"))[piece].mean() > 0.5)
