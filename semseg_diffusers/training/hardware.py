"""How a run uses its hardware: processes, precision, compilation, memory format, kernels of the optimizer.

None of it changes what is learned, only how fast: a run with any of it has the losses of one without, up to rounding,
and a checkpoint of the one goes on as the other. Weights in shards, whose checkpoints are of their own, stand in
`sharding.py`.
"""

import contextlib
import datetime
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, ProjectConfiguration, TorchDynamoPlugin

from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.sharding import check_sharding, trained_weights
from semseg_diffusers.utils.distributed import uses_cpu


# How long a process waits for the others: while the first one downloads a data set, or draws a preview.
PATIENCE = datetime.timedelta(hours=6)
CPU_COMPILERS = ("g++", "clang++", "c++", "cl")


def build_accelerator(settings: TrainingSettings, run: Path, trackers: list[str]) -> Accelerator:
    """The accelerator of a run. What the settings leave open, `accelerate config` and `accelerate launch` say.

    Args:
        settings: of the run.
        run: run folder; trackers write to `logs` in it.
        trackers: names of accelerate's trackers, checked; may be empty.

    Raises:
        ValueError: what is asked for does not work on this machine, or not together.
    """
    accelerator = Accelerator(
        cpu=uses_cpu(settings.device),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        dynamo_plugin=TorchDynamoPlugin(backend=settings.torch_compile) if settings.torch_compile else None,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_hardware(settings, accelerator)
    return accelerator


def check_hardware(settings: TrainingSettings, accelerator: Accelerator) -> None:
    """Refuse what this machine cannot do before anything is read.

    Raises:
        ValueError: what `check_sharding` says, TF32 or float16 without a GPU that has it, a compiler that is missing.
    """
    device = accelerator.device.type
    check_sharding(settings, accelerator)
    if settings.allow_tf32 and not (device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)):
        raise ValueError(
            f"--allow_tf32 wants an NVIDIA GPU of the Ampere generation or newer; this run is on {device}. Leave it "
            "out; --mixed_precision bf16 is what makes such a run faster, where the processor has bfloat16."
        )
    if accelerator.mixed_precision == "fp16" and device == "cpu":  # accelerate forgets it without a word
        raise ValueError(
            "--mixed_precision fp16 wants a GPU; this run is on cpu. Take bf16, where the processor has it, or no."
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.INDUCTOR:
        return
    if device == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), *CPU_COMPILERS)):
        raise ValueError(
            "Compiling the network for the CPU wants a C++ compiler, and there is none on the PATH (g++, clang++). "
            "Install one (Debian: apt-get install g++), name it by CXX, or leave out --torch_compile."
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("Compiling the network for the GPU wants triton: pip install triton, or --torch_compile no.")


def check_regions(accelerator: Accelerator, network: torch.nn.Module) -> None:
    """Refuse to compile a network block by block (accelerate's regional compilation) where accelerate cannot.

    Raises:
        ValueError: a list of layers holds a place without one, as the middle block does without attention.
    """
    plugin = accelerator.state.dynamo_plugin
    lists = (module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    block_by_block = plugin.backend != DynamoBackend.NO and plugin.use_regional_compilation
    if block_by_block and any(layer is None for layers in lists for layer in layers):
        raise ValueError(
            "accelerate cannot compile this network block by block: its middle block has no attention. Switch "
            "regional compilation off (`accelerate config`), or give --attention_levels 1 or more."
        )


@contextlib.contextmanager
def matrix_precision(settings: TrainingSettings) -> Iterator[None]:
    """Let float32 matrix products of the GPU round their factors to TF32 inside the block, where the settings say so.

    Convolutions do so anyway, by torch's default.
    """
    before = torch.get_float32_matmul_precision()
    if settings.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def build_optimizer(settings: TrainingSettings, network: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW over a network's weights that are trained; with `fused_optimizer` all of a step in one kernel."""
    return torch.optim.AdamW(
        trained_weights(network),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
        fused=True if settings.fused_optimizer else None,  # None: torch's own choice, never fused
    )


def fit_optimizer_state(settings: TrainingSettings, optimizer: torch.optim.Optimizer) -> None:
    """Give what a checkpoint brought the kernels and the memory layout of this run; the values stay.

    `load_state_dict` takes over the saved run's choice of kernels, and moments laid out like its weights; the fused
    kernel reads weights and moments as if they were laid out alike.
    """
    for group in optimizer.param_groups:
        group["fused"] = True if settings.fused_optimizer else None
        for weight in group["params"]:
            state = optimizer.state[weight]
            state["step"] = state["step"].to(weight.device if settings.fused_optimizer else "cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(weight, requires_grad=False).copy_(state[name])


def save_contiguous(accelerator: Accelerator) -> None:
    """Have every checkpoint of the accelerator hold plain weights: safetensors refuses those of `channels_last`."""

    def lay_out(_models: list, weights: list[dict], _folder: str) -> None:
        for tensors in weights:
            for name, tensor in tensors.items():
                tensors[name] = tensor.contiguous()

    accelerator.register_save_state_pre_hook(lay_out)


def to_device(batch: dict, device: torch.device, channels_last: bool) -> dict:
    """Move a batch to the device: ids, not one-hot maps, so that the network makes those there.

    Images become channels-last on GPUs only. On the CPU the convolutions' weights alone decide the format of what
    follows, and torch's backward pass corrupts memory for a strided 1x1 convolution of a channels-last image.
    """
    moved = {}
    for name, value in batch.items():
        if not torch.is_tensor(value):
            moved[name] = value
            continue
        is_image = channels_last and value.ndim == 4 and device.type != "cpu"
        memory_format = torch.channels_last if is_image else torch.preserve_format
        moved[name] = value.to(device, non_blocking=True, memory_format=memory_format)
    return moved
