"""Warnings of a run before its first step: settings and data that do not stop it, but spoil its result.

Each rule gives numbers, the consequence, and what to do. Memorization: Kadkhodaie et al. 2024, figure 1; the other
thresholds are ours.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.masks.statistics.underrepresented import EDGE_SHARE
from semseg_diffusers.training.class_balance import ClassCounts
from semseg_diffusers.training.inputs import Inputs
from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.training.settings import TrainingSettings


# U-Nets of about 7 million weights memorized 1,000 images of 80 x 80 pixels (one pixel per weight), and not 10,000.
PIXELS_PER_WEIGHT = 1.0
MANY_EPOCHS = 100  # a shorter run has no time to memorize images
FEW_PAIRS = 10  # that show a class; fewer are memorized more easily than learned from
FIRST_WEIGHTS_SHARE = 0.1  # of the weight average that the initial, random weights may make up
MOST_NAMES = 12  # in a sentence


def collect_warnings(
    settings: TrainingSettings, inputs: Inputs, counts: ClassCounts, num_steps: int, samples_per_step: int
) -> list[str]:
    """Return all warnings of a run, the most serious first."""
    num_samples = num_steps * samples_per_step
    return [
        *_of_base(settings, inputs),
        *_of_memorization(settings, inputs, num_samples),
        *_of_classes(settings, inputs, counts),
        *_of_splits(settings, inputs),
        *_of_noise(settings, num_samples),
        *_of_length(settings, num_steps),
    ]


def _of_base(settings: TrainingSettings, inputs: Inputs) -> Iterator[str]:
    if inputs.base is None:
        return
    known, size = inputs.base.unet.config.sample_size, settings.random_crop_size or inputs.pairs.resolution
    known = (known, known) if isinstance(known, int) else known
    if known is not None and tuple(known) != size:
        yield (
            f"--base_model was trained at {known[0]} x {known[1]} pixels, and this run sees {size[0]} x {size[1]}: "
            "the base generates objects of the size that it knows. Prepare the data at the base's --resolution."
        )
    if inputs.base.noise_scheduler is None:
        yield (
            "No scheduler was found beside the weights of --base_model: it is assumed to predict "
            f"{settings.prediction_type} over {settings.num_train_timesteps:,} timesteps of the schedule "
            f"{settings.noise_schedule}. If it was trained otherwise, set --prediction_type, --num_train_timesteps "
            "and --noise_schedule; samples are meaningless otherwise."
        )


def _of_memorization(settings: TrainingSettings, inputs: Inputs, num_samples: int) -> Iterator[str]:
    (height, width), num_pairs = inputs.pairs.sizes[0], len(inputs.pairs)
    num_weights = sum(weight.numel() for weight in trained_weights(inputs.unet))
    pixels = num_pairs * height * width * (2 if settings.horizontal_flip else 1)
    epochs = num_samples / num_pairs
    if pixels >= PIXELS_PER_WEIGHT * num_weights or epochs < MANY_EPOCHS:
        return
    flipped = "with their mirror images " if settings.horizontal_flip else ""
    more = "" if settings.horizontal_flip else "--horizontal_flip, "
    crop = "" if settings.random_crop else "--random_crop of images prepared larger, "
    yield (
        f"Few images for this network: {num_pairs:,} of {height} x {width} have {flipped}{pixels / 1e6:.3g} "
        f"million pixels, the network {num_weights / 1e6:.3g} million weights, and it sees each image {epochs:,.0f} "
        "times. Below about one pixel per weight, long training memorizes images (Kadkhodaie et al. 2024). More "
        f"pairs help most; otherwise {more}{crop}smaller --block_out_channels or fewer --max_train_steps. "
        "`semseg-diffusers evaluate` counts samples that are too close to a training image (memorization)."
    )


def _of_classes(settings: TrainingSettings, inputs: Inputs, counts: ClassCounts) -> Iterator[str]:
    names, num_counted = inputs.pairs.labels.names, len(counts.pixels)
    counted = f"the {counts.num_masks:,} training masks"
    if not counts.is_complete:
        counted = f"{num_counted:,} of {counted}, evenly spaced"
    if never := [name for name, seen in zip(names, counts.masks_of_class, strict=True) if not seen]:
        yield (
            f"No pixel in {counted}: {_listed(never)} ({len(never)} of {len(names)} classes). Such a class in a mask "
            "is meaningless to the network: leave it out of masks to generate from, or add pairs that show it."
        )
    seldom = [
        f"{name} ({seen})"
        for name, seen in zip(names, counts.masks_of_class.tolist(), strict=True)
        if 0 < seen < FEW_PAIRS
    ]
    enough_counted = counts.is_complete or num_counted >= FEW_PAIRS * 10
    if seldom and enough_counted and counts.num_masks >= FEW_PAIRS:
        more = "" if settings.class_balanced_sampling else ", or sample them more often with --class_balanced_sampling"
        yield (
            f"In fewer than {FEW_PAIRS} of {counted}: {_listed(seldom)}. Such classes are memorized from those few "
            f"images or not learned: add pairs that show them{more}."
        )
    thin = [
        f"{name} ({share:.0%})"
        for name, share in zip(names, counts.edge_shares.tolist(), strict=True)
        if not math.isnan(share) and share >= EDGE_SHARE
    ]
    if thin:
        patch = settings.network == "mask_guided" and settings.patch_size > 1
        stem = f", or train with --patch_size 1 (now {settings.patch_size})" if patch else ""
        yield (
            f"Thin at this resolution: {_listed(thin)}; at least {EDGE_SHARE:.0%} of the pixels of these classes are "
            "beside another class, so they are about three pixels wide or less, with hardly any texture to learn. "
            f"Prepare the data at a higher --resolution{stem}."
        )
    single = [f"{name} ({values[0]})" for name, values in inputs.attributes.items() if len(values) == 1]
    if single:
        yield (
            f"Attributes with a single value: {_listed(single)}. They have nothing to distinguish: leave such a "
            "column out of --attributes, or add pairs with other values."
        )


def _of_splits(settings: TrainingSettings, inputs: Inputs) -> Iterator[str]:
    shared = [] if inputs.preview_pairs is inputs.pairs else shared_pairs(inputs.pairs, inputs.preview_pairs)
    if shared:
        yield (
            f"{len(shared):,} pairs of the split {settings.validation_split} are in {settings.train_split} as well: "
            f"{_listed(shared)}. Previews and evaluations of these show training data. Prepare the dataset with "
            "disjoint splits."
        )
    if inputs.preview_reason is not None:
        yield (
            f"Previews use masks of the training split: {inputs.preview_reason}. They show how well the run fits its "
            "training data, not new masks."
        )


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


def _of_noise(settings: TrainingSettings, num_samples: int) -> Iterator[str]:
    affected = [
        *(["--rescale_betas_zero_snr, which makes sampling start there"] if settings.rescale_betas_zero_snr else []),
        *(["--attributes, which change light and colour"] if settings.attributes else []),
    ]
    if settings.snr_gamma is not None and settings.prediction_type != "epsilon" and affected:
        yield (
            "Min-SNR weights hardly train the noisiest timesteps, which determine light and colour; this run has "
            f"{' and '.join(affected)}. Use --snr_gamma none."
        )
    timesteps = settings.num_train_timesteps - settings.min_timestep
    if num_samples < timesteps:
        yield (
            f"The run sees {num_samples:,} samples in total, fewer than the {timesteps:,} timesteps of its schedule: "
            "some noise levels are never trained. Use more --max_train_steps."
        )


def _of_length(settings: TrainingSettings, num_steps: int) -> Iterator[str]:
    if settings.lr_scheduler != "constant" and settings.lr_warmup_steps >= num_steps:
        reached = settings.learning_rate * num_steps / settings.lr_warmup_steps
        yield (
            f"The learning rate warms up over {settings.lr_warmup_steps:,} steps, and the run has {num_steps:,}: it "
            f"ends at {reached:.2g} and never reaches --learning_rate {settings.learning_rate:g}. Use fewer "
            "--lr_warmup_steps or more --max_train_steps."
        )
    if not settings.use_ema:
        return
    if settings.ema_start_step >= num_steps:
        yield (
            f"The weight average starts at step {settings.ema_start_step:,}, and the run has {num_steps:,}: the last "
            "step's weights are saved. Use a smaller --ema_start_step or more --max_train_steps."
        )
        return
    decay = max(settings.ema_lengths)
    share = first_weights_share(decay, settings.ema_warmup, num_steps - settings.ema_start_step)
    if share > FIRST_WEIGHTS_SHARE:
        option = "--ema_decays" if settings.ema_decays else "--ema_decay"
        yield (
            f"The weight average ({option} {decay:g}) is longer than the run: after {num_steps:,} steps {share:.0%} "
            f"of it are still the initial weights. Use --ema_warmup true, a smaller {option} or more "
            "--max_train_steps."
        )


def first_weights_share(decay: float, has_warmup: bool, num_steps: int) -> float:
    """Return the share of the initial weights in an average after some steps, 0 to 1.

    Args:
        decay: largest decay of a step.
        has_warmup: the decay grows with the steps k as 1 - (1 + k)^(-3/4), as in `diffusers.training_utils.EMAModel`.
        num_steps: steps of the average; the first one copies the weights.

    Example:
        >>> round(first_weights_share(0.999, False, 1001), 3), first_weights_share(0.999, True, 1001) < 1e-6
        (0.368, True)
    """
    steps = np.arange(1, num_steps)
    decays = np.minimum(decay, 1 - (1.0 + steps) ** -0.75) if has_warmup else np.full(len(steps), decay)
    return float(np.prod(decays))
