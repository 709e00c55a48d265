"""Rasterize class regions: polygons with Bezier curves as Scalabel writes them, and COCO's run lengths.

The fill is that of BDD100K's official masks, which are made with matplotlib, without edges and without antialiasing:
vertices go to the nearest corner of a pixel, and a pixel belongs to a polygon that covers any part of it. Or a pixel
belongs to a polygon that covers its middle, as in COCO's masks but for single pixels at the edges.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


UNKNOWN = 255  # the id of pixels that no region covers
SEGMENT = 2.0  # pixels; approximate length of the straight segments that replace a curve
MAX_SEGMENTS = 64  # of one curve
CELLS = 2**16  # pixels of bounding boxes that are filled at once
WINDING_BASE = 2**20  # larger than any winding number
MAX_REACH = 1.25  # of the frame's size; polygons may exceed their frame a little, those of a larger frame do by far


@dataclass(frozen=True, eq=False)
class Polygon:
    """One closed outline of a class."""

    class_id: int
    vertices: np.ndarray  # (N, 2) float32; x and y in pixels, (0, 0) is the upper left corner of the first pixel
    types: str  # a letter for each vertex: L for a corner, C for a control point of a cubic Bezier curve

    @property
    def content(self) -> tuple[Any, ...]:
        """Return what is hashed."""
        return self.vertices.tobytes(), self.types


@dataclass(frozen=True, eq=False)
class RunLengths:
    """The pixels of one region in COCO's form: alternating lengths of runs outside and inside, down the columns."""

    class_id: int
    counts: str | Sequence[int]  # compressed, or plain
    size: tuple[int, int]  # height and width

    @property
    def content(self) -> tuple[Any, ...]:
        """Return what is hashed."""
        return self.counts, self.size


