"""Charts for the pages of `frame.py`: bars, strips and lines as inline SVG that stretches to the width it gets.
Each stands in a table or carries a text, so that its numbers are read without seeing it; no equation stands behind it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from semseg_diffusers.reports.html import is_finite, number, pieces, table


NUM_COLORS = 6  # series colours in page.html; a seventh series repeats the first, dashed
BAR_HEIGHTS = {1: 13, 2: 8}  # pixels by number of series, a gap of one included
BAR_HEIGHT = 6  # of three and more
DASHES = ("", "7 4", "2 4")


# Axes ----------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range, at most `count + 2` of them.

    Example:
        >>> ticks(0, 0.93), ticks(0, 5000)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0])
    """
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def decade_ticks(low: float, high: float) -> list[float]:
    """Numbers for a logarithmic axis that covers a range above 0: of each decade 1, 2 and 5, or 1 alone if it is wide.

    Example:
        >>> decade_ticks(0.03, 0.9), decade_ticks(0.002, 30)
        ([0.02, 0.05, 0.1, 0.2, 0.5, 1.0], [0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    marks = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
    below = [mark for mark in marks if mark <= low * (1 + 1e-9)]
    above = [mark for mark in marks if mark >= high * (1 - 1e-9)]
    axis = [mark for mark in marks if below[-1] <= mark <= above[0]]
    return axis if len(axis) > 1 else [*axis, marks[marks.index(axis[0]) + 1]]


def place(value: float | None, low: float, high: float) -> float | None:
    """Where a value lies between two, in percent; None for no value. What lies outside is set on the edge."""
    if not is_finite(value):
        return None
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)


def _tick_texts(values: Sequence[float]) -> list[tuple[float | None, str]]:
    return [(place(value, values[0], values[-1]), f"{value:,.10g}") for value in values]


def series_name(name: str, index: int) -> Markup:
    """A series' name behind a square of its colour."""
    return Markup('<span class="series"><span class="key f{}"></span>{}</span>').format(index % NUM_COLORS, name)


# Charts in tables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bars:
    """A row of a bar table: its name, one value per series (None where there is none), texts of further columns."""

    name: str
    values: Sequence[float | None]
    more: Sequence[str | float | None] = ()


def bar_table(
    rows: Sequence[Bars],
    series: Sequence[str],
    caption: str = "",
    row_name: str = "class",
    maximum: float | None = None,
    more: Sequence[str] = (),
) -> Markup:
    """Horizontal bars, one group per row and one bar per series, with their values beside them.

    Args:
        rows: names with values from 0 on.
        series: names of the series, in the order of the values.
        caption: what the bars show.
        row_name: what the rows are.
        maximum: value of a full bar; the largest value, rounded up, where None.
        more: headers of further columns, whose cells are in `Bars.more`.

    Raises:
        ValueError: for values below 0, which a bar cannot show.
    """
    values = [value for row in rows for value in row.values if is_finite(value)]
    if any(value < 0 for value in values):
        raise ValueError(f"bars show values from 0 on; got {min(values)}")
    axis = ticks(0, maximum if maximum is not None else max(values, default=1) or 1, count=4)
    height = BAR_HEIGHTS.get(len(series), BAR_HEIGHT)
    cells = [
        [
            row.name,
            pieces().bars([place(value, 0, axis[-1]) for value in row.values], height),
            *row.values,
            *row.more,
        ]
        for row in rows
    ]
    keys = [series_name(name, index) for index, name in enumerate(series)]
    scale = axis_header(axis)
    return table([row_name, scale, *keys, *more], cells, caption, drawing=1)


def axis_header(axis: Sequence[float]) -> Markup:
    """The numbers of an axis as the header of a column of drawings."""
    return pieces().axis(_thin(_tick_texts(axis)))


