"""Processes of a launch: who started them, which device they use, how they share work, and how they end together.

Training and generation are started by `accelerate launch` or `torchrun`. If one process refuses something, all end.
"""

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers.utils import logging as diffusers_logging

from semseg_diffusers.utils.settings import Settings, SettingsParser, command_error
from semseg_diffusers.utils.signals import exit_on_signals


T = TypeVar("T")
# How long a process may wait for the others: as long as their shares may take. Dead ones are noticed at once.
TIMEOUT = datetime.timedelta(days=2)


class PeerError(RuntimeError):
    """Another process of the launch has failed and reported it; this one only has to end."""


def launched_processes() -> int:
    """Return how many processes a launcher started together with this one; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


class Launcher:
    """The launcher that started this process, if any; killed, it leaves its processes running, so they have to ask."""

    def __init__(self):
        launched = launched_processes() > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ
        self._pid = os.getppid() if launched else None

    @property
    def is_gone(self) -> bool:
        """Return whether the launcher has ended before this process."""
        return self._pid is not None and os.getppid() != self._pid


def uses_cpu(device: str | None) -> bool:
    """Return whether accelerate must be asked for the CPU: without an accelerator it forms no group otherwise."""
    configured = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_cpu = configured if device is None else torch.device(device).type == "cpu"
    return on_cpu or not torch.accelerator.is_available()


def choose_device(device: str | None) -> str:
    """Return the given device, or by default a GPU if there is any; one that does not exist here is refused."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as err:  # torch asserts that it was built for the device
        raise ValueError(f"--device {device} cannot be used here: {str(err).splitlines()[0]}") from err
    return device


def gather(value: T) -> list[T]:
    """Return the values of all processes in their order; a PeerError if one has ended. Called by every process."""
    if PartialState().num_processes == 1:
        return [value]
    try:
        return gather_object([value])
    except RuntimeError as err:  # gloo: connection closed by peer
        raise PeerError(f"another process of this launch has ended early ({err})") from err


def run_on_all_ranks(task: Callable[[], T]) -> T:
    """Run a task in every process, and return its result; one process raises its error, the others a PeerError."""
    state = PartialState()
    if state.num_processes == 1:
        return task()
    error: ValueError | OSError | None = None
    try:
        result = task()
    except (ValueError, OSError) as err:
        error = err
    has_failed = gather(error is not None)
    if any(has_failed):
        if error is not None and has_failed.index(True) == state.process_index:
            raise error
        # A launcher ends all processes as soon as one has ended, so the one that reports must be the first. It never
        # answers this call, which therefore raises when it is gone.
        gather(None)
        raise AssertionError("a failed process continues")
    return result


def run_on_main_rank(task: Callable[[], T]) -> T:
    """Run a task in the main process only, and return its result in every process; errors as in `run_on_all_ranks`."""
    results: list[Any] = gather(run_on_all_ranks(task if PartialState().is_main_process else lambda: None))
    return results[0]


def final_barrier(group: torch.distributed.ProcessGroup | None = None) -> bool:
    """Let the processes of a gloo group end one after the other. Called by every process, last of all.

    A process that closes its connections right after a barrier can break it for another that has not read all of it.
    Here the main process hears all others, answers them, and nobody reads anything after that. Returns whether all
    have heard each other; otherwise the group is broken, and leaving it in order could take forever.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend(group) == "gloo":
        try:
            torch.distributed.monitored_barrier(group)
        except RuntimeError:
            return False
    return True


def end(status: int) -> NoReturn:
    """End this process; at once if it is in a group, whose threads may never end, or abort it and hide the cause."""
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@dataclass(frozen=True)
class Processes:
    """The processes that work on one output: this one alone, or those of a launcher (`join_processes`)."""

    count: int = 1
    index: int = 0  # of this process; 0 is the main one
    launcher: Launcher | None = None  # must live on; None: nobody

    @property
    def is_main(self) -> bool:
        """Return whether this is the main process, or the only one."""
        return self.index == 0

    def share(self, items: list[T]) -> list[T]:
        """Return this process's share of a list that all have: every n-th item, from its own index on."""
        return items[self.index :: self.count]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, as `gather`."""
        return [value] if self.count == 1 else gather(value)

    def run_on_all_ranks(self, task: Callable[[], T]) -> T:
        """Run a task in every process, as `run_on_all_ranks`."""
        return task() if self.count == 1 else run_on_all_ranks(task)

    def run_in_main(self, task: Callable[[], T]) -> T | None:
        """Run a task in the main process only; return its result there and None in the others, once it is done."""
        return self.run_on_all_ranks(task if self.is_main else lambda: None)

    def leave(self) -> None:
        """Leave the group once the work is done: gloo's threads must end before the process, or they abort it."""
        if self.count > 1 and final_barrier():
            PartialState().destroy_process_group()

    def end_with_launcher(self) -> None:
        """Raise PeerError if the launcher is gone: a killed launcher leaves its processes running."""
        if self.launcher is not None and self.launcher.is_gone:
            raise PeerError("the launcher of this process has ended")


def join_processes(device: str | None = None) -> tuple[Processes, torch.device]:
    """Join the processes that a launcher started, and return them with the device of this one."""
    chosen = choose_device(device)
    launched, launcher, cpu = launched_processes(), Launcher(), uses_cpu(device)
    if launched == 1:
        return Processes(launcher=launcher), torch.device(chosen if device or not cpu else "cpu")

    # gloo notices a dead process at once and needs no accelerator; devices other than CUDA have only their own backend
    group = {"backend": "gloo"} if cpu or torch.cuda.is_available() else {}
    state = PartialState(cpu=cpu, timeout=TIMEOUT, **group)
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but accelerate cannot join processes on {state.device}; use "
            "--device cpu, or launch one process"
        )
    processes = Processes(state.num_processes, state.process_index, launcher)
    processes.run_on_all_ranks(lambda: _check_own_device(device, state.device, launched))
    return processes, state.device


def _check_own_device(asked: str | None, own: torch.device, count: int) -> None:
    """Refuse a device other than that of this process."""
    expected = own if asked is None else torch.device(asked)
    if expected.type != own.type or expected.index not in (None, own.index):
        raise ValueError(
            f"device '{asked}' cannot be used by each of {count} processes: this one has '{own}'. Omit --device, use "
            "cpu, or choose GPUs with accelerate's --gpu_ids"
        )


def run_distributed(device: str | None, work: Callable[[Processes, torch.device], None]) -> int:
    """Run a command, which prints in the main process only, in every process of the launch; return the exit code."""
    with exit_on_signals():
        try:
            processes, own = join_processes(device)
            if processes.count > 1 and processes.is_main:
                sys.stderr.write(f"{processes.count} processes, this one on {own}\n")
            if not processes.is_main:
                diffusers_logging.disable_progress_bar()
            work(processes, own)
            processes.leave()
        except PeerError:
            return 2  # that process, or the launcher, reports the cause
    return 0


def process_main(settings: type[Settings], run: Callable[[Any], int | None], prog: str) -> NoReturn:
    """Run a command in a process that `accelerate launch` starts, and end the process."""
    try:
        status = run(SettingsParser(settings, prog=prog).parse_settings()) or 0
    except (ModuleNotFoundError, ValueError, OSError) as err:
        process = f" in process {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        sys.stderr.write(f"error{process}: {command_error(err, prog)}\n")
        status = 2
    end(status)
