"""Sensible placement: 1,000 placements in toy streets, judged by an independent implementation of the rules."""

from collections import deque

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.objects import Street, objects_of
from semseg_diffusers.masks.editing.operations import Scene
from semseg_diffusers.masks.editing.placement import PlacementRules, check_placeable, find_place
from semseg_diffusers.masks.editing.scene_prior import ScenePrior, fit_height_models, fit_scene_prior, is_whole
from semseg_diffusers.pipelines.mask_inputs import resize_ids
from semseg_diffusers.toy.scenes import draw_scene


LABELS = LabelSet.from_preset("bdd100k")
STREET = Street.of(LABELS)
ID = LABELS.label2id
PLACED = ("person", "rider", "car", "truck", "bus", "bicycle", "motorcycle")
MAY_STAND_ON = {name: ("road", "sidewalk") for name in PLACED} | {name: ("road",) for name in ("car", "truck", "bus")}
METRES = {"person": 1.7, "rider": 1.75, "car": 1.5, "truck": 3.2, "bus": 3.1, "bicycle": 1.1, "motorcycle": 1.2}
UPRIGHT = (*PLACED, "pole", "traffic light", "traffic sign", "fence", "wall", "train")


@pytest.fixture(scope="module")
def masks():
    return [(f"scene{seed}", draw_scene(seed, (96, 144))[1]) for seed in range(60)]


@pytest.fixture(scope="module")
def prior(masks) -> ScenePrior:
    return fit_scene_prior(masks, STREET)


def ids_of(names, labels: LabelSet) -> list[int]:
    return [labels.label2id[name] for name in names if name in labels.label2id]


