"""Segmentation networks: with random weights, loaded to fine-tune, or loaded as they are from a folder or the Hub.

All load with `AutoModelForSemanticSegmentation`, so a saved folder works with transformers alone. Weights are
safetensors only: a pickle may run code. `Preprocessing` is the arithmetic of transformers' image processors, on
tensors; its settings are those of `preprocessor_config.json`.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.modeling_outputs import SemanticSegmenterOutput

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import parse_resolution
from semseg_diffusers.evaluation.segmentation.deeplab import DeepLabV3, DeepLabV3Config
from semseg_diffusers.evaluation.settings import ARCHITECTURES, FINE_TUNING_RATE, Recipe, SegmenterTrainingOptions
from semseg_diffusers.hub.weights import TRANSFORMERS, only_variant
from semseg_diffusers.utils.hub_errors import HubError, check_name, hub_errors


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
        """Return the height and width at which the network reads an image of this size."""
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
    """Return height and width scaled so that the shorter is about `shortest`, both multiples of `multiple`."""
    factor = shortest / min(height, width)
    height, width = (max(multiple, round(side * factor / multiple) * multiple) for side in (height, width))
    return height, width


def compute_logits(network: torch.nn.Module, pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return float logits (B, num_classes, height, width) at `size`, whatever the network's stride."""
    logits = network(pixel_values=pixel_values).logits  # (B, num_classes, H / stride, W / stride)
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Return the context of a forward pass in "bf16", or in full precision for "no"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


class TorchvisionDeepLabV3Config(PreTrainedConfig):
    """Config of `TorchvisionDeepLabV3`: only the classes vary."""

    model_type = "torchvision_deeplabv3_resnet50"
    semantic_loss_ignore_index: int = 255


class TorchvisionDeepLabV3(PreTrainedModel):
    """torchvision's `deeplabv3_resnet50` (Chen et al. 2017) as a transformers model; its logits stay at stride 8."""

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


