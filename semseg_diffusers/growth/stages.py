"""The stages of growing a dataset: commands of the package with their options, each with a folder of its own.

Whatever `grow` does can therefore be done by hand, stage by stage, with the commands that it prints and keeps.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from semseg_diffusers.cli import command_parser
from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.growth.settings import STAGES, GrowSettings
from semseg_diffusers.masks.editing.placement import check_placeable
from semseg_diffusers.masks.editing.scene_prior import fit_scene_prior
from semseg_diffusers.masks.editing.street import Street
from semseg_diffusers.masks.statistics.counts import class_figures, collect_statistics
from semseg_diffusers.masks.statistics.underrepresented import underrepresented_classes
from semseg_diffusers.utils.files import write_text


# Stage -> a file that its folder holds only when the stage is complete, for commands that are slow to find out.
MARKERS = {"train": "model_index.json", "enrich": "enrich.json", "segmenter": "config.json", "merge": "prepare.json"}
RENAMED = {"--wish": "--target"}  # options in the grow.json of earlier versions
FACTOR = 4.0  # times its pixel share that an underrepresented class should have in the new masks
MAX_SHARE = 0.25  # of all pixels, for all targets together; `enrich` refuses twice as much
MAX_PRIOR_MASKS = 200  # from which the scene prior is fitted
FILTER_SEED = 1000  # added to the seed: the filter's network must not be one of the study's


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command that `grow` runs."""

    name: str  # one of STAGES
    folder: Path  # its output
    options: Mapping[str, Sequence[str]]  # name without dashes -> values; none for a switch

    @property
    def arguments(self) -> list[str]:
        """Command and options, as the console script takes them."""
        words = [STAGES[self.name]]
        for name, values in self.options.items():
            words += [f"--{name}", *values]
        return words

    @property
    def command(self) -> str:
        """The equivalent shell command."""
        return shlex.join(["semseg-diffusers", *self.arguments])

    @property
    def comparable(self) -> list[str]:
        """The command with absolute paths, so that it can be compared with that of an earlier call."""
        return [os.path.abspath(word) if os.path.exists(word) else word for word in self.arguments]

    @property
    def is_complete(self) -> bool:
        """Whether the folder alone shows that the stage is complete."""
        return self.name in MARKERS and (self.folder / MARKERS[self.name]).is_file()

    def check(self) -> None:
        """Parse the options as the command will.

        Raises:
            ValueError: naming the stage and the problem.
        """
        parser = command_parser(STAGES[self.name])
        parser.error = _raise
        parse = getattr(parser, "parse_settings", parser.parse_args)
        try:
            parse(self.arguments[1:])
        except ValueError as err:
            reason = str(err).removesuffix(".")
            raise ValueError(
                f"stage {self.name}: {reason}. `semseg-diffusers {STAGES[self.name]} --help` lists its options."
            ) from err


def _raise(message: str) -> None:
    raise ValueError(message)


def make_stage(settings: GrowSettings, name: str, target: Sequence[str], num_masks: int) -> Stage:
    """Return a stage with all its options.

    Args:
        settings: of the command.
        name: one of `settings.stages`.
        target: what the new masks have more of, CLASS=FACTOR.
        num_masks: how many new masks.

    Raises:
        ValueError: --set changes an option that `grow` sets itself.
    """
    folders = {stage: settings.output / stage for stage in STAGES}
    model = settings.model or str(folders["train"])
    seed = {"seed": [str(settings.seed)]}
    device = {} if settings.device is None else {"device": [settings.device]}
    columns = {}
    if (settings.image_column, settings.mask_column) != ("image", "mask"):
        columns = {"image_column": [settings.image_column], "mask_column": [settings.mask_column]}
    if settings.labels is not None:
        columns["labels"] = [settings.labels]
    own: dict[str, dict[str, list[str]]] = {
        "statistics": columns,
        "train": {**columns, **seed, **device, "resume_from_checkpoint": ["latest"]},
        "enrich": {**seed, "num_masks": [str(num_masks)], "target": list(target)},
        "generate": {
            "model": [model],
            "masks": [settings.masks or str(folders["enrich"] / "masks")],
            "num_images_per_mask": [str(settings.num_images_per_mask)],
            **seed,
            **device,
        },
        # the network that selects images must not be selected on the images that the study evaluates on
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


def default_target(pairs: PairDataset) -> list[str]:
    """Return the underrepresented classes that can be placed in a street, each with `FACTOR` or as much as fits.

    Args:
        pairs: training split.

    Raises:
        ValueError: no class can be placed.
    """
    statistics = collect_statistics(pairs.mask, len(pairs), pairs.labels)
    share = {row.name: row.pixel_share for row in class_figures(statistics)}
    step = max(1, len(pairs) / MAX_PRIOR_MASKS)
    chosen = [int(k * step) for k in range(min(len(pairs), MAX_PRIOR_MASKS))]
    prior = fit_scene_prior(((pairs.stems[i], pairs.mask(i)) for i in chosen), Street.of(pairs.labels))
    weak = [entry.name for entry in underrepresented_classes(statistics)]
    rarest = sorted((name for name in share if share[name] > 0 and name not in weak), key=share.get)
    placeable = []
    for name in [*weak, *rarest]:
        try:
            check_placeable(prior, pairs.labels.label2id[name])
        except ValueError:
            continue
        placeable.append(name)
    names = [name for name in placeable if name in weak] or placeable[:2]
    if not names:
        raise ValueError(
            "no class of the dataset can be placed in its masks: its objects are too few or too small. Give masks "
            "with --masks: your own, or those of the training split for other images of the same streets."
        )
    total = sum(FACTOR * share[name] for name in names)
    factor = FACTOR if total <= MAX_SHARE else max(1.1, FACTOR * MAX_SHARE / total)
    return [f"{name}={factor:.3g}" for name in names]


class Progress:
    """Which stages were started and which are done, with their commands, kept in `grow.json` of the output folder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stages: dict[str, dict] = (
            json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else {}
        )

    def is_done(self, name: str) -> bool:
        return name in self._stages and self._stages[name]["done"]

    def check(self, stage: Stage) -> None:
        """Refuse a stage that was done with other options.

        Raises:
            ValueError: naming what differs.
        """
        if not self.is_done(stage.name) and not (stage.is_complete and stage.name in self._stages):
            return
        before, now = (
            [RENAMED.get(word, word) for word in words]
            for words in (self._stages[stage.name]["command"], stage.comparable)
        )
        if before != now:
            different = [word for word in [*now, *before] if (word in now) != (word in before)]
            raise ValueError(
                f"stage {stage.name} was done with other options (they differ in {shlex.join(different[:6])}). Give "
                f"those again, or remove '{stage.folder}' and what later stages made of it with '{self.path}', or "
                "choose another --output."
            )

    def note(self, stage: Stage, done: bool) -> None:
        """Record that a stage starts, or is done."""
        self._stages[stage.name] = {"command": stage.comparable, "done": done}
        write_text(self.path, json.dumps({"stages": self._stages}, indent=1) + "\n")
