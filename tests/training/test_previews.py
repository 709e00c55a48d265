"""Trackers: what arrives with them, and a library that is missing is named before anything starts."""

import importlib.util
import json

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process
from helpers.training_runs import log_lines, tiny_settings, train_here
from PIL import Image

from semseg_diffusers.training.previews import parse_trackers


PREVIEWS = {"preview_steps": 2, "preview_masks": 1, "preview_samples": 1, "preview_inference_steps": 1}
VALUES = ("loss", "learning_rate", "images_per_second", "data_wait_share")


class Notebook(GeneralTracker):
    """A tracker that keeps what it is given, in a file."""

    name = "notebook"
    requires_logging_directory = True

    def __init__(self, run_name, logging_dir, **_options):
        super().__init__()
        self.run_name, self.folder = run_name, logging_dir
        self.entries = {"values": [], "pictures": []}

    @property
    def tracker(self):
        return self.entries

    @on_main_process
    def store_init_configuration(self, values):
        self.entries["config"] = values

    @on_main_process
    def log(self, values, step=None, **_options):
        self.entries["values"].append([step, values])

    @on_main_process
    def log_images(self, values, step=None, **_options):
        self.entries["pictures"].append([step, {name: np.shape(pictures) for name, pictures in values.items()}])

    @on_main_process
    def finish(self):
        with open(f"{self.folder}/notebook.json", "w") as file:
            json.dump({"name": self.run_name, **self.entries}, file)


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    return "notebook"


def test_settings_numbers_and_previews_arrive_with_a_tracker(toy, tmp_path, notebook):
    run = train_here(tiny_settings(toy, tmp_path / "run", report_to=notebook, max_train_steps=2, **PREVIEWS))
    kept = json.loads((run / "logs" / "notebook.json").read_text())
    assert kept["name"] == "semseg_diffusers"
    assert kept["config"]["learning_rate"] == 1e-2
    assert kept["config"]["block_out_channels"] == "(8, 16)"
    assert kept["values"] == [[line["step"], {name: line[name] for name in VALUES}] for line in log_lines(run)]
    with Image.open(run / "previews" / "step-0000002.png") as preview:
        assert kept["pictures"] == [[2, {"preview": [1, preview.height, preview.width, 3]}]]


def test_several_trackers_get_the_same_and_tensorboard_shows_it(toy, tmp_path, notebook):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"report_to": f"tensorboard,{notebook}", "max_train_steps": 2, **PREVIEWS}
    run = train_here(tiny_settings(toy, tmp_path / "run", **options))
    assert (run / "logs" / "notebook.json").is_file()
    events = EventAccumulator(str(run / "logs" / "semseg_diffusers"), size_guidance={"images": 0}).Reload()
    assert set(VALUES) <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["preview"]
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in log_lines(run)]
    (hparams,) = (run / "logs").rglob("hparams.yml")
    assert "learning_rate: 0.01" in hparams.read_text()


def test_weights_and_biases_keeps_its_files_in_the_run(toy, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    run = train_here(tiny_settings(toy, tmp_path / "run", report_to="wandb", max_train_steps=2, **PREVIEWS))
    (kept,) = (run / "logs" / "wandb").glob("offline-run-*")
    (written,) = kept.glob("*.wandb")
    assert all(name.encode() in written.read_bytes() for name in (*VALUES, "block_out_channels"))
    assert len(list((kept / "files" / "media" / "images").glob("preview_*.png"))) == 1
    assert not (tmp_path / "wandb").exists()


def missing_tracker():
    """A tracker that accelerate knows and that is not installed here."""
    return next(name for name in ("swanlab", "dvclive", "clearml", "aim") if not importlib.util.find_spec(name))


def test_a_tracker_whose_library_is_missing_is_told_before_anything_starts(toy, tmp_path):
    name = missing_tracker()
    with pytest.raises(ValueError, match=f"--report_to {name} needs a library .*: pip install {name}"):
        train_here(tiny_settings(toy, tmp_path / "run", report_to=f"tensorboard,{name}"))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"--report_to 'tensorbord': expected one or more of .*tensorboard, .*wandb"):
        parse_trackers("tensorbord")


def test_all_means_those_installed():
    assert set(parse_trackers("all")) >= ({"tensorboard"} if importlib.util.find_spec("tensorboard") else set())
    assert missing_tracker() not in parse_trackers("all")
