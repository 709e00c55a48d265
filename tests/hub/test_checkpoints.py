"""The folders in checkpoints/: each loads, is small, generates, names licence and results, and has a config."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from helpers.loading import REMOTE_CODE
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from semseg_diffusers import (
    DistillationSettings,
    LabelSet,
    MaskGuidedDDPMPipeline,
    MaskGuidedUpscalePipeline,
    TrainingSettings,
    consistency_psnr,
    load_judge,
)
from semseg_diffusers.autoencoders.networks import reconstruct
from semseg_diffusers.autoencoders.settings import AutoencoderSettings
from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.evaluation.fidelity import paired_psnr
from semseg_diffusers.hub import cards
from semseg_diffusers.hub.export import MAX_SHEET_BYTES
from semseg_diffusers.hub.folders import check_model_folder, stored_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.toy.scenes import draw_scene
from semseg_diffusers.utils.settings import SettingsParser


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/model_index.json"))
NETWORKS = [folder for folder in FOLDERS if "upscaler" not in folder.name]
UPSCALERS = [folder for folder in FOLDERS if folder not in NETWORKS]
LICENSES = {name: "cc-by-nc-4.0" for name in ("camvid128", "camvid128-turbo", "camvid-upscaler")} | {
    "toy": "apache-2.0"
}
STUDENTS = ("camvid128-turbo", "camvid-upscaler")
LARGEST = 25_000_000  # bytes of a folder: git keeps them for good
# diffusers turns sigmas to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
each = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_network = pytest.mark.parametrize("folder", NETWORKS, ids=lambda folder: folder.name)
each_upscaler = pytest.mark.parametrize("folder", UPSCALERS, ids=lambda folder: folder.name)


def test_all_networks_are_there():
    assert {folder.name for folder in FOLDERS} == {*LICENSES}


@each
def test_weights_are_in_half_precision_and_the_folder_is_small(folder):
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert not [path for path in files if path.suffix == ".py"]
    assert json.loads((folder / "export.json").read_text())["weights"] == stored_hash(folder)


@each
def test_its_recommended_sampling_is_that_of_its_sheet_and_of_its_card(folder):
    pipe = load_pipeline(folder, upscaler=None)
    index = json.loads((folder / "model_index.json").read_text())
    steps, scale = index["default_num_inference_steps"], index["default_guidance_scale"]
    assert pipe.resolve_sampling() == (steps, scale)
    sheet = json.loads((folder / "export.json").read_text())["sheet"]
    assert (sheet["num_inference_steps"], sheet["guidance_scale"]) == (steps, scale)
    count = f"{steps} sampling step{'s' * (steps > 1)}"
    text = f"Recommended, and the default of the call: {count}, guidance scale {scale:g}."
    assert text in (folder / "README.md").read_text()


@each
def test_the_card_names_licence_and_results_and_shows_masks_chosen_by_seed(folder):
    card = (folder / "README.md").read_text()
    assert cards.metadata(card)["license"] == LICENSES[folder.name]
    measured = r"^\| mean IoU \| higher \| 0\.\d+ \| 0\.\d+ \| 0\.\d+ \|$"
    assert folder in UPSCALERS or re.search(measured, card, flags=re.MULTILINE)
    assert f'from_pretrained("checkpoints/{folder.name}")' in card
    for name in re.findall(r"\]\(((?:results/|samples)[^)]+)\)", card):
        assert (folder / name).is_file(), name
    num_masks, samples = (4, 1) if folder in UPSCALERS else (16, 4)
    assert f"{num_masks} of" in card
    assert (folder / "run.html").is_file()
    sheet = json.loads((folder / "export.json").read_text())["sheet"]
    assert (len(sheet["masks"]), sheet["samples"], sheet["seed"]) == (num_masks, samples, 0)
    assert (folder / "samples.jpg").stat().st_size <= MAX_SHEET_BYTES
    with Image.open(folder / "samples.jpg") as image:
        image.verify()


@each
def test_nothing_names_a_path_of_a_machine(folder):
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".html"):
            found = re.search(r"""["'`( ](/(?:home|tmp|root|work|mnt|Users)/[^"'`) ]*)""", path.read_text())
            assert found is None, (path, found[1])


@each
def test_the_settings_are_those_of_its_config(folder):
    kind = DistillationSettings if folder.name in STUDENTS else TrainingSettings
    config = ROOT / "configs" / "checkpoints" / f"{folder.name}.yaml"
    settings = SettingsParser(kind).parse_settings(["--config", str(config)])
    expected = settings.to_dict()
    there = json.loads((folder / "settings.json").read_text())
    # a setting that came after the run had the effect of its default
    assert {name: there.get(name, expected[name]) for name in expected} == expected


def test_the_autoencoder_is_what_its_card_and_its_config_say():
    folder = ROOT / "checkpoints" / "streets-vae"
    card, results = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())
    license_name, sentence = data_license("camvid+kitti", "these weights")
    assert cards.metadata(card)["license"] == license_name == "cc-by-nc-sa-3.0"
    assert sentence in card
    assert f"| PSNR | {results['reconstruction']['psnr']:.2f} dB |" in card
    assert results["reconstruction"]["psnr"] > 25
    config = ROOT / "configs" / "checkpoints" / "streets-vae.yaml"
    settings = SettingsParser(AutoencoderSettings).parse_settings(["--config", str(config)])
    assert json.loads((folder / "settings.json").read_text()) == settings.to_dict()
    vae = AutoencoderKL.from_pretrained(folder)
    assert vae.dtype == torch.float32
    assert vae.num_parameters() == results["parameters"] <= 3_000_000
    scene, *_ = draw_scene(seed=0, size=(64, 128))
    photo = torch.from_numpy(np.array(scene)).permute(2, 0, 1)[None]
    (reconstruction,), _ = reconstruct(vae, photo)
    assert paired_psnr([reconstruction], [photo[0]]) > 22  # drawings, of which it has seen none


