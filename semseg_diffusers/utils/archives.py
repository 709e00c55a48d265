"""Read files from zip archives without unpacking: readers use an `ArchivePath` like a `pathlib.Path`.

An archive may come from anywhere: entries that could reach outside it, hide in it or fill the disk are refused when it
is opened, before any file of it is read.
"""

import functools
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple


LARGEST_FILE = 8 * 2**30  # bytes, unpacked; the largest label file of a public dataset has 1.5 GB
LARGEST_RATIO = 200  # unpacked to packed; label files of JSON reach 30
SMALL_FILE = 2**20  # bytes; any ratio is harmless below
UTF_8 = 0x800  # flag of an entry
IGNORED = ("__MACOSX",)  # added by macOS
ROOT = PurePosixPath()


@dataclass(frozen=True, order=True)
class ArchivePath:
    """A file or folder `inner` in one or several zip archives, as if all were unpacked into one folder.

    It can be pickled; each process opens the archives itself.
    """

    archives: tuple[Path, ...]
    inner: PurePosixPath = ROOT

    def __truediv__(self, name: object) -> "ArchivePath":
        return replace(self, inner=self.inner / str(name))

    def __str__(self) -> str:
        entry = _contents(self.archives).files.get(self.inner)
        top = entry[0] if entry else self.archives[0] if len(self.archives) == 1 else self.archives[0].parent
        return str(top) if self.inner == ROOT else f"{top}/{self.inner}"

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.inner.name

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return self.inner.stem

    @property
    def suffix(self) -> str:
        """Return the suffix with its dot."""
        return self.inner.suffix

    def is_file(self) -> bool:
        """Return whether the archives have a file of this path."""
        return self.inner in _contents(self.archives).files

    def is_dir(self) -> bool:
        """Return whether the archives have a folder of this path."""
        return self.inner in _contents(self.archives).folders

    def iterdir(self) -> Iterator["ArchivePath"]:
        """Yield the entries of the folder, by name."""
        for name in sorted(_contents(self.archives).folders[self.inner]):
            yield self / name

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        archive, info = self._entry()
        try:
            return _open(archive).read(info)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as err:
            raise ValueError(
                f"'{self}' cannot be read from its archive ({err}). Download or copy the archive again."
            ) from err

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the file as text."""
        return self.read_bytes().decode(encoding)

    @property
    def size(self) -> int:
        """Return the number of bytes of the file, unpacked."""
        return self._entry()[1].file_size

    def fingerprint(self) -> tuple[int, int]:
        """Return the checksum and the size of the file."""
        info = self._entry()[1]
        return info.CRC, info.file_size

    def _entry(self) -> tuple[Path, zipfile.ZipInfo]:
        if not self.is_file():
            raise FileNotFoundError(f"there is no file '{self}'")
        return _contents(self.archives).files[self.inner]


def open_archives(archives: Sequence[Path]) -> ArchivePath:
    """Return the top folder of one or several archives, after checking that they are safe."""
    top = ArchivePath(tuple(archives))
    _contents(top.archives)
    return top


def close_archives() -> None:
    """Close what was opened."""
    _contents.cache_clear()
    _open.cache_clear()


class _Contents(NamedTuple):
    files: dict[PurePosixPath, tuple[Path, zipfile.ZipInfo]]  # path -> where it is
    folders: dict[PurePosixPath, set[str]]  # path -> names in it


@functools.lru_cache(maxsize=16)
def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as err:
        raise ValueError(f"'{archive}' cannot be opened as a zip archive ({err}). Download or copy it again.") from err


@functools.lru_cache(maxsize=4)
def _contents(archives: tuple[Path, ...]) -> _Contents:
    found = _Contents({}, {ROOT: set()})
    for archive in archives:
        for info in _open(archive).infolist():
            _check(archive, info)
            path = PurePosixPath(_name(info))
            if path.parts[0] in IGNORED:
                continue
            if info.is_dir():
                found.folders.setdefault(path, set())
            else:
                other, same = found.files.setdefault(path, (archive, info))
                if other == archive and same is not info:
                    raise ValueError(f"'{archive}' holds two files '{path}'. Download or make it again.")
                if (same.CRC, same.file_size) != (info.CRC, info.file_size):
                    raise ValueError(
                        f"'{other}' and '{archive}' hold different files '{path}'. Name the archives that belong "
                        "together: --source A.zip B.zip."
                    )
            for child in (path, *path.parents[:-1]):
                found.folders.setdefault(child.parent, set()).add(child.name)
    both = found.files.keys() & found.folders.keys()
    if both:
        raise ValueError(f"'{min(both)}' is both a file and a folder in {', '.join(map(str, archives))}.")
    return found


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name of an entry, which macOS writes in UTF-8 without saying so."""
    if info.flag_bits & UTF_8 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _check(archive: Path, info: zipfile.ZipInfo) -> None:
    """Refuse entries that an archive of images and labels has no reason to have."""
    name, parts = info.orig_filename, PurePosixPath(info.filename).parts
    reasons = {
        "is not a path inside it": name.startswith("/")
        or not parts
        or parts[0][1:2] == ":"
        or {"\\", "\0"} & set(name),
        "leads out of it": ".." in parts,
        "is a link": stat.S_ISLNK(info.external_attr >> 16),
        "is encrypted": info.flag_bits & 1,
        f"unpacks to {info.file_size / 2**30:.1f} GiB": info.file_size > LARGEST_FILE,
        f"unpacks to {info.file_size // max(info.compress_size, 1)} times its size": info.file_size
        > max(SMALL_FILE, LARGEST_RATIO * info.compress_size),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"archive '{archive}' is refused: its entry {name!r} {reason}.")
