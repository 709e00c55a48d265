"""A control branch trained on a pretrained network: what stays, what is learned, whose schedule holds, refusals."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.training_runs import (
    SCRIPT,
    finished,
    launch_two,
    losses,
    parse_training,
    train_here,
    weights,
)
from safetensors.torch import load_file

from semseg_diffusers import LabelSet, MaskControlNetModel, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.base_model import load_base, load_first_weights
from semseg_diffusers.training.networks import EMA, build_network
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import control_defaults


# diffusers turns sigmas to numpy in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RUN = {
    "train_batch_size": 2,
    "max_train_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
    "preview_steps": 0,
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "learning_rate": 1e-2,
    "dataloader_num_workers": 0,
    "device": "cpu",
}
TINY = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "dropout": 0.1,
}


def tiny_base(seed: int = 0, **settings) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**TINY, **settings})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_dataset(folder, num_train=4, num_val=1, size=(16, 16), seed=0)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline as diffusers' unconditional example saves it: it predicts noise, over 100 timesteps of the cosine."""
    folder = tmp_path_factory.mktemp("base") / "ddpm"
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(tiny_base(), scheduler).save_pretrained(folder)
    return folder


def parse(*words) -> TrainingSettings:
    return parse_training("--dataset", "d", "--output_dir", "o", *words)


def control_settings(dataset, output_dir, base, **changes) -> TrainingSettings:
    given = {**control_defaults(str(base)), **RUN, **changes}
    return TrainingSettings(dataset=str(dataset), output_dir=str(output_dir), base_model=str(base), **given)


@pytest.fixture(scope="module")
def straight(toy, base, tmp_path_factory):
    return train_here(control_settings(toy, tmp_path_factory.mktemp("runs") / "straight", base))


# A run


def test_the_base_stays_as_it_is_and_the_branch_learns(straight, base):
    theirs = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    ours, raw = weights(straight), load_file(straight / "unet" / "diffusion_pytorch_model.raw.safetensors")
    for found in (ours, raw):
        assert all(torch.equal(found[name], value) for name, value in theirs.items())
        assert {name.split(".")[0] for name in set(found) - set(theirs)} == {"control"}
    assert any(not torch.equal(ours[name], raw[name]) for name in ours)  # the average is of what was learned
    for name, weight in raw.items():
        if name.startswith("control.zero_conv"):
            assert weight.any(), name  # they started at zero


def test_what_is_saved_is_an_ordinary_pipeline_with_the_schedule_of_the_base(straight):
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.unet, MaskControlNetModel)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.num_train_timesteps == 100
    assert torch.equal(
        pipe.scheduler.alphas_cumprod,
        DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2").alphas_cumprod,
    )
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    images = [
        pipe(mask, num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt", conditioning_scale=scale)
        for scale in (None, 0.0)
    ]
    assert not torch.equal(images[0].images, images[1].images)
    card = (straight / "README.md").read_text()
    assert "| network | MaskControlNetModel on `ddpm`, which is frozen" in card
    assert "| prediction, schedule | epsilon, the base's schedule, 100 timesteps |" in card


def test_a_resumed_run_is_the_straight_one(straight, toy, base, tmp_path):
    train_here(control_settings(toy, tmp_path / "run", base, max_train_steps=1))
    moved = shutil.copytree(base, tmp_path / "moved")
    again = control_settings(toy, tmp_path / "run", moved, resume_from_checkpoint="latest")
    found = weights(train_here(again))
    assert all(torch.equal(value, found[name]) for name, value in weights(straight).items())
    assert losses(tmp_path / "run") == losses(straight)


def test_a_checkpoint_holds_the_base_once_and_no_moments_or_average_of_it(straight, base):
    checkpoint = straight / "checkpoint-2"
    network = load_file(checkpoint / "model.safetensors")
    trained = {name for name in network if name.startswith("control.")}
    assert len(load_file(checkpoint / "ema.safetensors")) == len(trained)
    moments = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    assert len(moments) == len(trained)


def test_a_run_on_another_base_is_not_resumed(straight, toy, base, tmp_path):
    run = shutil.copytree(straight, tmp_path / "run")
    other = shutil.copytree(base, tmp_path / "other")
    tiny_base(seed=1).save_pretrained(other / "unet")
    again = control_settings(toy, run, other, max_train_steps=3, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"belongs to a run on another model: the weights of --base_model differ"):
        train_here(again)


def test_gradient_checkpointing_changes_no_weight(straight, toy, base, tmp_path):
    run = train_here(control_settings(toy, tmp_path / "run", base, gradient_checkpointing=True))
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=0, atol=5e-5, msg=name)


