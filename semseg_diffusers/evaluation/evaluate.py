"""Evaluates a model, or a folder of generated images, against the real images of a dataset.

Masks -> generated images -> what networks read in them and in real images -> metrics with floor and ceiling
(`results.py`) -> results.json and a page.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.dataset_format import GENERATION_FILE, evenly_spaced
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluation_page import collect_images, write_report
from semseg_diffusers.evaluation.features import FeatureExtractor, check_reads, load_extractor, with_paper_features
from semseg_diffusers.evaluation.filtering.rules import read_filter
from semseg_diffusers.evaluation.inputs import (
    ImageSet,
    RealData,
    cached_inference,
    generated_images,
    load_real_data,
)
from semseg_diffusers.evaluation.results import Outputs, assemble_results, fidelity_comparisons
from semseg_diffusers.evaluation.segmentation.judge import Judge, load_judge
from semseg_diffusers.evaluation.segmentation.segmenter import ensure_segmenter
from semseg_diffusers.evaluation.settings import SEGMENTER_FOLDER, EvaluationSettings
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import DTYPES, load_model, load_upscaler
from semseg_diffusers.generation.near_copies import THUMBNAIL, thumbnails
from semseg_diffusers.generation.plan import enlarged_size, target_size
from semseg_diffusers.generation.settings import Inputs
from semseg_diffusers.reports.findings import results_table
from semseg_diffusers.utils.distributed import Processes, run_distributed
from semseg_diffusers.utils.files import LOCK_FILE, exclusive_folder, read_json, write_json
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.settings import differences


Network = Callable[[torch.Tensor], torch.Tensor]
RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"
OURS = (RESULTS_FILE, PAGE_FILE, "masks", "generated", "cache", SEGMENTER_FOLDER)  # written to the output folder
NOT_COMPARED = ("output", "batch_size")  # settings that change no result
THUMBNAILS = {"name": "thumbnails", "architecture": "grey, mean of each area", "num_features": THUMBNAIL**2}
SAME_NETWORK_NOTE = (
    "The images were filtered by the network that segments them here: it selected what it agrees with, so its "
    "agreement is no evidence. Evaluate with another --segmenter."
)


def load_segmenter(settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device) -> Judge:
    """Load the segmenter, and try it on an image of the dataset's size."""
    judge = load_judge(
        settings.segmenter_name,
        pairs.labels,
        revision=settings.segmenter_revision,
        input_size=settings.segmenter_size,
        device=device,
        dtype=DTYPES[settings.dtype],
    )
    check_reads(judge.read, f"--segmenter '{settings.segmenter_name}'", pairs.resolution)
    return judge


def load_features(
    settings: EvaluationSettings, names: Sequence[str], pairs: PairDataset, device: str | torch.device
) -> dict[str, FeatureExtractor]:
    """Load the feature networks of these names, and try each on an image of the dataset's size."""
    extractors = {name: load_extractor(name, device=device, dtype=DTYPES[settings.dtype]) for name in names}
    for name, extractor in extractors.items():
        check_reads(extractor, f"--features '{name}'", pairs.resolution)
    return extractors


def load_generator(settings: EvaluationSettings, pairs: PairDataset, device: str | torch.device) -> tuple[Any, Any]:
    """Load pipeline and upscaler; raise if they make other classes or another size than the dataset has."""
    assert settings.model is not None, "only called for a model"
    dtype, variant = DTYPES[settings.dtype], settings.variant
    pipeline: Any = load_model(settings.model, settings.revision, settings.scheduler, dtype, device, variant=variant)
    labels = LabelSet.from_config(pipeline.unet.config)
    if labels != pairs.labels:
        raise ValueError(
            f"'{settings.model}' generates other classes ({', '.join(labels.names)}) than '{settings.dataset}' has "
            f"({', '.join(pairs.labels.names)}): evaluate a model on the dataset it was trained on, or on this one "
            "prepared again with --map_to and the model's label set (a preset, or its unet/config.json)."
        )
    upscaler = None
    if settings.upscaler is not None:
        upscaler = load_upscaler(settings.upscaler, settings.upscaler_revision, pipeline)
    size = enlarged_size(upscaler, target_size(pipeline, settings.sampling))
    if size != pairs.resolution:
        raise ValueError(
            f"expected one size; '{settings.model}' generates {size[0]} x {size[1]}, '{settings.dataset}' has "
            f"{pairs.resolution[0]} x {pairs.resolution[1]} (height x width). Prepare the dataset again with "
            f"--resolution {size[0]}x{size[1]}."
        )
    pipeline.check_scheduler(pipeline.resolve_sampling(settings.num_inference_steps)[0])
    return pipeline, upscaler


