"""Does one piece of work for many items in several processes, and hands the results over in the items' order.

The processes are started by a server that has the package loaded, so that each is there at once; none of them outlives
the one that started it, however that ends.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")

SMALLEST_SHARE = 128  # items a process; for fewer, starting it (some seconds) takes longer than it saves
AHEAD = 4  # items a process that are handed out before their results are taken


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_workers: int, count: int | None = None
) -> Iterator[tuple[Item, Result | ValueError]]:
    """Yield each item with its result, or with the `ValueError` that the work on it raised.

    Args:
        work: a function of a module, or a `functools.partial` of one; it and the items travel to the processes.
        items: they are taken from it as they are needed.
        num_workers: processes; with 1, and for few items, the work is done in this one.
        count: how many items there are, where it is known.

    Raises:
        OSError: a process was ended from outside, as by the system when memory ran out.
        Exception: what else the work raised: a full disk, say.
    """
    if count is not None:
        num_workers = min(num_workers, count // SMALLEST_SHARE)
    if num_workers <= 1:
        for item in items:
            try:
                result = work(item)
            except ValueError as err:
                result = err
            yield item, result
        return
    pool = ProcessPoolExecutor(num_workers, mp_context=_context(), initializer=_begin)
    waiting: deque[tuple[Item, Future]] = deque()
    items = iter(items)
    try:
        while True:
            for item in itertools.islice(items, num_workers * AHEAD - len(waiting)):
                waiting.append((item, pool.submit(work, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, ValueError):
                raise error
            yield item, future.result() if error is None else error
    except BrokenProcessPool as err:
        raise OSError(
            f"one of the {num_workers} processes was ended from outside; memory may have run out. Try a smaller "
            "--num_workers."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Where it can be, processes are forked from a server that loads what they need once; else started anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semseg_diffusers.data.prepare"])
    return context


def _begin() -> None:
    """In a new process: leave Ctrl-C to the one that started it, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        with contextlib.suppress(AttributeError):  # no parent: it is this process' own
            multiprocessing.parent_process().join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
