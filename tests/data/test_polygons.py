"""Polygons and run lengths become the pixels that the official tools give them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semseg_diffusers.data.polygons import Polygon, RunLengths, draw_polygons, draw_runs, flatten, read_counts


def draw(*polygons, height=12, width=12, rows=None, columns=None):
    shapes = [Polygon(class_id, np.array(vertices, np.float32), types) for class_id, vertices, types in polygons]
    rows = np.arange(height) if rows is None else rows
    return draw_polygons(shapes, rows, np.arange(width) if columns is None else columns)


def as_rows(ids):
    return ["".join("." if value == 255 else str(value) for value in row) for row in ids]


# Drawn with matplotlib's Agg as BDD100K's to_mask.py does (lw=0, antialiased=False, snap=True), 12 x 12 pixels.
OFFICIAL = [
    (
        [[2, 2], [11, 4], [11, 9]],
        "LLL",
        [
            "............", "............", "..11111.....", "...11111111.", "....1111111.", ".....111111.",
            ".......1111.", "........111.", ".........11.", "............", "............", "............",
        ],
    ),
    (
        [[2.4, 2.4], [8.6, 2.5], [8.5, 7.5], [2.5, 7.6]],
        "LLLL",
        ["............", "............", *["..1111111..."] * 6, *["............"] * 4],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("vertices", "types", "picture"), OFFICIAL)
def test_polygons_are_filled_as_the_official_tool_fills_them(vertices, types, picture):
    assert as_rows(draw((1, vertices, types))) == picture


def test_later_polygons_cover_earlier_ones_and_the_rest_is_unknown():
    ids = draw((1, [[0, 0], [8, 0], [8, 8], [0, 8]], "LLLL"), (2, [[4, 4], [10, 4], [10, 10], [4, 10]], "LLLL"))
    assert (ids[:8, :4] == 1).all()
    assert (ids[4:10, 4:10] == 2).all()
    assert ids[11, 11] == 255
    assert (draw() == 255).all()


def test_two_control_points_and_the_next_corner_make_one_cubic_curve():
    outline = flatten(np.array([[0, 0], [0, 40], [40, 40], [40, 0]]), "LCCL")
    t = 0.5
    middle = (
        3 * (1 - t) * t**2 * np.array([40, 40]) + 3 * (1 - t) ** 2 * t * np.array([0, 40]) + t**3 * np.array([40, 0])
    )
    assert np.abs(outline - middle).sum(axis=1).min() < 1
    assert outline[-1].tolist() == [40, 0]
    assert outline[:, 1].max() == pytest.approx(30, abs=0.1)  # a curve of this kind reaches three quarters


def test_a_curve_may_end_where_the_outline_began_and_its_end_may_be_marked_as_part_of_it():
    assert np.allclose(flatten(np.array([[0, 0], [0, 40], [40, 40]]), "LCC")[-1], [0, 0])
    vertices = np.array([[0, 0], [0, 40], [40, 40], [40, 0], [20, -5]])
    assert np.array_equal(flatten(vertices, "LCCCL"), flatten(vertices, "LCCLL"))
    assert len(flatten(vertices[:2], "LC")) == 2  # no curve: a control point is missing


def test_a_curve_is_smooth_where_straight_lines_between_its_vertices_would_cut_corners():
    k = 0.5523 * 100  # control points of a circle of radius 100
    vertices = [
        [100, 0], [100, k], [k, 100], [0, 100], [-k, 100], [-100, k], [-100, 0], [-100, -k], [-k, -100], [0, -100],
        [k, -100], [100, -k],
    ]  # fmt: skip
    ids = draw((1, np.array(vertices) + 110, "LCCLCCLCCLCC"), height=220, width=220)
    y, x = np.mgrid[:220, :220] + 0.5
    circle = (x - 110) ** 2 + (y - 110) ** 2 < 100**2
    assert ((ids == 1) != circle).mean() < 0.01


points = st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 60)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(points, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_some_rows_and_columns_are_those_of_the_whole_drawing(outlines, random):
    polygons = [(i, outline, "".join(random.choice("LC") for _ in outline)) for i, outline in enumerate(outlines)]
    whole = draw(*polygons, height=40, width=50)
    rows, columns = np.arange(3, 40, 7), np.arange(1, 50, 4)
    some = draw(*polygons, rows=rows, columns=columns)
    assert np.array_equal(some, whole[rows[:, None], columns])


def test_an_inner_outline_of_the_other_direction_is_no_hole_for_another_polygon():
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0], [3, 3], [3, 7], [7, 7], [7, 3], [3, 3]]
    assert (draw((1, ring, "L" * 10))[4:6, 4:6] == 255).all()  # its own hole, by the winding number


# Run lengths -------------------------------------------------------------------------------------------------------

# Made with pycocotools 2.0: (mask, compressed counts).
COCO = [
    ([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]], "4111012"),
    ([[1, 1], [1, 1]], "04"),
    ([[0, 0, 0]], "3"),
]


@pytest.mark.parametrize(("mask", "counts"), COCO)
def test_compressed_run_lengths_are_those_of_coco(mask, counts):
    mask = np.array(mask)
    ids = draw_runs([RunLengths(1, counts, mask.shape)], *mask.shape)
    assert np.array_equal(ids == 1, mask == 1)


def compress(runs: list[int]) -> str:
    """COCO's compression, from its description."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 100_000), max_size=30))
def test_reading_compressed_counts_undoes_compression(runs):
    assert read_counts(compress(runs)).tolist() == runs


def test_later_regions_win_where_regions_overlap():
    first, second = RunLengths(3, [0, 4, 2], (2, 3)), RunLengths(7, [2, 4], (2, 3))
    assert draw_runs([first, second], 2, 3).tolist() == [[3, 7, 7], [3, 7, 7]]
    assert draw_runs([second, first], 2, 3).tolist() == [[3, 3, 7], [3, 3, 7]]


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([0, 4, 1], (2, 3), "count 5 pixels; expected 6"),
        ([0, 6], (3, 2), "is for 3 x 2 pixels"),
        ([0, -1, 7], (2, 3), "the negative number -1"),
        ("R", (2, 3), "end in the middle of a number"),
        ("\x7f", (2, 3), "which none can have"),
        ("o" * 20, (2, 3), "more than 60 bits"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(counts, size, message):
    with pytest.raises(ValueError, match=message):
        draw_runs([RunLengths(1, counts, size)], 2, 3)
