"""What a process must know of its launch: who started it, whether it works on the CPU, which signals end it, how a
folder is kept to it, and how what one process refuses ends all. Training and generation stand on it."""

import argparse
import contextlib
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers.utils import logging as diffusers_logging
from filelock import FileLock, Timeout

from semseg_diffusers.utils import distributed as launch


T = TypeVar("T")
LOCK_FILE = ".lock"


# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def uses_cpu(device: str | None) -> bool:
    """Whether to tell accelerate so: without an accelerator it makes processes a group only if it is told.

    Args:
        device: as given by the user; None leaves it to accelerate and its configuration.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return (told if device is None else torch.device(device).type == "cpu") or not torch.accelerator.is_available()


def check_device_available(device: str | None) -> None:
    """Refuse a device that is none, or that cannot be had here; None is left to accelerate.

    Raises:
        ValueError: naming --device.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as err:  # torch asserts that it was built for the device
        raise ValueError(f"--device {device} cannot be used here: {str(err).splitlines()[0]}") from err


def launched_processes() -> int:
    """How many processes a launcher started together with this one; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


class Launcher:
    """The process that started this one, if it is one that starts processes: accelerate's or torch's.

    One that is killed takes nothing with it, and accelerate's of a single process hands no signal on; so who must not
    outlive it asks.
    """

    def __init__(self):
        launched = launched_processes() > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ
        self._pid = os.getppid() if launched else None

    @property
    def is_gone(self) -> bool:
        return self._pid is not None and os.getppid() != self._pid


@contextlib.contextmanager
def exclusive_folder(folder: Path, work: str, patience: float = 15) -> Iterator[None]:
    """Keep a folder to this process, and make it if need be.

    The lock is the kernel's: it ends with the process that holds it, however that ends.

    Args:
        folder: the folder; it is removed again if nothing was written to it.
        work: what is done in it, for the message: "training into".
        patience: seconds; processes of a launch that was killed end after their present step.

    Raises:
        ValueError: another process owns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as err:
        raise ValueError(
            f"another process is {work} '{folder}' (it holds {path}). Wait until it has ended, or end it; then give "
            "the same command again."
        ) from err
    try:
        yield
    finally:
        if not [entry for entry in folder.iterdir() if entry != path]:
            path.unlink(missing_ok=True)
            folder.rmdir()
        lock.release()


def is_owned(folder: Path) -> bool:
    """Whether a process keeps a folder by `exclusive_folder`, as far as this machine can see."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


@contextlib.contextmanager
def route_signals(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...] = SIGNALS
) -> Iterator[None]:
    """Hand signals to `handler` inside the block. What is ignored, as by nohup, stays ignored."""
    before: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


class PeerError(RuntimeError):
    """Another process of the launch has failed and said why; this one has only to end."""


def gather(value: T) -> list[T]:
    """Return the values of all processes in their order. Called by every process.

    Raises:
        PeerError: where one has ended meanwhile.
    """
    if PartialState().num_processes == 1:
        return [value]
    try:
        return gather_object([value])
    except RuntimeError as err:  # gloo: connection closed by peer
        raise PeerError(f"another process of this launch has ended early ({err})") from err


def final_barrier(group: torch.distributed.ProcessGroup | None = None) -> bool:
    """Let the processes of a gloo group end one after the other without harm. Called by every process, last of all.

    One that closes its connections right after a barrier can break it for another that has not read all of it yet.
    Here the main process hears all others, answers them, and nobody reads anything after that.

    Args:
        group: of gloo; by default that of all processes, which has nothing to do where it is of another kind.

    Returns:
        whether all have heard each other. One that has ended before has done its work too, or says itself why not:
        that harms nobody, but the group is broken, and to leave it in order could take for ever.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend(group) == "gloo":
        try:
            torch.distributed.monitored_barrier(group)
        except RuntimeError:
            return False
    return True


def end(status: int) -> NoReturn:
    """End this process; one that is still in a group at once.

    gloo's threads must end before a process does, or they can abort it, and a launcher then tells of the abort and not
    of what went wrong; in a group that another has left they may never end.
    """
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run_on_all_ranks(task: Callable[[], T]) -> T:
    """Do a task in every process; return its result once all have done it.

    Raises:
        ValueError, OSError: the task's own, in the first process where it failed.
        PeerError: in the other processes, once that one has said why and ended.
    """
    state = PartialState()
    if state.num_processes == 1:
        return task()
    result = error = None
    try:
        result = task()
    except (ValueError, OSError) as err:
        error = err
    failed = [index for index, has_failed in enumerate(gather(error is not None)) if has_failed]
    if not failed:
        return result
    if failed[0] == state.process_index:
        raise error
    # A launcher ends all processes as soon as one has ended: the one that speaks must be the first. It never answers
    # this, so the call returns, with an error, when it is gone.
    gather(None)
    raise AssertionError("a process that has failed goes on")


def run_on_main_rank(task: Callable[[], T]) -> T:
    """Do a task in the main process only, and return its result in every process; what it raises is as in `agree`."""
    is_main = PartialState().is_main_process
    return gather(run_on_all_ranks(task if is_main else lambda: None))[0]


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

    def run_on_all_ranks(self, task: Callable[[], T]) -> T:
        """As `launch.agree`; alone without asking accelerate."""
        return task() if self.count == 1 else launch.run_on_all_ranks(task)

    def run_in_main(self, task: Callable[[], T]) -> T | None:
        """Do a task in the main process only; returns its result there and None in the others, once it is done."""
        return self.run_on_all_ranks(task if self.is_main else lambda: None)

    def leave(self) -> None:
        """Leave the group once the work is done: gloo's threads must end before the process, or they abort it."""
        if self.count > 1 and launch.final_barrier():
            PartialState().destroy_process_group()

    def end_with_launcher(self) -> None:
        """End this process if its launcher is gone: one that is killed cannot take its processes with it.

        Raises:
            PeerError: the launcher has ended.
        """
        if self.launcher is not None and self.launcher.is_gone:
            raise PeerError("the launcher of this process has ended")


def join_processes(device: str | None = None) -> tuple[Processes, torch.device]:
    """Join the processes that `accelerate launch` or `torchrun` started; without a launcher there is this one alone.

    Args:
        device: as given by the user; None for one of its own for each process, where there are accelerators.

    Returns:
        the processes, and the device of this one.

    Raises:
        ValueError: a device that cannot be had by each process, or processes that cannot find each other.
    """
    check_device_available(device)
    launched, launcher, cpu = launched_processes(), Launcher(), uses_cpu(device)
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
    processes.run_on_all_ranks(lambda: check_device(device, state.device, launched))
    return processes, state.device


def check_device(asked: str | None, own: torch.device, count: int) -> None:
    """Refuse a device that is not the one of its own that a process of several has."""
    wanted = own if asked is None else torch.device(asked)
    if wanted.type != own.type or wanted.index not in (None, own.index):
        raise ValueError(
            f"device '{asked}' cannot be had by each of {count} processes: this one has '{own}'. Leave --device away, "
            "give cpu, or choose GPUs with accelerate's --gpu_ids"
        )


def run_distributed(device: str | None, work: Callable[[Processes, torch.device], None]) -> int:
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
        except PeerError:
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

    with route_signals(end):
        yield
