"""Assembles the parts of `results.json` from features and predictions: each value with its ceiling and floor."""

import importlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.evaluation.diversity import diversity, why_no_diversity
from semseg_diffusers.evaluation.features import is_paper_features
from semseg_diffusers.evaluation.fidelity import SSIM_KERNEL, fid, kid, paired_ssim, small_set_note
from semseg_diffusers.evaluation.inputs import EvaluationData, ImageSet
from semseg_diffusers.evaluation.memorization import Neighbours, nearest, nearest_by_pixels
from semseg_diffusers.evaluation.metrics import Agreement, PredictedImages, derangement, score_agreement, spread_choice
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.utils.files import package_version


NUM_EXAMPLES = 4  # best and worst, each
NUM_CLOSEST = 8  # pairs of a generated image and a training photo
OWN_FEATURES_NOTE = (
    "These features are of the segmentation network itself: they separate classes and say little about appearance: "
    "distances are small. Use DINOv2 or Inception (--features) to measure fidelity."
)
EXAMPLES_RULE = "mean IoU of an image over the classes in its mask; the first sample of each mask"


@dataclass(frozen=True)
class Features:
    """Features of all images by one network, (N, D) each.

    Args:
        network: `describe()` of the extractor.
        real, generated: of the split's real images and of the generated ones.
        train: of the training images, if any.
    """

    network: dict[str, Any]
    real: torch.Tensor
    generated: torch.Tensor
    train: torch.Tensor | None


def agreement_figures(agreement: Agreement) -> dict[str, Any]:
    """Return the scores of agreement, with ceiling and floor."""
    rows = {name: getattr(agreement, name) for name in ("real", "generated", "shuffled", "paper")}
    figures = {name: None if row is None else asdict(row) for name, row in rows.items()}
    figures["generated"]["pixel_share"] = agreement.pixel_share
    return figures


@dataclass(frozen=True)
class Comparison:
    """Two sets compared with the same reference: generated images, and as many other real images (the floor)."""

    reference: str  # name of the reference images
    num_reference: int
    others: str  # name of the floor's images
    n: int  # images in each set


def fidelity_comparisons(
    settings: EvaluationSettings, num_real: int, num_train: int, num_generated: int
) -> list[Comparison]:
    """Return the comparisons of fidelity.

    FID and KID depend on the number of images, so the generated set and the floor have the same size. With the split
    as reference, training images are the floor, and vice versa; without training images, two halves of the split.
    Generated images that equal the split's get 0 against it, and the value of the floor against the training images.

    Raises:
        ValueError: fewer than two images in a set; KID subsets larger than a set.
    """
    split, train_split = settings.split, settings.train_split
    if num_train > 0:
        sides = [(split, num_real, train_split, num_train), (train_split, num_train, split, num_real)]
    else:
        half = num_real // 2
        sides = [(f"one half of {split}", half, f"the other half of {split}", num_real - half)]
    found = [
        Comparison(reference, count, others, min(num_generated, num_others))
        for reference, count, others, num_others in sides
    ]
    for comparison in found:
        smallest = min(comparison.num_reference, comparison.n)
        if smallest < 2:
            raise ValueError(
                f"fidelity needs sets of two or more images; got {smallest} for the comparison with "
                f"{comparison.reference}. Evaluate more masks, or skip fidelity: --features none."
            )
        if settings.kid_subset_size is not None and settings.kid_subset_size > smallest:
            raise ValueError(
                f"--kid_subset_size {settings.kid_subset_size} is more than the {smallest} images of a set (compared "
                f"with {comparison.reference}). Lower or omit it (default: half the smaller set, at most 1000)."
            )
    return found


def fidelity_figures(features: Features, images: ImageSet, settings: EvaluationSettings) -> dict[str, Any]:
    """Return FID and KID of generated images against real images, with the floor.

    Args:
        features: of all sets.
        images: the generated ones.
        settings: seed, names of the splits, KID's subsets.
    """
    own = OWN_FEATURES_NOTE if features.network["name"] == settings.segmenter else None
    references = []
    for comparison, reference, chosen, floor in _compared(features, images, settings):
        small = small_set_note(len(reference), comparison.n, reference.shape[1])
        references.append(
            {
                "reference": comparison.reference,
                "num_reference": comparison.num_reference,
                "n": comparison.n,
                "generated": _distances(reference, chosen, settings),
                "floor": {"of": comparison.others, **_distances(reference, floor, settings)},
                "note": " ".join(filter(None, (own, small))) or None,
            }
        )
    return {"features": features.network, "references": references}


