"""What the numbers of masks mean is decided once for a dataset, said, and the same wherever a file comes in."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageColumn
from helpers.app_place import LIMITS
from helpers.tiny_pipelines import pipeline, tiny_unet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image

from semseg_diffusers import cli
from semseg_diffusers.app.inputs import read_mask_upload, read_photo_upload
from semseg_diffusers.data.check.check import check_source
from semseg_diffusers.data.dataset import PairDataset
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.mask_values import MaskReader
from semseg_diffusers.data.prepare import prepare_dataset, read_image
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.pipelines.image_inputs import read_image as read_pipeline_image


CAMVID = LabelSet.from_preset("camvid")
TWO = LabelSet(("road", "other"), ((255, 255, 255), (0, 0, 0)), ignore_color=(255, 0, 0))
STREET = {"road": (128, 64, 128), "car": (0, 0, 142), "sky": (70, 130, 180)}
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def palette_image(indices: np.ndarray, colors) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


def write_source(folder: Path, masks, labels, photos=None) -> Path:
    """Write pairs in the folder format; labels are a label set, or the content of labels.json."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, mask in enumerate(masks):
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        photo = Image.new("RGB", mask.size, (90, 90, 90)) if photos is None else photos[i]
        photo.save(folder / "images" / f"{i}.png")
        mask.save(folder / "masks" / f"{i}.png")
    content = labels.to_config() if isinstance(labels, LabelSet) else labels
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def prepare(source: Path, **options) -> list[np.ndarray]:
    """Return the prepared masks of the training split."""
    output = source.parent / f"out_{len(list(source.parent.iterdir()))}"
    arguments = {"source": str(source), "output": str(output), "resolution": None, "num_workers": 1, **options}
    prepare_dataset(PrepareSettings(**arguments))
    return [np.asarray(Image.open(path)) for path in sorted((output / "train" / "masks").iterdir())]


def array(*rows) -> np.ndarray:
    return np.array(rows, np.uint8)


# One decision for a dataset ------------------------------------------------------------------------------------------

VOC = [(0, 0, 0), *CAMVID.colors]  # a palette in which 0 is unlabelled and the classes follow
GREY = [(level,) * 3 for level in range(256)]


