"""Draws class ids from regions: polygons with Bezier curves as Scalabel writes them, and COCO's run lengths.

The fill is that of BDD100K's official masks, which are drawn with matplotlib, without edges and without antialiasing:
vertices go to the nearest corner of a pixel, and a pixel belongs to a polygon that covers any part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


UNKNOWN = 255  # the id of pixels that no region covers
SEGMENT = 2.0  # pixels; a curve is cut into straight pieces of about this length
MOST_SEGMENTS = 64  # pieces of one curve
CELLS = 2**16  # pixels of polygons' boxes that are worked on at once
MANY = 2**20  # more windings than an outline has


@dataclass(frozen=True, eq=False)
class Polygon:
    """One closed outline of a class."""

    class_id: int
    vertices: np.ndarray  # (N, 2) float32; x and y in pixels, (0, 0) is the upper left corner of the first pixel
    types: str  # a letter for each vertex: L for a corner, C for a control point of a cubic Bezier curve


@dataclass(frozen=True, eq=False)
class RunLengths:
    """The pixels of one region as COCO writes them: lengths of runs outside and inside, by turns, down the columns."""

    class_id: int
    counts: str | Sequence[int]  # compressed, or plain
    size: tuple[int, int]  # height and width


# Polygons ----------------------------------------------------------------------------------------------------------


def flatten(vertices: np.ndarray, types: str) -> np.ndarray:
    """Replace the Bezier curves of an outline by straight pieces.

    Two control points follow a corner, and the vertex after them, or the first one of the outline, ends the curve.
    One control point without a second is taken for a corner.

    Args:
        vertices (`np.ndarray`): (N, 2), pixels.
        types (`str`): L or C for each vertex.

    Returns:
        `np.ndarray`: The outline, (M, 2) float64; the last point joins the first.
    """
    points = np.asarray(vertices, dtype=np.float64)
    if "C" not in types:
        return points
    closed = np.concatenate([points, points[:1]])
    pieces, i = [points[:1]], 1
    while i < len(points):
        if types[i] == "C" and i + 2 < len(closed):
            corners = closed[i - 1 : i + 3]  # start, two control points, end
            length = np.abs(np.diff(corners, axis=0)).sum()
            count = int(np.clip(length / SEGMENT, 4, MOST_SEGMENTS))
            t = np.arange(1, count + 1)[:, None] / count
            weights = np.concatenate([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
            pieces.append(weights @ corners)  # (count, 2)
            i += 3
        else:
            pieces.append(points[i : i + 1])
            i += 1
    return np.concatenate(pieces)


def draw_polygons(polygons: Sequence[Polygon], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Draw polygons, a later one over an earlier one, at chosen rows and columns of the frame.

    The pixels are those of the whole frame: drawing every row and column and taking some of them gives the same.

    Args:
        polygons (`Sequence[Polygon]`): In drawing order.
        rows, columns (`np.ndarray`): Increasing pixel numbers, 0 or more, (H,) and (W,).

    Returns:
        `np.ndarray`: Class ids (H, W) uint8, `UNKNOWN` where no polygon is.
    """
    ids = np.full((len(rows), len(columns)), UNKNOWN, dtype=np.uint8)
    if not polygons:
        return ids
    starts, ends, owners = _outlines(polygons)
    crossings = _cross_rows(starts, ends, owners, rows, columns)
    owner, row, first, last, _, _ = crossings
    # the box of each outline: its first and last row and column, the one behind included
    bounds = np.searchsorted(owner, np.arange(len(polygons) + 1))
    drawn = np.flatnonzero(np.diff(bounds))
    begins = bounds[drawn]
    if not len(drawn):
        return ids
    top, bottom = np.minimum.reduceat(row, begins), np.maximum.reduceat(row, begins) + 1
    left, right = np.minimum.reduceat(first, begins), np.maximum.reduceat(last, begins) + 1
    cells = (bottom - top) * (right - left)
    class_ids = np.array([polygons[i].class_id for i in drawn], dtype=np.uint8)
    group = 0
    while group < len(drawn):  # so many outlines at once that their boxes fill some memory, one at least
        end = max(group + 1, int(np.searchsorted(np.cumsum(cells[group:]), CELLS, side="right")) + group)
        part = slice(begins[group], bounds[drawn[end - 1] + 1])
        boxes = [values[group:end] for values in (top, bottom, left, right)]
        _fill(ids, boxes, class_ids[group:end], [values[part] for values in crossings], drawn[group:end])
        group = end
    return ids


