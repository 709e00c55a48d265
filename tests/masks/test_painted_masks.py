"""Painted masks are recovered: exact ones unchanged, soft and compressed ones nearly so; other images are refused."""

import io
import json

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw

from semseg_diffusers import cli
from semseg_diffusers.data.dataset_format import find_masks
from semseg_diffusers.data.labels import PRESET_NAMES, LabelSet
from semseg_diffusers.masks.cleaning import clean_painting
from semseg_diffusers.masks.editing import shapes as drawing
from semseg_diffusers.toy.scenes import draw_scene


LABELS = LabelSet.from_preset("bdd100k")
ID = LABELS.label2id


def jpeg(picture: Image.Image, quality: int = 85) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


@st.composite
def painted(draw):
    """A label set, and ids (96, 128) of a few large shapes on a ground, as a hand paints them."""
    labels = LabelSet.from_preset(draw(st.sampled_from(PRESET_NAMES)))
    classes = st.sampled_from([*range(labels.num_classes), 255])
    ids = np.full((96, 128), draw(classes), dtype=np.uint8)
    for _ in range(draw(st.integers(1, 5))):
        center = draw(st.tuples(st.integers(0, 127), st.integers(0, 95)))
        radii = draw(st.tuples(st.integers(8, 50), st.integers(8, 40)))
        ids[drawing.ellipse(ids.shape, center, radii)] = draw(classes)
    left, top = draw(st.integers(0, 100)), draw(st.integers(0, 80))
    ids[top : top + 24, left : left + 20] = draw(classes)
    return labels, ids


# Without shrinking: a smaller picture has more edge for its area, which is what the promise is not about.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@given(painted(), st.sampled_from([(4, False), (4, True), (2, False), (2, True)]))
@settings(max_examples=20, deadline=None, phases=PHASES)
def test_a_soft_or_jpeg_painting_is_recovered_to_98_percent(case, how):
    """Painted four times as large with soft edges, reduced to twice or not, saved as JPEG at quality 85 or not."""
    (labels, ids), (scale, compressed) = case, how
    picture = labels.decode(ids).convert("RGB").resize((512, 384), Image.Resampling.BICUBIC)
    picture = picture.resize((128 * scale, 96 * scale), Image.Resampling.LANCZOS)
    cleaned = clean_painting(jpeg(picture) if compressed else picture, labels)
    assert (cleaned.ids == ids.repeat(scale, axis=0).repeat(scale, axis=1)).mean() >= 0.98
    assert (cleaned.ids[scale // 2 :: scale, scale // 2 :: scale] == ids).mean() >= 0.98
    assert cleaned.plain_share > 0.8


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_toy_street_as_jpeg_is_recovered_to_98_percent(preset):
    labels = LabelSet.from_preset(preset)
    for seed in range(2):
        ids = draw_scene(seed, (96, 128))[1] % labels.num_classes
        picture = labels.decode(ids).convert("RGB").resize((512, 384), Image.Resampling.BICUBIC)
        cleaned = clean_painting(jpeg(picture), labels)
        assert (cleaned.ids[2::4, 2::4] == ids).mean() >= 0.98
        assert cleaned.strange.mean() < 0.02


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 5, 18, 255]))
)
@settings(max_examples=50, deadline=None)
def test_an_exact_mask_is_unchanged_whatever_its_specks(ids):
    palette = LABELS.decode(ids)
    for picture in (palette, palette.convert("RGB"), palette.convert("RGBA"), Image.fromarray(ids)):
        cleaned = clean_painting(picture, LABELS, min_area=50)
        assert (cleaned.ids == ids).all()
        assert cleaned.exact.all()
        assert not cleaned.guessed.any()
        assert cleaned.colors == {}


@given(painted(), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_exact_pixels_never_change(case, seed):
    labels, ids = case
    rgb = np.array(labels.decode(ids).convert("RGB"))
    noisy = np.random.default_rng(seed).random(ids.shape) < 0.3
    rgb[noisy] = np.random.default_rng(seed).integers(0, 256, (noisy.sum(), 3))
    cleaned = clean_painting(Image.fromarray(rgb), labels, min_area=30)
    assert (cleaned.ids[~noisy] == ids[~noisy]).all()
    assert cleaned.exact[~noisy].all()
    assert not cleaned.guessed[~noisy].any()
    assert not cleaned.specks[~noisy].any()


def test_a_seam_takes_no_third_class():
    """Between building and terrain lie blends that are nearest to wall, pole and vegetation."""
    ids = np.full((40, 40), ID["building"], dtype=np.uint8)
    ids[drawing.ellipse(ids.shape, (20, 20), (13, 9))] = ID["terrain"]
    picture = LABELS.decode(ids).convert("RGB").resize((160, 160), Image.Resampling.BICUBIC)
    table = np.array(LABELS.colors)
    nearest = np.linalg.norm(np.asarray(picture)[..., None, :] - table, axis=-1).argmin(axis=-1)
    assert set(np.unique(nearest)) > {ID["building"], ID["terrain"], ID["pole"]}
    cleaned = clean_painting(picture, LABELS)
    assert set(np.unique(cleaned.ids)) == {ID["building"], ID["terrain"]}


def test_a_thin_pole_survives():
    picture = LABELS.decode(np.full((60, 60), ID["sky"], dtype=np.uint8)).convert("RGB")
    ImageDraw.Draw(picture).line((30, 5, 30, 55), fill=tuple(np.add(LABELS.colors[ID["pole"]], 3).tolist()))
    cleaned = clean_painting(picture, LABELS)
    assert (cleaned.ids[5:56, 30] == ID["pole"]).mean() > 0.9
    assert (cleaned.ids[:, :30] == ID["sky"]).all()


def test_specks_of_blended_colours_are_removed_and_larger_ones_stay():
    rgb = np.array(LABELS.decode(np.full((40, 40), ID["sky"], dtype=np.uint8)).convert("RGB"))
    near_car = np.add(LABELS.colors[ID["car"]], 2)
    rgb[5:7, 5:8] = near_car  # 6 pixels
    rgb[20:26, 20:26] = near_car
    cleaned = clean_painting(Image.fromarray(rgb), LABELS, min_area=8)
    assert (cleaned.ids == ID["car"]).sum() >= 32
    assert not (cleaned.ids[:10, :10] == ID["car"]).any()
    kept = clean_painting(Image.fromarray(rgb), LABELS, min_area=0)
    assert (kept.ids[5:7, 5:8] == ID["car"]).all()
    assert not kept.specks.any()


def test_transparent_pixels_are_unknown():
    picture = LABELS.decode(np.full((20, 20), ID["road"], dtype=np.uint8)).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 10, 20))
    ids = clean_painting(picture, LABELS).ids
    assert (ids[:, :10] == 255).all()
    assert (ids[:, 10:] == ID["road"]).all()


