"""Means, paired differences and confidence intervals over seeds (Student's t), and the findings of a study.
An interval over n seeds covers initial weights, data order and choice of images, and nothing else.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from semseg_diffusers.evaluation.study.settings import ARMS, StudySettings, Training, variants


Variant = tuple[str, float | None]  # arm and amount
CONFIDENCE = 0.95
BETTER, WITHIN, WORSE, UNKNOWN = "better", "within noise", "worse", "unknown"
READINGS = {
    BETTER: "beyond the noise between seeds",
    WITHIN: "within the noise between seeds",
    WORSE: "worse, beyond the noise between seeds",
    UNKNOWN: "one seed, so chance cannot be estimated",
}
# arm -> arm that it is compared with at the same amount, besides real images: as many pairs, or not filtered
BASELINES = (
    ("real_synthetic", "real_duplicated"),
    ("real_filtered", "real_duplicated"),
    ("real_filtered", "real_synthetic"),
    ("filtered", "synthetic"),
)
FEW_SEEDS = 3  # below this an interval is wider than any realistic difference
MORE_SEEDS = 5


# Statistics ----------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation of the sample (None for one seed) and values of a score over seeds.

    Example:
        >>> spread([0.5, 0.25])["mean"]
        0.375
    """
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def paired_difference(
    values: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Compare the scores of two variants, one per seed in the same order; higher is better.

    Returns:
        `mean` of the differences, ends of its interval `low` and `high` (None for one seed), the differences as
        `values`, and the `reading`: one of `READINGS`.

    Example:
        >>> found = paired_difference([0.50, 0.52, 0.51], [0.40, 0.41, 0.42])
        >>> f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})", found["reading"]
        ('0.100 (0.075 to 0.125)', 'better')
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, low, high, reading = statistics.fmean(differences), None, None, UNKNOWN
    if len(differences) > 1:
        half = stats.t.ppf((1 + confidence) / 2, len(differences) - 1) * statistics.stdev(differences)
        half = float(half) / math.sqrt(len(differences))
        low, high = mean - half, mean + half
        reading = BETTER if low > 0 else WORSE if high < 0 else WITHIN
    return {"mean": mean, "low": low, "high": high, "values": differences, "reading": reading}


def compared(settings: StudySettings) -> list[tuple[Variant, Variant]]:
    """Return the comparisons: each variant with real images, and with its baselines at the same amount."""
    pairs: list[tuple[Variant, Variant]] = []
    for arm, amount in variants(settings):
        others: list[Variant] = [] if arm == "real" else [("real", None)]
        others += [(baseline, amount) for each, baseline in BASELINES if each == arm]
        pairs += [((arm, amount), other) for other in others if other[0] in settings.arms]
    return pairs


