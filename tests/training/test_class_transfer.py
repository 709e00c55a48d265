"""What a network knows of classes is carried over to other classes: by name, by kind, by a mapping."""

import json
from functools import partial

import pytest
import torch
from helpers.tiny_networks import NETWORKS, inputs, tiny_mask_guided, tiny_sdm

from semseg_diffusers.data.label_mapping import read_mapping
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.training.class_transfer import carry_over, change_classes, class_channels, source_classes


CAMVID = LabelSet.from_preset("camvid")
NAMES = ("road", "car", "person", "sky", "tree")
REORDERED = [3, 0, 4, 2, 1]  # the new id of each class
FORMS = {
    **{name: make for name, make in NETWORKS.items() if name != "id channel"},  # it has no weights of single classes
    "pyramid": partial(tiny_mask_guided, mask_pyramid=True),
    "edges": partial(tiny_sdm, instance_edges=True),
}


def of(*ids, labels=CAMVID) -> list[str]:
    return [labels.names[i] for i in ids]


def test_classes_start_from_those_of_their_name_then_from_their_parts_then_from_their_kind():
    own = LabelSet.from_names(["Street", "bus", "two wheeler", "vehicle", "gizmo"])
    known = LabelSet.from_names(["sky", "road", "car", "truck", "person"])
    found = source_classes(own, known)
    assert [of(*ids, labels=known) for ids in found] == [["road"], ["car"], [], ["car", "truck"], []]
    parts = source_classes(LabelSet.from_names(["car"]), LabelSet.from_names(["sky", "truck", "bus"]))
    assert parts == ((1, 2),)
    categories = source_classes(LabelSet.from_names(["flat", "nature"]), CAMVID)
    assert [of(*ids) for ids in categories] == [["road", "sidewalk"], ["vegetation"]]


def test_kinds_of_the_label_set_and_a_mapping_say_what_names_do_not():
    colors = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    own = LabelSet(("tarmac", "mover", "structure"), colors, kinds=("road", "object", None))
    assert [of(*ids) for ids in source_classes(own, CAMVID)] == [["road"], ["car", "person", "rider"], []]
    mapping = {"structure": ["Building", 2], "mover": ["car"]}
    assert [of(*ids) for ids in source_classes(own, CAMVID, mapping)] == [["road"], ["car"], ["building", "pole"]]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"flat": ["lawn"]}, "the mapping names 'lawn', and the network's classes are sky, building"),
        ({"flat": [11]}, "the mapping names 11, and the network's classes are"),
        ({"lawn": ["road"]}, "the mapping names 'lawn', and the classes are flat"),
    ],
)
def test_a_mapping_of_unknown_classes_is_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        source_classes(LabelSet.from_names(["flat"]), CAMVID, mapping)


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_a_network_for_reordered_classes_predicts_the_same(name):
    labels = LabelSet.from_names(NAMES)
    unet = FORMS[name](**labels.to_config())
    other = LabelSet.from_names([NAMES[REORDERED.index(i)] for i in range(5)])
    changed = change_classes(unet, other)
    sample, timestep, mask = inputs()
    expected = unet(sample, timestep, mask=mask).sample
    moved = torch.tensor(REORDERED)[mask]
    torch.testing.assert_close(changed(sample, timestep, mask=moved).sample, expected)
    assert LabelSet.from_config(changed.config).names == other.names
    assert not torch.allclose(changed(sample, timestep, mask=mask).sample, expected)


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_a_network_for_fewer_classes_predicts_the_same_of_those_it_keeps(name):
    unet = FORMS[name](**LabelSet.from_names(NAMES).to_config())
    changed = change_classes(unet, LabelSet.from_names(["sky", "road"]))
    sample, timestep, mask = inputs()
    mask = torch.where(mask > 2, 3, 0)  # sky and road
    torch.testing.assert_close(
        changed(sample, timestep, mask=torch.where(mask == 3, 0, 1)).sample, unet(sample, timestep, mask=mask).sample
    )


def test_a_class_that_corresponds_to_none_starts_from_the_mean_of_all():
    unet = tiny_mask_guided(**LabelSet.from_names(NAMES).to_config())
    changed = change_classes(unet, LabelSet.from_names(["gizmo", "road"]))
    before, after = (network.mask_branch.conv_1.weight for network in (unet, changed))
    torch.testing.assert_close(after[:, 0], before.mean(dim=1))
    torch.testing.assert_close(after[:, 1], before[:, 0])


def test_rarities_of_label_diffusion_follow_their_classes():
    diffused = {"label_diffusion": [1.0, 2.0, 4.0, 8.0, 16.0], "num_train_timesteps": 10}
    unet = tiny_mask_guided(**LabelSet.from_names(NAMES).to_config(), **diffused)
    changed = change_classes(unet, LabelSet.from_names(["vehicle", "sky", "gizmo"]))
    assert changed.config.label_diffusion == [2.0, 8.0, 1.0]


def test_weights_of_another_shape_are_left_out():
    unet = tiny_mask_guided()
    weights = {name: weight[:4] for name, weight in unet.state_dict().items()}
    assert list(class_channels(unet)) == ["mask_branch.conv_1.weight"]
    assert carry_over(unet, weights, 5, ((0,),) * 5) == {}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "id channel"])
@torch.no_grad()
def test_loading_with_another_number_of_classes_initialises_all_weights(name, tmp_path):
    unet = NETWORKS[name](**LabelSet.from_names(NAMES).to_config())
    unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path, num_classes=3, ignore_mismatched_sizes=True)
    assert all(weight.isfinite().all() for weight in loaded.state_dict().values())
    assert all(0 < loaded.state_dict()[weight].std() < 1 for weight in class_channels(loaded))
    assert (loaded.config.num_classes, loaded.config.id2label) == (3, None)
    kept = set(unet.state_dict()) - set(class_channels(unet))
    assert all(torch.equal(loaded.state_dict()[weight], unet.state_dict()[weight]) for weight in kept)
    sample, timestep, mask = inputs()
    assert loaded(sample, timestep, mask=mask.clamp(max=2)).sample.isfinite().all()


def test_mapping_files_hold_names_and_ids(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"vehicle": ["car", "truck", 26], "flat": "road"}))
    (tmp_path / "map.yaml").write_text("vehicle: [car, truck, 26]\nflat: road\n")
    expected = {"vehicle": ["car", "truck", 26], "flat": ["road"]}
    assert read_mapping(tmp_path / "map.json") == read_mapping(tmp_path / "map.yaml") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"holds \[1\]; expected {"),
        ("{", 'expected {"class": '),
        ('{"a": [1.5]}', "'a' has 1.5; expected"),
        ('{"a": [true]}', "'a' has True; expected"),
        ('{"a": ["car"], "b": ["car"]}', "has 'car' twice; expected it in one class"),
        ('{"a": ["car"], "a": ["bus"]}', "'a' occurs twice"),
    ],
)
def test_mapping_files_of_other_content_are_refused(tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_mapping(tmp_path / "map.json")
