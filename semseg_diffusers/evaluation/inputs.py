"""What an evaluation works on, loaded and checked before any image is made: photos, networks, model, output folder."""

import importlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semseg_diffusers.data.dataset import MissingSplitError, PairDataset, column_options, load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.options import SPLITS
from semseg_diffusers.evaluation.features import (
    NETWORK_ERRORS,
    PAPER_FEATURES,
    STANDARD_INCEPTION,
    FeatureExtractor,
    is_paper_features,
    load_extractor,
    reason_of,
)
from semseg_diffusers.evaluation.image_sets import ImageSet, generated_images, photos
from semseg_diffusers.evaluation.results import fidelity_comparisons
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.model import DTYPES, load_model
from semseg_diffusers.generation.plan import target_size
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.utils.distributed import LOCK_FILE, Processes
from semseg_diffusers.utils.files import package_version
from semseg_diffusers.utils.images import save_png


RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"
OURS = (RESULTS_FILE, PAGE_FILE, "masks", "generated", "cache")  # what an evaluation leaves in its output folder
MEMORY_LIMIT = 2 * 2**30  # bytes of decoded photos that are kept, of each split and process
NOT_COMPARED = ("output", "batch_size")  # settings that change no figure


@dataclass(frozen=True)
class Data:
    """Real photos, and the images that are held against them."""

    real: ImageSet
    train: ImageSet | None
    why_no_train: str | None
    generated: ImageSet
    filtered_by: str | None = None  # hash of the network that filtered the images, where one has


def load_data(settings: EvaluationSettings, processes: Processes) -> tuple[PairDataset, ImageSet | None, str | None]:
    """The split, the training photos, and why there are none."""

    def load() -> tuple[PairDataset, ImageSet | None, str | None]:
        columns = column_options(settings)
        pairs = load_pairs(settings.dataset, settings.split, **columns)
        _ = photos(pairs)  # refuses sizes that differ
        pairs.keep_decoded(MEMORY_LIMIT)  # each network reads them all
        split, train_split = (SPLITS.get(name, name) for name in (settings.split, settings.train_split))
        if split == train_split:
            return pairs, None, f"'{settings.train_split}' is the split that is evaluated."
        try:
            train = load_pairs(settings.dataset, settings.train_split, **columns)
        except MissingSplitError as err:
            return pairs, None, str(err)
        if train.resolution != pairs.resolution:
            raise ValueError(
                f"the photos of '{settings.split}' are {pairs.resolution}, those of '{settings.train_split}' "
                f"{train.resolution} (height, width); wanted one size. Prepare the data set again."
            )
        train.keep_decoded(MEMORY_LIMIT)
        return pairs, photos(train), None

    # one process builds the table of `datasets`, then the others find it
    mine = processes.run_in_main(load)
    return processes.run_on_all_ranks(lambda: mine or load())


def load_networks(
    settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device
) -> tuple[Judge, list[FeatureExtractor]]:
    """The segmenter and the feature networks, each tried on an image of the photos' size."""
    dtype = DTYPES[settings.dtype]
    judge = load_judge(
        settings.segmenter,
        pairs.labels,
        revision=settings.segmenter_revision,
        input_size=settings.segmenter_size,
        device=device,
        dtype=dtype,
    )
    extractors = [load_extractor(name, device=device, dtype=dtype) for name in with_paper_features(settings.features)]
    height, width = pairs.resolution
    noise = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    named = [(f"--segmenter '{settings.segmenter}'", judge.read)]
    named += [(f"--features '{extractor.name}'", extractor) for extractor in extractors]
    for name, network in named:
        try:
            network(noise)
        except NETWORK_ERRORS as err:
            raise ValueError(
                f"{name} cannot read images of {height} x {width} (height x width), the size of the photos: "
                f"{reason_of(err)}"
            ) from err
    return judge, extractors


def with_paper_features(names: Sequence[str]) -> list[str]:
    """The names, and beside the standard Inception its first 64 features: the paper's figure comes with it.

    Example:
        >>> with_paper_features(["inception:/folder/weights.pth", "inception-2015-12-05.pt"])
        ['inception:/folder/weights.pth', 'inception-2015-12-05.pt', 'inception-64:/folder/weights.pth']
    """
    standard = [match for name in names if (match := STANDARD_INCEPTION.fullmatch(name))]
    if not standard or any(is_paper_features(name) for name in names):
        return list(names)
    return [*names, PAPER_FEATURES + standard[0][0].removeprefix("inception")]


