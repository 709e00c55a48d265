"""Exponential moving averages of the weights, one or several at once, on diffusers' `EMAModel`.

The decay warms up with power 3/4 (crowsonkb's notes in `EMAModel`): it reaches 0.999 at 10,000 steps. A short average
follows the network closely; a long one is smoother and needs a longer run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.training.settings import TrainingSettings


RAW = "raw"  # variant of the weights without averaging


def variant_name(decay: float) -> str:
    """Return the diffusers `variant` of an average, which may not contain a dot.

    Example:
        >>> variant_name(0.9999)
        'ema_0_9999'
    """
    return f"ema_{decay:.10f}".rstrip("0").rstrip(".").replace(".", "_")


class EMA:
    """Averages of the trained weights of a network; the first is used for previews and the saved pipeline.

    Args:
        network: unwrapped network whose weights they start from.
        settings: `ema_lengths`, one or more, and warm-up and first step of all of them.
    """

    def __init__(self, network: torch.nn.Module, settings: TrainingSettings):
        self.averages = {
            variant_name(decay): EMAModel(
                trained_weights(network),
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
        """Update each average after an optimizer step."""
        weights = trained_weights(network)
        for average in self.averages.values():
            average.step(weights)

    @contextlib.contextmanager
    def swapped_in(self, network: torch.nn.Module) -> Iterator[None]:
        """Put the first average into the network inside the block, and its own weights back afterwards."""
        weights = trained_weights(network)
        self.first.store(weights)
        self.first.copy_to(weights)
        try:
            yield
        finally:
            self.first.restore(weights)

    def variants(self, network: torch.nn.Module) -> Iterator[str]:
        """Put one set of weights after another into the network and yield its name: `raw`, then further averages.

        Afterwards the network keeps the first average.
        """
        yield RAW
        for name, average in list(self.averages.items())[1:]:
            average.copy_to(trained_weights(network))
            yield name
        self.first.copy_to(trained_weights(network))

    def save(self, folder: Path) -> dict:
        """Write the averages into a checkpoint's folder; return what else `load` needs, as JSON values."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = {f"{index:05d}": weight.contiguous() for index, weight in enumerate(average.shadow_params)}
            save_file(weights, file)
        return {"ema_step": self.first.optimization_step}

    def load(self, folder: Path, state: dict) -> None:
        """Restore what `save` wrote."""
        for average, file in zip(self.averages.values(), self._files(folder), strict=True):
            weights = [weight for _, weight in sorted(load_file(file).items())]
            for shadow, weight in zip(average.shadow_params, weights, strict=True):
                shadow.copy_(weight)
            average.optimization_step = state["ema_step"]

    def _files(self, folder: Path) -> list[Path]:
        """Return the files of the averages; the first is `ema.safetensors`, also in runs with a single one."""
        return [folder / f"{name}.safetensors" for name in ("ema", *list(self.averages)[1:])]
