"""Extracts features from images, by which sets of images are compared.
DINOv2 by default: its distances match human judgment better than Inception's (Stein et al. 2023, arXiv:2306.04675)."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.evaluation.feature_networks import FeatureNetwork, load_encoder, load_inception, load_script
from semseg_diffusers.evaluation.settings import DEFAULT_FEATURES


PAPER_FEATURES = "inception-64"  # of the paper's FID: edges and colors, no objects
STANDARD_INCEPTION = re.compile(r"inception(-64)?(?::(.+))?")  # its names; the second group is a file of weights
SCRIPT_SUFFIXES = (".pt", ".torchscript")
NETWORK_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    torch.jit.Error,
)  # raised by forward passes; the last is no subclass of the others
PROBE_SIZE = (224, 224)  # of the first forward pass, if the network takes any size


def reason_of(err: Exception) -> str:
    """Return the line of an error with the cause; TorchScript puts its own code above it."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else type(err).__name__)


class FeatureExtractor:
    """A network that extracts features; created by `load_extractor`.

    Args:
        name: as requested.
        network: the module and its description.
        device: of the module.

    Raises:
        ValueError: two black images do not give features (2, D).
    """

    def __init__(self, name: str, network: FeatureNetwork, device: str | torch.device = "cpu"):
        self.name, self.network, self.device = name, network, torch.device(device)
        self.module = network.module.to(self.device).eval().requires_grad_(False)
        height, width = network.input_size or PROBE_SIZE
        try:
            found = self._forward(torch.zeros(2, 3, height, width, dtype=torch.uint8))
        except NETWORK_ERRORS as err:
            raise ValueError(
                f"--features: '{name}' ({network.architecture}) does not turn images of {height} x {width} into "
                f"features: {reason_of(err)}"
            ) from err
        self.num_features = found.shape[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Extract features.

        Args:
            images: uint8 (B, 3, H, W), of any size that the network takes.

        Returns:
            float32 (B, D), on the extractor's device.

        Raises:
            ValueError: images of another shape or type, or features that are not finite.
        """
        features = self._forward(images)
        if not features.isfinite().all():
            raise ValueError(
                f"features by '{self.name}' are not finite. Does the network overflow? Use float32 (--dtype), or "
                "another network (--features)."
            )
        return features

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W); got {images.dtype} {tuple(images.shape)}")
        with torch.no_grad():
            features = self.module(images.to(self.device))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"expected features of shape ({len(images)}, D) from the network; got {shape}")
        return features.float()

    def describe(self) -> dict[str, Any]:
        """Return name, revision, architecture, output, number of features and input size, for JSON."""
        size = self.network.input_size
        return {
            "name": self.name,
            "revision": self.network.revision,
            "architecture": self.network.architecture,
            "output": self.network.output or self.module.output,
            "num_features": self.num_features,
            "input_size": None if size is None else list(size),
        }


def is_paper_features(name: str) -> bool:
    """Return whether a name requests the features of the paper's FID; "inception-64.pt" is another file."""
    match = STANDARD_INCEPTION.fullmatch(name)
    return match is not None and match[1] is not None


def load_extractor(
    name: str = DEFAULT_FEATURES,
    *,
    revision: str | None = None,
    input_size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FeatureExtractor:
    """Load a network and try it on two black images, so that errors appear before any image is read.

    Args:
        name: one of

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
    if revision is not None and (standard or is_script):
        raise ValueError(f"--features: only networks of the Hub have a revision; '{name}' has none. Omit it.")
    if standard and input_size is not None:
        raise ValueError(f"--features: Inception reads images at 299 x 299; got an input size of {input_size}.")
    if standard:
        network = load_inception(64 if standard[1] else 2048, standard[2], dtype)
    elif is_script:
        network = load_script(name, input_size)
    elif Path(name).is_file():
        raise ValueError(
            f"--features: '{name}' is a file; expected a folder of a network, a Hub id, or a TorchScript file "
            f"({', '.join(SCRIPT_SUFFIXES)}). Give the folder that holds it."
        )
    else:
        network = load_encoder(name, revision, input_size, dtype)
    return FeatureExtractor(name, network, device)


def extract(extractor: FeatureExtractor, images: Iterable[torch.Tensor], batch_size: int = 32) -> torch.Tensor:
    """Extract features of images, in their order.

    Args:
        extractor: from `load_extractor`.
        images: uint8 (3, H, W) each; a (N, 3, H, W) tensor works too. Consecutive images of one size share a forward
            pass, so sizes may differ.
        batch_size: images per forward pass; changes features only by rounding.

    Returns:
        float32 (N, D), on CPU.

    Raises:
        ValueError: no images, or features that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    found: list[torch.Tensor] = []
    batch: list[torch.Tensor] = []

    def flush() -> None:
        if batch:
            found.append(extractor(torch.stack(batch)).cpu())
            batch.clear()

    for image in images:
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            flush()
        batch.append(image)
    flush()
    if not found:
        raise ValueError("expected at least one image; got none")
    return torch.cat(found)  # (N, D)
