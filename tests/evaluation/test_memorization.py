"""A copied or mirrored training photo is found; distances equal a plain search; chunks change nothing."""

import numpy as np
import pytest
import torch

from semseg_diffusers.evaluation.memorization import nearest, nearest_by_pixels
from semseg_diffusers.generation import near_copies
from semseg_diffusers.generation.near_copies import thumbnails
from semseg_diffusers.toy.scenes import draw_scene


def random_features(count, seed):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def scene(seed, size=(48, 64)):
    return torch.from_numpy(np.asarray(draw_scene(seed, size)[0]).transpose(2, 0, 1).copy())


@pytest.fixture(scope="module")
def scenes():
    return [scene(seed) for seed in range(24)]


def names(count, prefix="image"):
    return [f"{prefix}_{index}" for index in range(count)]


def test_nearest_equals_a_plain_search():
    generated, train, held_out = random_features(7, 0), random_features(11, 1), random_features(9, 2)
    found = nearest(generated, names(7), train, names(11, "train"), held_out, num_closest=7)
    distances = 1 - torch.nn.functional.cosine_similarity(generated[:, None].double(), train[None].double(), dim=2)
    real = 1 - torch.nn.functional.cosine_similarity(held_out[:, None].double(), train[None].double(), dim=2)
    expected, real = distances.min(1), real.min(1).values.numpy()
    assert found.generated_median == pytest.approx(np.median(expected.values.numpy()), rel=1e-9)
    assert found.real_median == pytest.approx(np.median(real), rel=1e-9)
    assert found.threshold == pytest.approx(np.quantile(real, 0.01), rel=1e-9)
    assert found.num_closer == (expected.values.numpy() < np.quantile(real, 0.01)).sum()
    assert found.share_closer == found.num_closer / 7
    for match in found.closest:
        index = int(match.image.removeprefix("image_"))
        assert match.train_stem == f"train_{expected.indices[index]}"
        assert match.distance == pytest.approx(expected.values[index].item(), rel=1e-9)
        assert not match.mirrored
    assert [match.distance for match in found.closest] == sorted(match.distance for match in found.closest)


def test_a_copy_is_found_by_features_and_counted():
    train, held_out = random_features(20, 1), random_features(30, 2)
    generated = torch.cat([random_features(5, 0), 3 * train[13:14]])
    found = nearest(generated, names(6), train, names(20, "train"), held_out, num_closest=2)
    assert len(found.closest) == 2
    assert (found.closest[0].image, found.closest[0].train_stem) == ("image_5", "train_13")
    assert found.closest[0].distance == pytest.approx(0, abs=1e-12)
    assert found.num_closer >= 1


def test_chunks_order_and_ties_change_nothing(monkeypatch):
    generated, train, held_out = random_features(10, 0), random_features(12, 1), random_features(9, 2)
    generated[7] = generated[2]  # equal distances: the names decide
    whole = nearest(generated, names(10), train, names(12, "train"), held_out)
    monkeypatch.setattr(near_copies, "CHUNK", 3)
    chunked = nearest(generated, names(10), train, names(12, "train"), held_out)
    backwards = nearest(generated.flip(0), names(10)[::-1], train.flip(0), names(12, "train")[::-1], held_out.flip(0))
    for other in (chunked, backwards):
        assert [(match.image, match.train_stem) for match in other.closest] == [
            (match.image, match.train_stem) for match in whole.closest
        ]
        assert other.threshold == pytest.approx(whole.threshold, rel=1e-9)
        assert other.num_closer == whole.num_closer


def test_a_copied_and_a_mirrored_photo_are_found_by_pixels(scenes):
    train, held_out, generated = scenes[:12], scenes[12:18], scenes[18:]
    generated = [*generated, train[3], train[8].flip(2)]
    found = nearest_by_pixels(
        thumbnails(generated), names(8), thumbnails(train), names(12, "train"), thumbnails(held_out)
    )
    first, second = sorted(found.closest[:2], key=lambda match: match.image)
    assert (first.image, first.train_stem, first.mirrored) == ("image_6", "train_3", False)
    assert (second.image, second.train_stem, second.mirrored) == ("image_7", "train_8", True)
    assert first.distance == pytest.approx(0, abs=1e-3)
    assert second.distance == pytest.approx(0, abs=1e-3)
    assert found.closest[2].distance > 5
    assert found.num_closer >= 2
    assert found.threshold > 5


def test_pixel_distance_is_the_root_mean_square_of_grey_levels():
    black, grey, white = (torch.full((3, 40, 50), value, dtype=torch.uint8) for value in (0, 100, 255))
    found = nearest_by_pixels(thumbnails([grey]), ["a"], thumbnails([black, white]), ["b", "w"], thumbnails([white]))
    assert found.closest[0].distance == pytest.approx(100, abs=1e-3)
    assert (found.closest[0].train_stem, found.real_median) == ("b", pytest.approx(0, abs=1e-3))


@pytest.mark.parametrize("size", [(48, 64), (37, 53), (16, 16)])
def test_thumbnail_of_the_mirrored_image_is_the_mirrored_thumbnail(size):
    image = scene(0, size)
    straight, mirrored = thumbnails([image, image.flip(2)]).view(2, 32, 32)
    assert torch.allclose(straight.flip(1), mirrored, atol=1e-3)


def test_sets_that_cannot_be_compared_are_refused():
    features = random_features(3, 0)
    with pytest.raises(ValueError, match="1 or more images in each set; got 0 held-out real"):
        nearest(features, names(3), features, names(3), features[:0])
    with pytest.raises(ValueError, match="8 of the generated and 4 of the training and 8 of the held-out real images"):
        nearest(features, names(3), features[:, :4], names(3), features)
    with pytest.raises(ValueError, match="2 names of 3 generated images"):
        nearest(features, names(2), features, names(3), features)
    with pytest.raises(ValueError, match="4 stems of 3 training images"):
        nearest(features, names(3), features, names(4), features)
    with pytest.raises(ValueError, match="uint8 images .*got torch.float32"):
        thumbnails([torch.rand(3, 8, 8)])
    with pytest.raises(ValueError, match="at least one image"):
        thumbnails([])
