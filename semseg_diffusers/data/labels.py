"""Label sets: names, colours and unknown id of the classes in masks, with those of public driving datasets as presets.

Masks are read and coloured by the pure functions of the pipeline's Hub file; `LabelSet` passes them its classes.
"""

import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont

from semseg_diffusers.data.settings import LabelsSettings
from semseg_diffusers.pipelines.mask_inputs import check_ids, ids_to_image, mask_values, read_mask
from semseg_diffusers.utils.files import parse_json, read_text, write_json, write_text
from semseg_diffusers.utils.images import save_png


Color: TypeAlias = tuple[int, int, int]  # RGB

CLASSES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("classes.yaml").read_text(encoding="utf-8"))
CITYSCAPES, CAMVID = (
    {name: tuple(color) for name, color in CLASSES["presets"][preset].items()} for preset in ("cityscapes", "camvid")
)
# The paper's 19 classes: no road, which is "background" there together with everything unlabelled; colours by formula.
PAPER_NAMES = ("background", *list(CITYSCAPES)[1:])
PAPER = {name: ((123 * i + 7) % 256, (456 * i + 8) % 256, (789 * i + 9) % 256) for i, name in enumerate(PAPER_NAMES)}
PRESETS = {"bdd100k": CITYSCAPES, "cityscapes": CITYSCAPES, "camvid": CAMVID, "paper": PAPER}
PRESET_NAMES = tuple(PRESETS)
KINDS = tuple(CLASSES["kinds"])  # what a class is in a street


# Names of ids that are no class, lower case, words only.
NO_CLASS = {
    "background", "ignore", "ignored", "unlabeled", "unlabelled", "not labeled", "not labelled", "void", "unknown",
    "undefined", "none", "other", "others", "na", "n a",
}  # fmt: skip


def ids_in_files(ids: Sequence[int], others: Mapping[int, int] | None = None) -> tuple[tuple[int, int], ...]:
    """Return `LabelSet.changed_ids` for classes with these ids in files; ids of ours that no class has are -1."""
    table = {i: -1 for i in range(len(ids)) if i not in ids}
    table |= {old: new for new, old in enumerate(ids) if old != new} | dict(others or {})
    return tuple(sorted(table.items()))


def free_color(colors: Collection[Color]) -> Color:
    """Return a colour for "unknown" that no class uses: black, otherwise white, otherwise a grey."""
    for level in (0, 255, *range(1, 255)):
        if (level, level, level) not in colors:
            return (level, level, level)
    raise AssertionError("more grey colours in use than there can be classes")


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return colours for up to 256 classes that come without any."""
    # 123, 181 and 59 are odd, so no level of a channel repeats within 256 classes.
    return tuple(((123 * i + 7) % 256, (181 * i + 8) % 256, (59 * i + 9) % 256) for i in range(count))


def _as_color(color: Any, owner: str) -> Color:
    if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color):
        color = list(bytes.fromhex(color[1:]))
    levels = list(color) if isinstance(color, (list, tuple)) else []
    whole = all(isinstance(level, (int, np.integer)) and not isinstance(level, bool) for level in levels)
    if len(levels) != 3 or not whole or not all(0 <= level <= 255 for level in levels):
        raise ValueError(
            f'the colour of {owner} is {color!r}; expected three whole numbers from 0 to 255: [r, g, b], or "#rrggbb".'
        )
    red, green, blue = map(int, levels)
    return red, green, blue


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, of whose repeated keys Python would keep the last."""
    names = [name for name, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"'{repeated[0]}' occurs twice; give each class its own name.")
    return dict(pairs)


def _in_order(entries: Mapping[Any, Any], key: str, count: int | None = None) -> list[Any]:
    """Return the values of {id: value}, whose ids run from 0."""
    count = len(entries) if count is None else count
    by_id = {int(i): entry for i, entry in entries.items()}
    if sorted(by_id) != list(range(count)):
        raise ValueError(f"{key} has the ids {sorted(by_id)}; expected 0 to {count - 1} without gaps.")
    return [by_id[i] for i in range(count)]


