"""Stop a run early on a signal, in all of its processes after the same step.

A handler only records the signal. The loop asks after each optimizer step, saves a checkpoint and stops.
"""

import contextlib
import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

from semseg_diffusers.utils.distributed import Launcher, final_barrier
from semseg_diffusers.utils.signals import SIGNALS, route_signals


LAUNCHER_GONE = 1000  # beside the signals' numbers
SHIELDED_SECONDS = 60  # longer than launchers let a process live after SIGTERM


class TrainingStoppedError(Exception):
    """The run was asked to stop, and has saved a checkpoint.

    Args:
        reason: the signal, or the end of the launcher.
        step: optimizer steps done.
        exit_code: 128 + the signal's number, as in shells.
    """

    def __init__(self, reason: str, step: int, exit_code: int):
        super().__init__(f"stopped by {reason} after step {step}")
        self.reason, self.step, self.exit_code = reason, step, exit_code


class StopRequest:
    """Context in which termination signals are recorded instead of ending the process.

    The end of the launcher counts as well, and Ctrl-C in a run of one process; a second Ctrl-C interrupts at once.

    Args:
        accelerator: of the run; all its processes must call `requested` equally often.
    """

    def __init__(self, accelerator: Accelerator):
        self._number = 0
        self._accelerator = accelerator
        self._launcher = Launcher()
        self._handled = SIGNALS if accelerator.num_processes > 1 else (*SIGNALS, signal.SIGINT)
        self._group = None
        if accelerator.num_processes > 1 and torch.distributed.is_initialized():
            # a separate group on the CPU, so that asking never waits for the accelerator's queue
            self._group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "StopRequest":
        self._handlers = contextlib.ExitStack()
        self._handlers.enter_context(route_signals(self._remember, self._handled))
        return self

    def __exit__(self, *_exception) -> None:
        self._handlers.close()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._number = self._number or number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def requested(self) -> bool:
        """Return whether any process was asked to stop. Called by every process, after the same steps."""
        if self._launcher.is_gone:
            self._number = self._number or LAUNCHER_GONE
        if self._group is not None:
            number = torch.tensor(self._number)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            self._number = int(number)
        return self._number != 0

    def shutdown(self) -> None:
        """End trackers and leave the process group. Called by every process at the end of the run."""
        if self._group is None or final_barrier(self._group):
            self._accelerator.end_training()
        else:  # a broken group cannot be left in order
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def stopped(self, step: int) -> TrainingStoppedError:
        """Return the exception with reason and exit code, once `requested`."""
        if self._number == LAUNCHER_GONE:
            return TrainingStoppedError("the end of the process that launched it", step, 128 + signal.SIGTERM)
        return TrainingStoppedError(signal.Signals(self._number).name, step, 128 + self._number)


def ignore_signals(_index: int) -> None:
    """Make a data loading process ignore signals sent to its process group: the run needs it for its last step.

    Schedulers and launchers send them repeatedly. After a minute a signal ends it, so that a hanging worker does not
    stay.
    """
    first: list[float] = []

    def let_pass(number: int, _frame: FrameType | None) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] > SHIELDED_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, let_pass)
