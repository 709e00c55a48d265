"""Paint a street as if by hand: a few large strokes in a label set's colours, soft edges, saved as JPEG.

python examples/sketch.py painted            # painted/street.jpg, in CamVid's colours
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from semseg_diffusers import LabelSet


SIZE = 512  # pixels
SOFT = 3  # factor by which it is drawn larger and reduced, which blends the colours at edges
# From back to front: class, kind of stroke, corners or ends in percent of the side.
STROKES = (
    ("sky", "area", (-1, -1, 101, -1, 101, 60, -1, 60)),
    ("vegetation", "blob", (36, 26, 66, 52)),
    ("building", "area", (-1, 5, 14, 8, 30, 24, 41, 36, 41, 55, -1, 75)),
    ("building", "area", (101, 2, 84, 10, 66, 28, 60, 37, 60, 55, 101, 75)),
    ("road", "area", (45, 49, 54, 49, 101, 84, 101, 101, -1, 101, -1, 92)),
    ("sidewalk", "area", (43, 49, 46, 49, -1, 95, -1, 66)),
    ("sidewalk", "area", (54, 49, 57, 49, 101, 68, 101, 86)),
    ("fence", "area", (66, 47, 80, 48, 80, 56, 66, 53)),
    ("car", "area", (45.5, 52, 46, 49, 47.5, 46, 52.5, 46, 54, 49, 54.5, 52, 54.5, 54, 45.5, 54)),
    ("car", "area", (58, 57, 61, 51, 69, 51, 73, 57, 73, 66, 70, 66, 70, 68, 61, 68, 61, 66, 58, 66)),
    ("pole", "line", (21, 12, 21, 70)),
    ("traffic sign", "blob", (18, 22, 24, 28)),
    ("person", "blob", (10.5, 48, 13.5, 52)),
    ("person", "area", (9.5, 52, 14.5, 52, 14, 63, 13.5, 74, 12.3, 74, 12, 64, 11.6, 74, 10.4, 74, 10, 63)),
    ("rider", "blob", (35, 47, 38, 50.5)),
    ("rider", "area", (34, 51, 39, 51, 39.5, 58, 38, 66, 37.4, 70, 35.6, 70, 35, 66, 33.5, 58)),
)


def paint_street(labels: LabelSet) -> Image.Image:
    """Return the street in the colours of a label set with CamVid's classes: RGB, soft edges."""
    canvas = Image.new("RGB", (SIZE * SOFT, SIZE * SOFT))
    draw = ImageDraw.Draw(canvas)
    for name, kind, percents in STROKES:
        color = labels.colors[labels.label2id[name]]
        points = [percent / 100 * SIZE * SOFT for percent in percents]
        if kind == "area":
            draw.polygon(points, fill=color)
        elif kind == "blob":
            draw.ellipse(points, fill=color)
        else:
            draw.line(points, fill=color, width=round(0.012 * SIZE * SOFT))
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for street.jpg")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    paint_street(LabelSet.from_preset("camvid")).save(folder / "street.jpg", quality=85)
    print(f"{folder / 'street.jpg'}; next: semseg-diffusers clean --masks {folder} --labels camvid --output cleaned")
