"""What training gives the network beside the mask, what it takes from the mask, and what a run may start from."""

import json
import logging
import shutil

import pytest
import torch
from accelerate import PartialState
from diffusers import UNet2DModel
from helpers.training_runs import losses, parse_training, tiny_settings, train_here, weights

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel, PaperUNet2DModel
from semseg_diffusers.data.dataset import attribute_numbers, attribute_values, load_pairs
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.models.unet_mask_guided import label_keep_probability
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.base_model import load_first_weights
from semseg_diffusers.training.class_balance import class_rarity
from semseg_diffusers.training.dataset import AUGMENT_DIM, TrainingDataset, Warp, Warps, warp_image, warp_mask
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import build_noise_scheduler, diffusion_loss
from semseg_diffusers.training.settings import TrainingSettings


EVERYTHING = {
    "attributes": ("weather", "timeofday"),
    "mask_pyramid": True,
    "coordinate_channels": True,
    "mask_ablation": 0.2,
    "label_diffusion": True,
    "augment_scale": 0.2,
    "augment_translate": 0.1,
    "augment_probability": 0.5,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    write_toy_dataset(folder, num_train=12, num_val=2, size=(16, 32), seed=0)
    return folder


@pytest.fixture(scope="module")
def pairs(toy):
    return load_pairs(toy)


def samples(pairs, attributes=None, rarity=None, **changes):
    given = settings(**{"mask_dropout": 0.0, "attribute_dropout": 0.0, **changes})
    return TrainingDataset(pairs, given, attributes=attributes, rarity=rarity)


def augmented(scale, translate, probability):
    return {"augment_scale": scale, "augment_translate": translate, "augment_probability": probability}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"dataset": "d", "output_dir": "o", **changes})


def parse(*words):
    return parse_training("--dataset", "d", "--output_dir", "o", *words)


# Settings


def test_options_are_read_from_the_command_line_and_from_yaml(tmp_path):
    given = parse("--attributes", "weather", "timeofday", "--augment_scale", "0.2", "--augment_probability", "0.3")
    assert given.attributes == ("weather", "timeofday")
    assert (given.augment_scale, given.augment_probability) == (0.2, 0.3)
    (tmp_path / "run.yaml").write_text("attributes: [time of day]\nlabel_diffusion: true\n")
    given = parse("--config", str(tmp_path / "run.yaml"))
    assert (given.attributes, given.label_diffusion) == (("time of day",), True)
    assert parse("--config", str(tmp_path / "run.yaml"), "--attributes").attributes == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask_ablation", "2"], "--mask_ablation must be between 0 and 1; got 2"),
        (["--attribute_dropout", "-1"], "--attribute_dropout must be between 0 and 1"),
        (["--augment_translate", "1.5"], "--augment_translate must be between 0 and 1"),
        (["--augment_scale", "-0.1"], "--augment_scale must be 0 or more"),
        (["--augment_scale", "nan"], "--augment_scale must be 0 or more; got nan"),
        (["--augment_scale", "inf"], "--augment_scale must be 0 or more; got inf"),
        (["--learning_rate", "nan"], "--learning_rate must be more than 0; got nan"),
        (["--class_loss_weight_max", "nan"], "--class_loss_weight_max must be 1 or more; got nan"),
        (["--augment_probability", "0.5"], "--augment_probability needs --augment_scale or --augment_translate"),
        (["--augment_scale", "0.2", "--augment_probability", "7"], "--augment_probability must be between 0 and 1"),
        (
            ["--mask_pyramid", "--block_out_channels", "16", "--attention_levels", "0"],
            "--mask_pyramid needs two or more levels",
        ),
    ],
)
def test_bad_setting_is_refused_by_name(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["--attributes", "weather"],
        ["--mask_pyramid"],
        ["--coordinate_channels"],
        ["--label_diffusion"],
        ["--augment_probability", "0.0", "--augment_scale", "0.2"],
    ],
)
def test_the_papers_network_refuses_what_it_cannot_take_by_name(words):
    with pytest.raises(ValueError, match=f"{words[0]} is not for --network paper"):
        parse("--network", "paper", *words)


