"""Segmentation networks: built by name, trained by one recipe, saved with their record, loaded by transformers."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from helpers.segmenters import save_network
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
)

from semseg_diffusers import cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.evaluation.segmentation.networks import (
    Preprocessing,
    PretrainedSource,
    load_pretrained,
    new_network,
    scaled_size,
)
from semseg_diffusers.evaluation.segmentation.training import (
    LabelledImages,
    augment,
    score_network,
    shuffled_batches,
    train_segmenter,
)
from semseg_diffusers.evaluation.settings import ARCHITECTURES, Recipe
from semseg_diffusers.toy.scenes import write_toy_dataset


LABELS = LabelSet(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SEGFORMER_PROCESSOR = ARCHITECTURES["segformer-mini"].processor
MOBILEVIT_PROCESSOR = ARCHITECTURES["mobilevit-deeplabv3"].processor
MINI = Preprocessing.from_processor({**SEGFORMER_PROCESSOR, "size": {"height": 16, "width": 16}})


class ColourPairs:
    """Pairs whose image shows each class in its own color: easy to learn, no files."""

    labels = LABELS
    resolution = (16, 16)

    def __init__(self, count: int):
        generator = torch.Generator().manual_seed(count)
        masks = torch.randint(0, 3, (count, 4, 4), generator=generator)
        self.masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)  # (count, 16, 16)
        colors = torch.tensor(LABELS.colors, dtype=torch.uint8)
        self.images = colors[self.masks.long()].permute(0, 3, 1, 2).contiguous()

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "stem": str(index)}


def unknown_pairs(known_photos: int) -> ColourPairs:
    """Return four pairs of which all but the first few are unknown everywhere."""
    pairs = ColourPairs(4)
    pairs.masks[known_photos:] = 255
    return pairs


# Architectures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "deeplabv3-resnet50"])
def test_a_network_has_its_classes_and_accepts_images_of_any_shape(name):
    network = new_network(name, LABELS).eval()
    with torch.no_grad():
        logits = network(pixel_values=torch.zeros(1, 3, 64, 96)).logits
    stride = {"deeplabv3-lite0": 16, "mobilevit-deeplabv3": 8, "mobilevit-deeplabv3-xxs": 8}.get(name, 4)
    assert logits.shape == (1, 3, 64 // stride, 96 // stride)
    assert network.config.id2label == LABELS.id2label
    assert network.config.label2id == LABELS.label2id
    assert network.config.semantic_loss_ignore_index == 255
    assert LabelSet.from_config(network.config.label_set) == LABELS
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() for norm in norms)


def test_images_are_enlarged_to_multiples_with_their_aspect_ratio():
    assert scaled_size(128, 128, 256) == (256, 256)
    assert scaled_size(96, 160, 256) == (256, 432)


@pytest.mark.parametrize("name", ["segformer-mini", "mobilevit-deeplabv3-xxs"])
def test_from_pretrained_restores_the_network(name, tmp_path):
    network = new_network(name, LABELS).eval()
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=images).logits, network(pixel_values=images).logits)
    assert LabelSet.from_config(loaded.config.label_set) == LABELS


def test_a_seed_determines_the_weights_and_the_global_state_is_unchanged():
    state = torch.random.get_rng_state()
    first, second, other = (new_network("segformer-mini", LABELS, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="--architecture 'unet': expected one of segformer-mini, "):
        new_network("unet", LABELS)


def test_the_network_of_torchvision_is_saved_and_loaded_like_all_others(tmp_path):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as err:
        with pytest.raises(ValueError, match=r"needs torchvision.*semseg-diffusers\[fid\]"):
            new_network("deeplabv3-resnet50", LABELS)
        pytest.skip(f"torchvision cannot be imported: {err}")
    network = new_network("deeplabv3-resnet50", LABELS).eval()
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        logits = network(pixel_values=images).logits
        assert logits.shape == (1, 3, 8, 8)
        assert torch.equal(loaded(pixel_values=images).logits, logits)
        whole = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
        assert torch.allclose(network.network(images)["out"], whole, atol=1e-5)


@pytest.mark.parametrize("same_classes", [True, False])
def test_fine_tuning_initializes_the_last_layer_only_for_other_classes(same_classes, tmp_path):
    base = new_network("segformer-mini", LABELS, seed=1)
    save_network(tmp_path, base, {**SEGFORMER_PROCESSOR, "size": {"height": 8, "width": 8}})
    labels = LABELS if same_classes else LabelSet(("road", "sky", "bus"), LABELS.colors)
    network, processor = load_pretrained(PretrainedSource(tmp_path, None, "--base_model"), labels)
    assert list(processor["image_mean"]) == SEGFORMER_PROCESSOR["image_mean"]
    assert LabelSet.from_config(network.config.label_set) == labels
    assert network.config.id2label == labels.id2label
    weights = network.state_dict()
    changed = {name for name, value in base.state_dict().items() if not torch.equal(weights[name], value)}
    assert changed == (set() if same_classes else {"decode_head.classifier.weight"})  # its bias is 0 in both
    fewer = LabelSet(("road", "sky"), LABELS.colors[:2])
    network, _ = load_pretrained(PretrainedSource(tmp_path, None, "--base_model"), fewer)
    assert network.state_dict()["decode_head.classifier.weight"].shape[0] == 2


def test_only_a_segmentation_network_can_be_fine_tuned(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--base_model .* is a vit; expected a network that transformers'"):
        load_pretrained(PretrainedSource(tmp_path, None, "--base_model"), LABELS)


# Input of a network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {**SEGFORMER_PROCESSOR, "size": {"height": 48, "width": 64}},
        {**SEGFORMER_PROCESSOR, "size": {"height": 12, "width": 12}, "resample": 3},
        {**SEGFORMER_PROCESSOR, "size": {"height": 48, "width": 48}, "resample": 0},
        {**SEGFORMER_PROCESSOR, "size": {"height": 24, "width": 40}, "do_rescale": False, "do_normalize": False},
        {**MOBILEVIT_PROCESSOR, "size": {"height": 48, "width": 64}},
        {**MOBILEVIT_PROCESSOR, "size": {"shortest_edge": 37}},
        {
            **SEGFORMER_PROCESSOR,
            "image_processor_type": "Mask2FormerImageProcessor",
            "size": {"shortest_edge": 64, "longest_edge": 80},
            "size_divisor": 32,
            "ignore_index": 255,
        },
    ],
    ids=["bilinear", "smaller", "nearest", "levels", "mobilevit", "aspect", "mask2former"],
)
def test_images_are_prepared_as_by_the_image_processor(settings, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    photos = torch.randint(0, 256, (2, 3, 24, 40), generator=torch.Generator().manual_seed(0)).byte()
    expected = processor(list(photos), return_tensors="pt")["pixel_values"]
    preprocessing = Preprocessing.from_processor(processor.to_dict())
    read = preprocessing(photos)
    assert read.shape == expected.shape
    level = preprocessing.scale / min(preprocessing.std)
    assert (read - expected).abs().max() <= 1.01 * level  # PIL rounds after each direction
    assert (read - expected).abs().mean() <= 0.3 * level


def test_unsupported_resizing_is_refused():
    with pytest.raises(ValueError, match=r"has the size \{'max_height': 8\}; expected height and width"):
        Preprocessing.from_processor({**SEGFORMER_PROCESSOR, "size": {"max_height": 8}})
    with pytest.raises(ValueError, match="resamples by filter 1"):
        Preprocessing.from_processor({**SEGFORMER_PROCESSOR, "size": {"shortest_edge": 8}, "resample": 1})


# Batches -----------------------------------------------------------------------------------------------


def test_a_batch_holds_the_requested_pairs():
    pairs = ColourPairs(4)
    images, masks = LabelledImages(pairs).batch([0, 3, 0])
    assert torch.equal(images, pairs.images[[0, 3, 0]])
    assert torch.equal(masks, pairs.masks[[0, 3, 0]].long())


def test_pairs_without_labels_are_refused():
    with pytest.raises(ValueError, match="the dataset is empty"):
        LabelledImages(ColourPairs(0))
    with pytest.raises(ValueError, match="no labelled pixel"):
        LabelledImages(unknown_pairs(0))


def test_class_weights_are_higher_for_rare_classes_with_a_mean_of_one():
    pairs = ColourPairs(1)
    pairs.masks[:] = 0
    pairs.masks[:, :1] = 1  # one pixel in 15 of those that are known
    pairs.masks[:, 1:2] = 255
    weights = LabelledImages(pairs).class_weights()
    assert weights[1] / weights[0] == pytest.approx(14**0.5)
    assert weights[2] == 0
    assert (weights[0] * 14 + weights[1]) / 15 == pytest.approx(1)


def test_every_epoch_has_each_pair_once_in_full_batches():
    order = shuffled_batches(5, 2, torch.Generator().manual_seed(0))
    drawn = [next(order) for _ in range(5)]
    assert all(len(batch) == 2 for batch in drawn)
    flat = sum(drawn, [])
    assert sorted(flat[:5]) == sorted(flat[5:]) == [0, 1, 2, 3, 4]
    assert len(next(shuffled_batches(1, 4, torch.Generator()))) == 4


def test_augmentation_moves_image_and_mask_together_and_adds_no_id():
    recipe = Recipe(brightness=0, contrast=0)
    masks = ColourPairs(16).masks.repeat_interleave(4, 1).repeat_interleave(4, 2)  # (16, 64, 64)
    images = masks[:, None].expand(-1, 3, -1, -1).float()
    moved_images, moved_masks = augment(images, masks.long(), torch.Generator().manual_seed(0), (128, 128), recipe)
    assert moved_images.shape == (16, 3, 128, 128)
    assert moved_masks.shape == (16, 64, 64)
    assert (moved_masks != masks).float().mean() > 0.2
    assert set(moved_masks.unique().tolist()) <= {0, 1, 2}
    same = torch.nn.functional.avg_pool2d(moved_images, 2)[:, 0].round() == moved_masks
    assert same.float().mean() > 0.8  # all but the borders, which the image blurs


def test_augmentation_changes_brightness_of_a_whole_image():
    images = torch.full((4, 3, 16, 16), 100.0)
    moved, _ = augment(images, torch.zeros(4, 16, 16, dtype=torch.long), torch.Generator().manual_seed(1), (16, 16))
    assert all(sample.max() - sample.min() < 1e-3 for sample in moved)
    assert len(moved.mean((1, 2, 3)).unique()) == 4
    assert (moved - 100).abs().max() <= Recipe().brightness + 100 * Recipe().contrast


def test_unknown_pixels_stay_unknown_under_augmentation():
    masks = torch.full((4, 16, 16), 200)
    _, moved = augment(torch.zeros(4, 3, 16, 16), masks, torch.Generator().manual_seed(0), (16, 16))
    assert moved.unique().tolist() == [200]


# Training -----------------------------------------------------------------------------------------------


def test_a_network_learns_and_its_best_weights_are_kept():
    network = new_network("segformer-mini", LABELS)
    validation = LabelledImages(ColourPairs(8))
    lines = []
    history = train_segmenter(
        network, MINI, LabelledImages(ColourPairs(32)), validation,
        max_train_steps=60, learning_rate=3e-3, validation_steps=15, on_log=lines.append,
    )  # fmt: skip
    assert history.scores.mean_iou > 0.6
    assert score_network(network, MINI, validation) == history.scores
    assert not network.training
    assert lines == history.log
    validated = {line["step"]: line["mean_iou"] for line in lines if "mean_iou" in line}
    assert list(validated) == [15, 30, 45, 60]
    assert validated[history.best_step] == max(validated.values()) == history.scores.mean_iou
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [20, 40, 60]
    assert losses[20] > losses[40] > losses[60]


def test_ten_steps_warm_up_for_more_than_one():
    history = train_segmenter(
        new_network("segformer-mini", LABELS), MINI, LabelledImages(ColourPairs(4)), max_train_steps=10
    )
    assert (history.steps, history.scores) == (10, None)


def test_weights_of_a_step_with_lower_scores_are_not_kept():
    network = new_network("segformer-mini", LABELS)
    validation = LabelledImages(ColourPairs(4))

    def spoil(line):
        if line["step"] == 40 and "loss" in line:
            with torch.no_grad():
                network.decode_head.classifier.bias[0] += 100  # from here on it says road

    history = train_segmenter(
        network, MINI, LabelledImages(ColourPairs(32)), validation,
        max_train_steps=44, learning_rate=3e-3, validation_steps=20, on_log=spoil,
    )  # fmt: skip
    assert [line["step"] for line in history.log if "mean_iou" in line] == [20, 40, 44]
    assert (history.steps, history.best_step) == (44, 20)
    assert score_network(network, MINI, validation) == history.scores


def test_the_same_seed_trains_the_same_network_and_the_global_state_is_unchanged():
    state = torch.random.get_rng_state()

    def train(seed):
        network = new_network("segformer-b0", LABELS)  # with dropout
        train_segmenter(
            network,
            MINI.with_size((32, 32)),
            LabelledImages(ColourPairs(8)),
            max_train_steps=2,
            train_batch_size=2,
            seed=seed,
        )
        return network.state_dict()

    first, second, other = train(3), train(3), train(4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_images_of_unknown_pixels_leave_finite_weights():
    network = new_network("segformer-mini", LABELS)
    history = train_segmenter(network, MINI, LabelledImages(unknown_pairs(1)), max_train_steps=4, train_batch_size=2)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert (history.steps, history.best_step, history.scores) == (4, None, None)


def test_a_network_with_batch_norms_trains_in_bfloat16_at_another_size():
    network = new_network("mobilevit-deeplabv3-xxs", LABELS)
    preprocessing = Preprocessing.from_processor({**MOBILEVIT_PROCESSOR, "size": {"height": 64, "width": 64}})
    pairs = LabelledImages(ColourPairs(4))
    history = train_segmenter(
        network, preprocessing, pairs, pairs, max_train_steps=2, train_batch_size=2, mixed_precision="bf16"
    )
    assert history.scores.num_pixels == 4 * 16 * 16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_training_stops_on_request():
    network = new_network("segformer-mini", LABELS)
    pairs = LabelledImages(ColourPairs(4))
    asked = []

    def third():
        asked.append(True)
        return len(asked) == 3

    history = train_segmenter(network, MINI, pairs, pairs, max_train_steps=9, validation_steps=2, should_stop=third)
    assert (history.steps, history.best_step) == (3, 2)


def test_invalid_training_options_are_refused():
    network, pairs = new_network("segformer-mini", LABELS), LabelledImages(ColourPairs(4))
    for wrong, message in (
        ({"max_train_steps": 0}, "--max_train_steps must be 1 or more; got 0"),
        ({"validation_steps": 0}, "--validation_steps must be 1 or more; got 0"),
        ({"train_batch_size": 1}, "--train_batch_size must be 2 or more; got 1"),
        ({"learning_rate": 0.0}, "--learning_rate must be more than 0; got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            train_segmenter(network, MINI, pairs, **wrong)
    with pytest.raises(ValueError, match=r"cannot read an input of 8 x 8 pixels.*larger --input_size"):
        train_segmenter(network, MINI.with_size((8, 8)), pairs)
    other = ColourPairs(4)
    other.labels = LabelSet(("road", "sky", "bus"), LABELS.colors)
    with pytest.raises(ValueError, match="expected one label set"):
        train_segmenter(network, MINI, pairs, LabelledImages(other))


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "scenes", num_train=6, num_val=3, size=(32, 48))


def options(toy, output, *more):
    fixed = ("--max_train_steps", "4", "--validation_steps", "2", "--train_batch_size", "2", "--device", "cpu")
    return ["segmenter", "--dataset", str(toy), "--output", str(output), *fixed, *map(str, more)]


MINI_OPTIONS = ("--architecture", "segformer-mini", "--learning_rate", "0.001")


@pytest.fixture(scope="module")
def segmenter(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter") / "mini"
    assert cli.main(options(toy, folder, *MINI_OPTIONS)) == 0
    return folder


def test_the_command_writes_a_folder_that_transformers_loads(toy, segmenter):
    labels = LabelSet.from_json(segmenter / "labels.json")
    pairs = load_pairs(toy, "val")
    assert labels == pairs.labels
    network = AutoModelForSemanticSegmentation.from_pretrained(segmenter).eval()
    processor = AutoImageProcessor.from_pretrained(segmenter)
    assert dict(processor.size) == {"height": 32, "width": 48}
    assert processor.do_reduce_labels is False
    photos = torch.stack([pairs[index]["image"] for index in range(3)])
    with torch.no_grad():
        outputs = network(**processor(list(photos), return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 48)] * 3)
    assert torch.equal(load_judge(segmenter, labels).read(photos).long(), torch.stack(maps))


def test_half_precision_halves_the_file_and_predicts_nearly_the_same(toy, segmenter, tmp_path):
    assert cli.main(options(toy, tmp_path / "half", *MINI_OPTIONS, "--save_dtype", "float16")) == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", segmenter)]
    assert sizes[0] < 0.6 * sizes[1]
    pairs = load_pairs(toy, "val")
    photos = torch.stack([pairs[index]["image"] for index in range(3)])
    half, whole = (load_judge(folder, pairs.labels).read(photos) for folder in (tmp_path / "half", segmenter))
    assert (half == whole).float().mean() > 0.99
    assert cli.main(options(toy, tmp_path / "tuned", "--base_model", tmp_path / "half")) == 0
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    assert {value.dtype for value in tuned.values() if value.is_floating_point()} == {torch.float32}
    assert all(value.isfinite().all() for value in tuned.values())


def test_the_record_holds_what_the_network_depends_on(toy, segmenter):
    record = json.loads((segmenter / "segmenter.json").read_text())
    assert record["architecture"] == "segformer-mini"
    assert record["settings"]["learning_rate"] == 0.001
    assert (record["steps"], record["stopped_by"]) == (4, None)
    assert record["best_step"] in (2, 4)
    assert record["num_pairs"] == {"train": 6, "validation": 3}
    assert (record["resolution"], record["input_size"]) == ([32, 48], [32, 48])
    assert {"torch", "transformers", "torchmetrics", "semseg_diffusers"} == set(record["versions"])
    assert record["validation"]["num_pixels"] == 3 * 32 * 48
    assert record["recipe"]["optimizer"] == "AdamW"
    judge = load_judge(segmenter, LabelSet.from_json(segmenter / "labels.json"))
    assert judge.describe()["validation"] == record["validation"]
    assert judge.describe()["input_size"] == [32, 48]
    log = [json.loads(line) for line in (segmenter / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "mean_iou" in line] == [2, 4]
    with Image.open(segmenter / "curve.png") as curve:
        assert curve.size == (760, 360)
    assert [path.name for path in segmenter.parent.iterdir()] == ["mini"]


def test_the_command_fine_tunes_and_prints_the_scores(toy, segmenter, tmp_path, capsys):
    assert cli.main(options(toy, tmp_path / "tuned", "--base_model", segmenter, "--input_size", "64x64")) == 0
    out = capsys.readouterr().out
    assert "| **mean IoU** |" in out
    assert f"saved {tmp_path / 'tuned'}" in out
    record = json.loads((tmp_path / "tuned" / "segmenter.json").read_text())
    assert (record["base_model"], record["architecture"], record["input_size"]) == (str(segmenter), None, [64, 64])
    assert record["settings"]["learning_rate"] == 1e-4


def test_without_a_validation_split_the_last_weights_are_kept_with_a_message(toy, tmp_path, capsys):
    shutil.copytree(toy, tmp_path / "toy", ignore=shutil.ignore_patterns("val"))
    assert cli.main(options(tmp_path / "toy", tmp_path / "out", *MINI_OPTIONS, "--input_size", 24)) == 0
    captured = capsys.readouterr()
    assert "has no split 'val'; it has train. Training runs without validation" in captured.err
    assert "weights of step 4, not validated" in captured.out
    record = json.loads((tmp_path / "out" / "segmenter.json").read_text())
    assert (record["validation"], record["best_step"]) == (None, None)
    assert record["input_size"] == [32, 32]


def test_validation_is_optional(toy, tmp_path, capsys):
    words = options(toy, tmp_path / "out", *MINI_OPTIONS, "--input_size", 24, "--validation_split", "none")
    assert cli.main(words) == 0
    assert "weights of step 4, not validated" in capsys.readouterr().out


def test_invalid_commands_are_refused_before_training(toy, segmenter, tmp_path, capsys):
    def refusal(*command):
        assert cli.main(list(command)) == 2
        return capsys.readouterr().err

    new = tmp_path / "new"
    assert "is not empty" in refusal(*options(toy, segmenter, *MINI_OPTIONS))
    assert "has no segmenter.json, so it is no segmenter" in refusal(*options(toy, toy, "--overwrite"))
    assert "exclude each other" in refusal(*options(toy, new, *MINI_OPTIONS, "--base_model", segmenter))
    assert "--revision belongs to --base_model" in refusal(*options(toy, new, "--revision", "main"))
    assert "--base_model: there is no folder './no'" in refusal(*options(toy, new, "--base_model", "./no"))
    assert "are both 'val'" in refusal(*options(toy, new, "--train_split", "val", "--validation_split", "validation"))
    for option in ("--train_split", "--validation_split"):
        assert "has no split 'no'; it has train, val" in refusal(*options(toy, new, option, "no"))
    assert "resolution 'big': expected a number" in refusal(*options(toy, new, *MINI_OPTIONS, "--input_size", "big"))
    assert "--train_batch_size must be 2 or more" in refusal(
        *options(toy, new, *MINI_OPTIONS, "--train_batch_size", 1)
    )
    assert "--device nowhere cannot be used here" in refusal(*options(toy, new, "--device", "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_only_a_segmenter_is_overwritten(toy, tmp_path):
    output = tmp_path / "out"
    assert cli.main(options(toy, output, *MINI_OPTIONS)) == 0
    assert cli.main(options(toy, output, *MINI_OPTIONS, "--seed", 1, "--overwrite")) == 0
    assert json.loads((output / "segmenter.json").read_text())["seed"] == 1
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_the_training_and_keeps_the_best_network(number, toy, tmp_path, capsys):
    def stop_after_a_validation():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any("mean_iou" in log.read_text() for log in tmp_path.glob(".out.tmp-*/log.jsonl")):
                os.kill(os.getpid(), number)
                return
            time.sleep(0.02)

    # shells have what they start in the background ignore Ctrl-C
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}[number]
    before = signal.signal(number, own)
    thread = threading.Thread(target=stop_after_a_validation)
    thread.start()
    try:
        assert cli.main(options(toy, tmp_path / "out", *MINI_OPTIONS, "--max_train_steps", 100_000)) == 128 + number
        assert signal.getsignal(number) is own
    finally:
        thread.join()
        signal.signal(number, before)
    assert f"stopped by {number.name} after step" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "segmenter.json").read_text())
    assert record["stopped_by"] == number.name
    assert 2 <= record["best_step"] <= record["steps"] < 100_000
    load_judge(tmp_path / "out", LabelSet.from_json(toy / "labels.json"))
