"""Label mapping: presets come to one another as the field merges them, and what has no counterpart is unknown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semseg_diffusers.data.label_mapping import SYNONYMS, WIDER, map_ids, match_classes, normalize
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet


CITYSCAPES, CAMVID, PAPER = (LabelSet.from_preset(name) for name in ("cityscapes", "camvid", "paper"))


def matched(names, target):
    """{name: name in the target or None} for the names that change."""
    found = {name: None if i is None else target.names[i] for name, i in zip(names, match_classes(names, target))}  # noqa: B905
    return {name: other for name, other in found.items() if other != name}


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_label_set_matches_itself(preset):
    labels = LabelSet.from_preset(preset)
    assert match_classes(labels.names, labels) == tuple(range(labels.num_classes))


def test_cityscapes_comes_to_camvid_as_its_classes_were_merged():
    assert matched(CITYSCAPES.names, CAMVID) == {
        "wall": "building",
        "traffic light": "traffic sign",
        "terrain": "vegetation",
        "truck": "car",
        "bus": "car",
        "train": "car",
        "motorcycle": "rider",
        "bicycle": "rider",
    }


def test_camvid_is_a_part_of_cityscapes():
    assert matched(CAMVID.names, CITYSCAPES) == {}


def test_road_is_the_background_of_the_paper_and_not_the_other_way():
    assert matched(CITYSCAPES.names, PAPER) == {"road": "background"}
    assert matched(CAMVID.names, PAPER) == {"road": "background"}
    assert matched(PAPER.names, CITYSCAPES) == {"background": None}
    assert match_classes(["LaneMkgsDriv"], PAPER) == (0,)


def test_the_32_classes_of_camvid_come_to_the_11():
    merged = {
        "sky": ["Sky"],
        "building": ["Archway", "Bridge", "Building", "Tunnel", "Wall"],
        "pole": ["Column_Pole", "TrafficCone"],
        "road": ["LaneMkgsDriv", "LaneMkgsNonDriv", "Road"],
        "sidewalk": ["ParkingBlock", "RoadShoulder", "Sidewalk"],
        "vegetation": ["Tree", "VegetationMisc"],
        "traffic sign": ["Misc_Text", "SignSymbol", "TrafficLight"],
        "fence": ["Fence"],
        "car": ["Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"],
        "person": ["Child", "Pedestrian"],
        "rider": ["Bicyclist", "MotorcycleScooter"],
    }
    for name, parts in merged.items():
        assert match_classes(parts, CAMVID) == (CAMVID.label2id[name],) * len(parts)
    assert match_classes(["Animal", "Void"], CAMVID) == (None, None)


def test_a_class_that_is_there_by_name_is_taken_before_any_other_name():
    labels = LabelSet(("car", "truck", "person", "pedestrian"), ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)))
    assert match_classes(["truck", "pedestrian", "human", "bus"], labels) == (1, 3, 2, 0)


def test_several_names_in_one_are_tried_in_their_order():
    assert match_classes(["tree, plant", "individual, person, someone", "lamp, stoplight"], CITYSCAPES) == (8, 11, 6)


def test_names_are_matched_in_any_spelling():
    assert match_classes(["Traffic Light ", "traffic-light", "TRAFFIC_LIGHT", "TrafficLight"], CITYSCAPES) == (6,) * 4


def test_the_tables_hold_normalized_names_and_no_name_twice():
    names = [name for group in SYNONYMS for name in group]
    assert len(names) == len(set(names))
    everything = [*names, *WIDER, *(name for wider in WIDER.values() for name in wider)]
    assert [name for name in everything if normalize(name) != name] == []


@given(st.lists(st.sampled_from([0, 1, 2, 3, 254, 255]), min_size=1), st.integers(200, 255))
def test_ids_are_mapped_one_by_one_and_the_rest_is_unknown(ids, ignore_index):
    mapping = (5, None, 5)
    wanted = [{0: 5, 2: 5}.get(value, ignore_index) for value in ids]
    for dtype in (np.uint8, np.int64):
        mapped = map_ids(np.array(ids, dtype), mapping, ignore_index)
        assert mapped.dtype == np.uint8
        assert mapped.tolist() == wanted
    assert map_ids(np.array([[-1]]), mapping, ignore_index).tolist() == [[ignore_index]]
