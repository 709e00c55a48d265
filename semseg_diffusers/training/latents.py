"""The latents that a network is trained on: a frozen autoencoder, their statistics, and a cache of them on disk.

Where nothing but the flip changes the images, each is encoded once, and once mirrored, since encoders do not mirror
exactly. KL latents are kept as mean and standard deviation, and sampled at each step, as in latent diffusion (Rombach
et al. 2022). Where images are cropped or warped, they are encoded at each step.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import evenly_spaced
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.pipelines.latents import (
    check_vae,
    encode_images,
    encode_moments,
    latent_channels,
    latent_statistics,
    vae_factor,
)
from semseg_diffusers.training.source_configs import CONFIG_FILE, read_config
from semseg_diffusers.utils.files import written_beside
from semseg_diffusers.utils.hub_errors import hub_errors


logger = logging.getLogger(__name__)

FILE = "latents.npy"
MEASURED = 256  # images, evenly spaced, whose latents are measured
DIGITS = 4  # of the statistics in the network's config
FOLDERS = ("vae", "vqvae", "")  # of a pipeline, or an autoencoder alone


def load_vae(source: str) -> Any:
    """Load an autoencoder of diffusers, alone or of a pipeline, from a folder or the Hub, frozen, in float32.

    Raises:
        ValueError: no such folder, or what it holds is no autoencoder of images, truncated, or not finite.
        HubError: the Hub has no such model, or denies access.
    """
    where = f"--vae {source}"
    names = [f"{folder}/{CONFIG_FILE}" if folder else CONFIG_FILE for folder in FOLDERS]
    config, name = read_config(source, "--vae", *names) or ({}, "")
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None or not (hasattr(cls, "encode") and hasattr(cls, "decode")):
        found = (
            f"it holds a {config['_class_name']}" if "_class_name" in config else f"it has none of {', '.join(names)}"
        )
        raise ValueError(
            f"{where}: {found}; expected a folder or a Hub id of an autoencoder of diffusers, such as AutoencoderKL, "
            "or of a pipeline with one. `semseg-diffusers autoencoder` trains one."
        )
    with hub_errors(f"--vae: loading the model '{source}'", source):
        try:
            vae = cls.from_pretrained(source, subfolder=name.rpartition("/")[0] or None, torch_dtype=torch.float32)
        except SafetensorError as err:
            raise ValueError(f"{where}: its weights cannot be read: {err}. Are they complete?") from err
        except (OSError, RuntimeError, ValueError) as err:
            if not Path(source).is_dir():
                raise
            raise ValueError(f"{where}: its weights cannot be read: {str(err).splitlines()[0]}") from err
    check_vae(vae, where)
    wrong = [key for key, weight in vae.state_dict().items() if not torch.isfinite(weight).all()]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} holds values that are not finite. Give another, or train it again.")
    return vae.requires_grad_(False).eval()


class Latents:
    """The autoencoder of a run, and the latents of its images.

    Args:
        vae: frozen autoencoder.
        pairs: that are trained on.
        settings: of the run.
    """

    def __init__(self, vae: Any, pairs: PairDataset, settings: Any):
        self.vae, self.pairs, self.flips = vae, pairs, settings.horizontal_flip
        self.crop_size = settings.random_crop_size
        changed = self.crop_size is not None or settings.augment_scale or settings.augment_translate
        self.is_cached = not changed
        self.factor, self.channels = vae_factor(vae), latent_channels(vae)
        self.statistics: dict[str, list[float]] = {}  # of the network's config: `latents_mean`, `latents_std`
        self.file: Path | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of the autoencoder."""
        return weights_hash(self.vae.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which reads the cache and does not encode."""
        return {**{name: each for name, each in vars(self).items() if name != "moments"}, "vae": None}

    @functools.cached_property
    def moments(self) -> np.ndarray:
        """Return the cache: (pairs, 1 or 2 with the mirrored image, C or 2C with the standard deviations, h, w)."""
        return np.load(str(self.file), mmap_mode="r")

    @torch.no_grad()
    def _encode(self, index: int) -> torch.Tensor:
        """Encode an image as the network may see it: (1 or 2, C or 2C, h, w) float32 on the CPU."""
        pixels = self.pairs[index]["image"]  # (3, H, W)
        if self.crop_size is not None:
            (height, width), (rows, columns) = pixels.shape[-2:], self.crop_size
            top, left = (height - rows) // 2, (width - columns) // 2
            pixels = pixels[:, top : top + rows, left : left + columns]
        images = (pixels.float() / 127.5 - 1).to(self.vae.device)
        images = torch.stack([images, images.flip(-1)] if self.flips else [images]).contiguous()
        mean, std = encode_moments(self.vae, images)
        moments = (mean if std is None else torch.cat([mean, std], dim=1)).float().cpu()
        if not torch.isfinite(moments).all():
            raise ValueError(
                f"--vae: latents of image '{self.pairs.stems[index]}' of {self.pairs.name} are not finite. Give "
                "another autoencoder."
            )
        return moments

    def fill_cache(self) -> None:
        """Encode all images, or find the file of an earlier run with the same (`HF_ASSETS_CACHE`)."""
        if not self.is_cached:
            return
        key = hashlib.sha256(json.dumps([self.digest, self.flips, self.pairs.stems]).encode())
        for index in range(len(self.pairs)):
            key.update(hashlib.sha256(self.pairs.photo_file(index)).digest())
        folder = cached_assets_path("semseg_diffusers", namespace="latents", subfolder=key.hexdigest()[:32])
        self.file = folder / FILE
        if self.file.is_file():
            return
        first = self._encode(0)
        shape = (len(self.pairs), *first.shape)
        logger.info(f"encoding {len(self.pairs):,} images into {self.file} ({np.prod(shape) * 4 / 1e6:,.1f} MB)")
        try:
            with written_beside(self.file) as staging:
                moments = np.lib.format.open_memmap(staging, mode="w+", dtype=np.float32, shape=shape)
                moments[0] = first
                for index in range(1, len(self.pairs)):
                    moments[index] = self._encode(index)
                moments.flush()
                del moments
        except OSError as err:
            raise OSError(
                f"the cache of latents could not be written: {err}. Free disk space, or set HF_ASSETS_CACHE."
            ) from err

    @torch.no_grad()
    def measure(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of each channel, on top of the scale that the autoencoder's config says.

        Raises:
            ValueError: a channel is the same everywhere.
        """
        indices = evenly_spaced(range(len(self.pairs)), MEASURED)
        sums, cells = torch.zeros(2, self.channels, dtype=torch.float64), 0  # of values, of squares
        for index in indices:
            moments = torch.from_numpy(np.array(self.moments[index])) if self.is_cached else self._encode(index)
            mean, std = moments[:, : self.channels].double(), moments[:, self.channels :].double()
            sums[0] += mean.sum((0, 2, 3))
            sums[1] += mean.square().sum((0, 2, 3)) + (std.square().sum((0, 2, 3)) if std.numel() else 0)
            cells += mean[:, 0].numel()
        mean, square = sums / cells
        std = (square - mean.square()).clamp(min=0).sqrt()
        if not (std > 0).all():
            channel = int((std <= 0).nonzero()[0])
            raise ValueError(f"--vae: channel {channel} of its latents never changes. Give another autoencoder.")
        shift, scale = (each.double().flatten() for each in latent_statistics(self.vae, {}))
        found = {"latents_mean": (mean - shift) / scale, "latents_std": std / scale}
        return {name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in found.items()}

    def use(self, statistics: Mapping[str, list[float]]) -> None:
        """Scale latents by these statistics from now on, which the network's config holds."""
        self.statistics = dict(statistics)
        self._shift, self._scale = (each[0] for each in latent_statistics(self.vae, statistics))  # (C, 1, 1)

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of images of a size."""
        return self.channels, height // self.factor, width // self.factor

    def read(self, index: int, flip: bool, noise: torch.Tensor) -> torch.Tensor:
        """Return latents (C, h, w) from the cache as the network generates them; KL ones are sampled with `noise`."""
        moments = torch.from_numpy(np.array(self.moments[index, int(flip)]))
        latents = moments[: self.channels]
        if len(moments) > self.channels:
            latents = latents + moments[self.channels :] * noise
        return (latents - self._shift) / self._scale

    @torch.no_grad()
    def encode(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the latents (B, C, h, w) of a batch's images as the network generates them."""
        images = batch["image"].contiguous()  # not channels last, which crashes on CPUs where there are 3 channels
        return encode_images(self.vae, images, self.statistics, batch["latent_noise"])
