"""Evaluates a model, or a folder of generated images, against the real images of a dataset."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import GENERATION_FILE
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluation_page import collect_pictures, write_report
from semseg_diffusers.evaluation.features import (
    NETWORK_ERRORS,
    PAPER_FEATURES,
    STANDARD_INCEPTION,
    FeatureExtractor,
    is_paper_features,
    load_extractor,
    reason_of,
)
from semseg_diffusers.evaluation.filtering.rules import read_filter
from semseg_diffusers.evaluation.inference import cached_inference
from semseg_diffusers.evaluation.inputs import (
    EvaluationData,
    ImageSet,
    generated_images,
    load_real_data,
    real_images,
)
from semseg_diffusers.evaluation.memorization import Thumbnails
from semseg_diffusers.evaluation.metrics import PredictedImages
from semseg_diffusers.evaluation.results import Features, all_figures, code_commit, fidelity_comparisons, versions
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import DTYPES, load_model
from semseg_diffusers.generation.plan import target_size
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.reports.evaluation_text import results_table
from semseg_diffusers.utils.distributed import Processes, run_distributed
from semseg_diffusers.utils.files import LOCK_FILE, exclusive_folder, write_text
from semseg_diffusers.utils.images import save_png


RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"
OURS = (RESULTS_FILE, PAGE_FILE, "masks", "generated", "cache")  # written to the output folder
NOT_COMPARED = ("output", "batch_size")  # settings that change no result


# Networks and checks -------------------------------------------------------------------------------------------------


def load_networks(
    settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device
) -> tuple[Judge, list[FeatureExtractor]]:
    """Load the segmenter and the feature networks, and try each on an image of the dataset's size."""
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
                f"{name} cannot read images of {height} x {width} (height x width), the size of the real images: "
                f"{reason_of(err)}"
            ) from err
    return judge, extractors


def with_paper_features(names: Sequence[str]) -> list[str]:
    """Return the names, plus the first 64 features if the standard Inception is among them, for the paper's metric.

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
    """Load the pipeline; raise if it generates other classes or another size than the dataset has."""
    dtype, variant = DTYPES[settings.dtype], settings.variant
    pipeline = load_model(settings.model, settings.revision, settings.scheduler, dtype, device, variant=variant)
    labels = LabelSet.from_config(pipeline.unet.config)
    if labels != pairs.labels:
        raise ValueError(
            f"'{settings.model}' generates other classes ({', '.join(labels.names)}) than '{settings.dataset}' has "
            f"({', '.join(pairs.labels.names)}): evaluate a model on the dataset it was trained on, or on this one "
            "prepared again with --map_to and the model's label set (a preset, or its unet/config.json)."
        )
    size = target_size(pipeline, settings.sampling)
    if size != pairs.resolution:
        raise ValueError(
            f"expected one size; '{settings.model}' generates {size[0]} x {size[1]}, '{settings.dataset}' has "
            f"{pairs.resolution[0]} x {pairs.resolution[1]} (height x width). Prepare the dataset again with "
            f"--resolution {size[0]}x{size[1]}."
        )
    return pipeline


def check_masks(masks: Iterable[np.ndarray], labels: LabelSet, not_judged: Sequence[str]) -> None:
    """Raise for masks (H, W) that cannot be read, or without a single pixel to score."""
    counted = [index for index, name in enumerate(labels.names) if name not in not_judged]
    if not any([np.isin(mask, counted).any() for mask in masks]):  # a list: each one is read
        unknown = f" of a class that the segmenter knows (not: {', '.join(not_judged)})" if not_judged else ""
        raise ValueError(f"the masks hold no labelled pixel{unknown}, only unknown ones: there is nothing to score.")


def choose_stems(stems: list[str], count: int | None) -> list[str]:
    """Return `count` evenly spaced stems."""
    if count is None or count >= len(stems):
        return stems
    return [stems[index * len(stems) // count] for index in range(count)]


def check_output(output: Path, settings: EvaluationSettings) -> None:
    """Raise for a folder with results of other settings, or with anything but an evaluation."""
    if not output.exists():
        return
    file = output / RESULTS_FILE
    if not file.is_file():
        names = {path.name for path in output.iterdir()}
        # without the lock no evaluation started here: a folder called "masks" is the user's, and ours would replace it
        ours = OURS if LOCK_FILE in names else ()
        foreign = sorted(name for name in names if name not in ours and not name.startswith("."))
        if foreign:
            raise ValueError(
                f"--output '{output}' is not empty and was not made by evaluate (it holds {foreign[0]}). Choose "
                "another."
            )
        return
    try:
        saved = dict(json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"'{file}' holds no results of evaluate ({err}). Choose another --output.") from err
    current = settings.record()
    different = [
        f"{name}: {saved.get(name)} there, {current.get(name)} now"
        for name in sorted({*saved, *current} - set(NOT_COMPARED))
        if saved.get(name) != current.get(name)
    ]
    if different:
        raise ValueError(
            f"--output '{output}' holds an evaluation with other settings ({'; '.join(different)}). Choose another "
            "folder."
        )


def write_masks(folder: Path, pairs: PairDataset, stems: list[str]) -> None:
    """Write the masks to generate from, and remove all others."""
    index_of = {stem: index for index, stem in enumerate(pairs.stems)}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in stems:
            path.unlink()
    for stem in stems:
        save_png(folder / f"{stem}.png", pairs.labels.decode(pairs[index_of[stem]]["mask"]))


# The evaluation ------------------------------------------------------------------------------------------------------


class Clock:
    """Start time and durations of the parts of this call; work of interrupted calls is not counted."""

    def __init__(self):
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._start = time.monotonic()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time spent in the block to a part."""
        start = time.monotonic()
        yield
        self._parts[part] = round(self._parts.get(part, 0.0) + time.monotonic() - start, 2)

    def seconds(self) -> dict[str, float]:
        """Return the duration of each part, and in total."""
        return {**self._parts, "total": round(time.monotonic() - self._start, 2)}


