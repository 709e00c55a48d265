"""Loads feature networks: an encoder of transformers, the standard Inception, a TorchScript file.
Each is a module from uint8 images (B, 3, H, W) to features (B, D), preprocessing included."""

import contextlib
import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from semseg_diffusers.utils.hub_errors import HubError, check_name, hub_errors


HINT = "provide a folder with config.json, preprocessor_config.json and model.safetensors: --features DIR"
INCEPTION_WEIGHTS = (
    "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's copy of the network of the FID paper
)
INCEPTION_SIZE = 299  # pixels a side, to which torchmetrics resizes


@dataclass(frozen=True)
class FeatureNetwork:
    """A network for `load_extractor`."""

    module: torch.nn.Module  # uint8 (B, 3, H, W) -> (B, D), in evaluation mode
    revision: str  # Hub commit, or hash of weights and settings
    architecture: str
    output: str | None  # output that the features are taken from; None: `module.output`, set by a forward pass
    input_size: tuple[int, int] | None  # height, width; None: that of the images


def resize(images: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Resize uint8 images (B, 3, H, W) to float in [0, 255]: bicubic, antialiased, not cropped; None keeps the size.

    The full image is stretched to the size, as in FD-DINOv2 of EDM2 (Karras et al. 2024): the sides of a street scene
    count as much as its center. Values are neither rounded nor clipped.
    """
    images = images.float()
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def hash_of(paths: Sequence[Path]) -> str:
    """Return "sha256:..." of the content of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


# Networks of transformers --------------------------------------------------------------------------------------------


class _Encoder(torch.nn.Module):
    """An image encoder of transformers, with the preprocessing of its saved image processor."""

    def __init__(self, encoder: torch.nn.Module, processor: Any, size: tuple[int, int] | None, use_pooler: bool):
        super().__init__()
        self.encoder, self.size, self.use_pooler = encoder, size, use_pooler
        self.output: str | None = None  # set by the first forward pass
        self.has_class_token = any(name.endswith(("cls_token", "class_embedding")) for name in encoder.state_dict())
        self.scale = getattr(processor, "rescale_factor", 1 / 255) if processor.do_rescale else 1.0
        self.flip = bool(getattr(processor, "do_flip_channel_order", False))  # MobileViT expects BGR
        normalize = bool(processor.do_normalize)
        for name, values in (
            ("mean", processor.image_mean if normalize else (0.0,) * 3),
            ("std", processor.image_std if normalize else (1.0,) * 3),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 pixel values (B, 3, h, w) of uint8 images (B, 3, H, W)."""
        pixels = resize(images, self.size) * self.scale
        if self.flip:
            pixels = pixels.flip(1)
        return (pixels - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.encoder(pixel_values=self.prepare(images).to(self.encoder.dtype))
        self.output, features = self.choose(outputs)
        return features  # (B, D)

    def choose(self, outputs: Any) -> tuple[str, torch.Tensor]:
        """Return name and value of the output to use as features."""
        pooled = outputs.get("pooler_output") if self.use_pooler else None
        if pooled is not None:
            return "pooler_output", pooled.flatten(1)
        names = ("last_hidden_state", "encoder_last_hidden_state")  # the second is Mask2Former's
        name = next((name for name in names if outputs.get(name) is not None), None)
        if name is None:
            raise ValueError(f"expected an output {' or '.join(names)}; got {', '.join(outputs)}")
        hidden = outputs[name]  # tokens (B, N, D) or a map (B, D, h, w)
        if hidden.ndim == 4:
            return f"mean over space of {name}", hidden.float().mean((2, 3))
        if self.has_class_token:
            return f"class token of {name}", hidden[:, 0]
        return f"mean over tokens of {name}", hidden.float().mean(1)


def load_encoder(
    name: str, revision: str | None, input_size: tuple[int, int] | None, dtype: torch.dtype
) -> FeatureNetwork:
    """Load the encoder of a folder or Hub id; see `load_extractor`."""
    import transformers  # not needed by the other kinds

    folder, revision = _fetch(name, revision)
    processor = _read(transformers.AutoImageProcessor, folder, name)
    config = _read(transformers.AutoConfig, folder, name)
    # Load the network as it was saved, then take its encoder: AutoModel would add a last layer to MobileViT's encoder
    # that a segmentation network does not have, with random weights.
    saved_as = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
    try:
        model, loading = saved_as.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
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
    size = input_size or _size_of(processor)
    module = _Encoder(encoder, processor, size, use_pooler=not missing_pooler).eval()
    return FeatureNetwork(module, revision, type(encoder).__name__, None, size)


def _fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """Return the folder of a network's files, and its revision."""
    try:
        check_name(name)
    except ValueError as err:
        raise ValueError(f"--features: {err} Check the path, or {HINT}.") from err
    folder = Path(name)
    is_local = folder.is_dir()
    if is_local and revision is not None:
        raise ValueError(f"--features: '{name}' is a local folder and has no revision '{revision}'; omit it.")
    if not is_local:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "model.safetensors", "model-*-of-*.safetensors"]
        try:
            with hub_errors(
                f"--features: '{name}' is no folder here; loading it from the Hub", name, revision=revision
            ):
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except HubError as err:
            raise HubError(f"{err} Without the Hub: {HINT}.") from err
    if (folder / "model_index.json").is_file():
        raise ValueError(f"--features: '{name}' is a diffusion pipeline; expected an image encoder.")
    weights = list(folder.glob("*.safetensors"))
    for found, what in (
        (weights, "no *.safetensors (pickled weights are not read)"),
        ((folder / "config.json").is_file(), "no config.json"),
        (
            (folder / "preprocessor_config.json").is_file(),
            "no preprocessor_config.json, which defines its preprocessing",
        ),
    ):
        if not found:
            raise ValueError(f"--features: '{name}' holds {what}; {HINT}.")
    settings = [folder / "config.json", folder / "preprocessor_config.json"]  # features depend on these as well
    return folder, hash_of([*weights, *settings]) if is_local else folder.name


def _read(loader: Any, folder: Path, name: str) -> Any:
    """Load a config or an image processor from a folder."""
    try:
        return loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(
            f"--features: '{name}' is not an image network that transformers supports ({_first_line(err)}); {HINT}."
        ) from err


def _size_of(processor: Any) -> tuple[int, int] | None:
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


# The standard Inception ----------------------------------------------------------------------------------------------


def load_inception(num_features: int, weights: str | None, dtype: torch.dtype) -> FeatureNetwork:
    """Load torchmetrics' Inception with torch-fidelity's weights; see `load_extractor`.

    Args:
        num_features: 2048, or 64 (after the first pooling).
        weights: state dict file; None takes the one torch-fidelity downloads.
        dtype: of weights and computation.
    """
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
    if weights is not None:
        with _state_dict_errors(weights):
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run any pickle
    try:
        with _state_dict_errors(weights or INCEPTION_WEIGHTS):
            module = NoTrainInceptionV3("inception-v3-compat", [str(num_features)], weights)
    except OSError as err:
        raise OSError(
            f"--features inception: {INCEPTION_WEIGHTS} is missing and cannot be downloaded ({_first_line(err)}). "
            "Download it from https://github.com/toshas/torch-fidelity/releases and give its path: --features "
            f"inception{'-64' if num_features == 64 else ''}:/folder/{INCEPTION_WEIGHTS}"
        ) from err
    module._dtype = dtype  # what torchmetrics casts images to
    path = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS)
    output = f"{num_features} features of torchmetrics' NoTrainInceptionV3"
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    return FeatureNetwork(module.to(dtype), hash_of([path]), "InceptionV3", output, size)


