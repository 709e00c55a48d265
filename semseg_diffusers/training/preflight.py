"""Warnings of a run before its first step: settings and data that do not stop it, but spoil its result.

Their texts are in `warnings.yaml`. Memorization: Kadkhodaie et al. 2024, figure 1; the other thresholds are ours.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.masks.statistics.counts import EDGE_SHARE
from semseg_diffusers.training.class_balance import ClassCounts
from semseg_diffusers.training.inputs import Inputs
from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.settings import read_yaml


# U-Nets of about 7 million weights memorized 1,000 images of 80 x 80 pixels (one pixel per weight), and not 10,000.
PIXELS_PER_WEIGHT = 1.0
MANY_EPOCHS = 100  # a shorter run has no time to memorize images
FEW_PAIRS = 10  # that show a class; fewer are memorized more easily than learned from
FIRST_WEIGHTS_SHARE = 0.1  # of the weight average that the initial, random weights may make up
MOST_NAMES = 12  # in a sentence
Found = Iterator[tuple[str, dict[str, Any]]]  # name of a text, and the values that it shows


def collect_warnings(
    settings: TrainingSettings, inputs: Inputs, counts: ClassCounts, num_steps: int, samples_per_step: int
) -> list[str]:
    """Return all warnings of a run, the most serious first."""
    texts, num_samples = read_yaml(Path(__file__).with_name("warnings.yaml")), num_steps * samples_per_step
    found = [
        *_of_images(settings, inputs, num_samples),
        *_of_classes(settings, inputs, counts),
        *_of_splits(inputs),
        *_of_length(settings, num_steps, num_samples),
    ]
    return [texts[name].format(settings=settings, **values) for name, values in found]


def _of_images(settings: TrainingSettings, inputs: Inputs, num_samples: int) -> Found:
    """Compare the images with those that the base knows, and with the size of the network."""
    if inputs.base is not None:
        known, size = inputs.base.unet.config.sample_size, settings.random_crop_size or inputs.pairs.resolution
        known = (known, known) if isinstance(known, int) else known
        if known is not None and tuple(known) != size:
            yield "base_size", {"known": known, "size": size}
        if inputs.base.noise_scheduler is None:
            yield "base_schedule", {}
    (height, width), num_pairs = inputs.pairs.sizes[0], len(inputs.pairs)
    num_weights = sum(weight.numel() for weight in trained_weights(inputs.unet))
    pixels = num_pairs * height * width * (2 if settings.horizontal_flip else 1)
    epochs = num_samples / num_pairs
    if pixels < PIXELS_PER_WEIGHT * num_weights and epochs >= MANY_EPOCHS:
        more = "" if settings.horizontal_flip else "--horizontal_flip, "
        more += "" if settings.random_crop else "--random_crop of images prepared larger, "
        flipped = "with their mirror images " if settings.horizontal_flip else ""
        numbers = {"num_pairs": num_pairs, "height": height, "width": width, "epochs": epochs}
        millions = {"pixels": pixels / 1e6, "weights": num_weights / 1e6}
        yield "memorization", {"flipped": flipped, "more": more, **numbers, **millions}


def _of_classes(settings: TrainingSettings, inputs: Inputs, counts: ClassCounts) -> Found:
    names, masks_of_class = inputs.pairs.labels.names, counts.masks_of_class.tolist()
    counted = f"the {counts.num_masks:,} training masks"
    if not counts.is_complete:
        counted = f"{len(counts.pixels):,} of {counted}, evenly spaced"
    if never := [name for name, seen in zip(names, masks_of_class, strict=True) if not seen]:
        sizes = {"never": len(never), "classes": len(names)}
        yield "no_pixels", {"counted": counted, "listed": _listed(never), **sizes}
    seldom = [f"{name} ({seen})" for name, seen in zip(names, masks_of_class, strict=True) if 0 < seen < FEW_PAIRS]
    enough_counted = counts.is_complete or len(counts.pixels) >= FEW_PAIRS * 10
    if seldom and enough_counted and counts.num_masks >= FEW_PAIRS:
        more = "" if settings.class_balanced_sampling else ", or sample them more often with --class_balanced_sampling"
        yield "seldom", {"few": FEW_PAIRS, "counted": counted, "listed": _listed(seldom), "more": more}
    thin = [
        f"{name} ({share:.0%})"
        for name, share in zip(names, counts.edge_shares.tolist(), strict=True)
        if not math.isnan(share) and share >= EDGE_SHARE
    ]
    if thin:
        patch = settings.network == "mask_guided" and settings.patch_size > 1
        stem = f", or train with --patch_size 1 (now {settings.patch_size})" if patch else ""
        yield "thin", {"listed": _listed(thin), "share": EDGE_SHARE, "stem": stem}
    if single := [f"{name} ({values[0]})" for name, values in inputs.attributes.items() if len(values) == 1]:
        yield "single_value", {"listed": _listed(single)}


def _of_splits(inputs: Inputs) -> Found:
    shared = [] if inputs.preview_pairs is inputs.pairs else shared_pairs(inputs.pairs, inputs.preview_pairs)
    if shared:
        yield "shared_pairs", {"count": len(shared), "listed": _listed(shared)}
    if inputs.preview_reason is not None:
        yield "preview_split", {"reason": inputs.preview_reason}


def shared_pairs(train: PairDataset, validation: PairDataset) -> list[str]:
    """Return the stems that are in both splits with the same image, byte for byte."""
    index_of = {stem: index for index, stem in enumerate(train.stems)}
    return [
        stem
        for index, stem in enumerate(validation.stems)
        if stem in index_of and validation.photo_file(index) == train.photo_file(index_of[stem])
    ]


def _listed(names: Sequence[str]) -> str:
    """Return names for a sentence, the first of them if there are many."""
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


def _of_length(settings: TrainingSettings, num_steps: int, num_samples: int) -> Found:
    """Compare the length of the run with its noise schedule, learning rate schedule and weight average."""
    affected = [
        *(["--rescale_betas_zero_snr, which makes sampling start there"] if settings.rescale_betas_zero_snr else []),
        *(["--attributes, which change light and colour"] if settings.attributes else []),
    ]
    if settings.snr_gamma is not None and settings.prediction_type != "epsilon" and affected:
        yield "noisiest_timesteps", {"affected": " and ".join(affected)}
    timesteps = settings.num_train_timesteps - settings.min_timestep
    if num_samples < timesteps:
        yield "untrained_timesteps", {"samples": num_samples, "timesteps": timesteps}
    if settings.lr_scheduler != "constant" and settings.lr_warmup_steps >= num_steps:
        reached = settings.learning_rate * num_steps / settings.lr_warmup_steps
        yield "warmup", {"steps": num_steps, "reached": reached}
    if settings.use_ema and settings.ema_start_step >= num_steps:
        yield "average_start", {"steps": num_steps}
    elif settings.use_ema:
        decay = max(settings.ema_lengths)
        share = first_weights_share(decay, settings.ema_warmup, num_steps - settings.ema_start_step)
        if share > FIRST_WEIGHTS_SHARE:
            option = "--ema_decays" if settings.ema_decays else "--ema_decay"
            yield "average_length", {"steps": num_steps, "option": option, "decay": decay, "share": share}


def first_weights_share(decay: float, has_warmup: bool, num_steps: int) -> float:
    """Return the share of the initial weights in an average after some steps, of which the first copies the weights.

    With warm-up the decay grows with the steps k as 1 - (1 + k)^(-3/4), as in `diffusers.training_utils.EMAModel`.
    """
    steps = np.arange(1, num_steps)
    decays = np.minimum(decay, 1 - (1.0 + steps) ** -0.75) if has_warmup else np.full(len(steps), decay)
    return float(np.prod(decays))
