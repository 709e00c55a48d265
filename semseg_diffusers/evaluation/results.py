"""Assembles the parts of `results.json` from features and predictions: each value with its ceiling and floor."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from semseg_diffusers.evaluation.diversity import diversity, why_no_diversity
from semseg_diffusers.evaluation.features import is_paper_features
from semseg_diffusers.evaluation.fidelity import SSIM_KERNEL, fid, kid, paired_ssim, small_set_note
from semseg_diffusers.evaluation.inputs import ImageSet, RealData
from semseg_diffusers.evaluation.memorization import nearest, nearest_by_pixels
from semseg_diffusers.evaluation.metrics import (
    PredictedImages,
    derangement,
    score_agreement,
    shuffled_range,
    spread_choice,
)
from semseg_diffusers.evaluation.settings import DEFAULT_FEATURES, EvaluationSettings, has_default_features
from semseg_diffusers.reports.findings import distance_keys
from semseg_diffusers.utils.files import code_commit, versions


NUM_EXAMPLES = 5  # best and worst, each
NUM_CLOSEST = 8  # pairs of a generated and a training image
OWN_FEATURES_NOTE = (
    "These features are of the segmentation network itself: they separate classes and say little about appearance: "
    "compare them with the floor only. Features of ImageNet, DINOv2 or Inception (--features) measure fidelity."
)
NO_DEFAULT_FEATURES_NOTE = (
    "Images were compared in features of the segmentation network only, which say little about appearance. For "
    f"features of ImageNet ({DEFAULT_FEATURES}): pip install 'semseg-diffusers[imagenet]'."
)
EXAMPLES_RULE = "mean IoU of an image over the classes in its mask; the first sample of each mask"


@dataclass(frozen=True)
class Outputs:
    """What a network returns for all images: predictions (N, H, W) or features (N, D)."""

    network: dict[str, Any]  # its description
    real: torch.Tensor  # of the split's real images
    generated: torch.Tensor
    train: torch.Tensor | None  # of the training images, if any; features only


class RealSet(NamedTuple):
    """Some of the real images."""

    name: str
    part: str  # of `Outputs`: "real" or "train"
    rows: list[int]


class Comparison(NamedTuple):
    """Two sets compared with the same reference: generated images, and as many other real images (the floor)."""

    reference: RealSet
    floor: RealSet

    def select(self, features: Outputs, stems: Sequence[str], seed: int) -> tuple[torch.Tensor, ...]:
        """Return features of the reference, of as many generated images as in the floor, and of the floor."""
        reference, floor = (getattr(features, images.part)[images.rows] for images in self)
        return reference, features.generated[spread_choice(stems, len(floor), seed)], floor


def fidelity_comparisons(
    settings: EvaluationSettings, num_real: int, num_train: int, num_generated: int
) -> list[Comparison]:
    """Return the comparisons of fidelity; raise for too few images in a set.

    Distances depend on the number of images, so the generated set and the floor have the same size. With the split
    as reference, training images are the floor, and vice versa; without training images, two halves of the split.
    """
    split, seed = settings.split, settings.seed
    if num_train:
        first = RealSet(split, "real", list(range(num_real)))
        second = RealSet(settings.train_split, "train", list(range(num_train)))
    else:
        order, half = shuffled_range(num_real, seed), num_real // 2
        first = RealSet(f"one half of {split}", "real", sorted(order[:half]))
        second = RealSet(f"the other half of {split}", "real", sorted(order[half:]))
    comparisons = []
    for reference, others in [(first, second), (second, first)] if num_train else [(first, second)]:
        chosen = sorted(shuffled_range(len(others.rows), seed)[:num_generated])
        comparisons.append(Comparison(reference, others._replace(rows=[others.rows[index] for index in chosen])))
        smallest = min(len(reference.rows), len(chosen))
        if smallest < 2:
            raise ValueError(
                f"fidelity needs sets of two or more images; got {smallest} for the comparison with {reference.name}. "
                "Evaluate more masks, or skip fidelity: --features none."
            )
        if settings.kid_subset_size is not None and settings.kid_subset_size > smallest:
            raise ValueError(
                f"--kid_subset_size {settings.kid_subset_size} is more than the {smallest} images of a set (compared "
                f"with {reference.name}). Lower or omit it (default: half the smaller set, at most 1000)."
            )
    return comparisons


def fidelity_figures(
    features: Outputs, images: ImageSet, comparisons: Sequence[Comparison], settings: EvaluationSettings
) -> dict[str, Any]:
    """Return Fréchet and kernel distance of generated images to real images, with the floor."""
    frechet_key, kernel_key = distance_keys(features.network["name"])

    def distances(reference: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
        kernel = kid(reference, others, settings.seed, settings.kid_subsets, settings.kid_subset_size)
        return {
            frechet_key: fid(reference, others),
            kernel_key: kernel.mean,
            f"{kernel_key}_std": kernel.std,
            f"{kernel_key}_subset_size": kernel.subset_size,
        }

    own = OWN_FEATURES_NOTE if features.network["name"] == settings.segmenter_name else None
    references = []
    for comparison in comparisons:
        reference, chosen, floor = comparison.select(features, images.stems, settings.seed)
        small = small_set_note(len(reference), len(chosen), reference.shape[1])
        references.append(
            {
                "reference": comparison.reference.name,
                "num_reference": len(reference),
                "n": len(chosen),
                "generated": distances(reference, chosen),
                "floor": {"of": comparison.floor.name, **distances(reference, floor)},
                "note": " ".join(filter(None, (own, small))) or None,
            }
        )
    return {"features": features.network, "references": references}


def paper_figures(
    settings: EvaluationSettings,
    real: ImageSet,
    images: ImageSet,
    features: Outputs | None,
    comparisons: Sequence[Comparison],
) -> dict[str, Any]:
    """Return the paper's FID, of the features of `inception-64`, and its SSIM to the real image of the same mask."""
    index_of = {stem: index for index, stem in enumerate(real.stems)}
    pairs = [(index, index_of[stem]) for index, stem in enumerate(images.stems) if stem in index_of]
    names = ("fid_64", "fid_64_floor", "fid_64_missing", "ssim_paired", "ssim_unrelated")
    figures: dict[str, Any] = dict.fromkeys(names)
    if features is None:
        figures["fid_64_missing"] = (
            "it needs the standard Inception's first 64 features: add inception to --features (extra fid)"
        )
    else:
        reference, chosen, floor = comparisons[0].select(features, images.stems, settings.seed)
        figures |= {"fid_64": fid(reference, chosen), "fid_64_floor": fid(reference, floor)}
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


