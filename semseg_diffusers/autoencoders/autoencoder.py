"""Training of an autoencoder on photos: settings -> photos -> run -> steps -> folder; the command autoencoder.

The run is that of `train` (training/run.py). Its folder is a plain one of a diffusers class, whose config holds the
measured `scaling_factor`.
"""

import contextlib
import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from PIL import Image
from torch.utils.data import Dataset

from semseg_diffusers.autoencoders.measures import measure_latents, measure_reconstructions, whole_cells
from semseg_diffusers.autoencoders.networks import CLASSES, TrainedAutoencoder, build_autoencoder, reconstruct
from semseg_diffusers.autoencoders.objective import Objective
from semseg_diffusers.autoencoders.settings import AutoencoderSettings
from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.data.dataset import PairDataset, column_options, load_pairs, read_record
from semseg_diffusers.distillation.discriminator import Discriminator, FrozenFeatures
from semseg_diffusers.evaluation.features import FeatureExtractor, load_extractor
from semseg_diffusers.evaluation.fidelity import SSIM_KERNEL
from semseg_diffusers.hub.cards import new_autoencoder_card
from semseg_diffusers.hub.folders import CARD
from semseg_diffusers.training import checkpoints, hardware
from semseg_diffusers.training.class_balance import ClassCounts
from semseg_diffusers.training.dataset import CROP, SAMPLE, WINDOW, make_generator
from semseg_diffusers.training.inputs import Data, Inputs, class_balance, count_every_mask, load_inputs, training_size
from semseg_diffusers.training.loop import run_and_push
from semseg_diffusers.training.previews import parse_trackers, preview_pairs
from semseg_diffusers.training.run import Run
from semseg_diffusers.utils.distributed import run_on_all_ranks
from semseg_diffusers.utils.files import versions, write_json, write_text
from semseg_diffusers.utils.hub_errors import check_name, hub_errors
from semseg_diffusers.utils.images import image_grid, save_png


RESULTS_FILE, PICTURES_FILE = "results.json", "reconstructions.png"
ENHANCED = 4  # times the difference of photo and reconstruction in pictures
LATENT_BITS = 16  # of a number of the latents, as half precision stores it


