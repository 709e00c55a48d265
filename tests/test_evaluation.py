"""Agreement: scores equal a plain count, the segmenter learns, and shuffled masks score lower than their own."""

import json

import numpy as np
import pytest
import torch

from semseg_diffusers import cli
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.loading import load_pairs
from semseg_diffusers.data.toy import write_toy_dataset
from semseg_diffusers.evaluation import segmentation
from semseg_diffusers.evaluation.command import derangement, score_generated, shuffled_indices
from semseg_diffusers.evaluation.metrics import (
    new_confusion_matrix,
    scores_from_confusion_matrix,
    update_confusion_matrix,
)
from semseg_diffusers.evaluation.segmentation import (
    agreement,
    augment,
    balanced_class_weights,
    load_segmenter,
    new_segmenter,
    predict,
    train_segmenter,
)


LABELS = LabelSet(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))


class ColourPairs:
    """Pairs whose photo shows each class in its own colour: easy to learn, no files."""

    labels = LABELS
    resolution = (16, 16)

    def __init__(self, count: int, unknown: bool = False):
        generator = torch.Generator().manual_seed(count)
        self.masks = torch.randint(0, 3, (count, 4, 4), generator=generator)
        self.masks = self.masks.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)  # (count, 16, 16)
        self.images = (
            torch.tensor(LABELS.colors, dtype=torch.uint8)[self.masks.long()].permute(0, 3, 1, 2).contiguous()
        )
        if unknown:
            self.masks[:] = 255
        self.stems = [f"scene_{index}" for index in range(count)]

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        return {"image": self.images[index], "mask": self.masks[index], "stem": self.stems[index]}


@pytest.fixture(scope="module")
def segmenter():
    return train_segmenter(ColourPairs(32), num_steps=60, batch_size=8, seed=0)


def test_confusion_matrix_equals_a_plain_count():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 19, (2, 5, 32, 32)).astype(np.uint8)
    truth[:, :3] = 255
    truth[truth == 17] = 16  # class 17 is absent
    matrix = new_confusion_matrix(19)
    for batch in (slice(0, 2), slice(2, 5)):
        update_confusion_matrix(matrix, torch.from_numpy(predicted[batch]), torch.from_numpy(truth[batch]))
    known = truth != 255
    counts = np.zeros((19, 19), np.int64)
    np.add.at(counts, (truth[known].astype(int), predicted[known].astype(int)), 1)
    assert np.array_equal(matrix.compute().numpy()[:19, :19], counts)

    names = [f"class {index}" for index in range(19)]
    scores = scores_from_confusion_matrix(matrix.compute(), names, num_images=5)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    present = [index for index in range(19) if index != 17]
    assert scores.absent == ("class 17",)
    assert scores.mean_iou == pytest.approx(np.mean([counts[i, i] / union[i] for i in present]))
    assert scores.pixel_accuracy == pytest.approx(counts.trace() / counts.sum())
    assert scores.iou["class 3"] == pytest.approx(counts[3, 3] / union[3])
    assert scores.num_pixels == known.sum()


def test_masks_without_a_labelled_pixel_cannot_be_scored():
    with pytest.raises(ValueError, match="no labelled pixel"):
        scores_from_confusion_matrix(torch.zeros(3, 3, dtype=torch.long), LABELS.names, 1)


def test_augmentation_moves_image_and_mask_together_and_invents_no_id(monkeypatch):
    monkeypatch.setattr(segmentation, "BRIGHTNESS", 0)
    monkeypatch.setattr(segmentation, "CONTRAST", 0)
    masks = ColourPairs(16).masks.repeat_interleave(4, 1).repeat_interleave(4, 2)  # (16, 64, 64)
    images = masks[:, None].expand(-1, 3, -1, -1).float()
    moved_images, moved_masks = augment(images, masks, torch.Generator().manual_seed(1))
    assert moved_images.shape == images.shape
    assert (moved_masks != masks).float().mean() > 0.2
    assert set(moved_masks.unique().tolist()) <= {0, 1, 2}
    assert (moved_images[:, 0] == moved_masks).float().mean() > 0.8  # all but the borders, which the image blurs


