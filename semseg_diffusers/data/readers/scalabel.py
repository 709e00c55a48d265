"""Label files in Scalabel's JSON, as BDD100K has them, read image by image: the largest has 1.5 GB.

A file is a list of frames, or an object whose "frames" is that list. A frame has a `name`, `attributes` and `labels`;
a label has a `category` and its region as `poly2d` (polygons with Bezier curves) or `rle` (COCO's run lengths).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from semseg_diffusers.data.polygons import Polygon, RunLengths, read_counts
from semseg_diffusers.data.readers.pairs import AnyPath


CHUNK = 2**20  # bytes read at once
LARGEST_FRAME = 2**26  # bytes; a frame has some ten thousand


def iterate_frames(file: AnyPath) -> Iterator[dict]:
    """The frames of a label file, one after the other, in the memory of one.

    Raises:
        ValueError: the file is cut off, or no list of frames.
    """
    decoder = json.JSONDecoder()
    with file.open("rb") if not hasattr(file, "archives") else file.open() as stream:
        text, at_end = _Text(stream), False
        try:
            at_end = _skip_to_list(text, decoder)
            while not at_end:
                frame = text.decode(decoder)
                if not isinstance(frame, dict):
                    raise ValueError(f"a frame is {frame!r:.40}")
                yield frame
                at_end = _next(text, ",]") == "]"
        except ValueError as err:
            raise ValueError(f"label file '{file}' is no list of frames in Scalabel's JSON: {err}.") from err


class _Text:
    """A window that moves over a file of UTF-8 text."""

    def __init__(self, stream):
        self._stream, self._rest = stream, b""
        self.window, self.position = "", 0

    def read_on(self) -> bool:
        """Add a chunk to the window; false at the end of the file."""
        data = self._stream.read(CHUNK)
        raw = self._rest + data
        cut = len(raw)
        while data and cut and raw[cut - 1] & 0xC0 == 0x80:  # a character of several bytes may be cut in two
            cut -= 1
        cut -= bool(data and cut and raw[cut - 1] >= 0xC0)
        self._rest = raw[cut:]
        self.window, self.position = self.window[self.position :] + raw[:cut].decode("utf-8"), 0
        return bool(data)

    def peek(self) -> str:
        """The next character that is no white space."""
        while True:
            while self.position < len(self.window) and self.window[self.position] in " \t\r\n\ufeff":
                self.position += 1
            if self.position < len(self.window):
                return self.window[self.position]
            if not self.read_on():
                raise ValueError("it ends in the middle")

    def decode(self, decoder: json.JSONDecoder):
        """The next JSON value."""
        first = self.peek()
        while True:
            try:
                value, end = decoder.raw_decode(self.window, self.position)
                if first in '{["' or end < len(self.window):  # a number may go on in the next chunk
                    self.position = end
                    return value
                reason = "it ends in the middle"
            except json.JSONDecodeError as err:
                reason = f"{err.msg} (near {self.window[err.pos : err.pos + 20]!r})"
            if len(self.window) - self.position > LARGEST_FRAME or not self.read_on():
                raise ValueError(reason)


def _next(text: _Text, wanted: str) -> str:
    found = text.peek()
    if found not in wanted:
        raise ValueError(f"wanted {' or '.join(wanted)}, found {found!r}")
    text.position += 1
    return found


def _skip_to_list(text: _Text, decoder: json.JSONDecoder) -> bool:
    """Go behind the bracket that opens the list of frames; true where the list is empty."""
    if _next(text, "[{") == "{":
        while True:
            if text.peek() != '"':
                raise ValueError('the key "frames" is missing')
            key = text.decode(decoder)
            _next(text, ":")
            if key == "frames":
                break
            text.decode(decoder)
            if _next(text, ",}") == "}":
                raise ValueError('the key "frames" is missing')
        _next(text, "[")
    if text.peek() == "]":
        text.position += 1
        return True
    return False


# Regions -----------------------------------------------------------------------------------------------------------


def read_regions(
    file: AnyPath, kind: str, class_ids: Mapping[str, int]
) -> tuple[dict[str, tuple[Polygon, ...] | tuple[RunLengths, ...]], Counter]:
    """The regions of every frame in their drawing order, by the stem of the image.

    Args:
        file: the label file.
        kind: "poly2d" or "rle".
        class_ids: name of a category -> id; labels of other categories are left out, so unknown.

    Returns:
        the regions, and how many labels each other category has.

    Raises:
        ValueError: a label is not as Scalabel writes it, or an image comes twice.
    """
    read = {"poly2d": _polygons, "rle": _run_lengths}[kind]
    found: dict[str, tuple] = {}
    others: Counter = Counter()
    for frame in iterate_frames(file):
        name = frame.get("name")
        if not isinstance(name, str):
            raise ValueError(f"label file '{file}': frame {len(found)} has the name {name!r}; wanted a file name.")
        stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        if stem in found:
            raise ValueError(f"label file '{file}' has two frames '{name}'.")
        regions: list = []
        for number, label in enumerate(frame.get("labels") or ()):
            category = label.get("category") if isinstance(label, dict) else None
            if category not in class_ids:
                others[str(category)] += 1
            elif label.get(kind):
                try:
                    regions += read(label[kind], class_ids[category])
                except (ValueError, TypeError, KeyError, OverflowError) as err:
                    raise ValueError(f"label file '{file}', image '{name}', label {number}: {err!r}.") from err
        found[stem] = tuple(regions)
    return found, others


def _polygons(poly2d: list, class_id: int) -> list[Polygon]:
    polygons = []
    for outline in poly2d:
        vertices, types = np.asarray(outline["vertices"], dtype=np.float32), outline["types"]
        if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
            raise ValueError(f"vertices of shape {vertices.shape}; wanted (N, 2) finite numbers")
        if len(types) != len(vertices) or set(types) - {"L", "C"}:
            raise ValueError(f"types {types!r:.40} for {len(vertices)} vertices; wanted L or C for each")
        if np.abs(vertices).max(initial=0) > 1e6:
            raise ValueError(f"a vertex at {np.abs(vertices).max():.0f} pixels; wanted some near the frame")
        polygons.append(Polygon(class_id, vertices, types))
    return polygons


def _run_lengths(rle: dict, class_id: int) -> list[RunLengths]:
    counts, (height, width) = rle["counts"], rle["size"]
    read_counts(counts)
    return [RunLengths(class_id, counts if isinstance(counts, str) else tuple(counts), (int(height), int(width)))]


# Attributes --------------------------------------------------------------------------------------------------------


def read_attributes(files: list[AnyPath], stems: set[str], names: tuple[str, ...]) -> dict[str, dict]:
    """What label files say of images: stem -> attribute -> value, None where "undefined"; the first file wins."""
    found: dict[str, dict] = {}
    for file in files:
        for frame in iterate_frames(file):
            stem = str(frame.get("name")).rsplit("/", 1)[-1].rsplit(".", 1)[0]
            attributes = frame.get("attributes")
            if stem in stems and stem not in found and isinstance(attributes, dict):
                values = {name: attributes.get(name) for name in names}
                found[stem] = {
                    name: value if isinstance(value, str) and value != "undefined" else None
                    for name, value in values.items()
                }
    return found
