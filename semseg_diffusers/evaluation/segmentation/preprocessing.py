"""Prepares images for a segmentation network: the arithmetic of transformers' image processors, on any device.
Settings are those of `preprocessor_config.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers.image_transforms import get_size_with_aspect_ratio


PROCESSOR_FILE = "preprocessor_config.json"
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's resampling filters -> torch's
BILINEAR = 2


@dataclass(frozen=True)
class Preprocessing:
    """Input size and value range of a network."""

    size: Mapping[str, int]  # {"height", "width"}, or {"shortest_edge"} with or without {"longest_edge"}; pixels
    size_divisor: int = 1  # both sides are rounded up to a multiple of it
    resample: int = BILINEAR  # a PIL filter
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of scaled channels, in the network's channel order
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    flip_channels: bool = False  # the network expects BGR

    @classmethod
    def from_processor(cls, settings: Mapping[str, Any]) -> "Preprocessing":
        """Read the `to_dict` of an image processor. A center crop is ignored: every pixel has to be read."""
        size = {key: int(value) for key, value in dict(settings.get("size") or {}).items() if value}
        kind = settings.get("image_processor_type")
        if set(size) not in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
            raise ValueError(
                f"{PROCESSOR_FILE} ({kind}) has the size {size}; expected height and width, or shortest_edge with or "
                "without longest_edge."
            )
        resample = int(BILINEAR if settings.get("resample") is None else settings["resample"])
        if resample not in MODES:
            raise ValueError(f"{PROCESSOR_FILE} ({kind}) resamples by filter {resample}; expected {sorted(MODES)}.")
        normalize = bool(settings.get("do_normalize"))
        return cls(
            size=size,
            size_divisor=int(settings.get("size_divisor") or 1),
            resample=resample,
            scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            mean=tuple(settings["image_mean"]) if normalize else cls.mean,
            std=tuple(settings["image_std"]) if normalize else cls.std,
            flip_channels=bool(settings.get("do_flip_channel_order")),
        )

    def with_size(self, input_size: int | tuple[int, int]) -> "Preprocessing":
        """Return a copy with another size: (height, width), or the shorter side with the aspect ratio kept."""
        if isinstance(input_size, int):
            return replace(self, size={"shortest_edge": input_size})
        return replace(self, size={"height": input_size[0], "width": input_size[1]})

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width at which the network reads an image of this size.

        Example:
            >>> Preprocessing({"shortest_edge": 256, "longest_edge": 384}, size_divisor=32).input_size(128, 256)
            (192, 384)
        """
        if "height" in self.size:
            height, width = self.size["height"], self.size["width"]
        else:
            height, width = get_size_with_aspect_ratio(
                (height, width), self.size["shortest_edge"], self.size.get("longest_edge")
            )
        divisor = self.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scale and normalize RGB images (B, 3, H, W), float in 0..255."""
        images = images * self.scale
        if self.flip_channels:
            images = images.flip(1)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))  # (3, 1, 1)
        return (images - mean) / std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's input, float (B, 3, height, width), of uint8 images (B, 3, H, W)."""
        size = self.input_size(*images.shape[-2:])
        images = images.float()
        if tuple(images.shape[-2:]) != size:
            smooth = {} if self.resample == 0 else {"antialias": True, "align_corners": False}
            images = F.interpolate(images, size, mode=MODES[self.resample], **smooth)
            images = images.round().clamp(0, 255)  # as PIL does, which the processors resize with
        return self.normalize(images)


def scaled_size(height: int, width: int, shortest: int, multiple: int = 16) -> tuple[int, int]:
    """Return height and width scaled so that the shorter is about `shortest`, both multiples of `multiple`.

    Example:
        >>> scaled_size(128, 128, 256), scaled_size(96, 160, 256)
        ((256, 256), (256, 432))
    """
    factor = shortest / min(height, width)
    height, width = (max(multiple, round(side * factor / multiple) * multiple) for side in (height, width))
    return height, width


def compute_logits(network: torch.nn.Module, pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return float logits (B, num_classes, height, width) at `size`, whatever the network's stride."""
    logits = network(pixel_values=pixel_values).logits  # (B, num_classes, H / stride, W / stride)
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
