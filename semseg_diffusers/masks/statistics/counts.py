"""Class statistics of a dataset's masks: pixels, images, objects and positions in the frame.

Extends figure 9 of the paper (Bozsó et al., WINS 2024). Rules name the classes that a model trained on the dataset
will generate badly: the paper's (section V, by pixel share), and ours.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.utils.progress import progress_bar


LONG_SIDE = 32  # cells along the longer side of a heat map
MAX_GROUP_VALUES = 24  # a text column with more distinct values is not grouped by
NOT_GIVEN = "not given"  # value of a missing attribute
CHUNK = 256  # masks counted at a time; bounds the memory

Group = tuple[str, str]  # an attribute and its value: ("weather", "rainy")


@dataclass(frozen=True)
class MaskStatistics:
    """Counts of N masks of C classes. Unknown pixels count as class C."""

    labels: LabelSet
    pixels: np.ndarray  # (N, C + 1) int64: pixels of each class in each mask
    edges: np.ndarray  # (N, C) int64: pixels beside a pixel of another class
    object_masks: np.ndarray  # (K,) int64: index of the mask of each object
    object_classes: np.ndarray  # (K,) int64
    object_sizes: np.ndarray  # (K,) int64, pixels
    cells: dict[Group | None, np.ndarray]  # (C + 1, rows, columns) int64, of all masks (None) and of each group
    attributes: dict[str, tuple[str, ...]]  # attribute -> value of each mask
    frames: dict[tuple[int, int], int]  # (height, width) -> number of masks

    @property
    def groups(self) -> list[Group]:
        """All pairs of attribute and value, the most frequent first."""
        return [group for group in self.cells if group is not None]

    def members(self, group: Group | None = None) -> np.ndarray:
        """Return which masks belong to a group, (N,) bool; all of them for None."""
        if group is None:
            return np.ones(len(self.pixels), dtype=bool)
        return np.array(self.attributes[group[0]]) == group[1]


def count_edges(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each class, (C,) int64, next to another class or unknown in a mask (H, W) of ids."""
    at_edge = np.zeros(ids.shape, dtype=bool)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    at_edge[:, 1:] |= across
    at_edge[:, :-1] |= across
    at_edge[1:] |= down
    at_edge[:-1] |= down
    return count_pixels(ids[at_edge], num_classes)[:-1]


