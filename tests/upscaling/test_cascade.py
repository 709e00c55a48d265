"""`generate --upscaler`: images and masks of the large size, the same whatever the batch, resumed, refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers.generation_places import (
    LABELS,
    draw_ids,
    names,
    pixels,
    save_masks,
    save_photos,
    tiny_pipeline,
    tiny_upscaler,
)
from helpers.training_runs import finished, launch
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import load_upscaler
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.plan import image_seed
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs
from semseg_diffusers.pipelines.mask_inputs import resize_ids


FEW = GenerationSettings(num_inference_steps=2, guidance_scale=1.0, upscaler_steps=2, noise_level=5)
ATTRIBUTES = {"weather": ["clear", "rainy"]}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def inputs():
    return Inputs(upscaler=tiny_upscaler(), upscaler_name="runs/upscaler")


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Masks of the large size."""
    return save_masks(tmp_path_factory.mktemp("masks") / "masks", size=(32, 32))


def test_images_and_masks_are_of_the_large_size_and_the_mask_is_the_given_one(pipeline, inputs, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path, FEW, inputs=inputs, num_images_per_mask=2, batch_size=4)
    assert names(tmp_path / "images") == [f"{stem}_{index}.png" for stem in "abc" for index in range(2)]
    for row in read_metadata(tmp_path):
        assert Image.open(tmp_path / row["image_file_name"]).size == (32, 32)
        assert np.array_equal(pixels(tmp_path / row["mask_file_name"]), pixels(masks / f"{row['stem']}.png"))
        assert (row["upscaler"], row["upscaler_steps"], row["noise_level"]) == ("runs/upscaler", 2, 5)
        assert len(row["upscaler_revision"]) > 8
    record = json.loads((tmp_path / "generation.json").read_text())
    assert (record["height"], record["upscaler_steps"]) == (16, 2)


def test_an_image_is_the_small_one_enlarged_from_further_numbers_of_its_seed(pipeline, inputs, masks, tmp_path):
    generate_dataset(pipeline, masks / "b.png", tmp_path, FEW, inputs=inputs)
    generator = torch.Generator().manual_seed(image_seed(0, "b", 0))
    ids = draw_ids(1, (32, 32))
    small = pipeline(resize_ids(ids, 16, 16), num_inference_steps=2, guidance_scale=1.0, generator=generator).images
    given = {"num_inference_steps": 2, "noise_level": 5, "generator": generator}
    (expected,) = inputs.upscaler(small, ids, **given).images
    assert np.array_equal(pixels(tmp_path / "images" / "b_0.png"), np.asarray(expected))


