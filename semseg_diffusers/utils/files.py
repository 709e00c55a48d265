"""Files and folders that appear completely or not at all; JSON files; content hashes.

`new_folder` fills a temporary folder and renames it. `resumable_folder` does so in `.NAME.preparing` beside the
output, with a record of its recipe and of each finished item, so that the same call resumes after a stop or a kill.
"""

import codecs
import contextlib
import errno
import glob
import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import semseg_diffusers
from semseg_diffusers.utils.signals import exit_on_signals


RECORD_FILE = ".recipe.json"
PROGRESS_FILE = ".progress.jsonl"
LOCK_FILE = ".lock"
LONG_NAME = 200  # bytes; file systems allow 255, and a temporary name is longer
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, the quota, the largest file allowed


def package_version() -> str:
    """Return the version of this package."""
    return semseg_diffusers.__version__


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package and of libraries, by name."""
    found = {name: importlib.import_module(name).__version__ for name in libraries}
    return {"semseg_diffusers": package_version(), **found}


def code_commit() -> str | None:
    """Return the git commit of this code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None


def composed(name: str) -> str:
    """Return a name in Unicode normal form NFC: macOS decomposes letters with accents, other systems do not.

    A name that is not Unicode, as Linux allows, is a ValueError.
    """
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError as err:
            raise ValueError(f"the file name {name!r} is not in UTF-8; rename the file.") from err
    return unicodedata.normalize("NFC", name)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, which is renamed to the file at the end."""
    name = path.name if len(os.fsencode(path.name)) <= LONG_NAME else hash_json(path.name)
    temporary = path.with_name(f"{name}.tmp-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether a file is the lock, or was being written when a run was killed."""
    return path.name == LOCK_FILE or path.name.endswith(".tmp") or ".tmp-" in path.name


