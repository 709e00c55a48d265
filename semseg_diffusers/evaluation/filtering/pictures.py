"""The images that the filter's page shows, chosen by rules and a seed, not by eye: mask, filtered mask, loss map.
No equation stands behind it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from semseg_diffusers.data.pictures import to_picture
from semseg_diffusers.evaluation.filtering.loss_map import loss_map
from semseg_diffusers.evaluation.filtering.losses import read_batch
from semseg_diffusers.evaluation.filtering.rules import EASY_MASK, Scored, filter_ids
from semseg_diffusers.evaluation.image_sets import ImageSet
from semseg_diffusers.evaluation.segmenters.judge import Judge


ROWS = 8  # images of each group on the page


@dataclass(frozen=True)
class Examples:
    """Names of images, by what became of them."""

    dropped: tuple[str, ...]  # for what they show: those that keep least
    strongly_filtered: tuple[str, ...]  # of those that stay, the same
    kept: tuple[str, ...]  # by seed

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.dropped, *self.strongly_filtered, *self.kept)))


@dataclass(frozen=True)
class ExamplePictures:
    """What is shown of one image."""

    mask: Image.Image
    image: Image.Image
    filtered: Image.Image
    losses: Image.Image


def choose_examples(images: Sequence[Scored], reasons: Mapping[str, str], seed: int) -> Examples:
    """Choose the images to show.

    Args:
        images: all of them.
        reasons: name -> why it was dropped. Images that were dropped for their easy mask only look like those that
            stay, and are not shown among the dropped.
        seed: of those that are shown as kept.
    """

    def least(chosen: list[Scored]) -> tuple[str, ...]:
        chosen.sort(key=lambda image: (-1.0 if image.kept_share is None else image.kept_share, image.name))
        return tuple(image.name for image in chosen[:ROWS])

    kept = [image for image in images if image.name not in reasons]
    drawn = random.Random(seed).sample(sorted(image.name for image in kept), min(ROWS, len(kept)))
    return Examples(
        dropped=least([image for image in images if reasons.get(image.name, EASY_MASK) != EASY_MASK]),
        strongly_filtered=least(kept),
        kept=tuple(drawn),
    )


def example_pictures(
    examples: Examples, images: ImageSet, segmenter: Judge, thresholds: np.ndarray
) -> dict[str, ExamplePictures]:
    """Read the examples once more, for their loss maps; name -> pictures."""
    place_of = {name: place for place, name in enumerate(images.names)}
    pictures = {}
    for name in examples.names:
        image, mask = images.image(place_of[name]), images.mask(place_of[name])
        ids, losses = next(iter(read_batch(segmenter, [image], [mask])))
        filtered = filter_ids(ids, losses, thresholds, images.labels.ignore_index)
        pictures[name] = ExamplePictures(
            mask=images.labels.decode(ids),
            image=to_picture(image),
            filtered=images.labels.decode(filtered),
            losses=loss_map(ids, losses, thresholds),
        )
    return pictures
