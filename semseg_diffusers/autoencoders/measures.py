"""Measures of an autoencoder: the scale of its latents, its reconstructions of photos, the use of its codebook."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from semseg_diffusers.autoencoders.codebook import count_codes, perplexity, used_share
from semseg_diffusers.autoencoders.networks import encode, reconstruct
from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.evaluation.features import FeatureExtractor, extract
from semseg_diffusers.evaluation.fidelity import fid, paired_psnr, paired_ssim


MOST_PHOTOS = 2000  # of a split, at even distances
BATCH = 32  # photos in memory at once, and of a pass of the features' network


def whole_cells(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the part (..., H, W) of an image, from its upper left corner, whose sides `factor` divides."""
    height, width = (side // factor * factor for side in image.shape[-2:])
    return image[..., :height, :width]


def photos(pairs: PairDataset, factor: int, most: int = MOST_PHOTOS) -> Iterator[torch.Tensor]:
    """Yield photos of a split, uint8 (3, H, W), at even distances."""
    for index in evenly_spaced(range(len(pairs)), most):
        yield whole_cells(pairs[index]["image"], factor)


@torch.no_grad()
def measure_latents(network: Any, pairs: PairDataset, factor: int) -> dict[str, Any]:
    """Measure the latents of photos: the factor that gives them unit variance, and their statistics.

    Args:
        network: AutoencoderKL, VQModel or AutoencoderTiny.
        pairs: the photos, of which at most `MOST_PHOTOS` are read.
        factor: pixels of a side for each of the latents'.

    Returns:
        `scaling_factor`, one over the standard deviation of all latents; `mean` of all; `channel_means`,
        `channel_stds`; `num_photos`.
    """
    weight = next(network.parameters())
    sums: list[torch.Tensor] = []
    squares: list[torch.Tensor] = []
    cells = 0
    for photo in photos(pairs, factor):
        mean, variance = encode(network, (photo[None].to(weight) / 127.5 - 1).contiguous())
        mean, variance = mean.double().cpu(), variance.double().cpu()
        sums.append(mean.sum((0, 2, 3)))  # (C,)
        squares.append((mean.square() + variance).sum((0, 2, 3)))
        cells += mean[0, 0].numel()
    means, second = torch.stack(sums).sum(0) / cells, torch.stack(squares).sum(0) / cells
    std = (second.mean() - means.mean().square()).sqrt().item()
    if not std > 0:
        raise ValueError("the latents of all photos are equal: the autoencoder has learned nothing. Train it longer.")
    return {
        "scaling_factor": 1 / std,
        "mean": means.mean().item(),
        "channel_means": means.tolist(),
        "channel_stds": (second - means.square()).sqrt().tolist(),
        "num_photos": len(sums),
    }


def measure_reconstructions(
    network: Any, pairs: PairDataset, factor: int, extractor: FeatureExtractor | None
) -> dict[str, Any]:
    """Compare reconstructions with the photos of a split, of which at most `MOST_PHOTOS` are read.

    Args:
        network: AutoencoderKL, VQModel or AutoencoderTiny.
        pairs: the photos, of at least 11 pixels a side.
        factor: pixels of a side for each of the latents'.
        extractor: features of the distance; None for none.

    Returns:
        `psnr` in dB and `ssim`, means over photos; `frechet_distance` between the features of both sets, if there are
        two photos or more; `num_photos`; `codebook` of a VQModel, `used_share` and `perplexity` over all photos.
    """
    psnr: list[float] = []
    ssim: list[float] = []
    features: list[tuple[torch.Tensor, torch.Tensor]] = []  # of photos and of their reconstructions, (N, D) each
    counts: torch.Tensor | None = None
    remaining = photos(pairs, factor)
    while originals := list(itertools.islice(remaining, BATCH)):
        reconstructions = []
        for photo in originals:
            pixels, latents = reconstruct(network, photo[None])
            reconstructions.append(pixels[0])
            if hasattr(network, "quantize"):
                _, _, (_, _, indices) = network.quantize(latents.float())
                found = count_codes(indices, network.config.num_vq_embeddings).cpu()
                counts = found if counts is None else counts + found
            psnr.append(paired_psnr(pixels, photo[None]))
            ssim.append(paired_ssim(pixels, photo[None]))
        if extractor is not None:
            features.append((extract(extractor, originals), extract(extractor, reconstructions)))
    num_photos = len(psnr)
    results: dict[str, Any] = {
        "psnr": sum(psnr) / num_photos,
        "ssim": sum(ssim) / num_photos,
        "num_photos": num_photos,
    }
    if extractor is not None and num_photos > 1:
        distance = fid(*(torch.cat(each) for each in zip(*features, strict=True)))
        results |= {"frechet_distance": distance, "features": extractor.describe()}
    if counts is not None:
        results["codebook"] = {"used_share": used_share(counts), "perplexity": perplexity(counts)}
    return results
