"""FID, KID and SSIM equal independent values, do not depend on order, and refuse unsuitable sets."""

import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from semseg_diffusers.evaluation.fidelity import fid, kid, paired_ssim, small_set_note
from semseg_diffusers.toy.scenes import draw_scene


class Precomputed(torch.nn.Module):
    num_features = 6

    def forward(self, features):
        return features


def random_features(count, seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + torch.randn(width, generator=generator)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet(mean1, cov1, mean2, cov2):
    """Closed form with the symmetric root: tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2)."""
    half = root(cov1)
    return ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root(half @ cov2 @ half))


def moments(features):
    return features.double().numpy().mean(0), np.cov(features.double().numpy(), rowvar=False)


def with_moments(count, mean, cov, seed):
    """Features whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(root(np.cov(raw, rowvar=False)))
    return torch.from_numpy(white @ root(cov) + mean)


def mmd(real, generated):
    """Unbiased estimate with the kernel (x.y / D + 1)^3, by plain loops over pairs."""
    real, generated = real.double().numpy(), generated.double().numpy()
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    inside = [
        np.mean([kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j])
        for points in (real, generated)
    ]
    return sum(inside) - 2 * np.mean([kernel(a, b) for a in real for b in generated])


# FID -----------------------------------------------------------------------------------------------------------------


def test_fid_equals_the_closed_form_of_its_own_moments():
    real, generated = random_features(60, 0), random_features(45, 1)
    expected = frechet(*moments(real), *moments(generated))
    assert fid(real, generated) == pytest.approx(expected, rel=1e-9)


def test_fid_equals_the_closed_form_of_gaussians_with_known_moments():
    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2.
    real = with_moments(30, np.array([1.0, -2.0, 0.5]), np.diag([4.0, 1.0, 0.25]), 0)
    generated = with_moments(50, np.array([1.0, 1.0, 0.5]), np.diag([1.0, 1.0, 2.25]), 1)
    assert fid(real, generated) == pytest.approx(9 + (2 - 1) ** 2 + (0.5 - 1.5) ** 2, rel=1e-9)
    # A rotated covariance against the identity, whose root is known by its eigenvalues.
    angle = np.pi / 6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    real = with_moments(30, np.zeros(2), turn @ np.diag([9.0, 4.0]) @ turn.T, 2)
    generated = with_moments(30, np.array([0.0, 2.0]), np.eye(2), 3)
    assert fid(real, generated) == pytest.approx(4 + (3 - 1) ** 2 + (2 - 1) ** 2, rel=1e-9)


def test_fid_equals_torchmetrics_on_the_same_features():
    real, generated = random_features(60, 0), random_features(45, 1)
    metric = FrechetInceptionDistance(feature=Precomputed())
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    assert fid(real, generated) == metric.compute().item()


def test_fid_does_not_depend_on_order():
    real, generated = random_features(60, 0), random_features(45, 1)
    shuffled = generated[torch.randperm(45, generator=torch.Generator().manual_seed(0))]
    assert fid(real, shuffled) == pytest.approx(fid(real, generated), rel=1e-9)
    assert fid(torch.cat(real.split(7)), generated) == fid(real, generated)
    assert fid(generated, real) == pytest.approx(fid(real, generated), rel=1e-9)


@pytest.mark.parametrize("width", [6, 100])  # 100: fewer images than features
def test_fid_of_a_set_with_itself_is_zero(width):
    real = random_features(60, 0, width)
    scale = real.double().var(0).sum().item()
    assert 0 <= fid(real, real) < 1e-6 * scale
    assert 0 <= fid(real, real.flip(0)) < 1e-6 * scale


def test_fid_of_two_images_is_computed():
    real, generated = random_features(2, 0), random_features(2, 1)
    assert fid(real, generated) == pytest.approx(frechet(*moments(real), *moments(generated)), rel=1e-6)


def test_fid_and_kid_rise_with_blur():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 5, stride=2), torch.nn.ReLU()
        )
    scenes = [torch.from_numpy(np.asarray(draw_scene(seed, (48, 64))[0]).copy()) for seed in range(48)]
    photos = torch.stack(scenes).permute(0, 3, 1, 2).float().contiguous() / 255  # (48, 3, 48, 64)

    @torch.no_grad()
    def features(images):
        return network(images).mean((2, 3))

    real, others = features(photos[:24]), photos[24:]
    blurred = [features(others)]
    for size in (3, 7, 15):
        padded = F.pad(others, (size // 2,) * 4, mode="replicate")
        blurred.append(features(F.avg_pool2d(padded, size, stride=1)))
    for distances in (
        [fid(real, found) for found in blurred],
        [kid(real, found, seed=0, subset_size=24, subsets=1).mean for found in blurred],
    ):
        assert distances == sorted(distances)
        assert len(set(distances)) == len(distances)


# KID -----------------------------------------------------------------------------------------------------------------


def test_kid_of_whole_sets_equals_a_plain_computation():
    real, generated = random_features(20, 0), random_features(20, 1)
    found = kid(real, generated, seed=0, subsets=3, subset_size=20)
    assert found.mean == pytest.approx(mmd(real, generated), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-9 * abs(found.mean))
    assert found.subset_size == 20


def test_kid_equals_torchmetrics_with_the_same_seed():
    real, generated = random_features(30, 0), random_features(25, 1)
    direction = torch.linspace(1, 2, 6, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(feature=Precomputed(), subsets=5, subset_size=10)
    metric.update(real.double()[(real.double() @ direction).argsort()], real=True)
    metric.update(generated.double()[(generated.double() @ direction).argsort()], real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mean, std = metric.compute()
    found = kid(real, generated, seed=3, subsets=5, subset_size=10)
    assert (found.mean, found.std) == (mean.item(), std.item())


def test_kid_subset_is_half_of_the_smaller_set_unless_given():
    real, generated = random_features(30, 0), random_features(25, 1)
    assert kid(real, generated, seed=0, subsets=2).subset_size == 12
    assert kid(real[:3], generated, seed=0, subsets=2).subset_size == 2
    assert kid(real, generated, seed=0, subsets=2, subset_size=25).subset_size == 25
    large = random_features(2100, 0, 2)
    assert kid(large, large, seed=0, subsets=1).subset_size == 1000


def test_kid_depends_on_its_seed_and_keeps_the_global_random_state():
    real, generated = random_features(30, 0), random_features(25, 1)
    before = torch.get_rng_state()
    first, again, other = (kid(real, generated, seed=seed, subsets=5) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first.mean != other.mean


def test_kid_does_not_depend_on_order():
    real, generated = random_features(30, 0), random_features(25, 1)
    shuffled = generated[torch.randperm(25, generator=torch.Generator().manual_seed(0))]
    assert kid(real, shuffled, seed=0, subsets=5) == kid(real, generated, seed=0, subsets=5)
    assert kid(torch.cat(real.split(7)), generated, seed=0) == kid(real, generated, seed=0)


def test_kid_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kid(random_features(8, 0), random_features(8, 1), seed=0, subsets=2)


@pytest.mark.parametrize("size", [1, 26])
def test_kid_subset_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=rf"of 2 to 25 images \(30 real, 25 generated\); got {size}"):
        kid(random_features(30, 0), random_features(25, 1), seed=0, subset_size=size)


def test_kid_without_subsets_is_refused():
    with pytest.raises(ValueError, match="at least 1 subset; got 0"):
        kid(random_features(8, 0), random_features(8, 1), seed=0, subsets=0)


# Both ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [fid, lambda real, generated: kid(real, generated, seed=0)])
@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (torch.zeros(1, 6), torch.zeros(5, 6), "2 or more images in each set; got 1 real"),
        (torch.zeros(5, 6), torch.zeros(0, 6), "2 or more images in each set; got 0 generated"),
        (torch.zeros(5, 6), torch.zeros(5, 7), "got 6 of the real and 7 of the generated"),
        (torch.zeros(5, 6), torch.zeros(5), r"\(N, D\); got \(5,\) for the generated"),
        (torch.full((5, 6), torch.inf), torch.zeros(5, 6), "real images are not all finite"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(distance, real, generated, message):
    with pytest.raises(ValueError, match=message):
        distance(real, generated)


def test_fewer_images_than_features_are_noted():
    assert small_set_note(500, 385, 384) is None
    assert "Fréchet distance of 101 images with 384 features" in small_set_note(367, 101, 384)
    assert "Fréchet distance of 384 images" in small_set_note(384, 1000, 384)


def test_torch_fidelity_without_torchvision_is_named(clean_process, tmp_path):
    """A package of that name that imports a torchvision which is not there: as torch-fidelity does."""
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity" / "__init__.py").write_text("import torchvision\n")
    (tmp_path / "torch_fidelity-0.4.0.dist-info").mkdir()
    (tmp_path / "torch_fidelity-0.4.0.dist-info" / "METADATA").write_text("Name: torch-fidelity\nVersion: 0.4.0\n")
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nsys.modules['torchvision'] = None\nimport torch\n"
        "from semseg_diffusers.evaluation.fidelity import fid\nassert 'torchmetrics' not in sys.modules\n"
        "try:\n    fid(torch.rand(4, 2), torch.rand(4, 2))\nexcept ValueError as err:\n    print(err)\n"
    )
    said = clean_process(code, tmp_path).stdout
    assert "torch-fidelity is installed and imports a torchvision" in said
    assert "pip uninstall torch-fidelity" in said


def test_missing_torchmetrics_is_reported_as_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ModuleNotFoundError, match="torchmetrics"):
        fid(random_features(4, 0), random_features(4, 1))


# SSIM ----------------------------------------------------------------------------------------------------------------


def photo(seed, size=(16, 24)):
    return torch.from_numpy(np.asarray(draw_scene(seed, size)[0]).transpose(2, 0, 1).copy())


def test_paired_ssim_is_the_mean_of_torchmetrics_per_pair():
    images, references = [photo(seed) for seed in range(3)], [photo(seed) for seed in range(10, 13)]
    images.append(photo(5, (32, 32)))
    references.append(photo(6, (32, 32)))
    expected = [
        structural_similarity_index_measure(a[None].float(), b[None].float(), data_range=255.0).item()
        for a, b in zip(images, references, strict=True)
    ]
    assert paired_ssim(images, references) == pytest.approx(np.mean(expected), abs=1e-7)
    assert paired_ssim(iter(images), iter(images)) == pytest.approx(1, abs=1e-6)


def test_ssim_refuses_unsuitable_pairs():
    image = photo(0)
    with pytest.raises(ValueError, match=r"pair 1 has \(16, 24\) and \(24, 24\)"):
        paired_ssim([image, image], [image, photo(0, (24, 24))])
    with pytest.raises(ValueError, match=r"at least 11 pixels a side.*pair 0 has \(10, 24\)"):
        paired_ssim([image[:, :10]], [image[:, :10]])
    with pytest.raises(ValueError, match="uint8 images .*got torch.float32"):
        paired_ssim([image], [image / 255])
    with pytest.raises(ValueError, match="at least one pair"):
        paired_ssim([], [])
    with pytest.raises(ValueError, match="shorter"):
        paired_ssim([image, image], [image])
