"""A data set in the making that outlives the process that makes it: stopped or killed, it goes on where it was.

It grows in `.NAME.preparing` beside the output, with a record of what it is made from, and of each pair that is
complete. At the end it takes the output's place in one step.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from semseg_diffusers.data.dataset_format import check_output, swap_in, terminate_as_exception


RECORD_FILE = ".recipe.json"
PROGRESS_FILE = ".progress.jsonl"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, in the largest file allowed


@dataclass
class Staging:
    """The folder to fill, and the pairs that are in it already."""

    folder: Path
    done: dict[tuple[str, str], dict] = field(default_factory=dict)  # (split, stem) -> what was noted of the pair

    def note(self, split: str, stem: str, files: tuple[str, ...], **facts) -> None:
        """Note that a pair is complete.

        Args:
            split, stem: of the pair.
            files: its files, relative to the split's folder.
            **facts: what is to be known of it again.
        """
        sizes = {name: (self.folder / split / name).stat().st_size for name in files}
        line = {"split": split, "stem": stem, "sizes": sizes, **facts}
        with open(self.folder / PROGRESS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def read_progress(self) -> None:
        """Find the pairs that are complete: noted, and their files as large as they were."""
        path = self.folder / PROGRESS_FILE
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            with contextlib.suppress(ValueError, OSError):  # a line cut off, a file that did not reach the disk
                entry = json.loads(line)
                folder = self.folder / entry["split"]
                if all((folder / name).stat().st_size == size for name, size in entry["sizes"].items()):
                    self.done[entry["split"], entry["stem"]] = entry
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.done.values())
        path.write_text(lines, encoding="utf-8")  # a line that was cut off would spoil the next one


def staging_folder(output: str | os.PathLike) -> Path:
    """Where a data set for `output` grows."""
    output = Path(os.path.abspath(output))
    return output.with_name(f".{output.name}.preparing")


@contextlib.contextmanager
def resumable_dataset(output: str | os.PathLike, recipe: dict, overwrite: bool = False) -> Iterator[Staging]:
    """Give a folder to fill that takes the place of `output` at the end.

    After an error nothing of it is left. After a stop (Ctrl-C, SIGTERM, SIGKILL, a power cut) it stays, and the next
    call with the same recipe finds in it what is complete; another recipe begins anew.

    Args:
        output (`str` or `os.PathLike`): Where the data set goes; it must not exist, or be empty.
        recipe (`dict`): All that the content hangs on, as JSON.
        overwrite (`bool`, defaults to `False`): Replace a prepared data set that stands there, and only such a one.

    Raises:
        ValueError: `output` holds something, or another process is at work on it.
    """
    output = Path(os.path.abspath(output))
    folder = staging_folder(output)
    old, lock = (folder.with_name(folder.name + ending) for ending in (".old", ".lock"))
    output.parent.mkdir(parents=True, exist_ok=True)
    with _sole_worker(lock, output), terminate_as_exception():
        if old.exists() and not output.exists():  # killed between the two steps of the exchange
            os.replace(old, output)
        shutil.rmtree(old, ignore_errors=True)
        check_output(output, overwrite)
        text = json.dumps(recipe, sort_keys=True)
        if not _is_of(folder, text):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / RECORD_FILE).write_text(text, encoding="utf-8")
        staging = Staging(folder)
        staging.read_progress()
        try:
            yield staging
            for name in (RECORD_FILE, PROGRESS_FILE):
                (folder / name).unlink()
            swap_in(folder, output, old)
        except BaseException as err:
            if isinstance(err, Exception) or not (folder / PROGRESS_FILE).stat().st_size:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(err, OSError) and err.errno in FULL:
                raise OSError(
                    err.errno,
                    f"the disk is full: '{output}' could not be written, and nothing is left of it. Make room",
                ) from err
            raise


def _is_of(folder: Path, recipe: str) -> bool:
    record = folder / RECORD_FILE
    return record.is_file() and record.read_text(encoding="utf-8") == recipe


@contextlib.contextmanager
def _sole_worker(path: Path, output: Path) -> Iterator[None]:
    """Keep others from the same output; the lock is the kernel's and ends with the process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise ValueError(
            f"another process prepares '{output}'. Wait until it has ended, or name another one."
        ) from err
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