def test_the_papers_network_takes_what_changes_the_data_alone():
    given = parse("--preset", "paper", "--mask_ablation", "0.1", "--augment_scale", "0.2")
    assert (given.network, given.mask_ablation, given.augment_scale) == ("paper", 0.1, 0.2)


# Attributes of a dataset


def with_columns(pairs, **columns):
    pairs = type(pairs)(pairs._table, pairs.labels, *pairs._columns, pairs.name)
    pairs.attributes = {name: (values * len(pairs))[: len(pairs)] for name, values in columns.items()}
    return pairs


def test_values_are_sorted_and_what_nobody_said_is_unknown(pairs):
    split = with_columns(pairs, weather=["rainy", "clear", None, "", "undefined"], city=["a"])
    values = attribute_values(split, ["weather", "city", "weather"])
    assert list(values.items()) == [("city", ["a"]), ("weather", ["clear", "rainy"])]
    assert attribute_numbers(split, values)[:5].tolist() == [[0, 1], [0, 0], [0, -1], [0, -1], [0, -1]]


def test_toy_scenes_carry_their_look(pairs):
    values = attribute_values(pairs, ["weather", "scene", "timeofday"])
    assert "clear" in values["weather"]
    assert "daytime" in values["timeofday"]


def test_a_value_that_the_list_lacks_is_unknown_and_so_is_a_missing_column(pairs):
    split = with_columns(pairs, weather=["snowy", "clear"])
    numbers = attribute_numbers(split, {"timeofday": ["night"], "weather": ["clear", "rainy"]})
    assert numbers.shape == (12, 2)
    assert numbers[:2].tolist() == [[-1, -1], [-1, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weather": ["clear"]}, "has no column of text 'season' for an attribute; it has weather"),
        (
            {},
            "has no column of text 'season' for an attribute; it has none. Numbers, and nulls throughout,",
        ),
        ({"season": [None, "", "undefined"]}, "column 'season' .* says nothing"),
    ],
)
def test_columns_that_are_no_attributes_are_refused(pairs, columns, message):
    with pytest.raises(ValueError, match=message):
        attribute_values(with_columns(pairs, **columns), ["season"])


def test_a_column_of_names_is_no_attribute(pairs, monkeypatch):
    monkeypatch.setattr("semseg_diffusers.data.dataset.MOST_VALUES", 3)
    split = with_columns(pairs, file=[f"{i}.png" for i in range(12)])
    with pytest.raises(ValueError, match="'file' .* has 12 different values in 12 pairs; an attribute has 3 at most"):
        attribute_values(split, ["file"])


# Samples


