"""How the networks of a study use the synthetic pairs of their pools: the phases of a training, each with its pairs.
Arms without synthetic pairs have one phase, whatever the options.
"""

from typing import NamedTuple

import torch

from semseg_diffusers.evaluation.segmentation.synthetic import SyntheticPairs
from semseg_diffusers.evaluation.segmentation.training import LabelledImages
from semseg_diffusers.evaluation.settings import SYNTHETIC, StudySettings, Training
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
    real, synthetic = ([each for each in members if (each[0] in SYNTHETIC.values()) is kind] for kind in (False, True))
    parts = [(real + synthetic, settings.max_train_steps)]
    if real and synthetic and settings.synthetic_first:
        steps = settings.synthetic_steps
        parts = [(synthetic, steps), (real, settings.max_train_steps - steps)]
    phases = []
    for part, steps in parts:
        flags = torch.tensor([name in SYNTHETIC.values() for name, _ in part])
        share = None if flags.all() else settings.synthetic_share
        used = SyntheticPairs(flags, share) if flags.any() else None
        phases.append(Phase(training_pairs(part, data), steps, used))
    return phases


def describe_use(settings: StudySettings) -> list[str]:
    """Return how synthetic pairs are used, one sentence for each option that is given."""
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
    return texts
