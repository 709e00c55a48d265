"""What a study depends on: data, arms, seeds, amounts, and how each network is trained.
Every arm is the same training from the same first weights; only the pool of pairs that it draws from differs."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from semseg_diffusers.data.options import SPLITS


# name -> what the pool holds; the order is that of tables and pages
ARMS = {
    "real": "real photos",
    "real_duplicated": "duplicated real photos",
    "real_synthetic": "real + synthetic",
    "real_filtered": "real + filtered synthetic",
    "synthetic": "synthetic only",
    "filtered": "filtered synthetic only",
}
OF_GENERATED = ("real_synthetic", "synthetic")
OF_FILTERED = ("real_filtered", "filtered")
# settings that all trainings in one folder share, beside data and network, which are told apart by what they hold
SHARED = ("max_train_steps", "train_batch_size", "mixed_precision")


@dataclass(frozen=True)
class StudySettings:
    """One study.

    Raises:
        ValueError: arms without their data, repeated or unknown values, numbers out of range.
    """

    dataset: str  # prepared folder or Hub id: the real photos
    generated: str | None = None  # folder that `generate` wrote
    filtered: str | None = None  # the same, filtered
    arms: tuple[str, ...] = ()  # of `ARMS`; empty: all that the data allows
    seeds: tuple[int, ...] = (0, 1, 2)  # of first weights, order, augmentation, and choice of synthetic images
    amounts: tuple[float, ...] = (1.0,)  # synthetic pairs, as multiples of the number of real pairs
    train_split: str = "train"
    validation_split: str = "val"
    image_column: str = "image"
    mask_column: str = "mask"
    labels: str | None = None  # preset or JSON file, where the data set carries no label set
    architecture: str | None = None  # None: segformer-b0, or that of `base_model`
    base_model: str | None = None  # folder or Hub id that all networks begin with, in place of random weights
    revision: str | None = None  # branch, tag or commit of `base_model`
    max_train_steps: int = 2000  # optimizer steps, of every arm
    train_batch_size: int = 8  # pairs a step
    learning_rate: float | None = None  # highest one; None: that of the architecture
    input_size: str | None = None  # pixels that photos are resized to; None: that of the architecture
    mixed_precision: str = "no"
    force: bool = False  # go on where the data leaks

    def __post_init__(self):
        if self.generated is None and self.filtered is None:
            raise ValueError("a study needs synthetic images: give --generated, --filtered, or both.")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"--arms: there is no '{unknown[0]}'; there are {', '.join(ARMS)}.")
        options = (("generated", OF_GENERATED), ("filtered", OF_FILTERED))
        for option, arms in options:
            without = [arm for arm in self.arms if arm in arms]
            if getattr(self, option) is None and without:
                raise ValueError(f"--arms {without[0]} needs --{option}, which is missing.")
        for option, arms in options:
            if getattr(self, option) is not None and self.arms and not set(arms) & set(self.arms):
                raise ValueError(f"--{option} is of the arms {' and '.join(arms)}, and --arms names neither.")
        if not self.arms:
            object.__setattr__(self, "arms", tuple(arm for arm in ARMS if self._has_data(arm)))
        if "real" not in self.arms:
            raise ValueError("--arms lacks real, which all other arms are compared with. Add it.")
        for name in ("arms", "seeds", "amounts"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"--{name} wants one value or more, each once; got {' '.join(map(str, values))}.")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"--seeds must be 0 or more, below 2^63; got {' '.join(map(str, self.seeds))}.")
        if not all(amount > 0 and math.isfinite(amount) for amount in self.amounts):
            raise ValueError(f"--amounts must be more than 0; got {' '.join(map(str, self.amounts))}.")
        if self.max_train_steps < 1:
            raise ValueError(f"--max_train_steps must be at least 1; got {self.max_train_steps}.")
        if self.train_batch_size < 2:
            raise ValueError(
                f"--train_batch_size must be at least 2, for BatchNorm's sake; got {self.train_batch_size}."
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning_rate must be more than 0; got {self.learning_rate}.")
        splits = [SPLITS.get(name, name) for name in (self.train_split, self.validation_split)]
        if splits[0] == splits[1]:
            raise ValueError(f"--train_split and --validation_split are both '{splits[0]}': scores would say nothing.")

    def _has_data(self, arm: str) -> bool:
        needs = self.generated if arm in OF_GENERATED else self.filtered if arm in OF_FILTERED else self.dataset
        return needs is not None

    def record(self) -> dict[str, Any]:
        """JSON of all settings under the names of the command's options."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Training:
    """One network to be trained."""

    arm: str
    amount: float | None  # None for real photos alone, whose pool is the same at every amount
    seed: int

    @property
    def name(self) -> str:
        """What its file is called.

        Example:
            >>> Training("real_synthetic", 0.5, 2).name, Training("real", None, 0).name
            ('real_synthetic-x0.5-seed2', 'real-seed0')
        """
        return f"{variant_name(self.arm, self.amount, '-x')}-seed{self.seed}"


def variant_name(arm: str, amount: float | None, between: str = ", x") -> str:
    """An arm with its amount, for people and for files.

    Example:
        >>> variant_name("synthetic", 2.0), variant_name("real", None)
        ('synthetic, x2', 'real')
    """
    return arm if amount is None else f"{arm}{between}{amount:.10g}"


def variants(settings: StudySettings) -> list[tuple[str, float | None]]:
    """Every arm at every amount, in the order of tables and pages."""
    return [
        (arm, amount)
        for arm in ARMS
        if arm in settings.arms
        for amount in ([None] if arm == "real" else sorted(settings.amounts))
    ]


def trainings(settings: StudySettings) -> list[Training]:
    """Every network to be trained: seed by seed, so that all arms of the first seeds are done first."""
    return [Training(arm, amount, seed) for seed in settings.seeds for arm, amount in variants(settings)]
