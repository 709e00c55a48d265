"""Generation with attributes and over grids: which image gets what, from which noise, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.generation_places import ATTRIBUTES, LABELS, names, pixels, save_masks, save_photos, tiny_pipeline

from semseg_diffusers import cli
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.plan import COLUMNS, image_seed
from semseg_diffusers.generation.settings import (
    EditSettings,
    GenerationSettings,
    Inputs,
    grid,
    read_attributes,
    read_variations,
)
from semseg_diffusers.hub.cards import dataset_content


def few(**more) -> GenerationSettings:
    return GenerationSettings(**{"num_inference_steps": 2, "guidance_scale": 2.0, **more})


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(attributes=ATTRIBUTES)


@pytest.fixture
def masks(tmp_path):
    return save_masks(tmp_path / "masks")


def image_of(pipeline, mask, row, **options) -> np.ndarray:
    """The image that a row of the metadata says."""
    image = pipeline(
        mask,
        num_inference_steps=row["num_inference_steps"],
        guidance_scale=row["guidance_scale"],
        attributes={name: row[name] for name in ATTRIBUTES if name in row} or None,
        generator=torch.Generator().manual_seed(row["seed"]),
        **options,
    ).images[0]
    return np.asarray(image).astype(int)


def test_every_mask_gets_every_combination_from_the_same_noise(pipeline, masks, tmp_path):
    settings = few(variations={"guidance_scale": (1.0, 3.0), "weather": ("clear", "rainy")})
    report = generate_dataset(pipeline, masks, tmp_path / "out", settings, num_images_per_mask=2, batch_size=3)
    assert report.num_made == 3 * 4 * 2
    rows = read_metadata(tmp_path / "out")
    expected = [f"{stem}_v{number}_{index}.png" for stem in "abc" for number in range(4) for index in range(2)]
    assert [row["image_file_name"] for row in rows] == [f"images/{name}" for name in expected]
    assert names(tmp_path / "out" / "images") == names(tmp_path / "out" / "masks") == expected
    values = [(row["variation"], row["guidance_scale"], row["weather"], row["timeofday"]) for row in rows[:8:2]]
    assert values == [
        ("v0", 1.0, "clear", None), ("v1", 1.0, "rainy", None), ("v2", 3.0, "clear", None), ("v3", 3.0, "rainy", None)
    ]  # fmt: skip
    assert {row["seed"] for row in rows if row["stem"] == "a"} == {image_seed(0, "a", index) for index in range(2)}
    generated = {row["image_file_name"]: pixels(tmp_path / "out" / row["image_file_name"]) for row in rows}
    for row in rows[1:8:2]:
        expected = image_of(pipeline, masks / "a.png", row)
        assert np.abs(expected - generated[row["image_file_name"]]).max() <= 1, row["image_file_name"]
    of_a = [generated[f"images/a_v{number}_0.png"] for number in range(4)]
    assert all(np.abs(one - other).max() > 2 for i, one in enumerate(of_a) for other in of_a[:i])


def test_a_grid_of_one_point_is_the_plain_image(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "plain", few(guidance_scale=3.0))
    generate_dataset(pipeline, masks, tmp_path / "grid", few(variations={"guidance_scale": (3.0,)}))
    for stem in "abc":
        one, other = tmp_path / "plain" / "images" / f"{stem}_0.png", tmp_path / "grid" / "images" / f"{stem}_v0_0.png"
        assert np.array_equal(pixels(one), pixels(other))


def test_a_grid_is_resumed_and_another_grid_is_refused(pipeline, masks, tmp_path):
    out, settings = tmp_path / "out", few(variations={"guidance_scale": (1.0, 3.0)})
    generate_dataset(pipeline, masks, out, settings)
    before = {name: pixels(out / "images" / name) for name in names(out / "images")}
    (out / "images" / "b_v1_0.png").unlink()
    (out / "metadata.jsonl").unlink()
    report = generate_dataset(pipeline, masks, out, settings)
    assert (report.num_made, report.num_kept) == (1, 5)
    assert all(np.abs(pixels(out / "images" / name) - image).max() <= 1 for name, image in before.items())
    assert [row["variation"] for row in read_metadata(out)] == ["v0", "v1"] * 3
    with pytest.raises(ValueError, match=r"variations\.guidance_scale: \[1\.0, 3\.0\] there, \[1\.0, 2\.0\] now"):
        generate_dataset(pipeline, masks, out, few(variations={"guidance_scale": (1.0, 2.0)}))


def test_names_of_a_long_grid_sort_as_the_grid_does():
    points = grid({"guidance_scale": tuple(range(4)), "weather": ("clear", "rainy", "unknown")})
    assert list(points) == sorted(points)
    assert (list(points)[0], list(points)[-1]) == ("v00", "v11")
    assert points["v05"] == {"guidance_scale": 1, "weather": "unknown"}
    assert grid(None) == {"": {}}
    with pytest.raises(ValueError, match="1001 combinations per mask; expected at most 1000"):
        grid({"guidance_scale": tuple(range(1001))})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["guidance_scale"], "'guidance_scale': expected NAME=VALUE,VALUE"),
        (["=3"], "'=3': expected NAME=VALUE,VALUE"),
        (["guidance_scale=1,big"], "guidance_scale=1,big: expected numbers"),
        (["guidance_scale=1,nan"], "guidance_scale=1,nan: expected numbers"),
        (["guidance_scale=1,1.0"], "expected distinct values"),
        (["weather=clear,,rainy"], "expected distinct values"),
        (["weather=clear", "weather=rainy"], "names 'weather' twice"),
    ],
)
def test_variations_that_cannot_be_read_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        read_variations(texts)


def test_attributes_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="--attributes 'rainy': expected NAME=VALUE"):
        read_attributes(["rainy"])


# Attributes --------------------------------------------------------------------------------------------------------


def test_attributes_of_all_images_reach_the_network_and_the_metadata(pipeline, masks, tmp_path):
    settings = few(attributes={"weather": "rainy", "timeofday": "unknown"})
    generate_dataset(pipeline, masks, tmp_path / "out", settings)
    row = read_metadata(tmp_path / "out")[0]
    assert (row["weather"], row["timeofday"]) == ("rainy", None)
    made = pixels(tmp_path / "out" / "images" / "a_0.png")
    assert np.abs(image_of(pipeline, masks / "a.png", row) - made).max() <= 1
    assert np.abs(image_of(pipeline, masks / "a.png", row | {"weather": "clear"}) - made).max() > 2


def test_attributes_have_a_scale_of_their_own(pipeline, masks, tmp_path):
    settings = few(attributes={"weather": "rainy"}, attribute_guidance_scale=4.0)
    generate_dataset(pipeline, masks, tmp_path / "out", settings)
    row = read_metadata(tmp_path / "out")[0]
    assert row["attribute_guidance_scale"] == 4.0
    made = pixels(tmp_path / "out" / "images" / "a_0.png")
    assert np.abs(image_of(pipeline, masks / "a.png", row, attribute_guidance_scale=4.0) - made).max() <= 1
    assert np.abs(image_of(pipeline, masks / "a.png", row) - made).max() > 2


def test_each_mask_has_the_attributes_of_its_row_unless_they_are_asked_for(pipeline, masks, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("stem,weather,timeofday,city\na,rainy,night,x\nb,clear,,y\nc,,daytime,z\n")
    generate_dataset(pipeline, masks, tmp_path / "out", few(), inputs=Inputs(attributes_from=table), batch_size=3)
    rows = read_metadata(tmp_path / "out")
    assert [(row["weather"], row["timeofday"]) for row in rows] == [
        ("rainy", "night"), ("clear", None), (None, "daytime")
    ]  # fmt: skip
    assert "city" not in rows[0]
    for row in rows:
        made = pixels(tmp_path / "out" / row["image_file_name"])
        assert np.abs(image_of(pipeline, masks / f"{row['stem']}.png", row) - made).max() <= 1
    settings = few(attributes={"timeofday": "night"}, variations={"weather": ("clear", "unknown")})
    generate_dataset(pipeline, masks, tmp_path / "asked", settings, inputs=Inputs(attributes_from=table))
    values = [(row["weather"], row["timeofday"]) for row in read_metadata(tmp_path / "asked")]
    assert values == [("clear", "night"), (None, "night")] * 3


def test_attributes_come_from_a_split_and_enriched_masks_have_those_of_their_base(pipeline, masks, tmp_path):
    split, enriched = tmp_path / "val", tmp_path / "enriched"
    split.mkdir()
    lines = [{"stem": "a", "weather": "rainy"}, {"stem": "b", "weather": None}, {"stem": "c", "weather": "clear"}]
    (split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (enriched / "masks").mkdir(parents=True)
    shutil.copy(masks / "b.png", enriched / "masks" / "00000_a.png")
    (enriched / "manifest.jsonl").write_text(json.dumps({"mask_file_name": "masks/00000_a.png", "base": "a"}) + "\n")
    inputs = Inputs(attributes_from=split)
    generate_dataset(pipeline, masks, tmp_path / "plain", few(), inputs=inputs)
    assert [row["weather"] for row in read_metadata(tmp_path / "plain")] == ["rainy", None, "clear"]
    generate_dataset(pipeline, enriched / "masks", tmp_path / "out", few(), inputs=inputs)
    assert [row["weather"] for row in read_metadata(tmp_path / "out")] == ["rainy"]


def test_attributes_that_have_changed_since_are_refused(pipeline, masks, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("stem,weather\na,rainy\nb,clear\nc,clear\n")
    generate_dataset(pipeline, masks, tmp_path / "out", few(), inputs=Inputs(attributes_from=table))
    table.write_text("stem,weather\na,rainy\nb,rainy\nc,clear\n")
    with pytest.raises(ValueError, match=r"another `weather` for the mask '.*b\.png' \(clear there, rainy now\)"):
        generate_dataset(pipeline, masks, tmp_path / "out", few(), inputs=Inputs(attributes_from=table))


@pytest.mark.parametrize(
    ("settings", "table", "message"),
    [
        ({"attributes": {"wether": "rainy"}}, None, "no attribute 'wether'; it knows timeofday, weather"),
        (
            {"attributes": {"weather": "foggy"}},
            None,
            "'foggy' is not a value of 'weather'; the model knows clear, rainy",
        ),
        ({"variations": {"weather": ("clear", "foggy")}}, None, "--variations: 'foggy' is not a value of 'weather'"),
        ({"variations": {"sharpness": ("1",)}}, None, "--variations: the model has no attribute 'sharpness'"),
        ({"variations": {"guidance_stop": (0.5, 1.5)}}, None, "guidance_stop"),
        ({"variations": {"strength": (0.5,)}}, None, "give --strength as well"),
        (
            {"variations": {"weather": ("clear",)}, "attributes": {"weather": "clear"}},
            None,
            "weather: given by --attributes and by --variations",
        ),
        ({}, "stem,weather\na,rainy\nb,foggy\nc,clear\n", r"b\.png'.*'foggy' is not a value of 'weather'"),
        ({}, "stem,weather\na,rainy\nb,clear\n", r"c\.png'.* no row called 'c' in '.*table\.csv'"),
        ({}, "name,weather\na,rainy\n", "neither `stem` nor `mask_file_name`"),
        ({}, "stem,city\na,x\n", "none of the model's attributes .*; it has city, stem"),
        ({}, "stem,city\na,x,y\n", "none of the model's attributes .*; it has city, stem"),
        ({}, b"stem,weather\n\xff,rainy\n", r"table\.csv' is not valid CSV in UTF-8"),
    ],
)
def test_attributes_and_grids_that_cannot_work_leave_no_output_behind(
    pipeline, masks, tmp_path, settings, table, message
):
    if table is not None:
        (tmp_path / "table.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    inputs = Inputs(attributes_from=None if table is None else tmp_path / "table.csv")
    with pytest.raises(ValueError, match=message):
        generate_dataset(pipeline, masks, tmp_path / "out", few(**settings), inputs=inputs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"[1, 2]\n", r"table\.jsonl' holds the line \[1, 2\]; expected an object on each"),
        (b"\x89PNG\n", r"table\.jsonl' is not in UTF-8"),
        (b'{"stem": 3, "weather": "rainy"}\n', "no row called 'a'"),
    ],
)
def test_json_lines_that_are_no_rows_are_refused_by_name(pipeline, masks, tmp_path, table, message):
    (tmp_path / "table.jsonl").write_bytes(table)
    with pytest.raises(ValueError, match=message):
        generate_dataset(
            pipeline, masks, tmp_path / "out", few(), inputs=Inputs(attributes_from=tmp_path / "table.jsonl")
        )


def test_a_model_without_attributes_refuses_them(masks, tmp_path):
    plain = tiny_pipeline()
    with pytest.raises(ValueError, match="no attribute 'weather'; it was trained without any"):
        generate_dataset(plain, masks, tmp_path / "out", few(attributes={"weather": "rainy"}))
    with pytest.raises(ValueError, match="--attribute_guidance_scale: the model was trained without attributes"):
        generate_dataset(plain, masks, tmp_path / "out", few(attribute_guidance_scale=2.0))
    with pytest.raises(ValueError, match="--attributes_from: the model was trained without attributes"):
        generate_dataset(plain, masks, tmp_path / "out", few(), inputs=Inputs(attributes_from=tmp_path))


def test_an_output_of_before_attributes_and_grids_is_continued(masks, tmp_path):
    plain, out = tiny_pipeline(), tmp_path / "out"
    generate_dataset(plain, masks / "a.png", out, few())
    record = json.loads((out / "generation.json").read_text())
    later = (
        "attributes",
        "attribute_guidance_scale",
        "strength",
        "edit",
        "variations",
        "guide_model",
        "guide_revision",
    )
    assert [record.pop(name) for name in later] == [None] * len(later)
    (out / "generation.json").write_text(json.dumps(record))
    assert generate_dataset(plain, masks, out, few()).num_kept == 1


# The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "source_photo", "near_copy", "mask"])
def test_attributes_called_as_columns_of_the_metadata_are_refused(masks, tmp_path, name):
    named = tiny_pipeline(attributes={name: ["x", "y"]})
    with pytest.raises(ValueError, match=f"attributes called {name}; the metadata .* twice"):
        generate_dataset(named, masks, tmp_path / "out", few(attributes={name: "x"}))
    assert not (tmp_path / "out").exists()


def test_all_columns_of_the_metadata_are_known_as_taken(pipeline, tmp_path):
    mask = save_masks(tmp_path / "masks", "a")
    save_photos(tmp_path / "split" / "images", "a")
    shutil.copytree(mask, tmp_path / "old")
    LABELS.decode(np.zeros((16, 16), np.uint8)).save(tmp_path / "old" / "a.png")
    grid_of = few(strength=0.5, variations={"attribute_guidance_scale": (1.0, 2.0)}, variant="raw")
    photos = Inputs(photos=tmp_path / "split" / "images")
    generate_dataset(pipeline, mask, tmp_path / "grid", grid_of, inputs=photos)
    guided = Inputs(guide=tiny_pipeline(1, ATTRIBUTES).unet, photos=photos.photos, old_masks=tmp_path / "old")
    generate_dataset(pipeline, mask, tmp_path / "edit", few(edit=EditSettings()), inputs=guided)
    found = {name for folder in ("grid", "edit") for row in read_metadata(tmp_path / folder) for name in row}
    near = {"nearest_training_photo", "nearest_training_distance", "near_copy"}
    of_control = {"conditioning_scale"}  # in test_control.py: this network has no such branch
    of_texts = {"prompt", "negative_prompt", "region_prompts", "prompt_guidance_scale"}  # in test_generation_texts.py
    of_upscaler = {"upscaler", "upscaler_revision", "upscaler_steps", "noise_level"}  # in test_cascade.py
    of_painter = {"scheduler_options"}  # whose rows have no generation.json of their own
    elsewhere = near | of_control | of_texts | of_upscaler | of_painter
    assert found - {*ATTRIBUTES} == {*COLUMNS} - elsewhere - {"image", "mask"}


def test_the_command_takes_attributes_grid_and_guide(pipeline, masks, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "run")
    guide = tiny_pipeline(seed=1, attributes=ATTRIBUTES)
    guide.save_pretrained(tmp_path / "guide")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    options += ["--num_inference_steps", "2", "--device", "cpu", "--guide_model", str(tmp_path / "guide")]
    options += ["--variations", "guidance_scale=1.5,2", "--attributes", "timeofday=night"]
    assert cli.main(options) == 0, capsys.readouterr().err
    rows = read_metadata(tmp_path / "out")
    assert [row["guidance_scale"] for row in rows] == [1.5, 2.0] * 3
    assert {row["timeofday"] for row in rows} == {"night"}
    assert {row["guide_model"] for row in rows} == {str(tmp_path / "guide")}
    made = pixels(tmp_path / "out" / rows[1]["image_file_name"])
    assert np.abs(image_of(pipeline, masks / "a.png", rows[1], guide_unet=guide.unet) - made).max() <= 1
    assert str(tmp_path).encode() not in (tmp_path / "out" / rows[1]["image_file_name"]).read_bytes()
    capsys.readouterr()
    tiny_pipeline(seed=2, attributes=ATTRIBUTES).save_pretrained(tmp_path / "guide")  # the same place, other weights
    assert cli.main(options) == 2
    assert "guide_revision: sha256" in capsys.readouterr().err


def test_a_guide_of_another_kind_is_refused_by_name(pipeline, masks, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "run")
    tiny_pipeline().save_pretrained(tmp_path / "guide")
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks), "--output", str(tmp_path / "out")]
    assert cli.main([*options, "--device", "cpu", "--guide_model", str(tmp_path / "guide")]) == 2
    assert f"--guide_model '{tmp_path / 'guide'}': " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_pushed_set_describes_the_grid(pipeline, masks, tmp_path):
    settings = few(num_inference_steps=1, variations={"guidance_scale": (1.0, 3.0), "weather": ("clear", "rainy")})
    generate_dataset(pipeline, masks / "a.png", tmp_path / "out", settings)
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    text = dataset_content(LABELS, record, {"train": 4})
    assert "Varied for each mask: guidance_scale 1.0, 3.0; weather clear, rainy." in text