@dataclass(frozen=True, eq=False)
class RegionMask:
    """A mask given by regions in a label file; later regions cover earlier ones."""

    regions: tuple[Any, ...]  # of `Polygon`, `RunLengths`, or others with `class_id`, `content` and `covered`
    source: str  # the label file, for messages
    size: tuple[int, int] | None = None  # height and width of the image, if the label file says them
    background: int = UNKNOWN  # the id of pixels that no region covers
    touched: bool = True  # whether a polygon has all pixels that it touches, or those whose middle it holds

    def __str__(self) -> str:
        return self.source

    @property
    def name(self) -> str:
        """Return the name in messages, as of a path."""
        return self.source

    def fingerprint(self) -> tuple[str]:
        """Return a hash of the regions."""
        digest = hashlib.sha256()
        for region in self.regions:
            digest.update(repr((region.class_id, region.content)).encode())
        if (self.size, self.background, self.touched) != (None, UNKNOWN, True):
            digest.update(repr((self.size, self.background, self.touched)).encode())
        return (digest.hexdigest(),)

    def rasterize(self, height: int, width: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return class ids (len(rows), len(columns)) uint8 of a frame of height x width, 255 where no region is."""
        if self.size is not None and self.size != (height, width):
            raise ValueError(
                f"mask '{self}' is of an image of {self.size[0]} x {self.size[1]}; its image is {height} x {width} "
                "(height x width). Was the image resized or rotated after it was labelled?"
            )
        if self.size is None:
            self._check_reach(height, width)
        ids = np.full((len(rows), len(columns)), self.background, dtype=np.uint8)
        for kind, group in itertools.groupby(self.regions, type):
            if kind is Polygon:
                draw_polygons(list(group), rows, columns, ids, self.touched)
                continue
            try:
                if kind is RunLengths:
                    drawn = draw_runs(list(group), height, width)[rows[:, None], columns]
                    np.copyto(ids, drawn, where=drawn != UNKNOWN)
                else:
                    for region in group:
                        ids[region.covered(height, width)[rows[:, None], columns]] = region.class_id
            except ValueError as err:
                raise ValueError(f"mask '{self}': {err}; its image is {height} x {width} (height x width).") from err
        return ids

    def _check_reach(self, height: int, width: int) -> None:
        polygons = [region for region in self.regions if isinstance(region, Polygon)]
        reach = np.max([polygon.vertices.max(axis=0, initial=0) for polygon in polygons], axis=0, initial=0)
        if (reach > MAX_REACH * np.array([width, height])).any():
            raise ValueError(
                f"mask '{self}' reaches to x = {reach[0]:.0f}, y = {reach[1]:.0f}; its image is {height} x {width} "
                "(height x width). Was the image resized?"
            )


def flatten(vertices: np.ndarray, types: str) -> np.ndarray:
    """Replace the Bezier curves of an outline (N, 2) by straight segments, (M, 2) float64.

    Two control points follow a corner, and the vertex after them, or the first one of the outline, ends the curve.
    One control point without a second is taken for a corner.
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
            count = int(np.clip(length / SEGMENT, 4, MAX_SEGMENTS))
            t = np.arange(1, count + 1)[:, None] / count
            weights = np.concatenate([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
            pieces.append(weights @ corners)  # (count, 2)
            i += 3
        else:
            pieces.append(points[i : i + 1])
            i += 1
    return np.concatenate(pieces)


def draw_polygons(
    polygons: Sequence[Polygon],
    rows: np.ndarray,
    columns: np.ndarray,
    ids: np.ndarray | None = None,
    touched: bool = True,
) -> np.ndarray:
    """Fill polygons, a later one over an earlier one, at chosen rows and columns of the frame, which increase.

    The pixels are those of the whole frame: filling every row and column and taking some of them gives the same.
    A polygon has the pixels that it touches, with its vertices at the nearest corners, or those whose middle it holds.
    Returns class ids (H, W) uint8: those given, or `UNKNOWN`, where no polygon is.
    """
    if ids is None:
        ids = np.full((len(rows), len(columns)), UNKNOWN, dtype=np.uint8)
    if not polygons:
        return ids
    crossings = _cross_rows(*_outlines(polygons, touched), rows, columns)
    owner, row, first, last, _, _ = crossings
    bounds = np.searchsorted(owner, np.arange(len(polygons) + 1))
    visible = np.flatnonzero(np.diff(bounds))  # polygons that cross a row
    if not len(visible):
        return ids
    # the bounding box of each: first row and column, and those after the last
    starts = bounds[visible]
    top, bottom = np.minimum.reduceat(row, starts), np.maximum.reduceat(row, starts) + 1
    left, right = np.minimum.reduceat(first, starts), np.maximum.reduceat(last, starts) + 1
    cells = (bottom - top) * (right - left)
    class_ids = np.array([polygon.class_id for polygon in polygons], dtype=np.uint8)[visible]
    group = 0
    while group < len(visible):  # as many polygons as fill CELLS, one at least
        end = max(group + 1, int(np.searchsorted(np.cumsum(cells[group:]), CELLS, side="right")) + group)
        part = slice(starts[group], bounds[visible[end - 1] + 1])
        boxes = [values[group:end] for values in (top, bottom, left, right)]
        _fill(ids, boxes, class_ids[group:end], [values[part] for values in crossings], visible[group:end], touched)
        group = end
    return ids


def _outlines(polygons: Sequence[Polygon], touched: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all straight segments: starts (N, 2), ends (N, 2), and the number of the polygon (N,) of each."""
    vertices = np.concatenate([polygon.vertices for polygon in polygons]).astype(np.float64)
    if touched:  # the nearest corner of a pixel; halves go right and up, since matplotlib counts rows from below
        vertices = np.stack([np.floor(vertices[:, 0] + 0.5), np.ceil(vertices[:, 1] - 0.5)], axis=1)
    counts = np.array([len(polygon.vertices) for polygon in polygons])
    if any("C" in polygon.types for polygon in polygons):
        parts = np.split(vertices, np.cumsum(counts)[:-1])
        parts = [flatten(part, polygon.types) for part, polygon in zip(parts, polygons, strict=True)]
        vertices, counts = np.concatenate(parts), np.array([len(part) for part in parts])
    following = np.arange(1, len(vertices) + 1)
    stops = np.cumsum(counts)
    following[stops[counts > 0] - 1] = (stops - counts)[counts > 0]  # the last point joins the first
    return vertices, vertices[following], np.repeat(np.arange(len(polygons)), counts)


def _fill(
    ids: np.ndarray,
    boxes: list[np.ndarray],
    class_ids: np.ndarray,
    crossings: list[np.ndarray],
    polygons: np.ndarray,
    touched: bool,
) -> None:
    """Fill some polygons, each in its box; the boxes are consecutive parts of one row of cells."""
    top, bottom, left, right = boxes
    owner, row, first, last, winding, turn = crossings
    heights, widths = bottom - top, right - left
    sizes = heights * widths
    offsets = np.cumsum(sizes) - sizes
    box = np.searchsorted(polygons, owner)
    line = offsets[box] + (row - top[box]) * widths[box] - left[box]
    # Pixels of the outline: +1 where a segment enters, -1 after it. The inside: by its winding number. Both end as
    # zero in each row, so that one running sum serves all rows of all boxes.
    turns = np.bincount(line + turn, winding, minlength=sizes.sum()).astype(np.int64)
    if touched:
        steps = np.bincount(line + first, minlength=sizes.sum()) - np.bincount(line + last, minlength=sizes.sum())
        turns += steps * WINDING_BASE
    covered = np.cumsum(turns) != 0
    if len(sizes) == 1:  # a large one, without computing the place of each pixel
        seen = ids[top[0] : bottom[0], left[0] : right[0]]  # the column after the last may be outside the frame
        seen[covered.reshape(heights[0], widths[0])[:, : seen.shape[1]]] = class_ids[0]
        return
    places = np.flatnonzero(covered)
    box = np.repeat(np.arange(len(sizes)), sizes)[places]
    y, x = np.divmod(places - offsets[box], widths[box])
    ids[y + top[box], x + left[box]] = class_ids[box]  # of several, the last one remains


def _cross_rows(
    starts: np.ndarray, ends: np.ndarray, owners: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Intersect each straight segment with each row.

    Returns arrays with one entry for each segment and row: the number of the polygon, the index of the row, the first
    index of a column that it touches and the one after the last, +1 or -1 where it crosses the middle of the row
    downwards or upwards (else 0), and the index of the first column to the right of that crossing.
    """
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first_row = np.searchsorted(rows, np.floor(low))
    count = np.maximum(np.searchsorted(rows, np.ceil(high)) - first_row, 0)
    segment = np.repeat(np.arange(len(starts)), count)
    row = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count) + first_row[segment]
    x, y = starts[segment, 0], starts[segment, 1]
    height = ends[segment, 1] - y
    is_level = height == 0
    slope = np.divide(ends[segment, 0] - x, height, out=np.zeros_like(x), where=~is_level)
    upper = x + slope * (np.maximum(rows[row], low[segment]) - y)
    lower = np.where(is_level, ends[segment, 0], x + slope * (np.minimum(rows[row] + 1, high[segment]) - y))
    first = np.searchsorted(columns, np.floor(np.minimum(upper, lower)))
    last = np.maximum(np.searchsorted(columns, np.ceil(np.maximum(upper, lower))), first)
    middle = rows[row] + 0.5
    crosses = (low[segment] <= middle) & (middle < high[segment])
    turn = np.searchsorted(columns, np.ceil(x + slope * (middle - y) - 0.5))
    return owners[segment], row, first, last, np.where(crosses, np.sign(height), 0), np.where(crosses, turn, first)


def read_counts(counts: str | Sequence[int]) -> np.ndarray:
    """Return the run lengths of a COCO region, from the compressed text or the plain list.

    A number of the text is in characters of 5 bits each, low ones first, from "0" up; bit 6 says that more follow,
    bit 5 of the last one is the sign. From the fourth on it is the difference to the number two places before.
    """
    if isinstance(counts, str):
        numbers: list[int] = []
        value = shift = 0
        for letter in counts:
            bits = ord(letter) - 48
            if not 0 <= bits < 64:
                raise ValueError(f"run lengths hold the character {letter!r}, which none can have")
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                value -= (bits & 16) << (shift - 4)
                numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
                value = shift = 0
            elif shift >= 60:
                raise ValueError("run lengths hold a number of more than 60 bits")
        if shift:
            raise ValueError("run lengths end in the middle of a number")
        counts = numbers
    runs = np.asarray(counts, dtype=np.int64).reshape(-1)
    if (runs < 0).any():
        raise ValueError(f"run lengths hold the negative number {runs.min()}")
    return runs


def draw_runs(regions: Sequence[RunLengths], height: int, width: int) -> np.ndarray:
    """Fill regions given by run lengths, a later one over an earlier one; return class ids (height, width) uint8."""
    flat = np.full(height * width, UNKNOWN, dtype=np.uint8)  # down the columns
    for number, region in enumerate(regions):
        if tuple(region.size) != (height, width):
            raise ValueError(f"region {number} is for {region.size[0]} x {region.size[1]} pixels")
        runs = read_counts(region.counts)
        if runs.sum() != len(flat):
            raise ValueError(f"the runs of region {number} count {runs.sum()} pixels; expected {len(flat)}")
        flat[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = region.class_id
    return flat.reshape(width, height).T
