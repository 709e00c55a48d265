"""The page of a run: written as it goes, when it has ended or was killed; self-contained, with its numbers."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.page_reading import PageReader, assert_self_contained, drawings
from helpers.training_runs import (
    SCRIPT,
    TINY,
    launch_two,
    log_lines,
    start,
    tiny_settings,
    train_here,
    wait_until,
)
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.reports import run_page as run_pages
from semseg_diffusers.reports.render import number
from semseg_diffusers.reports.run_folder import evenly, list_previews, previews_over_time, read_run
from semseg_diffusers.reports.run_page import duration, thin, write_run_page
from semseg_diffusers.training import loop
from semseg_diffusers.training import run as run_module
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import exclusive_folder
from semseg_diffusers.utils.images import grid_cells, image_grid, save_png


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
PREVIEWS = {"preview_steps": 2, "preview_masks": 2, "preview_samples": 2, "preview_inference_steps": 1}


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    return train_here(tiny_settings(toy, tmp_path_factory.mktemp("runs") / "a <b> run", **PREVIEWS))


@pytest.fixture
def run(trained, tmp_path):
    """A finished run that may be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def text_of(run):
    html = (run / "run.html").read_text()
    assert_self_contained(html)
    return PageReader(html).text


def set_status(run, **changes):
    path = run / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What it holds


def test_the_page_of_a_finished_run_is_self_contained_and_holds_its_numbers(trained):
    html, lines = (trained / "run.html").read_text(), log_lines(trained)
    assert_self_contained(html)
    assert "http:" not in html
    assert "https:" not in html
    text = PageReader(html).text
    assert "Training run a <b> run" in text
    assert "Finished after step 4 of 4." in text
    assert f"{number(lines[-1]['loss'])}, mean of the last interval" in text
    least = min(lines, key=lambda line: line["loss"])
    assert f"the least was {number(least['loss'])} at step {least['step']}" in text
    assert f"each interval ({number(lines[-1]['loss'])} at 4)" in text
    assert "8: each of 6 pairs 1.33 times on average" in text
    assert text.count("optimizer step") == 3  # charts of loss, learning rate, speed
    plots = [svg for svg in drawings(html) if any("var(--s0)" in part.get("style", "") for part in svg.iter())]
    assert len(plots) == 3


def test_settings_that_are_not_the_defaults_stand_first_and_all_are_folded(trained):
    html = (trained / "run.html").read_text()
    changed, _, folded = html.partition("<details>")
    settings = json.loads((trained / "settings.json").read_text())
    changed = changed[changed.index("Those that are not the defaults") :]
    assert set(re.findall(r'<th scope="row">(\w+)</th>', changed)) == {"dataset", "output_dir", *TINY, *PREVIEWS} - {
        "preview_samples"  # 2 is the default
    }
    assert re.findall(r'<th scope="row">(\w+)</th>', folded) == list(settings)
    assert '<th scope="row">block_out_channels</th><td>8, 16</td><td>32, 64, 128, 192</td>' in changed


def test_warnings_classes_and_commands_stand_on_the_page(trained, toy):
    text, record = text_of(trained), json.loads((trained / "run.json").read_text())
    assert record["warnings"]
    assert all(warning in text for warning in record["warnings"])
    assert all(entry["name"] in text for entry in record["classes"])
    assert f"semseg-diffusers evaluate --model '{trained}' --dataset {toy} --split val" in text
    assert f"--config '{trained}/settings.json' --resume_from_checkpoint latest --max_train_steps 8" in text