def follow_umask(folder: Path) -> None:
    """Give weights below a folder the permissions of other files: safetensors writes them for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file as UTF-8, completely or not at all."""
    with written_beside(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_text(path: Any) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    `path` is a path, or has `read_bytes` like one (a file inside an archive).
    """
    data = path.read_bytes() if hasattr(path, "read_bytes") else Path(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"'{path}' is in UTF-16; expected UTF-8. Save it again as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ValueError(f"'{path}' is not in UTF-8 ({err}). Save it again as UTF-8.") from err


def parse_json(text: str, **options: Any) -> Any:
    """Return the value of a JSON text; one that is nested too deeply for Python is a `JSONDecodeError` as well."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text[:20], 0) from None


def is_outside(name: Any) -> bool:
    """Return whether what metadata name as a file of their folder is no name, is absolute, or leaves the folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return True
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def read_json(path: Any) -> dict[str, Any]:
    """Read a JSON file that holds an object (see `read_text`); a ValueError says if it holds anything else."""
    try:
        content = parse_json(read_text(path))
    except json.JSONDecodeError as err:
        raise ValueError(f"'{path}' is not valid JSON: {err}.") from err
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object; got a {type(content).__name__}.")
    return content


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read a file with a JSON object on each line; empty lines are skipped."""
    try:  # not `splitlines`: a name may hold other line separators of Unicode
        rows = [parse_json(line) for line in read_text(path).split("\n") if line.strip()]
    except json.JSONDecodeError as err:
        raise ValueError(f"'{path}' is not valid JSON lines: {err}.") from err
    other = next((row for row in rows if not isinstance(row, dict)), None)
    if other is not None:
        raise ValueError(f"'{path}' holds the line {other!s:.80}; expected an object on each line.")
    return rows


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(*paths: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, or that of several files one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path, message: str, patience: float = 0, remove: bool = False) -> Iterator[None]:
    """Lock a file for this process; the kernel holds the lock, which ends with the process, however that ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout as err:
        raise ValueError(message) from err
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def exclusive_folder(folder: Path, work: str, patience: float = 15) -> Iterator[None]:
    """Lock a folder, and create it if necessary; it is removed again if nothing was written to it.

    The message names the `work` ("training into"); `patience` is in seconds, for processes of a killed launch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    message = (
        f"another process is {work} '{folder}' (it holds {path}). Wait until it has ended, or end it; then run the "
        "same command again."
    )
    with _locked(path, message, patience):
        try:
            yield
        finally:
            if not [entry for entry in folder.iterdir() if entry != path]:
                path.unlink(missing_ok=True)
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds a folder by `exclusive_folder`, as far as this machine can see."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def check_output(output: str | os.PathLike, overwrite: bool, marker: str, kind: str) -> Path:
    """Return the absolute path of a folder to be created, which must not exist, or be empty.

    With `overwrite` it may be of the same `kind` (a word of messages), which has the file `marker`.
    """
    output = Path(os.path.abspath(output))
    if output.is_file():
        raise ValueError(f"--output '{output}' is a file; expected a folder that does not exist yet.")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ValueError(f"--output '{output}' is not empty. Choose another folder, or use --overwrite.")
        if not (output / marker).is_file():
            raise ValueError(
                f"--output '{output}' has no {marker}, so it is no {kind} and --overwrite does not replace it. "
                "Choose another folder."
            )
    return output


@contextlib.contextmanager
def new_folder(output: str | os.PathLike, marker: str, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to fill that becomes `output` (`check_output`) at the end; after an error nothing is left."""
    output = Path(os.path.abspath(output))
    prefix = f".{output.name}.tmp-{socket.gethostname()}-"
    for path in sorted(output.parent.glob(f"{glob.escape(prefix)}*"), reverse=True):  # of killed processes here
        pid, _, ending = path.name.removeprefix(prefix).partition(".")
        if pid.isdecimal() and not _is_running(int(pid)):
            if ending == "old" and not output.exists():  # killed between the two renames
                os.replace(path, output)
            shutil.rmtree(path, ignore_errors=True)
    check_output(output, overwrite, marker, kind)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f"{prefix}{os.getpid()}"
    with exit_on_signals():
        try:
            folder.mkdir()
            yield folder
            swap_in(folder, output, folder.with_name(folder.name + ".old"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def swap_in(folder: Path, output: Path, old: Path) -> None:
    """Rename a folder to `output`; an existing one is renamed to `old` meanwhile, and removed."""
    if output.exists():
        os.replace(output, old)
    os.replace(folder, output)
    shutil.rmtree(old, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


@dataclass
class Staging:
    """A folder to fill, and the pairs that are finished."""

    folder: Path
    done: dict[tuple[str, str], dict] = field(default_factory=dict)  # (split, stem) -> record of the pair

    def note(self, split: str, stem: str, files: tuple[str, ...], **facts) -> None:
        """Record that a pair is finished, with its files relative to the split's folder, and further facts."""
        sizes = {name: (self.folder / split / name).stat().st_size for name in files}
        line = {"split": split, "stem": stem, "sizes": sizes, **facts}
        with open(self.folder / PROGRESS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def read_progress(self) -> None:
        """Find the finished pairs: recorded, and with files of the recorded size."""
        path = self.folder / PROGRESS_FILE
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            with contextlib.suppress(ValueError, OSError):  # an incomplete line, a file that did not reach the disk
                entry = json.loads(line)
                folder = self.folder / entry["split"]
                if all((folder / name).stat().st_size == size for name, size in entry["sizes"].items()):
                    self.done[entry["split"], entry["stem"]] = entry
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.done.values())
        path.write_text(lines, encoding="utf-8")  # an incomplete line would spoil the next one


def staging_folder(output: str | os.PathLike) -> Path:
    """Return the staging folder of `output`."""
    output = Path(os.path.abspath(output))
    return output.with_name(f".{output.name}.preparing")


@contextlib.contextmanager
def resumable_folder(
    output: str | os.PathLike, recipe: dict, marker: str, kind: str, overwrite: bool = False
) -> Iterator[Staging]:
    """Yield a folder to fill that becomes `output` (`check_output`) at the end, and survives an interruption.

    Nothing is left of it after an error. After a stop (Ctrl-C, SIGTERM, SIGKILL, a power cut) it is kept, and the next
    call with the same `recipe`, on which the content depends, finds the finished pairs; another recipe starts again.
    """
    output, folder = Path(os.path.abspath(output)), staging_folder(output)
    old, lock = (folder.with_name(folder.name + ending) for ending in (".old", ".lock"))
    output.parent.mkdir(parents=True, exist_ok=True)
    message = f"another process prepares '{output}'. Wait until it has ended, or choose another --output."
    with _locked(lock, message, remove=True), exit_on_signals():
        if old.exists() and not output.exists():  # killed between the two renames
            os.replace(old, output)
        shutil.rmtree(old, ignore_errors=True)
        check_output(output, overwrite, marker, kind)
        text, record = json.dumps(recipe, sort_keys=True), folder / RECORD_FILE
        if not record.is_file() or record.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            record.write_text(text, encoding="utf-8")
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
                    f"the disk is full: '{output}' could not be written, and nothing of it is left. Free disk space",
                ) from err
            raise
