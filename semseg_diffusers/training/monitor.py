"""Watch a run: its losses and their divergence, the time spent waiting for data, and signals that ask it to stop."""

import contextlib
import math
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from semseg_diffusers.reports.run_folder import list_checkpoints
from semseg_diffusers.training.networks import trained_weights
from semseg_diffusers.utils.distributed import Launcher, final_barrier
from semseg_diffusers.utils.signals import SIGNALS, route_signals


logger = get_logger(__name__)

# Targets have unit variance (noise, velocity) or less (images), so a network that predicts 0 has a loss near 1: a mean
# ten times that over an interval means divergence.
DIVERGENCE_FACTOR = 10.0
MAX_DATA_WAIT = 0.1  # share of an interval spent waiting for data that is worth a warning
LAUNCHER_GONE = 1000  # beside the signals' numbers
SHIELDED_SECONDS = 60  # longer than launchers let a process live after SIGTERM


class TrainingDivergedError(ValueError):
    """The loss or the weights are not finite, or the loss exploded; raised in every process of a run."""


class LossMonitor:
    """Collect losses, `accumulation` of them a step, without waiting for the device, and check them together."""

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
        """Return the mean over the interval and all processes, and start the next. Called by every process."""
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
        """Refuse to continue with weights that are not finite. Called by every process, after `mean`."""
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


class DataTimer:
    """Iterate over batches and add up the seconds that the loop, not always a GPU with queued work, waits for them."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self._seconds, self._intervals, self._has_warned = 0.0, 0, False

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
        """Return the share of an interval of `seconds` spent waiting, and start the next; warn once if it is large."""
        share, self._seconds = self._seconds / seconds, 0.0
        self._intervals += 1
        # not in the first, when worker processes start and every pair is decoded for the first time
        if share > MAX_DATA_WAIT and self._intervals > 1 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"The network waited for data {share:.0%} of the last interval. Raise --dataloader_num_workers, or "
                "--decoded_gigabytes if not all pairs fit."
            )
        return share


class TrainingStoppedError(Exception):
    """The run was asked to stop by a signal (or `LAUNCHER_GONE`), and has saved a checkpoint."""

    def __init__(self, number: int, step: int):
        self.reason, self.exit_code = "the end of the process that launched it", 128 + signal.SIGTERM
        if number != LAUNCHER_GONE:
            self.reason, self.exit_code = signal.Signals(number).name, 128 + number  # as in shells
        super().__init__(f"stopped by {self.reason} after step {step}")


class StopRequest:
    """Context that records termination signals, the launcher's end and Ctrl-C; a second Ctrl-C interrupts at once."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator, self._launcher = accelerator, Launcher()
        self.number = 0  # of the signal, or `LAUNCHER_GONE`; 0 as long as there is none
        self._group = None
        if accelerator.num_processes > 1 and torch.distributed.is_initialized():
            # a separate group on the CPU, so that asking never waits for the accelerator's queue
            self._group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "StopRequest":
        handled = SIGNALS if self._accelerator.num_processes > 1 else (*SIGNALS, signal.SIGINT)
        self._handlers = contextlib.ExitStack()
        self._handlers.enter_context(route_signals(self._remember, handled))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._handlers.close()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def requested(self) -> bool:
        """Return whether any process was asked to stop. Called by every process, after the same steps."""
        if self._launcher.is_gone:
            self.number = self.number or LAUNCHER_GONE
        if self._group is not None:
            number = torch.tensor(self.number)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            self.number = int(number)
        return self.number != 0

    def shutdown(self) -> None:
        """End trackers and leave the process group. Called by every process at the end of the run."""
        if self._group is None or final_barrier(self._group):
            self._accelerator.end_training()
        else:  # a broken group cannot be left in order
            for tracker in self._accelerator.trackers:
                tracker.finish()


def ignore_signals(_index: int) -> None:
    """Make a data loading process ignore signals for a minute: the run needs it for its last step."""
    first: list[float] = []

    def let_pass(number: int, _frame: FrameType | None) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > SHIELDED_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, let_pass)
