"""The figures of `few_steps.py`: distances of feature sets for resampled masks, colours of classes, fine structure.

Pure functions of features (M masks, K images each, D) or of images. Kernel distance: Binkowski et al. 2018, eq. 4;
Fréchet distance: Heusel et al. 2017, eq. 6.
"""

import torch
import torch.nn.functional as F

from semseg_diffusers.captions.colors import rgb_to_lab


HIGH_PASS = 9  # pixels a side: what a mean over so many leaves is texture
MIN_LAG = 4  # pixels: nearer ones are alike in any image
MAX_LAG = 32


def kernel_distances(features: torch.Tensor, photos: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the squared maximum mean discrepancy to photos, with KID's kernel, for each weighting of the masks.

    Unbiased: an image is never paired with itself, nor with a copy of itself in a resampling. With all weights 1 it is
    what `kid` gives of the whole sets, without its random subsets.

    Args:
        features: (M, K, D), K images of each mask.
        photos: (R, D).
        weights: (S, M), how often each mask is taken.

    Returns:
        (S,), float64.
    """
    (masks, images, width), photos, weights = features.shape, photos.double(), weights.double()
    rows = features.reshape(-1, width).double()

    def kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first @ second.T / width + 1) ** 3

    among = kernel(rows, rows)
    own = among.diagonal().view(masks, images).sum(1)  # (M,)
    among = among.view(masks, images, masks, images).sum((1, 3))  # (M, M)
    within = among.diagonal() - own  # pairs of different images of one mask
    among = among - among.diagonal().diag()
    to_photos = kernel(rows, photos).mean(1).view(masks, images).sum(1)  # (M,)
    of_photos = kernel(photos, photos)
    of_photos = (of_photos.sum() - of_photos.trace()) / (len(photos) * (len(photos) - 1))
    total = weights.sum(1)
    pairs = images**2 * (total**2 - weights.square().sum(1)) + images * (images - 1) * total
    generated = (((weights @ among) * weights).sum(1) + weights @ within) / pairs
    return generated - 2 * (weights @ to_photos) / (images * total) + of_photos


def frechet_distances(features: torch.Tensor, photos: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the Fréchet distance to photos for each weighting of the masks; arguments as of `kernel_distances`.

    From products of images, which is much faster than `fid` for fewer photos (R) than features (D): the square roots
    of the eigenvalues of a product of covariances are singular values of the product of both sets of images.
    """
    count, photos = features.shape[1], photos.double()
    rows, center = features.reshape(-1, features.shape[2]).double(), photos.mean(0)
    others = (photos - center) / (len(photos) - 1) ** 0.5
    spread, products, squares = others.square().sum(), rows @ others.T, rows.square().sum(1)
    found = []
    for weight in weights.double().repeat_interleave(count, dim=1):  # (M * K,)
        total = weight.sum()
        mean = weight @ rows / total
        centered = (products - weight @ products / total) * weight.sqrt()[:, None]  # (M * K, R)
        roots = torch.linalg.eigvalsh(centered.T @ centered / (total - 1)).clamp(min=0).sqrt().sum()
        trace = (weight @ squares - total * mean.square().sum()) / (total - 1)
        found.append((mean - center).square().sum() + trace + spread - 2 * roots)
    return torch.stack(found).clamp(min=0)


def class_colors(images: torch.Tensor, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean L*a*b* colour (C, 3) of each class in images (N, 3, H, W) of masks (N, H, W); NaN without."""
    sums, counts = torch.zeros(num_classes, 3, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    for image, mask in zip(images, masks, strict=True):
        known = mask < num_classes
        ids = mask[known].long()
        sums.index_add_(0, ids, torch.from_numpy(rgb_to_lab(image[:, known].T.numpy())))
        counts += ids.bincount(minlength=num_classes)
    return sums / counts[:, None]


def class_detail(images: torch.Tensor, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean difference (C,) of neighbouring pixels of one class, of images and masks as `class_colors`."""
    sums, counts = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    for dim in (1, 2):
        size = masks.shape[dim] - 1
        first, second = masks.narrow(dim, 0, size), masks.narrow(dim, 1, size)
        inside = (first == second) & (first < num_classes)
        ids = first[inside].long()
        sums.index_add_(0, ids, images.double().diff(dim=dim + 1).abs().mean(1)[inside])
        counts += ids.bincount(minlength=num_classes)
    return sums / counts


def fine_power(images: torch.Tensor) -> float:
    """Return the mean power of the channels of images (N, 3, H, W) in the highest octave.

    These are the frequencies that an image of half the size cannot hold: 0.25 cycles a pixel or more, in rows or
    columns. Checkerboards and ringing are there, and so is noise.
    """
    levels = images.double()
    height, width = levels.shape[2:]
    window = torch.outer(torch.hann_window(height, dtype=torch.float64), torch.hann_window(width, dtype=torch.float64))
    power = torch.fft.fft2((levels - levels.mean((2, 3), keepdim=True)) * window).abs().square()  # (N, 3, H, W)
    frequency = torch.maximum(torch.fft.fftfreq(height).abs()[:, None], torch.fft.fftfreq(width).abs()[None])
    return power[..., frequency >= 0.25].mean().item()


def repetition(images: torch.Tensor) -> torch.Tensor:
    """Return how strongly the texture of each image (N, 3, H, W) repeats: (N,), nearly 1 for a perfect pattern.

    The highest local maximum of the autocorrelation of brightness, less its local mean, at a shift of MIN_LAG to
    MAX_LAG pixels. A long edge is no local maximum: the longer a shift along it, the less of the image overlaps.
    """
    grey = images.double().mean(1, keepdim=True)
    mean = F.avg_pool2d(grey, HIGH_PASS, stride=1, padding=HIGH_PASS // 2, count_include_pad=False)
    texture = (grey - mean)[:, 0]  # (N, H, W)
    height, width = texture.shape[1:]
    size = (2 * height, 2 * width)  # zeros around: opposite borders do not meet
    correlation = torch.fft.irfft2(torch.fft.rfft2(texture, size).abs().square(), size)
    correlation = correlation / correlation[:, :1, :1].clamp(min=1e-9)
    lag = min(MAX_LAG, height // 2, width // 2)
    correlation = correlation.roll((lag + 1, lag + 1), (1, 2))[:, : 2 * lag + 3, : 2 * lag + 3]  # center: lag + 1
    is_peak = correlation == F.max_pool2d(correlation[:, None], 3, stride=1, padding=1)[:, 0]
    shifts = torch.arange(-lag - 1, lag + 2)
    radius = (shifts[:, None].square() + shifts[None].square()).sqrt()
    inside = (radius >= min(MIN_LAG, lag)) & (shifts.abs() <= lag)[:, None] & (shifts.abs() <= lag)[None]
    return torch.where(is_peak & inside, correlation, 0).flatten(1).amax(1)
