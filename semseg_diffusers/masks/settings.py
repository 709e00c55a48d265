"""Settings of the commands on masks."""

import os
from dataclasses import dataclass

from semseg_diffusers.data.settings import LABEL_PRESETS, ColumnOptions
from semseg_diffusers.utils.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class StatsSettings(ColumnOptions):
    """Report class statistics of a dataset's masks and the classes that a model trained on them will generate badly.

    Writes `stats.json` (all numbers), `stats.csv` (those of the classes, as a table), `stats.npz` (heat maps, pixels
    of each mask), `stats.png` and `index.html`.
    """

    dataset: str = option(metavar="DIR|ID", help="prepared folder, or a dataset id on the Hub")
    output: str = option(metavar="DIR", help="folder for the files")
    split: str = option("train", help="split to count")
    num_workers: int = option(os.cpu_count() or 1, at_least=1, help="threads (default: one per core)")


@dataclass(frozen=True, kw_only=True)
class CleanSettings(Settings):
    """Turn hand-painted masks, PNG or JPEG in the label set's colours, into masks that `generate` accepts.

      semseg-diffusers labels --preset camvid --output legend          # the colours to paint with
      semseg-diffusers clean --masks painted --labels camvid --output cleaned
      semseg-diffusers generate --model runs/camvid128 --masks cleaned/masks --output new

    Blends of soft brushes, resizing and JPEG get the class of their surroundings; pixels with exactly the colour of a
    class never change; transparent pixels are unknown, which leaves them to the model. `clean.json` and `guessed.png`
    show what was guessed. An image with too many colours of no class is refused: it is a photo, is painted in another
    label set, or is partly unpainted.
    """

    masks: str = option(metavar="FILE|DIR", help="painted mask, or folder of them")
    labels: str | None = option(
        None, metavar="PRESET|FILE",
        help=f"their colours: {', '.join(LABEL_PRESETS)}, or a JSON file (default: labels.json near the masks)",
    )  # fmt: skip
    output: str = option(metavar="DIR", help="new folder for masks/, clean.json, guessed.png")
    min_area: int = option(8, at_least=0, help="specks under so many pixels are removed")
    max_strange: float = option(
        0.05, at_least=0, at_most=1, help="share of pixels of no class above which an image is refused"
    )


@dataclass(frozen=True, kw_only=True)
class EditSettings(Settings):
    r"""Edit masks: remove, move, scale, mirror, paste and draw objects, as input for `generate`.

      semseg-diffusers edit --masks street.png --output edited \
          --operation "paste from=other.png class=car to=60,100 flip" --operation "remove class=person number=all"
      semseg-diffusers edit --masks data/val/masks --output edited --operations operations.yaml

    Points are x,y in pixels. An object is selected by a pixel (at=x,y), or by its class and its rank by size:

      paste      from=FILE, at= or class= [number=]; to=x,y of the middle of its feet, scale=, flip
      place      class= [count=]: objects of --dataset, at sensible positions and sizes (see `enrich` for kinds)
      move       at= or class= [number=]; to=x,y or by=x,y
      scale      at= or class= [number=]; factor=
      flip       at= or class= [number=]
      remove     at= or class= [number= or number=all]: filled from its surroundings
      relabel    at= (the region there) or class= (all of it); to=CLASS
      polygon    class=, points=x,y;x,y;x,y
      stroke     class=, points=x,y;x,y, radius=
      rectangle  class=, first=x,y, last=x,y
      ellipse    class=, center=x,y, radii=x,y

    The class `unknown` leaves pixels to the model. A file contains the same as a YAML or JSON list:
    `- paste: {from: other.png, class: car, to: [60, 100]}`; paths in it are relative to the file.
    """

    masks: str = option(metavar="FILE|DIR", help="mask, or folder of masks, to edit")
    output: str = option(metavar="DIR", help="new folder for masks/, before_after.png, ...")
    operation: tuple[str, ...] = option(
        (), repeated=True, metavar="TEXT", help="one operation; may be given several times"
    )
    operations: str | None = option(
        None, metavar="FILE", help="YAML or JSON list of operations, run before --operation"
    )
    labels: str | None = option(None, metavar="PRESET|FILE", help="label set (default: labels.json near the masks)")
    dataset: str | None = option(None, metavar="DIR|ID", help="prepared dataset that `place` takes objects from")
    split: str = option("train", help="split of --dataset")
    seed: int = option(0, at_least=0, help="seed of `place`")

    def __post_init__(self):
        super().__post_init__()
        if not self.operation and self.operations is None:
            raise ValueError("expected --operation or --operations; got neither.")


@dataclass(frozen=True, kw_only=True)
class EnrichSettings(Settings):
    """Create masks with more of the rare classes: objects of the dataset's own masks at sensible positions.

      semseg-diffusers enrich --dataset data/camvid128 --output enriched --num_masks 200 --target person=4 rider=6

    A target is a class and a factor: its share of the pixels in the new masks against its share in the dataset.
    Complete objects are copied onto their kind of ground, as large as their row of the frame asks, with occlusion by
    depth; see docs/how_to/painting.md. What a class is follows from its name, such as pedestrian, car or road, or from
    the kind that labels.json gives it, "id2kind": {"2": "vehicle"}; the kinds are person, rider, car, truck, bus,
    motorcycle, bicycle, vehicle, object; road, sidewalk; pole, upright; none. The same seed gives the same masks. The
    folder contains `masks/`, `labels.json`, `manifest.jsonl` (what was placed where, from which mask, what was refused
    and why), `enrich.json`, `statistics.html`, `statistics.png` and `contact_sheet.png`. Next:
    semseg-diffusers generate --masks enriched/masks
    """

    dataset: str = option(metavar="DIR|ID", help="prepared folder, or a dataset id on the Hub")
    split: str = option("train", help="split of the masks")
    output: str = option(metavar="DIR", help="new folder")
    num_masks: int = option(at_least=1, metavar="K", help="number of new masks")
    target: tuple[str, ...] = option(
        metavar="CLASS=FACTOR",
        old_names=("wish",),  # codespell:ignore
        help='such as person=4 rider=6 "traffic cone=3"',
    )
    max_added: int = option(16, at_least=1, help="largest number of objects added to a mask")
    seed: int = option(0, at_least=0, help="seed of all randomness")
