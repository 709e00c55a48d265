"""Generation with a network of latents: images, edits and records as with any other, and the autoencoder in them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers.autoencoders import FACTOR, tiny_autoencoder
from helpers.generation_places import LABELS, pixels, save_masks, save_photos
from helpers.tiny_pipelines import tiny_unet
from PIL import Image

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.generation.generate import generate_dataset
from semseg_diffusers.generation.model import load_model
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.generation.settings import EditSettings, GenerationSettings, Inputs
from semseg_diffusers.hub.cards import model_card
from semseg_diffusers.utils.files import read_json


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a pipeline of latents for 16 x 16 images of five classes."""
    latents = {"sample_size": 16 // FACTOR, "in_channels": 4, "out_channels": 4, "vae_scale_factor": FACTOR}
    unet = tiny_unet(num_classes=5, **latents, **LABELS.to_config())
    folder = tmp_path_factory.mktemp("latents") / "run"
    scheduler = DDIMScheduler(clip_sample=False)
    MaskGuidedDDPMPipeline(unet, scheduler, vae=tiny_autoencoder("kl")).save_pretrained(folder)
    return folder


def few(**more) -> GenerationSettings:
    return GenerationSettings(**{"num_inference_steps": 2, "guidance_scale": 2.0, **more})


def test_images_are_those_of_the_pipeline_and_resumed_only_with_the_same_autoencoder(saved, tmp_path):
    pipeline, out = load_model(str(saved)), tmp_path / "out"
    masks = save_masks(tmp_path / "masks")
    generate_dataset(pipeline, masks, out, few(), batch_size=3)
    for row in read_metadata(out):
        generator = torch.Generator().manual_seed(row["seed"])
        (expected,) = pipeline(
            str(masks / f"{row['stem']}.png"), num_inference_steps=2, guidance_scale=2.0, generator=generator
        ).images
        found = pixels(out / row["image_file_name"]).astype(int)
        assert found.shape == (16, 16, 3)
        assert np.abs(found - np.asarray(expected).astype(int)).max() <= 1
    assert read_json(out / "generation.json")["vae_revision"].startswith("sha256")
    generate_dataset(pipeline, masks, out, few(), batch_size=3)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.add_(1)
    with pytest.raises(ValueError, match="holds images of other settings .vae_revision: sha256"):
        generate_dataset(pipeline, masks, out, few(), batch_size=3)


def test_an_edited_photo_keeps_every_pixel_outside_of_its_region(saved, tmp_path):
    split, new, out = tmp_path / "val", tmp_path / "new", tmp_path / "out"
    save_masks(split / "masks", "a")
    save_photos(split / "images", "a")
    new.mkdir()
    ids = np.asarray(Image.open(split / "masks" / "a.png")).copy()
    ids[6:10, 5:9] = (ids[6:10, 5:9] + 1) % 5
    LABELS.decode(ids).save(new / "a.png")
    settings = few(edit=EditSettings(margin=0))
    generate_dataset(load_model(str(saved)), new, out, settings, inputs=Inputs(photos=split))
    (row,) = read_metadata(out)
    image, photo = pixels(out / row["image_file_name"]), pixels(split / "images" / "a.png")
    inside = np.zeros((16, 16), dtype=bool)
    inside[6:10, 5:9] = True
    assert np.array_equal(image[~inside], photo[~inside])
    assert not np.array_equal(image[inside], photo[inside])


def test_half_precision_spares_an_autoencoder_that_needs_more(saved):
    pipeline = load_model(str(saved), dtype=torch.float16)
    assert (pipeline.unet.dtype, pipeline.vae.dtype) == (torch.float16, torch.float32)


def test_the_card_says_what_is_generated(saved):
    assert "it generates latents of 4 channels, 1/4 the size, of the autoencoder in `vae/`" in model_card(
        saved, "alice/streets", {}
    )