def test_defaults_give_the_samples_of_before_and_nothing_more(pairs):
    plain = samples(pairs)[3, 1]
    assert set(plain) == {"image", "mask", "noise", "timestep", "stem"}
    values = attribute_values(pairs, ["weather", "timeofday"])
    given = samples(pairs, attributes=values, attribute_dropout=0.5, **augmented(0.2, 0.1, 0.0))[3, 1]
    assert set(given) == {*plain, "attributes", "augmentation"}
    for name in ("mask", "noise", "timestep"):
        assert torch.equal(given[name], plain[name])
    torch.testing.assert_close(given["image"], plain["image"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"mask_ablation": 0.5},
        {"rarity": [1.0] * 19},
        augmented(0.3, 0.2, None),
        augmented(0.3, 0.2, 0.5),
        {"attributes": {"weather": ["clear", "foggy", "rainy"]}, "attribute_dropout": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_option_is_a_function_of_seed_and_position_and_moves_no_other_number(pairs, options):
    drawn, again, plain = samples(pairs, **options), samples(pairs, **options), samples(pairs)
    for position in range(8):
        first, second, bare = drawn[position, 2], again[position, 2], plain[position, 2]
        assert all(torch.equal(first[name], second[name]) for name in first if name != "stem")
        assert torch.equal(first["noise"], bare["noise"])
        assert torch.equal(first["timestep"], bare["timestep"])
    varied = [drawn[position, 2] for position in range(30)]
    key = next((name for name in ("attributes", "augmentation") if name in varied[0]), "mask")
    assert len({tuple(one[key].flatten().tolist()) for one in varied}) > 1


def test_ablation_keeps_whole_classes_or_whole_objects_of_its_share_of_the_masks(pairs):
    whole = samples(pairs, horizontal_flip=False)
    ablated = samples(pairs, horizontal_flip=False, mask_ablation=0.6)
    kinds = {"whole": 0, "classes": 0, "objects": 0}
    kept_alone = 0
    for position in range(120):
        before, after = whole[position, 0]["mask"], ablated[position, 0]["mask"]
        known = after != 255
        assert torch.equal(after[known], before[known])
        assert known.any()
        if torch.equal(after, before):
            kinds["whole"] += 1
            continue
        objects = torch.from_numpy(find_objects(before.numpy()).numbers)
        for numbers in (before, objects):
            kept, gone = (set(numbers[where].unique().tolist()) for where in (known, ~known & (before != 255)))
            if not kept & gone:
                kinds["classes" if numbers is before else "objects"] += 1
                kept_alone += len(kept) == 1
                break
        else:
            raise AssertionError("a part of an object is unknown")
    assert 0.3 < kinds["whole"] / 120 < 0.5
    assert min(kinds["classes"], kinds["objects"]) > 20
    assert kept_alone > 10


def test_label_diffusion_keeps_by_the_timestep_of_the_sample_as_sampling_does(pairs):
    psi = [1.0] * 10 + [50.0] * 9
    faded = samples(pairs, horizontal_flip=False, rarity=psi)
    plain = samples(pairs, horizontal_flip=False)
    kept, expected = [], []
    for position in range(100):
        before, after = plain[position, 0]["mask"], faded[position, 0]
        keep = label_keep_probability(after["timestep"] / 1000, torch.tensor(psi))[before]
        kept.append((after["mask"] == before).float().mean())
        expected.append(keep.mean())
    assert (torch.stack(kept) - torch.stack(expected)).abs().max() < 0.12
    assert (torch.stack(kept) - torch.stack(expected)).mean().abs() < 0.01


def test_each_attribute_is_dropped_by_itself_and_not_with_the_mask(pairs):
    values = attribute_values(pairs, ["weather", "timeofday"])
    dropping = samples(pairs, attributes=values, attribute_dropout=0.3, mask_dropout=0.3)
    drawn = [dropping[position, 0] for position in range(300)]
    dropped = torch.stack([(one["attributes"] == -1) for one in drawn]).float()  # (300, 2)
    masks = torch.tensor([float((one["mask"] == 255).all()) for one in drawn])
    assert ((dropped.mean(dim=0) - 0.3).abs() < 0.1).all()
    assert abs(float((dropped[:, 0] * dropped[:, 1]).mean()) - 0.09) < 0.06
    assert abs(float((dropped[:, 0] * masks).mean()) - 0.09) < 0.06
    numbers = attribute_numbers(pairs, values)[0]
    assert all(
        torch.equal(one["attributes"][one["attributes"] >= 0], numbers[one["attributes"] >= 0]) for one in drawn
    )
    assert drawn[0]["attributes"].dtype == torch.long


# Augmentation


def test_photo_and_mask_are_warped_alike():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 5, (6, 8), generator=generator)
    mask = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)  # (48, 64)
    photo = torch.nn.functional.one_hot(mask, 5).permute(2, 0, 1).float()  # (5, 48, 64)
    for warp, alike in (
        (Warp(1.0, 7, -3), 1.0),
        (Warp(1.25, 0, 0), 0.98),
        (Warp(0.7, 5, 2), 0.93),
        (Warp(1.6, -9, 11), 0.98),
    ):
        image, ids = warp_image(photo, warp), warp_mask(mask, warp, 255)
        inside = ids != 255
        assert set(ids[inside].tolist()) <= set(mask.flatten().tolist())  # no new ids
        # what the photo shows most is what the mask says, but for pixels on the border of two classes
        assert (image.argmax(dim=0) == ids)[inside].float().mean() >= alike
        assert (ids.shape, image.shape) == (mask.shape, photo.shape)


