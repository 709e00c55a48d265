"""The networks that `semseg-diffusers segmenter` trains from random weights, by name, and their image processors.
All load with `AutoModelForSemanticSegmentation`, so a saved folder works with transformers alone."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    MobileViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
)
from transformers.modeling_outputs import SemanticSegmenterOutput


# Settings of transformers' image processors without "size", which depends on the data. Written as JSON because
# constructing a processor without torchvision warns, and loading one does not.
SEGFORMER_PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_reduce_labels": False,
}
MOBILEVIT_PROCESSOR = {
    "image_processor_type": "MobileViTImageProcessor",
    "do_resize": True,
    "resample": 2,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_flip_channel_order": True,
    "do_reduce_labels": False,
}


class TorchvisionDeepLabV3Config(PreTrainedConfig):
    """Config of `TorchvisionDeepLabV3`: only the classes vary."""

    model_type = "torchvision_deeplabv3_resnet50"
    semantic_loss_ignore_index: int = 255


class TorchvisionDeepLabV3(PreTrainedModel):
    """torchvision's `deeplabv3_resnet50` (Chen et al. 2017) as a transformers model; its logits stay at stride 8.

    Args:
        config: with the classes.

    Raises:
        ValueError: torchvision cannot be imported.
    """

    config_class = TorchvisionDeepLabV3Config
    main_input_name = "pixel_values"

    def __init__(self, config: TorchvisionDeepLabV3Config):
        super().__init__(config)
        try:
            from torchvision.models.segmentation import deeplabv3_resnet50
        except (ImportError, RuntimeError) as err:  # RuntimeError: a build for another torch
            raise ValueError(
                f"deeplabv3-resnet50 needs torchvision, which cannot be imported ({err}). Install the build that "
                "matches your torch (pip install 'semseg-diffusers[fid]' brings torchvision), or choose another "
                "--architecture."
            ) from err
        self.network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=config.num_labels)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the weights as torchvision made them."""

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """Return `logits` (B, num_labels, H / 8, W / 8) of normalized images (B, 3, H, W)."""
        features = self.network.backbone(pixel_values)["out"]  # (B, 2048, H / 8, W / 8)
        return SemanticSegmenterOutput(logits=self.network.classifier(features))


def register_torchvision() -> None:
    """Register `TorchvisionDeepLabV3` with transformers' Auto classes; repeated calls are fine."""
    AutoConfig.register(TorchvisionDeepLabV3Config.model_type, TorchvisionDeepLabV3Config, exist_ok=True)
    AutoModelForSemanticSegmentation.register(TorchvisionDeepLabV3Config, TorchvisionDeepLabV3, exist_ok=True)


def _segformer_mini(**classes: Any) -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        sr_ratios=[4, 2, 1, 1],  # half of the original's: images here are small
        decoder_hidden_size=64,
        drop_path_rate=0.0,  # a network this small and trained this briefly underfits
        classifier_dropout_prob=0.0,
        **classes,
    )


def _segformer_b0(**classes: Any) -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[32, 64, 160, 256],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 5, 8],
        sr_ratios=[8, 4, 2, 1],
        decoder_hidden_size=256,
        **classes,
    )


def _mobilevit_small(**classes: Any) -> MobileViTConfig:
    return MobileViTConfig(output_stride=8, **classes)


def _mobilevit_xxs(**classes: Any) -> MobileViTConfig:
    return MobileViTConfig(
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
        hidden_dropout_prob=0.05,
        output_stride=8,
        **classes,
    )


# name -> config, called with the entries of `class_config`, and settings of the image processor
NETWORKS = {
    "segformer-mini": (_segformer_mini, SEGFORMER_PROCESSOR),
    "segformer-b0": (_segformer_b0, SEGFORMER_PROCESSOR),
    "mobilevit-deeplabv3": (_mobilevit_small, MOBILEVIT_PROCESSOR),
    "mobilevit-deeplabv3-xxs": (_mobilevit_xxs, MOBILEVIT_PROCESSOR),
    "deeplabv3-resnet50": (TorchvisionDeepLabV3Config, SEGFORMER_PROCESSOR),
}
