"""Colour transfer as augmentation: training images get the colour statistics of photos of another dataset.
Reinhard et al. 2001 (Color Transfer between Images): means and deviations of each channel in the space l-alpha-beta.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from semseg_diffusers.evaluation.settings import Recipe


SHARE = 0.5  # of the images that get other colours
JITTER = {"brightness": 50.0, "contrast": 0.4, "saturation": 0.4}  # at least: twice the usual, and colour
RGB_TO_LMS = torch.tensor([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])  # eq. 4
# eq. 6: lightness, yellow against blue, red against green; orthonormal
LMS_TO_LAB = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]))
STREAM = 1  # of random numbers, apart from those of other augmentations at the same position


def rgb_to_l_alpha_beta(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (B, 3, H, W) in l-alpha-beta, float; black counts as one level of 255."""
    lms = torch.einsum("ij,bjhw->bihw", RGB_TO_LMS.to(images.device), images.float().clamp(min=1) / 255)
    return torch.einsum("ij,bjhw->bihw", LMS_TO_LAB.to(images.device), lms.log10())


def l_alpha_beta_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """Return images in l-alpha-beta (B, 3, H, W) as uint8 RGB."""
    lms = 10 ** torch.einsum("ij,bjhw->bihw", LMS_TO_LAB.T.to(lab.device), lab)
    rgb = torch.einsum("ij,bjhw->bihw", RGB_TO_LMS.inverse().to(lab.device), lms)
    return (255 * rgb).round().clamp(0, 255).byte()


def color_statistics(lab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel, (B, 3, 1, 1), of images (B, 3, H, W)."""
    return lab.mean((2, 3), keepdim=True), lab.std((2, 3), keepdim=True)


def transfer_colors(images: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (B, 3, H, W) with this mean and deviation (B, 3, 1, 1) of their colours, eq. 10 and 11."""
    lab = rgb_to_l_alpha_beta(images)
    own_mean, own_deviation = color_statistics(lab)
    return l_alpha_beta_to_rgb((lab - own_mean) * deviation / own_deviation.clamp(min=1e-4) + mean)


class ColorTransfer:
    """Gives some of the images of a training the colours of random photos of a target.

    Args:
        photos: of the target; `image` of each is uint8 (3, H, W).
        seed: with the position of an image in the training, determines what it gets.
    """

    def __init__(self, photos: Any, seed: int):
        images = (photos[index]["image"][None] for index in range(len(photos)))
        statistics = [color_statistics(rgb_to_l_alpha_beta(image)) for image in images]
        self.means, self.deviations = (torch.cat(values) for values in zip(*statistics, strict=True))  # (N, 3, 1, 1)
        self.seed = seed

    def __call__(self, images: torch.Tensor, position: int) -> torch.Tensor:
        """Return the images (B, 3, H, W), uint8, of which the first has this position in the training."""
        chosen, photos = [], []
        for offset in range(len(images)):
            generator = np.random.default_rng([self.seed % 2**64, position + offset, STREAM])
            if generator.random() < SHARE:
                chosen.append(offset)
                photos.append(int(generator.integers(len(self.means))))
        if not chosen:
            return images
        images = images.clone()
        images[chosen] = transfer_colors(images[chosen], self.means[photos], self.deviations[photos])
        return images


def stronger_jitter(recipe: Recipe) -> Recipe:
    """Return a recipe with at least the colour jitter of `JITTER`."""
    return recipe._replace(**{name: max(getattr(recipe, name), value) for name, value in JITTER.items()})


def describe_recoloring(recipe: Recipe) -> str:
    """Return what arms with recoloured images do, given the recipe of the others, as a sentence."""
    jitter = stronger_jitter(recipe)
    changes = ", ".join(f"{name} {getattr(jitter, name):g}" for name in JITTER)
    return (
        f"Photos in the target's colours: {100 * SHARE:g} % of the images get the colour statistics of a random photo "
        f"of the target (Reinhard et al. 2001), and all a stronger colour jitter ({changes})."
    )
