"""What a process must know of its launch: who started it, whether it works on the CPU, and which signals end it.

Shared by training and generation, which each do their own with a signal.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import torch


# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


def works_on_cpu(device: str | None) -> bool:
    """Whether to tell accelerate so: without an accelerator it makes processes a group only if it is told.

    Args:
        device: as given by the user; None leaves it to accelerate and its configuration.
    """
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return (told if device is None else torch.device(device).type == "cpu") or not torch.accelerator.is_available()


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
def signals_to(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...] = SIGNALS
) -> Iterator[dict[int, object]]:
    """Hand signals to `handler` inside the block; gives what handled them before. What is ignored stays ignored."""
    before: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                before[number] = signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)