def test_a_shift_moves_whole_pixels_reflects_the_photo_and_leaves_the_mask_unknown():
    photo = torch.arange(6.0).view(1, 1, 6).expand(3, 4, 6)
    mask = torch.arange(6).view(1, 6).expand(4, 6)
    warp = Warp(1.0, 2, 1)
    torch.testing.assert_close(warp_image(photo, warp)[0, 0], torch.tensor([1.0, 0, 0, 1, 2, 3]))
    ids = warp_mask(mask, warp, 255)
    assert ids[0].tolist() == [255] * 6
    assert ids[1].tolist() == [255, 255, 0, 1, 2, 3]


def test_reduction_averages_areas_and_enlargement_keeps_the_middle():
    fine = torch.zeros(1, 8, 8)
    fine[..., ::2] = 1.0  # every other column
    half = warp_image(fine, Warp(0.5, 0, 0))
    torch.testing.assert_close(half[0, 2:6, 2:6], torch.full((4, 4), 0.5))
    mask = torch.arange(8).expand(8, 8)
    assert warp_mask(mask, Warp(0.5, 0, 0), 255)[4].tolist() == [255, 255, 1, 3, 5, 7, 255, 255]
    assert warp_mask(mask, Warp(2.0, 0, 0), 255)[4].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


def test_vector_is_zero_where_nothing_was_done_and_within_one_elsewhere():
    warps = Warps(scale=0.25, translate=0.1, probability=0.5)
    seen = set()
    for seed in range(200):
        warp, vector = warps.sample(torch.Generator().manual_seed(seed), (64, 128))
        assert vector.shape == (AUGMENT_DIM,)
        assert vector.abs().max() <= 1
        assert 0.8 <= warp.scale <= 1.25
        assert abs(warp.right) <= 13
        assert abs(warp.down) <= 6
        assert bool(vector[0]) == (warp.scale != 1)
        assert (bool(vector[1]), bool(vector[2])) == (bool(warp.right), bool(warp.down))
        seen.add((warp.scale != 1, bool(warp.right or warp.down)))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize("probability", [0.0, None])
def test_probability_zero_warps_nothing_and_none_warps_all(probability):
    warps = Warps(scale=0.25, translate=0.2, probability=probability)
    drawn = [warps.sample(torch.Generator().manual_seed(seed), (64, 64))[0] for seed in range(50)]
    moved = [warp.scale != 1 and (warp.right, warp.down) != (0, 0) for warp in drawn]
    assert sum(moved) == (50 if probability is None else 0)


def test_only_what_is_told_stands_in_the_batch(pairs):
    assert "augmentation" not in samples(pairs, **augmented(0.2, 0.1, None))[0, 0]
    given = [samples(pairs, **augmented(0.2, 0.1, 0.3))[position, 0] for position in range(40)]
    bare = [samples(pairs)[position, 0] for position in range(40)]
    for one, plain in zip(given, bare, strict=True):
        if not one["augmentation"].any():
            assert torch.equal(one["mask"], plain["mask"])
            torch.testing.assert_close(one["image"], plain["image"], rtol=0, atol=1e-5)
    assert 5 < sum(bool(one["augmentation"].any()) for one in given) < 35


# Networks


def test_network_is_made_for_what_the_settings_ask_for(pairs):
    values = attribute_values(pairs, ["weather", "timeofday"])
    given = settings(block_out_channels=(16, 16), attention_levels=0, **EVERYTHING)
    unet = build_network(given, pairs.labels, (16, 32), values, [1.0] * 19)
    config = unet.config
    assert (config.mask_pyramid, config.coordinate_channels, config.augment_dim) == (True, True, AUGMENT_DIM)
    assert (config.attributes, config.label_diffusion, config.num_train_timesteps) == (values, [1.0] * 19, 1000)
    plain = build_network(settings(block_out_channels=(16, 16), attention_levels=0), pairs.labels, (16, 32))
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in plain.state_dict().items())


