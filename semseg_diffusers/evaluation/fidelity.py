"""Distances between sets of features, Fréchet (FID, Heusel et al. 2017) and kernel (KID, Binkowski et al. 2018); SSIM
and PSNR of pairs.

They are called FID and KID in the features of Inception only. Computed by torchmetrics in float64, from features that
`cached_inference` extracted.
"""

import importlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


MAX_KID_SUBSET = 1000  # torchmetrics' default; smaller sets take half of the smaller one
SSIM_KERNEL = 11  # side of torchmetrics' default window in pixels, a Gaussian of sigma 1.5
NO_SYNC = {"sync_on_compute": False}  # one process has all features; torchmetrics would wait for the others


@dataclass(frozen=True)
class Kid:
    """Kernel distance over random subsets; 0 on average for sets of the same distribution, so it can be negative."""

    mean: float
    std: float  # between subsets
    subset_size: int


def check_features(sets: Mapping[str, torch.Tensor], minimum: int = 2) -> list[torch.Tensor]:
    """Return sets of features (N, D), given by name, as float64 on the CPU."""
    for name, features in sets.items():
        if features.ndim != 2:
            raise ValueError(f"expected features (N, D); got {tuple(features.shape)} for the {name} images.")
        if len(features) < minimum:
            raise ValueError(f"expected {minimum} or more images in each set; got {len(features)} {name}.")
        if not features.isfinite().all():
            raise ValueError(f"features of the {name} images are not all finite.")
    if len({features.shape[1] for features in sets.values()}) > 1:
        widths = " and ".join(f"{features.shape[1]} of the {name}" for name, features in sets.items())
        raise ValueError(f"expected features of one network; got {widths} images.")
    return [features.detach().cpu().double() for features in sets.values()]


class _PrecomputedFeatures(torch.nn.Identity):
    """Takes the place of the network in torchmetrics: its inputs are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features  # torchmetrics would try a forward pass with an image otherwise


def fid(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Compute the Fréchet distance between Gaussians fitted to two sets of features.

    Biased upwards for small sets (see `small_set_note`): compare only values of equal numbers of images, and with the
    distance between two sets of real images of these sizes.

    Args:
        real: (N, D), N at least 2.
        generated: (M, D), M at least 2.

    Returns:
        distance, at least 0, in squared units of the features.

    Raises:
        ValueError: sets that are too small, of different width, or not finite; torchmetrics cannot be loaded.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
        >>> round(fid(square, square + torch.tensor([3.0, 0.0])), 6)  # the means are 3 apart, the spread is the same
        9.0
    """
    real, generated = check_features({"real": real, "generated": generated})
    network = _PrecomputedFeatures(real.shape[1])
    metric = _torchmetrics("image.fid").FrechetInceptionDistance(feature=network, **NO_SYNC)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(0.0, metric.compute().item())  # rounding of a rank-deficient covariance can give values below 0


