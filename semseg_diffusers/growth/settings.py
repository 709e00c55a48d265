"""Options of `grow`, `merge` and `join`. Imports nothing heavy, so that `--help` is instant."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from semseg_diffusers.data.settings import ColumnOptions
from semseg_diffusers.utils.settings import Settings, option


# Stages in their order, and in that of a loop with photos of a target.
ORDER = ("statistics", "train", "enrich", "generate", "segmenter", "filter", "study", "merge")
TRANSFER_ORDER = (
    *("statistics", "segmenter", "label", "join", "train", "enrich", "generate", "filter", "study", "merge"),
)
# Stage -> the command that it runs.
STAGES = {name: name for name in (*ORDER, "label", "join")} | {"statistics": "stats"}
STYLE, SOURCE, TARGET = "dataset", "source", "target"  # attribute of joined pairs, and its values
# By --set, although `grow` sets them
OVERRIDABLE = ("seed", "device", "attributes", "snr_gamma", "norm_num_groups", "max_train_steps", "learning_rate")
ADAPTATION = {"max_train_steps": 600, "learning_rate": 3e-4}  # of a model that knows the dataset, to a target
STUDENT_SUFFIX, NO_STUDENT = "-turbo", "off"


@dataclass(frozen=True, kw_only=True)
class GivenResults(Settings):
    """Results that replace stages."""

    _group = "results that exist already"
    model: str | None = option(None, metavar="DIR|ID", help="diffusion model (default: one is trained first)")
    student: str | None = option(
        None, metavar=f"DIR|ID|{NO_STUDENT}",
        help="model of few steps that generates in place of --model (default: the folder beside it whose name has "
        f"{STUDENT_SUFFIX} added, if there is one; {NO_STUDENT}: the model itself)",
    )  # fmt: skip
    init_from: str | None = option(
        None, metavar="DIR|ID", help="with photos of a target: a model of the dataset, which is trained on the photos "
        "of the target alone, in place of one that is trained on both",
    )  # fmt: skip
    upscaler: str | None = option(
        None, metavar="DIR|ID", help="model of `train --upscale_factor`, which enlarges the images of --model to the "
        "size of the dataset",
    )  # fmt: skip
    masks: str | None = option(None, metavar="DIR", help="masks to generate from (default: new ones are made)")
    filter_segmenter: str | None = option(
        None, metavar="DIR|ID", help="network that filters (default: one is trained first)"
    )


@dataclass(frozen=True, kw_only=True)
class AmountOptions(Settings):
    """How many images are made and studied."""

    _group = "amounts and seeds"
    num_masks: int | None = option(None, at_least=1, help="new masks (default: as many as there are training images)")
    num_images_per_mask: int = option(2, at_least=1, metavar="N", help="images generated of each mask")
    target: tuple[str, ...] = option(
        (), metavar="CLASS=FACTOR|PHOTOS", old_names=("wish",),  # codespell:ignore wish
        help="what the new masks have more of (default: four times each underrepresented class that can be placed); "
        "or photos that the networks are for: a folder, a prepared folder or a dataset on the Hub, whose training "
        "masks are not read; or both",
    )  # fmt: skip
    amounts: tuple[float, ...] = option((1.0,), help="synthetic images in the study, as multiples of the real ones")
    seeds: tuple[int, ...] = option((0, 1, 2), help="seeds of the study")


@dataclass(frozen=True, kw_only=True)
class GrowSettings(AmountOptions, GivenResults, ColumnOptions):
    """Take a dataset to a better segmentation network in one command.

    It finds what the masks lack, makes new masks with more of it, generates images of them, filters them, studies what
    they bring, and adds them to the dataset.

      semseg-diffusers grow --dataset data/camvid128 --model runs/camvid128 --output grown
      semseg-diffusers grow --dataset data/camvid128 --output grown --set train.max_train_steps=6000 study.jobs=2

    Without --model, a diffusion model is trained first. Each stage is a command of this package with a folder of its
    own (`statistics`, `train`, `enrich`, `generate`, `segmenter`, `filter`, `study`, `merge`). It is printed before it
    runs, so that it can be inspected, or run by hand with other options. The same command resumes an interrupted loop.
    `index.html` shows the results of all stages; `grow.json` lists those that are done.

      semseg-diffusers grow --dataset data/camvid128 --target data/kitti128 --output grown

    With photos of a target, the network that filters labels them first (`label`), both datasets are joined (`join`),
    and the model learns the look of each: the masks of the dataset, or new ones, are generated in that of the target.
    A model that knows the dataset (--init_from) is trained on the photos of the target alone instead, which is faster
    and closer to their look. The study then scores on the validation split of the target, if that has one.
    """

    dataset: str = option(metavar="DIR|ID", help="prepared folder, or a dataset on the Hub")
    output: Path = option(metavar="DIR", help="folder to create, or to continue")
    seed: int = option(0, at_least=0, help="seed of all other stages")
    device: str | None = option(None, help="default: GPU if any")
    set: tuple[str, ...] = option(
        (), metavar="STAGE.OPTION=VALUE",
        help="any other option of a stage's command; several values are separated by commas, a switch is true",
    )  # fmt: skip
    until: str | None = option(None, choices=tuple(STAGES), help="last stage to run now (default: all)")
    config_file: str | None = option(
        None, metavar="FILE", help="accelerate's, to train and generate in several processes"
    )
    dry_run: bool = option(False, help="print the commands only")

    def __post_init__(self):
        super().__post_init__()
        photos = [text for text in self.target if text not in self.class_targets]
        for text in photos:
            if not Path(text).is_dir() and (Path(text).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", text)):
                raise ValueError(
                    f"--target '{text}': expected CLASS=FACTOR, or photos: a folder, or a dataset id of the Hub."
                )
        if len(photos) > 1:
            raise ValueError(f"--target names photos twice, '{photos[0]}' and '{photos[1]}'; expected one target.")
        if self.masks is not None and (self.class_targets or self.num_masks is not None):
            raise ValueError(
                "--target CLASS=FACTOR and --num_masks are for new masks; with --masks none are made. Omit them."
            )
        if self.init_from is not None and (self.photos is None or self.model is not None):
            raise ValueError(
                "--init_from is the start of the model that `grow` trains for photos of a target: it needs --target "
                "PHOTOS, and no --model. Without a target: --set train.init_from=MODEL."
            )
        if self.student is not None and self.model is None:
            raise ValueError("--student is for a --model that exists; the network that `grow` trains has none.")
        if self.upscaler is not None and self.model is None:
            raise ValueError(
                "--upscaler enlarges images of a --model of a smaller size than the dataset; the network that `grow` "
                "trains has its size already."
            )
        for stage, changes in self.changes.items():
            if stage not in self.stages:
                name = f"{stage}.{next(iter(changes))}"
                raise ValueError(f"--set {name}: there is no such stage, as {self._absence(stage)}.")
        if self.until is not None and self.until not in self.stages:
            raise ValueError(f"--until {self.until}: there is no such stage, as {self._absence(self.until)}.")

    @cached_property
    def changes(self) -> dict[str, dict[str, str]]:
        """Options of stages given by --set: stage -> name -> value."""
        changes: dict[str, dict[str, str]] = {}
        for text in self.set:
            name, _, value = text.partition("=")
            stage, _, option_name = name.partition(".")
            if not option_name or not value:
                raise ValueError(f"--set '{text}': expected STAGE.OPTION=VALUE, such as train.max_train_steps=2000.")
            if stage not in STAGES:
                raise ValueError(f"--set '{text}': there is no stage '{stage}'; expected one of {', '.join(STAGES)}.")
            changes.setdefault(stage, {})[option_name] = value
        return changes

    @property
    def generator(self) -> str:
        """The model that generates: a student of the given one, or that one itself, or the one that is trained."""
        if self.model is None:
            return str(self.output / "train")
        beside = f"{self.model.rstrip('/')}{STUDENT_SUFFIX}"
        if self.student is None:
            return beside if (Path(beside) / "model_index.json").is_file() else self.model
        return self.model if self.student == NO_STUDENT else self.student

    @property
    def stages(self) -> list[str]:
        """Names of the stages to run: those whose results were not given."""
        order = ORDER if self.photos is None else TRANSFER_ORDER
        return [name for name in order if self._given.get(name) is None]

    @property
    def photos(self) -> str | None:
        """Photos of the target; None without."""
        return next((text for text in self.target if text not in self.class_targets), None)

    @property
    def class_targets(self) -> tuple[str, ...]:
        """What new masks should have more of, as CLASS=FACTOR."""
        return tuple(text for text in self.target if "=" in text and not Path(text).is_dir())

    @property
    def given_masks(self) -> str | None:
        """Masks to generate from if none are made: the given ones, or for a target those of the dataset."""
        of_dataset = Path(self.dataset, "train", "masks")
        if self.photos is None or self.class_targets or self.num_masks is not None or not of_dataset.is_dir():
            return self.masks
        return self.masks or str(of_dataset)

    def _absence(self, stage: str) -> str:
        """Return why there is no such stage."""
        given = self._given.get(stage)
        return "it is for photos of a target, --target PHOTOS" if given is None else f"'{given}' was given"

    @property
    def _given(self) -> dict[str, str | None]:
        return {"train": self.model, "enrich": self.given_masks, "segmenter": self.filter_segmenter}


@dataclass(frozen=True, kw_only=True)
class MergeSettings(ColumnOptions):
    """Add generated images to the dataset that they were made for.

      semseg-diffusers merge --dataset data/camvid128 --generated filtered --output data/grown128

    Splits, columns and classes stay those of the dataset; a column `synthetic` marks generated pairs, which are named
    `synthetic_NAME`. `synthetic.jsonl` keeps all metadata of the generated folder (model, revision, seed, scheduler,
    ...); `prepare.json` their number, model and licence. The new folder loads, trains and is pushed as any prepared
    one: semseg-diffusers push --dataset data/grown128 --repo_id NAME
    """

    dataset: str = option(metavar="DIR|ID", help="prepared folder, or a dataset on the Hub")
    generated: str = option(metavar="DIR", help="folder written by `generate` or `filter`")
    output: str = option(metavar="DIR", help="folder to create")
    split: str = option("train", help="split that the generated pairs join")
    overwrite: bool = option(False, help="replace a prepared dataset at --output")


@dataclass(frozen=True, kw_only=True)
class JoinSettings(ColumnOptions):
    """Join datasets into one, with an attribute that says which of them a pair is from.

      semseg-diffusers join --datasets data/camvid128 kitti_labelled --attribute dataset=camvid,kitti --output both

    The training pairs of all are joined; other splits are those of the first, the source. `train --attributes dataset`
    then learns how each looks, and `generate --attributes dataset=kitti` gives masks of the first the look of the
    second. Classes and image size must be equal. A name that occurs twice gets the value of its dataset in front.
    Other attributes stay, and are unknown where a dataset has none.
    """

    datasets: tuple[str, ...] = option(
        metavar="DIR|ID", help="two or more: prepared folders, those of `label` included, or datasets on the Hub"
    )
    attribute: str = option(
        metavar="NAME=VALUE,VALUE", help="name of the new column, and its value for each of --datasets"
    )
    output: str = option(metavar="DIR", help="folder to create")
    overwrite: bool = option(False, help="replace a prepared dataset at --output")

    def __post_init__(self):
        super().__post_init__()
        name, values = self.named_values
        if len(self.datasets) < 2:
            raise ValueError(f"--datasets: expected two or more; got {' '.join(self.datasets) or 'none'}.")
        if not name or len(values) != len(self.datasets) or not all(values) or len({*values}) < len(values):
            raise ValueError(
                f"--attribute '{self.attribute}': expected a name and {len(self.datasets)} different values, one for "
                "each of --datasets, such as dataset=camvid,kitti."
            )

    @property
    def named_values(self) -> tuple[str, list[str]]:
        """Name of the attribute, and its value for each dataset."""
        name, _, values = self.attribute.partition("=")
        return name.strip(), [value.strip() for value in values.split(",")]
