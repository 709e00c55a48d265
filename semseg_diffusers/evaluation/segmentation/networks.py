"""Loads segmentation networks from folders or the Hub, and prepares images as their image processors do.

The preparation is the arithmetic of transformers' image processors on batches and any device, with the settings of
`preprocessor_config.json`. Weights are safetensors only: a pickle may run code.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_transforms import get_size_with_aspect_ratio

from semseg_diffusers.evaluation.segmentation.architectures import register_torchvision
from semseg_diffusers.utils.hub_errors import HubError, check_name, hub_errors


PROCESSOR_FILE = "preprocessor_config.json"
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's resampling filters -> torch's
BILINEAR = 2


@dataclass(frozen=True)
class PretrainedSource:
    """A network's folder or Hub id, and the option that named it."""

    name: str  # folder or Hub id
    revision: str | None
    option: str

    @classmethod
    def of(cls, name: str | os.PathLike, revision: str | None, option: str) -> "PretrainedSource":
        """Check the name.

        Raises:
            ValueError: the name is neither an existing folder nor a valid Hub id; a folder with a revision.
        """
        name = os.fspath(name)
        try:
            check_name(name)
        except ValueError as err:
            raise ValueError(f"{option}: {err}") from err
        if revision is not None and os.path.isdir(name):
            raise ValueError(f"{option} '{name}' is a local folder and has no revision '{revision}'.")
        return cls(name, revision, option)

    def load(self, loader: Any, what: str, **options: Any) -> Any:
        """Call `loader.from_pretrained`; errors name the option and the expected files.

        Raises:
            HubError: the Hub or the connection failed.
            ValueError: a file is missing or invalid.
        """
        action = f"{self.option}: loading {what} of '{self.name}'"
        hint = (
            f"Without a connection, give {self.option} a folder that holds config.json, model.safetensors and "
            f"{PROCESSOR_FILE}, as `semseg-diffusers segmenter` writes."
        )
        try:
            with hub_errors(action, self.name, revision=self.revision):
                return loader.from_pretrained(self.name, revision=self.revision, **options)
        except HubError as err:
            raise HubError(f"{err} {hint}") from err
        except (OSError, ValueError) as err:
            first = str(err).strip().splitlines()[0]
            raise ValueError(f"{action}: {first} {hint}") from err

    def config(self) -> PreTrainedConfig:
        """Return the network's config."""
        register_torchvision()
        return self.load(AutoConfig, "config.json")

    def processor(self) -> dict[str, Any]:
        """Return the settings of the image processor, defaults included."""
        return self.load(AutoImageProcessor, PROCESSOR_FILE).to_dict()

    def network(self, loader: Any = AutoModelForSemanticSegmentation, **options: Any) -> PreTrainedModel:
        """Return the network, loaded from safetensors."""
        what = "the weights (model.safetensors; pickles are not read)"
        return self.load(loader, what, use_safetensors=True, **options)


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
        """Read the settings of an image processor. A center crop is ignored: every pixel has to be read.

        Args:
            settings: as returned by `to_dict` of the processor.

        Raises:
            ValueError: the processor resizes in an unsupported way.
        """
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
            result = self.size["height"], self.size["width"]
        else:
            result = get_size_with_aspect_ratio(
                (height, width), self.size["shortest_edge"], self.size.get("longest_edge")
            )
        divisor = self.size_divisor
        return tuple(-(-side // divisor) * divisor for side in result)

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
    return tuple(max(multiple, round(side * factor / multiple) * multiple) for side in (height, width))


def compute_logits(network: torch.nn.Module, pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return float logits (B, num_classes, height, width) at `size`, whatever the network's stride."""
    logits = network(pixel_values=pixel_values).logits  # (B, num_classes, H / stride, W / stride)
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
