"""Rules that name the classes a model trained on a dataset will generate badly, from the dataset's statistics.

The paper (section V) attributes its poor human figures to their pixel share; the other rules are ours.
"""

from dataclasses import dataclass

from semseg_diffusers.masks.statistics.counts import ClassFigures, MaskStatistics, class_figures


RARE_SHARE = 0.005  # of labelled pixels
FEW_IMAGES = 100
SMALL_OBJECT = 100  # pixels: 10 x 10, or 5 x 5 patches of 2 x 2
EDGE_SHARE = 0.6  # of the class's pixels
SPREAD = 0.1  # of the frame
MIN_EXPECTED = 10  # images with a class and a condition, if the two were independent
MIN_PART = 0.2  # of the expected images

# rule -> its text on the page
RULES = {
    "never seen": "no pixel of it in any mask",
    "rare": f"less than {RARE_SHARE:.1%} of the labelled pixels",
    "few images": f"in fewer than {FEW_IMAGES} images",
    "small": f"half of its pixels lie in objects below {SMALL_OBJECT} pixels, at the size of these masks",
    "thin": f"at least {EDGE_SHARE:.0%} of its pixels lie beside another class: it is some three pixels wide or less",
    "one place": f"it spreads over less than {SPREAD:.0%} of the frame",
    "one-sided": (
        f"under one condition its share of all images lets one expect at least {MIN_EXPECTED} images with it, and "
        f"there are less than {MIN_PART:.0%} of those"
    ),
}


@dataclass(frozen=True)
class Reason:
    """A rule that a class falls under."""

    rule: str  # one of RULES
    text: str  # with the numbers


@dataclass(frozen=True)
class UnderrepresentedClass:
    """A class and the rules it falls under."""

    name: str
    reasons: tuple[Reason, ...]


def underrepresented_classes(statistics: MaskStatistics) -> list[UnderrepresentedClass]:
    """Return the classes that fall under a rule: those with the most reasons first, then the rarest.

    Args:
        statistics: of the training split.
    """
    of_groups = {group: class_figures(statistics, group) for group in statistics.groups}
    sizes = {group: int(statistics.members(group).sum()) for group in statistics.groups}
    found = []
    for index, figures in enumerate(class_figures(statistics)):
        reasons = _reasons(figures)
        if figures.pixels:
            for group, of_group in of_groups.items():
                expected, seen = figures.image_share * sizes[group], of_group[index].images
                if expected >= MIN_EXPECTED and seen < MIN_PART * expected:
                    text = f"in {seen} of {sizes[group]} images with {group[0]} {group[1]}; expected {expected:.0f}"
                    reasons.append(Reason("one-sided", text))
        if reasons:
            found.append((-len(reasons), figures.pixel_share, UnderrepresentedClass(figures.name, tuple(reasons))))
    return [entry for *_, entry in sorted(found, key=lambda item: item[:2])]


def _reasons(figures: ClassFigures) -> list[Reason]:
    """Return the rules, but for that on conditions, that a class falls under."""
    if figures.pixels == 0:
        return [Reason("never seen", "no pixel in any mask")]
    share, images, size = figures.pixel_share, figures.images, figures.typical_object
    edges, spread = figures.edge_share, figures.spread
    checks = (
        ("rare", share < RARE_SHARE, f"{share:.2%} of the labelled pixels"),
        ("few images", images < FEW_IMAGES, f"in {images} images ({figures.image_share:.0%})"),
        ("small", size < SMALL_OBJECT, f"half of its pixels in objects below {size:.0f} pixels"),
        ("thin", edges >= EDGE_SHARE, f"{edges:.0%} of its pixels beside another class"),
        ("one place", spread < SPREAD, f"spreads over {spread:.0%} of the frame"),
    )
    return [Reason(rule, text) for rule, applies, text in checks if applies]
