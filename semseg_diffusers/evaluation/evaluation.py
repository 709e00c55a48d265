"""An evaluation from beginning to end: data -> networks -> images -> what networks say of them -> figures -> page.
The figures stand in `agreement.py`, `fidelity.py`, `diversity.py` and `neighbours.py`; here is only their order."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.data.layout import GENERATION_FILE
from semseg_diffusers.evaluation.agreement import ReadImages, score_agreement
from semseg_diffusers.evaluation.diversity import why_no_diversity
from semseg_diffusers.evaluation.features import is_paper_features
from semseg_diffusers.evaluation.figures import (
    Features,
    agreement_figures,
    diversity_figures,
    example_figures,
    fidelity_figures,
    neighbour_figures,
    paper_figures,
)
from semseg_diffusers.evaluation.filtering.independence import read_filter
from semseg_diffusers.evaluation.image_sets import ImageSet, generated_images, photos
from semseg_diffusers.evaluation.inputs import (
    PAGE_FILE,
    RESULTS_FILE,
    Data,
    check_counts,
    check_masks,
    check_output,
    choose_stems,
    load_data,
    load_generator,
    load_networks,
    made_images,
    write_masks,
)
from semseg_diffusers.evaluation.neighbours import Thumbnails
from semseg_diffusers.evaluation.page import collect_pictures
from semseg_diffusers.evaluation.passes import network_pass
from semseg_diffusers.evaluation.provenance import code_commit, versions
from semseg_diffusers.evaluation.report import write_report
from semseg_diffusers.evaluation.segmenters.judge import Judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.dataset import generate_dataset
from semseg_diffusers.generation.processes import Processes
from semseg_diffusers.launch import sole_owner
from semseg_diffusers.pipelines.saved_files import write_text


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
    pairs, train, why_no_train = load_data(settings, processes)
    judge, extractors = processes.agree(lambda: load_networks(settings, pairs, device))
    pipeline = None
    if settings.model is not None:
        pipeline = processes.agree(lambda: load_generator(settings, pairs, device))
        stems = choose_stems(sorted(pairs.stems), settings.num_masks)
        num_generated = len(stems) * settings.num_images_per_mask
    else:
        generated = processes.agree(lambda: generated_images(settings.generated, pairs))
        filter_record = processes.agree(lambda: read_filter(settings.generated)) or {}
        stems, num_generated = sorted(set(generated.stems)), len(generated)

    def check() -> None:
        check_counts(settings, len(pairs), 0 if train is None else len(train), len(stems), num_generated)
        index_of = {stem: index for index, stem in enumerate(pairs.stems)}
        made_from = (
            (generated.mask(index).numpy() for index in range(len(generated)))
            if settings.model is None
            else (pairs.mask(index_of[stem]) for stem in stems)
        )
        for masks in (made_from, map(pairs.mask, range(len(pairs)))):
            check_masks(masks, pairs.labels, judge.not_judged)

    processes.agree_in_main(check)

    with contextlib.ExitStack() as held:
        # 2. The output folder, which the main process keeps to this run
        def take_output() -> None:
            check_output(output, settings)
            held.enter_context(sole_owner(output, "evaluating into"))
            if pipeline is not None:
                write_masks(output / "masks", pairs, stems)

        processes.agree_in_main(take_output)

        def over(
            network: Callable[[torch.Tensor], torch.Tensor], what: dict[str, Any], images: ImageSet | None, title: str
        ) -> torch.Tensor | None:
            if images is None:
                return None
            return network_pass(
                network,
                images,
                identity={**what, "dtype": settings.dtype},
                folder=output / "cache",
                batch_size=settings.batch_size,
                processes=processes,
                title=title if show_progress else None,
            )

        # 3. What the networks say of real photos: one that cannot be read ends the run before an image is made
        real = photos(pairs)
        segmenter, reader = judge.describe(pairs.resolution), judge.identity(pairs.resolution)
        networks = [(network, network.describe()) for network in (*extractors, Thumbnails())]
        with clock.measure("reading"):
            read_real = over(judge.read, reader, real, "reading photos")
        with clock.measure("features"):
            of_real = [over(network, what, real, f"{what['name']}: real photos") for network, what in networks]
            of_train = [over(network, what, train, f"{what['name']}: training photos") for network, what in networks]

        # 4. The images, and what the networks say of them
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
                generated = processes.agree(lambda: made_images(output / "generated", pairs, stems, settings))
        filtered_by = filter_record.get("segmenter_sha256") if settings.model is None else None
        data = Data(real, train, why_no_train, generated, filtered_by)
        with clock.measure("reading"):
            read_generated = over(judge.read, reader, generated, "reading generated images")
        with clock.measure("features"):
            of_images = [over(network, what, generated, f"{what['name']}: generated") for network, what in networks]

        # 5. Figures, page and results, once
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
                **_figures(
                    settings, data, judge, _read(data.real, read_real), _read(data.generated, read_generated), features
                ),
                "seconds": clock.seconds(),
            }
            pictures = collect_pictures(results, data.real, data.train, data.generated, read_generated)
            write_report(output / PAGE_FILE, results, pictures)
            write_text(output / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
            return results

        return processes.agree_in_main(finish)


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
    paper = next((entry for entry in networks if is_paper_features(entry.network["name"])), None)
    networks = [entry for entry in networks if entry is not paper]
    agreement = score_agreement(read_real, read_generated, data.generated.labels, settings.seed, judge.not_judged)
    judged = zip(data.generated.stems, agreement.image_mean_iou, strict=True)
    unlabelled = list(dict.fromkeys(stem for stem, mean_iou in judged if mean_iou is None))
    notes = []
    if data.train is None:
        notes.append(
            f"No training photos, so no search for copies of them, and no floor of theirs: {data.why_no_train}"
        )
    if not networks:
        notes.append("Fidelity and diversity were left away: no feature network for them was given (--features).")
    elif (why := why_no_diversity(data.generated.stems)) is not None:
        notes.append(f"Diversity was not measured: {why}")
    if data.filtered_by == judge.weights_sha256:
        notes.append(
            "The images were filtered by the very network that reads them here: it was let choose what it likes, so "
            "its agreement is no evidence. Evaluate with another --segmenter."
        )
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
        self._parts[part] = round(self._parts.get(part, 0.0) + time.monotonic() - begin, 2)

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "total": round(time.monotonic() - self._begin, 2)}


def _read(images: ImageSet, predictions: torch.Tensor) -> ReadImages:
    return ReadImages(images.stems, predictions, torch.stack([images.mask(index) for index in range(len(images))]))


def _generation_record(settings: EvaluationSettings, output: Path) -> dict[str, Any] | None:
    """How the images were made, where `generate` made them."""
    folder = output / "generated" if settings.model is not None else Path(settings.generated)
    file = folder / GENERATION_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