def test_rarity_needs_a_class():
    with pytest.raises(ValueError, match="no training mask has a labelled pixel"):
        class_rarity(torch.tensor([[0, 0, 9]]).numpy())


def test_loss_hands_attributes_and_augmentation_to_the_network(pairs):
    values = attribute_values(pairs, ["weather", "timeofday"])
    given = settings(block_out_channels=(16, 16), attention_levels=0, **EVERYTHING)
    unet = build_network(given, pairs.labels, (16, 32), values, [1.0] * 19).eval()
    for embedding in (unet.attribute_embedding, unet.augment_embedding):
        torch.nn.init.normal_(embedding.weight)
    drawn = samples(pairs, attributes=values, **augmented(0.2, 0.1, 1.0))
    batch = torch.utils.data.default_collate([drawn[position, position] for position in range(2)])
    scheduler = build_noise_scheduler(given)
    losses_of = {
        name: diffusion_loss(unet, scheduler, {key: batch[key] for key in batch if key != name}, None)
        for name in ("stem", "attributes", "augmentation")
    }
    assert losses_of["stem"].shape == (2,)
    assert not torch.allclose(losses_of["stem"], losses_of["attributes"])
    assert not torch.allclose(losses_of["stem"], losses_of["augmentation"])


# First weights of another model


def saved(tmp_path, **changes):
    torch.manual_seed(1)
    config = {
        "sample_size": 16, "num_classes": 19, "block_out_channels": (16, 16), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 16,
        "resnet_time_scale_shift": "scale_shift", "add_attention": False,
    }  # fmt: skip
    kind = changes.pop("kind", MaskGuidedUNet2DModel)
    if kind is UNet2DModel:
        del config["num_classes"]
    unet = kind(**{**config, **changes}) if kind is not PaperUNet2DModel else kind(hidden_dim=8, emb_dim=16)
    unet.save_pretrained(tmp_path)
    return unet


def fresh(**changes):
    given = settings(**{"block_out_channels": (16, 16), "attention_levels": 0, "patch_size": 1, **changes})
    return build_network(given, LabelSet.from_preset("bdd100k"), (32, 32), {"weather": ["clear", "rainy"]})


def test_first_weights_of_a_smaller_size_are_all_taken(tmp_path):
    before, unet = saved(tmp_path), fresh()
    kept, without_place = load_first_weights(unet, str(tmp_path))
    assert kept == ["attribute_embedding.weight (missing)"]
    assert without_place == []
    assert all(torch.equal(unet.state_dict()[name], weight) for name, weight in before.state_dict().items())


def test_first_weights_of_a_network_without_masks(tmp_path):
    before, unet = saved(tmp_path, kind=UNet2DModel), fresh()
    branch = {name: weight.clone() for name, weight in unet.state_dict().items() if name.startswith("mask_branch.")}
    kept, without_place = load_first_weights(unet, str(tmp_path))
    assert {line.split(" ")[0] for line in kept} == {*branch, "attribute_embedding.weight"}
    assert without_place == []
    after = unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in {**before.state_dict(), **branch}.items())


def test_first_weights_of_other_shapes_and_places_are_named(tmp_path):
    saved(tmp_path, mask_conditioning="concat", coordinate_channels=True)
    kept, without_place = load_first_weights(fresh(), str(tmp_path))
    assert "conv_in.weight ((16, 22, 3, 3) there, (16, 3, 3, 3) here)" in kept
    assert without_place == ["conv_coordinates.weight"]


