"""The losses of one logging interval, kept on the device, and the end of a run whose loss is not one any more."""

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

from semseg_diffusers.training.checkpoints import list_checkpoints
from semseg_diffusers.training.sharding import is_sharded, own_parts


# Targets have unit variance (noise, velocity) or less (images), so a network that says 0 everywhere has a loss near 1:
# a mean ten times that over an interval is worse than no network.
DIVERGENCE_FACTOR = 10.0


class TrainingDivergedError(ValueError):
    """The loss or the weights are not finite, or the loss exploded; every process of a run raises it."""


class LossMonitor:
    """Collects the loss of each forward pass without waiting for the device, and looks at all of them together.

    Args:
        accelerator: of the run.
        run: run folder; its newest checkpoint is what a message names.
        accumulation: forward passes an optimizer step.
        largest_weight: the largest weight that a sample's loss can have.
    """

    def __init__(self, accelerator: Accelerator, run: Path, accumulation: int, largest_weight: float = 1.0):
        self.accelerator = accelerator
        self.run = run
        self.accumulation = accumulation
        self.limit = DIVERGENCE_FACTOR * max(1.0, largest_weight)
        self._turns: list[tuple[int, torch.Tensor, list[str]]] = []
        self._last_stems: list[str] = []  # of the interval's last step

    def add(self, turn: int, loss: torch.Tensor, stems: list[str]) -> None:
        """Keep the loss of forward pass `turn` (counted from 0 since the run's start) and the pairs it saw."""
        self._turns.append((turn, loss.detach().float(), stems))

    def mean(self) -> float:
        """Mean over the interval and all processes; starts the next interval. Called by every process.

        Raises:
            TrainingDivergedError: with the first step at fault, the stems of its batch and the last good checkpoint.
        """
        turns, self._turns = self._turns, []
        self._last_stems = self._stems_of(turns[-1][0], turns)
        local = torch.stack([loss for _, loss, _ in turns])  # (turns,)
        losses = self.accelerator.gather(local).reshape(-1, len(turns)).cpu()  # (processes, turns)
        mean = losses.mean().item()
        if math.isfinite(mean) and mean <= self.limit:
            return mean
        at_fault = (~(losses <= self.limit)).any(dim=0)  # a NaN is not smaller than anything
        first = int(at_fault.int().argmax())
        turn, worst = turns[first][0], losses[:, first]
        stems = self._stems_of(turn, turns)
        value = next((loss for loss in worst.tolist() if not loss <= self.limit), worst.max().item())
        raise self._diverged(f"The loss is {value:g}", turn // self.accumulation + 1, gather_object(stems))

    def _stems_of(self, turn: int, turns: list[tuple[int, torch.Tensor, list[str]]]) -> list[str]:
        """What this process saw in all the forward passes of the optimizer step that a turn is of."""
        step = turn // self.accumulation
        return [stem for other, _, stems in turns if other // self.accumulation == step for stem in stems]

    def check_weights(self, network: torch.nn.Module, step: int) -> None:
        """Refuse to go on with weights that are not finite: a checkpoint of them would be no good one.

        Called by every process, after `mean`.

        Raises:
            TrainingDivergedError: with the step, the stems of its last batch and the last good checkpoint.
        """
        maxima = [part.detach().abs().max() for part in own_parts(network) if part.numel()]
        if is_sharded(network):  # a process sees its own part, which may be nothing
            own = torch.stack([torch.zeros((), device=self.accelerator.device), *maxima]).max()
            maxima = [self.accelerator.gather(own)]
        largest = torch.stack(maxima).max()
        if not torch.isfinite(largest):
            raise self._diverged("Weights are not finite", step, gather_object(self._last_stems))

    def _diverged(self, what: str, step: int, stems: list[str]) -> TrainingDivergedError:
        shown = sorted(set(stems))
        names = ", ".join(shown[:16]) + (f" and {len(shown) - 16} more" if len(shown) > 16 else "")
        whole = list_checkpoints(self.run)
        last = f"The last good checkpoint is {whole[-1]}" if whole else "There is no checkpoint yet"
        return TrainingDivergedError(
            f"{what} at step {step}, whose batch held {names}. {last}. Look at these pairs; if they are sound, start "
            "again with a lower --learning_rate, or set --max_grad_norm."
        )


logger = get_logger(__name__)

MAX_DATA_WAIT = 0.1  # share of an interval without data that is worth a word
# Characters of a socket's path that Linux takes, less what multiprocessing appends: /pymp-XXXXXXXX/listener-XXXXXXXX.
LONGEST_FOLDER = 107 - len("/pymp-/listener-") - 2 * 8


def check_temporary_folder(num_workers: int) -> None:
    """Refuse a temporary folder whose path is too long for the sockets by which processes hand over batches.

    Without this the batch is lost in the process that read it, and the training waits for it without a word.

    Raises:
        ValueError: naming the folder and what to do.
    """
    folder = tempfile.gettempdir()
    if num_workers and sys.platform == "linux" and len(folder) > LONGEST_FOLDER:
        raise ValueError(
            f"the temporary folder '{folder}' has {len(folder)} characters; processes that read data want one of at "
            f"most {LONGEST_FOLDER}. Set TMPDIR to a shorter one, or give --dataloader_num_workers 0."
        )


class DataTimer:
    """Goes through batches once and adds up the seconds until each came; it never waits for the device.

    On a GPU, whose work is queued, the network can have waited less than the loop did, never more.

    Args:
        batches: what is gone through.
    """

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self._seconds = 0.0
        self._intervals = 0
        self._told = False

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._seconds += time.monotonic() - begin
            yield batch

    def share_of(self, seconds: float) -> float:
        """Share of an interval that was spent waiting, 0 to 1; starts the next interval.

        Warns once of a network that goes hungry. The first interval tells nothing: reading processes start in it, and
        every pair is decoded for the first time.

        Args:
            seconds: length of the interval.
        """
        share, self._seconds = self._seconds / seconds, 0.0
        self._intervals += 1
        if share > MAX_DATA_WAIT and self._intervals > 1 and not self._told:
            self._told = True
            logger.warning(
                f"The network waited for data {share:.0%} of the last interval. Raise --dataloader_num_workers, or "
                "--decoded_gigabytes where the pairs do not all fit."
            )
        return share