def test_where_every_mask_is_dropped_nothing_is_learned(toy, base, tmp_path):
    run = train_here(control_settings(toy, tmp_path / "run", base, mask_dropout=1.0, adam_weight_decay=0.0))
    assert all(not value.any() for name, value in weights(run).items() if "zero_conv" in name)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_stays_running")
def test_two_processes_learn_what_one_does(toy, tmp_path):
    DDPMPipeline(tiny_base(dropout=0.0), DDPMScheduler()).save_pretrained(tmp_path / "base")
    alone, together = (
        control_settings(toy, tmp_path / str(batch), tmp_path / "base", train_batch_size=batch) for batch in (4, 2)
    )
    finished(launch_two(SCRIPT, together))
    assert losses(tmp_path / "2") == pytest.approx(losses(train_here(alone)), rel=1e-4)
    theirs = load_file(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights(tmp_path / "2")[name], value) for name, value in theirs.items())


# First weights


def test_a_run_begins_from_the_branch_of_another_and_keeps_its_own_base(straight, toy, base, tmp_path):
    settings = control_settings(toy, tmp_path / "run", base, init_from=str(straight), learning_rate=1e-12)
    run = train_here(settings)
    for name, value in weights(straight).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_branch_of_another_base_is_taken_with_a_warning(straight, caplog):
    PartialState()  # accelerate's logging asks for it
    pipe = MaskGuidedDDPMPipeline.from_pretrained(straight)
    labels = LabelSet.from_config(pipe.unet.config)
    unet = MaskControlNetModel.from_unet(tiny_base(seed=1), num_classes=labels.num_classes, **labels.to_config())
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        kept, without_place = load_first_weights(unet, str(straight))
    assert (kept, without_place) == ([], [])
    assert "its base differs from --base_model" in caplog.text
    after, theirs = unet.state_dict(), weights(straight)
    for name, value in after.items():
        assert torch.equal(value, theirs[name] if name.startswith("control.") else before[name]), name


# Settings


def test_a_base_decides_the_network_and_the_schedule(base):
    settings = parse("--base_model", base)
    assert (settings.network, settings.noise_schedule, settings.mask_dropout) == ("control", "base", 0)
    assert (settings.prediction_type, settings.num_train_timesteps) == ("epsilon", 100)
    assert parse("--base_model", base, "--mask_dropout", "0.3").mask_dropout == 0.3
    assert parse("--base_model", "none").network == "mask_guided"


def test_a_base_of_a_yaml_file_decides_as_well(base, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({"base_model": str(base), "num_train_timesteps": 100}))
    assert parse("--config", tmp_path / "run.yaml").network == "control"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prediction_type", "v_prediction"], "--prediction_type v_prediction contradicts .*trained with epsilon"),
        (["--num_train_timesteps", "1000"], "--num_train_timesteps 1000 contradicts .*, which was trained with 100"),
        (["--noise_schedule", "linear"], "--noise_schedule linear contradicts .* its own betas. Omit the option"),
    ],
)
def test_options_that_contradict_the_base_are_refused_by_name(base, words, message):
    with pytest.raises(ValueError, match=message):
        load_base(parse("--base_model", base, *words))


def test_a_schedule_that_the_base_has_may_be_named(base):
    assert load_base(parse("--base_model", base, "--noise_schedule", "squaredcos_cap_v2")).noise_scheduler is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "control"], "--network control needs a pretrained network: give --base_model"),
        (["--noise_schedule", "base"], "--noise_schedule base needs --base_model"),
        (["--base_class_label", "1"], "--base_class_label is not for --network mask_guided, which has no base"),
    ],
)
def test_settings_without_a_base_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("block_out_channels", "8", "whose layers are those of --base_model"),
        ("attention_levels", "1", "whose layers are those of --base_model"),
        ("dropout", "0.5", "whose layers are those of --base_model"),
        ("patch_size", "1", "whose layers have no such setting"),
        ("mask_conditioning", "concat", "whose layers have no such setting"),
        ("mask_pyramid", "true", "which stays as it was published"),
        ("label_diffusion", "true", "which stays as it was published"),
    ],
)
def test_options_of_other_networks_are_refused(base, option, value, reason):
    with pytest.raises(ValueError, match=f"--{option} is not for --network control, {reason}"):
        parse("--base_model", base, f"--{option}", value)


