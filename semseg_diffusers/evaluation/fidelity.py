"""Distances between sets of features, Fréchet (FID, Heusel et al. 2017) and kernel (KID, Binkowski et al. 2018); SSIM.
The mathematics are torchmetrics', in float64; networks are run before, by `passes.cached_inference`."""

import importlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


MAX_KID_SUBSET = 1000  # torchmetrics' default; smaller sets take half of the smaller one
SSIM_KERNEL = 11  # pixels a side of torchmetrics' default window, a Gaussian of sigma 1.5
ALONE = {"sync_on_compute": False}  # one process has all features; torchmetrics would wait for the others


@dataclass(frozen=True)
class Kid:
    """Kernel distance over random subsets: 0 on average for sets of one distribution, so that it may be negative."""

    mean: float
    std: float  # between subsets
    subset_size: int


class _Given(torch.nn.Module):
    """Stands where torchmetrics wants a network: what comes in are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features  # read by torchmetrics, which would try a forward with an image otherwise

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def fid(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    Biased upwards for small sets, the more the smaller they are (see `small_set_note`): compare figures of the same
    numbers of images only, and with the distance between two sets of real photos of these numbers.

    Args:
        real: (N, D), N at least 2.
        generated: (M, D), M at least 2.

    Returns:
        distance, at least 0, in squared units of the features.

    Raises:
        ValueError: for sets that are too small, of different width, or not finite; torchmetrics cannot be loaded.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
        >>> round(fid(square, square + torch.tensor([3.0, 0.0])), 6)  # the means are 3 apart, the spread is the same
        9.0
    """
    real, generated = _check(real, generated)
    metric = _torchmetrics("image.fid").FrechetInceptionDistance(feature=_Given(real.shape[1]), **ALONE)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(0.0, metric.compute().item())  # rounding of a rank-deficient covariance can come out below 0


def kid(
    real: torch.Tensor, generated: torch.Tensor, seed: int, subsets: int = 100, subset_size: int | None = None
) -> Kid:
    """Squared maximum mean discrepancy with a cubic kernel, unbiased: the figure for sets too small for FID.

    The order of the images does not matter, the seed decides the subsets, and the global random state stays as it was.

    Args:
        real: (N, D), N at least 2.
        generated: (M, D), M at least 2.
        seed: of the subsets.
        subsets: how many subsets are drawn.
        subset_size: images of each set in a subset, at least 2; by default half of the smaller set, at most 1000.

    Raises:
        ValueError: for a subset larger than a set, and as `fid`.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> kid(points, points + 5, seed=0).subset_size
        2
    """
    real, generated = _check(real, generated)
    smaller = min(len(real), len(generated))
    size = min(MAX_KID_SUBSET, max(2, smaller // 2)) if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        raise ValueError(
            f"a KID subset takes from 2 to {smaller} images here ({len(real)} real, {len(generated)} generated); got "
            f"{size}. Make it smaller, or leave it to the default of half the smaller set."
        )
    if subsets < 1:
        raise ValueError(f"KID needs at least 1 subset; got {subsets}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = _torchmetrics("image.kid").KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=subsets, subset_size=size, **ALONE
        )
    metric.update(_in_own_order(real), real=True)
    metric.update(_in_own_order(generated), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchmetrics draws from it; torch.manual_seed would seed GPUs too
        mean, std = metric.compute()
    return Kid(mean.item(), std.item(), size)


def small_set_note(num_real: int, num_generated: int, num_features: int) -> str | None:
    """What must be said beside an FID of fewer images than features; None where there are enough."""
    smaller = min(num_real, num_generated)
    if smaller > num_features:
        return None
    return (
        f"FID of {smaller} images with {num_features} features: the covariance of fewer images than features has no "
        "full rank, and the bias of small sets (Chong and Forsyth 2020) can be larger than what is to be measured. "
        "Read it beside the real photos' own value at the same numbers only, and KID first."
    )


def paired_ssim(images: Iterable[torch.Tensor], references: Iterable[torch.Tensor]) -> float:
    """Mean structural similarity of pairs (Wang et al. 2004): torchmetrics' with its default window, range 0 to 255.

    The paper reports it between a generated image and the photo of its mask. A mask fits many photos, so a good
    generator does not maximise it: for continuity only.

    Args:
        images: uint8 (3, H, W) each, at least 11 pixels a side.
        references: as many, of the same sizes.

    Returns:
        mean over pairs, in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: no pairs, another number of references, sizes that differ or are too small, another type.

    Example:
        >>> image = torch.arange(3 * 16 * 16, dtype=torch.uint8).view(3, 16, 16)
        >>> paired_ssim([image], [image])
        1.0
    """
    structural_similarity = _torchmetrics("functional.image").structural_similarity_index_measure
    values = []
    for image, reference in zip(images, references, strict=True):
        for picture in (image, reference):
            if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
                raise ValueError(f"SSIM is of uint8 images (3, H, W); got {picture.dtype} {tuple(picture.shape)}")
        if image.shape != reference.shape:
            raise ValueError(
                f"SSIM is of images of one size; pair {len(values)} has {tuple(image.shape[1:])} and "
                f"{tuple(reference.shape[1:])} (height, width). Prepare both at one resolution."
            )
        if min(image.shape[1:]) < SSIM_KERNEL:
            raise ValueError(
                f"SSIM needs images of at least {SSIM_KERNEL} pixels a side, the size of its window; pair "
                f"{len(values)} has {tuple(image.shape[1:])} (height, width)."
            )
        pair = torch.stack([image, reference]).float()  # (2, 3, H, W)
        values.append(structural_similarity(pair[:1], pair[1:], data_range=255.0).item())
    if not values:
        raise ValueError("SSIM needs at least one pair of images; got none")
    return sum(values) / len(values)


def _check(real: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sets as float64 on CPU, where they can be compared."""
    for what, features in (("real", real), ("generated", generated)):
        if features.ndim != 2:
            raise ValueError(f"features are (N, D); got {tuple(features.shape)} for the {what} images")
        if len(features) < 2:
            raise ValueError(f"a distance between sets needs at least 2 images each; got {len(features)} {what}")
        if not features.isfinite().all():
            raise ValueError(f"features of the {what} images are not all finite")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"{real.shape[1]} features of the real and {generated.shape[1]} of the generated images: extract both "
            "with one network"
        )
    return real.detach().cpu().double(), generated.detach().cpu().double()


def _in_own_order(features: torch.Tensor) -> torch.Tensor:
    """Rows (N, D) in an order that they give themselves, so that subsets do not hang on the order of files."""
    key = features @ torch.linspace(1, 2, features.shape[1], dtype=features.dtype)  # any fixed direction
    return features[key.argsort(stable=True)]


def _torchmetrics(module: str) -> Any:
    """A module of torchmetrics, imported when it is needed: that fails where torch-fidelity finds no torchvision."""
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except (ImportError, RuntimeError) as err:  # RuntimeError: a torchvision that does not fit torch
        if str(getattr(err, "name", None)).startswith("torchmetrics"):
            raise  # it is missing itself: the command names the extra that brings it
        raise ValueError(
            f"torchmetrics cannot be loaded: torch-fidelity is installed and imports a torchvision that is not there "
            f"or does not fit torch ({err}). Install the torchvision of this torch (pip install "
            "'semseg-diffusers[fid]'), or do without the standard Inception: pip uninstall torch-fidelity."
        ) from err