@pytest.mark.parametrize(
    ("labels", "masks", "expected"),
    [
        pytest.param(
            CAMVID,
            [palette_image(array([0, 0]), VOC), palette_image(array([0, 4]), VOC)],
            [array([255, 255]), array([255, 3])],
            id="a palette frame without objects",
        ),
        pytest.param(
            CAMVID,
            [palette_image(array([0, 0]), VOC[:1]), palette_image(array([0, 4]), VOC)],
            [array([255, 255]), array([255, 3])],
            id="a palette that holds what is used only",
        ),
        pytest.param(
            CAMVID,
            [palette_image(array([0, 0]), GREY), palette_image(array([0, 4]), GREY)],
            [array([0, 0]), array([0, 4])],
            id="a grey palette",
        ),
        pytest.param(
            TWO, [array([0, 0]), array([0, 255])], [array([1, 1]), array([1, 0])], id="black and white are classes"
        ),
        pytest.param(
            CAMVID, [array([0, 0]), array([0, 128])], [array([255, 255]), array([255, 0])], id="grey colours, not ids"
        ),
        pytest.param(
            CAMVID, [array([0, 0]), array([3, 255])], [array([0, 0]), array([3, 255])], id="ids, and 255 is unknown"
        ),
        pytest.param(
            CAMVID,
            [np.stack([array([0, 0])] * 3, -1), np.stack([array([3, 0]), array([0, 0]), array([0, 0])], -1)],
            [array([0, 0]), array([3, 0])],
            id="the red channel",
        ),
        pytest.param(
            CAMVID,
            [np.array([[(0, 0, 0), (0, 0, 0)]], np.uint8), np.array([[(0, 0, 0), CAMVID.colors[3]]], np.uint8)],
            [array([255, 255]), array([255, 3])],
            id="black in colours",
        ),
    ],
)
def test_what_a_mask_alone_leaves_open_is_decided_by_the_others(tmp_path, labels, masks, expected):
    for order in (1, -1):
        found = prepare(write_source(tmp_path / f"source{order}", masks[::order], labels))
        assert all(np.array_equal(ids, right) for ids, right in zip(found, expected[::order], strict=True))


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param([palette_image(array([0, 4]), VOC), array([0, 4])], id="0 is unlabelled, 0 is a class"),
        pytest.param([array([0, 128]), array([1, 4])], id="grey colours and ids"),
        pytest.param([palette_image(array([0, 4]), VOC), palette_image(array([0, 4]), GREY)], id="two palettes"),
    ],
)
def test_masks_that_disagree_are_refused_until_the_user_says(tmp_path, masks):
    source = write_source(tmp_path / "source", masks, CAMVID)
    with pytest.raises(ValueError, match="masks disagree in what their numbers are.*--mask_values ids or colors"):
        prepare(source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = check_source(source)
    assert [finding.kind for finding in report.findings if finding.severity == "error"][0] == "meaning of masks"


def test_what_nothing_decides_is_asked(tmp_path):
    source = write_source(tmp_path / "source", [array([0, 0])], TWO)
    with pytest.raises(ValueError, match="class ids as well as grey colours.*--mask_values ids or"):
        prepare(source)
    assert np.array_equal(prepare(source, mask_values="ids")[0], array([0, 0]))
    assert np.array_equal(prepare(source, mask_values="colors")[0], array([1, 1]))


def test_the_decision_is_said(tmp_path, capsys):
    source = write_source(tmp_path / "source", [array([0, 0]), array([0, 255])], TWO)
    arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--resolution", "native"]
    assert cli.main(["prepare", *arguments]) == 0
    said = capsys.readouterr().out
    assert "masks as colours of the classes" in said
    assert "1 of 2 are, the others could be both" in said


def test_a_dataset_of_the_hub_is_decided_as_a_whole(tmp_path):
    masks = [array([0, 0]), array([0, 128])]
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    table = Dataset.from_dict({"image": files, "mask": files}).cast_column("mask", ImageColumn(decode=False))
    pairs = PairDataset(
        table.cast_column("image", ImageColumn(decode=False)), CAMVID, "image", "mask", "'hub' (train)"
    )
    assert np.array_equal(pairs.mask(0), array([0, 0]))  # alone
    pairs.decide_mask_values()
    assert np.array_equal(pairs.mask(0), array([255, 255]))


def test_black_colours_alone_are_no_class(tmp_path):
    labels = LabelSet(("sky", "road"), ((1, 2, 3), (4, 5, 6)), ignore_color=(255, 0, 0))
    source = write_source(tmp_path / "source", [Image.new("RGB", (2, 1))], labels)
    with pytest.raises(ValueError, match="holds 1 colour that no class has"):
        prepare(source)
    Image.fromarray(np.array([[(0, 0, 0), (1, 0, 0)]], np.uint8)).save(source / "masks" / "0.png")
    Image.new("RGB", (2, 1)).save(source / "masks" / "1.png")
    Image.new("RGB", (2, 1)).save(source / "images" / "1.png")
    assert [ids.tolist() for ids in prepare(source)] == [[[0, 1]], [[0, 0]]]


def test_masks_to_generate_from_are_decided_together(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, mask in zip(paths, (array([0, 0]), array([0, 128])), strict=True):
        Image.fromarray(mask).save(path)
    assert np.array_equal(MaskReader(CAMVID, paths).read(paths[0]), array([255, 255]))
    assert np.array_equal(MaskReader(CAMVID, paths[:1]).read(paths[0]), array([0, 0]))


# Which id is unlabelled ----------------------------------------------------------------------------------------------


def names_and_colors(names, start=0):
    return {
        "id2label": {str(i): name for i, name in enumerate(names, start)},
        "id2color": {str(i): STREET.get(name, (1, 2, 3)) for i, name in enumerate(names, start)},
    }


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({**names_and_colors(STREET), "ignore_index": 0}, tuple(STREET)),
        ({**names_and_colors(STREET, 1), "ignore_index": 0}, tuple(STREET)),
        ({**names_and_colors(["Background", *STREET]), "ignore_index": 0}, tuple(STREET)),
        (names_and_colors(["void", *STREET]), ("void", *STREET)),
    ],
)
def test_ignore_index_may_be_below_or_among_the_classes(tmp_path, content, names):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = LabelSet.from_json(tmp_path / "labels.json")
    first = names.index("road")
    assert labels.names == names
    assert labels.encode(Image.fromarray(array([0, 1, 2, 3]))).tolist() == [
        [0 if first else 255, first, first + 1, first + 2]
    ]
    with pytest.raises(ValueError, match="holds class 4; this model knows"):
        labels.encode(Image.fromarray(array([4])))


