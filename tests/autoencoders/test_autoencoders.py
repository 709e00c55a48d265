"""Training of autoencoders: their folders, runs that are resumed and stopped, their losses, measures and refusals."""

import dataclasses
import json
import re
import signal
from functools import partial

import diffusers
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers.training_runs import TINY, finished, launch_two, log_lines, start, status, wait_until
from PIL import Image
from safetensors.torch import load_file

from semseg_diffusers import cli
from semseg_diffusers.autoencoders import measures
from semseg_diffusers.autoencoders.autoencoder import build_inputs, train_autoencoder
from semseg_diffusers.autoencoders.codebook import choose_latents, count_codes, perplexity, revive, used_share
from semseg_diffusers.autoencoders.measures import measure_latents, measure_reconstructions, photos, whole_cells
from semseg_diffusers.autoencoders.networks import CLASSES, TrainedAutoencoder, build_autoencoder, encode, reconstruct
from semseg_diffusers.autoencoders.objective import adaptive_weight
from semseg_diffusers.autoencoders.settings import AutoencoderSettings, default_widths
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.distillation.discriminator import Discriminator
from semseg_diffusers.evaluation.features import load_extractor
from semseg_diffusers.reports.run_page import write_run_page
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.utils.images import grid_cells
from semseg_diffusers.utils.settings import SettingsParser


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
KINDS = ("kl", "vq", "tiny")
SMALL = ("train_batch_size", "max_train_steps", "checkpointing_steps", "logging_steps", "preview_steps")
SMALL += ("lr_warmup_steps", "dataloader_num_workers", "device")
NO_FROZEN_NETWORKS = {"perceptual_weight": 0.0, "adversarial_weight": 0.0, "features": None}
EVERYTHING = {"discriminator_start": 1, "discriminator_scale": 1.0, "preview_steps": 4}


def tiny(toy, run, kind="kl", **changes) -> AutoencoderSettings:
    """Four steps of two photos, in three levels of eight channels."""
    network = {"kind": kind, "block_out_channels": (8, 8, 8)}
    if kind != "tiny":
        network["norm_num_groups"] = 4
    if kind == "vq":
        network |= {"codebook_size": 16, "codebook_revival_steps": 2}
    small = {name: TINY[name] for name in SMALL} | {"learning_rate": 1e-3, "features": None}
    return AutoencoderSettings(dataset=str(toy), output_dir=str(run), **small | network | changes)