def test_images_depend_on_neither_batch_size_nor_the_other_masks_and_are_resumed(pipeline, inputs, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "one", FEW, inputs=inputs, batch_size=1)
    generate_dataset(pipeline, masks / "b.png", tmp_path / "two", FEW, inputs=inputs)
    report = generate_dataset(pipeline, masks, tmp_path / "two", FEW, inputs=inputs, batch_size=2)
    assert (report.num_made, report.num_kept) == (2, 1)
    for name in names(tmp_path / "one" / "images"):
        one, two = (pixels(tmp_path / folder / "images" / name) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1
    for changed in (dataclasses.replace(FEW, noise_level=6), dataclasses.replace(FEW, upscaler_steps=3)):
        with pytest.raises(ValueError, match="holds images of other settings"):
            generate_dataset(pipeline, masks, tmp_path / "two", changed, inputs=inputs)
    with pytest.raises(ValueError, match="holds images of other settings"):
        generate_dataset(pipeline, masks, tmp_path / "two", dataclasses.replace(FEW, upscaler_steps=None))


def test_what_the_settings_leave_open_is_what_the_upscaler_recommends(pipeline, inputs, masks, tmp_path):
    settings = GenerationSettings(num_inference_steps=2)
    generate_dataset(pipeline, masks / "a.png", tmp_path, settings, inputs=inputs)
    (row,) = read_metadata(tmp_path)
    assert (row["upscaler_steps"], row["noise_level"]) == (3, 7)


def test_small_masks_attributes_and_photos_go_with_an_upscaler(tmp_path):
    save_masks(tmp_path / "val" / "masks")
    save_photos(tmp_path / "val" / "images")
    pipeline = tiny_pipeline(attributes={**ATTRIBUTES, "timeofday": ["daytime", "night"]})
    settings = dataclasses.replace(FEW, strength=0.5, attributes={"weather": "rainy", "timeofday": "night"})
    inputs = Inputs(photos=tmp_path / "val", upscaler=tiny_upscaler(attributes=ATTRIBUTES))
    generate_dataset(pipeline, tmp_path / "val" / "masks", tmp_path / "out", settings, inputs=inputs)
    assert Image.open(tmp_path / "out" / "images" / "a_0.png").size == (32, 32)
    mask, small = (pixels(tmp_path / folder) for folder in ("out/masks/a_0.png", "val/masks/a.png"))
    assert np.array_equal(mask, small.repeat(2, axis=0).repeat(2, axis=1))


def test_an_edit_keeps_every_large_pixel_outside_of_it(pipeline, inputs, tmp_path):
    old = save_masks(tmp_path / "val" / "masks", size=(32, 32))
    save_photos(tmp_path / "val" / "images", size=(32, 32))
    (tmp_path / "new").mkdir()
    region = np.zeros((32, 32), dtype=bool)
    region[6:16, 8:18] = True  # two small pixels around
    for name in "abc":
        ids = pixels(old / f"{name}.png").copy()
        ids[10, 12:14] = (ids[10, 12:14] + 1) % 5
        LABELS.decode(ids).save(tmp_path / "new" / f"{name}.png")
    inputs = dataclasses.replace(inputs, photos=tmp_path / "val")
    outputs = {feather: tmp_path / f"out{feather}" for feather in (0, 1)}
    for feather, output in outputs.items():
        settings = dataclasses.replace(FEW, edit=EditSettings(margin=2, feather=feather))
        generate_dataset(pipeline, tmp_path / "new" / "b.png", output, settings, inputs=inputs)
        report = generate_dataset(pipeline, tmp_path / "new", output, settings, inputs=inputs, batch_size=2)
        assert (report.num_made, report.num_kept) == (2, 1)
        for row in read_metadata(output):
            files = row["image_file_name"], row["mask_file_name"]
            image, mask, photo = (pixels(path) for path in (*(output / file for file in files), row["source_photo"]))
            assert np.array_equal(image[~region], photo[~region])
            assert (image != photo)[region].any(axis=-1).mean() > 0.9
            assert row["edited_share"] == pytest.approx(region.mean(), abs=1e-6)
            assert np.array_equal(mask, pixels(tmp_path / "new" / f"{row['stem']}.png"))
    faded, hard, photo = (
        pixels(path).astype(int)
        for path in (*(outputs[feather] / "images" / "a_0.png" for feather in (1, 0)), tmp_path / "val/images/a.png")
    )
    assert np.array_equal(faded[8:14, 10:16], hard[8:14, 10:16])  # two large pixels inside
    assert (np.abs(faded - photo)[6, 8:18] <= np.abs(hard - photo)[6, 8:18]).all()
    cropped = dataclasses.replace(FEW, edit=EditSettings(padding_mask_crop=2))
    with pytest.raises(ValueError, match="--padding_mask_crop keeps real images at their own size, and --upscaler"):
        generate_dataset(pipeline, tmp_path / "new", tmp_path / "cropped", cropped, inputs=inputs)


def test_the_command_takes_an_upscaler_and_refuses_other_models_by_name(pipeline, masks, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "base")
    tiny_upscaler().save_pretrained(tmp_path / "upscaler")
    words = ["generate", "--masks", str(masks / "a.png"), "--device", "cpu", "--num_inference_steps", "2"]
    words += ["--output", str(tmp_path / "out"), "--model"]
    assert cli.main([*words, str(tmp_path / "base"), "--upscaler", str(tmp_path / "upscaler")]) == 0
    assert Image.open(tmp_path / "out" / "images" / "a_0.png").size == (32, 32)
    for model, upscaler, message in (
        ("base", "base", "is no upscaler"),
        ("upscaler", "upscaler", "is an upscaler; it enlarges the images of another model: give it as --upscaler"),
    ):
        assert cli.main([*words, str(tmp_path / model), "--upscaler", str(tmp_path / upscaler)]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "base"), "--noise_level", "3"]) == 2
    assert "--noise_level: only with --upscaler" in capsys.readouterr().err
    other = dataclasses.replace(LABELS, names=("road", "sky", "car", "person", "tree"))
    tiny_upscaler(other).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has other classes .*both read the same masks"):
        load_upscaler(str(tmp_path / "other"), None, pipeline)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_two_processes_make_what_one_makes(pipeline, inputs, masks, tmp_path):
    pipeline.save_pretrained(tmp_path / "base")
    inputs.upscaler.save_pretrained(tmp_path / "upscaler")
    words = ["--model", tmp_path / "base", "--upscaler", tmp_path / "upscaler", "--masks", masks, "--device", "cpu"]
    words += ["--num_inference_steps", "2", "--guidance_scale", "1", "--upscaler_steps", "2", "--noise_level", "5"]
    finished(launch("-m", "semseg_diffusers.generation", *words, "--output", tmp_path / "two"))
    generate_dataset(pipeline, masks, tmp_path / "one", FEW, inputs=inputs)
    assert names(tmp_path / "two" / "images") == names(tmp_path / "one" / "images")
    for name in names(tmp_path / "one" / "images"):
        one, two = (pixels(tmp_path / folder / "images" / name) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1
