"""How the processes of one launch generate as one: each takes its share, and what one refuses ends all of them.
Only words travel between the processes, never tensors."""

import argparse
import contextlib
import datetime
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import TypeVar

import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging

from semseg_diffusers import launch
from semseg_diffusers.launch import (
    SIGNALS,
    Launcher,
    OtherProcessError,
    check_usable,
    launched_processes,
    signals_to,
    works_on_cpu,
)


T = TypeVar("T")

# How long a process may wait for the others: as long as their shares may take them. Dead ones are noticed at once.
PATIENCE = datetime.timedelta(days=2)


@dataclass(frozen=True)
class Processes:
    """The processes that work on one output: this one alone, or those that a launcher started (`join_processes`)."""

    count: int = 1
    index: int = 0  # of this process; 0 is the main one
    launcher: Launcher | None = None  # the process that started this one and must live on; None: nobody

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, items: list[T]) -> list[T]:
        """Return what this process takes of a list that all have: every n-th, so that shares differ by one at most."""
        return items[self.index :: self.count]

    def gather(self, value: T) -> list[T]:
        """As `launch.gather`; alone without asking accelerate."""
        return [value] if self.count == 1 else launch.gather(value)

    def agree(self, task: Callable[[], T]) -> T:
        """As `launch.agree`; alone without asking accelerate."""
        return task() if self.count == 1 else launch.agree(task)

    def agree_in_main(self, task: Callable[[], T]) -> T | None:
        """Do a task in the main process only; returns its result there and None in the others, once it is done."""
        return self.agree(task if self.is_main else lambda: None)

    def leave(self) -> None:
        """Leave the group once the work is done: gloo's threads must end before the process, or they abort it."""
        if self.count > 1 and launch.last_word():
            PartialState().destroy_process_group()

    def end_with_launcher(self) -> None:
        """End this process if its launcher is gone: one that is killed cannot take its processes with it.

        Raises:
            OtherProcessError: the launcher has ended.
        """
        if self.launcher is not None and self.launcher.is_gone:
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
    check_usable(device)
    launched, launcher, cpu = launched_processes(), Launcher(), works_on_cpu(device)
    if launched == 1:
        default = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
        return Processes(launcher=launcher), torch.device(device or default)

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


def work_together(device: str | None, work: Callable[[Processes, torch.device], None]) -> int:
    """Do a command's work in every process of the launch, or in this one alone.

    Args:
        device: as given by the user.
        work: the command; it prints in the main process only.

    Returns:
        exit code of this process.
    """
    with ended_by_signals():
        try:
            processes, own = join_processes(device)
            if processes.count > 1 and processes.is_main:
                sys.stderr.write(f"{processes.count} processes, this one on {own}\n")
            if not processes.is_main:
                diffusers_logging.disable_progress_bar()
            work(processes, own)
            processes.leave()
        except OtherProcessError:
            return 2  # it, or the launcher, says why
    return 0


def process_main(command: ModuleType, prog: str) -> None:
    """Entry point of a process that `accelerate launch -m` starts.

    Args:
        command: module with `add_arguments(parser)` and `run(args)`, as the console script has them.
        prog: what its help calls it.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    args = parser.parse_args()
    try:
        status = command.run(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        status = 2
    launch.end(status)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal that means "end" raise SystemExit inside the block, so that what is done gets its record."""

    def end(number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the record short
        sys.exit(128 + number)  # as shells count

    with signals_to(end):
        yield
