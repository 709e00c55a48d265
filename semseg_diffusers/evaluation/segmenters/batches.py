"""What a segmentation network is trained on: labelled photos, their order, augmentation, and class weights.
All randomness comes from one generator, so a seed fixes every batch."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from semseg_diffusers.data.labels import LabelSet


# A training crop keeps at least this share of each side. Driving scenes have their things at their places: for
# segformer-mini on CamVid at 128, 600 steps of 8, crops from 0.5 to 1.1 gave a mean IoU of 0.313, these 0.371.
MIN_CROP = 0.8
BRIGHTNESS = 25  # largest shift of a training image, in units of 0..255
CONTRAST = 0.2  # largest relative change of a training image's contrast


class LabelledPhotos:
    """The pairs of one data set, of one size, with the pixels of each class counted.

    Args:
        pairs: `PairDataset`: `labels`, `resolution`, `len`, and items with `image` uint8 (3, H, W) and `mask` (H, W).

    Raises:
        ValueError: there are no pairs, their sizes differ, or their masks hold unknown pixels only.
    """

    def __init__(self, pairs: Any):
        if len(pairs) == 0:
            raise ValueError("a segmentation network needs at least one labelled photo; the data set is empty.")
        self.labels: LabelSet = pairs.labels
        self.resolution: tuple[int, int] = tuple(pairs.resolution)  # height, width
        self._pairs = pairs
        self.pixels = torch.zeros(self.labels.num_classes, dtype=torch.int64)  # of each class, over all masks
        for index in range(len(pairs)):
            mask = self[index][1]
            self.pixels += torch.bincount(mask[mask != self.labels.ignore_index], minlength=self.labels.num_classes)
        if self.pixels.sum() == 0:
            raise ValueError("the masks hold no labelled pixel, only unknown ones: there is nothing to learn from.")

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image uint8 (3, H, W) and mask uint8 (H, W)."""
        item = self._pairs[index]
        return item["image"], item["mask"]

    def batch(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W) and masks int64 (B, H, W)."""
        images, masks = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(masks).long()

    def class_weights(self) -> torch.Tensor:
        """Return one over the square root of each class's share of pixels, scaled so that their mean over pixels is 1.

        Rare classes then count more, without the few pixels of the rarest taking over. An absent class gets 0.
        """
        share = self.pixels / self.pixels.sum()
        weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
        return weights / (weights * share).sum()  # (num_classes,)


def shuffled_batches(num_pairs: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield indices without end: epochs, each in its own order, cut into full batches across their ends."""
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(num_pairs, generator=generator).tolist()
        yield order[:batch_size]
        del order[:batch_size]


def augment(
    images: torch.Tensor,
    masks: torch.Tensor,
    generator: torch.Generator,
    input_size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, crop and scale, and change the light of each sample, image and mask alike in geometry.

    Args:
        images: (B, 3, H, W), float in 0..255.
        masks: (B, H, W), integer ids; nearest, so no id is invented.
        generator: on CPU.
        input_size: height and width of the images that come out; masks keep their size.

    Returns:
        images (B, 3, *input_size), masks int64 (B, H, W).
    """
    batch = len(images)
    size = MIN_CROP + (1 - MIN_CROP) * torch.rand(batch, generator=generator)  # share of each side
    center = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - size)[:, None]  # crops stay inside the frame
    flip = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    contrast, brightness = (torch.rand(2, batch, 1, 1, 1, generator=generator) * 2 - 1).to(images.device).unbind()
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size * flip, size, center
    theta = theta.to(images.device)

    grid = F.affine_grid(theta, [batch, 3, *input_size], align_corners=False)  # (B, *input_size, 2)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    images = images * (1 + CONTRAST * contrast) + BRIGHTNESS * brightness
    grid = F.affine_grid(theta, [batch, 1, *masks.shape[1:]], align_corners=False)  # (B, H, W, 2)
    masks = masks[:, None].float()
    masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="border", align_corners=False)  # (B, 1, H, W)
    return images, masks[:, 0].long()
