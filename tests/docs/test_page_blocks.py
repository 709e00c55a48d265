"""README.md and docs/: each block of Python or bash is run as printed, or says why not."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.page_blocks import LANGUAGES, PAGES, SHORTER, blocks_of, blocks_to_run, run_line, run_page
from helpers.page_places import VAL, edited_photo, lay_out, make_stock, published
from helpers.training_runs import status
from PIL import Image

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, cli
from semseg_diffusers.generation.output_folder import read_metadata


DATA, RUN, SMALL = "data/camvid128", "runs/camvid128", "runs/small"
MINI = {"semseg-diffusers segmenter": f"{SHORTER['semseg-diffusers segmenter']} --architecture segformer-mini"}

ONE_STEP = "--segmenter_steps 1"  # of the network that is trained without --segmenter


def nothing(*_) -> None:
    """No more to prepare, or to check."""


@dataclass(frozen=True)
class Place:
    """Where a page's blocks run, and what is true afterwards."""

    stock: tuple[str, ...] = ()  # what of the stock is there before
    prepare: Callable[[Path], None] = nothing
    check: Callable[[Path, dict], None] = nothing  # takes the folder, and the names that python blocks left
    options: Mapping[str, str] = field(default_factory=dict)  # beside SHORTER


# What is true after each page ----------------------------------------------------------------------------------------


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*.png"))


def check_readme(folder: Path, names: dict) -> None:
    assert Image.open(folder / "street.png").size == (512, 512)
    assert Image.open(folder / "streets.png").size == (4 * 128, 128)
    assert len(names["images"]) == 2
    assert len(pictures(folder / "new")) == 4 * len(VAL)
    assert json.loads((folder / "evaluation" / "results.json").read_text())["data"]["num_generated"] == 4 * len(VAL)


def check_data(folder: Path, names: dict) -> None:
    assert LabelSet.from_json(folder / DATA / "labels.json") == LabelSet.from_preset("camvid")
    assert LabelSet.from_json(folder / "data/camvid_as_bdd/labels.json") == LabelSet.from_preset("bdd100k")
    assert (folder / "stats" / "index.html").is_file()


def check_converting(folder: Path, names: dict) -> None:
    assert {path.name for path in (folder / "models").iterdir()} == {"paper", "paper-raw", "sdm", "breast"}
    assert len(pictures(folder / "generated")) == 1
    sdm = MaskGuidedDDPMPipeline.from_pretrained(folder / "models/sdm")
    assert LabelSet.from_config(sdm.unet.config).names[0] == "c0"
    grey = MaskGuidedDDPMPipeline.from_pretrained(folder / "models/breast")
    image = grey(torch.zeros(16, 16, dtype=torch.uint8), num_inference_steps=1, guidance_scale=1).images[0]
    assert image.mode == "L"
    # the recipe for a file that one trusts made one that converts, where the file itself is refused
    words = ["convert", "--from", "paper", "--output", str(folder / "models/again")]
    assert cli.main([*words, "model_epoch_550.ckpt"]) == 2
    assert cli.main([*words, "weights.ckpt"]) == 0


def check_editing_photos(folder: Path, names: dict) -> None:
    photo = np.asarray(Image.open(folder / "photo.png").convert("RGB"))
    changed = (np.asarray(Image.open(folder / "edited.png")) != photo).any(axis=-1)
    assert changed[64:68, 64:68].any()
    assert changed.sum() <= 12 * 12  # four pixels around
    assert names["image"].size == (128, 128)


def check_evaluating(folder: Path, names: dict) -> None:
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("evaluation*/results.json")}
    assert len(results) == 5
    assert results["evaluation"]["diversity"]
    agreement = results["evaluation_others"]["agreement"]
    assert agreement["generated"]["mean_iou"] == agreement["real"]["mean_iou"]  # photos: exactly the ceiling
    shared = results["evaluation_shared"]["agreement"]["generated"]["num_images"]
    assert shared == len(VAL)
    assert names["scores"].mean_iou == 1


def check_first_photo(folder: Path, names: dict) -> None:
    photo, edited = (np.asarray(Image.open(folder / name)) for name in ("photo.png", "edited.png"))
    changed = (photo != edited).any(axis=-1)
    assert changed.any()
    assert not changed[:, 70:].any()  # the rider is on the left
    assert Image.open(folder / "large.png").size == (512, 512)
    assert len(pictures(folder / "new")) == 4


def check_filtering(folder: Path, names: dict) -> None:
    assert len(read_metadata(folder / "filtered")) == 4
    assert 2 <= len(read_metadata(folder / "resampled")) <= 4
    assert (folder / "judged" / "report.html").is_file()


def check_generating(folder: Path, names: dict) -> None:
    assert {row["timeofday"] for row in read_metadata(folder / "night")} == {"night"}
    assert len(read_metadata(folder / "weathers")) == 2 * 4
    assert all("near_copy" in row for row in read_metadata(folder / "new"))
    photos = [Path(row["source_photo"]) for row in read_metadata(folder / "enriched_photos")]
    assert {photo.parent.parent.name for photo in photos} == {"train"}


def check_painting(folder: Path, names: dict) -> None:
    labels = LabelSet.from_preset("camvid")
    ids = labels.encode(folder / "cleaned/masks/street.png")
    assert set(np.unique(ids)) == set(range(labels.num_classes))  # every class was painted, and nothing is unknown
    assert {name: len(pictures(folder / name)) for name in ("drawn", "edited_photos", "enriched_photos")} == {
        "drawn": 4,
        "edited_photos": 4,
        "enriched_photos": 2,
    }


