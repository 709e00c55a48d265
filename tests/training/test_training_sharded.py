"""Training with weights in shards (accelerate's FSDP2): the same run as without, its files, what is refused."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend, FullyShardedDataParallelPlugin
from helpers.training_runs import (
    ROOT,
    command_line,
    finished,
    launch_two,
    losses,
    start,
    tiny_settings,
    train_here,
    weights,
)
from PIL import Image
from safetensors.torch import load_file

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.sharding import check_sharding, choose_layers


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
# accelerate shards on GPUs only: there `AcceleratorState` makes DistributedType.FSDP of MULTI_GPU. On CPUs its type is
# MULTI_CPU, and the request is dropped. These lines, which do what accelerate does for GPUs, are the whole difference
# between this run and one on GPUs; nothing of it is in the package.
SCRIPT = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from semseg_diffusers.training.train import main

begin = AcceleratorState.__init__

def begin_sharded(self, *arguments, fsdp_plugin=None, **options):
    begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin

AcceleratorState.__init__ = begin_sharded
if __name__ == "__main__":
    main()
"""
# The second process finds its rows of the last weight broken; the first one cannot see them.
BROKEN = """
import os
from semseg_diffusers.training import monitor as losses

parts_of = losses.own_parts

def broken_parts(network):
    parts = parts_of(network)
    if os.environ["RANK"] == "1":
        parts[-1].data.fill_(float("inf"))
    return parts

losses.own_parts = broken_parts
"""
STEPS = 3


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    write_toy_dataset(folder, num_train=6, num_val=2, size=(16, 32), seed=0)
    return folder


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("script") / "sharded.py"
    path.write_text(SCRIPT)
    return path


DEFAULT_STEM = {"stem_channels": 16, "norm_num_groups": 16}  # not for SDM's network, and tiny runs have others


def settings(toy, run, **changes):
    defaults = {
        "mixed_precision": "no",
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "attention_levels": 1,
        "attention_head_dim": 4,
        "mask_pyramid": True,
        "patch_size": 2,
        "dropout": 0.0,
        "max_train_steps": STEPS,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": STEPS,
        "ema_decays": (0.5, 0.2),
        "preview_steps": STEPS,
        "preview_masks": 1,
        "preview_samples": 1,
        "preview_inference_steps": 2,
    }
    return tiny_settings(toy, run, **{**defaults, **changes})


