"""Discriminators on the features of a frozen backbone, which know the mask, or see images alone.

`ProjectedHeads` follows Projected GAN (Sauer et al. 2021): fixed random projections, mixed from coarse to fine, and a
small head for each scale, which reads the share of each class under its cells too. `SegmentationHead` follows OASIS
(Sushko et al. 2021) on a frozen backbone as DP-SIMS (Berrada et al. 2024): it names the class of each cell, or "fake".
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.training.objective import Window


WIDTH = 64  # channels of projections and heads
PIXEL_CELL = 4  # side of the cells of the finest scale, which holds the pixels themselves
SLOPE = 0.2  # of leaky ReLU
EPSILON = 1e-6
# Of the segmentation head beside the others: a cross-entropy is several times as large as a hinge loss's logits.
SEGMENTATION_SHARE = 0.2
MAX_WEIGHT = 4.0  # of the cells of a rare class, as `class_loss_weight_max` of a training


def conv(inputs: int, outputs: int, kernel_size: int) -> nn.Module:
    """Return a convolution of spectral norm 1 that keeps the size of its maps."""
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2))


class FrozenFeatures:
    """Feature maps of images at every scale, from their pixels to the backbone's last map."""

    def __init__(self, backbone: ImageBackbone, scale: float):
        self.backbone, self.scale = backbone, scale
        self.channels = (3 * PIXEL_CELL**2, *backbone.channels)

    def __call__(self, images: torch.Tensor, window: Window) -> list[torch.Tensor]:
        """Return maps (B, C, h, w), finest first, of windows of images (B, 3, H, W) in [-1, 1]."""
        seen = window.cut(images)  # (B, 3, H, W)
        height, width = (round(side * self.scale) for side in seen.shape[-2:])
        enlarged = F.interpolate(seen, (height, width), mode="bilinear", antialias=self.scale < 1)
        sides = [side // PIXEL_CELL * PIXEL_CELL for side in seen.shape[-2:]]
        pixels = F.pixel_unshuffle(seen[..., : sides[0], : sides[1]], PIXEL_CELL)  # (B, 48, H/4, W/4)
        # a root mean square of 1 in each cell, so that no scale or channel of the backbone counts for more
        maps = [each.float() for each in self.backbone((enlarged + 1) / 2)]
        return [pixels, *(each * (each.square().mean(1, keepdim=True) + EPSILON).rsqrt() for each in maps)]


class ProjectedHeads(nn.Module):
    """Says how real images are at each scale, given their conditions if any: logits (B, 1, h, w)."""

    def __init__(self, channels: Sequence[int], num_conditions: int = 0):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(each, WIDTH, 1, bias=False) for each in channels)
        self.mixers = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in channels[1:])
        for weight in (*self.projections.parameters(), *self.mixers.parameters()):
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
            weight.requires_grad_(False)
        self.heads = nn.ModuleList(
            nn.Sequential(
                conv(WIDTH + num_conditions, WIDTH, 3), nn.LeakyReLU(SLOPE),
                conv(WIDTH, WIDTH, 3), nn.LeakyReLU(SLOPE),
                conv(WIDTH, 1, 1),
            )
            for _ in channels
        )  # fmt: skip

    def forward(self, maps: Sequence[torch.Tensor], conditions: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Map features, finest first, and conditions (B, K, H, W) to logits of each scale."""
        logits: list[torch.Tensor] = []
        coarser: torch.Tensor | None = None
        for i in reversed(range(len(maps))):
            x = self.projections[i](maps[i])  # (B, WIDTH, h, w)
            if coarser is not None and i:  # the pixels stay by themselves
                x = self.mixers[i - 1](x + F.interpolate(coarser, x.shape[-2:], mode="bilinear")) / 2**0.5
            coarser = x
            seen = x
            if conditions is not None:
                shares = F.interpolate(conditions, x.shape[-2:], mode="area")  # (B, K, h, w)
                seen = torch.cat([x, shares], dim=1)
            logits.append(self.heads[i](seen))
        return logits


class SegmentationHead(nn.Module):
    """Names the class of each cell of the finest map of the backbone, or "fake": logits (B, N + 1, h, w)."""

    def __init__(self, channels: Sequence[int], num_classes: int):
        super().__init__()
        self.laterals = nn.ModuleList(conv(each, WIDTH, 1) for each in channels[1:])
        self.merges = nn.ModuleList(conv(WIDTH, WIDTH, 3) for _ in channels[1:])
        self.classifier = nn.Conv2d(WIDTH, num_classes + 1, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map features, finest first, to logits, of which the last is "fake"."""
        x: torch.Tensor | None = None
        for features, lateral, merge in reversed(list(zip(maps[1:], self.laterals, self.merges, strict=True))):
            y = lateral(features)  # (B, WIDTH, h, w)
            y = y if x is None else y + F.interpolate(x, y.shape[-2:], mode="bilinear")
            x = F.leaky_relu(merge(y), SLOPE)
        return self.classifier(x)


class Discriminator(nn.Module):
    """The heads that a distillation uses, by name; `forward` returns what each says."""

    def __init__(self, kind: str, channels: Sequence[int], num_classes: int = 0, num_conditions: int = 0):
        super().__init__()
        self.heads = nn.ModuleDict()
        if kind in ("projected", "both"):
            self.heads["projected"] = ProjectedHeads(channels, num_conditions)
        if kind in ("segmentation", "both"):
            self.heads["segmentation"] = SegmentationHead(channels, num_classes)
        self.update_norms()

    def forward(
        self, maps: Sequence[torch.Tensor], conditions: torch.Tensor | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """Map features, finest first, and conditions (B, K, H, W) if it knows any to the logits of each head."""
        found = {}
        if "projected" in self.heads:
            found["projected"] = self.heads["projected"](maps, conditions)
        if "segmentation" in self.heads:
            found["segmentation"] = [self.heads["segmentation"](maps)]
        return found

    def train(self, mode: bool = True) -> "Discriminator":  # noqa: ARG002
        """Stay in evaluation mode: `update_norms` moves the spectral norms, so that batches do not."""
        return super().train(False)

    @torch.no_grad()
    def update_norms(self) -> None:
        """Follow the weights with the estimates of their spectral norms; called after each optimizer step."""
        super().train(True)
        for module in self.modules():
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                _ = module.weight
        super().train(False)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Keep gradients from the weights of a module inside the block; they pass through it."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield module
    finally:
        for weight in trained:
            weight.requires_grad_(True)


Found = Mapping[str, Sequence[torch.Tensor]]  # what `Discriminator` says


def generator_loss(found: Found, shares: torch.Tensor | None = None) -> torch.Tensor:
    """Return how far a discriminator takes images for fake; `shares` (B, N + 1, H, W) are those of the classes."""
    losses = []
    if "projected" in found:
        losses.append(-torch.stack([each.mean() for each in found["projected"]]).mean())
    if "segmentation" in found:
        share = SEGMENTATION_SHARE if "projected" in found else 1.0
        losses.append(share * _named(found["segmentation"][0], shares))
    return torch.stack(losses).sum()


def discriminator_loss(found: Found, shares: torch.Tensor | None = None) -> torch.Tensor:
    """Return the loss of a discriminator on real images, the first half of the batch, and fake ones, the other."""
    losses = []
    if "projected" in found:  # hinge, Lim and Ye 2017
        pairs = [each.chunk(2) for each in found["projected"]]
        losses.append(torch.stack([F.relu(1 - real).mean() + F.relu(1 + fake).mean() for real, fake in pairs]).mean())
    if "segmentation" in found:
        real, fake = found["segmentation"][0].chunk(2)  # (B, N + 1, h, w) each
        is_fake = torch.full_like(fake[:, 0], fake.shape[1] - 1, dtype=torch.long)
        losses.append(_named(real, shares) + F.cross_entropy(fake, is_fake))
    return torch.stack(losses).sum()


def _named(logits: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    """Return the cross-entropy of cells (B, N + 1, h, w) with the classes under them, rare classes weighing more.

    Weights are those of OASIS (Sushko et al. 2021, eq. 1), for each image by itself and at most `MAX_WEIGHT`; unknown
    pixels, the last channel of `shares`, do not count.
    """
    assert shares is not None, "a segmentation head needs the shares of the classes"
    known = F.interpolate(shares[:, :-1], logits.shape[-2:], mode="area")  # (B, N, h, w)
    total = known.sum((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    pixels = known.sum((2, 3), keepdim=True)  # (B, N, 1, 1)
    present = (pixels > 0).sum(1, keepdim=True).clamp(min=1)
    weights = (total / (present * pixels.clamp(min=EPSILON))).clamp(max=MAX_WEIGHT)
    losses = -(weights * known * logits.log_softmax(1)[:, :-1]).sum((1, 2, 3))  # (B,)
    return (losses / total.flatten().clamp(min=1)).mean()
