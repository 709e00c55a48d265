"""How a run is told to end early: signals of a scheduler or a person, agreed between the processes of a run.

A handler only remembers the signal. The loop asks after each optimizer step, saves a checkpoint and leaves.
"""

import os
import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator


# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")
LAUNCHER_GONE = -1  # beside the signals' numbers


class TrainingStoppedError(Exception):
    """The run was told to end, and has saved a checkpoint.

    Args:
        reason: what told it.
        step: optimizer steps done.
        exit_code: what the process should end with: 128 + the signal's number, as shells count.
    """

    def __init__(self, reason: str, step: int, exit_code: int):
        super().__init__(f"stopped by {reason} after step {step}")
        self.reason, self.step, self.exit_code = reason, step, exit_code


class StopRequest:
    """Context in which signals that mean "end" are remembered instead of ending the process.

    Args:
        accelerator: of the run; all its processes must ask `agreed` equally often.

    Ctrl-C counts in a run of one process; a second Ctrl-C interrupts at once. `accelerate launch` of one process hands
    no signal on to the process that it started, so there the launcher's end counts as well.
    """

    def __init__(self, accelerator: Accelerator):
        self._number = 0
        self._before: dict[int, object] = {}
        self._group = None
        if accelerator.num_processes > 1 and torch.distributed.is_initialized():
            # a group of its own on the CPU, so that asking never waits for the accelerator's queue of work
            self._group = torch.distributed.new_group(backend="gloo")
        self._handled = [
            getattr(signal, name) for name in SIGNALS if hasattr(signal, name)
        ]  # Windows has SIGTERM only
        if accelerator.num_processes == 1:
            self._handled.append(signal.SIGINT)
        launched = accelerator.num_processes == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched else None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
            for number in self._handled:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._number = self._number or number
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def agreed(self) -> bool:
        """Whether any process was told to end. Called by every process, after the same steps."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._number = self._number or LAUNCHER_GONE
        if self._group is not None:
            number = torch.tensor(self._number)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            self._number = int(number)
        return self._number != 0

    def stopped(self, step: int) -> TrainingStoppedError:
        """The exception that carries reason and exit code, once `agreed`."""
        if self._number == LAUNCHER_GONE:
            return TrainingStoppedError("the end of the process that launched it", step, 128 + signal.SIGTERM)
        return TrainingStoppedError(signal.Signals(self._number).name, step, 128 + self._number)


def shield_worker(_index: int) -> None:
    """Let a reading process outlive a signal that its whole group got: the run still needs it for its last step.

    A second one ends it, so that nothing waits for a reader that hangs.
    """
    for name in (*SIGNALS, "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _let_one_pass)


def _let_one_pass(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
