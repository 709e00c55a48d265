"""What an upscaler's images have to agree with: reduction, projection, noise, tiles."""

import numpy as np
import pytest
import torch
from PIL import Image

from semseg_diffusers import consistency_psnr
from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.pipelines.upscaling import (
    NUM_NOISE_LEVELS,
    add_low_res_noise,
    enlarge,
    project_onto,
    reduce_images,
    tile_starts,
    tile_weights,
    tile_windows,
)


def photo(height: int = 48, width: int = 80) -> Image.Image:
    """Smooth areas, edges and noise."""
    numbers = np.random.default_rng(0)
    pixels = np.kron(numbers.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    return Image.fromarray((pixels + numbers.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.mark.parametrize("factor", [2, 4])
def test_the_reduction_is_the_one_that_prepare_uses(factor):
    image = photo().point(lambda level: level // 2 + 64)  # Pillow clips between rows and columns
    size = image.height // factor, image.width // factor
    prepared = crop_resize(image.height, image.width, size).resize_image(image)
    reduced = (reduce_images(to_tensor(image), *size).clamp(-1, 1) + 1) * 127.5
    assert np.abs(reduced[0].permute(1, 2, 0).numpy() - np.asarray(prepared)).max() < 1.01  # Pillow rounds twice


@pytest.mark.parametrize("factor", [2, 4])
def test_a_projected_image_reduces_to_what_it_was_made_from(factor):
    image = to_tensor(photo())
    low_res = reduce_images(image, 48 // factor, 80 // factor)
    guess = enlarge(low_res, 48, 80) + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    projected = project_onto(guess.clamp(-1, 1), low_res)
    assert projected.abs().max() <= 1
    errors = [(reduce_images(each, *low_res.shape[-2:]) - low_res).square().mean() for each in (guess, projected)]
    assert errors[1] < 1e-2 * errors[0]
    assert (projected - image).square().mean() < (guess - image).square().mean()


def test_an_image_that_agrees_is_not_changed_by_the_projection():
    image = to_tensor(photo())
    assert torch.allclose(project_onto(image, reduce_images(image, 12, 20)), image, atol=1e-9)


def test_consistency_is_infinite_for_equality_and_falls_with_the_error():
    low_res = np.full((6, 8, 3), 100, dtype=np.uint8)
    large = np.full((24, 32, 3), 100, dtype=np.uint8)
    found = consistency_psnr([large + 1, Image.fromarray(large + 10)], [low_res, low_res])
    assert found == pytest.approx([48.13, 28.13], abs=0.01)
    assert consistency_psnr(np.zeros_like(large), np.zeros_like(low_res)) == [float("inf")]
    with pytest.raises(ValueError, match=r"is 24 x 32 and its low_res 6 x 9 .*expected a whole multiple"):
        consistency_psnr(large, np.zeros((6, 9, 3)))


def test_noise_levels_go_from_nothing_to_noise_alone():
    image, noise = torch.ones(3, 3, 4, 4), torch.full((3, 3, 4, 4), -1.0)
    levels = torch.tensor([0, 100, NUM_NOISE_LEVELS])
    noisy = add_low_res_noise(image, noise, levels)[:, 0, 0, 0]
    assert noisy[0] == 1
    assert 0 < noisy[1] < 0.9
    assert noisy[2] < -0.98
    assert torch.equal(add_low_res_noise(image, noise, 100)[0], add_low_res_noise(image, noise, levels)[1])


@pytest.mark.parametrize(("length", "size", "overlap"), [(512, 256, 64), (96, 32, 8), (40, 32, 0), (32, 64, 16)])
def test_tiles_cover_a_side_and_overlap(length, size, overlap):
    starts = tile_starts(length, size, overlap)
    assert (starts[0], starts[-1] + min(size, length)) == (0, length)
    steps = [second - first for first, second in zip(starts, starts[1:], strict=False)]
    assert all(0 < step <= size - overlap for step in steps)


def test_weights_of_tiles_fall_towards_borders_and_are_never_zero():
    weights = tile_weights(16, 24, 4)
    assert weights.shape == (16, 24)
    assert weights.min() > 0
    assert weights[8, 12] == 1
    assert (weights[8, :4].diff() > 0).all()
    total = torch.zeros(32, 48)
    for rows, columns in tile_windows(32, 48, (16, 24), 4):
        total[rows, columns] += weights
    assert total.min() > 0
