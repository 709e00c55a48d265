"""Warnings of a run before its first step: settings and data that do not stop it, but spoil its result.

Each rule gives numbers, the consequence, and what to do. Memorization: Kadkhodaie et al. 2024, figure 1; the other
thresholds are ours.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.statistics.underrepresented import EDGE_SHARE
from semseg_diffusers.training.base_model import BaseModel
from semseg_diffusers.training.class_balance import ClassCounts
from semseg_diffusers.training.settings import TrainingSettings


# U-Nets of about 7 million weights memorized 1,000 images of 80 x 80 pixels (one pixel per weight), and not 10,000.
PIXELS_PER_WEIGHT = 1.0
MANY_EPOCHS = 100  # a shorter run has no time to memorize images
FEW_PAIRS = 10  # that show a class; fewer are memorized more easily than learned from
FIRST_WEIGHTS_SHARE = 0.1  # of the weight average that the initial, random weights may make up
MOST_NAMES = 12  # in a sentence


def collect_warnings(
    settings: TrainingSettings,
    pairs: PairDataset,
    counts: ClassCounts,
    *,
    attributes: Mapping[str, Sequence[str]],
    num_weights: int,
    num_steps: int,
    samples_per_step: int,
    preview_pairs: PairDataset,
    preview_reason: str | None,
    base: BaseModel | None = None,
) -> list[str]:
    """Return all warnings of a run, the most serious first.

    Args:
        settings: of the run.
        pairs: of the training split.
        counts: classes of their masks.
        attributes: values of each attribute in the split.
        num_weights: trained parameters of the network.
        num_steps: optimizer steps of the whole run.
        samples_per_step: images per optimizer step.
        preview_pairs: pairs of the previews.
        preview_reason: why these are of the training split, if they are.
        base: of a control branch.
    """
    labels = pairs.labels
    found = [
        _other_size(base, settings.random_crop_size or pairs.resolution),
        _schedule_assumed(settings, base),
        _few_photos(settings, len(pairs), pairs.sizes[0], num_weights, num_steps * samples_per_step),
        _never_seen(labels, counts),
        _seldom_seen(settings, labels, counts),
        _thin(settings, labels, counts),
        _single_values(attributes),
        _shared(settings, pairs, preview_pairs),
        None
        if preview_reason is None
        else f"Previews use masks of the training split: {preview_reason}. They show "
        "how well the run fits its training data, not new masks.",
        _hardly_trained_noise(settings),
        _few_timesteps(settings, num_steps * samples_per_step),
        _long_warmup(settings, num_steps),
        _long_average(settings, num_steps),
    ]
    return [text for text in found if text is not None]


def _other_size(base: BaseModel | None, size: tuple[int, int]) -> str | None:
    known = None if base is None else base.unet.config.sample_size
    known = (known, known) if isinstance(known, int) else known
    if known is None or tuple(known) == size:
        return None
    return (
        f"--base_model was trained at {known[0]} x {known[1]} pixels, and this run sees {size[0]} x {size[1]}: the "
        "base generates objects of the size that it knows. Prepare the data at the base's --resolution."
    )


def _schedule_assumed(settings: TrainingSettings, base: BaseModel | None) -> str | None:
    if base is None or base.noise_scheduler is not None:
        return None
    return (
        "No scheduler was found beside the weights of --base_model: it is assumed to predict "
        f"{settings.prediction_type} over {settings.num_train_timesteps:,} timesteps of the schedule "
        f"{settings.noise_schedule}. If it was trained otherwise, set --prediction_type, --num_train_timesteps and "
        "--noise_schedule; samples are meaningless otherwise."
    )


def listed(names: Sequence[str]) -> str:
    """Return names for a sentence, the first of them if there are many.

    Example:
        >>> listed(["car", "bus"])
        'car, bus'
    """
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


# Data ----------------------------------------------------------------------------------------------------------------


def _few_photos(
    settings: TrainingSettings, num_pairs: int, size: tuple[int, int], num_weights: int, samples: int
) -> str | None:
    views = 2 if settings.horizontal_flip else 1
    pixels, epochs = num_pairs * views * size[0] * size[1], samples / num_pairs
    if pixels >= PIXELS_PER_WEIGHT * num_weights or epochs < MANY_EPOCHS:
        return None
    flipped = "with their mirror images " if views == 2 else ""
    more = "" if views == 2 else "--horizontal_flip, "
    crop = "" if settings.random_crop else "--random_crop of images prepared larger, "
    return (
        f"Few images for this network: {num_pairs:,} of {size[0]} x {size[1]} have {flipped}{pixels / 1e6:.3g} "
        f"million pixels, the network {num_weights / 1e6:.3g} million weights, and it sees each image {epochs:,.0f} "
        "times. "
        "Below about one pixel per weight, long training memorizes images (Kadkhodaie et al. 2024). More pairs help "
        f"most; otherwise {more}{crop}smaller --block_out_channels or fewer --max_train_steps. `semseg-diffusers "
        "evaluate` counts samples that are too close to a training image (memorization)."
    )


def _counted(counts: ClassCounts) -> str:
    if counts.is_complete:
        return f"the {counts.num_masks:,} training masks"
    return f"{len(counts.pixels):,} of the {counts.num_masks:,} training masks, evenly spaced"


def _never_seen(labels: LabelSet, counts: ClassCounts) -> str | None:
    names = [name for name, seen in zip(labels.names, counts.masks_of_class, strict=True) if not seen]
    if not names:
        return None
    return (
        f"No pixel in {_counted(counts)}: {listed(names)} ({len(names)} of {labels.num_classes} classes). "
        "Such a class in a mask is meaningless to the network: leave it out of masks to generate from, or add pairs "
        "that show it."
    )


def _seldom_seen(settings: TrainingSettings, labels: LabelSet, counts: ClassCounts) -> str | None:
    if not counts.is_complete and len(counts.pixels) < FEW_PAIRS * 10:
        return None  # too few were counted to tell
    few = [
        f"{name} ({seen})"
        for name, seen in zip(labels.names, counts.masks_of_class.tolist(), strict=True)
        if 0 < seen < FEW_PAIRS
    ]
    if not few or counts.num_masks < FEW_PAIRS:
        return None
    sampled = "" if settings.class_balanced_sampling else ", or sample them more often with --class_balanced_sampling"
    return (
        f"In fewer than {FEW_PAIRS} of {_counted(counts)}: {listed(few)}. Such classes are memorized from those few "
        f"images or not learned: add pairs that show them{sampled}."
    )


def _thin(settings: TrainingSettings, labels: LabelSet, counts: ClassCounts) -> str | None:
    thin = [
        f"{name} ({share:.0%})"
        for name, share in zip(labels.names, counts.edge_shares.tolist(), strict=True)
        if not math.isnan(share) and share >= EDGE_SHARE
    ]
    if not thin:
        return None
    patch = settings.network == "mask_guided" and settings.patch_size > 1
    stem = f", or train with --patch_size 1 (now {settings.patch_size})" if patch else ""
    return (
        f"Thin at this resolution: {listed(thin)}; at least {EDGE_SHARE:.0%} of the pixels of these classes are "
        "beside another class, so they are about three pixels wide or less, with hardly any texture to learn. "
        f"Prepare the data at a higher --resolution{stem}."
    )


def _single_values(attributes: Mapping[str, Sequence[str]]) -> str | None:
    single = [f"{name} ({values[0]})" for name, values in attributes.items() if len(values) == 1]
    if not single:
        return None
    return (
        f"Attributes with a single value: {listed(single)}. They have nothing to distinguish: leave such a column out "
        "of --attributes, or add pairs with other values."
    )


def _shared(settings: TrainingSettings, pairs: PairDataset, preview_pairs: PairDataset) -> str | None:
    if preview_pairs is pairs or not (stems := shared_pairs(pairs, preview_pairs)):
        return None
    return (
        f"{len(stems):,} pairs of the split {settings.validation_split} are in {settings.train_split} as well: "
        f"{listed(stems)}. Previews and evaluations of these show training data. Prepare the dataset with "
        "disjoint splits."
    )


def shared_pairs(train: PairDataset, validation: PairDataset) -> list[str]:
    """Return the stems that are in both splits with the same image, byte for byte."""
    index_of = {stem: index for index, stem in enumerate(train.stems)}
    return [
        stem
        for index, stem in enumerate(validation.stems)
        if stem in index_of and validation.photo_file(index) == train.photo_file(index_of[stem])
    ]


# Length of the run ---------------------------------------------------------------------------------------------------


def _hardly_trained_noise(settings: TrainingSettings) -> str | None:
    affected = [
        *(["--rescale_betas_zero_snr, which makes sampling start there"] if settings.rescale_betas_zero_snr else []),
        *(["--attributes, which change light and colour"] if settings.attributes else []),
    ]
    if settings.snr_gamma is None or settings.prediction_type == "epsilon" or not affected:
        return None
    return (
        "Min-SNR weights hardly train the noisiest timesteps, which determine light and colour; this run has "
        f"{' and '.join(affected)}. Use --snr_gamma none."
    )


def _few_timesteps(settings: TrainingSettings, samples: int) -> str | None:
    timesteps = settings.num_train_timesteps - settings.min_timestep
    if samples >= timesteps:
        return None
    return (
        f"The run sees {samples:,} samples in total, fewer than the {timesteps:,} timesteps of its schedule: some "
        "noise levels are never trained. Use more --max_train_steps."
    )


def _long_warmup(settings: TrainingSettings, num_steps: int) -> str | None:
    if settings.lr_scheduler == "constant" or settings.lr_warmup_steps < num_steps:
        return None
    reached = settings.learning_rate * num_steps / settings.lr_warmup_steps
    return (
        f"The learning rate warms up over {settings.lr_warmup_steps:,} steps, and the run has {num_steps:,}: it ends "
        f"at {reached:.2g} and never reaches --learning_rate {settings.learning_rate:g}. Use fewer "
        "--lr_warmup_steps or more --max_train_steps."
    )


def _long_average(settings: TrainingSettings, num_steps: int) -> str | None:
    if not settings.use_ema:
        return None
    if settings.ema_start_step >= num_steps:
        return (
            f"The weight average starts at step {settings.ema_start_step:,}, and the run has {num_steps:,}: the "
            "last step's weights are saved. Use a smaller --ema_start_step or more --max_train_steps."
        )
    decay = max(settings.ema_lengths)
    share = first_weights_share(decay, settings.ema_warmup, num_steps - settings.ema_start_step)
    if share <= FIRST_WEIGHTS_SHARE:
        return None
    option = "--ema_decays" if settings.ema_decays else "--ema_decay"
    return (
        f"The weight average ({option} {decay:g}) is longer than the run: after {num_steps:,} steps {share:.0%} of it "
        f"are still the initial weights. Use --ema_warmup true, a smaller {option} or more --max_train_steps."
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
