"""Scores of a set from one confusion matrix equal a plain count, also where classes are absent or not judged.

Shuffled masks are never an image's own; a choice of images spreads over the masks.
"""

import numpy as np
import pytest
import torch

from semseg_diffusers.evaluation.metrics import (
    derangement,
    new_confusion_matrix,
    scores_from_confusion_matrix,
    shuffled_indices,
    spread_choice,
    update_confusion_matrix,
)


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
    assert matrix.compute().sum() == known.sum()

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
        scores_from_confusion_matrix(torch.zeros(3, 3, dtype=torch.long), ["road", "sky", "car"], 1)


# Seeded choices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_derangement_has_no_fixed_point(count, seed):
    order = derangement(count, seed)
    assert sorted(order) == list(range(count))
    assert all(place != index for index, place in enumerate(order))
    assert order == derangement(count, seed)


def test_shuffled_masks_are_of_other_images():
    stems = ["a", "a", "b", "b", "c", "c"]
    others = [stems[index] for index in shuffled_indices(stems, seed=0)]
    assert all(other != stem for stem, other in zip(stems, others, strict=True))
    assert set(others) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="two or more masks to shuffle; got 1"):
        shuffled_indices(["a", "a"], seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_spread_choice_covers_all_masks_before_second_samples(seed):
    stems = [stem for stem in "abcdef" for _ in range(3)]
    for count in range(len(stems) + 1):
        chosen = spread_choice(stems, count, seed)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        taken = [sum(stems[place] == stem for place in chosen) for stem in "abcdef"]
        assert max(taken) - min(taken) <= 1
