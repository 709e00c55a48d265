"""A preparation that is stopped or killed resumes where it was, and several processes write what one writes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.driving_sets import all_bytes, ids_of, save, save_photo
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data import prepare
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.utils import parallel as workers
from semseg_diffusers.utils.files import PROGRESS_FILE, staging_folder


ROOT = Path(__file__).resolve().parents[2]
PAIRS = 12


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for i in range(PAIRS):
        save_photo(root / "images" / ("val" if i < 4 else "train") / f"p{i:02}.png", i)
        save(root / "masks" / ("val" if i < 4 else "train") / f"p{i:02}.png", ids_of(i))
    LabelSet.from_preset("bdd100k").save_json(root / "labels.json")
    return root


def settings_of(source: Path, output: Path, **changes) -> PrepareSettings:
    return PrepareSettings(source=str(source), output=str(output), **{"resolution": (24, 24), "seed": 0, **changes})


@pytest.fixture
def stop_after(monkeypatch):
    """Let so many pairs be written, then raise; with None it only counts. Returns the stems that were written."""
    original = prepare.save_pair

    def install(count: int | None, error: BaseException | None = None) -> list[str]:
        written: list[str] = []

        def save_or_stop(folder, stem, *rest):
            if count is not None and len(written) == count:
                (folder / "images" / f"{stem}.png").write_bytes(b"half a fi")
                raise error
            written.append(stem)
            return original(folder, stem, *rest)

        monkeypatch.setattr(prepare, "save_pair", save_or_stop)
        return written

    return install


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not_stopped(source, tmp_path, stop_after, error):
    whole = prepare_dataset(settings_of(source, tmp_path / "whole"))
    first = stop_after(5, error)
    with pytest.raises(type(error)):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    second = stop_after(None)
    report = prepare_dataset(settings_of(source, tmp_path / "out", num_workers=3))
    assert (len(first), len(second), report.resumed) == (5, PAIRS - 5, 5)
    assert not set(first) & set(second)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")
    assert (report.splits, report.enlarged) == (whole.splits, whole.enlarged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_the_command_says_how_a_stopped_run_goes_on(source, tmp_path, stop_after, capsys, error, code):
    words = ["prepare", "--source", str(source), "--output", str(tmp_path / "out"), "--num_workers", "1"]
    stop_after(5, error)
    assert cli.main(words) == code
    assert "stopped; finished pairs are kept in " in capsys.readouterr().err
    stop_after(None)
    assert cli.main(words) == 0
    answer = capsys.readouterr().out
    assert f"8 train, 4 val pairs in {tmp_path / 'out'}, read as folder" in answer
    assert "5 of them are from a run that was stopped" in answer


def test_what_was_enlarged_before_the_stop_is_counted_too(source, tmp_path, stop_after):
    stop_after(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out", resolution=(64, 64)))
    stop_after(None)
    assert prepare_dataset(settings_of(source, tmp_path / "out", resolution=(64, 64))).enlarged == PAIRS


def test_pixels_that_were_mapped_before_the_stop_are_counted_too(source, tmp_path, stop_after):
    prepare_dataset(settings_of(source, tmp_path / "whole", map_to="camvid"))
    stop_after(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out", map_to="camvid"))
    stop_after(None)
    assert prepare_dataset(settings_of(source, tmp_path / "out", map_to="camvid")).resumed == 5
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_a_run_that_was_stopped_before_its_first_pair_leaves_nothing(source, tmp_path, stop_after):
    stop_after(0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("change", ["resolution", "fit", "seed", "map_to", "a file", "a file more"])
def test_other_settings_or_files_begin_anew(source, tmp_path, stop_after, change):
    stop_after(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    changes = {"resolution": (16, 16), "fit": "pad", "seed": 1, "map_to": "camvid"}
    changes = {change: changes[change]} if change in changes else {}
    if change == "a file":
        save(source / "masks/train/p05.png", ids_of(77))
    elif change == "a file more":
        save_photo(source / "images/train/p99.png", 1)
        save(source / "masks/train/p99.png", ids_of(1))
    written = stop_after(None)
    assert prepare_dataset(settings_of(source, tmp_path / "out", **changes)).resumed == 0
    assert len(written) == PAIRS + (change == "a file more")


def test_what_did_not_reach_the_disk_is_made_again(source, tmp_path, stop_after):
    """As after a power cut: a note cut off in the middle, a file that is shorter than it was."""
    prepare_dataset(settings_of(source, tmp_path / "whole"))
    stop_after(6, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    folder = staging_folder(tmp_path / "out")
    progress = folder / PROGRESS_FILE
    lines = progress.read_text().splitlines()
    progress.write_text("\n".join(lines)[:-9])
    (folder / "train/images/p04.png").write_bytes(b"")
    (folder / "train/masks/p05.png").unlink()
    stop_after(None)
    assert prepare_dataset(settings_of(source, tmp_path / "out")).resumed == 3
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")


def test_an_error_in_a_file_leaves_nothing_even_after_a_stop(source, tmp_path, stop_after):
    stop_after(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    stop_after(None)
    (source / "masks/val/p03.png").write_bytes(b"")
    with pytest.raises(ValueError, match="p03.png' is empty"):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_an_error_and_leaves_no_data_set(source, tmp_path):
    """The system refuses to write more than some bytes, as a full disk does; the dataset that was there stays."""
    prepare_dataset(settings_of(source, tmp_path / "out"))
    before = all_bytes(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(
            OSError, match="the disk is full: '.*out' could not be written, and nothing of it is left"
        ) as raised:
            prepare_dataset(settings_of(source, tmp_path / "out", resolution=(36, 64), overwrite=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert all_bytes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_an_overwrite_that_was_killed_in_the_exchange_leaves_the_old_data_set(source, tmp_path):
    prepare_dataset(settings_of(source, tmp_path / "out"))
    before = all_bytes(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.preparing.old")  # its first step
    with pytest.raises(ValueError, match="'.*out' is not empty.*--overwrite"):
        prepare_dataset(settings_of(source, tmp_path / "out"))
    assert all_bytes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_two_runs_into_one_output_are_refused(source, tmp_path, monkeypatch):
    def meanwhile(*_args):
        prepare_dataset(settings_of(source, tmp_path / "out"))

    monkeypatch.setattr(prepare, "finish_dataset", meanwhile)
    with pytest.raises(ValueError, match="another process prepares '.*out'"):
        prepare_dataset(settings_of(source, tmp_path / "out"))


# Several processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parallel_and_serial_write_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SMALLEST_SHARE", 1)
    for name, num_workers in (("serial", 1), ("parallel", 3)):
        prepare_dataset(settings_of(source, tmp_path / name, num_workers=num_workers))
    assert all_bytes(tmp_path / "serial") == all_bytes(tmp_path / "parallel")


KILLED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what they start in the background ignore it
from semseg_diffusers import cli
from semseg_diffusers.data import prepare
from semseg_diffusers.utils import parallel as workers
workers.SMALLEST_SHARE = 1
make_pair = prepare.make_pair

def slowly(*args, **kwargs):
    time.sleep(0.4)
    return make_pair(*args, **kwargs)

if __name__ == "__main__":
    prepare.make_pair = slowly
    settings = prepare.PrepareSettings(source=sys.argv[1], output=sys.argv[2], resolution=(24, 24), num_workers=2)
    prepare.prepare_dataset(settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_in_several_processes_that_is_killed_goes_on_and_leaves_no_process(source, tmp_path, signum):
    prepare_dataset(settings_of(source, tmp_path / "whole"))
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(source), str(tmp_path / "out")], env=environment)
    progress = staging_folder(tmp_path / "out") / PROGRESS_FILE
    try:
        deadline = time.monotonic() + 120
        while not (progress.is_file() and progress.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline, "no pair was made"
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(signum)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert not (tmp_path / "out").exists()
    report = prepare_dataset(settings_of(source, tmp_path / "out"))
    assert 3 <= report.resumed < PAIRS
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"] == {"train": 8, "val": 4}
    assert np.array(sorted(path.name for path in tmp_path.iterdir())).tolist() == [
        "out",
        "script.py",
        "source",
        "whole",
    ]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_finished_pair_whose_file_changed_in_place_is_made_again(source, tmp_path, stop_after, part):
    stop_after(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(settings_of(source, tmp_path / "out", num_workers=1))
    file = source / part / "train" / "p04.png"
    before, (width, height) = file.stat(), Image.open(file).size
    value = np.full((height, width), 3, np.uint8)
    Image.fromarray(value).convert("RGB" if part == "images" else "L").save(file)
    data = file.read_bytes()
    file.write_bytes(data + bytes(before.st_size - len(data)))  # PNG readers ignore what follows the end
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    written = stop_after(None)
    report = prepare_dataset(settings_of(source, tmp_path / "out", num_workers=1))
    assert (report.resumed, "p04" in written, len(written)) == (4, True, PAIRS - 4)
    made = np.asarray(Image.open(tmp_path / "out" / "train" / part / "p04.png"))
    assert (made == 3).all()