def _compared(
    features: Features, images: ImageSet, settings: EvaluationSettings
) -> Iterator[tuple[Comparison, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield each comparison with the features of its reference, generated images and floor."""
    real, train = features.real, features.train
    if train is None:
        order = _order(len(real), settings.seed)
        half = len(real) // 2
        sides = [(real[sorted(order[:half])], real[sorted(order[half:])])]
    else:
        sides = [(real, train), (train, real)]
    comparisons = fidelity_comparisons(settings, len(real), 0 if train is None else len(train), len(images))
    for comparison, (reference, others) in zip(comparisons, sides, strict=True):
        chosen = features.generated[spread_choice(list(images.stems), comparison.n, settings.seed)]
        floor = others[sorted(_order(len(others), settings.seed)[: comparison.n])]
        yield comparison, reference, chosen, floor


def _order(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _distances(reference: torch.Tensor, images: torch.Tensor, settings: EvaluationSettings) -> dict[str, float]:
    kernel = kid(
        reference, images, seed=settings.seed, subsets=settings.kid_subsets, subset_size=settings.kid_subset_size
    )
    return {
        "fid": fid(reference, images),
        "kid": kernel.mean,
        "kid_std": kernel.std,
        "kid_subset_size": kernel.subset_size,
    }


def paper_figures(
    settings: EvaluationSettings, real: ImageSet, images: ImageSet, features: Features | None
) -> dict[str, Any]:
    """Return the paper's FID of 64 features, and its SSIM between an image and the real image of its mask.

    Args:
        settings: seed and names of the splits.
        real: real images of the split.
        images: the generated ones.
        features: of `inception-64`; None if not requested.
    """
    index_of = {stem: index for index, stem in enumerate(real.stems)}
    pairs = [(index, index_of[stem]) for index, stem in enumerate(images.stems) if stem in index_of]
    figures: dict[str, Any] = {"fid_64": None, "fid_64_floor": None, "fid_64_missing": None}
    if features is None:
        figures["fid_64_missing"] = (
            "it needs the standard Inception's first 64 features: add inception to --features (extra fid)"
        )
    else:
        _, reference, chosen, floor = next(_compared(features, images, settings))
        figures |= {"fid_64": fid(reference, chosen), "fid_64_floor": fid(reference, floor)}
    figures |= {"ssim_paired": None, "ssim_unrelated": None}
    if pairs and min(real.image(0).shape[1:]) >= SSIM_KERNEL:
        figures["ssim_paired"] = paired_ssim(
            (images.image(index) for index, _ in pairs), (real.image(index) for _, index in pairs)
        )
        targets = sorted({index for _, index in pairs})  # once each, however many samples its mask has
        if len(targets) > 1:
            # shuffled: the next image may be the next frame of its video
            others = [targets[index] for index in derangement(len(targets), settings.seed)]
            figures["ssim_unrelated"] = paired_ssim(map(real.image, targets), map(real.image, others))
    return figures


def diversity_figures(features: Sequence[Features], images: ImageSet) -> list[dict[str, Any]] | None:
    """Return how much samples of one mask differ, by each network; None if each mask has only one."""
    if why_no_diversity(images.stems):
        return None
    return [
        {"features": entry.network["name"], **asdict(diversity(entry.generated, images.stems, entry.real))}
        for entry in features
    ]


def neighbour_figures(
    images: ImageSet, train: ImageSet, thumbnails: Features, features: Features | None, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Return the training images closest to generated ones, by features of one network and by pixels."""
    names, stems = images.names, train.stems
    found = []
    if features is not None:
        by_features = nearest(features.generated, names, features.train, stems, features.real, NUM_CLOSEST)
        found.append(_neighbours(by_features, features.network["name"], settings))
    by_pixels = nearest_by_pixels(thumbnails.generated, names, thumbnails.train, stems, thumbnails.real, NUM_CLOSEST)
    return [*found, _neighbours(by_pixels, "grey thumbnails (distance in levels of 255)", settings)]


def _neighbours(found: Neighbours, features: str, settings: EvaluationSettings) -> dict[str, Any]:
    values = asdict(found)
    distances = {"generated": values.pop("generated_distances"), "real": values.pop("real_distances")}
    return {
        "features": features,
        "reference": settings.train_split,
        **values,
        "threshold_is": f"1st percentile of the distances from images of {settings.split} to training images",
        "distances": distances,
    }


def example_figures(images: ImageSet, mean_iou: Sequence[float | None]) -> dict[str, Any]:
    """Return the images that agree best and worst with their masks, by a fixed rule."""
    first: dict[str, int] = {}
    for index, stem in enumerate(images.stems):
        if mean_iou[index] is not None:
            first.setdefault(stem, index)
    order = sorted(first.values(), key=lambda index: (mean_iou[index], images.names[index]))
    count = min(NUM_EXAMPLES, len(order) // 2)

    def entries(indices: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"image": images.names[index], "stem": images.stems[index], "mean_iou": mean_iou[index]}
            for index in indices
        ]

    return {"rule": EXAMPLES_RULE, "best": entries(order[::-1][:count]), "worst": entries(order[:count])}


def all_figures(
    settings: EvaluationSettings,
    data: EvaluationData,
    judge: Judge,
    of_real: PredictedImages,
    of_generated: PredictedImages,
    features: list[Features],
) -> dict[str, Any]:
    """Return all parts of `results.json` that follow from images and predictions."""
    *networks, thumbnails = features
    paper = next((entry for entry in networks if is_paper_features(entry.network["name"])), None)
    networks = [entry for entry in networks if entry is not paper]
    agreement = score_agreement(of_real, of_generated, data.generated.labels, settings.seed, judge.not_judged)
    judged = zip(data.generated.stems, agreement.image_mean_iou, strict=True)
    unlabelled = list(dict.fromkeys(stem for stem, mean_iou in judged if mean_iou is None))
    notes = []
    if data.train is None:
        notes.append(
            f"Without training images there is no search for copies, and no floor from them: {data.train_missing}"
        )
    if not networks:
        notes.append("Fidelity and diversity were not measured: --features names no network for them.")
    elif (why := why_no_diversity(data.generated.stems)) is not None:
        notes.append(f"Diversity was not measured: {why}")
    if data.filtered_by == judge.weights_sha256:
        notes.append(
            "The images were filtered by the network that segments them here: it selected what it agrees with, so its "
            "agreement is no evidence. Evaluate with another --segmenter."
        )
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} masks hold no labelled pixel that is scored, such as that of {unlabelled[0]}."
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


def code_commit() -> str | None:
    """Return the git commit of this code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package and of libraries, by name.

    Example:
        >>> sorted(versions("torch", "transformers"))
        ['semseg_diffusers', 'torch', 'transformers']
    """
    return {"semseg_diffusers": package_version()} | {
        name: importlib.import_module(name).__version__ for name in libraries
    }