def test_the_preview_and_the_image_over_time_are_inside(trained):
    html = (trained / "run.html").read_text()
    sources = [value for value in PageReader(html).values("src")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/") for source in sources)


# Samples over time


def preview(path, masks, shade, samples=2):
    """A preview whose samples of mask m have the grey value `shade` + m; masks are colours."""
    rows = [
        [Image.new("RGB", (32, 16), (mask, 0, 0)), *[Image.new("RGB", (32, 16), (shade + mask,) * 3)] * samples,
         Image.new("RGB", (32, 16), (0, mask, 0))]
        for mask in masks
    ]  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    save_png(path, image_grid(rows, headers=["mask", *["sample"] * samples, "photo"]))


def shades(sheet):
    """Return the colour in the middle of each cell of a sheet."""
    return [[cell.getpixel((cell.width // 2, cell.height // 2)) for cell in row] for row in grid_cells(sheet)]


def test_cells_of_a_sheet_are_found_again_after_saving(tmp_path):
    photos = [[Image.fromarray(np.full((16, 32, 3), 10 * i + j, np.uint8)) for j in range(3)] for i in range(2)]
    sheet = image_grid(photos, headers=["a", "a header of two lines", "b"], row_labels=["one", "two"])
    save_png(tmp_path / "sheet.png", sheet)
    with Image.open(tmp_path / "sheet.png") as read:
        assert shades(read) == shades(sheet) == [[(10 * i + j,) * 3 for j in range(3)] for i in range(2)]
    assert grid_cells(Image.new("RGB", (9, 9))) is None


def test_over_time_has_a_row_a_mask_and_a_column_a_step_mask_first_and_photo_last(tmp_path):
    for step in (10, 20, 30):
        preview(tmp_path / "previews" / f"step-{step:07d}.png", [1, 2], shade=step)
    sheet = previews_over_time(list_previews(tmp_path))
    assert shades(sheet) == [[(m, 0, 0), *[(s + m,) * 3 for s in (10, 20, 30)], (0, m, 0)] for m in (1, 2)]


def test_of_many_previews_evenly_spaced_ones_are_shown_the_first_and_the_last_among_them(tmp_path):
    for step in range(1, 101):
        preview(tmp_path / "previews" / f"step-{step:07d}.png", [1], shade=step)
    (row,) = shades(previews_over_time(list_previews(tmp_path)))
    steps = [red - 1 for red, _, _ in row[1:-1]]
    assert (len(steps), steps[0], steps[-1]) == (8, 1, 100)
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} <= {14, 15}


def test_a_preview_of_other_masks_leaves_its_places_empty(tmp_path):
    preview(tmp_path / "previews" / "step-0000001.png", [7], shade=10)
    preview(tmp_path / "previews" / "step-0000002.png", [2, 5], shade=20, samples=1)
    preview(tmp_path / "previews" / "step-0000003.png", [1, 2], shade=30)
    white = (255, 255, 255)
    assert shades(previews_over_time(list_previews(tmp_path))) == [
        [(1, 0, 0), white, (31, 31, 31), (0, 1, 0)],
        [(2, 0, 0), (22, 22, 22), (32, 32, 32), (0, 2, 0)],
    ]


def test_previews_without_a_layout_are_left_out(tmp_path):
    (tmp_path / "previews").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "previews" / "step-0000001.png")
    assert previews_over_time(list_previews(tmp_path)) is None
    assert previews_over_time([]) is None


def test_a_run_writes_the_image_over_time(trained):
    with Image.open(trained / "previews" / "over_time.png") as sheet:
        cells = grid_cells(sheet)
    assert [len(row) for row in cells] == [4, 4]  # mask, steps 2 and 4, photo


# When it is written


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_the_page_is_rewritten_whole_at_previews_and_checkpoints_unless_it_is_recent_and_at_the_end(
    toy, tmp_path, monkeypatch, seconds
):
    monkeypatch.setattr(run_module, "PAGE_SECONDS", seconds)
    seen, update = [], run_pages.update_run_page

    def recorded(run, defaults):
        update(run, defaults)
        text = text_of(run)
        seen.append((log_lines(run)[-1]["step"], read_run(run).state, "Running, at step" in text))

    monkeypatch.setattr(run_module, "update_run_page", recorded)
    monkeypatch.setattr(run_pages, "update_run_page", recorded)
    settings = tiny_settings(toy, tmp_path / "run", max_train_steps=5, **{**PREVIEWS, "preview_steps": 3})
    run = train_here(settings)
    between = [(step, "running", True) for step in (2, 3, 4)]
    assert seen == [*(between if seconds == 0 else []), (5, "finished", False)]
    assert not [path.name for path in run.rglob("*.tmp*")]


def test_a_page_that_cannot_be_written_ends_no_training(toy, tmp_path, caplog):
    run = tmp_path / "run"
    (run / "run.html").mkdir(parents=True)
    train_here(tiny_settings(toy, run, max_train_steps=2))
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert "run.html could not be written" in caplog.text


def test_a_run_that_cannot_start_says_why_and_not_that_it_has_no_page(toy, tmp_path):
    run = tmp_path / "run"
    (run / "settings.json").mkdir(parents=True)
    with pytest.raises(OSError, match="settings.json"):
        train_here(tiny_settings(toy, run))
    assert not (run / "run.html").exists()


def test_the_page_of_a_run_that_fails_says_why(toy, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise ValueError("photo 'x' cannot be read")

    monkeypatch.setattr(loop, "diffusion_loss", fail)
    with pytest.raises(ValueError, match="photo 'x'"):
        train_here(tiny_settings(toy, tmp_path / "run"))
    text = text_of(tmp_path / "run")
    assert "Failed after step 0 of 4: ValueError: photo 'x' cannot be read." in text
    assert "There is no checkpoint to resume from yet" in text


def test_the_page_of_a_resumed_run_covers_all_of_it(toy, tmp_path):
    run = tmp_path / "run"
    train_here(tiny_settings(toy, run, **PREVIEWS))
    shutil.rmtree(run / "checkpoint-4")  # as after a kill between step 2 and step 4
    preview(run / "previews" / "step-0000003.png", [1], shade=1)  # of another number of steps between previews
    longer = {**PREVIEWS, "resume_from_checkpoint": "latest", "max_train_steps": 6}
    train_here(tiny_settings(toy, run, **longer))
    text = text_of(run)
    assert "Finished after step 6 of 6." in text
    assert f"each interval ({number(log_lines(run)[-1]['loss'])} at 6)" in text
    assert "loss from" not in text  # for those who do not see the chart it is in its label
    labels = PageReader((run / "run.html").read_text()).values("aria-label")
    assert any(f"each interval from {number(log_lines(run)[0]['loss'])} at 1 to" in str(label) for label in labels)
    assert [step for step, _ in list_previews(run)] == [2, 4, 6]
    with Image.open(run / "previews" / "over_time.png") as sheet:
        assert len(grid_cells(sheet)[0]) == 5


# After the fact


def test_the_command_writes_the_page_again_and_needs_no_data(run, capsys):
    (run / "run.html").unlink()
    (run / "previews" / "over_time.png").unlink()
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'run.html'}\n"
    assert "Finished after step 4 of 4." in text_of(run)
    assert (run / "previews" / "over_time.png").is_file()


def test_the_command_can_leave_the_run_folder_as_it_is(run, tmp_path, capsys):
    (run / "previews" / "over_time.png").unlink()
    before = sorted(path.name for path in run.rglob("*"))
    assert cli.main(["report", str(run), "--output", str(tmp_path / "pages" / "a.html")]) == 0
    assert sorted(path.name for path in run.rglob("*")) == before
    assert_self_contained((tmp_path / "pages" / "a.html").read_text())


def test_a_run_that_was_killed_is_distinguished_from_one_that_is_going_on(run):
    set_status(run, status="running", step=0)
    (run / "model_index.json").unlink()
    with exclusive_folder(run, "training into"):
        write_run_page(run, defaults=TrainingSettings.defaults())
        assert "Running, at step 4 of 4." in text_of(run)
        assert "Resume from" not in text_of(run)
    write_run_page(run, defaults=TrainingSettings.defaults())
    text = text_of(run)
    assert "Ended without a message after step 4 of 4" in text
    assert f"Resume from checkpoint-4, as if the run had never ended: semseg-diffusers train --config {run}" in text


def test_a_stopped_run_says_by_what(run):
    set_status(run, status="stopped", reason="SIGTERM")
    write_run_page(run, defaults=TrainingSettings.defaults())
    assert "Stopped by SIGTERM after step 4 of 4; a checkpoint was saved." in text_of(run)


def test_a_run_from_before_there_were_records_has_a_page(run):
    (run / "run.json").unlink()
    (run / "status.json").unlink()
    for _, path in list_previews(run):
        with Image.open(path) as picture:
            plain = picture.convert("RGB")
            plain.info.clear()
        plain.save(path)
    write_run_page(run, defaults=TrainingSettings.defaults())
    text = text_of(run)
    assert "At step 4 of 4; the folder does not record the state of the run." in text
    assert "before pairs and classes were recorded" in text


def test_a_run_without_a_line_of_log_has_a_page(run):
    (run / "log.jsonl").write_text("")
    shutil.rmtree(run / "previews")
    write_run_page(run, defaults=TrainingSettings.defaults())
    text = text_of(run)
    assert "optimizer step" not in text
    assert "Samples" not in text


def test_a_log_with_a_loss_that_is_no_number_has_a_page(run):
    with (run / "log.jsonl").open("a") as file:
        line = {"step": 5, "loss": float("nan"), "learning_rate": 0.0, "images_per_second": 1.0, "trained_seconds": 9}
        file.write(json.dumps(line) + '\n{"step": 6, "lo')
    write_run_page(run, defaults=TrainingSettings.defaults())
    assert "n/a, mean of the last interval" in text_of(run)


def test_a_long_log_makes_a_small_page(run):
    lines = [
        {"step": k, "loss": 1 / k, "learning_rate": 1e-3, "images_per_second": 9.0, "trained_seconds": k * 100}
        for k in range(1, 20_001)
    ]
    before = len((run / "run.html").read_text())
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_run_page(run, defaults=TrainingSettings.defaults())
    html = (run / "run.html").read_text()
    assert len(html) < before + 40_000
    assert "mean of 20 intervals" in html
    assert "the axis is logarithmic" in html
    assert "23 d 3 h" in html


def test_a_folder_that_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(
        ValueError, match="holds no settings.json: it is not the folder of a run. Expected the --output_"
    ):
        read_run(tmp_path / "nowhere")
    (run / "status.json").write_text("{")
    with pytest.raises(ValueError, match="status.json' is not valid JSON"):
        write_run_page(run, defaults=TrainingSettings.defaults())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (600, "10 min"), (3599, "59 min"), (3600, "1 h 0 min"), (9000, "2 h 30 min"),
     (86400, "1 d 0 h"), (200000, "2 d 7 h")],
)  # fmt: skip
def test_durations_are_written_as_a_person_would(seconds, text):
    assert duration(seconds) == text


def test_long_rows_are_thinned_evenly():
    assert [evenly(3, 5), evenly(100, 4), evenly(9, 1)] == [[0, 1, 2], [0, 33, 66, 99], [0]]
    assert thin([(1, 4.0), (2, 2.0), (3, 1.0)], most=2) == [(2, 3.0), (3, 1.0)]


# Other processes


@pytest.mark.slow
def test_a_page_can_be_made_of_a_run_that_is_going_on_and_of_the_same_when_it_is_killed(toy, tmp_path):
    run = tmp_path / "run"
    endless = tiny_settings(toy, run, max_train_steps=100_000, lr_scheduler="constant", checkpointing_steps=5)
    process = start(SCRIPT, *endless.to_arguments())
    wait_until(lambda: len(log_lines(run)) > 6, process)
    write_run_page(run, defaults=TrainingSettings.defaults())
    assert "Running, at step" in text_of(run)
    assert "Time left" in text_of(run)
    process.kill()
    process.communicate()
    write_run_page(run, defaults=TrainingSettings.defaults())
    assert "Ended without a message after step" in text_of(run)


@pytest.mark.slow
def test_of_two_processes_one_writes_the_page_and_says_the_warnings(toy, tmp_path):
    run = tmp_path / "run"
    process = launch_two(SCRIPT, tiny_settings(toy, run, **PREVIEWS))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert output.count("warning: No pixel in") == 1
    assert "accelerate launch --num_processes 2 -m semseg_diffusers.training --config" in text_of(run)
    assert "Finished after step 4 of 4." in text_of(run)
