"""Evaluate a model, or a folder of generated images, against the real photos of a data set.

Agreement with the masks lies between a ceiling (real photos) and a floor (masks of others); fidelity stands beside its
own floor; samples of one mask are compared, and training photos searched for copies. results.json holds all numbers,
report.html shows them with pictures. The same command goes on where an interrupted one ended.

Several processes, GPUs or machines share the work:
  accelerate launch [--config_file FILE] -m semseg_diffusers.evaluation --dataset ... (the options below)
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.data.dataset import add_column_arguments
from semseg_diffusers.data.dataset_format import GENERATION_FILE
from semseg_diffusers.data.options import parse_resolution
from semseg_diffusers.evaluation.diversity import why_no_diversity
from semseg_diffusers.evaluation.features import is_paper_features
from semseg_diffusers.evaluation.filtering.rules import read_filter
from semseg_diffusers.evaluation.image_sets import ImageSet, generated_images, photos
from semseg_diffusers.evaluation.inference import cached_inference
from semseg_diffusers.evaluation.inputs import (
    PAGE_FILE,
    RESULTS_FILE,
    Data,
    check_counts,
    check_masks,
    check_output,
    choose_stems,
    code_commit,
    load_data,
    load_generator,
    load_networks,
    made_images,
    versions,
    write_masks,
)
from semseg_diffusers.evaluation.memorization import Thumbnails
from semseg_diffusers.evaluation.metrics import ReadImages, score_agreement
from semseg_diffusers.evaluation.results import (
    Features,
    agreement_figures,
    diversity_figures,
    example_figures,
    fidelity_figures,
    neighbour_figures,
    paper_figures,
)
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.generation.generate import add_sampling_arguments, generate_dataset, sampling_settings
from semseg_diffusers.generation.model import DTYPES
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.reports.evaluation_page import collect_pictures, write_report
from semseg_diffusers.reports.evaluation_text import results_table
from semseg_diffusers.utils.distributed import Processes, exclusive_folder, run_distributed


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
        PeerError: another of the processes has failed.
    """
    processes = processes or Processes()
    output = Path(settings.output)
    clock = Clock()

    # 1. Data and networks: all that can be refused
    pairs, train, why_no_train = load_data(settings, processes)
    judge, extractors = processes.run_on_all_ranks(lambda: load_networks(settings, pairs, device))
    pipeline = None
    if settings.model is not None:
        pipeline = processes.run_on_all_ranks(lambda: load_generator(settings, pairs, device))
        stems = choose_stems(sorted(pairs.stems), settings.num_masks)
        num_generated = len(stems) * settings.num_images_per_mask
    else:
        generated = processes.run_on_all_ranks(lambda: generated_images(settings.generated, pairs))
        filter_record = processes.run_on_all_ranks(lambda: read_filter(settings.generated)) or {}
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

    processes.run_in_main(check)

    with contextlib.ExitStack() as held:
        # 2. The output folder, which the main process keeps to this run
        def take_output() -> None:
            check_output(output, settings)
            held.enter_context(exclusive_folder(output, "evaluating into"))
            if pipeline is not None:
                write_masks(output / "masks", pairs, stems)

        processes.run_in_main(take_output)

        def over(
            network: Callable[[torch.Tensor], torch.Tensor], what: dict[str, Any], images: ImageSet | None, title: str
        ) -> torch.Tensor | None:
            if images is None:
                return None
            return cached_inference(
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
                generated = processes.run_on_all_ranks(
                    lambda: made_images(output / "generated", pairs, stems, settings)
                )
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

        return processes.run_in_main(finish)


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


DEFAULTS = EvaluationSettings.__dataclass_fields__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `semseg-diffusers evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="run folder or Hub repo id: images are generated from the split's masks")
    what.add_argument(
        "--generated",
        metavar="DIR",
        help="folder that `generate` wrote, or pictures named after the split's masks: STEM.png, STEM_NUMBER.png",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dataset", required=True, help="prepared folder or Hub data set id: the real photos")
    parser.add_argument("--split", default=DEFAULTS["split"].default, help="masks and photos (default %(default)s)")
    parser.add_argument(
        "--train_split",
        default=DEFAULTS["train_split"].default,
        help="photos that the model may have seen (default %(default)s)",
    )
    add_column_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make, or to continue")
    parser.add_argument(
        "--segmenter",
        default=DEFAULTS["segmenter"].default,
        help="network that reads the images: folder of `semseg-diffusers segmenter`, or Hub id (default %(default)s)",
    )
    parser.add_argument("--segmenter_revision", help="branch, tag or commit of a segmenter on the Hub")
    parser.add_argument("--segmenter_size", metavar="HxW", help="size it reads images at (default: its own)")
    parser.add_argument(
        "--features",
        nargs="+",
        default=list(EvaluationSettings.__dataclass_fields__["features"].default),
        help="networks that fidelity is measured with: folder or Hub id of an image network, inception, a TorchScript "
        "file, or none (default %(default)s)",
    )
    parser.add_argument("--num_masks", type=int, help="of the split, at even distances (default: all)")
    parser.add_argument(
        "--num_images_per_mask",
        type=int,
        default=DEFAULTS["num_images_per_mask"].default,
        help="two and more show diversity (default %(default)s)",
    )
    add_sampling_arguments(parser)
    parser.add_argument("--kid_subsets", type=int, default=DEFAULTS["kid_subsets"].default, help="default %(default)s")
    parser.add_argument("--kid_subset_size", type=int, help="images (default: half of the smaller set, at most 1000)")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=DEFAULTS["batch_size"].default,
        help="images a forward in a process (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of images, shuffle and subsets (default %(default)s)")
    parser.add_argument("--device", help="default: GPU if any; of several processes each takes one of its own")
    parser.add_argument("--dtype", choices=list(DTYPES), default=DEFAULTS["dtype"].default, help="default %(default)s")


def settings_from(args: argparse.Namespace) -> EvaluationSettings:
    """Read the options.

    Raises:
        ValueError: options that do not go together.
    """
    if "none" in args.features and len(args.features) > 1:
        raise ValueError(f"--features: none stands alone; got {' '.join(args.features)}.")
    return EvaluationSettings(
        dataset=args.dataset,
        output=args.output,
        model=args.model,
        revision=args.revision,
        generated=args.generated,
        split=args.split,
        train_split=args.train_split,
        image_column=args.image_column,
        mask_column=args.mask_column,
        labels=args.labels,
        segmenter=args.segmenter,
        segmenter_revision=args.segmenter_revision,
        segmenter_size=parse_resolution(args.segmenter_size) if args.segmenter_size else None,
        features=() if args.features == ["none"] else tuple(args.features),
        num_masks=args.num_masks,
        num_images_per_mask=args.num_images_per_mask,
        sampling=sampling_settings(args),
        scheduler=args.scheduler,
        kid_subsets=args.kid_subsets,
        kid_subset_size=args.kid_subset_size,
        dtype=args.dtype,
        batch_size=args.batch_size,
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, together with the other processes of the launch where there are any, and print the table."""
    settings = settings_from(args)
    return run_distributed(args.device, lambda processes, device: _evaluate(settings, processes, device))


def _evaluate(settings: EvaluationSettings, processes: Processes, device: torch.device) -> None:
    results = evaluate(settings, device=device, processes=processes, show_progress=True)
    if results is not None:
        notes = "".join(f"{note}\n" for note in results["notes"])
        sys.stdout.write(f"{results_table(results)}\n{notes}results and page: {settings.output}/{PAGE_FILE}\n")
