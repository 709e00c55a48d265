"""What a run is warned of before its first step: things that do not keep it from running, and spoil what comes out.

Each rule says what it found in numbers, what comes of it, and what to do. Copies of photos: Kadkhodaie et al. 2024,
figure 1; the other thresholds are ours.
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


# U-Nets of some 7 million weights copied 1,000 photos of 80 x 80 pixels (one pixel a weight) and did not copy 10,000.
PIXELS_A_WEIGHT = 1.0
MANY_PASSES = 100  # over each photo; a shorter run has no time to learn photos by heart
FEW_PAIRS = 10  # that show a class; fewer are easier copied than learned from
FIRST_WEIGHTS_SHARE = 0.1  # of the averaged weights; what the first, random ones may make up
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
    """All that a run should be warned of, the weightiest first.

    Args:
        settings: of the run.
        pairs: of the training split.
        counts: what their masks hold.
        attributes: values that the split knows of each attribute of the settings.
        num_weights: parameters of the network that are trained.
        num_steps: optimizer steps of the whole run.
        samples_per_step: images an optimizer step.
        preview_pairs: whose masks the previews draw.
        preview_reason: why these are the training split's, where they are and previews are drawn.
        base: what a control branch is trained on.
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
        else f"Previews draw masks of the training split: {preview_reason}. They show "
        "how well the run fits what it has seen, not how it does on new masks.",
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
        "base draws things of the size that it knows. Prepare the data at the base's --resolution."
    )


def _schedule_assumed(settings: TrainingSettings, base: BaseModel | None) -> str | None:
    if base is None or base.noise_scheduler is not None:
        return None
    return (
        "No scheduler lies beside the weights of --base_model: it is taken to predict "
        f"{settings.prediction_type} over {settings.num_train_timesteps:,} timesteps of the schedule "
        f"{settings.noise_schedule}. Where it was trained otherwise, say so by --prediction_type, "
        "--num_train_timesteps and --noise_schedule; else nothing sensible is drawn."
    )


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first of them where there are many.

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
    pixels, passes = num_pairs * views * size[0] * size[1], samples / num_pairs
    if pixels >= PIXELS_A_WEIGHT * num_weights or passes < MANY_PASSES:
        return None
    mirrored = "with their mirror images " if views == 2 else ""
    more = "" if views == 2 else "--horizontal_flip, "
    crop = "" if settings.random_crop else "--random_crop of photos prepared larger, "
    return (
        f"Few photos for this network: {num_pairs:,} of {size[0]} x {size[1]} have {mirrored}{pixels / 1e6:.3g} "
        f"million pixels, the network {num_weights / 1e6:.3g} million weights, and it sees each photo {passes:,.0f} "
        "times. "
        "Below about one pixel a weight long training ends in copies of photos (Kadkhodaie et al. 2024). More pairs "
        f"help most; else {more}{crop}a smaller --block_out_channels or fewer --max_train_steps. `semseg-diffusers "
        "evaluate` counts images that lie too near a training photo (Memorised photos)."
    )


def _looked_at(counts: ClassCounts) -> str:
    if counts.is_whole:
        return f"the {counts.num_masks:,} training masks"
    return f"{len(counts.pixels):,} of the {counts.num_masks:,} training masks, at even distances"


def _never_seen(labels: LabelSet, counts: ClassCounts) -> str | None:
    names = [name for name, seen in zip(labels.names, counts.masks_of_class, strict=True) if not seen]
    if not names:
        return None
    return (
        f"Never seen in {_looked_at(counts)}: {listed(names)} ({len(names)} of {labels.num_classes} classes). What a "
        "mask says of such a class is noise to the network: leave it out of masks to generate from, or add pairs that "
        "show it."
    )


def _seldom_seen(settings: TrainingSettings, labels: LabelSet, counts: ClassCounts) -> str | None:
    if not counts.is_whole and len(counts.pixels) < FEW_PAIRS * 10:
        return None  # too few were counted to say so
    few = [
        f"{name} ({seen})"
        for name, seen in zip(labels.names, counts.masks_of_class.tolist(), strict=True)
        if 0 < seen < FEW_PAIRS
    ]
    if not few or counts.num_masks < FEW_PAIRS:
        return None
    drawn = "" if settings.class_balanced_sampling else ", or show them more often with --class_balanced_sampling"
    return (
        f"Seen in fewer than {FEW_PAIRS} of {_looked_at(counts)}: {listed(few)}. Such classes come out as copies of "
        f"those few photos or as something else: add pairs that show them{drawn}."
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
        f"Thin at this resolution: {listed(thin)}; at least {EDGE_SHARE:.0%} of the pixels of these classes lie "
        "beside another class, so they are some three pixels wide or less and have hardly any texture to learn. "
        f"Prepare the data at a higher --resolution{stem}."
    )


