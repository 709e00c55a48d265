"""Exponential averages of the weights, of one length or several at once, on diffusers' `EMAModel`.

The decay warms up with power 3/4 (crowsonkb's notes in `EMAModel`): it reaches 0.999 at 10,000 steps. A short average
follows the network closely, a long one is smoother and needs a longer run; which is best shows only afterwards.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.sharding import is_sharded, own_parts, part_of, trained_weights, whole_tensors


RAW = "raw"  # variant of the network's own weights, without averaging


def variant_name(decay: float) -> str:
    """What the weight files of an average are called: diffusers' `variant`, which holds no dot.

    Example:
        >>> variant_name(0.9999)
        'ema_0_9999'
    """
    return f"ema_{decay:.10f}".rstrip("0").rstrip(".").replace(".", "_")


class EMA:
    """Averages of the trained weights of a network; the first is what previews and the saved pipeline draw with.

    Args:
        network: whose weights they start from; unwrapped. Of a sharded one each process averages its own part.
        settings: `ema_lengths`, one or more, and warm-up and first step of all of them.
    """

    def __init__(self, network: torch.nn.Module, settings: TrainingSettings):
        self.averages = {
            variant_name(decay): EMAModel(
                own_parts(network),
                decay=decay,
                min_decay=0.0 if settings.ema_warmup else decay,
                update_after_step=settings.ema_start_step,
                use_ema_warmup=settings.ema_warmup,
                power=3 / 4,
                foreach=True,
            )
            for decay in settings.ema_lengths
        }
        self.first = next(iter(self.averages.values()))
        self.shards = trained_weights(network) if is_sharded(network) else []  # how the averages are cut up as well

    def step(self, network: torch.nn.Module) -> None:
        """Take the weights of one more optimizer step into each average."""
        weights = own_parts(network)
        for average in self.averages.values():
            average.step(weights)

    @contextlib.contextmanager
    def applied(self, network: torch.nn.Module) -> Iterator[None]:
        """Let the network have the first average inside the block, and its own weights back afterwards."""
        weights = own_parts(network)
        self.first.store(weights)
        self.first.copy_to(weights)
        try:
            yield
        finally:
            self.first.restore(weights)

    def variants(self, network: torch.nn.Module) -> Iterator[str]:
        """Put one kind of weights after another into the network, and yield its name: `raw`, its own, comes first.

        Then come the further averages. Afterwards the network holds the first average, for good.
        """
        yield RAW
        for name, average in list(self.averages.items())[1:]:
            average.copy_to(trained_weights(network))
            yield name
        self.first.copy_to(trained_weights(network))

    def gathered(self, keep: bool) -> "EMA":
        """The averages of whole weights, to be saved; of a sharded network, every process must call it.

        Args:
            keep: whether this process saves them; elsewhere what is returned holds nothing.

        Returns:
            these averages, or a copy on the CPU where each process has a part only.
        """
        if not self.shards:
            return self
        whole = copy.copy(self)
        whole.averages = {name: copy.copy(average) for name, average in self.averages.items()}
        for average in whole.averages.values():
            average.shadow_params = whole_tensors(average.shadow_params, self.shards, keep)
        whole.first = next(iter(whole.averages.values()))
        return whole

    # Checkpoints

    def save(self, folder: Path) -> dict:
        """Write each average, whole, into a checkpoint's folder; return what else `load` needs, as JSON values."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            save_file(
                {f"{index:05d}": weight.contiguous() for index, weight in enumerate(average.shadow_params)}, file
            )
        return {"ema_step": self.first.optimization_step}

    def load(self, folder: Path, state: dict) -> None:
        """Take over what `save` wrote. Called by every process."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = load_file(file)
            whole = [weight for _, weight in sorted(weights.items())]
            if self.shards:
                whole = [part_of(weight, shard) for weight, shard in zip(whole, self.shards, strict=True)]
            for shadow, weight in zip(average.shadow_params, whole, strict=True):
                shadow.copy_(weight)
            average.optimization_step = state["ema_step"]

    def _files(self, folder: Path) -> list[Path]:
        """`ema.safetensors` is the first average, as in runs that have one only."""
        return [folder / f"{name}.safetensors" for name in ("ema", *list(self.averages)[1:])]
