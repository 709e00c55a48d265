"""Hardware options of a run: processes, precision, compilation, memory format, optimizer kernels.

They change only the speed: losses are those of a run without them, up to rounding, and a checkpoint can be resumed
with any of them changed, except the precision.
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
from accelerate.utils import (
    DistributedType,
    DynamoBackend,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
)

from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.training.settings import LoopSettings
from semseg_diffusers.utils.distributed import launched_processes, uses_cpu


# How long a process waits for the others: while the first one downloads a dataset, or samples a preview.
TIMEOUT = datetime.timedelta(hours=6)
CPU_COMPILERS = ("g++", "clang++", "c++", "cl")


def build_accelerator(settings: LoopSettings, run: Path, trackers: list[str]) -> Accelerator:
    """Return the accelerator of a run; accelerate's configuration sets what the settings leave open."""
    accelerator = Accelerator(
        cpu=uses_cpu(settings.device),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        dynamo_plugin=TorchDynamoPlugin(backend=settings.torch_compile) if settings.torch_compile else None,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if (launched := launched_processes()) != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but this one is in a group of {accelerator.num_processes}: each "
            "would train alone into the same folder. Check the configuration of accelerate (`accelerate env`)."
        )
    check_hardware(settings, accelerator)
    return accelerator


def check_hardware(settings: LoopSettings, accelerator: Accelerator) -> None:
    """Refuse what this machine cannot do before anything is read."""
    device = accelerator.device.type
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if sharded or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "Sharded training (FSDP, DeepSpeed) is not supported: these networks fit on one GPU. Use "
            "configs/accelerate/several_gpus.yaml; --gradient_checkpointing, --mixed_precision bf16 and a smaller "
            "--train_batch_size with --gradient_accumulation_steps save memory."
        )
    if settings.allow_tf32 and not (device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)):
        raise ValueError(
            f"--allow_tf32 needs an NVIDIA GPU of the Ampere generation or newer; this run is on {device}. Leave it "
            "out; --mixed_precision bf16 makes such a run faster if the processor supports it."
        )
    if accelerator.mixed_precision == "fp16" and device == "cpu":  # accelerate ignores it silently
        raise ValueError(
            "--mixed_precision fp16 needs a GPU; this run is on cpu. Use bf16 if the processor supports it, or no."
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.INDUCTOR:
        return
    if device == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), *CPU_COMPILERS)):
        raise ValueError(
            "Compiling the network for the CPU needs a C++ compiler, and none is on the PATH (g++, clang++). "
            "Install one (Debian: apt-get install g++), set CXX, or leave out --torch_compile."
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("Compiling the network for the GPU needs triton: pip install triton, or --torch_compile no.")


def check_regions(accelerator: Accelerator, network: torch.nn.Module) -> None:
    """Refuse regional compilation of a list of layers with an empty entry, as the middle block without attention."""
    plugin = accelerator.state.dynamo_plugin
    lists = (module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    block_by_block = plugin.backend != DynamoBackend.NO and plugin.use_regional_compilation
    if block_by_block and any(layer is None for layers in lists for layer in layers):
        raise ValueError(
            "accelerate cannot compile this network block by block: its middle block has no attention. Turn "
            "regional compilation off (`accelerate config`), or give --attention_levels 1 or more."
        )


@contextlib.contextmanager
def matrix_precision(settings: LoopSettings) -> Iterator[None]:
    """Use TF32 inside the block, if the settings say so, for matrix products; convolutions use it by default."""
    before = torch.get_float32_matmul_precision()
    if settings.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def build_optimizer(settings: LoopSettings, network: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW over the trained weights of a network, fused into one kernel with `fused_optimizer`."""
    return torch.optim.AdamW(
        trained_weights(network),
        lr=learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
        fused=True if settings.fused_optimizer else None,  # None: torch chooses, never fused
    )


def fit_optimizer_state(settings: LoopSettings, optimizer: torch.optim.Optimizer) -> None:
    """Adapt loaded optimizer state to this run's kernels; the fused one needs moments laid out as the weights."""
    for group in optimizer.param_groups:
        group["fused"] = True if settings.fused_optimizer else None
        for weight in group["params"]:
            state = optimizer.state[weight]
            if not state:  # it had no gradient yet, as a discriminator that joins later
                continue
            state["step"] = state["step"].to(weight.device if settings.fused_optimizer else "cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(weight, requires_grad=False).copy_(state[name])


def save_contiguous(accelerator: Accelerator) -> None:
    """Make checkpoints store contiguous weights: safetensors refuses channels-last ones."""

    def make_contiguous(_models: list, weights: list[dict], _folder: str) -> None:
        for tensors in weights:
            for name, tensor in tensors.items():
                tensors[name] = tensor.contiguous()

    accelerator.register_save_state_pre_hook(make_contiguous)


def to_device(batch: dict, device: torch.device, channels_last: bool) -> dict:
    """Move a batch to the device; masks travel as ids and become one-hot in the network.

    Images become channels-last on GPUs only. On the CPU the weights alone decide the format of what follows, and
    torch's backward pass of a strided 1x1 convolution corrupts memory for a channels-last image.
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