def _single_values(attributes: Mapping[str, Sequence[str]]) -> str | None:
    single = [f"{name} ({values[0]})" for name, values in attributes.items() if len(values) == 1]
    if not single:
        return None
    return (
        f"Attributes of one value: {listed(single)}. Where every pair that says anything says the same, there is "
        "nothing to tell apart: leave such a column out of --attributes, or add pairs of other values."
    )


def _shared(settings: TrainingSettings, pairs: PairDataset, preview_pairs: PairDataset) -> str | None:
    if preview_pairs is pairs or not (stems := shared_pairs(pairs, preview_pairs)):
        return None
    return (
        f"{len(stems):,} pairs of the split {settings.validation_split} are in {settings.train_split} as well: "
        f"{listed(stems)}. Previews and evaluations of these show what the network was trained on. Prepare the data "
        "set with splits that share nothing."
    )


def shared_pairs(train: PairDataset, validation: PairDataset) -> list[str]:
    """Stems that stand in both splits with the same photo, byte for byte."""
    place = {stem: index for index, stem in enumerate(train.stems)}
    return [
        stem
        for index, stem in enumerate(validation.stems)
        if stem in place and validation.photo_file(index) == train.photo_file(place[stem])
    ]


# Length of the run ---------------------------------------------------------------------------------------------------


def _hardly_trained_noise(settings: TrainingSettings) -> str | None:
    wanting = [
        *(["--rescale_betas_zero_snr, which lets sampling start there"] if settings.rescale_betas_zero_snr else []),
        *(["--attributes, which change light and colour"] if settings.attributes else []),
    ]
    if settings.snr_gamma is None or settings.prediction_type == "epsilon" or not wanting:
        return None
    return (
        "Min-SNR weights hardly train the noisiest timesteps, which decide on light and colour; this run has "
        f"{' and '.join(wanting)}. Give --snr_gamma none."
    )


def _few_timesteps(settings: TrainingSettings, samples: int) -> str | None:
    timesteps = settings.num_train_timesteps - settings.min_timestep
    if samples >= timesteps:
        return None
    return (
        f"The run sees {samples:,} samples in all, fewer than the {timesteps:,} timesteps of its schedule: some noise "
        "levels are never trained. Give more --max_train_steps."
    )


def _long_warmup(settings: TrainingSettings, num_steps: int) -> str | None:
    if settings.lr_scheduler == "constant" or settings.lr_warmup_steps < num_steps:
        return None
    reached = settings.learning_rate * num_steps / settings.lr_warmup_steps
    return (
        f"The learning rate warms up over {settings.lr_warmup_steps:,} steps, and the run has {num_steps:,}: it ends "
        f"at {reached:.2g} and never reaches --learning_rate {settings.learning_rate:g}. Give fewer "
        "--lr_warmup_steps or more --max_train_steps."
    )


def _long_average(settings: TrainingSettings, num_steps: int) -> str | None:
    if not settings.use_ema:
        return None
    if settings.ema_start_step >= num_steps:
        return (
            f"The average of the weights begins at step {settings.ema_start_step:,}, and the run has {num_steps:,}: "
            "what is saved are the last step's weights. Give a smaller --ema_start_step or more --max_train_steps."
        )
    decay = max(settings.ema_lengths)
    share = first_weights_share(decay, settings.ema_warmup, num_steps - settings.ema_start_step)
    if share <= FIRST_WEIGHTS_SHARE:
        return None
    option = "--ema_decays" if settings.ema_decays else "--ema_decay"
    return (
        f"The average of the weights ({option} {decay:g}) is longer than the run: after {num_steps:,} "
        f"steps {share:.0%} of it are still the weights it began with. Give --ema_warmup true, a smaller {option} "
        "or more --max_train_steps."
    )


def first_weights_share(decay: float, has_warmup: bool, num_steps: int) -> float:
    """How much the weights that an average begins with make up of it after some steps, 0 to 1.

    Args:
        decay: largest decay of a step.
        has_warmup: the decay grows with the steps k as 1 - (1 + k)^(-3/4), as in `diffusers.training_utils.EMAModel`.
        num_steps: steps that the average takes; the first one copies the weights.

    Example:
        >>> round(first_weights_share(0.999, False, 1001), 3), first_weights_share(0.999, True, 1001) < 1e-6
        (0.368, True)
    """
    steps = np.arange(1, num_steps)
    decays = np.minimum(decay, 1 - (1.0 + steps) ** -0.75) if has_warmup else np.full(len(steps), decay)
    return float(np.prod(decays))
