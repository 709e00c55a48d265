"""Label files in Scalabel's JSON, as BDD100K has them, read frame by frame: the largest has 1.5 GB.

A file is a list of frames, or an object whose "frames" is that list. A frame has a `name`, `attributes` and `labels`;
a label has a `category` and its region as `poly2d` (polygons with Bezier curves) or `rle` (COCO's run lengths).
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from semseg_diffusers.data.polygons import Polygon, RunLengths, read_counts
from semseg_diffusers.data.readers.pairs import AnyPath


CHUNK = 2**20  # characters read at once
LARGEST_FRAME = 2**26  # characters; a frame has some ten thousand
WHITESPACE = re.compile(r"[ \t\r\n]*")


class _JSONReader:
    """Read the parts of a JSON text one after the other, with no more than one of them in memory."""

    def __init__(self, stream: IO[bytes]):
        self.stream = io.TextIOWrapper(stream, "utf-8-sig")
        self.window, self.position = "", 0
        self.decoder = json.JSONDecoder()

    def read_on(self) -> bool:
        """Extend the window; false at the end of the file."""
        chunk = self.stream.read(CHUNK)
        self.window, self.position = self.window[self.position :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is not white space."""
        while True:
            self.position += len(WHITESPACE.match(self.window, self.position)[0])  # type: ignore[index]
            if self.position < len(self.window):
                return self.window[self.position]
            if not self.read_on():
                raise ValueError("it ends in the middle")

    def take(self, expected: str) -> str:
        """Skip the next character, which must be one of the expected ones, and return it."""
        found = self.peek()
        if found not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, got {found!r}")
        self.position += 1
        return found

    def value(self) -> Any:
        """Return the next JSON value."""
        first = self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.position)
                if first in '{["' or end < len(self.window):  # a number can continue in the next chunk
                    self.position = end
                    return value
                reason = "it ends in the middle"
            except json.JSONDecodeError as err:
                reason = f"{err.msg} (near {self.window[err.pos : err.pos + 20]!r})"
            if len(self.window) - self.position > LARGEST_FRAME or not self.read_on():
                raise ValueError(reason)

    def skip_to_frames(self) -> None:
        """Go into the list of frames, which is the whole file or the value of its key "frames"."""
        if self.take("[{") == "[":
            return
        while self.peek() == '"':
            key = self.value()
            self.take(":")
            if key == "frames":
                self.take("[")
                return
            self.value()
            if self.peek() == ",":
                self.take(",")
        raise ValueError('the key "frames" is missing')


def iterate_frames(file: AnyPath) -> Iterator[dict[str, Any]]:
    """Yield the frames of a label file, one after the other.

    Raises:
        ValueError: the file is cut off, or not a list of frames.
    """
    with file.open("rb") as stream:
        reader = _JSONReader(stream)
        try:
            reader.skip_to_frames()
            at_end = reader.peek() == "]"
            while not at_end:
                frame = reader.value()
                if not isinstance(frame, dict):
                    raise ValueError(f"a frame is {frame!r:.40}")
                yield frame
                at_end = reader.take(",]") == "]"
        except ValueError as err:
            raise ValueError(f"label file '{file}' is not a list of frames in Scalabel's JSON: {err}.") from err


def _stem_of(name: object) -> str:
    return str(name).rsplit("/", 1)[-1].rsplit(".", 1)[0]


def read_regions(
    file: AnyPath, kind: str, class_ids: Mapping[str, int]
) -> tuple[dict[str, tuple[Polygon | RunLengths, ...]], Counter[str]]:
    """Read the regions of every frame in their drawing order.

    Args:
        file: the label file.
        kind: "poly2d" or "rle".
        class_ids: name of a category -> id; labels of other categories are left out, so unknown.

    Returns:
        the regions by the stem of the image, and how many labels each other category has.

    Raises:
        ValueError: a label is not as Scalabel writes it, or an image occurs twice.
    """
    found: dict[str, tuple[Polygon | RunLengths, ...]] = {}
    others: Counter[str] = Counter()
    for frame in iterate_frames(file):
        name = frame.get("name")
        if not isinstance(name, str):
            raise ValueError(f"label file '{file}': frame {len(found)} has the name {name!r}; expected a file name.")
        stem = _stem_of(name)
        if stem in found:
            raise ValueError(f"label file '{file}' has two frames '{name}'.")
        regions: list[Polygon | RunLengths] = []
        for number, label in enumerate(frame.get("labels") or ()):
            category = str(label.get("category")) if isinstance(label, dict) else "None"
            if category not in class_ids:
                others[category] += 1
                continue
            try:
                regions += _read_label(label.get(kind), kind, class_ids[category])
            except (ValueError, TypeError, KeyError, OverflowError) as err:
                raise ValueError(f"label file '{file}', image '{name}', label {number}: {err!r}.") from err
        found[stem] = tuple(regions)
    return found, others


def _read_label(region: Any, kind: str, class_id: int) -> Iterator[Polygon | RunLengths]:
    """Yield the polygons of one label, or its run lengths."""
    if not region:
        return
    if kind == "rle":
        counts, (height, width) = region["counts"], region["size"]
        read_counts(counts)
        counts = counts if isinstance(counts, str) else tuple(counts)
        yield RunLengths(class_id, counts, (int(height), int(width)))
        return
    for outline in region:
        vertices, types = np.asarray(outline["vertices"], dtype=np.float32), outline["types"]
        if vertices.ndim != 2 or vertices.shape[1] != 2 or not np.isfinite(vertices).all():
            raise ValueError(f"vertices of shape {vertices.shape}; expected (N, 2) finite numbers")
        if len(types) != len(vertices) or set(types) - {"L", "C"}:
            raise ValueError(f"types {types!r:.40} for {len(vertices)} vertices; expected L or C for each")
        if np.abs(vertices).max(initial=0) > 1e6:
            raise ValueError(f"a vertex at {np.abs(vertices).max():.0f} pixels; expected vertices near the frame")
        yield Polygon(class_id, vertices, types)


def read_attributes(files: list[AnyPath], stems: set[str], names: tuple[str, ...]) -> dict[str, dict[str, str | None]]:
    """Return the attributes of images by stem, None if "undefined"; of several files, the first one counts."""
    found: dict[str, dict[str, str | None]] = {}
    for file in files:
        for frame in iterate_frames(file):
            stem, attributes = _stem_of(frame.get("name")), frame.get("attributes")
            if stem in stems and stem not in found and isinstance(attributes, dict):
                values = {name: attributes.get(name) for name in names}
                found[stem] = {
                    name: value if isinstance(value, str) and value != "undefined" else None
                    for name, value in values.items()
                }
    return found
