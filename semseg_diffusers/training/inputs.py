"""What a run reads before its first step: data, statistics of the masks, the network and its noise schedule."""

import functools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin

from semseg_diffusers.data.dataset import PairDataset, attribute_values, column_options, load_pairs, read_record
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.text_encoders import load_text_encoder, source_of
from semseg_diffusers.pipelines.text_inputs import embed_texts
from semseg_diffusers.training.base_model import BaseModel, load_base
from semseg_diffusers.training.captions import Captions, NoTextsError
from semseg_diffusers.training.class_balance import ClassBalance, ClassCounts, class_rarity, count_classes
from semseg_diffusers.training.hardware import check_regions
from semseg_diffusers.training.latents import Latents, load_vae
from semseg_diffusers.training.networks import build_network
from semseg_diffusers.training.objective import build_noise_scheduler
from semseg_diffusers.training.settings import LoopSettings, TrainingSettings
from semseg_diffusers.utils.distributed import run_on_all_ranks, run_on_main_rank


# Characters that Linux allows for a socket's path, less what multiprocessing adds: /pymp-XXXXXXXX/listener-XXXXXXXX.
LONGEST_FOLDER = 107 - len("/pymp-/listener-") - 2 * 8


@dataclass
class Inputs:
    """What a run reads before its first step; everything that can be refused is refused here."""

    pairs: PairDataset
    preview_pairs: PairDataset
    preview_reason: str | None  # why previews use the training split, if they do
    source_format: str | None  # what the data was prepared from
    attributes: dict[str, list[str]]
    counts: ClassCounts | None
    balance: ClassBalance | None
    rarity: list[float] | None
    base: BaseModel | None
    unet: ModelMixin
    noise_scheduler: DDPMScheduler
    captions: Captions | None = None
    preview_captions: Captions | None = None
    # `text_encoder`, `tokenizer` and perhaps `text_encoder_source` of the pipeline, for captions
    text_components: dict[str, Any] = field(default_factory=dict)
    latents: Latents | None = None

    @property
    def components(self) -> dict[str, Any]:
        """Return the components of the pipeline beside network and scheduler."""
        return self.text_components | ({} if self.latents is None else {"vae": self.latents.vae})

    def scale_latents(self, statistics: dict[str, list[float]]) -> None:
        """Let the network work on latents at the scale of these statistics: `latents_mean` and `latents_std`."""
        assert self.latents is not None, "there are latents to scale"
        self.latents.use(statistics)
        self.unet.register_to_config(**statistics)
        self.__dict__.pop("fingerprint", None)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint was trained on and must find again on resume; `attributes` etc. by their option."""
        config = self.unet.config
        base = {name: weight for name, weight in self.unet.named_parameters() if not weight.requires_grad}
        found = {
            "labels": self.pairs.labels.to_config(),
            "num_pairs": len(self.pairs),
            "masks": self.pairs.digest,
            "class_pixels": None if self.balance is None else self.balance.digest,
            **{name: getattr(config, name, None) for name in ("attributes", "label_diffusion")},
            "base_model": weights_hash(base) if base else None,
            "captions": None if self.captions is None else self.captions.digest,
            "vae": None if self.latents is None else self.latents.digest,
            "latents": None if self.latents is None else self.latents.statistics,
        }
        return json.loads(json.dumps(found))


Data = tuple[PairDataset, PairDataset, str | None]  # see `_read_data`
Build = Callable[[Any, Data], Inputs]


def load_inputs(settings: LoopSettings, accelerator: Accelerator, build: Build | None = None) -> Inputs:
    """Read the data and build the network that fits it, by default a new one. Called by every process."""
    run_on_all_ranks(lambda: check_temporary_folder(settings.dataloader_num_workers))
    # one process of a machine builds the table of `datasets`, then the others find it
    is_first = accelerator.is_local_main_process
    data = run_on_all_ranks(lambda: _read_data(settings) if is_first else None)
    build_inputs: Build = build or _build_inputs
    inputs = run_on_all_ranks(lambda: build_inputs(settings, data or _read_data(settings)))
    if (captions := inputs.captions) is not None:
        inputs.text_components["text_encoder"].to(accelerator.device)  # for previews too
        for does_it in (is_first, not is_first):
            encoder, tokenizer = (inputs.text_components[name] for name in ("text_encoder", "tokenizer"))
            embed = functools.partial(captions.embed, encoder, tokenizer, accelerator.device)
            run_on_all_ranks(embed if does_it else lambda: None)
        if (shown := inputs.preview_captions) is not None and shown is not captions:
            run_on_all_ranks(lambda: shown.check_lengths(encoder, tokenizer))
    if (latents := inputs.latents) is not None:
        latents.vae.to(accelerator.device)
        for does_it in (is_first, not is_first):
            run_on_all_ranks(latents.fill_cache if does_it else lambda: None)
        if not latents.statistics:
            inputs.scale_latents(run_on_main_rank(latents.measure))
    check_regions(accelerator, inputs.unet)
    if settings.gradient_checkpointing:
        inputs.unet.enable_gradient_checkpointing()
    if settings.channels_last:
        inputs.unet.to(memory_format=torch.channels_last)
    return inputs


def check_temporary_folder(num_workers: int) -> None:
    """Refuse a path too long for the sockets of worker processes: training would wait forever for a lost batch."""
    folder = tempfile.gettempdir()
    if num_workers and sys.platform == "linux" and len(folder) > LONGEST_FOLDER:
        raise ValueError(
            f"the temporary folder '{folder}' has {len(folder)} characters; worker processes need one of at most "
            f"{LONGEST_FOLDER}. Set TMPDIR to a shorter one, or give --dataloader_num_workers 0."
        )


def _read_data(settings: LoopSettings) -> Data:
    """Return the training split, that whose masks the previews use, and why it is the same, if it is."""
    columns = column_options(settings)
    pairs = load_pairs(settings.dataset, settings.train_split, **columns)
    if not settings.preview_steps:
        return pairs, pairs, None
    if settings.validation_split == settings.train_split:
        return pairs, pairs, f"--validation_split is {settings.validation_split} as well"
    try:
        return pairs, load_pairs(settings.dataset, settings.validation_split, **columns), None
    except (FileNotFoundError, ValueError) as error:
        return pairs, pairs, str(error).rstrip(".")


def count_every_mask(settings: LoopSettings, pairs: PairDataset) -> ClassCounts:
    """Count the classes of all masks."""
    return count_classes(pairs, every_mask=True, num_workers=max(1, settings.dataloader_num_workers))


def class_balance(settings: LoopSettings, counts: ClassCounts) -> ClassBalance:
    """Return how pairs are sampled with `class_balanced_sampling`."""
    return ClassBalance(counts.pixels, settings.class_balance_temperature, settings.class_balance_min_share)


def training_size(settings: LoopSettings, data: Data) -> tuple[int, int]:
    """Return height and width of what a network is trained on; refuse crops that the pairs do not hold."""
    size = settings.random_crop_size
    if size is not None:
        for split in data[:2]:
            split.check_holds(*size)
    return size or data[0].resolution


def read_captions(settings: LoopSettings, data: Data) -> tuple[Captions, Captions | None]:
    """Return the texts about the training split, and about that of the previews if it has any."""
    pairs, preview_pairs, _ = data
    captions = Captions.of(pairs, settings)
    if preview_pairs is pairs:
        return captions, captions
    try:
        return captions, Captions.of(preview_pairs, settings)
    except NoTextsError:
        return captions, None


def _build_inputs(settings: TrainingSettings, data: Data) -> Inputs:
    pairs, preview_pairs, preview_reason = data
    attributes = attribute_values(pairs, settings.attributes)
    counts = balance = rarity = base = None
    if settings.class_balanced_sampling or settings.label_diffusion:
        counts = count_every_mask(settings, pairs)
        if settings.class_balanced_sampling:
            balance = class_balance(settings, counts)
        if settings.label_diffusion:
            rarity = class_rarity(counts.pixels)
    if settings.base_model is not None:
        base = load_base(settings)
    captions: tuple[Captions | None, Captions | None] = (None, None)
    text_components, length = dict[str, Any](), 0
    if settings.text_encoder is not None:
        captions = read_captions(settings, data)
        text_encoder, tokenizer = load_text_encoder(settings.text_encoder)
        text_components = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        if settings.text_encoder_by_reference:
            text_components["text_encoder_source"] = source_of(settings.text_encoder)
        (example,) = embed_texts([captions[0].texts[0]], text_encoder, tokenizer).values()
        length = len(example)
    size, base_unet = training_size(settings, data), None if base is None else base.unet
    latents = None if settings.vae is None else Latents(load_vae(settings.vae), pairs, settings)
    unet = build_network(settings, pairs.labels, size, attributes, rarity, base_unet, length, latents)
    noise_scheduler = (base.noise_scheduler if base is not None else None) or build_noise_scheduler(settings)
    return Inputs(
        pairs, preview_pairs, preview_reason, read_record(settings.dataset).get("format"), attributes, counts, balance,
        rarity, base, unet, noise_scheduler, *captions, text_components, latents,
    )  # fmt: skip