def load_generator(
    settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device
) -> MaskGuidedDDPMPipeline:
    """The pipeline, if it draws the classes of the data set at the size of its photos."""
    dtype, variant = DTYPES[settings.dtype], settings.sampling.variant
    pipeline = load_model(settings.model, settings.revision, settings.scheduler, dtype, device, variant=variant)
    labels = LabelSet.from_config(pipeline.unet.config)
    if labels != pairs.labels:
        raise ValueError(
            f"'{settings.model}' draws other classes ({', '.join(labels.names)}) than '{settings.dataset}' has "
            f"({', '.join(pairs.labels.names)}): evaluate a model on the data set it was trained on, or on this one "
            "prepared again with --map_to and the model's label set (a preset, or its unet/config.json)."
        )
    size = target_size(pipeline, settings.sampling)
    if size != pairs.resolution:
        raise ValueError(
            f"'{settings.model}' draws {size[0]} x {size[1]} pixels, the photos of '{settings.dataset}' are "
            f"{pairs.resolution[0]} x {pairs.resolution[1]} (height x width); wanted one size. Prepare the data set "
            f"again with --resolution {size[0]}x{size[1]}."
        )
    return pipeline


def check_counts(
    settings: EvaluationSettings, num_real: int, num_train: int, num_masks: int, num_generated: int
) -> None:
    """Refuse what there are too few images for, before any is made."""
    if num_masks < 2:
        raise ValueError(
            f"an evaluation needs two masks at least, to score images against the masks of others; got {num_masks}."
        )
    if settings.features:
        fidelity_comparisons(settings, num_real, num_train, num_generated)


def check_masks(masks: Iterable[np.ndarray], labels: LabelSet, not_judged: Sequence[str]) -> None:
    """Refuse masks (H, W) that are not to be read, or of which no pixel could be scored."""
    counted = [index for index, name in enumerate(labels.names) if name not in not_judged]
    if not any([np.isin(mask, counted).any() for mask in masks]):  # a list: each one is read
        unknown = f" of a class that the segmenter knows (not: {', '.join(not_judged)})" if not_judged else ""
        raise ValueError(f"the masks hold no labelled pixel{unknown}, only unknown ones: there is nothing to score.")


def choose_stems(stems: list[str], count: int | None) -> list[str]:
    """So many stems at even distances."""
    if count is None or count >= len(stems):
        return stems
    return [stems[place * len(stems) // count] for place in range(count)]


def check_output(output: Path, settings: EvaluationSettings) -> None:
    """Refuse a folder with results of other settings, or with anything that is no evaluation's."""
    if not output.exists():
        return
    file = output / RESULTS_FILE
    if not file.is_file():
        names = {path.name for path in output.iterdir()}
        # without the lock no evaluation began here: a folder called "masks" is the user's, and ours would replace it
        ours = OURS if LOCK_FILE in names else ()
        foreign = sorted(name for name in names if name not in ours and not name.startswith("."))
        if foreign:
            raise ValueError(
                f"--output '{output}' is not empty and was not made by evaluate (it holds {foreign[0]}); name another."
            )
        return
    try:
        there = dict(json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"'{file}' holds no results of evaluate ({err}); name another --output.") from err
    now = settings.record()
    different = [
        f"{name}: {there.get(name)} there, {now.get(name)} now"
        for name in sorted({*there, *now} - set(NOT_COMPARED))
        if there.get(name) != now.get(name)
    ]
    if different:
        raise ValueError(
            f"--output '{output}' holds an evaluation with other settings ({'; '.join(different)}). Name another "
            "folder."
        )


def write_masks(folder: Path, pairs: PairDataset, stems: list[str]) -> None:
    """Lay out the masks that images are made from, and no others."""
    index_of = {stem: index for index, stem in enumerate(pairs.stems)}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in stems:
            path.unlink()
    for stem in stems:
        save_png(folder / f"{stem}.png", pairs.labels.decode(pairs[index_of[stem]]["mask"]))


def made_images(folder: Path, pairs: PairDataset, stems: list[str], settings: EvaluationSettings) -> ImageSet:
    """The images that this evaluation asked for; an earlier one may have made more of the same."""
    images = generated_images(folder, pairs)
    wanted = {f"{stem}_{index}" for stem in stems for index in range(settings.num_images_per_mask)}
    return images.subset([place for place, name in enumerate(images.names) if name in wanted])


def code_commit() -> str | None:
    """Return the git commit of this code, where it runs from a checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return found.stdout.strip()


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package and of libraries, by name.

    Example:
        >>> sorted(versions("torch", "transformers"))
        ['semseg_diffusers', 'torch', 'transformers']
    """
    return {"semseg_diffusers": package_version()} | {
        name: importlib.import_module(name).__version__ for name in libraries
    }
