"""Settings of `semseg-diffusers study`: data, arms, seeds, amounts and training.
All arms share the training and the initial weights; only the pool of training pairs differs.
"""

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
# arms with synthetic pairs -> the option that names their folder
SYNTHETIC = {
    "real_synthetic": "generated",
    "real_filtered": "filtered",
    "synthetic": "generated",
    "filtered": "filtered",
}
MAX_JOBS = 8  # by default: each process keeps its own copy of the data


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
        if not self.synthetic:
            raise ValueError("a study needs synthetic images: give --generated, --filtered, or both.")
        possible = tuple(arm for arm in ARMS if arm not in SYNTHETIC or SYNTHETIC[arm] in self.synthetic)
        for arm in self.arms:
            if arm not in possible:
                raise ValueError(f"--arms {arm} needs --{SYNTHETIC[arm]}, which is missing.")
        for name in self.synthetic:
            users = [arm for arm in possible if SYNTHETIC.get(arm) == name]
            if self.arms and not set(users) & set(self.arms):
                raise ValueError(f"--{name} is used by the arms {' and '.join(users)}; --arms names neither.")
        if not self.arms:
            object.__setattr__(self, "arms", possible)
        if "real" not in self.arms:
            raise ValueError("--arms lacks real, which all other arms are compared with. Add it.")
        for name in ("arms", "seeds", "amounts"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"--{name}: expected one or more distinct values; got {' '.join(map(str, values))}.")
        splits = [SPLITS.get(name, name) for name in (self.train_split, self.validation_split)]
        if splits[0] == splits[1]:
            raise ValueError(f"--train_split and --validation_split are both '{splits[0]}'; expected two splits.")

    @property
    def synthetic(self) -> dict[str, str]:
        """Return the folders of synthetic images, by the option that names them."""
        folders = {"generated": self.generated, "filtered": self.filtered}
        return {name: folder for name, folder in folders.items() if folder is not None}

    def record(self) -> dict[str, Any]:
        """Return the settings that results depend on, as JSON under the names of the options."""
        values = self.to_dict()
        return {field.name: values[field.name] for field in fields(StudySettings)}


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
        """Return the name of its file, such as "real_synthetic-x0.5-seed2"."""
        amount = "" if self.amount is None else f"-x{self.amount:.10g}"
        return f"{self.arm}{amount}-seed{self.seed}"


def variants(settings: StudySettings) -> list[tuple[str, float | None]]:
    """Return every arm at every amount, in the order of tables and pages."""
    amounts = sorted(settings.amounts)
    return [(arm, n) for arm in ARMS if arm in settings.arms for n in ([None] if arm == "real" else amounts)]


def trainings(settings: StudySettings) -> list[Training]:
    """Return all networks to train, seed by seed, so that all arms of the first seeds finish first."""
    return [Training(arm, amount, seed) for seed in settings.seeds for arm, amount in variants(settings)]
