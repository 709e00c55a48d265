"""Shapes to fill with a class: polygons, strokes of a round brush, rectangles, ellipses. A pixel is in or out.

Points are (x, y) as image editors show them: x from the left, y from the top, the first pixel's centre at (0, 0).
"""

from collections.abc import Sequence

import numpy as np


Point = tuple[float, float]


def polygon(size: tuple[int, int], points: Sequence[Point]) -> np.ndarray:
    """Return the pixels whose centre is inside a polygon or on its edge (even-odd rule).

    Args:
        size: height and width of the mask.
        points: at least 3; the last is joined to the first. They may be outside the mask.

    Returns:
        (H, W) bool.

    Example:
        >>> polygon((3, 4), [(0, 0), (2, 0), (2, 2), (0, 2)]).sum(axis=1).tolist()
        [3, 3, 3]
    """
    corners = _points(points, "a polygon", at_least=3)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    inside = np.zeros(size, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            inside ^= crossed & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside | stroke(size, [*corners, corners[0]], radius=1e-6)


def stroke(size: tuple[int, int], points: Sequence[Point], radius: float) -> np.ndarray:
    """Return the pixels whose centre is at most `radius` from a line through the points; one point is a dot.

    Args:
        size: height and width of the mask.
        points: at least 1.
        radius: of the brush, in pixels, above 0; 0.5 is a line one pixel wide.

    Returns:
        (H, W) bool.
    """
    if not radius > 0:
        raise ValueError(f"expected a brush radius above 0; got {radius}.")
    line = _points(points, "a stroke", at_least=1)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    touched = np.hypot(x - line[0, 0], y - line[0, 1]) <= radius
    for (x0, y0), (x1, y1) in zip(line[:-1], line[1:], strict=True):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1) if length else 0.0
        touched |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) <= radius
    return touched


def rectangle(size: tuple[int, int], first: Point, last: Point) -> np.ndarray:
    """Return the pixels between two corners, both included: (H, W) bool."""
    (x0, x1), (y0, y1) = np.sort(_points([first, last], "a rectangle", at_least=2).T, axis=1)
    y, x = np.mgrid[: size[0], : size[1]]
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def ellipse(size: tuple[int, int], center: Point, radii: tuple[float, float]) -> np.ndarray:
    """Return the pixels whose centre is inside an ellipse with these half axes along x and y: (H, W) bool."""
    ((x0, y0),) = _points([center], "an ellipse", at_least=1)
    if len(radii) != 2 or not all(radius > 0 for radius in radii):
        raise ValueError(f"expected two radii of an ellipse above 0, along x and y; got {radii}.")
    y, x = np.mgrid[: size[0], : size[1]]
    return ((x - x0) / radii[0]) ** 2 + ((y - y0) / radii[1]) ** 2 <= 1


def _points(points: Sequence[Point], what: str, at_least: int) -> np.ndarray:
    """Return points as an array (N, 2) of x and y."""
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise ValueError(f"expected points (x, y) of {what}; got {points}.") from err
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < at_least or not np.isfinite(array).all():
        raise ValueError(f"expected at least {at_least} finite point(s) (x, y) of {what}; got {points}.")
    return array