def heat_grid(height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of a heat map: `LONG_SIDE` square cells along the longer side, none below a pixel."""
    cell = max(height, width) / LONG_SIDE
    return max(1, min(height, round(height / cell))), max(1, min(width, round(width / cell)))


def collect_statistics(
    read: Callable[[int], np.ndarray],
    num_masks: int,
    labels: LabelSet,
    attributes: Mapping[str, Sequence[str | None]] | None = None,
    num_workers: int = 1,
    progress: bool = False,
) -> MaskStatistics:
    """Count all masks of a dataset.

    Args:
        read: returns the class ids, (H, W) uint8, of mask 0, 1, ...; such as `PairDataset.mask`.
        num_masks: number of masks, 1 or more.
        labels: their classes.
        attributes: text columns, one value per mask; those with 2 to `MAX_GROUP_VALUES` values group the masks.
        num_workers: threads; most of the work releases the GIL.
        progress: show a progress bar on stderr.

    Returns:
        `MaskStatistics`

    Raises:
        ValueError: If there are no masks, or from `read`.
    """
    if num_masks < 1:
        raise ValueError("expected at least one mask; got none.")
    values = {}
    for name, given in (attributes or {}).items():
        column = tuple(value or NOT_GIVEN for value in given)
        if 2 <= len(set(column)) <= min(MAX_GROUP_VALUES, num_masks - 1):
            values[name] = column
    rows, columns = heat_grid(*read(0).shape)
    groups: list[Group | None] = [None]
    for name, column in values.items():
        groups += [(name, value) for value in sorted(set(column), key=lambda v: (-column.count(v), v))]
    cells = {group: np.zeros((labels.num_classes + 1, rows, columns), dtype=np.int64) for group in groups}

    def count(index: int) -> tuple:
        ids = read(index)
        height, width = ids.shape
        cell = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width  # (H, W)
        bins = cell + np.minimum(ids, labels.num_classes) * np.int64(rows * columns)
        pixels = np.bincount(bins.reshape(-1), minlength=(labels.num_classes + 1) * rows * columns)
        objects = find_objects(ids, labels.ignore_index)
        edges = count_edges(ids, labels.num_classes)
        return (height, width), pixels.reshape(-1, rows, columns), edges, objects.classes, objects.sizes

    counts = []
    frames: Counter = Counter()
    for index, (shape, pixels, *others) in enumerate(_in_threads(count, num_masks, num_workers, progress)):
        frames[shape] += 1
        for group in (None, *((name, column[index]) for name, column in values.items())):
            cells[group] += pixels
        counts.append((pixels.sum(axis=(1, 2)), *others))
    pixels, edges, object_classes, object_sizes = zip(*counts, strict=True)
    return MaskStatistics(
        labels=labels,
        pixels=np.stack(pixels),
        edges=np.stack(edges),
        object_masks=np.repeat(np.arange(num_masks), [len(classes) for classes in object_classes]),
        object_classes=np.concatenate(object_classes),
        object_sizes=np.concatenate(object_sizes),
        cells=cells,
        attributes=values,
        frames=dict(frames),
    )


def class_pixels_of_each(
    read: Callable[[int], np.ndarray], num_masks: int, num_classes: int, num_workers: int = 1
) -> np.ndarray:
    """Count the pixels of each class in each mask, (N, C + 1) int64, unknown last, for class-balanced sampling."""
    counts = _in_threads(lambda i: count_pixels(read(i), num_classes), num_masks, num_workers, False)
    return np.stack(list(counts))


def _in_threads(work: Callable[[int], object], count: int, num_workers: int, progress: bool) -> Iterator:
    """Yield the results of `work(0)`, `work(1)`, ... in order."""
    with ThreadPoolExecutor(num_workers) as pool:
        parts = (pool.map(work, range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK))
        results = itertools.chain.from_iterable(parts)
        yield from progress_bar(results, total=count, desc="counting", unit="mask", disable=not progress)


@dataclass(frozen=True)
class ClassFigures:
    """Statistics of one class in a dataset or a group of it. An object is a connected region of the class."""

    name: str
    pixels: int
    pixel_share: float  # of all labelled pixels
    images: int  # with the class
    image_share: float  # of all images
    objects: int
    objects_per_image: float  # in images with the class
    median_object: float  # pixels
    typical_object: float  # pixels; half of the class's pixels are in objects at least this large
    median_object_share: float  # of the frame
    typical_object_share: float  # of the frame
    edge_share: float  # of its pixels are next to another class; near 1 means a width of one or two pixels
    spread: float  # share of the frame that it spreads over: 1 if uniform, near 0 if in one spot


def class_figures(statistics: MaskStatistics, group: Group | None = None) -> list[ClassFigures]:
    """Return the statistics of each class, in the order of the ids.

    Args:
        statistics: from `collect_statistics`.
        group: an attribute and its value; all masks by default.
    """
    members = statistics.members(group)
    totals = statistics.pixels[members][:, :-1].sum(axis=0)  # (C,)
    images = (statistics.pixels[members][:, :-1] > 0).sum(axis=0)
    edges = statistics.edges[members].sum(axis=0)
    chosen = members[statistics.object_masks]
    classes, sizes = statistics.object_classes[chosen], statistics.object_sizes[chosen]
    shares = sizes / statistics.pixels.sum(axis=1)[statistics.object_masks[chosen]]
    figures = []
    for index, name in enumerate(statistics.labels.names):
        own = classes == index
        median, typical = _medians(sizes[own])
        median_share, typical_share = _medians(shares[own])
        figures.append(
            ClassFigures(
                name=name,
                pixels=int(totals[index]),
                pixel_share=float(totals[index] / max(totals.sum(), 1)),
                images=int(images[index]),
                image_share=float(images[index] / members.sum()),
                objects=int(own.sum()),
                objects_per_image=float(own.sum() / max(images[index], 1)),
                median_object=median,
                typical_object=typical,
                median_object_share=median_share,
                typical_object_share=typical_share,
                edge_share=float(edges[index] / max(totals[index], 1)),
                spread=_spread(statistics.cells[group][index]),
            )
        )
    return figures


def _medians(sizes: np.ndarray) -> tuple[float, float]:
    """Return the median of sizes, and the size at which half of their sum is reached."""
    if len(sizes) == 0:
        return 0.0, 0.0
    sizes = np.sort(sizes)
    upto = np.cumsum(sizes)
    return float(np.median(sizes)), float(sizes[np.searchsorted(upto, upto[-1] / 2)])


def _spread(cells: np.ndarray) -> float:
    """Return the exponential of the entropy of (rows, columns) counts, as a share of all cells."""
    if not cells.any():
        return 0.0
    p = cells[cells > 0] / cells.sum()
    return float(np.exp(-(p * np.log(p)).sum()) / cells.size)


def heat_maps(statistics: MaskStatistics, group: Group | None = None) -> np.ndarray:
    """Return the share of each class among the labelled pixels of each cell: (C, rows, columns) in [0, 1]."""
    cells = statistics.cells[group][:-1]
    return cells / np.maximum(cells.sum(axis=0), 1)


def unknown_share(statistics: MaskStatistics, group: Group | None = None) -> float:
    """Return the share of unknown pixels."""
    pixels = statistics.pixels[statistics.members(group)]
    return float(pixels[:, -1].sum() / pixels.sum())


RARE_SHARE = 0.005  # of labelled pixels
FEW_IMAGES, FEW_RULE = 100, "few images"
SMALL_OBJECT = 100  # pixels: 10 x 10, or 5 x 5 patches of 2 x 2
EDGE_SHARE = 0.6  # of the class's pixels
SPREAD = 0.1  # of the frame
MIN_EXPECTED = 10  # images with a class and a condition, if the two were independent
MIN_PART = 0.2  # of the expected images

# rule -> its text on the page
RULES = {
    "never seen": "no pixel of it in any mask",
    "rare": f"less than {RARE_SHARE:.1%} of the labelled pixels",
    FEW_RULE: f"in fewer than {FEW_IMAGES} images",
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
        (FEW_RULE, images < FEW_IMAGES, f"in {images} images ({figures.image_share:.0%})"),
        ("small", size < SMALL_OBJECT, f"half of its pixels in objects below {size:.0f} pixels"),
        ("thin", edges >= EDGE_SHARE, f"{edges:.0%} of its pixels beside another class"),
        ("one place", spread < SPREAD, f"spreads over {spread:.0%} of the frame"),
    )
    return [Reason(rule, text) for rule, applies, text in checks if applies]