@pytest.mark.parametrize(("values", "taken"), [(["clear", "rainy"], True), (["clear", "night"], False)])
def test_embeddings_of_other_values_are_not_taken(tmp_path, values, taken):
    before = MaskGuidedUNet2DModel.from_config(saved(tmp_path, attributes={"weather": values}).config)
    torch.nn.init.normal_(before.attribute_embedding.weight)
    before.save_pretrained(tmp_path)
    unet = fresh()
    kept, _ = load_first_weights(unet, str(tmp_path))
    assert kept == ([] if taken else ["attribute_embedding.weight (of other values)"])
    assert torch.equal(unet.attribute_embedding.weight, before.attribute_embedding.weight) is taken
    assert bool(unet.attribute_embedding.weight.any()) is taken


def test_first_weights_of_other_classes_are_carried_over_by_name_and_mapping(tmp_path, caplog):
    PartialState()
    labels = LabelSet.from_preset("camvid")
    before = saved(tmp_path, num_classes=11, **labels.to_config())
    unet = fresh()
    with caplog.at_level("INFO"):
        kept, _ = load_first_weights(unet, str(tmp_path), {"train": ["building", 7]})
    assert kept == ["attribute_embedding.weight (missing)"]
    own, theirs = (network.mask_branch.conv_1.weight for network in (unet, before))
    ids = LabelSet.from_preset("bdd100k").label2id
    torch.testing.assert_close(own[:, ids["road"]], theirs[:, labels.label2id["road"]])
    torch.testing.assert_close(own[:, ids["truck"]], theirs[:, labels.label2id["car"]])
    torch.testing.assert_close(own[:, ids["train"]], theirs[:, [1, 7]].mean(dim=1))
    assert "truck from car; " in caplog.text
    assert "train from building, fence; " in caplog.text


def test_first_weights_without_names_of_classes_cannot_be_mapped(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="--init_classes: .* does not name its classes"):
        load_first_weights(fresh(), str(tmp_path), {"road": [0]})
    with pytest.raises(ValueError, match="--init_classes maps the classes of another model; give that: --init_from"):
        settings(init_classes="map.json")


