"""How long the network waits for its data: the time that the loop spends in asking for the next batch; and what would
let it wait for ever."""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

from accelerate.logging import get_logger


logger = get_logger(__name__)

STARVED = 0.1  # share of an interval without data that is worth a word
# Characters of a socket's path that Linux takes, less what multiprocessing appends: /pymp-XXXXXXXX/listener-XXXXXXXX.
LONGEST_FOLDER = 107 - len("/pymp-/listener-") - 2 * 8


def check_temporary_folder(num_workers: int) -> None:
    """Refuse a temporary folder whose path is too long for the sockets by which processes hand over batches.

    Without this the batch is lost in the process that read it, and the training waits for it without a word.

    Raises:
        ValueError: naming the folder and what to do.
    """
    folder = tempfile.gettempdir()
    if num_workers and sys.platform == "linux" and len(folder) > LONGEST_FOLDER:
        raise ValueError(
            f"the temporary folder '{folder}' has {len(folder)} characters; processes that read data want one of at "
            f"most {LONGEST_FOLDER}. Set TMPDIR to a shorter one, or give --dataloader_num_workers 0."
        )


class WaitingTime:
    """Goes through batches once and adds up the seconds until each came; it never waits for the device.

    On a GPU, whose work is queued, the network can have waited less than the loop did, never more.

    Args:
        batches: what is gone through.
    """

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches
        self._seconds = 0.0
        self._intervals = 0
        self._told = False

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._seconds += time.monotonic() - begin
            yield batch

    def share_of(self, seconds: float) -> float:
        """Share of an interval that was spent waiting, 0 to 1; starts the next interval.

        Warns once of a network that goes hungry. The first interval tells nothing: reading processes start in it, and
        every pair is decoded for the first time.

        Args:
            seconds: length of the interval.
        """
        share, self._seconds = self._seconds / seconds, 0.0
        self._intervals += 1
        if share > STARVED and self._intervals > 1 and not self._told:
            self._told = True
            logger.warning(
                f"The network waited for data {share:.0%} of the last interval. Raise --dataloader_num_workers, or "
                "--decoded_gigabytes where the pairs do not all fit."
            )
        return share