def check_inputs(settings: EvaluationSettings, data: RealData, masks: ImageSet, not_judged: Sequence[str]) -> None:
    """Raise for sets that are too small, and for masks (to generate from, or of the images) with nothing to score."""
    num_masks = len(set(masks.stems))
    if num_masks < 2:
        raise ValueError(f"expected two or more masks, to score images against masks of others; got {num_masks}.")
    if settings.features:
        num_generated = len(masks) * settings.num_images_per_mask  # 1 where the images exist
        fidelity_comparisons(settings, len(data.real), len(data.train or ()), num_generated)
    counted = [index for index, name in enumerate(data.pairs.labels.names) if name not in not_judged]
    for images in (masks, data.real):
        if not any([np.isin(images.mask(index), counted).any() for index in range(len(images))]):  # reads each one
            unknown = f" of a class that the segmenter knows (not: {', '.join(not_judged)})" if not_judged else ""
            raise ValueError(
                f"the masks hold no labelled pixel{unknown}, only unknown ones: there is nothing to score."
            )


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
        saved = dict(read_json(file)["settings"])
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"'{file}' holds no results of evaluate ({err}). Choose another --output.") from err
    same = {name: saved.get(name) for name in NOT_COMPARED}
    if different := differences(saved, settings.record() | same):
        raise ValueError(
            f"--output '{output}' holds an evaluation with other settings ({different}). Choose another folder."
        )


def write_masks(folder: Path, images: ImageSet) -> None:
    """Write the masks to generate from, and remove all others."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in images.stems:
            path.unlink()
    for index, stem in enumerate(images.stems):
        save_png(folder / f"{stem}.png", images.labels.decode(images.mask(index)))


@contextlib.contextmanager
def measure(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent in the block to a part; work of interrupted calls is not counted."""
    start = time.monotonic()
    yield
    seconds[part] = round(seconds.get(part, 0.0) + time.monotonic() - start, 2)


def _generate(
    settings: EvaluationSettings,
    pipeline: Any,
    upscaler: Any,
    pairs: PairDataset,
    masks: ImageSet,
    output: Path,
    processes: Processes,
    show_progress: bool,
) -> ImageSet:
    """Generate images from the masks in `output/masks`."""
    generate_dataset(
        pipeline,
        output / "masks",
        output / "generated",
        settings.sampling,
        inputs=Inputs(upscaler=upscaler, upscaler_name=settings.upscaler),
        mask_labels=pairs.labels,
        num_images_per_mask=settings.num_images_per_mask,
        batch_size=settings.batch_size,
        contact_sheet_rows=0,
        show_progress=show_progress,
        processes=processes,
    )
    generated = processes.run_on_all_ranks(lambda: generated_images(output / "generated", pairs))
    # an earlier run may have generated more of the same
    expected = {f"{stem}_{index}" for stem in masks.stems for index in range(settings.num_images_per_mask)}
    return generated.subset([index for index, name in enumerate(generated.names) if name in expected])