def test_models_that_do_not_fit_or_are_not_there_are_refused(tmp_path):
    saved(tmp_path / "paper", kind=PaperUNet2DModel)
    with pytest.raises(ValueError, match="none of its .* of this MaskGuidedUNet2DModel; it is a PaperUNet2DModel"):
        load_first_weights(fresh(), str(tmp_path / "paper"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has neither unet/diffusion_pytorch_model.safetensors nor"):
        load_first_weights(fresh(), str(tmp_path / "empty"))
    saved(tmp_path / "cut")
    (tmp_path / "cut" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors cannot be read: .* Is it complete"):
        load_first_weights(fresh(), str(tmp_path / "cut"))
    saved(tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text('{"sample')
    with pytest.raises(ValueError, match=r"--init_from .*torn: .*config.json is not JSON: .* Is it complete\?"):
        load_first_weights(fresh(), str(tmp_path / "torn"))
    with pytest.raises(ValueError, match="there is no folder './nowhere', and it is not a model id"):
        load_first_weights(fresh(), "./nowhere")


FROM_THE_HUB = """
import sys
from semseg_diffusers import MaskGuidedUNet2DModel
from semseg_diffusers.training.base_model import load_first_weights
unet = MaskGuidedUNet2DModel.from_config(MaskGuidedUNet2DModel.load_config(sys.argv[1]))
for repo_id in sys.argv[2:]:
    try:
        print(repo_id, load_first_weights(unet, repo_id))
    except (OSError, ValueError) as error:
        print(repo_id, type(error).__name__, error)
"""


def test_first_weights_come_from_the_hub_as_pipeline_or_network(tmp_path, hub, clean_process):
    saved(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.add_repo("alice/network", files)
    hub.add_repo("alice/pipeline", {f"unet/{name}": content for name, content in files.items()})
    hub.add_repo("alice/nothing", {"README.md": b"# nothing"})
    repos = ("alice/network", "alice/pipeline", "alice/nothing", "alice/nowhere")
    done = clean_process(FROM_THE_HUB, tmp_path / "model", *repos, environment=hub.environment(tmp_path / "home"))
    lines = done.stdout.splitlines()
    assert lines[:2] == ["alice/network ([], [])", "alice/pipeline ([], [])"]
    assert "ValueError --init_from alice/nothing: it has neither unet/" in lines[2]
    assert "HubError --init_from: loading the model 'alice/nowhere': the Hub has no model 'alice/nowhere'" in lines[3]


# Whole runs


def test_previews_are_drawn_in_the_look_of_the_photo_beside(toy, tmp_path):
    options = {"attributes": ("weather", "timeofday"), "label_diffusion": True, "max_train_steps": 1}
    options |= {"preview_steps": 1, "preview_masks": 2, "preview_samples": 1, "preview_inference_steps": 2}
    run = train_here(tiny_settings(toy, tmp_path / "run", **options))
    assert (run / "previews" / "step-0000001.png").is_file()
    pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
    call = {"num_inference_steps": 2, "output_type": "np"}
    mask = torch.zeros(16, 32, dtype=torch.uint8)
    torch.nn.init.normal_(pipe.unet.attribute_embedding.weight)
    looks = [{"weather": "clear"}, {"weather": "rainy"}, None]
    images = [pipe(mask, attributes=look, generator=torch.Generator().manual_seed(0), **call).images for look in looks]
    assert (images[0] != images[1]).any()
    assert (images[0] != images[2]).any()


def test_run_with_everything_is_resumed_bit_for_bit(toy, tmp_path):
    straight = train_here(tiny_settings(toy, tmp_path / "straight", **EVERYTHING))
    pieces = train_here(tiny_settings(toy, tmp_path / "pieces", **EVERYTHING))
    shutil.rmtree(pieces / "checkpoint-4")
    train_here(tiny_settings(toy, pieces, resume_from_checkpoint="latest", **EVERYTHING))
    first, second = weights(straight), weights(pieces)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(straight) == losses(pieces)
    new = ("attribute_embedding", "augment_embedding", "conv_coordinates", "pyramid_convs")
    assert all(first[name].any() for name in first if name.startswith(new))
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    assert list(pipe.unet.config.attributes) == ["timeofday", "weather"]
    assert min(pipe.unet.config.label_diffusion) == 1.0
    mask = torch.zeros(16, 32, dtype=torch.uint8)
    image = pipe(mask, num_inference_steps=2, attributes={"timeofday": "daytime"}, guidance_scale=2.0).images[0]
    assert image.size == (32, 16)


def test_checkpoint_of_other_values_is_refused(toy, tmp_path):
    run = train_here(tiny_settings(toy, tmp_path / "run", attributes=("weather",), max_train_steps=2))
    state = json.loads((run / "checkpoint-2" / "state.json").read_text())
    assert "clear" in state["attributes"]["weather"]
    other = shutil.copytree(toy, tmp_path / "other")
    table = other / "train" / "metadata.jsonl"
    table.write_text(table.read_text().replace('"weather": "clear"', '"weather": "hail"'))
    with pytest.raises(ValueError, match=r"found other --attributes in its data: .*clear.* \(now .*hail"):
        train_here(tiny_settings(other, run, attributes=("weather",), resume_from_checkpoint="latest"))


def test_run_starts_from_another_and_resumes_without_it(toy, tmp_path, caplog):
    first = train_here(tiny_settings(toy, tmp_path / "first", mask_dropout=1.0, max_train_steps=2))
    options = {"init_from": str(first), "attributes": ("weather",), "max_train_steps": 1, "learning_rate": 1e-12}
    with caplog.at_level(logging.INFO):
        second = train_here(tiny_settings(toy, tmp_path / "second", use_ema=False, **options))
    assert "which stay as they were made: attribute_embedding.weight (missing)" in caplog.text
    for name, weight in weights(first).items():
        torch.testing.assert_close(weights(second)[name], weight, rtol=0, atol=1e-6)
    shutil.rmtree(first)
    options |= {"max_train_steps": 2, "resume_from_checkpoint": "latest"}
    train_here(tiny_settings(toy, second, use_ema=False, **options))
