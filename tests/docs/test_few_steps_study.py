"""benchmarks/studies/few_steps.py samples, measures and resumes, and its figures are what they say."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from helpers.studies import STUDIES, load_study, train_judge
from helpers.tiny_pipelines import tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.evaluation.fidelity import fid, kid
from semseg_diffusers.generation.model import new_scheduler
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.objective import build_sampler
from semseg_diffusers.utils.files import read_json


SIZE = 32


@pytest.fixture
def study(monkeypatch):
    return load_study("few_steps", monkeypatch)


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(STUDIES)
    return importlib.import_module("few_steps_figures")


def some_features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_of_all_masks_are_those_of_evaluate(figures):
    features, photos = some_features(0, 12, 2, 16), some_features(1, 24, 16) + 0.3
    once = torch.ones(1, 12)
    rows = features.flatten(0, 1)
    expected = kid(photos, rows, seed=0, subsets=1, subset_size=24).mean
    assert figures.kernel_distances(features, photos, once).item() == pytest.approx(expected)
    assert figures.frechet_distances(features, photos, once).item() == pytest.approx(fid(photos, rows), rel=1e-4)


def test_frechet_distance_of_a_resampling_is_that_of_its_images(figures):
    features, photos = some_features(0, 12, 2, 16), some_features(1, 24, 16)
    weights = torch.tensor([[2, 0, 1, 3, 0, 0, 1, 1, 1, 1, 1, 1]])
    rows = features.repeat_interleave(weights[0], dim=0).flatten(0, 1)
    assert figures.frechet_distances(features, photos, weights).item() == pytest.approx(fid(photos, rows), rel=1e-4)


def test_kernel_distance_of_resamplings_is_unbiased(figures):
    features, photos = some_features(0, 40, 2, 8), some_features(1, 30, 8)
    random = torch.Generator().manual_seed(0)
    weights = torch.stack([torch.randint(40, (40,), generator=random).bincount(minlength=40) for _ in range(2000)])
    whole = figures.kernel_distances(features, photos, torch.ones(1, 40)).item()
    found = figures.kernel_distances(features, photos, weights)
    assert found.mean().item() == pytest.approx(whole, abs=4 * found.std().item() / 2000**0.5)


def test_colors_are_those_of_cie_and_of_each_class(figures):
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0] = 255
    image[0, 0, 1, 1] = 255
    mask = torch.tensor([[[0, 0], [255, 1]]], dtype=torch.uint8)
    colors = figures.class_colors(image, mask, 3)
    assert colors[0].tolist() == pytest.approx([100, 0, 0], abs=1e-3)
    assert colors[1].tolist() == pytest.approx([53.24, 80.09, 67.20], abs=0.01)  # red
    assert colors[2].isnan().all()
    assert figures.class_detail(image, mask, 3)[:1].tolist() == [0]  # only the white pixels of class 0 are neighbours


def test_a_repeated_texture_repeats_and_noise_and_edges_do_not(figures):
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (1, 3, 64, 64), generator=random, dtype=torch.uint8)
    tile = torch.randint(256, (1, 3, 8, 8), generator=random, dtype=torch.uint8)
    edge = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    edge[..., 20:] = 200
    found = figures.repetition(torch.cat([noise, tile.repeat(1, 1, 8, 8), edge]))
    assert found[0] < 0.15
    assert found[1] > 0.8
    assert found[2] < 0.15
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 200).to(torch.uint8).expand(1, 3, 64, 64)
    assert figures.fine_power(checkers) > 10 * figures.fine_power(edge)


@pytest.fixture
def models(tmp_path) -> tuple[Path, Path]:
    """A teacher, and a student of the same weights."""
    unet = tiny_unet(sample_size=SIZE)
    saved = build_sampler(DDPMScheduler(prediction_type="v_prediction", clip_sample=False))
    MaskGuidedDDPMPipeline(unet, saved).save_pretrained(tmp_path / "teacher")
    few = new_scheduler("LCMScheduler:original_inference_steps=4", saved.config)
    MaskGuidedDDPMPipeline(unet, few, 4, 1.0, [999, 749, 499, 249]).save_pretrained(tmp_path / "student")
    return tmp_path / "teacher", tmp_path / "student"


@pytest.mark.slow
def test_a_second_run_draws_nothing_again_and_gives_the_same_figures(study, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sampling.RESAMPLINGS", 100)
    monkeypatch.setattr(study, "FRECHET_RESAMPLINGS", 10)
    data = write_toy_dataset(tmp_path / "toy", num_train=4, num_val=3, size=(SIZE, SIZE))
    judge = train_judge(data, tmp_path / "judge")
    teacher, student = models
    words = ["--teacher", teacher, "--dataset", data, "--segmenter", judge, "--features", judge]
    words += ["--output", tmp_path / "out", "--steps", 1, 2, "--num_masks", 2, "--turns", 1]
    monkeypatch.setattr(sys, "argv", ["few_steps.py", *map(str, words), "--student", f"turbo={student}"])
    study.main()
    record = read_json(tmp_path / "out" / "few_steps.json")
    assert [*record["arms"]] == ["teacher", "turbo_1", "turbo_2", "sde_1", "sde_2", "ddim_2", "dpm_2"]
    assert record["num_masks"] * record["images_per_mask"] == 4
    assert record["arms"]["dpm_2"]["kernel_features"] != record["arms"]["sde_2"]["kernel_features"]
    first, saved = record["arms"]["turbo_1"], record["arms"]["teacher"]
    assert saved["against_teacher"] == {}
    assert saved["diversity"]["share"] == 1
    assert first["scheduler"] == "LCMScheduler"
    assert first["times_less_compute"] > 20  # 20 steps of two passes against one pass
    assert first["against_teacher"]["mean_iou"]["low"] <= first["against_teacher"]["mean_iou"]["high"]
    sheet = tmp_path / "out" / "few_steps.jpg"
    assert 0 < sheet.stat().st_size < 200_000
    said = capsys.readouterr().out
    assert study.tables(record) in said
    assert said.count("| turbo, 1 step | ") == 4

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/images/*")}
    assert len(written) == 7 * 4
    study.main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/images/*")} == written
    again = read_json(tmp_path / "out" / "few_steps.json")["arms"]
    timed = ("seconds", "times_faster")
    for name, arm in record["arms"].items():
        assert {key: again[name][key] for key in arm if key not in timed} == {
            key: value for key, value in arm.items() if key not in timed
        }


def test_students_of_an_ablation_are_named_after_their_folders(study, monkeypatch):
    args = study.argparse.Namespace(teacher="a", ablation=["runs/no_gan", "runs/all"], steps=[1, 4], student=[])
    assert [*study.build_arms(args)] == ["teacher", "no_gan_1", "no_gan_4", "all_1", "all_4"]


def test_tables_of_the_page_are_those_of_the_results(study):
    docs = STUDIES.parents[1] / "docs" / "results"
    page = (docs / "few_steps.md").read_text(encoding="utf-8")
    parts = study.tables(read_json(docs / "few_steps.json")).split("\n\n")
    measured = [part for part in parts if part.startswith("|")]
    assert len(measured) == 4
    assert all(part in page for part in measured)


def test_the_page_says_what_each_part_of_the_training_brings():
    docs = STUDIES.parents[1] / "docs" / "results"
    page, arms = (
        (docs / "few_steps.md").read_text(encoding="utf-8"),
        read_json(docs / "few_steps_ablation.json")["arms"],
    )
    titles = {
        "both": "both discriminators", "projected": "projected alone", "segmentation": "segmentation alone",
        "no_discriminator": "no discriminator", "no_distillation": "no distillation",
    }  # fmt: skip
    for arm, title in titles.items():
        runs = [arms[f"{arm}-{seed}_4"] for seed in (0, 1)]
        columns = (
            [f"{run['mean_iou']:.3f}" for run in runs],
            [f"{run['kernel_features']:.3f}" for run in runs],
            [f"{run['frechet_features']:.1f}" for run in runs],
            [f"{run['diversity']['share']:.2f}" for run in runs],
            [f"{run['detail']:.2f}" for run in runs],
        )
        assert f"| {title} | {' | '.join(' / '.join(column) for column in columns)} |" in page


def test_partial_masks_keep_their_share_of_classes_or_one_object_and_the_page_has_their_table(study):  # noqa: ARG001
    module, docs = importlib.import_module("partial_masks"), STUDIES.parents[1] / "docs" / "results"
    page = (docs / "few_steps.md").read_text(encoding="utf-8")
    assert module.table(read_json(docs / "partial_masks.json")) in page
    mask = torch.arange(4).repeat_interleave(16).view(8, 8).clone()
    mask[:2, :4] = 3  # an object of its own
    for share, left in ((0.0, 4), (0.25, 3), (0.75, 1), (1.0, 0)):
        found = module.partial_mask(mask, share, 255, torch.Generator().manual_seed(0))
        assert len({*found.unique().tolist()} - {255}) == left
    sizes = set()
    for seed in range(20):
        found = module.partial_mask(mask, None, 255, torch.Generator().manual_seed(seed))
        (kept,) = {*found.unique().tolist()} - {255}
        assert (found == kept).sum() < (mask == kept).sum() or kept != 3
        sizes.add(int((found != 255).sum()))
    assert sizes == {8, 16}
