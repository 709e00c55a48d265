"""Watch a run: the losses of a logging interval, its divergence, and the time spent waiting for data."""

import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from semseg_diffusers.reports.run_folder import list_checkpoints
from semseg_diffusers.training.networks import trained_weights


logger = get_logger(__name__)

# Targets have unit variance (noise, velocity) or less (images), so a network that predicts 0 has a loss near 1: a mean
# ten times that over an interval means divergence.
DIVERGENCE_FACTOR = 10.0
MAX_DATA_WAIT = 0.1  # share of an interval spent waiting for data that is worth a warning
# Characters that Linux allows for a socket's path, less what multiprocessing adds: /pymp-XXXXXXXX/listener-XXXXXXXX.
LONGEST_FOLDER = 107 - len("/pymp-/listener-") - 2 * 8


class TrainingDivergedError(ValueError):
    """The loss or the weights are not finite, or the loss exploded; raised in every process of a run."""


class LossMonitor:
    """Collect the loss of each forward pass without waiting for the device, and check them together.

    Args:
        accelerator: of the run.
        run: run folder; messages name its newest checkpoint.
        accumulation: forward passes per optimizer step.
        largest_weight: the largest weight that a sample's loss can have.
    """

    def __init__(self, accelerator: Accelerator, run: Path, accumulation: int, largest_weight: float = 1.0):
        self.accelerator = accelerator
        self.run = run
        self.accumulation = accumulation
        self.limit = DIVERGENCE_FACTOR * max(1.0, largest_weight)
        self._losses: list[tuple[int, torch.Tensor, list[str]]] = []  # (micro step, loss, stems)
        self._last_stems: list[str] = []  # of the interval's last step

    def add(self, micro_step: int, loss: torch.Tensor, stems: list[str]) -> None:
        """Keep the loss of a forward pass (counted from 0 since the run's start) and the pairs it saw."""
        self._losses.append((micro_step, loss.detach().float(), stems))

    def mean(self) -> float:
        """Return the mean over the interval and all processes, and start the next interval. Called by every process.

        Raises:
            TrainingDivergedError: with the first step at fault, the stems of its batch and the last good checkpoint.
        """
        passes, self._losses = self._losses, []
        self._last_stems = self._stems_of(passes[-1][0], passes)
        local = torch.stack([loss for _, loss, _ in passes])  # (passes,)
        losses = self.accelerator.gather(local).reshape(-1, len(passes)).cpu()  # (processes, passes)
        mean = losses.mean().item()
        if math.isfinite(mean) and mean <= self.limit:
            return mean
        at_fault = (~(losses <= self.limit)).any(dim=0)  # a NaN is not smaller than anything
        first = int(at_fault.int().argmax())
        micro_step, worst = passes[first][0], losses[:, first]
        stems = self._stems_of(micro_step, passes)
        value = next((loss for loss in worst.tolist() if not loss <= self.limit), worst.max().item())
        raise self._diverged(f"The loss is {value:g}", micro_step // self.accumulation + 1, gather_object(stems))

    def _stems_of(self, micro_step: int, passes: list[tuple[int, torch.Tensor, list[str]]]) -> list[str]:
        """Return what this process saw in all forward passes of the optimizer step of a micro step."""
        step = micro_step // self.accumulation
        return [stem for other, _, stems in passes if other // self.accumulation == step for stem in stems]

    def check_weights(self, network: torch.nn.Module, step: int) -> None:
        """Refuse to continue with weights that are not finite. Called by every process, after `mean`.

        Raises:
            TrainingDivergedError: with the step, the stems of its last batch and the last good checkpoint.
        """
        largest = torch.stack([weight.detach().abs().max() for weight in trained_weights(network)]).max()
        if not torch.isfinite(largest):
            raise self._diverged("Weights are not finite", step, gather_object(self._last_stems))

    def _diverged(self, what: str, step: int, stems: list[str]) -> TrainingDivergedError:
        shown = sorted(set(stems))
        names = ", ".join(shown[:16]) + (f" and {len(shown) - 16} more" if len(shown) > 16 else "")
        checkpoints = list_checkpoints(self.run)
        last = f"The last good checkpoint is {checkpoints[-1]}" if checkpoints else "There is no checkpoint yet"
        return TrainingDivergedError(
            f"{what} at step {step}, whose batch held {names}. {last}. Check these pairs; if they are fine, start "
            "again with a lower --learning_rate, or set --max_grad_norm."
        )


def check_temporary_folder(num_workers: int) -> None:
    """Refuse a temporary folder whose path is too long for the sockets of data loading processes.

    Without this check the batch is lost in the worker process, and training waits for it forever.

    Raises:
        ValueError: naming the folder and what to do.
    """
    folder = tempfile.gettempdir()
    if num_workers and sys.platform == "linux" and len(folder) > LONGEST_FOLDER:
        raise ValueError(
            f"the temporary folder '{folder}' has {len(folder)} characters; worker processes need one of at most "
            f"{LONGEST_FOLDER}. Set TMPDIR to a shorter one, or give --dataloader_num_workers 0."
        )


class DataTimer:
    """Iterate over batches and add up the seconds spent waiting for them; it never waits for the device.

    On a GPU, whose work is queued, the network can have waited less than the loop did, never more.
    """

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self._seconds = 0.0
        self._intervals = 0
        self._warned = False

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._seconds += time.monotonic() - start
            yield batch

    def share_of(self, seconds: float) -> float:
        """Return the share of an interval of `seconds` spent waiting, 0 to 1, and start the next interval.

        Warns once if it is large. The first interval does not count: worker processes start in it, and every pair is
        decoded for the first time.
        """
        share, self._seconds = self._seconds / seconds, 0.0
        self._intervals += 1
        if share > MAX_DATA_WAIT and self._intervals > 1 and not self._warned:
            self._warned = True
            logger.warning(
                f"The network waited for data {share:.0%} of the last interval. Raise --dataloader_num_workers, or "
                "--decoded_gigabytes if not all pairs fit."
            )
        return share