def check_training(folder: Path, names: dict) -> None:
    assert status(folder / RUN)["status"] == "finished"
    assert (folder / RUN / "run.html").is_file()


def check_distilling(folder: Path, names: dict) -> None:
    assert type(names["pipe"].scheduler).__name__ == "LCMScheduler"
    assert names["image"].size == names["draft"].size == (128, 128)
    assert len(read_metadata(folder / "generated")) == len(VAL)


def check_autoencoders(folder: Path, names: dict) -> None:
    assert names["again"].shape == names["photo"].shape
    assert json.loads((folder / "runs/camvid128-vae/results.json").read_text())["reconstruction"]["num_photos"] == len(
        VAL
    )


def check_scale_out(folder: Path, names: dict) -> None:
    assert status(folder / "runs/shared")["status"] == "finished"
    assert len(read_metadata(folder / "new")) == len(pictures(folder / "new")) == len(VAL)


def check_study(folder: Path, names: dict) -> None:
    assert {path.parent.name for path in folder.glob("*/report.html")} == {
        "study",
        "study_filtered",
        "study_fast",
        "study_use",
    }


# The places ----------------------------------------------------------------------------------------------------------


def drawn(name: str, split: str = "val", count: int = 1) -> Callable[[Path], None]:
    """A folder of images of a split's masks, which a page starts with."""

    def prepare(folder: Path) -> None:
        words = f"--model {RUN} --masks {DATA}/{split}/masks --num_images_per_mask {count} --output {name}"
        assert cli.main(["generate", *words.split(), "--num_inference_steps", "1", "--device", "cpu"]) == 0

    return prepare


def a_set_to_study(folder: Path) -> None:
    """Two pairs to train on, and filtered images beside those that the page's first line draws."""
    drawn("new", "train", 2)(folder)
    shutil.copytree(folder / "new", folder / "filtered")
    shutil.rmtree(folder / "new")


PLACES = {
    "autoencoders.md": Place(
        (DATA,),
        check=check_autoencoders,
        options={"autoencoder": "--max_train_steps 1 --train_batch_size 1 --random_crop 32 --device cpu"},
    ),
    "README.md": Place(("camvid", "checkpoints"), check=check_readme, options={"semseg-diffusers evaluate": ONE_STEP}),
    "converting.md": Place(
        prepare=published,
        check=check_converting,
        options={
            "--from sdm": "--sample_size 32 --num_head_channels 16",
            "semseg-diffusers generate": "--num_inference_steps 1 --height 32 --width 32 --device cpu",
        },
    ),
    "data.md": Place(("camvid",), check=check_data),
    "distilling.md": Place(
        (DATA, RUN),
        check=check_distilling,
        options={"distill": "--max_train_steps 1 --train_batch_size 1 --device cpu"},
    ),
    "editing_photos.md": Place((DATA, RUN, SMALL), edited_photo, check_editing_photos),
    "evaluating.md": Place(
        (DATA, RUN, SMALL),
        check=check_evaluating,
        options={**MINI, "--num_images_per_mask 2 --output evaluation": ONE_STEP},
    ),
    "filtering.md": Place(
        (DATA, RUN), drawn("new", count=2), check_filtering, options={"semseg-diffusers evaluate": ONE_STEP}
    ),
    "first_photo.md": Place(("checkpoints",), check=check_first_photo),
    "generating.md": Place((DATA, "data/bdd128", RUN, SMALL, "runs/bdd128"), check=check_generating),
    "painting.md": Place((DATA, RUN), check=check_painting),
    "sampling.md": Place((DATA, RUN)),
    "scale_out.md": Place((DATA, RUN), check=check_scale_out),
    "study.md": Place((DATA, RUN), a_set_to_study, check_study),
    "training.md": Place((DATA, "checkpoints"), check=check_training),
}
# These start without stock, so that they are quick.
QUICK = ("converting.md",)
# Lines of these reach a Hub: test_publishing_docs.py runs them.
WITH_A_HUB = ("publishing.md", "growing.md")


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """Data and models for all pages of this file."""
    return make_stock(tmp_path_factory.mktemp("stock"))


def test_every_page_with_blocks_to_run_has_a_place():
    pages = {page.name for page in PAGES if blocks_to_run(page)}
    assert pages == {*PLACES, *WITH_A_HUB}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marker_of_a_page_stands_above_a_block_and_gives_a_reason(page):
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(blocks)
    marked = [block for block in blocks if block.reason is not None]
    assert len(marked) == text.count("not run by the tests")
    assert all(block.language in LANGUAGES and len(block.reason.split()) >= 2 for block in marked)
    assert {block.language for block in blocks} <= {*LANGUAGES, "json", "yaml", "text", "bibtex"}


def run_in_place(name: str, folder: Path, stock: Path | None) -> None:
    place = PLACES[name]
    if stock is not None:
        lay_out(stock, folder, *place.stock)
    place.prepare(folder)
    page = next(page for page in PAGES if page.name == name and page.parent.name != "results")
    place.check(folder, run_page(page, {**SHORTER, **place.options}))


@pytest.mark.parametrize("name", QUICK)
def test_blocks_of_a_quick_page_run_as_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_in_place(name, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLACES if name not in QUICK])
def test_blocks_of_a_page_run_as_printed(name, stock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_in_place(name, tmp_path, stock)


def test_a_line_that_fails_fails_the_test():
    with pytest.raises(AssertionError, match="a message of the line"):
        run_line("python -c \"raise SystemExit('a message of the line')\"")
