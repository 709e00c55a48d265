"""The figures of each class that follow from the counts: shares, objects, place in the frame.

Each of them is of all masks of a set, or of those of one group (`MaskStatistics.groups`), such as rainy weather.
"""

from dataclasses import dataclass

import numpy as np

from semseg_diffusers.data.statistics.counts import Group, MaskStatistics


@dataclass(frozen=True)
class ClassFigures:
    """One class in a data set or a group of it. An object is a connected region of the class."""

    name: str
    pixels: int
    pixel_share: float  # of all labelled pixels
    images: int  # that hold it
    image_share: float  # of all images
    objects: int
    objects_per_image: float  # in those that hold it
    median_object: float  # pixels
    typical_object: float  # pixels; half of the class's pixels lie in objects at least this large
    median_object_share: float  # of the frame
    typical_object_share: float  # of the frame
    edge_share: float  # of its pixels lie beside another class; near 1 means a width of one or two pixels
    spread: float  # share of the frame that it spreads over: 1 if evenly everywhere, near 0 if at one place


def class_figures(statistics: MaskStatistics, group: Group | None = None) -> list[ClassFigures]:
    """The figures of every class, in the order of the ids.

    Args:
        statistics (`MaskStatistics`): what `collect_statistics` counted.
        group (`Group`, *optional*): an attribute and its value; by default all masks.
    """
    members = statistics.members(group)
    num_classes = statistics.labels.num_classes
    pixels = statistics.pixels[members]  # (n, C + 1)
    totals, frames = pixels.sum(axis=0)[:-1], pixels.sum(axis=1)
    images = (pixels[:, :-1] > 0).sum(axis=0)
    edges = statistics.edges[members].sum(axis=0)
    chosen = members[statistics.object_masks]
    classes, sizes = statistics.object_classes[chosen], statistics.object_sizes[chosen]
    shares = sizes / statistics.pixels.sum(axis=1)[statistics.object_masks[chosen]]
    order = np.lexsort((sizes, classes))
    bounds = np.searchsorted(classes[order], np.arange(num_classes + 1))
    figures = []
    for index, name in enumerate(statistics.labels.names):
        own = order[bounds[index] : bounds[index + 1]]  # objects of this class, the smallest first
        figures.append(
            ClassFigures(
                name=name,
                pixels=int(totals[index]),
                pixel_share=_ratio(totals[index], totals.sum()),
                images=int(images[index]),
                image_share=_ratio(images[index], len(frames)),
                objects=len(own),
                objects_per_image=_ratio(len(own), images[index]),
                median_object=float(np.median(sizes[own])) if len(own) else 0.0,
                typical_object=_weighted_median(sizes[own]),
                median_object_share=float(np.median(shares[own])) if len(own) else 0.0,
                typical_object_share=_weighted_median(np.sort(shares[own])),
                edge_share=_ratio(edges[index], totals[index]),
                spread=_spread(statistics.cells[group][index]),
            )
        )
    return figures


def heat_maps(statistics: MaskStatistics, group: Group | None = None) -> np.ndarray:
    """How likely a labelled pixel is of each class, at each place of the frame: (C, rows, columns) in [0, 1]."""
    cells = statistics.cells[group][:-1]
    return cells / np.maximum(cells.sum(axis=0), 1)


def unknown_share(statistics: MaskStatistics, group: Group | None = None) -> float:
    """Share of all pixels whose class is unknown."""
    pixels = statistics.pixels[statistics.members(group)]
    return _ratio(pixels[:, -1].sum(), pixels.sum())


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _weighted_median(sizes: np.ndarray) -> float:
    """The size, of sizes in ascending order, at which half of their sum is reached."""
    if len(sizes) == 0:
        return 0.0
    upto = np.cumsum(sizes)
    return float(sizes[np.searchsorted(upto, upto[-1] / 2)])


def _spread(cells: np.ndarray) -> float:
    """The exponential of the entropy of (rows, columns) counts, as a share of all cells."""
    if not cells.any():
        return 0.0
    p = cells[cells > 0] / cells.sum()
    return float(np.exp(-(p * np.log(p)).sum()) / cells.size)
