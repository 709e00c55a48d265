"""An evaluation from beginning to end: data -> networks -> images -> what networks say of them -> figures -> page.
The figures stand in `agreement.py`, `fidelity.py`, `diversity.py` and `neighbours.py`; here is only their order."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import GENERATION_FILE
from semseg_diffusers.data.loading import PairDataset, load_pairs
from semseg_diffusers.data.pictures import save_png
from semseg_diffusers.evaluation.agreement import ReadImages, score_agreement
from semseg_diffusers.evaluation.diversity import why_no_diversity
from semseg_diffusers.evaluation.features import PAPER_FEATURES, FeatureExtractor, load_extractor
from semseg_diffusers.evaluation.figures import (
    Features,
    agreement_figures,
    diversity_figures,
    example_figures,
    fidelity_comparisons,
    fidelity_figures,
    neighbour_figures,
    paper_figures,
)
from semseg_diffusers.evaluation.image_sets import ImageSet, generated_images, photos
from semseg_diffusers.evaluation.neighbours import Thumbnails
from semseg_diffusers.evaluation.page import collect_pictures
from semseg_diffusers.evaluation.passes import network_pass
from semseg_diffusers.evaluation.provenance import code_commit, versions
from semseg_diffusers.evaluation.report import write_report
from semseg_diffusers.evaluation.segmenters.judge import Judge, load_judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.dataset import generate_dataset
from semseg_diffusers.generation.plan import DTYPES, load_model, target_size
from semseg_diffusers.generation.processes import Processes
from semseg_diffusers.launch import sole_owner
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline, write_text


RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"
OURS = (RESULTS_FILE, PAGE_FILE, "masks", "generated", "cache")  # what an evaluation leaves in its output folder
NOT_COMPARED = ("output", "batch_size")  # settings that change no figure


@dataclass(frozen=True)
class Data:
    """Real photos, and the images that are held against them."""

    real: ImageSet
    train: ImageSet | None
    why_no_train: str | None
    generated: ImageSet

    def named(self) -> dict[str, ImageSet | None]:
        return {"real photos": self.real, "generated images": self.generated, "training photos": self.train}


def evaluate(
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    processes: Processes | None = None,
    show_progress: bool = False,
) -> dict[str, Any] | None:
    """Evaluate images against real photos, and write results and page. Called by every process of a launch.

    What can be refused is refused before the first image is made: data, weights that are not at hand, sizes, classes.
    A run that was interrupted is continued by the same call; it does not repeat what it had done.

    Args:
        settings: the whole evaluation.
        device: of this process.
        processes: those that share the work, from `join_processes`; by default this one alone.
        show_progress: show bars on stderr.

    Returns:
        what `results.json` holds, in the main process; None in the others.

    Raises:
        ValueError: settings, data and networks do not go together; an output folder that holds something else.
        OSError: files or weights that are not to be had.
        OtherProcessError: another of the processes has failed.
    """
    processes = processes or Processes()
    output = Path(settings.output)
    clock = Clock()

    # 1. Data and networks: all that can be refused
    pairs, train, why_no_train = _load_data(settings, processes)
    judge, extractors = processes.agree(lambda: _load_networks(settings, pairs.labels, device))
    pipeline = None
    if settings.model is not None:
        pipeline = processes.agree(lambda: _load_pipeline(settings, pairs, device))
        stems = _choose(sorted(pairs.stems), settings.num_masks)
        num_generated = len(stems) * settings.num_images_per_mask
    else:
        generated = processes.agree(lambda: generated_images(settings.generated, pairs))
        stems, num_generated = sorted(set(generated.stems)), len(generated)
    _check_counts(settings, len(pairs), 0 if train is None else len(train), len(stems), num_generated)

    with contextlib.ExitStack() as held:
        # 2. The output folder, which the main process keeps to this run
        def take_output() -> None:
            _check_output(output, settings)
            held.enter_context(sole_owner(output, "evaluating into"))
            if pipeline is not None:
                _write_masks(output / "masks", pairs, stems)

        processes.agree(take_output if processes.is_main else lambda: None)

        # 3. Images
        with clock.measure("generation"):
            if pipeline is not None:
                generate_dataset(
                    pipeline,
                    output / "masks",
                    output / "generated",
                    settings.sampling,
                    num_images_per_mask=settings.num_images_per_mask,
                    batch_size=settings.batch_size,
                    contact_sheet_rows=0,
                    show_progress=show_progress,
                    processes=processes,
                )
                del pipeline
                generated = processes.agree(lambda: _made(output / "generated", pairs, stems, settings))
        data = Data(photos(pairs), train, why_no_train, generated)

        # 4. What the networks say of the images
        def over(network: Any, images: ImageSet | None, title: str) -> torch.Tensor | None:
            if images is None:
                return None
            return network_pass(
                network,
                images,
                identity={**network.describe(), "dtype": settings.dtype},
                folder=output / "cache",
                batch_size=settings.batch_size,
                processes=processes,
                title=title if show_progress else None,
            )

        with clock.measure("reading"):
            read_real = over(judge, data.real, "reading photos")
            read_generated = over(judge, data.generated, "reading generated images")
        features = []
        with clock.measure("features"):
            for network in (*extractors, Thumbnails()):
                sets = [over(network, images, f"{network.name}: {name}") for name, images in data.named().items()]
                features.append(Features(network.describe(), *sets) if processes.is_main else None)

        # 5. Figures, page and results, once
        def finish() -> dict[str, Any]:
            results = {
                "kind": "evaluation",
                "settings": settings.record(),
                "seed": settings.seed,
                "commit": code_commit(),
                "versions": versions("torch", "transformers", "diffusers", "torchmetrics"),
                "started": clock.started,
                "resolution": list(pairs.resolution),
                "generation": _generation_record(settings, output),
                "segmenter": judge.describe(),
                **_figures(
                    settings, data, judge, _read(data.real, read_real), _read(data.generated, read_generated), features
                ),
                "seconds": clock.seconds(),
            }
            pictures = collect_pictures(results, data.real, data.train, data.generated, read_generated)
            write_report(output / PAGE_FILE, results, pictures)
            write_text(output / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
            return results

        return processes.agree(finish if processes.is_main else lambda: None)


def _figures(
    settings: EvaluationSettings,
    data: Data,
    judge: Judge,
    read_real: ReadImages,
    read_generated: ReadImages,
    features: list[Features],
) -> dict[str, Any]:
    """All figures, each under the name of its part in `results.json`."""
    *networks, thumbnails = features
    paper = next((entry for entry in networks if entry.network["name"].startswith(PAPER_FEATURES)), None)
    networks = [entry for entry in networks if entry is not paper]
    agreement = score_agreement(read_real, read_generated, data.generated.labels, settings.seed, judge.not_judged)
    unlabelled = [
        name for name, mean_iou in zip(data.generated.names, agreement.image_mean_iou, strict=True) if mean_iou is None
    ]
    notes = []
    if data.train is None:
        notes.append(
            f"No training photos, so no search for copies of them, and no floor of theirs: {data.why_no_train}"
        )
    if not networks:
        notes.append("Fidelity and diversity were left away: no feature network was given (--features).")
    elif (why := why_no_diversity(data.generated.stems)) is not None:
        notes.append(f"Diversity was not measured: {why}")
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} masks hold no labelled pixel that is judged, such as that of {unlabelled[0]}."
        )
    return {
        "data": {
            "num_real": len(data.real),
            "num_train": 0 if data.train is None else len(data.train),
            "num_generated": len(data.generated),
            "num_masks": len(set(data.generated.stems)),
            "masks_without_labels": unlabelled,
        },
        "agreement": agreement_figures(agreement),
        "fidelity": [fidelity_figures(entry, data.generated, settings) for entry in networks],
        "paper_metrics": paper_figures(settings, data.real, data.generated, paper),
        "diversity": diversity_figures(networks, data.generated) if networks else None,
        "neighbours": None
        if data.train is None
        else neighbour_figures(data.generated, data.train, thumbnails, next(iter(networks), None), settings),
        "examples": example_figures(data.generated, agreement.image_mean_iou),
        "notes": notes,
    }


class Clock:
    """When the call began, and how long its parts took; what an earlier call had done is not counted."""

    def __init__(self):
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._begin = time.monotonic()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._parts[part] = round(time.monotonic() - begin, 2)

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "total": round(time.monotonic() - self._begin, 2)}


def _load_data(settings: EvaluationSettings, processes: Processes) -> tuple[PairDataset, ImageSet | None, str | None]:
    """The split, the training photos, and why there are none."""

    def load() -> tuple[PairDataset, ImageSet | None, str | None]:
        pairs = load_pairs(settings.dataset, settings.split)
        _ = photos(pairs)  # refuses sizes that differ
        try:
            train = load_pairs(settings.dataset, settings.train_split)
        except ValueError as err:
            return pairs, None, str(err)
        if train.resolution != pairs.resolution:
            raise ValueError(
                f"the photos of '{settings.split}' are {pairs.resolution}, those of '{settings.train_split}' "
                f"{train.resolution} (height, width); wanted one size. Prepare the data set again."
            )
        return pairs, photos(train), None

    # one process builds the table of `datasets`, then the others find it
    mine = processes.agree(load if processes.is_main else lambda: None)
    return processes.agree(lambda: mine or load())


def _load_networks(
    settings: EvaluationSettings, labels: LabelSet, device: str | torch.device
) -> tuple[Judge, list[FeatureExtractor]]:
    dtype = DTYPES[settings.dtype]
    judge = load_judge(
        settings.segmenter,
        labels,
        revision=settings.segmenter_revision,
        input_size=settings.segmenter_size,
        device=device,
        dtype=dtype,
    )
    names = list(settings.features)
    standard = next(
        (name for name in names if name.startswith("inception") and not name.startswith(PAPER_FEATURES)), None
    )
    if standard is not None and not any(name.startswith(PAPER_FEATURES) for name in names):
        names.append(standard.replace("inception", PAPER_FEATURES, 1))  # the paper's figure comes with it
    return judge, [load_extractor(name, device=device, dtype=dtype) for name in names]


def _load_pipeline(
    settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device
) -> MaskGuidedDDPMPipeline:
    """The pipeline, if it draws the classes of the data set at the size of its photos."""
    pipeline = load_model(settings.model, settings.revision, settings.scheduler, DTYPES[settings.dtype], device)
    labels = LabelSet.from_config(pipeline.unet.config)
    if labels != pairs.labels:
        raise ValueError(
            f"'{settings.model}' draws other classes ({', '.join(labels.names)}) than '{settings.dataset}' has "
            f"({', '.join(pairs.labels.names)}): evaluate a model on the data set it was trained on."
        )
    size = target_size(pipeline, settings.sampling)
    if size != pairs.resolution:
        raise ValueError(
            f"'{settings.model}' draws {size[0]} x {size[1]} pixels, the photos of '{settings.dataset}' are "
            f"{pairs.resolution[0]} x {pairs.resolution[1]} (height x width); wanted one size. Prepare the data set "
            f"again with --resolution {size[0]}x{size[1]}."
        )
    return pipeline


def _check_counts(
    settings: EvaluationSettings, num_real: int, num_train: int, num_masks: int, num_generated: int
) -> None:
    """Refuse what there are too few images for, before any is made."""
    if num_masks < 2:
        raise ValueError(
            f"an evaluation needs two masks at least, to score images against the masks of others; got {num_masks}."
        )
    if settings.features:
        fidelity_comparisons(settings, num_real, num_train, num_generated)


def _choose(stems: list[str], count: int | None) -> list[str]:
    """So many stems at even distances."""
    if count is None or count >= len(stems):
        return stems
    return [stems[place * len(stems) // count] for place in range(count)]


def _check_output(output: Path, settings: EvaluationSettings) -> None:
    """Refuse a folder with results of other settings, or with anything that is no evaluation's."""
    if not output.exists():
        return
    file = output / RESULTS_FILE
    if not file.is_file():
        foreign = [path.name for path in output.iterdir() if path.name not in OURS and not path.name.startswith(".")]
        if foreign:
            raise ValueError(
                f"--output '{output}' is not empty and was not made by evaluate (it holds {foreign[0]}); name another."
            )
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))["settings"]
    except (json.JSONDecodeError, KeyError, TypeError) as err:
        raise ValueError(f"'{file}' holds no results of evaluate ({err}); name another --output.") from err
    now = settings.record()
    different = [
        f"{name}: {there.get(name)} there, {now.get(name)} now"
        for name in sorted({*there, *now} - set(NOT_COMPARED))
        if there.get(name) != now.get(name)
    ]
    if different:
        raise ValueError(
            f"--output '{output}' holds an evaluation with other settings ({'; '.join(different)}). Name another folder."
        )


def _write_masks(folder: Path, pairs: PairDataset, stems: list[str]) -> None:
    """Lay out the masks that images are made from, and no others."""
    index_of = {stem: index for index, stem in enumerate(pairs.stems)}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in stems:
            path.unlink()
    for stem in stems:
        save_png(folder / f"{stem}.png", pairs.labels.decode(pairs[index_of[stem]]["mask"]))


def _made(folder: Path, pairs: PairDataset, stems: list[str], settings: EvaluationSettings) -> ImageSet:
    """The images that this evaluation asked for; an earlier one may have made more of the same."""
    images = generated_images(folder, pairs)
    wanted = {f"{stem}_{index}" for stem in stems for index in range(settings.num_images_per_mask)}
    return images.subset([place for place, name in enumerate(images.names) if name in wanted])


def _read(images: ImageSet, predictions: torch.Tensor) -> ReadImages:
    return ReadImages(images.stems, predictions, torch.stack([images.mask(index) for index in range(len(images))]))


def _generation_record(settings: EvaluationSettings, output: Path) -> dict[str, Any] | None:
    """How the images were made, where `generate` made them."""
    folder = output / "generated" if settings.model is not None else Path(settings.generated)
    file = folder / GENERATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