def test_augmentation_changes_the_light_of_each_sample_alike():
    images = torch.zeros(4, 3, 16, 16)
    moved, _ = augment(images, torch.zeros(4, 16, 16, dtype=torch.long), torch.Generator().manual_seed(1))
    assert all(len(sample.unique()) == 1 for sample in moved)
    assert len(moved.unique()) == 4
    assert moved.abs().max() <= segmentation.BRIGHTNESS


def test_unknown_pixels_stay_unknown_under_augmentation():
    pairs = ColourPairs(4, unknown=True)
    _, masks = augment(pairs.images.float(), pairs.masks, torch.Generator().manual_seed(0))
    assert masks.unique().tolist() == [255]


def test_the_segmenter_learns_and_reads_shapes_of_its_input(segmenter):
    pairs = ColourPairs(8)
    ids = predict(segmenter, pairs.images)
    assert ids.shape == (8, 16, 16)
    assert predict(segmenter, torch.zeros(1, 3, 24, 40)).shape == (1, 24, 40)
    with pytest.raises(ValueError, match="from 16 pixels a side on; got 8 x 40"):
        predict(segmenter, torch.zeros(1, 3, 8, 40))
    scores = agreement(segmenter, pairs.images, pairs.masks, LABELS)
    assert scores.mean_iou > 0.6
    assert scores.num_images == 8


def test_uint8_and_float_images_read_the_same(segmenter):
    images = ColourPairs(4).images
    assert torch.equal(predict(segmenter, images), predict(segmenter, images.float() / 127.5 - 1))


def test_agreement_does_not_depend_on_the_batch_size(segmenter):
    pairs = ColourPairs(7)
    one, five = (agreement(segmenter, pairs.images, pairs.masks, LABELS, batch_size=size) for size in (1, 5))
    assert one == five


def test_agreement_takes_images_of_several_sizes(segmenter):
    images = [torch.zeros(3, 16, 16), torch.zeros(3, 16, 24), torch.zeros(3, 16, 16)]
    masks = [torch.zeros(16, 16, dtype=torch.uint8), torch.zeros(16, 24, dtype=torch.uint8)]
    assert agreement(segmenter, images, [*masks, masks[0]], LABELS).num_pixels == 16 * (16 + 24 + 16)
    with pytest.raises(ValueError, match=r"image 1 is \(16, 24\) and its mask \(16, 16\)"):
        agreement(segmenter, images, [masks[0]] * 3, LABELS)


