"""Edit masks: take objects out, move, scale, mirror, paste and draw; the changed masks are what `generate` takes.

  semseg-diffusers edit --masks street.png --output edited \\
      --operation "paste from=other.png class=car to=60,100 flip" --operation "remove class=person number=all"
  semseg-diffusers edit --masks data/val/masks --output edited --operations operations.yaml

Points are x,y in pixels. An object is chosen by a pixel in it (at=x,y) or by its class and its number by size:

  paste      from=FILE, at= or class= [number=]; to=x,y of the middle of its feet, scale=, flip
  place      class= [count=]: things of --dataset, where such things stand and as large as they are there
  move       at= or class= [number=]; to=x,y or by=x,y
  scale      at= or class= [number=]; factor=
  flip       at= or class= [number=]
  remove     at= or class= [number= or number=all]: filled from its surroundings
  relabel    at= (the region there) or class= (all of it); to=CLASS
  polygon    class=, points=x,y;x,y;x,y
  stroke     class=, points=x,y;x,y, radius=
  rectangle  class=, first=x,y, last=x,y
  ellipse    class=, center=x,y, radii=x,y

The class `unknown` stands for pixels that are left to the model. A file holds the same as a YAML or JSON list:
`- paste: {from: other.png, class: car, to: [60, 100]}`; files that it names lie beside it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from semseg_diffusers.data.editing.kinds import Context
from semseg_diffusers.data.editing.learning import learn_street
from semseg_diffusers.data.editing.script import Operation, parse_operation, read_operations, run_operations
from semseg_diffusers.data.editing.street import Street
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import LABELS_FILE
from semseg_diffusers.data.loading import load_pairs
from semseg_diffusers.data.mask_files import find_masks, labels_of_masks, new_output
from semseg_diffusers.data.pictures import image_grid, save_png
from semseg_diffusers.pipelines.saved_files import write_text


EDITS_FILE = "edits.json"
ROWS = 16  # masks on before_after.png
FADED = 0.25  # how much of a pixel's colour stays where nothing changed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", required=True, metavar="FILE|DIR", help="mask, or folder of masks, to change")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make: masks/, before_after.png, ...")
    parser.add_argument(
        "--operation", action="append", default=[], metavar="TEXT", help="one change; may be given several times"
    )
    parser.add_argument("--operations", metavar="FILE", help="YAML or JSON list of changes, done before --operation")
    parser.add_argument("--labels", metavar="PRESET|FILE", help=f"label set (default: {LABELS_FILE} near the masks)")
    parser.add_argument("--dataset", metavar="DIR|ID", help="prepared data set that `place` takes things from")
    parser.add_argument("--split", default="train", help="of --dataset (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of `place` (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    operations = read_operations(args.operations) if args.operations else []
    operations += [parse_operation(text) for text in args.operation]
    if not operations:
        raise ValueError("there is nothing to do: give --operation or --operations.")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}; wanted 0 or more.")
    paths = find_masks(args.masks)
    labels = labels_of_masks(args.masks, args.labels)
    street = Street.of(labels)
    knowledge = None
    if any(operation.name == "place" for operation in operations) and args.dataset:
        pairs = load_pairs(args.dataset, args.split)
        if pairs.labels.names != labels.names:
            raise ValueError(f"'{args.dataset}' and '{args.masks}' have different classes; wanted one label set.")
        knowledge = learn_street(((stem, pairs.mask(i)) for i, stem in enumerate(pairs.stems)), street)

    with new_output(args.output) as folder:
        (folder / "masks").mkdir()
        rows, notes = [], []
        for path in paths:
            generator = np.random.default_rng([args.seed, *path.stem.encode()])  # whatever other masks there are
            before = labels.encode(path)
            after, done = run_operations(before, operations, Context(street, generator, knowledge), f"'{path}'")
            labels.decode(after).save(folder / "masks" / f"{path.stem}.png")
            notes.append({"mask": str(path), "output": f"masks/{path.stem}.png", "operations": done})
            if len(rows) < ROWS:
                rows.append([labels.decode(before), labels.decode(after), show_changes(before, after, labels)])
        names = [path.stem for path in paths[:ROWS]]
        save_png(folder / "before_after.png", image_grid(rows, ["before", "after", "changed"], names, cell_size=192))
        labels.save_json(folder / LABELS_FILE)
        record = {"seed": args.seed, "dataset": args.dataset, "masks": notes}
        write_text(folder / EDITS_FILE, json.dumps(record, indent=2) + "\n")
    sys.stdout.write(_summary(args.output, operations, notes))


def show_changes(before: np.ndarray, after: np.ndarray, labels: LabelSet) -> Image.Image:
    """The new mask with all that did not change faded to grey: RGB, hard edges."""
    colours = np.asarray(labels.decode(after).convert("RGB"), dtype=np.float32)  # (H, W, 3)
    faded = 255 - FADED * (255 - colours.mean(axis=2, keepdims=True))
    shown = np.where((before != after)[..., None], colours, faded)
    return Image.fromarray(shown.round().astype(np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)


def _summary(output: str, operations: list[Operation], notes: list[dict]) -> str:
    changed = sum(entry["changed_pixels"] for note in notes for entry in note["operations"])
    return (
        f"{len(notes)} mask(s), {len(operations)} operation(s) each, {changed} pixels changed; look at "
        f"{Path(output) / 'before_after.png'}. Next: semseg-diffusers generate --masks {Path(output) / 'masks'}\n"
    )