class PhotoCrops(Dataset):
    """Photos, or random crops of them, with everything random already sampled.

    Item `(position, index)`: `image` (3, H, W) in [-1, 1]; `noise` (C, h, w) of the latents; `window` (4,) in [0, 1),
    size, place and flip of what frozen networks see; `stem`.
    """

    def __init__(self, pairs: PairDataset, settings: AutoencoderSettings):
        self.pairs, self.settings = pairs, settings

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        (position, index), settings, whole = key, self.settings, self.pairs.sizes[key[1]]
        height, width = settings.random_crop_size or whole
        generator = make_generator(settings.seed, CROP, position)
        top, left = (
            int(torch.randint(0, most + 1, (), generator=generator)) for most in (whole[0] - height, whole[1] - width)
        )
        pair = self.pairs.read(index, slice(top, top + height), slice(left, left + width))
        image = pair["image"].float() / 127.5 - 1  # (3, H, W)
        generator = make_generator(settings.seed, SAMPLE, position)
        flip = torch.rand((), generator=generator) < 0.5
        if settings.horizontal_flip and flip:
            image = image.flip(-1)
        factor = settings.downsample
        return {
            "image": image.contiguous(),
            "noise": torch.randn(settings.latent_channels, height // factor, width // factor, generator=generator),
            "window": torch.rand(4, generator=make_generator(settings.seed, WINDOW, position)),
            "stem": pair["stem"],
        }


@dataclass
class AutoencoderInputs(Inputs):
    """What the training of an autoencoder reads before its first step; `unet` is the autoencoder."""

    noise_scheduler: Any = None


def build_inputs(settings: AutoencoderSettings, data: Data) -> AutoencoderInputs:
    """Build the autoencoder, and refuse photos that do not suit it."""
    pairs, preview_pairs, reason = data  # previews and measures are of the same photos
    if not settings.preview_steps and settings.validation_split != settings.train_split:
        with contextlib.suppress(FileNotFoundError, ValueError):  # as where previews are made
            preview_pairs = load_pairs(settings.dataset, settings.validation_split, **column_options(settings))
    size, factor = training_size(settings, (pairs, preview_pairs, reason)), settings.downsample
    if any(side % factor for side in size):
        nearest = "x".join(str(max(1, round(side / factor)) * factor) for side in size)
        raise ValueError(
            f"the photos of {pairs.name} are {size[0]} x {size[1]} pixels, which --downsample {factor} does not "
            f"divide. Give --random_crop, a multiple of it, or prepare them at another --resolution, e.g. {nearest}."
        )
    smallest = min(min(whole_size) for whole_size in preview_pairs.sizes)
    if smallest // factor * factor < SSIM_KERNEL:
        raise ValueError(
            f"the photos of {preview_pairs.name} have a side of {smallest} pixels; expected {SSIM_KERNEL} or more, "
            "which measures of reconstructions need. Prepare them larger: --resolution."
        )
    counts = balance = None
    if settings.class_balanced_sampling:
        counts = count_every_mask(settings, pairs)
        balance = class_balance(settings, counts)
    torch.manual_seed(settings.seed)
    return AutoencoderInputs(
        pairs, preview_pairs, reason, read_record(settings.dataset).get("format"), {}, counts, balance, None, None,
        build_autoencoder(settings, size),
    )  # fmt: skip


def load_autoencoder(source: str, settings: AutoencoderSettings) -> Any:
    """Load the autoencoder of `--init_from`, of the class that the settings name."""
    expected = CLASSES[settings.kind]
    check_name(source)
    with hub_errors(f"loading the autoencoder '{source}'", source):
        found = expected.load_config(source).get("_class_name")
        if found != expected.__name__:
            raise ValueError(f"--init_from '{source}' holds a {found}; --kind {settings.kind} is {expected.__name__}.")
        return expected.from_pretrained(source)


class AutoencoderRun(Run):
    """A run that trains an autoencoder, and a discriminator beside it."""

    command = "autoencoder"
    inputs: AutoencoderInputs

    def __init__(self, *args: Any, features: FrozenFeatures | None, extractor: FeatureExtractor | None):
        super().__init__(*args)
        self.extractor, self.discriminator = extractor, None
        self.autoencoder = TrainedAutoencoder(self.inputs.unet, self.settings)
        if features is not None:
            torch.manual_seed(self.settings.seed)
            self.discriminator = Discriminator("projected", features.channels)

    def load_first_weights(self) -> None:
        """Load the weights of `init_from` into the autoencoder of a new run."""
        source, network = self.settings.init_from, self.autoencoder.network
        if source is None:
            return
        other = run_on_all_ranks(lambda: load_autoencoder(source, self.settings)).state_dict()
        own = network.state_dict()
        shapes = ({name: weight.shape for name, weight in weights.items()} for weights in (own, other))
        differing = {name for name, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))}
        if differing:
            raise ValueError(
                f"--init_from '{source}' has other layers: {len(differing)} tensors differ, such as "
                f"'{min(differing)}'. Give its --downsample, --latent_channels, --block_out_channels and the like."
            )
        network.load_state_dict(other)

    def networks(self) -> list[tuple[torch.nn.Module, float]]:
        """Return autoencoder and discriminator with their learning rates."""
        networks: list[tuple[torch.nn.Module, float]] = [(self.autoencoder, self.settings.learning_rate)]
        if self.discriminator is not None:
            networks.append((self.discriminator, self.settings.discriminator_learning_rate))
        return networks

    def training_dataset(self) -> PhotoCrops:
        """Return photos, or crops of them."""
        return PhotoCrops(self.inputs.pairs, self.settings)

    def collect_warnings(self, counts: ClassCounts) -> list[str]:  # noqa: ARG002
        """Return a warning if the discriminator never joins."""
        start = self.settings.discriminator_start
        if self.discriminator is None or start < self.num_steps:
            return []
        return [
            f"The discriminator joins after step {start}, and the run ends at step {self.num_steps}: it will never "
            "be used. Lower --discriminator_start, or set --adversarial_weight 0."
        ]

    @torch.no_grad()
    def sample_preview(self) -> Image.Image:
        """Return photos beside their reconstructions by the averaged weights."""
        averaged = contextlib.nullcontext() if self.ema is None else self.ema.swapped_in(self.network)
        with averaged:
            self.network.eval()
            return self.sheet(self.inputs.preview_pairs)

    def sheet(self, pairs: PairDataset) -> Image.Image:
        """Return a grid photo | reconstruction | difference of some photos of a split."""
        rows = []
        for pair in preview_pairs(self.settings, pairs, self.network.network):
            photo = whole_cells(pair["image"], self.settings.downsample)
            (reconstruction,), _ = reconstruct(self.network.network, photo[None])
            difference = (photo.float() - reconstruction.float()).abs() * ENHANCED
            rows.append([photo, reconstruction, difference.clamp(max=255).to(torch.uint8)])
        return image_grid(rows, headers=["photo", "reconstruction", f"difference x {ENHANCED}"])

    def save_model(self) -> None:
        """Save the autoencoder with the averaged weights, its measures, pictures and card."""
        settings, network = self.settings, self.network.float().eval().network
        with contextlib.nullcontext() if self.ema is None else self.ema.swapped_in(self.network):
            latents = measure_latents(network, self.inputs.pairs, settings.downsample)
            measured = measure_reconstructions(network, self.inputs.preview_pairs, settings.downsample, self.extractor)
            sheet = self.sheet(self.inputs.preview_pairs)
        network.register_to_config(scaling_factor=latents["scaling_factor"])
        if "shift_factor" in network.config:
            network.register_to_config(shift_factor=latents["mean"])
        with checkpoints.staged(self.folder, self.folder, last="config.json") as staging:
            for variant in () if self.ema is None else self.ema.variants(self.network):
                network.save_pretrained(staging, variant=variant)
            network.save_pretrained(staging)
        save_png(self.folder / PICTURES_FILE, sheet)
        results = {
            "settings": settings.to_dict(),
            "step": self.step,
            "trained_seconds": self.trained_seconds,
            "split": settings.validation_split if self._has_validation else settings.train_split,
            "resolution": self._resolution(),
            "class": type(network).__name__,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "compression": compression(settings),
            "reconstruction": measured,
            "latents": latents,
            "versions": versions("torch", "diffusers", "accelerate", "torchmetrics"),
        }
        write_json(self.folder / RESULTS_FILE, results)
        license_name, facts = self.run_facts()
        card = new_autoencoder_card(
            self.folder, results, license_name=license_name, run=facts, pictures=PICTURES_FILE, shown=ENHANCED
        )
        write_text(self.folder / CARD, card)

    @property
    def _has_validation(self) -> bool:
        return self.inputs.preview_pairs is not self.inputs.pairs

    def _resolution(self) -> list[int] | None:
        """Return height and width of the photos that measure the autoencoder; None if they differ."""
        sizes = set(self.inputs.preview_pairs.sizes)
        return list(sizes.pop()) if len(sizes) == 1 else None


