"""Turn hand-painted masks into masks that `generate` takes: any editor's PNG or JPEG, in the label set's colours.

  semseg-diffusers labels --preset camvid --output legend          # the colours to paint with
  semseg-diffusers clean --masks painted --labels camvid --output cleaned
  semseg-diffusers generate --model runs/camvid128 --masks cleaned/masks --output new

Blends of soft brushes, resizing and JPEG get the class of what is around them; pixels that have exactly a class's
colour are never changed; transparent ones are unknown, which leaves them to the model. `clean.json` and `guessed.png`
say what was guessed. A picture with too many colours of no class is refused: it is a photo, or of another label set,
or a part of it was left unpainted.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.layout import LABELS_FILE
from semseg_diffusers.data.mask_files import find_masks, labels_of_masks, new_output
from semseg_diffusers.data.painting import Cleaned, clean_painting
from semseg_diffusers.data.pictures import image_grid, save_png
from semseg_diffusers.pipelines.mask_inputs import open_image
from semseg_diffusers.pipelines.saved_files import write_text


ROWS = 16  # masks on guessed.png
LEAST_PLAIN = 0.5  # share of a painting that is near the colours of classes
CELL = 512  # pixels; larger paintings are shown smaller
NAMED_COLORS = 20  # colours of a mask in clean.json
MARK, STRANGE_MARK = (255, 0, 255), (255, 140, 0)  # guessed pixels on guessed.png, and those of no class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", required=True, metavar="FILE|DIR", help="painted mask, or folder of them")
    parser.add_argument(
        "--labels",
        metavar="PRESET|FILE",
        help=f"their colours: {', '.join(PRESET_NAMES)}, or a JSON file (default: {LABELS_FILE} near the masks)",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make: masks/, clean.json, guessed.png"
    )
    parser.add_argument(
        "--min_area", type=int, default=8, help="specks under so many pixels are removed (default %(default)s)"
    )
    parser.add_argument(
        "--max_strange",
        type=float,
        default=0.05,
        help="share of pixels of no class from which on a picture is refused (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    if args.min_area < 0 or not 0 <= args.max_strange <= 1:
        raise ValueError(
            f"--min_area {args.min_area} --max_strange {args.max_strange}; wanted 0 or more, and a share from 0 to 1."
        )
    paths, labels = find_masks(args.masks), labels_of_masks(args.masks, args.labels)
    with new_output(args.output) as folder:
        (folder / "masks").mkdir()
        rows, notes = [], []
        for path in paths:
            picture = open_image(path)
            cleaned = clean_painting(picture, labels, args.min_area, source=str(path))
            if cleaned.strange.mean() > args.max_strange or cleaned.plain_share < LEAST_PLAIN:
                raise ValueError(_refusal(path, cleaned, args.max_strange))
            labels.decode(cleaned.ids).save(folder / "masks" / f"{path.stem}.png")
            notes.append(_note(path, cleaned, labels))
            if len(rows) < ROWS:
                shown = [picture.convert("RGB"), labels.decode(cleaned.ids), show_guesses(cleaned)]
                rows.append([_fitted(image) for image in shown])
        names = [path.stem for path in paths[:ROWS]]
        save_png(folder / "guessed.png", image_grid(rows, ["painted", "cleaned", "guessed"], names, cell_size=192))
        labels.save_json(folder / LABELS_FILE)
        record = {"min_area": args.min_area, "max_strange": args.max_strange, "masks": notes}
        write_text(folder / "clean.json", json.dumps(record, indent=2) + "\n")
    exact, guessed = (np.mean([note[f"{what}_share"] for note in notes]) for what in ("exact", "guessed"))
    sys.stdout.write(
        f"{len(notes)} mask(s): {exact:.1%} of the pixels have exactly a class's colour, {guessed:.1%} were told by "
        f"those around them; look at {Path(args.output) / 'guessed.png'}. Next: semseg-diffusers generate --masks "
        f"{Path(args.output) / 'masks'}\n"
    )


def _note(path: Path, cleaned: Cleaned, labels: LabelSet) -> dict:
    """What `clean.json` says of a mask."""
    names = {**labels.id2label, labels.ignore_index: "unknown"}
    ids, counts = np.unique(cleaned.ids, return_counts=True)
    return {
        "mask": str(path),
        "output": f"masks/{path.stem}.png",
        "exact_share": float(cleaned.exact.mean()),
        "guessed_share": float(cleaned.guessed.mean()),
        "strange_share": float(cleaned.strange.mean()),
        "speck_pixels": int(cleaned.specks.sum()),
        "classes": {names[i]: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True)},
        "colors": [{"color": list(color), "pixels": n} for color, n in list(cleaned.colors.items())[:NAMED_COLORS]],
        "num_colors": len(cleaned.colors),
    }


def _refusal(path: Path, cleaned: Cleaned, most: float) -> str:
    named = ", ".join(f"{color} in {count} pixels" for color, count in list(cleaned.colors.items())[:3])
    if cleaned.plain_share < LEAST_PLAIN:
        found = f"only {cleaned.plain_share:.0%} of its pixels are near the colour of a class"
        asked = "Is it a photo, or painted in the colours of another label set?"
    else:
        found = (
            f"{cleaned.strange.mean():.0%} of its pixels have colours of no class, more than --max_strange {most:g}"
        )
        asked = "Was a part left unpainted? Paint it, in the colour of unknown where the model is to choose."
    legend = "The colours: semseg-diffusers labels."
    return f"mask '{path}': {found}; the most frequent such colours are {named}. {asked} {legend}"


def show_guesses(cleaned: Cleaned) -> Image.Image:
    """Guessed pixels marked on the cleaned mask in grey: P mode, so that it is shown with hard edges."""
    grey = np.arange(256, dtype=np.uint8) // 2 + 100
    shown = np.minimum(cleaned.ids, 19) * 6  # neighbouring classes differ in grey
    shown[cleaned.guessed], shown[cleaned.strange] = 254, 255
    picture = Image.fromarray(shown.astype(np.uint8))
    palette = np.stack([grey] * 3, axis=1)
    palette[254], palette[255] = MARK, STRANGE_MARK
    picture.putpalette(palette.astype(np.uint8).tobytes())
    return picture


def _fitted(image: Image.Image) -> Image.Image:
    """A picture no larger than a cell of the report may be."""
    scale = min(1.0, CELL / max(image.size))
    how = Image.Resampling.NEAREST if image.mode == "P" else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