def upright_regions(ids: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Numbers from 1 for the connected pixels of each upright class, found by walking from neighbour to neighbour."""
    regions, count = np.zeros(ids.shape, dtype=int), 0
    for row, column in np.argwhere(np.isin(ids, ids_of(UPRIGHT, labels))).tolist():
        if regions[row, column]:
            continue
        count += 1
        regions[row, column] = count
        queue = deque([(row, column)])
        while queue:
            y, x = queue.popleft()
            for j in range(max(0, y - 1), min(ids.shape[0], y + 2)):
                for i in range(max(0, x - 1), min(ids.shape[1], x + 2)):
                    if not regions[j, i] and ids[j, i] == ids[row, column]:
                        regions[j, i] = count
                        queue.append((j, i))
    return regions


def wrong_with(before, after, regions, placement, person_height, labels) -> list[str]:
    """Every rule of the place that does not hold; what the code under test measured is not used."""
    name = labels.names[placement.source.entry.class_id]
    entry, faults = placement.entry, []
    height, width = before.shape
    rows, columns = np.nonzero(entry.shape)
    rows, columns = rows + entry.top, columns + entry.left
    bottom = rows.max()
    if bottom >= height:
        faults.append("below the frame")
    # feet: all pixels of the lowest row, and what is right below them
    ground = ids_of(MAY_STAND_ON[name], labels)
    feet = columns[rows == bottom]
    if feet.min() < 0 or feet.max() >= width or not np.isin(before[bottom, feet], ground).all():
        faults.append("feet not on ground")
    elif bottom + 1 < height and not np.isin(before[bottom + 1, feet], ground).all():
        faults.append("nothing under the feet")
    elif (before[bottom, feet] == labels.label2id["sky"]).any():
        faults.append("in the sky")
    inside = (rows >= 0) & (columns >= 0) & (columns < width)
    if inside.mean() < 0.8:
        faults.append("mostly outside the frame")
    changed = before != after
    others = changed.copy()
    others[rows[inside], columns[inside]] = False
    if others.any() or not changed.any():
        faults.append("changed other pixels")
    drawn = after[rows[inside], columns[inside]] == entry.ids[entry.shape][inside]
    if drawn.mean() < 0.6:
        faults.append("hidden")
    metres = 1.7 * entry.height / person_height(bottom)
    if not 0.6 * METRES[name] <= metres <= 1.6 * METRES[name]:  # cameras of the scenes differ in height and pitch
        faults.append(f"{metres:.2f} metres tall")
    if (np.bincount(regions[changed], minlength=regions.max() + 1)[1:] > 0.3 * np.bincount(regions.ravel())[1:]).any():
        faults.append("covers another thing")
    return faults


def misplaced(masks, prior, names, count) -> tuple[int, list]:
    """Put things into masks one at a time until there are `count`; returns how many there are, and all faults.

    The size rule here: how many metres a pixel is at a row, from a line through the persons (1.7 m each).
    """
    labels = prior.street.labels
    persons = [(d.entry.bottom, d.entry.height) for d in prior.sources[labels.label2id["person"]]]
    slope, offset = np.polyfit(*np.array(persons, dtype=float).T, 1)
    generator = np.random.default_rng(0)
    placed, faults, regions = 0, [], {}
    for number in range(3 * count):
        name, ids = masks[int(generator.integers(len(masks)))]
        scene = Scene(ids, prior.street)
        class_id = labels.label2id[names[number % len(names)]]
        placement, _ = find_place(scene, prior, class_id, generator)
        if placement is None:
            continue
        placed += 1
        scene.put(placement.entry, placement.seen)
        if name not in regions:
            regions[name] = upright_regions(ids, labels)
        person_height = np.poly1d([slope, offset])
        wrong = wrong_with(ids, scene.ids, regions[name], placement, person_height, labels)
        if wrong:
            faults.append((name, labels.names[class_id], wrong))
        if placed == count:
            break
    return placed, faults


@pytest.mark.slow
def test_no_object_is_misplaced_in_1000_placements(masks, prior):
    assert misplaced(masks, prior, PLACED, 1000) == (1000, [])


def test_no_object_is_misplaced_on_camvid(data_root):
    labels = LabelSet.from_preset("camvid")
    masks = []
    for path in sorted((data_root / "camvid" / "labels" / "train").glob("*.png"))[::5]:
        ids = np.asarray(Image.open(path))
        masks.append((path.stem, resize_ids(np.where(ids == 11, 255, ids).astype(np.uint8), 128, 128)))
    prior = fit_scene_prior(masks, Street.of(labels))
    assert misplaced(masks, prior, ("person", "rider", "car"), 200) == (200, [])


def test_the_seed_determines_the_placements(masks, prior):
    def run(seed):
        generator = np.random.default_rng(seed)
        scene = Scene(masks[3][1], STREET)
        for name in ("person", "car", "rider", "person"):
            placement, _ = find_place(scene, prior, ID[name], generator)
            if placement:
                scene.put(placement.entry, placement.seen)
        return scene.ids

    assert (run(1) == run(1)).all()
    assert (run(1) != run(2)).any()


def test_nearer_objects_occlude_those_placed_later():
    ids = np.full((20, 20), ID["road"], dtype=np.uint8)
    ids[12:16, 4:8] = ID["car"]
    car = objects_of(ids, STREET)[0]
    scene = Scene(np.full_like(ids, ID["road"]), STREET)
    scene.put(car, scene.visible(car))
    behind = car.at(bottom=14, left=6)
    seen = scene.visible(behind)
    assert seen.sum() == 16 - 2 * 3  # the three lower rows of two columns are hidden
    assert scene.covered(seen) == pytest.approx(0)
    in_front = car.at(bottom=17, left=6)
    assert scene.covered(scene.visible(in_front)) == pytest.approx(4 / 16)


def test_stricter_rules_hold(masks, prior):
    generator = np.random.default_rng(5)
    rules = PlacementRules(max_covered=0.0, min_inside=1.0, min_seen=1.0, max_scale=1.0)
    found = 0
    for name, ids in masks:
        scene = Scene(ids, STREET)
        placement, _ = find_place(scene, prior, ID["person"], generator, rules)
        if placement is None:
            continue
        found += 1
        assert placement.seen.sum() == placement.entry.area, name
        assert not np.isin(ids[placement.seen], ids_of(UPRIGHT, LABELS)).any()
        assert placement.scale <= 1.01 + 1 / placement.source.entry.height
    assert found > 10


def test_height_model_is_robust_to_outliers():
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.5, 0.95, 200)
    heights = 1.1 * (rows - 0.45) * rng.uniform(0.9, 1.1, 200)
    heights[:30] = 0.6  # a sixth of them nonsense
    person, car = ID["person"], ID["car"]
    height_models = fit_height_models(
        {person: (rows, heights), car: (rows[100:110], 0.9 * (rows[100:110] - 0.45))}, STREET
    )
    assert height_models[person].slope == pytest.approx(1.1, rel=0.1)
    assert height_models[person].horizon == pytest.approx(0.45, abs=0.03)
    assert height_models[car].slope == pytest.approx(0.9, rel=0.1)  # few: the horizon of the persons
    assert "with the horizon of person" in height_models[car].source
    truck = height_models[ID["truck"]]  # none at all: as persons, by metres
    assert truck.slope / height_models[person].slope == pytest.approx(3.2 / 1.7)
    assert "too few" in truck.source
    assert truck.height(0.4) == 0
    assert fit_height_models({person: (rows[:5], heights[:5])}, STREET) == {}
    assert fit_height_models({person: (rows, 0.5 - rows / 4)}, STREET) == {}  # shrinks downwards: no street


@pytest.mark.parametrize(
    ("name", "box", "whole"),
    [
        ("person", (4, 4, 12, 7), True),
        ("person", (0, 4, 12, 7), False),  # at the frame's edge
        ("person", (4, 4, 9, 17), False),  # several side by side
        ("person", (9, 4, 12, 5), False),  # too small
        ("car", (6, 3, 13, 15), True),
        ("car", (4, 3, 16, 6), False),  # a slice of one
    ],
)
def test_complete_objects_are_separated_from_pieces(name, box, whole):
    ids = np.full((20, 20), ID["road"], dtype=np.uint8)
    ids[box[0] : box[2] + 1, box[1] : box[3] + 1] = ID[name]
    assert is_whole(objects_of(ids, STREET)[0], ids, STREET) == whole


def test_a_car_behind_a_pole_is_not_complete():
    ids = np.full((20, 30), ID["road"], dtype=np.uint8)
    ids[6:14, 3:18] = ID["car"]
    ids[2:12, 9:11] = ID["pole"]
    assert not is_whole(objects_of(ids, STREET)[0], ids, STREET)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sky", r"'sky' cannot be placed: only objects that stand on the ground can \(person, rider, car"),
        ("bus", "'bus' never occurs in the masks"),
        ("truck", "'truck' cannot be placed: no class has 20 complete objects on their ground"),
    ],
)
def test_classes_that_cannot_be_placed_are_refused_with_the_reason(name, message):
    ids = np.full((20, 20), ID["road"], dtype=np.uint8)
    ids[:4, :4] = ID["truck"]
    prior = fit_scene_prior([("a", ids)], STREET)
    with pytest.raises(ValueError, match=message):
        check_placeable(prior, ID[name])
    with pytest.raises(ValueError, match=message):
        find_place(Scene(ids, STREET), prior, ID[name], np.random.default_rng(0))


def test_a_class_without_complete_objects_is_refused(masks):
    corner = np.full((20, 20), ID["road"], dtype=np.uint8)
    corner[:4, :4] = ID["bus"]
    without = [(name, np.where(ids == ID["bus"], np.uint8(ID["building"]), ids)) for name, ids in masks]
    prior = fit_scene_prior([*without, ("corner", corner)], STREET)
    with pytest.raises(ValueError, match="none of the 1 objects of 'bus' is complete, alone, on its ground"):
        check_placeable(prior, ID["bus"])


OWN = {"flat": "road", "structure": None, "mover": "vehicle", "walker": "person", "rest": None}
AS_OWN = {"road": 0, "car": 2, "truck": 2, "bus": 2, "person": 3}


def own_labels(kinds=None) -> LabelSet:
    colors = tuple((i, i, i) for i in range(1, 1 + len(OWN)))
    return LabelSet(tuple(OWN), colors, kinds=tuple(OWN.values()) if kinds is None else kinds)


def own_masks(masks) -> list[tuple[str, np.ndarray]]:
    table = np.full(256, 4, dtype=np.uint8)
    for name, class_id in AS_OWN.items():
        table[ID[name]] = class_id
    return [(name, table[ids]) for name, ids in masks]


def test_classes_of_any_name_are_placed_by_the_kinds_of_their_label_set(masks):
    labels, scenes = own_labels(), own_masks(masks)
    prior = fit_scene_prior(scenes, Street.of(labels))
    generator = np.random.default_rng(0)
    for name in ("mover", "walker"):
        scene = Scene(scenes[0][1], prior.street)
        placements = [find_place(scene, prior, labels.label2id[name], generator)[0] for _ in range(20)]
        found = [placement for placement in placements if placement is not None]
        assert len(found) >= 10
        assert {placement.ground for placement in found} == {"road"}


def test_without_kinds_the_message_says_how_to_give_one(masks):
    labels, scenes = own_labels(kinds=()), own_masks(masks)
    prior = fit_scene_prior(scenes, Street.of(labels))
    with pytest.raises(ValueError, match=r"'mover' cannot be placed.*\"id2kind\": {\"2\": \"car\"}.*vehicle, object"):
        check_placeable(prior, 2)
    no_ground = fit_scene_prior(scenes, Street.of(own_labels(kinds=(None, None, "vehicle", None, None))))
    with pytest.raises(ValueError, match=r"'mover' needs road to stand on.*\"id2kind\": {\"0\": \"road\"}"):
        check_placeable(no_ground, 2)


def test_a_kind_overrules_the_name_of_a_class():
    colors = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    names = ("car", "road", "sky")
    assert set(Street.of(LabelSet(names, colors)).things) == {0}
    street = Street.of(LabelSet(names, colors, kinds=("none", "sidewalk", None)))
    assert (street.things, street.ground) == ({}, {1: "sidewalk"})


def test_synonyms_have_the_kind_of_their_class():
    labels = LabelSet.from_names(["street", "automobile", "lorry", "motor cyclist", "vehicle"])
    kinds = Street.of(labels).kinds
    assert kinds == {0: "road", 1: "car", 2: "truck", 3: "rider", 4: "vehicle"}


def test_a_label_set_without_ground_is_refused():
    labels = LabelSet.from_colormap({"sky": (1, 1, 1), "person": (2, 2, 2)})
    prior = fit_scene_prior([("a", np.ones((8, 8), dtype=np.uint8))], Street.of(labels))
    with pytest.raises(ValueError, match="'person' needs sidewalk or road to stand on"):
        check_placeable(prior, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_covered": 1.5}, "max_covered=1.5; expected a share"), ({"max_scale": 0.5}, "max_scale=0.5; expected")],
)
def test_rules_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PlacementRules(**settings)
