"""Objects, shapes and edits of masks: only the intended pixels change, and gaps are filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing import shapes as drawing
from semseg_diffusers.masks.editing.objects import Street, object_at, objects_of
from semseg_diffusers.masks.editing.operations import (
    draw,
    fill,
    move,
    paste,
    region_at,
    remove,
    standing_in_front,
)
from semseg_diffusers.toy.scenes import draw_scene


LABELS = LabelSet.from_preset("bdd100k")
STREET = Street.of(LABELS)
ID = {**LABELS.label2id, "unknown": 255}
SMALL_MASKS = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(3, 12), st.integers(3, 12)),
    elements=st.sampled_from([0, 1, 2, 11, 12, 13, 18, 255]),
)


def street_scene() -> np.ndarray:
    """12 x 20: sky over building over road, sidewalk on the right; two cars with a gap, a pole in front, a person."""
    ids = np.full((12, 20), ID["sky"], dtype=np.uint8)
    ids[2:6] = ID["building"]
    ids[6:] = ID["road"]
    ids[6:, 16:] = ID["sidewalk"]
    ids[5:8, 2:6] = ID["car"]
    ids[5:8, 8:12] = ID["car"]
    ids[1:10, 13] = ID["pole"]
    ids[4:8, 17] = ID["person"]
    return ids


def only(entries):
    (entry,) = entries
    return entry


def named(ids, name, number=0):
    return objects_of(ids, STREET, [ID[name]])[number]


# Objects -----------------------------------------------------------------------------------------------------------


def test_objects_have_position_size_and_contact_row():
    left, right = objects_of(street_scene(), STREET, [ID["car"]])
    assert left.box == (2, 5, 5, 7)
    assert right.box == (8, 5, 11, 7)
    assert (left.bottom, left.height, left.width, left.area) == (7, 3, 4, 12)
    rows, columns = left.feet()
    assert set(rows) == {7}
    assert list(columns) == [2, 3, 4, 5]


def test_a_rider_and_the_bicycle_are_one_object():
    ids = np.zeros((10, 12), dtype=np.uint8)
    ids[2:5, 3] = ID["rider"]
    ids[5:8, 2:5] = ID["bicycle"]
    ids[5:8, 9:11] = ID["bicycle"]  # parked
    rider = only(objects_of(ids, STREET, [ID["rider"]]))
    assert rider.box == (2, 2, 4, 7)
    assert set(rider.ids[rider.shape]) == {ID["rider"], ID["bicycle"]}
    assert only(objects_of(ids, STREET, [ID["bicycle"]])).box == (9, 5, 10, 7)
    assert object_at(ids, STREET, 6, 2).box == rider.box


def test_things_are_found_under_the_names_of_other_label_sets():
    camvid32 = LabelSet.from_colormap({"Road": (1, 0, 0), "Pedestrian": (2, 0, 0), "SUVPickupTruck": (3, 0, 0)})
    street = Street.of(camvid32)
    assert {camvid32.names[i] for i in street.things} == {"Pedestrian", "SUVPickupTruck"}
    assert street.ground == {0: "road"}
    paper = Street.of(LabelSet.from_preset("paper"))
    assert paper.ground == {0: "road", 1: "sidewalk"}  # background is road there


@given(SMALL_MASKS)
@settings(max_examples=60, deadline=None)
def test_objects_partition_a_mask(ids):
    covered = np.zeros(ids.shape, dtype=int)
    for entry in objects_of(ids, STREET, range(LABELS.num_classes)):
        covered += entry.pixels(ids.shape)
    assert (covered == (ids != 255)).all()


@given(SMALL_MASKS)
@settings(max_examples=60, deadline=None)
def test_pasting_an_object_back_changes_nothing(ids):
    for entry in objects_of(ids, STREET):
        assert (paste(ids, entry) == ids).all()
        twice = entry.flipped().flipped()
        assert (twice.ids == entry.ids).all()
        assert (twice.shape == entry.shape).all()
        assert entry.scaled(1.0) is entry


@given(SMALL_MASKS, st.floats(0.4, 3.0))
@settings(max_examples=100, deadline=None)
def test_scaling_mixes_no_ids_and_keeps_the_feet(ids, factor):
    for entry in objects_of(ids, STREET):
        try:
            scaled = entry.scaled(factor)
        except ValueError as err:
            assert "no pixels left" in str(err)  # noqa: PT017
            continue
        assert set(scaled.ids[scaled.shape]) <= set(entry.ids[entry.shape])
        assert scaled.bottom == entry.bottom
        assert scaled.shape.any(axis=0)[[0, -1]].all()
        assert scaled.shape.any(axis=1)[[0, -1]].all()


def test_scaling_multiplies_the_sides():
    car = named(street_scene(), "car")
    assert car.scaled(2).shape.shape == (6, 8)
    assert car.scaled(2).shape.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ids: object_at(ids, STREET, 12, 0), "row 12, column 0 is outside the mask, which is 12 x 20"),
        (lambda ids: object_at(np.full_like(ids, 255), STREET, 0, 0), "is unknown"),
        (lambda ids: named(ids, "car").scaled(0), "expected a scale factor above 0 and below 1000; got 0"),
        (lambda ids: named(ids, "car").scaled(1500), "expected a scale factor above 0 and below 1000; got 1500"),
        (lambda ids: named(np.where(np.eye(12, 20), ID["person"], ids), "person").scaled(0.1), "no pixels left"),
        (lambda ids: paste(ids, named(ids, "car").at(7, 40)), "no pixel of the object would be visible"),
        (lambda ids: region_at(ids, 0, -1), "outside the mask"),
        (lambda ids: draw(ids, drawing.rectangle(ids.shape, (30, 0), (40, 2)), 3), "no pixel inside the mask"),
        (lambda _: STREET.class_id("cow"), "there is no class 'cow'; there are road, sidewalk"),
    ],
)
def test_wrong_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(street_scene())


# Changes -----------------------------------------------------------------------------------------------------------


def test_a_removed_car_between_cars_becomes_road_and_not_car():
    ids = street_scene()
    ids[5:8, 6:8] = ID["fence"]  # something upright between them
    result = remove(ids, named(ids, "fence"), STREET)
    assert set(result[5, 6:8]) == {ID["building"]}
    assert set(result[6:8, 6:8].ravel()) == {ID["road"]}
    changed = result != ids
    assert (changed == (ids == ID["fence"])).all()


def test_unknown_pixels_do_not_spread_and_a_gap_without_surroundings_stays_unknown():
    ids = street_scene()
    ids[:, 7] = 255
    result = remove(ids, named(ids, "car", 1), STREET)
    assert not (result[ids == ID["car"]] == 255).any()
    nothing = np.full((4, 4), ID["car"], dtype=np.uint8)
    nothing[0] = 255
    assert (remove(nothing, named(nothing, "car"), STREET) == 255).all()


@given(SMALL_MASKS, arrays.arrays(bool, (12, 12)))
@settings(max_examples=60, deadline=None)
def test_filling_changes_only_the_gap_and_adds_no_class(ids, gap):
    gap = gap[: ids.shape[0], : ids.shape[1]]
    before = ids.copy()
    result = fill(ids, gap, STREET)
    assert (ids == before).all()
    assert (result[~gap] == ids[~gap]).all()
    assert set(result[gap]) <= set(ids[~gap]) | {255}


def test_nearer_objects_occlude_pasted_ones():
    ids = street_scene()
    car = named(ids, "car").at(bottom=8, left=11)  # behind the pole, whose foot is in row 9
    front = standing_in_front(ids, STREET, car.bottom)
    assert (front == (ids == ID["pole"])).all()
    result = paste(ids, car, front)
    assert (result[6:9, 11:15] == [[ID["car"], ID["car"], ID["pole"], ID["car"]]] * 3).all()
    nearer = car.at(bottom=10, left=11)
    assert (paste(ids, nearer, standing_in_front(ids, STREET, nearer.bottom))[8:11, 13] == ID["car"]).all()


def test_a_moved_car_leaves_road_behind():
    ids = street_scene()
    car = named(ids, "car")
    result = move(ids, car, car.at(car.bottom + 2, car.left - 2), STREET)
    assert (result[7:10, 0:4] == ID["car"]).all()
    assert (result[6:8, 4:6] == ID["road"]).all()
    assert (result == ID["car"]).sum() == (ids == ID["car"]).sum()


def test_all_objects_of_toy_scenes_can_be_removed():
    for seed in range(4):
        _, ids, _ = draw_scene(seed, (48, 64))
        result = fill(ids, np.isin(ids, list(STREET.things)), STREET)
        assert not np.isin(result, list(STREET.things)).any()


def test_a_region_is_the_connected_pixels_of_one_class():
    ids = street_scene()
    assert region_at(ids, 5, 3).sum() == 12
    assert (region_at(np.full((3, 3), 255, dtype=np.uint8), 0, 0)).all()


# Drawing -----------------------------------------------------------------------------------------------------------


def inside_polygon(x, y, points):
    """Independent: the winding of the angles towards the corners; None on the edge."""
    angle = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        ax, ay, bx, by = x0 - x, y0 - y, x1 - x, y1 - y
        cross, dot = ax * by - ay * bx, ax * bx + ay * by
        if abs(cross) < 1e-9 and dot <= 0:
            return None
        angle += np.arctan2(cross, dot)
    return abs(angle) > np.pi


@given(st.lists(st.tuples(st.integers(-3, 14), st.integers(-3, 14)), min_size=3, max_size=3))
@settings(max_examples=80, deadline=None)
def test_polygon_contains_the_pixels_inside_and_on_its_edge(points):
    shape = drawing.polygon((12, 11), points)
    for y in range(12):
        for x in range(11):
            inside = inside_polygon(x, y, points)
            assert shape[y, x] == (inside is None or inside)


@given(st.lists(st.tuples(st.floats(-2, 12), st.floats(-2, 12)), min_size=1, max_size=4), st.floats(0.3, 5).map(float))
@settings(max_examples=60, deadline=None)
def test_stroke_contains_the_pixels_near_its_line(points, radius):
    shape = drawing.stroke((10, 10), points, radius)
    line = np.array([*points, points[-1]])
    steps = np.linspace(0, 1, 400)[:, None]
    dense = np.concatenate([a + steps * (b - a) for a, b in zip(line[:-1], line[1:], strict=True)])
    y, x = np.mgrid[:10, :10]
    distance = np.hypot(x[..., None] - dense[:, 0], y[..., None] - dense[:, 1]).min(axis=-1)
    assert (shape[distance < radius - 0.05]).all()
    assert not (shape[distance > radius + 0.05]).any()


def test_rectangle_and_ellipse_contain_the_right_pixels():
    assert drawing.rectangle((5, 6), (4, 3), (2, 1)).sum() == 9
    circle = drawing.ellipse((9, 9), (4, 4), (2, 3))
    assert circle[:, 4].sum() == 7
    assert circle[4].sum() == 5
    assert not circle[1, 3]
    assert (draw(np.zeros((9, 9), dtype=np.uint8), circle, 7) == 7 * circle).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drawing.polygon((4, 4), [(0, 0), (1, 1)]), "at least 3 finite point.* of a polygon"),
        (lambda: drawing.polygon((4, 4), [(0, 0), (1, 1), "a"]), "expected points .* of a polygon"),
        (lambda: drawing.stroke((4, 4), [(0, 0)], 0), "a brush radius above 0"),
        (lambda: drawing.stroke((4, 4), [], 1), "at least 1 finite point.* of a stroke"),
        (lambda: drawing.ellipse((4, 4), (0, 0), (1, 0)), "two radii of an ellipse above 0"),
        (lambda: drawing.rectangle((4, 4), (0, float("nan")), (1, 1)), "finite"),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