def train_here(settings):
    """Train in this process, and leave no state of accelerate behind."""
    try:
        return train_autoencoder(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def weights(run, variant="") -> dict:
    return load_file(run / f"diffusion_pytorch_model{variant}.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A run of each kind with all losses, made when it is asked for."""
    made = {}

    def run_of(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp("runs") / kind
            features = "efficientnet-lite0" if kind == "vq" else None
            made[kind] = train_here(tiny(toy, folder, kind, **EVERYTHING, features=features))
        return made[kind]

    return run_of


# Folders


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_loads_in_plain_diffusers_without_the_package(trained, toy, kind, clean_process):
    run = trained(kind)
    code = (
        "import sys, torch, diffusers\n"
        f"vae = getattr(diffusers, '{CLASSES[kind].__name__}').from_pretrained(sys.argv[1])\n"
        "image = torch.zeros(1, 3, 16, 32)\n"
        "encoded = vae.encode(image)\n"
        "latents = encoded.latent_dist.mode() if hasattr(encoded, 'latent_dist') else encoded.latents\n"
        "assert latents.shape == (1, 4, 4, 8), latents.shape\n"
        "assert vae.decode(latents).sample.shape == image.shape\n"
        "print(vae.config.scaling_factor)\n"
    )
    printed = clean_process(code, run, without_package=True).stdout
    assert float(printed) == json.loads((run / "results.json").read_text())["latents"]["scaling_factor"]
    assert not same(weights(run), weights(run, ".raw"))  # averaged, with the last step's beside


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_scaling_factor_gives_latents_of_unit_variance(trained, toy, kind):
    network = CLASSES[kind].from_pretrained(trained(kind))
    found = []
    for photo in photos(load_pairs(toy), 4):
        mean, variance = encode(network, photo[None].float() / 127.5 - 1)
        generator = torch.Generator().manual_seed(len(found))
        noise = torch.randn((2000, *mean.shape[1:]), generator=generator)
        found.append((mean + variance.sqrt() * noise).detach())
    latents = torch.cat(found)
    if kind != "vq":
        latents = latents - network.config.shift_factor
    scaled = latents * network.config.scaling_factor
    assert scaled.var().item() == pytest.approx(1, abs=0.01)
    if kind != "vq":
        assert scaled.mean().item() == pytest.approx(0, abs=0.01)


def test_card_results_pictures_and_page_say_how_well_it_reconstructs(trained):
    run = trained("vq")
    results = json.loads((run / "results.json").read_text())
    measured = results["reconstruction"]
    assert 0 < measured["psnr"] < 60
    assert -1 <= measured["ssim"] <= 1
    assert measured["frechet_distance"] > 0
    assert measured["num_photos"] == 2
    assert results["split"] == "val"
    assert results["resolution"] == [16, 32]
    assert 1 <= measured["codebook"]["perplexity"] <= 16 * measured["codebook"]["used_share"] + 1e-6
    assert results["compression"] == {"numbers": 12.0, "bits_per_pixel": 0.25}
    card = (run / "README.md").read_text()
    for text in (
        f"| PSNR | {measured['psnr']:.2f} dB |",
        "VQModel.from_pretrained",
        "% of 16 |",
        "12 times fewer numbers, 0.25 bits a pixel as codes",
        "On 2 photos of `toy` (split `val`) at 16 x 32 pixels:",
        "6 photos of `toy` (split `train`)",
        f"{results['parameters']:,} parameters",
    ):
        assert text in card
    assert "![photos, reconstructions and 4 times their difference](reconstructions.png)" in card
    for path in (run / "reconstructions.png", run / "previews" / "step-0000004.png"):
        with Image.open(path) as sheet:
            assert len(grid_cells(sheet)[0]) == 3
    page = write_run_page(run).read_text()
    assert "<code>VQModel.from_pretrained</code> of diffusers" in page
    assert "semseg-diffusers autoencoder --config" in page
    assert "Turn masks into labelled images" not in page


def test_the_default_autoencoders_have_at_most_three_million_weights_and_any_size_of_whole_cells():
    for kind in KINDS:
        settings = AutoencoderSettings(
            dataset="d", output_dir="r", kind=kind, block_out_channels=default_widths(kind, 4)
        )
        network = build_autoencoder(settings, (128, 128))
        assert sum(weight.numel() for weight in network.parameters()) <= 3_000_000
        pixels, latents = reconstruct(network, torch.zeros(1, 3, 20, 12, dtype=torch.uint8))
        assert latents.shape == (1, 4, 5, 3)
        assert pixels.shape == (1, 3, 20, 12)


def test_measures_are_the_same_however_few_photos_are_in_memory_at_once(toy, monkeypatch):
    torch.manual_seed(0)
    network = build_autoencoder(tiny(toy, "run", "vq"), (32, 32)).eval()
    pairs, extractor = load_pairs(toy), load_extractor("efficientnet-lite0")
    assert len(pairs) > 2
    together = measure_reconstructions(network, pairs, 4, extractor)
    monkeypatch.setattr(measures, "BATCH", 2)
    apart = measure_reconstructions(network, pairs, 4, extractor)
    distances = [measured.pop("frechet_distance") for measured in (together, apart)]
    assert together == apart
    assert distances[0] == pytest.approx(distances[1], rel=1e-3)
    assert together["num_photos"] == len(pairs)


@pytest.mark.parametrize(("kind", "downsample"), [("kl", 2), ("vq", 8), ("tiny", 16)])
def test_the_command_line_chooses_widths_by_kind_and_downsample(kind, downsample):
    words = ["--dataset", "d", "--output_dir", "r", "--kind", kind, "--downsample", str(downsample)]
    settings = SettingsParser(AutoencoderSettings).parse_settings(words)
    assert settings.block_out_channels == default_widths(kind, downsample)
    network = build_autoencoder(settings, (32, 32))
    mean, _ = encode(network, torch.zeros(1, 3, 32, 32))
    assert mean.shape == (1, 4, 32 // downsample, 32 // downsample)


# Runs


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(trained, toy, tmp_path, kind):
    features = "efficientnet-lite0" if kind == "vq" else None
    settings = tiny(toy, tmp_path / "run", kind, **EVERYTHING, features=features)
    run, straight = train_here(settings), trained(kind)
    (run / "checkpoint-4").rename(run / "checkpoint-4.set-aside")
    resumed = train_here(dataclasses.replace(settings, resume_from_checkpoint="latest"))
    timed = ("images_per_second", "data_wait_share", "trained_seconds")
    lines = [
        [{k: v for k, v in line.items() if k not in timed} for line in log_lines(each)] for each in (resumed, straight)
    ]
    assert lines[0] == lines[1]
    assert {"reconstruction", "perceptual", "adversarial", "adaptive_weight", "discriminator"} <= set(lines[0][-1])
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        assert same(*(load_file(each / "checkpoint-4" / name) for each in (resumed, straight)))
    for variant in ("", ".raw"):
        assert same(weights(resumed, variant), weights(straight, variant))


def test_a_run_that_is_resumed_before_the_discriminator_joins_equals_the_straight_one(toy, tmp_path):
    changes = {"discriminator_start": 3, "discriminator_scale": 1.0, "perceptual_weight": 0.0}
    straight = train_here(tiny(toy, tmp_path / "straight", **changes))
    settings = tiny(toy, tmp_path / "run", **changes)
    run = train_here(settings)
    (run / "checkpoint-4").rename(run / "checkpoint-4.set-aside")
    train_here(dataclasses.replace(settings, resume_from_checkpoint="latest"))
    assert ["discriminator" in line for line in log_lines(run)] == [False, False, False, True]
    assert same(weights(run), weights(straight))


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(toy, tmp_path):
    changes = {**NO_FROZEN_NETWORKS, "checkpointing_steps": 1000, "lr_scheduler": "constant"}
    settings = tiny(toy, tmp_path / "run", "vq", max_train_steps=100_000, **changes)
    process = start("-m", "semseg_diffusers.autoencoders", *settings.to_arguments(), "--features", "none")
    wait_until(lambda: len(log_lines(tmp_path / "run")) > 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    ended = status(tmp_path / "run")
    assert (ended["status"], ended["reason"]) == ("stopped", "SIGTERM")
    changes["max_train_steps"] = ended["step"] + 2
    train_here(tiny(toy, tmp_path / "run", "vq", **changes, resume_from_checkpoint="latest"))
    straight = train_here(tiny(toy, tmp_path / "straight", "vq", **changes))
    assert same(weights(tmp_path / "run"), weights(straight))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_two_processes_train_as_one_with_the_same_batch(toy, tmp_path, kind):
    changes = {**EVERYTHING, "preview_steps": 0, "lr_warmup_steps": 0}
    one = train_here(tiny(toy, tmp_path / "one", kind, train_batch_size=4, **changes))
    settings = tiny(toy, tmp_path / "two", kind, train_batch_size=2, **changes)
    script = tmp_path / "train.py"
    script.write_text(
        "from semseg_diffusers.autoencoders.autoencoder import run\n"
        "from semseg_diffusers.autoencoders.settings import AutoencoderSettings\n"
        "from semseg_diffusers.utils.distributed import process_main\n"
        "if __name__ == '__main__':\n    process_main(AutoencoderSettings, run, 'autoencoder')\n"
    )
    finished(launch_two(script, settings))
    for name in ("loss", "reconstruction", "adversarial", "adaptive_weight", "discriminator"):
        expected = [line[name] for line in log_lines(one) if name in line]
        found = [line[name] for line in log_lines(tmp_path / "two") if name in line]
        # After the first step a code near two entries may change sides, which a ratio of small gradients shows most.
        assert found[:1] == pytest.approx(expected[:1], rel=1e-3)
        assert found == pytest.approx(expected, rel=0.1 if name == "adaptive_weight" else 1e-2)
    first, second = weights(one), weights(tmp_path / "two")
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)


def test_a_discriminator_that_would_never_join_is_warned_of(toy, tmp_path):
    run = train_here(tiny(toy, tmp_path / "run", perceptual_weight=0.0, max_train_steps=1))
    (warning,) = json.loads((run / "run.json").read_text())["warnings"]
    assert warning.startswith("The discriminator joins after step 2000, and the run ends at step 1")


def test_training_lowers_the_error(toy, tmp_path):
    changes = {**NO_FROZEN_NETWORKS, "max_train_steps": 40, "checkpointing_steps": 40, "lr_scheduler": "constant"}
    changes |= {"train_batch_size": 4, "learning_rate": 1e-2}
    run = train_here(tiny(toy, tmp_path / "run", "vq", **changes, use_ema=False))
    lines = log_lines(run)
    assert lines[-1]["reconstruction"] < 0.6 * lines[0]["reconstruction"]
    assert "raw" not in " ".join(path.name for path in run.iterdir())


def test_crops_are_random_parts_of_photos_that_need_not_be_whole_cells(tmp_path):
    data = write_toy_dataset(tmp_path / "data", num_train=3, num_val=1, size=(18, 30), seed=0)
    settings = tiny(data, tmp_path / "run", random_crop="16", max_train_steps=1, **NO_FROZEN_NETWORKS)
    run = train_here(settings)
    results = json.loads((run / "results.json").read_text())
    assert results["reconstruction"]["num_photos"] == 1
    assert "in crops of 16 x 16 pixels" in (run / "README.md").read_text()
    assert whole_cells(torch.zeros(3, 18, 30), 4).shape == (3, 16, 28)


def test_a_run_may_start_from_another_autoencoder(trained, toy, tmp_path):
    changes = {**NO_FROZEN_NETWORKS, "max_train_steps": 1, "learning_rate": 1e-12, "lr_warmup_steps": 0}
    run = train_here(tiny(toy, tmp_path / "run", init_from=str(trained("kl")), **changes))
    one, other = weights(run), weights(trained("kl"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)
    with pytest.raises(ValueError, match="holds a AutoencoderKL; --kind tiny is AutoencoderTiny"):
        train_here(tiny(toy, tmp_path / "tiny", "tiny", init_from=str(trained("kl")), **changes))
    with pytest.raises(ValueError, match=r"--init_from .* has other layers: .* tensors differ"):
        train_here(tiny(toy, tmp_path / "wide", init_from=str(trained("kl")), **changes, latent_channels=3))


def correlations(one, other):
    """Return the correlation of two images, channel by channel."""
    return [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("widths", "groups"), [((8, 8, 8), 4), ((32, 64, 96), 16)])
def test_training_starts_from_the_average_colours_of_cells(toy, kind, widths, groups):
    if kind == "tiny":
        settings = tiny(toy, "run", kind, block_out_channels=widths[:1] * 3)
    else:
        settings = tiny(toy, "run", kind, block_out_channels=widths, norm_num_groups=groups)
    network = build_autoencoder(settings, (32, 64)).eval()
    image = F.interpolate(torch.rand(1, 3, 8, 16) * 2 - 1, scale_factor=4)  # cells of one colour each
    with torch.no_grad():
        latents, _ = encode(network, image)
        decode = partial(network.decode, force_not_quantize=True) if kind == "vq" else network.decode
        (reconstruction,) = decode(latents).sample
    assert min(correlations(latents[0, :3], F.avg_pool2d(image, 4)[0])) > 0.99
    assert min(correlations(reconstruction, image[0])) > 0.99
    assert 0.7 < reconstruction.std() / image.std() < 1.1


# Losses


def test_a_forward_pass_costs_what_its_latents_are_from_a_normal_distribution(toy):
    settings = tiny(toy, "run", kl_weight=1.0)
    torch.manual_seed(0)
    module = TrainedAutoencoder(build_autoencoder(settings, (16, 32)), settings)
    image = torch.rand(2, 3, 16, 32) * 2 - 1
    outputs = module(image, torch.zeros(2, 4, 4, 8))
    distribution = module.network.encode(image).latent_dist
    assert torch.equal(outputs.latents, distribution.mean)
    assert outputs.regularization.item() == pytest.approx(distribution.kl().mean().item() / (3 * 16 * 32), rel=1e-5)
    assert torch.equal(outputs.image, module.network.decode(distribution.mode()).sample)
    moved = module(image, torch.ones(2, 4, 4, 8))
    assert torch.allclose(moved.latents - outputs.latents, distribution.std)


def test_codes_and_latents_of_vq_are_pulled_to_each_other(toy):
    settings = tiny(toy, "run", "vq", commitment_weight=0.5)
    torch.manual_seed(0)
    module = TrainedAutoencoder(build_autoencoder(settings, (16, 32)), settings)
    image = torch.rand(2, 3, 16, 32) * 2 - 1
    outputs = module(image, torch.zeros(2, 4, 4, 8))
    codes = module.network.quantize.embedding.weight
    distances = torch.cdist(outputs.latents.permute(0, 2, 3, 1).flatten(0, 2), codes)
    assert torch.equal(distances.argmin(1), outputs.indices.flatten())
    chosen = codes[outputs.indices].permute(0, 3, 1, 2)
    expected = 1.5 * (outputs.latents - chosen).square().mean()
    assert outputs.regularization.item() == pytest.approx(expected.item(), rel=1e-5)
    outputs.regularization.backward()
    unused = torch.ones(16, dtype=torch.bool).index_fill(0, outputs.indices.flatten(), False)
    gradient = codes.grad
    assert (gradient[unused] == 0).all()
    assert (gradient[~unused] != 0).any()
    assert module.network.encoder.conv_in.weight.grad.abs().sum() > 0


def test_the_adaptive_weight_is_the_ratio_of_gradients_and_bounded():
    assert adaptive_weight(torch.full((4,), 3.0), torch.full((4,), 1.5)).item() == pytest.approx(2, rel=1e-3)
    assert adaptive_weight(torch.full((4,), 3.0), torch.zeros(4)).item() == pytest.approx(1e4)


def test_a_discriminator_without_masks_reads_features_alone():
    discriminator = Discriminator("projected", (48, 8))
    maps = [torch.randn(2, 48, 4, 4), torch.randn(2, 8, 2, 2)]
    assert [tuple(each.shape) for each in discriminator(maps)["projected"]] == [(2, 1, 2, 2), (2, 1, 4, 4)]


# The codebook


def test_use_and_perplexity_of_a_codebook_are_those_of_known_choices():
    counts = count_codes(torch.tensor([[0, 0, 1], [1, 3, 3]]), 8)
    assert counts.tolist() == [2, 2, 0, 2, 0, 0, 0, 0]
    assert used_share(counts) == 3 / 8
    assert perplexity(counts) == pytest.approx(3)


def test_dead_codes_move_to_latents_and_are_forgotten_by_optimizer_and_averages():
    codebook = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = torch.optim.AdamW([codebook], lr=0.1)
    codebook.grad = torch.ones(4, 2)
    optimizer.step()
    before, average = codebook.detach().clone(), torch.full((4, 2), 7.0)
    latents = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    dead = torch.tensor([True, False, True, False])
    assert revive(codebook, dead, latents, optimizer, [average], torch.Generator().manual_seed(0)) == 2
    moved = {tuple(row) for row in codebook[dead].tolist()}
    assert len(moved) == 2
    assert moved <= {tuple(row) for row in latents.tolist()}
    assert torch.equal(average[dead], codebook[dead].detach())
    assert torch.equal(codebook[~dead].detach(), before[~dead])
    assert (average[~dead] == 7).all()
    state = optimizer.state[codebook]
    assert (state["exp_avg"][dead] == 0).all()
    assert (state["exp_avg"][~dead] != 0).all()
    everything = torch.ones(4, dtype=torch.bool)
    assert revive(codebook, everything, latents, optimizer, [], torch.Generator()) == 3  # of more there are no latents
    assert len(choose_latents(latents, 2, torch.Generator())) == 2


def test_codes_revive_in_a_run_and_not_without(toy, tmp_path):
    settings = tiny(toy, tmp_path / "run", "vq", **NO_FROZEN_NETWORKS, codebook_size=256)
    alive = train_here(settings)
    dead = train_here(dataclasses.replace(settings, output_dir=str(tmp_path / "dead"), codebook_revival_steps=0))
    shares = [json.loads((run / "results.json").read_text())["reconstruction"]["codebook"] for run in (alive, dead)]
    assert shares[0]["used_share"] > 2 * shares[1]["used_share"]


# Measures


def test_latents_that_are_all_equal_are_refused(toy):
    network = build_autoencoder(tiny(toy, "run", "tiny"), (16, 32))
    for weight in network.encoder.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(ValueError, match="the latents of all photos are equal"):
        measure_latents(network, load_pairs(toy), 4)


# Refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind kll", r"--kind must be one of kl, vq, tiny; got 'kll'. Did you mean kl\?"),
        ("--downsample 3", "--downsample must be one of 2, 4, 8"),
        ("--downsample 8 --block_out_channels 32 64", "--downsample 8 halves .* needs 4 widths; got .* 32 64"),
        ("--kind tiny --block_out_channels 16 32 32", "--kind tiny has one width for all levels"),
        ("--block_out_channels 20 32 32", "--block_out_channels 20 is not a multiple of --norm_num_groups 16"),
        ("--random_crop 30", "--random_crop 30 is not a multiple of --downsample 4"),
        ("--codebook_size 16", "--codebook_size is for --kind vq"),
        ("--kind vq --kl_weight 1", "--kl_weight is for --kind kl and tiny"),
        ("--kind tiny --norm_num_groups 8", "--norm_num_groups is for --kind kl and vq"),
        ("--kind vq --gradient_checkpointing", "--gradient_checkpointing is for --kind kl"),
        ("--adversarial_weight 0 --discriminator_start 5", "--discriminator_start needs an --adversarial_weight"),
        ("--perceptual_weight 0 --perceptual_backbone x", "--perceptual_backbone needs a --perceptual_weight"),
        ("--random_crop 64", r"--random_crop expects images of 64 x 64 or more .* is 16 x 32"),
        ("--downsample 32", "are 16 x 32 pixels, which --downsample 32 does not divide. Give --random_crop"),
        ("--torch_compile eager", "--torch_compile needs --adversarial_weighting fixed"),
        ("--train_split nothing", "nothing"),
    ],
)
def test_bad_input_is_refused_in_one_line(toy, tmp_path, capsys, words, message):
    code = cli.main(["autoencoder", "--dataset", str(toy), "--output_dir", str(tmp_path / "run"), *words.split()])
    AcceleratorState._reset_state(reset_partial_state=True)
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "config.json").exists()


def test_photos_that_are_too_small_or_missing_are_refused(tmp_path, capsys):
    data = write_toy_dataset(tmp_path / "data", num_train=2, num_val=1, size=(16, 32), seed=0)
    for path in data.rglob("*.png"):
        with Image.open(path) as image:
            small = image.resize((16, 8), Image.Resampling.NEAREST)
        small.save(path)
    settings = tiny(data, tmp_path / "run", **NO_FROZEN_NETWORKS)
    pairs = load_pairs(data)
    with pytest.raises(ValueError, match="a side of 8 pixels; expected 11 or more"):
        build_inputs(settings, (pairs, pairs, None))
    (tmp_path / "empty").mkdir()
    words = ["--dataset", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main(["autoencoder", *words]) == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_run_is_resumed_with_its_own_settings_and_a_finished_folder_is_kept(trained, toy, tmp_path):
    run = trained("kl")
    settings = tiny(toy, run, **EVERYTHING)
    with pytest.raises(ValueError, match="already holds a run. Resume it with --resume_from_checkpoint latest"):
        train_here(settings)
    changed = dataclasses.replace(settings, resume_from_checkpoint="latest", kl_weight=1e-3, seed=1)
    with pytest.raises(ValueError, match=r"other settings: --kl_weight 1e-06 \(now 0.001\), --seed 0 \(now 1\)"):
        train_here(changed)
    loaded = diffusers.AutoencoderKL.from_pretrained(run)
    assert loaded.config.sample_size == 32