def evaluate(
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    processes: Processes | None = None,
    show_progress: bool = False,
) -> dict[str, Any] | None:
    """Evaluate images against real ones, and write results and page. Called by every process of a launch.

    All inputs are checked before the first image is generated. The same call resumes an interrupted run without
    repeating finished work.

    Args:
        settings: of the evaluation.
        device: of this process.
        processes: that share the work, from `join_processes`; by default this one alone.
        show_progress: show progress bars on stderr.

    Returns:
        the content of `results.json` in the main process; None in the others.

    Raises:
        ValueError: settings, data and networks do not match; an output folder with other content.
        OSError: unavailable files or weights.
        PeerError: another process failed.
    """
    processes = processes or Processes()
    output = Path(settings.output)
    clock = Clock()

    # 1. Load data and networks, and check everything
    pairs, train, train_missing = load_real_data(settings, processes)
    judge, extractors = processes.run_on_all_ranks(lambda: load_networks(settings, pairs, device))
    pipeline, filtered_by = None, None
    if settings.model is not None:
        pipeline = processes.run_on_all_ranks(lambda: load_generator(settings, pairs, device))
        stems = choose_stems(sorted(pairs.stems), settings.num_masks)
        num_generated = len(stems) * settings.num_images_per_mask
    else:
        generated = processes.run_on_all_ranks(lambda: generated_images(settings.generated, pairs))
        filter_record = processes.run_on_all_ranks(lambda: read_filter(settings.generated)) or {}
        filtered_by = filter_record.get("segmenter_sha256")
        stems, num_generated = sorted(set(generated.stems)), len(generated)

    def check() -> None:
        if len(stems) < 2:
            raise ValueError(f"expected two or more masks, to score images against masks of others; got {len(stems)}.")
        if settings.features:
            fidelity_comparisons(settings, len(pairs), 0 if train is None else len(train), num_generated)
        index_of = {stem: index for index, stem in enumerate(pairs.stems)}
        masks_of_images = (
            (generated.mask(index).numpy() for index in range(len(generated)))
            if settings.model is None
            else (pairs.mask(index_of[stem]) for stem in stems)
        )
        for masks in (masks_of_images, map(pairs.mask, range(len(pairs)))):
            check_masks(masks, pairs.labels, judge.not_judged)

    processes.run_in_main(check)

    with contextlib.ExitStack() as stack:
        # 2. Lock the output folder
        def open_output() -> None:
            check_output(output, settings)
            stack.enter_context(exclusive_folder(output, "evaluating into"))
            if pipeline is not None:
                write_masks(output / "masks", pairs, stems)

        processes.run_in_main(open_output)

        def infer(
            network: Callable[[torch.Tensor], torch.Tensor], identity: dict, images: ImageSet | None, title: str
        ) -> torch.Tensor | None:
            if images is None:
                return None
            return cached_inference(
                network,
                images,
                identity={**identity, "dtype": settings.dtype},
                folder=output / "cache",
                batch_size=settings.batch_size,
                processes=processes,
                title=title if show_progress else None,
            )

        # 3. Run the networks on the real images: an unreadable one ends the run before any image is generated
        real = real_images(pairs)
        segmenter, reader = judge.describe(pairs.resolution), judge.identity(pairs.resolution)
        networks = [(network, network.describe()) for network in (*extractors, Thumbnails())]
        with clock.measure("reading"):
            predictions_of_real = infer(judge.read, reader, real, "segmenting real images")
        with clock.measure("features"):
            of_real = [infer(network, what, real, f"{what['name']}: real images") for network, what in networks]
            of_train = [infer(network, what, train, f"{what['name']}: training images") for network, what in networks]

        # 4. Generate the images, and run the networks on them
        with clock.measure("generation"):
            if pipeline is not None:
                generate_dataset(
                    pipeline,
                    output / "masks",
                    output / "generated",
                    settings.sampling,
                    mask_labels=pairs.labels,
                    num_images_per_mask=settings.num_images_per_mask,
                    batch_size=settings.batch_size,
                    contact_sheet_rows=0,
                    show_progress=show_progress,
                    processes=processes,
                )
                del pipeline
                generated = processes.run_on_all_ranks(lambda: generated_images(output / "generated", pairs))
                # an earlier run may have generated more of the same
                expected = {f"{stem}_{index}" for stem in stems for index in range(settings.num_images_per_mask)}
                generated = generated.subset([i for i, name in enumerate(generated.names) if name in expected])
        data = EvaluationData(real, train, train_missing, generated, filtered_by)
        with clock.measure("reading"):
            predictions = infer(judge.read, reader, generated, "segmenting generated images")
        with clock.measure("features"):
            of_images = [infer(network, what, generated, f"{what['name']}: generated") for network, what in networks]

        # 5. Write results and page, once
        def finish() -> dict[str, Any]:
            described = [what for _, what in networks]
            features = [Features(*parts) for parts in zip(described, of_real, of_images, of_train, strict=True)]
            results = {
                "kind": "evaluation",
                "settings": settings.record(),
                "seed": settings.seed,
                "commit": code_commit(),
                "versions": versions("torch", "transformers", "diffusers", "torchmetrics"),
                "started": clock.started,
                "resolution": list(pairs.resolution),
                "generation": _generation_record(settings, output),
                "segmenter": segmenter,
                **all_figures(
                    settings, data, judge, _predicted(real, predictions_of_real), _predicted(generated, predictions),
                    features,
                ),
                "seconds": clock.seconds(),
            }  # fmt: skip
            pictures = collect_pictures(results, data.real, data.train, data.generated, predictions)
            write_report(output / PAGE_FILE, results, pictures)
            write_text(output / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
            return results

        return processes.run_in_main(finish)


def _predicted(images: ImageSet, predictions: torch.Tensor) -> PredictedImages:
    return PredictedImages(images.stems, predictions, torch.stack([images.mask(i) for i in range(len(images))]))


def _generation_record(settings: EvaluationSettings, output: Path) -> dict[str, Any] | None:
    """Return the content of generation.json, if `generate` made the images."""
    folder = output / "generated" if settings.model is not None else Path(settings.generated)
    file = folder / GENERATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def run(settings: EvaluationSettings) -> int:
    """Evaluate, together with the other processes of a launch, and print the table; returns the exit code."""

    def work(processes: Processes, device: torch.device) -> None:
        results = evaluate(settings, device=device, processes=processes, show_progress=True)
        if results is not None:
            notes = "".join(f"{note}\n" for note in results["notes"])
            sys.stdout.write(f"{results_table(results)}\n{notes}results and page: {settings.output}/{PAGE_FILE}\n")

    return run_distributed(settings.device, work)