def neighbour_figures(
    images: ImageSet, train: ImageSet, features: Outputs | None, thumbnails: Outputs, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Return the training images closest to generated ones, by features of one network and by pixels."""
    searches = [(nearest_by_pixels, thumbnails, "grey thumbnails (distance in levels of 255)")]
    if features is not None:
        searches.insert(0, (nearest, features, features.network["name"]))
    figures = []
    for search, by, name in searches:
        assert by.train is not None, "there are training images"
        figures.append(
            {
                "features": name,
                "reference": settings.train_split,
                "threshold_is": f"1st percentile of the distances from images of {settings.split} to training images",
                **asdict(search(by.generated, images.names, by.train, train.stems, by.real, NUM_CLOSEST)),
            }
        )
    return figures


def example_figures(images: ImageSet, mean_iou: Sequence[float | None]) -> dict[str, Any]:
    """Return the images that agree best and worst with their masks, by a fixed rule."""
    first: dict[str, dict[str, Any]] = {}
    for name, stem, value in zip(images.names, images.stems, mean_iou, strict=True):
        if value is not None:
            first.setdefault(stem, {"image": name, "stem": stem, "mean_iou": value})
    entries = sorted(first.values(), key=lambda entry: (entry["mean_iou"], entry["image"]))
    count = min(NUM_EXAMPLES, len(entries) // 2)
    return {"rule": EXAMPLES_RULE, "best": entries[::-1][:count], "worst": entries[:count]}


def assemble_results(
    settings: EvaluationSettings,
    data: RealData,
    generated: ImageSet,
    predictions: Outputs,
    features: Sequence[Outputs],
) -> dict[str, Any]:
    """Return `results.json` without what only the run knows, such as its times. The last features are thumbnails."""
    *networks, thumbnails = features
    paper = next((entry for entry in networks if is_paper_features(entry.network["name"])), None)
    networks = [entry for entry in networks if entry is not paper]
    num_train = len(data.train or ())
    comparisons = (
        fidelity_comparisons(settings, len(data.real), num_train, len(generated)) if settings.features else []
    )
    agreement = score_agreement(
        PredictedImages(data.real.stems, predictions.real, data.real.masks()),
        PredictedImages(generated.stems, predictions.generated, generated.masks()),
        generated.labels,
        settings.seed,
        predictions.network["not_judged"],
    )
    scores = asdict(agreement)
    image_mean_iou, scores["generated"]["pixel_share"] = scores.pop("image_mean_iou"), scores.pop("pixel_share")
    judged = zip(generated.stems, image_mean_iou, strict=True)
    unlabelled = list(dict.fromkeys(stem for stem, mean_iou in judged if mean_iou is None))
    neighbours, diversities, notes = None, None, []
    if data.train is None:
        notes.append(
            f"Without training images there is no search for copies, and no floor from them: {data.train_missing}"
        )
    else:
        first = networks[0] if networks else None
        neighbours = neighbour_figures(generated, data.train, first, thumbnails, settings)
    no_diversity = why_no_diversity(generated.stems)
    if not networks:
        notes.append("Fidelity and diversity were not measured: --features names no network for them.")
    elif no_diversity is not None:
        notes.append(f"Diversity was not measured: {no_diversity}")
    else:
        diversities = [
            {"features": entry.network["name"], **asdict(diversity(entry.generated, generated.stems, entry.real))}
            for entry in networks
        ]
    if settings.features == (settings.segmenter_name,) and not has_default_features():
        notes.append(NO_DEFAULT_FEATURES_NOTE)
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} masks hold no labelled pixel that is scored, such as that of {unlabelled[0]}."
        )
    return {
        "settings": settings.record(),
        "seed": settings.seed,
        "commit": code_commit(),
        "versions": versions("torch", "transformers", "diffusers", "torchmetrics"),
        "resolution": list(data.pairs.resolution),
        "segmenter": predictions.network,
        "data": {
            "num_real": len(data.real),
            "num_train": num_train,
            "num_generated": len(generated),
            "num_masks": len(set(generated.stems)),
            "masks_without_labels": unlabelled,
        },
        "agreement": scores,
        "fidelity": [fidelity_figures(entry, generated, comparisons, settings) for entry in networks],
        "paper_metrics": paper_figures(settings, data.real, generated, paper, comparisons),
        "diversity": diversities,
        "neighbours": neighbours,
        "examples": example_figures(generated, image_mean_iou),
        "notes": notes,
    }
