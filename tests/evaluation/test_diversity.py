"""Diversity equals a plain loop over pairs, and gives the reason if there is nothing to compare."""

import itertools

import pytest
import torch

from semseg_diffusers.evaluation.diversity import diversity, why_no_diversity


def random_features(count, seed):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) + 1


def mean_distance(pairs):
    pairs = list(pairs)
    cosines = [torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item() for a, b in pairs]
    return sum(1 - cosine for cosine in cosines) / len(pairs)


def test_diversity_equals_a_plain_loop_over_pairs():
    features, real = random_features(9, 0), random_features(6, 1)
    masks = ["a", "b", "c", "a", "b", "a", "d", "c", "a"]  # 4, 2, 2 and 1 samples, not in order
    found = diversity(features, masks, real)
    pairs = list(itertools.combinations(range(9), 2))
    within = {}
    for i, j in pairs:
        if masks[i] == masks[j]:
            within.setdefault(masks[i], []).append((features[i], features[j]))
    within = sum(map(mean_distance, within.values())) / 3
    between = mean_distance((features[i], features[j]) for i, j in pairs if masks[i] != masks[j])
    assert found.within_masks == pytest.approx(within, rel=1e-9)
    assert found.between_masks == pytest.approx(between, rel=1e-9)
    assert found.real_between == pytest.approx(mean_distance(itertools.combinations(real, 2)), rel=1e-9)
    assert found.ratio == pytest.approx(within / between, rel=1e-9)
    assert (found.num_masks, found.samples_per_mask) == (3, 2)


def test_diversity_does_not_depend_on_order_or_length_of_features():
    features, masks = random_features(6, 0), list("aabbcc")
    order = [3, 0, 5, 1, 4, 2]
    found = diversity(features, masks)
    shuffled = diversity(features[order] * 8, [masks[index] for index in order])
    assert shuffled.within_masks == pytest.approx(found.within_masks, rel=1e-9)
    assert shuffled.between_masks == pytest.approx(found.between_masks, rel=1e-9)


def test_samples_of_one_seed_have_no_distance():
    features = random_features(3, 0).repeat_interleave(4, 0)
    found = diversity(features, [mask for mask in "abc" for _ in range(4)])
    assert found.within_masks == pytest.approx(0, abs=1e-12)
    assert found.ratio == pytest.approx(0, abs=1e-12)
    assert found.between_masks > 0.01


def test_samples_that_ignore_their_mask_have_ratio_one():
    samples = random_features(400, 0)
    found = diversity(samples, [f"mask {index // 4}" for index in range(400)])
    assert found.ratio == pytest.approx(1, abs=0.1)


def test_one_mask_and_one_real_image_give_within_masks_only():
    found = diversity(random_features(3, 0), ["a"] * 3, real=random_features(1, 1))
    assert (found.between_masks, found.real_between, found.ratio) == (None, None, None)
    assert found.within_masks > 0


def test_equal_images_of_all_masks_have_no_ratio():
    found = diversity(torch.ones(4, 1), list("aabb"))
    assert (found.within_masks, found.between_masks, found.ratio) == (0, 0, None)


def test_one_sample_per_mask_gives_the_reason():
    assert why_no_diversity(["a", "b", "a"]) is None
    reason = why_no_diversity(["a", "b", "c"])
    assert reason == (
        "diversity compares samples of the same mask; 3 images are of 3 masks, one each. Generate two or more per "
        "mask: --num_images_per_mask 2."
    )
    with pytest.raises(ValueError, match="one each"):
        diversity(random_features(3, 0), ["a", "b", "c"])


def test_numbers_and_widths_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="3 images and 2 names"):
        diversity(random_features(3, 0), ["a", "a"])
    with pytest.raises(ValueError, match="got 5 of the generated and 4 of the real"):
        diversity(random_features(2, 0), ["a", "a"], real=torch.ones(3, 4))
