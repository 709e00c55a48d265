"""Map a function over many items in several processes, with the results in the order of the items.

A fork server that has loaded the package starts the processes quickly; none of them outlives its parent.
"""

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

SMALLEST_SHARE = 128  # items per process; for fewer, starting it (some seconds) takes longer than it saves
PREFETCH = 4  # items per process that are submitted before their results are taken
PRELOAD = "semseg_diffusers.data.prepare"  # loaded once by the fork server


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_workers: int, count: int | None = None
) -> Iterator[tuple[Item, Result | ValueError]]:
    """Yield each item with its result, or with the `ValueError` that it raised; other errors end the iteration.

    The work, which is pickled, is a module-level function or a `functools.partial` of one. Items are consumed lazily;
    with one worker, or few items (`count`), this process does the work.
    """
    if count is not None:
        num_workers = min(num_workers, count // SMALLEST_SHARE)
    if num_workers <= 1:
        for item in items:
            try:
                yield item, work(item)
            except ValueError as err:
                yield item, err
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([PRELOAD])
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=follow_parent)
    items, waiting = iter(items), deque[tuple[Item, Future[Result]]]()
    try:
        while True:
            for item in itertools.islice(items, num_workers * PREFETCH - len(waiting)):
                waiting.append((item, pool.submit(work, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            error = future.exception()
            yield item, error if isinstance(error, ValueError) else future.result()
    except BrokenProcessPool as err:
        raise OSError(
            f"one of the {num_workers} processes was killed; memory may have run out. Try a smaller --num_workers."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Leave Ctrl-C to the parent of this process, and end with it. Called in a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
