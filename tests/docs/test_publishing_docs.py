"""docs/how_to/publishing.md: its blocks run as printed, against a Hub of the test's own."""

import shutil
from pathlib import Path

import pytest
from helpers.page_blocks import PAGES, SHORTER, run_line, run_page
from helpers.page_places import TRAIN, save_model, write_camvid
from helpers.training_runs import status, tiny_settings, train_here

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings


pytestmark = pytest.mark.slow

(PAGE,) = [page for page in PAGES if page.name == "publishing.md"]
SIZE = (32, 32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small dataset, a finished run on it, and its evaluation."""
    folder = tmp_path_factory.mktemp("publishing")
    write_camvid(folder / "camvid")
    data, run = folder / "data" / "camvid128", folder / "runs" / "camvid128"
    prepare_dataset(PrepareSettings(source=str(folder / "camvid"), output=str(data), format="camvid", resolution=SIZE))
    train_here(tiny_settings(data, run))
    judge = ["--architecture", "segformer-mini", "--max_train_steps", "1", "--device", "cpu"]
    assert cli.main(["segmenter", "--dataset", str(data), "--output", str(folder / "judge"), *judge]) == 0
    evaluate = ["evaluate", "--model", str(run), "--dataset", str(data), "--segmenter", str(folder / "judge")]
    evaluate += ["--features", "none", "--num_inference_steps", "1", "--output", str(folder / "evaluation")]
    assert cli.main(evaluate) == 0
    return folder


def test_blocks_of_the_page_run_as_printed(prepared, hub, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "checkout")
    monkeypatch.chdir(folder)
    to_hub = hub.environment(tmp_path / "home")
    run_page(PAGE, SHORTER, to_hub)
    assert {"unet/unet_mask_guided.py", "pipeline.py"} <= hub.model("alice/camvid128").files().keys()
    card = (folder / "runs" / "camvid128" / "README.md").read_text()
    assert "mean IoU" in card
    assert "license: cc-by-nc-4.0" in card
    assert (folder / "checkpoints" / "streets" / "README.md").is_file()
    assert hub.dataset("alice/camvid128-pairs").private
    assert status(folder / "runs" / "again")["status"] == "finished"
    assert len(list((folder / "from_hub" / "images").glob("*.png"))) == 2

    # the training that pushes: its data comes from the Hub, its model goes there
    line = "semseg-diffusers train --dataset alice/camvid128-pairs --output_dir runs/pushed --push_to_hub"
    output = run_line(f"{line} --hub_private_repo {SHORTER['semseg-diffusers train']}", to_hub)
    assert "pushed http" in output
    model = hub.model("alice/pushed")
    assert model.private
    card = model.files()["README.md"].data.decode()
    assert f"{TRAIN} pairs of `alice/camvid128-pairs`" in card
    assert "license: cc-by-nc-4.0" in card  # as the dataset's own record says


def test_training_that_is_to_be_pushed_asks_the_hub_first(prepared, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(prepared)
    line = "semseg-diffusers train --dataset data/camvid128 --output_dir runs/refused --push_to_hub"
    with pytest.raises(AssertionError, match="the Hub refuses your token"):
        run_line(line, hub.environment(tmp_path / "home", token="hf_wrong"))
    assert not (prepared / "runs" / "refused").exists()


def test_blocks_on_growing_run_as_printed(prepared, hub, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "checkout")
    monkeypatch.chdir(folder)
    shutil.rmtree("data/camvid128")
    write_camvid(Path("more"), num_train=48)  # of so many, and so large, sizes are learned
    prepare_dataset(PrepareSettings(source="more", output="data/camvid128", format="camvid"))
    save_model(folder / "drawer", LabelSet.from_preset("camvid"))
    words = ["--masks", "data/camvid128/train/masks", "--output", "grown/filter", "--num_inference_steps", "1"]
    assert cli.main(["generate", "--model", "drawer", *words, "--device", "cpu"]) == 0
    page = next(page for page in PAGES if page.match("how_to/growing.md"))
    run_page(page, SHORTER, hub.environment(tmp_path / "home"))
    assert hub.dataset("alice/camvid128-grown").private
    assert len(list((folder / "data/camvid128_grown/train/images").glob("synthetic_*.png"))) == 48
    assert not (folder / "grown_long").exists()  # a dry run
