"""Generation with texts: which image gets which, how they vary, what the folder says of them, and what is refused."""

import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from helpers.generation_places import ATTRIBUTES, LABELS, pixels, save_photos, tiny_pipeline
from helpers.text_encoders import tiny_text_encoder

from semseg_diffusers import MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline, cli
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import EditSettings, GenerateOptions, GenerationSettings, Inputs
from semseg_diffusers.hub.cards import dataset_content


ROAD, SKY, CAR = range(3)
TWO_CARS = {"car": ["a red car", None, "a white car"], "sky": "the evening"}


def street(*columns: int) -> np.ndarray:
    """A road under the sky, with cars that start at these columns."""
    ids = np.full((16, 16), ROAD, dtype=np.uint8)
    ids[:6] = SKY
    for column in columns:
        ids[8:12, column : column + 3] = CAR
    return ids


MASKS = {"empty": street(), "one": street(6), "three": street(0, 5, 11)}


def few(**more) -> GenerationSettings:
    return GenerationSettings(**{"num_inference_steps": 2, "guidance_scale": 2.0, **more})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_text_encoder(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def pipeline(encoder):
    return tiny_pipeline(attributes=ATTRIBUTES, encoder=encoder)


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, ids in MASKS.items():
        LABELS.decode(ids).save(folder / f"{name}.png")
    return folder


def image_of(pipeline, row, *images, **texts) -> np.ndarray:
    """The image of a row of the metadata, made by the pipeline itself."""
    generator = torch.Generator().manual_seed(row["seed"])
    options = {"num_inference_steps": 2, "guidance_scale": row["guidance_scale"], "generator": generator}
    return np.asarray(pipeline(*images, MASKS[row["stem"]], **options, **texts).images[0]).astype(int)


def made(folder, row) -> np.ndarray:
    return pixels(folder / row["image_file_name"])


# Which image gets which texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
def test_images_have_their_texts_and_masks_with_fewer_things_leave_out_the_rest(pipeline, masks, tmp_path, batch_size):
    settings = few(prompt="a rainy evening", class_prompts=TWO_CARS, prompt_guidance_scale=4.0)
    generate_dataset(pipeline, masks, tmp_path / "out", settings, batch_size=batch_size)
    rows = read_metadata(tmp_path / "out")
    things = {"empty": [], "one": ["a red car"], "three": ["a red car", None, "a white car"]}
    for row in rows:
        texts = {"class_prompts": {"sky": "the evening"}, "instance_prompts": {"car": things[row["stem"]]}}
        own = image_of(pipeline, row, prompt="a rainy evening", prompt_guidance_scale=4.0, **texts)
        assert np.abs(own - made(tmp_path / "out", row)).max() <= 1
        assert np.abs(image_of(pipeline, row) - made(tmp_path / "out", row)).max() > 2
    assert {(row["prompt"], row["prompt_guidance_scale"]) for row in rows} == {("a rainy evening", 4.0)}
    sky = {"class": "sky", "thing": -1, "text": "the evening"}
    cars = [
        {"class": "car", "thing": number, "text": f"a {color} car"} for number, color in ((0, "red"), (2, "white"))
    ]
    assert [row["region_prompts"] for row in rows] == [[sky], [sky, cars[0]], [sky, *cars]]


def test_every_mask_gets_every_prompt_and_every_entry_from_the_same_noise(pipeline, masks, tmp_path):
    varied = {"prompt": ("the night", "a rainy evening"), "class_prompts": ({}, {"car": "a red car"})}
    settings = few(negative_prompt="a house", variations={**varied, "weather": ("rainy",)})
    generate_dataset(pipeline, masks / "one.png", tmp_path / "out", settings, batch_size=3)
    rows = read_metadata(tmp_path / "out")
    red = [{"class": "car", "thing": -1, "text": "a red car"}]
    found = [(row["variation"], row["prompt"], row.get("region_prompts"), row["negative_prompt"]) for row in rows]
    assert found == [
        ("v0", "the night", None, "a house"), ("v1", "the night", red, "a house"),
        ("v2", "a rainy evening", None, "a house"), ("v3", "a rainy evening", red, "a house"),
    ]  # fmt: skip
    assert len({row["seed"] for row in rows}) == 1
    for row in rows:
        texts = {"prompt": row["prompt"], "negative_prompt": "a house", "attributes": {"weather": "rainy"}}
        own = image_of(pipeline, row, **texts, class_prompts={"car": "a red car"} if "region_prompts" in row else None)
        assert np.abs(own - made(tmp_path / "out", row)).max() <= 1
    table = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
    assert table["region_prompts"][1] == red
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_images_that_are_changed_take_the_texts_too(pipeline, masks, tmp_path):
    save_photos(tmp_path / "photos", "abc")
    photo = (tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / "one.png")
    settings = {"prompt": "the night", "class_prompts": {"car": ["a red car", "a blue car"]}}
    texts = {"prompt": "the night", "instance_prompts": {"car": ["a red car"]}}
    generate_dataset(
        pipeline, masks / "one.png", tmp_path / "redrawn", few(strength=1.0, **settings),
        inputs=Inputs(photos=tmp_path / "photos"),
    )  # fmt: skip
    (row,) = read_metadata(tmp_path / "redrawn")
    expected = image_of(MaskGuidedImg2ImgPipeline.from_pipe(pipeline), row, photo, strength=1.0, **texts)
    assert np.abs(expected - made(tmp_path / "redrawn", row)).max() <= 1
    (tmp_path / "old").mkdir()
    LABELS.decode(street()).save(tmp_path / "old" / "one.png")
    generate_dataset(
        pipeline, masks / "one.png", tmp_path / "edited", few(edit=EditSettings(margin=0), **settings),
        inputs=Inputs(photos=tmp_path / "photos", old_masks=tmp_path / "old"),
    )  # fmt: skip
    (row,) = read_metadata(tmp_path / "edited")
    paint = MaskGuidedInpaintPipeline.from_pipe(pipeline)
    expected = image_of(paint, row, photo, old_mask=street(), margin=0, **texts)
    assert np.abs(expected - made(tmp_path / "edited", row)).max() <= 1
    assert row["region_prompts"] == [{"class": "car", "thing": 0, "text": "a red car"}]


def test_without_texts_a_model_that_reads_them_gives_the_same_images_and_no_columns(pipeline, masks, tmp_path):
    generate_dataset(pipeline, masks, tmp_path / "out", few())
    for row in read_metadata(tmp_path / "out"):
        assert {"prompt", "region_prompts", "num_things"}.isdisjoint(row)
        assert np.abs(image_of(pipeline, row) - made(tmp_path / "out", row)).max() <= 1


# Resuming ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_texts_is_resumed_and_other_texts_or_another_encoder_are_refused(
    pipeline, masks, tmp_path, tmp_path_factory
):
    out, varied = tmp_path / "out", {"prompt": ("the night", None)}
    settings = few(class_prompts={CAR: ["a red car"]}, variations=varied)
    generate_dataset(pipeline, masks, out, settings)
    before = read_metadata(out)
    (out / "images" / "three_v0_0.png").unlink()
    (out / "metadata.jsonl").unlink()
    report = generate_dataset(
        pipeline, masks, out, few(class_prompts={"car": ("a red car",)}, variations=settings.variations)
    )
    assert (report.num_made, report.num_kept) == (1, 5)
    assert read_metadata(out) == before
    with pytest.raises(ValueError, match=r"class_prompts\.car: \['a red car'\] there, \['a blue car'\] now"):
        generate_dataset(
            pipeline, masks, out, few(class_prompts={"car": ["a blue car"]}, variations=settings.variations)
        )
    other = tiny_text_encoder(tmp_path_factory.mktemp("other"))
    with torch.no_grad():
        other[0].embeddings.word_embeddings.weight.add_(0.1)
    swapped = type(pipeline)(pipeline.unet, pipeline.scheduler, text_encoder=other[0], tokenizer=other[1])
    with pytest.raises(ValueError, match="text_encoder_revision: sha256"):
        generate_dataset(swapped, masks, out, settings)