def kid(
    real: torch.Tensor, generated: torch.Tensor, seed: int, subsets: int = 100, subset_size: int | None = None
) -> Kid:
    """Compute the unbiased squared maximum mean discrepancy with a cubic kernel, for sets too small for FID.

    The order of the images does not matter, and the global random state stays as it was.

    Args:
        real: (N, D), N at least 2.
        generated: (M, D), M at least 2.
        seed: of the subsets.
        subsets: number of subsets.
        subset_size: images of each set in a subset, at least 2; by default half of the smaller set, at most 1000.

    Returns:
        mean and standard deviation over the subsets, with their size.

    Raises:
        ValueError: a subset larger than a set, and as `fid`.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> kid(points, points + 5, seed=0).subset_size
        2
    """
    real, generated = check_features({"real": real, "generated": generated})
    smaller = min(len(real), len(generated))
    size = min(MAX_KID_SUBSET, max(2, smaller // 2)) if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        raise ValueError(
            f"expected a KID subset of 2 to {smaller} images ({len(real)} real, {len(generated)} generated); got "
            f"{size}. Lower it, or omit it for half the smaller set."
        )
    if subsets < 1:
        raise ValueError(f"KID needs at least 1 subset; got {subsets}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = _torchmetrics("image.kid").KernelInceptionDistance(
            feature=_PrecomputedFeatures(real.shape[1]), subsets=subsets, subset_size=size, **NO_SYNC
        )
    metric.update(_canonical_order(real), real=True)
    metric.update(_canonical_order(generated), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # used by torchmetrics; torch.manual_seed would seed GPUs too
        mean, std = metric.compute()
    return Kid(mean.item(), std.item(), size)


def small_set_note(num_real: int, num_generated: int, num_features: int) -> str | None:
    """Return the caveat for a Fréchet distance of fewer images than features; None if there are enough."""
    smaller = min(num_real, num_generated)
    if smaller > num_features:
        return None
    return (
        f"Fréchet distance of {smaller} images with {num_features} features: the covariance of fewer images than "
        "features has no full rank, and the bias of small sets (Chong and Forsyth 2020) can exceed the measured "
        "difference. Compare it only with that of real images at the same numbers, and prefer the kernel distance."
    )


def paired_ssim(images: Iterable[torch.Tensor], references: Iterable[torch.Tensor]) -> float:
    """Compute the mean structural similarity of pairs (Wang et al. 2004) by torchmetrics with its default window.

    The paper reports it between a generated image and the real image of its mask. A mask fits many images, so a good
    generator does not maximize it: for continuity only.

    Args:
        images: uint8 (3, H, W) each, at least 11 pixels a side.
        references: as many, of the same sizes.

    Returns:
        mean over pairs, in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: no pairs, different numbers, sizes that differ or are too small, another type.

    Example:
        >>> image = torch.arange(3 * 16 * 16, dtype=torch.uint8).view(3, 16, 16)
        >>> paired_ssim([image], [image])
        1.0
    """
    return _mean_over_pairs("SSIM", "structural_similarity_index_measure", images, references, SSIM_KERNEL)


def paired_psnr(images: Iterable[torch.Tensor], references: Iterable[torch.Tensor]) -> float:
    """Compute the mean peak signal-to-noise ratio of pairs in decibels, by torchmetrics, as of reconstructions.

    Args:
        images: uint8 (3, H, W) each.
        references: as many, of the same sizes.

    Returns:
        mean over pairs of the ratio of each; infinite if a pair is equal.

    Raises:
        ValueError: no pairs, different numbers, sizes that differ, another type.

    Example:
        >>> image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        >>> round(paired_psnr([image], [image + 16]), 2)  # 20 log10(255 / 16)
        24.05
    """
    return _mean_over_pairs("PSNR", "peak_signal_noise_ratio", images, references)


def _mean_over_pairs(
    name: str, metric: str, images: Iterable[torch.Tensor], references: Iterable[torch.Tensor], smallest: int = 1
) -> float:
    """Return the mean of a metric of torchmetrics over pairs of images, which are checked."""
    measure = getattr(_torchmetrics("functional.image"), metric)
    values: list[float] = []
    for image, reference in zip(images, references, strict=True):
        for each in (image, reference):
            if each.dtype != torch.uint8 or each.ndim != 3 or each.shape[0] != 3:
                raise ValueError(f"{name}: expected uint8 images (3, H, W); got {each.dtype} {tuple(each.shape)}")
        if image.shape != reference.shape:
            raise ValueError(
                f"{name}: expected images of one size; pair {len(values)} has {tuple(image.shape[1:])} and "
                f"{tuple(reference.shape[1:])} (height, width). Prepare both at one resolution."
            )
        if min(image.shape[1:]) < smallest:
            raise ValueError(
                f"{name}: expected images of at least {smallest} pixels a side, the size of its window; pair "
                f"{len(values)} has {tuple(image.shape[1:])} (height, width)."
            )
        pair = torch.stack([image, reference]).float()  # (2, 3, H, W)
        values.append(measure(pair[:1], pair[1:], data_range=255.0).item())
    if not values:
        raise ValueError(f"{name}: expected at least one pair of images; got none")
    return sum(values) / len(values)


def _canonical_order(features: torch.Tensor) -> torch.Tensor:
    """Sort rows (N, D) by their values, so that subsets do not depend on the order of files."""
    key = features @ torch.linspace(1, 2, features.shape[1], dtype=features.dtype)  # any fixed direction
    return features[key.argsort(stable=True)]


def _torchmetrics(module: str) -> Any:
    """Import a module of torchmetrics when it is needed: it fails if torch-fidelity finds no torchvision."""
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except (ImportError, RuntimeError) as err:  # RuntimeError: a torchvision for another torch
        if str(getattr(err, "name", None)).startswith("torchmetrics"):
            raise  # missing itself: the command names the extra that installs it
        raise ValueError(
            f"torchmetrics cannot be loaded: torch-fidelity is installed and imports a torchvision that is missing or "
            f"does not match torch ({err}). Install the torchvision of this torch (pip install "
            "'semseg-diffusers[fid]'), or do without the standard Inception: pip uninstall torch-fidelity."
        ) from err
