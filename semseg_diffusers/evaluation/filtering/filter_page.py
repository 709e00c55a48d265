"""The page of a filter: its numbers, and images that are chosen by rules and a seed, not by eye."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.evaluation_page import STRIPE, UNKNOWN
from semseg_diffusers.evaluation.filtering.rules import (
    EASY_MASK,
    REASONS,
    ClassLosses,
    Scored,
    filter_ids,
    real_pixels,
)
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.evaluation.segmentation.judge import Judge
from semseg_diffusers.reports.render import BarRow, class_legend, percent, write_page
from semseg_diffusers.utils.images import to_image


ROWS = 8  # images of each group on the page
BINS = 10  # of the histogram of kept shares
MUCH_LESS = 0.1  # a class is named if its kept share is this much below that on real photos
MOST_NAMED = 4  # such classes
STEPS = {  # loss / tolerance of its class, upper bound -> color and description on the page
    0.5: ((240, 240, 240), "below half of the tolerance"),
    1.0: ((250, 222, 150), "half of it to all of it"),
    2.0: ((244, 140, 60), "above it, to twice: unknown"),
    4.0: ((214, 50, 40), "twice to four times: unknown"),
    np.inf: ((105, 0, 25), "more: unknown"),
}
NOT_CHECKED = "unknown before, or of a class that cannot be checked"
LEGEND = {text: color for color, text in STEPS.values()} | {NOT_CHECKED: UNKNOWN[0]}


class Examples(NamedTuple):
    """Names of images, by what was decided on them."""

    dropped: tuple[str, ...]  # for what they show: those that keep least
    strongly_filtered: tuple[str, ...]  # of the kept ones, the same
    kept: tuple[str, ...]  # by seed


def choose_examples(images: Sequence[Scored], reasons: Mapping[str, str], seed: int) -> Examples:
    """Choose the images to show, those that are kept by seed; `reasons` says of names why they were dropped.

    Images that were dropped for their easy mask only look like the kept ones, and are not shown among the dropped.
    """

    def least(chosen: list[Scored]) -> tuple[str, ...]:
        chosen.sort(key=lambda image: (-1.0 if image.kept_share is None else image.kept_share, image.name))
        return tuple(image.name for image in chosen[:ROWS])

    kept = [image for image in images if image.name not in reasons]
    chosen = random.Random(seed).sample(sorted(image.name for image in kept), min(ROWS, len(kept)))
    dropped = [image for image in images if reasons.get(image.name, EASY_MASK) != EASY_MASK]
    return Examples(least(dropped), least(kept), tuple(chosen))


def loss_map(ids: np.ndarray, losses: np.ndarray, thresholds: np.ndarray) -> Image.Image:
    """Show each pixel's loss relative to the tolerance of its class, in the colors of `LEGEND`; stripes: not checked.

    `ids` and `losses` are (H, W), `thresholds` (num_classes,), NaN or infinite where there is none.
    """
    limit = np.full(256, np.nan)
    limit[: len(thresholds)] = np.where(np.isfinite(thresholds), thresholds, np.nan)
    ratio = losses / limit[ids]  # (H, W)
    steps = np.searchsorted(list(STEPS), ratio, side="left").clip(max=len(STEPS) - 1)
    rows, columns = np.indices(ids.shape)
    stripes = len(STEPS) + (rows + columns) // STRIPE % 2
    image = Image.fromarray(np.where(np.isfinite(ratio), steps, stripes).astype(np.uint8), mode="P")
    image.putpalette([level for color in (*(color for color, _ in STEPS.values()), *UNKNOWN) for level in color])
    return image


def example_pictures(
    examples: Examples,
    images: ImageSet,
    rows: Sequence[Mapping[str, Any]],
    segmenter: Judge,
    thresholds: np.ndarray,
    real: PairDataset,
) -> dict[str, list[Image.Image]]:
    """Segment the examples once more; name -> mask, image, filtered mask and loss map."""
    index_of = {name: index for index, name in enumerate(images.names)}
    row_of = {Path(row["image_file_name"]).stem: row for row in rows}
    labels, pictures = images.labels, {}
    for name in {name: None for names in examples for name in names}:
        image, mask = images.image(index_of[name]), images.mask(index_of[name])
        ids, losses = mask.numpy(), segmenter.losses(image[None], mask[None])[0].numpy()
        is_real = real_pixels(row_of[name], images.pair, index_of[name], real)
        filtered = filter_ids(ids, losses, thresholds, labels.ignore_index, is_real)
        losses_shown = loss_map(ids, losses, thresholds)
        pictures[name] = [labels.decode(ids), to_image(image), labels.decode(filtered), losses_shown]
    return pictures


def write_filter_page(
    path: str | Path,
    record: Mapping[str, Any],
    images: Sequence[Scored],
    reasons: Mapping[str, str],
    examples: Examples,
    pictures: Mapping[str, list[Image.Image]],
    labels: LabelSet,
) -> None:
    """Write the page of a filter; `record` is the content of `filter.json`, `reasons` why images were dropped."""
    reference, losses = record["reference"], ClassLosses.from_record(record["class_losses"])
    image_of = {image.name: image for image in images}
    texts = {name: f"{name}: keeps {percent(image_of[name].kept_share)}." for name in pictures}
    texts |= {name: f"{text} Dropped: {reasons[name]}." for name, text in texts.items() if name in reasons}
    write_page(
        path,
        "filter.html.j2",
        record=record,
        reasons=REASONS,
        worst=[] if reference is None else _worst_classes(record["results"], reference),
        unchecked=[name for name in losses.unchecked if record["results"]["pixels"][name]],
        unread=losses.unread,
        classes=_classes(record, labels),
        histogram=_histogram(images, reasons),
        groups={key: [(texts[name], pictures[name]) for name in names] for key, names in examples._asdict().items()},
        legend=list(LEGEND.items()),
        colors=class_legend(labels),
    )


def _worst_classes(results: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Return the classes that keep their labels much less often than in real photos, the worst first."""
    generated, real = results["kept_share_by_class"], reference["kept_share_by_class"]
    lost = {name: real[name] - share for name, share in generated.items() if name in real}
    worst = sorted((name for name in lost if lost[name] > MUCH_LESS), key=lambda name: (-lost[name], name))
    return [
        f"{name} ({percent(generated[name])}, in real photos {percent(real[name])})" for name in worst[:MOST_NAMED]
    ]


