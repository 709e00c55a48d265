"""Training on the latents of an autoencoder: cached and encoded at each step, scaled, resumed, saved and refused."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from helpers.autoencoders import AUTOENCODERS, FACTOR, tiny_autoencoder
from helpers.training_runs import (
    SCRIPT,
    distill_here,
    finished,
    launch_two,
    parse_training,
    tiny_settings,
    train_here,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from semseg_diffusers import MaskGuidedDDPMPipeline, cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.distillation.distill import build_inputs
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.pipelines.latents import encode_images
from semseg_diffusers.reports.run_folder import read_log
from semseg_diffusers.training.dataset import TrainingDataset, collate_samples
from semseg_diffusers.training.inputs import load_inputs
from semseg_diffusers.training.latents import FILE, Latents, load_vae
from semseg_diffusers.training.objective import ClassWeighting, build_noise_scheduler, diffusion_loss
from semseg_diffusers.utils.files import read_json


KINDS = ("kl", "tiny", "vq")


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    """A folder of a tiny autoencoder of each kind."""
    folder = tmp_path_factory.mktemp("autoencoders")
    for kind in AUTOENCODERS:
        tiny_autoencoder(kind).save_pretrained(folder / kind)
    return folder


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setattr("semseg_diffusers.training.latents.cached_assets_path", _assets_in(tmp_path / "assets"))
    return tmp_path / "assets"


def _assets_in(folder):
    def path(library, namespace, subfolder):
        found = folder / library / namespace / subfolder
        found.mkdir(parents=True, exist_ok=True)
        return found

    return path


def settings_of(toy, run, vae, **changes):
    """Settings of a tiny run on 16 x 32 photos."""
    return tiny_settings(toy, run, vae=str(vae), **{"patch_size": 1, "dropout": 0.0, **changes})


def weights_of(run):
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def inputs_of(settings):
    return load_inputs(settings, Accelerator(cpu=True))


# --- what a network sees ---


@pytest.mark.parametrize("kind", KINDS)
def test_cached_latents_are_those_of_images_that_are_encoded_at_each_step(kind, toy, vaes, tmp_path):
    settings = settings_of(toy, tmp_path / "run", vaes / kind)
    inputs = inputs_of(settings)
    assert inputs.latents.is_cached
    cached = TrainingDataset(inputs.pairs, settings, latents=inputs.latents)
    encoding = Latents(inputs.latents.vae, inputs.pairs, settings)
    encoding.use(inputs.latents.statistics)
    encoding.is_cached = False
    direct = TrainingDataset(inputs.pairs, settings, latents=encoding)
    for position in range(8):  # flipped and not
        ours, theirs = cached[position, position % 6], direct[position, position % 6]
        assert "image" not in ours
        assert ours["latents"].shape == ours["noise"].shape == (4, 16 // FACTOR, 32 // FACTOR)
        assert ours["mask"].shape == (16, 32)
        encoded = encoding.encode(collate_samples([theirs]))[0]
        torch.testing.assert_close(ours["latents"], encoded, rtol=1e-4, atol=1e-4)
        for name in ("mask", "noise", "timestep"):
            assert torch.equal(ours[name], theirs[name])


def test_without_a_vae_samples_are_as_ever(toy, tmp_path):
    settings = tiny_settings(toy, tmp_path / "run")
    inputs = inputs_of(settings)
    assert inputs.latents is None
    assert inputs.components == {}
    sample = TrainingDataset(inputs.pairs, settings)[3, 2]
    assert {*sample} == {"image", "mask", "noise", "timestep", "stem"}
    assert sample["noise"].shape == (3, 16, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_have_unit_variance_in_each_channel(kind, toy, vaes, tmp_path):
    settings = settings_of(toy, tmp_path / "run", vaes / kind)
    inputs = inputs_of(settings)
    config = inputs.unet.config
    assert (config.vae_scale_factor, config.in_channels, config.sample_size) == (FACTOR, 4, (4, 8))
    latents, images = inputs.latents, [inputs.pairs[index]["image"] for index in range(6)]
    photos = torch.stack([image.float() / 127.5 - 1 for image in images])
    photos = torch.cat([photos, photos.flip(-1)] * 8)
    noise = torch.randn(96, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    scaled = encode_images(latents.vae, photos, config, noise)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.1)


def test_the_cache_is_made_once_and_is_of_these_photos_and_this_autoencoder(toy, vaes, tmp_path, assets, monkeypatch):
    settings = settings_of(toy, tmp_path / "run", vaes / "kl")
    encoded = []
    encode = Latents._encode
    monkeypatch.setattr(Latents, "_encode", lambda self, index: (encoded.append(index), encode(self, index))[1])
    first = inputs_of(settings).latents
    assert encoded == [*range(6)]
    assert first.moments.shape == (6, 2, 8, 4, 8)
    assert [path.name for path in assets.rglob("*") if path.is_file()] == [FILE]
    inputs_of(settings)
    assert len(encoded) == 6
    inputs_of(settings_of(toy, tmp_path / "run", vaes / "kl", horizontal_flip=False))
    assert len(encoded) == 12
    changed = tmp_path / "changed"
    shutil.copytree(toy, changed)
    photo = next(iter(sorted((changed / "train" / "images").iterdir())))
    other = next(iter(sorted((changed / "train" / "images").iterdir(), reverse=True)))
    photo.write_bytes(other.read_bytes())
    inputs_of(settings_of(changed, tmp_path / "run", vaes / "kl"))
    assert len(encoded) == 18


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(toy, vaes, tmp_path, assets, monkeypatch):
    encode = Latents._encode

    def full(self, index):
        if index == 3:
            raise OSError(28, "No space left on device")
        return encode(self, index)

    monkeypatch.setattr(Latents, "_encode", full)
    with pytest.raises(OSError, match="the cache of latents could not be written: .*No space left.*HF_ASSETS_CACHE"):
        inputs_of(settings_of(toy, tmp_path / "run", vaes / "kl"))
    assert not [path for path in assets.rglob("*") if path.is_file()]


@torch.no_grad()
def test_the_loss_is_that_of_the_latents_and_weighted_by_the_classes_of_their_cells(toy, vaes, tmp_path):
    settings = settings_of(toy, tmp_path / "run", vaes / "kl", snr_gamma=None)
    inputs, scheduler = inputs_of(settings), build_noise_scheduler(settings)
    dataset = TrainingDataset(inputs.pairs, settings, latents=inputs.latents)
    batch = collate_samples([dataset[position, position] for position in range(4)])
    batch["timestep"][:] = 400
    unet = inputs.unet.eval()
    noisy = scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
    prediction = unet(noisy, batch["timestep"], mask=batch["mask"]).sample
    error = (prediction - scheduler.get_velocity(batch["latents"], batch["noise"], batch["timestep"])).square()
    torch.testing.assert_close(diffusion_loss(unet, scheduler, batch, None), error.mean((1, 2, 3)))
    weighting = ClassWeighting(inputs.pairs.labels.num_classes, 4.0, 0.0)
    pixels = weighting.pixel_weights(batch["mask"])
    cells = torch.nn.functional.avg_pool2d(pixels[:, None], FACTOR)
    expected = (error * cells).mean((1, 2, 3))
    torch.testing.assert_close(diffusion_loss(unet, scheduler, batch, None, weighting), expected)


# --- runs ---


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_run_saves_a_pipeline_that_decodes_with_its_autoencoder(prediction_type, toy, vaes, tmp_path):
    kind = "kl" if prediction_type == "v_prediction" else "vq"
    changes = {"preview_steps": 4, "preview_masks": 2, "prediction_type": prediction_type, "min_timestep": 0}
    run = train_here(settings_of(toy, tmp_path / "run", vaes / kind, **changes))
    pipe = MaskGuidedDDPMPipeline.from_pretrained(run)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.sample_size, pipe.vae_scale_factor) == ((16, 32), FACTOR)
    expected = tiny_autoencoder(kind).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in pipe.vae.state_dict().items())
    mask = load_pairs(str(toy), "val")[0]["mask"]
    assert pipe(mask, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 32)
    assert list((run / "previews").glob("*.png"))
    state = read_json(run / "checkpoint-4" / "state.json")
    assert state["latents"] == {name: pipe.unet.config[name] for name in ("latents_mean", "latents_std")}
    assert "latents of 4 channels, 1/4 the size" in (run / "README.md").read_text()
    again = train_here(settings_of(toy, tmp_path / "again", run, init_from=str(run), prediction_type=prediction_type))
    assert weights_of(again).keys() == weights_of(run).keys()


@pytest.mark.parametrize(
    "changes", [{}, {"random_crop": "8x16"}, {"augment_scale": 0.25}], ids=["cache", "crop", "warp"]
)
def test_a_resumed_run_equals_a_straight_one_to_the_last_bit(changes, toy, vaes, tmp_path):
    straight = train_here(settings_of(toy, tmp_path / "straight", vaes / "kl", **changes))
    shutil.copytree(straight / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    shutil.copytree(vaes / "kl", tmp_path / "elsewhere")
    options = {**changes, "resume_from_checkpoint": "latest"}
    resumed = train_here(settings_of(toy, tmp_path / "resumed", tmp_path / "elsewhere", **options))
    ours, theirs = weights_of(resumed), weights_of(straight)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_resumed_run_keeps_the_statistics_that_were_measured_first(toy, vaes, tmp_path, monkeypatch):
    run = train_here(settings_of(toy, tmp_path / "run", vaes / "kl"))
    shutil.rmtree(run / "checkpoint-4")
    measured = read_json(run / "checkpoint-2" / "state.json")["latents"]
    off = {name: [value * 1.001 for value in values] for name, values in measured.items()}
    monkeypatch.setattr(Latents, "measure", lambda _: off)
    run = train_here(settings_of(toy, run, vaes / "kl", resume_from_checkpoint="latest"))
    assert read_json(run / "checkpoint-4" / "state.json")["latents"] == measured
    config = json.loads((run / "unet" / "config.json").read_text())
    assert {name: config[name] for name in measured} == measured


def test_crops_and_warps_are_encoded_and_texts_and_attributes_work_as_with_pixels(toy, vaes, tmp_path, monkeypatch):
    encoded = []
    encode = Latents.encode
    monkeypatch.setattr(
        Latents, "encode", lambda self, batch: (encoded.append(len(batch["image"])), encode(self, batch))[1]
    )
    changes = {"random_crop": "8x16", "augment_scale": 0.25, "augment_probability": 0.5, "mask_pyramid": True}
    further = {"mask_conditioning": "spade", "label_diffusion": True, "coordinate_channels": True}
    run = train_here(settings_of(toy, tmp_path / "run", vaes / "tiny", **changes, **further))
    assert encoded == [2] * 4
    assert MaskGuidedDDPMPipeline.from_pretrained(run).sample_size == (8, 16)


STUDENT = {
    "steps": 2,
    "discriminator_scale": 1.0,
    "diversity_weight": 0.5,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
    "preview_steps": 2,
    "preview_masks": 1,
    "lr_warmup_steps": 0,
    "dataloader_num_workers": 0,
    "device": "cpu",
}


def student_settings(toy, teacher, run, **changes):
    given = {"dataset": str(toy), "output_dir": str(run), "model": str(teacher)}
    return DistillationSettings(**given, **{**STUDENT, **changes})


def test_a_student_of_latents_keeps_the_autoencoder_and_its_scale_and_resumes_to_the_last_bit(toy, vaes, tmp_path):
    teacher = train_here(settings_of(toy, tmp_path / "teacher", vaes / "kl", max_train_steps=1, checkpointing_steps=1))
    straight = distill_here(student_settings(toy, teacher, tmp_path / "straight"))
    ours, theirs = (MaskGuidedDDPMPipeline.from_pretrained(run) for run in (straight, teacher))
    assert not ours.scheduler.config.clip_sample
    assert (ours.sample_size, ours.vae_scale_factor) == ((16, 32), FACTOR)
    assert ours.unet.config.latents_std == theirs.unet.config.latents_std
    expected = theirs.vae.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.vae.state_dict().items())
    losses = read_log(straight / "log.jsonl")
    assert {"distillation", "adversarial", "diversity", "discriminator"} <= {*losses[-1]}
    shutil.copytree(straight / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    settings = student_settings(toy, teacher, tmp_path / "resumed", resume_from_checkpoint="latest")
    resumed = weights_of(distill_here(settings))
    assert all(torch.equal(resumed[name], weight) for name, weight in weights_of(straight).items())


def test_a_student_is_trained_on_crops_of_latents_and_needs_the_autoencoder(toy, vaes, tmp_path):
    teacher = train_here(settings_of(toy, tmp_path / "teacher", vaes / "vq", max_train_steps=1, checkpointing_steps=1))
    changes = {"random_crop": "8x16", "max_train_steps": 1, "diversity_weight": 0.0, "preview_steps": 0}
    student = distill_here(student_settings(toy, teacher, tmp_path / "student", **changes))
    assert MaskGuidedDDPMPipeline.from_pretrained(student).sample_size == (8, 16)
    without = MaskGuidedDDPMPipeline.from_pretrained(teacher, vae=None)
    without.save_pretrained(tmp_path / "without")
    pairs = load_pairs(str(toy), "train")
    with pytest.raises(
        ValueError, match="generates latents, but has no autoencoder. Give the folder that its training"
    ):
        build_inputs(student_settings(toy, tmp_path / "without", tmp_path / "x"), (pairs, pairs, None))


# --- refusals ---


def test_another_autoencoder_is_refused_on_resume(toy, vaes, tmp_path):
    run = train_here(settings_of(toy, tmp_path / "run", vaes / "kl"))
    options = {"resume_from_checkpoint": "latest", "max_train_steps": 6}
    for vae in (vaes / "vq", vaes / "asymmetric"):
        with pytest.raises(ValueError, match="on the latents of another autoencoder: the weights of --vae differ"):
            train_here(settings_of(toy, run, vae, **options))
    with pytest.raises(ValueError, match="latents of another autoencoder"):
        train_here(tiny_settings(toy, run, patch_size=1, dropout=0.0, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "paper"], "--vae is not for --network paper"),
        (["--network", "sdm"], "--vae is not for --network sdm"),
        (["--upscale_factor", "2"], "--vae is not for upscalers"),
        (["--perceptual_weight", "0.1"], "--perceptual_weight compares images, and with --vae the loss is on latents"),
    ],
)
def test_options_that_latents_do_not_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        parse_training("--dataset", "d", "--output_dir", "o", "--vae", "v", *options)


def test_latents_are_no_patches_by_default():
    given = ["--dataset", "d", "--output_dir", "o"]
    assert parse_training(*given, "--vae", "v").patch_size == 1
    assert parse_training(*given, "--vae", "v", "--patch_size", "2").patch_size == 2
    assert parse_training(*given).patch_size == parse_training(*given, "--vae", "none").patch_size == 2


def test_what_is_no_autoencoder_is_refused_in_one_line(vaes, tmp_path):
    with pytest.raises(ValueError, match=r"--vae .*: it has none of vae/config.json, vqvae/config.json, config.json"):
        load_vae(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="it holds a UNet2DModel; expected a folder or a Hub id of an autoencoder"):
        load_vae(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(vaes / "kl", broken)
    file = broken / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="--vae .*: its weights cannot be read"):
        load_vae(str(broken))
    weights = {name: weight.clone() for name, weight in load_file(vaes / "kl" / file.name).items()}
    weights["encoder.conv_in.bias"][0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="encoder.conv_in.bias holds values that are not finite"):
        load_vae(str(broken))


@torch.no_grad()
def test_a_channel_that_never_changes_is_refused(toy, vaes, tmp_path):
    vae = tiny_autoencoder("vq")
    vae.quant_conv.weight[2] = 0
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="--vae: channel 2 of its latents never changes"):
        inputs_of(settings_of(toy, tmp_path / "run", tmp_path / "vae"))


def test_sizes_that_factor_and_depth_do_not_divide_are_refused(toy, vaes, tmp_path):
    with pytest.raises(ValueError, match="is 12 x 20 pixels; this network needs multiples of 8"):
        inputs_of(settings_of(toy, tmp_path / "run", vaes / "kl", random_crop="12x20"))


def test_a_saved_run_is_exported_and_generates_by_the_commands_also_in_its_variants(toy, vaes, tmp_path):
    run, exported = train_here(settings_of(toy, tmp_path / "run", vaes / "tiny")), tmp_path / "exported"
    assert cli.main(["export", "--model", f"{run}", "--output", f"{exported}"]) == 0
    options = ["--masks", f"{toy}/val/masks", "--num_inference_steps", "2", "--device", "cpu"]
    for number, model in enumerate((["--model", f"{run}", "--variant", "raw"], ["--model", f"{exported}"])):
        out = tmp_path / f"out{number}"
        assert cli.main(["generate", *model, "--output", f"{out}", *options]) == 0
        assert {Image.open(path).size for path in (out / "images").iterdir()} == {(32, 16)}


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_two_processes_train_on_latents_as_one_with_the_same_batch(toy, vaes, tmp_path):
    settings = settings_of(toy, tmp_path / "two", vaes / "kl", train_batch_size=1)
    finished(launch_two(SCRIPT, settings, HF_ASSETS_CACHE=str(tmp_path / "cache")))
    one = weights_of(train_here(settings_of(toy, tmp_path / "one", vaes / "kl", train_batch_size=2)))
    two = weights_of(tmp_path / "two")
    assert all(torch.allclose(two[name], weight, atol=1e-3) for name, weight in one.items())
    assert len(list((tmp_path / "cache").rglob(FILE))) == 1