def _thin(texts: list) -> list:
    """Ends and middle of an axis: what fits above a narrow column."""
    return [texts[0], texts[len(texts) // 2], texts[-1]] if len(texts) % 2 else [texts[0], texts[-1]]


def strip_table(
    rows: Mapping[str, Sequence[float]], caption: str = "", mark: float | None = None, unit: str = "value"
) -> Markup:
    """Each value of a few small sets as a tick on a common axis, with count, least value and median beside it.

    Args:
        rows: values by name of the set.
        caption: what the ticks show.
        mark: a value that a dashed line stands at in every row.
        unit: what the values are.
    """
    finite = {name: sorted(filter(is_finite, values)) for name, values in rows.items()}
    everything = [value for values in finite.values() for value in values] + ([] if mark is None else [mark])
    axis = ticks(min(everything, default=0), max(everything, default=1), count=4)
    low, high = axis[0], axis[-1]
    cells = []
    for index, (name, values) in enumerate(finite.items()):
        drawn = pieces().strip(
            [place(value, low, high) for value in values], place(mark, low, high), index % NUM_COLORS
        )
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2 if values else None
        cells.append([series_name(name, index), drawn, len(values), values[0] if values else None, middle])
    scale = axis_header(axis)
    return table([unit, scale, "number", "least", "median"], cells, caption, drawing=1)


def scale_mark(floor: float | None, value: float | None, ceiling: float | None, maximum: float = 1.0) -> Markup:
    """A line from 0 to `maximum` with floor and ceiling as ticks and the value as a dot: a cell of a table."""
    text = f"{number(value)} on a line from 0 to {maximum:g}, floor {number(floor)}, ceiling {number(ceiling)}"
    return pieces().between(*(place(each, 0, maximum) for each in (floor, value, ceiling)), text)


def spread_mark(
    axis: Sequence[float],
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    points: Sequence[float] = (),
    mark: float | None = None,
) -> Markup:
    """A value as a dot on an axis, with its interval as a bar, single results as small dots and a dashed mark.

    Args:
        axis: numbers of the axis, rising; the header of the column is `axis_header(axis)`.
        value: where the large dot stands.
        low, high: ends of the interval, where there is one.
        points: single results.
        mark: what values are to be held against.
    """
    text = number(value)
    text += f", interval {number(low)} to {number(high)}" if is_finite(low) and is_finite(high) else ""
    text += f", single results {', '.join(map(number, points))}" if points else ""
    places = [place(each, axis[0], axis[-1]) for each in (value, low, high, mark)]
    return pieces().spread([place(point, axis[0], axis[-1]) for point in points], *places, text)


# Lines ---------------------------------------------------------------------------------------------------------------


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float | None]]],
    x_name: str,
    y_name: str,
    caption: str = "",
    logarithmic: bool = False,
) -> Markup:
    """Values over steps, one line per name; None or a value that is not finite breaks its line.

    Args:
        lines: points (x, y) by name of the line, x rising.
        x_name: what runs across ("optimizer step").
        y_name: what runs up ("loss", with unit or range).
        caption: what the chart shows.
        logarithmic: let equal steps upwards be equal ratios.

    Raises:
        ValueError: without a single finite point; for values of 0 and below on a logarithmic axis.
    """
    finite = {name: [(x, y) for x, y in points if is_finite(y)] for name, points in lines.items()}
    everything = [point for points in finite.values() for point in points]
    if not everything:
        raise ValueError(f"a line chart needs at least one finite point; got none in {', '.join(lines) or 'no lines'}")
    x_axis = ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    lowest, highest = min(y for _, y in everything), max(y for _, y in everything)
    if logarithmic and lowest <= 0:
        raise ValueError(f"a logarithmic axis shows values above 0; got {lowest}")
    y_axis = decade_ticks(lowest, highest) if logarithmic else ticks(lowest, highest)
    drawn, texts = [], []
    for index, (name, points) in enumerate(lines.items()):
        dash = DASHES[index // NUM_COLORS % len(DASHES)]
        paths = _paths(points, (x_axis[0], x_axis[-1]), (y_axis[0], y_axis[-1]), logarithmic)
        last = ""
        if finite[name]:
            (x_first, y_first), (x_last, y_last) = finite[name][0], finite[name][-1]
            last = f"{number(float(y_last))} at {x_last:,.10g}"
            ends = sorted(y for _, y in finite[name])
            texts.append(
                f"{name} from {number(float(y_first))} at {x_first:,.10g} to {last}, "
                f"least {number(float(ends[0]))}, most {number(float(ends[-1]))}"
            )
        drawn.append({"name": name, "colour": index % NUM_COLORS, "dash": dash, "paths": paths, "last": last})
    text = f"{y_name} over {x_name}: {'; '.join(texts)}."
    x_texts = _tick_texts(x_axis)
    y_texts = [(_up(value, (y_axis[0], y_axis[-1]), logarithmic), f"{value:,.10g}") for value in y_axis]
    return pieces().lines(drawn, x_texts, y_texts, x_name, y_name, caption, text)


def _up(value: float, y_range: tuple[float, float], logarithmic: bool) -> float:
    """How far up a value lies, in percent."""
    if logarithmic:
        return place(math.log(value), *map(math.log, y_range))
    return place(value, *y_range)


def _paths(
    points: Sequence[tuple[float, float | None]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    logarithmic: bool,
) -> list[str]:
    """SVG paths in percent from the upper left, a new one behind each gap; a single point becomes a dot."""
    parts: list[list[str]] = [[]]
    for x, y in points:
        if not is_finite(y):
            parts.append([])
            continue
        parts[-1].append(f"{place(x, *x_range):g} {round(100 - _up(y, y_range, logarithmic), 2):g}")
    return [f"M{' L'.join(part)}" if len(part) > 1 else f"M{part[0]}h0" for part in parts if part]
