"""New masks with more of the rare classes: things of the data set's own masks, put where they make sense.

  semseg-diffusers enrich --dataset data/camvid128 --output enriched --num_masks 200 --wish person=4 rider=6

A wish is a class and how many times its share of the pixels in the data set it is to have in the new masks. Things are
copied whole, stand on their ground, are as large as the row of the frame asks, and hide or are hidden by their depth;
see docs/how_to/painting.md. The same seed gives the same masks. The folder holds `masks/`, `labels.json`,
`manifest.jsonl` (what was put where, from which mask, what was refused and why), `enrich.json`, `statistics.html`,
`statistics.png` and `contact_sheet.png`. Then: semseg-diffusers generate --masks enriched/masks
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from semseg_diffusers.data.dataset import PairDataset, load_pairs
from semseg_diffusers.data.dataset_format import LABELS_FILE
from semseg_diffusers.data.label_mapping import count_pixels
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_files import new_output
from semseg_diffusers.masks.editing.operations import Scene
from semseg_diffusers.masks.editing.placement import PlacementRules, check_placeable, find_place
from semseg_diffusers.masks.editing.scene_prior import ScenePrior, fit_scene_prior
from semseg_diffusers.masks.editing.street import Street
from semseg_diffusers.masks.statistics.counts import class_figures, collect_statistics
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.reports.enrich_page import (
    Reached,
    both_statistics,
    compare_wishes,
    contact_sheet,
    wishes_page,
)
from semseg_diffusers.reports.html import percent, write_page
from semseg_diffusers.utils.files import package_version
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar


ENOUGH_ADDED = "as many things were added as a mask may have"  # a reason beside those of `find_place`
BURSTS = 2.0  # shape of the gamma distribution of what each mask is to add; larger is more even


@dataclass(frozen=True)
class NewMask:
    """One new mask, and what was done for it."""

    index: int
    base: int  # which mask it was made from
    ids: np.ndarray  # (H, W) uint8
    added: tuple[dict, ...]  # what was put where, see `Placement.describe`
    refused: dict[str, Counter] = field(default_factory=dict)  # class -> why no (more) place was found


def enrich_masks(
    read: Callable[[int], np.ndarray],
    num_bases: int,
    knowledge: ScenePrior,
    target_shares: Mapping[int, float],
    num_masks: int,
    seed: int = 0,
    max_added: int = 16,
    rules: PlacementRules | None = None,
) -> Iterator[NewMask]:
    """Make new masks whose class shares approach what is wished.

    Args:
        read (callable): gives the class ids, (H, W) uint8, of mask 0, 1, ... of the data set.
        num_bases (`int`): how many it has. Each is used once before one is used again.
        knowledge (`ScenePrior`): of the same data set.
        target_shares (`Mapping`): class id -> wished share of the labelled pixels of all new masks.
        num_masks (`int`): how many to make.
        seed (`int`, defaults to 0): all that is drawn follows from it.
        max_added (`int`, defaults to 16): things that one mask gets at most.
        rules (`PlacementRules`, *optional*): what makes a place sensible.

    Yields:
        `NewMask`

    Raises:
        ValueError: before the first mask, where a class cannot be placed.
    """
    for class_id in target_shares:
        check_placeable(knowledge, class_id)
    names, num_classes = knowledge.street.labels.names, knowledge.street.labels.num_classes
    drawn = np.random.default_rng([seed, 0])
    rounds = -(-num_masks // num_bases)
    bases = np.concatenate([drawn.permutation(num_bases) for _ in range(rounds)])[:num_masks]
    weights = drawn.gamma(BURSTS, size=num_masks)
    weights /= weights.mean()

    have = np.zeros(num_classes + 1, dtype=np.int64)  # pixels of each class in the masks so far, unknown last
    due = 0.0  # labelled pixels so far, each mask's times its weight
    for index, base in enumerate(bases.tolist()):
        generator = np.random.default_rng([seed, 1, index])
        scene = Scene(read(base), knowledge.street)
        here = count_pixels(scene.ids, num_classes)
        due += weights[index] * here[:-1].sum()
        added: list[dict] = []
        refused: dict[str, Counter] = {}
        open_wishes = {class_id: share * due for class_id, share in target_shares.items()}  # pixels
        while True:
            missing = {i: 1 - (have[i] + here[i]) / n for i, n in open_wishes.items() if n > have[i] + here[i]}
            if not missing:
                break
            class_id = max(missing, key=missing.__getitem__)
            placement, reasons = None, Counter([ENOUGH_ADDED])
            if len(added) < max_added:
                placement, reasons = find_place(scene, knowledge, class_id, generator, rules)
            if placement is None:
                refused[names[class_id]] = reasons
                del open_wishes[class_id]
                continue
            scene.put(placement.entry, placement.seen)
            added.append(placement.describe(knowledge.street))
            here = count_pixels(scene.ids, num_classes)
        have += here
        yield NewMask(index, base, scene.ids, tuple(added), refused)


MOST_LEARNED = 2000  # masks that things and sizes are learned from
MOST_WISHED = 0.5  # share of all pixels that the wished classes may have together
SHEET = 20  # pairs on the contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="DIR|ID", help="prepared folder, or a data set on the Hub")
    parser.add_argument("--split", default="train", help="default %(default)s")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--num_masks", type=int, required=True, metavar="K", help="how many new masks")
    parser.add_argument(
        "--wish", nargs="+", required=True, metavar="CLASS=TIMES", help='such as person=4 rider=6 "traffic cone=3"'
    )
    parser.add_argument("--max_added", type=int, default=16, help="things that one mask gets (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")


def parse_targets(texts: list[str], labels: LabelSet) -> dict[int, float]:
    """Class id -> factor, from texts like "person=4".

    Raises:
        ValueError: a text has another form, names no class or one twice, or the factor is not above 1.
    """
    wishes: dict[int, float] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            times = float(factor)
        except ValueError:
            times = 0.0
        if not name or not 1 < times < float("inf"):
            raise ValueError(f"--wish '{text}' is not understood; wanted CLASS=TIMES with a number above 1: person=4.")
        if name not in labels.label2id:
            raise ValueError(f"--wish '{text}': there is no class '{name}'; there are {', '.join(labels.names)}.")
        if labels.label2id[name] in wishes:
            raise ValueError(f"--wish names '{name}' twice; wanted each class once.")
        wishes[labels.label2id[name]] = times
    return wishes


def run(args: argparse.Namespace) -> None:
    if args.num_masks < 1 or args.max_added < 1 or args.seed < 0:
        raise ValueError(
            f"--num_masks {args.num_masks} --max_added {args.max_added} --seed {args.seed}; wanted 1, 1 and 0 or more."
        )
    pairs = load_pairs(args.dataset, args.split)
    wishes = parse_targets(args.wish, pairs.labels)
    with new_output(args.output) as folder:
        reached = _enrich(args, pairs, wishes, folder)
    sys.stdout.write(f"{args.num_masks} masks in {args.output}: {'; '.join(map(_in_words, reached))}\n")


def _enrich(args: argparse.Namespace, pairs: PairDataset, wishes: dict[int, float], folder: Path) -> list[Reached]:
    """Fill the output folder."""
    labels = pairs.labels
    # 1. what the data set teaches, and whether the wishes can be met at all
    step = max(1, len(pairs) / MOST_LEARNED)
    chosen = [int(k * step) for k in range(min(len(pairs), MOST_LEARNED))]
    masks = ((pairs.stems[i], pairs.mask(i)) for i in progress_bar(chosen, desc="learning", unit="mask"))
    knowledge = fit_scene_prior(masks, Street.of(labels))
    for class_id in wishes:
        check_placeable(knowledge, class_id)
    before = collect_statistics(pairs.mask, len(pairs), labels)
    shares = [row.pixel_share for row in class_figures(before)]
    targets = {class_id: times * shares[class_id] for class_id, times in wishes.items()}
    if sum(targets.values()) > MOST_WISHED:
        raise ValueError(
            f"the wishes ask for {percent(sum(targets.values()))} of all pixels; things fill {percent(MOST_WISHED)} "
            "at most. Wish for less."
        )

    # 2. the masks
    (folder / "masks").mkdir()
    made = enrich_masks(
        pairs.mask, len(pairs), knowledge, targets, args.num_masks, seed=args.seed, max_added=args.max_added
    )
    rows, sheet = [], []
    for new in progress_bar(made, total=args.num_masks, desc="placing", unit="mask"):
        name = f"{new.index:05}_{Path(pairs.stems[new.base]).name}.png"
        labels.decode(new.ids).save(folder / "masks" / name)
        rows.append(_row(name, pairs.stems[new.base], new))
        if new.added and len(sheet) < SHEET:
            sheet.append((rows[-1], [labels.decode(pairs.mask(new.base)), labels.decode(new.ids)]))

    # 3. what came of it
    paths = [folder / row["mask_file_name"] for row in rows]
    after = collect_statistics(lambda i: labels.encode(paths[i]), len(paths), labels)
    reached = compare_wishes(wishes, before, after, rows)
    labels.save_json(folder / LABELS_FILE)
    write_text(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "dataset": args.dataset,
        "split": args.split,
        "num_masks": args.num_masks,
        "max_added": args.max_added,
        "seed": args.seed,
        "wishes": [asdict(entry) for entry in reached],
        "sizes": _sizes(knowledge),
        "versions": {"semseg_diffusers": package_version(), "numpy": np.__version__},
    }
    write_text(folder / "enrich.json", json.dumps(record, indent=2) + "\n")
    save_png(folder / "contact_sheet.png", contact_sheet([masks for _, masks in sheet]))
    save_png(folder / "statistics.png", both_statistics(before, after, Path(args.dataset).name))
    write_page(folder / "statistics.html", wishes_page(record, reached, before, after, sheet))
    return reached


def _row(name: str, base: str, new: NewMask) -> dict:
    """A mask's line of the manifest."""
    refused = {class_name: dict(reasons.most_common()) for class_name, reasons in new.refused.items()}
    return {"mask_file_name": f"masks/{name}", "base": base, "added": list(new.added), "refused": refused}


def _sizes(knowledge: ScenePrior) -> dict[str, dict]:
    """The sizes and grounds that were learned, by class name."""
    names = knowledge.street.labels.names
    return {
        names[class_id]: {
            "slope": law.slope,
            "horizon": law.horizon,
            "learned_from": law.source,
            "whole_objects": len(knowledge.donors[class_id]),
            "ground": knowledge.ground[class_id],
        }
        for class_id, law in knowledge.laws.items()
    }


def _in_words(entry: Reached) -> str:
    """A wish and what was reached, for the terminal."""
    text = f"{entry.name} wished {entry.wished:g}x, reached {entry.reached:.2f}x ({percent(entry.share_after)})"
    if entry.reached < 0.95 * entry.wished and entry.refused:
        text += f", mostly because: {next(iter(entry.refused))}"
    return text