def test_a_base_is_refused_for_other_networks(base):
    with pytest.raises(ValueError, match="--base_model is not for --network sdm, which has no base"):
        parse("--base_model", base, "--network", "sdm")
    with pytest.raises(ValueError, match="--base_model is not for --network paper"):
        parse("--base_model", base, "--preset", "paper")


# Bases


def loaded(folder, *words):
    return load_base(parse("--base_model", folder, *words))


def test_a_network_without_a_scheduler_takes_that_of_the_options(toy, tmp_path, caplog):
    tiny_base().save_pretrained(tmp_path / "base")
    settings = control_settings(toy, tmp_path / "run", tmp_path / "base", max_train_steps=1, prediction_type="sample")
    with caplog.at_level(logging.WARNING):
        run = train_here(settings)
    assert "No scheduler was found beside the weights of --base_model: it is assumed to predict sample" in caplog.text
    assert MaskGuidedDDPMPipeline.from_pretrained(run).scheduler.config.prediction_type == "sample"
    with pytest.raises(ValueError, match="--noise_schedule base: no .* was found beside the weights"):
        loaded(tmp_path / "base", "--noise_schedule", "base")


def test_old_repositories_with_all_at_the_root_are_read(base, tmp_path):
    shutil.copytree(base / "unet", tmp_path, dirs_exist_ok=True)
    shutil.copy(base / "scheduler" / "scheduler_config.json", tmp_path)
    shutil.copy(base / "model_index.json", tmp_path)
    found = loaded(tmp_path)
    assert found.noise_scheduler.config.num_train_timesteps == 100
    assert torch.equal(found.unet.conv_in.weight, tiny_base().conv_in.weight)


def test_a_pickle_of_weights_is_read_as_tensors_only(base, tmp_path):
    tiny_base().save_pretrained(tmp_path, safe_serialization=False)
    assert torch.equal(loaded(tmp_path).unet.conv_in.weight, tiny_base().conv_in.weight)


def test_images_are_not_clipped_in_the_making(tmp_path):
    DDPMPipeline(tiny_base(), DDPMScheduler(clip_sample=True)).save_pretrained(tmp_path)
    assert loaded(tmp_path).noise_scheduler.config.clip_sample is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 4, "out_channels": 4}, "it takes 4 channels, and images have 3"),
        ({"out_channels": 6}, "it outputs 6 channels for 3, like networks with learned variance"),
        ({"class_embed_type": "identity"}, "it takes class embeddings as vectors"),
        ({"num_class_embeds": 7}, "it is class-conditional: give the label of 0 to 6 .* --base_class_label"),
    ],
)
def test_a_base_that_cannot_be_trained_on_is_refused(settings, message, tmp_path):
    tiny_base(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path)