@each_network
def test_it_draws_what_its_mask_says_in_float32(folder):
    index = check_model_folder(folder)
    pipe = MaskGuidedDDPMPipeline.from_pretrained(folder)
    assert type(DiffusionPipeline.from_pretrained(folder)).__name__ == index["_class_name"]
    assert pipe.unet.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    labels, size = LabelSet.from_config(pipe.unet.config), pipe.unet.config.sample_size
    mask = torch.full((size, size), labels.label2id["road"])
    mask[: size // 2] = labels.label2id["sky"]
    steps = min(6, pipe.resolve_sampling()[0])
    images = pipe(mask, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert images.shape == (1, 3, size, size)
    sky, road = images[0, :, : size // 3].mean(), images[0, :, -size // 3 :].mean()
    assert sky > road + 0.1
    assert images.std() < 0.4  # no noise


@each_upscaler
def test_it_enlarges_a_photo_so_that_it_reduces_to_the_same_in_each_way_to_load_it(folder):
    with Image.open(ROOT / "checkpoints" / "camvid128" / "samples.jpg") as sheet:
        small = sheet.crop((150, 40, 182, 72)).convert("RGB")
    for pipe in (MaskGuidedUpscalePipeline.from_pretrained(folder), DiffusionPipeline.from_pretrained(folder)):
        assert type(pipe).__name__ == check_model_folder(folder)["_class_name"]
        pipe.set_progress_bar_config(disable=True)
        factor, road = pipe.unet.config.upscale_factor, LabelSet.from_config(pipe.unet.config).label2id["road"]
        mask = torch.full((32 * factor, 32 * factor), road)
        (image,) = pipe(small, mask, generator=torch.Generator().manual_seed(0)).images
        assert image.size == (32 * factor, 32 * factor)
        assert consistency_psnr(image, small)[0] > 35


@pytest.mark.slow
@each_network
def test_it_loads_without_the_package_once_saved_with_code_files(folder, tmp_path, clean_process):
    draw = """
pipe.set_progress_bar_config(disable=True)
size = pipe.unet.config.sample_size
ids = torch.zeros(1, size, size, dtype=torch.long)
images = pipe(ids, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
assert images.shape == (1, 3, size, size) and images.isfinite().all()
"""
    MaskGuidedDDPMPipeline.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    paths = tmp_path / "saved", tmp_path / "unused", tmp_path / "again"
    clean_process(REMOTE_CODE + draw, *paths, without_package=True)
    assert check_model_folder(tmp_path / "again")


@pytest.mark.slow
def test_the_page_shows_code_that_runs(tmp_path, clean_process):
    page = (ROOT / "checkpoints" / "README.md").read_text()
    code, average = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    code = code.replace('"checkpoints/', f'"{ROOT}/checkpoints/').replace('"night.png"', f'"{tmp_path}/night.png"')
    clean_process(code)
    with Image.open(tmp_path / "night.png") as image:
        assert image.size == (64, 64)

    weights = {}
    for name in ("student", "student_partial"):
        unet = MaskGuidedDDPMPipeline.from_pretrained(ROOT / "checkpoints" / "toy").unet
        unet.conv_norm_out.weight.data.fill_(len(weights))
        unet.save_pretrained(tmp_path / "runs" / name / "unet")
        weights[name] = unet.conv_norm_out.weight
    clean_process(average.replace('"runs/', f'"{tmp_path}/runs/'))
    mean = load_file(tmp_path / "runs" / "camvid128-turbo" / "unet" / "diffusion_pytorch_model.safetensors")
    assert (mean["conv_norm_out.weight"] == 0.5).all()


def test_the_page_lists_each_folder_with_its_licence():
    page = (ROOT / "checkpoints" / "README.md").read_text()
    for folder in FOLDERS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| [{folder.name}]")]
        assert LICENSES[folder.name].replace("-", " ").split(" 4")[0].lower() in row.replace("-", " ").lower()


def test_the_segmentation_network_is_small_and_its_card_says_its_scores():
    folder = ROOT / "checkpoints" / "camvid128-segmenter"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F16", "I64"}  # counts of batch norms beside weights
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST
    card, record = (folder / "README.md").read_text(), json.loads((folder / "segmenter.json").read_text())
    assert cards.metadata(card)["license"] == "cc-by-nc-4.0"
    scores = dict(re.findall(r"^\| (?:\*\*)?([a-z ]+?)(?:\*\*)? \| (?:\*\*)?(0\.\d+)(?:\*\*)? \|$", card, flags=re.M))
    mean = scores.pop("mean")
    assert {name: f"{value:.3f}" for name, value in record["validation"]["iou"].items()} == scores
    assert f"{record['validation']['mean_iou']:.3f}" == mean
    judge = load_judge(folder, LabelSet.from_json(folder / "labels.json"))
    assert judge.network.dtype == torch.float32
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S)
    found: dict = {}
    exec(code.replace('"checkpoints/', f'"{ROOT}/checkpoints/'), found)  # noqa: S102
    assert found["ids"].shape == (1, 128, 128)
