"""What a study says, in plain sentences that follow from its numbers by fixed rules, and never say more than these.
A difference counts where its interval leaves out zero; how many were looked at stands beside it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from semseg_diffusers.evaluation.study.results import num_beyond, title
from semseg_diffusers.evaluation.study.statistics import BETTER, CONFIDENCE, UNKNOWN, WITHIN, WORSE


READINGS = {
    BETTER: "beyond the noise between seeds",
    WITHIN: "within the noise between seeds",
    WORSE: "worse, beyond the noise between seeds",
    UNKNOWN: "one seed, so nothing says how much of it is chance",
}
FEW_SEEDS = 3  # below this an interval is wider than what it could show
MORE_SEEDS = 5


class Finding(NamedTuple):
    """A sentence or two, and what they are about."""

    topic: str
    text: str


def difference_text(comparison: Mapping[str, Any]) -> str:
    """One comparison of mean IoU as a sentence.

    Example:
        >>> found = {"mean": 0.021, "low": 0.004, "high": 0.038, "reading": "better", "all_counted": "better"}
        >>> difference_text({"mean_iou": found, "against": {"arm": "real", "amount": None}})
        '+0.021 mIoU (0.004 to 0.038) over real photos: beyond the noise between seeds.'
    """
    found, other = comparison["mean_iou"], title(**comparison["against"])
    interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    text = f"{found['mean']:+.3f} mIoU{interval} over {other}: {READINGS[found['reading']]}."
    if found["reading"] in (BETTER, WORSE) and found["all_counted"] != found["reading"]:
        text += " With all comparisons of this study counted together, no longer so."
    return text


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """What `results.json` says: each arm at each amount, then how far all of it can be trusted."""
    comparisons = results["comparisons"]
    found = []
    order = dict.fromkeys((each["arm"], each["amount"]) for each in comparisons)
    for arm, amount in sorted(order, key=lambda variant: variant[0] == "real_duplicated"):  # the control last
        texts = [difference_text(each) for each in comparisons if (each["arm"], each["amount"]) == (arm, amount)]
        topic = title(arm, amount)
        found.append(Finding(topic[0].upper() + topic[1:], " ".join(texts)))
    return [*found, _number_of_comparisons(comparisons), _seeds(results)]


def _number_of_comparisons(comparisons: list[Mapping[str, Any]]) -> Finding:
    """How much of what lies beyond noise would do so without any reason."""
    number, chance = len(comparisons), 1 - CONFIDENCE
    text = f"{number} of mean IoU, each with an interval of {100 * CONFIDENCE:g} %"
    text += f": without any true difference, about {number * chance:.1f} of them would lie beyond noise by chance."
    beyond, classes = num_beyond(comparisons)
    if classes:
        text += (
            f" By class, {beyond} of {classes} lie beyond noise, where chance alone gives about "
            f"{classes * chance:.0f}."
        )
    return Finding("Comparisons", text)


def _seeds(results: Mapping[str, Any]) -> Finding:
    number = len(results["seeds"])
    if number == 1:
        return Finding("Seeds", "One seed: no difference here can be told from chance. Give three at least.")
    text = (
        f"n = {number}. What lies within the noise tells neither a gain nor a loss. Intervals are Student's t of the "
        "differences seed by seed. They cover first weights, order of the data, augmentation and choice of synthetic "
        "images; not another choice of photos to train on or to validate by, nor a generator that is trained again."
    )
    if number < FEW_SEEDS:
        text += " Two seeds make intervals so wide that hardly anything can lie beyond them: give three at least."
    elif number < MORE_SEEDS:
        text += " So few seeds find large differences only: more --seeds make the intervals narrower."
    return Finding("Seeds", text)
