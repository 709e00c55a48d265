"""What a process must know of its launch: who started it, whether it works on the CPU, which signals end it, how a
folder is kept to it, and how what one process refuses ends all. Training and generation stand on it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout


T = TypeVar("T")
LOCK_FILE = ".lock"


# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def works_on_cpu(device: str | None) -> bool:
    """Whether to tell accelerate so: without an accelerator it makes processes a group only if it is told.

    Args:
        device: as given by the user; None leaves it to accelerate and its configuration.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return (told if device is None else torch.device(device).type == "cpu") or not torch.accelerator.is_available()


def check_usable(device: str | None) -> None:
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
def sole_owner(folder: Path, work: str, patience: float = 15) -> Iterator[None]:
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
    """Whether a process keeps a folder by `sole_owner`, as far as this machine can see."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


@contextlib.contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...] = SIGNALS) -> Iterator[None]:
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


class OtherProcessError(RuntimeError):
    """Another process of the launch has failed and said why; this one has only to end."""


def gather(value: T) -> list[T]:
    """Return the values of all processes in their order. Called by every process.

    Raises:
        OtherProcessError: where one has ended meanwhile.
    """
    if PartialState().num_processes == 1:
        return [value]
    try:
        return gather_object([value])
    except RuntimeError as err:  # gloo: connection closed by peer
        raise OtherProcessError(f"another process of this launch has ended early ({err})") from err


def last_word(group: torch.distributed.ProcessGroup | None = None) -> bool:
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


def agree(task: Callable[[], T]) -> T:
    """Do a task in every process; return its result once all have done it.

    Raises:
        ValueError, OSError: the task's own, in the first process where it failed.
        OtherProcessError: in the other processes, once that one has said why and ended.
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


def agree_with_main(task: Callable[[], T]) -> T:
    """Do a task in the main process only, and return its result in every process; what it raises is as in `agree`."""
    is_main = PartialState().is_main_process
    return gather(agree(task if is_main else lambda: None))[0]
