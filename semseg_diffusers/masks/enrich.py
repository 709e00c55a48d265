"""Create masks with more of the rare classes; see `EnrichSettings` for the command."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE, new_output
from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.masks.editing.operations import Scene
from semseg_diffusers.masks.editing.placement import PlacementRules, check_placeable, find_place
from semseg_diffusers.masks.editing.scene_prior import ScenePrior, fit_dataset_prior
from semseg_diffusers.masks.settings import EnrichSettings
from semseg_diffusers.masks.statistics.counts import MaskStatistics, class_figures, collect_statistics, heat_maps
from semseg_diffusers.masks.statistics.stats import heat_image, plot_statistics
from semseg_diffusers.reports.render import BarRow, percent, write_page
from semseg_diffusers.utils.files import versions, write_json, write_text
from semseg_diffusers.utils.images import image_grid, save_png
from semseg_diffusers.utils.progress import progress_bar


ENOUGH_ADDED = "as many things were added as a mask may have"  # a reason besides those of `find_place`
GAMMA_SHAPE = 2.0  # of the distribution of what each mask should add; larger is more even


@dataclass(frozen=True)
class NewMask:
    """A new mask and what was placed in it."""

    index: int
    base: int  # index of the mask it is made from
    ids: np.ndarray  # (H, W) uint8
    added: tuple[dict, ...]  # see `Placement.describe`
    refused: dict[str, Counter] = field(default_factory=dict)  # class -> why no (more) position was found


def enrich_masks(
    read: Callable[[int], np.ndarray],
    num_bases: int,
    prior: ScenePrior,
    target_shares: Mapping[int, float],
    num_masks: int,
    seed: int = 0,
    max_added: int = 16,
    rules: PlacementRules | None = None,
) -> Iterator[NewMask]:
    """Create masks whose class shares approach targets.

    Args:
        read: returns the class ids, (H, W) uint8, of mask 0, 1, ... of the dataset.
        num_bases: number of these masks. Each is used once before one is used again.
        prior: of the same dataset.
        target_shares: class id -> share of the labelled pixels of all new masks.
        num_masks: number of new masks.
        seed: source of all randomness.
        max_added: largest number of objects added to one mask.
        rules: limits of what counts as a sensible position.

    Yields:
        `NewMask`

    Raises:
        ValueError: Before the first mask, if a class cannot be placed.
    """
    for class_id in target_shares:
        check_placeable(prior, class_id)
    names, num_classes = prior.street.labels.names, prior.street.labels.num_classes
    generator = np.random.default_rng([seed, 0])
    rounds = -(-num_masks // num_bases)
    bases = np.concatenate([generator.permutation(num_bases) for _ in range(rounds)])[:num_masks]
    weights = generator.gamma(GAMMA_SHAPE, size=num_masks)
    weights /= weights.mean()

    have = np.zeros(num_classes + 1, dtype=np.int64)  # pixels of each class in the masks so far, unknown last
    due = 0.0  # labelled pixels so far, weighted by mask
    for index, base in enumerate(bases.tolist()):
        generator = np.random.default_rng([seed, 1, index])
        scene = Scene(read(base), prior.street)
        here = count_pixels(scene.ids, num_classes)
        due += weights[index] * here[:-1].sum()
        added: list[dict] = []
        refused: dict[str, Counter] = {}
        open_targets = {class_id: share * due for class_id, share in target_shares.items()}  # pixels
        while missing := {i: 1 - (have[i] + here[i]) / n for i, n in open_targets.items() if n > have[i] + here[i]}:
            class_id = max(missing, key=missing.__getitem__)
            placement, reasons = None, Counter([ENOUGH_ADDED])
            if len(added) < max_added:
                placement, reasons = find_place(scene, prior, class_id, generator, rules)
            if placement is None:
                refused[names[class_id]] = reasons
                del open_targets[class_id]
                continue
            scene.put(placement.entry, placement.seen)
            added.append(placement.describe(prior.street))
            here = count_pixels(scene.ids, num_classes)
        have += here
        yield NewMask(index, base, scene.ids, tuple(added), refused)


# The command -------------------------------------------------------------------------------------------------------

MAX_FIT_MASKS = 2000  # masks that the prior is fitted to
MAX_TARGET_SHARE = 0.5  # share of all pixels that all target classes may have together
MAX_PAIRS, SHEET_COLUMNS = 20, 4  # masks on the contact sheet, before and after, and in a row of it
MAX_EXAMPLES = 12  # of these on the page


def parse_targets(texts: Sequence[str], labels: LabelSet) -> dict[int, float]:
    """Return class id -> factor from texts like "person=4"."""
    targets: dict[int, float] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            times = float(factor)
        except ValueError:
            times = 0.0
        if not name or not 1 < times < float("inf"):
            raise ValueError(f"expected --target CLASS=FACTOR with a factor above 1, such as person=4; got '{text}'.")
        if name not in labels.label2id:
            raise ValueError(f"--target '{text}': there is no class '{name}'; there are {', '.join(labels.names)}.")
        if labels.label2id[name] in targets:
            raise ValueError(f"--target names '{name}' twice; expected each class once.")
        targets[labels.label2id[name]] = times
    return targets


def run(settings: EnrichSettings) -> None:
    """Run `semseg-diffusers enrich`."""
    pairs = load_pairs(settings.dataset, settings.split)
    factors = parse_targets(settings.target, pairs.labels)
    with new_output(settings.output) as folder:
        record = _enrich(settings, pairs, factors, folder)
    texts = []
    for entry in record["wishes"]:  # codespell:ignore
        target, reached, share = entry["wished"], entry["reached"], percent(entry["share_after"])  # codespell:ignore
        text = f"{entry['name']} target {target:g}x, reached {reached:.2f}x ({share})"
        if reached < 0.95 * target and entry["refused"]:
            text += f", mostly because: {next(iter(entry['refused']))}"
        texts.append(text)
    sys.stdout.write(f"{settings.num_masks} masks in {settings.output}: {'; '.join(texts)}\n")


def _enrich(settings: EnrichSettings, pairs: PairDataset, factors: dict[int, float], folder: Path) -> dict:
    """Fill the output folder; return the content of `enrich.json`."""
    labels = pairs.labels
    # 1. the prior, and whether the targets are possible at all
    prior = fit_dataset_prior(pairs, MAX_FIT_MASKS, show_progress=True)
    for class_id in factors:
        check_placeable(prior, class_id)
    before = collect_statistics(pairs.mask, len(pairs), labels)
    shares = [row.pixel_share for row in class_figures(before)]
    targets = {class_id: times * shares[class_id] for class_id, times in factors.items()}
    if sum(targets.values()) > MAX_TARGET_SHARE:
        raise ValueError(
            f"--target asks for {percent(sum(targets.values()))} of all pixels; objects fill at most "
            f"{percent(MAX_TARGET_SHARE)}. Use smaller factors."
        )

    # 2. the masks
    (folder / "masks").mkdir()
    new_masks = enrich_masks(
        pairs.mask, len(pairs), prior, targets, settings.num_masks, seed=settings.seed, max_added=settings.max_added
    )
    rows: list[dict] = []
    pairs_seen: list[tuple[dict, list[Image.Image]]] = []  # rows with masks before and after, to look at
    for new in progress_bar(new_masks, total=settings.num_masks, desc="placing", unit="mask"):
        name = f"masks/{new.index:05}_{Path(pairs.stems[new.base]).name}.png"
        labels.decode(new.ids).save(folder / name)
        refused = {class_name: dict(reasons.most_common()) for class_name, reasons in new.refused.items()}
        row = {"mask_file_name": name, "base": pairs.stems[new.base], "added": list(new.added), "refused": refused}
        rows.append(row)
        if new.added and len(pairs_seen) < MAX_PAIRS:
            pairs_seen.append((row, [labels.decode(pairs.mask(new.base)), labels.decode(new.ids)]))

    # 3. the results
    after = collect_statistics(lambda i: labels.encode(folder / rows[i]["mask_file_name"]), len(rows), labels)
    labels.save_json(folder / LABELS_FILE)
    write_text(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "dataset": settings.dataset,
        "split": settings.split,
        "num_masks": settings.num_masks,
        "max_added": settings.max_added,
        "seed": settings.seed,
        "wishes": _compare(factors, before, after, rows),  # codespell:ignore
        "sizes": {
            labels.names[class_id]: {
                "slope": model.slope,
                "horizon": model.horizon,
                "learned_from": model.source,
                "whole_objects": len(prior.sources[class_id]),
                "ground": prior.ground[class_id],
            }
            for class_id, model in prior.height_models.items()
        },
        "versions": versions("numpy"),
    }
    write_json(folder / "enrich.json", record)
    wide = bool(pairs_seen) and pairs_seen[0][1][0].width > 2 * pairs_seen[0][1][0].height
    columns = SHEET_COLUMNS // 2 if wide else SHEET_COLUMNS
    starts = range(0, len(pairs_seen), columns)
    grid = [[mask for _, masks in pairs_seen[start : start + columns] for mask in masks] for start in starts]
    headers = ["before", "after"] * min(len(pairs_seen), columns)
    sheet = image_grid(grid, headers, cell_size=160) if grid else Image.new("RGB", (8, 8), "white")
    save_png(folder / "contact_sheet.png", sheet)
    titles = (before, f"before: {Path(settings.dataset).name}"), (after, "after: the new masks")
    figures = [np.asarray(plot_statistics(*part)) for part in titles]
    save_png(folder / "statistics.png", Image.fromarray(np.vstack(figures)))
    _write_page(folder / "statistics.html", record, before, after, pairs_seen)
    return record


def _compare(
    factors: Mapping[int, float], before: MaskStatistics, after: MaskStatistics, rows: Sequence[dict]
) -> list[dict[str, Any]]:
    """Return what was reached of each target: shares of the labelled pixels, connected regions per mask."""
    old, new = class_figures(before), class_figures(after)
    reached = []
    for class_id, factor in factors.items():
        name = before.labels.names[class_id]
        refused: Counter = Counter()
        for row in rows:
            refused.update(row["refused"].get(name, {}))
        shares = old[class_id].pixel_share, new[class_id].pixel_share
        entry = {
            "name": name,
            "wished": factor,  # codespell:ignore
            "reached": shares[1] / shares[0],
            "share_before": shares[0],
            "share_after": shares[1],
            "objects_before": old[class_id].objects / len(before.pixels),
            "objects_after": new[class_id].objects / len(after.pixels),
            "added": sum(entry["class"] == name for row in rows for entry in row["added"]),
            "refused": dict(refused.most_common()),
        }
        reached.append(entry)
    return reached


def _write_page(
    path: Path,
    record: dict[str, Any],
    before: MaskStatistics,
    after: MaskStatistics,
    pairs: list[tuple[dict, list[Image.Image]]],
) -> None:
    """Write the page: targets, all classes, pairs of masks with their line of the manifest, refusals."""
    reached = record["wishes"]  # codespell:ignore
    heat_before, heat_after = heat_maps(before), heat_maps(after)
    classes = []
    for old, new in zip(class_figures(before), class_figures(after), strict=True):
        objects = [old.objects / len(before.pixels), new.objects / len(after.pixels)]
        classes.append(BarRow(old.name, [100 * old.pixel_share, 100 * new.pixel_share], objects))
    examples = []
    for row, masks in pairs[:MAX_EXAMPLES]:
        counts = Counter(entry["class"] for entry in row["added"])
        caption = f"{row['base']}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
        examples.append((caption, dict(zip(("before", "after"), masks, strict=True))))
    ids = {entry["name"]: before.labels.label2id[entry["name"]] for entry in reached}
    write_page(
        path,
        "enrich.html.j2",
        record=record,
        reached=reached,
        classes=classes,
        examples=examples,
        heat_maps=[
            (name, {"before": heat_image(heat_before[i]), "after": heat_image(heat_after[i])})
            for name, i in ids.items()
        ],
        refusals=[f"{row['name']}: {why}, {count} times" for row in reached for why, count in row["refused"].items()],
        settings={key: record[key] for key in record if key not in ("wishes", "sizes")},  # codespell:ignore
    )
