"""Weights in pieces: accelerate's FSDP2, where each process holds a part of every weight, of its gradient, moments and
average. Here stands what of its configuration a run takes, and how pieces become whole again and go back.

In torch a piece is a `DTensor` (`torch.distributed.tensor`), and a sharded module an `FSDPModule`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, StateDictType
from torch.distributed.tensor import DTensor, distribute_tensor

from semseg_diffusers.training.settings import TrainingSettings


CONFIGURATION = "configs/accelerate/fsdp.yaml"


def check_sharding(settings: TrainingSettings, accelerator: Accelerator) -> None:
    """Refuse what cannot be sharded, or not as it is asked for; a run that shards nothing passes.

    Raises:
        ValueError: DeepSpeed, FSDP's first version, no GPUs to share, an option that does not go with shards.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed is not built: averages, previews and checkpoints would need ways of their own. What shards "
            f"weights, gradients, moments and averages is FSDP, by {CONFIGURATION}."
        )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if accelerator.distributed_type != DistributedType.FSDP:
        if asked:  # accelerate forgets it without a word, and every process would hold the whole network
            raise ValueError(
                f"FSDP wants two or more GPUs, one process each; here are {accelerator.num_processes} process(es) on "
                f"{accelerator.device.type}, and accelerate would not shard. What saves memory there is "
                "--gradient_checkpointing, --mixed_precision bf16, and a smaller --train_batch_size with "
                "--gradient_accumulation_steps."
            )
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} is not built: give fsdp_version: 2, as in {CONFIGURATION}."
        )
    refused = {
        # main writes one file that any number of processes can read, and hashes it
        "fsdp_state_dict_type: SHARDED_STATE_DICT": plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing (take --gradient_checkpointing)": plugin.activation_checkpointing,
        "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
        "fsdp_ignored_modules": plugin.ignored_modules is not None,
        "parallelism_config": accelerator.parallelism_config is not None,
        "--channels_last": settings.channels_last,  # torch shards contiguous weights only
        "--torch_compile": accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "--fused_optimizer": settings.fused_optimizer,
    }
    if found := [option for option, is_on in refused.items() if is_on]:
        raise ValueError(
            f"Weights in shards (FSDP) do not go with {', '.join(found)}. Leave that out; the configuration that is "
            f"meant is {CONFIGURATION}."
        )


def choose_layers(accelerator: Accelerator, network: torch.nn.Module) -> None:
    """Have FSDP gather weights layer by layer, by those of the configuration's layers that the network has.

    accelerate itself refuses a configuration that names a layer too many, as `Attention` is for a network without.

    Raises:
        ValueError: the network has none of them.
    """
    plugin = accelerator.state.fsdp_plugin
    asked = plugin.transformer_cls_names_to_wrap
    if asked is None:  # by size, or the whole network at once
        return
    kinds = {type(module).__name__ for module in network.modules()}
    plugin.transformer_cls_names_to_wrap = [name for name in asked if name in kinds]
    if not plugin.transformer_cls_names_to_wrap:
        raise ValueError(
            f"fsdp_transformer_layer_cls_to_wrap names {', '.join(asked)}, and {type(network).__name__} has none of "
            f"them. Name layers that it has, as {CONFIGURATION} does."
        )


def is_sharded(network: torch.nn.Module) -> bool:
    """Whether this process holds only its part of each weight."""
    return isinstance(network, FSDPModule)


def trained_weights(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that are trained: all, but for those of a base that stays as it is."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def own_parts(network: torch.nn.Module) -> list[torch.Tensor]:
    """What this process holds of each trained weight of a network, in place.

    A part is empty where a weight has fewer rows than there are processes. Parts are plain tensors, because not all of
    torch's operations on lists of tensors, which the averages stand on, know DTensors.
    """
    with torch.enable_grad():  # outside of it a part forgets that it is trained
        return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained_weights(network)]


def whole_tensors(parts: Sequence[torch.Tensor], shards: Sequence[DTensor], keep: bool) -> list[torch.Tensor]:
    """Put parts together on the CPU, one tensor at a time. Called by every process.

    Args:
        parts: what this process holds of each tensor.
        shards: weights that are cut up as those tensors are.
        keep: whether this process wants them.

    Returns:
        whole tensors, or none where they are not kept.
    """
    whole = []
    for part, shard in zip(parts, shards, strict=True):
        tensor = DTensor.from_local(
            part, shard.device_mesh, shard.placements, shape=shard.shape, stride=shard.stride()
        ).full_tensor()
        if keep:
            whole.append(tensor.cpu())
    return whole


def part_of(whole: torch.Tensor, shard: DTensor) -> torch.Tensor:
    """What this process holds of a tensor that is cut up as a weight is. Called by every process, with all of it."""
    return distribute_tensor(whole.to(shard.device), shard.device_mesh, shard.placements).to_local()


@contextlib.contextmanager
def ready_to_sample(network: torch.nn.Module) -> Iterator[None]:
    """Let every process sample with a sharded network inside the block; others need nothing for it.

    Weights are gathered when `forward` begins, too late for `encode_mask`. So all are whole at the beginning. Layers
    give theirs up again after their first pass, and gather them for each further one; what stands outside of layers,
    which `encode_mask` of a fading mask reads at every step, stays whole.
    """
    shards = [module for module in network.modules() if isinstance(module, FSDPModule)]
    if shards:
        network.set_reshard_after_forward(False, recurse=False)  # as torch has it for the outermost module by itself
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()


def whole_network(accelerator: Accelerator, network: torch.nn.Module) -> torch.nn.Module:
    """The network with all its weights, on the CPU of the main process. Called by every process.

    Returns:
        in the main process a network of the class that it had before it was sharded; elsewhere, and where nothing is
        sharded, the network as it is.
    """
    if not is_sharded(network):
        return network
    weights = accelerator.get_state_dict(network)  # whole in the main process, empty in the others
    if not accelerator.is_main_process:
        return network
    plain = next(kind for kind in type(network).__mro__[1:] if not issubclass(kind, FSDPModule))
    copy = plain.from_config(network.config)
    copy.load_state_dict(weights)
    return copy