@pytest.mark.parametrize(
    ("ignored", "mask", "expected"),
    [(0, [0, 1, 2, 3], [255, 0, 1, 2]), (3, [0, 1, 2, 3], [0, 1, 2, 255]), (1, [0, 1, 2, 3], [0, 255, 1, 2])],
)
def test_one_option_names_the_unlabelled_id(tmp_path, ignored, mask, expected):
    source = write_source(tmp_path / "source", [array(mask)], LabelSet.from_colormap(STREET))
    with pytest.raises(ValueError, match="If it is 0, and the classes are 1-3, set ignore_index to 0"):
        prepare(source)
    assert prepare(source, ignore_index=ignored)[0].tolist() == [expected]


def test_ids_with_gaps_are_those_of_the_label_file(tmp_path):
    content = {"id2label": {"7": "road", "26": "car"}, "id2color": {"7": (128, 64, 128), "26": (0, 0, 142)}}
    source = write_source(tmp_path / "source", [array([7, 26, 255])], content)
    assert prepare(source)[0].tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match="holds class 0; this model knows 7, 26 and 255"):
        LabelSet.from_json(source / "labels.json").encode(Image.fromarray(array([0])))


def test_a_format_with_ids_of_its_own_refuses_the_option(tmp_path, capsys):
    for part in ("image_2", "semantic"):
        (tmp_path / "training" / part).mkdir(parents=True)
        Image.fromarray(array([7, 7])).save(tmp_path / "training" / part / "a.png")
    arguments = ["--source", str(tmp_path), "--output", str(tmp_path.parent / "out"), "--ignore_index", "0"]
    assert cli.main(["prepare", *arguments]) == 2
    assert "--format kitti does not take --ignore_index '0'" in capsys.readouterr().err


# What was left unknown -----------------------------------------------------------------------------------------------


def test_shares_of_unknown_pixels_are_said_at_the_end(tmp_path, capsys):
    masks = [array([0, 255, 255]), array([255, 255, 255])]
    source = write_source(tmp_path / "source", masks, CAMVID)
    arguments = ["--source", str(source), "--output", str(tmp_path / "out"), "--resolution", "native"]
    assert cli.main(["prepare", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "warning: 83.3 % of the pixels are unknown, 1 of 2 masks everywhere" in lines
    assert any(line.startswith("10 of 11 classes occur in no mask: building, ") for line in lines)


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (array([255, 255]), {}),
        (np.array([[(3, 3, 9), (9, 3, 3)]], np.uint8), {"tolerance": 30.0}),
        (array([3, 3]), {"map_to": "labels"}),
    ],
)
def test_where_nothing_is_labelled_nothing_is_written(tmp_path, mask, options):
    source = write_source(tmp_path / "source", [mask], CAMVID)
    if "map_to" in options:
        LabelSet(("sky", "zebra"), ((1, 2, 3), (4, 5, 6))).save_json(tmp_path / "zoo.json")
        options = {"map_to": str(tmp_path / "zoo.json")}
    message = "all pixels of all 1 masks are unknown, so nothing is labelled"
    if "map_to" in options:
        message = "most pixels would be lost: 2 of 2 labelled pixels .* became unknown"
    with pytest.raises(ValueError, match=message):
        prepare(source, **options)
    if "map_to" not in options:  # which check does not take
        errors = [each.kind for each in check_source(source, **options).findings if each.severity == "error"]
        assert errors == ["unknown mask"]
    assert not list(tmp_path.glob("out*"))


# Photos that EXIF rotates --------------------------------------------------------------------------------------------