def register_networks() -> None:
    """Register our networks with transformers' Auto classes; repeated calls are fine."""
    for config, network in ((TorchvisionDeepLabV3Config, TorchvisionDeepLabV3), (DeepLabV3Config, DeepLabV3)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSemanticSegmentation.register(config, network, exist_ok=True)


class PretrainedSource:
    """The folder or Hub id of a network, with its revision and the option that named it."""

    def __init__(self, name: str | os.PathLike, revision: str | None, option: str):
        self.name, self.revision, self.option = os.fspath(name), revision, option
        try:
            check_name(self.name)
        except ValueError as err:
            raise ValueError(f"{option}: {err}") from err
        if revision is not None and os.path.isdir(self.name):
            raise ValueError(f"{option} '{self.name}' is a local folder and has no revision '{revision}'.")

    def load(self, loader: Any, what: str, **options: Any) -> Any:
        """Call `loader.from_pretrained`; errors name the option and the expected files."""
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
            raise ValueError(f"{action}: {str(err).strip().splitlines()[0]} {hint}") from err

    def config(self) -> PreTrainedConfig:
        """Return the network's config."""
        register_networks()
        return self.load(AutoConfig, "config.json")

    def processor(self) -> dict[str, Any]:
        """Return the settings of the image processor, defaults included."""
        return self.load(AutoImageProcessor, PROCESSOR_FILE).to_dict()

    def network(self, loader: Any = AutoModelForSemanticSegmentation) -> PreTrainedModel:
        """Return the network."""
        variant = only_variant(self.name, stem=TRANSFORMERS) if os.path.isdir(self.name) else None
        what = "the weights (model.safetensors; pickles are not read)"
        return self.load(loader, what, use_safetensors=True, variant=variant, dtype=torch.float32)


class InitialSegmenter(NamedTuple):
    """A network before its first step, with its input and how it is trained."""

    network: PreTrainedModel
    processor: dict[str, Any]  # settings of its image processor, size included
    preprocessing: Preprocessing  # the same, on tensors
    input_size: tuple[int, int]  # height, width
    learning_rate: float
    recipe: Recipe
    encoder: dict[str, Any] | None  # of a new DeepLabV3, for records


def build_segmenter(
    options: SegmenterTrainingOptions, labels: LabelSet, resolution: tuple[int, int], seed: int, device: str = "cpu"
) -> InitialSegmenter:
    """Build a network with random weights, or load one to fine-tune, for images of this height and width."""
    enlargement, least_side, rate = 2, 256, FINE_TUNING_RATE
    if options.architecture_name is None:
        assert options.base_model is not None
        source = PretrainedSource(options.base_model, options.revision, "--base_model")
        network, processor = load_pretrained(source, labels, seed)
    else:
        architecture = ARCHITECTURES[options.architecture_name]
        network = new_network(
            options.architecture_name, labels, seed, pretrained=options.pretrained_encoder, **options.encoder
        )
        rate, processor = architecture.learning_rate, architecture.processor
        enlargement, least_side = architecture.enlargement, architecture.least_side
    if options.input_size is None:
        size = scaled_size(*resolution, max(enlargement * min(resolution), least_side))
    else:
        size = parse_resolution(options.input_size) or resolution  # None: native
        if options.input_size.isdecimal():
            size = scaled_size(*resolution, size[0])
    processor = {**processor, "size": {"height": size[0], "width": size[1]}}
    processor |= {"do_resize": True, "do_center_crop": False, "do_reduce_labels": False}
    network.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to`, and mypy loses self
    rate = rate if options.learning_rate is None else options.learning_rate
    encoder = None
    if isinstance(network, DeepLabV3) and options.has_backbone:
        backbone = network.backbone
        encoder = {"name": backbone.name, "weights": backbone.version, "strides": list(backbone.strides)}
    preprocessing = Preprocessing.from_processor(processor)
    return InitialSegmenter(network, processor, preprocessing, size, rate, options.recipe, encoder)


def class_config(labels: LabelSet) -> dict[str, Any]:
    """Return the config entries that define a network's classes."""
    return {
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "label_set": labels.to_config(),
        "semantic_loss_ignore_index": labels.ignore_index,
    }


def class_names(config: Any) -> tuple[str, ...]:
    """Return the classes of a network in the order of their ids."""
    return tuple(config.id2label[index] for index in sorted(config.id2label))


def new_network(
    name: str, labels: LabelSet, seed: int = 0, *, pretrained: bool = False, **changes: Any
) -> PreTrainedModel:
    """Build a network with random weights, or with a pretrained encoder.

    Args:
        name: one of `ARCHITECTURES`.
        labels: saved in the config as `id2label` and `label2id`, and in full as `label_set`.
        seed: of the random weights; the global random state stays as it was.
        pretrained: whether the encoder of a DeepLabV3 gets the weights of its `ImageBackbone`.
        changes: of the architecture's config.

    Raises:
        ValueError: unknown name, or a library it needs is not installed.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"--architecture '{name}': expected one of {', '.join(ARCHITECTURES)}.")
    register_networks()
    config = AutoConfig.for_model(**{**ARCHITECTURES[name].config, **changes, **class_config(labels)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(config)
        # transformers initializes the scales of MobileViT's batch norms around 0, which silences every layer
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        if pretrained and isinstance(network, DeepLabV3):
            network.set_backbone(pretrained=True)
    return network


def load_pretrained(
    source: PretrainedSource, labels: LabelSet, seed: int = 0
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a network to fine-tune, and the settings of its image processor.

    Its last layer is initialized again, by the seed, if its classes are not those of the labels.
    """
    config = source.config()
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        raise ValueError(
            f"{source.option} '{source.name}' is a {config.model_type}; expected a network that transformers' "
            "AutoModelForSemanticSegmentation supports, such as a segformer or a mobilevit."
        )
    processor = source.processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = source.network()
        config = copy.deepcopy(base.config)
        same_classes = class_names(config) == labels.names
        for key, value in class_config(labels).items():
            setattr(config, key, value)
        network = AutoModelForSemanticSegmentation.from_config(config)
        skipped = set() if same_classes else _class_layers(config)
        weights = {name: value for name, value in base.state_dict().items() if name not in skipped}
        network.load_state_dict(weights, strict=False)
    return network, processor


def _class_layers(config: Any) -> set[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    more = copy.deepcopy(config)
    more.num_labels = config.num_labels + 1
    with torch.device("meta"):  # shapes only
        few, many = (AutoModelForSemanticSegmentation.from_config(each).state_dict() for each in (config, more))
    return {name for name, value in few.items() if many[name].shape != value.shape}
