"""Which commands grow a data set, with which options: from the few settings of `grow` to a stage for each."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.growth.stages import STAGES, Stage
from semseg_diffusers.masks.editing.placement import check_placeable
from semseg_diffusers.masks.editing.scene_prior import fit_scene_prior
from semseg_diffusers.masks.editing.street import Street
from semseg_diffusers.masks.statistics.counts import class_figures, collect_statistics
from semseg_diffusers.masks.statistics.underrepresented import underrepresented_classes


FACTOR = 4.0  # times its share of the pixels that a weak class is wished to have in the new masks
MOST_WISHED = 0.25  # of all pixels, by all wishes together; `enrich` refuses twice as much
MOST_LEARNED = 200  # masks that tell which classes can be placed
FILTER_SEED = 1000  # beside the seed: the filter's network is no network of the study


@dataclasses.dataclass(frozen=True)
class GrowSettings:
    """What a user says; all else is the default of each command, or a change of it.

    Raises:
        ValueError: numbers out of range, or changes of what `grow` decides itself.
    """

    dataset: str  # prepared folder or Hub id
    output: Path
    model: str | None = None  # diffusion model, folder or Hub id; None trains one first
    masks: str | None = None  # folder of new masks; None makes them from those of the data set
    filter_segmenter: str | None = None  # network that filters; None trains one first
    num_masks: int | None = None  # None: as many as there are training photos
    num_images_per_mask: int = 2
    wish: tuple[str, ...] = ()  # CLASS=TIMES; empty: the weak classes that can be placed
    amounts: tuple[float, ...] = (1.0,)  # of synthetic images in the study, as multiples of the photos
    seeds: tuple[int, ...] = (0, 1, 2)  # of the study
    seed: int = 0  # of all else
    device: str | None = None
    image_column: str = "image"
    mask_column: str = "mask"
    labels: str | None = None
    changes: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)  # by stage

    def __post_init__(self):
        for name in ("num_masks", "num_images_per_mask"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be 1 or more; got {value}.")
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more; got {self.seed}.")
        if self.masks is not None and (self.wish or self.num_masks is not None):
            raise ValueError("--wish and --num_masks are of masks that are to be made, and --masks gives them.")
        for stage, given in self._given.items():
            if given is not None and stage in self.changes:
                raise ValueError(
                    f"--set {stage}.{next(iter(self.changes[stage]))}: '{given}' was given, so no such stage."
                )

    @property
    def stages(self) -> list[str]:
        """The stages that there is something to do in."""
        return [name for name in STAGES if self._given.get(name) is None]

    @property
    def _given(self) -> dict[str, str | None]:
        """What a user may bring along, by the stage that would make it."""
        return {"train": self.model, "enrich": self.masks, "segmenter": self.filter_segmenter}


def make_stage(settings: GrowSettings, name: str, wish: Sequence[str], num_masks: int) -> Stage:
    """One stage with all its options.

    Args:
        settings: of the whole.
        name: one of `settings.stages`.
        wish: what the new masks are to have more of, CLASS=TIMES.
        num_masks: how many new masks.

    Raises:
        ValueError: a change is of an option that `grow` sets itself.
    """
    folders = {stage: settings.output / stage for stage in STAGES}
    model = settings.model or str(folders["train"])
    seed = {"seed": [str(settings.seed)]}
    device = {} if settings.device is None else {"device": [settings.device]}
    columns = {"image_column": [settings.image_column], "mask_column": [settings.mask_column]}
    if settings.labels is not None:
        columns["labels"] = [settings.labels]
    if settings.image_column == "image" and settings.mask_column == "mask":
        columns = {name: value for name, value in columns.items() if name == "labels"}
    own: dict[str, dict[str, list[str]]] = {
        "statistics": columns,
        "train": {**columns, **seed, **device, "resume_from_checkpoint": ["latest"]},
        "enrich": {**seed, "num_masks": [str(num_masks)], "wish": list(wish)},
        "generate": {
            "model": [model],
            "masks": [settings.masks or str(folders["enrich"] / "masks")],
            "num_images_per_mask": [str(settings.num_images_per_mask)],
            **seed,
            **device,
        },
        # what chooses images must not have been chosen by the photos that the study scores on
        "segmenter": {**columns, **device, "seed": [str(settings.seed + FILTER_SEED)], "validation_split": ["none"]},
        "filter": {
            **columns,
            "generated": [str(folders["generate"])],
            "segmenter": [settings.filter_segmenter or str(folders["segmenter"])],
            **seed,
            **device,
        },
        "study": {
            **columns,
            "generated": [str(folders["generate"])],
            "filtered": [str(folders["filter"])],
            "amounts": [f"{amount:g}" for amount in settings.amounts],
            "seeds": [str(number) for number in settings.seeds],
            **device,
        },
        "merge": {**columns, "generated": [str(folders["filter"])]},
    }
    output = {"output_dir" if name == "train" else "output": [str(folders[name])]}
    options = {**({} if name == "generate" else {"dataset": [settings.dataset]}), **own[name], **output}
    changes = settings.changes.get(name, {})
    for option in changes:
        if option in options and option not in ("seed", "device"):
            raise ValueError(f"--set {name}.{option}: grow sets it itself, to {' '.join(options[option])}.")
    return Stage(name, folders[name], {**options, **changes})


def default_wishes(pairs: PairDataset) -> list[str]:
    """The weak classes that can be placed in a street, each wished `FACTOR` times, all together not too much.

    Args:
        pairs: training split.

    Raises:
        ValueError: no class can be placed.
    """
    statistics = collect_statistics(pairs.mask, len(pairs), pairs.labels)
    share = {row.name: row.pixel_share for row in class_figures(statistics)}
    step = max(1, len(pairs) / MOST_LEARNED)
    chosen = [int(k * step) for k in range(min(len(pairs), MOST_LEARNED))]
    knowledge = fit_scene_prior(((pairs.stems[i], pairs.mask(i)) for i in chosen), Street.of(pairs.labels))
    weak = [entry.name for entry in underrepresented_classes(statistics)]
    rarest = sorted((name for name in share if share[name] > 0 and name not in weak), key=share.get)
    placeable = []
    for name in [*weak, *rarest]:
        try:
            check_placeable(knowledge, pairs.labels.label2id[name])
        except ValueError:
            continue
        placeable.append(name)
    wanted = [name for name in placeable if name in weak] or placeable[:2]
    if not wanted:
        raise ValueError(
            "no class of the data set can be placed in its masks: their things are too few or too small. Give masks "
            "with --masks: of your own, or those of the training split for other photos of the same streets."
        )
    total = sum(FACTOR * share[name] for name in wanted)
    times = FACTOR if total <= MOST_WISHED else max(1.1, FACTOR * MOST_WISHED / total)
    return [f"{name}={times:.3g}" for name in wanted]