def test_the_same_seed_trains_the_same_segmenter_and_leaves_the_global_state():
    state = torch.random.get_rng_state()
    first, second, other = (
        train_segmenter(ColourPairs(8), num_steps=2, batch_size=4, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_balanced_weights_lift_rare_classes_and_leave_the_mean_pixel_alone():
    pairs = ColourPairs(1)
    pairs.masks[:] = 0
    pairs.masks[:, :1] = 1  # one pixel in 15 of those that are known
    pairs.masks[:, 1:2] = 255
    weights = balanced_class_weights(pairs)
    assert weights[1] / weights[0] == pytest.approx(14**0.5)
    assert weights[2] == 0
    assert (weights[0] * 14 + weights[1]) / 15 == pytest.approx(1)
    model = train_segmenter(pairs, num_steps=2, batch_size=1, class_weights=weights)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_unknown_photos_alone_leave_finite_weights():
    model = train_segmenter(ColourPairs(4, unknown=True), num_steps=2, batch_size=4)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_training_calls_back_after_each_step():
    steps = []
    train_segmenter(
        ColourPairs(4), num_steps=3, batch_size=2, on_step=lambda step, loss: steps.append((step, loss > 0))
    )
    assert steps == [(1, True), (2, True), (3, True)]


def test_impossible_training_is_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        train_segmenter(ColourPairs(0))
    with pytest.raises(ValueError, match="num_steps and batch_size must be at least 1; got 0 and 4"):
        train_segmenter(ColourPairs(1), num_steps=0, batch_size=4)


def test_a_saved_segmenter_reads_the_same_and_knows_its_classes(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = load_segmenter(str(tmp_path), LABELS)
    images = ColourPairs(4).images
    assert torch.equal(predict(loaded, images), predict(segmenter, images))
    assert LabelSet.from_config(loaded.config.label_set) == LABELS
    other = LabelSet(("road", "sky", "bus"), LABELS.colors)
    with pytest.raises(ValueError, match="class 2 is 'car' there and 'bus' in the data"):
        load_segmenter(str(tmp_path), other)


def test_a_foreign_segmenter_is_refused(tmp_path):
    model = new_segmenter(LABELS)
    del model.config.upsampling
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was not made by semseg_diffusers"):
        load_segmenter(str(tmp_path), LABELS)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_a_derangement_keeps_nothing_in_place(count, seed):
    order = derangement(count, seed)
    assert sorted(order) == list(range(count))
    assert all(place != index for index, place in enumerate(order))
    assert order == derangement(count, seed)


def test_shuffled_images_never_meet_their_own_mask():
    stems = ["a", "a", "b", "b", "c", "c"]
    others = [stems[index] for index in shuffled_indices(stems, seed=0)]
    assert all(other != stem for stem, other in zip(stems, others, strict=True))
    assert set(others) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="from two on; got 1"):
        shuffled_indices(["a", "a"], seed=0)


def test_shuffled_masks_score_lower_than_their_own(segmenter):
    pairs = ColourPairs(12)
    scores = score_generated(segmenter, pairs, pairs, seed=0)
    assert scores["generated"] == scores["real"]
    assert scores["shuffled"].mean_iou < scores["generated"].mean_iou - 0.2
    assert scores["shuffled"].num_images == 12


def test_real_photos_are_those_of_the_generated_masks(segmenter):
    real, generated = ColourPairs(12), ColourPairs(5)
    assert score_generated(segmenter, real, generated, seed=0)["real"].num_images == 5
    generated.stems = [f"edited_{index}" for index in range(5)]
    assert score_generated(segmenter, real, generated, seed=0)["real"].num_images == 12


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "scenes", num_train=6, num_val=3, size=(32, 32))


def agreement_options(toy, generated, output):
    return [
        *("agreement", "--dataset", str(toy), "--generated", str(generated), "--output", str(output)),
        *("--segmenter_steps", "2", "--segmenter_batch_size", "2", "--device", "cpu"),
    ]


@pytest.fixture
def generated(toy, tmp_path):
    """A folder as `generate` writes it, filled with real toy scenes."""
    import shutil

    shutil.copytree(toy / "val", tmp_path / "generated")
    shutil.copy(toy / "labels.json", tmp_path / "generated")
    return tmp_path / "generated"


def test_the_command_writes_scores_with_what_they_depend_on(toy, generated, tmp_path, capsys):
    output = tmp_path / "results" / "agreement.json"
    options = agreement_options(toy, generated, output)
    assert cli.main([*options, "--save_segmenter", str(tmp_path / "segmenter")]) == 0
    assert "| generated, masks of others (floor) |" in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["scores"]["generated"]["num_images"] == results["scores"]["shuffled"]["num_images"] == 3
    assert results["scores"]["generated"]["mean_iou"] == results["scores"]["real"]["mean_iou"]
    assert results["resolution"] == {"real": [32, 32], "generated": [32, 32]}
    assert results["settings"]["segmenter_steps"] == 2
    assert {"torch", "transformers", "torchmetrics", "semseg_diffusers"} == set(results["versions"])

    assert cli.main([*options, "--segmenter", str(tmp_path / "segmenter")]) == 0
    assert json.loads(output.read_text())["scores"] == results["scores"]


def test_another_label_set_is_refused(toy, generated, tmp_path, capsys):
    labels = LabelSet.from_json(generated / "labels.json")
    LabelSet(("street", *labels.names[1:]), labels.colors).save_json(generated / "labels.json")
    assert cli.main(agreement_options(toy, generated, tmp_path / "a.json")) == 2
    assert "other label sets (street" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_load_pairs_feeds_the_segmenter(toy):
    model = train_segmenter(load_pairs(toy, "train"), num_steps=1, batch_size=2)
    val = load_pairs(toy, "val")
    scores = agreement(model, [val[0]["image"]], [val[0]["mask"]], val.labels)
    assert scores.num_pixels == 32 * 32
