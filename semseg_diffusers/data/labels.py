"""Label sets: names, colours and unknown id of the classes that masks hold, with the public driving sets as presets.
Masks are read and coloured by the pure functions of the pipeline's Hub file; `LabelSet` gives them one set of classes.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from semseg_diffusers.data.settings import LabelsSettings
from semseg_diffusers.pipelines.mask_inputs import check_ids, ids_to_image, read_mask
from semseg_diffusers.utils.files import write_text
from semseg_diffusers.utils.images import save_png


# The 19 training classes of Cityscapes, which BDD100K shares, in train id order and in Cityscapes' colours.
CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
# The 11 classes that CamVid is reported on, under our names, in the colours of the SegNet release.
CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (60, 40, 222),
    "vegetation": (128, 128, 0),
    "traffic sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "person": (64, 64, 0),
    "rider": (0, 128, 192),
}
# The paper's 19 classes: no road, which is "background" there together with everything unlabelled; colours by formula.
PAPER_NAMES = ("background", *list(CITYSCAPES)[1:])
PAPER = {name: ((123 * i + 7) % 256, (456 * i + 8) % 256, (789 * i + 9) % 256) for i, name in enumerate(PAPER_NAMES)}
PRESETS = {"bdd100k": CITYSCAPES, "cityscapes": CITYSCAPES, "camvid": CAMVID, "paper": PAPER}
PRESET_NAMES = tuple(PRESETS)


def free_color(colors) -> tuple[int, int, int]:
    """The first colour for "unknown" that no class uses: black, else white, else a grey."""
    for level in (0, 255, *range(1, 255)):
        if (level, level, level) not in colors:
            return (level, level, level)
    raise AssertionError("more grey colours in use than there can be classes")


def _as_color(color, owner: str) -> tuple[int, int, int]:
    whole = isinstance(color, (list, tuple)) and all(
        isinstance(level, (int, np.integer)) and not isinstance(level, bool) for level in color
    )
    if not whole or len(color) != 3 or not all(0 <= level <= 255 for level in color):
        raise ValueError(f"the colour of {owner} is {color!r}; wanted three whole numbers from 0 to 255: [r, g, b].")
    return tuple(int(level) for level in color)


@dataclass(frozen=True)
class LabelSet:
    """The classes of a mask: names and colours in the order of their ids, and what stands for "unknown".

    Args:
        names (`tuple[str, ...]`): Class names; the position is the id. 1 to 255 of them, all different.
        colors (`tuple[tuple[int, int, int], ...]`): RGB colour of each class, all different.
        ignore_index (`int`, defaults to 255): The id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to black): Their colour, which no class may have.

    Raises:
        ValueError: Names or colours repeat, or do not fit together.

    Example:
        >>> labels = LabelSet.from_preset("bdd100k")
        >>> labels.num_classes, labels.names[0], labels.colors[0]
        (19, 'road', (128, 64, 128))
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    ignore_color: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        colors = tuple(_as_color(color, f"class {i}") for i, color in enumerate(self.colors))
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "ignore_color", _as_color(self.ignore_color, "the unknown pixels"))
        if not 1 <= len(self.names) <= 255:
            raise ValueError(f"a label set has 1 to 255 classes; got {len(self.names)}.")
        if len(self.colors) != len(self.names):
            raise ValueError(f"each class needs a colour; got {len(self.names)} names and {len(self.colors)} colours.")
        for i, name in enumerate(self.names):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"class {i} has the name {name!r}; wanted text.")
            if name in self.names[:i]:
                raise ValueError(f"the class name '{name}' occurs twice; give each class its own.")
            if self.colors[i] in self.colors[:i]:
                other = self.names[self.colors.index(self.colors[i])]
                raise ValueError(f"'{other}' and '{name}' share the colour {self.colors[i]}; give each class its own.")
        if not self.num_classes <= self.ignore_index <= 255:
            raise ValueError(
                f"ignore_index is {self.ignore_index}; it must be no class (0-{self.num_classes - 1}) and fit 8 bits: "
                f"wanted {self.num_classes}-255."
            )
        if self.ignore_color in self.colors:
            owner = self.names[self.colors.index(self.ignore_color)]
            raise ValueError(
                f"ignore_color {self.ignore_color} is the colour of '{owner}'; take one that no class has, such as "
                f"{free_color(self.colors)}."
            )

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    # Where label sets come from and go to

    @classmethod
    def from_name(cls, name: str) -> "LabelSet":
        """The label set that an option names: a preset, or a JSON file as `from_json` reads it."""
        if name in PRESETS:
            return cls.from_preset(name)
        if not Path(name).is_file():
            raise ValueError(f"label set '{name}' is no file and none of the presets {', '.join(PRESETS)}.")
        return cls.from_json(name)

    @classmethod
    def from_preset(cls, name: str) -> "LabelSet":
        """A public label set: "bdd100k", "cityscapes" (the same), "camvid" or "paper"."""
        if name not in PRESETS:
            raise ValueError(f"no label set is called '{name}'; there are {', '.join(PRESETS)}, or use a JSON file.")
        return cls.from_colormap(PRESETS[name])

    @classmethod
    def from_colormap(cls, colormap: Mapping) -> "LabelSet":
        """A label set from {name: (r, g, b)} in class order; unknown takes a colour that is free."""
        colors = tuple(_as_color(color, f"'{name}'") for name, color in colormap.items())
        return cls(tuple(colormap), colors, ignore_color=free_color(colors))

    @classmethod
    def from_json(cls, path) -> "LabelSet":
        """Read `colormap.json` ({name: [r, g, b]}, its order is the class order) or our own `labels.json`.

        `path` is a path, or has `read_text` like one (a file inside an archive).
        """
        file = path if hasattr(path, "read_text") else Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise ValueError(f"label file '{path}' is not valid JSON: {err}.") from err
        if not isinstance(content, dict) or not content:
            raise ValueError(f"label file '{path}' holds no classes; wanted {{\"name\": [r, g, b], ...}}.")
        try:
            return cls.from_config(content) if "id2label" in content else cls.from_colormap(content)
        except ValueError as err:
            raise ValueError(f"label file '{path}': {err}") from err

    def save_json(self, path) -> None:
        """Write `labels.json`, which `from_json` reads."""
        write_text(path, json.dumps(self.to_config(), indent=2) + "\n")

    @classmethod
    def from_config(cls, config) -> "LabelSet":
        """The label set in a network's config (or in a dictionary like `to_config` makes).

        Raises:
            ValueError: The config carries no names or no colours, or ids that do not run from 0.
        """
        values = config if isinstance(config, Mapping) else vars(config)
        names, colors = values.get("id2label"), values.get("id2color")
        if not names or not colors:
            missing = "id2label" if not names else "id2color"
            raise ValueError(
                f"the config carries no label set ({missing} is missing); give one: LabelSet.from_json()."
            )
        names = {int(i): name for i, name in names.items()}
        colors = {int(i): color for i, color in colors.items()}
        for key, entries in (("id2label", names), ("id2color", colors)):
            if sorted(entries) != list(range(len(names))):
                raise ValueError(f"{key} has the ids {sorted(entries)}; wanted 0 to {len(names) - 1} without gaps.")
        order = range(len(names))
        colors = tuple(_as_color(colors[i], f"'{names[i]}'") for i in order)
        ignore_color, ignore_index = values.get("ignore_color"), values.get("ignore_index")
        return cls(
            tuple(names[i] for i in order),
            colors,
            ignore_index=255 if ignore_index is None else ignore_index,
            ignore_color=free_color(colors) if ignore_color is None else tuple(ignore_color),
        )

    def to_config(self) -> dict:
        """The label set as it stands in a network's config: JSON types, string keys as transformers writes them."""
        return {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "id2color": {str(i): list(color) for i, color in enumerate(self.colors)},
            "ignore_index": self.ignore_index,
            "ignore_color": list(self.ignore_color),
        }

    # Masks

    def encode(self, image, tolerance: float = 0.0, source=None) -> np.ndarray:
        """Read a mask as class ids.

        Args:
            image (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Ids or this set's colours (`read_mask`).
            tolerance (`float`, defaults to 0): Unknown colours take the class whose colour is nearest, if its
                Euclidean distance in RGB is at most this.
            source (*optional*): Named in error messages; a path names itself.

        Returns:
            `np.ndarray`: Class ids, (H, W) uint8.

        Raises:
            ValueError: Unreadable file, unknown colours or ids out of range.
        """
        label_set = (self.num_classes, self.colors, self.ignore_index, self.ignore_color)
        return read_mask(image, *label_set, tolerance=tolerance, source=source)

    def decode(self, ids) -> Image.Image:
        """Turn class ids (H, W) into a P-mode picture: index = id, colours in the palette. Any editor opens it.

        Raises:
            ValueError: `ids` are not integers of shape (H, W), or out of range.
        """
        ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids have shape {ids.shape} and type {ids.dtype}; wanted integers of shape (H, W).")
        self.check_ids(ids)
        return ids_to_image(ids, self.colors, self.ignore_index, self.ignore_color)

    def check_ids(self, ids, source=None) -> None:
        """Raise a `ValueError` naming file, value, range and likely cause if an id is neither a class nor unknown."""
        check_ids(np.asarray(ids), self.num_classes, self.ignore_index, source)

    # Pictures and palettes of the label set itself

    def legend(self, columns: int = 1, row_height: int = 28) -> Image.Image:
        """Draw the colorbook: one line per class with colour, id, name and hex code, unknown last.

        Args:
            columns (`int`, defaults to 1): Classes are laid out down these columns.
            row_height (`int`, defaults to 28): Height of a line in pixels, at least 12.

        Returns:
            `PIL.Image.Image`: The legend, mode RGB.
        """
        if columns < 1 or row_height < 12:
            raise ValueError(f"columns={columns}, row_height={row_height}; wanted at least 1 and 12.")
        entries = [*zip(range(self.num_classes), self.names, self.colors, strict=True)]
        entries.append((self.ignore_index, "unknown (ignored)", self.ignore_color))
        lines = [(str(i), name, "#{:02x}{:02x}{:02x}".format(*color), color) for i, name, color in entries]

        font = ImageFont.load_default(size=round(row_height * 0.55))
        gap, swatch = row_height // 3, round(row_height * 1.6)
        widths = [max(font.getlength(line[part]) for line in lines) for part in range(3)]  # id, name, hex
        starts = [gap + swatch + gap]
        for width in widths[:2]:
            starts.append(starts[-1] + round(width) + gap)
        column_width = starts[2] + round(widths[2]) + 2 * gap
        rows = -(-len(lines) // columns)

        picture = Image.new("RGB", (column_width * columns, row_height * rows + 2 * gap), "white")
        draw = ImageDraw.Draw(picture)
        for k, (number, name, code, color) in enumerate(lines):
            left, top = column_width * (k // rows), gap + row_height * (k % rows)
            middle = top + row_height / 2
            box = (left + gap, top + 2, left + gap + swatch, top + row_height - 3)
            draw.rectangle(box, fill=color, outline=(90, 90, 90))
            draw.text((left + starts[0] + widths[0], middle), number, fill=(110, 110, 110), font=font, anchor="rm")
            draw.text((left + starts[1], middle), name, fill="black", font=font, anchor="lm")
            draw.text((left + starts[2], middle), code, fill=(110, 110, 110), font=font, anchor="lm")
        return picture

    def save_palette(self, path) -> None:
        """Write the colours as a .gpl palette, which GIMP, Krita and Inkscape read; its name is the file's."""
        lines = ["GIMP Palette", f"Name: {Path(path).stem}", "Columns: 4", "#"]
        lines += ["{:3d} {:3d} {:3d}\t{}".format(*c, name) for name, c in zip(self.names, self.colors, strict=True)]
        lines.append("{:3d} {:3d} {:3d}\t{}".format(*self.ignore_color, "unknown"))
        write_text(path, "\n".join(lines) + "\n")


def run(settings: LabelsSettings) -> None:
    """Write the three files and print their names."""
    labels = LabelSet.from_preset(settings.preset) if settings.preset else LabelSet.from_json(settings.labels)
    name, output = settings.preset or Path(settings.labels).stem, Path(settings.output)
    legend = labels.legend(columns=settings.columns)
    output.mkdir(parents=True, exist_ok=True)
    save_png(output / "legend.png", legend)
    labels.save_palette(output / f"{name}.gpl")
    labels.save_json(output / "labels.json")
    sys.stdout.write(f"{labels.num_classes} classes: {output}/legend.png, {name}.gpl, labels.json\n")
