"""Evaluation by two processes that `accelerate launch` starts: the results of one process, also after a kill."""

import json
import os
import signal

import psutil
import pytest
from helpers.evaluation_place import Place
from helpers.training_runs import finished, launch, wait_until, workers


TIMEOUT = 300  # seconds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_stays_running")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("evaluation"))


def options(place, output):
    return place.options(output, model=place.model, num_images_per_mask=2, num_inference_steps=2, batch_size=2)


def start(place, output):
    return launch("-m", "semseg_diffusers.evaluation", *options(place, output))


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

    output = tmp_path / "two"
    killed = start(place, output)
    # photos are read by then, generated images are not
    wait_until(lambda: len(list(output.glob("generated/images/*.png"))) >= 16, killed)
    everyone = workers(killed)
    for pid in (killed.pid, *(worker.pid for worker in everyone)):
        os.kill(pid, signal.SIGKILL)
    killed.wait(TIMEOUT)
    psutil.wait_procs(everyone, timeout=TIMEOUT)
    assert not (output / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    assert len(kept) == 16

    assert "2 processes, this one on cpu" in finished(start(place, output))
    assert kept == {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    found = results_of(output)
    for results in (found, expected):
        results.pop("generation")  # names the folder of the model alike, but is not what is compared
    assert_equal(found, expected)
    assert (output / "report.html").is_file()


def test_an_error_of_one_process_ends_both_with_one_message(place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps({"settings": {"dataset": "another"}}))
    refused = start(place, tmp_path / "out")
    said, _ = refused.communicate(TIMEOUT)
    assert refused.returncode != 0
    assert said.count("holds an evaluation with other settings") == 1