def compression(settings: AutoencoderSettings) -> dict[str, float]:
    """Return numbers of a photo for each number of its latents, and bits a pixel of latents or codes.

    Example:
        >>> compression(AutoencoderSettings(dataset="d", output_dir="r"))
        {'numbers': 12.0, 'bits_per_pixel': 4.0}
    """
    pixels, channels = settings.downsample**2, settings.latent_channels
    if settings.kind == "vq":
        return {"numbers": 3 * pixels / channels, "bits_per_pixel": math.log2(settings.codebook_size) / pixels}
    return {"numbers": 3 * pixels / channels, "bits_per_pixel": LATENT_BITS * channels / pixels}


def train_autoencoder(settings: AutoencoderSettings) -> Path:
    """Train an autoencoder on photos, and save it as diffusers does, with measures and a card.

    Args:
        settings: of the run.

    Returns:
        the run folder: `config.json` and weights at its root, `README.md`, `results.json`, `reconstructions.png`, and
        what a run of `train` keeps.

    Raises:
        ValueError: settings and photos do not go together; a checkpoint of another run; a folder in use.
        FileNotFoundError: no such dataset or checkpoint.
        TrainingDivergedError: the loss is not finite, or exploded.
        TrainingStoppedError: a termination signal arrived; a checkpoint is saved.
        OSError: a checkpoint could not be written; the one before is complete.
    """
    importlib.import_module("torchmetrics")  # of the measures at the end: missing ones are reported before
    trackers = parse_trackers(settings.report_to)
    accelerator = hardware.build_accelerator(settings, Path(settings.output_dir), trackers)
    compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    if settings.adversarial_weight and settings.adversarial_weighting == "adaptive" and compiled:
        raise ValueError(
            "--torch_compile needs --adversarial_weighting fixed: the adaptive weight takes a gradient of the "
            "decoder's last layer by itself, which compiled networks do not give."
        )
    names = {settings.perceptual_backbone} if settings.perceptual_weight else set()
    names |= {settings.discriminator_backbone} if settings.adversarial_weight else set()
    backbones = {name: ImageBackbone.from_name(name, device=accelerator.device) for name in sorted(names)}
    for backbone in backbones.values():
        backbone.drop_classifier()
    features = None
    if settings.adversarial_weight:
        features = FrozenFeatures(backbones[settings.discriminator_backbone], settings.discriminator_scale)
    extractor = None
    if settings.features is not None:
        name = settings.features
        extractor = run_on_all_ranks(lambda: load_extractor(name, device=accelerator.device))
    inputs = load_inputs(settings, accelerator, build_inputs)
    with AutoencoderRun(settings, accelerator, inputs, trackers, features=features, extractor=extractor) as run:
        run.optimize(Objective(run, backbones, features).step)
    return run.folder


def run(settings: AutoencoderSettings) -> int:
    """Train an autoencoder; returns the exit code of this process."""
    return run_and_push(settings, train_autoencoder)
