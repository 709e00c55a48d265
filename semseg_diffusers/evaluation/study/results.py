"""Turns the scores of all trainings into `results.json`: every arm over its seeds, and what differs from what.
Figures of seeds are compared seed by seed, since the arms of one seed begin with the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from semseg_diffusers.evaluation.study.settings import ARMS, StudySettings, Training, variants
from semseg_diffusers.evaluation.study.statistics import CONFIDENCE, UNKNOWN, WITHIN, paired_difference, spread


Variant = tuple[str, float | None]  # arm and amount
AS_MANY = ("real_synthetic", "real_filtered")  # arms that have as many pairs as `real_duplicated`
UNFILTERED = {"real_filtered": "real_synthetic", "filtered": "synthetic"}  # what filtering is to be better than


def title(arm: str, amount: float | None) -> str:
    """An arm with its amount, as people read it.

    Example:
        >>> title("real_synthetic", 0.5), title("real", None)
        ('real + synthetic, 0.5x', 'real photos')
    """
    return ARMS[arm] if amount is None else f"{ARMS[arm]}, {amount:.10g}x"


def compared(settings: StudySettings) -> list[tuple[Variant, Variant]]:
    """What is held against what: each variant against real photos, against as many duplicates, and if it is filtered
    against its like that is not."""
    pairs = []
    for arm, amount in variants(settings):
        others = [] if arm == "real" else [("real", None)]
        if arm in AS_MANY:
            others.append(("real_duplicated", amount))
        if arm in UNFILTERED:
            others.append((UNFILTERED[arm], amount))
        pairs += [((arm, amount), other) for other in others if other[0] in settings.arms]
    return pairs


def arms_and_comparisons(
    settings: StudySettings, result_of: Callable[[Training], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Summarize all trainings.

    Args:
        settings: of the study.
        result_of: what came of a training, see `train_one`.

    Returns:
        the entries `arms` and `comparisons` of `results.json`.
    """
    runs = {
        variant: [result_of(Training(*variant, seed)) for seed in settings.seeds] for variant in variants(settings)
    }
    arms = [_arm(settings, variant, results) for variant, results in runs.items()]
    pairs = compared(settings)
    # Bonferroni: the level that lets all comparisons together err as seldom as one should
    strict = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    comparisons = [
        {
            "arm": variant[0],
            "amount": variant[1],
            "against": {"arm": other[0], "amount": other[1]},
            **_compare(runs[variant], runs[other], strict),
        }
        for variant, other in pairs
    ]
    return arms, comparisons


def _arm(settings: StudySettings, variant: Variant, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arm, amount = variant
    num_pairs = results[0]["num_pairs"]
    scores = [result["scores"] for result in results]
    return {
        "arm": arm,
        "amount": amount,
        "title": title(arm, amount),
        "num_pairs": num_pairs,
        "num_synthetic": results[0]["num_synthetic"],
        "passes": settings.max_train_steps * settings.train_batch_size / num_pairs,
        "mean_iou": asdict(spread([each["mean_iou"] for each in scores])),
        "pixel_accuracy": asdict(spread([each["pixel_accuracy"] for each in scores])),
        "iou": {name: asdict(spread([each["iou"][name] for each in scores])) for name in scores[0]["iou"]},
    }


def _compare(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], strict: float) -> dict[str, Any]:
    """The differences of mean IoU and of each class; `all_counted` reads the first with all comparisons in mind."""
    (ours, theirs) = ([result["scores"] for result in runs] for runs in (results, others))
    values, baseline = ([each["mean_iou"] for each in scores] for scores in (ours, theirs))
    return {
        "mean_iou": {
            **asdict(paired_difference(values, baseline)),
            "all_counted": paired_difference(values, baseline, strict).reading,
        },
        "iou": {
            name: asdict(
                paired_difference([each["iou"][name] for each in ours], [each["iou"][name] for each in theirs])
            )
            for name in ours[0]["iou"]
        },
    }


def num_beyond(comparisons: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many comparisons of single classes lie beyond noise, and how many there are.

    Classes that neither network ever finds, and those of one seed, are none.
    """
    found = [entry for comparison in comparisons for entry in comparison["iou"].values() if any(entry["values"])]
    readings = [entry["reading"] for entry in found if entry["reading"] != UNKNOWN]
    return sum(reading != WITHIN for reading in readings), len(readings)
