"""Shuffled masks are never an image's own; a choice of images spreads over the masks."""

import pytest

from semseg_diffusers.evaluation.metrics import derangement, shuffled_indices, spread_choice


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
    with pytest.raises(ValueError, match="two or more masks to shuffle; got 1"):
        shuffled_indices(["a", "a"], seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_takes_second_samples_only_where_masks_run_out(seed):
    stems = [stem for stem in "abcdef" for _ in range(3)]
    for count in range(len(stems) + 1):
        chosen = spread_choice(stems, count, seed)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        taken = [sum(stems[place] == stem for place in chosen) for stem in "abcdef"]
        assert max(taken) - min(taken) <= 1
