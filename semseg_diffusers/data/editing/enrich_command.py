"""New masks with more of the rare classes: things of the data set's own masks, put where they make sense.

  semseg-diffusers enrich --dataset data/camvid128 --output enriched --num_masks 200 --wish person=4 rider=6

A wish is a class and how many times its share of the pixels in the data set it is to have in the new masks. Things are
copied whole, stand on their ground, are as large as the row of the frame asks, and hide or are hidden by their depth;
see `docs/painting.md`. The same seed gives the same masks. The folder holds `masks/`, `labels.json`, `manifest.jsonl`
(what was put where, from which mask, what was refused and why), `enrich.json`, `statistics.html`, `statistics.png` and
`contact_sheet.png`. Then: semseg-diffusers generate --masks enriched/masks
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from semseg_diffusers.data.editing.enrich_report import (
    Reached,
    both_statistics,
    compare_wishes,
    contact_sheet,
    wishes_page,
)
from semseg_diffusers.data.editing.enrichment import NewMask, enrich_masks
from semseg_diffusers.data.editing.learning import StreetKnowledge, learn_street
from semseg_diffusers.data.editing.placement import check_placeable
from semseg_diffusers.data.editing.street import Street
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import LABELS_FILE, package_version
from semseg_diffusers.data.loading import PairDataset, load_pairs
from semseg_diffusers.data.mask_files import new_output
from semseg_diffusers.data.pages.frame import percent, write_page
from semseg_diffusers.data.pictures import save_png
from semseg_diffusers.data.statistics.class_figures import class_figures
from semseg_diffusers.data.statistics.counts import collect_statistics
from semseg_diffusers.pipelines.saved_files import write_text


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


def read_wishes(texts: list[str], labels: LabelSet) -> dict[int, float]:
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
    wishes = read_wishes(args.wish, pairs.labels)
    with new_output(args.output) as folder:
        reached = _enrich(args, pairs, wishes, folder)
    sys.stdout.write(f"{args.num_masks} masks in {args.output}: {'; '.join(map(_in_words, reached))}\n")


def _enrich(args: argparse.Namespace, pairs: PairDataset, wishes: dict[int, float], folder: Path) -> list[Reached]:
    """Fill the output folder."""
    labels = pairs.labels
    # 1. what the data set teaches, and whether the wishes can be met at all
    step = max(1, len(pairs) / MOST_LEARNED)
    chosen = [int(k * step) for k in range(min(len(pairs), MOST_LEARNED))]
    masks = ((pairs.stems[i], pairs.mask(i)) for i in tqdm(chosen, desc="learning", unit="mask"))
    knowledge = learn_street(masks, Street.of(labels))
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
    for new in tqdm(made, total=args.num_masks, desc="placing", unit="mask"):
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


def _sizes(knowledge: StreetKnowledge) -> dict[str, dict]:
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
