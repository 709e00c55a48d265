"""`semseg-diffusers study`: its output, resuming after a kill, and what it refuses."""

import json
import os
import re
import shutil
import signal

import psutil
import pytest
from helpers.page_reading import PageReader, assert_self_contained, drawings
from helpers.study_place import change_rows, study, write_scenes_as_generated
from helpers.training_runs import finished, start, wait_until

from semseg_diffusers.toy.scenes import write_toy_dataset


SIZE = 32
SHORT = ("--architecture", "segformer-mini", "--max_train_steps", 4, "--train_batch_size", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `toy`, `generated`, `filtered`, and `out`, a study of them."""
    folder = tmp_path_factory.mktemp("study")
    write_toy_dataset(folder / "toy", num_train=4, num_val=3, size=(SIZE, SIZE), seed=0)
    write_scenes_as_generated(folder / "generated", 8, SIZE)
    write_scenes_as_generated(folder / "filtered", 6, SIZE)
    (folder / "filtered" / "filter.json").write_text(json.dumps({"segmenter_sha256": "sha256:0123456789abcdef"}))
    study(*options(folder, folder / "out"), "--filtered", folder / "filtered", "--amounts", 0.5, 1.5, "--seeds", 0, 1)
    return folder


def options(place, output, generated=None, dataset=None) -> tuple:
    data = ("--dataset", dataset or place / "toy", "--generated", generated or place / "generated")
    return (*data, "--output", output, "--jobs", 1, *SHORT)


def report(output) -> tuple[bytes, bytes]:
    return (output / "results.json").read_bytes(), (output / "report.html").read_bytes()


# Output -------------------------------------------------------------------------------------------------------


def test_results_hold_settings_and_every_figure(place):
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["settings"]["max_train_steps"] == 4
    assert results["seeds"] == [0, 1]
    assert {"commit", "versions", "recipe", "network", "resolution", "data", "absent", "notes"} <= results.keys()
    counts = {name: entry["num_images"] for name, entry in results["data"].items()}
    assert counts == {"real": 4, "validation": 3, "generated": 8, "filtered": 6}
    assert len({entry["hash"] for entry in results["data"].values()}) == 4
    assert len(results["arms"]) == 1 + 5 * 2
    for arm in results["arms"]:
        assert len(arm["mean_iou"]["values"]) == 2
        assert arm["mean_iou"]["mean"] == pytest.approx(sum(arm["mean_iou"]["values"]) / 2)
        assert arm["passes"] == 4 * 2 / arm["num_pairs"]
        assert set(arm["iou"]) | set(results["absent"]) == set(results["arms"][0]["iou"]) | set(results["absent"])
    assert len(results["comparisons"]) == 9 * 2
    assert "sha256:0123456789abcdef" in " ".join(results["notes"])
    assert "The networks of this study are trained from random weights" in " ".join(results["notes"])
    files = sorted(path.name for path in (place / "out" / "trainings").iterdir())
    assert len(files) == 2 * (1 + 5 * 2)
    assert sorted(path.name for path in (place / "out").iterdir() if path.name != ".lock") == [
        "report.html",
        "results.json",
        "study.json",
        "trainings",
    ]


def test_a_training_writes_its_result(place):
    result = json.loads((place / "out" / "trainings" / "real_synthetic-x1.5-seed1.json").read_text())
    assert (result["num_pairs"], result["num_synthetic"], result["device"]) == (10, 6, "cpu")
    assert result["scores"]["num_images"] == 3
    assert result["seconds"] > 0


def test_the_page_is_self_contained_and_agrees_with_the_results(place):
    html = (place / "out" / "report.html").read_text()
    assert_self_contained(html)
    page = PageReader(html)
    results = json.loads((place / "out" / "results.json").read_text())
    for finding in results["findings"]:
        assert finding["text"] in page.text
    for note in results["notes"]:
        assert note in page.text
    for title in ("Mean IoU", "By amount", "Classes", "What was trained on", "How this was made"):
        assert title in page.text
    arm = results["arms"][3]
    assert arm["title"] in page.text
    assert f"{arm['mean_iou']['mean']:.3f}" in page.text
    assert len(drawings(html)) > len(results["arms"]) + len(results["comparisons"])
    assert page.tags.count("img") == 3 * 4 * 2  # four pairs of each pool
    assert "--amounts 0.5 1.5" in html


# Resuming -----------------------------------------------------------------------------------------------


def test_a_finished_study_is_not_trained_again_and_can_be_extended(place, tmp_path):
    out = shutil.copytree(place / "out", tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "trainings").iterdir()}
    filtered = ("--filtered", place / "filtered")
    study(*options(place, out), *filtered, "--amounts", 0.5, 1.5, "--seeds", 0, 1)
    assert report(out) == report(place / "out")
    # without the filtered set, fewer amounts and one seed more
    said = study(*options(place, out), "--arms", "real", "synthetic", "--amounts", 0.5, "--seeds", 0, 1, 2)
    assert "Synthetic only, 0.5x: " in said
    assert {
        path.name: path.stat().st_mtime_ns for path in (out / "trainings").iterdir() if path.name in stamps
    } == stamps
    assert len(list((out / "trainings").iterdir())) == len(stamps) + 2
    study(*options(place, out), *filtered, "--amounts", 0.5, 1.5, "--seeds", 0, 1)
    assert report(out) == report(place / "out")


@pytest.mark.slow
def test_a_killed_study_resumes_with_the_same_report(place, tmp_path, nothing_stays_running):
    out = tmp_path / "out"
    words = (*options(place, out), "--filtered", place / "filtered", "--amounts", 0.5, 1.5, "--seeds", 0, 1)
    process = start("-m", "semseg_diffusers.cli", "study", *words)
    wait_until(lambda: len(list(out.glob("trainings/*.json"))) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(out.glob("trainings/*.json")))
    assert not (out / "results.json").exists()
    (out / "trainings" / "real-seed0.json.tmp-1").write_text("{")  # half-written
    assert done < 22
    study(*words)
    assert report(out) == report(place / "out")
    assert not list(out.rglob("*.tmp-*"))


@pytest.mark.slow
def test_several_processes_give_the_same_report_and_end_with_their_parent(place, tmp_path, nothing_stays_running):
    out = tmp_path / "out"
    words = [*map(str, options(place, out)), "--filtered", str(place / "filtered"), "--amounts", "0.5", "1.5"]
    words[words.index("--jobs") + 1] = "2"
    words += ["--seeds", "0", "1"]
    process = start("-m", "semseg_diffusers.cli", "study", *words)
    wait_until(lambda: any(out.glob("trainings/*.json")), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()  # the parent alone
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    finished(start("-m", "semseg_diffusers.cli", "study", *words))
    assert report(out) == report(place / "out")


@pytest.mark.slow
def test_a_process_that_fails_ends_the_study_with_a_reason(place, tmp_path, nothing_stays_running):
    out = tmp_path / "out"
    words = [*map(str, options(place, out)), "--learning_rate", "1e30", "--seeds", "0", "1"]
    words[words.index("--jobs") + 1] = "2"
    process = start("-m", "semseg_diffusers.cli", "study", *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "diverged: at step 4 its loss is nan. Lower --learning_rate (it is 1e+30)" in said


# Refusals -----------------------------------------------------------------------------------------------


def test_other_settings_in_a_folder_are_refused_by_name(place, tmp_path):
    out = place / "out"
    more = ("--filtered", place / "filtered", "--seeds", 0, "--amounts", 0.5)
    before = report(out)
    said = study(*options(place, out), *more, "--max_train_steps", 5, expect=2)
    assert "holds trainings with other settings (max_train_steps: 4 there, 5 now). Choose another folder" in said
    assert "learning_rate: 0.003 there, 0.5 now" in study(
        *options(place, out), *more, "--learning_rate", 0.5, expect=2
    )
    generated = shutil.copytree(place / "generated", tmp_path / "generated")
    masks = sorted((generated / "masks").iterdir())
    shutil.copy(masks[0], masks[1])
    said = study(*options(place, out, generated=generated), *more, expect=2)
    assert "generated images: sha256:" in said
    assert report(out) == before


def test_another_study_lends_what_it_trained_without_synthetic_pairs(place, tmp_path):
    arms = ("--arms", "real", "real_duplicated", "real_synthetic", "--amounts", 0.5, 1.5, "--seeds", 1, 2)
    use = ("--synthetic_share", 0.5)
    study(*options(place, tmp_path / "alone"), *arms, *use)
    study(*options(place, tmp_path / "lent"), *arms, *use, "--baseline_from", place / "out")
    assert report(tmp_path / "lent") == report(tmp_path / "alone")
    for name in ("real-seed1", "real_duplicated-x0.5-seed1", "real_duplicated-x1.5-seed1"):  # with its seconds
        files = [folder / "trainings" / f"{name}.json" for folder in (place / "out", tmp_path / "lent")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_baseline_of_other_photos_or_another_recipe_is_refused(place, tmp_path):
    words = (*options(place, tmp_path / "new"), "--arms", "real", "real_synthetic", "--baseline_from")
    for more, reason in (
        ((place,), "is not a study: it has no study.json"),
        ((place / "out", "--flip", 0), "other settings .*horizontal_flip"),
        ((place / "out", "--max_train_steps", 5), "other settings .*max_train_steps"),
        ((place / "out", "--seeds", 7), "none of the trainings that this study needs: real-seed7"),
    ):
        assert re.search(reason, study(*words, *more, expect=2))
    assert not (tmp_path / "new").exists()


def test_the_same_data_elsewhere_is_the_same_study(place, tmp_path):
    out = shutil.copytree(place / "out", tmp_path / "out")
    toy = shutil.copytree(place / "toy", tmp_path / "elsewhere")
    study(*options(place, out, dataset=toy), "--seeds", 0, 1, "--amounts", 0.5)
    assert len(list((out / "trainings").iterdir())) == 22


def test_folders_of_another_kind_are_not_touched(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "was not made by study (it holds notes.txt)" in study(*options(place, tmp_path / "mine"), expect=2)
    assert "is a file; expected a folder" in study(*options(place, tmp_path / "mine" / "notes.txt"), expect=2)
    assert "--jobs must be 1 or more; got 0" in study(*options(place, tmp_path / "new"), "--jobs", 0, expect=2)
    assert "there is no architecture" not in study(*options(place, tmp_path / "new"), "--amounts", 9, expect=2)
    assert not (tmp_path / "new").exists()


def test_damaged_files_are_named(place, tmp_path):
    out = shutil.copytree(place / "out", tmp_path / "out")
    file = out / "trainings" / "real-seed0.json"
    other = (out / "trainings" / "real-seed1.json").read_text()
    more = ("--seeds", 0, "--amounts", 0.5)
    file.write_text("{")
    assert "real-seed0.json' holds no result of a training" in study(*options(place, out), *more, expect=2)
    file.write_text(other)
    assert "real-seed0.json' belongs to real-seed1. Delete it" in study(*options(place, out), *more, expect=2)
    (out / "study.json").write_text("[")
    assert "is not a record of a study" in study(*options(place, out), *more, expect=2)


def test_a_leak_is_refused_unless_forced_and_then_shown_on_the_page(place, tmp_path):
    generated = change_rows(shutil.copytree(place / "generated", tmp_path / "generated"), stem="toy_0_5000000")
    words = (*options(place, tmp_path / "out", generated=generated), "--arms", "real", "synthetic", "--seeds", 0)
    said = study(*words, expect=2)
    assert "generated from masks or images of the validation split" in said
    assert "with a warning on the page: --force" in said
    assert not (tmp_path / "out").exists()
    study(*words, "--force")
    html = (tmp_path / "out" / "report.html").read_text()
    assert 'class="warning"' in html
    assert "generated from masks or images of the validation split" in PageReader(html).text


def test_a_training_that_diverges_is_refused(place, tmp_path):
    words = (*options(place, tmp_path / "out"), "--arms", "real", "synthetic", "--seeds", 0, "--learning_rate", 1e30)
    assert "'real-seed0' diverged: at step 4 its loss is nan" in study(*words, expect=2)


# Shares of the real images -----------------------------------------------------------------------------------


def test_shares_are_studied_one_by_one_and_a_page_shows_their_curve(place, tmp_path):
    words = options(place, tmp_path / "out", generated=tmp_path / "new_{share}")
    shutil.copytree(place / "generated", tmp_path / "new_0.5")
    with pytest.raises(AssertionError, match=r"there is no folder '.*new_1'"):
        study(*words, "--real_share", 0.5, 1, "--seeds", 0, 1, "--arms", "real", "real_synthetic")
    first = (tmp_path / "out" / "share_0.5" / "trainings" / "real-seed0.json").stat().st_mtime_ns
    shutil.copytree(place / "generated", tmp_path / "new_1")
    said = study(*words, "--real_share", 0.5, 1, "--seeds", 0, 1, "--arms", "real", "real_synthetic")
    assert (tmp_path / "out" / "share_0.5" / "trainings" / "real-seed0.json").stat().st_mtime_ns == first
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(entry["share"], entry["num_real"]) for entry in results["shares"]] == [(0.5, 2), (1.0, 4)]
    for entry in results["shares"]:
        own = json.loads((tmp_path / "out" / f"share_{entry['share']:g}" / "results.json").read_text())
        assert entry["arms"] == own["arms"]
        assert entry["comparisons"] == own["comparisons"]
    gain = results["shares"][0]["comparisons"][0]["mean_iou"]["mean"]
    assert f"mean IoU {gain:+.3f}" in said
    html = (tmp_path / "out" / "report.html").read_text()
    assert f"{results['shares'][1]['arms'][0]['mean_iou']['mean']:.3f}" in html
    assert 'href="share_0.5/report.html"' in html
    message = study(
        *options(place, place / "out", generated=tmp_path / "new_{share}"), "--real_share", 0.5, 1, expect=2
    )
    assert "holds study.json, which is not of a study of several shares" in message