def test_an_unknown_palette_is_read_by_its_colours():
    ids = draw_scene(1, (32, 48))[1]
    quantised = LABELS.decode(ids).convert("RGB").quantize(32)
    assert (clean_painting(quantised, LABELS).ids == ids).all()


def test_colours_are_counted_and_strange_ones_marked():
    rgb = np.array(LABELS.decode(np.full((20, 20), ID["sky"], dtype=np.uint8)).convert("RGB"))
    rgb[:5] = (255, 255, 255)
    rgb[10, 10] = (72, 131, 181)
    cleaned = clean_painting(Image.fromarray(rgb), LABELS)
    assert cleaned.colors == {(255, 255, 255): 100, (72, 131, 181): 1}
    assert (~cleaned.exact).sum() == 101
    assert cleaned.guessed[:5].all()
    assert not cleaned.guessed[10, 10]  # one level off is still that class
    assert (cleaned.strange == (rgb == 255).all(axis=-1)).all()


# The command -------------------------------------------------------------------------------------------------------


def clean(masks, output, *more):
    return cli.main(["clean", "--masks", str(masks), "--output", str(output), *map(str, more)])


def test_command_writes_masks_for_generate_and_reports_guesses(tmp_path, capsys):
    folder = tmp_path / "painted"
    folder.mkdir()
    ids = draw_scene(2, (64, 96))[1]
    LABELS.decode(ids).save(folder / "exact.png")
    large = LABELS.decode(ids).convert("RGB").resize((384, 256), Image.Resampling.BICUBIC)
    jpeg(large).save(folder / "soft.jpg", quality=85)
    assert clean(folder, tmp_path / "out", "--labels", "bdd100k") == 0
    assert "2 mask(s)" in capsys.readouterr().out
    paths = find_masks(tmp_path / "out" / "masks")
    assert [path.name for path in paths] == ["exact.png", "soft.png"]
    assert (LABELS.encode(paths[0]) == ids).all()
    assert (LABELS.encode(paths[1])[2::4, 2::4] == ids).mean() > 0.98
    with Image.open(paths[1]) as image:
        assert image.mode == "P"
    exact, soft = json.loads((tmp_path / "out" / "clean.json").read_text())["masks"]
    assert exact["guessed_share"] == 0
    assert exact["exact_share"] == 1
    assert exact["colors"] == []
    assert 0 < soft["guessed_share"] < 0.3
    assert sum(soft["classes"].values()) == 256 * 384
    assert len(soft["colors"]) == 20
    assert soft["num_colors"] > 20
    Image.open(tmp_path / "out" / "guessed.png").verify()
    assert LabelSet.from_json(tmp_path / "out" / "labels.json") == LABELS
    # its own output is exact
    assert clean(tmp_path / "out" / "masks", tmp_path / "again") == 0
    for path in paths:
        assert (LABELS.encode(tmp_path / "again" / "masks" / path.name) == LABELS.encode(path)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("photo", "of its pixels are close to a class colour; the most frequent such colours are"),
        ("unpainted", "50% of its pixels have colours of no class, more than --max_strange 0.05; the most frequent"),
        ("grey", "holds classes 40, 200; this model knows 0-18 and 255"),
        ("text", "cannot be read as an image"),
    ],
)
def test_other_images_are_refused_and_leave_no_output(tmp_path, capsys, content, message):
    path = tmp_path / "a.png"
    if content == "photo":
        draw_scene(0, (64, 64))[0].save(path)
    elif content == "unpainted":
        canvas = LABELS.decode(np.zeros((40, 40), dtype=np.uint8)).convert("RGB")
        canvas.paste((255, 255, 255), (0, 0, 40, 20))
        canvas.save(path)
    elif content == "grey":
        Image.fromarray(np.array([[40, 200]], dtype=np.uint8)).save(path)
    else:
        path.write_text("no picture")
    assert clean(path, tmp_path / "out", "--labels", "bdd100k") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "a.png" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "value", "message"), [("--min_area", -1, "0 or more"), ("--max_strange", 2, "between 0 and 1")]
)
def test_settings_out_of_range_are_refused(tmp_path, capsys, name, value, message):
    LABELS.decode(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    assert clean(tmp_path / "a.png", tmp_path / "out", "--labels", "bdd100k", name, value) == 2
    assert f"{name} must be {message}; got {value}" in capsys.readouterr().err
