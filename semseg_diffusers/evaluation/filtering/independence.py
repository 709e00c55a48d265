"""Keeps the network that filters apart from the one that judges: images chosen by a network please it, whether or not
they are good, so a gain that it measures itself says nothing. Networks are told apart by their weights."""

import json
import os
from pathlib import Path
from typing import Any


FILTER_FILE = "filter.json"


def read_filter(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return what `semseg-diffusers filter` wrote down of a folder; None where that was not filtered.

    Raises:
        ValueError: its file is damaged.
    """
    path = Path(folder) / FILTER_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {**record, "segmenter_sha256": str(record["segmenter_sha256"])}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as err:
        raise ValueError(f"'{path}' is no record of `semseg-diffusers filter` ({err!r}). Filter anew.") from err


def refuse_same_network(
    filtered_by: str | os.PathLike, judge_sha256: str | None, judge: str, *, option: str = "--judge"
) -> None:
    """Refuse a judge that is the very network that images were filtered by.

    Args:
        filtered_by: hash of the filter's network; or a folder, which passes where it was not filtered.
        judge_sha256: hash of the judge's weights, `Judge.weights_sha256`.
        judge: what messages call it.
        option: which named it.

    Raises:
        ValueError: they are the same.
    """
    own = os.fspath(filtered_by)
    if Path(own).is_dir():
        record = read_filter(own)
        own = None if record is None else record["segmenter_sha256"]
    if own is not None and own == judge_sha256:
        raise ValueError(
            f"{option} '{judge}' is the network that filters the images ({own}): it has chosen what it likes, so what "
            "it measures on them, or on a network trained with them, is no evidence. Train another one "
            "(`semseg-diffusers segmenter` with another --architecture), or say --allow_same_network."
        )
