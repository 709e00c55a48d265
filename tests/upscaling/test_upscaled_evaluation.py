"""`evaluate --upscaler`: a model of small images and its upscaler, against the large photos of a dataset."""

import json

from diffusers import DDIMScheduler
from helpers.evaluation_place import LABELS, SIZE, Place
from helpers.tiny_pipelines import tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedUpscalePipeline


def test_a_model_and_its_upscaler_are_evaluated_together_at_the_size_of_the_dataset(tmp_path):
    place = Place(tmp_path)
    labels = {"num_classes": LABELS.num_classes, **LABELS.to_config()}
    scheduler = DDIMScheduler(clip_sample=False)
    MaskGuidedDDPMPipeline(tiny_unet(sample_size=SIZE // 2, **labels), scheduler).save_pretrained(tmp_path / "small")
    upscaler = MaskGuidedUpscalePipeline(tiny_unet(upscale_factor=2, max_noise_level=50, **labels), scheduler, 2, 1.0)
    upscaler.save_pretrained(tmp_path / "upscaler")
    options = {"model": tmp_path / "small", "num_inference_steps": 1, "num_masks": 3}

    error = place.evaluate(tmp_path / "out", **options, expect=2)
    assert "generates 16 x 16" in error
    error = place.evaluate(tmp_path / "out", **options, noise_level=3, expect=2)
    assert "--noise_level: only with --upscaler" in error
    error = place.evaluate(tmp_path / "out", generated=tmp_path, upscaler="x", expect=2)
    assert "--upscaler only with --model" in error

    place.evaluate(tmp_path / "out", **options, upscaler=tmp_path / "upscaler", noise_level=4)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["resolution"] == [SIZE, SIZE]
    assert (results["generation"]["height"], results["generation"]["noise_level"]) == (SIZE // 2, 4)
    assert results["settings"]["upscaler"] == str(tmp_path / "upscaler")
    place.evaluate(tmp_path / "out", **options, upscaler=tmp_path / "upscaler", noise_level=4)
    error = place.evaluate(tmp_path / "out", **options, upscaler=tmp_path / "upscaler", noise_level=5, expect=2)
    assert "noise_level: 4 there, 5 now" in error
