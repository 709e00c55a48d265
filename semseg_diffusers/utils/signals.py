"""Termination signals: handle them inside a block, or end the process in order, with its clean-up done."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


# SIGTERM comes from clusters and `kill`, SIGUSR1 mostly from Slurm's --signal option, SIGHUP from a lost terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def route_signals(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...] = SIGNALS
) -> Iterator[None]:
    """Send signals to `handler` inside the block. Ignored ones, as under nohup, stay ignored."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit on a termination signal inside the block, so that the process cleans up before it ends."""

    def end(number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        sys.exit(128 + number)  # as in shells

    with route_signals(end):
        yield
