"""Zip archives are read as folders are, and nothing harmful in one is touched."""

import pickle
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from helpers.driving_sets import all_bytes, bdd100k, zip_folder

from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.readers import read_file, read_source
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.utils.archives import ArchivePath, close_archives, open_archives


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_an_archive_path_is_like_a_path(tmp_path):
    top = open_archives([write_zip(tmp_path / "a.zip", {"x/b.txt": b"two", "x/a.tar.gz": b"one", "x/y/c": b"3"})])
    assert [path.name for path in (top / "x").iterdir()] == ["a.tar.gz", "b.txt", "y"]
    assert ((top / "x").is_dir(), (top / "x").is_file(), (top / "z").is_dir()) == (True, False, False)
    file = top / "x" / "b.txt"
    assert (file.name, file.stem, file.suffix, file.read_text()) == ("b.txt", "b", ".txt", "two")
    assert str(file) == f"{tmp_path}/a.zip/x/b.txt"
    assert pickle.loads(pickle.dumps(file)).read_bytes() == b"two"
    with pytest.raises(FileNotFoundError, match="there is no file '.*z'"):
        (top / "z").read_bytes()


def test_several_archives_lie_over_one_another(tmp_path):
    first = write_zip(tmp_path / "a.zip", {"top/images/a": b"1", "top/same": b"s"})
    second = write_zip(tmp_path / "b.zip", {"top/labels/a": b"2", "top/same": b"s", "__MACOSX/top/._a": b""})
    top = open_archives([first, second])
    assert [path.name for path in (top / "top").iterdir()] == ["images", "labels", "same"]
    assert [path.name for path in top.iterdir()] == ["top"]
    third = write_zip(tmp_path / "c.zip", {"top/same": b"other"})
    with pytest.raises(ValueError, match=r"'.*a.zip' and '.*c.zip' hold different files 'top/same'"):
        open_archives([first, third])


def entry(name: str, *, link: bool = False) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK if link else stat.S_IFREG) << 16
    return info


@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("/etc/passwd", False, "is not a path inside it"),
        ("../../evil.png", False, "leads out of it"),
        ("images/../../evil.png", False, "leads out of it"),
        ("C:/evil.png", False, "is not a path inside it"),
        ("images\\evil.png", False, "is not a path inside it"),
        ("images/link.png", True, "is a link"),
    ],
)
def test_entries_that_could_reach_outside_are_refused(tmp_path, name, link, message):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/fine.png", b"")
        archive.writestr(entry(name, link=link), b"/etc/passwd")
    with pytest.raises(ValueError, match=rf"archive '.*a.zip' is refused: its entry .* {message}"):
        open_archives([tmp_path / "a.zip"])
    with pytest.raises(ValueError, match="is refused"):
        read_source(tmp_path / "a.zip", "folder", "bdd100k")


def test_an_entry_that_bursts_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(20_000_000))
    with pytest.raises(ValueError, match=r"its entry 'images/a.png' unpacks to \d{3,} times its size"):
        open_archives([tmp_path / "a.zip"])


def patched(path: Path, offset: int, value: bytes) -> Path:
    """Change bytes of the last entry of the table of contents."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02") + offset
    data[start : start + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def test_encrypted_and_absurdly_large_entries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is encrypted"):
        open_archives([patched(write_zip(tmp_path / "a.zip", {"a.png": b"123"}), 8, struct.pack("<H", 1))])
    with pytest.raises(ValueError, match="its entry 'a.png' unpacks to"):
        open_archives([patched(write_zip(tmp_path / "b.zip", {"a.png": b"123"}), 24, struct.pack("<I", 2**31))])


def test_a_picture_of_many_megabytes_is_refused_before_it_is_read(tmp_path):
    top = open_archives(
        [patched(write_zip(tmp_path / "a.zip", {"a.png": b"1" * 2**21}), 24, struct.pack("<I", 2**28 + 1))]
    )
    with pytest.raises(ValueError, match="'.*a.zip/a.png' has 256 MiB; expected an image of at most 256 MiB"):
        read_file(top / "a.png")


def test_an_entry_that_unpacks_to_more_than_it_says_is_cut_and_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(500_000))
    top = open_archives([patched(tmp_path / "a.zip", 24, struct.pack("<I", 1000))])
    with pytest.raises(ValueError, match="'.*a.zip/a.png' cannot be read from its archive"):
        (top / "a.png").read_bytes()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("a.png", b"2")
    with pytest.raises(ValueError, match="holds two files 'a.png'"):
        open_archives([tmp_path / "a.zip"])


def test_what_is_no_archive_or_damaged_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="'.*a.zip' cannot be opened as a zip archive"):
        open_archives([tmp_path / "a.zip"])
    with pytest.raises(ValueError, match="the layout of '.*empty.zip' is not known"):
        read_source(write_zip(tmp_path / "empty.zip", {}))
    data = write_zip(tmp_path / "b.zip", {"a.txt": b"hello world"}).read_bytes()
    (tmp_path / "b.zip").write_bytes(data.replace(b"hello world", b"hellO world"))
    with pytest.raises(ValueError, match=r"'.*b.zip/a.txt' cannot be read from its archive \(Bad CRC"):
        (open_archives([tmp_path / "b.zip"]) / "a.txt").read_bytes()


@pytest.mark.parametrize("how", ["folder of archives", "archives", "one archive"])
def test_archives_are_prepared_as_what_they_hold(tmp_path, how):
    plain = bdd100k(tmp_path / "plain")
    archives = tmp_path / "archives"
    archives.mkdir()
    if how == "one archive":
        source: str | tuple = str(zip_folder(plain, archives / "all.zip", "download/"))
    else:
        images = zip_folder(plain / "images", archives / "bdd100k_images_10k.zip", "bdd100k/images/")
        labels = zip_folder(plain / "labels", archives / "bdd100k_sem_seg_labels_trainval.zip", "bdd100k/labels/")
        source = str(archives) if how == "folder of archives" else (str(images), str(labels))
    for name, where in (("a", str(plain)), ("b", source)):
        prepare_dataset(PrepareSettings(source=where, output=str(tmp_path / name), resolution=(16, 16)))
    assert all_bytes(tmp_path / "a", ["prepare.json"]) == all_bytes(tmp_path / "b", ["prepare.json"])
    close_archives()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "archives", "b", "plain"]  # nothing unpacked
    assert isinstance(next(iter(read_source(source).pairs)).image, ArchivePath)


class Unflagged(zipfile.ZipInfo):
    """An entry whose name is in UTF-8 without the flag that says so, as macOS writes it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        return self.filename.encode(), self.flag_bits


@pytest.mark.parametrize("name", ["Zürich.png", "Zu\u0308rich.png", "東京.png"])
def test_names_of_macos_archives_are_utf_8(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(Unflagged(name), b"1")
    assert next(open_archives([tmp_path / "a.zip"]).iterdir()).name == name


def test_names_with_colons_are_read(tmp_path):
    top = open_archives([write_zip(tmp_path / "a.zip", {"bdd::night/a:b.png": b"1"})])
    assert (top / "bdd::night" / "a:b.png").read_bytes() == b"1"
