"""Label sets and the reading of masks: laws of encode and decode, every image mode, every refusal."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_pipelines import tiny_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.labels import CITYSCAPES, PRESET_NAMES, LabelSet
from semseg_diffusers.pipelines.mask_inputs import center_crop_box, colors_to_ids, open_image, read_mask, resize_ids


DATA = Path(os.environ.get("SEMSEG_DATA", Path(__file__).parents[2] / "../shared/data"))
BDD = LabelSet.from_preset("bdd100k")


def paint(ids, labels=BDD) -> Image.Image:
    return labels.decode(np.asarray(ids, dtype=np.uint8)).convert("RGB")


@st.composite
def label_sets(draw) -> LabelSet:
    color = st.tuples(*[st.integers(0, 255)] * 3)
    colors = draw(st.lists(color, min_size=2, max_size=40, unique=True))
    *colors, ignore_color = colors
    ignore_index = draw(st.integers(len(colors), 255))
    return LabelSet(tuple(f"class {i}" for i in range(len(colors))), tuple(colors), ignore_index, ignore_color)


def random_ids(draw, labels: LabelSet) -> np.ndarray:
    values = st.one_of(st.integers(0, labels.num_classes - 1), st.just(labels.ignore_index))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    return draw(hnp.arrays(np.uint8, shape, elements=values))


# --- laws ---


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_encode_undoes_decode_as_ids_palette_and_colours(data):
    labels = data.draw(st.one_of(label_sets(), st.sampled_from(PRESET_NAMES).map(LabelSet.from_preset)))
    ids = random_ids(data.draw, labels)
    picture = labels.decode(ids)
    assert picture.mode == "P"
    assert (np.asarray(picture) == ids).all()
    for form in (picture, picture.convert("RGB"), picture.convert("RGBA"), ids, torch.from_numpy(ids).long()):
        encoded = labels.encode(form)
        assert encoded.dtype == np.uint8
        assert (encoded == ids).all()


@settings(max_examples=30, deadline=None)
@given(label_sets())
def test_config_and_json_keep_the_label_set(labels):
    config = json.loads(json.dumps(labels.to_config()))
    assert LabelSet.from_config(config) == labels
    with_int_keys = {**config, "id2label": labels.id2label, "id2color": dict(enumerate(labels.colors))}
    assert LabelSet.from_config(with_int_keys) == labels


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tolerance_takes_the_nearest_colour_and_nothing_beyond(data):
    rgb = data.draw(hnp.arrays(np.uint8, (4, 4, 3)))
    table = np.array([*BDD.colors, BDD.ignore_color], dtype=float)
    distances = np.linalg.norm(rgb[:, :, None].astype(float) - table, axis=-1)
    nearest = np.array([*range(19), 255])[distances.argmin(-1)]
    farthest = distances.min(-1).max()
    assert (colors_to_ids(rgb, BDD.colors, tolerance=farthest) == nearest).all()
    if farthest > 0.5:
        with pytest.raises(ValueError, match="that no class has"):
            colors_to_ids(rgb, BDD.colors, tolerance=farthest - 0.25)


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_resizing_keeps_ids_and_crops_the_centre(height, width, new_height, new_width):
    ids = np.arange(height * width, dtype=np.int64).reshape(height, width)
    resized = resize_ids(ids, new_height, new_width)
    assert resized.shape == (new_height, new_width)
    assert np.isin(resized, ids).all()
    left, top, right, bottom = center_crop_box(height, width, new_height, new_width)
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    assert left == 0 or top == 0


def test_resizing_by_a_whole_factor_is_what_pillow_does_by_nearest():
    ids = np.random.default_rng(0).integers(0, 19, (24, 36)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(ids).resize((12, 8), Image.Resampling.NEAREST))
    assert (resize_ids(ids, 8, 12) == expected).all()


# --- presets ---


def test_presets_hold_the_published_classes_and_colours():
    assert LabelSet.from_preset("cityscapes") == BDD
    assert BDD.num_classes == 19
    assert BDD.id2label[13] == "car"
    assert BDD.label2id["traffic light"] == 6
    assert BDD.colors[8] == (107, 142, 35)
    camvid = LabelSet.from_preset("camvid")
    assert camvid.names[:6] == ("sky", "building", "pole", "road", "sidewalk", "vegetation")
    assert camvid.names[6:] == ("traffic sign", "fence", "car", "person", "rider")
    assert camvid.colors[3] == (128, 64, 128)
    assert all(preset.ignore_color not in preset.colors for preset in map(LabelSet.from_preset, PRESET_NAMES))


def test_paper_preset_equals_the_authors_colormap():
    path = DATA / "bdd100k_samples" / "colormap.json"
    if not path.is_file():
        pytest.skip(f"no real data in {DATA}; set SEMSEG_DATA")
    assert LabelSet.from_json(path) == LabelSet.from_preset("paper")
    for mask in sorted((DATA / "bdd100k_samples" / "masks").glob("*.png")):
        assert LabelSet.from_preset("paper").encode(mask).max() <= 18


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no label set is called 'ade20k'; there are bdd100k"):
        LabelSet.from_preset("ade20k")


def test_a_label_set_is_named_by_its_preset_or_its_file(tmp_path):
    BDD.save_json(tmp_path / "own.json")
    assert LabelSet.from_name("bdd100k") == LabelSet.from_name(str(tmp_path / "own.json")) == BDD
    with pytest.raises(ValueError, match="label set 'ade20k' is no file and none of the presets bdd100k, cityscapes"):
        LabelSet.from_name("ade20k")


# --- what a label set refuses ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("a", "a")}, "the class name 'a' occurs twice"),
        ({"names": ("a", " ")}, "expected text"),
        ({"names": ("a",)}, "got 1 names and 2 colours"),
        ({"names": (), "colors": ()}, "1 to 255 classes; got 0"),
        ({"colors": ((1, 2, 3), (1, 2, 3))}, r"'a' and 'b' share the colour \(1, 2, 3\)"),
        ({"colors": ((1, 2, 3), (1, 2, 256))}, "three whole numbers from 0 to 255"),
        ({"colors": ((1, 2, 3), (1, 2))}, "three whole numbers from 0 to 255"),
        ({"colors": ((1, 2, 3), (0.5, 2, 3))}, "three whole numbers from 0 to 255"),
        ({"ignore_index": 1}, "ignore_index is 1; it must be no class"),
        ({"ignore_index": 256}, "fit 8 bits"),
        ({"ignore_color": (1, 2, 3)}, "is the colour of 'a'; take one that no class has"),
        ({"kinds": ("lorry", None)}, "the kind of 'a' is 'lorry'; expected one of person, rider, car"),
        ({"kinds": ("car",)}, "expected a kind, or None, for each of 2 classes; got 1"),
    ],
)
def test_label_set_refuses_what_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelSet(**{"names": ("a", "b"), "colors": ((1, 2, 3), (4, 5, 6)), **settings})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "label file '.*labels.json' is not valid JSON"),
        ("[]", "label file '.*labels.json' holds no classes"),
        ('{"road": {"colour": [1, 2, 3]}}', "'road' has .*; expected a color, and a kind"),
        ('{"id2label": {"0": "a"}, "id2color": {"0": [1, 2, 3]}, "id2kind": {"1": "car"}}', "id2kind has the ids"),
        (
            '{"id2label": {"0": "a"}, "id2color": {"0": [1, 2, 3]}, "id2kind": ["road"]}',
            "id2kind is .* expected the k",
        ),
        ('{"id2label": {"0": "a"}, "id2color": {"0": [1, 2, 3]}, "id2kind": "road"}', "id2kind is .* expected the k"),
        ('{"id2label": {"3": "a"}, "id2color": {"3": [1, 2, 3]}, "id2kind": {"x": "road"}}', "id2kind is .* expected"),
        ('{"road": "red"}', "label file '.*labels.json': the colour of 'road' is 'red'"),
        ('{"id2label": {"0": "road"}}', "id2color is missing beside id2label; expected the colours"),
        ('{"id2label": {"3": "road"}, "id2color": null}', "id2color is missing beside id2label; expected the colours"),
    ],
)
def test_label_file_with_broken_content_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        LabelSet.from_json(tmp_path / "labels.json")


def test_kinds_travel_with_the_label_set(tmp_path):
    (tmp_path / "own.json").write_text(
        '{"drivable": {"color": [1, 2, 3], "kind": "road"}, "car": [4, 5, 6], "rest": {"color": [7, 8, 9]}}'
    )
    labels = LabelSet.from_json(tmp_path / "own.json")
    assert labels.kinds == ("road", None, None)
    labels.save_json(tmp_path / "labels.json")
    assert json.loads((tmp_path / "labels.json").read_text())["id2kind"] == {"0": "road"}
    assert LabelSet.from_json(tmp_path / "labels.json").kinds == labels.kinds
    assert LabelSet.from_config(tiny_unet(num_classes=3, **labels.to_config()).config).kinds == labels.kinds
    with_gaps = {**labels.to_config(), "id2label": {"7": "drivable", "9": "car", "12": "rest"}}
    with_gaps |= {"id2color": {"7": [1, 2, 3], "9": [4, 5, 6], "12": [7, 8, 9]}, "id2kind": {"12": "object"}}
    (tmp_path / "gaps.json").write_text(json.dumps(with_gaps))
    assert LabelSet.from_json(tmp_path / "gaps.json").kinds == (None, None, "object")
    assert replace(labels, names=("void", "car", "rest")).with_ignored_id(0).kinds == ()


def test_label_sets_without_kinds_are_saved_as_before():
    assert list(BDD.to_config()) == ["id2label", "id2color", "ignore_index", "ignore_color"]


def test_colormap_with_a_black_class_takes_another_colour_for_unknown(tmp_path):
    (tmp_path / "colormap.json").write_text('{"void": [0, 0, 0], "road": [255, 255, 255]}')
    labels = LabelSet.from_json(tmp_path / "colormap.json")
    assert labels.ignore_color == (1, 1, 1)
    assert (labels.encode(labels.decode(np.array([[0, 1, 255]])).convert("RGB")) == [[0, 1, 255]]).all()


# --- image modes ---


def test_grey_and_bilevel_and_16_bit_images_are_ids(tmp_path):
    ids = np.array([[0, 1, 18], [255, 7, 0]], dtype=np.uint8)
    for name, array in {"l.png": ids, "i16.png": ids.astype(np.uint16)}.items():
        Image.fromarray(array).save(tmp_path / name)
        assert (BDD.encode(tmp_path / name) == ids).all()
    assert Image.open(tmp_path / "i16.png").mode == "I;16"
    bilevel = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert (BDD.encode(bilevel) == [[0, 1]]).all()
    assert (BDD.encode(Image.fromarray(ids.astype(np.int32))) == ids).all()


def test_16_bit_ids_out_of_range_are_refused_with_the_likely_cause():
    instances = Image.fromarray(np.array([[7, 26001]], dtype=np.uint16))
    with pytest.raises(ValueError, match=r"holds class 26001; this model knows 0-18 .*instance file"):
        BDD.encode(instances)


def test_palette_image_of_another_palette_is_read_by_its_colours():
    ids = np.array([[0, 8], [13, 255]], dtype=np.uint8)
    reordered = paint(ids).quantize(4)  # an editor's own palette: the same colours under other indices
    assert reordered.mode == "P"
    assert (np.asarray(reordered) != ids).any()
    assert (BDD.encode(reordered) == ids).all()


def test_palette_image_may_show_unknown_in_any_colour():
    picture = BDD.decode(np.array([[0, 255]]))
    palette = picture.getpalette()
    palette[-3:] = [1, 2, 3]
    picture.putpalette(palette)
    assert (BDD.encode(picture) == [[0, 255]]).all()


def test_palette_image_with_a_grey_ramp_holds_ids():
    picture = Image.fromarray(np.array([[0, 3, 255]], dtype=np.uint8))
    picture.putpalette([level for level in range(256) for _ in range(3)])
    assert picture.mode == "P"
    assert (BDD.encode(picture) == [[0, 3, 255]]).all()


def test_palette_image_with_an_id_out_of_range_is_refused_as_ids():
    picture = BDD.decode(np.array([[0, 5]]))
    array = np.array([[0, 30]], dtype=np.uint8)
    wrong = Image.fromarray(array)
    wrong.putpalette(picture.getpalette())
    with pytest.raises(ValueError, match="holds class 30"):
        BDD.encode(wrong)


def test_transparency_is_refused_and_opaque_alpha_is_not():
    picture = paint([[0, 13]]).convert("RGBA")
    assert (BDD.encode(picture) == [[0, 13]]).all()
    picture.putpixel((0, 0), (128, 64, 128, 10))
    with pytest.raises(ValueError, match="1 transparent pixels.*Flatten it"):
        BDD.encode(picture)


@pytest.mark.parametrize("mode", ["F", "CMYK", "HSV"])
def test_other_image_modes_are_refused_by_name(mode):
    picture = Image.new("L", (2, 2)).convert(mode) if mode == "F" else Image.new("RGB", (2, 2)).convert(mode)
    with pytest.raises(ValueError, match=f"image mode {mode}; expected"):
        BDD.encode(picture)


# --- unknown colours and ids out of range ---


def test_unknown_colours_are_refused_with_file_colours_and_counts(tmp_path):
    rgb = np.zeros((4, 5, 3), dtype=np.uint8)
    rgb[0, :, 0] = [11, 12, 13, 14, 15]
    rgb[1, :2] = [16, 0, 0]
    rgb[2, 0] = [20, 1, 0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png' holds 7 col.*\(16, 0, 0\) in 2 pixels.* and 2 more.*tolerance"):
        BDD.encode(tmp_path / "a.png")
    assert (BDD.encode(tmp_path / "a.png", tolerance=25) == 255).all()


def test_unknown_colours_get_a_hint_that_fits(tmp_path):
    with pytest.raises(ValueError, match="one channel"):
        BDD.encode(np.full((2, 2, 3), 5, dtype=np.uint8))
    rng = np.random.default_rng(0)
    paint(rng.integers(0, 19, (16, 16))).save(tmp_path / "mask.jpg")
    with pytest.raises(ValueError, match="is a JPEG.*Export the mask again as PNG, or pass a tolerance"):
        BDD.encode(tmp_path / "mask.jpg")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            23,
            r"mask 'a.png' holds class 23; this model knows 0-18 and 255 \(ignore\)\. Is it a Cityscapes labelIds",
        ),
        (-1, "Cityscapes labelIds"),
        (19, "Is it a Cityscapes labelIds file"),
        (204, "grey"),
    ],
)
def test_ids_out_of_range_name_file_value_range_and_cause(value, message):
    with pytest.raises(ValueError, match=message):
        BDD.encode(np.array([[0, value]]), source="a.png")


def test_the_usual_unlabelled_id_after_the_last_class_is_named():
    camvid = LabelSet.from_preset("camvid")
    with pytest.raises(ValueError, match="if it is 11, set it to 11"):
        camvid.check_ids(np.array([[11]]))


def test_a_black_and_white_picture_is_named():
    labels = LabelSet(("a", "b"), ((1, 1, 1), (2, 2, 2)), ignore_index=2)
    with pytest.raises(ValueError, match="black-and-white"):
        labels.encode(np.array([[0, 255]], dtype=np.uint8))


# --- arrays and tensors ---


def test_one_hot_masks_are_read_and_zero_vectors_are_unknown():
    one_hot = torch.zeros(19, 2, 2)
    one_hot[3, 0, 0] = one_hot[18, 0, 1] = one_hot[0, 1, 0] = 1
    for form in (one_hot, one_hot.bool(), one_hot.half(), one_hot.numpy()):
        assert (BDD.encode(form) == [[3, 18], [0, 255]]).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 2), dtype=np.float32), "type float32; expected integer class ids.*cast them"),
        (torch.zeros(2, 2), "cast them"),
        (np.zeros((2, 2), dtype=bool), "type bool; expected integer"),
        (np.zeros((5, 2, 2), dtype=np.float32), "shape .*5, 2, 2.* one-hot floats or booleans .*19, H, W"),
        (np.full((19, 2, 2), 0.5, dtype=np.float32), "not one-hot"),
        (np.ones((19, 2, 2), dtype=bool), "not one-hot"),
        (np.zeros((0, 4), dtype=np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_no_mask_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        BDD.encode(mask)


def test_a_mask_of_another_type_is_refused():
    with pytest.raises(TypeError, match="of type int; expected a path"):
        BDD.encode(3)


def test_without_a_label_set_ids_are_read_and_colours_refused():
    ids = np.array([[0, 3], [255, 1]], dtype=np.uint8)
    assert (read_mask(BDD.decode(ids), num_classes=4) == ids).all()
    assert (read_mask(Image.fromarray(ids), num_classes=4) == ids).all()
    with pytest.raises(ValueError, match="has no colours .id2color.*one channel"):
        read_mask(paint(ids), num_classes=4)


def test_more_classes_than_8_bits_hold_are_refused():
    with pytest.raises(ValueError, match="at most 255 classes; this model has 300"):
        read_mask(np.zeros((2, 2), dtype=np.uint16), num_classes=300)


@pytest.mark.parametrize("ids", [np.zeros((2, 2)), np.zeros((1, 2, 2), dtype=np.uint8)])
def test_decode_refuses_what_are_no_ids(ids):
    with pytest.raises(ValueError, match=r"expected integers of shape \(H, W\)"):
        BDD.decode(ids)


def test_decode_refuses_ids_out_of_range():
    with pytest.raises(ValueError, match="holds class 19"):
        BDD.decode(np.array([[19]]))


# --- files ---


def test_broken_files_are_refused_by_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    paint(np.random.default_rng(0).integers(0, 19, (64, 64))).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(ValueError, match=r"mask '.*empty\.png' is empty"):
        BDD.encode(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"mask '.*text\.png' cannot be read as an image"):
        BDD.encode(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"mask '.*cut\.png' cannot be read as an image.*truncated"):
        BDD.encode(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"mask '.*cut\.png' cannot be read as an image"):
        BDD.encode(Image.open(tmp_path / "cut.png"))  # Pillow decodes late
    with pytest.raises(FileNotFoundError, match="none.png"):
        BDD.encode(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"photo '.*empty\.png'"):
        open_image(tmp_path / "empty.png", what="photo")


# --- legend, palette, command ---


def test_legend_shows_every_colour():
    for labels in map(LabelSet.from_preset, PRESET_NAMES):
        for columns in (1, 2):
            shown = {color for _, color in labels.legend(columns=columns).getcolors(maxcolors=1 << 20)}
            assert {*labels.colors, labels.ignore_color} <= shown
    with pytest.raises(ValueError, match="expected at least 1 and 12"):
        BDD.legend(columns=0)


def test_palette_file_lists_the_colours_as_gimp_reads_them(tmp_path):
    BDD.save_palette(tmp_path / "bdd100k.gpl")
    lines = (tmp_path / "bdd100k.gpl").read_text().splitlines()
    assert lines[:2] == ["GIMP Palette", "Name: bdd100k"]
    assert lines[4] == "128  64 128\troad"
    assert len(lines) == 4 + 19 + 1


@pytest.mark.parametrize("source", [["--preset", "camvid"], ["--labels", "colormap.json"]])
def test_labels_command_writes_legend_palette_and_json(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colormap.json").write_text(json.dumps(CITYSCAPES))
    assert cli.main(["labels", *source, "--output", "out/here"]) == 0
    name = "camvid" if "camvid" in source else "colormap"
    assert sorted(path.name for path in (tmp_path / "out" / "here").iterdir()) == sorted(
        [f"{name}.gpl", "labels.json", "legend.png"]
    )
    expected = LabelSet.from_preset("camvid") if "camvid" in source else BDD
    assert LabelSet.from_json(tmp_path / "out/here/labels.json") == expected
    assert "legend.png" in capsys.readouterr().out


def test_labels_command_does_not_replace_the_file_that_it_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = json.dumps({"id2label": {"3": "road"}, "id2color": {"3": [1, 2, 3]}})
    (tmp_path / "labels.json").write_text(content)
    assert cli.main(["labels", "--labels", "labels.json", "--output", str(tmp_path)]) == 2
    assert "would replace 'labels.json', the label set itself. Name another folder" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("labels.json", content)]


def test_real_camvid_masks_are_read_once_their_unlabelled_id_is_mapped():
    folder = DATA / "camvid" / "labels" / "val"
    if not folder.is_dir():
        pytest.skip(f"no real data in {DATA}; set SEMSEG_DATA")
    camvid = LabelSet.from_preset("camvid")
    ids = np.asarray(Image.open(sorted(folder.glob("*.png"))[0]))
    mapped = np.where(ids == 11, 255, ids)
    assert (camvid.encode(camvid.decode(mapped).convert("RGB")) == mapped).all()
