"""Texts about images by image-to-text models of transformers: BLIP, which continues a text, and LLaVA, which chats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.text_encoders import tiny_text_encoder
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.captions.captioner import Captioner
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WIDE = {"initializer_range": 0.5}  # so that the image shows in the texts
SIZE = {"height": 16, "width": 16}
CHAT = (
    "{% for message in messages %}user : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}{% endfor %} a :"
)


def save_blip(folder: Path) -> Path:
    tokenizer = tiny_text_encoder(folder)[1]
    text = {
        "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "projection_dim": 16,
        "bos_token_id": tokenizer.cls_token_id, "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    vision = {"image_size": 16, "patch_size": 8, "projection_dim": 16}
    config = BlipConfig(
        text_config=SMALL | WIDE | text, vision_config=SMALL | WIDE | vision, image_text_hidden_size=16
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    tokenizer = tiny_text_encoder(folder)[1]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    vision = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=SMALL | vision,
        text_config=SMALL | text,
        image_token_index=image_token,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioners")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, save in (("blip", save_blip), ("llava", save_llava)):
            (folder / name).mkdir()
            save(folder / name)
    return folder


def photo() -> Image.Image:
    """A blue sky over a grey road."""
    image = np.full((32, 64, 3), 120, dtype=np.uint8)
    image[:16] = (110, 160, 230)
    return Image.fromarray(image)


def test_a_model_gives_wordings_which_depend_on_the_image(models):
    captioner = Captioner(str(models / "blip"))
    texts = captioner.describe(photo(), 3)
    assert len(set(texts)) == len(texts) == 3
    assert texts == captioner.describe(photo(), 3)
    noise = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    assert texts != captioner.describe(Image.fromarray(noise), 3)
    assert captioner.revision is None  # a folder has none


def test_a_prompt_starts_the_texts_of_a_model_that_continues_them(models):
    texts = Captioner(str(models / "blip"), "the red car").describe(photo(), 2)
    assert all(text.startswith("the red car") and text != "the red car" for text in texts)


def test_a_model_that_chats_is_asked_and_its_answer_is_the_text(models):
    texts = {}
    for prompt in (None, "the car at night"):
        captioner = Captioner(str(models / "llava"), prompt)
        assert captioner.is_chat
        texts[prompt] = captioner.describe(photo(), 2)
        assert len(texts[prompt]) == 2
        assert not any("user" in text or text.startswith("the car at night") for text in texts[prompt])
    assert texts[None] != texts["the car at night"]


def test_the_command_writes_the_texts_of_the_model_and_measured_ones_about_regions(models, tmp_path, capsys):
    data, output, name = tmp_path / "data", tmp_path / "texts", str(models / "blip")
    (data / "train").mkdir(parents=True)
    path = make_split(data, "train")
    labels = LabelSet.from_preset("bdd100k")
    ids = np.repeat([labels.label2id["sky"], labels.label2id["road"]], 16 * 64).reshape(32, 64).astype(np.uint8)
    finish_dataset(data, {"train": [save_pair(path, "street", photo(), ids, labels)]}, labels, {"format": "folder"})
    assert cli.main(["caption", "--dataset", str(data), "--output", str(output), "--captioner", name]) == 0
    row = json.loads((output / "train" / "metadata.jsonl").read_text())
    assert row["captions"] == Captioner(name).describe(photo(), 3)
    assert {each["class"] for each in row["region_captions"]} == {"road", "sky"}
    record = json.loads((output / "caption.json").read_text())
    assert record["captioner"] == name
    assert "transformers" in record["versions"]
    capsys.readouterr()


def test_what_is_no_image_to_text_model_is_refused_in_one_line(models, tmp_path):
    encoder, tokenizer = tiny_text_encoder(tmp_path)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not load as an image-to-text model") as caught:
        Captioner(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_no_safetensors_are_refused(models, tmp_path):
    for file in (models / "blip").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = BlipForConditionalGeneration.from_pretrained(models / "blip").state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError), match="safetensors"):
        Captioner(str(tmp_path))
