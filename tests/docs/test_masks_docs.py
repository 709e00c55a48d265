"""docs/how_to/masks.md: each line of its tables is true, and each case here is a line of it."""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from helpers.page_blocks import PAGES
from PIL import ExifTags, Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings


PAGE = next(page for page in PAGES if page.name == "masks.md").read_text(encoding="utf-8")
CAMVID = LabelSet.from_preset("camvid")
ROAD = CAMVID.colors[3]
BLACK_AND_WHITE = LabelSet(("black", "white"), ((0, 0, 0), (255, 255, 255)), ignore_color=(255, 0, 0))
WHITE_FIRST = LabelSet(("white", "black"), ((255, 255, 255), (0, 0, 0)), ignore_color=(255, 0, 0))


def rows(heading: str) -> list[str]:
    """Return the first cells of the tables below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \|", section, flags=re.MULTILINE)
    return [cell for cell in cells if cell not in ("A file with", "Where some masks", "`labels.json` has")]


def row(*values) -> np.ndarray:
    return np.array([values], np.uint8)


def with_palette(indices: np.ndarray, colors) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


def rgb(*colors) -> Image.Image:
    return Image.fromarray(np.array([colors], np.uint8))


def in_file(image, form: str = "png", **options) -> Image.Image:
    """Return an image as it is read from a file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[ExifTags.Base.Orientation] = orientation
    return result


VOC = [(0, 0, 0), *CAMVID.colors]
UPRIGHT = np.array([[3, 4, 255], [0, 1, 2]], np.uint8)
ONE_FILE = {
    "one channel (8 bits, 1 bit, 16 or 32 bits of integers)": [
        (CAMVID, row(3, 255), [3, 255]),
        (CAMVID, Image.fromarray(row(0, 1) > 0), [0, 1]),
        (CAMVID, Image.fromarray(row(3, 255).astype(np.uint16)), [3, 255]),
    ],
    "one channel whose values are no ids, and all grey levels of class colours": [(CAMVID, row(0, 128), [255, 0])],
    "one channel with 255, where a class is white and all values are grey levels of class colours": [
        (BLACK_AND_WHITE, row(0, 255), [0, 1]),
        (WHITE_FIRST, row(0, 255), [1, 0]),
    ],
    "a palette in which each class has its own colour": [(CAMVID, CAMVID.decode(row(0, 3, 255)), [0, 3, 255])],
    "a palette that is a grey ramp": [(CAMVID, with_palette(row(0, 3), [(i, i, i) for i in range(256)]), [0, 3])],
    "any other palette": [
        (CAMVID, with_palette(row(0, 4), VOC), [255, 3]),
        (CAMVID, with_palette(row(0, 0), VOC), [255, 255]),
    ],
    "RGB, or RGBA without transparent pixels": [
        (CAMVID, rgb(ROAD, (0, 0, 0)), [3, 255]),
        (CAMVID, rgb(ROAD, (0, 0, 0)).convert("RGBA"), [3, 255]),
    ],
    "RGB whose green and blue are 0 and whose red holds ids that are no colours (CARLA)": [
        (CAMVID, rgb((3, 0, 0), (0, 0, 0)), [3, 0])
    ],
    "an EXIF orientation of its own": [
        (CAMVID, in_file(Image.fromarray(UPRIGHT).transpose(Image.Transpose.ROTATE_180), exif=exif(3)), UPRIGHT)
    ],
}
REFUSED = {
    "JPEG compression": (CAMVID, in_file(row(3, 3), "jpeg"), "is a JPEG"),
    "several pages or frames": (
        CAMVID, in_file(row(3, 3), "tiff", save_all=True, append_images=[Image.fromarray(row(4, 4))]), "has 2 pages",
    ),
    "transparent pixels": (CAMVID, Image.new("RGBA", (2, 1), (*ROAD, 9)), "has 2 transparent pixels"),
    "floating-point numbers": (CAMVID, Image.fromarray(row(3, 3).astype(np.float32)), "the image mode F"),
    "colours of 16 bits": (CAMVID, "16 bits", "has colours of 16 bits"),
    "a colour that no class has": (CAMVID, rgb((1, 2, 3)), "holds 1 colour that no class has"),
    "an id that no class has": (CAMVID, row(0, 23), "holds class 23; .*another label set"),
    "values that are ids as well as grey colours, where all class colours are grey": (
        WHITE_FIRST, row(0, 0), "class ids as well as the grey colours .*--mask_values",
    ),
}  # fmt: skip
DATASET = {
    "hold 0 only, and others 0 and 128, the grey of a class that is no id": (
        CAMVID, [row(0, 0), row(0, 128)], [[255, 255], [255, 0]],
    ),
    "hold 0 only, and others 0 and 255, with black and white classes": (
        WHITE_FIRST, [row(0, 0), row(0, 255)], [[1, 1], [1, 0]],
    ),
    "are black, and others hold ids in the red channel": (
        CAMVID, [rgb((0, 0, 0), (0, 0, 0)), rgb((3, 0, 0), (0, 0, 0))], [[0, 0], [3, 0]],
    ),
    "hold palette colours in which 0 is unlabelled, and others ids in which 0 is a class": (
        CAMVID, [with_palette(row(0, 4), VOC), row(0, 4)], "masks disagree .* class ids in 1 .*; colours .* in 1 ",
    ),
}  # fmt: skip
IGNORED = {
    'classes 0 to 2, `"ignore_index": 0`': ({0: "a", 1: "b", 2: "c"}, 0, row(0, 1, 2, 3), [255, 0, 1, 2]),
    'classes 1 to 3, `"ignore_index": 0`': ({1: "a", 2: "b", 3: "c"}, 0, row(0, 1, 2, 3), [255, 0, 1, 2]),
    'classes 0 to 3, 0 called `background`, `void`, `unlabelled` or alike, `"ignore_index": 0`': (
        {0: "void", 1: "a", 2: "b", 3: "c"}, 0, row(0, 1, 2, 3), [255, 0, 1, 2],
    ),
    'classes 0 to 2, `"ignore_index": 3`': ({0: "a", 1: "b", 2: "c"}, 3, row(0, 1, 2, 3), [0, 1, 2, 255]),
    "classes 7 and 26": ({7: "a", 26: "b"}, 255, row(7, 26, 255), [0, 1, 255]),
}  # fmt: skip


