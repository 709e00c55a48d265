"""benchmarks/studies/words.py draws, measures and resumes, and the page of results says what it measured."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.studies import load_study, train_judge
from helpers.text_encoders import LENGTH, tiny_text_encoder
from helpers.tiny_pipelines import seeded, tiny_unet
from PIL import Image

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.utils.files import read_json


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
SIDE = 16


@pytest.fixture
def study(monkeypatch):
    return load_study("words", monkeypatch)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("words*.json")), ids=lambda file: file.stem)
def test_the_page_says_what_was_measured(study, file):
    page = (RESULTS / "words.md").read_text()
    for line in study.tables(read_json(file)).splitlines():
        assert line in page


def test_each_class_of_the_sheet_has_the_colors_that_it_was_asked_for_in(study, tmp_path):
    cell = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    car = (["mask", "red car"], [[cell, cell]])
    building = (["mask", "red building", "grey building"], [[cell] * 3])
    study.write_sheet([car, building], tmp_path / "words.jpg")
    width, height = Image.open(tmp_path / "words.jpg").size
    assert width == study.image_grid([[cell] * 3]).width
    assert height > 2 * study.image_grid([[cell] * 3]).height  # with headers


@pytest.mark.slow
def test_words_are_measured_against_nothing_said_and_a_second_run_draws_nothing_again(
    study, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sampling.RESAMPLINGS", 100)
    data = write_toy_dataset(tmp_path / "toy", num_train=4, num_val=4, size=(SIDE, SIDE))
    judge, model, out = (tmp_path / name for name in ("judge", "model", "out"))
    train_judge(data, judge)
    unet = tiny_unet(text_embed_dim=LENGTH)
    for name, weight in unet.named_parameters():
        if name.startswith("text_branch") and not weight.any():  # they start at zero
            torch.nn.init.normal_(weight, std=0.3, generator=seeded(1))
    encoder, tokenizer = tiny_text_encoder(tmp_path)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    MaskGuidedDDPMPipeline(unet, scheduler, text_encoder=encoder, tokenizer=tokenizer).save_pretrained(model)
    words = ["--model", model, "--dataset", data, "--segmenter", judge, "--output", out, "--steps", 2]
    words += ["--things", "car", "--colors", "grey", "--colors_of", "car=red,blue"]
    words += ["--held_out", "car:blue", "--min_area", 2]
    words += ["--wording", "{color} {name}", "--prompt", "night=at night"]
    monkeypatch.setattr(sys, "argv", ["words.py", *map(str, words)])
    study.main()
    record = read_json(out / "words.json")
    rows = record["things"]["car"]["rows"]
    assert [(row["color"], row["wording"], row["held_out"]) for row in rows] == [
        ("red", "as captions", False),
        ("blue", "as captions", True),
        ("red", "{color} {name}", False),
        ("blue", "{color} {name}", True),
    ]
    assert all(row["inside"] > 0 for row in rows)
    assert record["prompts"]["night"]["lightness"]["difference"] != 0
    assert study.tables(record) in capsys.readouterr().out
    assert (out / "words.jpg").stat().st_size < 200_000

    written = {path: path.stat().st_mtime_ns for path in out.glob("images/*")}
    assert len(written) == 1 + 4 + 2  # nothing said is drawn of things, and of all masks
    study.main()
    assert {path: path.stat().st_mtime_ns for path in out.glob("images/*")} == written
    assert {**read_json(out / "words.json"), "command": ""} == {**record, "command": ""}
