"""DeepLabV3 (Chen et al. 2017) and, with a decoder, DeepLabV3+ (2018), on any `ImageBackbone`.

Its norms do not depend on the batch: GroupNorm in the head, and frozen statistics in a pretrained encoder, because
those of eight images are noisier than those of ImageNet.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from semseg_diffusers.backbones.image_backbone import EFFICIENTNETS, ImageBackbone


RATES = (6, 12, 18)  # at output stride 16; twice that at 8
LOW_LEVEL_CHANNELS = 48  # of the decoder's stride-4 features
MAX_GROUPS = 32  # of GroupNorm
MOMENTUM = 0.1  # of batch norm; EfficientNet's 0.01 still holds the initial statistics after hundreds of steps


class DeepLabV3Config(PreTrainedConfig):
    """Config of `DeepLabV3`."""

    model_type = "deeplabv3"
    backbone: str = "efficientnet-lite0"  # a name that `ImageBackbone` knows
    backbone_config: dict[str, Any] | None = None  # of a transformers network: its folder or Hub id is not read again
    output_stride: int = 16
    head_channels: int = 256
    decoder_channels: int = 0  # of the DeepLabV3+ decoder; 0: DeepLabV3, without one
    classifier_dropout_prob: float = 0.1
    freeze_batch_norm: bool = False  # statistics of the encoder
    semantic_loss_ignore_index: int = 255


def _convolution(inputs: int, outputs: int, kernel_size: int = 1, rate: int = 1) -> nn.Sequential:
    padding = rate * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=rate, bias=False),
        nn.GroupNorm(math.gcd(MAX_GROUPS, outputs), outputs),
        nn.ReLU(inplace=True),
    )


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: one 1x1 and three atrous convolutions, and image pooling, joined by a 1x1."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList([_convolution(inputs, outputs)])
        self.branches.extend(_convolution(inputs, outputs, 3, rate) for rate in rates)
        self.pooling = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True))  # one value has no norm
        self.join = _convolution((len(rates) + 2) * outputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs, h, w) of features (B, inputs, h, w)."""
        maps = [branch(features) for branch in self.branches]
        pooled = self.pooling(features.mean((2, 3), keepdim=True))  # (B, outputs, 1, 1)
        return self.join(torch.cat([*maps, pooled.expand_as(maps[0])], 1))


class DeepLabV3(PreTrainedModel):
    """DeepLabV3 on an `ImageBackbone`; its logits stay at the output stride, those of the decoder at stride 4."""

    config_class = DeepLabV3Config
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config: DeepLabV3Config):
        super().__init__(config)
        self.set_backbone(pretrained=False)
        channels, stride = self.backbone.channels, self.backbone.strides[-1]
        width = config.head_channels
        self.pyramid = AtrousPyramid(channels[-1], width, [rate * 16 // stride for rate in RATES])
        if config.decoder_channels:
            self.low_level = _convolution(channels[0], LOW_LEVEL_CHANNELS)
            width += LOW_LEVEL_CHANNELS
            depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.refine = nn.Sequential(depthwise, _convolution(width, config.decoder_channels))
            width = config.decoder_channels
        else:
            self.refine = _convolution(width, width, 3)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, 1)  # type: ignore[arg-type]  # of `id2label`
        self.post_init()

    def set_backbone(self, *, pretrained: bool) -> None:
        """Build the encoder, with random or pretrained weights; statistics of the latter are frozen."""
        config = self.config
        options: dict[str, Any] = {"trainable": True, "output_stride": config.output_stride}
        is_new = config.backbone_config is None and config.backbone not in EFFICIENTNETS
        if pretrained or is_new:
            self.backbone = ImageBackbone.from_name(config.backbone, pretrained=pretrained, **options)
            config.backbone_config = self.backbone.to_config()
        else:
            self.backbone = ImageBackbone.from_config(config.backbone, config.backbone_config, **options)
        self.backbone.drop_classifier()
        config.freeze_batch_norm = pretrained or config.freeze_batch_norm
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
        for name in ("mean", "std"):  # saved with the weights: transformers gives others no values when it loads
            self.backbone.register_buffer(name, getattr(self.backbone, name), persistent=True)

    def train(self, mode: bool = True) -> "DeepLabV3":
        """Set training mode; frozen statistics of the encoder stay as they are."""
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as torch and the backbone made them."""

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """Return `logits` (B, num_labels, h, w) of images (B, 3, H, W) in [0, 1]."""
        maps = self.backbone(pixel_values)
        x = self.pyramid(maps[-1])  # (B, head_channels, H / output_stride, W / output_stride)
        if self.config.decoder_channels:
            x = F.interpolate(x, maps[0].shape[2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, self.low_level(maps[0])], 1)  # (B, head_channels + 48, H / 4, W / 4)
        return SemanticSegmenterOutput(logits=self.classifier(self.dropout(self.refine(x))))
