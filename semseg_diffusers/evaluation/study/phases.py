"""How the networks of a study use the synthetic pairs of their pools: the phases of a training, each with its pairs.
Arms without synthetic pairs have one phase, whatever the options.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.filtering.rules import FILTER_FILE, ClassLosses, mask_hardness, read_class_losses
from semseg_diffusers.evaluation.segmentation.synthetic import RELABEL_START, SyntheticPairs
from semseg_diffusers.evaluation.segmentation.training import LabelledImages
from semseg_diffusers.evaluation.settings import SYNTHETIC_SETS, StudySettings, Training
from semseg_diffusers.evaluation.study.pools import StudyData, pool_members, training_pairs


class Phase(NamedTuple):
    """A part of a training with a learning-rate schedule of its own."""

    pairs: LabelledImages
    steps: int
    synthetic: SyntheticPairs | None  # None: all pairs are real


def training_phases(training: Training, settings: StudySettings, data: StudyData) -> list[Phase]:
    """Return the phases of a training; their steps add up to those of the study.

    With `synthetic_first`, a network is trained on the synthetic pairs of its pool, then fine-tuned on the real ones.
    Each phase has its own warm-up and decay: under a single decay, real pairs would be seen at low rates only.
    """
    members = pool_members(training, data)
    real, synthetic = ([each for each in members if (each[0] in SYNTHETIC_SETS) is kind] for kind in (False, True))
    parts = [(real + synthetic, settings.max_train_steps)]
    if real and synthetic and settings.synthetic_first:
        steps = settings.synthetic_steps
        parts = [(synthetic, steps), (real, settings.max_train_steps - steps)]
    losses = class_losses(settings, data["real"].labels) if synthetic else None
    phases = []
    for part, steps in parts:
        flags = torch.tensor([name in SYNTHETIC_SETS for name, _ in part])
        share = None if flags.all() else settings.synthetic_share
        pairs, used = training_pairs(part, data), None
        if flags.any():
            weights = None
            if losses is not None:
                weights = hardness_weights(pairs.counts, flags, losses.array(), settings.hard_masks)
            used = SyntheticPairs(flags, share, weights, settings.relabel)
        phases.append(Phase(pairs, steps, used))
    return phases


def class_losses(settings: StudySettings, labels: LabelSet) -> ClassLosses | None:
    """Return the mean loss of each class on real images, as `filter` has measured it; None without `hard_masks`."""
    if not settings.hard_masks:
        return None
    assert settings.filtered is not None
    losses = read_class_losses(settings.filtered)
    if losses is None or losses.names != labels.names:
        raise ValueError(
            f"--hard_masks needs the class losses that `filter` writes to {FILTER_FILE}; --filtered "
            f"'{settings.filtered}' has none for the classes of the dataset. Filter the images again."
        )
    return losses


def hardness_weights(
    counts: torch.Tensor, is_synthetic: torch.Tensor, losses: np.ndarray, hard_masks: float
) -> torch.Tensor:
    """Return how often an epoch has each pair: a real one once, a synthetic one by its mask, once on average.

    The hardness of a mask is the mean class loss over its pixels (FreeMask, Yang et al. 2023). Weights rise evenly
    with its rank, from the easiest mask to the hardest, which weighs 1 + `hard_masks` times as much.

    Args:
        counts: pixels of each class in the mask of each pair, (N, num_classes).
        is_synthetic: bool (N,).
        losses: mean loss of each class on real images, or NaN, (num_classes,).
        hard_masks: as of the settings.
    """
    hardness = [mask_hardness(each, losses) for each in counts[is_synthetic].numpy()]
    ranks = rankdata([-math.inf if value is None else value for value in hardness], "dense") - 1  # 0: the easiest
    of_synthetic = 1 + hard_masks * ranks / max(1, ranks.max())
    weights = torch.ones(len(counts), dtype=torch.float64)
    weights[is_synthetic] = torch.from_numpy(of_synthetic / of_synthetic.mean())
    return weights


def describe_use(settings: StudySettings, results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return how synthetic pairs are used, one sentence for each option that is given; `results` of the trainings."""
    texts = []
    if settings.synthetic_share is not None:
        texts.append(
            f"Arms with real and synthetic pairs: {100 * settings.synthetic_share:g} % of each batch are synthetic."
        )
    if settings.synthetic_first:
        rest = settings.max_train_steps - settings.synthetic_steps
        texts.append(
            f"Arms with real and synthetic pairs: {settings.synthetic_steps:,} steps on the synthetic pairs, then "
            f"{rest:,} on the real ones, each with a warm-up and decay of the learning rate."
        )
    if settings.hard_masks:
        texts.append(
            f"The synthetic pair with the hardest mask was seen {1 + settings.hard_masks:g} times as often as that "
            f"with the easiest, by the class losses of '{settings.filtered}'."
        )
    if settings.relabel is not None:
        text = (
            f"After {100 * RELABEL_START:g} % of the steps, synthetic pixels got the class of the averaged network "
            f"where its confidence was {settings.relabel:g} or more"
        )
        shares = [each["relabelled"] for each in results if "relabelled" in each]
        texts.append(text + (f": {100 * statistics.fmean(shares):.2g} % got another label." if shares else "."))
    return texts
