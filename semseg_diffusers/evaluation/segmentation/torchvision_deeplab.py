"""DeepLabV3 with a ResNet-50 (Chen et al. 2017), the network that the paper is judged with, as torchvision builds it.
A config and a model of transformers' kind around it, so that it is saved, loaded and registered like all others."""

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class TorchvisionDeepLabV3Config(PreTrainedConfig):
    """What `config.json` says of the network: only the classes differ."""

    model_type = "torchvision_deeplabv3_resnet50"
    semantic_loss_ignore_index: int = 255


class TorchvisionDeepLabV3(PreTrainedModel):
    """torchvision's `deeplabv3_resnet50`; its logits stay at stride 8.

    Args:
        config: holds the classes.

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
                f"deeplabv3-resnet50 needs torchvision, which cannot be imported here ({err}). Install the build that "
                "fits your torch (pip install 'semseg-diffusers[fid]' brings torchvision), or choose another "
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


def register() -> None:
    """Let transformers' Auto classes find the network; as often as one likes."""
    AutoConfig.register(TorchvisionDeepLabV3Config.model_type, TorchvisionDeepLabV3Config, exist_ok=True)
    AutoModelForSemanticSegmentation.register(TorchvisionDeepLabV3Config, TorchvisionDeepLabV3, exist_ok=True)