SCENE = np.zeros((6, 10), np.uint8)
SCENE[3:], SCENE[4, 1:4] = 3, 8
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def rotated_source(folder: Path, orientations, masks_stored: bool, own_exif: bool = False) -> Path:
    """Write photos as cameras store them, and masks of the stored or of the upright pixels."""
    source = write_source(folder, [SCENE] * len(orientations), CAMVID)
    for i, value in enumerate(orientations):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = value
        stored = Image.fromarray(SCENE * 25).convert("RGB").transpose(TO_STORED[value])
        stored.save(source / "images" / f"{i}.png", exif=exif)
        if masks_stored:
            options = {"exif": exif} if own_exif else {}
            Image.fromarray(SCENE).transpose(TO_STORED[value]).save(source / "masks" / f"{i}.png", **options)
    return source


@pytest.mark.parametrize("orientations", [(6,), (8, 6), (3, 6), (2, 8)])
@pytest.mark.parametrize("stored", [True, False])
def test_masks_are_rotated_as_their_photos_where_their_size_tells(tmp_path, orientations, stored):
    source = rotated_source(tmp_path / "source", orientations, stored)
    assert all(np.array_equal(ids, SCENE) for ids in prepare(source))
    kinds = {finding.kind: finding for finding in check_source(source).findings}
    assert f"{len(orientations)} images are rotated by their EXIF" in kinds["how masks are read"].examples[0]
    assert "size of mask" not in kinds


@pytest.mark.parametrize("orientation", [2, 3])
def test_where_the_size_does_not_tell_the_user_does(tmp_path, orientation):
    source = rotated_source(tmp_path / "source", (orientation,), True)
    with pytest.raises(ValueError, match="EXIF orientation.*--mask_orientation stored or upright"):
        prepare(source)
    assert np.array_equal(prepare(source, mask_orientation="stored")[0], SCENE)
    assert not np.array_equal(prepare(source, mask_orientation="upright")[0], SCENE)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_exif_does_not_know_is_none(tmp_path, value):
    source = write_source(tmp_path / "source", [SCENE], CAMVID)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    Image.fromarray(SCENE * 25).convert("RGB").save(source / "images" / "0.png", exif=exif)
    assert np.array_equal(prepare(source)[0], SCENE)
    assert not [finding for finding in check_source(source).findings if finding.severity == "error"]


def test_a_palette_of_a_colour_that_no_class_has_is_no_class():
    labels = LabelSet(("sky", "road"), ((1, 2, 3), (4, 5, 6)), ignore_color=(255, 0, 0))
    with pytest.raises(ValueError, match="holds 1 colour that no class has"):
        labels.encode(palette_image(array([0, 0]), [(0, 0, 0)]))


def test_a_mask_with_the_same_orientation_is_rotated_by_its_own(tmp_path):
    source = rotated_source(tmp_path / "source", (3, 6), True, own_exif=True)
    assert all(np.array_equal(ids, SCENE) for ids in prepare(source))


# The same at every door ----------------------------------------------------------------------------------------------


def outcome(read, *arguments):
    """Return what was read, or a word for a refusal."""
    try:
        return np.asarray(read(*arguments)).tolist()
    except ValueError:
        return "refused"


def pair_dataset(path: Path, labels: LabelSet, in_memory: bool) -> PairDataset:
    entry = {"bytes": path.read_bytes(), "path": None} if in_memory else str(path)
    table = Dataset.from_dict({"image": [entry], "mask": [entry]})
    for column in ("image", "mask"):
        table = table.cast_column(column, ImageColumn(decode=False))
    return PairDataset(table, labels, "image", "mask", "'hub' (train)")


@pytest.fixture(scope="module")
def pipe():
    return pipeline(tiny_unet(num_classes=11, **CAMVID.to_config()))