# The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['[{"car": "a red car"},\n {"car": ["a blue car", null]}]', "- car: a red car\n- car: [a blue car, null]\n"],
)
def test_the_command_reads_prompts_and_a_file_of_texts(pipeline, masks, tmp_path, capsys, text):
    pipeline.save_pretrained(tmp_path / "run")
    (tmp_path / "texts.yaml").write_text(text)
    options = ["generate", "--model", str(tmp_path / "run"), "--masks", str(masks / "one.png"), "--device", "cpu"]
    options += ["--num_inference_steps", "1", "--output", str(tmp_path / "out"), "--prompt", "the night", "a house"]
    options += ["--negative_prompt", "a rainy evening", "--class_prompts", str(tmp_path / "texts.yaml")]
    assert cli.main([*options, "--prompt_guidance_scale", "3"]) == 0, capsys.readouterr().err
    rows = read_metadata(tmp_path / "out")
    found = [(row["prompt"], row["region_prompts"][0]["text"], row["region_prompts"][0]["thing"]) for row in rows]
    assert found == [
        ("the night", "a red car", -1), ("the night", "a blue car", 0),
        ("a house", "a red car", -1), ("a house", "a blue car", 0),
    ]  # fmt: skip
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    card = dataset_content(LABELS, record, {"train": 4})
    assert "negative_prompt: a rainy evening." in card
    assert (
        'Varied for each mask: prompt the night / a house; class_prompts car "a red car" / car "a blue car", -.'
        in card
    )
    one = dataset_content(
        LABELS, {**record, "variations": None, "class_prompts": {"car": ["a <red> car"]}}, {"train": 4}
    )
    assert r'class_prompts: car "a \<red\> car".' in one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car", "holds 'car'; expected {car: a red car"),
        ("[]", r"holds \[\]; expected"),
        ("{}", "holds {}; expected"),
        ("- car: a red car\n- a blue car\n", "or a list of such"),
        ("{car: a, car: b}", "'car' occurs twice"),
        ("{car: [a", "is not JSON or YAML"),
        ("- car: a red car\n- car: a red car\n", "--class_prompts gives one twice"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused(tmp_path, text, message):
    (tmp_path / "texts.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        GenerateOptions(masks="m", output="o", class_prompts=str(tmp_path / "texts.yaml")).generation_settings()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_prompts": "missing.yaml"}, "there is no file 'missing.yaml'; expected JSON or YAML"),
        ({"prompt": ("a car", "a car")}, "--prompt gives one twice"),
        ({"variations": ("prompt=a car,a house",)}, "give several texts to --prompt instead"),
        ({"variations": ("class_prompts=a",)}, "give --class_prompts a file with a list instead"),
    ],
)
def test_options_of_texts_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GenerateOptions(masks="m", output="o", **options).generation_settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": " "}, "`prompt` holds an empty text"),
        ({"variations": {"prompt": ("a car", "")}}, "`prompt` holds an empty text"),
        ({"negative_prompt": "a red car at night " * 4}, "has 22 tokens; .* at most 12: shorten it"),
        (
            {"class_prompts": {"boat": "a boat"}},
            "`class_prompts` holds the class 'boat'; this network knows road, sky",
        ),
        ({"class_prompts": {"car": ["a car", ""]}}, "`class_prompts` holds an empty text"),
        ({"class_prompts": {"car": 5}}, "`class_prompts` holds 5, of type int; expected a text"),
        ({"class_prompts": {"car": "a car", 2: "a car"}}, "the class 'car' by its name and its id"),
        ({"class_prompts": "a car"}, "`class_prompts` holds 'a car'; expected a dict"),
        ({"prompt": "a car", "variations": {"prompt": ("a",)}}, "prompt: given by itself and by variations"),
        ({"prompt_guidance_scale": 2.0}, "--prompt_guidance_scale: only with --prompt or --class_prompts"),
        ({"variations": {"prompt_guidance_scale": (1.0,)}}, "--prompt_guidance_scale: only with --prompt"),
    ],
)
def test_texts_that_cannot_be_read_leave_no_output_behind(pipeline, masks, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        generate_dataset(pipeline, masks, tmp_path / "out", few(**settings))
    assert not (tmp_path / "out").exists()


def test_models_that_read_no_texts_refuse_them(pipeline, masks, tmp_path):
    with pytest.raises(ValueError, match="--prompt: the model was trained without texts; omit it"):
        generate_dataset(tiny_pipeline(), masks, tmp_path / "out", few(prompt="a car"))
    without = type(pipeline)(pipeline.unet, pipeline.scheduler)
    with pytest.raises(ValueError, match="--class_prompts: the model reads texts, .* lacks the `text_encoder`"):
        generate_dataset(without, masks, tmp_path / "out", few(class_prompts={"car": "a car"}))
    named = tiny_pipeline(attributes={"class_prompts": ["x"]})
    with pytest.raises(ValueError, match="attributes called class_prompts"):
        generate_dataset(named, masks, tmp_path / "out", few())
