"""Progress bars that stay short in log files."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


LOG_INTERVAL = 5.0  # seconds between two lines where stderr is not a terminal


def progress_bar(iterable: Iterable | None = None, **kwargs: Any) -> tqdm:
    """Return a `tqdm` bar that, where stderr is a file or a pipe, prints a new line every few seconds."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:  # a notebook shows a widget
        return tqdm(iterable, **kwargs)
    defaults: dict[str, Any] = {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "file": _LineStream()}
    return tqdm(iterable, **defaults | kwargs)


class _LineStream:
    """Write to stderr with a line break in place of each carriage return."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip("\n")
        if text.strip():
            sys.stderr.write(text.rstrip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
