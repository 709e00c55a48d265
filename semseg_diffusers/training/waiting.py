"""How long the network waits for its data: the time that the loop spends in asking for the next batch."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from accelerate.logging import get_logger


logger = get_logger(__name__)

STARVED = 0.1  # share of an interval without data that is worth a word


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
