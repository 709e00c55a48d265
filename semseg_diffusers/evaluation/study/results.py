"""Means, paired differences and confidence intervals over seeds (Student's t), and the findings of a study.
An interval over n seeds covers initial weights, data order and choice of images, and nothing else.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from semseg_diffusers.evaluation.settings import ARMS, WITHOUT_AMOUNT, StudySettings, Training, variants


Variant = tuple[str, float | None]  # arm and amount
CONFIDENCE = 0.95
BETTER, WITHIN, WORSE, UNKNOWN = "better", "within noise", "worse", "unknown"
READINGS = {
    BETTER: "beyond the noise between seeds",
    WITHIN: "within the noise between seeds",
    WORSE: "worse, beyond the noise between seeds",
    UNKNOWN: "one seed, so chance cannot be estimated",
}
# arm -> arm that it is compared with at the same amount, besides real images: as many pairs, the same photos of the
# target, their colours alone, or not filtered
BASELINES = (
    ("real_synthetic", "real_duplicated"),
    ("real_synthetic", "real_pseudo"),
    ("real_filtered", "real_duplicated"),
    ("real_filtered", "real_synthetic"),
    ("real_filtered", "real_pseudo"),
    ("real_pseudo_synthetic", "real_recolored"),
    ("real_pseudo_synthetic", "real_pseudo"),
    ("real_pseudo_filtered", "real_recolored"),
    ("real_pseudo_filtered", "real_pseudo"),
    ("filtered", "synthetic"),
)
CONTROLS = ("real_duplicated", "real_recolored", "real_pseudo")  # arms without synthetic pairs
FEW_SEEDS = 3  # below this an interval is wider than any realistic difference
MORE_SEEDS = 5


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation of the sample (None for one seed) and values of a score over seeds."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def paired_difference(
    values: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE
) -> dict[str, Any]:
    """Compare the scores of two variants, one per seed in the same order; higher is better.

    The interval of the mean, `low` to `high`, is None for one seed; `reading` is one of `READINGS`.
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
        baselines = [baseline for each, baseline in BASELINES if each == arm]
        others += [(baseline, None if baseline in WITHOUT_AMOUNT else amount) for baseline in baselines]
        pairs += [((arm, amount), other) for other in others if other[0] in settings.arms]
    return pairs


def num_passes(settings: StudySettings, num_real: int, num_synthetic: int) -> float:
    """Return how often a training sees a pair; where real and synthetic ones differ, the smaller number."""
    seen = settings.max_train_steps * settings.train_batch_size
    share = settings.synthetic_share or settings.synthetic_steps / settings.max_train_steps
    if share and num_real and num_synthetic:
        return min(seen * share / num_synthetic, seen * (1 - share) / num_real)
    return seen / (num_real + num_synthetic)


def arms_and_comparisons(
    settings: StudySettings, result_of: Callable[[Training], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entries `arms` and `comparisons` of `results.json`, from the result of each training."""
    arms = []
    miou_of: dict[Variant, list[float]] = {}  # by seed
    iou_of: dict[Variant, dict[str, list[float]]] = {}
    for variant in variants(settings):
        results = [result_of(Training(*variant, seed)) for seed in settings.seeds]
        num_pairs, num_synthetic = results[0]["num_pairs"], results[0]["num_synthetic"]
        scores = [result["scores"] for result in results]
        miou_of[variant] = [each["mean_iou"] for each in scores]
        iou_of[variant] = {name: [each["iou"][name] for each in scores] for name in scores[0]["iou"]}
        arms.append(
            {
                "arm": variant[0],
                "amount": variant[1],
                "title": title(*variant),
                "num_pairs": num_pairs,
                "num_synthetic": num_synthetic,
                "passes": num_passes(settings, num_pairs - num_synthetic, num_synthetic),
                "mean_iou": spread(miou_of[variant]),
                "pixel_accuracy": spread([each["pixel_accuracy"] for each in scores]),
                "iou": {name: spread(values) for name, values in iou_of[variant].items()},
            }
        )
    pairs = compared(settings)
    strict = 1 - (1 - CONFIDENCE) / max(1, len(pairs))  # Bonferroni correction for all comparisons
    comparisons = [
        {
            "arm": variant[0],
            "amount": variant[1],
            "against": {"arm": other[0], "amount": other[1]},
            "mean_iou": {
                **paired_difference(miou_of[variant], miou_of[other]),
                "all_counted": paired_difference(miou_of[variant], miou_of[other], strict)["reading"],
            },
            "iou": {name: paired_difference(ious, iou_of[other][name]) for name, ious in iou_of[variant].items()},
        }
        for variant, other in pairs
    ]
    return arms, comparisons


def num_beyond(comparisons: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return how many differences of classes are beyond noise, and their number; one seed and zeros do not count."""
    found = [entry for comparison in comparisons for entry in comparison["iou"].values() if any(entry["values"])]
    readings = [entry["reading"] for entry in found if entry["reading"] != UNKNOWN]
    return sum(reading != WITHIN for reading in readings), len(readings)


def title(arm: str, amount: float | None) -> str:
    """Return the readable title of an arm with its amount, such as "real + synthetic, 0.5x"."""
    return ARMS[arm] if amount is None else f"{ARMS[arm]}, {amount:.10g}x"


def difference_text(comparison: Mapping[str, Any]) -> str:
    """Describe one comparison of mean IoU."""
    found, other = comparison["mean_iou"], title(**comparison["against"])
    interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    text = f"{found['mean']:+.3f} mIoU{interval} over {other}: {READINGS[found['reading']]}."
    if found["reading"] in (BETTER, WORSE) and found["all_counted"] != found["reading"]:
        text += " Not so after correction for all comparisons of this study."
    return text


def findings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the findings of a study, topic -> sentences: each arm at each amount, then how reliable they are."""
    comparisons, num_seeds, chance = results["comparisons"], len(results["seeds"]), 1 - CONFIDENCE
    found = {}
    order = dict.fromkeys((each["arm"], each["amount"]) for each in comparisons)
    for variant in sorted(order, key=lambda variant: variant[0] in CONTROLS):  # these last
        texts = [difference_text(each) for each in comparisons if (each["arm"], each["amount"]) == variant]
        topic = title(*variant)
        found[topic[0].upper() + topic[1:]] = " ".join(texts)
    number, (beyond, classes) = len(comparisons), num_beyond(comparisons)
    text = f"{number} of mean IoU, each with a {100 * CONFIDENCE:g} % interval: without any true difference, "
    text += f"about {number * chance:.1f} of them would be beyond noise by chance."
    if classes:
        text += f" By class, {beyond} of {classes} are beyond noise; chance alone gives about {classes * chance:.0f}."
    found["Comparisons"] = text
    if num_seeds == 1:
        return {**found, "Seeds": "One seed: differences cannot be distinguished from chance. Use at least three."}
    text = (
        f"n = {num_seeds}. A difference within the noise shows neither a gain nor a loss. Intervals are Student's t "
        "of the paired differences. They cover initial weights, order of the data, augmentation and choice of "
        "synthetic images; not other training or validation images, nor a retrained generator."
    )
    if num_seeds < FEW_SEEDS:
        text += " Two seeds give such wide intervals that hardly any difference exceeds them: use at least three."
    elif num_seeds < MORE_SEEDS:
        text += " So few seeds detect only large differences: more --seeds narrow the intervals."
    return {**found, "Seeds": text}
