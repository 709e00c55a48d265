"""Label mapping: presets come to one another as the field merges them, and what has no counterpart is unknown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semseg_diffusers.data.label_mapping import (
    SUPERCLASSES,
    SYNONYMS,
    LabelMapping,
    kind_of,
    map_ids,
    match_classes,
    normalize,
)
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.pipelines.mask_inputs import resize_ids


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
    everything = [*names, *SUPERCLASSES, *(name for group in SUPERCLASSES.values() for name in group)]
    assert [name for name in everything if normalize(name) != name] == []


@given(st.lists(st.sampled_from([0, 1, 2, 3, 254, 255]), min_size=1), st.integers(200, 255))
def test_ids_are_mapped_one_by_one_and_the_rest_is_unknown(ids, ignore_index):
    mapping = (5, None, 5)
    expected = [{0: 5, 2: 5}.get(value, ignore_index) for value in ids]
    for dtype in (np.uint8, np.int64):
        mapped = map_ids(np.array(ids, dtype), mapping, ignore_index)
        assert mapped.dtype == np.uint8
        assert mapped.tolist() == expected
    assert map_ids(np.array([[-1]]), mapping, ignore_index).tolist() == [[ignore_index]]


# The mapping of masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [CAMVID, PAPER])
def test_what_a_smaller_set_tells_apart_comes_through_the_larger_one_unharmed(other):
    """Every class goes to Cityscapes' and back; of the paper's all but the background, which has no counterpart."""
    there, back = LabelMapping(other, CITYSCAPES), LabelMapping(CITYSCAPES, other)
    ids = np.arange(other.num_classes)
    expected = [255 if name == "background" else i for i, name in enumerate(other.names)]
    assert back.map(there.map(ids)).tolist() == expected


def test_the_background_of_the_paper_is_road_and_void_so_it_becomes_unknown_and_never_road():
    to_paper, to_cityscapes = LabelMapping(CITYSCAPES, PAPER), LabelMapping(PAPER, CITYSCAPES)
    ids = np.array([[CITYSCAPES.label2id["road"], CITYSCAPES.label2id["car"], 255]])
    in_paper = to_paper.map(ids)
    assert in_paper.tolist() == [[0, 13, 255]]
    assert to_cityscapes.map(in_paper).tolist() == [[255, 13, 255]]
    assert to_cityscapes.names[0] == ("background", None)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 8), (5, 13), (40, 60), (61, 7)]))
def test_mapping_and_resizing_may_change_places_for_ids_are_never_mixed(seed, size):
    ids = np.random.default_rng(seed).integers(0, 20, (40, 60)).astype(np.uint8)
    ids[ids == 19] = 255
    mapping = LabelMapping(CITYSCAPES, CAMVID)
    assert np.array_equal(resize_ids(mapping.map(ids), *size), mapping.map(resize_ids(ids, *size)))


def test_pixels_without_counterpart_are_counted_by_class_and_unknown_ones_not():
    labels = LabelSet(("car", "lion", "zebra", "emu"), ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)), ignore_index=9)
    mapping = LabelMapping(labels, CAMVID)
    pixels = mapping.count(np.array([[0, 0, 1, 9], [2, 2, 2, 9]]))
    assert pixels.tolist() == [2, 1, 3, 0]
    assert mapping.describe(pixels) == (
        "4 of 6 labelled pixels (66.7 %) became unknown, having no counterpart: zebra 50 %, lion 16.7 %"
    )
    assert mapping.describe(np.array([2000, 0, 0, 0])) == "all 2,000 labelled pixels have a counterpart"
    assert mapping.describe(np.zeros(4, np.int64)) == "all 0 labelled pixels have a counterpart"
    assert mapping.map(np.array([0, 1, 9])).tolist() == [8, 255, 255]


def test_sets_with_nothing_in_common_are_refused():
    zoo = LabelSet(("lion", "zebra"), ((1, 0, 0), (2, 0, 0)))
    for source, target in ((zoo, CAMVID), (CAMVID, zoo)):
        with pytest.raises(ValueError, match="have nothing in common: none of .* has a counterpart among"):
            LabelMapping(source, target)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("polegroup", "pole"),
        ("signsymbol", "pole"),
        ("columnpole", "pole"),
        ("roadmarking", "road"),
        ("lanemkgsdriv", "road"),
        ("lanemkgsnondriv", "sidewalk"),
        ("suvpickuptruck", "car"),
        ("motorcyclescooter", "motorcycle"),
        ("grassland", None),
    ],
)
def test_names_written_without_spaces_have_the_kind_of_their_synonyms(name, kind):
    assert kind_of(name) == kind
