"""benchmarks/studies/upscaling.py draws, measures and resumes, and the page of results says what it measured."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.studies import load_study, train_judge
from helpers.tiny_pipelines import tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedUpscalePipeline
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.objective import build_sampler
from semseg_diffusers.utils.files import read_json


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
SMALL, LARGE = 16, 32


@pytest.fixture
def study(monkeypatch):
    return load_study("upscaling", monkeypatch)


def plain_rows(text: str) -> list[str]:
    """The cells of tables without names, emphasis and empty cells at the end."""
    rows = [line.replace("**", "").split("|")[2:] for line in text.splitlines() if line.startswith("|")]
    return ["|".join(cell.strip() for cell in row).rstrip("|") for row in rows if "." in row[0]]


def test_the_page_says_what_was_measured(study):
    record, page = read_json(RESULTS / "upscaling.json"), (RESULTS / "upscaling.md").read_text()
    tables = "\n".join(line for line in study.tables(record).splitlines() if " to " not in line)
    found = {*plain_rows(page)}
    assert {row for row in plain_rows(tables)} <= found
    parts = read_json(RESULTS / "upscaling_parts.json")
    for found in parts["results"].values():
        for values in found.values():
            assert f"| {values['mean_iou']:.3f} |" in page
            assert f"| {values['kernel_distance']:.2f} | {values['frechet_distance']:.1f} |" in page
            if against := values.get("against_bicubic"):
                assert f"| {study.interval_text(against['mean_iou'])} |" in page
    gain = record["results"]["generated"]["camvid-upscaler"]["against_bicubic"]["mean_iou"]
    assert f"{gain['difference']:.3f} (95 % interval" in page


@pytest.mark.slow
def test_a_second_run_draws_nothing_again_and_gives_the_same_figures(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sampling.RESAMPLINGS", 100)
    data = write_toy_dataset(tmp_path / "toy", num_train=4, num_val=4, size=(LARGE, LARGE))
    judge, small, large = (tmp_path / name for name in ("judge", "small", "large"))
    train_judge(data, judge)
    scheduler = build_sampler(DDPMScheduler(prediction_type="v_prediction", clip_sample=False))
    MaskGuidedDDPMPipeline(tiny_unet(), scheduler, 1, 1.0).save_pretrained(small)
    MaskGuidedUpscalePipeline(tiny_unet(upscale_factor=2), scheduler, 1, 1.0).save_pretrained(large)
    words = ["--model", small, "--upscaler", f"tiny={large}", "--dataset", data, "--factor", 2, "--segmenter", judge]
    words += ["--small_segmenter", judge, "--features", judge, "--output", tmp_path / "out", "--num_masks", 3]
    words += ["--direct", f"direct={small}"]  # which generates the small size by default
    monkeypatch.setattr(sys, "argv", ["upscaling.py", *map(str, words)])
    study.main()
    record = read_json(tmp_path / "out" / "upscaling.json")
    for source, direct in (("photos", []), ("generated", ["direct"])):
        found = record["results"][source]
        assert [*found] == ["bicubic", "tiny", "tiny-as-it-is", "tiny-no-mask", *direct]
        assert found["tiny"]["consistency_psnr"] > found["tiny-as-it-is"]["consistency_psnr"]
    assert record["results"]["photos"]["bicubic"]["psnr"] > record["results"]["photos"]["tiny"]["psnr"]
    assert study.tables(record) in capsys.readouterr().out
    assert (tmp_path / "out" / "upscaling_photos.jpg").stat().st_size < 200_000

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*.png")}
    assert len(written) == 3 * (2 * 5 + 1)
    study.main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/*.png")} == written
    again = read_json(tmp_path / "out" / "upscaling.json")
    assert torch.equal(
        *(torch.tensor(each["results"]["photos"]["tiny"]["kernel_distance"]) for each in (again, record))
    )