def test_the_tables_hold_these_cases_and_no_others():
    assert rows("What one file says") == [*ONE_FILE, *REFUSED]
    assert rows("What the dataset decides") == [*DATASET]
    assert rows("Which id is unlabelled") == [*IGNORED]


@pytest.mark.parametrize("line", ONE_FILE)
def test_what_one_file_says(line):
    for labels, mask, expected in ONE_FILE[line]:
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        assert labels.encode(image).tolist() == np.atleast_2d(expected).tolist()


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused(line, tmp_path):
    labels, mask, message = REFUSED[line]
    if isinstance(mask, str):  # Pillow does not write such a file

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(7))), chunk(b"IEND", b"")
        mask = tmp_path / "wide.png"
        mask.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        labels.encode(mask if not isinstance(mask, np.ndarray) else Image.fromarray(mask))


@pytest.mark.parametrize("line", DATASET)
def test_what_the_dataset_decides(line, tmp_path):
    labels, masks, expected = DATASET[line]
    for i, mask in enumerate(masks):
        for part, image in (("images", Image.new("RGB", (2, 1))), ("masks", mask)):
            (tmp_path / "source" / part).mkdir(parents=True, exist_ok=True)
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            image.save(tmp_path / "source" / part / f"{i}.png")
    labels.save_json(tmp_path / "source" / "labels.json")
    settings = PrepareSettings(source=str(tmp_path / "source"), output=str(tmp_path / "out"), resolution=None)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            prepare_dataset(settings)
        return
    prepare_dataset(settings)
    for i, ids in enumerate(expected):
        assert np.asarray(Image.open(tmp_path / "out" / "train" / "masks" / f"{i}.png")).tolist() == [ids]


@pytest.mark.parametrize("line", IGNORED)
def test_which_id_is_unlabelled(line, tmp_path):
    names, ignored, mask, expected = IGNORED[line]
    colors = {i: (i, 1, 1) for i in names}
    content = {"id2label": names, "id2color": colors, "ignore_index": ignored}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = LabelSet.from_json(tmp_path / "labels.json")
    unknown = [labels.ignore_index if i == 255 else i for i in expected]
    assert labels.encode(Image.fromarray(mask)).tolist() == [unknown]
    assert labels.num_classes == len(expected) - 1 if ignored != 255 else 2
