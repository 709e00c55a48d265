"""Evaluation by two processes that `accelerate launch` starts: the results of one process, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.evaluation_place import Place


ROOT = Path(__file__).resolve().parents[2]
TWO_PROCESSES = ROOT / "configs" / "accelerate" / "cpu_processes.yaml"
TIMEOUT = 300  # seconds; a launch takes 20 on a free machine, mostly for its imports

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("evaluation"))


def options(place, output):
    return place.options(output, model=place.model, num_images_per_mask=2, num_inference_steps=2, batch_size=2)


def launch(place, output, log):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_PROCESSES]
    command += ["--main_process_port", 0, "-m", "semseg_diffusers.evaluation", *options(place, output)]
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        return subprocess.Popen(
            [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables
        )


def ended(launched):
    """The exit code; processes that hang do not outlive the test."""
    try:
        return launched.wait(TIMEOUT)
    finally:
        if launched.poll() is None:
            for process in (*psutil.Process(launched.pid).children(recursive=True), launched):
                process.kill()


def results_of(output):
    results = json.loads((output / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in ("started", "seconds", "settings")}


def assert_equal(found, expected, path=""):
    """Equal, but for the rounding of float32 in batches of other sizes."""
    assert type(found) is type(expected), path
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), path
        for key in found:
            assert_equal(found[key], expected[key], f"{path}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}[{number}]")
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=0.02, abs=1e-3), path
    else:
        assert found == expected, path


def test_two_processes_equal_one_and_resume_after_a_kill(place, tmp_path):
    place.command("evaluate", *options(place, tmp_path / "one"))
    expected = results_of(tmp_path / "one")

    output, log = tmp_path / "two", tmp_path / "killed.log"
    killed = launch(place, output, log)
    deadline = time.monotonic() + TIMEOUT
    while len(list(output.glob("generated/images/*.png"))) < 16:  # photos are read by then, generated images are not
        assert time.monotonic() < deadline, log.read_text()
        assert killed.poll() is None, log.read_text()
        time.sleep(0.02)
    everyone = [killed, *psutil.Process(killed.pid).children(recursive=True)]
    for process in everyone:
        os.kill(process.pid, signal.SIGKILL)
    killed.wait(TIMEOUT)
    psutil.wait_procs(everyone[1:], timeout=TIMEOUT)
    assert not (output / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    assert len(kept) == 16

    assert ended(launch(place, output, tmp_path / "again.log")) == 0, (tmp_path / "again.log").read_text()
    assert "2 processes, this one on cpu" in (tmp_path / "again.log").read_text()
    assert kept == {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    found = results_of(output)
    for results in (found, expected):
        results.pop("generation")  # names the folder of the model alike, but is not what is compared
    assert_equal(found, expected)
    assert (output / "report.html").is_file()


def test_an_error_of_one_process_ends_both_with_one_message(place, tmp_path):
    log = tmp_path / "refused.log"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps({"settings": {"dataset": "another"}}))
    assert ended(launch(place, tmp_path / "out", log)) != 0
    assert log.read_text().count("holds an evaluation with other settings") == 1
