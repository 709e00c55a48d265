"""Masks and photos of any kind are read right or refused with a message that names the file; nothing else happens."""

import io
import re
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from semseg_diffusers.data.crop_resize import crop_resize
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.data.prepare import read_ids, read_image
from semseg_diffusers.data.readers import Encoded, Pair, Source


FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def encoded(picture: Image.Image, format: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


def read(data: bytes, labels: LabelSet, size: tuple[int, int], tolerance: float = 0.0) -> np.ndarray:
    pair = Pair("a", Encoded(b"", "a.jpg"), Encoded(data, "a.png"), "train")
    return read_ids(pair, Source(labels), crop_resize(*size, None), tolerance)


@st.composite
def masks(draw):
    """A label set, ids of it, and a picture that shows them in one of the ways of doing so."""
    labels = LabelSet.from_preset(draw(st.sampled_from(PRESET_NAMES)))
    ids = draw(
        hnp.arrays(
            np.uint8,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.sampled_from([*range(labels.num_classes), labels.ignore_index]),
        )
    )
    form = draw(st.sampled_from(["L", "P", "RGB", "RGBA", "I;16", "grey ramp", "palette of its own"]))
    if form in ("L", "I;16"):
        return labels, ids, Image.fromarray(ids.astype(np.uint8 if form == "L" else np.uint16))
    if form == "grey ramp":
        picture = Image.fromarray(ids)
        picture.putpalette(np.arange(256, dtype=np.uint8).repeat(3).tobytes())
        return labels, ids, picture
    picture = labels.decode(ids)
    if form == "palette of its own":  # as editors save it: the colours in any order
        known = [*range(labels.num_classes), labels.ignore_index]
        places = draw(st.permutations(range(60)))[: len(known)]
        palette, table = np.zeros((256, 3), np.uint8), np.zeros(256, np.uint8)
        palette[places] = [*labels.colors, labels.ignore_color]
        table[known] = places
        picture = Image.fromarray(table[ids])
        picture.putpalette(palette.tobytes())
        return labels, ids, picture
    return labels, ids, picture if form == "P" else picture.convert(form)


def result_or_refusal(work, *arguments):
    """Return the result, or the text of the refusal."""
    try:
        return work(*arguments)
    except ValueError as err:
        return str(err)


@FEW
@given(masks())
def test_every_form_of_a_mask_gives_the_same_ids(case):
    labels, ids, picture = case
    assert np.array_equal(read(encoded(picture), labels, ids.shape), ids)


@FEW
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    st.sampled_from(PRESET_NAMES),
    st.sampled_from([0.0, 30.0]),
    st.data(),
)
def test_any_picture_is_read_as_classes_or_refused_by_name(mode, size, preset, tolerance, data):
    labels = LabelSet.from_preset(preset)
    wide = mode in ("I;16", "I")
    bands = {"LA": (2,), "RGB": (3,), "RGBA": (4,)}.get(mode, ())
    most = data.draw(st.sampled_from([1, 20, 255, 60_000 if wide else 255]))
    array = data.draw(hnp.arrays(np.uint16 if wide else np.uint8, (*size, *bands), elements=st.integers(0, most)))
    if mode == "1":
        picture = Image.fromarray(array > 0)
    else:
        picture = Image.fromarray(array.astype(np.int32) if mode == "I" else array)
    if mode == "P":
        picture.putpalette(data.draw(st.binary(min_size=768, max_size=768)))
    assert picture.mode == mode
    ids = result_or_refusal(read, encoded(picture, "tiff" if mode == "I" else "png"), labels, size, tolerance)
    if isinstance(ids, str):
        assert re.search(r"mask 'a\.png'", ids)
        return
    assert (ids.shape, ids.dtype) == (size, np.uint8)
    assert set(np.unique(ids)) <= {*range(labels.num_classes), labels.ignore_index}
    if not bands and mode != "P":
        assert np.array_equal(ids, array > 0 if mode == "1" else array)


WHOLE = encoded(Image.fromarray(np.arange(3 * 40 * 30, dtype=np.uint16).reshape(40, 30, 3).astype(np.uint8)))
FILES = {
    format: encoded(Image.open(io.BytesIO(WHOLE)), format) for format in ("png", "jpeg", "webp", "bmp", "tiff", "gif")
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # a wrong byte may be in the size
@FEW
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_file_with_wrong_bytes_is_read_or_refused_by_name(format, data):
    spoiled = bytearray(FILES[format][: data.draw(st.integers(0, len(FILES[format])))])
    for place in data.draw(st.lists(st.integers(0, 400), max_size=4)):
        if place < len(spoiled):
            spoiled[place] = data.draw(st.integers(0, 255))
    found = result_or_refusal(read_image, Encoded(bytes(spoiled), "a.jpg"), (16, 16))
    if isinstance(found, str):
        assert "image 'a.jpg'" in found
    else:
        assert found[0].mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded():
    head = bytearray(encoded(Image.new("L", (1, 1))))
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    with pytest.raises(ValueError, match="image 'a.jpg' cannot be read as an image .*decompression bomb"):
        read_image(Encoded(bytes(head), "a.jpg"), None)