def test_a_class_conditional_base_is_told_its_label_in_training_and_in_sampling(toy, tmp_path):
    DDPMPipeline(tiny_base(num_class_embeds=7), DDPMScheduler()).save_pretrained(tmp_path / "base")
    settings = control_settings(toy, tmp_path / "run", tmp_path / "base", max_train_steps=1, base_class_label=5)
    pipe = MaskGuidedDDPMPipeline.from_pretrained(train_here(settings))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.base_class_label == 5
    mask, options = torch.zeros(16, 16, dtype=torch.uint8), {"num_inference_steps": 2, "output_type": "pt"}
    images = [
        pipe(mask, generator=torch.manual_seed(0), class_labels=label, **options).images for label in (None, 5, 1)
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize(("label", "message"), [(7, "the base has classes 0 to 6"), (-1, "has classes 0 to 6")])
def test_a_label_that_the_base_does_not_know_is_refused(label, message):
    with pytest.raises(ValueError, match=message):
        MaskControlNetModel.from_unet(tiny_base(num_class_embeds=7), base_class_label=label)


def test_a_label_for_an_unconditional_base_is_refused(base):
    settings = parse("--base_model", base, "--base_class_label", "1")
    with pytest.raises(ValueError, match="the base has no class embedding by index: omit it"):
        build_network(settings, LabelSet.from_preset("camvid"), (16, 16), base=load_base(settings).unet)


def test_a_network_that_reads_masks_is_no_base(straight, tmp_path):
    MaskGuidedUNet2DModel(**TINY, num_classes=5).save_pretrained(tmp_path / "unet")
    for folder, kind in ((tmp_path, "MaskGuidedUNet2DModel"), (straight, "MaskControlNetModel")):
        with pytest.raises(ValueError, match=f"its network is a {kind}; .*continue its training with --init_from"):
            loaded(folder)


def test_a_network_of_latents_is_no_base(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "ldm")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="it generates latents, which its vqvae decodes"):
        loaded(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "is of a ScoreSdeVeScheduler, which has its own noise levels"),
        ({"beta_schedule": "linear", "prediction_type": "flow"}, "it predicts flow .*; expected one of epsilon"),
    ],
)
def test_a_schedule_that_cannot_be_trained_with_is_refused(config, message, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        parse("--base_model", folder)


def test_folders_that_hold_no_network_and_files_that_are_torn_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="has neither unet/config.json nor config.json"):
        loaded(tmp_path)
    with pytest.raises(ValueError, match="there is no folder './nowhere', and it is not a model id"):
        loaded("./nowhere")
    folder = shutil.copytree(base, tmp_path / "torn")
    weights_file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    with pytest.raises(ValueError, match="its weights cannot be read"):
        loaded(folder)
    weights_file.unlink()
    with pytest.raises(ValueError, match="its weights cannot be read"):
        loaded(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON: .* Is it complete\?"):
        loaded(folder)


def test_data_of_another_size_is_taken_with_a_warning_or_refused(base, tmp_path, caplog):
    write_toy_dataset(tmp_path / "wide", num_train=2, num_val=1, size=(16, 32), seed=0)
    with caplog.at_level(logging.WARNING):
        run = train_here(control_settings(tmp_path / "wide", tmp_path / "run", base, max_train_steps=1))
    assert "--base_model was trained at 16 x 16 pixels, and this run sees 16 x 32" in caplog.text
    assert tuple(MaskControlNetModel.from_pretrained(run, subfolder="unet").config.sample_size) == (16, 32)
    settings = control_settings("d", "o", base)
    with pytest.raises(ValueError, match="needs multiples of 2. .* or use another --base_model"):
        build_network(settings, LabelSet.from_preset("camvid"), (16, 15), base=tiny_base())


def test_averages_keep_the_trained_weights_alone(base):
    unet = build_network(control_settings("d", "o", base), LabelSet.from_preset("camvid"), (16, 16), base=tiny_base())
    averages = EMA(unet, control_settings("d", "o", base))
    assert sum(weight.numel() for weight in averages.first.shadow_params) == sum(
        weight.numel() for weight in unet.control.parameters()
    )


FROM_THE_HUB = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers.training_runs import train_here
from training.test_base_model import control_settings, parse
from semseg_diffusers.training.base_model import load_base
run = train_here(control_settings(sys.argv[2], sys.argv[3], "alice/streets", max_train_steps=1))
assert (run / "unet" / "unet_mask_control.py").is_file()
for name in ("alice/nothing", "alice/nowhere"):
    try:
        load_base(parse("--base_model", name))
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_base_of_the_hub_is_downloaded(toy, base, hub, tmp_path, clean_process):
    files = {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    hub.add_repo("alice/streets", files)
    hub.add_repo("alice/nothing", {"README.md": b"# nothing"})
    arguments = (str(Path(__file__).parents[1]), str(toy), str(tmp_path / "run"))
    done = clean_process(FROM_THE_HUB, *arguments, environment=hub.environment(tmp_path / "home"))
    assert "ValueError --base_model alice/nothing: it has neither unet/config.json" in done.stdout
    assert "HubError --base_model: loading the model 'alice/nowhere'" in done.stdout
