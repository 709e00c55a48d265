"""Reads files from zip archives without unpacking: `ArchivePath` is to the readers what a `pathlib.Path` is.

An archive may come from anywhere. What could reach outside it, hide in it or burst out of it is refused when it is
opened, before any file of it is read.
"""

import functools
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO


LARGEST_FILE = 8 * 2**30  # bytes, unpacked; the largest label file of a public set has 1.5 GB
LARGEST_RATIO = 200  # unpacked to packed; label files of JSON reach 30
SMALL_FILE = 2**20  # bytes; below, any ratio is harmless
NOT_OURS = ("__MACOSX",)  # what macOS adds to the archives it makes


@dataclass(frozen=True)
class ArchivePath:
    """A file or folder inside zip archives that lie over one another as if all were unpacked into one folder.

    It has the part of `pathlib.Path` that readers use. A process may pickle it to another; each opens the archives
    itself.

    Args:
        archives (`tuple[Path, ...]`): The archives.
        inner (`str`): The path inside, "" for the top.
    """

    archives: tuple[Path, ...]
    inner: str = ""

    def __truediv__(self, name: object) -> "ArchivePath":
        return ArchivePath(self.archives, str(PurePosixPath(self.inner, str(name))))

    def __str__(self) -> str:
        found = _contents(self.archives).files.get(self.inner)
        top = found[0] if found else self.archives[0] if len(self.archives) == 1 else self.archives[0].parent
        return f"{top}/{self.inner}" if self.inner else str(top)

    def __lt__(self, other: "ArchivePath") -> bool:
        return (self.archives, self.inner) < (other.archives, other.inner)

    @property
    def name(self) -> str:
        return PurePosixPath(self.inner).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.inner).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.inner).suffix

    @property
    def parent(self) -> "ArchivePath":
        return ArchivePath(self.archives, _parent(self.inner))

    def is_file(self) -> bool:
        return self.inner in _contents(self.archives).files

    def is_dir(self) -> bool:
        return self.inner in _contents(self.archives).folders

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator["ArchivePath"]:
        for name in sorted(_contents(self.archives).folders[self.inner]):
            yield self / name

    def open(self) -> BinaryIO:
        """Open the file for reading bytes.

        Raises:
            ValueError: The archive is damaged, or packed in a way that Python does not know.
        """
        archive, info = self._entry()
        try:
            return _Entry(_open(archive).open(info), self)
        except (zipfile.BadZipFile, NotImplementedError, OSError) as err:
            raise ValueError(_damaged(self, err)) from err

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    @property
    def size(self) -> int:
        """Bytes of the file, unpacked."""
        return self._entry()[1].file_size

    def fingerprint(self) -> tuple:
        """Changes when the file does: its checksum and size."""
        _, info = self._entry()
        return info.CRC, info.file_size

    def _entry(self) -> tuple[Path, zipfile.ZipInfo]:
        try:
            return _contents(self.archives).files[self.inner]
        except KeyError as err:
            raise FileNotFoundError(f"there is no file '{self}'") from err


class _Entry(io.BufferedIOBase):
    """A file of an archive, whose errors say which one it is."""

    def __init__(self, file: BinaryIO, path: ArchivePath):
        self._file, self._path = file, path

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self._file.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as err:
            raise ValueError(_damaged(self._path, err)) from err

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _damaged(path: ArchivePath, err: Exception) -> str:
    return f"'{path}' cannot be read from its archive ({err}). Download or copy the archive again."


def open_archives(archives: Sequence[Path]) -> ArchivePath:
    """The top of what archives hold together; they are looked through and refused where they are not safe.

    Raises:
        ValueError: a file is no zip archive, or holds what could do harm, or two archives hold different files of one
            name.
    """
    top = ArchivePath(tuple(archives))
    _contents(top.archives)
    return top


def close_archives() -> None:
    """Let go of what was opened."""
    _contents.cache_clear()
    _open.cache_clear()


@dataclass(frozen=True)
class _Contents:
    files: dict[str, tuple[Path, zipfile.ZipInfo]]  # path inside -> where it is
    folders: dict[str, set[str]]  # path inside -> names in it


@functools.lru_cache(maxsize=16)
def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as err:
        raise ValueError(f"'{archive}' cannot be opened as a zip archive ({err}). Download or copy it again.") from err


@functools.lru_cache(maxsize=4)
def _contents(archives: tuple[Path, ...]) -> _Contents:
    files: dict[str, tuple[Path, zipfile.ZipInfo]] = {}
    folders: dict[str, set[str]] = {"": set()}
    for archive in archives:
        own: set[str] = set()
        for info in _open(archive).infolist():
            _check(archive, info)
            path = PurePosixPath(info.filename)
            inner = str(path)
            if path.parts[0] in NOT_OURS:
                continue
            if not info.is_dir():
                if inner in own:
                    raise ValueError(f"'{archive}' holds two files '{inner}'. Download or make it again.")
                own.add(inner)
                _, other = files.get(inner, (None, info))
                if (other.CRC, other.file_size) != (info.CRC, info.file_size):
                    raise ValueError(
                        f"'{files[inner][0]}' and '{archive}' hold different files '{inner}'. Name the archives that "
                        "belong together: --source A.zip B.zip."
                    )
                files.setdefault(inner, (archive, info))
            else:
                folders.setdefault(inner, set())
            while inner:
                folders.setdefault(_parent(inner), set()).add(PurePosixPath(inner).name)
                inner = _parent(inner)
    both = next((inner for inner in files if inner in folders), None)
    if both is not None:
        raise ValueError(f"'{both}' is both a file and a folder in {', '.join(map(str, archives))}.")
    return _Contents(files, folders)


def _parent(inner: str) -> str:
    parent = str(PurePosixPath(inner).parent)
    return "" if parent == "." else parent


def _check(archive: Path, info: zipfile.ZipInfo) -> None:
    """Refuse what an archive of pictures and labels has no reason to hold."""
    name, parts = info.orig_filename, PurePosixPath(info.filename).parts
    reason = None
    if name.startswith("/") or not parts or ":" in parts[0] or "\\" in name or "\0" in name:
        reason = "is no path inside it"
    elif ".." in parts:
        reason = "leads out of it"
    elif stat.S_ISLNK(info.external_attr >> 16):
        reason = "is a link"
    elif info.flag_bits & 1:
        reason = "is encrypted"
    elif info.file_size > LARGEST_FILE:
        reason = f"unpacks to {info.file_size / 2**30:.1f} GiB"
    elif info.file_size > max(SMALL_FILE, LARGEST_RATIO * info.compress_size):
        reason = f"unpacks to {info.file_size // max(info.compress_size, 1)} times its size"
    if reason:
        raise ValueError(f"archive '{archive}' is refused: its entry {name!r} {reason}.")
