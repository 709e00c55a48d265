"""Texts that the painter sends beside a mask: what they are about, and what is refused."""

import numpy as np
import pytest
from helpers.app_place import LIMITS, arguments, call, served, tiny_sampler
from helpers.generation_places import LABELS, pixels, tiny_pipeline, tiny_upscaler
from helpers.text_encoders import tiny_text_encoder

from semseg_diffusers.app.inputs import pack_mask, unpack_texts
from semseg_diffusers.app.sampler import Sampler, SamplingRequest
from semseg_diffusers.generation import model
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.plan import image_seed
from semseg_diffusers.generation.settings import GenerationSettings


ROAD, SKY, CAR = range(3)
FEW = {"num_inference_steps": 2, "guidance_scale": 2.0, "num_images": 1}


def street() -> np.ndarray:
    """Three cars on a road."""
    ids = np.full((16, 16), ROAD, dtype=np.uint8)
    for left in (1, 6, 11):
        ids[8:12, left : left + 3] = CAR
    return ids


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(encoder=tiny_text_encoder(tmp_path_factory.mktemp("vocabulary")))


@pytest.fixture(scope="module")
def sampler(pipeline):
    return Sampler(pipeline, LIMITS)


def test_a_sample_is_what_generate_makes_of_the_same_texts(pipeline, sampler, tmp_path):
    texts = {"class_prompts": {"car": "a blue car", "road": "the night"}, "thing_prompts": {(13, 11): "a red car"}}
    texts |= {"prompt": "a rainy evening", "negative_prompt": "a white car"}
    (sample,) = sampler.generate(street(), SamplingRequest(**FEW, **texts))
    (tmp_path / "masks").mkdir()
    LABELS.decode(street()).save(tmp_path / "masks" / "painted.png")
    settings = GenerationSettings(
        num_inference_steps=2, guidance_scale=2.0, prompt="a rainy evening", negative_prompt="a white car",
        class_prompts={"car": ["a blue car", "a blue car", "a red car"], "road": "the night"},
    )  # fmt: skip
    generate_dataset(pipeline, tmp_path / "masks", tmp_path / "out", settings)
    (row,) = read_metadata(tmp_path / "out")
    assert row["seed"] == sample.row["seed"] == image_seed(0, "painted", 0)
    assert sample.row["region_prompts"] == row["region_prompts"]
    assert sample.row["negative_prompt"] == row["negative_prompt"] == "a white car"
    assert np.abs(pixels(tmp_path / "out" / row["image_file_name"]) - np.asarray(sample.image).astype(int)).max() <= 1


def test_things_of_large_masks_are_those_that_the_model_sees(pipeline):
    ids = np.full((32, 32), ROAD, dtype=np.uint8)
    ids[16:24, 2:10] = ids[16:24, 20:28] = CAR
    ids[18, 14] = CAR  # a pixel that the mask at the model's size lacks
    things = {(14, 18): "a blue car", (21, 20): "a red car"}
    sampler = Sampler(pipeline, LIMITS, tiny_upscaler(), "runs/upscaler")
    *_, sample = sampler.generate(ids, SamplingRequest(**FEW, thing_prompts=things))
    assert sample.row["region_prompts"] == [{"class": "car", "thing": 1, "text": "a red car"}]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"class_prompts": {"boat": "a boat"}}, "of classes of the model"),
        ({"class_prompts": ["a car"]}, r"got \['a car'\] and None"),
        ({"class_prompts": {"car": 5}}, "a text is 5; expected at most 1000 characters"),
        ({"prompt": "a" * 1001}, "expected at most 1000 characters"),
        ({"prompt": {"a": 1}}, "a text is {'a': 1}"),
        ({"negative_prompt": ["snow"]}, r"a text is \['snow'\]"),
        ({"thing_prompts": [{"x": 16, "y": 0, "text": "a car"}]}, "of at most 100 pixels; got None and"),
        ({"thing_prompts": [{"x": True, "y": 0, "text": "a car"}]}, "of at most 100 pixels"),
        ({"thing_prompts": [{"x": 0, "y": 0}]}, "of at most 100 pixels"),
        ({"thing_prompts": [{"x": 0, "y": 0, "text": "a car"}] * 101}, "of at most 100 pixels"),
        ({"thing_prompts": [{"x": 0, "y": 0, "text": "a car"}, 3]}, "of at most 100 pixels"),
    ],
)
def test_texts_of_another_form_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        unpack_texts({**pack_mask(street()), **texts}, LABELS, (16, 16))


def test_a_text_about_a_pixel_that_is_unknown_is_refused(sampler):
    ids = street()
    ids[0] = LABELS.ignore_index
    with pytest.raises(ValueError, match="nothing at x 3, y 0 that 'a car' could be about: paint it first"):
        [*sampler.generate(ids, SamplingRequest(**FEW, thing_prompts={(3, 0): "a car"}))]


def test_texts_come_with_the_mask_over_http_and_are_refused_in_words(sampler, tmp_path):
    with served(tmp_path, sampler) as address:
        for texts, expected in (
            ({"prompt": "a rainy evening"}, "1 generated."),
            ({"prompt": "a rainy evening", "negative_prompt": "a red car"}, "1 generated."),
            ({"negative_prompt": "a red car at night " * 4}, "at most 12: shorten it."),
            ({"prompt": "a red car at night " * 4}, "at most 12: shorten it."),
            ({"prompt": " "}, "holds an empty text"),
            ({"class_prompts": {"boat": "a boat"}}, "of classes of the model"),
        ):
            event, answer = call(address, "generate", *arguments({**pack_mask(street()), **texts}))
            assert (event == "complete") == (expected == "1 generated.")
            assert expected in str(answer)


def test_the_weights_are_hashed_once_for_all_requests(pipeline, monkeypatch):
    hashed = []

    def weights_hash(weights):
        hashed.append(len(weights))
        return original(weights)

    original = model.weights_hash
    monkeypatch.setattr(model, "weights_hash", weights_hash)
    sampler, request = Sampler(pipeline, LIMITS), SamplingRequest(**FEW, prompt="a rainy evening")
    (first,) = sampler.generate(street(), request)
    assert len(hashed) == 2  # network and text encoder
    (again,) = sampler.generate(street(), request)
    assert len(hashed) == 2
    assert again.record == first.record
    assert first.record["text_encoder_revision"] == original(pipeline.text_encoder.state_dict())


def test_a_model_that_reads_no_texts_refuses_them():
    assert not tiny_sampler().reads_texts
    with pytest.raises(ValueError, match="--prompt: the model was trained without texts; omit it"):
        [*tiny_sampler().generate(street(), SamplingRequest(**FEW, prompt="a car"))]
