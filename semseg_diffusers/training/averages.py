"""Exponential averages of the weights, of one length or several at once, on diffusers' `EMAModel`.

The decay warms up with power 3/4 (crowsonkb's notes in `EMAModel`): it reaches 0.999 at 10,000 steps. A short average
follows the network closely, a long one is smoother and needs a longer run; which is best shows only afterwards.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from semseg_diffusers.training.settings import TrainingSettings


RAW = "raw"  # variant of the network's own weights, without averaging


def variant_name(decay: float) -> str:
    """What the weight files of an average are called: diffusers' `variant`, which holds no dot.

    Example:
        >>> variant_name(0.9999)
        'ema_0_9999'
    """
    return f"ema_{decay:.10f}".rstrip("0").rstrip(".").replace(".", "_")


class WeightAverages:
    """Averages of the weights of one network; the first is the one that previews and the saved pipeline draw with.

    Args:
        network: whose weights they start from; unwrapped.
        settings: `ema_lengths`, one or more, and warm-up and first step of all of them.
    """

    def __init__(self, network: torch.nn.Module, settings: TrainingSettings):
        self.averages = {
            variant_name(decay): EMAModel(
                network.parameters(),
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

    def step(self, network: torch.nn.Module) -> None:
        """Take the weights of one more optimizer step into each average."""
        for average in self.averages.values():
            average.step(network.parameters())

    @contextlib.contextmanager
    def applied(self, network: torch.nn.Module) -> Iterator[None]:
        """Let the network have the first average inside the block, and its own weights back afterwards."""
        self.first.store(network.parameters())
        self.first.copy_to(network.parameters())
        try:
            yield
        finally:
            self.first.restore(network.parameters())

    def variants(self, network: torch.nn.Module) -> Iterator[str]:
        """Put one kind of weights after another into the network, and yield its name: `raw`, its own, comes first.

        Then come the further averages. Afterwards the network holds the first average, for good.
        """
        yield RAW
        for name, average in list(self.averages.items())[1:]:
            average.copy_to(network.parameters())
            yield name
        self.first.copy_to(network.parameters())

    # Checkpoints

    def save(self, folder: Path) -> dict:
        """Write each average into a checkpoint's folder; return what else `load` needs, as JSON values."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            save_file(
                {f"{index:05d}": weight.contiguous() for index, weight in enumerate(average.shadow_params)}, file
            )
        return {"ema_step": self.first.optimization_step}

    def load(self, folder: Path, state: dict) -> None:
        """Take over what `save` wrote."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = load_file(file)
            for shadow, (_, weight) in zip(average.shadow_params, sorted(weights.items()), strict=True):
                shadow.copy_(weight)
            average.optimization_step = state["ema_step"]

    def _files(self, folder: Path) -> list[Path]:
        """`ema.safetensors` is the first average, as in runs that have one only."""
        return [folder / f"{name}.safetensors" for name in ("ema", *list(self.averages)[1:])]
