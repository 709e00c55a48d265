"""Settings of `semseg-diffusers study`: data, arms, seeds, amounts and training.
All arms share the training and the initial weights; only the pool of training pairs differs."""

from dataclasses import dataclass, fields
from typing import Any

from semseg_diffusers.data.settings import SPLITS, ColumnOptions
from semseg_diffusers.evaluation.segmentation.settings import SegmenterTrainingOptions
from semseg_diffusers.utils.settings import option


# name -> content of the pool; in the order of tables and pages
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
# settings that all trainings of a folder share, besides data and network, which are compared by content
MAX_JOBS = 8  # by default: each process keeps its own copy of the data
SHARED = ("max_train_steps", "train_batch_size", "mixed_precision")


@dataclass(frozen=True, kw_only=True)
class StudySettings(ColumnOptions, SegmenterTrainingOptions):
    """A study: the same network trained on several pools of real and synthetic pairs."""

    dataset: str = option(help="real images: prepared folder or Hub dataset id")
    generated: str | None = option(None, metavar="DIR", help="synthetic images: folder written by `generate`")
    filtered: str | None = option(None, metavar="DIR", help="filtered synthetic images: folder written by `filter`")
    arms: tuple[str, ...] = option(
        (), choices=tuple(ARMS),
        help=f"pools to train on (default: all with data). {'; '.join(f'{k}: {v}' for k, v in ARMS.items())}",
    )  # fmt: skip
    seeds: tuple[int, ...] = option(
        (0, 1, 2), at_least=0, below=2**63,
        help="of initial weights, order, augmentation and selection of images; more seeds narrow the intervals",
    )  # fmt: skip
    amounts: tuple[float, ...] = option(
        (1.0,), above=0, help="synthetic pairs, as multiples of the number of real pairs"
    )
    train_split: str = option("train", help="real images to train on")
    validation_split: str = option("val", help="real images that all networks are scored on")
    force: bool = option(False, help="continue although validation images or the filter's network leak into the study")

    def __post_init__(self):
        super().__post_init__()
        if self.generated is None and self.filtered is None:
            raise ValueError("a study needs synthetic images: give --generated, --filtered, or both.")
        options = (("generated", OF_GENERATED), ("filtered", OF_FILTERED))
        for name, arms in options:
            without = [arm for arm in self.arms if arm in arms]
            if getattr(self, name) is None and without:
                raise ValueError(f"--arms {without[0]} needs --{name}, which is missing.")
        for name, arms in options:
            if getattr(self, name) is not None and self.arms and not set(arms) & set(self.arms):
                raise ValueError(f"--{name} is used by the arms {' and '.join(arms)}; --arms names neither.")
        if not self.arms:
            object.__setattr__(self, "arms", tuple(arm for arm in ARMS if self._has_data(arm)))
        if "real" not in self.arms:
            raise ValueError("--arms lacks real, which all other arms are compared with. Add it.")
        for name in ("arms", "seeds", "amounts"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"--{name}: expected one or more distinct values; got {' '.join(map(str, values))}.")
        splits = [SPLITS.get(name, name) for name in (self.train_split, self.validation_split)]
        if splits[0] == splits[1]:
            raise ValueError(f"--train_split and --validation_split are both '{splits[0]}'; expected two splits.")

    def _has_data(self, arm: str) -> bool:
        needs = self.generated if arm in OF_GENERATED else self.filtered if arm in OF_FILTERED else self.dataset
        return needs is not None

    def record(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON under the names of the options."""
        values = {field.name: getattr(self, field.name) for field in fields(StudySettings)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class StudyCommandSettings(StudySettings):
    """Measure whether synthetic images improve a segmentation network, beyond chance.

    The same network is trained on real images; on duplicates of them; on real plus (filtered) synthetic images; and on
    synthetic ones alone: with equal steps, several seeds and amounts. results.json holds all scores with paired
    differences and their confidence intervals, report.html explains them. The same command resumes an interrupted
    study; more arms, seeds and amounts extend it.
    """

    output: str = option(metavar="DIR", help="folder to create or resume")
    jobs: int | None = option(
        None, at_least=1,
        help=f"parallel trainings, each on one thread (default: one per GPU or CPU core, at most {MAX_JOBS})",
    )  # fmt: skip
    device: str | None = option(None, help="torch device (default: GPUs if available)")


@dataclass(frozen=True)
class Training:
    """One network to train."""

    arm: str
    amount: float | None  # None for real images alone, whose pool is the same at every amount
    seed: int

    @property
    def name(self) -> str:
        """Name of its file.

        Example:
            >>> Training("real_synthetic", 0.5, 2).name, Training("real", None, 0).name
            ('real_synthetic-x0.5-seed2', 'real-seed0')
        """
        return f"{variant_name(self.arm, self.amount, '-x')}-seed{self.seed}"


def variant_name(arm: str, amount: float | None, between: str = ", x") -> str:
    """Return the name of an arm with its amount.

    Example:
        >>> variant_name("synthetic", 2.0), variant_name("real", None)
        ('synthetic, x2', 'real')
    """
    return arm if amount is None else f"{arm}{between}{amount:.10g}"


def variants(settings: StudySettings) -> list[tuple[str, float | None]]:
    """Return every arm at every amount, in the order of tables and pages."""
    return [
        (arm, amount)
        for arm in ARMS
        if arm in settings.arms
        for amount in ([None] if arm == "real" else sorted(settings.amounts))
    ]


def trainings(settings: StudySettings) -> list[Training]:
    """Return all networks to train, seed by seed, so that all arms of the first seeds finish first."""
    return [Training(arm, amount, seed) for seed in settings.seeds for arm, amount in variants(settings)]