def _kinds_by_id(content: Mapping[str, Any], ids: Collection[int]) -> dict[int, Any]:
    """Return the kinds of classes in a label file or config, which may name some of the classes only."""
    table = content.get("id2kind") or {}
    if not isinstance(table, Mapping) or not all(str(i).isdecimal() for i in table):
        raise ValueError(
            f'id2kind is {table!r:.60}; expected the kinds of ids, such as {{"0": "road", "4": "vehicle"}}.'
        )
    kinds = {int(i): kind for i, kind in table.items()}
    if unknown := sorted(kinds.keys() - set(ids)):
        raise ValueError(f"id2kind has the ids {unknown}, and there is no such class.")
    return kinds


@dataclass(frozen=True)
class LabelSet:
    """The classes of a mask: names and colours in the order of their ids, and the id and colour of "unknown".

    Args:
        names (`tuple[str, ...]`): class names; the position is the id. 1 to 255 of them, all different.
        colors (`tuple[tuple[int, int, int], ...]`): RGB colour of each class, all different.
        ignore_index (`int`, defaults to 255): the id of unknown pixels.
        ignore_color (`tuple[int, int, int]`, defaults to black): their colour, which no class may have.
        reads_colors (`bool`, defaults to `True`): `False` if the colours were made up for display, so that only masks
            of ids can be read.
        changed_ids (`tuple[tuple[int, int], ...]`, defaults to none): (id in mask files, class id) where these differ;
            -1 is no class. `encode` applies it.
        kinds (`tuple[str | None, ...]`, defaults to none): what each class is in a street, such as "car" or "road"
            (`KINDS`), for `edit`, `enrich` and `grow`; where it is None, the name of the class decides.

    Raises:
        ValueError: names or colours repeat, or do not fit together; there is no such kind.

    Example:
        >>> labels = LabelSet.from_preset("bdd100k")
        >>> labels.num_classes, labels.names[0], labels.colors[0]
        (19, 'road', (128, 64, 128))
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int = 255
    ignore_color: Color = (0, 0, 0)
    reads_colors: bool = field(default=True, compare=False, repr=False)
    changed_ids: tuple[tuple[int, int], ...] = ()
    kinds: tuple[str | None, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        colors = tuple(_as_color(color, f"class {i}") for i, color in enumerate(self.colors))
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "ignore_color", _as_color(self.ignore_color, "the unknown pixels"))
        if not 1 <= len(self.names) <= 255:
            raise ValueError(f"a label set has 1 to 255 classes; got {len(self.names)}.")
        if len(self.colors) != len(self.names):
            raise ValueError(f"each class needs a colour; got {len(self.names)} names and {len(self.colors)} colours.")
        for i, (name, color) in enumerate(zip(self.names, self.colors, strict=True)):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"class {i} has the name {name!r}; expected text.")
            if name in self.names[:i]:
                raise ValueError(f"the class name '{name}' occurs twice; give each class its own.")
            if color in self.colors[:i]:
                other = self.names[self.colors.index(color)]
                raise ValueError(f"'{other}' and '{name}' share the colour {color}; give each class its own.")
        if not self.num_classes <= self.ignore_index <= 255:
            raise ValueError(
                f"ignore_index is {self.ignore_index}; it must be no class (0-{self.num_classes - 1}) and fit 8 bits: "
                f"expected {self.num_classes}-255."
            )
        if self.ignore_color in self.colors:
            owner = self.names[self.colors.index(self.ignore_color)]
            raise ValueError(
                f"ignore_color {self.ignore_color} is the colour of '{owner}'; take one that no class has, such as "
                f"{free_color(self.colors)}."
            )
        self._check_kinds()

    def _check_kinds(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds) if any(self.kinds) else ())
        if self.kinds and len(self.kinds) != len(self.names):
            raise ValueError(
                f"expected a kind, or None, for each of {len(self.names)} classes; got {len(self.kinds)}."
            )
        for name, kind in zip(self.names, self.kinds, strict=False):
            if kind is not None and kind not in KINDS:
                raise ValueError(f"the kind of '{name}' is {kind!r}; expected one of {', '.join(KINDS)}.")

    @property
    def num_classes(self) -> int:
        """Return the number of classes, without "unknown"."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """Return the names by id."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Return the ids by name."""
        return {name: i for i, name in enumerate(self.names)}

    @classmethod
    def from_name(cls, name: str) -> "LabelSet":
        """Return the label set that an option names: a preset, or a JSON file as `from_json` reads it."""
        if name in PRESETS:
            return cls.from_preset(name)
        if not Path(name).is_file():
            raise ValueError(f"label set '{name}' is no file and none of the presets {', '.join(PRESETS)}.")
        return cls.from_json(name)

    @classmethod
    def from_preset(cls, name: str) -> "LabelSet":
        """Return a public label set: "bdd100k", "cityscapes" (the same), "camvid" or "paper"."""
        if name not in PRESETS:
            raise ValueError(f"no label set is called '{name}'; there are {', '.join(PRESETS)}, or use a JSON file.")
        return cls.from_colormap(PRESETS[name])

    @classmethod
    def from_colormap(cls, colormap: Mapping[str, Any]) -> "LabelSet":
        """Return a label set from {name: (r, g, b)} or {name: "#rrggbb"} in class order; unknown takes a free colour.

        An entry may also be {"color": "#rrggbb", "kind": "car"}; if none has a colour, all are made up for display.
        """
        entries = {name: entry if isinstance(entry, Mapping) else {"color": entry} for name, entry in colormap.items()}
        colored = any("color" in entry for entry in entries.values())
        for name, entry in entries.items():
            if colored != ("color" in entry) or entry.keys() - {"color", "kind"}:
                raise ValueError(f"'{name}' has {dict(entry)}; expected a color, and a kind where its name says none.")
        kinds = tuple(entry.get("kind") for entry in entries.values())
        if not colored:
            return replace(cls.from_names(list(entries)), kinds=kinds)
        colors = tuple(_as_color(entry["color"], f"'{name}'") for name, entry in entries.items())
        return cls(tuple(entries), colors, ignore_color=free_color(colors), kinds=kinds)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "LabelSet":
        """Return a label set from names in class order, with colours made up for display; masks hold its ids."""
        colors = distinct_colors(len(names))
        return cls(tuple(names), colors, ignore_color=free_color(colors), reads_colors=False)

    @classmethod
    def from_json(cls, path: Any) -> "LabelSet":
        """Read a label file.

        Args:
            path: `colormap.json` ({name: [r, g, b]} or {name: "#rrggbb"}, its order is the class order), our own
                `labels.json`, CVAT's list of labels, a COCO file (its `categories`), or names without colours
                (`from_names`): `id2label.json` of transformers ({"0": name, ...}), a list, or a text file with a name
                a line. A path, or what has `read_bytes` like one (a file inside an archive).

        Returns:
            `LabelSet`

        Raises:
            ValueError: it is not JSON in UTF-8, or no label set; a class occurs twice.
        """
        text = read_text(path)
        if str(path).lower().endswith(".txt"):
            text = json.dumps([line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"])
        try:
            content = parse_json(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as err:
            raise ValueError(f"label file '{path}' is not valid JSON: {err}.") from err
        except ValueError as err:
            raise ValueError(f"label file '{path}': {err}") from err
        if isinstance(content, dict) and isinstance(content.get("categories"), list):
            content = {"categories": content["categories"]}
        elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
            content = {"categories": [{**entry, "id": None} for entry in content]}  # CVAT's are numbers of a database
        content = dict(enumerate(content)) if isinstance(content, list) else content
        if not isinstance(content, dict) or not content:
            raise ValueError(
                f"label file '{path}' holds no classes; expected {{\"name\": [r, g, b], ...}} or "
                '{"0": "name", "1": "name", ...}.'
            )
        try:
            if "categories" in content:
                return cls._from_categories(content["categories"])
            if all(str(i).isdecimal() and isinstance(name, str) for i, name in content.items()):
                return cls.from_names(_in_order(content, "id2label"))
            return cls._from_file(content) if "id2label" in content else cls.from_colormap(content)
        except ValueError as err:
            raise ValueError(f"label file '{path}': {err}") from err

    @classmethod
    def _from_categories(cls, categories: list[Any]) -> "LabelSet":
        """Read COCO's categories, whose ids are those of masks and may have gaps, or CVAT's labels, in their order."""
        wrong = [entry for entry in categories if not isinstance(entry, dict) or "name" not in entry]
        if wrong or not categories:
            raise ValueError(f'its classes hold {wrong[:1] or categories!r:.60}; expected {{"name": ...}} for each.')
        names = [entry["name"] for entry in categories]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the class name '{repeated[0]}' occurs twice; give each class its own.")
        colored = all("color" in entry for entry in categories)
        labels = cls.from_colormap({e["name"]: e["color"] for e in categories}) if colored else cls.from_names(names)
        ids = [entry.get("id") for entry in categories]
        if None in ids or ids == list(range(len(ids))):
            return labels
        if not all(isinstance(i, int) and 0 <= i < 255 for i in ids) or len(set(ids)) < len(ids):
            raise ValueError(f"its categories have the ids {ids}; expected different ones from 0 to 254.")
        return replace(labels, changed_ids=ids_in_files(ids, {} if 0 in ids else {0: labels.ignore_index}))

    @classmethod
    def _from_file(cls, content: dict[str, Any]) -> "LabelSet":
        """Read `labels.json`, whose ids may have gaps, and whose `ignore_index` may be among or below the classes."""
        if not content.get("id2color"):  # as in the configs of transformers
            raise ValueError(
                'id2color is missing beside id2label; expected the colours, {"0": [r, g, b], ...}, or a file of the '
                'names alone, {"0": "name", ...}.'
            )
        names = {int(i): name for i, name in content["id2label"].items()}
        ids = sorted(names)
        ignored = content.get("ignore_index")
        ignored = 255 if ignored is None else ignored
        if ids == list(range(len(ids))) and not (isinstance(ignored, int) and 0 <= ignored < len(ids)):
            return cls.from_config(content)
        colors = {int(i): color for i, color in (content.get("id2color") or {}).items()}
        kinds = _kinds_by_id(content, names)
        tables = {"id2label": names, "id2color": {i: colors[i] for i in ids if i in colors}, "id2kind": kinds}
        contiguous = {key: {k: table[i] for k, i in enumerate(ids) if i in table} for key, table in tables.items()}
        labels = cls.from_config({**content, **contiguous, "ignore_index": None})
        labels = replace(labels, changed_ids=ids_in_files(ids))
        return labels if ignored == 255 else labels.with_ignored_id(ignored)

    def with_ignored_id(self, ignored: int) -> "LabelSet":
        """Return the label set of masks in which this id is unlabelled, also where it is among or below the classes.

        A class of this id whose name says that it is none, such as "background" or "void", is left out. Otherwise the
        classes from this id on follow it: with 0 unlabelled, the first class is 1.
        """
        if isinstance(ignored, bool) or not isinstance(ignored, int) or not 0 <= ignored <= 255:
            raise ValueError(f"ignore_index is {ignored!r}; expected a whole number from 0 to 255.")
        in_files = {new: old for old, new in self.changed_ids if new >= 0 and new != self.ignore_index}
        ids = [in_files.get(i, i) for i in range(self.num_classes)]  # of each class, in the files
        unknown = {old: new for old, new in self.changed_ids if new == self.ignore_index} | {
            ignored: self.ignore_index
        }
        if ignored not in ids:
            return replace(self, changed_ids=ids_in_files(ids, unknown))
        place = ids.index(ignored)
        names, colors, kinds = self.names, self.colors, self.kinds
        if " ".join(re.findall("[a-z]+", names[place].lower())) in NO_CLASS:
            names, colors = names[:place] + names[place + 1 :], colors[:place] + colors[place + 1 :]
            kinds = kinds[:place] + kinds[place + 1 :]
            ids = ids[:place] + ids[place + 1 :]
        else:
            ids = ids[:place] + [i + 1 for i in ids[place:]]
        changed = ids_in_files(ids, {old: new for old, new in unknown.items() if old not in ids})
        return replace(self, names=names, colors=colors, kinds=kinds, changed_ids=changed)

    def save_json(self, path: str | os.PathLike) -> None:
        """Write `labels.json`, which `from_json` reads."""
        write_json(path, self.to_config())

    @classmethod
    def from_config(cls, config: Any) -> "LabelSet":
        """Return the label set in a network's config, or in a dictionary of `to_config`.

        Raises:
            ValueError: the config has no names or no colours, or ids that do not run from 0.
        """
        values = config if isinstance(config, Mapping) else vars(config)
        tables: list[list[Any]] = []
        for key in ("id2label", "id2color"):
            if not values.get(key):
                raise ValueError(f"the config has no label set ({key} is missing); give one: LabelSet.from_json().")
            tables.append(_in_order(values[key], key, len(values["id2label"])))
        names, colors = tables[0], tuple(_as_color(color, f"'{name}'") for name, color in zip(*tables, strict=True))
        ignore_color, ignore_index = values.get("ignore_color"), values.get("ignore_index")
        return cls(
            tuple(names),
            colors,
            ignore_index=255 if ignore_index is None else ignore_index,
            ignore_color=free_color(colors) if ignore_color is None else tuple(ignore_color),
            kinds=tuple(map(_kinds_by_id(values, range(len(names))).get, range(len(names)))),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the label set as in a network's config: JSON types, string keys as transformers writes them."""
        kinds = {str(i): kind for i, kind in enumerate(self.kinds) if kind is not None}
        return {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "id2color": {str(i): list(color) for i, color in enumerate(self.colors)},
            "ignore_index": self.ignore_index,
            "ignore_color": list(self.ignore_color),
            **({"id2kind": kinds} if kinds else {}),
        }

    def encode(
        self, image: Any, tolerance: float = 0.0, source: object = None, values: str | None = None
    ) -> np.ndarray:
        """Read a mask as class ids.

        Args:
            image (path, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): ids, or this set's colours (`read_mask`).
            tolerance (`float`, defaults to 0): unknown colours take the class whose colour is nearest, if its
                Euclidean distance in RGB is at most this.
            source (*optional*): name in error messages; a path names itself.
            values (`str`, *optional*): what the numbers of an image are: "ids", "colors", or "red" for ids in the red
                channel; decided by `mask_values` from the image and its palette if None.

        Returns:
            `np.ndarray`: class ids, (H, W) uint8.

        Raises:
            ValueError: unreadable file, unknown colours or ids out of range.
        """
        return read_mask(image, *self._mask_settings, tolerance, source, self.changed_ids, values)

    def mask_values(self, image: Image.Image) -> tuple[str | None, tuple[str, ...]]:
        """Return how `encode` reads an image, and all ways that suit what it holds, see `mask_inputs.mask_values`."""
        return mask_values(image, *self._mask_settings, self.changed_ids)

    @property
    def _mask_settings(self) -> tuple[int, Sequence[Color] | None, int, Color]:
        colors = self.colors if self.reads_colors else None
        return self.num_classes, colors, self.ignore_index, self.ignore_color

    def decode(self, ids: Any) -> Image.Image:
        """Turn class ids (H, W) into a P-mode image: index = id, colours in the palette. Any editor opens it.

        Raises:
            ValueError: `ids` are not integers of shape (H, W), or out of range.
        """
        ids = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids have shape {ids.shape} and type {ids.dtype}; expected integers of shape (H, W).")
        self.check_ids(ids)
        return ids_to_image(ids, self.colors, self.ignore_index, self.ignore_color)

    def check_ids(self, ids: Any, source: object = None) -> None:
        """Raise a `ValueError` naming file, value, range and likely cause if an id is neither a class nor unknown."""
        check_ids(np.asarray(ids), self.num_classes, self.ignore_index, source)

    def legend(self, columns: int = 1, row_height: int = 28) -> Image.Image:
        """Draw a legend: one line per class with colour, id, name and hex code, unknown last.

        Args:
            columns (`int`, defaults to 1): the classes run down these columns.
            row_height (`int`, defaults to 28): height of a line in pixels, at least 12.

        Returns:
            `PIL.Image.Image`: RGB.
        """
        if columns < 1 or row_height < 12:
            raise ValueError(f"columns={columns}, row_height={row_height}; expected at least 1 and 12.")
        ids, names = [*range(self.num_classes), self.ignore_index], [*self.names, "unknown (ignored)"]
        colors = [*self.colors, self.ignore_color]
        lines = [
            (str(i), name, "#{:02x}{:02x}{:02x}".format(*color))
            for i, name, color in zip(ids, names, colors, strict=True)
        ]
        font = ImageFont.load_default(size=round(row_height * 0.55))
        gap, swatch = row_height // 3, round(row_height * 1.6)
        id_width, name_width, hex_width = (max(map(font.getlength, texts)) for texts in zip(*lines, strict=True))
        id_left = gap + swatch + gap
        name_left = id_left + round(id_width) + gap
        hex_left = name_left + round(name_width) + gap
        column_width = hex_left + round(hex_width) + 2 * gap
        rows = -(-len(lines) // columns)

        legend = Image.new("RGB", (column_width * columns, row_height * rows + 2 * gap), "white")
        draw = ImageDraw.Draw(legend)
        for k, ((number, name, code), color) in enumerate(zip(lines, colors, strict=True)):
            left, top = column_width * (k // rows), gap + row_height * (k % rows)
            middle = top + row_height / 2
            box = (left + gap, top + 2, left + gap + swatch, top + row_height - 3)
            draw.rectangle(box, fill=color, outline=(90, 90, 90))
            draw.text((left + id_left + id_width, middle), number, fill=(110, 110, 110), font=font, anchor="rm")
            draw.text((left + name_left, middle), name, fill="black", font=font, anchor="lm")
            draw.text((left + hex_left, middle), code, fill=(110, 110, 110), font=font, anchor="lm")
        return legend

    def save_palette(self, path: str | os.PathLike) -> None:
        """Write the colours as a .gpl palette, which GIMP, Krita and Inkscape read; its name is the file's."""
        entries = [*zip(self.colors, self.names, strict=True), (self.ignore_color, "unknown")]
        lines = ["GIMP Palette", f"Name: {Path(path).stem}", "Columns: 4", "#"]
        lines += [f"{red:3} {green:3} {blue:3}\t{name}" for (red, green, blue), name in entries]
        write_text(path, "\n".join(lines) + "\n")


def run(settings: LabelsSettings) -> None:
    """Write legend, palette and JSON file of a label set, and print their names."""
    chosen, output = settings.preset or settings.labels or "", Path(settings.output)
    labels = LabelSet.from_preset(chosen) if settings.preset else LabelSet.from_json(chosen)
    name = Path(chosen).stem
    if settings.labels and (output / "labels.json").resolve() == Path(chosen).resolve():
        raise ValueError(f"--output '{output}' would replace '{chosen}', the label set itself. Name another folder.")
    output.mkdir(parents=True, exist_ok=True)
    save_png(output / "legend.png", labels.legend(columns=settings.columns))
    labels.save_palette(output / f"{name}.gpl")
    labels.save_json(output / "labels.json")
    sys.stdout.write(f"{labels.num_classes} classes: {output}/legend.png, {name}.gpl, labels.json\n")
