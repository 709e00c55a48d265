"""New masks with more of what a data set has little of: its own masks, with things of others put where they fit.

Masks are made one after the other. Each may add things until the share of a class, over all masks so far, is what was
wished; what one mask has no place for is left to the next. How much each is to add is drawn, so that some streets are
full and some stay as they were."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from semseg_diffusers.data.editing.learning import StreetKnowledge
from semseg_diffusers.data.editing.placement import PlacementRules, check_placeable, find_place
from semseg_diffusers.data.editing.scene import Scene
from semseg_diffusers.data.statistics.counts import count_pixels


ENOUGH_ADDED = "as many things were added as a mask may have"  # a reason beside those of `find_place`
BURSTS = 2.0  # shape of the gamma distribution of what each mask is to add; larger is more even


@dataclass(frozen=True)
class NewMask:
    """One new mask, and what was done for it."""

    index: int
    base: int  # which mask it was made from
    ids: np.ndarray  # (H, W) uint8
    added: tuple[dict, ...]  # what was put where, see `Placement.describe`
    refused: dict[str, Counter] = field(default_factory=dict)  # class -> why no (more) place was found


def enrich_masks(
    read: Callable[[int], np.ndarray],
    num_bases: int,
    knowledge: StreetKnowledge,
    target_shares: Mapping[int, float],
    num_masks: int,
    seed: int = 0,
    max_added: int = 16,
    rules: PlacementRules | None = None,
) -> Iterator[NewMask]:
    """Make new masks whose class shares approach what is wished.

    Args:
        read (callable): gives the class ids, (H, W) uint8, of mask 0, 1, ... of the data set.
        num_bases (`int`): how many it has. Each is used once before one is used again.
        knowledge (`StreetKnowledge`): of the same data set.
        target_shares (`Mapping`): class id -> wished share of the labelled pixels of all new masks.
        num_masks (`int`): how many to make.
        seed (`int`, defaults to 0): all that is drawn follows from it.
        max_added (`int`, defaults to 16): things that one mask gets at most.
        rules (`PlacementRules`, *optional*): what makes a place sensible.

    Yields:
        `NewMask`

    Raises:
        ValueError: before the first mask, where a class cannot be placed.
    """
    for class_id in target_shares:
        check_placeable(knowledge, class_id)
    names, num_classes = knowledge.street.labels.names, knowledge.street.labels.num_classes
    drawn = np.random.default_rng([seed, 0])
    rounds = -(-num_masks // num_bases)
    bases = np.concatenate([drawn.permutation(num_bases) for _ in range(rounds)])[:num_masks]
    weights = drawn.gamma(BURSTS, size=num_masks)
    weights /= weights.mean()

    have = np.zeros(num_classes + 1, dtype=np.int64)  # pixels of each class in the masks so far, unknown last
    due = 0.0  # labelled pixels so far, each mask's times its weight
    for index, base in enumerate(bases.tolist()):
        generator = np.random.default_rng([seed, 1, index])
        scene = Scene(read(base), knowledge.street)
        here = count_pixels(scene.ids, num_classes)
        due += weights[index] * here[:-1].sum()
        added: list[dict] = []
        refused: dict[str, Counter] = {}
        open_wishes = {class_id: share * due for class_id, share in target_shares.items()}  # pixels
        while True:
            missing = {i: 1 - (have[i] + here[i]) / n for i, n in open_wishes.items() if n > have[i] + here[i]}
            if not missing:
                break
            class_id = max(missing, key=missing.__getitem__)
            placement, reasons = None, Counter([ENOUGH_ADDED])
            if len(added) < max_added:
                placement, reasons = find_place(scene, knowledge, class_id, generator, rules)
            if placement is None:
                refused[names[class_id]] = reasons
                del open_wishes[class_id]
                continue
            scene.put(placement.entry, placement.seen)
            added.append(placement.describe(knowledge.street))
            here = count_pixels(scene.ids, num_classes)
        have += here
        yield NewMask(index, base, scene.ids, tuple(added), refused)