def evaluate(
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    processes: Processes | None = None,
    show_progress: bool = False,
) -> dict[str, Any] | None:
    """Evaluate images against real ones, and write results and page. Called by every process of a launch.

    All inputs are checked before a segmenter is trained or the first image is generated. The same call resumes an
    interrupted run without repeating finished work.

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
    started, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    seconds: dict[str, float] = {}

    # 1. Load real images and networks, and check everything. Without --segmenter, it is trained below
    data = load_real_data(settings, processes)
    pairs, real, train = data.pairs, data.real, data.train
    names = with_paper_features(settings.features)
    later = [name for name in names if settings.segmenter is None and name == settings.segmenter_name]
    judge = None
    if settings.segmenter is not None:
        judge = processes.run_on_all_ranks(lambda: load_segmenter(settings, pairs, device))
    now = [name for name in names if name not in later]
    loaded = processes.run_on_all_ranks(lambda: load_features(settings, now, pairs, device))
    pipeline, upscaler, filter_record = None, None, None
    if settings.generated is None:
        given = settings
        pipeline, upscaler = processes.run_on_all_ranks(lambda: load_generator(given, pairs, device))
        steps, scale = pipeline.resolve_sampling(given.num_inference_steps, given.guidance_scale)
        settings = replace(given, num_inference_steps=steps, guidance_scale=scale)  # results hold the numbers
        masks = real.subset(evenly_spaced(range(len(real)), settings.num_masks))
    else:
        folder = settings.generated
        masks = generated = processes.run_on_all_ranks(lambda: generated_images(folder, pairs))
        filter_record = processes.run_on_all_ranks(lambda: read_filter(folder))
    not_judged = () if judge is None else judge.not_judged
    processes.run_in_main(lambda: check_inputs(settings, data, masks, not_judged))

    with contextlib.ExitStack() as stack:
        # 2. Lock the output folder, and train the segmenter if none is given
        def open_output() -> None:
            check_output(output, settings)
            stack.enter_context(exclusive_folder(output, "evaluating into"))
            if settings.segmenter is None:
                name, split = settings.segmenter_name, settings.train_split
                ensure_segmenter(settings.default_segmenter(name, split, 0, str(device)))
            if settings.generated is None:
                write_masks(output / "masks", masks)

        processes.run_in_main(open_output)
        if judge is None:
            judge = processes.run_on_all_ranks(lambda: load_segmenter(settings, pairs, device))
            loaded |= processes.run_on_all_ranks(lambda: load_features(settings, later, pairs, device))
        extractors = [loaded[name] for name in names]

        # 3. Run the networks on the real images: an unreadable one ends the run before any image is generated
        networks: list[tuple[str, Network, dict[str, Any]]] = [  # part of the time, network, identity
            ("reading", judge.read, judge.identity(pairs.resolution)),
            *(("features", extractor, extractor.describe()) for extractor in extractors),
            ("features", thumbnails, THUMBNAILS),
        ]

        def infer(images: ImageSet, title: str, first: int = 0) -> list[Any]:
            results: list[Any] = [None] * first
            for part, network, identity in networks[first:]:
                with measure(seconds, part):
                    found = cached_inference(
                        network,
                        images,
                        identity={**identity, "dtype": settings.dtype},
                        folder=output / "cache",
                        batch_size=settings.batch_size,
                        processes=processes,
                        title=f"{identity['name']}: {title}" if show_progress else None,
                    )
                results.append(found)
            return results

        of_real = infer(real, "real images")
        of_train = [None] * len(networks) if train is None else infer(train, "training images", first=1)

        # 4. Generate the images, and run the networks on them
        with measure(seconds, "generation"):
            if pipeline is not None:
                generated = _generate(settings, pipeline, upscaler, pairs, masks, output, processes, show_progress)
                pipeline = upscaler = None  # frees their memory
        of_generated = infer(generated, "generated images")

        # 5. Score them, and write results and page, once
        def finish() -> dict[str, Any]:
            descriptions = [judge.describe(pairs.resolution), *(identity for _, _, identity in networks[1:])]
            tensors = zip(descriptions, of_real, of_generated, of_train, strict=True)
            predictions, *features = (Outputs(*parts) for parts in tensors)
            record = Path(settings.generated or output / "generated") / GENERATION_FILE
            results = {
                "kind": "evaluation",
                "started": started,
                "generation": read_json(record) if record.is_file() else None,
                **assemble_results(settings, data, generated, predictions, features),
                "seconds": {**seconds, "total": round(time.monotonic() - start, 2)},
            }
            if filter_record is not None and filter_record["segmenter_sha256"] == judge.weights_sha256:
                results["notes"].append(SAME_NETWORK_NOTE)
            shown = collect_images(results, real, train, generated, predictions.generated)
            write_report(output / PAGE_FILE, results, shown)
            write_json(output / RESULTS_FILE, results)
            return results

        return processes.run_in_main(finish)


def run(settings: EvaluationSettings) -> int:
    """Evaluate, together with the other processes of a launch, and print the table; returns the exit code."""

    def work(processes: Processes, device: torch.device) -> None:
        results = evaluate(settings, device=device, processes=processes, show_progress=True)
        if results is not None:
            notes = "".join(f"{note}\n" for note in results["notes"])
            sys.stdout.write(f"{results_table(results)}\n{notes}results and page: {settings.output}/{PAGE_FILE}\n")

    return run_distributed(settings.device, work)
