"""How the processes of one launch work as one: each takes its share, and what one refuses ends all of them.
Built on accelerate's `PartialState`. Only words travel between the processes, never tensors."""

import contextlib
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object


T = TypeVar("T")

# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGHUP")
# How long a process may wait for the others: as long as their shares may take them. Dead ones are noticed at once.
PATIENCE = datetime.timedelta(days=2)


class OtherProcessError(RuntimeError):
    """Another process of the launch has failed and said why; this one has only to end."""


@dataclass(frozen=True)
class Processes:
    """The processes that work on one output: this one alone, or those that a launcher started (`join_processes`)."""

    count: int = 1
    index: int = 0  # of this process; 0 is the main one
    launcher: int | None = None  # id of the process that started this one and must live on; None: nobody

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, items: list[T]) -> list[T]:
        """Return what this process takes of a list that all have: every n-th, so that shares differ by one at most."""
        return items[self.index :: self.count]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes in their order.

        Raises:
            OtherProcessError: where one has ended meanwhile.
        """
        if self.count == 1:
            return [value]
        try:
            return gather_object([value])
        except RuntimeError as err:  # gloo: connection closed by peer
            raise OtherProcessError("another process of this launch has ended early") from err

    def agree(self, task: Callable[[], T]) -> T:
        """Do a task in every process; return its result once all have done it.

        Raises:
            ValueError, OSError: the task's own, in the first process where it failed.
            OtherProcessError: in the other processes, once that one has said why and ended.
        """
        if self.count == 1:
            return task()
        result = error = None
        try:
            result = task()
        except (ValueError, OSError) as err:
            error = err
        failed = [index for index, has_failed in enumerate(self.gather(error is not None)) if has_failed]
        if not failed:
            return result
        if failed[0] == self.index:
            raise error
        # A launcher ends all processes as soon as one has ended: the one that speaks must be the first. It never
        # answers this, so the call returns, with an error, when it is gone.
        self.gather(None)
        raise AssertionError("a process that has failed goes on")

    def end_with_launcher(self) -> None:
        """End this process if its launcher is gone: one that is killed cannot take its processes with it.

        Raises:
            OtherProcessError: the launcher has ended.
        """
        if self.launcher is not None and os.getppid() != self.launcher:
            raise OtherProcessError("the launcher of this process has ended")


def join_processes(device: str | None = None) -> tuple[Processes, torch.device]:
    """Join the processes that `accelerate launch` or `torchrun` started; without a launcher there is this one alone.

    Args:
        device: as given by the user; None for one of its own for each process, where there are accelerators.

    Returns:
        the processes, and the device of this one.

    Raises:
        ValueError: a device that cannot be had by each process, or processes that cannot find each other.
    """
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    under_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    launcher = os.getppid() if launched > 1 or under_accelerate else None
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    wants_cpu = use_cpu if device is None else torch.device(device).type == "cpu"
    if launched == 1:
        default = "cpu" if wants_cpu or not torch.cuda.is_available() else "cuda"
        return Processes(launcher=launcher), torch.device(device or default)

    cpu = wants_cpu or not torch.accelerator.is_available()
    # gloo notices a dead process at once and needs no accelerator; others than CUDA have one way only, their own
    group = {"backend": "gloo"} if cpu or torch.cuda.is_available() else {}
    state = PartialState(cpu=cpu, timeout=PATIENCE, **group)
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but accelerate knows no way to join processes on {state.device}; "
            "give --device cpu, or launch one process"
        )
    processes = Processes(state.num_processes, state.process_index, launcher)
    processes.agree(lambda: check_device(device, state.device, launched))
    return processes, state.device


def check_device(asked: str | None, own: torch.device, count: int) -> None:
    """Refuse a device that is not the one of its own that a process of several has."""
    wanted = own if asked is None else torch.device(asked)
    if wanted.type != own.type or wanted.index not in (None, own.index):
        raise ValueError(
            f"device '{asked}' cannot be had by each of {count} processes: this one has '{own}'. Leave --device away, "
            "give cpu, or choose GPUs with accelerate's --gpu_ids"
        )


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal that means "end" raise SystemExit inside the block, so that what is done gets its record."""

    def end(number: int, _frame) -> None:
        for name in before:
            signal.signal(name, signal.SIG_IGN)  # a second one must not cut the record short
        sys.exit(128 + number)  # as shells count

    before: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):  # Windows: SIGTERM only
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