@contextlib.contextmanager
def _state_dict_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError, EOFError) as err:
        reason = "it holds more than tensors" if isinstance(err, pickle.UnpicklingError) else _first_line(err)
        raise ValueError(
            f"--features: '{path}' is not a state dict of Inception ({reason}); expected {INCEPTION_WEIGHTS} of "
            "torch-fidelity."
        ) from err


# TorchScript ---------------------------------------------------------------------------------------------------------


class _Script(torch.nn.Module):
    """A TorchScript module for uint8 images; `return_features=True` is passed if its forward accepts it."""

    def __init__(self, script: torch.jit.ScriptModule, size: tuple[int, int] | None):
        super().__init__()
        self.script, self.size = script, size
        arguments = [argument.name for argument in script.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in arguments else {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = resize(images, self.size).round().clamp(0, 255).to(torch.uint8) if self.size else images
        return self.script(pixels, **self.options)  # (B, D)


def load_script(path: str, input_size: tuple[int, int] | None) -> FeatureNetwork:
    """Load a TorchScript file; see `load_extractor`."""
    file = Path(path)
    if not file.is_file():
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
    module = _Script(script, input_size).eval()
    output = "return_features=True" if module.options else "output"
    return FeatureNetwork(module, hash_of([file]), script.original_name, output, input_size)


def _first_line(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else type(err).__name__
