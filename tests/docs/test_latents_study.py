"""benchmarks/studies/latents.py measures autoencoders and runs, and resumes; costs are counted without weights."""

import sys
from pathlib import Path

import pytest
from helpers.autoencoders import tiny_autoencoder
from helpers.studies import load_study, train_judge

from semseg_diffusers.cli import main as command
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.utils.files import read_json, write_json


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
SIZE = 32


@pytest.fixture
def study(monkeypatch):
    return load_study("latents", monkeypatch)


def call(study, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["latents.py", *map(str, words)])
    study.main()


def test_the_page_says_what_was_measured(study):
    page = (RESULTS / "latents.md").read_text()
    assert study.costs_table(read_json(RESULTS / "latents_costs.json")) in page
    assert all(table in page for table in study.tables(read_json(RESULTS / "latents.json")).split("\n\n"))


@pytest.mark.slow
def test_autoencoders_and_runs_are_measured_and_a_second_run_draws_nothing_again(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sampling.RESAMPLINGS", 100)
    data = write_toy_dataset(tmp_path / "toy", num_train=4, num_val=4, size=(SIZE, SIZE))
    judge, vae, out = (tmp_path / name for name in ("judge", "vae", "out"))
    train_judge(data, judge)
    tiny_autoencoder("kl").save_pretrained(vae)
    write_json(vae / "results.json", {"psnr": 20.0, "ssim": 0.5})
    for name, options in (("pixels", ["--patch_size", 4]), ("kl", ["--vae", vae])):
        words = ["train", "--dataset", data, "--output_dir", tmp_path / name, *options]
        words += ["--block_out_channels", 16, 16, "--attention_levels", 0, "--max_train_steps", 2]
        words += ["--train_batch_size", 2, "--preview_steps", 0, "--logging_steps", 1, "--device", "cpu"]
        assert command([*map(str, words)]) == 0
    capsys.readouterr()
    words = ["--autoencoder", f"kl={vae}", "--run", f"pixels={tmp_path / 'pixels'}", "--run", f"kl={tmp_path / 'kl'}"]
    words += ["--dataset", data, "--segmenter", judge, "--features", judge, "--output", out, "--num_masks", 3]
    call(study, monkeypatch, *words, "--turns", 1)

    record = read_json(out / "latents.json")
    assert study.tables(record) in capsys.readouterr().out
    found = record["autoencoders"]["kl"]
    assert found["psnr"] > 0
    assert {"mean_iou", "kernel_distance"} == {*found["against"]}
    pixels, latents = record["runs"].values()
    assert "against" not in pixels
    assert "decoding_seconds" not in pixels
    assert latents["image_seconds"] > latents["decoding_seconds"] > 0
    assert (latents["steps"], latents["images"]) == (2, 4)
    for name in ("reconstructions", "generated"):
        assert (out / f"latents_{name}.jpg").stat().st_size < 200_000

    written = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.png")}
    call(study, monkeypatch, *words, "--turns", 1)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.png")} == written


def test_costs_are_counted_from_configs_alone(study, tmp_path, monkeypatch, capsys):
    tiny_autoencoder("vq").save_config(tmp_path / "vae")
    words = ["--costs", "--vae", tmp_path / "vae", "--size", "32x64", "--block_out_channels", 16, 32, 32]
    call(study, monkeypatch, *words, "--output", tmp_path / "out")
    record = read_json(tmp_path / "out" / "latents_costs.json")
    of_pixels, *_, of_latents = record["networks"].values()
    assert {"forward_gflop", "training_gflop"} == {*of_pixels}
    assert of_latents["encoding_gflop"] > 0
    assert of_latents["training_gflop"] == pytest.approx(3 * of_latents["forward_gflop"], rel=0.1)
    assert study.costs_table(record) in capsys.readouterr().out