def launch_sharded(script, settings: TrainingSettings, processes: int = 2) -> subprocess.Popen:
    """Start processes by the configuration for GPUs."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "fsdp.yaml"]
    return start(*launcher, "--num_processes", processes, script, *command_line(settings))


@pytest.fixture(scope="module")
def plain(toy, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "plain"
    finished(launch_two(ROOT / "train_accelerate.py", settings(toy, run)))
    return run


@pytest.fixture(scope="module")
def sharded(toy, script, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "sharded"
    output = finished(launch_sharded(script, settings(toy, run)))
    assert "2 process(es) on cpu, 4 samples a step, weights in shards" in output
    assert (run / "checkpoint-3" / "pytorch_model_fsdp.bin").is_file()
    return run


def check_same(first: dict, second: dict, tolerance: float) -> None:
    assert list(first) == list(second)
    assert all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)


@pytest.mark.slow
def test_sharded_run_has_the_losses_and_weights_of_the_plain_one(plain, sharded):
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-4)
    for variant in ("", ".raw", ".ema_0_2"):
        file = f"unet/diffusion_pytorch_model{variant}.safetensors"
        check_same(load_file(sharded / file), load_file(plain / file), 1e-4)
    for file in ("unet/config.json", "model_index.json"):
        assert (sharded / file).read_text() == (plain / file).read_text()


@pytest.mark.slow
def test_averages_of_a_sharded_checkpoint_are_those_of_the_plain_one(plain, sharded):
    for name in ("ema", "ema_0_2"):
        file = f"checkpoint-2/{name}.safetensors"
        check_same(load_file(sharded / file), load_file(plain / file), 1e-4)


@pytest.mark.slow
def test_pipeline_of_a_sharded_run_draws_what_the_plain_one_draws(plain, sharded):
    mask = torch.zeros(16, 32, dtype=torch.uint8)
    images = []
    for run in (plain, sharded):
        pipeline = MaskGuidedDDPMPipeline.from_pretrained(run)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline(mask, num_inference_steps=2, generator=generator, output_type="np").images)
    assert np.abs(images[0] - images[1]).max() < 0.01


@pytest.mark.slow
def test_preview_of_all_processes_is_that_of_one(plain, sharded):
    grids = [np.asarray(Image.open(run / "previews" / "step-0000003.png"), dtype=int) for run in (plain, sharded)]
    assert grids[0].shape == grids[1].shape
    assert np.abs(grids[0] - grids[1]).max() <= 2  # of 255


@pytest.mark.slow
def test_resumed_sharded_run_equals_the_straight_one_bit_for_bit(toy, script, sharded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    for step in (2, 3):
        shutil.rmtree(run / f"checkpoint-{step}")
    output = finished(launch_sharded(script, settings(toy, run, resume_from_checkpoint="latest")))
    assert "checkpoint-1 at step 1" in output
    assert losses(run) == losses(sharded)
    for variant in ("", ".raw", ".ema_0_2"):
        file = f"unet/diffusion_pytorch_model{variant}.safetensors"
        check_same(load_file(run / file), load_file(sharded / file), 0)


@pytest.mark.slow
def test_sharded_run_goes_on_with_more_processes(toy, script, sharded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    shutil.rmtree(run / "checkpoint-3")
    # four rows or fewer in some weights: there are processes that hold nothing of them
    more = settings(toy, run, gradient_accumulation_steps=1, resume_from_checkpoint="latest")
    assert "4 process(es)" in finished(launch_sharded(script, more, processes=4))
    assert losses(run) == pytest.approx(losses(sharded), rel=1e-4)
    check_same(weights(run), weights(sharded), 1e-4)


@pytest.mark.slow
def test_checkpoint_of_shards_is_refused_by_a_run_without(toy, sharded):
    whole = settings(toy, sharded, train_batch_size=2, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"checkpoint-3 is of a run with weights in shards .* or begin a new one"):
        train_here(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "label_diffusion": True},
        {"network": "paper", "hidden_dim": 8, "emb_dim": 8, "mask_pyramid": False, "use_ema": False, "ema_decays": ()},
        {"network": "sdm", "block_out_channels": (32, 64), "mask_pyramid": False, **DEFAULT_STEM},
        {"mask_conditioning": "spade", "mixed_precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=["bf16_checkpointing_label_diffusion", "paper", "sdm", "spade"],
)
def test_other_networks_and_precisions_train_sharded_and_load(toy, script, tmp_path, options):
    run = tmp_path / "run"
    finished(launch_sharded(script, settings(toy, run, **options)))
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert (run / "previews" / "step-0000003.png").is_file()
    MaskGuidedDDPMPipeline.from_pretrained(run)(torch.zeros(16, 32, dtype=torch.uint8), num_inference_steps=1)


@pytest.mark.slow
def test_weights_that_are_not_finite_in_one_shard_end_every_process(toy, script, tmp_path):
    run = tmp_path / "run"
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN + script.read_text())
    process = launch_sharded(broken, settings(toy, run))
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "Weights are not finite at step 1" in output
    assert not list(run.glob("checkpoint-*"))


# Refusals


@pytest.mark.slow
def test_launch_on_cpus_is_refused_and_says_what_to_do(toy, tmp_path):
    process = launch_sharded(ROOT / "train_accelerate.py", settings(toy, tmp_path / "run"))
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "FSDP wants two or more GPUs, one process each; here are 2 process(es) on cpu" in output


def test_processes_without_gpus_are_refused_and_not_trained_whole_without_a_word(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # what `accelerate launch --use_fsdp` sets
    with pytest.raises(
        ValueError, match=r"FSDP wants two or more GPUs.* here are 1 process\(es\) on cpu.*--gradient_c"
    ):
        train_here(settings(toy, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def accelerator_with(monkeypatch):
    """Make an accelerator that shards, in a process alone: `accelerator_with(**options of the plugin)`."""
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):  # which the plugin sets
        monkeypatch.setenv(name, "false")

    def make(fsdp_version=2, state_dict_type="FULL_STATE_DICT", **options) -> Accelerator:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=fsdp_version, state_dict_type=state_dict_type, auto_wrap_policy="transformer_based_wrap",
            **options,
        )  # fmt: skip
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        return accelerator

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def test_first_version_of_fsdp_is_refused(toy, tmp_path, accelerator_with):
    with pytest.raises(ValueError, match=r"FSDP version 1 is not built: give fsdp_version: 2, as in configs/acc"):
        check_sharding(settings(toy, tmp_path), accelerator_with(fsdp_version=1))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type: SHARDED_STATE_DICT"),
        ({"cpu_offload": True}, "fsdp_offload_params"),
        ({"activation_checkpointing": True}, r"fsdp_activation_checkpointing \(take --gradient_checkpointing\)"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configuration_that_is_not_built_is_refused_by_name(toy, tmp_path, accelerator_with, options, name):
    with pytest.raises(ValueError, match=rf"do not go with {name}\. Leave that out; .*fsdp\.yaml"):
        check_sharding(settings(toy, tmp_path), accelerator_with(**options))


@pytest.mark.parametrize("option", ["channels_last", "fused_optimizer"])
def test_option_that_does_not_go_with_shards_is_refused_by_name(toy, tmp_path, accelerator_with, option):
    with pytest.raises(ValueError, match=rf"Weights in shards \(FSDP\) do not go with --{option}\. Leave"):
        check_sharding(settings(toy, tmp_path, **{option: True}), accelerator_with())


def test_compiling_does_not_go_with_shards(toy, tmp_path, accelerator_with):
    accelerator = accelerator_with()
    accelerator.state.dynamo_plugin.backend = DynamoBackend.EAGER  # as `--torch_compile` or accelerate's launcher say
    with pytest.raises(ValueError, match=r"do not go with --torch_compile\."):
        check_sharding(settings(toy, tmp_path), accelerator)


def test_deepspeed_is_refused(toy, tmp_path, accelerator_with):
    accelerator = accelerator_with()
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(ValueError, match=r"DeepSpeed is not built: .* is FSDP, by configs/accelerate/fsdp\.yaml"):
        check_sharding(settings(toy, tmp_path), accelerator)


def test_layers_of_the_configuration_are_those_that_the_network_has(tiny_unet, accelerator_with):
    accelerator = accelerator_with(transformer_cls_names_to_wrap=["ResnetBlock2D", "DoubleConv"])
    choose_layers(accelerator, tiny_unet)
    assert accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == ["ResnetBlock2D"]


def test_configuration_without_any_layer_of_the_network_is_refused(tiny_unet, accelerator_with):
    accelerator = accelerator_with(transformer_cls_names_to_wrap=["DoubleConv"])
    with pytest.raises(
        ValueError, match=r"names DoubleConv, and MaskGuidedUNet2DModel has none of them\. Name layers"
    ):
        choose_layers(accelerator, tiny_unet)