def arms_and_comparisons(
    settings: StudySettings, result_of: Callable[[Training], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries `arms` and `comparisons` of `results.json`, from the result of each training."""
    runs = {
        variant: [result_of(Training(*variant, seed)) for seed in settings.seeds] for variant in variants(settings)
    }
    pairs = compared(settings)
    strict = 1 - (1 - CONFIDENCE) / max(1, len(pairs))  # Bonferroni correction for all comparisons
    comparisons = [
        {
            "arm": variant[0],
            "amount": variant[1],
            "against": {"arm": other[0], "amount": other[1]},
            **_compare(runs[variant], runs[other], strict),
        }
        for variant, other in pairs
    ]
    return [_arm(settings, variant, results) for variant, results in runs.items()], comparisons


def _arm(settings: StudySettings, variant: Variant, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    num_pairs, scores = results[0]["num_pairs"], [result["scores"] for result in results]
    return {
        "arm": variant[0],
        "amount": variant[1],
        "title": title(*variant),
        "num_pairs": num_pairs,
        "num_synthetic": results[0]["num_synthetic"],
        "passes": settings.max_train_steps * settings.train_batch_size / num_pairs,
        "mean_iou": spread([each["mean_iou"] for each in scores]),
        "pixel_accuracy": spread([each["pixel_accuracy"] for each in scores]),
        "iou": {name: spread([each["iou"][name] for each in scores]) for name in scores[0]["iou"]},
    }


def _compare(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], strict: float) -> dict[str, Any]:
    """Return the differences of mean IoU and of each class; `all_counted` is corrected for all comparisons."""
    ours, theirs = ([result["scores"] for result in runs] for runs in (results, others))
    values, baseline = ([each["mean_iou"] for each in scores] for scores in (ours, theirs))
    corrected = paired_difference(values, baseline, strict)["reading"]
    return {
        "mean_iou": {**paired_difference(values, baseline), "all_counted": corrected},
        "iou": {
            name: paired_difference([each["iou"][name] for each in ours], [each["iou"][name] for each in theirs])
            for name in ours[0]["iou"]
        },
    }


def num_beyond(comparisons: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return how many comparisons of single classes are beyond noise, and their total number.

    Classes that neither network ever predicts, and those with one seed, do not count.
    """
    found = [entry for comparison in comparisons for entry in comparison["iou"].values() if any(entry["values"])]
    readings = [entry["reading"] for entry in found if entry["reading"] != UNKNOWN]
    return sum(reading != WITHIN for reading in readings), len(readings)


# Findings ------------------------------------------------------------------------------------------------------------


def title(arm: str, amount: float | None) -> str:
    """Return the readable title of an arm with its amount.

    Example:
        >>> title("real_synthetic", 0.5), title("real", None)
        ('real + synthetic, 0.5x', 'real photos')
    """
    return ARMS[arm] if amount is None else f"{ARMS[arm]}, {amount:.10g}x"


def difference_text(comparison: Mapping[str, Any]) -> str:
    """Describe one comparison of mean IoU.

    Example:
        >>> found = {"mean": 0.021, "low": 0.004, "high": 0.038, "reading": "better", "all_counted": "better"}
        >>> difference_text({"mean_iou": found, "against": {"arm": "real", "amount": None}})
        '+0.021 mIoU (0.004 to 0.038) over real photos: beyond the noise between seeds.'
    """
    found, other = comparison["mean_iou"], title(**comparison["against"])
    interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    text = f"{found['mean']:+.3f} mIoU{interval} over {other}: {READINGS[found['reading']]}."
    if found["reading"] in (BETTER, WORSE) and found["all_counted"] != found["reading"]:
        text += " Not so after correction for all comparisons of this study."
    return text


def findings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the findings of a study, topic -> sentences: each arm at each amount, then how reliable they are."""
    comparisons = results["comparisons"]
    found = {}
    order = dict.fromkeys((each["arm"], each["amount"]) for each in comparisons)
    for variant in sorted(order, key=lambda variant: variant[0] == "real_duplicated"):  # the control last
        texts = [difference_text(each) for each in comparisons if (each["arm"], each["amount"]) == variant]
        topic = title(*variant)
        found[topic[0].upper() + topic[1:]] = " ".join(texts)
    return {**found, "Comparisons": _comparisons_text(comparisons), "Seeds": _seeds_text(len(results["seeds"]))}


def _comparisons_text(comparisons: Sequence[dict[str, Any]]) -> str:
    """Describe how many comparisons would be beyond noise by chance."""
    number, chance = len(comparisons), 1 - CONFIDENCE
    text = f"{number} of mean IoU, each with a {100 * CONFIDENCE:g} % interval"
    text += f": without any true difference, about {number * chance:.1f} of them would be beyond noise by chance."
    beyond, classes = num_beyond(comparisons)
    if classes:
        text += f" By class, {beyond} of {classes} are beyond noise; chance alone gives about {classes * chance:.0f}."
    return text


def _seeds_text(number: int) -> str:
    if number == 1:
        return "One seed: differences cannot be distinguished from chance. Use at least three."
    text = (
        f"n = {number}. A difference within the noise shows neither a gain nor a loss. Intervals are Student's t of "
        "the paired differences. They cover initial weights, order of the data, augmentation and choice of synthetic "
        "images; not other training or validation images, nor a retrained generator."
    )
    if number < FEW_SEEDS:
        text += " Two seeds give such wide intervals that hardly any difference exceeds them: use at least three."
    elif number < MORE_SEEDS:
        text += " So few seeds detect only large differences: more --seeds narrow the intervals."
    return text