def _classes(record: Mapping[str, Any], labels: LabelSet) -> list[BarRow]:
    results, margin = record["results"], record["settings"]["tolerance_margin"]
    sources = [results] if record["reference"] is None else [results, record["reference"]]
    rows = []
    for name, color, mean in zip(labels.names, labels.colors, record["class_losses"]["mean"], strict=True):
        tolerance = None if mean is None else mean * margin
        shares = [source["kept_share_by_class"].get(name) for source in sources]
        rows.append(BarRow(name, shares, [tolerance, results["pixels"][name], results["pixels_left"][name]], color))
    return rows


def _histogram(images: Sequence[Scored], reasons: Mapping[str, str]) -> list[BarRow]:
    """Return how many images kept and dropped keep 90 to 100 %, 80 to 90 %, ... of their labelled pixels."""
    edges = [index / BINS for index in range(BINS + 1)]
    shares = [(image.kept_share, image.name in reasons) for image in images if image.kept_share is not None]
    groups = ([share for share, is_dropped in shares if is_dropped is group] for group in (False, True))
    kept, dropped = (np.histogram(group, edges)[0].tolist() for group in groups)
    return [
        BarRow(f"{100 * index // BINS} to {100 * (index + 1) // BINS} %", [kept[index], dropped[index]])
        for index in reversed(range(BINS))
    ]