def _outlines(polygons: Sequence[Polygon]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All outlines as straight pieces: starts (N, 2), ends (N, 2), and the number of the polygon (N,) of each."""
    vertices = _snap(np.concatenate([polygon.vertices for polygon in polygons]))
    counts = np.array([len(polygon.vertices) for polygon in polygons])
    if any("C" in polygon.types for polygon in polygons):
        parts = np.split(vertices, np.cumsum(counts)[:-1])
        parts = [flatten(part, polygon.types) for part, polygon in zip(parts, polygons, strict=True)]
        vertices, counts = np.concatenate(parts), np.array([len(part) for part in parts])
    following = np.arange(1, len(vertices) + 1)
    stops = np.cumsum(counts)
    following[stops[counts > 0] - 1] = (stops - counts)[counts > 0]  # the last point joins the first
    return vertices, vertices[following], np.repeat(np.arange(len(polygons)), counts)


def _fill(ids: np.ndarray, boxes, class_ids: np.ndarray, crossings, drawn: np.ndarray) -> None:
    """Fill some outlines, each in its box; the boxes lie one behind the other in a row of cells."""
    top, bottom, left, right = boxes
    owner, row, first, last, winding, turn = crossings
    heights, widths = bottom - top, right - left
    sizes = heights * widths
    offsets = np.cumsum(sizes) - sizes
    box = np.searchsorted(drawn, owner)
    line = offsets[box] + (row - top[box]) * widths[box] - left[box]
    # An outline's own pixels: +1 where a piece of it enters, -1 behind. The inside: by its winding number. Both end
    # as zero in each row, so that one running sum serves all rows of all boxes.
    steps = np.bincount(line + first, minlength=sizes.sum()) - np.bincount(line + last, minlength=sizes.sum())
    turns = np.bincount(line + turn, winding, minlength=sizes.sum()).astype(np.int64)
    covered = np.cumsum(steps * MANY + turns) != 0
    if len(sizes) == 1:  # a large one: no need to say where each pixel lies
        seen = ids[top[0] : bottom[0], left[0] : right[0]]  # the column behind may be out of the frame
        seen[covered.reshape(heights[0], widths[0])[:, : seen.shape[1]]] = class_ids[0]
        return
    covered = np.flatnonzero(covered)
    box = np.repeat(np.arange(len(sizes)), sizes)[covered]
    y, x = np.divmod(covered - offsets[box], widths[box])
    ids[y + top[box], x + left[box]] = class_ids[box]  # of several, the last one stays


def _snap(vertices: np.ndarray) -> np.ndarray:
    """Vertices at the nearest corner of a pixel; halves go right and up, since matplotlib counts rows from below."""
    vertices = np.asarray(vertices, dtype=np.float64)
    return np.stack([np.floor(vertices[:, 0] + 0.5), np.ceil(vertices[:, 1] - 0.5)], axis=1)


def _cross_rows(starts, ends, owners, rows, columns):
    """Where each straight piece runs through each row.

    Returns:
        tuple of arrays, one entry for each piece and row: whose outline it is, the index of the row, the first index
        of a column that it touches and the one behind the last, +1 or -1 where it crosses the middle of the row
        downwards or upwards (else 0), and the index of the first column to the right of that crossing.
    """
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    begin = np.searchsorted(rows, np.floor(low))
    count = np.maximum(np.searchsorted(rows, np.ceil(high)) - begin, 0)
    piece = np.repeat(np.arange(len(starts)), count)
    row = np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count) + begin[piece]
    x, y = starts[piece, 0], starts[piece, 1]
    height = ends[piece, 1] - y
    is_level = height == 0
    slope = np.divide(ends[piece, 0] - x, height, out=np.zeros_like(x), where=~is_level)
    upper = x + slope * (np.maximum(rows[row], low[piece]) - y)
    lower = np.where(is_level, ends[piece, 0], x + slope * (np.minimum(rows[row] + 1, high[piece]) - y))
    first = np.searchsorted(columns, np.floor(np.minimum(upper, lower)))
    last = np.maximum(np.searchsorted(columns, np.ceil(np.maximum(upper, lower))), first)
    middle = rows[row] + 0.5
    crosses = (low[piece] <= middle) & (middle < high[piece])
    turn = np.searchsorted(columns, np.ceil(x + slope * (middle - y) - 0.5))
    turn = np.where(crosses, turn, first)
    return owners[piece], row, first, last, np.where(crosses, np.sign(height), 0), turn


# Run lengths -------------------------------------------------------------------------------------------------------


def read_counts(counts: str | Sequence[int]) -> np.ndarray:
    """Run lengths of a COCO region, from the compressed text or the plain list.

    A number of the text stands in characters of 5 bits each, low ones first, from "0" up; bit 6 says that more follow,
    bit 5 of the last one is the sign. From the fourth on it is the difference to the number two places before.

    Raises:
        ValueError: The text is cut off, or a run has a negative length.

    Example:
        >>> read_counts("52203").tolist(), read_counts([5, 2, 2, 2]).tolist()
        ([5, 2, 2, 2, 5], [5, 2, 2, 2])
    """
    if not isinstance(counts, str):
        runs = np.asarray(counts, dtype=np.int64).reshape(-1)
    else:
        numbers: list[int] = []
        value = shift = 0
        for letter in counts:
            bits = ord(letter) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"run lengths hold the character {letter!r}, which none can have")
            value |= (bits & 31) << shift
            shift += 5
            if bits & 32 and shift < 60:
                continue
            if bits & 32:
                raise ValueError("run lengths hold a number of more than 60 bits")
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
        if shift:
            raise ValueError("run lengths end in the middle of a number")
        runs = np.asarray(numbers, dtype=np.int64)
    if (runs < 0).any():
        raise ValueError(f"run lengths hold the negative number {runs.min()}")
    return runs


def draw_runs(regions: Sequence[RunLengths], height: int, width: int) -> np.ndarray:
    """Draw regions given by run lengths, a later one over an earlier one.

    Returns:
        `np.ndarray`: Class ids (height, width) uint8, `UNKNOWN` where no region is.

    Raises:
        ValueError: A region is for another size, or its runs do not fill it.
    """
    flat = np.full(height * width, UNKNOWN, dtype=np.uint8)  # down the columns
    for number, region in enumerate(regions):
        if tuple(region.size) != (height, width):
            raise ValueError(f"region {number} is for {region.size[0]} x {region.size[1]} pixels")
        runs = read_counts(region.counts)
        if runs.sum() != len(flat):
            raise ValueError(f"the runs of region {number} count {runs.sum()} pixels; wanted {len(flat)}")
        if len(runs) < 2:
            continue
        begin, end = runs[0], len(flat) - (runs[-1] if len(runs) % 2 else 0)
        inside = np.repeat(np.arange(1, len(runs)) % 2 == 1, runs[1:])[: end - begin]
        flat[begin:end][inside] = region.class_id
    return flat.reshape(width, height).T