@st.composite
def pictures(draw):
    """Any picture in any file, some of which are masks of CamVid's classes."""
    mode = draw(st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F", "pages", "EXIF", "RGB;16"]))
    values = draw(hnp.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 3, 10, 11, 128, 255])))
    colored = np.array([*CAMVID.colors, *[(0, 0, 0)] * 245], np.uint8)[values]
    form = draw(st.sampled_from(["png", "tiff", "jpeg", "webp", "bmp"]))
    image = Image.fromarray(colored) if draw(st.booleans()) else Image.fromarray(values)
    options = {}
    if mode == "P":
        shift = draw(st.sampled_from([0, 1]))
        image = palette_image(values, ([(0, 0, 0)] * shift + [*CAMVID.colors] + [(0, 0, 0)] * 256)[:256])
        form = draw(st.sampled_from(["png", "tiff", "bmp"]))
    elif mode == "I;16":
        image, form = Image.fromarray(values.astype(np.uint16)), draw(st.sampled_from(["png", "tiff"]))
    elif mode == "F":
        image, form = Image.fromarray(values.astype(np.float32)), "tiff"
    elif mode in ("RGBA", "LA"):
        image, form = image.convert(mode), "png"
        image.putalpha(draw(st.sampled_from([255, 200])))
    elif mode == "pages":
        form, options = "tiff", {"save_all": True, "append_images": [image]}
    elif mode == "EXIF":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = draw(st.sampled_from([3, 6]))
        form, options = draw(st.sampled_from(["png", "jpeg"])), {"exif": exif}
    file = io.BytesIO()
    image.save(file, form, **({"lossless": True} if form == "webp" else {}), **options)
    return file.getvalue(), form


@FEW
@given(pictures())
def test_a_mask_is_the_same_ids_or_refused_wherever_it_comes_in(tmp_path_factory, pipe, picture):
    data, form = picture
    folder = tmp_path_factory.mktemp("mask")
    path = folder / f"a.{form}"
    path.write_bytes(data)
    source = folder / "source"
    for part in ("images", "masks"):
        (source / part).mkdir(parents=True)
    with Image.open(path) as image:
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        size = image.size[::-1] if rotated else image.size
        opened = image.copy() if getattr(image, "n_frames", 1) == 1 and form != "jpeg" else None
    Image.new("RGB", size).save(source / "images" / "a.png")
    (source / "masks" / path.name).write_bytes(data)
    CAMVID.save_json(source / "labels.json")

    first = outcome(CAMVID.encode, path)
    assert outcome(lambda: pipe.read_masks(str(path))[0]) == first
    assert outcome(lambda: pipe.read_masks([Image.open(path)])[0]) == first
    assert outcome(MaskReader(CAMVID, [path]).read, path) == first
    assert outcome(pair_dataset(path, CAMVID, in_memory=False).mask, 0) == first
    assert outcome(pair_dataset(path, CAMVID, in_memory=True).mask, 0) == first
    if opened is not None and "exif" not in opened.info:
        assert outcome(CAMVID.encode, opened) == first
    if form not in ("tiff",):  # the painter takes what a browser shows
        assert outcome(read_mask_upload, data, CAMVID, size[::-1], LIMITS, False) == first
    everywhere_unknown = first != "refused" and np.all(np.array(first) == 255)
    prepared = outcome(lambda: prepare(source, skip_unmatched=False)[0])
    assert prepared == ("refused" if everywhere_unknown else first)
    errors = {finding.kind for finding in check_source(source).findings if finding.severity == "error"}
    assert bool(errors) == (prepared == "refused")


@FEW
@given(pictures())
def test_a_photo_is_the_same_pixels_or_refused_wherever_it_comes_in(tmp_path_factory, picture):
    data, form = picture
    path = tmp_path_factory.mktemp("photo") / f"a.{form}"
    path.write_bytes(data)
    with Image.open(path) as image:
        rotated = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        size = image.size if rotated else image.size[::-1]
    first = outcome(lambda: read_image(path, None)[0])
    levels = outcome(lambda: (read_pipeline_image(str(path)) * 255).round().astype(np.uint8))
    assert levels == first
    assert outcome(lambda: pair_dataset(path, CAMVID, in_memory=True).photo(0)) == first
    assert outcome(lambda: pair_dataset(path, CAMVID, in_memory=False).photo(0)) == first
    if form != "tiff":
        assert outcome(read_photo_upload, data, size, LIMITS) == first


@pytest.mark.parametrize("level", [float("nan"), float("inf"), -0.5])
def test_numbers_that_are_no_colours_are_refused(level):
    image = np.full((2, 2, 3), 0.5, np.float32)
    image[0, 0, 0] = level
    with pytest.raises(ValueError, match="expected \\[0, 1\\]"):
        read_pipeline_image(image)
