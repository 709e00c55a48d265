"""From what networks say of the images to the parts of `results.json`: each figure beside ceiling and floor."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from semseg_diffusers.evaluation.diversity import diversity, why_no_diversity
from semseg_diffusers.evaluation.fidelity import SSIM_KERNEL, fid, kid, paired_ssim, small_set_note
from semseg_diffusers.evaluation.image_sets import ImageSet
from semseg_diffusers.evaluation.memorization import Neighbours, nearest, nearest_by_pixels
from semseg_diffusers.evaluation.metrics import Agreement, derangement, spread_choice
from semseg_diffusers.evaluation.settings import EvaluationSettings


NUM_EXAMPLES = 4  # best and worst, each
NUM_CLOSEST = 8  # pairs of a generated image and a training photo
OWN_FEATURES_NOTE = (
    "These features are of the segmentation network itself: they tell classes apart and know little of how photos "
    "look, so distances come out small. Take DINOv2 or Inception (--features) to judge likeness."
)
EXAMPLES_RULE = "mean IoU of an image over the classes that its mask holds; of each mask its first sample"


@dataclass(frozen=True)
class Features:
    """What one network makes of the images, (N, D) each.

    Args:
        network: `describe()` of the extractor.
        real, generated: of the split's photos and of the images.
        train: of the training photos, where there are any.
    """

    network: dict[str, Any]
    real: torch.Tensor
    generated: torch.Tensor
    train: torch.Tensor | None


def agreement_figures(agreement: Agreement) -> dict[str, Any]:
    """The rows of agreement, ceiling and floor among them."""
    rows = {name: getattr(agreement, name) for name in ("real", "generated", "shuffled", "paper")}
    figures = {name: None if row is None else asdict(row) for name, row in rows.items()}
    figures["generated"]["pixel_share"] = agreement.pixel_share
    return figures


@dataclass(frozen=True)
class Comparison:
    """Two sets that are held against the same photos: the generated images, and as many other photos (the floor)."""

    reference: str  # name of the photos
    num_reference: int
    others: str  # name of the floor's photos
    n: int  # images of each set


def fidelity_comparisons(
    settings: EvaluationSettings, num_real: int, num_train: int, num_generated: int
) -> list[Comparison]:
    """What is held against what.

    FID and KID depend on how many images there are, so the generated ones and the floor's are equally many. Against
    the photos of the split, the floor are training photos, and the other way round; without training photos, the two
    halves of the split. Images that are the split's own photos get 0 against it, and the floor against the training
    photos.

    Raises:
        ValueError: fewer than two images in a set; KID's subsets are larger than a set.
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
                f"fidelity compares sets of two images at least; against {comparison.reference} there would be "
                f"{smallest}. Evaluate more masks, or leave it away: --features none."
            )
        if settings.kid_subset_size is not None and settings.kid_subset_size > smallest:
            raise ValueError(
                f"--kid_subset_size {settings.kid_subset_size} is more than the {smallest} images of a set (against "
                f"{comparison.reference}). Make it smaller, or leave it away: half the smaller set, at most 1000."
            )
    return found


def fidelity_figures(features: Features, images: ImageSet, settings: EvaluationSettings) -> dict[str, Any]:
    """FID and KID of generated images against real photos, beside those of other real photos against the same.

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
    """Each comparison with the features of its reference, its generated images and its floor."""
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
    """The paper's FID of 64 features and its SSIM between an image and the photo of its mask, under those names.

    Args:
        settings: seed and names of the splits.
        real: photos of the split.
        images: the generated ones.
        features: of `inception-64`; None where it is not asked for.
    """
    place_of = {stem: place for place, stem in enumerate(real.stems)}
    pairs = [(place, place_of[stem]) for place, stem in enumerate(images.stems) if stem in place_of]
    figures: dict[str, Any] = {"fid_64": None, "fid_64_floor": None, "fid_64_missing": None}
    if features is None:
        figures["fid_64_missing"] = (
            "it is of the standard Inception's first 64 features: add inception to --features (extra fid)"
        )
    else:
        _, reference, chosen, floor = next(_compared(features, images, settings))
        figures |= {"fid_64": fid(reference, chosen), "fid_64_floor": fid(reference, floor)}
    figures |= {"ssim_paired": None, "ssim_unrelated": None}
    if pairs and min(real.image(0).shape[1:]) >= SSIM_KERNEL:
        figures["ssim_paired"] = paired_ssim(
            (images.image(place) for place, _ in pairs), (real.image(place) for _, place in pairs)
        )
        photos = sorted({place for _, place in pairs})  # once each, however many samples its mask has
        if len(photos) > 1:
            # shuffled: the next photo may be the next frame of its video
            others = [photos[place] for place in derangement(len(photos), settings.seed)]
            figures["ssim_unrelated"] = paired_ssim(map(real.image, photos), map(real.image, others))
    return figures


def diversity_figures(features: Sequence[Features], images: ImageSet) -> list[dict[str, Any]] | None:
    """How far samples of one mask are apart, by each network; None where each mask has one."""
    if why_no_diversity(images.stems):
        return None
    return [
        {"features": entry.network["name"], **asdict(diversity(entry.generated, images.stems, entry.real))}
        for entry in features
    ]


def neighbour_figures(
    images: ImageSet, train: ImageSet, thumbnails: Features, features: Features | None, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """The training photos that generated images are closest to, by features of one network and by pixels."""
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
        "threshold_is": f"1st percentile of the distances that photos of {settings.split} have to training photos",
        "distances": distances,
    }


def example_figures(images: ImageSet, mean_iou: Sequence[float | None]) -> dict[str, Any]:
    """The images that agree best and worst with their masks, by a rule and not by taste."""
    first: dict[str, int] = {}
    for place, stem in enumerate(images.stems):
        if mean_iou[place] is not None:
            first.setdefault(stem, place)
    order = sorted(first.values(), key=lambda place: (mean_iou[place], images.names[place]))
    count = min(NUM_EXAMPLES, len(order) // 2)

    def entries(places: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"image": images.names[place], "stem": images.stems[place], "mean_iou": mean_iou[place]}
            for place in places
        ]

    return {"rule": EXAMPLES_RULE, "best": entries(order[::-1][:count]), "worst": entries(order[:count])}
